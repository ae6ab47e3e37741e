import functools
import time

import numpy as np
import pytest
import soundfile

from models.audio_frontend import LogMelFrontend
from models.errors import AudioError
from tests.conftest import TINY_FRONTEND, TINY_RATE, tiny_sound, write_audio
from tests.utils.prediction.conftest import broken_flac
from utils.audio.recordings import Outcome, Samples
from utils.prediction import reading_ahead
from utils.prediction.reading_ahead import ReadingPlan, RecordingRead, WindowRead, read_recording
from utils.running.parallel import Done, LocalProcesses

PLAN = ReadingPlan(TINY_FRONTEND, TINY_RATE, TINY_RATE)
WAITING = 20  # a consumer waits so many times as long as the reading takes
GENEROUS = 4  # how many times as long another reading may take on a busy machine; far below WAITING


def read(recording, *, plan=PLAN):
    *windows, end = read_recording(plan, recording)
    assert isinstance(end, RecordingRead) and all(isinstance(window, WindowRead) for window in windows)
    return windows, end


def timed(plan, path):
    for part in read_recording(plan, path):
        yield time.time(), part


def test_windows_are_log_mels_of_the_samples_at_their_place(tmp_path, rng):
    samples = tiny_sound("bird_song", seconds=2.6, rng=rng)
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    windows, end = read(tmp_path / "a.wav")
    assert [(w.segment, w.start, w.end) for w in windows] == [(0, 0, 8000), (1, 8000, 16000), (2, 12800, 20800)]
    frontend = LogMelFrontend(TINY_FRONTEND)
    for window in windows:
        np.testing.assert_array_equal(window.log_mel, frontend.log_mel(samples[window.start:window.end]))
    assert end.outcome == Outcome(duration_seconds=2.6, sample_rate=TINY_RATE, channels=1)
    assert end.recorded_at is None and end.seconds_spent > 0


@pytest.mark.parametrize(("seconds", "n_windows"), [
    (1.0, 1), (2.0, 2),
    (2.05, 2),  # a last window would add a twentieth of a second, and count the rest twice
    (2.2, 3),
])
def test_the_last_window_is_there_if_it_adds_enough(tmp_path, rng, seconds, n_windows):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=seconds, rng=rng))
    windows, end = read(path)
    assert len(windows) == n_windows
    assert end.outcome.duration_seconds == seconds


def test_a_long_segment_has_several_windows(tmp_path, rng):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=5, rng=rng))
    windows, _ = read(path, plan=ReadingPlan(TINY_FRONTEND, round(2.05 * TINY_RATE), round(2.05 * TINY_RATE)))
    assert [w.segment for w in windows] == [0, 0, 1, 1, 2, 2]  # one rule places windows in segments too
    assert {(w.segment, w.start, w.end) for w in windows} == {(0, 0, 16400), (1, 16400, 32800), (2, 23600, 40000)}


def test_samples_in_memory_are_read_like_a_file(tmp_path, rng):
    samples = tiny_sound("bird_song", seconds=2.6, rng=rng)
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    (of_file, _), (of_memory, end) = read(tmp_path / "a.wav"), read(Samples(samples, TINY_RATE))
    for one, other in zip(of_file, of_memory, strict=True):
        np.testing.assert_array_equal(one.log_mel, other.log_mel)
        assert one[:3] == other[:3]
    assert end.outcome == Outcome(duration_seconds=2.6, sample_rate=TINY_RATE, channels=1)


def test_a_bad_file_ends_with_its_reason(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    windows, end = read(tmp_path / "a.wav")
    assert windows == [] and end.outcome.status == "empty" and "a.wav has 0 bytes" in end.outcome.reason


def test_a_broken_end_costs_the_end(tmp_path, rng):
    windows, end = read(broken_flac(tmp_path / "a.flac", rng))
    assert len(windows) > 20 and end.outcome.status == "ok"
    assert "a.flac breaks off after" in end.outcome.reason
    assert windows[-1].end == round(end.outcome.duration_seconds * TINY_RATE)


def test_a_file_that_vanishes_while_it_is_read_loses_only_its_clock(tmp_path, rng, monkeypatch):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=2, rng=rng))
    monkeypatch.setattr(reading_ahead, "report_alive", lambda: path.unlink(missing_ok=True))
    windows, end = read(path)
    assert (len(windows), end.outcome.status, end.recorded_at) == (2, "ok", None)
    assert not path.exists()


def test_a_bug_is_no_bad_file(tmp_path, rng, monkeypatch):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=2, rng=rng))
    monkeypatch.setattr(reading_ahead, "cached_frontend", lambda config: 1 // 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        list(read_recording(PLAN, path))


def test_a_decoder_s_error_is_the_file_s(tmp_path, rng, monkeypatch):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=2, rng=rng))

    def give_up(path, **_):
        raise AudioError(f"{path} made the decoder hang", status="timeout")

    monkeypatch.setattr(reading_ahead, "check_audible", give_up)
    windows, end = read(path)
    assert len(windows) == 2 and end.outcome.status == "timeout"


def test_the_time_of_work_has_no_waiting_in_it(tmp_path, rng):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=10, rng=rng))
    work = max(read(path)[1].seconds_spent for _ in range(3))
    for part in read_recording(PLAN, path):
        time.sleep(WAITING * work / 10)  # after each of ten windows
    assert part.seconds_spent < GENEROUS * work


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_worker_reads_only_as_far_ahead_as_there_is_room(tmp_path, rng):
    """Memory does not grow with a recording while the network is busy: the worker waits."""
    path = write_audio(tmp_path / "long.wav", np.tile(tiny_sound("bird_song", seconds=1, rng=rng), 600))
    stream = LocalProcesses(1).stream(functools.partial(timed, PLAN), [path], in_order=True)
    next(stream)
    time.sleep(1)
    resumed = time.time()
    read_at = [part[0] for _, part in stream if not isinstance(part, Done)]
    assert len(read_at) == 600 - 1 + 1  # the first was taken, the end of the recording follows
    assert read_at[10] < resumed < read_at[400]  # some were ready, the others were not even read
