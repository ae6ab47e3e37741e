"""What joining segments to detections must hold, on segments drawn and on some made by hand."""

import itertools

import numpy as np
import pytest

from models.classes import Decision
from utils.prediction.detections import join
from utils.prediction.records import Answer

CLASSES = ("owl", "fox", "frog")
GAPS = (0, 3, 10, 1000)


def segment(start, end, name="owl", confidence=0.75, *, above=True, number=0):
    decision = Decision(name if above else "unknown", confidence if above else 0.0, above, name, confidence)
    return Answer(start, end, number, 1, decision, np.array([start, confidence]))


def joined(*segments, gap):
    return [(one.start, one.end, one.decision.predicted_class, one.n_segments)
            for one in join(segments, gap_samples=gap)]


def drawn(rng, *, n_segments=60):
    """Return segments in order: on a grid, overlapping or apart, the last one moved back, some below the threshold."""
    length, hop = int(rng.integers(1, 12)), int(rng.integers(1, 12))
    starts = [hop * number for number in range(n_segments)]
    starts[-1] -= int(rng.integers(0, hop))
    classes, shares = CLASSES[:rng.integers(1, 4)], rng.uniform(0.1, 1.0)
    return [segment(start, start + length, str(rng.choice(classes)), round(float(rng.uniform()), 2), number=number,
                    above=bool(rng.uniform() < shares)) for number, start in enumerate(starts)]


def runs_of(segments, gap):
    """Return the detections that there must be, found class by class from what joining means."""
    runs = []
    for name in CLASSES:
        run: list[Answer] = []
        for one in [one for one in segments if one.decision.above_threshold and one.decision.predicted_class == name]:
            if run and one.start - max(other.end for other in run) > gap:
                runs.append(run)
                run = []
            run.append(one)
        runs += [run] if run else []
    return sorted(runs, key=lambda run: (run[0].start, run[0].number))


every_gap = pytest.mark.parametrize("gap", GAPS)
every_draw = pytest.mark.parametrize("seed", range(12))


# drawn

@every_gap
@every_draw
def test_a_detection_is_a_run_of_segments_with_no_larger_gap(seed, gap):
    segments = drawn(np.random.default_rng(seed))
    found, expected = list(join(segments, gap_samples=gap)), runs_of(segments, gap)
    assert [(one.start, one.end, one.number, one.n_segments, one.decision.predicted_class) for one in found] == [
        (run[0].start, max(one.end for one in run), run[0].number, len(run), run[0].decision.predicted_class)
        for run in expected]


@every_gap
@every_draw
def test_detections_hold_every_segment_found_and_no_other(seed, gap):
    segments = drawn(np.random.default_rng(seed))
    found = list(join(segments, gap_samples=gap))
    above = [one for one in segments if one.decision.above_threshold]
    assert sum(one.n_segments for one in found) == len(above)
    for one in above:
        inside = [detection for detection in found if detection.start <= one.start and one.end <= detection.end
                  and detection.decision.predicted_class == one.decision.predicted_class]
        assert len(inside) == 1
    assert {(one.start, one.decision.predicted_class) for one in found} <= {
        (one.start, one.decision.predicted_class) for one in above}
    assert {(one.end, one.decision.predicted_class) for one in found} <= {
        (one.end, one.decision.predicted_class) for one in above}


@every_gap
@every_draw
def test_no_two_detections_of_a_class_lie_within_the_gap(seed, gap):
    found = list(join(drawn(np.random.default_rng(seed)), gap_samples=gap))
    for name in CLASSES:
        of_class = [one for one in found if one.decision.predicted_class == name]
        assert all(later.start - earlier.end > gap for earlier, later in itertools.pairwise(of_class))


@every_gap
@every_draw
def test_detections_come_by_their_beginning(seed, gap):
    found = list(join(drawn(np.random.default_rng(seed)), gap_samples=gap))
    assert found == sorted(found, key=lambda one: (one.start, one.number))


@every_gap
@every_draw
def test_the_confidence_and_the_probabilities_are_those_of_the_best_segment(seed, gap):
    segments = drawn(np.random.default_rng(seed))
    for found, run in zip(join(segments, gap_samples=gap), runs_of(segments, gap), strict=True):
        best = max(run, key=lambda one: one.decision.confidence)  # of equal ones the first
        assert found.decision is best.decision
        assert found.probabilities is best.probabilities


@every_draw
def test_a_larger_gap_gives_fewer_and_no_less_confident_detections(seed):
    segments = drawn(np.random.default_rng(seed))
    for smaller, larger in itertools.pairwise(GAPS):
        few, many = (list(join(segments, gap_samples=gap)) for gap in (larger, smaller))
        assert len(few) <= len(many)
        for one in many:
            around, = [other for other in few if other.start <= one.start and one.end <= other.end
                       and other.decision.predicted_class == one.decision.predicted_class]
            assert around.decision.confidence >= one.decision.confidence


@every_draw
def test_without_a_gap_every_segment_found_is_given_as_it_is(seed):
    segments = drawn(np.random.default_rng(seed))
    found = list(join(segments, gap_samples=None))
    assert len(found) == sum(one.decision.above_threshold for one in segments)
    assert all(one is other for one, other in zip(found, (one for one in segments if one.decision.above_threshold)))


# by hand

def test_segments_that_touch_are_one():
    assert joined(segment(0, 10), segment(10, 20), segment(20, 25), gap=0) == [(0, 25, "owl", 3)]


def test_a_gap_of_the_size_allowed_is_bridged_and_a_larger_one_is_not():
    assert joined(segment(0, 10), segment(15, 25), gap=5) == [(0, 25, "owl", 2)]
    assert joined(segment(0, 10), segment(16, 26), gap=5) == [(0, 10, "owl", 1), (16, 26, "owl", 1)]


def test_segments_that_overlap_are_one_and_the_gap_counts_from_the_last_end():
    assert joined(segment(0, 10), segment(5, 15), gap=0) == [(0, 15, "owl", 2)]
    # the second ends before the first: the third is 2 after the first's end
    assert joined(segment(0, 100), segment(50, 60), segment(102, 110), gap=2) == [(0, 110, "owl", 3)]


def test_a_last_segment_that_is_moved_back_adds_what_is_new():
    assert joined(segment(0, 10), segment(10, 20), segment(13, 23), gap=0) == [(0, 23, "owl", 3)]


def test_other_classes_between_do_not_matter():
    assert joined(segment(0, 10), segment(10, 20, "fox"), segment(20, 30), segment(30, 40, "fox"), gap=10) == [
        (0, 30, "owl", 2), (10, 40, "fox", 2)]
    assert joined(segment(0, 10), segment(10, 20, "fox"), segment(20, 30), segment(30, 40, "fox"), gap=9) == [
        (0, 10, "owl", 1), (10, 20, "fox", 1), (20, 30, "owl", 1), (30, 40, "fox", 1)]


def test_what_is_below_its_threshold_is_left_out_and_may_be_bridged():
    segments = segment(0, 10), segment(10, 20, above=False), segment(20, 30)
    assert joined(*segments, gap=10) == [(0, 30, "owl", 2)]
    assert joined(*segments, gap=0) == [(0, 10, "owl", 1), (20, 30, "owl", 1)]
    assert joined(segment(0, 10, above=False), gap=0) == []
    assert joined(gap=0) == []


def test_of_segments_equally_sure_the_first_speaks():
    first, second, third = segment(0, 10, confidence=0.5), segment(10, 20), segment(20, 30)
    found, = join([first, second, third], gap_samples=0)
    assert found.decision is second.decision and found.probabilities is second.probabilities


def test_the_number_is_that_of_the_first_segment():
    found, = join([segment(50, 60, number=5), segment(60, 70, confidence=0.9, number=6)], gap_samples=0)
    assert (found.number, found.n_segments) == (5, 2)


# as a stream

def taken_until(segments, *, gap):
    """Return how many segments were taken when each detection was given."""
    taken = 0

    def counted():
        nonlocal taken
        for one in segments:
            taken += 1
            yield one

    return [(one.start, one.decision.predicted_class, taken) for one in join(counted(), gap_samples=gap)]


def test_a_detection_is_given_once_the_next_of_its_class_is_too_far():
    assert taken_until([segment(0, 10), segment(10, 20), segment(40, 50), segment(80, 90)], gap=5) == [
        (0, "owl", 3), (40, "owl", 4), (80, "owl", 4)]


def test_a_detection_waits_for_one_that_began_before_and_still_grows():
    segments = [segment(0, 10), segment(10, 20, "fox"), segment(20, 30), segment(30, 40), segment(40, 50),
                segment(90, 99)]
    assert taken_until(segments, gap=10) == [(0, "owl", 6), (10, "fox", 6), (90, "owl", 6)]


def test_a_night_of_detections_is_not_held():
    held, given = 0, 0

    def endless():
        nonlocal held
        for number in itertools.count():
            held = max(held, number - given)
            yield segment(100 * number, 100 * number + 10, CLASSES[number % 3], number=number)

    for given, one in enumerate(itertools.islice(join(endless(), gap_samples=5), 1000)):
        assert one.number == given
    assert held <= 3
