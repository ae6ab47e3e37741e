"""How sure a score is.

The bootstrap (``resampling``) tells how much a score varies from one sample of recordings to another. The variance is
put into the interval that suits the kind of score, because the percentiles of the resamples cover the truth too
seldom where recordings are few or a score is near 0 or 1:

- shares, F1 and areas, in 0..1: the score interval of Wilson (1927) with the effective number of trials, the one that
  gives the variance found (Korn and Graubard 1998, section 2 have it with another interval);
- losses and rates, above 0: the score interval of a count (Brown, Cai and DasGupta 2003, section 2) in the same way;
- calibration error: the same above; below less the bias, since noise alone makes it positive, and 0 where a calibrated
  model of the same probabilities would show as much;
- the difference of two models: symmetric.

The quantile is Student's, its degrees of freedom the recordings of a class less 1, for averages of classes by
Satterthwaite (1946). ``tests/benchmarks/evaluating.py`` simulates how often the intervals cover the truth.
"""

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

from models.classes import DecisionRules
from utils.evaluation.resampling import RESAMPLED_CELLS, Bootstrap, resampled_answers, resampled_scores
from utils.metrics import Interval, ScoredSegments, answered_scores, evaluate_segments
from utils.tallies import N_CALIBRATION_BINS, Scores, calibration_gaps

_LARGEST = {"log_loss": math.inf, "brier_score": 2.0, "ece": 1.0, "false_per_hour": math.inf}  # above 0; else 0..1
# under perfect calibration resampling doubles the variance of each gap, so the error found is this part of the bias
_SEEN_BIAS = math.sqrt(2) - 1
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
    scores = evaluate_segments(segments)
    overall, by_class = _intervals(segments, bootstrap, scores, resampled_scores(segments, bootstrap))
    if overall["ece"] is not None and scores["ece"] <= largest_calibrated_error(segments, bootstrap):
        overall["ece"] = 0.0, overall["ece"][1]
    return overall, by_class


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
    half = student_quantile(confidence, degrees_of_freedom) * float(resampled.std())
    return difference - half, difference + half


def score_interval(name: str, value: float | None, resampled: np.ndarray, *, quantile: float) -> Interval:
    """Return the interval of a score by its kind.

    Parameters
    ----------
    name : str
        Of the score.
    value : float or None
        On the test set.
    resampled : np.ndarray, float64, shape (n_bootstrap,)
        On each resample.
    quantile : float
        Of Student's distribution.

    Returns
    -------
    (low, high) or None
        None where the score is undefined, of the test set or of a resample, or nothing varies.
    """
    if value is None or not np.isfinite(resampled).all() or resampled.var() < _NO_SPREAD ** 2:
        return None
    mean, variance = float(resampled.mean()), float(resampled.var())
    if name not in _LARGEST:
        return wilson_interval(value, mean * (1 - mean) / variance, quantile=quantile)
    low, high = count_interval(value, mean / variance, quantile=quantile)
    if name == "ece":
        low = max(0.0, value - max(0.0, mean - value) / _SEEN_BIAS - quantile * math.sqrt(variance))
    return low, min(high, _LARGEST[name])


def count_interval(loss: float, n_units: float, *, quantile: float) -> tuple[float, float]:
    """Return the score interval of a mean above 0 whose variance is in proportion to it, as that of a count is.

    Parameters
    ----------
    loss : float, at least 0
        The mean.
    n_units : float
        Above 0: the mean over its variance.
    quantile : float
        As ``wilson_interval`` takes it.

    Returns
    -------
    low, high : float, at least 0
        The interval (Brown, Cai and DasGupta 2003, "Interval estimation in exponential families", section 2).
    """
    squared = quantile ** 2 / n_units
    half = math.sqrt(squared * loss + squared ** 2 / 4)
    return max(0.0, loss + squared / 2 - half), loss + squared / 2 + half


def largest_calibrated_error(segments: ScoredSegments, bootstrap: Bootstrap) -> float:
    """Return the calibration error that noise alone may give: a calibrated model exceeds it as seldom as a low end may.

    Where a model is calibrated, right less confident is noise around 0 in each recording, and might as well have had
    the other sign. So signs are drawn for whole recordings (Liu 1988, "Bootstrap procedures under some non-i.i.d.
    models": the wild bootstrap).
    """
    gaps = calibration_gaps(segments.probabilities, segments.labels, n_bins=N_CALIBRATION_BINS, groups=bootstrap.groups)
    rng, n_recordings, errors = np.random.default_rng(bootstrap.seed), bootstrap.n_recordings, []
    per_part = max(1, RESAMPLED_CELLS // n_recordings)
    for start in range(0, bootstrap.n_bootstrap, per_part):
        size = (n_recordings, min(per_part, bootstrap.n_bootstrap - start))
        errors.append(np.abs(gaps @ rng.choice([-1.0, 1.0], size=size)).sum(axis=0) / bootstrap.n_segments)
    return float(np.quantile(np.concatenate(errors), (1 + bootstrap.confidence) / 2))


def wilson_interval(share: float, n_trials: float, *, quantile: float) -> tuple[float, float]:
    """Return the score interval of a share (Wilson 1927; Brown, Cai and DasGupta 2001, equation 4).

    The share need not be a whole number of successes: trials whose outcomes lie between 0 and 1 vary no more than those
    that are one or the other, so the interval is then too wide rather than too narrow.

    Parameters
    ----------
    share : float, range 0..1
        Mean outcome.
    n_trials : float
        Above 0.
    quantile : float
        Of the standard normal distribution, or of Student's: 1.96 for 95 %.

    Returns
    -------
    low, high : float, range 0..1
        The interval; it holds the share.
    """
    squared = quantile ** 2 / n_trials
    half = math.sqrt(squared * share * (1 - share) + squared ** 2 / 4)
    low, high = ((share + squared / 2 + sign * half) / (1 + squared) for sign in (-1, 1))
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


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
    # the precision of all answers is no average of those of classes, which may have two answers
    is_macro = name.startswith("macro_")
    values, share = (by_class[name.removeprefix("macro_")], 1.0) if is_macro else (by_class["recall"], support)
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
            intervals[name] = score_interval(name, found[name], values, quantile=student_quantile(confidence, freedom))
    scores_of_class = {row["class_name"]: row for row in found["per_class"]}
    rows = []
    for k, class_name in enumerate(names):
        reason, row = _why_none(n_recordings[k]), {"class_name": class_name, **dict.fromkeys(by_class)}
        if reason is None and class_name in scores_of_class:
            quantile = student_quantile(confidence, n_recordings[k] - 1)
            row |= {name: score_interval(name, scores_of_class[class_name][name], values[k], quantile=quantile)
                    for name, values in by_class.items()}
        rows.append({**row, "reason": reason})
    return intervals, rows


def _why_none(n_recordings: int) -> str | None:
    if n_recordings == 0:
        return "the class does not occur in the test set"
    return "one recording cannot tell how recordings vary" if n_recordings == 1 else None


def student_quantile(confidence: float, freedom: float) -> float:
    """Return the two-sided quantile of Student's distribution for degrees of freedom above 0."""
    return float(stats.t.ppf((1 + confidence) / 2, freedom))
