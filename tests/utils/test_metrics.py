import json
import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from models.classes import DecisionRules
from models.errors import ConfigError
from utils import metrics

EXACT = 1e-12  # the same formula in another order of additions
CLASS_NAMES = ("bird", "mammal", "insect", "frog")


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def draw(rng, *, n=120, n_classes=4, absent=()):
    """Draw rounded (so tied) probabilities that lean towards labels in which some classes never occur."""
    labels = rng.choice([k for k in range(n_classes) if k not in absent], size=n)
    raw = np.round(rng.random((n, n_classes)) + 0.4 * np.eye(n_classes)[labels], 1) + 0.1
    return raw / raw.sum(axis=1, keepdims=True), labels


@pytest.fixture(params=[(), (2,), (0, 3)], ids=["all classes", "one absent", "two absent"])
def drawn(request, rng):
    return draw(rng, absent=request.param)


def test_confusion_matrix_has_truth_in_rows_and_keeps_absent_classes():
    confusion = metrics.confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), n_classes=3)
    assert confusion.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_classification_scores_agree_with_scikit_learn(drawn):
    probabilities, labels = drawn
    predictions, present = probabilities.argmax(axis=1), np.unique(labels)
    scores = metrics.classification_scores(metrics.confusion_matrix(labels, predictions, n_classes=4))
    assert scores["accuracy"] == pytest.approx(reference.accuracy_score(labels, predictions), abs=EXACT)
    assert scores["balanced_accuracy"] == scores["macro_recall"]
    for average, classes in (("macro", present), ("micro", range(4)), ("weighted", range(4))):
        expected = reference.precision_recall_fscore_support(
            labels, predictions, labels=classes, average=average, zero_division=0)
        for name, value in zip(("precision", "recall", "f1"), expected):
            assert scores[f"{average}_{name}"] == pytest.approx(value, abs=EXACT), (average, name)


def test_classification_scores_by_hand():
    scores = metrics.classification_scores(np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]]))
    assert scores["accuracy"] == pytest.approx(5 / 8)
    assert scores["macro_precision"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert scores["macro_recall"] == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert scores["macro_f1"] == pytest.approx((6 / 9 + 4 / 7) / 2)


def test_classification_scores_of_nothing_are_none():
    assert set(metrics.classification_scores(np.zeros((2, 2), dtype=int)).values()) == {None}


def test_roc_curve_agrees_with_scikit_learn(drawn):
    probabilities, labels = drawn
    positives = labels == 1
    curve = np.array(metrics.Ranking.of(probabilities[:, 1], positives).roc_curve())[..., 0]
    expected = reference.roc_curve(positives, probabilities[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(curve, expected[:2], atol=EXACT)


def test_precision_recall_curve_agrees_with_scikit_learn(drawn):
    probabilities, labels = drawn
    positives = labels == 1
    recall, precision = metrics.Ranking.of(probabilities[:, 1], positives).precision_recall_curve()
    expected = reference.precision_recall_curve(positives, probabilities[:, 1])
    np.testing.assert_allclose(precision[:, 0], expected[0][::-1], atol=EXACT)
    np.testing.assert_allclose(recall[:, 0], expected[1][::-1], atol=EXACT)


def test_ranking_scores_agree_with_scikit_learn_under_ties(drawn):
    probabilities, labels = drawn
    positives = labels == 1
    assert len(np.unique(probabilities[:, 1])) < len(labels)
    ranking = metrics.Ranking.of(probabilities[:, 1], positives)
    assert ranking.roc_auc() == pytest.approx([reference.roc_auc_score(positives, probabilities[:, 1])], abs=EXACT)
    assert ranking.average_precision() == pytest.approx(
        [reference.average_precision_score(positives, probabilities[:, 1])], abs=EXACT)


def test_ranking_scores_by_hand():
    ranking = metrics.Ranking.of(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, False]))
    assert ranking.roc_auc() == [0.875]
    assert ranking.average_precision() == pytest.approx([0.5 * 1 + 0.5 * 2 / 3])


def test_ranking_scores_are_not_told_where_undefined():
    scores, nothing = np.array([0.2, 0.8]), np.array([False, False])
    of_nothing, of_everything = (metrics.Ranking.of(scores, positives) for positives in (nothing, ~nothing))
    assert np.isnan(of_nothing.roc_auc()) and np.isnan(of_everything.roc_auc())
    assert np.isnan(of_nothing.average_precision()) and of_everything.average_precision() == 1
    assert np.isnan(of_nothing.roc_curve()[1]).all()
    assert np.isnan(of_nothing.precision_recall_curve()[0]).all()


def test_log_loss_forgives_a_zero():
    result = metrics.evaluate(np.array([[0.0, 1.0], [0.5, 0.5]]), np.array([0, 0]), class_names=("a", "b"))
    assert result["log_loss"] == pytest.approx((-np.log(np.finfo(float).eps) - np.log(0.5)) / 2)


@pytest.mark.parametrize(("probabilities", "labels", "expected"), [
    ([[0.5, 0.3, 0.2]], [0], 0.25 + 0.09 + 0.04),
    ([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [0, 0], 1.0),
])
def test_brier_score_by_hand(probabilities, labels, expected):
    result = metrics.evaluate(np.array(probabilities), np.array(labels), class_names=("a", "b", "c"))
    assert result["brier_score"] == pytest.approx(expected)


def test_calibration_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [1.0, 0.0]])
    labels = np.array([0, 1, 1, 0])
    confidence, accuracy, count, error = metrics.reliability_curve(probabilities, labels, n_bins=10)
    assert count.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 2, 1]
    np.testing.assert_allclose(confidence[[5, 8, 9]], [0.6, 0.9, 1.0])
    np.testing.assert_allclose(accuracy[[5, 8, 9]], [1.0, 0.5, 1.0])
    assert np.isnan(confidence[0]) and np.isnan(accuracy[0])
    assert error == pytest.approx((0.4 + 2 * 0.4) / 4)


def test_evaluate_agrees_with_scikit_learn_and_is_json(drawn):
    probabilities, labels = drawn
    result = metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES)
    json.dumps(result, allow_nan=False)
    present = np.unique(labels)
    auc = [reference.roc_auc_score(labels == k, probabilities[:, k]) for k in present]
    precision = [reference.average_precision_score(labels == k, probabilities[:, k]) for k in present]
    assert result["macro_roc_auc"] == pytest.approx(np.mean(auc), abs=EXACT)
    assert result["macro_average_precision"] == pytest.approx(np.mean(precision), abs=EXACT)
    assert result["log_loss"] == pytest.approx(
        reference.log_loss(labels, probabilities, labels=range(4)), abs=EXACT)
    squares = (probabilities - np.eye(4)[labels]) ** 2
    assert result["brier_score"] == pytest.approx(squares.sum(axis=1).mean(), abs=EXACT)
    assert result["ece"] == metrics.reliability_curve(probabilities, labels)[3] > 0
    assert result["n_segments"] == len(labels)
    assert result["absent_classes"] == [name for k, name in enumerate(CLASS_NAMES) if k not in present]
    assert result["confusion_matrix"] == reference.confusion_matrix(
        labels, probabilities.argmax(axis=1), labels=range(4)).tolist()


def test_the_scores_of_each_class_agree_with_scikit_learn(drawn):
    probabilities, labels = drawn
    table = metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES)["per_class"]
    assert [row["class_name"] for row in table] == list(CLASS_NAMES)
    expected = zip(*reference.precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=range(4), zero_division=0))
    for row, (precision, recall, f1, support) in zip(table, expected):
        assert row["support"] == support
        scores = [row[name] for name in ("precision", "recall", "f1", "roc_auc", "average_precision")]
        if support == 0:
            assert scores == [None] * 5
        else:
            assert None not in scores
            assert scores[:3] == pytest.approx([precision, recall, f1], abs=EXACT)


@pytest.mark.parametrize(("change", "message"), [
    (lambda p, y: (10 * p - 2, y), "logits given instead of probabilities"),
    (lambda p, y: (p / 2, y), "logits given instead of probabilities"),
    (lambda p, y: (p * np.nan, y), "finite.*row 0.*diverge"),
    (lambda p, y: (p[:, :3], y), r"shape \(n, 4\).*same classes"),
    (lambda p, y: (p, y[:-1]), r"labels must have shape \(120,\)"),
    (lambda p, y: (p, y + 4), "labels must be in 0..3.*another class order"),
    (lambda p, y: (p, y - 4), "labels must be in 0..3"),
    (lambda p, y: (p, y.astype(float)), "labels must be integers, got float64"),
    (lambda p, y: (p[:0], y[:0]), "at least one row"),
])
def test_what_cannot_be_scored_is_refused_and_the_cause_guessed(rng, change, message):
    probabilities, labels = change(*draw(rng))
    with pytest.raises(ConfigError, match=message):
        metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES)


def test_half_precision_is_accepted_and_scored_in_double(rng):
    probabilities, labels = draw(rng)
    half = probabilities.astype(np.float16)
    result = metrics.evaluate(half, labels, class_names=CLASS_NAMES)
    assert result == metrics.evaluate(half.astype(np.float64), labels, class_names=CLASS_NAMES)


def test_inputs_are_not_changed_and_nothing_warns(rng):
    probabilities, labels = draw(rng, absent=(1,))
    before = probabilities.copy(), labels.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES)
    np.testing.assert_array_equal(probabilities, before[0])
    np.testing.assert_array_equal(labels, before[1])


# what is answered

def answered_by_hand():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.6, 0.4, 0.0], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2],
                              [0.1, 0.2, 0.7], [0.0, 0.3, 0.7], [0.5, 0.1, 0.4]])
    labels = np.array([0, 0, 1, 1, 0, 2, 1, 2])
    segments = metrics.ScoredSegments(probabilities, labels, ("owl", "fox", "other"))
    return segments, DecisionRules({"owl": 0.5, "fox": 0.7, "other": 0.9}, reject_class="other")


def test_answers_by_hand():
    found = metrics.answered_scores(*answered_by_hand())
    json.dumps(found, allow_nan=False)
    # rows 0 to 3 and 7 are answered: owl, owl, owl (a fox), fox, owl (an unknown)
    assert (found["reject_class"], found["n_answered"], found["n_unknown"]) == ("other", 5, 2)
    assert found["share"] == pytest.approx(5 / 8) and found["precision"] == pytest.approx(3 / 5)
    assert found["unknown_rejected"] == pytest.approx(1 / 2)
    assert found["per_class"] == [
        {"class_name": "owl", "threshold": 0.5, "n_answered": 4, "precision": pytest.approx(2 / 4),
         "recall": pytest.approx(2 / 3)},
        {"class_name": "fox", "threshold": 0.7, "n_answered": 1, "precision": pytest.approx(1.0),
         "recall": pytest.approx(1 / 3)}]


def test_each_threshold_of_the_curve_is_that_of_all_classes(rng):
    segments = metrics.ScoredSegments(*draw(rng), CLASS_NAMES)
    curve = metrics.answered_scores(segments, DecisionRules(dict.fromkeys(CLASS_NAMES, 0.0), CLASS_NAMES[0]))["curve"]
    for threshold, share, precision in zip(*curve.values()):
        rules = DecisionRules(dict.fromkeys(CLASS_NAMES, threshold), CLASS_NAMES[0])
        found = metrics.answered_scores(segments, rules)
        assert (share, precision) == (found["share"], found["precision"])


def test_the_curve_of_answers_by_hand():
    curve = metrics.answered_scores(*answered_by_hand())["curve"]
    rows = {threshold: (share, precision) for threshold, share, precision in zip(*curve.values())}
    assert rows[0.0] == pytest.approx((6 / 8, 3 / 6))  # the reject class on top is no answer at any threshold
    assert rows[0.65] == pytest.approx((3 / 8, 1.0))
    assert rows[0.9] == pytest.approx((1 / 8, 1.0))
    assert rows[0.95] == (0.0, None)
    assert all(first >= second for first, second in zip(curve["share"], curve["share"][1:]))


def test_a_model_that_knows_no_reject_class_is_asked_for_no_unknown(rng):
    segments = metrics.ScoredSegments(*draw(rng), CLASS_NAMES)
    found = metrics.answered_scores(segments, DecisionRules(dict.fromkeys(CLASS_NAMES, 0.0), "unknown_species"))
    assert (found["share"], found["n_unknown"], found["unknown_rejected"]) == (1.0, 0, None)
    assert found["precision"] == pytest.approx(metrics.evaluate_segments(segments)["accuracy"], abs=EXACT)
    nothing = metrics.answered_scores(segments, DecisionRules(dict.fromkeys(CLASS_NAMES, 1.0), "unknown_species"))
    assert (nothing["share"], nothing["precision"]) == (0.0, None)
