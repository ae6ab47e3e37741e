"""Grouped, stratified k-fold cross-validation.

Every fold is scored once, by a model that never saw it: the epoch is chosen on a part of the training folds.
Augmented copies follow their recording and are used for training only.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from models import calibration
from models.calibration import Calibration
from models.efficientnet_config import DEFAULT_PRESET, EfficientNetConfig, get_config
from models.errors import ConfigError
from utils import metrics
from utils.storage.checkpoints import save_model
from utils.storage.spectrograms import ArrayDataset, SpectrogramDataset
from utils.storage.files import read_json, write_json
from utils.storage.journal import settings_key
from models.classes import ClassList
from utils.storage.manifest import NOT_AUGMENTED, Manifest
from utils.storage.splits import grouped_folds
from utils.training.run import checkpoint_path, check_shape, make_model, with_frontend
from utils.running.devices import resolve_device
from utils.training_utils import (LoopState, Trainer, count_steps, fit, make_stepper, mean_and_deviation,
                                  predict_logits, resolve_batch_norm)

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_MOST_SELECTION_FOLDS = 7  # 1/7 of the training folds chooses the epoch, about the 15 % of a plain split
_SCORES = ("accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "weighted_f1", "log_loss")


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
        ``k_folds``, ``folds`` (scores of each), ``mean`` and ``std`` by score, ``n_clips``.

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

    classes = ClassList(tuple(f"class_{index}" for index in range(n_classes)))
    return _cross_validate(dataset, label_array, ids, np.ones(len(label_array), dtype=bool),
                           config=config or get_config(DEFAULT_PRESET), classes=classes, k_folds=k_folds,
                           random_state=random_state, device=resolve_device(device))


def cross_validate_manifests(manifests: Sequence[Manifest], config: EfficientNetConfig, *, model_dir: Path,
                             k_folds: int, device: torch.device, n_workers: int, weights_file: Path | None = None,
                             resume: bool = False) -> dict:
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
    weights_file : Path, optional
        Local ImageNet weights.
    resume : bool
        Keep folds that an earlier run of the same settings finished.

    Returns
    -------
    dict
        As ``run_cross_validation``.
    """
    first = manifests[0]
    rows = pd.concat([manifest.rows.assign(path=[str(manifest.spectrogram_path(index).resolve())
                                                 for index in range(len(manifest.rows))])
                      for manifest in manifests], ignore_index=True)
    pooled = Manifest(first.path, rows, first.classes, first.frontend, first.dataset)
    config = with_frontend(config, first)
    check_shape(SpectrogramDataset(pooled, [0]), config, first.path)
    original = (rows["augmentation"] == NOT_AUGMENTED).to_numpy()
    folder = model_dir / "cross_validation"
    summary = _cross_validate(functools.partial(SpectrogramDataset, pooled), pooled.labels(), pooled.recording_ids(),
                              original, config=config, classes=first.classes, k_folds=k_folds,
                              random_state=config.seed, device=device, n_workers=n_workers,
                              weights_file=weights_file, folder=folder, resume=resume,
                              rows_key=settings_key(*rows["path"], *rows["recording_id"]))
    write_json(folder / "summary.json", {"format_version": FORMAT_VERSION, "config": config.to_dict(), **summary})
    return summary


def _cross_validate(dataset: Callable[[np.ndarray], Dataset], labels: np.ndarray, recording_ids: np.ndarray,
                    original: np.ndarray, *, config: EfficientNetConfig, classes: ClassList, k_folds: int,
                    random_state: int, device: torch.device, n_workers: int = 0, weights_file: Path | None = None,
                    folder: Path | None = None, resume: bool = False, rows_key: str = "") -> dict:
    """Train and score every fold; ``original`` marks the rows that are no augmented copies."""
    rows = np.flatnonzero(original)
    folds = [rows[fold] for fold in grouped_folds(labels[rows], recording_ids[rows], n_folds=k_folds,
                                                  random_state=random_state)]
    scores = []
    for number, held_out in enumerate(folds, start=1):
        fold_dir = folder / f"fold_{number}" if folder else None
        identity = {"config": config.to_dict(), "k_folds": k_folds, "random_state": random_state,
                    "n_clips": len(labels), "rows": rows_key}
        done = _finished_fold(fold_dir, identity) if resume else None
        if done is None:
            seen = np.isin(recording_ids, recording_ids[held_out])
            train, selection = _selection_split(labels, recording_ids, ~seen, original, random_state)
            trainer = _fold_trainer(dataset(train), dataset(selection), config, len(classes), device, n_workers,
                                    weights_file)
            done = _run_fold(trainer, dataset(held_out), classes, fold_dir, identity)
        logger.info("fold %d/%d: accuracy %.3f, macro F1 %.3f", number, k_folds, done["accuracy"], done["macro_f1"])
        scores.append(done)
    summary = mean_and_deviation([{name: fold[name] for name in _SCORES} for fold in scores])
    return {"k_folds": k_folds, "random_state": random_state, "n_clips": int(original.sum()), "folds": scores,
            "mean": {name: value["mean"] for name, value in summary.items()},
            "std": {name: value["std"] for name, value in summary.items()}}


def _selection_split(labels: np.ndarray, recording_ids: np.ndarray, available: np.ndarray, original: np.ndarray,
                     random_state: int) -> tuple[np.ndarray, np.ndarray]:
    """Split the training folds into rows to learn from (copies too) and original rows to choose the epoch on."""
    rows = np.flatnonzero(available & original)
    n_folds = min(_MOST_SELECTION_FOLDS, len(set(recording_ids[rows])), int(np.bincount(labels[rows]).max()))
    selection = rows[grouped_folds(labels[rows], recording_ids[rows], n_folds=max(n_folds, 2),
                                   random_state=random_state)[0]]
    chosen = np.isin(recording_ids, recording_ids[selection])
    return np.flatnonzero(available & ~chosen), selection


def _fold_trainer(train: Dataset, selection: Dataset, config: EfficientNetConfig, n_classes: int,
                  device: torch.device, n_workers: int, weights_file: Path | None) -> Trainer:
    steps = count_steps(len(train), config)  # type: ignore[arg-type]
    resolved = resolve_batch_norm(config, steps_per_epoch=steps)
    model = make_model(resolved, n_classes, weights_file=weights_file).to(device)
    return Trainer(model, resolved, train, selection, n_classes, device, n_workers)


def _run_fold(trainer: Trainer, held_out: Dataset, classes: ClassList, fold_dir: Path | None,
              identity: dict) -> dict:
    """Train one fold, score it on what it never saw, and write its folder."""
    state, selected = LoopState(), {"calibration": Calibration()}

    def after_epoch(_: LoopState, is_best: bool, logits: np.ndarray, labels: np.ndarray) -> None:
        if is_best:
            selected["calibration"] = calibration.fit(logits, labels)

    best_weights = fit(trainer, make_stepper(trainer), state, after_epoch=after_epoch)
    logits, labels = predict_logits(trainer.model, held_out, config=trainer.config, device=trainer.device,
                                    n_workers=trainer.n_workers)
    probabilities = selected["calibration"].probabilities(logits)
    scores = {"best_epoch": state.best_epoch, **metrics.evaluate(probabilities, labels, class_names=classes.names)}
    if fold_dir is not None:
        save_model(checkpoint_path(fold_dir, trainer.config.model_name, "best"), best_weights, config=trainer.config,
                   classes=classes, calibration=selected["calibration"],
                   metadata={"epoch": state.best_epoch, "held_out_accuracy": scores["accuracy"]})
        pd.DataFrame(state.history).to_csv(fold_dir / "history.csv", index=False)
        write_json(fold_dir / "metrics.json", {"format_version": FORMAT_VERSION, "identity": identity,
                                               "scores": scores})
    return scores


def _finished_fold(fold_dir: Path | None, identity: dict) -> dict | None:
    path = fold_dir / "metrics.json" if fold_dir else None
    if path is None or not path.exists():
        return None
    content = read_json(path)
    return content["scores"] if content.get("identity") == identity else None
