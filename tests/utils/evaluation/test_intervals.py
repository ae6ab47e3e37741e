import numpy as np
import pytest

from models.classes import DecisionRules
from models.errors import ConfigError
from tests.utils.test_metrics import CLASS_NAMES, EXACT, draw
from utils import metrics
from utils.evaluation import intervals
from utils.evaluation.intervals import Bootstrap, answered_intervals, score_intervals
from utils.metrics import ScoredSegments


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def resamples(recording_ids, **changes):
    return Bootstrap(recording_ids=recording_ids, **{"n_bootstrap": 300, "confidence": 0.95, "seed": 0, **changes})


def overall_intervals(probabilities, labels, recording_ids, **changes):
    segments = ScoredSegments(probabilities, labels, CLASS_NAMES)
    return score_intervals(segments, resamples(recording_ids, **changes))[0]


def test_bootstrap_scores_equal_evaluate_on_the_rows_drawn(rng):
    probabilities, labels = draw(rng, n=40, absent=(3,))
    recording_ids = np.repeat(np.arange(10), 4)
    drawn = np.random.default_rng(3).multinomial(10, np.full(10, 0.1), size=1)[0]
    rows = np.repeat(np.arange(40), drawn[recording_ids])
    expected = metrics.evaluate(probabilities[rows], labels[rows], class_names=CLASS_NAMES)
    overall, by_class = score_intervals(ScoredSegments(probabilities, labels, CLASS_NAMES),
                                        resamples(recording_ids, seed=3, n_bootstrap=1))
    for name, (low, high) in overall.items():
        assert low == high == pytest.approx(expected[name], abs=EXACT), name
    assert [row.pop("class_name") for row in by_class] == list(CLASS_NAMES)
    for row, found in zip(expected["per_class"], by_class):
        for score, interval in found.items():
            assert interval == (None if row[score] is None else pytest.approx([row[score]] * 2, abs=EXACT)), score


def test_bootstrap_covers_every_score_of_evaluate(rng):
    probabilities, labels = draw(rng)
    scores = metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES)
    overall, by_class = score_intervals(ScoredSegments(probabilities, labels, CLASS_NAMES),
                                        resamples(np.arange(len(labels))))
    assert set(overall) == set(scores) - {"n_segments", "per_class", "confusion_matrix"}
    for name in ("accuracy", "macro_f1", "macro_roc_auc", "log_loss"):
        assert overall[name][0] < scores[name] < overall[name][1]
    for row, found in zip(scores["per_class"], by_class):
        assert set(found) == set(row) - {"support"}
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


def test_bootstrap_draws_recordings_so_copies_of_a_row_add_no_certainty(rng):
    probabilities, labels = draw(rng, n=30)
    recording_ids = [f"recording {k:02d}" for k in range(30)]
    once = overall_intervals(probabilities, labels, recording_ids)
    copied = overall_intervals(probabilities.repeat(10, axis=0), labels.repeat(10), np.repeat(recording_ids, 10))
    for name, interval in once.items():
        assert copied[name] == pytest.approx(interval, abs=EXACT), name


def test_bootstrap_does_not_depend_on_how_many_resamples_are_held_at_once(rng, monkeypatch):
    probabilities, labels = draw(rng)
    whole = overall_intervals(probabilities, labels, labels)
    monkeypatch.setattr(intervals, "RESAMPLED_CELLS", 7 * len(labels))
    parts = overall_intervals(probabilities, labels, labels)
    for name, interval in whole.items():
        assert parts[name] == pytest.approx(interval, abs=EXACT), name


def test_bootstrap_of_an_always_correct_classifier_is_certain():
    labels = np.arange(20) % 4
    found = overall_intervals(np.eye(4)[labels], labels, np.arange(20))
    for name in ("accuracy", "macro_f1", "macro_roc_auc", "macro_average_precision"):
        assert found[name] == (1.0, 1.0)
    assert found["log_loss"] == (0.0, 0.0)


def test_bootstrap_repeats_with_the_seed_and_differs_without(rng):
    probabilities, labels = draw(rng)
    recording_ids = np.arange(len(labels)) // 3
    first = overall_intervals(probabilities, labels, recording_ids)
    assert overall_intervals(probabilities, labels, recording_ids) == first
    assert overall_intervals(probabilities, labels, recording_ids, seed=1) != first


def test_a_larger_confidence_gives_a_wider_interval(rng):
    probabilities, labels = draw(rng)
    narrow, wide = (overall_intervals(probabilities, labels, np.arange(len(labels)), confidence=confidence)["accuracy"]
                    for confidence in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_segments_and_recordings_are_counted():
    bootstrap = resamples(["b", "a", "b"])
    assert (bootstrap.n_segments, bootstrap.n_recordings) == (3, 2)


def test_one_recording_gives_no_interval(rng):
    probabilities, labels = draw(rng)
    assert set(overall_intervals(probabilities, labels, ["only one"] * len(labels)).values()) == {None}


@pytest.mark.parametrize(("changes", "message"), [
    ({"n_bootstrap": 0}, "n_bootstrap must be at least 1, got 0"),
    ({"confidence": 95}, "confidence must be in 0..1.*got 95"),
    ({"recording_ids": ["a"]}, r"one entry per row \(120\), got 1"),
])
def test_bootstrap_refuses_impossible_arguments(rng, changes, message):
    probabilities, labels = draw(rng)
    with pytest.raises(ConfigError, match=message):
        overall_intervals(probabilities, labels, **{"recording_ids": labels, **changes})
