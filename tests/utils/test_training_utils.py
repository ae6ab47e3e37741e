import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from models.efficientnet import build_model
from models.efficientnet_config import AugmentationConfig, EfficientNetConfig
from models.errors import ConfigError
from tests.conftest import tiny_config
from utils import training_utils
from utils.storage.spectrograms import ArrayDataset, Batch
from utils.running.devices import resolve_device, use_deterministic_algorithms
from utils.training_utils import (Augmenter, LoopState, Stepper, Trainer, class_weights, count_steps, fit,
                                  loop_state_from_dict, loop_state_to_dict, make_optimizer, make_schedule,
                                  make_stepper, mean_and_deviation, predict_logits, resolve_batch_norm, train_epoch,
                                  validation_scores)

CPU = torch.device("cpu")
ROUNDING = 1e-6  # float32 sums of a few dozen terms, added in another order
N_MELS, N_FRAMES = 4, 5


class Linear(nn.Module):
    """A network without batch norm or dropout: every gradient can be checked by hand."""

    def __init__(self, n_classes=2):
        super().__init__()
        self.layer = nn.Linear(N_MELS * N_FRAMES, n_classes)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, log_mel):
        return self.layer(log_mel.flatten(1))


def clips(rng, n_clips, *, n_classes=2, scale=1.0):
    log_mels = scale * rng.standard_normal((n_clips, N_MELS, N_FRAMES)).astype(np.float32)
    return ArrayDataset(log_mels, np.arange(n_clips) % n_classes)


def linear_trainer(dataset, **changes):
    config = tiny_config(class_weights="none", scheduler="constant", gradient_clipping=0.0, weight_decay=0.0,
                         **changes)
    return Trainer(Linear(), config, dataset, dataset, 2, CPU)


def sgd_stepper(model, *, learning_rate, gradient_clipping):
    """Plain descent: without momentum the update is the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return Stepper(model, optimizer, schedule, torch.amp.GradScaler("cpu", enabled=False), gradient_clipping)


# learning rate

def learning_rates(config, *, steps_per_epoch):
    optimizer = make_optimizer(Linear(), config)
    schedule = make_schedule(optimizer, config, steps_per_epoch=steps_per_epoch)
    rates = []
    for _ in range(config.epochs * steps_per_epoch + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_schedule_by_hand():
    config = EfficientNetConfig(epochs=5, warmup_epochs=1, learning_rate=1.0)
    rates = learning_rates(config, steps_per_epoch=3)
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    # 12 steps of cosine: a quarter, a half and all of the way
    assert rates[6] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.sqrt(0.5)))
    assert rates[9] == pytest.approx(0.505)
    assert rates[15] == pytest.approx(0.01)
    assert np.all(np.diff(rates[3:]) < 0)


def test_constant_schedule_keeps_the_peak_after_the_warm_up():
    config = EfficientNetConfig(epochs=3, warmup_epochs=1, learning_rate=2.0, scheduler="constant")
    assert learning_rates(config, steps_per_epoch=1) == pytest.approx([1.0, 2.0, 2.0, 2.0])


def test_without_warm_up_the_first_step_is_the_peak():
    config = EfficientNetConfig(epochs=2, warmup_epochs=0, learning_rate=0.5)
    assert learning_rates(config, steps_per_epoch=4)[0] == 0.5


@pytest.mark.parametrize("n_clips, batch_size, accumulation_steps, expected",
                         [(8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 2, 2), (16, 4, 2, 2), (3, 8, 4, 1)])
def test_steps_of_an_epoch_by_hand(n_clips, batch_size, accumulation_steps, expected):
    config = EfficientNetConfig(batch_size=batch_size, accumulation_steps=accumulation_steps)
    assert count_steps(n_clips, config) == expected


@pytest.mark.parametrize("accumulation_steps, expected", [(1, 5), (2, 3), (3, 2), (9, 1)])
def test_the_schedule_moves_once_a_step_of_the_optimizer(rng, accumulation_steps, expected):
    trainer = linear_trainer(clips(rng, 9), batch_size=2, accumulation_steps=accumulation_steps, optimizer="sgd")
    stepper = make_stepper(trainer)
    train_epoch(trainer, stepper, epoch=1)
    assert stepper.schedule.last_epoch == expected == trainer.steps_per_epoch


def test_the_cosine_ends_with_the_last_epoch(rng):
    trainer = linear_trainer(clips(rng, 9), batch_size=2, accumulation_steps=2, epochs=3, patience=0)
    trainer = Trainer(trainer.model, trainer.config.replace(scheduler="cosine"), trainer.train, trainer.val, 2, CPU)
    state = LoopState()
    fit(trainer, make_stepper(trainer), state, after_epoch=lambda *outcome: None)
    assert state.history[-1]["learning_rate"] == pytest.approx(0.01 * trainer.config.learning_rate)


# batch norm, class weights, devices

@pytest.mark.parametrize("steps, expected", [(1, 0.1), (100, 0.1), (200, 0.05), (500, 0.02), (1000, 0.01),
                                             (50_000, 0.01)])
def test_batch_norm_momentum_by_hand(steps, expected):
    resolved = resolve_batch_norm(EfficientNetConfig(), steps_per_epoch=steps)
    assert resolved.batch_norm_momentum == pytest.approx(expected)


def test_a_given_batch_norm_momentum_stays():
    config = EfficientNetConfig(batch_norm_momentum=0.3)
    assert resolve_batch_norm(config, steps_per_epoch=1000) == config


def test_class_weights_by_hand():
    weights = class_weights(np.array([0, 0, 0, 2]), n_classes=4)
    # n_rows / (n_present * n_of_class): 4 / (2 * 3) and 4 / (2 * 1); no weight for what does not occur
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([2 / 3, 0.0, 2.0, 0.0])


def test_balanced_weights_reach_the_loss(rng):
    log_mels, labels = rng.standard_normal((4, N_MELS, N_FRAMES)).astype(np.float32), np.array([0, 0, 0, 1])
    trainer = linear_trainer(ArrayDataset(log_mels, labels), batch_size=4)
    trainer = Trainer(trainer.model, trainer.config.replace(class_weights="balanced"), trainer.train, trainer.val, 2,
                      CPU)
    train_epoch(trainer, sgd_stepper(trainer.model, learning_rate=1.0, gradient_clipping=0.0), epoch=1)
    # zero weights give probabilities of a half; balanced classes pull the bias equally in both directions
    assert trainer.model.layer.bias.detach().abs().max() < ROUNDING


def test_devices_by_name():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "", "cpux"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(ConfigError, match=f"--device must be one of auto, cpu, cuda, mps or cuda:N, got '{name}'"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:x", "mps", "cpu:1"])
def test_absent_devices_are_refused_rather_than_replaced(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"--device {name} is not available.*--device cpu"):
        resolve_device(name)


def test_deterministic_algorithms_are_switched_on(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or the function's own change would outlive the test
    try:
        use_deterministic_algorithms()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


# one step

def test_biases_and_norms_are_not_decayed():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 2))
    optimizer = make_optimizer(model, EfficientNetConfig(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.3, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "2.weight": 0.3, "2.bias": 0.0}


@pytest.mark.parametrize("name, kind", [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam),
                                        ("sgd", torch.optim.SGD)])
def test_optimizer_of_the_config(name, kind):
    assert type(make_optimizer(Linear(), EfficientNetConfig(optimizer=name))) is kind


def test_clipping_bounds_the_update(rng):
    dataset = clips(rng, 8, scale=1000.0)
    norms = {}
    for clipping in (0.0, 0.25):
        trainer = linear_trainer(dataset, batch_size=8)
        train_epoch(trainer, sgd_stepper(trainer.model, learning_rate=1.0, gradient_clipping=clipping), epoch=1)
        norms[clipping] = math.sqrt(sum(float(p.detach().square().sum()) for p in trainer.model.parameters()))
    assert norms[0.0] > 100
    assert norms[0.25] == pytest.approx(0.25, rel=1e-4)  # clip_grad_norm_ divides by the norm plus 1e-6


def test_clipping_comes_after_unscaling(rng):
    """With a loss scale of 1024 left in, the clipped gradient would be that much too small after unscaling."""
    model = Linear()
    stepper = sgd_stepper(model, learning_rate=1.0, gradient_clipping=0.5)
    stepper.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=1024.0)
    inputs = torch.from_numpy(1000 * rng.standard_normal((2, 1, N_MELS, N_FRAMES)).astype(np.float32))
    loss = nn.functional.cross_entropy(model(inputs), torch.tensor([0, 1]))
    stepper.scaler.scale(loss).backward()
    stepper.step()
    norm = math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert norm == pytest.approx(0.5, rel=1e-4)
    assert all(p.grad is None for p in model.parameters())


def test_accumulated_batches_equal_one_large_batch(rng):
    dataset = clips(rng, 8)
    trained = []
    for batch_size, accumulation_steps in ((8, 1), (2, 4)):
        trainer = linear_trainer(dataset, batch_size=batch_size, accumulation_steps=accumulation_steps)
        loss = train_epoch(trainer, sgd_stepper(trainer.model, learning_rate=0.5, gradient_clipping=0.0), epoch=1)
        trained.append((loss, trainer.model.layer.weight.detach()))
    assert trained[0][0] == pytest.approx(math.log(2)) == trained[1][0]
    assert trained[0][1].abs().max() > 0.01
    torch.testing.assert_close(trained[0][1], trained[1][1], rtol=0, atol=ROUNDING)


def test_a_short_last_group_counts_by_its_own_batches(rng):
    """Three batches in groups of two: the lone third makes a step as long as it would alone."""
    log_mels = np.repeat(rng.standard_normal((1, N_MELS, N_FRAMES)).astype(np.float32), 6, axis=0)
    trainer = linear_trainer(ArrayDataset(log_mels, np.zeros(6, dtype=int)), batch_size=2, accumulation_steps=2)
    train_epoch(trainer, sgd_stepper(trainer.model, learning_rate=0.1, gradient_clipping=0.0), epoch=1)
    expected = Linear()
    for _ in range(2):
        loss = nn.functional.cross_entropy(expected(torch.from_numpy(log_mels[:1])), torch.tensor([0]))
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    torch.testing.assert_close(trainer.model.layer.weight, expected.layer.weight, rtol=0, atol=ROUNDING)


# the loop

def test_eight_clips_are_learnt_by_heart(rng):
    """The floor under any training code: a network that cannot do this is not being trained."""
    log_mels = (-40 + 10 * rng.standard_normal((8, 16, 16))).astype(np.float32)
    dataset = ArrayDataset(log_mels, np.arange(8) % 4)
    config = tiny_config(model_name="resnet18", batch_size=8, epochs=12, learning_rate=2e-3, monitor="accuracy")
    trainer = Trainer(build_model(config, 4), config, dataset, dataset, 4, CPU)
    state = LoopState()
    fit(trainer, make_stepper(trainer), state, after_epoch=lambda *outcome: None)
    logits, labels = predict_logits(trainer.model, dataset, config=config, device=CPU, n_workers=0)
    assert (logits.argmax(axis=1) == labels).all()
    assert state.history[-1]["train_loss"] < 0.1 < state.history[0]["train_loss"]


def script_validation(monkeypatch, accuracies):
    """Replace validation by given accuracies, one an epoch, of four clips of two classes."""
    labels = np.array([0, 1, 0, 1])
    script = iter(accuracies)

    def scripted(model, dataset, *, config, device, n_workers):
        right = round(4 * next(script))
        guesses = np.where(np.arange(4) < right, labels, 1 - labels)
        return np.eye(2, dtype=np.float32)[guesses], labels

    monkeypatch.setattr(training_utils, "predict_logits", scripted)


def test_early_stopping_waits_and_restores_the_best_weights(rng, monkeypatch):
    script_validation(monkeypatch, [0.25, 0.75, 0.5, 0.75, 0.5, 1.0])
    trainer = linear_trainer(clips(rng, 4), batch_size=2, epochs=6, patience=3, monitor="accuracy")
    weights, best_flags = [], []

    def after_epoch(state, is_best, logits, labels):
        weights.append(copy.deepcopy(trainer.model.state_dict()))
        best_flags.append(is_best)

    state = LoopState()
    best = fit(trainer, make_stepper(trainer), state, after_epoch=after_epoch)
    # the second 0.75 is no improvement, and after three epochs without one the 1.0 is never reached
    assert state.epoch == len(state.history) == 5
    assert best_flags == [True, True, False, False, False]
    assert (state.best_epoch, state.best_score) == (2, 0.75)
    assert torch.equal(trainer.model.layer.weight, weights[1]["layer.weight"])
    assert not torch.equal(weights[1]["layer.weight"], weights[4]["layer.weight"])
    assert torch.equal(best["layer.weight"], weights[1]["layer.weight"])


def test_patience_zero_never_stops(rng, monkeypatch):
    script_validation(monkeypatch, [0.5] * 6)
    trainer = linear_trainer(clips(rng, 4), batch_size=4, epochs=6, patience=0)
    state = LoopState()
    fit(trainer, make_stepper(trainer), state, after_epoch=lambda *outcome: None)
    assert state.epoch == 6 and state.best_epoch == 1


def test_monitoring_the_loss_prefers_the_lowest(rng, monkeypatch):
    labels, scales = np.array([0, 1]), iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(training_utils, "predict_logits",
                        lambda *arguments, **named: (next(scales) * np.eye(2, dtype=np.float32), labels))
    trainer = linear_trainer(clips(rng, 4), batch_size=4, epochs=3, monitor="loss")
    state = LoopState()
    fit(trainer, make_stepper(trainer), state, after_epoch=lambda *outcome: None)
    assert state.best_epoch == 2
    assert state.best_score == pytest.approx(-math.log(1 + math.exp(-3)))


def test_state_survives_being_plain():
    state = LoopState(epoch=3, best_epoch=2, best_score=0.5, history=[{"epoch": 1, "train_loss": 0.1}])
    assert loop_state_from_dict(loop_state_to_dict(state)) == state


def test_the_model_is_in_evaluation_mode_while_predicting(rng):
    model = nn.Sequential(Linear(), nn.Dropout(0.9))
    nn.init.ones_(model[0].layer.weight)
    model.train()
    arguments = {"config": tiny_config(batch_size=3), "device": CPU, "n_workers": 0}
    first, labels = predict_logits(model, clips(rng, 8), **arguments)
    assert not model.training and first.dtype == np.float32
    assert labels.tolist() == [0, 1] * 4
    np.testing.assert_array_equal(first[:, 0] == 0.0, np.zeros(8, dtype=bool))


def test_validation_scores_by_hand():
    logits = np.log(np.array([[0.75, 0.25], [0.6, 0.4], [0.1, 0.9]], dtype=np.float32))
    scores = validation_scores(logits, np.array([0, 1, 1]), n_classes=2)
    assert scores["val_loss"] == pytest.approx(-(math.log(0.75) + math.log(0.4) + math.log(0.9)) / 3, rel=1e-5)
    assert scores["val_accuracy"] == pytest.approx(2 / 3)
    assert scores["val_macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_mean_and_deviation_by_hand():
    result = mean_and_deviation([{"a": 1.0}, {"a": 2.0}, {"a": 6.0}])
    assert result["a"]["mean"] == pytest.approx(3.0)
    assert result["a"]["std"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert mean_and_deviation([{"a": 5.0}])["a"] == {"mean": 5.0, "std": 0.0}


# augmentation

def batch_of(dataset, indices):
    log_mels, labels, numbers = zip(*(dataset[index] for index in indices), strict=True)
    return Batch(torch.stack(log_mels), torch.tensor(labels), torch.tensor(numbers))


def augmenting_config(**changes):
    augmentation = AugmentationConfig(freq_mask_param=2, time_mask_param=2, **changes)
    return tiny_config(use_augmentation=True, augmentation=augmentation)


def test_a_clip_is_masked_by_its_index_whatever_its_batch(rng):
    dataset = clips(rng, 6)
    augment = Augmenter(augmenting_config(use_mixup=False), n_classes=2, epoch=3)
    alone, _ = augment(batch_of(dataset, [4]), device=CPU, number=0)
    among, _ = augment(batch_of(dataset, [1, 0, 4, 2]), device=CPU, number=5)
    assert torch.equal(among[2], alone[0])
    assert not torch.equal(alone[0], dataset[4][0])


def test_epoch_and_seed_change_the_masks(rng):
    dataset, config = clips(rng, 6), augmenting_config(use_mixup=False)
    batch = batch_of(dataset, range(6))
    first, _ = Augmenter(config, n_classes=2, epoch=1)(batch, device=CPU, number=0)
    again, _ = Augmenter(config, n_classes=2, epoch=1)(batch, device=CPU, number=0)
    later, _ = Augmenter(config, n_classes=2, epoch=2)(batch, device=CPU, number=0)
    other, _ = Augmenter(config.replace(seed=7), n_classes=2, epoch=1)(batch, device=CPU, number=0)
    assert torch.equal(first, again)
    assert not torch.equal(first, later) and not torch.equal(first, other)


def test_mixup_targets_are_distributions(rng):
    dataset = clips(rng, 8, n_classes=3)
    batch = batch_of(dataset, range(8))
    augment = Augmenter(augmenting_config(mixup_alpha=1.0), n_classes=3, epoch=1)
    inputs, targets = augment(batch, device=CPU, number=0)
    assert inputs.shape == batch.log_mel.shape and targets.shape == (8, 3)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8), rtol=0, atol=ROUNDING)
    assert ((targets > 0) & (targets < 1)).any()


def test_without_augmentation_a_batch_stays_as_it_is(rng):
    batch = batch_of(clips(rng, 4), range(4))
    inputs, targets = Augmenter(tiny_config(), n_classes=2, epoch=1)(batch, device=CPU, number=0)
    assert torch.equal(inputs, batch.log_mel)
    assert torch.equal(targets, torch.eye(2)[batch.labels])


def test_validation_is_never_augmented(rng, monkeypatch):
    calls = []
    dataset = clips(rng, 4)

    class Recorder(Linear):
        def forward(self, log_mel):
            calls.append((self.training, log_mel.detach().clone()))
            return super().forward(log_mel)

    trainer = Trainer(Recorder(), augmenting_config().replace(epochs=1, batch_size=4), dataset, dataset, 2, CPU)
    fit(trainer, make_stepper(trainer), LoopState(), after_epoch=lambda *outcome: None)
    originals = torch.stack([dataset[index][0] for index in range(4)])
    assert [training for training, _ in calls] == [True, False]
    assert torch.equal(calls[1][1], originals)
    assert not any(torch.equal(clip, original) for clip in calls[0][1] for original in originals)
