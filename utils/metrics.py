"""Scores of a classifier in pure NumPy: check -> score -> average.

Every score is computed by one weighted core. A weight says how often a row counts: 1 for the score itself, the number
of times its recording was drawn for a bootstrap resample, so that score and interval cannot disagree on a definition.
Inside the core an undefined score is NaN; what ``evaluate`` and ``classification_scores`` return is ``None`` there,
because JSON has no NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.classes import NO_ANSWER, DecisionRules
from models.errors import ConfigError

N_CALIBRATION_BINS = 15  # Guo et al. 2017, section 5
ROW_SUM_TOLERANCE = 1e-3  # a softmax in half precision is off by about this much
ANSWER_THRESHOLDS = tuple(percent / 100 for percent in range(100))  # where the curve of ``answered_scores`` is told

Scores = dict[str, np.ndarray]
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
    confusion = np.asarray(confusion, dtype=np.float64)
    counts = _ClassCounts(confusion.diagonal()[:, None], confusion.sum(axis=1)[:, None],
                          confusion.sum(axis=0)[:, None])
    return {name: _plain(value[0]) for name, value in counts.averages().items()}


@dataclass(frozen=True, eq=False)
class _ClassCounts:
    """How often each class was hit, occurred and was predicted: each ``(n_classes, n_resamples)``."""

    hits: np.ndarray
    support: np.ndarray
    predicted: np.ndarray

    @classmethod
    def of(cls, segments: ScoredSegments, weights: np.ndarray) -> "_ClassCounts":
        classes = np.eye(len(segments.class_names))
        truth, guess = classes[segments.labels].T, classes[segments.probabilities.argmax(axis=1)].T
        return cls((truth * guess) @ weights, truth @ weights, guess @ weights)

    def ratios(self) -> Scores:
        return {"precision": _ratio(self.hits, self.predicted, empty=0.0),
                "recall": _ratio(self.hits, self.support, empty=0.0),
                "f1": _ratio(2 * self.hits, self.support + self.predicted, empty=0.0)}

    def averages(self) -> Scores:
        ratios, occurs, n_rows = self.ratios(), self.support > 0, self.support.sum(axis=0)
        accuracy = _ratio(self.hits.sum(axis=0), n_rows, empty=np.nan)
        scores = {"accuracy": accuracy, "balanced_accuracy": _mean_where(ratios["recall"], occurs)}
        for name, values in ratios.items():
            scores[f"macro_{name}"] = _mean_where(values, occurs)
            scores[f"micro_{name}"] = accuracy
            scores[f"weighted_{name}"] = _ratio((values * self.support).sum(axis=0), n_rows, empty=np.nan)
        return scores


# Every threshold: ranking one class against the rest


@dataclass(frozen=True, eq=False)
class Ranking:
    """How well a score ranks one class above the rest, once per column of weights.

    Parameters
    ----------
    true_positives, false_positives : np.ndarray, float64, shape (n_distinct_scores, n_resamples)
        Counts of the rows at or above each distinct score, highest first; equal scores share one row.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, positives: np.ndarray, weights: np.ndarray | None = None) -> "Ranking":
        """Rank rows by their score.

        Parameters
        ----------
        scores : np.ndarray, float, shape (n,)
            Larger means more likely positive.
        positives : np.ndarray, bool, shape (n,)
            Truth.
        weights : np.ndarray, float64, shape (n, n_resamples), optional
            How often each row counts in each resample; once in one resample when None.
        """
        if weights is None:
            weights = np.ones((len(scores), 1))
        order = np.argsort(-scores, kind="stable")
        first_of_ties = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
        ordered = weights[order]
        everything = np.add.reduceat(ordered, first_of_ties).cumsum(axis=0)
        true_positives = np.add.reduceat(ordered * positives[order, None], first_of_ties).cumsum(axis=0)
        return cls(true_positives, everything - true_positives)

    def roc_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Trace the receiver operating characteristic.

        Returns
        -------
        false_positive_rate, true_positive_rate : np.ndarray, float64, shape (n_distinct_scores + 1, n_resamples)
            0..1, from (0, 0) to (1, 1), both never falling; NaN where there are no negatives or no positives.
        """
        return (_ratio(_from_zero(self.false_positives), self.false_positives[-1], empty=np.nan),
                _ratio(_from_zero(self.true_positives), self.true_positives[-1], empty=np.nan))

    def precision_recall_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Trace precision against recall.

        Returns
        -------
        recall, precision : np.ndarray, float64, shape (n_distinct_scores + 1, n_resamples)
            0..1, from (0, 1), recall never falling; recall is NaN where there are no positives.
        """
        recall = _ratio(_from_zero(self.true_positives), self.true_positives[-1], empty=np.nan)
        return recall, np.vstack([np.ones_like(recall[:1]), self._precision()])

    def roc_auc(self) -> np.ndarray:
        """Return the area under ``roc_curve``, float64 ``(n_resamples,)``; a tie counts one half, undefined is NaN."""
        rises = np.diff(self.false_positives, axis=0, prepend=0)
        means = self.true_positives - np.diff(self.true_positives, axis=0, prepend=0) / 2
        return _ratio((rises * means).sum(axis=0), self.true_positives[-1] * self.false_positives[-1], empty=np.nan)

    def average_precision(self) -> np.ndarray:
        """Return the sum of precision times the rise of recall, float64 ``(n_resamples,)``; NaN without positives."""
        rises = np.diff(self.true_positives, axis=0, prepend=0)
        return _ratio((rises * self._precision()).sum(axis=0), self.true_positives[-1], empty=np.nan)

    def _precision(self) -> np.ndarray:
        return _ratio(self.true_positives, self.true_positives + self.false_positives, empty=0.0)


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
    probabilities = np.asarray(probabilities, dtype=np.float64)
    confidence, correct, bins = _binned_confidence(probabilities, labels, n_bins)
    count = np.bincount(bins, minlength=n_bins)
    error = _calibration_error(probabilities, labels, np.ones((len(labels), 1)), n_bins=n_bins)
    return (_ratio(np.bincount(bins, weights=confidence, minlength=n_bins), count, empty=np.nan),
            _ratio(np.bincount(bins, weights=correct, minlength=n_bins), count, empty=np.nan), count, float(error[0]))


def _binned_confidence(probabilities: np.ndarray, labels: np.ndarray, n_bins: int
                       ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    return confidence, probabilities.argmax(axis=1) == labels, bins


def _calibration_error(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, n_bins: int
                       ) -> np.ndarray:
    confidence, correct, bins = _binned_confidence(probabilities, labels, n_bins)
    gaps = np.eye(n_bins)[bins].T @ ((correct - confidence)[:, None] * weights)
    return np.abs(gaps).sum(axis=0) / weights.sum(axis=0)


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
    once, names = np.ones((len(segments.labels), 1)), segments.class_names
    overall, by_class = weighted_answers(segments, once, rules=rules)
    n_answers = np.bincount(rules.answers(segments.probabilities, names) - NO_ANSWER, minlength=len(names) + 1)[1:]
    one_for_all = (DecisionRules(dict.fromkeys(names, threshold), rules.reject_class)
                   for threshold in ANSWER_THRESHOLDS)
    curve = [weighted_answers(segments, once, rules=uniform)[0] for uniform in one_for_all]
    return {"reject_class": rules.reject_class, **{name: _plain(value[0]) for name, value in overall.items()},
            "n_answered": int(n_answers.sum()), "n_unknown": int(_is_unknown(segments, rules).sum()),
            "per_class": [{"class_name": name, "threshold": rules.thresholds[name], "n_answered": int(n_answers[k]),
                           **{score: _plain(values[k, 0]) for score, values in by_class.items()}}
                          for k, name in enumerate(names) if name != rules.reject_class],
            "curve": {"threshold": list(ANSWER_THRESHOLDS),
                      **{name: [_plain(scores[name][0]) for scores in curve] for name in ("share", "precision")}}}


def weighted_answers(segments: ScoredSegments, weights: np.ndarray, *, rules: DecisionRules) -> tuple[Scores, Scores]:
    """Score what a model answers, once per column of weights; arguments and shapes as in ``weighted_scores``.

    Returns
    -------
    overall, by_class : dict of str to np.ndarray, float64
        The scores of ``answered_scores``, NaN where undefined; the classes are all, the reject class too.
    """
    answers, n_rows = rules.answers(segments.probabilities, segments.class_names), weights.sum(axis=0)
    answered, right, unknown = answers != NO_ANSWER, answers == segments.labels, _is_unknown(segments, rules)
    of_class = np.arange(len(segments.class_names))[:, None]
    hits = ((answers == of_class) & right) @ weights
    return ({"share": answered @ weights / n_rows,
             "precision": _ratio(right @ weights, answered @ weights, empty=np.nan),
             "unknown_rejected": _ratio((unknown & ~answered) @ weights, unknown @ weights, empty=np.nan)},
            {"precision": _ratio(hits, (answers == of_class) @ weights, empty=np.nan),
             "recall": _ratio(hits, (segments.labels == of_class) @ weights, empty=np.nan)})


def _is_unknown(segments: ScoredSegments, rules: DecisionRules) -> np.ndarray:
    return np.array([name == rules.reject_class for name in segments.class_names])[segments.labels]


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
        equation 2), ``ece`` (the error of ``reliability_curve``); ``n_segments``; ``confusion_matrix`` (list of rows);
        and ``per_class``: ``class_name``, ``support`` (rows), ``precision``, ``recall``, ``f1``, ``roc_auc`` and
        ``average_precision``, all None for a class without rows; the precision of a class that was never predicted
        is 0.
    """
    overall, by_class = weighted_scores(segments, np.ones((len(segments.labels), 1)))
    n_classes = len(segments.class_names)
    confusion = confusion_matrix(segments.labels, segments.probabilities.argmax(axis=1), n_classes=n_classes)
    return {**{name: _plain(value[0]) for name, value in overall.items()}, "n_segments": len(segments.labels),
            "per_class": [{"class_name": class_name, "support": int(support),
                           **{name: _plain(values[k, 0]) for name, values in by_class.items()}}
                          for k, (class_name, support) in enumerate(zip(segments.class_names, confusion.sum(axis=1)))],
            "confusion_matrix": confusion.tolist()}


def weighted_scores(segments: ScoredSegments, weights: np.ndarray) -> tuple[Scores, Scores]:
    """Score a classifier, once per column of weights.

    Parameters
    ----------
    segments : ScoredSegments
        Probabilities and truth.
    weights : np.ndarray, float64, shape (n, n_resamples)
        How often each row counts, in each resample.

    Returns
    -------
    overall : dict of str to np.ndarray, float64, shape (n_resamples,)
        The scalars of ``evaluate_segments``, NaN where undefined.
    by_class : dict of str to np.ndarray, float64, shape (n_classes, n_resamples)
        The scores of its ``per_class``, NaN where undefined.
    """
    probabilities, labels = segments.probabilities, segments.labels
    counts, n_rows = _ClassCounts.of(segments, weights), weights.sum(axis=0)
    rankings = (Ranking.of(scores, labels == k, weights) for k, scores in enumerate(probabilities.T))
    areas = np.array([(ranking.roc_auc(), ranking.average_precision()) for ranking in rankings])
    by_class = {**{name: np.where(counts.support > 0, values, np.nan) for name, values in counts.ratios().items()},
                "roc_auc": areas[:, 0], "average_precision": areas[:, 1]}
    overall = counts.averages()
    for name in ("roc_auc", "average_precision"):
        overall[f"macro_{name}"] = _mean_where(by_class[name], np.isfinite(by_class[name]))
    of_truth = probabilities[np.arange(len(labels)), labels]
    overall["log_loss"] = -np.log(np.maximum(of_truth, np.finfo(np.float64).eps)) @ weights / n_rows
    squares = np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1)
    overall["brier_score"] = squares @ weights / n_rows
    overall["ece"] = _calibration_error(probabilities, labels, weights, n_bins=N_CALIBRATION_BINS)
    return overall, by_class


def _from_zero(counts: np.ndarray) -> np.ndarray:
    return np.vstack([np.zeros_like(counts[:1]), counts])


def _ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float) -> np.ndarray:
    out = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), empty)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) != 0)


def _mean_where(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0), empty=np.nan)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
