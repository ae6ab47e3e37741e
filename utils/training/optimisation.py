"""How weights are changed: the loss, optimizer, schedule of the learning rate, and the one optimizer step."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.efficientnet import stages
from models.efficientnet_config import EfficientNetConfig
from utils.running.devices import autocast_dtype
from utils.training.distributed import Processes, unwrapped

_STEPS_TO_SETTLE = 10  # batch-norm statistics should follow the weights within about this many steps...
_SLOWEST_MOMENTUM, _FASTEST_MOMENTUM = 0.01, 0.1  # ...between EfficientNet's setting and PyTorch's
_STEPS_PER_LONG_EPOCH = 1000  # from here on EfficientNet's own momentum averages over a small part of an epoch
_FINAL_LEARNING_RATE = 0.01  # of the peak, where the cosine ends
_LONGEST_WARMUP = 0.5  # share of a run
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


def class_weights(labels: np.ndarray, *, n_classes: int, kind: str = "balanced") -> Tensor:
    """Return weights of classes, float32 ``(n_classes,)``, with mean 1 over the rows; 0 for classes without rows.

    Parameters
    ----------
    labels : np.ndarray
        int64 ``(n_windows,)``.
    n_classes : int
        Number of classes.
    kind : str
        ``balanced`` is inverse to the frequency of a class, ``sqrt`` to its square root, ``none`` equal.
    """
    present, places = np.unique(labels, return_inverse=True)
    power = {"balanced": 1.0, "sqrt": 0.5, "none": 0.0}[kind]
    of_present = compute_class_weight("balanced", classes=present, y=labels) ** power
    weights = np.zeros(n_classes, dtype=np.float32)
    weights[present] = of_present / of_present[places].mean()
    return torch.from_numpy(weights)


class WindowLoss(nn.Module):
    """Cross-entropy of each window to soft targets, smoothed, then weighted by its classes.

    The weight stands outside the smoothing: inside, it would also weigh the classes that smoothing spreads a label
    over, and the best answer to a clear window of a frequent class would be far from its target.

    Parameters
    ----------
    weights : torch.Tensor
        float32 ``(n_classes,)``; a window has the mean of these over its target.
    label_smoothing : float
        Share of the target spread over all classes.
    """

    weights: Tensor

    def __init__(self, weights: Tensor, *, label_smoothing: float) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return losses ``(B,)`` of logits and targets, both ``(B, n_classes)``."""
        losses = functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing, reduction="none")
        return losses * (targets @ self.weights)


def make_loss(config: EfficientNetConfig, labels: np.ndarray, *, n_classes: int) -> WindowLoss:
    """Return the loss to train with.

    Parameters
    ----------
    config : EfficientNetConfig
        ``class_weights``, ``label_smoothing``.
    labels : np.ndarray
        int64 ``(n_windows,)``, of the training rows: they give the class weights.
    n_classes : int
        Number of outputs.
    """
    return WindowLoss(class_weights(labels, n_classes=n_classes, kind=config.class_weights),
                      label_smoothing=config.label_smoothing)


def parameter_groups(model: nn.Module, config: EfficientNetConfig) -> list[dict[str, Any]]:
    """Return which parameters learn how fast and are held how.

    Biases and batch norms are not decayed. With ``layer_decay`` every stage has groups of its own, the classifier
    first. With ``l2_to_start`` the body's weights are pulled towards the start in place of towards 0.

    Parameters
    ----------
    model : torch.nn.Module
        Of stages, if the config treats them differently.
    config : EfficientNetConfig
        ``learning_rate``, ``weight_decay``, ``layer_decay``, ``l2_to_start``.

    Returns
    -------
    list of dict
        For an optimizer; ``l2_to_start`` is the pull of a group, where there is one.
    """
    if config.layer_decay == 1 and not config.l2_to_start:
        weights, others = _by_shape(model.parameters())
        return [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = []
    for distance, stage in enumerate(reversed(stages(model))):
        weights, others = _by_shape(parameter for module in stage for parameter in module.parameters())
        rate = config.learning_rate * config.layer_decay ** distance
        pull = config.l2_to_start if distance else 0.0
        groups += [{"params": weights, "lr": rate, "weight_decay": 0.0 if pull else config.weight_decay,
                    "l2_to_start": pull},
                   {"params": others, "lr": rate, "weight_decay": 0.0, "l2_to_start": 0.0}]
    return groups


def _by_shape(parameters: Iterable[nn.Parameter]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return weights of layers, and biases and batch norms."""
    listed = list(parameters)
    return [p for p in listed if p.ndim > 1], [p for p in listed if p.ndim <= 1]


def make_optimizer(model: nn.Module, config: EfficientNetConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a config over ``parameter_groups``."""
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=_SGD_MOMENTUM, nesterov=True)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate)


def make_schedule(optimizer: torch.optim.Optimizer, config: EfficientNetConfig, *, steps_per_epoch: int) -> LambdaLR:
    """Return linear warm-up, then cosine to 1 % (Loshchilov & Hutter 2017) or constant; one step a step.

    The warm-up takes half of the run at most, so that a short run too reaches its peak and comes down from it.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its learning rate is the peak.
    config : EfficientNetConfig
        ``warmup_epochs``, ``epochs``, ``scheduler``.
    steps_per_epoch : int
        Optimizer steps, not batches.
    """
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_epochs * steps_per_epoch, _LONGEST_WARMUP * total)

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
    average : torch.optim.swa_utils.AveragedModel, optional
        Of the network; follows each step.
    start : mapping of int to list of torch.Tensor
        Of each group of the optimizer with ``l2_to_start``, what its weights were when the run began.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    gradient_clipping: float
    average: AveragedModel | None = None
    start: Mapping[int, list[Tensor]] = field(default_factory=dict)

    @property
    def kept(self) -> nn.Module:
        """The network that is validated and kept: the average, where there is one."""
        return unwrapped(self.network) if self.average is None else self.average.module

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, scaled against underflow, to those that wait for the next step."""
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        """Unscale, clip, step, pull, update, advance the schedule, clear the gradients, average."""
        self.scaler.unscale_(self.optimizer)
        if self.gradient_clipping:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clipping)
        self.scaler.step(self.optimizer)
        self._pull_to_start()
        self.scaler.update()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(unwrapped(self.network))

    @torch.no_grad()
    def _pull_to_start(self) -> None:
        for number, start in self.start.items():
            group = self.optimizer.param_groups[number]
            share = min(1.0, group["lr"] * group["l2_to_start"])
            for weight, began in zip(group["params"], start, strict=True):
                weight.lerp_(began, share)

    def state_dict(self) -> dict:
        """Return what must be saved to go on."""
        state: dict[str, Any] = {
            "optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict()}
        if self.average is not None:
            state["average"] = dict(self.average.state_dict())
        if self.start:
            state["start"] = dict(self.start)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(dict(state["schedule"]))
        self.scaler.load_state_dict(dict(state["scaler"]))
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for number, start in self.start.items():
            for weight, saved in zip(start, state["start"][number], strict=True):
                weight.copy_(saved)


def make_optimisation(network: nn.Module, config: EfficientNetConfig, *, device: torch.device,
                      steps_per_epoch: int) -> Optimisation:
    """Return the optimisation that a config asks for.

    Parameters
    ----------
    network : torch.nn.Module
        On its device, as the processes wrap it, with the weights that the run begins with.
    config : EfficientNetConfig
        The experiment.
    device : torch.device
        Where the network computes.
    steps_per_epoch : int
        From ``count_steps``.

    Notes
    -----
    ``l2_to_start`` is L2-SP (Li, Grandvalet & Davoine 2018, "Explicit Inductive Bias for Transfer Learning with
    Convolutional Networks", ICML, eq. 3): the penalty ``0.5 * l2_to_start * sum((w - start) ** 2)`` over the body's
    weights. As AdamW does with weight decay (Loshchilov & Hutter 2019), it is a step of its own, which moves each
    weight by the share ``learning rate * l2_to_start`` of its way back; in the gradient, Adam would divide by the
    weight's own noise and clipping would shorten the rest.
    """
    model = unwrapped(network)
    optimizer = make_optimizer(model, config)
    dtype = autocast_dtype(device, mixed_precision=config.mixed_precision)
    return Optimisation(network=network, optimizer=optimizer,
                        schedule=make_schedule(optimizer, config, steps_per_epoch=steps_per_epoch),
                        scaler=torch.amp.GradScaler(device.type, enabled=dtype is torch.float16),
                        gradient_clipping=config.gradient_clipping, average=_make_average(model, config),
                        start={number: [weight.detach().clone() for weight in group["params"]]
                               for number, group in enumerate(optimizer.param_groups) if group.get("l2_to_start")})


def _make_average(model: nn.Module, config: EfficientNetConfig) -> AveragedModel | None:
    """Return the moving average of a model's weights and buffers, where something apart from it is validated.

    Batch norms are re-estimated on a network of its own too, a copy of the newest weights if the decay is 0, so that
    what is validated does not change what is trained.
    """
    if not config.ema_decay and not config.reestimate_batch_norm:
        return None

    def follow(averaged: list[Tensor], newest: list[Tensor], n_averaged: Tensor) -> None:
        # the average is short at first (as TensorFlow's), or it would hold on to the start for 1 / (1 - decay) steps
        decay = min(config.ema_decay, (1 + int(n_averaged)) / (10 + int(n_averaged)))
        get_ema_multi_avg_fn(decay)(averaged, newest, n_averaged)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=True)  # type: ignore[arg-type]
