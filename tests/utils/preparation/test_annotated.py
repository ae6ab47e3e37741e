import logging
import re

import pytest

from models.errors import ManifestError
from tests.utils.audio.test_annotations import SOUNDS, write_audacity, write_birdnet, write_raven
from tests.utils.preparation.conftest import ODD_NAME, ODD_TEXT, any_bytes_are_names
from tests.utils.preparation.test_sources import make_audio
from utils.audio.annotations import MarkedSound
from utils.preparation.sources import Region, TableColumns, combine, sources_from_annotations, sources_from_table

HEAD = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"
RAVEN = HEAD + "\tSpecies\n1\tSpectrogram 1\t1\t1.5\t2.5\t300\t400\towl\n2\tSpectrogram 1\t1\t2\t3\t\t\tfox\n"
RAVEN_REGIONS = (Region("owl", 1.5, 2.5, 300.0, 400.0), Region("fox", 2.0, 3.0))
EMPTY = HEAD + "\tSpecies\n"


def annotated(tmp_path, tables, *, audio=("x/a.wav", "y/b.wav"), group_by="recording", **named):
    """Return the sources of tables, by their names, about recordings."""
    make_audio(tmp_path / "audio", *audio)
    for name, content in tables.items():
        path = tmp_path / "marks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return sources_from_annotations(tmp_path / "marks", tmp_path / "audio", group_by=group_by, **named)


def regions_of(sources):
    return {source.source_path: source.regions for source in sources}


# which recording a table is about

@pytest.mark.parametrize("name", [
    "a.txt", "a.TXT", "x/a.txt", "elsewhere/a.txt", "a.wav.txt", "a.Table.1.selections.txt", "a.selections.txt",
    "a.BirdNET.selection.table.txt", "a.BirdNET.results.csv", "a.csv", "a.tsv"])
def test_a_table_is_about_the_recording_it_is_called_after(tmp_path, name):
    source, = annotated(tmp_path, {name: RAVEN})
    assert (source.source_path, source.regions, source.is_annotated) == ("x/a.wav", RAVEN_REGIONS, True)


def test_folders_tell_recordings_of_one_name_apart(tmp_path):
    sources = annotated(tmp_path, {"x/a.txt": RAVEN, "y/a.selections.txt": EMPTY}, audio=("x/a.wav", "y/a.wav"))
    assert regions_of(sources) == {"x/a.wav": RAVEN_REGIONS, "y/a.wav": ()}


def test_tables_may_lie_beside_their_recordings(tmp_path):
    make_audio(tmp_path / "audio", "x/a.wav", "y/a.wav")
    (tmp_path / "audio" / "y" / "a.txt").write_text(RAVEN, encoding="utf-8")
    for annotations in (tmp_path / "audio", tmp_path / "audio" / "y", tmp_path / "audio" / "y" / "a.txt"):
        assert regions_of(sources_from_annotations(annotations, tmp_path / "audio", group_by="recording")) == {
            "y/a.wav": RAVEN_REGIONS}


def test_a_file_that_a_table_names_counts_before_the_tables_own_name(tmp_path):
    table = HEAD + "\tBegin Path\tFile Offset (s)\tSpecies\n1\tS\t1\t61\t62\t\t\tC:\\d\\y\\b.wav\t1\towl\n"
    assert regions_of(annotated(tmp_path, {"a.txt": table})) == {"y/b.wav": (Region("owl", 1.0, 2.0),)}


def test_a_bare_name_that_is_the_tables_own_is_the_recording_in_the_tables_folder(tmp_path):
    table = HEAD + "\tBegin File\tSpecies\n1\tS\t1\t1\t2\t\t\ta.wav\towl\n"
    sources = annotated(tmp_path, {"y/a.selections.txt": table}, audio=("x/a.wav", "y/a.wav"))
    assert regions_of(sources) == {"y/a.wav": (Region("owl", 1.0, 2.0),)}


def test_one_file_may_be_about_many_recordings(tmp_path):
    make_audio(tmp_path / "audio", "x/a.wav", "y/b.wav")
    write = {"review.csv": "file_path,start_seconds,end_seconds,model_class,confidence,decision,label,reviewed_at\n"
                           "/d/x/a.wav,1,2,owl,0.9,confirmed,,now\ny/b.wav,1,2,owl,0.9,rejected,,now\n",
             "BirdNET_CombinedTable.csv": "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
                                          "1,2,Strix,owl,0.9,/d/x/a.wav\n1,2,x,environmental_sound,0.1,y/b.wav\n",
             "cumulative.txt": HEAD + "\tBegin File\tFile Offset (s)\tSpecies\n1\tS\t1\t1\t2\t\t\ta.wav\t1\towl\n"
                                      "2\tS\t1\t61\t62\t\t\tb.wav\t1\tenvironmental_sound\n"}
    for name, content in write.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        sources = sources_from_annotations(tmp_path / name, tmp_path / "audio", group_by="recording")
        assert regions_of(sources) == {"x/a.wav": (Region("owl", 1.0, 2.0),),
                                       "y/b.wav": (Region("environmental_sound", 1.0, 2.0),)}, name
        # a reviewer has heard the detections only
        assert {source.is_annotated for source in sources} == {name != "review.csv"}, name


def test_what_prediction_writes_is_read_back(tmp_path):
    """A table of each recording and one of all of them say the same: nothing counts twice."""
    make_audio(tmp_path / "audio", "x/one.wav")
    (tmp_path / "marks" / "x").mkdir(parents=True)
    write_raven(tmp_path / "marks" / "x" / "one.selections.txt", SOUNDS)
    write_raven(tmp_path / "marks" / "results.selections.txt", SOUNDS, opened_seconds=3600.125)
    source, = sources_from_annotations(tmp_path / "marks", tmp_path / "audio", group_by="recording")
    assert source.regions == (Region("owl", 0.2, 0.5, 50.0, 11025.0), Region("fox", 61.25, 62.0, 50.0, 11025.0))
    for write, name in ((write_audacity, "one.txt"), (write_birdnet, "results.csv")):
        write(tmp_path / name, SOUNDS)
        source, = sources_from_annotations(tmp_path / name, tmp_path / "audio", group_by="recording")
        assert source.regions == (Region("owl", 0.2, 0.5), Region("fox", 61.25, 62.0))


@any_bytes_are_names
def test_a_table_of_a_recording_whose_name_is_no_text_is_found(tmp_path):
    source, = annotated(tmp_path, {ODD_NAME.replace(".wav", ".txt"): RAVEN}, audio=(f"x/{ODD_NAME}",))
    assert source.source_path == f"x/{ODD_TEXT}"


# what is in it

@pytest.mark.parametrize("content", [EMPTY, "", "\n", "Start (s),End (s),Common name,Confidence,File\n"])
def test_an_empty_table_says_that_nothing_was_found(tmp_path, content):
    source, = annotated(tmp_path, {"a.txt": content})
    assert (source.source_path, source.regions, source.is_annotated) == ("x/a.wav", (), True)


def test_frequencies_of_audacity_are_kept(tmp_path):
    source, = annotated(tmp_path, {"a.txt": "1.000000\t2.000000\towl\n\\\t300.000000\t-1.000000\n"})
    assert source.regions == (Region("owl", 1.0, 2.0, 300.0, None),)


def test_a_box_without_a_label_is_neither_a_label_nor_background(tmp_path, caplog):
    table = RAVEN + "3\tSpectrogram 1\t1\t5\t6\t\t\t \n"
    first, second = annotated(tmp_path, {"a.txt": table, "b.txt": RAVEN})
    assert first.regions == second.regions == RAVEN_REGIONS
    assert (first.is_annotated, second.is_annotated) == (False, True)
    assert "1 marked sounds of" in caplog.text and "have no label and are left out" in caplog.text


def test_the_column_of_labels_may_be_named(tmp_path):
    table = HEAD + "\tCall\tWho\n1\tS\t1\t1\t2\t\t\towl\tme\n"
    source, = annotated(tmp_path, {"a.txt": table}, label_column="Who")
    assert source.regions == (Region("me", 1.0, 2.0),)
    with pytest.raises(ManifestError, match=r"a\.txt has several columns that may hold the labels \(Call, Who\)"):
        annotated(tmp_path, {"a.txt": table})


def test_rejected_detections_are_what_was_asked_for(tmp_path):
    review = ("file_path,start_seconds,end_seconds,model_class,confidence,decision,label,reviewed_at\n"
              "x/a.wav,1,2,owl,0.9,rejected,,now\n")
    source, = annotated(tmp_path, {"review.csv": review}, background_label="noise")
    assert source.regions == (Region("noise", 1.0, 2.0),)


def test_an_empty_review_says_nothing_of_the_recording_it_is_called_after(tmp_path):
    with pytest.raises(ManifestError, match="no annotations can be used"):
        annotated(tmp_path, {"a.csv": "file_path,start_seconds,end_seconds,model_class,confidence,decision,label,x\n"})


# what cannot be used

def test_tables_are_read_in_order_and_hidden_files_are_none(tmp_path, caplog):
    names = ["z.txt", "k/c.txt", "m.txt", "k/d.txt", "b.txt"]
    annotated(tmp_path, {"x/a.txt": RAVEN, "._a.txt": b"\0\5\x16\7", **{name: "no table\n" for name in names}})
    told = [record.getMessage().partition(" is no Raven")[0] for record in caplog.records]
    assert told == [str(tmp_path / "marks" / name) for name in ("b.txt", "k/c.txt", "k/d.txt", "m.txt", "z.txt")]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("c.txt", RAVEN, "2 of 2 marked sounds are left out: the recording that it is called after is not below"),
    ("c.txt", EMPTY, r"c\.txt is empty, and the recording that it is called after is not below --input_dir"),
    ("a.csv", b"\xff\xfe1\x00", r"a\.csv is no text in UTF-8"),
    ("notes.txt", "Remember the milk\n", r"notes\.txt is no Raven, Audacity or BirdNET table and no review"),
    ("a.csv", RAVEN.replace("1.5", "soon"), r"a\.csv line 2: a time must be seconds, 0 or more, got 'soon'"),
    ("a.csv", RAVEN.replace("2.5", "1.5"), r"a\.csv line 2: end 1\.5 s is not after start 1\.5 s"),
    ("all.csv", "Start (s),End (s),Common name,File\n1,2,owl,gone.wav\n1,2,owl,y/b.wav\n",
     r"all\.csv: 1 of 2 marked sounds are left out: 'gone\.wav' is not below --input_dir"),
    ("all.csv", "Start (s),End (s),Common name,File\n1,2,owl,d.wav\n", r"'d\.wav' may be any of 2 recordings"),
])
def test_what_cannot_be_used_is_told_and_the_rest_is_used(tmp_path, caplog, name, content, message):
    audio = ("x/a.wav", "y/b.wav", "x/d.wav", "y/d.wav")
    with caplog.at_level(logging.WARNING):
        sources = annotated(tmp_path, {"x/a.txt": RAVEN, name: content}, audio=audio)
    assert regions_of(sources)["x/a.wav"] == RAVEN_REGIONS
    told, = (record.getMessage() for record in caplog.records)
    assert re.search(message, told)


def test_where_nothing_can_be_used_the_first_reason_is_told(tmp_path):
    with pytest.raises(ManifestError, match=r"no annotations can be used of .*marks: .*notes\.txt is no Raven, Aud"):
        annotated(tmp_path, {"c.txt": RAVEN, "notes.txt": "Remember the milk\n"})
    with pytest.raises(ManifestError, match=r"no annotations can be used of .*: it holds no \.txt, \.csv or \.tsv"):
        sources_from_annotations(tmp_path / "audio", tmp_path / "audio", group_by="recording")
    with pytest.raises(ManifestError, match="gone does not exist: --annotations is a table or a folder of tables"):
        sources_from_annotations(tmp_path / "gone", tmp_path / "audio", group_by="recording")


# with others

@pytest.mark.parametrize(("group_by", "expected"), [("folder", "x"), ("night", "SMM1 2024-05-01"), ("site", "SMM1")])
def test_annotated_recordings_are_grouped_as_asked(tmp_path, group_by, expected):
    source, = annotated(tmp_path, {"SMM1_20240501_220000.txt": RAVEN}, audio=("x/SMM1_20240501_220000.wav",),
                        group_by=group_by)
    assert source.recording_id == expected


def test_a_table_and_annotations_of_one_recording_are_joined(tmp_path):
    marks = annotated(tmp_path, {"a.txt": RAVEN}, group_by="column")
    (tmp_path / "labels.csv").write_text("path,label,group\nx/a.wav,hen,night\ny/b.wav,hen,night\n", encoding="utf-8")
    listed = sources_from_table(tmp_path / "labels.csv", tmp_path / "audio", columns=TableColumns(), group_by="column")
    first, second = combine(listed, marks)
    assert (first.recording_id, first.regions) == ("night", (Region("hen"), *RAVEN_REGIONS))
    assert (second.recording_id, second.regions) == ("night", (Region("hen"),))


# real tables

@pytest.mark.data
def test_real_tables_work_as_they_are(real_data, tmp_path):
    """Of Raven's tables the recordings are not here, so that files of their names stand for them."""
    names = ["MSD-0003_20180427_2minstart00", "EmptyExample", "raven_with_Annotation_col", "train_audio", "val_audio"]
    make_audio(tmp_path / "audio", *(f"{name}.wav" for name in names))
    (tmp_path / "marks").mkdir()
    for path in [*(real_data / "long").glob("raven__*.txt"), *(real_data / "long").glob("voxaboxen_*.txt")]:
        name = path.name.removeprefix("raven__").removeprefix("voxaboxen_")
        (tmp_path / "marks" / name).symlink_to(path)
    sources = {source.source_path: source for source in sources_from_annotations(
        tmp_path / "marks", tmp_path / "audio", group_by="recording")}
    assert set(sources) == {f"{name}.wav" for name in names}
    assert sources["train_audio.wav"].regions == sources["val_audio.wav"].regions == (Region("event", 2.0, 3.0),)
    assert (sources["EmptyExample.wav"].regions, sources["EmptyExample.wav"].is_annotated) == ((), True)
    assert sources["raven_with_Annotation_col.wav"].regions == (
        Region("CSWA", 1.897648165999982, 4.110570810999974, 1326.3, 3266.5),)
    birds = sources["MSD-0003_20180427_2minstart00.wav"]
    assert (len(birds.regions), birds.is_annotated) == (9, False)  # the tenth box has no label
    assert birds.regions[7] == Region("LOWA", 12.094042240999983, 13.656105284999995, 3165.5, 6903.5)


@pytest.mark.data
def test_real_tables_beside_their_recordings_work_as_they_are(real_data):
    """The folder also holds recordings without tables, tables of recordings that are not here, and other texts."""
    sources = sources_from_annotations(real_data / "long", real_data / "long", group_by="recording")
    assert regions_of(sources) == {f"voxaboxen_{side}_audio.wav": (Region("event", 2.0, 3.0),)
                                   for side in ("train", "val")}


def test_sounds_that_nothing_says_the_recording_of_are_those_of_the_tables_own(tmp_path):
    make_audio(tmp_path / "audio", "one.wav")
    write_raven(tmp_path / "one.txt", [MarkedSound(1, 2, "owl", file_path="")])
    source, = sources_from_annotations(tmp_path / "one.txt", tmp_path / "audio", group_by="recording")
    assert source.regions == (Region("owl", 1.0, 2.0, 50.0, 11025.0),)
