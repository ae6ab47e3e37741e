import tracemalloc

import numpy as np
import pytest
import soundfile

from models.audio_frontend import LogMelFrontend, segment_starts
from models.efficientnet_config import FrontendConfig
from tests.conftest import TINY_FRONTEND, TINY_RATE, preprocess_settings, tiny_sound, write_audio
from tests.utils.preparation.conftest import count_readers, source_of, spectrogram_bytes
from utils.preparation import extraction
from utils.preparation.extraction import ExtractedRecording, extract_recording
from utils.preparation.label_tables import TableColumns, sources_from_table
from utils.preparation.regions import Region

SLOW_RATE = 1000  # Hz: an hour is 3.6 million samples
HOUR = 3600  # seconds
# an hour in minutes, so that it is done in a moment
HOUR_FRONTEND = FrontendConfig(sample_rate=SLOW_RATE, n_fft=1024, hop_length=1024, n_mels=8, f_max=500.0,
                               segment_duration_ms=60_000)
MOST_MEGABYTES = 12  # blocks of 1 MB, their copies on the way and what is examined at once; the hour itself is 14 MB


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

def test_windows_lie_where_prediction_cuts_them_and_have_the_label_they_hold_most_of(tmp_path, rng):
    samples = rng.uniform(-0.5, 0.5, 4 * TINY_RATE).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    table = tmp_path / "labels.csv"
    table.write_text("path,label,start,end\na.wav,owl,0,1\na.wav,fox,1.9,3.5\na.wav,owl,3.3,3.9\n", encoding="utf-8")
    source, = sources_from_table(table, tmp_path, columns=TableColumns(), group_by="recording")
    result = extract(tmp_path, source)
    # of the last window fox holds 0.5 s and owl 0.6 s; a tenth of a second of fox is too little for the second one
    assert spans(result) == [("owl", 0, 1.0), ("fox", 2.0, 3.0), ("owl", 3.0, 4.0)]
    frontend = LogMelFrontend(TINY_FRONTEND)
    for window in result.windows:
        np.testing.assert_array_equal(np.load(tmp_path / "out" / window.path),
                                      frontend.log_mel(samples[window.start_sample:window.end_sample]))
    assert [(region.class_name, region.n_windows, region.labelled_seconds) for region in result.regions] == [
        ("owl", 1, 1.0), ("fox", 1, 1.0), ("owl", 1, 0.6)]
    assert result.regions[1].reason == ("0.600 s of it are in no window of its label: of the windows there, 1 holds"
                                        " more of owl, 1 holds too little of it")


@pytest.mark.parametrize("overlap_ms", [0, 300, 950])
def test_labelled_windows_lie_on_the_grid_of_prediction(tmp_path, rng, overlap_ms):
    """Of 1 s windows that overlap by 950 ms, 41 begin in 2 s: none may be lost to another of the same name."""
    write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=3, rng=rng))
    result = extract(tmp_path, source_of("a.wav", Region("owl", 0.0, 3.0)), segment_overlap_ms=overlap_ms)
    starts = segment_starts(3 * TINY_RATE, segment_samples=TINY_RATE,
                            hop_samples=TINY_RATE - round(TINY_RATE * overlap_ms / 1000),
                            least_new_samples=TINY_FRONTEND.least_new_samples)
    assert [window.start_sample for window in result.windows] == starts
    assert len(spectrogram_bytes(tmp_path / "out")) == len(starts) == len({window.path for window in result.windows})


def test_active_leaves_no_marked_sound_out_however_faint(tmp_path, rng):
    """A faint owl far below the thunder: who marked it wants it learnt."""
    samples = 1e-4 * rng.standard_normal(4 * TINY_RATE)
    samples[:TINY_RATE] += tiny_sound("insect_sound", seconds=1, rng=rng)
    write_audio(tmp_path / "a.wav", samples.astype(np.float32))
    result = extract(tmp_path, source_of("a.wav", Region("thunder", 0.0, 1.0), Region("owl", 2.1, 2.9)),
                     segment_selection="active")
    assert spans(result) == [("thunder", 0.0, 1.0), ("owl", 2.0, 3.0)]


def test_what_active_leaves_out_is_told(tmp_path, rng):
    samples = 1e-4 * rng.standard_normal(3 * TINY_RATE)
    samples[TINY_RATE:2 * TINY_RATE] += tiny_sound("bird_song", seconds=1, rng=rng)
    write_audio(tmp_path / "a.wav", samples.astype(np.float32))
    result = extract(tmp_path, source_of("a.wav"), segment_selection="active")
    region, = result.regions
    assert (region.n_windows, region.labelled_seconds) == (1, 1.0)
    assert region.reason == "2.000 s of it are in no window of its label: of the windows there, 2 are quiet"


def test_one_click_does_not_silence_a_recording(tmp_path, rng):
    samples = 0.003 * rng.standard_normal(5 * TINY_RATE)  # 40 dB below the click
    samples[TINY_RATE // 2] = 1.0
    write_audio(tmp_path / "a.wav", samples.astype(np.float32))
    assert len(extract(tmp_path, source_of("a.wav"), segment_selection="active").windows) == 5


def test_a_label_after_the_end_is_told_and_costs_nothing(tmp_path, rng):
    write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    result = extract(tmp_path, source_of("a.wav", Region("owl", 5.0, 6.0)))
    assert (result.outcome.status, result.windows) == ("ok", ())
    assert "none of its 1 labels gave a window: see regions.csv" in result.outcome.reason
    assert result.outcome.duration_seconds == 1.0
    assert result.regions[0].reason == "the recording ends at 1.000 s"


def test_the_labels_of_a_bad_recording_have_rows(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no sound" * 100)
    result = extract(tmp_path, source_of("a.wav", Region("owl", 1.0, 2.0), Region("fox", 3.0, 4.0)))
    assert result.outcome.status == "corrupt"
    assert [(region.class_name, region.reason) for region in result.regions] == [
        ("owl", "corrupt: see files.csv"), ("fox", "corrupt: see files.csv")]


def test_channels_that_cancel_are_told_as_what_they_are(tmp_path, rng):
    mono = tiny_sound("bird_song", seconds=2, rng=rng)
    soundfile.write(tmp_path / "a.wav", np.stack([mono, -mono], axis=1), TINY_RATE)
    outcome = extract(tmp_path, source_of("a.wav")).outcome
    assert outcome.status == "silent" and "cancel each other when they are mixed down (antiphase)" in outcome.reason


def test_a_recording_is_told_as_it_is(tmp_path, rng):
    write_audio(tmp_path / "SITE1_20240501_040000Z.wav", tiny_sound("bird_song", seconds=2, rng=rng))
    result = extract(tmp_path, source_of("SITE1_20240501_040000Z.wav"))
    assert result.declared_seconds == 2.0 and result.recorder.recorder_id == "SITE1"
    assert result.sound.content and result.sound.bandwidth_hertz
    assert len(result.sha256) == 64


def test_the_length_is_exact_although_the_last_part_ends_early(tmp_path, rng):
    """A recording is longer than a block here, so that whoever stops reading early sees only some of it."""
    hour_of_noise(tmp_path / "a.wav", rng)
    result = extract(tmp_path, source_of("a.wav", Region("owl", 10.0, 70.0)), frontend=HOUR_FRONTEND)
    assert result.outcome.duration_seconds == HOUR
    assert spans(result, SLOW_RATE) == [("owl", 0.0, 60.0), ("owl", 60.0, 120.0)]


def test_a_long_and_a_short_part_come_from_one_pass_that_holds_no_recording(tmp_path, rng, monkeypatch):
    hour_of_noise(tmp_path / "a.wav", rng)
    extract(tmp_path, source_of("a.wav", Region("owl", 0.0, 60.0)), frontend=HOUR_FRONTEND)  # what is loaded once
    opened = count_readers(monkeypatch, extraction)
    tracemalloc.start()
    result = extract(tmp_path, source_of("a.wav", Region("owl"), Region("fox", 100.5, 130.5)),
                     frontend=HOUR_FRONTEND)
    most = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert [start for name, start, _ in spans(result, SLOW_RATE) if name == "owl"] == list(range(0, HOUR, 60))
    # every window holds more of the owl, which is labelled throughout
    assert "2 hold more of owl" in result.regions[1].reason
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
    assert "a.wav cannot be opened" in result.outcome.reason
    assert spectrogram_bytes(tmp_path / "out") == {}
