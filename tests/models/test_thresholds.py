import numpy as np
import pytest
from scipy import stats

from models import calibration, thresholds
from models.classes import DecisionRules
from models.thresholds import NEVER, thresholds_for_precision

NAMES = ("owl", "fox", "frog")
CONFIDENCE = 0.99  # of a test side's interval: of some 30 of them, all but one in three runs hold what is true


def choose(probabilities, labels, target, recording_ids=None):
    ids = np.arange(len(labels)) if recording_ids is None else recording_ids
    return thresholds_for_precision(np.array(probabilities), np.array(labels), class_names=NAMES[:2],
                                    target_precision=target, recording_ids=ids)


def owls(scores):
    return np.stack([scores, 1 - np.asarray(scores)], axis=1)


def test_the_lower_bound_agrees_with_scipy():
    confidence = 2 * stats.norm.cdf(thresholds.BOUND_DEVIATIONS) - 1
    assert stats.norm.cdf(thresholds.BOUND_DEVIATIONS) == pytest.approx(0.8, abs=1e-4)  # four digits
    for hits, trials in ((0, 3), (7, 9), (20, 20)):
        expected = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson").low
        assert thresholds._lower_bound(np.array(hits / trials), np.array(trials)) == pytest.approx(expected, abs=1e-9)


def test_a_threshold_by_hand():
    """40 windows said to be owls with 0.9, all right, then 20 with 0.6, half of them right."""
    scores, labels = np.r_[np.full(40, 0.9), np.full(20, 0.6)], np.r_[np.zeros(40, int), np.arange(20) % 2]
    # 20 trials more, of which the mean probabilities, 0.9 and 0.8, are right
    bounds = [float(thresholds._lower_bound(np.array(hits / trials), np.array(trials)))
              for hits, trials in ((40 + 18, 40 + 20), (50 + 16, 60 + 20))]
    for target, expected in ((bounds[1] - 1e-6, 0.6), (bounds[1] + 1e-6, 0.9), (bounds[0] - 1e-6, 0.9),
                             (bounds[0] + 1e-6, NEVER)):
        assert choose(owls(scores), labels, target)["owl"] == expected


def test_equal_probabilities_are_taken_together():
    scores, labels = np.full(60, 0.9), np.r_[np.zeros(40, int), np.ones(20, int)]
    assert choose(owls(scores), labels, 0.85)["owl"] == NEVER  # the first 40 alone would be enough


def test_a_class_that_is_never_on_top_promises_nothing():
    assert choose(owls([0.9] * 50), [0] * 50, 0.9) == {"owl": 0.9, "fox": NEVER}


def test_a_higher_target_never_lowers_a_threshold(rng):
    probabilities, labels, _ = drawn(rng, 400)
    found = [thresholds_for_precision(probabilities, labels, class_names=NAMES, target_precision=target,
                                      recording_ids=np.arange(400)) for target in (0.5, 0.7, 0.8, 0.9, 0.97)]
    for low, high in zip(found, found[1:]):
        assert all(low[name] <= high[name] for name in NAMES)


def test_windows_of_one_recording_are_no_independent_witnesses():
    scores, labels = np.full(60, 0.9), np.zeros(60, int)
    assert choose(owls(scores), labels, 0.93)["owl"] == 0.9
    assert choose(owls(scores), labels, 0.93, recording_ids=["one night"] * 60)["owl"] == NEVER


def drawn(rng, n):
    """Return cross-fitted probabilities, labels and what the final calibration makes of logits."""
    labels = rng.choice(3, size=n, p=[0.5, 0.3, 0.2])
    logits = 3.0 * np.eye(3)[labels] + rng.normal(size=(n, 3)) * np.array([1.5, 1.8, 2.0])[labels][:, None]
    folds = np.array_split(rng.permutation(n), 5)
    return (calibration.cross_fitted_probabilities(logits, labels, folds), labels, calibration.fit(logits, labels))


@pytest.mark.parametrize("target", [0.8, 0.9])
def test_thresholds_of_one_half_keep_their_promise_on_the_other(rng, target):
    n_kept = n_told = 0
    for _ in range(10):
        probabilities, labels, fitted = drawn(rng, 300)
        found = thresholds_for_precision(probabilities, labels, class_names=NAMES, target_precision=target,
                                         recording_ids=np.arange(len(labels)))
        other_labels = rng.choice(3, size=300, p=[0.5, 0.3, 0.2])
        noise = rng.normal(size=(300, 3)) * np.array([1.5, 1.8, 2.0])[other_labels][:, None]
        other = fitted.probabilities(3.0 * np.eye(3)[other_labels] + noise)
        answers = DecisionRules(found, "unknown").answers(other, NAMES)
        for k in range(3):
            right = other_labels[answers == k] == k
            if len(right):
                interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE)
                n_told, n_kept = n_told + 1, n_kept + (interval.high >= target)
    assert n_told >= 24  # most classes can keep it
    assert n_kept >= n_told - 1


def test_inputs_are_not_changed(rng):
    probabilities, labels, _ = drawn(rng, 60)
    before = probabilities.copy(), labels.copy()
    thresholds_for_precision(probabilities, labels, class_names=NAMES, target_precision=0.9,
                             recording_ids=np.arange(60))
    np.testing.assert_array_equal(probabilities, before[0])
    np.testing.assert_array_equal(labels, before[1])
