import logging
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ManifestError
from tests.conftest import TINY_RATE, preprocess_settings, write_audio
from tests.utils.preparation.conftest import all_rows, files_table, run
from tests.utils.preparation.test_duplicates import pair, recording
from tests.utils.preparation.test_similarity import surf
from utils.audio.recordings import Outcome
from utils.preparation.duplicates import similar_recordings
from utils.preparation.extraction import ExtractedRecording
from utils.preparation.labelling import lost_regions
from utils.preparation.regions import Region, Source
from utils.preparation.run import examine
from utils.preparation.sides import _seconds, give_sides, leave_out
from utils.preparation.sources import sources_from_folders
from utils.running.parallel import ThisProcess
from utils.storage.files import read_json
from utils.storage.journal import Journal
from utils.storage.manifest import SPLITS


def source(path, class_name="owl", *, recording_id=None, fold=""):
    return Source(path, recording_id or path, (Region(class_name),), fold, path)


def many(n, *, start=0, class_names=("owl", "fox")):
    """Return so many sources of each class, all of one length."""
    return [source(f"{name}{number:03}.wav", name) for name in class_names for number in range(start, start + n)]


def sides_of(tmp_path, sources, *, similar=(), results=None, **changes):
    """Return what came of the recordings, and their sides, in a folder that remembers."""
    results = results or [recording(one.source_path, one.regions[0].class_name, content=one.source_path)
                          for one in sources]
    similar = sorted([*similar, *similar_recordings(results)])
    with Journal(tmp_path / "journal.jsonl", fresh=False) as journal:
        sides, reasons = give_sides(preprocess_settings(tmp_path, tmp_path, **changes), sources, results, similar,
                                    journal)
    return leave_out(results, reasons), sides


def left_out(results):
    return {result.source_path: result.outcome.reason for result in results if result.outcome.status == "duplicate"}


# given folds

@pytest.mark.parametrize(("folds", "expected"), [
    (("train", "val", "test"), ("train", "val", "test")),
    (("TRAIN", "VAL", "TEST"), ("train", "val", "test")),
    (("Training", "Validation", "Test"), ("train", "val", "test")),
    (("test", "train", "valid"), ("test", "train", "val")),
    (("training", "Valid", "val", "Train", "tesT"), ("train", "val", "val", "train", "test")),
    (("10", "9", "2", "1"), ("test", "val", "train", "train")),
    (("a", "b", "c"), ("train", "val", "test")),
    (("c", "fold10", "fold9", "b"), ("train", "test", "val", "train")),
])
def test_folds_become_sides_by_name_or_by_number(tmp_path, folds, expected):
    sources = [source(f"{number}.wav", fold=fold) for number, fold in enumerate(folds)]
    results, sides = sides_of(tmp_path, sources)
    assert tuple(sides.values()) == expected
    assert left_out(results) == {}


@pytest.mark.parametrize(("folds", "message"), [
    (("train", "test", "Test"), "names the sides Test, test, train but no val: add rows of it"),
    (("val",), "names the sides val but no train and no test"),
    (("train", "val", "testing"), "mixes sides and other values (testing, train, val): name train, val and test"),
    (("1", "2", "test"), "mixes sides and other values (1, 2, test)"),
    (("1", "2", "1"), "needs at least 3 folds for train, val and test, got 1, 2"),
])
def test_folds_that_make_no_three_sides_are_refused(tmp_path, folds, message):
    sources = [source(f"{number}.wav", fold=fold) for number, fold in enumerate(folds)]
    with pytest.raises(ManifestError, match=re.escape(f"--fold_column {message}")):
        sides_of(tmp_path, sources)


def test_groups_that_given_folds_tear_are_counted_and_named(tmp_path):
    sources = [source(f"{number}.wav", recording_id=group, fold=fold) for number, (group, fold) in enumerate(
        [("n1", "train"), ("n1", "val"), ("n2", "test"), ("n2", "test"), ("n3", "val"), ("n3", "train")])]
    with pytest.raises(ManifestError, match=r"puts 2 recordings or groups on two sides \(n1, n3\): give all their"):
        sides_of(tmp_path, sources)


def test_the_folds_of_recordings_that_gave_nothing_do_not_count(tmp_path):
    sources = [source(f"{number}.wav", recording_id=group, fold=fold) for number, (group, fold) in enumerate(
        [("a", "train"), ("b", "val"), ("c", "test"), ("a", "test"), ("d", "unknown")])]
    results = [recording(one.source_path, "owl", content=one.source_path) for one in sources[:3]]
    results += [ExtractedRecording.lost(one, Outcome("corrupt", "no sound")) for one in sources[3:]]
    _, sides = sides_of(tmp_path, sources, results=results)
    assert sides == {"a": "train", "b": "val", "c": "test"}


def test_what_sounds_alike_on_two_given_sides_is_left_out_of_the_less_precious_one(tmp_path, caplog):
    sources = [source(f"{fold}{number}.wav", fold=fold) for fold in SPLITS for number in range(3)]
    similar = [pair("train0.wav", "test0.wav"), pair("val0.wav", "test1.wav"), pair("train1.wav", "val1.wav"),
               pair("test0.wav", "test2.wav")]
    with caplog.at_level(logging.WARNING):
        results, sides = sides_of(tmp_path, sources, similar=similar)
    assert left_out(results) == {"train0.wav": "sounds like test0.wav of test: in train it would leak",
                                 "val0.wav": "sounds like test1.wav of test: in val it would leak",
                                 "train1.wav": "sounds like val1.wav of val: in train it would leak"}
    assert sides["test0.wav"] == "test" and sides["train2.wav"] == "train"
    assert [record.getMessage() for record in caplog.records][0] == (
        "train0.wav is left out: sounds like test0.wav of test: in train it would leak")
    assert len(caplog.records) == 3


def test_copies_of_which_other_parts_are_labelled_are_not_on_two_given_sides(tmp_path):
    """They have no fingerprint, and no window in common that would be left out as a copy."""
    sources = [source(f"{fold}.wav", fold=fold) for fold in SPLITS]
    results = [recording("train.wav", "owl", None), recording("val.wav", "owl", content="other"),
               recording("test.wav", None, "owl")]
    found, _ = sides_of(tmp_path, sources, results=results)
    assert left_out(found) == {"train.wav": "sounds like test.wav of test: in train it would leak"}


def test_a_recording_without_a_fold_is_learnt_from(tmp_path):
    """Annotations may name recordings that the table with the folds does not."""
    folds = {"a.wav": "1", "b.wav": "2", "c.wav": "3", "d.wav": ""}
    _, sides = sides_of(tmp_path, [source(path, fold=fold) for path, fold in folds.items()])
    assert sides == {"a.wav": "train", "b.wav": "val", "c.wav": "test", "d.wav": "train"}


def test_given_folds_are_not_remembered(tmp_path):
    folds = dict(zip((one.source_path for one in many(3)), 2 * SPLITS, strict=True))
    sides_of(tmp_path, [source(path, path[:3], fold=fold) for path, fold in folds.items()])
    with Journal(tmp_path / "journal.jsonl", fresh=False) as journal:
        assert journal.is_empty


# sides that are made

def test_what_is_added_moves_no_other(tmp_path):
    _, first = sides_of(tmp_path, many(10))
    _, more = sides_of(tmp_path, many(25))
    assert {name: more[name] for name in first} == first and len(more) == 50
    assert set(more.values()) == set(SPLITS)


def test_what_is_taken_away_and_comes_back_is_where_it_was(tmp_path):
    _, first = sides_of(tmp_path, many(12))
    _, others = sides_of(tmp_path, many(12, start=6))
    assert {name: others[name] for name in first if name in others} == {
        name: side for name, side in first.items() if name in others} and len(others.keys() & first.keys()) == 12
    assert sides_of(tmp_path, many(12))[1] == first


def test_the_order_of_recordings_does_not_matter(tmp_path):
    assert sides_of(tmp_path / "a", many(12))[1] == sides_of(tmp_path / "b", many(12)[::-1])[1]


@pytest.mark.parametrize("other", [{"random_state": 7}, {"ratios": (0.3, 0.35, 0.35)}, {"group_by": "site"},
                                   {"labels_from": "other.csv"}])
def test_another_assignment_leaves_the_earlier_one_as_it_was(tmp_path, other):
    """Recordings that came in two steps lie otherwise than those that were there at once."""
    sides_of(tmp_path, many(5))
    _, grown = sides_of(tmp_path, many(12))
    _, changed = sides_of(tmp_path, many(12), **other)
    assert changed == sides_of(tmp_path / "fresh", many(12), **other)[1]
    assert sides_of(tmp_path, many(12))[1] == grown
    assert sides_of(tmp_path, many(12), **other)[1] == changed


def test_settings_of_windows_alone_move_nobody(tmp_path):
    _, first = sides_of(tmp_path, many(12))
    assert sides_of(tmp_path, many(12), segment_overlap_ms=500, augmentation_factor=3)[1] == first


def test_a_newcomer_that_resembles_one_side_follows_it(tmp_path):
    _, first = sides_of(tmp_path, many(12))
    newcomer = source("a_new.wav")
    for name, side in first.items():
        results, sides = sides_of(tmp_path / name, many(12))
        assert sides == first
        results, sides = sides_of(tmp_path / name, [*many(12), newcomer], similar=[pair("a_new.wav", name)])
        assert sides["a_new.wav"] == side and left_out(results) == {}


def test_a_newcomer_that_resembles_two_sides_is_left_out_and_told(tmp_path, caplog):
    _, first = sides_of(tmp_path, many(12))
    train, test = (min(name for name, side in first.items() if side == wanted) for wanted in ("train", "test"))
    sources = [*many(12), source("new.wav")]
    similar = [pair(*sorted((train, "new.wav"))), pair(*sorted((test, "new.wav")))]
    reason = f"sounds like {test} (test) and {train} (train): on either side it would leak"
    for _ in range(2):  # the next run says the same
        caplog.clear()
        results, sides = sides_of(tmp_path, sources, similar=similar)
        assert sides == first
        assert left_out(results) == {"new.wav": reason}
        assert results[-1].windows == () and [region.reason for region in results[-1].regions] == [reason]
        assert caplog.messages == [f"new.wav is left out: {reason}"]


def test_a_recording_that_was_edited_into_the_likeness_of_another_side_is_left_out(tmp_path):
    _, first = sides_of(tmp_path, many(12))
    train, test = (min(name for name, side in first.items() if side == wanted) for wanted in ("train", "test"))
    results, sides = sides_of(tmp_path, many(12), similar=[pair(*sorted((train, test)))])
    assert sides == first and set(left_out(results)) == {train}


def test_all_parts_of_a_newcomer_are_left_out(tmp_path):
    _, first = sides_of(tmp_path, many(12))
    train, val = (min(name for name, side in first.items() if side == wanted) for wanted in ("train", "val"))
    parts = [source(f"new{number}.wav", recording_id="new") for number in range(2)]
    similar = [pair(train, "new0.wav"), pair(val, "new1.wav")] if max(train, val) < "new" else [
        pair("new0.wav", train), pair("new1.wav", val)]
    results, _ = sides_of(tmp_path, [*many(12), *parts], similar=similar)
    assert set(left_out(results)) == {"new0.wav", "new1.wav"}


def test_a_pair_with_a_recording_that_gave_nothing_joins_nobody(tmp_path):
    """A silent or corrupt recording has no side, whatever it resembles."""
    sources = many(6)
    gone = source("gone.wav")
    results = [recording(one.source_path, one.regions[0].class_name, content=one.source_path) for one in sources]
    lost = ExtractedRecording.lost(gone, Outcome("silent", "no sound"))
    similar = [pair(one.source_path, "gone.wav") for one in sources if one.source_path < "gone.wav"]
    found, sides = sides_of(tmp_path, [*sources, gone], results=[*results, lost], similar=similar)
    assert sides == sides_of(tmp_path / "alone", sources)[1]
    assert found[-1] == lost and lost.regions == tuple(lost_regions(gone.regions, "silent: see files.csv"))


@settings(max_examples=40)
@given(data=st.data(), n=st.integers(2, 12), seed=st.integers(0, 3))
def test_copies_and_what_sounds_alike_are_on_one_side(tmp_path_factory, data, n, seed):
    sources = many(n)
    paths = st.sampled_from(sorted(one.source_path for one in sources))
    similar = [pair(*sorted(two)) for two in data.draw(st.lists(st.tuples(paths, paths), max_size=8)) if len(
        set(two)) == 2]
    contents = {one.source_path: data.draw(st.sampled_from([one.source_path, "x", "y"])) for one in sources}
    results = [recording(one.source_path, one.regions[0].class_name, content=contents[one.source_path])
               for one in sources]
    found, sides = sides_of(tmp_path_factory.mktemp("sides"), sources, results=results, similar=similar,
                            random_state=seed)
    assert found == results and set(sides) == set(contents)
    assert all(sides[two.first] == sides[two.second] for two in similar)
    for content in ("x", "y"):
        assert len({sides[path] for path in contents if contents[path] == content}) <= 1


# data sets of versions that did not remember sides

def forget_sides(output_dir):
    """Leave a folder as such a version left it, its validation and test sides exchanged."""
    lines = (output_dir / "journal.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (output_dir / "journal.jsonl").write_text("".join(line for line in lines if '"kind": "recording"' in line),
                                              encoding="utf-8")
    (output_dir / "val.csv").rename(output_dir / "other.csv")
    (output_dir / "test.csv").rename(output_dir / "val.csv")
    (output_dir / "other.csv").rename(output_dir / "test.csv")


@pytest.mark.parametrize(("random_state", "are_kept"), [(42, True), (43, False)])
def test_recordings_keep_the_sides_that_an_earlier_version_gave_them(audio_dir, tmp_path, caplog, random_state,
                                                                     are_kept):
    run(audio_dir, tmp_path / "out")
    before = files_table(tmp_path / "out")["split"]
    forget_sides(tmp_path / "out")
    run(audio_dir, tmp_path / "out", random_state=random_state)
    assert f"every recording is done again: an earlier version prepared {tmp_path / 'out'}" in caplog.messages
    after = files_table(tmp_path / "out")["split"]
    exchanged = before.replace({"val": "test", "test": "val"})
    assert after.equals(exchanged) == are_kept
    run(audio_dir, tmp_path / "out", random_state=random_state)
    assert files_table(tmp_path / "out")["split"].equals(after)


def test_an_audit_is_no_earlier_version(audio_dir, tmp_path, caplog):
    settings_of_run = preprocess_settings(audio_dir, tmp_path / "out")
    examine(settings_of_run, sources_from_folders(audio_dir, group_by="recording"), executor=ThisProcess())
    run(audio_dir, tmp_path / "out")
    assert "done again" not in caplog.text


# how much of a class there is

def test_seconds_are_those_of_labels_and_not_of_windows(tmp_path):
    regions = (Region("owl", 1.0, 3.0), Region("owl", 2.0, 4.0), Region("fox", 8.0, 15.0), Region("rain", 12.0, 13.0),
               Region("wren", 9.0))
    used = [(Source("a.wav", "n1", regions, "", "a"), recording("a.wav", "owl", seconds=10.0)),
            (Source("b.wav", "n1", (Region("owl"),), "", "b"), recording("b.wav", "owl", seconds=3.5)),
            (Source("c.wav", "n2", (), "", "c"), recording("c.wav", "calm", seconds=7.0))]
    # overlapping labels count each, an open end and one past the end of 10 s at that end
    labelled = {"owl": 2.0 + 2.0 + 3.5, "fox": 2.0, "rain": 0.0, "wren": 1.0}
    assert _seconds(preprocess_settings(tmp_path, tmp_path), used) == {"n1": labelled, "n2": {}}


def test_a_copy_counts_only_where_its_labels_are_others(tmp_path):
    labels = {"a.wav": "owl", "b.wav": "owl", "c.wav": "fox"}
    used = [(Source(path, path, (Region(name),), "", path), recording(path, name, seconds=10.0))
            for path, name in labels.items()]
    assert _seconds(preprocess_settings(tmp_path, tmp_path), used) == {
        "a.wav": {"owl": 10.0}, "b.wav": {}, "c.wav": {"fox": 10.0}}


def test_what_is_not_marked_counts_as_background_only_where_somebody_listened(tmp_path):
    some, calm = (Region("owl", 1.0, 3.0), Region("fox", 8.0)), preprocess_settings(tmp_path, tmp_path,
                                                                                    background_label="calm")
    used = [(Source("a.wav", "a", some, "", "a"), recording("a.wav", "owl", seconds=10.0)),
            (Source("b.wav", "b", some, "", "b", is_annotated=False),
             recording("b.wav", "owl", content="other", seconds=10.0)),
            (Source("c.wav", "c", (Region("calm", 0.0, 4.0),), "", "c"), recording("c.wav", "calm", seconds=10.0)),
            (Source("d.wav", "d", (Region("owl"), Region("fox", 0.0, 1.0)), "", "d"),
             recording("d.wav", "owl", seconds=10.0))]
    assert _seconds(calm, used) == {"a": {"owl": 2.0, "fox": 2.0, "calm": 6.0}, "b": {"owl": 2.0, "fox": 2.0},
                                    "c": {"calm": 10.0}, "d": {"owl": 10.0, "fox": 1.0}}


# with sound

def write_surf(audio_dir, rng):
    """Write six recordings of each of two classes, and return their samples by path."""
    sounds = {f"{name}/r{number}.wav": surf(rng, sample_rate=TINY_RATE) for name in ("owl", "fox")
              for number in range(6)}
    for path, samples in sounds.items():
        write_audio(audio_dir / path, samples)
    return sounds


def near_copy(samples):
    """Return a quieter copy that begins a tenth of a second later."""
    return 0.5 * samples[TINY_RATE // 10:]


def test_near_copies_never_leak(tmp_path, rng):
    """Of every recording there is a near-copy: the two are on one side, and no two others are joined."""
    for path, samples in write_surf(tmp_path / "audio", rng).items():
        write_audio(tmp_path / "audio" / path.replace("/r", "/s"), near_copy(samples))
    run(tmp_path / "audio", tmp_path / "out")
    sides = files_table(tmp_path / "out")["split"]
    assert len(sides) == 24 and set(sides) == set(SPLITS)
    assert [path for path in sides.index if sides[path] != sides[path.replace("/r", "/s")]] == []
    info = read_json(tmp_path / "out" / "dataset.json")
    assert {count["near_duplicates"] for count in info["leakage_check"]["shared"].values()} == {0}


def test_a_near_copy_that_comes_later_goes_where_its_likeness_is(tmp_path, rng):
    audio_dir, sounds = tmp_path / "audio", write_surf(tmp_path / "audio", rng)
    run(audio_dir, tmp_path / "out")
    before = files_table(tmp_path / "out")["split"]
    one = {side: min(path for path in sounds if before[path] == side) for side in SPLITS}
    for side, path in one.items():
        write_audio(audio_dir / "owl" / f"like_{side}.wav", near_copy(sounds[path]))
    run(audio_dir, tmp_path / "out")
    after = files_table(tmp_path / "out")["split"]
    assert after[list(sounds)].equals(before[list(sounds)])
    assert {side: after[f"owl/like_{side}.wav"] for side in SPLITS} == {side: side for side in SPLITS}
    write_audio(audio_dir / "owl" / "torn.wav", np.concatenate([sounds[one["train"]], sounds[one["test"]]]))
    run(audio_dir, tmp_path / "out")
    files = files_table(tmp_path / "out")
    assert files["split"][after.index].equals(after)
    assert (files["status"]["owl/torn.wav"], files["split"]["owl/torn.wav"]) == ("duplicate", "")
    assert re.fullmatch(r"sounds like \S+ \(test\) and \S+ \(train\): on either side it would leak",
                        files["reason"]["owl/torn.wav"])
    assert "owl/torn.wav" not in set(all_rows(tmp_path / "out")["source_path"])
