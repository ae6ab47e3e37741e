"""The training loop: epochs, validation, early stopping.

The loop is deterministic in what it draws: order, mixup and masks come from ``(seed, epoch, ...)``, dropout from
PyTorch's generator reseeded each epoch. A run that was stopped and resumed at an epoch's end is the same run.
"""

import copy
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.efficientnet import stages
from models.efficientnet_config import EfficientNetConfig
from utils import metrics
from utils.running.devices import autocast, autocast_dtype
from utils.running.progress import progress
from utils.storage.spectrograms import ArrayDataset, SpectrogramDataset, make_loader
from utils.training.augmenter import Augmenter
from utils.training.distributed import Processes
from utils.training.optimisation import Optimisation, count_steps, make_loss, make_optimisation

logger = logging.getLogger(__name__)

_VALIDATION_SCORES = ("val_loss", "val_accuracy", "val_macro_f1")
_BATCH_NORM_WINDOWS = 512  # enough for statistics over batches, and far less work than an epoch


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What is trained, on what, how and where.

    Parameters
    ----------
    model : torch.nn.Module
        Log-mel in, logits out; on the device.
    config : EfficientNetConfig
        With batch norm resolved.
    train, val : SpectrogramDataset or ArrayDataset
        What to learn from, and what to choose the epoch on.
    n_classes : int
        Number of outputs.
    device : torch.device
        Where to compute.
    n_workers : int
        Loading processes.
    processes : Processes
        Training processes that share the work.
    background_label : int, optional
        The class that ``use_background_mix`` mixes into the others.
    """

    model: nn.Module
    config: EfficientNetConfig
    train: SpectrogramDataset | ArrayDataset
    val: SpectrogramDataset | ArrayDataset
    n_classes: int
    device: torch.device
    n_workers: int = 0
    processes: Processes = Processes()
    background_label: int | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch."""
        return count_steps(len(self.train), self.config, self.processes)

    def optimisation(self) -> Optimisation:
        """Return a new optimisation of the model, before its first step."""
        network = self.processes.wrap(self.model, partly_frozen=self.config.freeze_epochs > 0)
        return make_optimisation(network, self.config, device=self.device, steps_per_epoch=self.steps_per_epoch)


@dataclass
class TrainingHistory:
    """The finished epochs of a run, and which of them is the best.

    Parameters
    ----------
    rows : list of dict
        Of each epoch its number, losses, scores, learning rate and seconds.
    best_epoch : int
        Counted from 1; 0 is what the run began with.
    best_score : float
        What the best epoch was chosen by; more is better.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -math.inf

    @property
    def epoch(self) -> int:
        """Number of the last finished epoch."""
        return len(self.rows)

    @property
    def is_best(self) -> bool:
        """Whether the last finished epoch is the best so far."""
        return self.epoch == self.best_epoch

    def begin(self, scores: dict[str, float], *, monitor: str) -> None:
        """Take what the run begins with, a probe, as its epoch 0: what is to be beaten."""
        self.best_epoch, self.best_score = 0, _score(scores, monitor=monitor)

    def add(self, row: dict[str, float], *, monitor: str) -> None:
        """Take note of an epoch; ``monitor`` names the validation score that decides."""
        self.rows.append(row)
        score = _score(row, monitor=monitor)
        if score > self.best_score:
            self.best_epoch, self.best_score = self.epoch, score

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for a checkpoint."""
        return {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_score": self.best_score,
                "history": self.rows}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainingHistory":
        """Rebuild what ``to_dict`` gave."""
        return cls(list(values["history"]), values["best_epoch"], values["best_score"])


def _score(row: Mapping[str, float], *, monitor: str) -> float:
    return -row["val_loss"] if monitor == "loss" else row[f"val_{monitor}"]


def fit(task: TrainingTask, optimisation: Optimisation, history: TrainingHistory, *,
        after_epoch: Callable[[TrainingHistory, np.ndarray, np.ndarray], None]) -> dict[str, Tensor]:
    """Train until the last epoch or until patience runs out.

    What begins with a probe is validated before its first epoch: where no epoch does better, the probe is kept.

    Parameters
    ----------
    task : TrainingTask
        What to train; the model is left with the best of the weights that were validated.
    optimisation : Optimisation
        That of the task.
    history : TrainingHistory
        Where to begin; changed in place.
    after_epoch : callable
        Called on the main process with the history and the validation logits, float32 ``(n_windows, n_classes)``,
        and labels, int64 ``(n_windows,)``; saves checkpoints.

    Returns
    -------
    dict of str to torch.Tensor
        The best weights of this call; empty when no epoch improved (a resumed run's best is on disk).
    """
    config, best_weights = task.config, {}
    if config.probe_first and history.best_score == -math.inf:
        logits, labels, scores = _validate(task, optimisation.kept)
        history.begin(scores, monitor=config.monitor)
        best_weights = copy.deepcopy(optimisation.kept.state_dict())
        logger.info("probe: val loss %.3f, accuracy %.3f, macro F1 %.3f", *(scores[name] for name in
                                                                            _VALIDATION_SCORES))
        if task.processes.is_main:
            after_epoch(history, logits, labels)
    while history.epoch < config.epochs and not _out_of_patience(history, config):
        started, epoch = time.perf_counter(), history.epoch + 1
        train_loss = train_epoch(task, optimisation, epoch=epoch)
        logits, labels, scores = _validate(task, optimisation.kept)
        history.add({"epoch": epoch, "train_loss": train_loss, **scores,
                     "learning_rate": optimisation.optimizer.param_groups[0]["lr"],
                     "seconds": round(time.perf_counter() - started, 2)}, monitor=config.monitor)
        if history.is_best:
            best_weights = copy.deepcopy(optimisation.kept.state_dict())
        logger.info("epoch %d/%d: train loss %.3f, val loss %.3f, accuracy %.3f, macro F1 %.3f%s", epoch,
                    config.epochs, train_loss, scores["val_loss"], scores["val_accuracy"], scores["val_macro_f1"],
                    " (best)" if history.is_best else "")
        if task.processes.is_main:
            after_epoch(history, logits, labels)
    if best_weights:
        task.model.load_state_dict(best_weights)
    return best_weights


def _out_of_patience(history: TrainingHistory, config: EfficientNetConfig) -> bool:
    stopped = bool(config.patience) and history.epoch - history.best_epoch >= config.patience
    if stopped:
        logger.info("no improvement for %d epochs: stopping early", config.patience)
    return stopped


def train_epoch(task: TrainingTask, optimisation: Optimisation, *, epoch: int) -> float:
    """Train over all windows once.

    Parameters
    ----------
    task : TrainingTask
        What to train.
    optimisation : Optimisation
        That of the task.
    epoch : int
        Counted from 1; with the config's seed the key of everything that is drawn.

    Returns
    -------
    float
        Mean loss per window, while its weights changed.
    """
    config, device, processes = task.config, task.device, task.processes
    epoch_seed = int(np.random.default_rng([config.seed, epoch]).integers(2**31))
    torch.manual_seed(epoch_seed + processes.rank)  # dropout and stochastic depth draw from the global generator
    loader = make_loader(task.train, batch_size=config.batch_size, shuffle_seed=epoch_seed,
                         n_workers=task.n_workers, pin_memory=device.type == "cuda",
                         rank=processes.rank, n_processes=processes.n_processes)
    augment = Augmenter(config=config, n_classes=task.n_classes, epoch=epoch, background_label=task.background_label)
    loss_function = make_loss(config, task.train.labels, n_classes=task.n_classes).to(device)
    dtype = autocast_dtype(device, mixed_precision=config.mixed_precision)
    _set_training(task, optimisation.network, epoch=epoch)
    total = torch.zeros(2, device=device)  # summed loss, windows
    n_batches, n_windows_left = len(loader), len(loader.sampler)  # type: ignore[arg-type]
    for number, batch in enumerate(progress(loader, total=n_batches, description=f"epoch {epoch}", unit="batch",
                                            leave=False)):
        if number % config.accumulation_steps == 0:
            # the last group of an epoch may hold fewer windows than the others
            group_size = min(config.accumulation_steps * config.batch_size, n_windows_left)
            n_windows_left -= group_size
        inputs, targets = augment(batch, number=number, device=device)
        with autocast(device, dtype):
            logits = optimisation.network(inputs)
        loss = loss_function(logits.float(), targets).sum()
        optimisation.backward(loss / group_size)
        if (number + 1) % config.accumulation_steps == 0 or number + 1 == n_batches:
            optimisation.step()
        total += torch.stack([loss.detach(), torch.full_like(loss, len(inputs))])
    summed_loss, n_windows = processes.sum(total).tolist()
    return summed_loss / n_windows


def _set_training(task: TrainingTask, network: nn.Module, *, epoch: int) -> None:
    """Put a network into training mode, but for what an epoch keeps as it is.

    What is frozen stays in evaluation mode: its batch norms keep their statistics and no block is dropped.
    """
    config = task.config
    network.train()
    if config.freeze_batch_norm:
        for norm in _batch_norms(task.model):
            norm.eval()
    if config.freeze_epochs:
        learns = epoch > config.freeze_epochs
        for module in itertools.chain(*stages(task.model)[:-1]):
            module.requires_grad_(learns)
            if not learns:
                module.eval()


def _batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def _validate(task: TrainingTask, model: nn.Module) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Return validation logits, labels and scores; logits and labels are empty but on the main process."""
    logits, labels, scores = np.empty(0), np.empty(0), {}
    if task.processes.is_main:
        if task.config.reestimate_batch_norm:
            reestimate_batch_norm(model, task.train, config=task.config, device=task.device, n_workers=task.n_workers)
        logits, labels = predict_logits(model, task.val, config=task.config, device=task.device,
                                        n_workers=task.n_workers)
        scores = validation_scores(logits, labels, n_classes=task.n_classes)
    return logits, labels, task.processes.from_main(scores, _VALIDATION_SCORES, task.device)


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, dataset: SpectrogramDataset | ArrayDataset, *, config: EfficientNetConfig,
                          device: torch.device, n_workers: int) -> None:
    """Take the statistics of a model's batch norms anew: the mean over batches of clean windows.

    While training, running statistics lag behind the weights and are those of augmented windows, and those of an
    average of weights belong to none. Wu & Johnson (2021), "Rethinking 'Batch' in BatchNorm", section 3.

    Parameters
    ----------
    model : torch.nn.Module
        On the device; left in evaluation mode. Its dropout and stochastic depth are off meanwhile, as they are when
        the statistics are used.
    dataset : SpectrogramDataset or ArrayDataset
        Training windows: the same random ones each time, whole batches of up to 512 windows in all.
    config : EfficientNetConfig
        ``batch_size``, ``mixed_precision``, ``seed``.
    device : torch.device
        Where to compute.
    n_workers : int
        Loading processes.
    """
    momenta = {norm: norm.momentum for norm in _batch_norms(model)}
    loader = make_loader(dataset, batch_size=config.batch_size, shuffle_seed=config.seed, n_workers=n_workers,
                         pin_memory=device.type == "cuda")
    n_batches = max(1, min(len(dataset), _BATCH_NORM_WINDOWS) // config.batch_size)
    dtype = autocast_dtype(device, mixed_precision=config.mixed_precision)
    model.eval()
    for norm in momenta:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for the mean of all batches
        norm.train()
    for batch in itertools.islice(loader, n_batches):
        with autocast(device, dtype):
            model(batch.log_mel.to(device, non_blocking=True))
    for norm, momentum in momenta.items():
        norm.momentum = momentum
    model.eval()


@torch.inference_mode()
def predict_logits(model: nn.Module, dataset: SpectrogramDataset | ArrayDataset, *, config: EfficientNetConfig,
                   device: torch.device, n_workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply a model to windows, without augmentation.

    Parameters
    ----------
    model : torch.nn.Module
        On the device; left in evaluation mode.
    dataset : SpectrogramDataset or ArrayDataset
        The windows.
    config : EfficientNetConfig
        ``batch_size``, ``mixed_precision``.
    device : torch.device
        Where to compute.
    n_workers : int
        Loading processes.

    Returns
    -------
    logits : np.ndarray
        float32 ``(n_windows, n_classes)``, in the data set's order.
    labels : np.ndarray
        int64 ``(n_windows,)``.
    """
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
