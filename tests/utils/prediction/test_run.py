import csv
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from models.errors import AudioError, ConfigError
from tests.conftest import TINY_CLASSES, TINY_RATE, tiny_sound, write_audio
from tests.utils.prediction.conftest import (ODD_NAME, ODD_TEXT, any_bytes_are_names, broken_flac, predictor_of,
                                             silent_predictor, without)
from utils.prediction import spans as reading
from utils.prediction.outputs import journal_path
from utils.prediction.predictor import EfficientNetPredictor
from utils.prediction.run import OutputSettings, find_inputs, predict_to_files, predict_to_stream
from utils.prediction.scoring import SpanScores
from utils.prediction.spans import Failed
from utils.running.parallel import LocalProcesses, ThisProcess
from utils.storage.checkpoints import read_checkpoint
from utils.storage.files import file_sha256
from utils.storage.locks import locked
from utils.storage.names import text_to_name

BATCHES = 1e-5  # of a probability: convolutions of another batch size add float32 in another order
ALL = ["0.wav", "1.wav", "2.wav"]

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def folder(tmp_path, rng):
    for number, class_name in enumerate(TINY_CLASSES):
        write_audio(tmp_path / "audio" / f"{number}.wav", tiny_sound(class_name, seconds=1.5, rng=rng))
    (tmp_path / "audio" / "2_broken.wav").write_bytes(b"no recording at all" * 10)
    return tmp_path / "audio"


def run(predictor, paths, output, *, overwrite=False, **settings):
    return predict_to_files(predictor, paths, OutputSettings(output=output, **settings), executor=ThisProcess(),
                            overwrite=overwrite)


def predict(predictor, paths, output, **arguments):
    """Predict and return what stands in the JSON."""
    result = run(predictor, paths, output, **arguments)
    return json.loads(result.written[0].read_text(encoding="utf-8"))


def straight(predictor, paths, folder):
    """Predict into a folder where nothing was predicted before."""
    return predict(predictor, paths, folder / "straight" / "results.json")


def without_times(results):
    return (list(map(without, results["predictions"])), results["errors"], results["recordings"],
            {name: value for name, value in results["summary"].items() if name != "wall_seconds"})


def ends_a_file(part):
    return isinstance(part, Failed) or isinstance(part, SpanScores) and part.span.end is not None


def interrupted(predictor, paths, output, *, when, **arguments):
    """Predict, and interrupt as Ctrl-C does when so many parts of which ``when`` is true are written down."""
    usual, (n_parts, wanted) = predictor.score, when

    def stopping(jobs, **named):
        n_done = 0
        for job, part in usual(jobs, **named):
            if n_done == n_parts:
                raise KeyboardInterrupt
            yield job, part
            n_done += wanted(part)

    predictor.score = stopping
    with pytest.raises(KeyboardInterrupt, match="^$"):
        run(predictor, paths, output, **arguments)


def files(number):
    """Interrupt when so many files are done."""
    return number, ends_a_file


def spans(number):
    """Interrupt when so many spans are done."""
    return number, lambda part: isinstance(part, SpanScores)


def count_scored(predictor):
    """Return a list that names the files as they are begun, and one of the spans of each that are scored."""
    usual, begun, scored = predictor.score, [], []

    def noted(jobs):
        for job in jobs:
            begun.append(job.recording.name)
            yield job

    def counting(jobs, **named):
        for job, part in usual(noted(jobs), **named):
            if isinstance(part, SpanScores):
                scored.append((job.recording.name, part.span.number))
            yield job, part

    predictor.score = counting
    return begun, scored


# inputs

def test_files_folders_and_lists_are_found_once_and_in_order(folder):
    (folder / "notes.md").write_text("no audio", encoding="utf-8")
    (folder / "night.txt").write_text("# what to hear\n1.wav\n\n0.wav\n", encoding="utf-8")
    assert [path.name for path in find_inputs([folder / "3.wav", folder / "night.txt", folder])] == \
        ["3.wav", "1.wav", "0.wav", "2.wav", "2_broken.wav"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])  # PowerShell's redirection writes UTF-16
def test_a_list_may_be_written_in_any_unicode(folder, encoding):
    (folder / "0.wav").rename(folder / "grüße.wav")
    (folder / "night.txt").write_text("grüße.wav\n1.wav\n", encoding=encoding)
    assert [path.name for path in find_inputs([folder / "night.txt"])] == ["grüße.wav", "1.wav"]


def test_what_was_found_is_a_sequence_of_paths(folder):
    found = find_inputs([folder])
    expected = [folder / name for name in ("0.wav", "1.wav", "2.wav", "2_broken.wav", "3.wav")]
    assert list(found) == expected and len(found) == 5
    assert (found[1], found[-1], found[1:3], found[::2]) == (expected[1], expected[-1], expected[1:3], expected[::2])
    with pytest.raises(IndexError, match="out of range"):
        found[5]


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--input .*gone does not exist"):
        find_inputs([tmp_path / "gone"])


def test_a_folder_without_audio_is_an_error(tmp_path):
    (tmp_path / "notes.md").write_text("no audio", encoding="utf-8")
    with pytest.raises(AudioError, match="no recordings in .*files ending in"):
        find_inputs([tmp_path])


# results

def test_results_follow_the_contract(folder, tiny_model, tmp_path):
    results = predict(predictor_of(tiny_model.best, return_all_scores=True), find_inputs([folder]),
                      tmp_path / "results.json")
    assert list(results) == ["format_version", "created", "model", "settings", "summary", "predictions", "errors",
                             "recordings"]
    assert results["format_version"] == 1
    assert results["model"] == {"path": str(tiny_model.best), "sha256": file_sha256(tiny_model.best),
                                "model_name": "efficientnet-b0", "class_names": list(TINY_CLASSES),
                                "backend": "torch-cpu"}
    assert {name: results["settings"][name] for name in ("temperature", "class_biases")} == \
        read_checkpoint(tiny_model.best)["calibration"]
    assert results["settings"]["thresholds"] == read_checkpoint(tiny_model.best)["thresholds"]
    summary = results["summary"]
    assert set(summary) == {"files", "ok", "failed", "failures", "segments", "detections", "audio_seconds",
                            "wall_seconds", "per_class"}
    assert (summary["files"], summary["ok"], summary["failed"], summary["segments"]) == (5, 4, 1, 8)
    assert summary["failures"] == {"corrupt": 1} and summary["audio_seconds"] == 6.0
    assert sum(summary["per_class"].values()) == 4
    assert [os.path.basename(record["file_path"]) for record in results["predictions"]] == \
        ["0.wav", "1.wav", "2.wav", "3.wav"]
    error, = results["errors"]
    assert set(error) == {"file_path", "status", "error"} and error["status"] == "corrupt"


def test_every_input_has_a_row_whether_anything_was_found_in_it_or_not(folder, tiny_model, tmp_path):
    write_audio(folder / "4_silent.wav", np.zeros(2 * TINY_RATE, np.float32))
    paths, output = find_inputs([folder]), tmp_path / "results.json"
    tops = [record["top_confidence"] for record in predict(predictor_of(tiny_model.best, segment_mode=True), paths,
                                                           output)["predictions"]]
    results = predict(predictor_of(tiny_model.best, segment_mode=True, min_confidence=float(np.median(tops))), paths,
                      output)
    rows = results["recordings"]
    assert [(os.path.basename(row["file_path"]), row["status"], row["n_segments"]) for row in rows] == [
        ("0.wav", "ok", 2), ("1.wav", "ok", 2), ("2.wav", "ok", 2), ("2_broken.wav", "corrupt", 0), ("3.wav", "ok", 2),
        ("4_silent.wav", "silent", 2)]
    above = Counter(record["file_path"] for record in results["predictions"] if record["above_threshold"])
    assert [row["n_detections"] for row in rows] == [above[row["file_path"]] for row in rows]
    assert 0 < results["summary"]["detections"] == above.total() < len(tops)
    assert results["summary"]["failures"] == {"corrupt": 1, "silent": 1}
    with open(tmp_path / "results.recordings.csv", encoding="utf-8", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [row["error"] for row in table] == [row["error"] for row in rows]
    assert [(bool(row["error"]), row["status"]) for row in rows] == [(row["status"] != "ok", row["status"])
                                                                     for row in rows]


def test_segments_are_counted_in_segment_mode(folder, tiny_model, tmp_path):
    results = predict(predictor_of(tiny_model.best, segment_mode=True), find_inputs([folder]), tmp_path / "results")
    assert results["summary"]["segments"] == len(results["predictions"]) == 8
    assert results["summary"]["audio_seconds"] == 6.0
    assert results["settings"]["segment_mode"] is True


def test_the_summary_counts_what_the_records_say(folder, tiny_model, tmp_path):
    for settings in ({"use_thresholds": False}, {}, {"segment_mode": True, "segment_duration_ms": 250},
                     {"segment_mode": True, "segment_duration_ms": 250, "merge_gap_seconds": 0.0}):
        results = predict(predictor_of(tiny_model.best, **settings), find_inputs([folder]), tmp_path / "results.json")
        records, summary = results["predictions"], results["summary"]
        assert summary["per_class"] == Counter(record["predicted_class"] for record in records)
        assert summary["detections"] == sum(record["above_threshold"] for record in records)
    assert len(records) == summary["detections"] < summary["segments"] == 24  # of the joined ones


def test_nothing_but_errors_are_results_too(folder, tiny_model, tmp_path):
    results = predict(predictor_of(tiny_model.best), [folder / "2_broken.wav"], tmp_path / "results.json")
    assert results["predictions"] == [] and [error["status"] for error in results["errors"]] == ["corrupt"]
    assert results["summary"]["per_class"] == {} and results["summary"]["segments"] == 0


def test_what_is_told_is_what_is_written_and_the_scores_stay_beside_it(folder, tiny_model, tmp_path):
    output = tmp_path / "out" / "results.json"
    result = run(predictor_of(tiny_model.best), find_inputs([folder]), output, formats=("json", "csv"))
    names = {"results.json", "results.csv", "results.recordings.csv", "results.scores.jsonl"}
    assert set(result.written) == {output.parent / name for name in names - {"results.scores.jsonl"}}

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(output.read_text(encoding="utf-8"), parse_constant=refuse)["summary"] == result.summary
    assert {path.name for path in output.parent.iterdir() if not path.name.startswith(".")} == names


def test_a_point_in_the_name_of_the_output_stays(folder, tiny_model, tmp_path):
    result = run(predictor_of(tiny_model.best), [folder / "0.wav"], tmp_path / "survey_v1.2", formats=("json", "csv"))
    assert result.written[:2] == [tmp_path / "survey_v1.2.json", tmp_path / "survey_v1.2.csv"]
    assert all(path.exists() for path in result.written)


def test_an_output_that_another_run_writes_is_refused(folder, tiny_model, tmp_path):
    with locked(tmp_path, output="results"), pytest.raises(ConfigError, match="is being written by process"):
        predict(predictor_of(tiny_model.best), [folder / "0.wav"], tmp_path / "results.json")


@pytest.mark.parametrize("settings", [{}, {"segment_mode": True, "return_all_scores": True}])
def test_a_stream_gets_what_a_file_gets(folder, tiny_model, tmp_path, settings):
    (folder / "0.wav").rename(folder / "grüße.wav")
    predictor, paths = predictor_of(tiny_model.best, **settings), find_inputs([folder])
    for ensure_ascii in (False, True):
        stream = io.StringIO()
        result = predict_to_stream(predictor, paths, stream, ensure_ascii=ensure_ascii)
        found = json.loads(stream.getvalue())
        assert stream.getvalue().isascii() == ensure_ascii
        assert result.summary == found["summary"] and result.written == []
        expected = straight(predictor, paths, tmp_path)
        assert list(found) == list(expected) and without_times(found) == without_times(expected)
    assert not list(folder.rglob("*.jsonl"))


def test_results_do_not_depend_on_who_reads(folder, tiny_model, tmp_path, rng):
    """Nor on spans: one is read after the other here, and by several workers there."""
    write_audio(folder / "long.wav", tiny_sound("bird_song", seconds=150, rng=rng))
    paths = find_inputs([folder])
    here = straight(silent_predictor(tiny_model.best, segment_mode=True), paths, tmp_path)
    there = predict(silent_predictor(tiny_model.best, segment_mode=True, executor=LocalProcesses(2)), paths,
                    tmp_path / "results.json")
    assert len(there["predictions"]) == 8 + 150
    assert without_times(here) == without_times(there)


def test_a_clock_shows_the_time_of_the_zone_that_was_asked_for(folder, tiny_model, tmp_path):
    path = (folder / "0.wav").rename(folder / "SMM7_20240501_040000.wav")
    for zone, expected in ((None, None), ("+02:00", "2024-05-01T04:00:00+02:00"), ("UTC", "2024-05-01T04:00:00+00:00")):
        predictor = predictor_of(tiny_model.best, segment_mode=True, timezone=zone)
        results = predict(predictor, [path], tmp_path / "results.json")
        for records in (results["predictions"], results["recordings"], predictor.predict_segments(path)):
            assert records[0].get("recorded_at") == expected and records[0]["recorder_id"] == "SMM7"
    with pytest.raises(ConfigError, match="--timezone 'Atlantis' is no time zone"):
        predictor_of(tiny_model.best, timezone="Atlantis")


# bad files and odd names

def test_what_cannot_be_read_stands_beside_the_results(folder, tiny_model, tmp_path, caplog):
    """A list may name anything: raw samples without a header, a folder, a file that vanished since."""
    (folder / "x.raw").write_bytes(bytes(4000))
    (folder / "y.wav").mkdir()
    (folder / "night.txt").write_text("x.raw\n0.wav\ny.wav\ngone.wav\n1.wav\n", encoding="utf-8")
    results = predict(predictor_of(tiny_model.best), find_inputs([folder / "night.txt"]), tmp_path / "results.json")
    assert [os.path.basename(record["file_path"]) for record in results["predictions"]] == ["0.wav", "1.wav"]
    assert [os.path.basename(error["file_path"]) for error in results["errors"]] == ["x.raw", "y.wav", "gone.wav"]
    assert [error["status"] for error in results["errors"][1:]] == ["unsupported", "corrupt"]  # x.raw: ffmpeg decides
    for error, reason in zip(results["errors"], ("not readable by libsndfile", "is no file", "cannot be opened"),
                             strict=True):
        assert reason in error["error"] and caplog.text.count(error["error"]) == 1


def test_what_holds_nothing_is_told_once(folder, tiny_model, tmp_path, caplog):
    """Silence is known when all of it was scored; it is told in each run that finds it."""
    write_audio(folder / "silent.wav", np.zeros(2 * TINY_RATE, np.float32))
    write_audio(folder / "short.wav", tiny_sound("bird_song", seconds=0.02, rng=np.random.default_rng(0)))
    paths = [folder / "silent.wav", folder / "0.wav", folder / "short.wav"]
    for _ in range(2):
        caplog.clear()
        results = predict(predictor_of(tiny_model.best), paths, tmp_path / "results.json")
        assert [error["status"] for error in results["errors"]] == ["silent", "too_short"]
        for error in results["errors"]:
            assert caplog.text.count(error["error"]) == 1


@pytest.mark.parametrize("where", [ThisProcess(), LocalProcesses(2)], ids=["this process", "two workers"])
def test_a_broken_end_is_no_error(folder, tiny_model, rng, caplog, tmp_path, where):
    path = broken_flac(folder / "broken.flac", rng)
    results = predict(silent_predictor(tiny_model.best, segment_mode=True, executor=where), [path],
                      tmp_path / "results.json")
    assert results["errors"] == [] and {record["damage"] for record in results["predictions"]} == {
        results["recordings"][0]["error"]}
    assert "breaks off after" in results["recordings"][0]["error"]
    assert results["summary"]["audio_seconds"] == results["predictions"][0]["duration_seconds"] > 20
    assert round(1000 * results["summary"]["audio_seconds"]) == results["predictions"][-1]["segment_end_ms"]
    assert caplog.text.count("breaks off after") == 1


def test_a_broken_end_that_was_scored_is_not_scored_again(folder, tiny_model, rng, tmp_path):
    path = broken_flac(folder / "broken.flac", rng)
    first = predict(silent_predictor(tiny_model.best), [path], tmp_path / "results.json")
    again = silent_predictor(tiny_model.best)
    begun, _ = count_scored(again)
    assert without_times(predict(again, [path], tmp_path / "results.json")) == without_times(first)
    assert begun == [] and "breaks off after" in first["predictions"][0]["damage"]


@any_bytes_are_names
def test_a_name_that_is_no_text_is_readable_and_leads_back_to_the_file(folder, tiny_model, tmp_path):
    (folder / "0.wav").rename(folder / ODD_NAME)
    (folder / "2_broken.wav").rename(folder / ("broken" + ODD_NAME))
    result = run(predictor_of(tiny_model.best), find_inputs([folder]), tmp_path / "results.json",
                 formats=("json", "csv"))
    results = json.loads(result.written[0].read_text(encoding="utf-8"))
    assert [record["file_path"] for record in results["predictions"]][-1] == str(folder / ODD_TEXT)
    error, = results["errors"]
    assert error["file_path"] == str(folder / ("broken" + ODD_TEXT)) and ODD_TEXT in error["error"]
    with open(result.written[1], encoding="utf-8", newline="") as stream:
        listed = [row["file_path"] for row in csv.DictReader(stream)]
    assert listed[-2:] == [error["file_path"], str(folder / ODD_TEXT)]  # in the order of the inputs
    assert open(text_to_name(listed[-1]), "rb").read(4) == b"RIFF"


@any_bytes_are_names
def test_a_list_may_name_it_as_our_tables_do_or_in_its_own_bytes(folder):
    (folder / "0.wav").rename(folder / ODD_NAME)
    (folder / "escaped.txt").write_text(f"{ODD_TEXT}\n", encoding="utf-8")
    (folder / "bytes.txt").write_bytes(os.fsencode(ODD_NAME) + b"\n")
    for name in ("escaped.txt", "bytes.txt"):
        assert list(find_inputs([folder / name])) == [folder / ODD_NAME]


# going on

def test_an_interrupted_run_goes_on_to_the_same_results(folder, tiny_model, tmp_path):
    paths, output = find_inputs([folder]), tmp_path / "results.json"
    expected = straight(predictor_of(tiny_model.best), paths, tmp_path)
    interrupted(predictor_of(tiny_model.best), paths, output, when=files(3))
    assert not output.exists()
    again = predictor_of(tiny_model.best)
    begun, _ = count_scored(again)
    resumed = predict(again, paths, output)
    assert begun == ["2_broken.wav", "3.wav"]
    assert without_times(resumed) == without_times(expected)


@pytest.mark.parametrize("n_spans", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("ending", ["wav", "ogg"])
def test_a_long_recording_goes_on_in_its_middle(folder, tiny_model, tmp_path, rng, monkeypatch, ending, n_spans):
    """Span by span: none is scored twice, whether it can be sought in or not, and the results are the same."""
    monkeypatch.setattr(reading, "SPAN_WINDOWS", 3)
    paths = [folder / "0.wav", write_audio(folder / f"long.{ending}", tiny_sound("bird_song", seconds=15.7, rng=rng))]
    output = tmp_path / "results.json"
    expected = straight(predictor_of(tiny_model.best, batch_size=1, segment_mode=True), paths, tmp_path)
    assert len(expected["predictions"]) == 2 + 16
    interrupted(predictor_of(tiny_model.best, batch_size=1, segment_mode=True), paths, output, when=spans(n_spans))
    again = predictor_of(tiny_model.best, batch_size=1, segment_mode=True)
    _, scored = count_scored(again)
    resumed = predict(again, paths, output)
    every = [("0.wav", 0), *((f"long.{ending}", number) for number in range(6))]
    assert scored == every[n_spans:]
    assert without_times(resumed) == without_times(expected)


@pytest.mark.parametrize("ending", ["wav", "ogg"])
def test_a_span_that_is_missing_in_the_middle_is_all_that_is_scored(folder, tiny_model, tmp_path, rng, monkeypatch,
                                                                    ending):
    """Workers that share a recording are not equally quick."""
    monkeypatch.setattr(reading, "SPAN_WINDOWS", 3)
    path = write_audio(folder / f"long.{ending}", tiny_sound("bird_song", seconds=15.7, rng=rng))
    first, output = predictor_of(tiny_model.best, batch_size=1), tmp_path / "results.json"
    usual = first.score
    first.score = lambda jobs: ((job, part) for job, part in usual(jobs)
                                if not (isinstance(part, SpanScores) and part.span.number in (1, 5)))
    assert "was not scored to its end: run again" in predict(first, [path], output)["errors"][0]["error"]
    again = predictor_of(tiny_model.best, batch_size=1)
    _, scored = count_scored(again)
    results = predict(again, [path], output)
    assert scored == [(path.name, 1), (path.name, 5)]
    assert without_times(results) == without_times(straight(predictor_of(tiny_model.best, batch_size=1), [path],
                                                            tmp_path))


@pytest.mark.parametrize("change", ["thresholds", "config", "ranks", "segments", "detections", "formats", "time zone",
                                    "batch size"])
@pytest.mark.parametrize("finished", [False, True])
def test_what_only_the_results_depend_on_scores_nothing_again(folder, tiny_model, tmp_path, change, finished):
    paths, output = [folder / name for name in ALL], tmp_path / "results.json"
    config_path = tmp_path / "config.json"
    config_path.write_text(json.dumps({"thresholds": {"bird_song": 0.01}}), encoding="utf-8")
    before = straight(predictor_of(tiny_model.best, config_path=config_path), paths, tmp_path)
    if finished:
        run(predictor_of(tiny_model.best, config_path=config_path), paths, output)
    else:
        interrupted(predictor_of(tiny_model.best, config_path=config_path), paths, output, when=files(2))
    if change == "config":
        config_path.write_text(json.dumps({"thresholds": dict.fromkeys(TINY_CLASSES, 0.999)}), encoding="utf-8")
    settings = {"thresholds": {"min_confidence": 0.999}, "ranks": {"top_k": 2, "return_all_scores": True},
                "segments": {"segment_mode": True}, "detections": {"segment_mode": True, "merge_gap_seconds": 1.0},
                "time zone": {"timezone": "+02:00"}, "batch size": {"batch_size": 2}}.get(change, {})
    formats = ("json", "csv", "raven", "audacity", "birdnet", "nights") if change == "formats" else ("json",)

    def changed():
        return predictor_of(tiny_model.best, config_path=config_path, **settings)

    predictor = changed()
    begun, scored = count_scored(predictor)
    results = predict(predictor, paths, output, formats=formats)
    assert begun == ([] if finished else ["2.wav"])
    assert scored == [(name, 0) for name in begun]
    expected = straight(changed(), paths, tmp_path)
    if change == "batch size":
        assert [r["top_confidence"] for r in results["predictions"]] == pytest.approx(
            [r["top_confidence"] for r in expected["predictions"]], abs=BATCHES)
    else:
        assert without_times(results) == without_times(expected)
    if change not in ("formats", "time zone", "batch size"):
        assert without_times(results) != without_times(before)
    assert all(path.exists() for path in predict_again(changed(), paths, output, formats))


def predict_again(predictor, paths, output, formats):
    return run(predictor, paths, output, formats=formats).written


@pytest.mark.parametrize("change", ["model", "file", "time", "windows", "overlap", "embeddings", "overwrite"])
@pytest.mark.parametrize("finished", [False, True])
def test_what_changed_is_scored_again(folder, tiny_model, tmp_path, rng, change, finished):
    paths, output, model_path = [folder / name for name in ALL], tmp_path / "results.json", tiny_model.best
    if finished:
        run(predictor_of(model_path), paths, output)
    else:
        interrupted(predictor_of(model_path), paths, output, when=files(2))
    if change == "model":
        model_path = tmp_path / "other.pth"
        torch.save({**read_checkpoint(tiny_model.best), "metadata": {"trained": "again"}}, model_path)
    if change == "file":
        write_audio(folder / "1.wav", tiny_sound("bird_song", seconds=1.2, rng=rng))
    if change == "time":
        os.utime(folder / "1.wav", ns=(0, 0))
    settings = {"windows": {"segment_duration_ms": 500}, "overlap": {"segment_overlap_ms": 500},
                "embeddings": {"with_embeddings": True}}.get(change, {})
    predictor = predictor_of(model_path, **settings)
    begun, scored = count_scored(predictor)
    more = {"embeddings": tmp_path / "embeddings.npz"} if change == "embeddings" else {}
    results = predict(predictor, paths, output, overwrite=change == "overwrite", **more)
    assert begun == (ALL if change not in ("file", "time") else ["1.wav"] if finished else ["1.wav", "2.wav"])
    assert scored == [(name, 0) for name in begun]
    assert without_times(results) == without_times(straight(predictor_of(model_path, **settings), paths, tmp_path))


def test_what_one_back_end_says_is_not_told_as_what_another_says(folder, tiny_model, tmp_path):
    """Nor where the first use converts the network, before which the library is another one."""
    model_path = Path(shutil.copy(tiny_model.best, tmp_path / "owls.pth"))
    paths, output = [folder / name for name in ALL], tmp_path / "results.json"
    first = predict(predictor_of(model_path, backend="onnx"), paths, output)
    assert first["model"]["backend"] == "onnx-cpu"
    for backend, expected in (("onnx", []), ("torch", ALL), ("onnx", ALL)):
        predictor = predictor_of(model_path, backend=backend)
        begun, _ = count_scored(predictor)
        assert predict(predictor, paths, output)["model"]["backend"] == f"{backend}-cpu"
        assert begun == expected


def test_a_part_of_the_inputs_is_made_of_the_scores_of_all(folder, tiny_model, tmp_path):
    output = tmp_path / "results.json"
    run(predictor_of(tiny_model.best), [folder / name for name in ALL], output)
    predictor = predictor_of(tiny_model.best)
    begun, _ = count_scored(predictor)
    results = predict(predictor, [folder / "2.wav", folder / "3.wav", folder / "0.wav"], output)
    assert begun == ["3.wav"]
    assert [Path(record["file_path"]).name for record in results["predictions"]] == ["2.wav", "3.wav", "0.wav"]


def test_an_interrupted_overwrite_goes_on_where_it_was(folder, tiny_model, tmp_path):
    paths, output = [folder / f"{number}.wav" for number in range(4)], tmp_path / "results.json"
    interrupted(predictor_of(tiny_model.best), paths, output, when=files(3))
    interrupted(predictor_of(tiny_model.best), paths, output, when=files(1), overwrite=True)
    again = predictor_of(tiny_model.best)
    begun, _ = count_scored(again)
    results = predict(again, paths, output)
    assert begun == ["1.wav", "2.wav", "3.wav"]
    assert without_times(results) == without_times(straight(predictor_of(tiny_model.best), paths, tmp_path))


def test_what_could_not_be_used_is_tried_again(folder, tiny_model, tmp_path):
    """The file is the same, but ffmpeg may have been installed since."""
    paths, output = [folder / "2_broken.wav", folder / "0.wav", folder / "1.wav"], tmp_path / "results.json"
    interrupted(predictor_of(tiny_model.best, batch_size=1), paths, output, when=files(2))
    for expected in (["2_broken.wav", "1.wav"], ["2_broken.wav"]):
        again = predictor_of(tiny_model.best)
        begun, _ = count_scored(again)
        assert [error["status"] for error in predict(again, paths, output)["errors"]] == ["corrupt"]
        assert begun == expected


def test_a_file_that_came_back_is_predicted(folder, tiny_model, tmp_path, rng):
    paths, output = [folder / "late.wav", folder / "0.wav"], tmp_path / "results.json"
    interrupted(predictor_of(tiny_model.best), paths, output, when=files(1))
    write_audio(folder / "late.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    results = predict(predictor_of(tiny_model.best), paths, output)
    assert results["errors"] == [] and len(results["predictions"]) == 2


def test_a_file_that_is_gone_is_an_error_though_it_was_scored_once(folder, tiny_model, tmp_path):
    paths, output = [folder / "0.wav", folder / "1.wav"], tmp_path / "results.json"
    run(predictor_of(tiny_model.best), paths, output)
    (folder / "0.wav").unlink()
    results = predict(predictor_of(tiny_model.best), paths, output)
    assert [Path(error["file_path"]).name for error in results["errors"]] == ["0.wav"]
    assert "cannot be opened" in results["errors"][0]["error"] and len(results["predictions"]) == 1


def test_names_that_differ_behind_a_point_have_journals_of_their_own(folder, tiny_model, tmp_path):
    paths = [folder / "0.wav", folder / "1.wav"]
    interrupted(predictor_of(tiny_model.best), paths, tmp_path / "site.A", when=files(1))
    other = predictor_of(tiny_model.best)
    begun, _ = count_scored(other)
    predict(other, paths, tmp_path / "site.B")
    assert begun == ["0.wav", "1.wav"]  # nothing is taken from the other's journal
    assert journal_path(tmp_path / "site.A").exists()  # nor is that removed
    assert (tmp_path / "site.B.json").exists() and not (tmp_path / "site.A.json").exists()


def test_other_names_of_the_outputs_name_the_same_scores(folder, tmp_path):
    """NightScan 1's file does not hold its class names: other ones say other things of what was scored."""
    torch.manual_seed(0)
    path, output = tmp_path / "resnet18.pth", tmp_path / "results.json"
    paths = [folder / "0.wav", folder / "1.wav"]
    torch.save(resnet18(num_classes=2).state_dict(), path)
    tops = {}
    for names in (("owl", "fox"), ("fox", "owl")):
        predictor = EfficientNetPredictor(path, device="cpu", class_names=names)
        begun, _ = count_scored(predictor)
        results = predict(predictor, paths, output)
        assert begun == ([] if tops else ["0.wav", "1.wav"])
        assert results["model"]["class_names"] == list(names)
        tops[names] = [(record["top_class"], record["top_confidence"]) for record in results["predictions"]]
    swapped = {"owl": "fox", "fox": "owl"}
    assert tops["fox", "owl"] == [(swapped[name], score) for name, score in tops["owl", "fox"]]


# embeddings

def test_each_segment_has_its_embedding(folder, tiny_model, tmp_path):
    paths = [folder / "0.wav", folder / "2_broken.wav", folder / "1.wav"]
    predictor = predictor_of(tiny_model.best, segment_mode=True, with_embeddings=True)
    results = predict(predictor, paths, tmp_path / "results.json", embeddings=tmp_path / "embeddings.npz")
    with np.load(tmp_path / "embeddings.npz") as found:
        assert found["file_paths"].tolist() == [str(folder / "0.wav"), str(folder / "1.wav")]
        assert [(int(1000 * start), int(1000 * end), str(found["file_paths"][index])) for start, end, index in zip(
            found["start_seconds"], found["end_seconds"], found["file_index"], strict=True)] == [
                (r["segment_start_ms"], r["segment_end_ms"], r["file_path"]) for r in results["predictions"]]
        assert found["embeddings"].shape == (4, 1280) and found["embeddings"].dtype == np.float32
        assert np.isfinite(found["embeddings"]).all() and len(np.unique(found["embeddings"], axis=0)) == 4


def test_a_recording_that_ends_just_after_a_span_has_embeddings(tiny_model, tmp_path, rng):
    sound = tiny_sound("bird_song", seconds=reading.SPAN_WINDOWS + 0.02, rng=rng)
    path = write_audio(tmp_path / "audio" / "long.wav", sound)
    predictor = predictor_of(tiny_model.best, segment_mode=True, with_embeddings=True)
    results = predict(predictor, [path], tmp_path / "results.json", embeddings=tmp_path / "embeddings.npz")
    assert len(results["predictions"]) == reading.SPAN_WINDOWS and results["summary"]["failed"] == 0
    with np.load(tmp_path / "embeddings.npz") as found:
        assert len(found["embeddings"]) == reading.SPAN_WINDOWS
