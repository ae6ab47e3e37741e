"""Could two models be the same? A test that swaps them recording by recording."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from utils.metrics import ScoredSegments, guess_counts
from utils.tallies import Counts, Groups

N_SWAPS = 9999  # with the swap that was seen, p comes in steps of 1/10000
_SWAPPED_CELLS = 4_000_000  # recordings x swaps held at once: 32 MB
_ROUNDING = 1e-9  # differences that are this near are equal


@dataclass(frozen=True, kw_only=True)
class PermutationTest:
    """What a two-sided permutation test found.

    Parameters
    ----------
    p : float, range 0..1
        Share of the swaps whose difference is at least as large as the one found, which counts as one of them.
    n_swaps : int
        Swaps looked at.
    exact : bool
        Whether they are all there are; otherwise they were drawn.
    n_differing : int
        Recordings on which the models' answers count differently; the others swap nothing.
    """

    p: float
    n_swaps: int
    exact: bool
    n_differing: int


def permutation_test(a: ScoredSegments, b: ScoredSegments, groups: Groups, *, seed: int,
                     n_swaps: int = N_SWAPS) -> PermutationTest:
    """Test whether the macro F1 of two models differs by more than chance (Good 2005, section 3.2).

    If the models were equally good in all respects, either could have given either's answers on a recording. All
    answers on a recording are swapped together, because its segments are not independent.

    Parameters
    ----------
    a, b : ScoredSegments
        The same segments in the same order.
    groups : Groups
        Recording of each segment.
    seed : int
        Of the swaps, where they are drawn.
    n_swaps : int
        Swaps to draw where there are more than ``n_swaps + 1``; p then counts the one found among them (Phipson and
        Smyth 2010), so it is never 0.

    Returns
    -------
    PermutationTest
        Two-sided.
    """
    counts = [guess_counts(model, groups=groups) for model in (a, b)]
    hits, predicted = (np.subtract(*(getattr(count, name) for count in counts)) for name in ("hits", "predicted"))
    differs = np.flatnonzero(hits.any(axis=0) | predicted.any(axis=0))
    totals = [count.weighted(np.ones((groups.n_groups, 1))) for count in counts]
    swaps, n_extreme = _Swaps(totals, hits[:, differs], predicted[:, differs]), 0
    found = abs(swaps.differences(np.zeros((len(differs), 1)))[0])
    exact = len(differs) <= math.log2(n_swaps + 1)
    n_looked_at = 2 ** len(differs) if exact else n_swaps
    for swapped in _all_swaps(len(differs)) if exact else _drawn_swaps(len(differs), n_swaps, seed):
        n_extreme += int((np.abs(swaps.differences(swapped)) >= found - _ROUNDING).sum())
    p = n_extreme / n_looked_at if exact else (n_extreme + 1) / (n_looked_at + 1)
    return PermutationTest(p=p, n_swaps=n_looked_at, exact=exact, n_differing=len(differs))


@dataclass(frozen=True, eq=False)
class _Swaps:
    """What the models have in all, and what a swap of each recording takes from the first and gives to the second."""

    totals: list[Counts]
    hits: np.ndarray
    predicted: np.ndarray

    def differences(self, swapped: np.ndarray) -> np.ndarray:
        """Return the difference of macro F1 for each column of 0 and 1, float64 ``(n_differing, n)``."""
        hits, predicted = self.hits @ swapped, self.predicted @ swapped
        first, second = (Counts(total.hits + sign * hits, total.support, total.predicted + sign * predicted,
                                total.answered) for total, sign in zip(self.totals, (-1, 1)))
        return first.averages()["macro_f1"] - second.averages()["macro_f1"]


def _all_swaps(n_recordings: int) -> Iterator[np.ndarray]:
    yield (np.arange(2 ** n_recordings) >> np.arange(n_recordings)[:, None] & 1).astype(np.float64)


def _drawn_swaps(n_recordings: int, n_swaps: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    per_part = max(1, _SWAPPED_CELLS // n_recordings)
    for start in range(0, n_swaps, per_part):
        size = (n_recordings, min(per_part, n_swaps - start))
        yield rng.integers(0, 2, size=size, dtype=np.int8).astype(np.float64)
