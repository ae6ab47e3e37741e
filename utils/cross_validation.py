"""Grouped, stratified k-fold cross-validation.

Every fold is scored once, by a model that never saw it: the epoch is chosen on a part of the training folds.
Augmented copies follow their recording and are used for training only.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from models import calibration
from models.calibration import Calibration
from models.classes import ClassList
from models.efficientnet_config import DEFAULT_PRESET, EfficientNetConfig, get_config, with_start_settings
from models.errors import ConfigError
from utils import metrics
from utils.running.devices import resolve_device
from utils.storage.checkpoints import save_model
from utils.storage.files import read_json, write_json
from utils.storage.journal import settings_key
from utils.storage.locks import locked
from utils.storage.manifest import NOT_AUGMENTED, Manifest
from utils.storage.spectrograms import ArrayDataset, SpectrogramDataset
from utils.storage.splits import grouped_folds
from utils.training.data import (check_shape, contents_of_recordings, describe_recordings, join_recordings,
                                 with_frontend)
from utils.training.model_folder import checkpoint_path, write_history
from utils.training.optimisation import count_steps, resolve_batch_norm
from utils.training.probe import fit_probe
from utils.training.run import background_label
from utils.training.starter import begin, known_recordings, resolve_start
from utils.training_utils import TrainingHistory, TrainingTask, fit, predict_logits

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_MOST_SELECTION_FOLDS = 7  # 1/7 of the training folds chooses the epoch, about the 15 % of a plain split
_SCORES = ("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "weighted_f1", "log_loss")


@dataclass(frozen=True, kw_only=True)
class _Windows:
    """What is cross-validated.

    Parameters
    ----------
    dataset : callable
        Gives the windows of an array of rows.
    labels : np.ndarray
        int64 ``(n_rows,)``.
    recording_ids : np.ndarray
        str ``(n_rows,)``.
    original : np.ndarray
        bool ``(n_rows,)``, False for augmented copies.
    contents : mapping of str to frozenset of str
        Content ids of each recording, where they are known.
    key : str
        What tells these windows from others.
    """

    dataset: Callable[[np.ndarray], SpectrogramDataset | ArrayDataset]
    labels: np.ndarray
    recording_ids: np.ndarray
    original: np.ndarray
    contents: Mapping[str, frozenset[str]] = field(default_factory=dict)
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """How it is cross-validated, and where the folds are written: nowhere when ``folder`` is None."""

    config: EfficientNetConfig
    classes: ClassList
    k_folds: int
    random_state: int
    device: torch.device
    n_workers: int = 0
    folder: Path | None = None
    resume: bool = False


def run_cross_validation(spectrograms: Sequence[np.ndarray] | np.ndarray, labels: Sequence[int] | np.ndarray, *,
                         k_folds: int = 5, random_state: int = 42, recording_ids: Sequence[str] | None = None,
                         config: EfficientNetConfig | None = None, device: str = "auto") -> dict:
    """Cross-validate a network on spectrograms in memory.

    Parameters
    ----------
    spectrograms : sequence of numpy.ndarray
        ``(n_mels, n_frames)`` each, log-mel in dB.
    labels : sequence of int
        Class of each, 0-based.
    k_folds : int
        Folds, at least 2.
    random_state : int
        Seed of the folds.
    recording_ids : sequence of str, optional
        Recording of each spectrogram, which stays in one fold; without it each counts as its own recording.
    config : EfficientNetConfig, optional
        The experiment; the default preset when None.
    device : str
        As ``--device``.

    Returns
    -------
    dict
        ``k_folds``, ``folds`` (scores of each), ``mean`` and ``std`` by score, ``n_clips`` (windows scored).

    Raises
    ------
    ConfigError
        For arrays of different lengths or fewer than two classes.
    ManifestError
        For fewer recordings than folds.
    """
    label_array = np.asarray(labels, dtype=np.int64)
    if len(spectrograms) != len(label_array):
        raise ConfigError(f"spectrograms and labels must be equally long, got {len(spectrograms)} and"
                          f" {len(label_array)}")
    shapes = {np.shape(spectrogram) for spectrogram in spectrograms}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ConfigError(f"spectrograms must all be (n_mels, n_frames) of one shape, got {sorted(shapes)[:3]}")
    n_classes = len(np.unique(label_array))
    if n_classes < 2 or label_array.min() != 0 or label_array.max() != n_classes - 1:
        raise ConfigError(f"labels must be 0..n_classes-1 of at least 2 classes, got {np.unique(label_array)[:8]}")
    ids = np.arange(len(label_array)).astype(str) if recording_ids is None else np.asarray(recording_ids, dtype=str)

    def dataset(rows: np.ndarray) -> ArrayDataset:
        return ArrayDataset([spectrograms[row] for row in rows], label_array[rows])

    windows = _Windows(dataset=dataset, labels=label_array, recording_ids=ids,
                       original=np.ones(len(label_array), dtype=bool))
    classes = ClassList(tuple(f"class_{index}" for index in range(n_classes)))
    return _cross_validate(windows, _Settings(
        config=config or _default_config(), classes=classes, k_folds=k_folds, random_state=random_state,
        device=resolve_device(device)))


def _default_config() -> EfficientNetConfig:
    return with_start_settings(resolve_start(get_config(DEFAULT_PRESET)), given=())


def cross_validate_manifests(manifests: Sequence[Manifest], config: EfficientNetConfig, *, model_dir: Path,
                             k_folds: int, device: torch.device, n_workers: int, resume: bool = False) -> dict:
    """Cross-validate over the rows of some manifests and write ``cross_validation/`` into the model folder.

    Parameters
    ----------
    manifests : sequence of Manifest
        With one front end and class order; usually train and val.
    config : EfficientNetConfig
        The experiment; its seed makes the folds.
    model_dir : Path
        Where ``cross_validation/`` goes.
    k_folds : int
        Folds.
    device : torch.device
        Where to compute.
    n_workers : int
        Loading processes.
    resume : bool
        Keep folds that an earlier run of the same settings finished.

    Returns
    -------
    dict
        As ``run_cross_validation``.

    Raises
    ------
    ConfigError
        If there are finished folds and ``resume`` is off, or another process writes the model folder.
    ManifestError
        For fewer recordings than folds.
    """
    folder = model_dir / "cross_validation"
    with locked(model_dir):
        if not resume:
            _refuse_finished_folds(folder)
        config = with_frontend(config, manifests[0])
        windows = _pooled(manifests, config)
        summary = _cross_validate(windows, _Settings(
            config=config, classes=manifests[0].classes, k_folds=k_folds, random_state=config.seed, device=device,
            n_workers=n_workers, folder=folder, resume=resume))
        write_json(folder / "summary.json", {"format_version": FORMAT_VERSION, "config": config.to_dict(), **summary})
    return summary


def _refuse_finished_folds(folder: Path) -> None:
    n_folds = len(list(folder.glob("fold_*/metrics.json")))
    if n_folds or (folder / "summary.json").exists():
        raise ConfigError(f"{folder} holds a cross-validation with {n_folds} finished folds: pass --resume to continue"
                          f" it, or choose another --model_dir")


def _pooled(manifests: Sequence[Manifest], config: EfficientNetConfig) -> _Windows:
    """Return the windows of all manifests; ManifestError when they are not what the front end makes."""
    first = manifests[0]
    rows = pd.concat([manifest.rows.assign(path=[str(manifest.spectrogram_path(index).resolve())
                                                 for index in range(len(manifest.rows))])
                      for manifest in manifests], ignore_index=True)
    pooled = Manifest(first.path, rows, first.classes, first.frontend, first.dataset)
    check_shape(SpectrogramDataset(pooled, [0]), config, first.path)
    return _Windows(dataset=functools.partial(SpectrogramDataset, pooled), labels=pooled.labels(),
                    recording_ids=pooled.recording_ids(),
                    original=(rows["augmentation"] == NOT_AUGMENTED).to_numpy(),
                    contents=contents_of_recordings(manifests), key=settings_key(*rows["path"], *rows["recording_id"]))


def _cross_validate(windows: _Windows, settings: _Settings) -> dict:
    """Train and score every fold; of augmented copies none is scored."""
    rows, k_folds, random_state = np.flatnonzero(windows.original), settings.k_folds, settings.random_state
    identity = {"config": settings.config.to_dict(), "k_folds": k_folds, "random_state": random_state,
                "n_clips": len(windows.labels), "rows": windows.key}
    folds = []
    for number, places in enumerate(grouped_folds(windows.labels[rows], windows.recording_ids[rows], n_folds=k_folds,
                                                  random_state=random_state), start=1):
        fold_dir = settings.folder / f"fold_{number}" if settings.folder else None
        scores = _finished_fold(fold_dir, identity) if fold_dir and settings.resume else None
        if scores is None:
            scores = _run_fold(windows, rows[places], settings, fold_dir, identity)
        logger.info("fold %d/%d: accuracy %.3f, macro F1 %.3f", number, k_folds, scores["accuracy"],
                    scores["macro_f1"])
        folds.append(scores)
    mean, deviation = mean_and_deviation([{name: scores[name] for name in _SCORES} for scores in folds])
    return {"k_folds": k_folds, "random_state": random_state, "n_clips": len(rows), "folds": folds,
            "mean": mean, "std": deviation}


def _finished_fold(fold_dir: Path, identity: dict) -> dict | None:
    path = fold_dir / "metrics.json"
    if not path.exists():
        return None
    content = read_json(path)
    return content["scores"] if content.get("identity") == identity else None


def _run_fold(windows: _Windows, held_out: np.ndarray, settings: _Settings, fold_dir: Path | None,
              identity: dict) -> dict:
    """Train one fold, score it on what it never saw, and write its folder."""
    available = ~np.isin(windows.recording_ids, windows.recording_ids[held_out])
    learnt, selection = _selection_split(windows, available, random_state=settings.random_state)
    task = _fold_task(windows, learnt, selection, settings)
    history, calibrated = TrainingHistory(), Calibration()

    def after_epoch(history: TrainingHistory, logits: np.ndarray, labels: np.ndarray) -> None:
        nonlocal calibrated
        if history.is_best:
            calibrated = calibration.fit(logits, labels, recording_ids=windows.recording_ids[selection])

    best_weights = fit(task, task.optimisation(), history, after_epoch=after_epoch)
    logits, labels = predict_logits(task.model, windows.dataset(held_out), config=task.config, device=task.device,
                                    n_workers=task.n_workers)
    scores = {"best_epoch": history.best_epoch,
              **metrics.evaluate(calibrated.probabilities(logits), labels, class_names=settings.classes.names)}
    if fold_dir is not None:
        save_model(checkpoint_path(fold_dir, task.config.model_name, "best"), best_weights, config=task.config,
                   classes=settings.classes, calibration=calibrated,
                   metadata={"epoch": history.best_epoch, "held_out_accuracy": scores["accuracy"],
                             **join_recordings(describe_recordings(windows.recording_ids[available], windows.contents),
                                               known_recordings(settings.config))})
        write_history(fold_dir, history)
        write_json(fold_dir / "metrics.json", {"format_version": FORMAT_VERSION, "identity": identity,
                                               "scores": scores})
    return scores


def _fold_task(windows: _Windows, learnt: np.ndarray, selection: np.ndarray, settings: _Settings) -> TrainingTask:
    """Return what is trained in a fold, on the rows from ``_selection_split``."""
    train, val = windows.dataset(learnt), windows.dataset(selection)
    config = resolve_batch_norm(settings.config, steps_per_epoch=count_steps(len(train), settings.config))
    n_classes = len(settings.classes)
    model, config = begin(config, n_classes)
    model = model.to(settings.device)
    if config.probe_first:
        fit_probe(model, train, windows.recording_ids[learnt], n_classes=n_classes, config=config,
                  device=settings.device, n_workers=settings.n_workers)
    return TrainingTask(model=model, config=config, train=train, val=val, n_classes=n_classes,
                        device=settings.device, n_workers=settings.n_workers,
                        background_label=background_label(settings.classes))


def _selection_split(windows: _Windows, available: np.ndarray, *, random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the training folds into rows to learn from (copies too) and original rows to choose the epoch on."""
    rows = np.flatnonzero(available & windows.original)
    labels, recording_ids = windows.labels[rows], windows.recording_ids[rows]
    n_folds = min(_MOST_SELECTION_FOLDS, len(set(recording_ids)), int(np.bincount(labels).max()))
    selection = rows[grouped_folds(labels, recording_ids, n_folds=max(n_folds, 2), random_state=random_state)[0]]
    chosen = np.isin(windows.recording_ids, windows.recording_ids[selection])
    return np.flatnonzero(available & ~chosen), selection


def mean_and_deviation(folds: Sequence[Mapping[str, float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean and sample standard deviation of each score over folds; of a single fold the deviation is 0."""
    values = {name: [scores[name] for scores in folds] for name in folds[0]}
    return ({name: float(np.mean(of_folds)) for name, of_folds in values.items()},
            {name: float(np.std(of_folds, ddof=1)) if len(folds) > 1 else 0.0 for name, of_folds in values.items()})
