import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from models.efficientnet import build_model, stages
from models.efficientnet_config import AugmentationConfig
from models.errors import ConfigError
from tests.conftest import tiny_config
from utils import training_utils
from utils.running.devices import resolve_device, use_deterministic_algorithms
from utils.storage.spectrograms import ArrayDataset
from utils.training.optimisation import Optimisation
from utils.training_utils import (TrainingHistory, TrainingTask, fit, predict_logits, reestimate_batch_norm,
                                  train_epoch, validation_scores)

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


def windows(rng, n_windows, *, n_classes=2, scale=1.0):
    log_mels = scale * rng.standard_normal((n_windows, N_MELS, N_FRAMES)).astype(np.float32)
    return ArrayDataset(log_mels, np.arange(n_windows) % n_classes)


def make_task(model, dataset, config, *, n_classes=2):
    return TrainingTask(model=model, config=config, train=dataset, val=dataset, n_classes=n_classes, device=CPU)


def linear_task(dataset, **changes):
    plain = {"class_weights": "none", "scheduler": "constant", "gradient_clipping": 0.0, "weight_decay": 0.0}
    return make_task(Linear(), dataset, tiny_config(**{**plain, **changes}))


def plain_descent(model, *, learning_rate, gradient_clipping=0.0):
    """Without momentum the update is the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    return Optimisation(network=model, optimizer=optimizer, gradient_clipping=gradient_clipping,
                        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
                        scaler=torch.amp.GradScaler("cpu", enabled=False))


# one epoch

@pytest.mark.parametrize("accumulation_steps, expected", [(1, 5), (2, 3), (3, 2), (9, 1)])
def test_the_schedule_moves_once_a_step_of_the_optimizer(rng, accumulation_steps, expected):
    task = linear_task(windows(rng, 9), batch_size=2, accumulation_steps=accumulation_steps, optimizer="sgd")
    optimisation = task.optimisation()
    train_epoch(task, optimisation, epoch=1)
    assert optimisation.schedule.last_epoch == expected == task.steps_per_epoch


def test_the_cosine_ends_with_the_last_epoch(rng):
    task = linear_task(windows(rng, 9), batch_size=2, accumulation_steps=2, epochs=3, patience=0, scheduler="cosine")
    history = TrainingHistory()
    fit(task, task.optimisation(), history, after_epoch=lambda *outcome: None)
    assert history.rows[-1]["learning_rate"] == pytest.approx(0.01 * task.config.learning_rate)


def test_balanced_weights_reach_the_loss(rng):
    log_mels, labels = rng.standard_normal((4, N_MELS, N_FRAMES)).astype(np.float32), np.array([0, 0, 0, 1])
    task = linear_task(ArrayDataset(log_mels, labels), batch_size=4, class_weights="balanced")
    train_epoch(task, plain_descent(task.model, learning_rate=1.0), epoch=1)
    # zero weights give probabilities of a half; balanced classes pull the bias equally in both directions
    assert task.model.layer.bias.detach().abs().max() < ROUNDING


def test_clipping_bounds_the_update(rng):
    dataset = windows(rng, 8, scale=1000.0)
    norms = {}
    for clipping in (0.0, 0.25):
        task = linear_task(dataset, batch_size=8)
        train_epoch(task, plain_descent(task.model, learning_rate=1.0, gradient_clipping=clipping), epoch=1)
        norms[clipping] = math.sqrt(sum(float(p.detach().square().sum()) for p in task.model.parameters()))
    assert norms[0.0] > 100
    assert norms[0.25] == pytest.approx(0.25, rel=1e-4)  # clip_grad_norm_ divides by the norm plus 1e-6


def test_accumulated_batches_equal_one_large_batch(rng):
    dataset = windows(rng, 8)
    trained = []
    for batch_size, accumulation_steps in ((8, 1), (2, 4)):
        task = linear_task(dataset, batch_size=batch_size, accumulation_steps=accumulation_steps)
        loss = train_epoch(task, plain_descent(task.model, learning_rate=0.5), epoch=1)
        trained.append((loss, task.model.layer.weight.detach()))
    assert trained[0][0] == pytest.approx(math.log(2)) == trained[1][0]
    assert trained[0][1].abs().max() > 0.01
    torch.testing.assert_close(trained[0][1], trained[1][1], rtol=0, atol=ROUNDING)


def test_each_window_of_a_step_weighs_the_same(rng):
    """Of 33 windows in batches of 32, the lone one weighed as much as all the others together."""
    dataset = windows(rng, 33)
    trained = []
    for batch_size, accumulation_steps in ((33, 1), (32, 2)):
        task = linear_task(dataset, batch_size=batch_size, accumulation_steps=accumulation_steps)
        loss = train_epoch(task, plain_descent(task.model, learning_rate=0.5), epoch=1)
        trained.append((loss, task.model.layer.weight.detach()))
    assert trained[0][0] == pytest.approx(trained[1][0])
    torch.testing.assert_close(trained[0][1], trained[1][1], rtol=0, atol=ROUNDING)


def test_a_short_last_group_counts_by_its_own_windows(rng):
    """Three batches in groups of two: the lone third makes a step as long as it would alone."""
    log_mels = np.repeat(rng.standard_normal((1, N_MELS, N_FRAMES)).astype(np.float32), 6, axis=0)
    task = linear_task(ArrayDataset(log_mels, np.zeros(6, dtype=int)), batch_size=2, accumulation_steps=2)
    train_epoch(task, plain_descent(task.model, learning_rate=0.1), epoch=1)
    expected = Linear()
    for _ in range(2):
        loss = nn.functional.cross_entropy(expected(torch.from_numpy(log_mels[:1])), torch.tensor([0]))
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    torch.testing.assert_close(task.model.layer.weight, expected.layer.weight, rtol=0, atol=ROUNDING)


# what an epoch keeps as it is

def resnet_task(rng, **changes):
    log_mels = (-40 + 10 * rng.standard_normal((8, 16, 16))).astype(np.float32)
    config = tiny_config(model_name="resnet18", batch_size=4, dropout_rate=0.5, **changes)
    return make_task(build_model(config, 2), ArrayDataset(log_mels, np.arange(8) % 2), config)


def changed_tensors(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def test_in_a_frozen_epoch_only_the_classifier_changes(rng):
    task = resnet_task(rng, freeze_epochs=1, weight_decay=0.5)
    optimisation, before = task.optimisation(), copy.deepcopy(task.model.state_dict())
    train_epoch(task, optimisation, epoch=1)
    classifier = {"backbone.fc.weight", "backbone.fc.bias"}
    assert changed_tensors(task.model, before) == classifier
    body = [module for stage in stages(task.model)[:-1] for part in stage for module in part.modules()]
    assert not any(module.training for module in body) and task.model.backbone.fc.training  # dropout goes on
    train_epoch(task, optimisation, epoch=2)
    assert all(module.training for module in body)
    assert changed_tensors(task.model, before) == set(before)


def test_stochastic_depth_stays_out_of_a_frozen_body(rng):
    log_mels = (-40 + 10 * rng.standard_normal((4, 32, 32))).astype(np.float32)
    config = tiny_config(batch_size=4, drop_connect_rate=0.9, freeze_epochs=1, epochs=2, learning_rate=1e-9)
    task = make_task(build_model(config, 2), ArrayDataset(log_mels, np.arange(4) % 2), config)
    before = predict_logits(task.model, task.train, config=config, device=CPU, n_workers=0)[0]
    expected = nn.functional.cross_entropy(torch.from_numpy(before), torch.from_numpy(task.train.labels)).item()
    assert train_epoch(task, task.optimisation(), epoch=1) == pytest.approx(expected, rel=1e-5)


def test_frozen_batch_norms_keep_their_statistics_and_learn_their_weights(rng):
    task = resnet_task(rng, freeze_batch_norm=True)
    before = copy.deepcopy(task.model.state_dict())
    train_epoch(task, task.optimisation(), epoch=1)
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    assert statistics and changed_tensors(task.model, before) == set(before) - statistics


# what is validated

def test_the_average_is_validated_and_kept_and_the_newest_weights_go_on(rng):
    log_mels = (-40 + 10 * rng.standard_normal((8, 16, 16))).astype(np.float32)
    config = tiny_config(model_name="resnet18", batch_size=4, epochs=2, ema_decay=0.9, monitor="loss")
    task = make_task(build_model(config, 2), ArrayDataset(log_mels, np.arange(8) % 2), config)
    plain = make_task(build_model(config, 2), task.train, config.replace(ema_decay=0.0))
    optimisation, trained, shown = task.optimisation(), [], []

    def after_epoch(history, logits, labels):
        trained.append(copy.deepcopy(task.model.state_dict()))
        expected, _ = predict_logits(optimisation.kept, task.val, config=config, device=CPU, n_workers=0)
        shown.append(np.array_equal(logits, expected))

    history = TrainingHistory()
    best = fit(task, optimisation, history, after_epoch=after_epoch)
    assert shown == [True, True]
    train_epoch(plain, plain_optimisation := plain.optimisation(), epoch=1)
    train_epoch(plain, plain_optimisation, epoch=2)
    newest = plain.model.state_dict()
    assert all(torch.equal(value, newest[name]) for name, value in trained[1].items())
    assert history.best_epoch == 2
    assert changed_tensors(task.model, newest)
    assert not changed_tensors(task.model, best) and not changed_tensors(optimisation.kept, best)


def test_batch_norm_statistics_are_taken_anew_from_clean_windows(rng):
    dataset = windows(rng, 8, scale=3.0)
    model = nn.Sequential(nn.BatchNorm2d(1, momentum=0.3), nn.Dropout(0.9), nn.BatchNorm2d(1, momentum=0.2),
                          nn.Flatten(), nn.Linear(N_MELS * N_FRAMES, 2))
    model[0].running_mean.fill_(100.0)
    reestimate_batch_norm(model, dataset, config=tiny_config(batch_size=8), device=CPU, n_workers=0)
    clean = torch.stack([dataset[index][0] for index in range(8)])
    torch.testing.assert_close(model[0].running_mean, clean.mean().reshape(1), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(model[0].running_var, clean.var().reshape(1), rtol=1e-5, atol=0)
    # without dropout, the second one sees what the first one normalised
    torch.testing.assert_close(model[2].running_var, torch.full((1,), 160 / 159), rtol=1e-4, atol=0)
    assert (model[0].momentum, model[2].momentum) == (0.3, 0.2)
    assert not any(module.training for module in model.modules())


def test_batch_norm_statistics_are_the_mean_over_whole_batches_of_a_limited_number_of_windows(rng, monkeypatch):
    monkeypatch.setattr(training_utils, "_BATCH_NORM_WINDOWS", 7)
    sizes = []
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(N_MELS * N_FRAMES, 2))
    model[0].register_forward_hook(lambda module, inputs, outputs: sizes.append(inputs[0].clone()))
    config = tiny_config(batch_size=3)
    reestimate_batch_norm(model, windows(rng, 20), config=config, device=CPU, n_workers=0)
    assert [len(batch) for batch in sizes] == [3, 3]
    expected = torch.stack([batch.mean() for batch in sizes]).mean()
    torch.testing.assert_close(model[0].running_mean, expected.reshape(1), rtol=0, atol=ROUNDING)
    sizes.clear()
    reestimate_batch_norm(model, windows(rng, 2), config=config, device=CPU, n_workers=0)
    assert [len(batch) for batch in sizes] == [2]  # a batch is never empty


def test_re_estimating_does_not_change_what_is_trained(rng):
    tasks = [resnet_task(np.random.default_rng(1), reestimate_batch_norm=anew, epochs=2) for anew in (False, True)]
    optimisations = [task.optimisation() for task in tasks]
    states = [[], []]
    for task, optimisation, kept in zip(tasks, optimisations, states):
        fit(task, optimisation, TrainingHistory(),
            after_epoch=lambda *outcome, task=task, kept=kept: kept.append(copy.deepcopy(task.model.state_dict())))
    for without, anew in zip(*states, strict=True):
        assert all(torch.equal(value, anew[name]) for name, value in without.items())
    differing = changed_tensors(optimisations[1].kept, states[1][1])
    assert differing and all("running" in name or "num_batches" in name for name in differing)


# the loop

def test_eight_windows_are_learnt_by_heart(rng):
    """The floor under any training code: a network that cannot do this is not being trained."""
    log_mels = (-40 + 10 * rng.standard_normal((8, 16, 16))).astype(np.float32)
    dataset = ArrayDataset(log_mels, np.arange(8) % 4)
    config = tiny_config(model_name="resnet18", batch_size=8, epochs=12, learning_rate=2e-3, monitor="accuracy")
    task = make_task(build_model(config, 4), dataset, config, n_classes=4)
    history = TrainingHistory()
    fit(task, task.optimisation(), history, after_epoch=lambda *outcome: None)
    logits, labels = predict_logits(task.model, dataset, config=config, device=CPU, n_workers=0)
    assert (logits.argmax(axis=1) == labels).all()
    assert history.rows[-1]["train_loss"] < 0.1 < history.rows[0]["train_loss"]


def script_validation(monkeypatch, accuracies):
    """Replace validation by given accuracies, one an epoch, of four windows of two classes."""
    labels = np.array([0, 1, 0, 1])
    script = iter(accuracies)

    def scripted(model, dataset, *, config, device, n_workers):
        right = round(4 * next(script))
        guesses = np.where(np.arange(4) < right, labels, 1 - labels)
        return np.eye(2, dtype=np.float32)[guesses], labels

    monkeypatch.setattr(training_utils, "predict_logits", scripted)


def test_early_stopping_waits_and_restores_the_best_weights(rng, monkeypatch):
    script_validation(monkeypatch, [0.25, 0.75, 0.5, 0.75, 0.5, 1.0])
    task = linear_task(windows(rng, 4), batch_size=2, epochs=6, patience=3, monitor="accuracy")
    weights, best_flags = [], []

    def after_epoch(history, logits, labels):
        weights.append(copy.deepcopy(task.model.state_dict()))
        best_flags.append(history.is_best)

    history = TrainingHistory()
    best = fit(task, task.optimisation(), history, after_epoch=after_epoch)
    # the second 0.75 is no improvement, and after three epochs without one the 1.0 is never reached
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4, 5]
    assert best_flags == [True, True, False, False, False]
    assert (history.best_epoch, history.best_score) == (2, 0.75)
    assert torch.equal(task.model.layer.weight, weights[1]["layer.weight"])
    assert not torch.equal(weights[1]["layer.weight"], weights[4]["layer.weight"])
    assert torch.equal(best["layer.weight"], weights[1]["layer.weight"])


@pytest.mark.parametrize(("accuracies", "best_epoch", "flags"), [
    ([0.75, 0.5, 0.75], 0, [True, False, False]),  # as good is not better
    ([0.5, 0.25, 1.0], 2, [True, False, True]),
])
def test_a_probe_is_kept_until_an_epoch_does_better(rng, monkeypatch, accuracies, best_epoch, flags):
    script_validation(monkeypatch, accuracies)
    task = linear_task(windows(rng, 4), batch_size=2, epochs=2, monitor="accuracy", probe_first=True)
    weights, best_flags = [], []

    def after_epoch(history, logits, labels):
        weights.append(copy.deepcopy(task.model.state_dict()))
        best_flags.append(history.is_best)

    history = TrainingHistory()
    best = fit(task, task.optimisation(), history, after_epoch=after_epoch)
    assert (history.best_epoch, history.epoch, best_flags) == (best_epoch, 2, flags)
    assert torch.equal(best["layer.weight"], weights[best_epoch]["layer.weight"])
    assert torch.equal(task.model.layer.weight, weights[best_epoch]["layer.weight"])
    assert not torch.equal(weights[0]["layer.weight"], weights[2]["layer.weight"])


def test_patience_zero_never_stops(rng, monkeypatch):
    script_validation(monkeypatch, [0.5] * 6)
    task = linear_task(windows(rng, 4), batch_size=4, epochs=6, patience=0)
    history = TrainingHistory()
    fit(task, task.optimisation(), history, after_epoch=lambda *outcome: None)
    assert history.epoch == 6 and history.best_epoch == 1


def test_monitoring_the_loss_prefers_the_lowest(rng, monkeypatch):
    labels, scales = np.array([0, 1]), iter([1.0, 3.0, 2.0])
    monkeypatch.setattr(training_utils, "predict_logits",
                        lambda *arguments, **named: (next(scales) * np.eye(2, dtype=np.float32), labels))
    task = linear_task(windows(rng, 4), batch_size=4, epochs=3, monitor="loss")
    history = TrainingHistory()
    fit(task, task.optimisation(), history, after_epoch=lambda *outcome: None)
    assert history.best_epoch == 2
    assert history.best_score == pytest.approx(-math.log(1 + math.exp(-3)))


def test_the_history_keeps_the_form_of_the_files_that_hold_it():
    kept = {"epoch": 2, "best_epoch": 1, "best_score": 0.5, "history": [
        {"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.25}]}
    history = TrainingHistory.from_dict(kept)
    assert history.to_dict() == kept and not history.is_best
    history.add({"epoch": 3, "val_accuracy": 0.75}, monitor="accuracy")
    assert history.is_best and history.to_dict() == {
        "epoch": 3, "best_epoch": 3, "best_score": 0.75,
        "history": [*kept["history"], {"epoch": 3, "val_accuracy": 0.75}]}


def test_the_model_is_in_evaluation_mode_while_predicting(rng):
    model = nn.Sequential(Linear(), nn.Dropout(0.9))
    nn.init.ones_(model[0].layer.weight)
    model.train()
    arguments = {"config": tiny_config(batch_size=3), "device": CPU, "n_workers": 0}
    first, labels = predict_logits(model, windows(rng, 8), **arguments)
    assert not model.training and first.dtype == np.float32
    assert labels.tolist() == [0, 1] * 4
    np.testing.assert_array_equal(first[:, 0] == 0.0, np.zeros(8, dtype=bool))


def test_validation_scores_by_hand():
    logits = np.log(np.array([[0.75, 0.25], [0.6, 0.4], [0.1, 0.9]], dtype=np.float32))
    scores = validation_scores(logits, np.array([0, 1, 1]), n_classes=2)
    assert scores["val_loss"] == pytest.approx(-(math.log(0.75) + math.log(0.4) + math.log(0.9)) / 3, rel=1e-5)
    assert scores["val_accuracy"] == pytest.approx(2 / 3)
    assert scores["val_macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_validation_is_never_augmented(rng):
    calls = []
    dataset = windows(rng, 4)

    class Recorder(Linear):
        def forward(self, log_mel):
            calls.append((self.training, log_mel.detach().clone()))
            return super().forward(log_mel)

    config = tiny_config(use_augmentation=True, epochs=1, batch_size=4,
                         augmentation=AugmentationConfig(freq_mask_param=2, time_mask_param=2))
    task = make_task(Recorder(), dataset, config)
    fit(task, task.optimisation(), TrainingHistory(), after_epoch=lambda *outcome: None)
    originals = torch.stack([dataset[index][0] for index in range(4)])
    assert [training for training, _ in calls] == [True, False]
    assert torch.equal(calls[1][1], originals)
    assert not any(torch.equal(window, original) for window in calls[0][1] for original in originals)


# devices

@pytest.mark.parametrize("has_cuda, has_mps, expected", [(True, True, "cuda"), (True, False, "cuda"),
                                                         (False, True, "mps"), (False, False, "cpu")])
def test_the_fastest_device_there_is_chosen_and_the_cpu_when_asked_for(monkeypatch, has_cuda, has_mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(has_cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    assert resolve_device("auto") == torch.device(expected)
    assert resolve_device("cpu") == CPU


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
