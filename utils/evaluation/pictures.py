"""The pictures of an evaluation: which there are, and what to look at in each."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import reports
from utils.evaluation.results import ModelEvaluation
from utils.storage.names import safe_name

_COMPARISON_NOTE = ("Look at the black lines, the intervals: the longer a line, the less its bar tells. Whether models"
                    " differ is said by the verdict above, not by whether their lines overlap.")
_COVERAGE_NOTE = ("Look at how precision rises to the left: what is gained by leaving more segments without an answer."
                  " A point is what a model's own thresholds give.")
_NOTES = {
    "confusion_matrix": "Look for dark cells off the diagonal: what the class of that row is mistaken for.",
    "roc_curves": ("Look at the left edge: how many segments of a class are found before false alarms begin. A curve"
                   " along the dashed line knows nothing of its class."),
    "precision_recall_curves": ("Look for where a curve falls: up to that recall the class can be found with few false"
                                " alarms. Of a rare class this tells more than the ROC curve."),
    "reliability": ("Look at the distance from the dashed line: points below it are surer than they are right. Bins of"
                    " few segments, in the lower part, say little."),
}


class Picture(NamedTuple):
    """A PNG, its title and what to look at."""

    title: str
    path: Path
    note: str


def draw_pictures(folder: Path, models: Sequence[ModelEvaluation]) -> list[Picture]:
    """Draw every picture, in the order of the page."""
    pictures = [Picture("Scores and classes", folder / "comparison.png", _COMPARISON_NOTE),
                Picture("What is answered", folder / "coverage.png", _COVERAGE_NOTE)]
    reports.plot_comparison(pictures[0].path, models)
    reports.plot_coverage(pictures[1].path, models)
    for model in models:
        segments, names = model.segments, model.segments.class_names
        paths = {kind: folder / f"{kind}_{picture_name(model.name)}.png" for kind in _NOTES}
        reports.plot_confusion_matrix(paths["confusion_matrix"], np.array(model.metrics["confusion_matrix"]),
                                      class_names=names, title=model.name)
        reports.plot_roc_curves(paths["roc_curves"], segments.probabilities, segments.labels, class_names=names)
        reports.plot_precision_recall_curves(paths["precision_recall_curves"], segments.probabilities,
                                             segments.labels, class_names=names)
        reports.plot_reliability(paths["reliability"], segments.probabilities, segments.labels, title=model.name,
                                 uncalibrated=model.uncalibrated)
        pictures += [Picture(f"{model.name}: {kind.replace('_', ' ')}", paths[kind], note)
                     for kind, note in _NOTES.items()]
    return pictures


def remove_other_pictures(folder: Path, *, kept: set[Path]) -> None:
    """Remove what an earlier evaluation drew of models that this one does not have."""
    for kind in _NOTES:
        for path in sorted(set(folder.glob(f"{kind}_*.png")) - kept):
            path.unlink()


def picture_name(model_name: str) -> str:
    """Return what the pictures of a model are called by: a safe part of a file name, in small letters."""
    return safe_name(model_name).lower()
