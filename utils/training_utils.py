"""Training: device, optimizer, schedule, one optimizer step, the loop, early stopping.

The loop is deterministic in what it draws: order, mixup and masks come from ``(seed, epoch, ...)``, dropout from
PyTorch's generator reseeded each epoch. A run that was stopped and resumed at an epoch's end is the same run.
"""

import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset

from models.data_augmentation import AudioAugmentationPipeline
from models.efficientnet_config import EfficientNetConfig
from utils import metrics
from utils.storage.spectrograms import Batch, make_loader
from utils.training.distributed import Processes
from utils.running.devices import autocast, autocast_dtype
from utils.running.progress import progress

logger = logging.getLogger(__name__)

_STEPS_TO_SETTLE = 10  # batch-norm statistics should follow the weights within about this many steps...
_SLOWEST_MOMENTUM, _FASTEST_MOMENTUM = 0.01, 0.1  # ...between EfficientNet's setting and PyTorch's
_STEPS_PER_LONG_EPOCH = 1000  # from here on EfficientNet's own momentum averages over a small part of an epoch
_FINAL_LEARNING_RATE = 0.01  # of the peak, where the cosine ends
_SGD_MOMENTUM = 0.9
_VALIDATION_SCORES = ("val_loss", "val_accuracy", "val_macro_f1")


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
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


@dataclass
class Stepper:
    """Everything one optimizer step needs, and the only code that makes one.

    Parameters
    ----------
    model, optimizer, schedule : objects
        What is stepped; the model as the processes wrap it.
    scaler : torch.amp.GradScaler
        Enabled for float16 only.
    gradient_clipping : float
        Largest gradient norm; 0 is off.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    gradient_clipping: float

    def step(self) -> None:
        """Unscale, clip, step, update, advance the schedule, clear the gradients."""
        self.scaler.unscale_(self.optimizer)
        if self.gradient_clipping:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clipping)
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


@dataclass
class LoopState:
    """Where a training run stands, apart from weights and optimizer."""

    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)

    def improved(self, score: float) -> bool:
        """Take note of an epoch's score and return whether it is the best so far."""
        if score > self.best_score:
            self.best_epoch, self.best_score = self.epoch, score
            return True
        return False


@dataclass(frozen=True)
class Trainer:
    """A model and the data, settings and device it is trained with.

    Parameters
    ----------
    model : torch.nn.Module
        Log-mel in, logits out.
    config : EfficientNetConfig
        With batch norm resolved.
    train, val : Dataset
        Give ``(log_mel, label, index)`` and have ``labels``.
    n_classes : int
        Number of outputs.
    device : torch.device
        Where to compute.
    n_workers : int
        Loading processes.
    processes : Processes
        Training processes that share the work.
    """

    model: nn.Module
    config: EfficientNetConfig
    train: Dataset
    val: Dataset
    n_classes: int
    device: torch.device
    n_workers: int = 0
    processes: Processes = Processes()

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch: batches over accumulation, rounded up."""
        return count_steps(len(self.train), self.config, self.processes)  # type: ignore[arg-type]


def count_steps(n_clips: int, config: EfficientNetConfig, processes: Processes = Processes()) -> int:
    """Return optimizer steps per epoch over ``n_clips``; each process takes ``batch_size`` clips a step."""
    n_own = math.ceil(n_clips / processes.n_processes)
    return math.ceil(math.ceil(n_own / config.batch_size) / config.accumulation_steps)


def make_stepper(trainer: Trainer) -> Stepper:
    """Return the optimizer, schedule and scaler of a trainer whose model is on its device."""
    optimizer = make_optimizer(trainer.model, trainer.config)
    dtype = autocast_dtype(trainer.device, mixed_precision=trainer.config.mixed_precision)
    scaler = torch.amp.GradScaler(trainer.device.type, enabled=dtype is torch.float16)
    schedule = make_schedule(optimizer, trainer.config, steps_per_epoch=trainer.steps_per_epoch)
    return Stepper(trainer.processes.wrap(trainer.model), optimizer, schedule, scaler,
                   trainer.config.gradient_clipping)


def fit(trainer: Trainer, stepper: Stepper, state: LoopState, *,
        after_epoch: Callable[[LoopState, bool, np.ndarray, np.ndarray], None]) -> dict[str, Tensor]:
    """Train until the last epoch or until patience runs out.

    Parameters
    ----------
    trainer, stepper : Trainer, Stepper
        What to train; the model is left with its best weights.
    state : LoopState
        Where to begin; changed in place.
    after_epoch : callable
        Called with the state, whether the epoch was the best, and the validation logits and labels; saves
        checkpoints.

    Returns
    -------
    dict of str to torch.Tensor
        The best weights of this call; empty when no epoch improved (a resumed run's best is on disk).
    """
    config, best_weights = trainer.config, {}
    while state.epoch < config.epochs and not _out_of_patience(state, config):
        state.epoch += 1
        started = time.perf_counter()
        train_loss = train_epoch(trainer, stepper, epoch=state.epoch)
        logits, labels, scores = _validate(trainer)
        rate = stepper.optimizer.param_groups[0]["lr"]
        state.history.append({"epoch": state.epoch, "train_loss": train_loss, **scores, "learning_rate": rate,
                              "seconds": round(time.perf_counter() - started, 2)})
        score = -scores["val_loss"] if config.monitor == "loss" else scores[f"val_{config.monitor}"]
        is_best = state.improved(score)
        if is_best:
            best_weights = copy.deepcopy(trainer.model.state_dict())
        logger.info("epoch %d/%d: train loss %.3f, val loss %.3f, accuracy %.3f, macro F1 %.3f%s", state.epoch,
                    config.epochs, train_loss, scores["val_loss"], scores["val_accuracy"], scores["val_macro_f1"],
                    " (best)" if is_best else "")
        if trainer.processes.is_main:
            after_epoch(state, is_best, logits, labels)
    if best_weights:
        trainer.model.load_state_dict(best_weights)
    return best_weights


def _validate(trainer: Trainer) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Return validation logits, labels and scores; logits and labels are empty but on the main process."""
    logits, labels, scores = np.empty(0), np.empty(0), {}
    if trainer.processes.is_main:
        logits, labels = predict_logits(trainer.model, trainer.val, config=trainer.config, device=trainer.device,
                                        n_workers=trainer.n_workers)
        scores = validation_scores(logits, labels, n_classes=trainer.n_classes)
    return logits, labels, trainer.processes.from_main(scores, _VALIDATION_SCORES, trainer.device)


def _out_of_patience(state: LoopState, config: EfficientNetConfig) -> bool:
    stopped = bool(config.patience) and state.epoch - state.best_epoch >= config.patience
    if stopped:
        logger.info("no improvement for %d epochs: stopping early", config.patience)
    return stopped


def train_epoch(trainer: Trainer, stepper: Stepper, *, epoch: int) -> float:
    """Train over all clips once and return the mean loss per clip."""
    config, device, processes = trainer.config, trainer.device, trainer.processes
    epoch_seed = int(np.random.default_rng([config.seed, epoch]).integers(2**31))
    torch.manual_seed(epoch_seed + processes.rank)  # dropout and stochastic depth draw from the global generator
    loader = make_loader(trainer.train, batch_size=config.batch_size, shuffle_seed=epoch_seed,
                         n_workers=trainer.n_workers, pin_memory=device.type == "cuda",
                         rank=processes.rank, n_processes=processes.n_processes)
    augment = Augmenter(config, n_classes=trainer.n_classes, epoch=epoch)
    weight = None
    if config.class_weights == "balanced":
        weight = class_weights(trainer.train.labels, n_classes=trainer.n_classes).to(device)  # type: ignore
    dtype = autocast_dtype(device, mixed_precision=config.mixed_precision)
    stepper.model.train()
    total = torch.zeros(2, device=device)  # summed loss, clips
    n_batches = len(loader)
    bar = progress(loader, total=n_batches, description=f"epoch {epoch}", unit="batch", leave=False)
    for number, batch in enumerate(bar):
        inputs, targets = augment(batch, device=device, number=number)
        with autocast(device, dtype):
            logits = stepper.model(inputs)
        loss = functional.cross_entropy(logits.float(), targets, weight=weight, label_smoothing=config.label_smoothing)
        # the last group of an epoch may hold fewer batches than the others
        group = min(config.accumulation_steps, n_batches - number // config.accumulation_steps
                    * config.accumulation_steps)
        stepper.scaler.scale(loss / group).backward()
        if (number + 1) % config.accumulation_steps == 0 or number + 1 == n_batches:
            stepper.step()
        total += torch.stack([loss.detach(), torch.ones_like(loss)]) * len(inputs)
    summed_loss, n_clips = processes.sum(total).tolist()
    return summed_loss / n_clips


@dataclass(frozen=True)
class Augmenter:
    """Turns a batch into inputs and soft targets on the device, augmented by ``(seed, epoch, index)``."""

    config: EfficientNetConfig
    n_classes: int
    epoch: int

    def __call__(self, batch: Batch, *, device: torch.device, number: int) -> tuple[Tensor, Tensor]:
        """Return ``(B, 1, n_mels, n_frames)`` and targets ``(B, n_classes)`` whose rows sum to 1."""
        inputs = batch.log_mel.to(device, non_blocking=True)
        targets = functional.one_hot(batch.labels, self.n_classes).float().to(device, non_blocking=True)
        if not self.config.use_augmentation:
            return inputs, targets
        pipeline = AudioAugmentationPipeline.from_config(self.config.augmentation)
        seed = self.config.seed
        inputs = torch.stack([
            pipeline.augment_log_mel(clip, rng=np.random.default_rng([seed, self.epoch, index]))
            for clip, index in zip(inputs, batch.indices.tolist(), strict=True)])
        # mixup belongs to a batch, not to a clip: its key is the batch's number in the epoch
        mixup_rng = np.random.default_rng([seed, self.epoch, number, 1])
        return pipeline.mix(inputs, targets, rng=mixup_rng)


@torch.inference_mode()
def predict_logits(model: nn.Module, dataset: Dataset, *, config: EfficientNetConfig, device: torch.device,
                   n_workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits float32 ``(n_clips, n_classes)`` and labels int64 ``(n_clips,)``, in the dataset's order."""
    loader = make_loader(dataset, batch_size=config.batch_size, shuffle_seed=None, n_workers=n_workers,
                         pin_memory=device.type == "cuda")
    dtype = autocast_dtype(device, mixed_precision=config.mixed_precision)
    model.eval()
    logits, labels = [], []
    for batch in loader:
        with autocast(device, dtype):
            logits.append(model(batch.log_mel.to(device, non_blocking=True)).float().cpu().numpy())
        labels.append(batch.labels.numpy())
    return np.concatenate(logits), np.concatenate(labels)


def validation_scores(logits: np.ndarray, labels: np.ndarray, *, n_classes: int) -> dict[str, float]:
    """Return ``val_loss`` (cross-entropy, no smoothing or weights), ``val_accuracy``, ``val_macro_f1``."""
    confusion = metrics.confusion_matrix(labels, logits.argmax(axis=1), n_classes=n_classes)
    scores = metrics.classification_scores(confusion)
    loss = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    accuracy, macro_f1 = scores["accuracy"] or 0.0, scores["macro_f1"] or 0.0
    return {"val_loss": loss, "val_accuracy": accuracy, "val_macro_f1": macro_f1}


def loop_state_to_dict(state: LoopState) -> dict:
    """Return the state as plain types for a checkpoint."""
    return dataclasses.asdict(state)


def loop_state_from_dict(values: Mapping[str, Any]) -> LoopState:
    """Rebuild the state that ``loop_state_to_dict`` gave."""
    return LoopState(**values)


def mean_and_deviation(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return mean and sample standard deviation of each score over folds."""
    return {name: {"mean": float(np.mean([s[name] for s in scores])),
                   "std": float(np.std([s[name] for s in scores], ddof=1)) if len(scores) > 1 else 0.0}
            for name in scores[0]}
