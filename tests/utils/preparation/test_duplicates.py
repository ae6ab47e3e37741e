import itertools
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.audio.recordings import Outcome
from utils.preparation.duplicates import (content_of, groups_of, settle_duplicates, similar_recordings, unprotected,
                                          without_windows)
from utils.preparation.examination import SoundFacts
from utils.preparation.extraction import ExtractedRecording, LabelledWindow
from utils.preparation.labelling import RegionOutcome
from utils.preparation.similarity import SimilarPair

SECOND = 8000  # samples of a window


def sound_of(content):
    return SoundFacts(peak_dbfs=-3.0, rms_dbfs=-20.0, dc_offset=0.0, clipped_share=0.0, channel_correlation=None,
                      bandwidth_hertz=4000.0, content=content, fingerprint="")


def recording(path, *labels, content="c", sha256="s", status="ok", reason="", seconds=None):
    """Return a recording of which each second has a label; None is a second without one."""
    windows = tuple(LabelledWindow(f"spectrograms/{name}/{path}_{1000 * n}.npy", name, n * SECOND, (n + 1) * SECOND)
                    for n, name in enumerate(labels) if name)
    regions = tuple(RegionOutcome(name, float(n), float(n + 1), 200.0, 900.0, 1, 1.0, "")
                    for n, name in enumerate(labels) if name)
    outcome = Outcome(status, reason, float(len(labels)) if seconds is None else seconds, 8000, 1)
    return ExtractedRecording(path, outcome, sha256, windows, regions, sound_of(content) if content else None)


def labels_of(result):
    """Return the seconds that have a label, each with it."""
    return [(window.start_sample // SECOND, window.class_name) for window in result.windows]


def kept(results):
    return {result.source_path: labels_of(result) for result in results}


def statuses(results):
    return {result.source_path: result.outcome.status for result in results}


def reasons(results):
    return {result.source_path: result.outcome.reason for result in results if result.outcome.reason}


def pair(first, second):
    return SimilarPair(first, second, 0.5)


def settle(results):
    return settle_duplicates(results, sample_rate=SECOND)


# copies of one sound

def test_the_sound_tells_copies_and_where_there_is_none_the_bytes():
    assert content_of(recording("a.wav", content="sound", sha256="bytes")) == "sound"
    assert content_of(recording("a.wav", content="", sha256="bytes")) == "bytes"


def test_of_equal_copies_the_first_by_path_keeps_its_windows():
    results = settle([recording("b.wav", "owl", "owl"), recording("a.wav", "owl", "owl")])
    assert kept(results) == {"b.wav": [], "a.wav": [(0, "owl"), (1, "owl")]}
    assert statuses(results) == {"b.wav": "duplicate", "a.wav": "ok"}
    assert reasons(results) == {"b.wav": "same bytes as a.wav"}
    assert [(region.n_windows, region.labelled_seconds, region.reason) for region in results[0].regions] == [
        (0, 0.0, "same bytes as a.wav")] * 2


def test_other_bytes_of_one_sound_are_told_as_such():
    results = settle([recording("a.wav", "owl", sha256="1"), recording("b.flac", "owl", sha256="2")])
    assert reasons(results) == {"b.flac": "same sound as a.wav"}


def test_copies_with_different_labels_are_left_out_and_name_each_other():
    results = settle([recording("a.wav", "owl"), recording("b.wav", "fox")])
    assert kept(results) == {"a.wav": [], "b.wav": []}
    assert reasons(results) == {
        "a.wav": "same bytes as b.wav, which is labelled fox, not owl: correct one of them",
        "b.wav": "same bytes as a.wav, which is labelled owl, not fox: correct one of them"}


def test_copies_that_are_labelled_in_different_places_stay_as_they_are():
    given_results = [recording("a.wav", "owl", None, "owl"), recording("b.wav", None, "fox", None)]
    assert settle(given_results) == given_results


def test_a_copy_without_a_label_takes_nothing_and_loses_nothing():
    """A label past the end of a file gave no window; its byte copy with a valid one is not lost for it."""
    given_results = [recording("a.wav", None, reason="none of its 1 labels gave a window: see regions.csv"),
                     recording("b.wav", "owl")]
    assert settle(given_results) == given_results


def test_where_copies_contradict_each_other_in_part_only_that_part_is_left_out():
    first, second = settle([recording("a.wav", "owl", "owl"), recording("b.wav", None, "fox", "fox")])
    assert kept([first, second]) == {"a.wav": [(0, "owl")], "b.wav": [(2, "fox")]}
    assert statuses([first, second]) == {"a.wav": "ok", "b.wav": "ok"}
    assert first.outcome.reason == ("1 of its windows are left out: same bytes as b.wav, which is labelled fox, not"
                                    " owl: correct one of them")
    assert "same bytes as b.wav" in first.regions[1].reason and "same bytes as a.wav" in second.regions[0].reason


def test_what_was_wrong_before_is_told_beside_the_windows_that_are_left_out():
    results = settle([recording("a.wav", "owl"), recording("b.wav", "owl", "owl", reason="breaks off")])
    assert reasons(results) == {"b.wav": "breaks off; 1 of its windows are left out: same bytes as a.wav"}


def test_a_region_whose_windows_are_left_out_in_part_counts_the_others():
    whole = RegionOutcome("owl", 0.0, None, None, None, 2, 2.0, "")
    copy = recording("b.wav", "owl", "owl")
    copy = ExtractedRecording(copy.source_path, copy.outcome, copy.sha256, copy.windows, (whole,), copy.sound)
    _, settled = settle([recording("a.wav", "owl"), copy])
    assert [(region.n_windows, region.labelled_seconds) for region in settled.regions] == [(1, 1.0)]


def test_a_region_whose_windows_are_all_kept_is_not_told_of_others():
    results = settle([recording("a.wav", "owl"), recording("b.wav", "owl", "owl")])
    assert [region.reason for region in results[1].regions] == [
        "1 of its windows are left out: same bytes as a.wav", ""]


def test_a_copy_that_agrees_wherever_both_are_labelled_contradicts_nothing():
    results = settle([recording("a.wav", "owl", "fox"), recording("b.wav", "owl")])
    assert kept(results) == {"a.wav": [(0, "owl"), (1, "fox")], "b.wav": []}
    assert reasons(results) == {"b.wav": "same bytes as a.wav"}


def test_a_contradiction_is_told_to_both_even_where_one_has_every_label_of_the_other():
    results = settle([recording("a.wav", "owl", "fox"), recording("b.wav", "fox")])
    assert kept(results) == {"a.wav": [(1, "fox")], "b.wav": []}
    assert all("correct one of them" in reason for reason in reasons(results).values())
    assert set(reasons(results)) == {"a.wav", "b.wav"}


def test_three_copies_by_hand():
    """Second 0 is the first's, second 1 has two labels, second 2 is the third's."""
    copies = [recording("a.wav", "owl"), recording("b.wav", "owl", "owl"), recording("c.wav", None, "fox", "owl")]
    for order in itertools.permutations(copies):
        results = settle(order)
        assert [result.source_path for result in results] == [result.source_path for result in order]
        assert kept(results) == {"a.wav": [(0, "owl")], "b.wav": [], "c.wav": [(2, "owl")]}


@pytest.mark.parametrize("other", [
    recording("b.wav", "fox", content="other"), recording("b.wav", "fox", status="silent"),
    recording("b.wav", "fox", content="", sha256="")])
def test_what_is_no_copy_or_could_not_be_used_stays_as_it_is(other):
    given_results = [recording("a.wav", "owl"), recording("c.wav", "owl", content="", sha256=""), other]
    assert settle(given_results) == given_results


labels_of_a_copy = st.lists(st.sampled_from([None, "owl", "fox", "1"]), min_size=1, max_size=4)


@given(data=st.data(), all_labels=st.lists(st.tuples(st.sampled_from("xy"), labels_of_a_copy), max_size=6))
def test_every_second_is_kept_once_with_the_only_label_it_has_or_left_out_and_told(data, all_labels):
    results = [recording(f"{number}.wav", *labels, content=content)
               for number, (content, labels) in enumerate(all_labels)]
    settled = settle(results)
    shuffled = settle(data.draw(st.permutations(results)))
    assert sorted(shuffled, key=lambda result: result.source_path) == settled
    named = defaultdict(set)
    for result in results:
        for start, name in labels_of(result):
            named[content_of(result), start].add(name)
    n_kept = Counter((content_of(result), *label) for result in settled for label in labels_of(result))
    assert n_kept == {(content, start, name): 1 for (content, start), names in named.items() if len(names) == 1
                      for name in names}
    for before, after in zip(results, settled, strict=True):
        assert bool(after.outcome.reason) == (len(after.windows) < len(before.windows))
        assert (after.outcome.status == "duplicate") == (bool(before.windows) and not after.windows)


# what is left out

def test_a_recording_that_is_left_out_keeps_its_facts_and_no_window():
    before = recording("a.wav", "owl", "fox", sha256="bytes", reason="breaks off")
    after = without_windows(before, "sounds like b.wav")
    assert (after.outcome.status, after.outcome.reason, after.windows) == ("duplicate", "sounds like b.wav", ())
    assert (after.outcome.duration_seconds, after.outcome.sample_rate, after.outcome.channels) == (2.0, 8000, 1)
    assert (after.sha256, after.sound) == (before.sha256, before.sound)
    assert after.regions == (RegionOutcome("owl", 0.0, 1.0, 200.0, 900.0, 0, 0.0, "sounds like b.wav"),
                             RegionOutcome("fox", 1.0, 2.0, 200.0, 900.0, 0, 0.0, "sounds like b.wav"))
    assert before.windows and before.regions[0].n_windows == 1


# what stays on one side

def test_copies_of_one_content_are_a_pair_although_they_have_no_fingerprint():
    """Steady and short sounds have none, and where their labels lie apart both are used."""
    results = [recording("b.wav", "owl"), recording("c.wav", None, "owl"), recording("a.wav", None, None, "owl"),
               recording("d.wav", "owl", content="other"), recording("e.wav", "owl", status="corrupt")]
    assert similar_recordings(settle(results)) == [SimilarPair("a.wav", name, 1.0) for name in ("b.wav", "c.wav")]


def test_what_sounds_alike_is_one_group_through_others_too():
    ids = {"a.wav": "r1", "b.wav": "r2", "c.wav": "r3", "d.wav": "r4", "e.wav": "r5", "f.wav": "r3"}
    # a sounds like b, which sounds like f, which is a part of r3 as c is
    similar = [pair("a.wav", "b.wav"), pair("b.wav", "f.wav"), pair("d.wav", "e.wav"), pair("c.wav", "gone.wav")]
    assert groups_of(ids, similar) == {"r1": "r1", "r2": "r1", "r3": "r1", "r4": "r4", "r5": "r4"}


def test_parts_of_one_recording_that_sound_alike_are_no_news():
    ids = {"a.wav": "r1", "b.wav": "r1", "c.wav": "r2"}
    assert groups_of(ids, [pair("a.wav", "b.wav")]) == {"r1": "r1", "r2": "r2"}


def test_a_recording_that_gave_nothing_joins_nobody():
    assert groups_of({"a.wav": "r1", "b.wav": "r2"}, [pair("a.wav", "gone.wav"), pair("b.wav", "gone.wav")]) == {
        "r1": "r1", "r2": "r2"}


@pytest.mark.parametrize(("sides", "lost", "reason"), [
    (("train", "test"), "a.wav", "sounds like b.wav of test: in train it would leak"),
    (("test", "train"), "b.wav", "sounds like a.wav of test: in train it would leak"),
    (("train", "val"), "a.wav", "sounds like b.wav of val: in train it would leak"),
    (("val", "test"), "a.wav", "sounds like b.wav of test: in val it would leak"),
    (("test", "val"), "b.wav", "sounds like a.wav of test: in val it would leak"),
])
def test_test_keeps_its_recordings_and_then_validation(sides, lost, reason):
    assert unprotected(dict(zip(("a.wav", "b.wav"), sides, strict=True)), [pair("a.wav", "b.wav")]) == {lost: reason}


@pytest.mark.parametrize("sides", [{"a.wav": "train", "b.wav": "train"}, {"a.wav": "train"}, {}])
def test_what_is_on_one_side_or_on_none_leaks_nothing(sides):
    assert unprotected(sides, [pair("a.wav", "b.wav")]) == {}


def test_after_what_is_left_out_no_pair_is_on_two_sides():
    sides = {"a.wav": "train", "b.wav": "val", "c.wav": "test", "d.wav": "train", "e.wav": "train"}
    similar = [pair("a.wav", "b.wav"), pair("b.wav", "c.wav"), pair("a.wav", "d.wav"), pair("c.wav", "d.wav")]
    assert set(unprotected(sides, similar)) == {"a.wav", "b.wav", "d.wav"}
