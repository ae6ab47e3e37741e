import numpy as np
import pandas as pd
import pytest

from models.errors import ManifestError
from utils.storage.splits import grouped_folds


def draw_recordings(rng, *, n_classes, n_recordings, longest=8):
    """Draw rows of recordings: each of one class, with 1..longest segments."""
    classes = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, size=n_recordings - n_classes)])
    sizes = rng.integers(1, longest + 1, size=n_recordings)
    names = np.array([f"recording{number}" for number in rng.permutation(n_recordings)])
    return np.repeat(classes, sizes), np.repeat(names, sizes)


def sides_of_groups(groups, sides):
    return pd.Series(sides).groupby(groups).nunique()


@pytest.mark.parametrize("n_folds", [2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_folds_are_disjoint_complete_and_grouped(seed, n_folds):
    labels, groups = draw_recordings(np.random.default_rng(seed), n_classes=3, n_recordings=30)
    folds = grouped_folds(labels, groups, n_folds=n_folds, random_state=seed)
    assert len(folds) == n_folds
    assert sorted(np.concatenate(folds)) == list(range(len(labels)))
    fold_of = np.empty(len(labels), dtype=int)
    for number, rows in enumerate(folds):
        assert len(rows) > 0
        assert list(rows) == sorted(rows)
        fold_of[rows] = number
    assert sides_of_groups(groups, fold_of).max() == 1


@pytest.mark.filterwarnings("error")
def test_folds_are_stratified_to_within_a_recording():
    labels = np.repeat([0, 1], 50)
    groups = np.repeat([f"recording{number}" for number in range(20)], 5)
    for rows in grouped_folds(labels, groups, n_folds=5, random_state=0):
        assert np.abs(np.bincount(labels[rows], minlength=2) - 10).max() <= 5


def test_fewer_recordings_than_folds_is_an_error():
    with pytest.raises(ManifestError, match="5 folds need at least 5 recordings, got 3: lower --k_folds"):
        grouped_folds(np.repeat([0, 1, 0], 10), np.repeat(["a", "b", "c"], 10), n_folds=5, random_state=0)


def test_too_few_segments_for_the_folds_is_an_error():
    with pytest.raises(ManifestError, match="5 folds need a class with at least 5 segments"):
        grouped_folds(np.array([0, 0, 1, 1, 2]), np.array(list("abcde")), n_folds=5, random_state=0)
