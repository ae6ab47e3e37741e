import csv
import dataclasses
import json
import os
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from models.calibration import Calibration
from models.classes import ClassList, DecisionRules
from models.description import ModelDescription
from models.errors import ConfigError
from tests.conftest import TINY_FRONTEND, TINY_RATE, tiny_config
from utils.audio.annotations import MarkedSound, read_audacity, read_birdnet, read_raven
from utils.audio.recorders import RECORDER_COLUMNS, RecorderFacts
from utils.audio.recordings import Outcome
from utils.prediction import outputs
from utils.prediction.detections import join
from utils.prediction.outputs import (FORMATS, RECORDINGS, JsonWriter, ResultsHead, flat_record, journal_path,
                                      output_path, record_columns, results_name)
from utils.prediction.records import PredictionSettings, RecordMaker, ScoredRecording
from utils.prediction.scoring import SpanScores
from utils.prediction.spans import End, ReadingPlan, SpanRead
from utils.storage.names import text_to_name

CLASSES = ("owl", "fox")
SEGMENTS = PredictionSettings(segment_mode=True)
EVERYTHING = {"return_all_scores": True, "top_k": 2}
ALL_FORMATS = {**FORMATS, "recordings": RECORDINGS}
WRITTEN = 1e-6  # of a second, of a probability: tables have six decimals
ODD_NAME, ODD_TEXT = os.fsdecode(b"owl\xe9.wav"), r"owl\xe9.wav"  # Latin 1, as old recorders and ZIP files have it
any_bytes_are_names = pytest.mark.skipif(not sys.platform.startswith("linux"),
                                         reason="only Linux lets a file name be any bytes")
STARTED = datetime(2024, 5, 1, 20, tzinfo=timezone(timedelta(hours=2)))
RECORDER = RecorderFacts(started=STARTED, recorder_id="SMM1", site="ridge", latitude=9.5, temperature_c=0.0)


def scored(name, *owl, recorder=RecorderFacts(), damage=""):
    """Return a recording of segments of a second, of each the probability of ``owl``."""
    logits = np.log(np.array([[p, 1 - p] for p in owl], dtype=np.float32))
    span = SpanRead(0, len(owl), None, len(owl), 0.5, End(float(len(owl)), damage), 0.25)
    return ScoredRecording(os.fspath(name), Outcome("ok", damage, float(len(owl)), TINY_RATE, 1), recorder, len(owl),
                           0.25, lambda: iter([SpanScores(span, logits)]))


def failed(name, reason="no audio, only “text”"):
    return ScoredRecording(os.fspath(name), Outcome("corrupt", reason))


def maker(settings):
    classes = ClassList(CLASSES)
    model = ModelDescription(path="m.pth", sha256="0" * 64, model_name="efficientnet-b0", config=tiny_config(),
                             frontend=TINY_FRONTEND, classes=classes, calibration=Calibration(),
                             rules=DecisionRules(dict.fromkeys(CLASSES, 0.7), "unknown"), n_parameters=1)
    return RecordMaker(model, model.rules, settings, ReadingPlan(TINY_FRONTEND, TINY_RATE, TINY_RATE))


def head_of(settings=PredictionSettings(), *, root=None, content=None):
    return ResultsHead(content or {"format_version": 1, "summary": {"files": 3}}, settings, CLASSES, TINY_RATE, 50.0,
                       4000.0, root or Path.cwd())


def feed(writer, recordings, settings):
    """Give records to a writer as a run does."""
    records = maker(settings)
    for recording in recordings:
        writer.begin(recording)
        n_detections = 0
        if recording.outcome.status == "ok":
            answers = records.segments(recording) if settings.segment_mode else [records.whole(recording)]
            if settings.merge_gap_seconds is not None:
                answers = join(answers, gap_samples=round(settings.merge_gap_seconds * TINY_RATE))
            for answer in answers:
                record = (records.segment_record(recording, answer) if settings.segment_mode
                          else records.file_record(recording, answer))
                n_detections += answer.decision.above_threshold
                writer.add(recording, answer, record)
        writer.end(recording, n_detections=n_detections)


def write(folder, name, recordings, settings=PredictionSettings(), *, root=None):
    """Write recordings, which lie in the folder at hand or in ``root``, in a format and return the path."""
    path = output_path(folder / "results", ALL_FORMATS[name].ending)
    with ALL_FORMATS[name].open(path, head_of(settings, root=root)) as writer:
        feed(writer, recordings, settings)
    return path


def rows_of(path, *, delimiter=","):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter=delimiter))


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def where(sounds):
    return [(sound.start_seconds, sound.end_seconds, sound.label) for sound in sounds]


# names

@pytest.mark.parametrize(("output", "name"), [
    ("results.json", "results"), ("results.csv", "results"), ("results", "results"), ("results.JSON", "results"),
    ("survey_v1.2", "survey_v1.2"), ("survey_v1.2.json", "survey_v1.2"), ("site.A", "site.A"),
    ("results.selections.txt", "results"), ("results.birdnet.csv", "results"), ("results.nights.csv", "results"),
    ("results.parquet", "results"), ("results.audacity", "results"), ("results.txt", "results.txt"),
    (".json", ".json"), ("json", "json"),
])
def test_a_format_takes_the_place_of_another_but_not_of_a_part_of_the_name(output, name):
    assert results_name(Path("in") / output) == name
    for kind in ALL_FORMATS.values():
        assert output_path(Path("in") / output, kind.ending) == Path("in") / (name + kind.ending)
    assert journal_path(Path("in") / output) == Path("in") / f"{name}.scores.jsonl"


def test_outputs_that_differ_have_journals_that_differ():
    names = ["site.A", "site.B", "site", "survey_v1.2", "survey_v1.3"]
    assert len({journal_path(Path(name)) for name in names}) == len(names)


def test_no_format_is_written_over_another():
    names = [output_path(Path("x"), kind.ending) for kind in ALL_FORMATS.values()] + [journal_path(Path("x"))]
    assert len(set(names)) == len(ALL_FORMATS) + 1


# records: JSON, CSV, Parquet

MIXED = [scored("a.wav", 0.75, 0.75, 0.1, recorder=RECORDER), scored("b.wav", 0.6, damage="b.wav breaks off"),
         failed("c.wav")]
SETTINGS = [PredictionSettings(), PredictionSettings(**EVERYTHING), SEGMENTS,
            PredictionSettings(segment_mode=True, **EVERYTHING),
            PredictionSettings(segment_mode=True, merge_gap_seconds=0.0, **EVERYTHING)]
settings_of_all_kinds = pytest.mark.parametrize("settings", SETTINGS, ids=[
    "files", "files with scores", "segments", "segments with scores", "detections"])


def test_json_holds_head_records_errors_and_recordings(tmp_path):
    path = write(tmp_path, "json", MIXED)
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    assert list(found) == ["format_version", "summary", "predictions", "errors", "recordings"]
    assert (found["format_version"], found["summary"]) == (1, {"files": 3})
    assert [record["file_path"] for record in found["predictions"]] == ["a.wav", "b.wav"]
    assert found["errors"] == [{"file_path": "c.wav", "status": "corrupt", "error": "no audio, only “text”"}]
    assert [(row["file_path"], row["status"], row["n_detections"]) for row in found["recordings"]] == [
        ("a.wav", "ok", 0), ("b.wav", "ok", 0), ("c.wav", "corrupt", 0)]
    assert "“text”" in text and text.endswith("\n") and "\r" not in text
    assert sum(line.startswith('    {"file_path"') for line in text.splitlines()) == 6  # one a line


def test_json_can_be_written_where_only_ascii_is_understood(tmp_path):
    with open(tmp_path / "results.json", "w+", encoding="ascii") as stream:
        writer = JsonWriter(stream, head_of(), ensure_ascii=True)
        feed(writer, [failed("c.wav"), scored("süd.wav", 0.9)], PredictionSettings())
        writer.finish()
        stream.seek(0)
        found = json.load(stream)
    assert (found["errors"][0]["error"], found["predictions"][0]["file_path"]) == ("no audio, only “text”", "süd.wav")


@settings_of_all_kinds
def test_json_and_csv_say_the_same(tmp_path, settings):
    found = json.loads(write(tmp_path, "json", MIXED, settings).read_text(encoding="utf-8"))
    rows = rows_of(write(tmp_path, "csv", MIXED, settings))
    expected = [flat_record(record) for record in found["predictions"]] + found["errors"]
    assert [{name: value for name, value in row.items() if value} for row in rows] == [
        {name: str(value) for name, value in record.items() if value != ""} for record in expected]


@settings_of_all_kinds
def test_a_table_has_a_column_for_whatever_a_record_may_hold(settings):
    records, everything = maker(settings), {"damage"} | {*RECORDER_COLUMNS}
    recording = scored("a.wav", 0.9, 0.1, damage="it breaks off", recorder=RecorderFacts(
        started=STARTED, recorder_id="x", site="x", latitude=1.0, longitude=1.0, temperature_c=1.0, gain="1"))
    record = (records.segment_record(recording, next(records.segments(recording))) if settings.segment_mode
              else records.file_record(recording))
    assert everything <= set(record)
    assert sorted(flat_record(record)) == sorted(record_columns(head_of(settings)))


@pytest.mark.parametrize(("settings", "added"), [
    (PredictionSettings(), []),
    (SEGMENTS, ["segment_index", "segment_start_ms", "segment_end_ms"]),
    (PredictionSettings(top_k=1), ["top_1_class", "top_1_probability"]),
    (PredictionSettings(top_k=5), ["top_1_class", "top_1_probability", "top_2_class", "top_2_probability"]),
    (PredictionSettings(return_all_scores=True), ["score_owl", "score_fox"]),
])
def test_columns_depend_on_what_is_asked_for_and_not_on_what_is_found(settings, added):
    usual = record_columns(head_of())
    assert [name for name in record_columns(head_of(settings)) if name not in usual] == added
    assert len(set(record_columns(head_of(settings)))) == len(usual) + len(added)


def test_a_record_becomes_a_row():
    record = {"file_path": "a.wav", "confidence": 0.75, "all_scores": {"owl": 0.75, "fox": 0.25},
              "top_k": [{"class": "owl", "probability": 0.75}, {"class": "fox", "probability": 0.25}]}
    assert flat_record(record) == {
        "file_path": "a.wav", "confidence": 0.75, "score_owl": 0.75, "score_fox": 0.25, "top_1_class": "owl",
        "top_1_probability": 0.75, "top_2_class": "fox", "top_2_probability": 0.25, "status": "ok", "error": ""}


def test_values_of_the_csv_are_those_computed_by_hand(tmp_path):
    first, second, third = rows_of(write(tmp_path, "csv", MIXED, PredictionSettings(**EVERYTHING)))
    mean = (0.75 + 0.75 + 0.1) / 3
    assert float(first["score_owl"]) == pytest.approx(mean, abs=WRITTEN)
    assert float(first["top_2_probability"]) == pytest.approx(1 - mean, abs=WRITTEN)
    assert (first["predicted_class"], first["above_threshold"], first["top_1_class"]) == ("unknown", "False", "owl")
    assert (first["recorded_at"], first["site"], first["temperature_c"], first["longitude"]) == (
        "2024-05-01T20:00:00+02:00", "ridge", "0.0", "")
    assert (second["damage"], second["status"], second["error"]) == ("b.wav breaks off", "ok", "")
    assert {name: value for name, value in third.items() if value} == {
        "file_path": "c.wav", "status": "corrupt", "error": "no audio, only “text”"}


def test_a_segment_tells_when_it_began(tmp_path):
    rows = rows_of(write(tmp_path, "csv", MIXED[:1], SEGMENTS))
    assert [(row["segment_index"], row["segment_start_ms"], row["segment_end_ms"], row["recorded_at"])
            for row in rows] == [("0", "0", "1000", "2024-05-01T20:00:00+02:00"),
                                 ("1", "1000", "2000", "2024-05-01T20:00:01+02:00"),
                                 ("2", "2000", "3000", "2024-05-01T20:00:02+02:00")]


@settings_of_all_kinds
@pytest.mark.parametrize("n_rows", [2, 20_000])
def test_parquet_says_what_csv_says(tmp_path, monkeypatch, settings, n_rows):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet
    monkeypatch.setattr(outputs, "_PARQUET_ROWS", n_rows)
    found = parquet.read_table(write(tmp_path, "parquet", MIXED, settings))
    rows = rows_of(write(tmp_path, "csv", MIXED, settings))
    assert found.column_names == record_columns(head_of(settings))
    assert [{name: "" if value is None else str(value) for name, value in row.items()}
            for row in found.to_pylist()] == rows


def test_parquet_has_numbers_as_numbers_even_where_there_are_none(tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet
    settings = PredictionSettings(segment_mode=True, **EVERYTHING)
    few, none = (parquet.read_schema(write(tmp_path, "parquet", recordings, settings))
                 for recordings in ([failed("c.wav")], []))
    assert few.equals(none)
    kinds = {name: str(few.field(name).type) for name in few.names}
    assert (kinds["confidence"], kinds["score_owl"], kinds["top_1_probability"], kinds["latitude"]) == 4 * ("double",)
    assert (kinds["segment_start_ms"], kinds["n_segments"], kinds["above_threshold"]) == ("int64", "int64", "bool")
    assert (kinds["file_path"], kinds["top_1_class"], kinds["recorded_at"], kinds["gain"]) == 4 * ("string",)


def test_parquet_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match="--formats parquet needs pyarrow: pip install"):
        write(tmp_path, "parquet", MIXED)
    assert files_in(tmp_path) == []


def test_what_waits_for_the_end_of_the_json_may_be_large(tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "_SPOOLED_BYTES", 100)
    found = json.loads(write(tmp_path, "json", [failed(f"{n}.wav") for n in range(50)]).read_text(encoding="utf-8"))
    assert [error["file_path"] for error in found["errors"]] == [f"{n}.wav" for n in range(50)]
    assert len(found["recordings"]) == 50


# nothing found

@pytest.mark.parametrize("recordings", [[], [failed("c.wav")]], ids=["nothing", "nothing readable"])
def test_nothing_found_is_a_whole_file_in_every_format(tmp_path, recordings):
    paths = {name: write(tmp_path, name, recordings, SEGMENTS) for name in ALL_FORMATS if name != "parquet"}
    assert json.loads(paths["json"].read_text(encoding="utf-8"))["predictions"] == []
    assert len(rows_of(paths["csv"])) == len(rows_of(paths["recordings"])) == len(recordings)
    assert rows_of(paths["nights"]) == read_raven(paths["raven"]) == read_birdnet(paths["birdnet"]) == []
    assert list(paths["audacity"].iterdir()) == []
    assert not (tmp_path / "results.raven").exists()


# marked sounds

NIGHT = [scored("site/one.wav", 0.9, 0.2, 0.5, 0.8), failed("site/broken.wav"), scored("site/two.wav", 0.5, 0.5),
         scored("site/three.wav", 0.5, 0.9)]
ONE, THREE = [(0.0, 1.0, "owl"), (1.0, 2.0, "fox"), (3.0, 4.0, "owl")], [(1.0, 2.0, "owl")]


def test_raven_has_a_table_for_each_recording_and_one_for_all(tmp_path):
    path = write(tmp_path, "raven", NIGHT, SEGMENTS)
    assert files_in(tmp_path) == [f"results.raven/site/{name}.selections.txt" for name in ("one", "three", "two")] + [
        "results.selections.txt"]
    own = tmp_path / "results.raven" / "site"
    assert where(read_raven(own / "one.selections.txt")) == ONE
    assert where(read_raven(own / "two.selections.txt")) == []
    assert where(read_raven(own / "three.selections.txt")) == THREE
    assert where(read_raven(path)) == ONE + THREE
    assert [sound.file_path for sound in read_raven(path)] == 3 * ["one.wav"] + ["three.wav"]


def test_raven_counts_time_through_all_recordings_that_it_can_open(tmp_path):
    rows = rows_of(write(tmp_path, "raven", NIGHT, SEGMENTS), delimiter="\t")
    assert [row["Selection"] for row in rows] == ["1", "2", "3", "4"]
    # four seconds of one, none of the broken one, two of two
    assert [(float(row["Begin Time (s)"]), float(row["End Time (s)"])) for row in rows] == [
        (0, 1), (1, 2), (3, 4), (7, 8)]
    assert [float(row["File Offset (s)"]) for row in rows] == [0, 1, 3, 1]
    assert {(float(row["Low Freq (Hz)"]), float(row["High Freq (Hz)"])) for row in rows} == {(50, 4000)}
    assert [float(row["Confidence"]) for row in rows] == pytest.approx([0.9, 0.8, 0.8, 0.9], abs=WRITTEN)


def test_each_table_of_a_recording_counts_from_its_own_beginning(tmp_path):
    write(tmp_path, "raven", NIGHT, SEGMENTS)
    row, = rows_of(next(tmp_path.rglob("three.selections.txt")), delimiter="\t")
    assert (row["Selection"], row["Begin Time (s)"], row["File Offset (s)"]) == ("1", "1.000000", "1.000000")


def test_joined_segments_are_one_sound(tmp_path):
    settings = PredictionSettings(segment_mode=True, merge_gap_seconds=2.0)
    for name, read in (("raven", read_raven), ("birdnet", read_birdnet)):
        found = read(write(tmp_path, name, NIGHT, settings))
        assert where(found) == [(0.0, 4.0, "owl"), (1.0, 2.0, "fox")] + THREE
        assert found[0].confidence == pytest.approx(0.9, abs=WRITTEN)


def test_audacity_has_a_label_track_for_each_recording(tmp_path):
    folder = write(tmp_path, "audacity", NIGHT, SEGMENTS)
    assert files_in(folder) == ["site/one.txt", "site/three.txt", "site/two.txt"]
    assert [where(read_audacity(folder / name)) for name in files_in(folder)] == [ONE, THREE, []]


def test_birdnet_has_one_table_with_the_path_of_each_recording(tmp_path):
    found = read_birdnet(write(tmp_path, "birdnet", NIGHT, SEGMENTS))
    assert where(found) == ONE + THREE
    assert [sound.file_path for sound in found] == 3 * ["site/one.wav"] + ["site/three.wav"]


def test_without_segments_the_whole_recording_is_the_sound(tmp_path):
    found = read_birdnet(write(tmp_path, "birdnet", [scored("a.wav", 0.9, 0.8), scored("b.wav", 0.5, 0.6)]))
    assert found == [MarkedSound(0.0, 2.0, "owl", pytest.approx(0.85, abs=WRITTEN), "a.wav")]


@pytest.mark.parametrize(("name", "ending"), [("raven", ".selections.txt"), ("audacity", ".txt")])
@pytest.mark.parametrize(("paths", "expected"), [
    (["night/a.wav", "night/a.flac", "night/b.wav"], ["night/a", "night/a.flac", "night/b"]),
    (["x/a.wav", "y/a.wav", "y/z/a.wav"], ["x/a", "y/a", "y/z/a"]),
    (["x/a.wav"], ["x/a"]),
])
def test_tables_have_the_folders_of_the_recordings_and_names_that_differ(tmp_path, name, ending, paths, expected):
    recordings = [scored(tmp_path / "in" / path, *number * [0.9]) for number, path in enumerate(paths, start=1)]
    write(tmp_path, name, recordings, SEGMENTS, root=tmp_path / "in")
    folder = tmp_path / f"results.{name}"
    assert files_in(folder) == sorted(path + ending for path in expected)
    read = read_raven if name == "raven" else read_audacity
    assert [len(read(folder / (path + ending))) for path in expected] == list(range(1, len(paths) + 1))  # each its own


def test_recordings_that_are_named_from_a_folder_beside_them_keep_their_tables_apart(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    write(tmp_path, "audacity", [scored(f"../in/site{n}/a.wav", 0.9) for n in range(3)], SEGMENTS,
          root=tmp_path / "in")
    assert files_in(tmp_path / "results.audacity") == ["site0/a.txt", "site1/a.txt", "site2/a.txt"]


def test_no_table_takes_the_place_of_another_whatever_the_names_are(tmp_path):
    names = ["a.wav.flac", "a.flac", "a.wav"]
    write(tmp_path, "audacity", [scored(name, 0.9) for name in names], SEGMENTS)
    assert len(files_in(tmp_path / "results.audacity")) == 3


def test_a_name_that_leaves_no_room_for_the_ending_is_cut(tmp_path):
    stem = 125 * "é"  # 250 bytes
    write(tmp_path, "raven", [scored(f"{stem}{n}.wav", 0.9) for n in range(2)], SEGMENTS)
    tables = list((tmp_path / "results.raven").iterdir())
    assert len(tables) == 2
    assert all(len(os.fsencode(table.name)) <= 255 and table.name.endswith(".selections.txt") for table in tables)
    assert {read_raven(table)[0].file_path for table in tables} == {f"{stem}{n}.wav" for n in range(2)}


# other programs

@pytest.mark.parametrize(("low", "high"), [(50.5, 3999.75), (50.0, 4000.0)])
def test_crowsetta_reads_the_raven_tables(tmp_path, low, high):
    crowsetta = pytest.importorskip("crowsetta")
    path, head = tmp_path / "results.selections.txt", head_of(SEGMENTS)
    with FORMATS["raven"].open(path, dataclasses.replace(head, low_hertz=low, high_hertz=high)) as writer:
        feed(writer, NIGHT, SEGMENTS)
    boxes = crowsetta.formats.bbox.Raven.from_file(path, annot_col="Species").to_bbox()
    assert [(box.onset, box.offset, box.low_freq, box.high_freq, box.label) for box in boxes] == [
        (0, 1, low, high, "owl"), (1, 2, low, high, "fox"), (3, 4, low, high, "owl"), (7, 8, low, high, "owl")]


def test_crowsetta_reads_the_audacity_label_tracks(tmp_path):
    crowsetta = pytest.importorskip("crowsetta")
    folder = write(tmp_path, "audacity", NIGHT, SEGMENTS)
    found = crowsetta.formats.seq.AudSeq.from_file(next(folder.rglob("one.txt"))).to_seq()
    assert list(zip(found.onsets_s, found.offsets_s, found.labels)) == ONE


# nights and recordings

def test_nights_count_detections_and_hours_of_what_could_be_read(tmp_path):
    recordings = [scored("one.wav", 0.9, 0.2, 0.5, recorder=RECORDER), failed("broken.wav"),
                  scored("two.wav", 0.9, recorder=RecorderFacts(site="creek"))]
    assert rows_of(write(tmp_path, "nights", recordings, SEGMENTS)) == [
        {"site": site, "night": night, "class_name": name, "n_detections": count, "n_recordings": "1",
         "effort_hours": hours} for site, night, name, count, hours in [
            ("creek", "", "owl", "1", "0.0003"), ("creek", "", "fox", "0", "0.0003"),
            ("ridge", "2024-05-01", "owl", "1", "0.0008"), ("ridge", "2024-05-01", "fox", "1", "0.0008")]]


def test_every_input_has_a_row_among_the_recordings(tmp_path):
    rows = rows_of(write(tmp_path, "recordings", MIXED, SEGMENTS))
    assert [(row["file_path"], row["status"], row["error"], row["duration_seconds"], row["n_segments"],
             row["n_detections"]) for row in rows] == [
        ("a.wav", "ok", "", "3.0", "3", "3"), ("b.wav", "ok", "b.wav breaks off", "1.0", "1", "0"),
        ("c.wav", "corrupt", "no audio, only “text”", "0.0", "0", "0")]
    assert [(row["recorded_at"], row["recorder_id"]) for row in rows] == [
        ("2024-05-01T20:00:00+02:00", "SMM1"), ("", ""), ("", "")]


def test_the_recordings_in_json_are_those_of_the_table(tmp_path):
    found = json.loads(write(tmp_path, "json", MIXED, SEGMENTS).read_text(encoding="utf-8"))["recordings"]
    assert [{name: str(value) for name, value in row.items() if value != ""} for row in found] == [
        {name: value for name, value in row.items() if value} for row in rows_of(
            write(tmp_path, "recordings", MIXED, SEGMENTS))]


# names and text that are odd

@any_bytes_are_names
@pytest.mark.parametrize("name", [name for name in ALL_FORMATS if name != "parquet"])
def test_a_name_that_is_no_text_is_written_as_text(tmp_path, name):
    path = write(tmp_path, name, [scored(ODD_NAME, 0.9), failed(f"bad/{ODD_NAME}", f"{ODD_NAME} is broken")], SEGMENTS)
    written = {file: (tmp_path / file).read_text(encoding="utf-8") for file in files_in(tmp_path)}
    if name not in ("audacity", "nights"):  # in which no recording is named
        assert ODD_TEXT in written[path.name].replace(r"\\x", r"\x")  # JSON doubles the backslash
    if name in ("raven", "audacity"):
        ending = ".selections.txt" if name == "raven" else ".txt"
        assert f"results.{name}/{ODD_NAME.removesuffix('.wav')}{ending}" in written


@pytest.mark.parametrize("name", ["a\tb.wav", 'a"b,c.wav', "a\nb.wav", "猫 \U0001f989.wav"])
def test_a_name_that_holds_separators_breaks_no_table(tmp_path, name):
    recordings, names = [scored(name, 0.9), scored("z.wav", 0.1)], [name, "z.wav"]
    for kind in ("csv", "recordings"):
        rows = rows_of(write(tmp_path, kind, recordings, SEGMENTS))
        assert [text_to_name(row["file_path"]) for row in rows] == names
    for kind, read in (("raven", read_raven), ("birdnet", read_birdnet)):
        sounds = read(write(tmp_path, kind, recordings, SEGMENTS))
        assert [text_to_name(sound.file_path) for sound in sounds] == names


# whole or not at all

class BrokenError(Exception):
    """Stands for a full disk, Ctrl-C or a bug while results are written."""


def whole_files(folder):
    return {path: (folder / path).read_bytes() for path in files_in(folder)}


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_run_that_fails_between_recordings_leaves_the_old_results(tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")

    def recordings():
        yield scored("other.wav", 0.1)
        raise BrokenError

    write(tmp_path, name, [scored("one.wav", 0.9)], SEGMENTS)
    before = whole_files(tmp_path)
    with pytest.raises(BrokenError, match="^$"):
        write(tmp_path, name, recordings(), SEGMENTS)
    left = whole_files(tmp_path)
    added = {path: left.pop(path) for path in set(left) - set(before)}
    assert left == before
    # a table of one recording is whole by itself
    assert [Path(path).name.partition(".")[0] for path in added] == ["other"] * (name in ("raven", "audacity"))


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_run_that_fails_in_a_recording_leaves_its_old_results(tmp_path, name):
    if name == "parquet":
        pytest.importorskip("pyarrow")

    def spans():
        yield from scored("one.wav", 0.1).spans()
        raise BrokenError

    write(tmp_path, name, [scored("one.wav", 0.9)], SEGMENTS)
    before = whole_files(tmp_path)
    with pytest.raises(BrokenError, match="^$"):
        write(tmp_path, name, [dataclasses.replace(scored("one.wav", 0.1), spans=spans)], SEGMENTS)
    assert whole_files(tmp_path) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["head", "record"])
def test_a_number_that_json_cannot_hold_leaves_the_old_results(tmp_path, value, place):
    path = write(tmp_path, "json", MIXED)
    before = path.read_bytes()
    content = {"format_version": 1, "summary": value if place == "head" else {}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        with FORMATS["json"].open(path, head_of(content=content)) as writer:
            writer.add(MIXED[0], maker(PredictionSettings()).whole(MIXED[0]), {"confidence": value})
    assert path.read_bytes() == before
    assert files_in(tmp_path) == ["results.json"]
