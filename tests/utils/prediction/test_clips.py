import numpy as np
import pytest
import soundfile as sf

from models.errors import AudioError
from tests.utils.audio.sounds import write
from utils.audio.recordings import load_audio
from utils.prediction.clips import write_clips

RATE = 44100
# of full scale: half a step of 16 bits, and libsndfile writes 1 as 32767 of the 32768 steps it reads
WRITTEN_16 = 1.5 / 32768
SEEKABLE = [("wav", "WAV", "PCM_16"), ("wav", "WAV", "FLOAT"), ("flac", "FLAC", "PCM_24")]
FORWARD = [("ogg", "OGG", "VORBIS"), ("mp3", "MP3", "MPEG_LAYER_III"), ("wav", "WAV", "MS_ADPCM")]
every_format = pytest.mark.parametrize(("extension", "format", "subtype"), SEEKABLE + FORWARD)
# overlapping, out of order, one inside another, from the beginning and up to the end
SPANS = [(1.0, 2.0), (0.0, 0.5), (1.25, 1.5), (1.9, 2.5), (0.1234567, 0.2345678)]


@pytest.fixture
def record(tmp_path, rng):
    """Return a function that writes 2.5 s of noise; a tone would look alike at many places."""
    def make(extension, format, subtype, *, channels=1):
        if not sf.check_format(format, subtype):
            pytest.skip(f"this libsndfile does not write {format} {subtype}")
        samples = rng.uniform(-0.9, 0.9, (round(2.5 * RATE), channels)).astype(np.float32)
        return write(tmp_path / f"night.{extension}", samples, sample_rate=RATE, format=format, subtype=subtype)
    return make


def clips_in(folder, spans):
    return [(start, end, folder / f"{number}.wav") for number, (start, end) in enumerate(spans)]


def part_of(samples, start, end):
    return samples[round(start * RATE):round(end * RATE)]


@every_format
@pytest.mark.parametrize("channels", [1, 2])
def test_clips_hold_the_very_samples(tmp_path, record, extension, format, subtype, channels):
    path = record(extension, format, subtype, channels=channels)
    whole = load_audio(path, sample_rate=RATE)
    clips = clips_in(tmp_path / "clips", SPANS)
    assert write_clips(path, clips) == len(SPANS)
    for start, end, target in clips:
        found, rate = sf.read(target, dtype="float32")
        assert rate == RATE and found.ndim == 1
        np.testing.assert_allclose(found, np.clip(part_of(whole, start, end), -1, 1), rtol=0, atol=WRITTEN_16)
        assert (sf.info(target).format, sf.info(target).subtype) == ("WAV", "PCM_16")
    assert sorted(file.name for file in (tmp_path / "clips").iterdir()) == [f"{n}.wav" for n in range(len(SPANS))]


def test_channels_are_averaged(tmp_path):
    frames = np.zeros((RATE, 2), dtype=np.float32)
    frames[RATE // 2:] = [0.5, -0.25]
    path, clip = write(tmp_path / "night.wav", frames, sample_rate=RATE), tmp_path / "clip.wav"
    write_clips(path, [(0.25, 0.75, clip)])
    found, _ = sf.read(clip)
    assert len(found) == RATE // 2
    np.testing.assert_allclose(found[RATE // 4:], 0.125, rtol=0, atol=WRITTEN_16)
    assert not found[:RATE // 4].any()


def test_clips_have_the_rate_of_the_recording_and_not_the_models(tmp_path):
    path, clip = write(tmp_path / "bat.wav", np.zeros(384_000, dtype=np.float32), sample_rate=384_000), "clip.wav"
    write_clips(path, [(0.25, 0.5, tmp_path / clip)])
    assert (sf.info(tmp_path / clip).samplerate, sf.info(tmp_path / clip).frames) == (384_000, 96_000)


@every_format
def test_a_clip_that_goes_on_past_the_end_ends_there(tmp_path, record, extension, format, subtype):
    path = record(extension, format, subtype)
    whole, clip = load_audio(path, sample_rate=RATE), tmp_path / "clip.wav"
    assert write_clips(path, [(2.0, 9.0, clip)]) == 1
    assert sf.info(clip).frames == len(whole) - 2 * RATE


@pytest.mark.parametrize(("extension", "format", "subtype"), [*SEEKABLE, *FORWARD])
@pytest.mark.parametrize("start", [3.0, 60.0])
def test_a_clip_past_the_end_is_left_out_and_costs_no_other(tmp_path, record, extension, format, subtype, start):
    path = record(extension, format, subtype)
    clips = clips_in(tmp_path, [(start, start + 1), (0.0, 1.0)])
    assert write_clips(path, clips) == 1
    assert [target.exists() for _, _, target in clips] == [False, True]


@pytest.mark.parametrize(("extension", "format", "subtype"), [SEEKABLE[0], FORWARD[0]])
def test_a_clip_of_no_length_holds_a_sample(tmp_path, record, extension, format, subtype):
    write_clips(record(extension, format, subtype), [(1.0, 1.0, tmp_path / "clip.wav")])
    assert sf.info(tmp_path / "clip.wav").frames == 1


def test_a_clip_takes_the_place_of_an_old_one(tmp_path, record):
    clip = tmp_path / "clips" / "owl" / "clip.wav"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"old")
    write_clips(record(*SEEKABLE[0]), [(0.0, 1.0, clip)])
    assert sf.info(clip).frames == RATE


def test_a_recording_that_is_gone_is_told(tmp_path):
    with pytest.raises(AudioError, match=r"gone\.wav cannot be opened: No such file"):
        write_clips(tmp_path / "gone.wav", [(0.0, 1.0, tmp_path / "clip.wav")])


def test_a_recording_that_breaks_off_gives_the_clips_before_the_break(tmp_path, record):
    path = record("flac", "FLAC", "PCM_16")
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 9 // 10])
    clip = tmp_path / "clip.wav"
    assert write_clips(path, [(0.5, 0.75, clip)]) == 1
    assert sf.info(clip).frames == RATE // 4


def test_a_detection_just_before_the_break_does_not_cost_the_others(tmp_path, record):
    path = record("flac", "FLAC", "PCM_16")
    path.write_bytes(path.read_bytes()[:path.stat().st_size * 9 // 10])
    end = len(load_audio(path, sample_rate=RATE)) / RATE
    clips = clips_in(tmp_path / "clips", [(end - 0.1, end), (0.5, 0.75)])
    assert write_clips(path, clips) >= 1
    assert sf.info(clips[1][2]).frames == RATE // 4
