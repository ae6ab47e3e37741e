import tracemalloc

import numpy as np
import pytest
import soundfile

from models.audio_frontend import LogMelFrontend
from models.efficientnet_config import FrontendConfig
from tests.conftest import TINY_FRONTEND, TINY_RATE, preprocess_settings, tiny_sound, write_audio
from tests.utils.preparation.conftest import count_readers, source_of, spectrogram_bytes
from utils.preparation import extraction
from utils.preparation.extraction import ExtractedRecording, extract_recording
from utils.preparation.sources import Region, TableColumns, sources_from_table

SLOW_RATE = 1000  # Hz: an hour is 3.6 million samples
HOUR = 3600  # seconds
# an hour in minutes, so that it is done in a moment
HOUR_FRONTEND = FrontendConfig(sample_rate=SLOW_RATE, n_fft=1024, hop_length=1024, n_mels=8, f_max=500.0,
                               segment_duration_ms=60_000)
MOST_MEGABYTES = 8  # blocks of 1 MB and their copies on the way; the hour itself is 14 MB


def extract(folder, source, **changes):
    return extract_recording(preprocess_settings(folder, folder / "out", **changes), source)


def spans(result, rate=TINY_RATE):
    return [(w.class_name, w.start_sample / rate, w.end_sample / rate) for w in result.windows]


def hour_of_noise(path, rng, *, seconds=HOUR):
    soundfile.write(path, rng.uniform(-0.5, 0.5, seconds * SLOW_RATE).astype(np.float32), SLOW_RATE, subtype="PCM_16")


# windows

@pytest.mark.parametrize(("seconds", "starts"), [
    (1.0, [0.0]), (2.0, [0.0, 1.0]), (0.3, [0.0]),
    (2.05, [0.0, 1.0]),  # a last window would add a twentieth of a second
    (2.2, [0.0, 1.0, 1.2]),
])
def test_the_last_window_ends_with_the_recording_if_it_adds_enough(tmp_path, rng, seconds, starts):
    write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=seconds, rng=rng))
    result = extract(tmp_path, source_of("a.wav"))
    assert [start for _, start, _ in spans(result)] == starts
    assert result.outcome.duration_seconds == seconds


def test_active_keeps_the_windows_that_hold_sound(tmp_path, rng):
    samples = 1e-4 * rng.standard_normal(4 * TINY_RATE)
    samples[2 * TINY_RATE:3 * TINY_RATE] += tiny_sound("bird_song", seconds=1, rng=rng)
    write_audio(tmp_path / "a.wav", samples.astype(np.float32))
    starts = {}
    for selection in ("active", "all"):
        settings = preprocess_settings(tmp_path, tmp_path / selection, segment_selection=selection)
        result = extract_recording(settings, source_of("a.wav"))
        starts[selection] = [window.start_sample for window in result.windows]
        assert set(spectrogram_bytes(tmp_path / selection)) == {window.path for window in result.windows}
    assert starts == {"active": [2 * TINY_RATE], "all": [0, TINY_RATE, 2 * TINY_RATE, 3 * TINY_RATE]}


def test_active_keeps_at_least_one_window_of_a_faint_recording(tmp_path, rng):
    write_audio(tmp_path / "a.wav", (1e-3 * rng.standard_normal(3 * TINY_RATE)).astype(np.float32))
    assert extract(tmp_path, source_of("a.wav"), segment_selection="active").windows


# labelled parts

def test_labelled_parts_become_windows_of_their_own_class(tmp_path, rng):
    samples = rng.uniform(-0.5, 0.5, 4 * TINY_RATE).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    table = tmp_path / "labels.csv"
    table.write_text("path,label,start,end\na.wav,owl,0,1\na.wav,fox,2,3.5\na.wav,owl,3.6,3.9\n", encoding="utf-8")
    source, = sources_from_table(table, tmp_path, columns=TableColumns(), group_by="recording")
    result = extract(tmp_path, source)
    # fox lasts 1.5 windows: the second is moved back to end with it; the last owl is shorter than a window
    assert set(spans(result)) == {("owl", 0, 1.0), ("fox", 2, 3.0), ("fox", 2.5, 3.5), ("owl", 3.6, 3.9)}
    frontend = LogMelFrontend(TINY_FRONTEND)
    for window in result.windows:
        np.testing.assert_array_equal(np.load(tmp_path / "out" / window.path),
                                      frontend.log_mel(samples[window.start_sample:window.end_sample]))


def test_a_label_after_the_end_is_a_row_with_a_reason(tmp_path, rng):
    write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    result = extract(tmp_path, source_of("a.wav", Region("owl", 5.0, 6.0)))
    assert (result.outcome.status, result.windows) == ("empty", ())
    assert "none of its labelled times" in result.outcome.reason
    assert result.outcome.duration_seconds == 1.0


def test_the_length_is_exact_although_the_last_part_ends_early(tmp_path, rng):
    """A recording is longer than a block here, so that whoever stops reading early sees only some of it."""
    hour_of_noise(tmp_path / "a.wav", rng)
    result = extract(tmp_path, source_of("a.wav", Region("owl", 10.0, 70.0)), frontend=HOUR_FRONTEND)
    assert result.outcome.duration_seconds == HOUR
    assert spans(result, SLOW_RATE) == [("owl", 10.0, 70.0)]


def test_a_long_and_a_short_part_come_from_one_pass_that_holds_no_recording(tmp_path, rng, monkeypatch):
    hour_of_noise(tmp_path / "a.wav", rng)
    extract(tmp_path, source_of("a.wav", Region("owl", 0.0, 60.0)), frontend=HOUR_FRONTEND)  # what is loaded once
    opened = count_readers(monkeypatch, extraction)
    tracemalloc.start()
    result = extract(tmp_path, source_of("a.wav", Region("owl"), Region("fox", 100.5, 130.5)), frontend=HOUR_FRONTEND)
    most = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert spans(result, SLOW_RATE).count(("fox", 100.5, 130.5)) == 1
    assert [start for name, start, _ in spans(result, SLOW_RATE) if name == "owl"] == list(range(0, HOUR, 60))
    assert [reader.duration_seconds for reader in opened] == [HOUR]
    assert most < MOST_MEGABYTES


# what is told

def test_a_result_survives_the_journal(tmp_path, rng):
    write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=2, rng=rng))
    result = extract(tmp_path, source_of("a.wav"))
    assert ExtractedRecording.from_json(result.to_json()) == result
    assert (result.outcome.sample_rate, result.outcome.channels, len(result.windows)) == (TINY_RATE, 1, 2)


def test_a_bad_sample_at_the_end_takes_the_windows_before_it_along(tmp_path, rng):
    samples = tiny_sound("bird_song", seconds=60, rng=rng)
    samples[-1] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    result = extract(tmp_path, source_of("a.wav"))
    assert result.outcome.status == "corrupt" and "not numbers" in result.outcome.reason
    assert spectrogram_bytes(tmp_path / "out") == {}


def test_a_file_that_vanishes_while_it_is_read_is_a_row(tmp_path, rng, monkeypatch):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=2, rng=rng))
    monkeypatch.setattr(extraction, "report_alive", lambda: path.unlink(missing_ok=True))
    result = extract(tmp_path, source_of("a.wav"))
    assert (result.outcome.status, result.windows) == ("corrupt", ())
    assert "a.wav vanished while it was read" in result.outcome.reason
    assert spectrogram_bytes(tmp_path / "out") == {}
