"""Damaged recordings, odd names, odd class folders and files beyond 4 GB, through the real command."""

import csv
import json
import os
import subprocess
import sys
import unicodedata

import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.benchmarks.survey import RATE as SURVEY_RATE
from tests.benchmarks.survey import sparse_recording
from tests.conftest import TINY_CLASSES, tiny_sound, write_audio
from tests.scripts.fuzzing import fuzzed, write_seeds
from tests.scripts.processes import preprocess_command
from utils.storage.manifest import SPLITS, read_manifest
from utils.storage.names import folder_name, name_to_text, text_to_name

SEED = 20261126
N_FUZZED, N_FUZZED_SLOW = 40, 2000
LARGEST_SEED_BYTES = 200_000
SILENCE_SECONDS = 20
MOST_SECONDS_OF_2000 = 1500  # a file that hangs costs the silence limit, and few may
STATUSES = {"ok", "corrupt", "empty", "unsupported", "silent", "too_short", "timeout", "duplicate"}
FUZZED = "fuzzed"
TINIEST_SAMPLE = 1e-30  # its square is no float32
LONG_HOURS = 13  # 4.5 GB at 48 kHz and 16 bits


def make_good(folder):
    """Write recordings of which no damaged one is made."""
    rng = np.random.default_rng(21)
    return [write_audio(folder / class_name / f"good{number}.wav", tiny_sound(class_name, seconds=1.7, rng=rng))
            for class_name in TINY_CLASSES[:2] for number in range(6)]


@pytest.fixture(params=["made", pytest.param("real", marks=pytest.mark.data)])
def seeds(request, tmp_path):
    """Whole recordings in many formats; of the real ones the large would only make the test slow."""
    if request.param == "made":
        return write_seeds(tmp_path / "seeds", np.random.default_rng(SEED))
    paths = sorted((request.getfixturevalue("real_data") / "odd").iterdir())
    return {path.name: path.read_bytes() for path in paths
            if path.suffix not in (".md", ".csv") and 0 < path.stat().st_size < LARGEST_SEED_BYTES}


def prepared(audio_dir, output_dir, *more, timeout=180):
    """Run the command; return what it said, once it is certain that it ended well and left nothing behind."""
    process = subprocess.run(preprocess_command(audio_dir, output_dir, "--workers", 2, *more), capture_output=True,
                             env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=timeout)
    said = process.stderr.decode(errors="surrogateescape")
    assert process.returncode == 0 and "Traceback" not in said, said[-4000:]
    assert [path for path in output_dir.rglob("*") if path.name.endswith(".tmp")] == []
    return said


def files_of(output_dir):
    return pd.read_csv(output_dir / "files.csv", dtype=str, keep_default_na=False).set_index("path")


def spectrograms_of_good(output_dir):
    return {path.relative_to(output_dir).as_posix(): path.read_bytes() for path in output_dir.rglob("good*.npy")}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """What the good recordings give alone."""
    root = tmp_path_factory.mktemp("good")
    make_good(root / "audio")
    prepared(root / "audio", root / "out")
    return files_of(root / "out"), spectrograms_of_good(root / "out")


def check_fuzzed(tmp_path, good, seeds, numbers):
    audio_dir, output_dir = tmp_path / "audio", tmp_path / "out"
    good_paths = {path.relative_to(audio_dir).as_posix() for path in make_good(audio_dir)}
    bad_paths = set()
    (audio_dir / FUZZED).mkdir()
    for number in numbers:
        name, content = fuzzed(seeds, seed=SEED, number=number)
        (audio_dir / FUZZED / name).write_bytes(content)
        bad_paths.add(f"{FUZZED}/{name}")
    prepared(audio_dir, output_dir, "--silence_limit", SILENCE_SECONDS, timeout=MOST_SECONDS_OF_2000)
    files = files_of(output_dir)
    assert files.index.is_unique and set(files.index) == good_paths | bad_paths
    assert set(files["status"]) <= STATUSES
    for path, row in files[files["status"] != "ok"].iterrows():
        # of a copy the reason names the other one
        named = files.index if row["status"] == "duplicate" else [path.rpartition("/")[2]]
        assert not any(map(is_control, row["reason"])) and any(name in row["reason"] for name in named), row["reason"]
    alone, spectrograms = good
    columns = ["status", "reason", "duration_seconds", "sample_rate", "channels", "sha256", "n_segments"]
    assert files.loc[alone.index, columns].equals(alone[columns])
    assert spectrograms_of_good(output_dir) == spectrograms and len(spectrograms) == 2 * len(alone)
    return files.loc[sorted(bad_paths), "status"].value_counts()


def test_damaged_recordings_cost_a_row_each_and_nothing_else(tmp_path, good, seeds):
    n_files = check_fuzzed(tmp_path, good, seeds, range(N_FUZZED))
    assert n_files["ok"] > 5 and n_files["corrupt"] > 5


@pytest.mark.slow
def test_two_thousand_damaged_recordings_cost_a_row_each_and_nothing_else(tmp_path, good, seeds):
    n_files = check_fuzzed(tmp_path, good, seeds, range(N_FUZZED_SLOW))
    assert {"ok", "corrupt", "silent", "empty", "too_short"} <= set(n_files.index)


def test_samples_too_small_to_be_squared_cost_a_row(tmp_path, good):
    make_good(tmp_path / "audio")
    samples = np.full(8000, TINIEST_SAMPLE, dtype=np.float32)
    soundfile.write(tmp_path / "audio" / TINY_CLASSES[0] / "tiny.wav", samples, 8000, subtype="FLOAT")
    prepared(tmp_path / "audio", tmp_path / "out")
    assert files_of(tmp_path / "out")["status"][f"{TINY_CLASSES[0]}/tiny.wav"] == "silent"
    assert spectrograms_of_good(tmp_path / "out") == good[1]


def test_a_damaged_recording_is_the_same_each_time_it_is_made(tmp_path):
    seeds = {"a.wav": bytes(range(256)) * 4, "b.flac": bytes(reversed(range(256))) * 4}
    made = [[fuzzed(seeds, seed=SEED, number=number) for number in range(200)] for _ in range(2)]
    assert made[0] == made[1]
    assert len({content for _, content in made[0]}) > 150
    assert made[0] != [fuzzed(seeds, seed=SEED + 1, number=number) for number in range(200)]


NAMES = ["with space.wav", " leading.wav", "trailing .wav", "comma,and;more.wav", "quote\"s'.wav", "LOUD.WAV",
         "-dash.wav", "--input_dir.wav", "two..dots.wav", "a\\b.wav", "%s%d{0}.wav", "$x^2$.wav", "<b>&amp;.wav",
         "*?[a].wav", "ночь-夜-🦉.wav", "u\u0308ber.wav", "über.wav", "con.wav", "NA.wav", "#1.wav", "a\tb.wav",
         "n" * 240 + ".wav", "夜" * 80 + ".wav", "=1+1.wav", "\\x41.wav", "separator\u2028.wav"]
CONTROLS = ["new\nline.wav", "both\r\n.wav", "escape\x1b[31m.wav", "carriage\rreturn.wav"]
CLASSES = ["1", "2", "3", "train", "con", "two words", "None", "nan", "true", "Über-夜", "$a$ & <b>", "a,b", "-x",
           "01", "Train", "label", "n" * 240, "one.dot.", "'q\"", "owl", "owl "]


def is_control(character):
    return unicodedata.category(character) == "Cc" and character != "\t"


def check_labels(output_dir, n_expected):
    """Check for every row that folder, class name, label index and spectrogram's folder say the same."""
    info = json.loads((output_dir / "dataset.json").read_text(encoding="utf-8"))
    n_rows = 0
    for side in SPLITS:
        table = pd.read_csv(output_dir / f"{side}.csv", dtype=str, keep_default_na=False)
        if table.empty:
            continue
        manifest = read_manifest(output_dir / f"{side}.csv")
        for index, row in enumerate(table.to_dict("records")):
            class_name = row["source_path"].split("/")[0]
            assert row["class_name"] == class_name == info["class_names"][int(row["label"])]
            assert int(row["label"]) == manifest.labels()[index]
            assert row["path"].split("/")[1] == folder_name(class_name)
            assert manifest.spectrogram_path(index).is_file()
        n_rows += len(table)
    assert n_rows == n_expected
    return info


def test_odd_class_folders_label_their_recordings(tmp_path, rng):
    for number, class_name in enumerate(CLASSES):
        for take in range(3):
            sound = tiny_sound(TINY_CLASSES[(number + take) % 4], seconds=1, rng=rng)
            write_audio(tmp_path / "audio" / class_name / f"r{take}.wav", sound)
    prepared(tmp_path / "audio", tmp_path / "out")
    assert (files_of(tmp_path / "out")["status"] == "ok").all()
    info = check_labels(tmp_path / "out", 3 * len(CLASSES))
    assert info["class_names"] == sorted(CLASSES)
    assert sorted(path.name for path in (tmp_path / "out" / "spectrograms").iterdir()) == sorted(
        map(folder_name, CLASSES))


def write_named(folder, names, rng):
    """Write recordings of odd names in two class folders; skip where the file system refuses such names."""
    try:
        for class_name in TINY_CLASSES[:2]:
            sounds = [tiny_sound(class_name, seconds=1, rng=rng) for _ in names]
            paths = [write_audio(folder / class_name / f"{n}.wav", sound) for n, sound in enumerate(sounds)]
            for path, name in zip(paths, names, strict=True):
                path.rename(path.with_name(name))
    except OSError as error:
        pytest.skip(f"this file system does not take such names: {error}")
    return {name_to_text(f"{class_name}/{name}") for class_name in TINY_CLASSES[:2] for name in names}


def test_odd_names_stand_in_the_tables_as_they_are(tmp_path, rng):
    expected = write_named(tmp_path / "audio", [*NAMES, *CONTROLS], rng)
    prepared(tmp_path / "audio", tmp_path / "out", "--apply_augmentation", "--augmentation_factor", 1)
    files = files_of(tmp_path / "out")
    assert set(files.index) == expected and (files["status"] == "ok").all()
    assert all((tmp_path / "audio" / text_to_name(path)).is_file() for path in files.index)
    n_copies = len(list((tmp_path / "out").rglob("*_aug*.npy")))
    assert n_copies > 0
    check_labels(tmp_path / "out", len(expected) + n_copies)


def test_odd_names_are_found_by_a_table(tmp_path, rng):
    expected = write_named(tmp_path / "audio", NAMES, rng)
    with open(tmp_path / "labels.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("path", "label"), *((path, path.split("/")[0]) for path in sorted(expected))])
    prepared(tmp_path / "audio", tmp_path / "out", "--labels_csv", tmp_path / "labels.csv")
    files = files_of(tmp_path / "out")
    assert set(files.index) == expected and (files["status"] == "ok").all()
    check_labels(tmp_path / "out", len(expected))


def test_broken_recordings_of_odd_names_are_told_in_one_line_each(tmp_path, rng):
    names = [*NAMES, *CONTROLS]
    write_named(tmp_path / "audio", ["good0.wav", "good1.wav", "good2.wav"], rng)
    for name in names:
        (tmp_path / "audio" / TINY_CLASSES[0] / name).write_bytes(b"no sound" * 100)
    said = prepared(tmp_path / "audio", tmp_path / "out")
    files = files_of(tmp_path / "out")
    assert set(files.loc[files["status"] == "corrupt"].index) == {
        name_to_text(f"{TINY_CLASSES[0]}/{name}") for name in names}
    assert not any(map(is_control, "".join(files["reason"])))
    told = [line for line in said.split("\n") if "corrupt: " in line]
    assert len(told) == len(names) and all("holds no audio" in line for line in told), said
    assert not any(map(is_control, said.replace("\n", "")))


def test_a_header_that_tells_less_than_the_file_holds_is_told_of(tmp_path, rng):
    """A length of 32 bits overflows at 4 GB: what is left of it may be a small part of the recording."""
    first, *_ = make_good(tmp_path / "audio")
    content = bytearray(first.read_bytes())
    place = content.index(b"data") + 4
    content[place:place + 4] = (len(content[place + 4:]) // 3).to_bytes(4, "little")
    first.write_bytes(content)
    prepared(tmp_path / "audio", tmp_path / "out")
    row = files_of(tmp_path / "out").loc[f"{TINY_CLASSES[0]}/{first.name}"]
    assert float(row["duration_seconds"]) > 1.5 or row["reason"]


def write_beyond_4_gb(path, container):
    """Write 13 h of digital silence with a call every ten minutes, which take no room on the disk."""
    sparse_recording(path, LONG_HOURS)
    if container == "unknown length":  # as a recorder leaves it that never came to write how long it was
        data = path.stat().st_size - 2 * round((LONG_HOURS * 3600 + 0.3) * SURVEY_RATE)
        with open(path, "rb+") as stream:
            stream.write(b"RIFF\xff\xff\xff\xffWAVEJUNK")
            stream.seek(data - 4)
            stream.write(b"\xff\xff\xff\xff")
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "darwin", reason="sparse files are cheap on Linux only")
@pytest.mark.parametrize(("container", "told"), [
    ("RF64", ""),
    ("unknown length", "is longer than a WAV header can tell: all that follows the header is taken for sound")])
def test_a_label_near_the_end_of_a_recording_beyond_4_gb_gives_its_window(tmp_path, rng, container, told):
    (tmp_path / "audio").mkdir()
    path = write_beyond_4_gb(tmp_path / "audio" / "day.wav", container)
    assert path.stat().st_size > 2 ** 32
    call = 600 * (LONG_HOURS * 6 - 1)  # s: where the last call begins
    rows = [("path", "label", "start", "end"), ("day.wav", "bird_song", call, call + 1)]
    for class_name in TINY_CLASSES[:2]:
        for number in range(3):
            name = f"{class_name}{number}.wav"
            write_audio(tmp_path / "audio" / name, tiny_sound(class_name, seconds=1, rng=rng))
            rows.append((name, class_name, "", ""))
    with open(tmp_path / "labels.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    prepared(tmp_path / "audio", tmp_path / "out", "--labels_csv", tmp_path / "labels.csv", timeout=900)
    row = files_of(tmp_path / "out").loc["day.wav"]
    assert (row["status"], row["n_segments"]) == ("ok", "1") and row["reason"].endswith(told)
    assert float(row["duration_seconds"]) == pytest.approx(LONG_HOURS * 3600 + 0.3)
    written, = (tmp_path / "out").rglob("day-*.npy")
    log_mel = np.load(written)
    loudest = log_mel.mean(axis=1).argmax()
    assert 20 <= loudest < 32  # 3 kHz of 4 kHz, in 32 mel bands
    region = pd.read_csv(tmp_path / "out" / "regions.csv").set_index("path").loc["day.wav"]
    assert (region["n_windows"], region["labelled_seconds"]) == (1, 1.0)
