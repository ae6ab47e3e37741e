"""Runs that are killed, workers that die or hang, and two runs at once, with the real commands."""

import json
import shutil
import signal
import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from tests.conftest import TINY_CLASSES
from tests.scripts.processes import (LONG_SECONDS, descendants, finish, heed_ctrl_c, is_running, kill_when_reading,
                                     make_recordings, needs_proc, predict_command, preprocess_command, reader_of, run,
                                     start, wait_for)
from utils.prediction.predictor import SCORE_TOLERANCE
from utils.prediction.spans import SPAN_WINDOWS
from utils.storage.manifest import SPLITS

LONG = "a_long.wav"
N_RECORDINGS = 9
N_LONG_SPANS = -(-LONG_SECONDS // SPAN_WINDOWS)  # its segments last a second

pytestmark = needs_proc


@pytest.fixture(scope="module")
def audio_dir(tmp_path_factory):
    return make_recordings(tmp_path_factory.mktemp("killed") / "audio", np.random.default_rng(3))


@pytest.fixture(scope="module")
def straight(audio_dir, tmp_path_factory):
    """A data set that nothing disturbed."""
    output_dir = tmp_path_factory.mktemp("straight") / "out"
    code, said = run(preprocess_command(audio_dir, output_dir, "--workers", 1))
    assert code == 0, said
    return output_dir


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    return shutil.copy(tiny_model.best, tmp_path_factory.mktemp("model") / "model.pth")


@pytest.fixture(scope="module")
def straight_results(audio_dir, model, tmp_path_factory):
    """Results that nothing disturbed; the model is converted from now on."""
    output = tmp_path_factory.mktemp("straight_results") / "results.json"
    code, said = run(predict_command(model, audio_dir, output))
    assert code == 0, said
    return without_times(output)


def files_of(output_dir):
    return pd.read_csv(output_dir / "files.csv", keep_default_na=False).set_index("path")


def manifests(output_dir):
    return {side: (output_dir / f"{side}.csv").read_text(encoding="utf-8") for side in SPLITS}


def spectrograms(output_dir):
    return {path.relative_to(output_dir).as_posix(): path.read_bytes() for path in output_dir.rglob("*.npy")}


def has_begun(output_dir):
    """Whether the long recording has given spectrograms."""
    return lambda: any(output_dir.glob("spectrograms/*/a_long-*.npy"))


def journalled(path, n):
    """Whether so many recordings are preprocessed; the journal's first line is its header."""
    return lambda: path.exists() and path.read_bytes().count(b"\n") >= n + 1


def without_times(output):
    results = json.loads(output.read_text(encoding="utf-8"))
    return [{name: value for name, value in record.items() if name != "processing_time"}
            for record in results["predictions"]], results["errors"]


def check_same(predictions, expected):
    """Compare records: what fills a batch, who scores it and in which library may change the last digits."""
    for record, other in zip(predictions, expected, strict=True):
        assert set(record) == set(other)
        for name in record:
            assert record[name] == (pytest.approx(other[name], abs=SCORE_TOLERANCE) if "confidence" in name
                                    else other[name])


def spans_in(journal):
    """Return how often each span of each recording stands in the journal of a prediction."""
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
    # a recording of one span may stand in one entry with it
    return Counter(entry["name"] if entry["kind"] == "span" else f"0:{entry['name']}" for entry in entries
                   if entry.get("kind") == "span" or "span" in entry.get("result", ()))


def long_spans(counts):
    return {name for name in counts if name.endswith(LONG)}


def leftovers(folder):
    return [path.name for path in folder.rglob(".*.tmp")]


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize(("how", "status", "reason"), [
    (signal.SIGKILL, "corrupt", "the process that read it died (exit code -9)"),
    (signal.SIGSTOP, "timeout", "no block was read for 8 s"),
])
def test_a_worker_that_dies_or_hangs_while_preprocessing_costs_one_file(audio_dir, straight, tmp_path, n_workers, how,
                                                                        status, reason):
    arguments = preprocess_command(audio_dir, tmp_path / "out", "--workers", n_workers, "--silence_limit", 8)
    process = start(arguments)
    worker = kill_when_reading(process, LONG, how=how, begun=has_begun(tmp_path / "out"))
    code, said = finish(process)
    assert (code, is_running(worker)) == (0, False), said
    files = files_of(tmp_path / "out")
    row = files.loc[f"{TINY_CLASSES[0]}/{LONG}"]
    assert (row["status"], len(files)) == (status, N_RECORDINGS)
    assert reason in row["reason"] and LONG in row["reason"] and reason in said
    assert (files["status"] == "ok").sum() == N_RECORDINGS - 1
    # the next run does it again, and it alone
    code, said = run(arguments)
    assert code == 0 and f"continuing: {N_RECORDINGS - 1} of {N_RECORDINGS}" in said
    assert manifests(tmp_path / "out") == manifests(straight)
    assert spectrograms(tmp_path / "out") == spectrograms(straight)


@pytest.mark.parametrize(("backend", "n_workers"), [("auto", 1), ("auto", 2), ("torch", 2)])
@pytest.mark.parametrize(("how", "status", "reason"), [
    (signal.SIGKILL, "corrupt", "the process that read it died (exit code -9)"),
    (signal.SIGSTOP, "timeout", "no block was read for 8 s"),
])
def test_a_worker_that_dies_or_hangs_while_predicting_costs_one_file(audio_dir, straight_results, model, tmp_path,
                                                                     backend, n_workers, how, status, reason):
    """Whether it only reads or has a network of its own."""
    output = tmp_path / "results.json"
    arguments = predict_command(model, audio_dir, output, "--workers", n_workers, "--silence_limit", 8, "--backend",
                                backend)
    process = start(arguments)
    worker = kill_when_reading(process, LONG, how=how, begun=lambda: True)
    code, said = finish(process)
    assert (code, is_running(worker)) == (0, False), said
    predictions, errors = without_times(output)
    error, = errors
    assert error["status"] == status and reason in error["error"] and LONG in error["file_path"]
    assert reason in said
    check_same(predictions, [record for record in straight_results[0] if LONG not in record["file_path"]])
    assert len(predictions) == N_RECORDINGS - 1
    # the next run does it again, and it alone
    code, said = run(arguments)
    assert code == 0 and "continuing: " in said, said
    predictions, errors = without_times(output)
    check_same(predictions, straight_results[0])
    counts = spans_in(tmp_path / "results.scores.jsonl")
    assert errors == [] and len(long_spans(counts)) == N_LONG_SPANS
    assert {count for name, count in counts.items() if not name.endswith(LONG)} == {1}
    assert len(counts) == N_RECORDINGS - 1 + N_LONG_SPANS


@pytest.mark.parametrize("overwrite", [False, True])
def test_preprocessing_goes_on_after_its_own_process_was_killed(audio_dir, straight, tmp_path, overwrite):
    output_dir = tmp_path / "out"
    arguments = preprocess_command(audio_dir, output_dir, "--workers", 2)
    if overwrite:
        assert run(arguments)[0] == 0
    process = start([*arguments, "--overwrite"] if overwrite else arguments)
    journal = output_dir / ("journal.jsonl.new" if overwrite else "journal.jsonl")
    wait_for(journalled(journal, 3), process)
    workers = descendants(process.pid)
    process.kill()
    process.communicate()
    assert workers
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, workers))  # nobody writes any more
    code, said = run(arguments)
    assert code == 0 and "continuing: " in said, said
    assert manifests(output_dir) == manifests(straight)
    assert spectrograms(output_dir) == spectrograms(straight)
    assert leftovers(output_dir) == []


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_prediction_goes_on_after_its_own_process_was_killed(audio_dir, straight_results, model, tmp_path, backend):
    """In the middle of the long recording, after the short ones: no span that was written down is scored again."""
    output, journal = tmp_path / "results.json", tmp_path / "results.scores.jsonl"
    listed = [*sorted(audio_dir.rglob("r*.wav")), *audio_dir.rglob(LONG)]
    (tmp_path / "list.txt").write_text("\n".join(map(str, listed)), encoding="utf-8")
    arguments = predict_command(model, tmp_path / "list.txt", output, "--workers", 2, "--backend", backend)
    process = start(arguments)
    wait_for(lambda: len(long_spans(spans_in(journal))) >= 3, process)
    workers = descendants(process.pid)
    process.kill()
    process.communicate()
    assert workers and not output.exists()
    before = spans_in(journal)
    assert len(before) - len(long_spans(before)) == N_RECORDINGS - 1 and len(long_spans(before)) < N_LONG_SPANS
    code, said = run(arguments)
    assert code == 0 and "continuing: " in said, said
    predictions, errors = without_times(output)
    by_path = {record["file_path"]: record for record in straight_results[0]}
    assert errors == [] and len(predictions) == N_RECORDINGS
    check_same(predictions, [by_path[str(path)] for path in listed])
    after = spans_in(journal)
    assert set(after.values()) == {1} and len(after) == N_RECORDINGS - 1 + N_LONG_SPANS
    assert not any(map(is_running, workers))
    assert leftovers(tmp_path) == []


def test_ctrl_c_ends_a_prediction_and_keeps_what_is_scored(audio_dir, straight_results, model, tmp_path):
    output, journal = tmp_path / "results.json", tmp_path / "results.scores.jsonl"
    arguments = predict_command(model, audio_dir, output, "--workers", 2)
    process = start(arguments, start_new_session=True, preexec_fn=heed_ctrl_c)
    wait_for(lambda: len(spans_in(journal)) >= 3, process)
    workers = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == 130 and "the same command goes on from it" in said and "Traceback" not in said, said
    assert not any(map(is_running, workers)) and not output.exists()
    code, said = run(arguments)
    assert code == 0 and "continuing: " in said, said
    check_same(without_times(output)[0], straight_results[0])
    assert set(spans_in(journal).values()) == {1}


def test_ctrl_c_keeps_what_is_done_and_ends_the_workers(audio_dir, straight, tmp_path):
    arguments = preprocess_command(audio_dir, tmp_path / "out", "--workers", 2)
    process = start(arguments, start_new_session=True, preexec_fn=heed_ctrl_c)
    wait_for(journalled(tmp_path / "out" / "journal.jsonl", 3), process)
    workers = descendants(process.pid)
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == 130 and "the same command goes on from it" in said and "Traceback" not in said
    assert not any(map(is_running, workers))
    code, said = run(arguments)
    assert code == 0 and "continuing: " in said
    assert spectrograms(tmp_path / "out") == spectrograms(straight)


def test_two_preprocessing_runs_do_not_share_a_folder(audio_dir, tmp_path):
    arguments = preprocess_command(audio_dir, tmp_path / "out", "--workers", 1)
    first = start(arguments)
    wait_for(has_begun(tmp_path / "out"), first)
    first.send_signal(signal.SIGSTOP)  # it would be done before the other one begins
    code, said = run(arguments)
    assert code == 2 and f"is being written by process {first.pid} on" in said and "Traceback" not in said
    first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    assert run(arguments)[0] == 0


def test_two_predictions_do_not_share_an_output_but_a_folder(audio_dir, straight_results, model, tmp_path):
    arguments = predict_command(model, audio_dir, tmp_path / "results.json")
    first = start(arguments)
    wait_for(lambda: reader_of(first.pid, LONG), first)
    first.send_signal(signal.SIGSTOP)  # it would be done before the other one begins
    code, said = run(arguments)
    assert code == 2 and f"is being written by process {first.pid} on" in said, said
    short = audio_dir / TINY_CLASSES[0] / "r0.wav"
    assert run(predict_command(model, short, tmp_path / "other.json"))[0] == 0
    first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    check_same(without_times(tmp_path / "results.json")[0], straight_results[0])


def test_a_decoder_that_hangs_is_ended_with_its_worker(audio_dir, tmp_path):
    """ffmpeg is replaced by a program that never says anything; nothing of it may be left behind."""
    folder = tmp_path / "audio"
    for name in ("bird_song", "mammal_call"):
        (folder / name).mkdir(parents=True)
        for path in sorted((audio_dir / name).glob("r*.wav")):
            (folder / name / path.name).write_bytes(path.read_bytes())
    (folder / "bird_song" / "hangs.m4a").write_bytes(b"\0\0\0\x20ftypM4A " + bytes(4000))
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ffmpeg").write_text("#!/bin/sh\nexec sleep 1000\n", encoding="utf-8")
    (programs / "ffmpeg").chmod(0o755)
    process = start(preprocess_command(folder, tmp_path / "out", "--workers", 1, "--silence_limit", 8),
                    env={"PATH": f"{programs}:/usr/bin:/bin"})
    decoder = wait_for(lambda: [pid for pid in descendants(process.pid) if "sleep" in name_of(pid)], process)
    code, said = finish(process)
    assert code == 0, said
    files = files_of(tmp_path / "out")
    assert files.loc["bird_song/hangs.m4a", "status"] == "timeout"
    assert (files["status"] == "ok").sum() == 8
    assert not any(map(is_running, decoder))


def name_of(pid):
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as stream:
            return stream.read().strip()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""
