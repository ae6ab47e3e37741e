"""The folder of a model: checkpoints, scores and pictures."""

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from models import calibration
from models.calibration import Calibration, cross_fitted_probabilities
from models.classes import DecisionRules
from models.efficientnet_config import RESNET_NAME, EfficientNetConfig
from models.thresholds import NEVER, thresholds_for_precision
from utils import metrics, reports
from utils.storage.checkpoints import read_checkpoint, save_model
from utils.storage.config_files import write_config
from utils.storage.files import write_json
from utils.storage.splits import grouped_folds
from utils.storage.tables import write_table
from utils.training.data import TrainingData
from utils.training.optimisation import Optimisation
from utils.training_utils import TrainingHistory

logger = logging.getLogger(__name__)

HISTORY_NAME = "history.csv"
_MOST_CALIBRATION_FOLDS = 5
_LEAST_RECORDINGS_PER_CLASS = 2  # on average; with fewer, a fold's classes are unknown to the others


@dataclass(frozen=True)
class ModelFolder:
    """Where a run's files stand, and how they are written.

    Parameters
    ----------
    path : Path
        The ``model_dir``.
    config : EfficientNetConfig
        Resolved config of the run.
    data : TrainingData
        What it learns.
    known_recordings : mapping
        What the checkpoints tell of recordings, the start's too; empty where nothing is written.
    """

    path: Path
    config: EfficientNetConfig
    data: TrainingData
    known_recordings: Mapping[str, list[str]]

    @property
    def best(self) -> Path:
        """The checkpoint to deploy."""
        return checkpoint_path(self.path, self.config.model_name, "best")

    @property
    def last(self) -> Path:
        """The checkpoint to resume."""
        return checkpoint_path(self.path, self.config.model_name, "last")

    def save_epoch(self, model: torch.nn.Module, optimisation: Optimisation, history: TrainingHistory,
                   logits: np.ndarray, labels: np.ndarray) -> None:
        """Write ``_last.pth``, ``history.csv`` and, after the best epoch so far, ``_best.pth``.

        Epoch 0 is the probe that a run began with; it has no row.
        """
        about = {"epoch": history.epoch, "best_epoch": history.best_epoch,
                 "validation": history.rows[-1] if history.rows else {}}
        if history.is_best:
            self.save_best(optimisation.kept, logits, labels, about=about)
        self._save(self.last, model, Calibration(), about=about, config=self.config,
                   training={**optimisation.state_dict(), "loop": history.to_dict()})
        if history.rows:
            write_history(self.path, history)

    def save_best(self, model: torch.nn.Module, logits: np.ndarray, labels: np.ndarray, *, about: Mapping
                  ) -> Calibration:
        """Write ``_best.pth``, calibrated on its validation logits; return the calibration."""
        fitted = calibration.fit(logits, labels, recording_ids=self.data.val.recording_ids())
        self._save(self.best, model, fitted, about=about, config=self._with_thresholds(logits, labels))
        return fitted

    def finish(self, logits: np.ndarray, labels: np.ndarray, calibrated: Calibration, *, about: Mapping) -> dict:
        """Write the scores and pictures of the best model, and its thresholds into the config; return the scores."""
        names = self.data.classes.names
        config = self.config.replace(thresholds=read_checkpoint(self.best)["config"]["thresholds"])
        write_config(self.path / "config.json", config)
        self._tell_silent_classes(config)
        probabilities, fitted_on = self._scored_probabilities(logits, labels)
        segments = metrics.ScoredSegments(probabilities, labels, names)
        scores = metrics.evaluate_segments(segments)
        write_json(self.path / "metrics.json", {
            "format_version": 1, "split": "validation", **about,
            **calibrated.to_dict(), "calibration_scores": fitted_on, "allowed_leakage": self.data.shared_recordings,
            "environment": {"torch": str(torch.__version__), "python": platform.python_version()}, **scores,
            "answered": metrics.answered_scores(segments, DecisionRules.of_config(config, self.data.classes))})
        title = f"{self.config.model_name}, validation"
        reports.plot_confusion_matrix(self.path / "confusion_matrix.png", np.array(scores["confusion_matrix"]),
                                      class_names=names, title=title)
        reports.plot_roc_curves(self.path / "roc_curves.png", probabilities, labels, class_names=names)
        reports.plot_precision_recall_curves(self.path / "precision_recall_curves.png", probabilities, labels,
                                             class_names=names)
        reports.plot_reliability(self.path / "reliability.png", probabilities, labels,
                                 title=f"{title}, calibration {fitted_on.replace('_', '-')}")
        return scores

    def _scored_probabilities(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Return validation probabilities to be scored, and whether they are ``cross_fitted`` or ``in_sample``.

        The calibration that is deployed is fitted on all of validation: scores of its own probabilities there would
        be too good. Each fold of recordings is therefore calibrated by the others, where there are enough of them.
        """
        recording_ids = self.data.val.recording_ids()
        n_recordings, counts = len(set(recording_ids)), np.bincount(labels)
        if n_recordings < _LEAST_RECORDINGS_PER_CLASS * np.count_nonzero(counts):
            fitted = calibration.fit(logits, labels, recording_ids=recording_ids)
            return fitted.probabilities(logits), "in_sample"
        folds = grouped_folds(labels, recording_ids, random_state=self.config.seed,
                              n_folds=min(_MOST_CALIBRATION_FOLDS, n_recordings, int(counts.max())))
        return cross_fitted_probabilities(logits, labels, folds, recording_ids=recording_ids), "cross_fitted"

    def _with_thresholds(self, logits: np.ndarray, labels: np.ndarray) -> EfficientNetConfig:
        """Return the config with the thresholds that its ``target_precision`` asks for."""
        if self.config.target_precision is None:
            return self.config
        found = thresholds_for_precision(self._scored_probabilities(logits, labels)[0], labels,
                                         class_names=self.data.classes.names,
                                         target_precision=self.config.target_precision,
                                         recording_ids=self.data.val.recording_ids())
        found.pop(self.config.reject_class, None)  # to say "unknown" promises nothing
        return self.config.replace(thresholds={**self.config.thresholds, **found})

    def _tell_silent_classes(self, config: EfficientNetConfig) -> None:
        silent = [name for name in self.data.classes.names if config.threshold(name) >= NEVER]
        if config.target_precision is not None and silent:
            logger.warning("%s will never be reported: on validation no threshold gives a precision that is surely %g;"
                           " add validation recordings, or lower --target_precision", ", ".join(silent),
                           config.target_precision)

    def _save(self, path: Path, model: torch.nn.Module, calibrated: Calibration, *, about: Mapping,
              config: EfficientNetConfig, training: Mapping | None = None) -> None:
        metadata = {**about, "allowed_leakage": list(self.data.shared_recordings), "torch": str(torch.__version__),
                    **self.known_recordings}
        save_model(path, model.state_dict(), config=config, classes=self.data.classes, calibration=calibrated,
                   metadata=metadata, training=training)


def checkpoint_path(model_dir: Path, model_name: str, kind: str) -> Path:
    """Return ``efficientnet_<kind>.pth`` or ``resnet18_<kind>.pth`` in a model folder."""
    stem = RESNET_NAME if model_name == RESNET_NAME else "efficientnet"
    return model_dir / f"{stem}_{kind}.pth"


def write_history(folder: Path, history: TrainingHistory) -> None:
    """Write ``history.csv``, a row an epoch."""
    write_table(folder / HISTORY_NAME, pd.DataFrame(history.rows))
