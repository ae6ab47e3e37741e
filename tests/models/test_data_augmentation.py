import dataclasses
import itertools

import numpy as np
import pytest
import torch

from models import data_augmentation as augmentation
from models.batch_augmentation import mixup
from models.data_augmentation import (AudioAugmentationPipeline, WaveformParameters, add_noise,
                                      apply_waveform_parameters, change_gain, draw_waveform_parameters, pitch_shift,
                                      time_stretch)
from models.efficientnet_config import AugmentationConfig
from models.errors import ConfigError

SAMPLE_RATE = 22050
FLOAT32_RTOL = 1e-5  # a few roundings of float32 (6e-8 each) over a sum
SNR_ATOL_DB = 1e-3  # float32 rounding of the sum adds noise some 100 dB below the signal
CLICK_ATOL_SAMPLES = 1024  # the phase vocoder of librosa smears a click over half of its 2048-sample window
OFF = dict.fromkeys(("use_time_stretch", "use_pitch_shift", "use_noise", "use_volume"), False)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def sine(frequency, *, n_samples=SAMPLE_RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(n_samples) / SAMPLE_RATE)).astype(np.float32)


def peak_frequency(waveform):
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return np.argmax(spectrum) * SAMPLE_RATE / len(waveform)


def bin_width(waveform):
    return SAMPLE_RATE / len(waveform)


@pytest.mark.parametrize("transform", [
    lambda x: time_stretch(x, rate=0.8),
    lambda x: time_stretch(x, rate=1.3),
    lambda x: pitch_shift(x, n_semitones=-1.5, sample_rate=SAMPLE_RATE),
    lambda x: add_noise(x, snr_db=10, rng=np.random.default_rng(0)),
    lambda x: change_gain(x, gain_db=3),
], ids=["slower", "faster", "pitch", "noise", "gain"])
def test_waveform_transform_keeps_length_and_dtype_and_its_input(transform):
    waveform = sine(440)
    waveform.setflags(write=False)
    changed = transform(waveform)
    assert changed.shape == waveform.shape and changed.dtype == np.float32
    assert not np.allclose(changed, waveform, atol=0.01)


@pytest.mark.parametrize("rate", [0.8, 1.25])
def test_time_stretch_keeps_the_pitch(rate):
    waveform = sine(1000)
    assert peak_frequency(time_stretch(waveform, rate=rate)) == pytest.approx(1000, abs=bin_width(waveform))


@pytest.mark.parametrize("rate", [0.8, 1.25])
def test_time_stretch_moves_a_click_to_its_time_over_the_rate(rate):
    waveform = np.zeros(SAMPLE_RATE, dtype=np.float32)
    waveform[10000:10010] = 1
    position = np.argmax(np.abs(time_stretch(waveform, rate=rate)))
    assert position == pytest.approx(10000 / rate, abs=CLICK_ATOL_SAMPLES)


def test_time_stretch_fills_by_repeating():
    stretched = time_stretch(sine(1000), rate=2.0)
    half = len(stretched) // 2
    np.testing.assert_array_equal(stretched[half:], stretched[:half])


@pytest.mark.parametrize("n_semitones", [-12, -2, 1.5, 7])
def test_pitch_shift_multiplies_the_frequency(n_semitones):
    waveform = sine(1000)
    shifted = pitch_shift(waveform, n_semitones=n_semitones, sample_rate=SAMPLE_RATE)
    assert peak_frequency(shifted) == pytest.approx(1000 * 2 ** (n_semitones / 12), abs=bin_width(waveform))


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
@pytest.mark.parametrize("level", [1.0, 1e-4])
def test_noise_has_exactly_the_ratio_asked_for(rng, snr_db, level):
    waveform = sine(440) * np.float32(level)
    noise = add_noise(waveform, snr_db=snr_db, rng=rng).astype(np.float64) - waveform
    realised_db = 10 * np.log10(np.mean(waveform.astype(np.float64) ** 2) / np.mean(noise ** 2))
    assert realised_db == pytest.approx(snr_db, abs=SNR_ATOL_DB)


def test_noise_is_white(rng):
    waveform = sine(440, n_samples=2 ** 15)
    power = np.abs(np.fft.rfft(add_noise(waveform, snr_db=10, rng=rng) - waveform)) ** 2
    quarters = [part.mean() for part in np.array_split(power, 4)]
    # the mean of 4096 exponential values has a standard error of 1.6 %
    np.testing.assert_allclose(quarters, np.mean(quarters), rtol=0.08)


def test_noise_on_silence_is_a_silent_copy(rng):
    silent = np.zeros(100, dtype=np.float32)
    result = add_noise(silent, snr_db=10, rng=rng)
    assert not result.any() and result is not silent


def test_gain_of_six_db_doubles_and_does_not_clip():
    waveform = np.array([0.25, -0.9], dtype=np.float32)
    np.testing.assert_allclose(change_gain(waveform, gain_db=6.0206), [0.5, -1.8], rtol=FLOAT32_RTOL)


@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=4)))
def test_draw_takes_enabled_transforms_only_and_at_least_one(rng, switches):
    config = AugmentationConfig(**dict(zip(OFF, switches)))
    enabled = {name for name, on in zip(("rate", "n_semitones", "snr_db", "gain_db"), switches) if on}
    seen = set()
    for _ in range(60):
        drawn = dataclasses.asdict(draw_waveform_parameters(config, rng=rng))
        taken = {name for name, value in drawn.items() if value is not None}
        assert bool(taken) == bool(enabled)
        seen |= taken
    assert seen == enabled


def test_draw_takes_each_transform_as_often_as_its_probability_says(rng):
    drawn = [draw_waveform_parameters(AugmentationConfig(), rng=rng) for _ in range(4000)]
    # four fair coins, and one side turned when all fail: 1/2 + (1/2)^4 / 4 = 0.515625; standard error 0.008
    for name in ("rate", "n_semitones", "gain_db", "snr_db"):
        share = np.mean([getattr(parameters, name) is not None for parameters in drawn])
        assert share == pytest.approx(0.515625, abs=0.03)


def test_draw_fills_its_range_and_stays_inside(rng):
    config = AugmentationConfig(time_stretch_range=(0.5, 0.6), pitch_shift_range=(3.0, 4.0),
                                gain_db_range=(-2.0, -1.0), noise_snr_db_range=(40.0, 50.0))
    drawn = [draw_waveform_parameters(config, rng=rng) for _ in range(400)]
    for name, (low, high) in (("rate", (0.5, 0.6)), ("n_semitones", (3, 4)), ("gain_db", (-2, -1)),
                              ("snr_db", (40, 50))):
        values = [getattr(parameters, name) for parameters in drawn if getattr(parameters, name) is not None]
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


def test_transforms_are_applied_in_order(monkeypatch, rng):
    calls = []

    def recorder(name):
        def transform(waveform, **parameters):
            calls.append((name, {key: value for key, value in parameters.items() if key != "rng"}))
            return waveform
        return transform

    for name in ("add_noise", "change_gain", "pitch_shift", "time_stretch"):
        monkeypatch.setattr(augmentation, name, recorder(name))
    parameters = WaveformParameters(rate=1.1, n_semitones=2.0, gain_db=-3.0, snr_db=15.0)
    apply_waveform_parameters(sine(440), parameters, sample_rate=SAMPLE_RATE, rng=rng)
    assert calls == [("time_stretch", {"rate": 1.1}), ("pitch_shift", {"n_semitones": 2.0, "sample_rate": SAMPLE_RATE}),
                     ("change_gain", {"gain_db": -3.0}), ("add_noise", {"snr_db": 15.0})]


def test_pipeline_with_nothing_enabled_returns_a_copy(rng):
    waveform = sine(440)
    result = AudioAugmentationPipeline(**OFF).augment_waveform(waveform, sample_rate=SAMPLE_RATE, rng=rng)
    np.testing.assert_array_equal(result, waveform)
    assert not np.shares_memory(result, waveform)


def test_pipeline_repeats_itself_for_the_same_key():
    pipeline, waveform = AudioAugmentationPipeline(), sine(440)
    first, again, other = (
        pipeline.augment_waveform(waveform, sample_rate=SAMPLE_RATE, rng=np.random.default_rng(key))
        for key in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def ramp(*shape):
    return torch.arange(np.prod(shape), dtype=torch.float32).reshape(shape)


def test_pipeline_augments_spectrograms_by_a_shift_then_masks():
    log_mel, made = ramp(10, 20), AudioAugmentationPipeline.from_config
    config = AugmentationConfig(use_equaliser=False, use_low_pass=False)
    plain = made(config.replace(use_spec_augment=False, use_time_shift=False))
    assert torch.equal(plain.augment_log_mel(log_mel, rng=np.random.default_rng(0)), log_mel)

    shift_only = made(config.replace(use_spec_augment=False))
    shifted = shift_only.augment_log_mel(log_mel, rng=np.random.default_rng(0))
    expected = np.random.default_rng(0).integers(20)
    assert torch.equal(shifted, torch.roll(log_mel, int(expected), dims=1))

    both = made(config).augment_log_mel(log_mel, rng=np.random.default_rng(0))
    visible = both != log_mel.mean()
    assert 0 < visible.float().mean() < 1
    assert torch.equal(both[visible], shifted[visible])


def test_pipeline_mixes_only_when_asked_to(rng):
    inputs, targets = ramp(4, 2, 3), torch.eye(4)
    off = AudioAugmentationPipeline(use_mixup=False).mix(inputs, targets, rng=rng)
    assert all(map(torch.equal, off, (inputs, targets)))
    expected = mixup(inputs, targets, alpha=0.7, rng=np.random.default_rng(2))
    mixed = AudioAugmentationPipeline(mixup_alpha=0.7).mix(inputs, targets, rng=np.random.default_rng(2))
    assert all(map(torch.equal, mixed, expected))
    assert not torch.equal(mixed[1], targets)


def test_pipeline_takes_its_defaults_from_the_configuration():
    assert AudioAugmentationPipeline().config == AugmentationConfig()
    config = AugmentationConfig(gain_db_range=(-1.0, 1.0), n_time_masks=0)
    assert AudioAugmentationPipeline.from_config(config).config is config


def test_a_pipeline_of_a_configuration_works_by_it(rng):
    config = AugmentationConfig(use_time_shift=False, n_freq_masks=0, n_time_masks=0, use_equaliser=False,
                                use_low_pass=False)
    log_mel = ramp(10, 20)
    assert torch.equal(AudioAugmentationPipeline.from_config(config).augment_log_mel(log_mel, rng=rng), log_mel)
    shifted = AudioAugmentationPipeline.from_config(config.replace(use_time_shift=True)).augment_log_mel(
        log_mel, rng=np.random.default_rng(0))
    expected = np.random.default_rng(0).integers(20)
    assert torch.equal(shifted, torch.roll(log_mel, int(expected), dims=1))


def test_pipeline_is_built_as_documented():
    pipeline = AudioAugmentationPipeline(
        use_time_stretch=True, use_pitch_shift=True, use_noise=True, use_volume=True, use_spec_augment=True,
        use_mixup=True, spec_augment_config={"freq_mask_param": 31, "time_mask_param": 41}, mixup_alpha=0.3)
    assert pipeline.config == AugmentationConfig(freq_mask_param=31, time_mask_param=41, mixup_alpha=0.3)


@pytest.mark.parametrize("spec_augment_config, message", [
    ({"freq_mask": 3}, "unknown setting 'freq_mask' in spec_augment_config: choose from freq_mask_param"),
    ({"mixup_alpha": 0.5}, "unknown setting 'mixup_alpha' in spec_augment_config"),
    ({"n_time_masks": -1}, "n_time_masks must not be negative, got -1"),
])
def test_pipeline_refuses_impossible_masks(spec_augment_config, message):
    with pytest.raises(ConfigError, match=message):
        AudioAugmentationPipeline(spec_augment_config=spec_augment_config)
