import json

import numpy as np
import pytest
import soundfile as sf

from models.errors import AudioError, ConfigError, ManifestError
from tests.utils.preparation.conftest import ODD_NAME, ODD_TEXT, any_bytes_are_names
from utils.storage.names import clip_id
from utils.preparation.sources import (Region, Source, TableColumns, apply_label_map, read_label_map,
                                       sources_from_folders, sources_from_table)

ESC50 = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
1-100038-A-14.wav,1,14,chirping_birds,False,100038,A
5-100032-B-0.wav,5,0,dog,True,100032,B
"""
BIRDNET = """Start (s),End (s),Scientific name,Common name,Confidence,File
0.0,3.0,Turdus merula,Eurasian Blackbird,0.91,/data/site/one.wav
3.0,6.0,Parus major,Great Tit,0.75,/data/site/one.wav
0.0,3.0,Parus major,Great Tit,0.44,/data/site/two.wav
"""


def make_audio(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        sf.write(folder / name, np.zeros(100, dtype=np.float32), 8000, format="WAV")
    return folder


def table(tmp_path, text, *, columns=TableColumns(), group_by="recording"):
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    (tmp_path / "audio").mkdir(exist_ok=True)
    return sources_from_table(tmp_path / "labels.csv", tmp_path / "audio", columns=columns, group_by=group_by)


# folders

def test_the_first_folder_is_the_class(tmp_path):
    make_audio(tmp_path, "owl/b.wav", "owl/a.WAV", "fox/night/one/c.wav", "loose.wav", "fox/._c.wav")
    sources = sources_from_folders(tmp_path, group_by="recording")
    assert [(s.source_path, s.regions) for s in sources] == [
        ("fox/night/one/c.wav", (Region("fox"),)), ("owl/a.WAV", (Region("owl"),)), ("owl/b.wav", (Region("owl"),))]
    assert len({s.recording_id for s in sources}) == 3


def test_grouping_by_folder_keeps_a_folder_together(tmp_path):
    make_audio(tmp_path, "owl/n1/a.wav", "owl/n1/b.wav", "owl/n2/a.wav")
    sources = sources_from_folders(tmp_path, group_by="folder")
    assert [s.recording_id for s in sources] == ["owl/n1", "owl/n1", "owl/n2"]
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


# tables

def test_an_esc50_table_works_as_it_is(tmp_path):
    make_audio(tmp_path / "audio", "1-100032-A-0.wav", "1-100038-A-14.wav", "5-100032-B-0.wav")
    sources = table(tmp_path, ESC50, columns=TableColumns(fold="fold"))
    assert [(s.source_path, s.regions, s.fold) for s in sources] == [
        ("1-100032-A-0.wav", (Region("dog"),), "1"), ("1-100038-A-14.wav", (Region("chirping_birds"),), "1"),
        ("5-100032-B-0.wav", (Region("dog"),), "5")]
    grouped = table(tmp_path, ESC50, columns=TableColumns(group="src_file"), group_by="column")
    assert [s.recording_id for s in grouped] == ["100032", "100038", "100032"]
    assert len({s.file_stem for s in grouped}) == 3


def test_a_birdnet_table_works_as_it_is(tmp_path):
    text = BIRDNET.replace("/data/", "")
    make_audio(tmp_path / "audio", "site/one.wav", "site/two.wav")
    sources = table(tmp_path, text)
    assert [s.source_path for s in sources] == ["site/one.wav", "site/two.wav"]
    assert sources[0].regions == (Region("Eurasian Blackbird", 0.0, 3.0), Region("Great Tit", 3.0, 6.0))
    assert sources[0].recording_id == clip_id("site/one.wav")
    latin = table(tmp_path, text, columns=TableColumns(label="Scientific name"))
    assert latin[1].regions == (Region("Parus major", 0.0, 3.0),)


def test_a_bare_name_is_found_deeper_unless_two_files_have_it(tmp_path):
    make_audio(tmp_path / "audio", "deep/one.wav", "x/two.wav", "y/two.wav")
    sources = table(tmp_path, "path,label\none.wav,owl\ntwo.wav,fox\nthree.wav,fox\n")
    assert [s.source_path for s in sources] == ["deep/one.wav", "three.wav", "two.wav"]


def test_backslashes_separate_folders_too(tmp_path):
    make_audio(tmp_path / "audio", "x/one.wav", "y/one.wav")
    assert [s.source_path for s in table(tmp_path, "path,label\ny\\one.wav,owl\n")] == ["y/one.wav"]


def test_a_row_that_is_repeated_counts_once(tmp_path):
    sources = table(tmp_path, "path,label\na.wav,owl\na.wav,owl\nb.wav,fox\n")
    assert [(s.source_path, len(s.regions)) for s in sources] == [("a.wav", 1), ("b.wav", 1)]


@pytest.mark.parametrize(("text", "message"), [
    ("path,label\na.wav,owl\na.wav,fox\n", r"line 2: a\.wav has several labels for the same time \(fox, owl\)"),
    ("path,label,start,end\na.wav,owl,1,2\na.wav,fox,1.0,2\n", "several labels for the same time"),
    ("path,label\na.wav,owl\nb.wav, \n", r"line 3: the label of b\.wav is empty"),
    ("path,label,start,end\na.wav,owl,soon,2\n", "line 2: start must be seconds, got 'soon'"),
    ("path,label,start,end\na.wav,owl,-1,2\n", "line 2: start must be 0 s or more, got -1"),
    ("path,label,start,end\na.wav,owl,0,nan\n", "line 2: end must be 0 s or more, got nan"),
    ("path,label,start,end\na.wav,owl,3,2\n", "line 2: end 2 s is not after start 3 s"),
    ("sound,label\na.wav,owl\n", "no path column that is known by name; choose one of sound, label with --path_column"),
    ("path,what\na.wav,owl\n", "no label column that is known by name.*--label_column"),
    ("path,label\n../a.wav,owl\n", r"line 2: path '\.\./a\.wav' is outside"),
    ("path,label\n/etc/a.wav,owl\n", "line 2: path '/etc/a.wav' is outside"),
])
def test_a_faulty_table_is_explained(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        table(tmp_path, text)


@pytest.mark.parametrize(("columns", "group_by", "text", "message"), [
    (TableColumns(label="species"), "recording", "path,label\na.wav,owl\n",
     r"no column 'species' \(--label_column\); it has path, label"),
    (TableColumns(), "column", "path,label\na.wav,owl\n", "no group column that is known by name.*--group_column"),
    (TableColumns(), "column", "path,label,group\na.wav,owl,\n", r"the group of a\.wav is empty"),
])
def test_a_column_that_is_not_there_is_explained(tmp_path, columns, group_by, text, message):
    with pytest.raises(ManifestError, match=message):
        table(tmp_path, text, columns=columns, group_by=group_by)


@pytest.mark.parametrize(("text", "message"), [
    ("path,label,fold\na.wav,owl,train\nb.wav,owl, \n", r"line 3: the fold of b\.wav is empty: give every row"),
    ("path,label,start,end,fold\na.wav,owl,0,1,val\na.wav,owl,1,2,\n", r"line 3: the fold of a\.wav is empty"),
    ("path,label,start,end,fold\na.wav,owl,0,1,val\nb.wav,owl,0,1,val\na.wav,owl,1,2,train\n",
     r"line 4: a\.wav stands in two folds \(val and train\): give all its rows one fold"),
])
def test_a_recording_has_one_fold(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        table(tmp_path, text, columns=TableColumns(fold="fold"))


def test_without_a_fold_column_there_are_no_folds(tmp_path):
    assert [s.fold for s in table(tmp_path, "path,label,fold\na.wav,owl,1\nb.wav,owl,\n")] == ["", ""]


@any_bytes_are_names
@pytest.mark.parametrize("entry", [ODD_TEXT, "deep/" + ODD_TEXT])
def test_a_table_finds_a_file_whose_name_is_no_text(tmp_path, entry):
    make_audio(tmp_path / "audio", "plain.wav", "deep/x.wav")
    (tmp_path / "audio" / "deep" / "x.wav").rename(tmp_path / "audio" / "deep" / ODD_NAME)
    source, = table(tmp_path, f"path,label\n{entry},owl\n")
    assert source.source_path == f"deep/{ODD_TEXT}"
    assert source.audio_path(tmp_path / "audio").exists()


def test_a_raven_table_of_several_files_tells_where_a_sound_is_in_its_own(tmp_path):
    """Raven's times run through all files it has opened, the offset is that in the file."""
    sources = table(tmp_path, "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tSpecies\n"
                              "1\t60.2\t60.5\ttwo.wav\t0.2\towl\n2\t7\t9.5\tone.wav\t7\tfox\n")
    assert [(source.source_path, source.regions) for source in sources] == [
        ("one.wav", (Region("fox", 7.0, 9.5),)), ("two.wav", (Region("owl", 0.2, pytest.approx(0.5)),))]


def test_empty_times_mean_the_whole_recording(tmp_path):
    sources = table(tmp_path, "path,label,start,end\na.wav,owl,,\nb.wav,fox,2.5,\n")
    assert sources[0].regions == (Region("owl", 0.0, None),)
    assert sources[1].regions == (Region("fox", 2.5, None),)


# label maps

def test_labels_are_renamed_and_unmapped_ones_told(tmp_path):
    sources = [Source("a.wav", "a", (Region("Tyto alba", 1.0, 2.0), Region("rain", 3.0, 4.0)), "2", "a-1"),
               Source("b.wav", "b", (Region("rain"),), "2", "b-2")]
    with pytest.raises(ManifestError, match=r"no class for 1 labels: rain \(2\); add them or pass --drop_unmapped"):
        apply_label_map(sources, {"Tyto alba": "owl"}, drop_unmapped=False)
    dropped = apply_label_map(sources, {"Tyto alba": "owl"}, drop_unmapped=True)
    assert dropped == [Source("a.wav", "a", (Region("owl", 1.0, 2.0),), "2", "a-1")]
    whole = apply_label_map(sources, {"Tyto alba": "owl", "rain": "noise"}, drop_unmapped=False)
    assert [[r.class_name for r in source.regions] for source in whole] == [["owl", "noise"], ["noise"]]


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


def test_files_outside_class_folders_are_not_left_out_in_silence(tmp_path, caplog):
    make_audio(tmp_path, "owl/a.wav")
    make_audio(tmp_path, "loose.wav")
    found = sources_from_folders(tmp_path, group_by="recording")
    assert [source.source_path for source in found] == ["owl/a.wav"]
    assert "1 audio files lie directly in" in caplog.text
