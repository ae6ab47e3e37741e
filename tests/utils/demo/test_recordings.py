import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.efficientnet_config import DEFAULT_CLASS_NAMES
from models.errors import ConfigError
from utils.demo import recordings as demo_data
from utils.demo.recordings import write_demo_data

PROJECT_ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    return folder, write_demo_data(folder, n_recordings_per_class=4, random_state=1)


def test_data_set_has_a_folder_per_class_and_readable_files(data_set):
    folder, paths = data_set
    assert Counter(path.parent.name for path in paths) == dict.fromkeys(DEFAULT_CLASS_NAMES, 4)
    assert sorted(paths) == sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        recording, _ = soundfile.read(path)
        assert np.isfinite(recording).all() and 0 < np.abs(recording).max() <= 1
        assert 3 <= soundfile.info(path).duration <= 14
        assert re.fullmatch(r"[A-Z]{2}\d{2}_\d{8}_\d{6}\.(wav|WAV|flac|ogg)", path.name)


def test_every_class_is_heard_through_every_recorder(data_set):
    formats = {}
    for path in data_set[1]:
        info = soundfile.info(path)
        formats.setdefault(path.parent.name, set()).add((path.suffix, info.samplerate, info.channels))
    expected = {(".WAV", 48000, 1), (".wav", 32000, 2), (".flac", 22050, 1), (".ogg", 16000, 1)}
    assert formats == dict.fromkeys(DEFAULT_CLASS_NAMES, expected)


def test_recorders_differ_in_their_noise():
    levels = {}
    for recorder in demo_data._RECORDERS:
        steady = np.full(recorder.sample_rate, 1e-6)  # a constant: all that varies is noise
        recording = demo_data._record(steady, recorder, np.random.default_rng(0))
        assert recording.shape == (recorder.sample_rate, recorder.n_channels) and recording.dtype == np.float32
        levels[recorder.name] = 20 * np.log10(np.std(recording[:, 0]))
    assert sorted(levels, key=levels.get) == ["FR03", "AM01", "SM02", "PH04"]


def test_calls_stand_out_of_the_noise_as_far_as_drawn(monkeypatch):
    monkeypatch.setattr(demo_data, "SNR_DB_MEAN_AND_DEVIATION", (20.0, 0.0))
    recorder, rng = demo_data._RECORDERS[0], np.random.default_rng(0)
    t = np.arange(2 * recorder.sample_rate) / recorder.sample_rate
    call = np.where(t < 1, np.sin(2 * np.pi * 3000 * t), 0)
    recording = demo_data._record(call, recorder, rng)[:, 0]
    loud, quiet = np.mean(recording[t < 0.9] ** 2), np.mean(recording[t > 1.1] ** 2)
    # 20 dB less up to 3.1 dB, for each channel hears the call at 0.7 to 1; slow noise adds about 1 dB either way
    assert 15.5 < 10 * np.log10(loud / quiet) < 21.5


def test_same_random_state_writes_the_same_recordings(data_set, tmp_path):
    again = write_demo_data(tmp_path, n_recordings_per_class=2, random_state=1)
    first = [path for path in data_set[1] if path.name in {p.name for p in again}]
    assert [p.name for p in again] == [p.name for p in first]
    for path, other in zip(again, first):
        np.testing.assert_array_equal(soundfile.read(path)[0], soundfile.read(other)[0])


def test_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(ConfigError, match="output_dir must be a new or empty folder"):
        write_demo_data(tmp_path, n_recordings_per_class=1, random_state=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("numbers, message", [
    ({"n_recordings_per_class": 0, "random_state": 0}, "recordings_per_class must be at least 1, got 0"),
    ({"n_recordings_per_class": 1, "random_state": -1}, "random_state must not be negative, got -1"),
])
def test_impossible_numbers_are_refused(tmp_path, numbers, message):
    with pytest.raises(ConfigError, match=message):
        write_demo_data(tmp_path, **numbers)


def run_script(*arguments, cwd):
    script = PROJECT_ROOT / "scripts" / "make_demo_data.py"
    return subprocess.run([sys.executable, script, *arguments], cwd=cwd, capture_output=True, text=True)


def test_script_runs_from_any_folder_and_refuses_a_second_time(tmp_path):
    arguments = ("--output_dir", "demo", "--recordings-per-class", "1", "--random_state", "3")
    done = run_script(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "wrote 6 recordings to demo\n")
    again = run_script(*arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert re.fullmatch(r"ERROR: output_dir must be a new or empty folder.*\n", again.stderr)


def test_help_is_answered_without_loading_scipy():
    program = ("import sys; from scripts import make_demo_data; make_demo_data.build_parser().format_help();"
               " print(sorted({'numpy', 'scipy', 'soundfile', 'torch'} & set(sys.modules)))")
    result = subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert result.stdout == "[]\n"
