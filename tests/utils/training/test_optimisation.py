import math

import numpy as np
import pytest
import torch
from torch import nn

from models.efficientnet_config import EfficientNetConfig
from utils.training.optimisation import (Optimisation, class_weights, count_steps, make_loss, make_optimizer,
                                         make_schedule, resolve_batch_norm)

FLOAT32_ROUNDING = 1e-6  # relative, a few roundings of 6e-8
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


def test_the_loss_by_hand():
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]])
    logits, targets = torch.from_numpy(np.log(probabilities)).float(), torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    labels = np.array([0, 0, 0, 1])
    plain = make_loss(EfficientNetConfig(class_weights="none", label_smoothing=0.0), labels, n_classes=2)
    expected = -(math.log(0.75) + math.log(0.5)) / 2
    assert plain(logits, targets).item() == pytest.approx(expected, rel=FLOAT32_ROUNDING)
    smoothed = make_loss(EfficientNetConfig(class_weights="none", label_smoothing=0.2), labels, n_classes=2)
    expected = -(0.9 * math.log(0.75) + 0.1 * math.log(0.25) + math.log(0.5)) / 2
    assert smoothed(logits, targets).item() == pytest.approx(expected, rel=FLOAT32_ROUNDING)
    # three rows of one class and one of the other: weights of 2/3 and 2
    weighted = make_loss(EfficientNetConfig(class_weights="balanced", label_smoothing=0.0), labels, n_classes=2)
    expected = -(2 / 3 * math.log(0.75) + (2 / 3 * 0.25 + 2 * 0.75) * math.log(0.5)) / 2
    assert weighted(logits, targets).item() == pytest.approx(expected, rel=FLOAT32_ROUNDING)


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
