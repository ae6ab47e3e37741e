"""Which of two models is better on the same segments."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from utils.evaluation.intervals import Bootstrap
from utils.metrics import Interval, ScoredSegments, evaluate_segments

VERDICT_METRIC = "macro_f1"
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no significant difference"


@dataclass(frozen=True)
class Difference:
    """A score of a less that of b, and its interval; each None where it cannot be told."""

    difference: float | None
    interval: Interval


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test, two-sided (Dietterich 1998, section 3.1): segments that one model alone has right."""

    only_a_correct: int
    only_b_correct: int
    p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is said of model a against model b.

    Parameters
    ----------
    verdict : str
        ``BETTER`` or ``WORSE`` when the interval of the difference in ``verdict_metric`` excludes 0, else
        ``NO_DIFFERENCE``.
    verdict_metric : str
        The score that decides.
    confidence : float, range 0..1
        Of the intervals.
    n_recordings : int
        Recordings that were resampled.
    differences : mapping of str to Difference
        By score name.
    mcnemar : McNemar
        For reference: it treats segments as independent.
    """

    verdict: str
    verdict_metric: str
    confidence: float
    n_recordings: int
    differences: Mapping[str, Difference]
    mcnemar: McNemar


def paired_comparison(a: ScoredSegments, b: ScoredSegments, bootstrap: Bootstrap) -> Comparison:
    """Compare two models on the same segments.

    Parameters
    ----------
    a, b : ScoredSegments
        The same segments in the same order.
    bootstrap : Bootstrap
        The resamples: each draws the same recordings for both models.

    Returns
    -------
    Comparison
        Of a against b.
    """
    scores_a, scores_b = evaluate_segments(a), evaluate_segments(b)
    resampled_a, resampled_b = (bootstrap.scores(segments)[0] for segments in (a, b))
    differences = {name: Difference(_difference(scores_a[name], scores_b[name]),
                                    bootstrap.interval(resampled_a[name] - resampled_b[name]))
                   for name in resampled_a}
    return Comparison(verdict=_verdict(differences[VERDICT_METRIC].interval), verdict_metric=VERDICT_METRIC,
                      confidence=bootstrap.confidence, n_recordings=bootstrap.n_recordings, differences=differences,
                      mcnemar=_mcnemar(*(model.probabilities.argmax(axis=1) == model.labels for model in (a, b))))


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _verdict(interval: Interval) -> str:
    if interval is None or interval[0] <= 0 <= interval[1]:
        return NO_DIFFERENCE
    return BETTER if interval[0] > 0 else WORSE


def _mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> McNemar:
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)
