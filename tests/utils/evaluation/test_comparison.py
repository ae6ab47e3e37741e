import dataclasses
import json
import warnings

import numpy as np
import pytest

from tests.utils.evaluation.test_intervals import resamples
from tests.utils.test_metrics import CLASS_NAMES, EXACT, draw
from utils.evaluation.comparison import Difference, McNemar, paired_comparison
from utils.metrics import ScoredSegments


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def compare(a, b, labels, recording_ids):
    return paired_comparison(ScoredSegments(a, labels, CLASS_NAMES), ScoredSegments(b, labels, CLASS_NAMES),
                             resamples(recording_ids))


def test_inputs_are_not_changed_and_nothing_warns(rng):
    probabilities, labels = draw(rng, absent=(1,))
    before = probabilities.copy(), labels.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(probabilities, probabilities[:, ::-1], labels, labels)
    np.testing.assert_array_equal(probabilities, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_mcnemar_by_hand():
    labels = np.zeros(15, dtype=int)
    right, wrong = np.eye(4)[0], np.eye(4)[1]
    a = np.array([right] * 1 + [wrong] * 9 + [right] * 5)
    b = np.array([wrong] * 1 + [right] * 9 + [right] * 5)
    result = compare(a, b, labels, np.arange(15))
    assert result.mcnemar == McNemar(only_a_correct=1, only_b_correct=9, p=pytest.approx(0.021484375))
    assert result.differences["accuracy"].difference == pytest.approx(-8 / 15)
    json.dumps(dataclasses.asdict(result), allow_nan=False)


def test_comparison_says_better_and_worse_by_the_stated_metric(rng):
    weak, labels = draw(rng)
    strong, recording_ids = np.eye(4)[labels], np.arange(len(labels))
    better, worse = compare(strong, weak, labels, recording_ids), compare(weak, strong, labels, recording_ids)
    assert (better.verdict, worse.verdict) == ("better", "worse")
    assert (better.verdict_metric, better.confidence) == ("macro_f1", 0.95)
    assert better.n_recordings == len(labels)
    low, high = better.differences["macro_f1"].interval
    assert 0 < low < better.differences["macro_f1"].difference < high
    assert worse.differences["macro_f1"].interval == pytest.approx((-high, -low), abs=EXACT)


def test_comparison_of_a_model_with_itself_draws_the_same_recordings_for_both(rng):
    probabilities, labels = draw(rng)
    result = compare(probabilities, probabilities, labels, np.arange(len(labels)))
    assert result.verdict == "no significant difference"
    assert result.mcnemar.p == 1.0
    assert set(result.differences.values()) == {Difference(0.0, (0.0, 0.0))}


def test_a_single_recording_gives_a_difference_but_no_verdict(rng):
    probabilities, labels = draw(rng)
    result = compare(np.eye(4)[labels], probabilities, labels, ["only one"] * len(labels))
    assert result.verdict == "no significant difference"
    assert result.differences["macro_f1"].difference > 0 and result.differences["macro_f1"].interval is None
