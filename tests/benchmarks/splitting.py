"""The split that the accuracy figures were drawn with; preparing has another, which recordings that are added keep."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd

from utils.storage.splits import grouped_folds

_SPLIT_CANDIDATES = 10  # shufflings tried; the one nearest to the wished ratios is taken
_LARGEST_DENOMINATOR = 10  # ratios become m of at most this many folds
_CLASS_MISSING = 0.5  # cost of a held-out part without a class: as much as missing its ratio by half


def grouped_split(labels: np.ndarray, groups: np.ndarray, *, ratios: Sequence[float],
                  random_state: int) -> np.ndarray:
    """Assign rows to train, val and test: stratified by label, each group whole on one side, every class in train.

    Parameters
    ----------
    labels : numpy.ndarray
        int ``(n_rows,)``.
    groups : numpy.ndarray
        str ``(n_rows,)``.
    ratios : sequence of float
        Shares of train, val and test, summing to 1.
    random_state : int
        Seed.

    Returns
    -------
    numpy.ndarray
        ``(n_rows,)`` of ``"train"``, ``"val"`` or ``"test"``.
    """
    sides = np.full(len(labels), "train", dtype="<U5")
    remaining = np.arange(len(labels))
    share_left = 1.0
    for side, ratio in (("test", ratios[2]), ("val", ratios[1])):
        if ratio <= 0:
            continue
        movable = remaining[_movable(labels[remaining], groups[remaining])]
        held_out = movable[_held_out(labels[movable], groups[movable], ratio / share_left, random_state)]
        sides[held_out] = side
        remaining = np.setdiff1d(remaining, held_out)
        share_left -= ratio
    return sides


def _movable(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return which rows may leave train: those of recordings that are not the only one of a class."""
    rows = pd.DataFrame({"label": labels, "group": groups})
    n_recordings = rows.groupby("label")["group"].transform("nunique")
    return ~rows["group"].isin(rows.loc[n_recordings == 1, "group"]).to_numpy()


def _held_out(labels: np.ndarray, groups: np.ndarray, ratio: float, random_state: int) -> np.ndarray:
    """Return the rows of a stratified, grouped part of about ``ratio``, the best of several shufflings.

    A class of fewer recordings than folds is missing from some folds; where many classes are that small, fewer
    and larger folds are tried, so that every class is on every side.
    """
    most_folds = min(Fraction(ratio).limit_denominator(_LARGEST_DENOMINATOR).denominator, len(set(groups)),
                     int(np.bincount(labels, minlength=1).max()))
    best_cost = np.inf
    best: np.ndarray = np.empty(0, dtype=int)
    for n_folds in range(most_folds, 1, -1):
        n_taken = max(1, round(ratio * n_folds))
        if n_taken >= n_folds:
            break
        for candidate in range(_SPLIT_CANDIDATES):
            # neighbouring random states share no shuffling
            seed = (random_state * _SPLIT_CANDIDATES + candidate) % 2**32
            folds = grouped_folds(labels, groups, n_folds=n_folds, random_state=seed)
            for first in range(0, n_folds - n_taken + 1, n_taken):
                rows = np.sort(np.concatenate(folds[first:first + n_taken]))
                cost = _split_cost(labels, rows, ratio)
                if cost < best_cost:
                    best, best_cost = rows, cost
        if best_cost < _CLASS_MISSING:
            break
    return best


def _split_cost(labels: np.ndarray, held_out: np.ndarray, ratio: float) -> float:
    """Return how far a held-out part is from the wish; infinite when it leaves nothing of a class to learn from."""
    counts = np.bincount(labels)
    shares = np.bincount(labels[held_out], minlength=len(counts))[counts > 0] / counts[counts > 0]
    if (shares == 1.0).any():
        return np.inf
    return float(np.abs(shares - ratio).sum() + _CLASS_MISSING * (shares == 0.0).sum())
