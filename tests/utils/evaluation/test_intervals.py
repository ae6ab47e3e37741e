import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from models.classes import DecisionRules
from tests.benchmarks.evaluating import covered, truth
from tests.utils.evaluation.test_resampling import resamples
from tests.utils.test_metrics import CLASS_NAMES, EXACT, draw
from utils import metrics
from utils.evaluation.intervals import (answered_intervals, degrees_of_freedom, difference_interval,
                                        largest_calibrated_error, score_interval, score_intervals, wilson_interval)
from utils.evaluation.recordings import recording_scores
from utils.evaluation.resampling import resampled_scores
from utils.metrics import ScoredSegments

PRINTED = 5e-4  # published intervals have three decimals
ROUNDING = 1e-9  # sums in another order, through a ratio of variances
LEAST_COVERAGE = 0.93  # of 95 % intervals
MOST_COVERAGE = 0.98 + 0.009  # with many recordings; two standard errors of 1000 simulations
PROMISED = ("accuracy", "macro_f1", "ece", *(f"{score} of class_{k}" for score in ("recall", "precision")
                                             for k in range(6)))


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def intervals_of(probabilities, labels, recording_ids, **changes):
    return score_intervals(ScoredSegments(probabilities, labels, CLASS_NAMES), resamples(recording_ids, **changes))


def test_every_score_of_evaluate_has_an_interval_around_it(rng):
    probabilities, labels = draw(rng)
    scores = metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES)
    overall, by_class = intervals_of(probabilities, labels, np.arange(len(labels)))
    assert set(overall) == set(scores) - {"n_segments", "per_class", "confusion_matrix", "absent_classes"}
    for name, (low, high) in overall.items():
        assert low < scores[name] < high, name
    for row, found in zip(scores["per_class"], by_class):
        assert set(found) == set(row) - {"support"} | {"reason"}
        assert found["class_name"] == row["class_name"] and found["reason"] is None
        assert found["f1"][0] < row["f1"] < found["f1"][1]


def test_answers_have_intervals_and_all_classes_but_the_reject_class(rng):
    segments = ScoredSegments(*draw(rng), CLASS_NAMES)
    rules = DecisionRules(dict.fromkeys(CLASS_NAMES, 0.35), CLASS_NAMES[1])
    overall, by_class = answered_intervals(segments, rules, resamples(np.arange(len(segments.labels)) // 2))
    found = metrics.answered_scores(segments, rules)
    for name, (low, high) in overall.items():
        assert low < found[name] < high, name
    assert [row["class_name"] for row in by_class] == [row["class_name"] for row in found["per_class"]]
    for row, of_class in zip(found["per_class"], by_class):
        assert of_class["precision"][0] < row["precision"] < of_class["precision"][1]


def test_recordings_have_intervals_too(rng):
    probabilities, labels = draw(rng)
    ids = np.arange(len(labels)) // 3
    recordings = recording_scores(ScoredSegments(probabilities, labels, CLASS_NAMES), ids)
    low, high = score_intervals(recordings, resamples(ids).of_recordings())[0]["accuracy"]
    assert low < metrics.evaluate_segments(recordings)["accuracy"] < high


def test_copies_of_a_row_add_no_certainty(rng):
    probabilities, labels = draw(rng, n=30)
    recording_ids = [f"recording {k:02d}" for k in range(30)]
    once, _ = intervals_of(probabilities, labels, recording_ids)
    copied, _ = intervals_of(probabilities.repeat(10, axis=0), labels.repeat(10), np.repeat(recording_ids, 10))
    for name, interval in once.items():
        assert copied[name] == pytest.approx(interval, abs=ROUNDING), name


def test_the_order_of_rows_does_not_matter(rng):
    probabilities, labels = draw(rng)
    ids, order = np.arange(len(labels)) // 3, rng.permutation(len(labels))
    first, _ = intervals_of(probabilities, labels, ids)
    second, _ = intervals_of(probabilities[order], labels[order], ids[order])
    for name, interval in first.items():
        assert second[name] == pytest.approx(interval, abs=ROUNDING), name


def test_an_interval_repeats_with_the_seed_and_differs_without(rng):
    probabilities, labels = draw(rng)
    recording_ids = np.arange(len(labels)) // 3
    first = intervals_of(probabilities, labels, recording_ids)
    assert intervals_of(probabilities, labels, recording_ids) == first
    assert intervals_of(probabilities, labels, recording_ids, seed=1) != first


def test_a_larger_confidence_gives_a_wider_interval(rng):
    probabilities, labels = draw(rng)
    narrow, wide = (intervals_of(probabilities, labels, np.arange(len(labels)), confidence=confidence)[0]["accuracy"]
                    for confidence in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


# false certainty

def test_four_right_recordings_are_not_certain():
    labels = np.arange(16) % 4
    overall, by_class = intervals_of(np.eye(4)[labels], labels, np.arange(16))
    for name in ("recall", "precision", "f1", "roc_auc", "average_precision"):
        low, high = by_class[0][name]
        assert low < 0.85 and high == 1, name
    # a true recall of 1/4 would give four of four in less than one of 250 test sets
    assert by_class[0]["recall"][0] > 0.25
    assert 0.7 < overall["accuracy"][0] < 0.95 and overall["accuracy"][1] == 1


def test_a_class_that_is_never_recognised_keeps_the_average_low():
    labels = np.arange(32) % 4
    answers = np.where(labels == 3, 0, labels)
    overall, by_class = intervals_of(np.eye(4)[answers], labels, np.arange(32))
    assert metrics.evaluate(np.eye(4)[answers], labels, class_names=CLASS_NAMES)["macro_f1"] == pytest.approx(2 / 3)
    assert 2 / 3 < overall["macro_f1"][1] < 0.85
    assert by_class[3]["recall"][0] == 0 and 0.15 < by_class[3]["recall"][1] < 0.6


def test_a_class_of_one_recording_or_none_has_no_interval_and_a_reason(rng):
    probabilities, labels = draw(rng, absent=(3,))
    ids = np.where(labels == 2, 0, np.arange(1, len(labels) + 1))
    _, by_class = intervals_of(probabilities, labels, ids)
    assert [row["reason"] for row in by_class] == [
        None, None, "one recording cannot tell how recordings vary", "the class does not occur in the test set"]
    for row in by_class[2:]:
        assert {value for name, value in row.items() if name not in ("class_name", "reason")} == {None}


def test_a_single_recording_gives_no_interval(rng):
    probabilities, labels = draw(rng)
    overall, by_class = intervals_of(probabilities, labels, ["only one"] * len(labels))
    assert set(overall.values()) == {None} and {row["f1"] for row in by_class} == {None}


# the formulas

def test_the_interval_of_a_share_is_wilsons_where_the_variance_is_binomial():
    resampled = np.array([0.8 - 0.4 / np.sqrt(50), 0.8 + 0.4 / np.sqrt(50)])  # mean 0.8, variance that of 50 trials
    expected = stats.binomtest(40, 50).proportion_ci(0.95, method="wilson")
    found = score_interval("accuracy", 0.8, resampled, quantile=float(stats.norm.ppf(0.975)))
    assert found == pytest.approx((expected.low, expected.high), abs=EXACT)


@pytest.mark.parametrize(("share", "n", "low", "high"), [(0.0, 10, 0.0, 0.278), (0.5, 10, 0.237, 0.763),
                                                         (1.0, 5, 0.566, 1.0), (0.9, 20, 0.699, 0.972)])
def test_the_wilson_interval_is_the_published_one(share, n, low, high):
    assert wilson_interval(share, n, quantile=1.959964) == pytest.approx((low, high), abs=PRINTED)


def test_the_ends_of_a_loss_are_as_far_from_it_as_their_own_spread_allows():
    # variance 0.01 at 0.5, in proportion 0.02 at 1; two standard deviations
    for end in score_interval("log_loss", 0.5, np.array([0.4, 0.6]), quantile=2.0):
        assert (end - 0.5) ** 2 == pytest.approx(2.0 ** 2 * 0.02 * end)


@pytest.mark.parametrize(("name", "largest"), [("brier_score", 2), ("ece", 1)])
def test_no_loss_exceeds_the_largest_that_there_is(name, largest):
    assert score_interval(name, 0.9 * largest, np.array([0.0, largest]), quantile=12.7)[1] == largest
    assert score_interval("log_loss", 1.8, np.array([0.0, 2.0]), quantile=12.7)[1] > 2


def test_a_loss_of_nothing_is_not_certain():
    for name in ("ece", "log_loss"):
        low, high = score_interval(name, 0.0, np.array([0.0, 0.1]), quantile=2.0)
        assert low == 0 and 0.1 < high < 0.5


def test_the_calibration_error_of_noise_alone_may_be_nothing():
    """The error of a calibrated model is all noise; resampling adds the same again, and the mean rises by root 2."""
    noise = 0.1 * np.sqrt(2) + np.array([-0.01, 0.01])
    low, high = score_interval("ece", 0.1, noise, quantile=2.0)
    assert low == 0 and (high - 0.1) ** 2 == pytest.approx(4 * 1e-4 / (0.1 * np.sqrt(2)) * high)
    assert score_interval("ece", 0.1, np.array([0.09, 0.11]), quantile=2.0)[0] == pytest.approx(0.08)


def test_the_largest_error_of_a_calibrated_model_is_that_of_all_signs():
    """Three recordings, one bin: 8 ways to give their gaps signs, of which the largest sum has a share of 2/8."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    segments = ScoredSegments(probabilities, np.array([0, 1, 1]), ("owl", "fox"))  # gaps 0.1, -0.9, -0.9
    bootstrap = resamples(["a", "b", "c"], n_bootstrap=4000)
    errors = sorted(abs(sum(signs * np.array([0.1, -0.9, -0.9]))) / 3 for signs in itertools.product([-1, 1], repeat=3))
    assert largest_calibrated_error(segments, bootstrap) == pytest.approx(errors[-1])
    unsure = dataclasses.replace(bootstrap, confidence=0.1)
    assert largest_calibrated_error(segments, unsure) == pytest.approx(errors[4])


def test_a_calibrated_model_may_have_no_error(rng):
    """A calibrated one has: whatever it shows is noise. One that is too sure by far has not."""
    confidence = rng.uniform(0.5, 1, size=400)
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    ids = np.arange(400) // 2
    for rate, is_calibrated in ((confidence, True), (confidence - 0.3, False)):
        segments = ScoredSegments(probabilities, (rng.random(400) > rate).astype(int), ("owl", "fox"))
        low = score_intervals(segments, resamples(ids))[0]["ece"][0]
        assert (low == 0) == is_calibrated
        assert (metrics.evaluate_segments(segments)["ece"] <= largest_calibrated_error(segments, resamples(ids))
                ) == is_calibrated


def test_nothing_is_told_where_nothing_varies():
    assert score_interval("accuracy", 0.5, np.full(10, 0.5), quantile=2.0) is None
    assert score_interval("macro_roc_auc", 0.5, np.array([np.nan, 0.1]), quantile=2.0) is None
    assert difference_interval(0.1, np.array([np.nan, 0.1]), confidence=0.95, degrees_of_freedom=3) is None


def test_the_interval_of_a_difference_uses_students_quantile():
    found = difference_interval(0.2, np.array([0.1, 0.3]), confidence=0.95, degrees_of_freedom=3)
    assert found == pytest.approx((0.2 - 0.1 * 3.182446, 0.2 + 0.1 * 3.182446), abs=1e-6)


@pytest.mark.parametrize(("spreads", "n_recordings", "expected"), [
    ([1.0, 1.0], [4, 4], 6), ([1.0, 0.0], [4, 50], 3), ([0.0, 0.0], [4, 4], 1), ([1.0, 1.0], [4, 0], 3),
    ([1.0, np.sqrt(2)], [3, 11], 9 / (1 / 2 + 4 / 10)),
])
def test_degrees_of_freedom_by_hand(spreads, n_recordings, expected):
    values = np.array(spreads)[:, None] * [-1.0, 1.0]
    given = {"support": np.array([10.0, 10.0]), "n_recordings": np.array(n_recordings)}
    for name in ("macro_f1", "accuracy"):
        found = degrees_of_freedom(name, {"f1": values, "recall": values}, **given)
        assert found == pytest.approx(expected), name


def test_degrees_of_freedom_weigh_the_classes_by_their_support():
    values = np.array([[-1.0, 1.0], [-1.0, 1.0]])
    given = {"support": np.array([10.0, 20.0]), "n_recordings": np.array([4, 4])}
    assert degrees_of_freedom("macro_recall", {"recall": values}, **given) == pytest.approx(6)
    # the variances are 100 and 400
    found = degrees_of_freedom("accuracy", {"recall": values}, **given)
    assert found == pytest.approx(500 ** 2 * 3 / (100 ** 2 + 400 ** 2))


def test_a_share_of_all_segments_does_not_vary_with_the_least_certain_class():
    by_class = {"precision": np.array([[-9.0, 9.0], [-0.1, 0.1]]), "recall": np.array([[-1.0, 1.0], [-1.0, 1.0]])}
    given = {"support": np.array([10.0, 10.0]), "n_recordings": np.array([3, 21])}
    assert degrees_of_freedom("macro_precision", by_class, **given) == pytest.approx(2, abs=0.01)
    assert degrees_of_freedom("precision", by_class, **given) == pytest.approx(4 / (1 / 2 + 1 / 20))


def test_a_class_has_as_many_degrees_of_freedom_as_recordings_less_one(rng):
    probabilities, labels = draw(rng, n=40)
    labels = np.repeat(np.arange(4), 10)
    bootstrap, segments = resamples(np.arange(40) // 2), ScoredSegments(probabilities, labels, CLASS_NAMES)
    recalls = resampled_scores(segments, bootstrap)[1]["recall"][2]
    found = score_intervals(segments, bootstrap)[1][2]["recall"]
    value = metrics.evaluate_segments(segments)["per_class"][2]["recall"]
    assert found == score_interval("recall", value, recalls, quantile=float(stats.t.ppf(0.975, 4)))


# simulation

def coverage(name, n_recordings, n_simulations):
    found = [covered(name, n_recordings, seed) for seed in range(n_simulations)]
    return {score: np.mean([row[score][0] for row in found if score in row]) for score in truth(name)}


def test_a_short_simulation_covers_the_truth():
    """Each of the scores may miss by chance; all of them together do not."""
    shares = coverage("varied", 4, 60)
    assert np.mean([shares[score] for score in PROMISED]) >= LEAST_COVERAGE


@pytest.mark.slow
@pytest.mark.parametrize("n_recordings", [4, 10, 50])
def test_the_calibration_error_of_a_calibrated_model_is_covered(n_recordings):
    assert coverage("calibrated", n_recordings, 1000)["ece"] >= LEAST_COVERAGE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["varied", "easy"])
@pytest.mark.parametrize("n_recordings", [4, 10, 50])
def test_intervals_cover_the_truth(name, n_recordings):
    shares = coverage(name, n_recordings, 1000)
    assert {score: share for score, share in shares.items() if score in PROMISED and share < LEAST_COVERAGE} == {}
    if n_recordings == 50:
        assert max(shares[score] for score in PROMISED) <= MOST_COVERAGE
