"""Recordings that the field brings and no decoder expects, through the real commands."""

import json
import os
import struct
import sys

import numpy as np
import pandas as pd
import pytest
import soundfile

from tests.conftest import TINY_CLASSES, TINY_RATE, tiny_sound, write_audio
from tests.scripts.processes import predict_command, preprocess_command, run, start
from utils.storage.names import text_to_name

HOUR_SECONDS = 3600
MEGABYTES_OF_BLOCKS = 60  # a window, a few blocks and what Python holds on to; the hour at 22 050 Hz has 318 MB
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
sys.exit(code)
"""


@pytest.fixture
def audio_dir(tmp_path, rng):
    for class_name in TINY_CLASSES[:2]:
        for number in range(4):
            write_audio(tmp_path / "audio" / class_name / f"r{number}.wav", tiny_sound(class_name, seconds=1, rng=rng))
    return tmp_path / "audio"


@pytest.fixture
def odd_names(audio_dir, rng):
    """Put a recording with a name that is not UTF-8, and headers of 1 and 8 Hz, among the others."""
    folder = audio_dir / TINY_CLASSES[0]
    good = write_audio(folder / "good.wav", tiny_sound(TINY_CLASSES[0], seconds=2, rng=rng))
    for rate in (1, 8):
        content = bytearray(good.read_bytes())
        content[24:28] = struct.pack("<I", rate)
        (folder / f"rate{rate}.wav").write_bytes(content)
    name = os.fsencode(folder) + b"/owl\xe9.wav"
    try:
        os.rename(good, name)
    except OSError:
        pytest.skip("this file system takes only names that are UTF-8")
    return folder


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names are bytes on Linux only")
def test_an_odd_name_and_an_odd_header_cost_at_most_their_own_row(audio_dir, odd_names, tiny_model, tmp_path):
    code, said = run(preprocess_command(audio_dir, tmp_path / "out", "--workers", 2))
    assert code == 0 and "Traceback" not in said, said
    files = pd.read_csv(tmp_path / "out" / "files.csv", keep_default_na=False).set_index("path")
    folder = TINY_CLASSES[0]
    assert (files["status"] == "ok").sum() == 9 and len(files) == 11
    assert files.loc[f"{folder}/owl\\xe9.wav", "n_segments"] == 2
    assert (audio_dir / text_to_name(f"{folder}/owl\\xe9.wav")).exists()
    for rate in (1, 8):
        row = files.loc[f"{folder}/rate{rate}.wav"]
        assert row["status"] == "corrupt" and f"says it has {rate} samples a second" in row["reason"]
    assert "continuing: 9 of 11 recordings" in run(preprocess_command(audio_dir, tmp_path / "out"))[1]

    code, said = run(predict_command(tiny_model.best, audio_dir, tmp_path / "results.json", "--formats", "json,csv"))
    assert code == 0 and "Traceback" not in said, said
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (results["summary"]["ok"], results["summary"]["failed"]) == (9, 2)
    paths = [record["file_path"] for record in results["predictions"]]
    assert f"{audio_dir}/{folder}/owl\\xe9.wav" in paths
    table = pd.read_csv(tmp_path / "results.csv", keep_default_na=False)
    assert set(paths) < set(table["file_path"])


def peak_megabytes(arguments):
    process = start([sys.executable, "-c", MEASURED, *arguments])
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return float(printed.rpartition("peak")[2])


@pytest.mark.skipif(os.name != "posix", reason="the peak memory of children is told on POSIX only")
def test_an_hour_long_label_beside_a_short_one_takes_no_more_memory(audio_dir, tmp_path, rng):
    night = np.tile(tiny_sound("insect_sound", seconds=10, rng=rng), HOUR_SECONDS // 10)
    soundfile.write(audio_dir / "hour.wav", night, TINY_RATE)
    short = ["hour.wav,owl,10,11", "hour.wav,owl,20,21"]
    others = [f"{path.relative_to(audio_dir).as_posix()},{path.parent.name},," for path in audio_dir.rglob("r*.wav")]
    peaks = {}
    for name, labels in (("short", short), ("long", [*short, f"hour.wav,insect_sound,0,{HOUR_SECONDS}"])):
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join(["path,label,start,end", *labels, *others]), encoding="utf-8")
        # longer windows than usual, so that few files are written
        peaks[name] = peak_megabytes(preprocess_command(audio_dir, tmp_path / name, "--labels_csv", table, "--workers",
                                                        1, "--segment_duration", 10_000, "--sample_rate", 22_050))
        files = pd.read_csv(tmp_path / name / "files.csv").set_index("path")
        assert files.loc["hour.wav", "duration_seconds"] == HOUR_SECONDS
        assert files.loc["hour.wav", "n_segments"] == (HOUR_SECONDS // 10 if name == "long" else len(short))
    assert peaks["long"] < peaks["short"] + MEGABYTES_OF_BLOCKS
