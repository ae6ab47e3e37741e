import os
import shutil
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from models.errors import AudioError, ConfigError
from tests.utils.audio.sounds import RATE, count_up, needs_ffmpeg, tone, write
from utils.audio import recordings as audio_io
from utils.audio.recordings import RecordingReader, Samples, find_recordings, load_audio

EXACT = 1e-6  # of full scale: float32 arithmetic
HALF_STEP_16, HALF_STEP_24 = 1 / 32768, 1 / (1 << 23)  # of full scale: one step, as rounding may go either way
LOSSY = 0.05  # of full scale: what Vorbis and MP3 lose of a soft tone at their usual quality
RESAMPLED = 2e-3  # of full scale: pass-band ripple and stop-band leakage of soxr's HQ filter, far from the ends
MOST_AT_ONCE = 1 << 18  # samples: 1 MB; soxr gives nothing for a while and then what it held back
FEW_BYTES = 1 << 20  # what an error costs, and far less than a second at one of these rates
STATUSES = {"empty", "silent", "too_short", "corrupt", "unsupported", "timeout"}
FORMATS = [("wav", "WAV", "PCM_16", HALF_STEP_16), ("wav", "WAV", "PCM_24", HALF_STEP_24),
           ("wav", "WAV", "PCM_32", EXACT), ("wav", "WAV", "FLOAT", 0.0), ("wav", "WAV", "DOUBLE", 0.0),
           ("wav", "WAVEX", "PCM_16", HALF_STEP_16), ("flac", "FLAC", "PCM_16", HALF_STEP_16),
           ("flac", "FLAC", "PCM_24", HALF_STEP_24), ("ogg", "OGG", "VORBIS", LOSSY),
           ("mp3", "MP3", "MPEG_LAYER_III", LOSSY), ("aiff", "AIFF", "PCM_16", HALF_STEP_16),
           ("caf", "CAF", "PCM_16", HALF_STEP_16), ("w64", "W64", "PCM_16", HALF_STEP_16),
           ("rf64", "RF64", "PCM_16", HALF_STEP_16), ("au", "AU", "FLOAT", 0.0)]


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
    for block_values in (7, 999, 4999, 5000):
        monkeypatch.setattr(audio_io, "_BLOCK_VALUES", block_values)
        np.testing.assert_allclose(load_audio(path, sample_rate=RATE), whole, rtol=0, atol=EXACT)


def test_the_reader_tells_what_the_file_is(tmp_path):
    path = write(tmp_path / "clip.wav", np.zeros((4800, 2), dtype=np.float32), sample_rate=48000)
    with RecordingReader(path, sample_rate=RATE) as reader:
        assert (reader.native_sample_rate, reader.channels, reader.duration_seconds) == (48000, 2, 0.0)
        for _ in reader.blocks():
            pass
        assert reader.duration_seconds == 0.1


# headers that lie, and extremes that do not

def with_header(path, layout, place, *values):
    """Write a 16-bit WAV with some bytes of its header replaced."""
    write(path, tone(440), subtype="PCM_16")
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, place, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("native_rate", [1, 8, 99, 20_000_001])
def test_a_rate_that_cannot_be_is_refused_before_anything_is_read(tmp_path, native_rate):
    path = with_header(tmp_path / "clip.wav", "<I", 24, native_rate)
    tracemalloc.start()
    with pytest.raises(AudioError, match=rf"clip\.wav says it has {native_rate} samples a second.*damaged") as caught:
        RecordingReader(path, sample_rate=RATE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.status == "corrupt"
    assert peak < FEW_BYTES


def test_blocks_of_a_low_rate_are_sized_by_what_becomes_of_them(tmp_path):
    path = write(tmp_path / "whale.wav", tone(10, sample_rate=100, seconds=300), sample_rate=100)
    with RecordingReader(path, sample_rate=RATE) as reader:
        sizes = [len(block) for block in reader.blocks()]
    assert max(sizes) <= MOST_AT_ONCE
    assert sum(sizes) == 300 * RATE


def test_blocks_of_many_channels_are_sized_by_all_of_them(tmp_path):
    path = write(tmp_path / "array.wav", np.zeros((20_000, 64), dtype=np.float32))
    with RecordingReader(path, sample_rate=RATE) as reader:
        sizes = [len(block) for block in reader.blocks()]
    assert 64 * max(sizes) <= audio_io._BLOCK_VALUES
    assert sum(sizes) == 20_000


@pytest.mark.parametrize("path_variable", ["/nowhere", None], ids=["without ffmpeg", "as it is here"])
def test_a_header_of_64_bits_is_that_files_fault(tmp_path, monkeypatch, path_variable):
    if path_variable is not None:
        monkeypatch.setenv("PATH", path_variable)
    path = with_header(tmp_path / "clip.wav", "<H", 34, 64)
    with pytest.raises(AudioError, match=r"clip\.wav says that 1 x 64 bits are 2 bytes: its header is") as caught:
        load_audio(path, sample_rate=RATE)
    assert caught.value.status == "corrupt"


# samples in memory

@pytest.mark.parametrize("shape", [(3000,), (3000, 2)])
def test_samples_in_memory_are_read_like_a_file(tmp_path, rng, shape):
    values = rng.uniform(-1, 1, size=shape)
    from_file = load_audio(write(tmp_path / "clip.wav", values, sample_rate=8000, subtype="DOUBLE"), sample_rate=RATE)
    with RecordingReader(Samples(values, 8000), sample_rate=RATE) as reader:
        np.testing.assert_allclose(np.concatenate(list(reader.blocks())), from_file, rtol=0, atol=EXACT)


@pytest.mark.parametrize("shape", [(0,), (0, 2)])
def test_no_samples_in_memory_are_an_empty_recording(shape):
    with RecordingReader(Samples(np.empty(shape), 8000, "mic"), sample_rate=RATE) as reader:
        with pytest.raises(AudioError, match="mic holds a header but no samples") as caught:
            next(reader.blocks())
    assert caught.value.status == "empty"


@pytest.mark.parametrize("values", [np.zeros(5, dtype=np.int16), np.zeros((2, 2, 2)), np.zeros((5, 0))])
def test_samples_that_are_no_recording_are_refused(values):
    with pytest.raises(ConfigError, match="samples must be floating point .* got .*: divide integers"):
        Samples(values, 8000)


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


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.mkdir()
    (data / "fox").mkdir(parents=True)
    for path in (elsewhere / "night.wav", data / "fox" / "day.wav"):
        path.touch()
    (data / "owl").symlink_to(elsewhere, target_is_directory=True)
    (data / "fox" / "again").symlink_to(data, target_is_directory=True)
    found = [path.relative_to(data).as_posix() for path in find_recordings(data)]
    assert found == ["fox/day.wav", "owl/night.wav"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch, caplog):
    locked, scandir = tmp_path / "owl", os.scandir
    for name in ("owl", "fox"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.wav").touch()

    def refuse(path):  # a mode would not stop root
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_recordings(tmp_path) == [tmp_path / "fox" / "clip.wav"]
    assert f"the folder {locked} cannot be read (Permission denied)" in caplog.text


@pytest.mark.skipif(os.name == "nt" or os.uname().sysname != "Linux", reason="names are bytes on Linux only")
def test_a_name_that_is_no_text_is_found_and_read_without_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    path = tmp_path / os.fsdecode(b"owl\xe9.wav")
    write(tmp_path / "clip.wav", tone(440)).rename(path)
    assert find_recordings(tmp_path) == [path]
    assert np.array_equal(load_audio(path, sample_rate=RATE), tone(440))


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
    elif kind in ("nan", "inf", "1e25"):
        samples = tone(440)
        samples[500] = float(kind)
        write(path, samples)
    elif kind == "truncated":
        write(good, np.random.default_rng(0).uniform(-0.5, 0.5, 60000), subtype="PCM_16")
        path.write_bytes(good.read_bytes()[:60000])
        good.unlink()
    elif kind == "folder":
        path.mkdir()
    return path


BAD_FILES = [("clip.wav", "zero bytes", "empty", "has 0 bytes"), ("clip.mp3", "zero bytes", "empty", "has 0 bytes"),
             ("clip.wav", "header only", "empty", "holds a header but no samples"),
             ("clip.wav", "nan", "corrupt", "not numbers"), ("clip.wav", "inf", "corrupt", "not numbers"),
             ("clip.wav", "1e25", "corrupt", "beyond 1e.12"),
             ("clip.flac", "truncated", "corrupt", "cannot be decoded further"),
             ("clip.wav", "missing", "corrupt", "cannot be opened: No such file"),
             ("clip.wav", "folder", "unsupported", "is no file: leave it out"),
             ("clip.xyz", "noise", "unsupported", "its extension '.xyz' does not tell its format"),
             ("clip.raw", "noise", "unsupported", "its extension '.raw' does not tell its format")]
UNDECODABLE = [("clip.wav", "text"), ("clip.mp3", "text"), ("clip.m4a", "text"), ("clip.wav", "noise"),
               ("clip.flac", "noise"), ("clip.wav", "cut in the header")]


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


def test_a_broken_end_does_not_cost_the_blocks_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 4096)
    expected = np.random.default_rng(0).uniform(-0.5, 0.5, 60000)
    with RecordingReader(broken(tmp_path / "clip.flac", "truncated"), sample_rate=RATE) as reader:
        found = np.concatenate(list(reader.blocks()))
        assert f"clip.flac breaks off after {reader.duration_seconds:.1f} s" in reader.damage
        assert reader.duration_seconds == len(found) / RATE
    assert RATE < len(found) < len(expected)
    np.testing.assert_allclose(found, expected[:len(found)], rtol=0, atol=HALF_STEP_16)


def test_the_whole_recording_is_read_for_a_part_at_its_start(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 4096)
    path = broken(tmp_path / "clip.flac", "truncated")
    with RecordingReader(path, sample_rate=RATE) as reader:
        windows = list(reader.windows(segment_samples=50, hop_samples=50, least_new_samples=1, parts=[(0, 100)]))
        assert [start for _, start, _ in windows] == [0, 50]
        assert "clip.flac breaks off after" in reader.damage


def test_a_whole_recording_has_no_damage(tmp_path):
    with RecordingReader(write(tmp_path / "clip.wav", tone(440)), sample_rate=RATE) as reader:
        assert sum(map(len, reader.blocks())) == RATE
        assert reader.damage == ""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_no_recording_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.wav")
    with pytest.raises(AudioError, match=r"x\.wav is no file") as caught:
        load_audio(tmp_path / "x.wav", sample_rate=RATE)
    assert caught.value.status == "unsupported"


def test_every_block_is_a_sign_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 10)
    signs = []
    with RecordingReader(count_up(tmp_path / "clip.wav", 35), sample_rate=1000,
                         on_block=lambda: signs.append("alive")) as reader:
        n_blocks = len(list(reader.blocks()))
    assert len(signs) == n_blocks == 4


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


@pytest.mark.parametrize("block_values", [5000, 1 << 15])
def test_an_mp3_has_no_click_where_a_block_begins(tmp_path, monkeypatch, rng, block_values):
    """Seeking between blocks makes the decoder begin anew, without what earlier frames had saved."""
    path = write(tmp_path / "clip.mp3", rng.uniform(-0.3, 0.3, 3 * RATE).astype(np.float32), format="MP3",
                 subtype="MPEG_LAYER_III")
    whole, _ = sf.read(path, dtype="float32")
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", block_values)
    np.testing.assert_allclose(load_audio(path, sample_rate=RATE), whole, rtol=0, atol=EXACT)
