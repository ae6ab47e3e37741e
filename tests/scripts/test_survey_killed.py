"""A survey whose command is killed again and again, or runs out of disk: nothing is lost and nothing is done twice."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile

from tests.conftest import TINY_CLASSES, TINY_RATE, tiny_sound, write_audio
from tests.scripts.processes import finish, needs_proc, predict_command, run, start, wait_for
from utils.prediction.predictor import SCORE_TOLERANCE

N_KILLS = 20  # at most
LONG_SECONDS = 4800
LONG_SPANS = 75  # of 64 windows of a second; the many short files after it are over in no time
SPARE_SPANS = 8  # a busy machine may score so many more before the command is killed

pytestmark = needs_proc


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A long recording that is split over workers, one that cannot be sought in, and many short ones, two bad."""
    folder, rng = tmp_path_factory.mktemp("survey") / "audio", np.random.default_rng(5)
    folder.mkdir()
    for number in range(30):
        write_audio(folder / f"s{number:02}.wav", tiny_sound(TINY_CLASSES[number % 4], seconds=1.3, rng=rng))
    minute = np.concatenate([tiny_sound(TINY_CLASSES[number % 4], seconds=7.5, rng=rng) for number in range(8)])
    soundfile.write(folder / "long.wav", np.tile(minute, LONG_SECONDS // 60), TINY_RATE)
    with soundfile.SoundFile(folder / "t_compressed.ogg", "w", TINY_RATE, 1) as sound:
        for _ in range(5):  # libvorbis crashes when it is given minutes at once
            sound.write(minute)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "broken.wav").write_bytes(b"no sound" * 100)
    return folder


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    return shutil.copy(tiny_model.best, tmp_path_factory.mktemp("model") / "model.pth")


def command(model, survey, output, *more):
    return predict_command(model, survey, output, "--segment_mode", "--return_all_scores", "--workers", 2, *more)


@pytest.fixture(scope="module")
def straight(model, survey, tmp_path_factory):
    output = tmp_path_factory.mktemp("straight") / "r.json"
    code, said = run(command(model, survey, output))
    assert code == 0, said
    return json.loads(output.read_text(encoding="utf-8"))


def check_same(found, expected):
    """Compare results: the same records, scores within what batches may change."""
    assert len(found["predictions"]) == len(expected["predictions"]) > LONG_SECONDS
    for one, other in zip(found["predictions"], expected["predictions"], strict=True):
        assert (one["file_path"], one["segment_start_ms"], one["segment_end_ms"], one["segment_index"]) == (
            other["file_path"], other["segment_start_ms"], other["segment_end_ms"], other["segment_index"])
        for name, probability in other["all_scores"].items():
            assert one["all_scores"][name] == pytest.approx(probability, abs=SCORE_TOLERANCE)
    assert found["errors"] == expected["errors"] and len(found["errors"]) == 2
    assert [row["file_path"] for row in found["recordings"]] == [row["file_path"] for row in expected["recordings"]]


def spans_in(journal):
    """Count how often each span stands in the journal."""
    if not journal.exists():
        return Counter()
    entries = []
    for line in journal.read_bytes().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:  # a kill cut it off
            continue
    return Counter(entry["name"] for entry in entries if entry.get("kind") == "span")


def test_a_survey_that_is_killed_again_and_again_has_the_results_of_one_that_was_not(model, survey, straight, tmp_path):
    output, journal = tmp_path / "r.json", tmp_path / "r.scores.jsonl"
    rng = np.random.default_rng()
    n_kills = done = 0
    while n_kills < N_KILLS and done < LONG_SPANS - SPARE_SPANS:
        most = max(1, (LONG_SPANS - SPARE_SPANS - done) // (N_KILLS - n_kills))
        target = done + int(rng.integers(1, most + 1))
        process = start(command(model, survey, output))
        wait_for(lambda enough=target: spans_in(journal).total() >= enough, process)
        process.kill()
        process.communicate()
        assert not output.exists()
        n_kills, done = n_kills + 1, spans_in(journal).total()
    assert done >= n_kills >= N_KILLS // 2
    code, said = run(command(model, survey, output))
    assert code == 0, said
    check_same(json.loads(output.read_text(encoding="utf-8")), straight)
    # what is written down was never scored again: only what was in flight at a kill was
    assert set(spans_in(journal).values()) == {1}
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".r.nightscan")) == [
        "r.json", "r.recordings.csv", "r.scores.jsonl"]


def test_results_are_made_again_without_scoring_anything(model, survey, straight, tmp_path):
    output, journal = tmp_path / "r.json", tmp_path / "r.scores.jsonl"
    assert run(command(model, survey, output))[0] == 0
    scored = spans_in(journal)
    code, said = run(command(model, survey, output, "--min_confidence", 0.99, "--merge_gap", 2, "--formats",
                             "json,csv,raven,birdnet,nights,audacity", "--clips_dir", tmp_path / "clips"))
    assert code == 0, said
    assert spans_in(journal) == scored
    results = json.loads(output.read_text(encoding="utf-8"))
    assert all(record["above_threshold"] and record["confidence"] >= 0.99 for record in results["predictions"])
    assert 0 < len(results["predictions"]) < len(straight["predictions"])
    assert len(list((tmp_path / "clips").rglob("*.wav"))) == len(results["predictions"])


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_file_that_may_not_grow_ends_the_run_in_one_line_and_loses_nothing(model, survey, straight, tmp_path):
    """What a full disk does, by a limit that every system has; the journal is what grows."""
    output, journal = tmp_path / "r.json", tmp_path / "r.scores.jsonl"
    _, *arguments = command(model, survey, output)
    limited = [sys.executable, "-c", LIMITED, str(20 * 1024), *arguments]
    process = subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    code, said = finish(process)
    assert code == 2 and "Traceback" not in said
    assert f"{journal}: File too large" in said.splitlines()[-1]
    assert spans_in(journal) and not output.exists()
    code, said = run(command(model, survey, output))
    assert code == 0, said
    check_same(json.loads(output.read_text(encoding="utf-8")), straight)
    assert set(spans_in(journal).values()) == {1}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"),
                    reason="mounting a small disk needs root")
def test_a_full_disk_ends_the_run_in_one_line_and_loses_nothing(model, survey, straight, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount a disk")
    try:
        code, said = run(command(model, survey, disk / "r.json"))
        assert code == 2 and "No space left on device" in said.splitlines()[-1] and "Traceback" not in said
        assert subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        code, said = run(command(model, survey, disk / "r.json"))
        assert code == 0, said
        check_same(json.loads((disk / "r.json").read_text(encoding="utf-8")), straight)
        assert set(spans_in(disk / "r.scores.jsonl").values()) == {1}
    finally:
        subprocess.run(["umount", disk], check=True)
