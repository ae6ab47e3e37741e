"""Scores of a classifier in pure NumPy: check -> count -> score -> average.

Every score comes from ``utils.tallies``, as that of a resample does. Inside an undefined score is NaN; what
``evaluate`` and ``classification_scores`` return is ``None`` there, because JSON has no NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.classes import NO_ANSWER, DecisionRules
from models.errors import ConfigError
from utils.tallies import (N_CALIBRATION_BINS, Counts, Groups, Losses, Ranking, Scores, binned_confidence,
                           calibration_gaps, mean_where, ratio)

ROW_SUM_TOLERANCE = 1e-3  # a softmax in half precision is off by about this much
ANSWER_THRESHOLDS = tuple(percent / 100 for percent in range(100))  # where the curve of ``answered_scores`` is told

Interval = tuple[float, float] | None  # low and high; None where it cannot be told

# how a person calls the scores of ``evaluate``
SCORE_TITLES = {
    "accuracy": "Accuracy", "macro_f1": "F1, macro", "macro_precision": "Precision, macro",
    "macro_recall": "Recall, macro", "weighted_f1": "F1, weighted", "weighted_precision": "Precision, weighted",
    "weighted_recall": "Recall, weighted", "macro_roc_auc": "ROC AUC, macro",
    "macro_average_precision": "Average precision, macro", "log_loss": "Log loss (lower is better)",
    "brier_score": "Brier score (lower is better)", "ece": "Calibration error (lower is better)",
}


@dataclass(frozen=True, eq=False)
class ScoredSegments:
    """A classifier's probabilities beside the truth, checked once so that every score can trust them.

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment; each row sums to 1. Kept as float64.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    class_names : sequence of str, length n_classes
        Name of each column.

    Raises
    ------
    ConfigError
        If the shapes differ, there are no rows, a value is not finite, a row is no distribution or a label names
        no class.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "probabilities", np.asarray(self.probabilities, dtype=np.float64))
        object.__setattr__(self, "labels", np.asarray(self.labels))
        _check_shapes(self.probabilities, self.labels, len(self.class_names))
        _check_rows(self.probabilities)


@dataclass(frozen=True, kw_only=True)
class ModelScores:
    """What is known of one model's quality.

    A picture needs no more than this; ``utils.evaluation.results.ModelEvaluation`` tells the rest.

    Parameters
    ----------
    name : str
        What a reader calls the model.
    metrics : mapping
        Of ``evaluate``.
    intervals : mapping of str to (low, high) or None
        Of each scalar in ``metrics``.
    class_intervals : sequence of mappings
        Per class ``class_name``, and score name to (low, high) or None.
    answered : mapping
        Of ``answered_scores``.
    """

    name: str
    metrics: Mapping
    intervals: Mapping[str, Interval]
    class_intervals: Sequence[Mapping]
    answered: Mapping


def _check_shapes(probabilities: np.ndarray, labels: np.ndarray, n_classes: int) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] != n_classes:
        raise ConfigError(f"probabilities must have shape (n, {n_classes}), one column per class name, got"
                          f" {probabilities.shape}: do the model and the manifest have the same classes?")
    if labels.shape != probabilities.shape[:1]:
        raise ConfigError(f"labels must have shape ({len(probabilities)},), one per row of probabilities,"
                          f" got {labels.shape}")
    if not len(labels):
        raise ConfigError("probabilities must have at least one row, got none: is the manifest empty?")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(f"labels must be integers, got {labels.dtype}: class names or one-hot rows given instead?")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ConfigError(f"labels must be in 0..{n_classes - 1}, got {labels.min()}..{labels.max()}:"
                          f" does the manifest use another class order?")


def _check_rows(probabilities: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        raise ConfigError(f"probabilities must be finite, got {probabilities[broken[0]]} in row {broken[0]}"
                          f" ({len(broken)} such rows): did the network diverge?")
    sums = probabilities.sum(axis=1)
    wrong = np.flatnonzero((np.abs(sums - 1) > ROW_SUM_TOLERANCE) | (probabilities.min(axis=1) < 0))
    if len(wrong):
        raise ConfigError(f"each row of probabilities must be 0..1 and sum to 1, got {probabilities[wrong[0]]} with sum"
                          f" {sums[wrong[0]]:.4g} in row {wrong[0]} ({len(wrong)} such rows): logits given instead of"
                          f" probabilities?")


# One threshold: the predicted class


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, *, n_classes: int) -> np.ndarray:
    """Count how often each true class was taken for each class.

    Parameters
    ----------
    labels, predictions : np.ndarray, int, shape (n,), range 0..n_classes-1
        True and predicted class of each row.
    n_classes : int
        Number of classes, those absent from ``labels`` included.

    Returns
    -------
    np.ndarray, int, shape (n_classes, n_classes)
        Rows are the truth, columns the prediction.
    """
    cells = np.asarray(labels) * n_classes + np.asarray(predictions)
    return np.bincount(cells, minlength=n_classes ** 2).reshape(n_classes, n_classes)


def classification_scores(confusion: np.ndarray) -> dict[str, float | None]:
    """Compute accuracy and the averaged precision, recall and F1.

    A class's ratio with nothing below the line is 0. ``macro_*`` averages over the classes that occur in the truth,
    so a class absent from the test set neither helps nor harms; ``balanced_accuracy`` is the same as ``macro_recall``
    and the three ``micro_*`` are the same as ``accuracy``, each row having one label.

    Parameters
    ----------
    confusion : np.ndarray, int, shape (n_classes, n_classes)
        As ``confusion_matrix`` returns it.

    Returns
    -------
    dict of str to float or None
        ``accuracy``, ``balanced_accuracy``, and ``{macro,micro,weighted}_{precision,recall,f1}``, 0..1; None if the
        matrix counts nothing.
    """
    return {name: _plain(value[0]) for name, value in Counts.of_confusion(confusion).averages().items()}


# Probabilities: are they right as numbers?


def reliability_curve(probabilities: np.ndarray, labels: np.ndarray, *, n_bins: int = N_CALIBRATION_BINS
                      ) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Compare confidence with accuracy, bin by bin (Guo et al. 2017, figure 1).

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        The largest value of a row is its confidence.
    labels : np.ndarray, int, shape (n,)
        True class of each row.
    n_bins : int
        Number of equal-width bins, each open below and closed above.

    Returns
    -------
    confidence, accuracy : np.ndarray, float64, shape (n_bins,), range 0..1
        Means over the rows of a bin, NaN in an empty one.
    count : np.ndarray, int, shape (n_bins,)
        Rows in each bin.
    error : float, range 0..1
        Expected calibration error (equation 3): the mean gap between the two over the rows; 0 is calibrated.
    """
    probabilities, everything = np.asarray(probabilities, dtype=np.float64), Groups.one(len(labels))
    confidence, correct, bins = binned_confidence(probabilities, labels, n_bins)
    count = np.bincount(bins, minlength=n_bins)
    gaps = calibration_gaps(probabilities, labels, n_bins=n_bins, groups=everything)
    return (ratio(np.bincount(bins, weights=confidence, minlength=n_bins), count, empty=np.nan),
            ratio(np.bincount(bins, weights=correct, minlength=n_bins), count, empty=np.nan), count,
            float(np.abs(gaps).sum() / len(labels)))


# Selective classification: what is answered, and how much of it is right?


def answered_scores(segments: ScoredSegments, rules: DecisionRules) -> dict:
    """Tell which share of the segments is answered at which precision (Geifman and El-Yaniv 2017, section 2).

    An answer is any class but the reject class.

    Parameters
    ----------
    segments : ScoredSegments
        Probabilities and truth.
    rules : DecisionRules
        When the model answers.

    Returns
    -------
    dict
        Plain JSON types, None where undefined. ``reject_class``; the scalars ``share`` (of the segments that are
        answered), ``precision`` (share of the answers that are right) and ``unknown_rejected`` (share of the segments
        of the reject class that are not answered); ``n_answered``, ``n_unknown``; ``per_class``: ``class_name``,
        ``threshold``, ``n_answered``, ``precision``, and ``recall`` (share of the class's segments that are answered
        with it); and ``curve``: lists ``threshold``, ``share`` and ``precision`` for one threshold of all classes.
    """
    names, is_reject = segments.class_names, reject_classes(segments, rules)
    counts = answer_counts(segments, rules, groups=Groups.one(len(segments.labels)))
    overall, by_class = counts.selective(is_reject=is_reject)
    curve = _answer_curve(segments, rules.reject_class)
    return {"reject_class": rules.reject_class, **{name: _plain(value[0]) for name, value in overall.items()},
            "n_answered": int(counts.predicted.sum()), "n_unknown": int(counts.support[is_reject].sum()),
            "per_class": [{"class_name": name, "threshold": rules.thresholds[name],
                           "n_answered": int(counts.predicted[k, 0]),
                           **{score: _plain(values[k, 0]) for score, values in by_class.items()}}
                          for k, name in enumerate(names) if not is_reject[k]],
            "curve": {"threshold": list(ANSWER_THRESHOLDS),
                      **{name: [_plain(value) for value in curve[name]] for name in ("share", "precision")}}}


def answer_counts(segments: ScoredSegments, rules: DecisionRules, *, groups: Groups) -> Counts:
    """Count what a model answers under its rules."""
    answers = rules.answers(segments.probabilities, segments.class_names)
    return Counts.of(segments.labels, answers, n_classes=len(segments.class_names), groups=groups)


def reject_classes(segments: ScoredSegments, rules: DecisionRules) -> np.ndarray:
    """Return which classes are the reject class, bool ``(n_classes,)``: one, or none where the model has none."""
    return np.array([name == rules.reject_class for name in segments.class_names])


def _answer_curve(segments: ScoredSegments, reject_class: str) -> Scores:
    """Return share and precision of the answers, one threshold for all classes."""
    no_thresholds = DecisionRules(dict.fromkeys(segments.class_names, 0.0), reject_class)
    answers = no_thresholds.answers(segments.probabilities, segments.class_names)
    told = answers != NO_ANSWER
    confidence = segments.probabilities.max(axis=1)
    answered, right = (len(ordered) - np.searchsorted(ordered, ANSWER_THRESHOLDS) for ordered in
                       (np.sort(confidence[told]), np.sort(confidence[answers == segments.labels])))
    return {"share": answered / len(answers), "precision": ratio(right, answered, empty=np.nan)}


# Everything at once


def evaluate(probabilities: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str]) -> dict:
    """Compute every score this module knows; ``evaluate_segments`` says which. Arguments as in ``ScoredSegments``."""
    return evaluate_segments(ScoredSegments(probabilities, labels, class_names))


def evaluate_segments(segments: ScoredSegments) -> dict:
    """Compute every score this module knows.

    Parameters
    ----------
    segments : ScoredSegments
        Probabilities and truth.

    Returns
    -------
    dict
        Plain JSON types, None where undefined. The scalars of ``classification_scores``, ``macro_roc_auc`` and
        ``macro_average_precision`` (means over the classes where they are defined), ``log_loss`` (nats; a probability
        of 0 counts as the float64 epsilon), ``brier_score`` (squared error summed over classes: Brier 1950,
        equation 2), ``ece`` (the error of ``reliability_curve``); ``n_segments``; ``absent_classes`` (names of
        the classes without rows); ``confusion_matrix`` (list of rows); and ``per_class``: ``class_name``, ``support``
        (rows), ``precision``, ``recall``, ``f1``, ``roc_auc`` and ``average_precision``, all None for a class without
        rows; the precision of a class that was never predicted is 0.
    """
    counts = guess_counts(segments, groups=Groups.one(len(segments.labels)))
    losses = Losses.of(segments.probabilities, segments.labels, groups=Groups.one(len(segments.labels)))
    rankings = (Ranking.of(scores, segments.labels == k) for k, scores in enumerate(segments.probabilities.T))
    areas = np.array([(ranking.roc_auc(), ranking.average_precision()) for ranking in rankings])
    overall, by_class = all_scores(counts, losses, areas)
    names, confusion = segments.class_names, confusion_matrix(
        segments.labels, segments.probabilities.argmax(axis=1), n_classes=len(segments.class_names))
    return {**{name: _plain(value[0]) for name, value in overall.items()}, "n_segments": len(segments.labels),
            "absent_classes": [name for name, support in zip(names, counts.support[:, 0]) if not support],
            "per_class": [{"class_name": class_name, "support": int(counts.support[k, 0]),
                           **{name: _plain(values[k, 0]) for name, values in by_class.items()}}
                          for k, class_name in enumerate(names)],
            "confusion_matrix": confusion.tolist()}


def guess_counts(segments: ScoredSegments, *, groups: Groups) -> Counts:
    """Count the top class of each row, whatever the thresholds."""
    return Counts.of(segments.labels, segments.probabilities.argmax(axis=1), n_classes=len(segments.class_names),
                     groups=groups)


def all_scores(counts: Counts, losses: Losses, areas: np.ndarray) -> tuple[Scores, Scores]:
    """Return every score of ``evaluate_segments`` from what was counted, once per group.

    Parameters
    ----------
    counts, losses : Counts, Losses
        Of the same groups.
    areas : np.ndarray, float64, shape (n_classes, 2, n_groups)
        ROC AUC and average precision of each class.

    Returns
    -------
    overall : dict of str to np.ndarray, float64, shape (n_groups,)
        The scalars, NaN where undefined.
    by_class : dict of str to np.ndarray, float64, shape (n_classes, n_groups)
        The scores of ``per_class``, NaN where undefined.
    """
    by_class = {**counts.of_occurring(), "roc_auc": areas[:, 0], "average_precision": areas[:, 1]}
    overall = counts.averages()
    for name in ("roc_auc", "average_precision"):
        overall[f"macro_{name}"] = mean_where(by_class[name], np.isfinite(by_class[name]))
    return {**overall, **losses.scores()}, by_class


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
