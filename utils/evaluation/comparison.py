"""Which of two models is better on the same segments."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from utils.evaluation.intervals import degrees_of_freedom, difference_interval, recordings_of_classes
from utils.evaluation.permutation import PermutationTest, permutation_test
from utils.evaluation.resampling import IMAGINED_DISAGREEMENTS, Bootstrap, resampled_scores
from utils.metrics import Interval, ScoredSegments, evaluate_segments
from utils.tallies import Scores

VERDICT_METRIC = "macro_f1"
BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no significant difference"
TOO_FEW = "too few recordings to tell"


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
        ``BETTER`` or ``WORSE`` when the permutation test rejects that the models are equal and the interval of the
        difference in ``verdict_metric`` excludes 0; ``TOO_FEW`` when no result on so few recordings could be
        significant; else ``NO_DIFFERENCE``.
    reason : str
        Why, in one sentence that names numbers.
    verdict_metric : str
        The score that decides.
    confidence : float, range 0..1
        Of the intervals; the test rejects at 1 less this.
    n_recordings : int
        Recordings that were resampled.
    differences : mapping of str to Difference
        By score name.
    mcnemar : McNemar
        For reference: it treats segments as independent.
    permutation : PermutationTest
        Of ``verdict_metric``.
    """

    verdict: str
    reason: str
    verdict_metric: str
    confidence: float
    n_recordings: int
    differences: Mapping[str, Difference]
    mcnemar: McNemar
    permutation: PermutationTest


def paired_comparison(a: ScoredSegments, b: ScoredSegments, bootstrap: Bootstrap) -> Comparison:
    """Compare two models on the same segments.

    Parameters
    ----------
    a, b : ScoredSegments
        The same segments in the same order.
    bootstrap : Bootstrap
        The resamples: each draws the same recordings for both models. What one model is imagined to recognise the
        other is imagined to miss, so that models which agree on few recordings are not thought to agree everywhere.

    Returns
    -------
    Comparison
        Of a against b.

    Raises
    ------
    ConfigError
        If the bootstrap is of other segments.
    """
    scores_a, scores_b = evaluate_segments(a), evaluate_segments(b)
    (overall_a, by_class_a), (overall_b, by_class_b) = (
        resampled_scores(model, bootstrap, n_imagined=IMAGINED_DISAGREEMENTS, swapped=swapped)
        for model, swapped in ((a, False), (b, True)))
    by_class = {name: values - by_class_b[name] for name, values in by_class_a.items()}
    differences = {name: _difference(name, scores_a[name], scores_b[name], values - overall_b[name], by_class, a,
                                     bootstrap)
                   for name, values in overall_a.items()}
    permutation = permutation_test(a, b, bootstrap.groups, seed=bootstrap.seed)
    verdict, reason = _verdict(differences[VERDICT_METRIC], permutation, bootstrap)
    return Comparison(verdict=verdict, reason=reason, verdict_metric=VERDICT_METRIC, confidence=bootstrap.confidence,
                      n_recordings=bootstrap.n_recordings, differences=differences, permutation=permutation,
                      mcnemar=_mcnemar(*(model.probabilities.argmax(axis=1) == model.labels for model in (a, b))))


def fewest_recordings(confidence: float) -> int:
    """Return on how many recordings a difference can at all be significant.

    Of the ``2 ** n`` swaps of n recordings at least two are as extreme as the one found: itself and its mirror image.
    """
    return math.ceil(1 - math.log2(1 - confidence))


def _difference(name: str, of_a: float | None, of_b: float | None, resampled: np.ndarray, by_class: Scores,
                segments: ScoredSegments, bootstrap: Bootstrap) -> Difference:
    if of_a is None or of_b is None:
        return Difference(None, None)
    if bootstrap.n_recordings < 2:
        return Difference(of_a - of_b, None)
    support, n_recordings = recordings_of_classes(segments, bootstrap)
    freedom = degrees_of_freedom(name, by_class, support=support, n_recordings=n_recordings)
    return Difference(of_a - of_b, difference_interval(of_a - of_b, resampled, confidence=bootstrap.confidence,
                                                       degrees_of_freedom=freedom))


def _verdict(found: Difference, permutation: PermutationTest, bootstrap: Bootstrap) -> tuple[str, str]:
    n_recordings, needed = bootstrap.n_recordings, fewest_recordings(bootstrap.confidence)
    level = f"{1 - bootstrap.confidence:.3g}"
    if n_recordings < needed:
        return TOO_FEW, (f"{n_recordings} recordings are too few: even if one model were better on each of them, p"
                         f" would be {min(1.0, 2.0 ** (1 - n_recordings)):.3g}, and {level} or less is asked for, which"
                         f" takes {needed} recordings")
    if not permutation.n_differing:
        return NO_DIFFERENCE, f"a tie: the models' answers count alike on each of the {n_recordings:,} recordings"
    ways = f"all {permutation.n_swaps:,} ways" if permutation.exact else f"{permutation.n_swaps:,} ways drawn at random"
    told = (f"swapping the models on the {permutation.n_differing:,} of {n_recordings:,} recordings on which their"
            f" answers differ, in {ways}, gives p = {permutation.p:.3g}")
    if permutation.p > 1 - bootstrap.confidence:
        return NO_DIFFERENCE, f"{told}, more than the {level} that is asked for"
    if found.interval is None or found.interval[0] <= 0 <= found.interval[1]:
        return NO_DIFFERENCE, f"{told}, but the interval of the difference includes 0"
    return (BETTER if found.interval[0] > 0 else WORSE), f"{told}, and the interval of the difference excludes 0"


def _mcnemar(correct_a: np.ndarray, correct_b: np.ndarray) -> McNemar:
    only_a, only_b = int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum())
    p = float(stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a, only_b, p)
