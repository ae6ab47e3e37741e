import numpy as np
import pytest
from sklearn import metrics as reference

from tests.utils.test_metrics import CLASS_NAMES, EXACT, draw
from utils import metrics
from utils.tallies import N_RANKING_BINS, Counts, Groups, Losses, Ranking, RankingBins

WORST_AUC_ERROR = 1 / N_RANKING_BINS  # half of all pairs of positives and negatives that share a bin
USUAL_AREA_ERROR = 0.004  # of average precision, where rows within a bin count as ties


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def repeated(rng, *, n=60, n_groups=12, n_resamples=5):
    """Draw groups of rows, how often each group counts in each resample, and the rows of each resample written out."""
    groups = Groups(rng.integers(0, n_groups, size=n), n_groups)
    weights = rng.integers(0, 3, size=(n_groups, n_resamples)).astype(float)
    return groups, weights, [np.repeat(np.arange(n), column[groups.index].astype(int)) for column in weights.T]


def test_weighted_counts_are_those_of_the_rows_written_out(rng):
    probabilities, labels = draw(rng, n=60)
    groups, weights, written_out = repeated(rng)
    answers = np.where(rng.random(60) < 0.2, -1, probabilities.argmax(axis=1))
    found = Counts.of(labels, answers, n_classes=4, groups=groups).weighted(weights)
    for column, rows in enumerate(written_out):
        expected = Counts.of(labels[rows], answers[rows], n_classes=4, groups=Groups.one(len(rows)))
        for name in ("hits", "support", "predicted", "answered"):
            np.testing.assert_array_equal(getattr(found, name)[:, column], getattr(expected, name)[:, 0])


def test_counts_by_hand():
    labels, answers, groups = np.array([0, 0, 1, 1]), np.array([0, -1, 0, 1]), Groups(np.array([0, 0, 1, 1]), 2)
    counts = Counts.of(labels, answers, n_classes=2, groups=groups)
    assert counts.hits.tolist() == [[1, 0], [0, 1]]
    assert counts.support.tolist() == [[2, 0], [0, 2]]
    assert counts.predicted.tolist() == [[1, 1], [0, 1]]
    assert counts.answered.tolist() == [[1, 0], [0, 2]]


def test_weighted_losses_are_those_of_the_rows_written_out(rng):
    probabilities, labels = draw(rng, n=60)
    groups, weights, written_out = repeated(rng)
    found = Losses.of(probabilities, labels, groups=groups).weighted(weights).scores()
    for column, rows in enumerate(written_out):
        expected = metrics.evaluate(probabilities[rows], labels[rows], class_names=CLASS_NAMES)
        for name, values in found.items():
            assert values[column] == pytest.approx(expected[name], abs=EXACT), name


def test_few_different_scores_lose_nothing_in_bins(rng):
    scores, positives = np.round(rng.random(60), 1), rng.random(60) < 0.4
    groups, weights, written_out = repeated(rng)
    bins = RankingBins.of(scores, positives)
    binned = bins.ranking(bins.tally(groups) @ weights)
    for column, rows in enumerate(written_out):
        assert binned.roc_auc()[column] == pytest.approx(
            reference.roc_auc_score(positives[rows], scores[rows]), abs=EXACT)
        assert binned.average_precision()[column] == pytest.approx(
            reference.average_precision_score(positives[rows], scores[rows]), abs=EXACT)


@pytest.mark.parametrize("separation", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("share", [0.5, 0.02])
def test_many_different_scores_lose_little_in_bins(rng, separation, share):
    positives = rng.random(20_000) < share
    scores = rng.normal(size=20_000) + separation * positives
    bins, exact = RankingBins.of(scores, positives), Ranking.of(scores, positives)
    assert bins.n_bins <= N_RANKING_BINS
    binned = bins.ranking(bins.tally(Groups.one(20_000)))
    assert binned.roc_auc() == pytest.approx(exact.roc_auc(), abs=WORST_AUC_ERROR)
    assert binned.average_precision() == pytest.approx(exact.average_precision(), abs=USUAL_AREA_ERROR)


def test_a_bin_holds_few_of_either_kind(rng):
    positives = rng.random(50_000) < 0.1
    bins = RankingBins.of(rng.normal(size=50_000) + 2 * positives, positives)
    for share in bins.spread():
        assert share.sum() == pytest.approx(1, abs=EXACT)
        assert share.max() <= 2 / N_RANKING_BINS + 2 / bins.positives.sum()  # a quantile falls between two rows


def test_a_sparse_tally_is_the_same_as_a_dense_one(rng):
    scores, positives = rng.random(3000), rng.random(3000) < 0.4
    bins, groups, weights = RankingBins.of(scores, positives), Groups(np.arange(3000), 3000), rng.random((3000, 2))
    tally = bins.tally(groups)
    assert not isinstance(tally, np.ndarray)  # each row a recording: nearly all cells are empty
    assert isinstance(bins.tally(Groups(np.arange(3000) % 10, 10)), np.ndarray)
    np.testing.assert_allclose(tally @ weights, tally.toarray() @ weights, rtol=EXACT)
