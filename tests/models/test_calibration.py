import numpy as np
import pytest

from models import calibration
from models.calibration import Calibration, cross_fitted_probabilities
from models.errors import ConfigError

MANY = 100_000  # recordings, against which the prior of biases, worth 300, is small
TEMPERATURE_TOLERANCE = 0.1  # sampling error of the labels and the pull of the prior
BIAS_TOLERANCE = 0.15  # nats; the pull of the prior on the largest bias is 0.04
SHARE_TOLERANCE = 0.01  # the prior takes 300 of 100 000 recordings
SOLVER = 1e-3  # where L-BFGS stops
ALL_RIGHT = 30  # recordings


def draw_labels(rng, probabilities):
    return (probabilities.cumsum(axis=1) < rng.random((len(probabilities), 1))).sum(axis=1)


def all_right(probability, *, n_classes=2, n=ALL_RIGHT):
    """Return rows whose top class is the true one and has ``probability`` at temperature 1."""
    labels = np.arange(n) % n_classes
    return np.log(probability / (1 - probability) * (n_classes - 1)) * np.eye(n_classes)[labels], labels


def test_softmax_by_hand_with_temperature_and_biases():
    logits = np.array([[0.0, np.log(9.0)]])
    np.testing.assert_allclose(Calibration(1.0).probabilities(logits), [[0.1, 0.9]])
    np.testing.assert_allclose(Calibration(2.0).probabilities(logits), [[0.25, 0.75]])
    np.testing.assert_allclose(Calibration(2.0, (np.log(3.0), 0.0)).probabilities(logits), [[0.5, 0.5]])


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="temperature must be positive, got 0"):
        Calibration(0)
    with pytest.raises(ConfigError, match="class_biases must be finite"):
        Calibration(1.0, (0.0, np.inf))
    with pytest.raises(ConfigError, match="one for each of 2 classes, got 1"):
        Calibration(1.0, (0.5,)).probabilities(np.zeros((3, 2)))


def test_a_checkpoint_keeps_it_and_those_of_2_0_0_have_no_biases():
    fitted = Calibration(0.7, (0.5, -0.5))
    assert fitted.to_dict() == {"temperature": 0.7, "class_biases": [0.5, -0.5]}
    assert Calibration.from_dict(fitted.to_dict()) == fitted
    assert Calibration.from_dict({"temperature": 1.5}) == Calibration(1.5)
    assert Calibration(1.5).to_dict() == {"temperature": 1.5}


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_many_rows_give_back_the_temperature_and_biases_their_labels_were_drawn_with(rng, temperature):
    true = Calibration(temperature, (1.0, 0.3, -0.2, -1.1))
    logits = rng.normal(scale=2.0 * temperature, size=(MANY, 4))
    labels = draw_labels(rng, true.probabilities(logits))
    fitted = calibration.fit(logits, labels)
    assert fitted.temperature == pytest.approx(temperature, rel=TEMPERATURE_TOLERANCE)
    np.testing.assert_allclose(fitted.class_biases, true.class_biases, atol=BIAS_TOLERANCE)
    assert sum(fitted.class_biases) == pytest.approx(0, abs=1e-12)


def balanced_logits(rng, n):
    """Return logits of a network trained with balanced weights, which takes all classes as equally frequent."""
    labels = rng.choice(3, size=n, p=[0.7, 0.2, 0.1])
    return 1.5 * np.eye(3)[labels] + rng.normal(size=(n, 3)), labels  # what a class sounds like, not how often


def test_the_shares_of_a_few_hundred_recordings_stay_those_of_their_place(rng):
    """Classes have other shares elsewhere: a balanced network keeps its balance."""
    fitted = calibration.fit(*balanced_logits(rng, 300))
    assert max(map(abs, fitted.class_biases)) < 0.3
    assert max(map(abs, calibration.fit(*balanced_logits(rng, MANY)).class_biases)) > 0.6


def test_a_prior_that_class_weights_shifted_is_put_right_by_many_recordings(rng):
    logits, labels = balanced_logits(rng, MANY)
    balanced = Calibration().probabilities(logits).mean(axis=0)
    assert balanced[0] < 0.6 and balanced[2] > 0.15
    calibrated = calibration.fit(logits, labels).probabilities(logits).mean(axis=0)
    np.testing.assert_allclose(calibrated, np.bincount(labels) / len(labels), atol=SHARE_TOLERANCE)


@pytest.mark.parametrize("n_classes", [2, 6])
@pytest.mark.parametrize("probability", [0.71, 0.9, 0.99])
def test_a_small_set_that_is_all_right_makes_nobody_certain(probability, n_classes):
    logits, labels = all_right(probability, n_classes=n_classes)
    fitted = calibration.fit(logits, labels)
    assert 0.49 < fitted.temperature < 1
    # Laplace's rule of succession: what 30 of 30 say of the next
    most = max(probability, (ALL_RIGHT + 1) / (ALL_RIGHT + 2))
    assert probability < fitted.probabilities(logits).max() < most + 0.01


def test_weak_random_logits_do_not_become_confident(rng):
    for _ in range(10):  # in some draws chance agrees with the labels
        logits, labels = rng.normal(scale=0.1, size=(30, 4)), rng.integers(0, 4, size=30)
        assert Calibration().probabilities(logits).max() < 0.36
        assert calibration.fit(logits, labels).probabilities(logits).max() < 0.5


def test_wrong_and_certain_logits_lower_the_confidence_at_once():
    sure = 50.0 * np.eye(2)
    low, high = calibration.TEMPERATURE_RANGE
    assert 5 < calibration.fit(sure, np.array([1, 0])).temperature <= high
    assert low <= calibration.fit(sure, np.array([0, 1])).temperature <= 1


@pytest.mark.parametrize("labels", [[0], [1, 1]])
def test_one_class_says_nothing_of_the_others(labels):
    assert calibration.fit(np.ones((len(labels), 2)), np.array(labels)) == Calibration()


def test_the_windows_of_a_recording_count_as_one(rng):
    logits, labels = rng.normal(size=(20, 3)), rng.integers(0, 3, size=20)
    windows = np.repeat(np.arange(20), rng.integers(1, 9, size=20))
    alone = calibration.fit(logits, labels)
    repeated = calibration.fit(logits[windows], labels[windows], recording_ids=windows.astype(str))
    assert repeated.temperature == pytest.approx(alone.temperature, rel=SOLVER)
    np.testing.assert_allclose(repeated.class_biases, alone.class_biases, atol=SOLVER)
    assert calibration.fit(logits[windows], labels[windows]).temperature != pytest.approx(alone.temperature, rel=SOLVER)


def test_a_fold_is_calibrated_by_the_others(rng):
    logits, labels = rng.normal(size=(12, 3)), np.arange(12) % 3
    recording_ids, folds = np.repeat(np.arange(6), 2), [np.arange(4), np.arange(4, 8), np.arange(8, 12)]
    found = cross_fitted_probabilities(logits, labels, folds, recording_ids=recording_ids)
    others = np.r_[0:4, 8:12]
    fitted = calibration.fit(logits[others], labels[others], recording_ids=recording_ids[others])
    np.testing.assert_array_equal(found[4:8], fitted.probabilities(logits[4:8]))
    changed = cross_fitted_probabilities(logits, np.r_[labels[:4], 0, 0, 0, 0, labels[8:]], folds)
    kept = cross_fitted_probabilities(logits, labels, folds)
    np.testing.assert_array_equal(changed[4:8], kept[4:8])  # a fold's own labels do not touch it
    assert not np.allclose(changed[:4], kept[:4])


def test_cross_fitting_shows_what_fitting_on_the_scored_rows_hides(rng):
    """With few rows the fitted log loss is too good; out of fold it is not below that of the truth."""
    gaps = []
    for _ in range(20):
        logits = rng.normal(scale=2.0, size=(30, 5))
        labels = draw_labels(rng, Calibration().probabilities(logits))
        in_sample = calibration.fit(logits, labels).probabilities(logits)
        crossed = cross_fitted_probabilities(logits, labels, np.array_split(np.arange(30), 5))
        gaps.append(np.log(in_sample[np.arange(30), labels]).mean() - np.log(crossed[np.arange(30), labels]).mean())
    assert np.mean(gaps) > 0.02


@pytest.mark.parametrize("folds", [[[0, 1], [1, 2]], [[0, 1]], [[0, 1, 2, 3]]])
def test_folds_that_are_none_are_refused(folds):
    with pytest.raises(ConfigError, match="folds must hold each of 3 rows once"):
        cross_fitted_probabilities(np.eye(3), np.arange(3), [np.array(fold) for fold in folds])


def test_inputs_are_not_changed(rng):
    logits, labels = rng.normal(size=(9, 3)).astype(np.float32), np.arange(9) % 3
    before = logits.copy(), labels.copy()
    cross_fitted_probabilities(logits, labels, np.array_split(np.arange(9), 3))
    np.testing.assert_array_equal(logits, before[0])
    np.testing.assert_array_equal(labels, before[1])
