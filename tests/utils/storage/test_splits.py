import numpy as np
import pandas as pd
import pytest

from models.errors import ManifestError
from utils.storage import splits
from utils.storage.manifest import SPLITS
from utils.storage.splits import grouped_folds, grouped_split

RATIOS = (0.7, 0.15, 0.15)
RATIO_TOLERANCE = 0.06  # of the rows: folds are sevenths and sixths, and a recording moves up to 4 % of a class at once
N_STRUCTURES = 100


def draw_recordings(rng, *, n_classes, n_recordings, longest=8):
    """Draw rows of recordings: each of one class, with 1..longest segments."""
    classes = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, size=n_recordings - n_classes)])
    sizes = rng.integers(1, longest + 1, size=n_recordings)
    names = np.array([f"recording{number}" for number in rng.permutation(n_recordings)])
    return np.repeat(classes, sizes), np.repeat(names, sizes)


def sides_of_groups(groups, sides):
    return pd.Series(sides).groupby(groups).nunique()


@pytest.mark.parametrize("seed", range(0, N_STRUCTURES, 10))
def test_no_recording_is_on_two_sides_and_no_class_is_lost_to_train(seed, monkeypatch):
    monkeypatch.setattr(splits, "_SPLIT_CANDIDATES", 2)  # must hold for every shuffling: fewer are faster
    for structure in range(seed, seed + 10):
        rng = np.random.default_rng(structure)
        n_classes = int(rng.integers(2, 7))
        labels, groups = draw_recordings(rng, n_classes=n_classes, n_recordings=n_classes + int(rng.integers(0, 12)))
        sides = grouped_split(labels, groups, ratios=RATIOS, random_state=structure)
        assert sides_of_groups(groups, sides).max() == 1, structure
        assert set(sides) <= set(SPLITS), structure
        assert set(labels[sides == "train"]) == set(labels), structure


def test_recordings_of_several_classes_stay_whole_too(rng):
    groups = np.repeat([f"recording{number}" for number in range(20)], 15)
    labels = rng.integers(0, 4, size=len(groups))
    sides = grouped_split(labels, groups, ratios=RATIOS, random_state=0)
    assert sides_of_groups(groups, sides).max() == 1
    assert set(sides) == set(SPLITS)


@pytest.mark.parametrize("n_rare", [1, 4, 12])
def test_a_class_of_one_recording_can_only_be_learnt_and_costs_the_others_nothing(n_rare):
    labels = np.concatenate([np.zeros(40, dtype=int), 1 + np.arange(n_rare)])
    groups = np.array([f"recording{number}" for number in range(40 + n_rare)])
    sides = grouped_split(labels, groups, ratios=RATIOS, random_state=0)
    assert set(sides[40:]) == {"train"}
    shares = [np.mean(sides[:40] == side) for side in SPLITS]
    np.testing.assert_allclose(shares, RATIOS, atol=RATIO_TOLERANCE)


def test_classes_of_one_recording_alone_are_all_learnt():
    sides = grouped_split(np.repeat([0, 1, 2], 5), np.repeat(["a", "b", "c"], 5), ratios=RATIOS, random_state=0)
    assert set(sides) == {"train"}


@pytest.mark.parametrize("seed", range(3))
def test_the_ratios_are_kept_in_every_class(seed):
    labels, groups = draw_recordings(np.random.default_rng(seed), n_classes=3, n_recordings=120, longest=3)
    sides = grouped_split(labels, groups, ratios=RATIOS, random_state=seed)
    for label in range(3):
        shares = [np.mean(sides[labels == label] == side) for side in SPLITS]
        np.testing.assert_allclose(shares, RATIOS, atol=RATIO_TOLERANCE)


def test_a_side_without_a_share_stays_empty(rng):
    labels, groups = draw_recordings(rng, n_classes=3, n_recordings=60)
    assert set(grouped_split(labels, groups, ratios=(0.8, 0.2, 0.0), random_state=0)) == {"train", "val"}
    assert set(grouped_split(labels, groups, ratios=(1.0, 0.0, 0.0), random_state=0)) == {"train"}


def test_the_seed_decides_the_split(rng):
    labels, groups = draw_recordings(rng, n_classes=3, n_recordings=60)
    first, again, other = (grouped_split(labels, groups, ratios=RATIOS, random_state=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


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
