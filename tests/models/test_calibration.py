import numpy as np
import pytest

from models import calibration
from models.calibration import Calibration
from models.errors import ConfigError

TEMPERATURE_TOLERANCE = 0.1  # sampling error of 20 000 drawn labels


def test_softmax_by_hand_with_temperature():
    logits = np.array([[0.0, np.log(9.0)]])
    np.testing.assert_allclose(Calibration(1.0).probabilities(logits), [[0.1, 0.9]])
    np.testing.assert_allclose(Calibration(2.0).probabilities(logits), [[0.25, 0.75]])
    with pytest.raises(ConfigError, match="temperature must be positive, got 0"):
        Calibration(0)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_fit_temperature_recovers_the_one_the_labels_were_drawn_with(rng, temperature):
    logits = rng.normal(scale=4.0, size=(20_000, 4))
    cumulative = Calibration(temperature).probabilities(logits).cumsum(axis=1)
    labels = (cumulative < rng.random((len(logits), 1))).sum(axis=1)
    assert calibration.fit(logits, labels).temperature == pytest.approx(temperature, rel=TEMPERATURE_TOLERANCE)


def test_fit_temperature_never_leaves_its_range_and_gives_1_for_too_little_data():
    sure = np.array([[50.0, 0.0], [0.0, 50.0]])
    low, high = calibration.TEMPERATURE_RANGE
    assert low <= calibration.fit(sure, np.array([0, 1])).temperature < 1
    assert 1 < calibration.fit(sure, np.array([1, 0])).temperature <= high
    assert calibration.fit(sure[:1], np.array([0])).temperature == 1.0
    assert calibration.fit(sure, np.array([0, 0])).temperature == 1.0
