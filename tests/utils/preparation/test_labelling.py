import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.audio_frontend import segment_starts
from utils.preparation.labelling import QUIET, TIE, TOO_LITTLE, WindowLabeller, lost_regions
from utils.preparation.regions import Region

RATE = 1000  # so that a sample is a millisecond
WINDOW = 1000


def windows_of(n_samples, hop=WINDOW, window=WINDOW):
    starts = segment_starts(n_samples, segment_samples=window, hop_samples=hop, least_new_samples=250)
    return [(start, min(start + window, n_samples)) for start in starts]


def labelled(regions, n_samples, *, min_overlap=0.5, background=None, hop=WINDOW):
    labeller = WindowLabeller(regions, sample_rate=RATE, min_overlap_seconds=min_overlap, background=background)
    decisions = {window: labeller.label(*window) for window in windows_of(n_samples, hop)}
    return decisions, labeller


def names(decisions):
    return [decision.class_name for decision in decisions.values()]


def test_a_window_gets_the_label_it_holds_enough_of():
    decisions, labeller = labelled([Region("owl", 1.2, 1.8), Region("frog", 2.9, 4.2)], 5000)
    # frog: 0.1 s of window 2, all of window 3, 0.2 s of window 4
    assert names(decisions) == ["", "owl", "", "frog", ""]
    assert [decision.cause for decision in decisions.values()] == ["", "", TOO_LITTLE, "", TOO_LITTLE]
    owl, frog = labeller.outcomes(5000)
    assert (owl.n_windows, owl.labelled_seconds, owl.reason) == (1, 0.6, "")
    assert (frog.n_windows, frog.labelled_seconds) == (1, 1.0)
    assert frog.reason == ("0.300 s of it are in no window of its label: of the windows there, 2 hold too little of it")


def test_half_of_a_short_annotation_is_enough():
    # 0.3 s, of which 0.2 s lie in window 0
    decisions, labeller = labelled([Region("owl", 0.8, 1.1)], 2000)
    assert names(decisions) == ["owl", ""]
    assert labeller.outcomes(2000)[0].labelled_seconds == 0.2


def test_the_larger_overlap_wins_and_the_other_is_told():
    decisions, labeller = labelled([Region("owl", 0.0, 0.9), Region("frog", 0.4, 1.0)], 1000)
    assert names(decisions) == ["owl"]
    assert labeller.outcomes(1000)[1].reason == ("0.600 s of it are in no window of its label: of the windows there, 1"
                                                 " holds more of owl")


def test_overlapping_calls_of_one_class_count_once():
    # 0.5 s of owl in two overlapping annotations, 0.6 s of frog
    decisions, _ = labelled([Region("owl", 0.0, 0.4), Region("owl", 0.1, 0.5), Region("frog", 0.4, 1.0)], 1000)
    assert names(decisions) == ["frog"]


def test_several_short_calls_add_up():
    calls = [Region("owl", start, start + 0.2) for start in (0.0, 0.3, 0.6)]
    decisions, _ = labelled([*calls, Region("frog", 0.2, 0.3), Region("frog", 0.5, 0.6)], 1000)
    assert names(decisions) == ["owl"]


def test_a_tie_is_nobodys_window_and_both_are_told():
    decisions, labeller = labelled([Region("owl", 0.0, 0.5), Region("frog", 0.5, 1.0)], 1000)
    assert [(decision.class_name, decision.cause) for decision in decisions.values()] == [("", TIE)]
    assert all("1 holds as much of another" in outcome.reason for outcome in labeller.outcomes(1000))


def test_windows_in_which_nothing_is_marked_become_background_on_request():
    regions = [Region("owl", 1.0, 2.1)]
    assert names(labelled(regions, 4000, background="calm")[0]) == ["calm", "owl", "", "calm"]
    assert names(labelled(regions, 4000)[0]) == ["", "owl", "", ""]
    assert names(labelled([], 2000, background="calm")[0]) == ["calm", "calm"]


def test_the_whole_recording_is_in_every_window_but_only_marks_are_marked():
    decisions, labeller = labelled([Region("owl")], 2600)
    assert names(decisions) == ["owl"] * 3
    assert not any(decision.is_marked for decision in decisions.values())
    outcome, = labeller.outcomes(2600)
    assert (outcome.n_windows, outcome.labelled_seconds, outcome.reason, outcome.end_seconds) == (3, 2.6, "", None)
    assert labelled([Region("owl", 0.0, 2.6)], 2600)[0][(0, 1000)].is_marked


def test_a_recording_shorter_than_the_overlap_asked_for_has_its_label():
    assert names(labelled([Region("owl")], 300)[0]) == ["owl"]


def test_what_lies_after_the_end_is_told():
    _, labeller = labelled([Region("owl", 1.5, 9.0), Region("frog", 5.0, 6.0)], 2000)
    owl, frog = labeller.outcomes(2000)
    assert owl.labelled_seconds == 0.5 and owl.reason == "the recording ends at 2.000 s"
    assert frog.n_windows == 0 and frog.reason == "the recording ends at 2.000 s"


def test_an_end_that_adds_too_little_for_a_window_is_told():
    # 0.2 s more than two windows: no third one
    _, labeller = labelled([Region("owl", 2.05, 2.15)], 2200)
    assert labeller.outcomes(2200)[0].reason == "0.100 s of it are in no window of its label: no window reaches it"


def test_a_window_that_is_taken_back_is_told():
    _, labeller = labelled([Region("owl")], 3000)
    labeller.take_back(1000, QUIET)
    outcome, = labeller.outcomes(3000)
    assert (outcome.n_windows, outcome.labelled_seconds) == (2, 2.0)
    assert outcome.reason == "1.000 s of it are in no window of its label: of the windows there, 1 is quiet"


def test_regions_of_a_lost_recording_have_a_row_each():
    rows = lost_regions([Region("owl", 1.0, 2.0, 300.0, 900.0)], "corrupt: see files.csv")
    assert (rows[0].n_windows, rows[0].low_hertz, rows[0].reason) == (0, 300.0, "corrupt: see files.csv")


milliseconds = st.integers(0, 12_000)
regions_of_a_recording = st.lists(st.builds(
    lambda name, start, length: Region(name, start / RATE, None if length is None else (start + length) / RATE),
    st.sampled_from(["owl", "1", "2", "train", "ü frog"]), milliseconds, st.none() | st.integers(1, 5000)), max_size=8)


@given(regions=regions_of_a_recording, n_samples=st.integers(60, 10_000), hop=st.integers(50, WINDOW),
       min_overlap=st.integers(0, 2000), background=st.none() | st.just("calm"))
def test_every_labelled_sample_is_in_a_window_of_its_label_or_told(regions, n_samples, hop, min_overlap, background):
    labeller = WindowLabeller(regions, sample_rate=RATE, min_overlap_seconds=min_overlap / RATE, background=background)
    given_labels = {window: labeller.label(*window).class_name for window in windows_of(n_samples, hop)}
    for region, outcome in zip(regions, labeller.outcomes(n_samples), strict=True):
        first = round(region.start_seconds * RATE)
        end = n_samples if region.end_seconds is None else round(region.end_seconds * RATE)
        inside = {sample for (start, stop), name in given_labels.items() if name == region.class_name
                  for sample in range(max(start, first), min(stop, end))}
        assert outcome.labelled_seconds == pytest.approx(len(inside) / RATE)
        assert outcome.class_name == region.class_name
        if not outcome.reason:
            assert end <= n_samples and inside == set(range(first, end))
    for (start, stop), name in given_labels.items():
        # no label out of nothing, and never another's
        touching = {region.class_name for region in regions
                    if region.start_seconds * RATE < stop
                    and (math.inf if region.end_seconds is None else region.end_seconds * RATE) > start}
        assert name in touching if name and touching else name == (background or "") or not name
