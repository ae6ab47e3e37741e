import dataclasses
import os
import subprocess
import sys

import librosa
import numpy as np
import pytest
import scipy.signal
import torch
import torchaudio

from models.audio_frontend import LogMelFrontend, frontend_fingerprint, mel_filters, segment_starts
from models.efficientnet import LEGACY_FRONTEND
from models.efficientnet_config import FrontendConfig
from tests.conftest import PROJECT

FLOAT32_DB = 2e-3  # float32 sums of squares against float64: about 4e-4 of a small cell's power
DOUBLE_DB = 20 * np.log10(2)  # 6.0206
GAIN_TOLERANCE_DB = 1e-4  # doubling is exact in float32; what is left is the rounding of log10 near 100 dB
SLOPE_TO_MIDDLE = 0.5  # a sweep seen through a window may peak anywhere in the window's own sweep, half each way
FILTER_ROUNDING = 1e-6  # of the highest weight: a few steps of float32
ONE_ULP_DB = float(np.spacing(np.float32(100)))  # the logarithm of the float32 nearest to 1e-10
TONES_HZ = (100.0, 440.0, 997.0, 1500.0, 3456.7, 6000.0, 10500.0)

SMALL = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=100, n_mels=20, f_min=60.0, f_max=3900.0,
                       segment_duration_ms=100)
TINY = FrontendConfig(sample_rate=1000, n_fft=16, hop_length=8, n_mels=4, f_min=0.0, f_max=500.0,
                      segment_duration_ms=16)
OTHER_VALUES = {"sample_rate": 24000, "n_fft": 1024, "hop_length": 256, "n_mels": 64, "f_min": 40.0, "f_max": 10000.0,
                "segment_duration_ms": 5000, "mel_scale": "htk", "mel_norm": "none", "edge_mode": "reflect",
                "padding": "zeros", "top_db": 60.0}


def sine(frequency, *, sample_rate=22050, n_samples=22050):
    return np.sin(2 * np.pi * frequency * np.arange(n_samples) / sample_rate).astype(np.float32)


def noise(rng, n_samples, *, level=0.1):
    return (level * rng.standard_normal(n_samples)).astype(np.float32)


def to_mel(frequency, scale):
    if scale == "htk":
        return 2595 * np.log10(1 + frequency / 700)
    return np.where(frequency < 1000, 3 * frequency / 200,
                    15 + 27 * np.log(np.maximum(frequency, 1) / 1000) / np.log(6.4))


def band_edges(config):
    """Find the n_mels + 2 corners of the triangles by bisection, so that no inverse formula is needed."""
    wanted = np.linspace(to_mel(np.float64(config.f_min), config.mel_scale),
                         to_mel(np.float64(config.f_max), config.mel_scale), config.n_mels + 2)
    fine = np.linspace(0, config.sample_rate / 2, 200_001)
    return np.interp(wanted, to_mel(fine, config.mel_scale), fine)


def band_centres(config):
    return band_edges(config)[1:-1]


def triangles(config):
    low, centre, high = (band_edges(config)[k:k + config.n_mels, np.newaxis] for k in range(3))
    frequencies = np.arange(config.n_fft // 2 + 1) * config.sample_rate / config.n_fft
    weights = np.maximum(0, np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)))
    return weights * 2 / (high - low) if config.mel_norm == "slaney" else weights


def direct_log_mel(clip, config):
    """Compute the log-mel by the definitions: one cosine and one sine sum per bin and frame, in float64."""
    half, n_fft = config.n_fft // 2, config.n_fft
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    angles = 2 * np.pi * np.outer(np.arange(half + 1), np.arange(n_fft)) / n_fft
    columns = []
    for centre in range(0, len(clip) + 1, config.hop_length):
        positions = np.arange(centre - half, centre + half)
        if config.edge_mode == "reflect":
            mirrored = np.where(positions < 0, -positions, positions)
            mirrored = np.where(mirrored >= len(clip), 2 * (len(clip) - 1) - mirrored, mirrored)
            frame = clip[mirrored].astype(np.float64)
        else:
            inside = (positions >= 0) & (positions < len(clip))
            frame = np.where(inside, clip[np.clip(positions, 0, len(clip) - 1)], 0.0)
        frame = frame * hann
        columns.append((np.cos(angles) @ frame) ** 2 + (np.sin(angles) @ frame) ** 2)
    log_mel = 10 * np.log10(np.maximum(triangles(config) @ np.array(columns).T, 1e-10))
    return np.maximum(log_mel, log_mel.max() - config.top_db)


@pytest.mark.parametrize("edge_mode", ["constant", "reflect"])
@pytest.mark.parametrize("mel_norm", ["slaney", "none"])
@pytest.mark.parametrize("mel_scale", ["slaney", "htk"])
def test_log_mel_equals_the_direct_transform(rng, mel_scale, mel_norm, edge_mode):
    config = SMALL.replace(mel_scale=mel_scale, mel_norm=mel_norm, edge_mode=edge_mode)
    clip = noise(rng, config.segment_samples)
    log_mel = LogMelFrontend(config).log_mel(clip)
    assert log_mel.dtype == np.float32
    assert log_mel.shape == (config.n_mels, config.n_frames)
    np.testing.assert_allclose(log_mel, direct_log_mel(clip, config), atol=FLOAT32_DB)


@pytest.mark.parametrize("n_samples", [176400, 30000])
def test_default_log_mel_equals_librosa(rng, n_samples):
    config = FrontendConfig()
    clip = noise(rng, n_samples) + 0.3 * sine(1234.5, n_samples=n_samples)
    whole = np.resize(clip, config.segment_samples)
    power = librosa.feature.melspectrogram(
        y=whole, sr=22050, n_fft=2048, hop_length=512, n_mels=128, fmin=50, fmax=11025, pad_mode="constant")
    expected = librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=80)
    log_mel = LogMelFrontend(config).log_mel(clip)
    assert log_mel.shape == (128, 345)
    np.testing.assert_allclose(log_mel, expected, atol=FLOAT32_DB)


@pytest.mark.filterwarnings("ignore:Empty filters detected")
@pytest.mark.parametrize("mel_norm", ["slaney", "none"])
@pytest.mark.parametrize("mel_scale", ["slaney", "htk"])
@pytest.mark.parametrize("base", [FrontendConfig(), SMALL, LEGACY_FRONTEND, FrontendConfig(n_fft=511, hop_length=128)])
def test_the_mel_filters_are_librosas(base, mel_scale, mel_norm):
    config = base.replace(mel_scale=mel_scale, mel_norm=mel_norm)
    expected = librosa.filters.mel(
        sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels, fmin=config.f_min, fmax=config.f_max,
        htk=mel_scale == "htk", norm=None if mel_norm == "none" else "slaney")
    filters = mel_filters(config)
    assert filters.dtype == np.float32
    np.testing.assert_allclose(filters, expected, rtol=0, atol=FILTER_ROUNDING * expected.max())
    assert LogMelFrontend(config).n_empty_bands == (expected.max(axis=1) == 0).sum()


@pytest.mark.filterwarnings("ignore:Empty filters detected", "ignore:At least one mel filterbank has all zero")
def test_legacy_front_end_equals_torchaudio(rng):
    clip = noise(rng, LEGACY_FRONTEND.segment_samples) + 0.2 * sine(3000, n_samples=LEGACY_FRONTEND.segment_samples)
    mel = torchaudio.transforms.MelSpectrogram(sample_rate=22050)(torch.from_numpy(clip))
    expected = torchaudio.transforms.AmplitudeToDB(top_db=80)(mel).numpy()
    np.testing.assert_allclose(LogMelFrontend(LEGACY_FRONTEND).log_mel(clip), expected, atol=FLOAT32_DB)


@pytest.mark.parametrize("frequency", TONES_HZ)
def test_a_tone_peaks_in_the_nearest_band(frequency):
    config = FrontendConfig(segment_duration_ms=1000)
    centres = band_centres(config)
    log_mel = LogMelFrontend(config).log_mel(sine(frequency))
    inner = log_mel[:, 3:-3].argmax(axis=0)  # the first and last frames reach over the clip's edge
    one_bin = config.sample_rate / config.n_fft
    assert (np.abs(centres[inner] - frequency) <= np.abs(centres - frequency).min() + one_bin).all()


def test_a_sweep_moves_band_by_band():
    config = FrontendConfig(segment_duration_ms=8000)
    seconds = np.arange(config.segment_samples) / config.sample_rate
    sweep = scipy.signal.chirp(seconds, f0=2000, t1=8.0, f1=10000).astype(np.float32)
    peaks = LogMelFrontend(config).log_mel(sweep).argmax(axis=0)[3:-3]
    moments = np.arange(3, config.n_frames - 3) * config.hop_length / config.sample_rate
    frequencies = 2000 + 1000 * moments
    centres = band_centres(config)
    tolerance = (config.sample_rate / config.n_fft
                 + SLOPE_TO_MIDDLE * 1000 * config.n_fft / config.sample_rate)
    nearest = np.abs(centres - frequencies[:, np.newaxis]).min(axis=1)
    assert (np.abs(centres[peaks] - frequencies) <= nearest + tolerance).all()
    assert set(np.diff(peaks)) == {0, 1}


@pytest.mark.parametrize("level", [0.3, 0.01, 1e-5])
def test_doubling_the_amplitude_adds_six_decibels(rng, level):
    config = SMALL.replace(top_db=60.0)
    frontend = LogMelFrontend(config)
    clip = noise(rng, config.segment_samples, level=level) + level * 100 * sine(1000, sample_rate=8000, n_samples=800)
    once, twice = frontend.log_mel(clip), frontend.log_mel(2 * clip)
    unfloored = (once > max(once.max() - 60, -100) + 1e-3) & (twice > max(twice.max() - 60, -100) + 1e-3)
    assert unfloored.mean() > 0.5
    np.testing.assert_allclose((twice - once)[unfloored], DOUBLE_DB, atol=GAIN_TOLERANCE_DB)


@pytest.mark.parametrize("config", [FrontendConfig(), SMALL, LEGACY_FRONTEND.replace(n_mels=40)])
def test_digital_silence_reads_minus_100_db_everywhere(config):
    log_mel = LogMelFrontend(config).log_mel(np.zeros(config.segment_samples, dtype=np.float32))
    np.testing.assert_allclose(log_mel, -100, atol=ONE_ULP_DB)


def test_the_floor_belongs_to_the_clip():
    frontend = LogMelFrontend(SMALL.replace(top_db=30.0))
    loud = sine(1000, sample_rate=8000, n_samples=800)
    quiet = loud / 1024  # a power of two: the floating-point result is the loud one's, shifted
    alone = frontend.log_mel(quiet)
    beside = [frontend.log_mel(clip) for clip in (loud, quiet)]
    assert np.array_equal(beside[1], alone)
    assert alone.min() == pytest.approx(alone.max() - 30, abs=GAIN_TOLERANCE_DB)
    np.testing.assert_allclose(beside[0] - alone, 10 * DOUBLE_DB, atol=GAIN_TOLERANCE_DB)


def test_log_mel_leaves_its_input_alone(rng):
    clip = noise(rng, 500)
    before = clip.copy()
    LogMelFrontend(SMALL).log_mel(clip)
    assert np.array_equal(clip, before)


def test_log_mel_fits_the_length_first(rng):
    frontend = LogMelFrontend(SMALL)
    long, short = noise(rng, 1000), noise(rng, 300)
    assert np.array_equal(frontend.log_mel(long), frontend.log_mel(long[:800]))
    assert np.array_equal(frontend.log_mel(short), frontend.log_mel(np.concatenate([short, short, short[:200]])))


def test_fit_length_by_hand():
    three = np.array([1, 2, 3], dtype=np.float32)
    repeat = LogMelFrontend(TINY).fit_length(three)
    zeros = LogMelFrontend(TINY.replace(padding="zeros")).fit_length(three)
    assert repeat.tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert zeros.tolist() == [1, 2, 3] + [0] * 13
    assert repeat.dtype == zeros.dtype == np.float32
    assert three.tolist() == [1, 2, 3]


@pytest.mark.parametrize("padding", ["repeat", "zeros"])
def test_fit_length_cuts_a_long_clip(padding):
    clip = np.arange(20, dtype=np.float32)
    fitted = LogMelFrontend(TINY.replace(padding=padding)).fit_length(clip)
    assert fitted.tolist() == list(range(16))
    assert LogMelFrontend(TINY).fit_length(fitted).tolist() == fitted.tolist()


@pytest.mark.parametrize("n_fft", [512, 511, 16, 17])
@pytest.mark.parametrize("hop_length", [1, 7, 16])
@pytest.mark.parametrize("segment_duration_ms", [64, 65])
def test_the_config_knows_the_number_of_frames(rng, n_fft, hop_length, segment_duration_ms):
    config = FrontendConfig(sample_rate=8000, n_fft=n_fft, hop_length=hop_length, n_mels=4, f_max=4000.0,
                            segment_duration_ms=segment_duration_ms)
    assert LogMelFrontend(config).log_mel(noise(rng, config.segment_samples)).shape == (4, config.n_frames)


# where windows start

@pytest.mark.parametrize(("n_samples", "hop_samples", "least_new_samples", "expected"), [
    (3, 10, 1, [0]), (10, 10, 1, [0]), (11, 10, 1, [0, 1]), (20, 10, 1, [0, 10]), (25, 10, 1, [0, 10, 15]),
    (25, 5, 1, [0, 5, 10, 15]), (11, 10, 2, [0]), (12, 10, 2, [0, 2]), (22, 10, 3, [0, 10]), (23, 10, 3, [0, 10, 13]),
    (13, 1, 5, [0, 1, 2, 3]),
])
def test_segment_starts_by_hand(n_samples, hop_samples, least_new_samples, expected):
    assert segment_starts(n_samples, segment_samples=10, hop_samples=hop_samples,
                          least_new_samples=least_new_samples) == expected


def test_windows_that_overlap_nearly_wholly_are_all_there():
    # 3 s, windows of 1 s that overlap by 950 ms
    config = FrontendConfig(segment_duration_ms=1000)
    hop_samples = round(0.05 * config.sample_rate)
    starts = segment_starts(config.segment_samples + 40 * hop_samples, segment_samples=config.segment_samples,
                            hop_samples=hop_samples, least_new_samples=config.least_new_samples)
    assert hop_samples < config.least_new_samples
    assert starts == [number * hop_samples for number in range(41)]


def test_the_end_of_16_seconds_and_a_bit_counts_once():
    config = FrontendConfig()
    starts = segment_starts(round(16.05 * 22050), segment_samples=176400, hop_samples=176400,
                            least_new_samples=config.least_new_samples)
    assert starts == [0, 176400]
    assert config.least_new_samples == 2205


@pytest.mark.parametrize("least_new_samples", [1, 2, 4, 20])
def test_segments_cover_the_recording_but_for_what_is_not_worth_a_window(least_new_samples):
    for n_samples in range(1, 40):
        for segment_samples in range(1, 12):
            for hop_samples in range(1, segment_samples + 1):
                starts = segment_starts(n_samples, segment_samples=segment_samples, hop_samples=hop_samples,
                                        least_new_samples=least_new_samples)
                where = (n_samples, segment_samples, hop_samples)
                last = max(0, n_samples - segment_samples)
                least = min(least_new_samples, hop_samples)
                assert starts[:-1] == [number * hop_samples for number in range(len(starts) - 1)], where
                assert starts == sorted(set(starts)), where
                assert starts[-1] in (last, (len(starts) - 1) * hop_samples), where
                assert 0 <= last - starts[-1] < least, where
                assert len(starts) == 1 or starts[-1] - starts[-2] >= least, where


def test_the_fingerprint_changes_with_every_field():
    fields = [f.name for f in dataclasses.fields(FrontendConfig)]
    assert set(OTHER_VALUES) == set(fields)
    fingerprints = {frontend_fingerprint(FrontendConfig().replace(**{name: OTHER_VALUES[name]})) for name in fields}
    fingerprints.add(frontend_fingerprint(FrontendConfig()))
    assert len(fingerprints) == len(fields) + 1


def test_equal_settings_have_equal_fingerprints():
    assert frontend_fingerprint(FrontendConfig(f_min=50, top_db=80)) == frontend_fingerprint(FrontendConfig())
    again = FrontendConfig.from_dict(FrontendConfig().to_dict())
    assert frontend_fingerprint(again) == frontend_fingerprint(FrontendConfig())


def test_the_fingerprint_is_the_same_in_another_process():
    program = ("from models.audio_frontend import frontend_fingerprint as f; from models.efficientnet_config import *;"
               "print(f(FrontendConfig()))")
    answer = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True, capture_output=True, text=True,
                            env={**os.environ, "PYTHONHASHSEED": "1234"})
    assert answer.stdout.strip() == frontend_fingerprint(FrontendConfig())
