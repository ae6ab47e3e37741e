import math

import numpy as np
import pytest
import torch
from torch import nn

from models.efficientnet import build_model, stages
from models.efficientnet_config import EfficientNetConfig
from tests.conftest import tiny_config
from utils.training.optimisation import (Optimisation, class_weights, count_steps, make_loss, make_optimisation,
                                         make_optimizer, make_schedule, resolve_batch_norm)

FLOAT32_ROUNDING = 1e-6  # relative, a few roundings of 6e-8
LARGEST_WEIGHT = 50  # more than a class of 1 among 100 windows has: roundings grow with it
CLIPPING_ROUNDING = 1e-4  # relative: clip_grad_norm_ divides by the norm plus 1e-6


# learning rate

def learning_rates(config, *, steps_per_epoch):
    optimizer = make_optimizer(nn.Linear(3, 2), config)
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


@pytest.mark.parametrize("warmup_epochs", [2, 4, 100])
def test_a_warm_up_takes_half_of_the_run_at_most(warmup_epochs):
    """Longer than the run, it would end before the peak is reached."""
    config = EfficientNetConfig(epochs=1, warmup_epochs=warmup_epochs, learning_rate=1.0)
    rates = learning_rates(config, steps_per_epoch=8)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[8] == pytest.approx(0.01)
    config = EfficientNetConfig(epochs=4, warmup_epochs=2, learning_rate=1.0)
    assert learning_rates(config, steps_per_epoch=2)[4] == 1.0


@pytest.mark.parametrize("n_windows, batch_size, accumulation_steps, expected",
                         [(8, 4, 1, 2), (9, 4, 1, 3), (9, 4, 2, 2), (16, 4, 2, 2), (3, 8, 4, 1)])
def test_steps_of_an_epoch_by_hand(n_windows, batch_size, accumulation_steps, expected):
    config = EfficientNetConfig(batch_size=batch_size, accumulation_steps=accumulation_steps)
    assert count_steps(n_windows, config) == expected


# batch norm, class weights

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


def test_class_weights_of_the_square_root_by_hand():
    labels = np.array([0] * 9 + [1])
    weights = class_weights(labels, n_classes=3, kind="sqrt")
    # 1 to 3, and (9 * 0.5 + 1 * 1.5) / 10 = 0.6 is brought to 1
    assert weights.tolist() == pytest.approx([0.5 / 0.6, 1.5 / 0.6, 0.0])
    assert class_weights(labels, n_classes=3, kind="none").tolist() == [1.0, 1.0, 0.0]
    for kind in ("balanced", "sqrt", "none"):
        assert class_weights(labels, n_classes=3, kind=kind)[labels].mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["balanced", "sqrt", "none"])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_class_weights_do_not_move_what_is_best_for_a_window(kind, label):
    """Inside the smoothing they pull a clear window of the frequent class towards the others."""
    labels, smoothing = np.array([0] * 90 + [1] * 9 + [2]), 0.1
    target = torch.eye(3)[[label]]
    best = (target * (1 - smoothing) + smoothing / 3).log().requires_grad_()
    config = EfficientNetConfig(class_weights=kind, label_smoothing=smoothing)
    make_loss(config, labels, n_classes=3)(best, target).sum().backward()
    assert best.grad.abs().max() < LARGEST_WEIGHT * FLOAT32_ROUNDING


def test_the_loss_by_hand():
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]])
    logits, targets = torch.from_numpy(np.log(probabilities)).float(), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    labels = np.array([0, 0, 0, 1])
    plain = make_loss(EfficientNetConfig(class_weights="none", label_smoothing=0.0), labels, n_classes=2)
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    assert plain(logits, targets).mean().item() == pytest.approx(expected, rel=FLOAT32_ROUNDING)
    smoothed = make_loss(EfficientNetConfig(class_weights="none", label_smoothing=0.2), labels, n_classes=2)
    expected = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25) + math.log(0.5)) / 2
    assert smoothed(logits, targets).mean().item() == pytest.approx(expected, rel=FLOAT32_ROUNDING)
    # three rows of one class and one of the other: weights of 2/3 and 2; a mixed window has the mean of its classes'
    weighted = make_loss(EfficientNetConfig(class_weights="balanced", label_smoothing=0.2), labels, n_classes=2)
    expected = [-2 / 3 * (0.9 * math.log(0.75) + 0.1 * math.log(0.25)), -(2 / 3 * 0.25 + 2 * 0.75) * math.log(0.5)]
    assert weighted(logits, targets).tolist() == pytest.approx(expected, rel=FLOAT32_ROUNDING)


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
    assert type(make_optimizer(nn.Linear(3, 2), EfficientNetConfig(optimizer=name))) is kind


def test_clipping_comes_after_unscaling(rng):
    """With a loss scale of 1024 left in, the clipped gradient would be that much too small after unscaling."""
    model = nn.Linear(20, 2)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimisation = Optimisation(
        network=model, optimizer=optimizer, gradient_clipping=0.5,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0),
        scaler=torch.amp.GradScaler("cpu", enabled=True, init_scale=1024.0))
    inputs = torch.from_numpy(1000 * rng.standard_normal((2, 20)).astype(np.float32))
    optimisation.backward(nn.functional.cross_entropy(model(inputs), torch.tensor([0, 1])))
    optimisation.step()
    norm = math.sqrt(sum(float(p.detach().square().sum()) for p in model.parameters()))
    assert norm == pytest.approx(0.5, rel=CLIPPING_ROUNDING)
    assert all(p.grad is None for p in model.parameters())


# stages

def small_resnet():
    return build_model(tiny_config(model_name="resnet18"), 3)


def rates_by_parameter(optimizer):
    return {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_alike_stages_keep_the_two_groups_of_2_0_0():
    """Their optimizer state is saved by the number of a group and of a parameter in it."""
    model = small_resnet()
    groups = make_optimizer(model, tiny_config(model_name="resnet18")).param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(p) for p in model.parameters() if p.ndim > 1], [id(p) for p in model.parameters() if p.ndim <= 1]]


def test_each_stage_learns_slower_than_the_one_behind_it():
    model = small_resnet()
    config = tiny_config(model_name="resnet18", layer_decay=0.5, learning_rate=0.8, weight_decay=0.3)
    optimizer = make_optimizer(model, config)
    rates = rates_by_parameter(optimizer)
    assert len(rates) == len(list(model.parameters()))
    backbone = model.backbone
    expected = {backbone.fc: 0.8, backbone.layer4: 0.4, backbone.layer3: 0.2, backbone.layer2: 0.1,
                backbone.layer1: 0.05, backbone.bn1: 0.025, backbone.conv1: 0.025}
    for module, rate in expected.items():
        assert [rates[id(p)] for p in module.parameters()] == pytest.approx([rate] * len(list(module.parameters())))
    assert optimizer.param_groups[0]["lr"] == 0.8  # the rate that the history tells
    for group in optimizer.param_groups:
        assert {group["weight_decay"]} == {0.3 if p.ndim > 1 else 0.0 for p in group["params"]}


def test_a_schedule_moves_all_stages_alike():
    optimizer = make_optimizer(small_resnet(), tiny_config(model_name="resnet18", layer_decay=0.5))
    before = [group["lr"] for group in optimizer.param_groups]
    schedule = make_schedule(optimizer, tiny_config(epochs=2, warmup_epochs=0), steps_per_epoch=1)
    optimizer.step()
    schedule.step()
    shares = [group["lr"] / rate for group, rate in zip(optimizer.param_groups, before, strict=True)]
    assert shares == pytest.approx([0.505] * len(shares))


# pull to the start, average

def optimisation_of(model, config):
    return make_optimisation(model, config, device=torch.device("cpu"), steps_per_epoch=1)


def step_by(optimisation, gradient):
    for parameter in optimisation.network.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimisation.step()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_pull_moves_the_body_back_by_its_share(optimizer):
    model = small_resnet()
    config = tiny_config(model_name="resnet18", optimizer=optimizer, learning_rate=0.01, l2_to_start=20.0,
                         weight_decay=5.0, scheduler="constant", gradient_clipping=0.0)
    optimisation = optimisation_of(model, config)
    body, classifier = model.backbone.layer2[0].conv1.weight, model.backbone.fc.weight
    start = body.detach().clone()
    step_by(optimisation, 0.0)
    # nothing pulls a weight that stands at the start, not even weight decay: that is for the classifier
    assert torch.equal(body, start)
    norm = model.backbone.bn1.weight
    with torch.no_grad():
        body += 1.0
        norm += 1.0
        before, norm_before = classifier.detach().clone(), norm.detach().clone()
    step_by(optimisation, 0.0)
    torch.testing.assert_close(body, start + 0.8, rtol=0, atol=FLOAT32_ROUNDING)
    assert torch.equal(norm, norm_before)
    assert (classifier.abs() < before.abs()).all()


def test_the_pull_never_goes_past_the_start():
    model = small_resnet()
    optimisation = optimisation_of(model, tiny_config(model_name="resnet18", learning_rate=0.1, l2_to_start=1e6))
    start = model.backbone.conv1.weight.detach().clone()
    step_by(optimisation, 1.0)
    assert torch.equal(model.backbone.conv1.weight, start)


def test_every_weight_of_the_body_is_pulled():
    model = small_resnet()
    optimisation = optimisation_of(model, tiny_config(model_name="resnet18", l2_to_start=0.1))
    pulled = {id(p) for number in optimisation.start for p in optimisation.optimizer.param_groups[number]["params"]}
    assert pulled == {id(p) for stage in stages(model)[:-1] for module in stage for p in module.parameters()
                      if p.ndim > 1}


def test_the_start_is_that_of_the_first_run():
    config = tiny_config(model_name="resnet18", l2_to_start=0.1)
    first = optimisation_of(small_resnet(), config)
    step_by(first, 1.0)
    second = optimisation_of(first.network, config)
    assert not torch.equal(second.start[2][0], first.start[2][0])
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(*pair) for number in first.start
               for pair in zip(first.start[number], second.start[number], strict=True))


def test_the_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    config = tiny_config(ema_decay=0.25, optimizer="sgd", learning_rate=1.0, scheduler="constant", weight_decay=0.0,
                         gradient_clipping=0.0)
    optimisation = optimisation_of(model, config)
    averages = []
    for value in (8.0, 16.0, 0.0, 8.0, 8.0):
        with torch.no_grad():
            model.weight.fill_(value)
        step_by(optimisation, 0.0)
        averages.append(optimisation.kept.weight.item())
        assert model.weight.item() == value
    # the first value, then decays of 2/11, 3/12 and, as 4/13 is more, 0.25
    expected = [8.0, 2 / 11 * 8 + 9 / 11 * 16]
    for value in (0.0, 8.0, 8.0):
        expected.append(0.25 * expected[-1] + 0.75 * value)
    assert averages == pytest.approx(expected, rel=FLOAT32_ROUNDING)


def test_the_average_has_the_mean_of_the_buffers_too():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    optimisation = optimisation_of(model, tiny_config(ema_decay=0.9))
    for value in (1.0, 12.0):
        model[0].running_mean.fill_(value)
        step_by(optimisation, 0.0)
    assert optimisation.kept[0].running_mean.tolist() == pytest.approx([2 / 11 * 1 + 9 / 11 * 12] * 2)


def test_without_an_average_the_network_itself_is_kept():
    model = small_resnet()
    optimisation = optimisation_of(model, tiny_config(model_name="resnet18"))
    assert optimisation.kept is model
    assert set(optimisation.state_dict()) == {"optimizer", "schedule", "scaler"}


def test_where_batch_norms_are_re_estimated_the_newest_weights_are_kept_apart():
    model = small_resnet()
    optimisation = optimisation_of(model, tiny_config(model_name="resnet18", reestimate_batch_norm=True))
    for _ in range(3):
        step_by(optimisation, 1.0)
    assert optimisation.kept is not model
    assert all(map(torch.equal, optimisation.kept.parameters(), model.parameters()))
