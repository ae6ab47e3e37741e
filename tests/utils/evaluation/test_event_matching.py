import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.evaluation.event_matching import EventPairs, apart, cells_of, match_events, union_lengths

SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), max_size=5).map(
    lambda pairs: spans(*((start, start + length) for start, length in pairs)))


def spans(*pairs):
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def match(detections, annotations, *, confidences=None, least=0.5, of_union=False):
    scores = np.linspace(0.9, 0.1, len(detections)) if confidences is None else np.array(confidences)
    return match_events(EventPairs.of(detections, annotations), scores, least=least, of_union=of_union).tolist()


def share(one, other, *, of_union):
    """Return what two spans share, in the words of the definition."""
    shared = min(one[1], other[1]) - max(one[0], other[0])
    lengths = one[1] - one[0], other[1] - other[0]
    return shared / (sum(lengths) - shared if of_union else min(lengths))


def largest(detections, annotations, *, least, of_union):
    """Return the size of the largest matching by trying every one."""
    few, many = sorted((detections.tolist(), annotations.tolist()), key=len)
    return max(sum(share(one, other, of_union=of_union) >= least for one, other in zip(few, chosen))
               for chosen in itertools.permutations(many, len(few)))


@pytest.mark.parametrize(("detection", "of_shorter", "of_union"), [
    ((1000, 2000), True, True),  # exactly
    ((1500, 2500), True, False),  # half of each: a third of both together
    ((1501, 2501), False, False),  # a millisecond less than half
    ((0, 9000), True, False),  # over all of it and more
    ((1400, 1500), True, False),  # within it
    ((2000, 3000), False, False),  # touching shares nothing
])
def test_a_detection_is_right_from_half_of_the_shorter_or_of_both_on(detection, of_shorter, of_union):
    annotation = spans((1000, 2000))
    assert match(spans(detection), annotation) == [0 if of_shorter else -1]
    assert match(spans(detection), annotation, of_union=True) == [0 if of_union else -1]


def test_a_share_that_is_no_binary_fraction_is_reached_exactly():
    assert 0.55 * 100 > 55
    assert match(spans((0, 100)), spans((0, 55)), least=0.55, of_union=True) == [0]
    assert match(spans((0, 100)), spans((0, 55)), least=0.551, of_union=True) == [-1]


def test_one_detection_over_three_calls_is_one_of_them_and_a_second_of_one_call_is_none():
    calls = spans((0, 1000), (3000, 4000), (6000, 7000))
    assert sorted(match(spans((0, 8000)), calls)) in ([0], [1], [2])
    assert match(spans((0, 1000), (0, 1000)), calls[:1], confidences=[0.4, 0.8]) == [-1, 0]


def test_as_many_as_possible_are_matched_where_the_first_come_would_take_anothers_only_one():
    # the surer detection is closer to the first call, which is all that the other one has
    detections, calls = spans((0, 20), (0, 9)), spans((0, 10), (12, 20))
    assert match(detections, calls, confidences=[0.9, 0.5]) == [1, 0]


def test_of_equal_ways_each_detection_has_the_call_that_it_lies_closest_to():
    assert match(spans((0, 10), (4, 14)), spans((5, 14), (1, 10)), confidences=[0.5, 0.5]) == [1, 0]


@given(SPANS, SPANS, st.sampled_from([0.25, 0.5, 0.75]), st.booleans())
def test_a_matching_is_the_largest_and_allowed(detections, annotations, least, of_union):
    partners = match(detections, annotations, least=least, of_union=of_union)
    found = [(one, partner) for one, partner in enumerate(partners) if partner >= 0]
    assert len({partner for _, partner in found}) == len(found)
    assert all(share(detections[one], annotations[partner], of_union=of_union) >= least for one, partner in found)
    assert len(found) == largest(detections, annotations, least=least, of_union=of_union)


@given(SPANS, SPANS)
def test_above_every_confidence_as_many_are_right_as_if_the_others_had_not_been(detections, annotations):
    partners = np.array(match(detections, annotations), dtype=int)  # confidences fall
    for n_kept in range(len(detections) + 1):
        assert (partners[:n_kept] >= 0).sum() == largest(detections[:n_kept], annotations, least=0.5, of_union=False)


@given(SPANS, SPANS)
def test_every_pair_that_shares_time_is_found_once(detections, annotations):
    pairs = EventPairs.of(detections, annotations)
    expected = {(row, column): (min(one[1], other[1]) - max(one[0], other[0]),
                                min(one[1] - one[0], other[1] - other[0]),
                                max(one[1], other[1]) - min(one[0], other[0]))
                for row, one in enumerate(detections.tolist()) for column, other in enumerate(annotations.tolist())
                if one[0] < other[1] and other[0] < one[1]}
    assert len(pairs.rows) == len(expected)
    found = zip(pairs.shared.tolist(), pairs.shorter.tolist(), pairs.union.tolist())
    assert dict(zip(zip(pairs.rows.tolist(), pairs.columns.tolist()), found)) == expected


@given(SPANS, st.data())
def test_a_union_counts_every_millisecond_of_a_label_once(some, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(some), max_size=len(some))), dtype=np.int64)
    assert union_lengths(some, labels, n_labels=4).tolist() == [
        len({moment for start, end in some[labels == label] for moment in range(start, end)}) for label in range(4)]


def test_spans_of_different_labels_never_meet():
    moved = apart(spans((0, 10), (0, 10), (9, 10)), np.array([0, 1, 1]), latest=10)
    assert len(EventPairs.of(moved[:1], moved[1:]).rows) == 0 and len(EventPairs.of(moved[1:2], moved[2:]).rows) == 1


def test_a_cell_belongs_to_a_span_that_touches_any_of_it():
    assert cells_of(spans((0, 1000), (999, 1001), (2500, 2501)), cell_ms=1000).tolist() == [
        [0, 1000], [0, 2000], [2000, 3000]]
