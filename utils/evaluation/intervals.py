"""How sure a score is: bootstrap intervals over recordings, and paired comparison of two models."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import stats

from models.errors import ConfigError
from utils import metrics
from utils.metrics import Scores

VERDICT_METRIC = "macro_f1"
RESAMPLED_CELLS = 4_000_000  # rows x resamples held at once: 32 MB an array

_Scorer = Callable[[np.ndarray, np.ndarray, np.ndarray], Scores]


def bootstrap_intervals(probabilities: np.ndarray, labels: np.ndarray, recording_ids: Sequence[str] | np.ndarray, *,
                        class_names: Sequence[str], n_bootstrap: int, confidence: float, rng: np.random.Generator
                        ) -> dict[str, list[float] | None]:
    """Give each scalar score of ``metrics.evaluate`` a percentile interval (Efron and Tibshirani 1993, section 13.3).

    Whole recordings are resampled, because the segments of one recording are not independent.

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    recording_ids : sequence of str, length n
        Recording each row was cut from.
    class_names : sequence of str, length n_classes
        Name of each column.
    n_bootstrap : int
        Number of resamples.
    confidence : float, range 0..1
        Share of the resamples inside the interval.
    rng : np.random.Generator
        Source of the resamples.

    Returns
    -------
    dict of str to [low, high] or None
        None where a score is undefined, or where a single recording cannot tell how recordings vary.

    Raises
    ------
    ConfigError
        If ``metrics.validate`` refuses the input or an argument is out of range.
    """
    resampled, = _bootstrap(metrics.weighted_scores, [probabilities], labels, recording_ids, class_names=class_names,
                            n_bootstrap=n_bootstrap, confidence=confidence, rng=rng)
    return {name: _interval(values, confidence, recording_ids) for name, values in resampled.items()}


def per_class_intervals(probabilities: np.ndarray, labels: np.ndarray, recording_ids: Sequence[str] | np.ndarray, *,
                        class_names: Sequence[str], n_bootstrap: int, confidence: float, rng: np.random.Generator
                        ) -> list[dict]:
    """Give each score of ``metrics.per_class_table`` a percentile interval; arguments as ``bootstrap_intervals``.

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    recording_ids : sequence of str, length n
        Recording each row was cut from.
    class_names : sequence of str, length n_classes
        Name of each column.
    n_bootstrap : int
        Number of resamples.
    confidence : float, range 0..1
        Share of the resamples inside the interval.
    rng : np.random.Generator
        Source of the resamples.

    Returns
    -------
    list of dict
        Per class ``class_name`` and score name to [low, high] or None.

    Raises
    ------
    ConfigError
        If ``metrics.validate`` refuses the input or an argument is out of range.
    """
    resampled, = _bootstrap(metrics.weighted_class_scores, [probabilities], labels, recording_ids,
                            class_names=class_names, n_bootstrap=n_bootstrap, confidence=confidence, rng=rng)
    return [{"class_name": class_name,
             **{name: _interval(values[k], confidence, recording_ids) for name, values in resampled.items()}}
            for k, class_name in enumerate(class_names)]


def paired_comparison(probabilities_a: np.ndarray, probabilities_b: np.ndarray, labels: np.ndarray,
                      recording_ids: Sequence[str] | np.ndarray, *, class_names: Sequence[str], n_bootstrap: int,
                      confidence: float, rng: np.random.Generator) -> dict:
    """Compare two models on the same rows.

    The verdict is about a: ``better`` or ``worse`` when the interval of the difference in ``VERDICT_METRIC`` excludes
    0, else ``no significant difference``. McNemar's exact test (Dietterich 1998, section 3.1) treats rows as
    independent and stands beside it for reference.

    Parameters
    ----------
    probabilities_a, probabilities_b : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment, the same segments in the same order.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    recording_ids : sequence of str, length n
        Recording each row was cut from; each resample draws the same recordings for both models.
    class_names : sequence of str, length n_classes
        Name of each column.
    n_bootstrap : int
        Number of resamples.
    confidence : float, range 0..1
        Share of the resamples inside an interval.
    rng : np.random.Generator
        Source of the resamples.

    Returns
    -------
    dict
        ``verdict``, ``verdict_metric``, ``confidence``, ``n_recordings``, ``differences`` (score name to
        ``{"difference": a - b, "interval": [low, high] or None}``) and ``mcnemar``
        (``only_a_correct``, ``only_b_correct``, ``p``, two-sided).

    Raises
    ------
    ConfigError
        If ``metrics.validate`` refuses either input or an argument is out of range.
    """
    models = [probabilities_a, probabilities_b]
    a, b = _bootstrap(metrics.weighted_scores, models, labels, recording_ids, class_names=class_names,
                      n_bootstrap=n_bootstrap, confidence=confidence, rng=rng)
    scores_a, scores_b = (metrics.evaluate(p, labels, class_names=class_names) for p in models)
    intervals = {name: _interval(a[name] - b[name], confidence, recording_ids) for name in a}
    differences = {name: {"difference": _difference(scores_a[name], scores_b[name]), "interval": intervals[name]}
                   for name in a}
    return {"verdict": _verdict(intervals[VERDICT_METRIC]), "verdict_metric": VERDICT_METRIC,
            "confidence": confidence, "n_recordings": len(np.unique(recording_ids)), "differences": differences,
            "mcnemar": _mcnemar(*(np.asarray(p).argmax(axis=1) == labels for p in models))}


def _bootstrap(scorer: _Scorer, models: list[np.ndarray], labels: np.ndarray,
               recording_ids: Sequence[str] | np.ndarray, *, class_names: Sequence[str], n_bootstrap: int,
               confidence: float, rng: np.random.Generator) -> list[Scores]:
    """Score every model on the same resamples: per model, score name to (..., n_bootstrap)."""
    for probabilities in models:
        metrics.validate(probabilities, labels, class_names=class_names)
    if len(recording_ids) != len(labels):
        raise ConfigError(f"recording_ids must have one entry per row ({len(labels)}), got {len(recording_ids)}")
    if n_bootstrap < 1:
        raise ConfigError(f"n_bootstrap must be at least 1, got {n_bootstrap}")
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be in 0..1 (both excluded), got {confidence}: 95 % is 0.95")
    models, labels = [np.asarray(probabilities, dtype=np.float64) for probabilities in models], np.asarray(labels)
    parts = [[scorer(probabilities, labels, weights) for probabilities in models]
             for weights in _resampled_weights(recording_ids, n_bootstrap=n_bootstrap, rng=rng)]
    return [{name: np.concatenate([part[name] for part in parts_of_model], axis=-1) for name in parts_of_model[0]}
            for parts_of_model in zip(*parts)]


def _resampled_weights(recording_ids: Sequence[str] | np.ndarray, *, n_bootstrap: int, rng: np.random.Generator
                       ) -> Iterator[np.ndarray]:
    recordings, index = np.unique(np.asarray(recording_ids), return_inverse=True)
    per_part = max(1, RESAMPLED_CELLS // len(index))
    for start in range(0, n_bootstrap, per_part):
        size = min(per_part, n_bootstrap - start)
        draws = rng.multinomial(len(recordings), np.full(len(recordings), 1 / len(recordings)), size=size)
        yield np.ascontiguousarray(draws.T[index], dtype=np.float64)


def _interval(values: np.ndarray, confidence: float, recording_ids: Sequence[str] | np.ndarray) -> list[float] | None:
    values = values[np.isfinite(values)]
    if not len(values) or len(np.unique(recording_ids)) < 2:
        return None
    tail = (1 - confidence) / 2
    return np.quantile(values, [tail, 1 - tail]).tolist()


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _verdict(interval: list[float] | None) -> str:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return "no significant difference"
    return "better" if interval[0] > 0 else "worse"


def _mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> dict:
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a_correct": only_a, "only_b_correct": only_b, "p": p}
