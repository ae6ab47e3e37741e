import io
import subprocess

import numpy as np
import pytest
import soundfile as sf

from models.errors import AudioError
from tests.utils.audio.sounds import RATE, needs_ffmpeg, tone, write
from utils.audio import recordings as audio_io
from utils.audio.recordings import RecordingReader
from utils.audio.streams import FileObject, Samples

# of full scale: a resampler that began elsewhere rounds float32 elsewhere
SOUGHT = 1e-6
# of full scale: where the two rates share few samples, soxr interpolates its filter, and by where it began
SOUGHT_ODDLY = 1e-4
RATES = [(48000, RATE, SOUGHT), (44100, RATE, SOUGHT), (44100, 16000, SOUGHT), (8000, RATE, SOUGHT),
         (384000, RATE, SOUGHT), (RATE, RATE, 0.0), (44056, RATE, SOUGHT_ODDLY)]
SEEKABLE = [("wav", "WAV", "PCM_16"), ("wav", "WAV", "PCM_24"), ("wav", "WAV", "FLOAT"), ("wav", "WAV", "ULAW"),
            ("wav", "WAVEX", "PCM_16"), ("rf64", "RF64", "PCM_16"), ("w64", "W64", "PCM_16"),
            ("aiff", "AIFF", "PCM_16"), ("au", "AU", "ALAW"), ("caf", "CAF", "PCM_16"), ("flac", "FLAC", "PCM_16"),
            ("flac", "FLAC", "PCM_24")]
FORWARD = [("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"), ("mp3", "MP3", "MPEG_LAYER_III"),
           ("wav", "WAV", "MS_ADPCM"), ("wav", "WAV", "IMA_ADPCM")]


@pytest.fixture
def noise(rng):
    """Noise at any rate; a tone would look alike at many places."""
    def make(path, *, sample_rate, n_samples, **settings):
        return write(path, rng.uniform(-0.9, 0.9, n_samples).astype(np.float32), sample_rate=sample_rate, **settings)
    return make


def samples_from(recording, start=0, *, sample_rate=RATE):
    with RecordingReader(recording, sample_rate=sample_rate) as reader:
        return np.concatenate(list(reader.blocks(start=start)))


def windows_from(recording, first_window=0, *, sample_rate=RATE, parts=audio_io.WHOLE, **settings):
    with RecordingReader(recording, sample_rate=sample_rate) as reader:
        return list(reader.windows(parts=parts, first_window=first_window, **settings))


def written(path, format, subtype, *, n_samples=10_007):
    if not sf.check_format(format, subtype):
        pytest.skip(f"this libsndfile does not write {format} {subtype}")
    return write(path, tone(440, sample_rate=8000, seconds=n_samples / 8000), sample_rate=8000, format=format,
                 subtype=subtype)


# where reading may begin

@pytest.mark.parametrize(("extension", "format", "subtype"), SEEKABLE)
def test_formats_whose_frames_stand_alone_can_be_sought_in(tmp_path, extension, format, subtype):
    with RecordingReader(written(tmp_path / f"clip.{extension}", format, subtype), sample_rate=8000) as reader:
        assert (reader.can_seek, reader.n_samples) == (True, 10_007)


@pytest.mark.parametrize(("extension", "format", "subtype"), FORWARD)
def test_formats_whose_frames_need_those_before_are_read_from_the_beginning(tmp_path, extension, format, subtype):
    path = written(tmp_path / f"clip.{extension}", format, subtype)
    with RecordingReader(path, sample_rate=8000) as reader:
        assert (reader.can_seek, reader.n_samples) == (False, None)
    np.testing.assert_array_equal(samples_from(path, 4567, sample_rate=8000),
                                  samples_from(path, sample_rate=8000)[4567:])


@needs_ffmpeg
def test_what_ffmpeg_reads_is_read_from_the_beginning(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 1000)
    path = tmp_path / "clip.m4a"
    subprocess.run(["ffmpeg", "-v", "error", "-i", write(tmp_path / "clip.wav", tone(440)), path], check=True,
                   stdin=subprocess.DEVNULL)
    with RecordingReader(path, sample_rate=RATE) as reader:
        assert (reader.can_seek, reader.n_samples) == (False, None)
    np.testing.assert_array_equal(samples_from(path, 4567), samples_from(path)[4567:])


def test_samples_in_memory_can_be_sought_in(rng):
    samples = Samples(rng.uniform(-1, 1, (10_007, 2)), 8000)
    with RecordingReader(samples, sample_rate=8000) as reader:
        assert (reader.can_seek, reader.n_samples) == (True, 10_007)
    np.testing.assert_array_equal(samples_from(samples, 4567, sample_rate=8000),
                                  samples_from(samples, sample_rate=8000)[4567:])


@pytest.mark.parametrize(("native_rate", "n_frames", "expected"), [(48000, 48_000, RATE), (48000, 48_001, RATE + 1),
                                                                   (8000, 3, 9), (RATE, 5, 5)])
def test_the_header_promises_no_fewer_samples_than_come(tmp_path, native_rate, n_frames, expected):
    path = write(tmp_path / "clip.wav", np.zeros(n_frames, dtype=np.float32), sample_rate=native_rate)
    with RecordingReader(path, sample_rate=RATE) as reader:
        assert reader.n_samples == expected
        assert sum(map(len, reader.blocks())) <= expected


# samples from the middle

@pytest.mark.parametrize(("native_rate", "sample_rate", "tolerance"), RATES)
def test_samples_are_those_of_a_reading_from_the_beginning(tmp_path, noise, monkeypatch, native_rate, sample_rate,
                                                           tolerance):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 4096)
    path = noise(tmp_path / "clip.wav", sample_rate=native_rate, n_samples=2 * native_rate + 17)
    whole = samples_from(path, sample_rate=sample_rate)
    for start in (1, 999, 2500, sample_rate, sample_rate + 1, len(whole) - 300, len(whole) - 1):
        found = samples_from(path, start, sample_rate=sample_rate)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, whole[start:], rtol=0, atol=tolerance, err_msg=f"from sample {start}")


@pytest.mark.parametrize(("extension", "format", "subtype"), SEEKABLE)
def test_every_format_that_can_be_sought_in_finds_its_frames(tmp_path, monkeypatch, extension, format, subtype):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 1000)
    path = written(tmp_path / f"clip.{extension}", format, subtype)
    whole = samples_from(path, sample_rate=8000)
    for start in (1, 4095, 4096, 9999):
        np.testing.assert_array_equal(samples_from(path, start, sample_rate=8000), whole[start:])


def test_channels_are_averaged_from_the_middle_too(tmp_path):
    frames = np.arange(20_000, dtype=np.float32).reshape(10_000, 2) / 20_000
    path = write(tmp_path / "clip.wav", frames)
    np.testing.assert_array_equal(samples_from(path, 7000), frames[7000:].mean(axis=1))


def test_what_comes_before_is_not_read(tmp_path, noise, monkeypatch):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 1000)
    path, n_blocks = noise(tmp_path / "clip.wav", sample_rate=48000, n_samples=480_000), []
    for start in (0, 9 * RATE):
        blocks = []
        with RecordingReader(path, sample_rate=RATE, on_block=lambda: blocks.append(1)) as reader:
            for _ in reader.blocks(start=start):
                pass
            assert reader.duration_seconds == 10.0
        n_blocks.append(len(blocks))
    assert n_blocks[0] == 480
    assert 48 <= n_blocks[1] <= 60  # the last second, and what the resampler must have heard before


@pytest.mark.parametrize("native_rate", [48000, 44100, 24000, 8000, RATE, 44056])
def test_the_length_does_not_depend_on_where_reading_began(native_rate):
    lengths = range(native_rate // 2, native_rate // 2 + 700)
    of_half_a_sample = [n for n in lengths if 2 * n * RATE // native_rate % 2 and 2 * n * RATE % native_rate == 0]
    for n_frames in [*lengths[:9], *of_half_a_sample[:3]]:  # which the resampler rounds this way or that
        recording = Samples(np.zeros(n_frames, dtype=np.float32), native_rate)
        n_whole = len(samples_from(recording))
        assert abs(n_whole - n_frames * RATE / native_rate) <= 0.5
        for start in (1, 3000, 5000, n_whole - 1):
            assert len(samples_from(recording, start)) == n_whole - start, (n_frames, start)


@pytest.mark.parametrize(("extension", "format", "subtype"), [SEEKABLE[0], SEEKABLE[-1], FORWARD[0]])
@pytest.mark.parametrize("sample_rate", [8000, RATE])
def test_from_the_end_on_nothing_comes(tmp_path, extension, format, subtype, sample_rate):
    path = written(tmp_path / f"clip.{extension}", format, subtype)
    n_whole = len(samples_from(path, sample_rate=sample_rate))
    with RecordingReader(path, sample_rate=sample_rate) as reader:
        assert sum(map(len, reader.blocks(start=n_whole))) == 0
        assert reader.duration_seconds == 10_007 / 8000


def test_a_place_that_a_damaged_file_lacks_is_named(tmp_path, noise):
    path = noise(tmp_path / "clip.flac", sample_rate=RATE, n_samples=5 * RATE, subtype="PCM_16")
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with RecordingReader(path, sample_rate=RATE) as reader:
        assert list(reader.blocks(start=4 * RATE)) == []
        assert f"clip.flac breaks off after 4.0 s (cannot be read at frame {4 * RATE}: " in reader.damage


# windows from the middle

@pytest.mark.parametrize(("extension", "format", "subtype"), [SEEKABLE[0], SEEKABLE[-1], FORWARD[0], FORWARD[-1]])
@pytest.mark.parametrize("hop_samples", [400, 1000])
def test_windows_from_a_number_on_are_those_of_all(tmp_path, monkeypatch, extension, format, subtype, hop_samples):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 700)
    settings = {"segment_samples": 1000, "hop_samples": hop_samples, "least_new_samples": 100, "sample_rate": 8000}
    for n_samples in (10_000, 10_007, 10_100, 10_399, 10_401, 10_999):  # the last window is moved back, or left out
        path = written(tmp_path / f"{n_samples}.{extension}", format, subtype, n_samples=n_samples)
        every = windows_from(path, **settings)
        assert len(every) >= 10
        for first_window in range(1, len(every)):
            found = windows_from(path, first_window, **settings)
            assert [window.start for window in found] == [window.start for window in every[first_window:]]
            for window, expected in zip(found, every[first_window:], strict=True):
                np.testing.assert_array_equal(window.samples, expected.samples)


@pytest.mark.parametrize(("native_rate", "sample_rate", "tolerance"), RATES)
def test_windows_from_a_number_on_hear_the_same_at_any_rate(tmp_path, noise, native_rate, sample_rate, tolerance):
    settings = {"segment_samples": sample_rate // 4, "hop_samples": sample_rate // 5, "least_new_samples": 1,
                "sample_rate": sample_rate}
    path = noise(tmp_path / "clip.wav", sample_rate=native_rate, n_samples=2 * native_rate + 17)
    every, found = windows_from(path, **settings), windows_from(path, 7, **settings)
    assert [window.start for window in found] == [window.start for window in every[7:]]
    for window, expected in zip(found, every[7:], strict=True):
        np.testing.assert_allclose(window.samples, expected.samples, rtol=0, atol=tolerance)


def test_for_windows_from_a_number_on_what_lies_before_is_not_read(tmp_path, noise, monkeypatch):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 1000)
    path, blocks = noise(tmp_path / "clip.wav", sample_rate=RATE, n_samples=100_000), []
    with RecordingReader(path, sample_rate=RATE, on_block=lambda: blocks.append(1)) as reader:
        starts = [window.start for window in reader.windows(segment_samples=5000, hop_samples=5000,
                                                            least_new_samples=1, first_window=18)]
    assert starts == [90_000, 95_000]
    assert len(blocks) == 15  # from a window before, which the last one may reach back into


def test_from_a_window_past_the_last_one_none_comes(tmp_path):
    path = write(tmp_path / "clip.wav", np.arange(100, dtype=np.float32), sample_rate=1000)
    settings = {"sample_rate": 1000, "segment_samples": 10, "hop_samples": 10, "least_new_samples": 1}
    assert [window.start for window in windows_from(path, 9, **settings)] == [90]
    for first_window in (10, 11):
        assert windows_from(path, first_window, **settings) == []


def test_each_part_begins_with_that_window(tmp_path):
    path = write(tmp_path / "clip.wav", np.arange(100, dtype=np.float32), sample_rate=1000)
    found = windows_from(path, 2, sample_rate=1000, segment_samples=10, hop_samples=10, least_new_samples=1,
                         parts=[(5, 40), (50, None), (90, 95)])
    assert [(part, start, samples[0]) for part, start, samples in found] == [
        (0, 25, 25.0), (0, 30, 30.0), (1, 70, 70.0), (1, 80, 80.0), (1, 90, 90.0)]


# file objects

@pytest.fixture
def wav_bytes(tmp_path):
    return write(tmp_path / "clip.wav", tone(440), subtype="PCM_16").read_bytes()


def test_a_file_object_is_read_from_its_beginning_and_stays_open(tmp_path, wav_bytes):
    stream = io.BytesIO(wav_bytes)
    stream.seek(1000)
    with RecordingReader(FileObject(stream, "upload"), sample_rate=RATE) as reader:
        assert (reader.can_seek, reader.n_samples, str(reader.path)) == (True, RATE, "upload")
        found = np.concatenate(list(reader.blocks()))
    np.testing.assert_array_equal(found, samples_from(tmp_path / "clip.wav"))
    assert not stream.closed
    np.testing.assert_array_equal(samples_from(FileObject(stream)), found)  # a second time


def test_an_open_file_is_sought_in_like_its_path(tmp_path, wav_bytes):
    with open(tmp_path / "clip.wav", "rb") as stream:
        found = samples_from(FileObject(stream, "open"), 15_000)
        assert not stream.closed
    np.testing.assert_array_equal(found, samples_from(tmp_path / "clip.wav", 15_000))


def test_a_file_object_of_another_format_is_read(tmp_path):
    path = written(tmp_path / "clip.ogg", "OGG", "VORBIS")
    found = samples_from(FileObject(io.BytesIO(path.read_bytes())), sample_rate=8000)
    np.testing.assert_array_equal(found, samples_from(path, sample_rate=8000))


class Unreadable(io.BytesIO):
    """Fails in the middle, as a network drive does."""

    def read(self, size=-1):
        raise OSError(5, "Input/output error")

    def readinto(self, buffer):
        raise OSError(5, "Input/output error")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # libsndfile's callbacks cannot raise
@pytest.mark.parametrize("stream", [io.BytesIO(b""), io.BytesIO(b"this is a letter" * 100), Unreadable(b"RIFF")],
                         ids=["empty", "text", "unreadable"])
def test_an_unreadable_file_object_is_unsupported_and_stays_open(stream):
    with pytest.raises(AudioError, match="^upload is not readable by libsndfile .*: other formats are read from a file,"
                                         " save it first$") as caught:
        RecordingReader(FileObject(stream, "upload"), sample_rate=RATE)
    assert caught.value.status == "unsupported"
    assert not stream.closed


def test_a_closed_file_object_is_unsupported(wav_bytes):
    stream = io.BytesIO(wav_bytes)
    stream.close()
    with pytest.raises(AudioError, match="upload is not readable by libsndfile") as caught:
        RecordingReader(FileObject(stream, "upload"), sample_rate=RATE)
    assert caught.value.status == "unsupported"
