import numpy as np
import pytest

from tests.utils.test_metrics import EXACT
from utils.evaluation.recordings import recording_groups, recording_labels, recording_scores
from utils.metrics import ScoredSegments, evaluate_segments


def test_a_recording_has_the_mean_probabilities_and_the_label_of_most_of_its_segments():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.3, 0.7]])
    segments = ScoredSegments(probabilities, np.array([0, 1, 0, 0]), ("owl", "fox"))
    found = recording_scores(segments, ["b", "a", "b", "b"])
    np.testing.assert_allclose(found.probabilities, [[0.2, 0.8], [1.6 / 3, 1.4 / 3]], atol=EXACT)
    assert found.labels.tolist() == [1, 0] and found.class_names == ("owl", "fox")
    assert evaluate_segments(segments)["accuracy"] == 0.5 and evaluate_segments(found)["accuracy"] == 1


@pytest.mark.parametrize(("labels", "label"), [([2, 1, 1], 1), ([2, 1], 1), ([2, 2, 0, 0], 0), ([2], 2)])
def test_a_tie_of_labels_goes_to_the_first_class(labels, label):
    groups = recording_groups(["only one"] * len(labels))[1]
    assert recording_labels(np.array(labels), n_classes=3, groups=groups).tolist() == [label]


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(5)
    raw, ids = rng.random((30, 3)), rng.integers(0, 8, size=30).astype(str)
    segments = ScoredSegments(raw / raw.sum(axis=1, keepdims=True), rng.integers(0, 3, size=30), ("a", "b", "c"))
    order = rng.permutation(30)
    other = ScoredSegments(segments.probabilities[order], segments.labels[order], segments.class_names)
    first, second = recording_scores(segments, ids), recording_scores(other, ids[order])
    np.testing.assert_allclose(first.probabilities, second.probabilities, atol=EXACT)
    assert first.labels.tolist() == second.labels.tolist()
