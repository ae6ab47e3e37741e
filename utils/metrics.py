"""Scores of a classifier in pure NumPy: validate -> metric -> evaluate.

Every score is computed by one weighted core. A weight says how often a row counts: 1 for the score itself, the number
of times its recording was drawn for a bootstrap resample, so that score and interval cannot disagree on a definition.
Inside this module an undefined score is NaN; what leaves it as a result is ``None``, because JSON has no NaN.
"""

from collections.abc import Sequence

import numpy as np

from models.errors import ConfigError

N_CALIBRATION_BINS = 15  # Guo et al. 2017, section 5
ROW_SUM_TOLERANCE = 1e-3  # a softmax in half precision is off by about this much

Scores = dict[str, np.ndarray]

# how a person calls the scores of ``evaluate``
SCORE_TITLES = {
    "accuracy": "Accuracy", "macro_f1": "F1, macro", "macro_precision": "Precision, macro",
    "macro_recall": "Recall, macro", "weighted_f1": "F1, weighted", "weighted_precision": "Precision, weighted",
    "weighted_recall": "Recall, weighted",
    "macro_roc_auc": "ROC AUC, macro", "macro_average_precision": "Average precision, macro",
    "log_loss": "Log loss (lower is better)", "brier_score": "Brier score (lower is better)",
    "ece": "Calibration error (lower is better)",
}


def validate(probabilities: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str]) -> None:
    """Refuse input that no score can be trusted on, and guess the cause.

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment; each row sums to 1.
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
    probabilities, labels, n_classes = np.asarray(probabilities), np.asarray(labels), len(class_names)
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
    _validate_rows(probabilities)


def _validate_rows(probabilities: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if len(broken):
        raise ConfigError(f"probabilities must be finite, got {probabilities[broken[0]]} in row {broken[0]}"
                          f" ({len(broken)} such rows): did the network diverge?")
    sums = probabilities.sum(axis=1, dtype=np.float64)
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
    scores = _averaged_scores(confusion.diagonal()[:, None], confusion.sum(axis=1)[:, None],
                              confusion.sum(axis=0)[:, None])
    return {name: _plain(value[0]) for name, value in scores.items()}


def _averaged_scores(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> Scores:
    per_class = _precision_recall_f1(hits, support, predicted)
    accuracy = _ratio(hits.sum(axis=0), support.sum(axis=0), empty=np.nan)
    scores = {"accuracy": accuracy, "balanced_accuracy": _mean_where(per_class["recall"], support > 0)}
    for name, values in per_class.items():
        scores[f"macro_{name}"] = _mean_where(values, support > 0)
        scores[f"micro_{name}"] = accuracy
        scores[f"weighted_{name}"] = _ratio((values * support).sum(axis=0), support.sum(axis=0), empty=np.nan)
    return scores


def _precision_recall_f1(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> Scores:
    return {"precision": _ratio(hits, predicted, empty=0.0), "recall": _ratio(hits, support, empty=0.0),
            "f1": _ratio(2 * hits, support + predicted, empty=0.0)}


# Every threshold: ranking one class against the rest


def roc_curve(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trace the receiver operating characteristic of one class against the rest.

    Parameters
    ----------
    scores : np.ndarray, float, shape (n,)
        Larger means more likely positive; equal scores share one point.
    positives : np.ndarray, bool, shape (n,)
        Truth.

    Returns
    -------
    false_positive_rate, true_positive_rate : np.ndarray, float64, shape (n_distinct_scores + 1,), range 0..1
        From (0, 0) to (1, 1), both never falling; NaN where there are no negatives or no positives.
    """
    true_positives, false_positives = (np.append(0.0, counts[:, 0]) for counts in _ranked(scores, positives))
    return (_ratio(false_positives, false_positives[-1], empty=np.nan),
            _ratio(true_positives, true_positives[-1], empty=np.nan))


def precision_recall_curve(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trace precision against recall of one class against the rest.

    Parameters
    ----------
    scores : np.ndarray, float, shape (n,)
        Larger means more likely positive; equal scores share one point.
    positives : np.ndarray, bool, shape (n,)
        Truth.

    Returns
    -------
    recall, precision : np.ndarray, float64, shape (n_distinct_scores + 1,), range 0..1
        From (0, 1), recall never falling; recall is NaN where there are no positives.
    """
    true_positives, false_positives = (counts[:, 0] for counts in _ranked(scores, positives))
    recall = _ratio(np.append(0.0, true_positives), true_positives[-1], empty=np.nan)
    return recall, np.append(1.0, true_positives / (true_positives + false_positives))


def roc_auc(scores: np.ndarray, positives: np.ndarray) -> float | None:
    """Compute the area under ``roc_curve``; a tie counts one half.

    Parameters
    ----------
    scores : np.ndarray, float, shape (n,)
        Larger means more likely positive.
    positives : np.ndarray, bool, shape (n,)
        Truth.

    Returns
    -------
    float or None
        0..1, or None without both positives and negatives.
    """
    return _plain(_roc_auc(*_ranked(scores, positives))[0])


def average_precision(scores: np.ndarray, positives: np.ndarray) -> float | None:
    """Compute the sum of precision times the rise of recall over the distinct scores.

    Parameters
    ----------
    scores : np.ndarray, float, shape (n,)
        Larger means more likely positive.
    positives : np.ndarray, bool, shape (n,)
        Truth.

    Returns
    -------
    float or None
        0..1, or None without positives.
    """
    return _plain(_average_precision(*_ranked(scores, positives))[0])


def _ranked(scores: np.ndarray, positives: np.ndarray, weights: np.ndarray | None = None
            ) -> tuple[np.ndarray, np.ndarray]:
    """Count true and false positives at or above each distinct score, highest first: (n_distinct, n_resamples)."""
    scores, positives = np.asarray(scores), np.asarray(positives, dtype=bool)
    if weights is None:
        weights = np.ones((len(scores), 1))
    order = np.argsort(-scores, kind="stable")
    first_of_ties = np.flatnonzero(np.diff(scores[order], prepend=np.inf))
    ordered = weights[order]
    everything = np.add.reduceat(ordered, first_of_ties).cumsum(axis=0)
    true_positives = np.add.reduceat(ordered * positives[order, None], first_of_ties).cumsum(axis=0)
    return true_positives, everything - true_positives


def _roc_auc(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    rises = np.diff(false_positives, axis=0, prepend=0)
    means = true_positives - np.diff(true_positives, axis=0, prepend=0) / 2
    return _ratio((rises * means).sum(axis=0), true_positives[-1] * false_positives[-1], empty=np.nan)


def _average_precision(true_positives: np.ndarray, false_positives: np.ndarray) -> np.ndarray:
    precision = _ratio(true_positives, true_positives + false_positives, empty=0.0)
    rises = np.diff(true_positives, axis=0, prepend=0)
    return _ratio((rises * precision).sum(axis=0), true_positives[-1], empty=np.nan)


# Probabilities: are they right as numbers?


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean negative log-likelihood of the true class, in nats.

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        A probability of 0 counts as the float64 epsilon.
    labels : np.ndarray, int, shape (n,)
        True class of each row.

    Returns
    -------
    float
        0 is perfect; log(n_classes) is guessing.
    """
    return float(_row_log_loss(_as_float(probabilities), labels).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean over rows of the squared error summed over classes (Brier 1950, equation 2).

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One distribution per row.
    labels : np.ndarray, int, shape (n,)
        True class of each row.

    Returns
    -------
    float
        0 is perfect, 2 is certain and always wrong.
    """
    return float(_row_brier(_as_float(probabilities), labels).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, *,
                               n_bins: int = N_CALIBRATION_BINS) -> float:
    """Compute the mean gap between confidence and accuracy over equal-width bins (Guo et al. 2017, equation 3).

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        The largest value of a row is its confidence.
    labels : np.ndarray, int, shape (n,)
        True class of each row.
    n_bins : int
        Number of bins, each open below and closed above.

    Returns
    -------
    float
        0..1, 0 is calibrated.
    """
    probabilities = _as_float(probabilities)
    return float(_calibration_error(probabilities, labels, np.ones((len(labels), 1)), n_bins=n_bins)[0])


def reliability_curve(probabilities: np.ndarray, labels: np.ndarray, *, n_bins: int = N_CALIBRATION_BINS
                      ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    """
    confidence, correct, bins = _binned_confidence(_as_float(probabilities), labels, n_bins)
    count = np.bincount(bins, minlength=n_bins)
    return (_ratio(np.bincount(bins, weights=confidence, minlength=n_bins), count, empty=np.nan),
            _ratio(np.bincount(bins, weights=correct, minlength=n_bins), count, empty=np.nan), count)


def _row_log_loss(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).eps))


def _row_brier(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.square(probabilities - np.eye(probabilities.shape[1])[labels]).sum(axis=1)


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


# Everything at once


def evaluate(probabilities: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str]) -> dict:
    """Compute every score this module knows.

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment; each row sums to 1.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    class_names : sequence of str, length n_classes
        Name of each column.

    Returns
    -------
    dict
        Plain JSON types. The scalars of ``classification_scores``, ``macro_roc_auc``, ``macro_average_precision``
        (means over the classes where they are defined), ``log_loss``, ``brier_score``, ``ece``; then ``n_segments``,
        ``per_class`` (see ``per_class_table``) and ``confusion_matrix`` (list of rows). None where undefined.

    Raises
    ------
    ConfigError
        If ``validate`` refuses the input.
    """
    validate(probabilities, labels, class_names=class_names)
    probabilities, labels = _as_float(probabilities), np.asarray(labels)
    scores = weighted_scores(probabilities, labels, np.ones((len(labels), 1)))
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), n_classes=len(class_names))
    return {**{name: _plain(value[0]) for name, value in scores.items()}, "n_segments": len(labels),
            "per_class": per_class_table(probabilities, labels, class_names=class_names),
            "confusion_matrix": confusion.tolist()}


def per_class_table(probabilities: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str]) -> list[dict]:
    """Score each class against the rest.

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    class_names : sequence of str, length n_classes
        Name of each column.

    Returns
    -------
    list of dict
        Per class ``class_name``, ``support`` (rows), ``precision``, ``recall``, ``f1``, ``roc_auc`` and
        ``average_precision``. All scores of a class without rows are None, and ``roc_auc`` where it has every row;
        the precision of a class that was never predicted is 0.
    """
    labels = np.asarray(labels)
    scores = weighted_class_scores(_as_float(probabilities), labels, np.ones((len(labels), 1)))
    support = np.bincount(labels, minlength=len(class_names))
    return [{"class_name": name, "support": int(support[k]),
             **{score: _plain(values[k, 0]) for score, values in scores.items()}}
            for k, name in enumerate(class_names)]


def _hits_support_predicted(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray
                            ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n_classes, predictions = probabilities.shape[1], probabilities.argmax(axis=1)
    truth, guess = np.eye(n_classes)[labels].T, np.eye(n_classes)[predictions].T
    return (truth * guess) @ weights, truth @ weights, guess @ weights


def weighted_class_scores(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Scores:
    """Score each class against the rest, once per column of weights.

    Parameters
    ----------
    probabilities : np.ndarray, float64, shape (n, n_classes), range 0..1
        One row per segment, as ``validate`` accepts it.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    weights : np.ndarray, float64, shape (n, n_resamples)
        How often each row counts, in each resample.

    Returns
    -------
    dict of str to np.ndarray, float64, shape (n_classes, n_resamples)
        The scores of ``per_class_table``, NaN where undefined.
    """
    hits, support, predicted = _hits_support_predicted(probabilities, labels, weights)
    ratios = _precision_recall_f1(hits, support, predicted)
    counts = [_ranked(scores, labels == k, weights) for k, scores in enumerate(probabilities.T)]
    return {**{name: np.where(support > 0, values, np.nan) for name, values in ratios.items()},
            "roc_auc": np.stack([_roc_auc(*count) for count in counts]),
            "average_precision": np.stack([_average_precision(*count) for count in counts])}


def weighted_scores(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Scores:
    """Score the classifier, once per column of weights.

    Parameters
    ----------
    probabilities : np.ndarray, float64, shape (n, n_classes), range 0..1
        One row per segment, as ``validate`` accepts it.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    weights : np.ndarray, float64, shape (n, n_resamples)
        How often each row counts, in each resample.

    Returns
    -------
    dict of str to np.ndarray, float64, shape (n_resamples,)
        The scalars of ``evaluate``, NaN where undefined.
    """
    per_class = weighted_class_scores(probabilities, labels, weights)
    n_rows = weights.sum(axis=0)
    scores = _averaged_scores(*_hits_support_predicted(probabilities, labels, weights))
    for name in ("roc_auc", "average_precision"):
        scores[f"macro_{name}"] = _mean_where(per_class[name], np.isfinite(per_class[name]))
    scores["log_loss"] = _row_log_loss(probabilities, labels) @ weights / n_rows
    scores["brier_score"] = _row_brier(probabilities, labels) @ weights / n_rows
    scores["ece"] = _calibration_error(probabilities, labels, weights, n_bins=N_CALIBRATION_BINS)
    return scores


def _as_float(values: np.ndarray) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float) -> np.ndarray:
    out = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), empty)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) != 0)


def _mean_where(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0), empty=np.nan)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
