import json
import warnings

import numpy as np
import pytest

from models.errors import ConfigError
from tests.utils.test_metrics import CLASS_NAMES, EXACT, draw
from utils import metrics
from utils.evaluation import intervals


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def bootstrap(probabilities, labels, recording_ids, *, seed=0, n_bootstrap=300, function=intervals.bootstrap_intervals):
    return function(probabilities, labels, recording_ids, class_names=CLASS_NAMES, n_bootstrap=n_bootstrap,
                    confidence=0.95, rng=np.random.default_rng(seed))


def compare(a, b, labels, recording_ids, *, seed=0):
    return intervals.paired_comparison(a, b, labels, recording_ids, class_names=CLASS_NAMES, n_bootstrap=300,
                                       confidence=0.95, rng=np.random.default_rng(seed))


def test_bootstrap_scores_equal_evaluate_on_the_rows_drawn(rng):
    probabilities, labels = draw(rng, n=40, absent=(3,))
    recording_ids = np.repeat(np.arange(10), 4)
    drawn = np.random.default_rng(3).multinomial(10, np.full(10, 0.1), size=1)[0]
    rows = np.repeat(np.arange(40), drawn[recording_ids])
    expected = metrics.evaluate(probabilities[rows], labels[rows], class_names=CLASS_NAMES)
    found = bootstrap(probabilities, labels, recording_ids, seed=3, n_bootstrap=1)
    for name, (low, high) in found.items():
        assert low == high == pytest.approx(expected[name], abs=EXACT), name
    for name, intervals_of_class in zip(CLASS_NAMES, bootstrap(
            probabilities, labels, recording_ids, seed=3, n_bootstrap=1, function=intervals.per_class_intervals)):
        assert intervals_of_class.pop("class_name") == name
        row = expected["per_class"][CLASS_NAMES.index(name)]
        for score, interval in intervals_of_class.items():
            assert interval == (None if row[score] is None else pytest.approx([row[score]] * 2, abs=EXACT)), score


def test_bootstrap_covers_every_scalar_of_evaluate(rng):
    probabilities, labels = draw(rng)
    scores = metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES)
    found = bootstrap(probabilities, labels, np.arange(len(labels)))
    assert set(found) == set(scores) - {"n_segments", "per_class", "confusion_matrix"}
    for name in ("accuracy", "macro_f1", "macro_roc_auc", "log_loss"):
        assert found[name][0] < scores[name] < found[name][1]


def test_bootstrap_draws_recordings_so_copies_of_a_row_add_no_certainty(rng):
    probabilities, labels = draw(rng, n=30)
    recording_ids = [f"recording {k:02d}" for k in range(30)]
    once = bootstrap(probabilities, labels, recording_ids)
    copied = bootstrap(probabilities.repeat(10, axis=0), labels.repeat(10), np.repeat(recording_ids, 10))
    for name, interval in once.items():
        assert copied[name] == pytest.approx(interval, abs=EXACT), name


def test_bootstrap_does_not_depend_on_how_many_resamples_are_held_at_once(rng, monkeypatch):
    probabilities, labels = draw(rng)
    whole = bootstrap(probabilities, labels, labels)
    monkeypatch.setattr(intervals, "RESAMPLED_CELLS", 7 * len(labels))
    parts = bootstrap(probabilities, labels, labels)
    for name, interval in whole.items():
        assert parts[name] == pytest.approx(interval, abs=EXACT), name


def test_bootstrap_of_an_always_correct_classifier_is_certain():
    labels = np.arange(20) % 4
    found = bootstrap(np.eye(4)[labels], labels, np.arange(20))
    for name in ("accuracy", "macro_f1", "macro_roc_auc", "macro_average_precision"):
        assert found[name] == [1.0, 1.0]
    assert found["log_loss"] == [0.0, 0.0]


def test_bootstrap_repeats_with_the_seed_and_differs_without(rng):
    probabilities, labels = draw(rng)
    recording_ids = np.arange(len(labels)) // 3
    assert bootstrap(probabilities, labels, recording_ids) == bootstrap(probabilities, labels, recording_ids)
    assert bootstrap(probabilities, labels, recording_ids) != bootstrap(probabilities, labels, recording_ids, seed=1)


def test_one_recording_gives_no_interval(rng):
    probabilities, labels = draw(rng)
    assert set(bootstrap(probabilities, labels, ["only one"] * len(labels)).values()) == {None}


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_bootstrap": 0}, "n_bootstrap must be at least 1, got 0"),
    ({"confidence": 95}, "confidence must be in 0..1.*got 95"),
    ({"recording_ids": ["a"]}, r"one entry per row \(120\), got 1"),
])
def test_bootstrap_refuses_impossible_arguments(rng, changes, message):
    probabilities, labels = draw(rng)
    arguments = {"recording_ids": labels, "n_bootstrap": 10, "confidence": 0.9, "class_names": CLASS_NAMES, "rng": rng}
    with pytest.raises(ConfigError, match=message):
        intervals.bootstrap_intervals(probabilities, labels, **{**arguments, **changes})


def test_inputs_are_not_changed_and_nothing_warns(rng):
    probabilities, labels = draw(rng, absent=(1,))
    before = probabilities.copy(), labels.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(probabilities, probabilities[:, ::-1], labels, labels)
    np.testing.assert_array_equal(probabilities, before[0])
    np.testing.assert_array_equal(labels, before[1])


def test_comparison_by_hand_mcnemar():
    labels = np.zeros(15, dtype=int)
    right, wrong = np.eye(4)[0], np.eye(4)[1]
    a = np.array([right] * 1 + [wrong] * 9 + [right] * 5)
    b = np.array([wrong] * 1 + [right] * 9 + [right] * 5)
    result = compare(a, b, labels, np.arange(15))
    assert result["mcnemar"] == {"only_a_correct": 1, "only_b_correct": 9, "p": pytest.approx(0.021484375)}
    assert result["differences"]["accuracy"]["difference"] == pytest.approx(-8 / 15)
    json.dumps(result, allow_nan=False)


def test_comparison_says_better_and_worse_by_the_stated_metric(rng):
    weak, labels = draw(rng)
    strong, recording_ids = np.eye(4)[labels], np.arange(len(labels))
    better, worse = compare(strong, weak, labels, recording_ids), compare(weak, strong, labels, recording_ids)
    assert (better["verdict"], worse["verdict"]) == ("better", "worse")
    assert better["verdict_metric"] == "macro_f1"
    assert better["n_recordings"] == len(labels)
    low, high = better["differences"]["macro_f1"]["interval"]
    assert 0 < low < better["differences"]["macro_f1"]["difference"] < high
    assert worse["differences"]["macro_f1"]["interval"] == pytest.approx([-high, -low], abs=EXACT)


def test_comparison_of_a_model_with_itself_draws_the_same_recordings_for_both(rng):
    probabilities, labels = draw(rng)
    result = compare(probabilities, probabilities, labels, np.arange(len(labels)))
    assert result["verdict"] == "no significant difference"
    assert result["mcnemar"]["p"] == 1.0
    for row in result["differences"].values():
        assert row == {"difference": 0.0, "interval": [0.0, 0.0]}
