"""How weights are changed: class weights, optimizer, schedule of the learning rate, and the one optimizer step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from models.efficientnet_config import EfficientNetConfig
from utils.running.devices import autocast_dtype
from utils.training.distributed import Processes

_STEPS_TO_SETTLE = 10  # batch-norm statistics should follow the weights within about this many steps...
_SLOWEST_MOMENTUM, _FASTEST_MOMENTUM = 0.01, 0.1  # ...between EfficientNet's setting and PyTorch's
_STEPS_PER_LONG_EPOCH = 1000  # from here on EfficientNet's own momentum averages over a small part of an epoch
_FINAL_LEARNING_RATE = 0.01  # of the peak, where the cosine ends
_SGD_MOMENTUM = 0.9


def count_steps(n_windows: int, config: EfficientNetConfig, processes: Processes = Processes()) -> int:
    """Return optimizer steps per epoch over ``n_windows``; each process takes ``batch_size`` of them a batch."""
    n_own = math.ceil(n_windows / processes.n_processes)
    return math.ceil(math.ceil(n_own / config.batch_size) / config.accumulation_steps)


def resolve_batch_norm(config: EfficientNetConfig, *, steps_per_epoch: int) -> EfficientNetConfig:
    """Set the batch-norm momentum for the length of an epoch, unless the config sets it.

    EfficientNet's own 0.01 averages over 100 steps: right for ImageNet's thousands of steps an epoch, but on
    a small data set the statistics lag behind the weights and validation means nothing for the first epochs.
    """
    if config.batch_norm_momentum is not None:
        return config
    momentum = _STEPS_TO_SETTLE / min(max(steps_per_epoch, 1), _STEPS_PER_LONG_EPOCH)
    return config.replace(batch_norm_momentum=min(max(momentum, _SLOWEST_MOMENTUM), _FASTEST_MOMENTUM))


def class_weights(labels: np.ndarray, *, n_classes: int) -> Tensor:
    """Return weights inverse to class frequency, float32 ``(n_classes,)``; 0 for classes without rows."""
    present = np.unique(labels)
    weights = np.zeros(n_classes, dtype=np.float32)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return torch.from_numpy(weights)


def make_loss(config: EfficientNetConfig, labels: np.ndarray, *, n_classes: int) -> nn.CrossEntropyLoss:
    """Return the loss to train with: cross-entropy to soft targets, smoothed and weighted as the config says.

    Parameters
    ----------
    config : EfficientNetConfig
        ``class_weights``, ``label_smoothing``.
    labels : np.ndarray
        int64 ``(n_windows,)``, of the training rows: they give the class weights.
    n_classes : int
        Number of outputs.
    """
    weights = class_weights(labels, n_classes=n_classes) if config.class_weights == "balanced" else None
    return nn.CrossEntropyLoss(weight=weights, label_smoothing=config.label_smoothing)


def make_optimizer(model: nn.Module, config: EfficientNetConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a config; biases and batch norms are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=_SGD_MOMENTUM, nesterov=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate)


def make_schedule(optimizer: torch.optim.Optimizer, config: EfficientNetConfig, *, steps_per_epoch: int) -> LambdaLR:
    """Return linear warm-up, then cosine to 1 % (Loshchilov & Hutter 2017) or constant; one step a step.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its learning rate is the peak.
    config : EfficientNetConfig
        ``warmup_epochs``, ``epochs``, ``scheduler``.
    steps_per_epoch : int
        Optimizer steps, not batches.
    """
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if config.scheduler == "constant":
            return 1.0
        share = min(1.0, (step - warmup) / max(1, total - warmup))
        return _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * share))

    return LambdaLR(optimizer, factor)


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """What changes the weights of a network, and the only code that makes an optimizer step.

    Parameters
    ----------
    network : torch.nn.Module
        What is trained, as the processes wrap it.
    optimizer : torch.optim.Optimizer
        Of its parameters.
    schedule : torch.optim.lr_scheduler.LambdaLR
        Of the optimizer's learning rate.
    scaler : torch.amp.GradScaler
        Enabled for float16 only.
    gradient_clipping : float
        Largest gradient norm; 0 is off.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    gradient_clipping: float

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled against underflow, to those that wait for the next step."""
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        """Unscale, clip, step, update, advance the schedule, clear the gradients."""
        self.scaler.unscale_(self.optimizer)
        if self.gradient_clipping:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clipping)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict:
        """Return what must be saved to go on."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(dict(state["schedule"]))
        self.scaler.load_state_dict(dict(state["scaler"]))


def make_optimisation(network: nn.Module, config: EfficientNetConfig, *, device: torch.device,
                      steps_per_epoch: int) -> Optimisation:
    """Return the optimisation that a config asks for.

    Parameters
    ----------
    network : torch.nn.Module
        On its device, as the processes wrap it.
    config : EfficientNetConfig
        The experiment.
    device : torch.device
        Where the network computes.
    steps_per_epoch : int
        From ``count_steps``.
    """
    optimizer = make_optimizer(network, config)
    dtype = autocast_dtype(device, mixed_precision=config.mixed_precision)
    return Optimisation(network=network, optimizer=optimizer,
                        schedule=make_schedule(optimizer, config, steps_per_epoch=steps_per_epoch),
                        scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
                        gradient_clipping=config.gradient_clipping)
