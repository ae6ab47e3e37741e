"""How sure a score is.

The bootstrap (``resampling``) tells how much a score varies from one sample of recordings to another. The variance is
put into the interval that suits the kind of score, because the percentiles of the resamples cover the truth too
seldom where recordings are few or a score is near 0 or 1:

- shares, F1 and areas, in 0..1: the score interval of Wilson (1927) with the effective number of trials, the one that
  gives the variance found (Korn and Graubard 1998, section 2 have it with another interval);
- log loss and Brier score, above 0: symmetric on a logarithmic scale;
- calibration error: the same above; below less the bias, since noise alone makes it positive;
- the difference of two models: symmetric.

The quantile is Student's, its degrees of freedom the recordings of a class less 1, for averages of classes by
Satterthwaite (1946). ``tests/benchmarks/evaluating.py`` simulates how often the intervals cover the truth.
"""

from collections.abc import Mapping

import numpy as np
from scipy import stats

from models.classes import DecisionRules
from utils.evaluation.resampling import Bootstrap, resampled_answers, resampled_scores
from utils.metrics import Interval, ScoredSegments, answered_scores, evaluate_segments
from utils.tallies import Scores

_LOSSES = ("log_loss", "brier_score")
# under perfect calibration resampling doubles the variance of each gap, so the error found is this part of the bias
_SEEN_BIAS = np.sqrt(2) - 1
_NO_SPREAD = 1e-12  # variances below are rounding


def score_intervals(segments: ScoredSegments, bootstrap: Bootstrap) -> tuple[dict[str, Interval], list[dict]]:
    """Give each score of ``metrics.evaluate_segments`` an interval.

    Parameters
    ----------
    segments : ScoredSegments
        A model's probabilities, and the truth.
    bootstrap : Bootstrap
        The resamples.

    Returns
    -------
    overall : dict of str to (low, high) or None
        Of each scalar.
    by_class : list of dict
        Per class ``class_name``, score name to (low, high) or None, and ``reason``: in words, why a class has no
        interval; None where it has.

    Raises
    ------
    ConfigError
        If the bootstrap is of other segments.
    """
    return _intervals(segments, bootstrap, evaluate_segments(segments), resampled_scores(segments, bootstrap))


def answered_intervals(segments: ScoredSegments, rules: DecisionRules, bootstrap: Bootstrap
                       ) -> tuple[dict[str, Interval], list[dict]]:
    """Give the scores of ``metrics.answered_scores`` intervals; of the classes all but the reject class."""
    overall, by_class = _intervals(segments, bootstrap, answered_scores(segments, rules),
                                   resampled_answers(segments, rules, bootstrap))
    return overall, [row for row in by_class if row["class_name"] != rules.reject_class]


def difference_interval(difference: float | None, resampled: np.ndarray, *, confidence: float,
                        degrees_of_freedom: float) -> Interval:
    """Return the interval of a difference, float64 ``(n_bootstrap,)`` on each resample; None where it is undefined."""
    if difference is None or not np.isfinite(resampled).all() or degrees_of_freedom <= 0:
        return None
    half = _quantile(confidence, degrees_of_freedom) * float(resampled.std())
    return difference - half, difference + half


def degrees_of_freedom(name: str, by_class: Scores, *, support: np.ndarray, n_recordings: np.ndarray) -> float:
    """Return those of a score over all classes (Satterthwaite 1946, equation 17).

    Parameters
    ----------
    name : str
        Of the score.
    by_class : dict of str to np.ndarray, float64, shape (n_classes, n_bootstrap)
        The resampled scores of each class.
    support, n_recordings : np.ndarray, float64 and int, shape (n_classes,)
        Segments and recordings of each class.

    Returns
    -------
    float
        At least 1, and 1 where nothing varies. A macro average varies with the scores of the classes; every other
        score is taken to vary as the mean of their recalls by support does.
    """
    macro = name.removeprefix("macro_")
    values, share = (by_class[macro], 1.0) if macro in by_class else (by_class["recall"], support)
    occurs = n_recordings > 0
    variances = (np.square(share) * values.var(axis=1))[occurs]
    if not variances.sum() > 0:
        return 1.0
    return float(variances.sum() ** 2 / (variances ** 2 / np.maximum(n_recordings[occurs] - 1, 1)).sum())


def recordings_of_classes(segments: ScoredSegments, bootstrap: Bootstrap) -> tuple[np.ndarray, np.ndarray]:
    """Return segments, float64, and recordings, int, of each class, each ``(n_classes,)``."""
    table = bootstrap.groups.table(segments.labels, len(segments.class_names))
    return table.sum(axis=1), (table > 0).sum(axis=1)


def _intervals(segments: ScoredSegments, bootstrap: Bootstrap, found: Mapping, resampled: tuple[Scores, Scores]
               ) -> tuple[dict[str, Interval], list[dict]]:
    overall, by_class = resampled
    support, n_recordings = recordings_of_classes(segments, bootstrap)
    names, confidence = list(segments.class_names), bootstrap.confidence
    intervals: dict[str, Interval] = dict.fromkeys(overall)
    if bootstrap.n_recordings > 1:
        for name, values in overall.items():
            freedom = degrees_of_freedom(name, by_class, support=support, n_recordings=n_recordings)
            intervals[name] = _interval(name, found[name], values, _quantile(confidence, freedom))
    scores_of_class = {row["class_name"]: row for row in found["per_class"]}
    rows = []
    for k, class_name in enumerate(names):
        reason, row = _why_none(n_recordings[k]), {"class_name": class_name, **dict.fromkeys(by_class)}
        if reason is None and class_name in scores_of_class:
            quantile = _quantile(confidence, n_recordings[k] - 1)
            row |= {name: _interval(name, scores_of_class[class_name][name], values[k], quantile)
                    for name, values in by_class.items()}
        rows.append({**row, "reason": reason})
    return intervals, rows


def _why_none(n_recordings: int) -> str | None:
    if n_recordings == 0:
        return "the class does not occur in the test set"
    return "one recording cannot tell how recordings vary" if n_recordings == 1 else None


def _quantile(confidence: float, freedom: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, freedom))


def _interval(name: str, value: float | None, resampled: np.ndarray, quantile: float) -> Interval:
    """Return the interval of a score by its kind; None where the score is undefined or nothing varies."""
    if value is None or not np.isfinite(resampled).all() or resampled.var() < _NO_SPREAD ** 2:
        return None
    if name in _LOSSES or name == "ece":
        return _loss_interval(value, resampled, quantile, is_biased=name == "ece")
    return _wilson_interval(value, resampled, quantile)


def _wilson_interval(share: float, resampled: np.ndarray, quantile: float) -> Interval:
    mean = float(resampled.mean())
    n_trials = mean * (1 - mean) / float(resampled.var())
    squared = quantile ** 2 / n_trials
    half = np.sqrt(squared * share * (1 - share) + squared ** 2 / 4)
    low, high = ((share + squared / 2 + sign * half) / (1 + squared) for sign in (-1, 1))
    return float(np.clip(low, 0, share)), float(np.clip(high, share, 1))


def _loss_interval(loss: float, resampled: np.ndarray, quantile: float, *, is_biased: bool) -> Interval:
    if not loss:
        return None
    half = quantile * float(resampled.std())
    low = loss * np.exp(-half / loss)
    if is_biased:
        low = max(0.0, loss - max(0.0, float(resampled.mean()) - loss) / _SEEN_BIAS - half)
    return float(low), float(loss * np.exp(half / loss))
