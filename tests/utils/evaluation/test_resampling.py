import numpy as np
import pytest

from models.classes import DecisionRules
from models.errors import ConfigError
from tests.utils.test_metrics import CLASS_NAMES, EXACT, draw
from utils.evaluation import resampling
from utils.evaluation.resampling import Bootstrap, resampled_answers, resampled_scores
from utils.metrics import ScoredSegments, answered_scores, evaluate_segments
from utils.tallies import RankingBins

SINGLE_PRECISION = 1e-6  # tallies of rankings are weighted in float32
DRAWING_ERROR = 0.1  # of a variance from 4000 resamples, relative: four standard errors


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def resamples(recording_ids, **changes):
    return Bootstrap(recording_ids=recording_ids, **{"n_bootstrap": 300, "confidence": 0.95, "seed": 0, **changes})


def draws_of(labels, recording_ids, **changes):
    parts = list(resamples(recording_ids, **changes).draws(np.asarray(labels), n_classes=4, n_imagined=0.5))
    return (np.hstack([part.recordings for part in parts]),
            np.concatenate([np.stack([part.right, part.missed]) for part in parts], axis=-1))


def test_each_class_is_drawn_for_itself_and_varies_as_much_as_test_sets_do():
    labels = np.repeat([0, 1, 3], [5, 20, 1])
    recordings, imagined = draws_of(labels, np.arange(26), n_bootstrap=4000)
    for k, n in ((0, 5), (1, 20), (3, 1)):
        of_class = recordings[labels == k]
        np.testing.assert_allclose(of_class.sum(axis=0), n, atol=EXACT)
        # the mean of n values that differ by s varies by s^2 / n
        values = np.arange(n)
        expected = values.var(ddof=1) / n if n > 1 else 0.0
        assert (values @ of_class / n).var() == pytest.approx(expected, rel=DRAWING_ERROR)
    assert imagined.shape == (2, 4, 4, 4000) and (imagined >= 0).all()
    assert not imagined[:, range(4), range(4)].any()  # no class is taken for itself
    for of_classes in (imagined.sum(axis=1), imagined.sum(axis=2)):  # of a class, and taken for a class
        assert of_classes.mean() == pytest.approx(0.25, rel=DRAWING_ERROR)
        assert of_classes.var(axis=-1).mean() == pytest.approx(0.25, rel=DRAWING_ERROR)


def test_a_recording_of_several_labels_is_drawn_among_those_of_most_of_its_segments():
    recordings, _ = draws_of([0, 0, 1, 0, 1, 1], ["a", "a", "a", "b", "c", "d"])
    np.testing.assert_allclose(recordings[:2].sum(axis=0), 2)
    np.testing.assert_allclose(recordings[2:].sum(axis=0), 2)


def test_draws_repeat_with_the_seed_and_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    labels = np.arange(12) % 4
    whole = draws_of(labels, np.arange(12))
    other = draws_of(labels, np.arange(12), seed=1)
    monkeypatch.setattr(resampling, "RESAMPLED_CELLS", 7 * 12)
    for first, again, different in zip(whole, draws_of(labels, np.arange(12)), other):
        np.testing.assert_array_equal(first, again)
        assert (first != different).any()


def test_without_imagined_recordings_a_resample_is_scored_as_its_rows_written_out(rng):
    probabilities, labels = draw(rng, n=40)
    labels = np.repeat(labels[::4], 4)
    recording_ids = np.repeat(np.arange(10), 4)
    bootstrap = resamples(recording_ids, n_bootstrap=3)
    overall, by_class = resampled_scores(ScoredSegments(probabilities, labels, CLASS_NAMES), bootstrap, n_imagined=0)
    counts, = (draws.recordings for draws in bootstrap.draws(labels, n_classes=4, n_imagined=0))
    for column, weights in enumerate(counts.T):
        whole = np.round(weights * 2520).astype(int) // 420  # n / (n - 1) of classes of up to 7, in whole numbers
        np.testing.assert_allclose(whole / 6, weights, atol=EXACT)
        rows = np.repeat(np.arange(40), whole[recording_ids])
        expected = evaluate_segments(ScoredSegments(probabilities[rows], labels[rows], CLASS_NAMES))
        for name, values in overall.items():
            assert values[column] == pytest.approx(expected[name], abs=SINGLE_PRECISION), name
        for row, k in zip(expected["per_class"], range(4)):
            for name, values in by_class.items():
                assert (row[name] is None and np.isnan(values[k, column])
                        or values[k, column] == pytest.approx(row[name], abs=SINGLE_PRECISION)), name


def test_answers_without_imagined_recordings_are_scored_as_their_rows_written_out(rng, monkeypatch):
    monkeypatch.setattr(resampling, "IMAGINED_RECORDINGS", 0)
    probabilities, _ = draw(rng, n=40)
    labels = np.repeat(np.arange(4), 10)
    segments, rules = ScoredSegments(probabilities, labels, CLASS_NAMES), DecisionRules(
        dict.fromkeys(CLASS_NAMES, 0.35), CLASS_NAMES[1])
    bootstrap = resamples(np.arange(40) // 5, n_bootstrap=2)
    overall, by_class = resampled_answers(segments, rules, bootstrap)
    counts, = (draws.recordings for draws in bootstrap.draws(labels, n_classes=4, n_imagined=0))
    for column, weights in enumerate(counts.T):  # of two recordings one is drawn and counts twice
        rows = np.repeat(np.arange(40), weights[np.arange(40) // 5].astype(int))
        expected = answered_scores(ScoredSegments(probabilities[rows], labels[rows], CLASS_NAMES), rules)
        for name, values in overall.items():
            assert values[column] == pytest.approx(expected[name], abs=EXACT)
        for row in expected["per_class"]:
            assert by_class["recall"][CLASS_NAMES.index(row["class_name"]), column] == pytest.approx(row["recall"])


def test_what_is_imagined_by_hand():
    counts = resampling._imagined_counts(np.array([4.0, 6.0]), is_reject=np.zeros(2, dtype=bool), silent_share=0.0)
    # right ones of both classes; then those taken for class 0, of class 0 (never) and of class 1; and for class 1
    assert counts.support.tolist() == [[4, 0, 4, 0, 4, 0], [0, 6, 0, 6, 0, 6]]
    assert counts.hits.tolist() == [[4, 0, 0, 0, 0, 0], [0, 6, 0, 0, 0, 0]]
    assert counts.predicted.tolist() == [[4, 0, 4, 6, 0, 0], [0, 6, 0, 0, 4, 6]]
    np.testing.assert_array_equal(counts.answered, counts.support)
    silent = resampling._imagined_counts(np.array([4.0, 6.0]), is_reject=np.array([False, True]), silent_share=0.5)
    assert silent.hits.tolist() == [[4, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert silent.predicted.tolist() == [[4, 0, 2, 6, 0, 0], [0, 0, 0, 0, 0, 0]]  # the reject class is never said
    assert silent.answered.tolist() == [[4, 0, 2, 0, 0, 0], [0, 0, 0, 6, 0, 0]]


def test_imagined_losses_are_those_of_the_first_and_second_guess():
    losses = resampling._imagined_losses(np.array([[0.6, 0.4], [0.2, 0.8]]), np.array([10.0, 1.0]))
    right, missed = -np.log([0.6, 0.8]).mean(), -np.log([0.4, 0.2]).mean()
    np.testing.assert_allclose(losses.log_loss / losses.n_rows, [right] * 2 + [missed] * 4)
    np.testing.assert_allclose(np.abs(losses.gaps).sum(axis=0) / losses.n_rows, [0.3] * 2 + [0.7] * 4)
    np.testing.assert_allclose(losses.n_rows, [10, 1] * 3)


def test_imagined_recordings_in_a_ranking_by_hand():
    bins = RankingBins.of(np.array([0.9, 0.9, 0.5, 0.1]), np.array([True, True, False, False]))
    table = resampling._imagined_bins(bins, 0, np.array([4.0, 6.0])).reshape(2, 3, 6)
    positives, negatives = table[..., [0, 1, 4, 3]].transpose(0, 2, 1)  # right: class 0, class 1; missed: 0, 1
    assert positives.tolist() == [[4, 0, 0], [0, 0, 0], [0, 2, 2], [0, 0, 0]]
    assert negatives.tolist() == [[0, 0, 0], [0, 0, 6], [0, 0, 0], [6, 0, 0]]


def test_the_second_model_misses_what_the_first_is_imagined_to_recognise():
    right, missed = np.array([[[0.0], [1.0]], [[2.0], [0.0]]]), np.array([[[0.0], [3.0]], [[4.0], [0.0]]])
    draws = resampling.Draws(np.ones((1, 1)), right, missed)
    assert draws.imagined[:, 0].tolist() == [2, 1, 0, 3, 4, 0]
    assert draws.swapped().imagined[:, 0].tolist() == [4, 3, 0, 1, 2, 0]


def test_no_resample_lacks_a_class(rng):
    probabilities, labels = draw(rng, n=8)
    labels = np.arange(8) // 2
    _, by_class = resampled_scores(ScoredSegments(probabilities, labels, CLASS_NAMES), resamples(np.arange(8)))
    assert all(np.isfinite(values).all() for values in by_class.values())


def test_segments_and_recordings_are_counted():
    bootstrap = resamples(["b", "a", "b"])
    assert (bootstrap.n_segments, bootstrap.n_recordings) == (3, 2)
    assert bootstrap.of_recordings().recording_ids.tolist() == ["a", "b"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_bootstrap": 1}, "n_bootstrap must be at least 2, got 1"),
    ({"confidence": 95}, "confidence must be in 0..1.*got 95"),
    ({"recording_ids": ["a"]}, r"one entry per row \(120\), got 1"),
])
def test_impossible_arguments_are_refused(rng, changes, message):
    probabilities, labels = draw(rng)
    with pytest.raises(ConfigError, match=message):
        resampled_scores(ScoredSegments(probabilities, labels, CLASS_NAMES),
                         resamples(**{"recording_ids": labels, **changes}))
