"""Counts of detections as scores: precision, recall and F1, with intervals and over thresholds.

A table of counts has a last axis of three: what is right, what was detected, what is annotated. An undefined score is
NaN inside and None where it is told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from utils.evaluation.intervals import score_interval, student_quantile
from utils.evaluation.resampling import RESAMPLED_CELLS, drawn_counts
from utils.metrics import ANSWER_THRESHOLDS, Interval
from utils.tallies import Scores

_RATIOS = ("precision", "recall", "f1")
_OVER_POINTS = ("micro_precision", "micro_recall", "micro_f1", "macro_f1")


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """The bootstrap over recordings: the events of one recording are not independent, so it is drawn whole.

    Parameters
    ----------
    n_bootstrap : int
        Number of resamples.
    confidence : float, range 0..1
        Of the intervals.
    seed : int
        Of the resamples.
    """

    n_bootstrap: int
    confidence: float
    seed: int

    def resampled(self, counts: np.ndarray, hours: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield sums over recordings, which are the first axis of both: float64, some resamples in their place."""
        rng, n_recordings = np.random.default_rng(self.seed), len(counts)
        flat = np.column_stack([counts.reshape(n_recordings, counts[0].size), hours])
        per_part = max(1, RESAMPLED_CELLS // max(flat.shape))
        for start in range(0, self.n_bootstrap, per_part):
            draws = drawn_counts(rng, n_recordings, min(per_part, self.n_bootstrap - start))
            sums = draws.T @ flat
            yield sums[:, :-1].reshape(len(sums), *counts.shape[1:]), sums[:, -1]

    def interval(self, name: str, value: float, resampled: np.ndarray, *, n_recordings: int) -> Interval:
        """Return the interval of a score, as ``intervals.score_interval`` gives it.

        Parameters
        ----------
        name : str
            Of the score, without ``micro_`` or ``macro_``.
        value : float
            On all recordings; NaN where undefined.
        resampled : np.ndarray, float64, shape (n_bootstrap,)
            On each resample; where it is undefined, NaN, the resample does not count.
        n_recordings : int
            Recordings that hold what is scored.

        Returns
        -------
        (low, high) or None
            None where no resample defines it, or all agree: that recordings are few or alike is no certainty.
        """
        defined = resampled[np.isfinite(resampled)]
        if n_recordings < 2 or not len(defined):
            return None
        return score_interval(name, plain(value), defined,
                              quantile=student_quantile(self.confidence, n_recordings - 1))


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of one way to judge.

    Parameters
    ----------
    class_names : tuple of str
        All classes that are annotated or detected.
    overall : dict of str to float or None
        ``micro_`` and ``macro_`` ``precision``, ``recall`` and ``f1``, ``false_per_hour``, and the counts ``n_right``,
        ``n_detected``, ``n_annotated``. Macro averages count the classes that are annotated.
    intervals : dict of str to (low, high) or None
        Of the scores in ``overall``, over recordings.
    per_class : list of dict
        ``class_name``, the same scores without prefix, and the counts. The precision of a class that was never detected
        is 0; the recall of one that is not annotated is None.
    class_intervals : list of dict
        ``class_name``, and the interval of each score.
    """

    class_names: tuple[str, ...]
    overall: dict
    intervals: dict[str, Interval]
    per_class: list[dict]
    class_intervals: list[dict]

    def to_dict(self) -> dict:
        """Return plain JSON types."""
        return {"overall": self.overall, "intervals": self.intervals, "per_class": self.per_class,
                "class_intervals": self.class_intervals}


def score_counts(counts: np.ndarray, class_names: tuple[str, ...], resampling: Resampling, *,
                 hours: np.ndarray) -> Scored:
    """Score the counts of recordings.

    Parameters
    ----------
    counts : np.ndarray, int64, shape (n_recordings, n_classes, 3)
        Right, detected, annotated.
    class_names : tuple of str, length n_classes
        Name of each class.
    resampling : Resampling
        Of the intervals.
    hours : np.ndarray, float64, shape (n_recordings,)
        How long they are.
    """
    total = counts.sum(axis=0)
    overall, by_class = ratios(total, hours.sum())
    drawn = [ratios(*part) for part in resampling.resampled(counts, hours)]
    names = ("n_right", "n_detected", "n_annotated")
    return Scored(
        class_names=class_names,
        overall={**{name: plain(value) for name, value in overall.items()},
                 **dict(zip(names, total.sum(axis=0).tolist()))},
        intervals={name: resampling.interval(name.removeprefix("micro_").removeprefix("macro_"), float(overall[name]),
                                             np.concatenate([part[name] for part, _ in drawn]),
                                             n_recordings=len(counts)) for name in overall},
        per_class=[{"class_name": class_name, **{name: plain(values[k]) for name, values in by_class.items()},
                    **dict(zip(names, total[k].tolist()))} for k, class_name in enumerate(class_names)],
        class_intervals=[{"class_name": class_name, **{
            name: resampling.interval(name, float(values[k]), np.concatenate([part[name][:, k] for _, part in drawn]),
                                      n_recordings=int(counts[:, k].any(axis=1).sum()))
            for name, values in by_class.items()}}
            for k, class_name in enumerate(class_names)])


def ratios(counts: np.ndarray, hours: np.ndarray | float) -> tuple[Scores, Scores]:
    """Return scores of counts.

    Parameters
    ----------
    counts : np.ndarray, shape (..., n_classes, 3)
        Right, detected, annotated.
    hours : np.ndarray, float64, shape (...) or float
        What was listened to.

    Returns
    -------
    overall, by_class : dict of str to np.ndarray, float64, shapes (...) and (..., n_classes)
        See ``Scored``; NaN where undefined.
    """
    by_class = _ratios(counts)
    overall = {f"micro_{name}": values for name, values in _ratios(counts.sum(axis=-2)).items()}
    occurs = counts[..., 2] > 0
    for name in _RATIOS:
        overall[f"macro_{name}"] = _ratio(np.where(occurs, by_class[name], 0.0).sum(axis=-1), occurs.sum(axis=-1))
    false = counts[..., 1] - counts[..., 0]
    overall["false_per_hour"] = _ratio(false.sum(axis=-1), np.asarray(hours))
    by_class["false_per_hour"] = _ratio(false, np.broadcast_to(np.asarray(hours)[..., None], false.shape))
    return overall, by_class


def overlap_curve(right: np.ndarray, counts: np.ndarray, class_names: Sequence[str], *,
                  levels: Sequence[float]) -> dict:
    """Return how the scores fall as detections must lie closer.

    Parameters
    ----------
    right : np.ndarray, int64, shape (n_classes, n_levels)
        Detections that are right at each level.
    counts : np.ndarray, int64, shape (n_classes, 3)
        Right, detected, annotated.
    class_names : sequence of str, length n_classes
        Name of each class.
    levels : sequence of float
        Intersections over union.

    Returns
    -------
    dict
        ``iou``; lists over it ``micro_precision``, ``micro_recall``, ``micro_f1`` and ``macro_f1``; and of
        ``per_class`` ``class_name`` and the lists ``precision``, ``recall`` and ``f1``.
    """
    table = np.repeat(counts[None], len(levels), axis=0)
    table[:, :, 0] = right.T
    return {"iou": list(levels), **_curve(table, class_names)}


def confidence_curve(detections: Sequence[tuple[str, bool, float | None]], n_annotated: np.ndarray,
                     class_names: Sequence[str], *, hours: float) -> dict | None:
    """Return what a threshold would leave of the detections.

    Parameters
    ----------
    detections : sequence of (str, bool, float or None)
        Class, whether it is right, and confidence.
    n_annotated : np.ndarray, int64, shape (n_classes,)
        Annotations of each class.
    class_names : sequence of str, length n_classes
        Name of each class.
    hours : float
        What was listened to.

    Returns
    -------
    dict or None
        ``threshold``; the lists of ``overlap_curve`` over it, and ``false_per_hour``; of ``per_class`` also the number
        ``average_precision``: precision times the rise of recall, summed over every confidence; annotations that no
        detection found add nothing. A precision is None where nothing is left. None where a confidence is unknown.
    """
    if any(confidence is None for _, _, confidence in detections):
        return None
    parts: dict[str, tuple[list[float], list[bool]]] = {name: ([], []) for name in class_names}
    for name, is_right, confidence in detections:
        parts[name][0].append(confidence or 0.0)
        parts[name][1].append(is_right)
    table = np.zeros((len(ANSWER_THRESHOLDS), len(class_names), 3))
    table[:, :, 2] = n_annotated
    averages = []
    for k, (confidences, rights) in enumerate(parts.values()):
        scores, is_true = np.array(confidences), np.array(rights, dtype=bool)
        reached = scores >= np.array(ANSWER_THRESHOLDS)[:, None]
        table[:, k, 0], table[:, k, 1] = (reached & is_true).sum(axis=1), reached.sum(axis=1)
        averages.append(average_precision(scores, is_true, int(n_annotated[k])))
    curve = _curve(table, class_names)
    for row, average in zip(curve["per_class"], averages):
        row["average_precision"] = average
    false = (table[..., 1] - table[..., 0]).sum(axis=-1)
    return {"threshold": list(ANSWER_THRESHOLDS), "false_per_hour": _told(_ratio(false, np.asarray(hours))),
            **curve}


def average_precision(confidences: np.ndarray, is_right: np.ndarray, n_annotated: int) -> float | None:
    """Return the area below precision over recall, 0..1, equal confidences together; None without annotations."""
    if not n_annotated:
        return None
    order = np.argsort(-confidences, kind="stable")
    last_of_ties = np.flatnonzero(np.diff(confidences[order], append=-np.inf))
    right = np.cumsum(is_right[order])[last_of_ties]
    return float((np.diff(right, prepend=0) * right / (last_of_ties + 1)).sum() / n_annotated)


def plain(value: np.ndarray | float) -> float | None:
    """Return a number as JSON has it: None where it is undefined."""
    return float(value) if np.isfinite(value) else None


def _curve(table: np.ndarray, class_names: Sequence[str]) -> dict:
    """Return scores of counts ``(n_points, n_classes, 3)`` as lists over the points."""
    overall, by_class = ratios(table, 0.0)
    nothing_left, none_of_class = table[..., 1].sum(axis=-1) == 0, table[..., 1] == 0
    overall["micro_precision"] = np.where(nothing_left, np.nan, overall["micro_precision"])
    by_class["precision"] = np.where(none_of_class, np.nan, by_class["precision"])
    return {**{name: _told(overall[name]) for name in _OVER_POINTS},
            "per_class": [{"class_name": class_name, **{name: _told(by_class[name][:, k]) for name in _RATIOS}}
                          for k, class_name in enumerate(class_names)]}


def _ratios(counts: np.ndarray) -> Scores:
    right, detected, annotated = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    return {"precision": np.where((detected == 0) & (annotated > 0), 0.0, _ratio(right, detected)),
            "recall": _ratio(right, annotated), "f1": _ratio(2 * right, detected + annotated)}


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)


def _told(values: np.ndarray) -> list[float | None]:
    return [plain(value) for value in values]
