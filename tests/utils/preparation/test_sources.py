import json
from dataclasses import replace

import pytest

from models.errors import AudioError, ConfigError, ManifestError
from tests.utils.preparation.conftest import ODD_NAME, ODD_TEXT, any_bytes_are_names
from utils.preparation.sources import (GROUPINGS, Region, Source, apply_label_map, combine, read_label_map,
                                       sources_from_folders)


def make_audio(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# folders

def test_the_first_folder_is_the_class(tmp_path):
    make_audio(tmp_path, "owl/b.wav", "owl/a.WAV", "fox/night/one/c.wav", "loose.wav", "fox/._c.wav")
    sources = sources_from_folders(tmp_path, group_by="recording")
    assert [(s.source_path, s.regions) for s in sources] == [
        ("fox/night/one/c.wav", (Region("fox"),)), ("owl/a.WAV", (Region("owl"),)), ("owl/b.wav", (Region("owl"),))]
    assert len({s.recording_id for s in sources}) == 3


def test_grouping_by_folder_keeps_a_folder_together_whatever_class_it_is_in(tmp_path):
    make_audio(tmp_path, "fox/n1/a.wav", "owl/n1/b.wav", "owl/n2/a.wav")
    sources = sources_from_folders(tmp_path, group_by="folder")
    assert [s.recording_id for s in sources] == ["n1", "n1", "n2"]
    assert len({s.file_stem for s in sources}) == 3


def test_file_stems_are_unique_and_safe(tmp_path):
    make_audio(tmp_path, "owl/a b.wav", "fox/a b.wav", "fox/deep/a b.wav")
    stems = [s.file_stem for s in sources_from_folders(tmp_path, group_by="recording")]
    assert len(set(stems)) == 3
    assert all(stem.startswith("a_b-") and "/" not in stem for stem in stems)


def test_no_class_folders_is_an_error(tmp_path):
    make_audio(tmp_path, "loose.wav")
    with pytest.raises(AudioError, match="holds no class folders with audio files.*--labels_csv"):
        sources_from_folders(tmp_path, group_by="recording")


def test_folders_have_no_column_to_group_by(tmp_path):
    make_audio(tmp_path, "owl/a.wav")
    with pytest.raises(ConfigError, match="--group_by column needs --labels_csv"):
        sources_from_folders(tmp_path, group_by="column")


@any_bytes_are_names
def test_class_folders_may_hold_names_that_are_no_text(tmp_path):
    make_audio(tmp_path, "owl/x.wav")
    (tmp_path / "owl" / "x.wav").rename(tmp_path / "owl" / ODD_NAME)
    source, = sources_from_folders(tmp_path, group_by="recording")
    assert source.source_path == f"owl/{ODD_TEXT}"
    assert source.audio_path(tmp_path).exists()
    assert "\udce9" not in source.file_stem + source.recording_id


def test_files_outside_class_folders_are_not_left_out_in_silence(tmp_path, caplog):
    make_audio(tmp_path, "owl/a.wav")
    make_audio(tmp_path, "loose.wav")
    found = sources_from_folders(tmp_path, group_by="recording")
    assert [source.source_path for source in found] == ["owl/a.wav"]
    assert "1 audio files lie directly in" in caplog.text


@pytest.mark.parametrize("group_by", [name for name in GROUPINGS if name != "column"])
def test_every_grouping_gives_each_recording_a_group_and_its_own_names(tmp_path, group_by):
    make_audio(tmp_path, "owl/n1/SMM1_20240501_220000.wav", "fox/n1/SMM1_20240501_220000.wav", "fox/b.wav")
    sources = sources_from_folders(tmp_path, group_by=group_by)
    assert all(source.recording_id for source in sources)
    assert len({source.file_stem for source in sources}) == len({source.clip_id for source in sources}) == 3
    assert len({source.recording_id for source in sources}) == (3 if group_by == "recording" else 2)


# the journal's key

SOURCE = Source("a.wav", "night", (Region("owl", 1.0, 2.0, 300.0, 400.0),), "2", "a-1")


@pytest.mark.parametrize("other", [
    Source("b.wav", "night", SOURCE.regions, "2", "a-1"), Source("a.wav", "day", SOURCE.regions, "2", "a-1"),
    Source("a.wav", "night", (), "2", "a-1"),
    Source("a.wav", "night", SOURCE.regions, "2", "a-1", is_annotated=False),
    *(Source("a.wav", "night", (region,), "2", "a-1") for region in (
        Region("fox", 1.0, 2.0, 300.0, 400.0), Region("owl", 0.0, 2.0, 300.0, 400.0),
        Region("owl", 1.0, None, 300.0, 400.0), Region("owl", 1.0, 2.0, None, 400.0),
        Region("owl", 1.0, 2.0, 300.0, None))),
])
def test_whatever_changes_the_windows_of_a_source_changes_its_key(other):
    assert json.dumps(other.key()) != json.dumps(SOURCE.key())


def test_a_fold_changes_no_windows():
    assert replace(SOURCE, fold="3").key() == SOURCE.key()


# two lists

def test_labels_of_one_recording_from_two_lists_are_joined():
    table = [Source("a.wav", "night", (Region("owl", 1.0, 2.0),), "2", "a-1"),
             Source("c.wav", "c-3", (Region("owl"),), "", "c-3")]
    marks = [Source("a.wav", "a-1", (Region("fox", 1.0, 2.0), Region("owl", 1.0, 2.0)), "", "a-1", is_annotated=False),
             Source("b.wav", "b-2", (), "", "b-2"), Source("c.wav", "c-3", (), "3", "c-3")]
    joined = combine(table, marks)
    assert [(s.source_path, s.regions, s.fold, s.is_annotated) for s in joined] == [
        ("a.wav", (Region("owl", 1.0, 2.0), Region("fox", 1.0, 2.0)), "2", False), ("b.wav", (), "", True),
        ("c.wav", (Region("owl"),), "3", True)]
    assert joined[0].recording_id == "night"  # the table's
    assert all(s.recording_id == s.clip_id for s in joined[1:])  # each its own group still


def test_joining_nothing_changes_only_the_order():
    sources = [Source("b.wav", "night", (Region("owl"),), "2", "x"), Source("a.wav", "x", (), "", "x")]
    joined = combine([], sources)
    assert [s.source_path for s in joined] == ["a.wav", "b.wav"]
    assert combine(joined, []) == combine(joined, joined) == joined


def test_two_labels_for_a_whole_recording_are_an_error_wherever_they_come_from():
    lists = [[Source("a.wav", "a", (Region(name),), "", "a")] for name in ("owl", "fox")]
    with pytest.raises(ManifestError, match=r"a\.wav has several labels for the whole recording \(fox, owl\)"):
        combine(*lists)
    both = [Source("a.wav", "a", (Region("owl"), Region("fox", 1.0)), "", "a")]
    with pytest.raises(ManifestError, match="several labels for the whole recording"):
        combine(lists[1], both)


# label maps

def test_labels_are_renamed_and_unmapped_ones_told():
    heard = Region("Tyto alba", 1.0, 2.0, 300.0, 400.0), Region("rain", 3.0, 4.0)
    sources = [Source("a.wav", "a", heard, "2", "a-1"),
               Source("b.wav", "b", (Region("rain"),), "2", "b-2")]
    with pytest.raises(ManifestError, match=r"no class for 1 labels: rain \(2\); add them or pass --drop_unmapped"):
        apply_label_map(sources, {"Tyto alba": "owl"}, drop_unmapped=False)
    whole = apply_label_map(sources, {"Tyto alba": "owl", "rain": "noise"}, drop_unmapped=False)
    assert [[r.class_name for r in source.regions] for source in whole] == [["owl", "noise"], ["noise"]]
    assert whole[0].regions[0] == Region("owl", 1.0, 2.0, 300.0, 400.0)


def test_a_label_that_is_dropped_does_not_become_background():
    silent = Source("c.wav", "c", (), "", "c-3")
    sources = [Source("a.wav", "a", (Region("Tyto alba", 1.0, 2.0), Region("rain", 3.0, 4.0)), "", "a-1"),
               Source("b.wav", "b", (Region("rain"),), "", "b-2"), silent]
    assert apply_label_map(sources, {"Tyto alba": "owl"}, drop_unmapped=True) == [
        Source("a.wav", "a", (Region("owl", 1.0, 2.0),), "", "a-1", is_annotated=False), silent]
    assert apply_label_map(sources[1:2], {}, drop_unmapped=True) == []


def test_two_labels_that_become_one_count_once():
    source = Source("a.wav", "a", (Region("Tyto alba"), Region("Barn Owl")), "", "a-1")
    mapped, = apply_label_map([source], {"Tyto alba": "owl", "Barn Owl": "owl"}, drop_unmapped=False)
    assert mapped.regions == (Region("owl"),)


def test_label_maps_are_json_or_csv(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"Tyto alba": "owl", "x": "y"}), encoding="utf-8")
    (tmp_path / "map.csv").write_text("raw,class\nTyto alba,owl\nx,y\n", encoding="utf-8")
    assert read_label_map(tmp_path / "map.json") == read_label_map(tmp_path / "map.csv") == {"Tyto alba": "owl",
                                                                                             "x": "y"}


@pytest.mark.parametrize(("name", "text", "error", "message"), [
    ("map.json", '{"a": 1}', ConfigError, "must map text to text"),
    ("map.json", '["a"]', ConfigError, "must hold a JSON object"),
    ("map.csv", "raw\na\n", ManifestError, r"must have two columns \(raw label, class\), got raw"),
])
def test_a_faulty_label_map_is_explained(tmp_path, name, text, error, message):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        read_label_map(tmp_path / name)
