import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import data_augmentation as augmentation
from models.audio_frontend import LogMelFrontend
from models.batch_augmentation import mixup
from models.data_augmentation import (AudioAugmentationPipeline, WaveformParameters, apply_waveform_parameters,
                                      draw_waveform_parameters, log_mel_of_parameters)
from models.efficientnet_config import WAVEFORM_SETTINGS, AugmentationConfig, FrontendConfig
from models.errors import ConfigError
from models.waveform_augmentation import N_EQUALISER_BANDS, pitch_shift, time_stretch
from tests.models.augmented_calls import distance, warbling_call
from utils.audio.recordings import load_audio

SAMPLE_RATE = 22050
OFF = dict.fromkeys(("use_time_stretch", "use_pitch_shift", "use_noise", "use_volume"), False)
ALL_ON = AugmentationConfig(use_waveform_equaliser=True)
SWITCHES = {"rate": "use_time_stretch", "n_semitones": "use_pitch_shift", "background_snr_db": "use_background",
            "snr_db": "use_noise", "band_gains_db": "use_waveform_equaliser", "gain_db": "use_volume"}
SHAPING = set(SWITCHES) - {"gain_db"}

FRONTEND = LogMelFrontend(FrontendConfig(segment_duration_ms=4000))
SMALL = FrontendConfig(sample_rate=1000, n_fft=32, hop_length=8, n_mels=4, f_min=0.0, f_max=500.0,
                       segment_duration_ms=64)
SUM_TOLERANCE_DB = 1.0  # powers are added, not waveforms: two sounds equally loud in a cell meet at any phase
EQUALISER_TOLERANCE_DB = 0.3  # the gain within a mel band is taken to be that of its middle
ROUNDING_DB = 1e-3  # float32 in another order
TRUTH_TOLERANCE_DB = 1.0  # a frame of a faster sweep sweeps further than one of the sweep it was taken from
# The vocoder leaves noise 3 dB too quiet, and is 2.1 dB from itself where a recording begins half a hop later. Once its
# loss of level is taken off, 3 dB on the average of recordings is about as near as it can tell.
VOCODER_TOLERANCE_DB, VOCODER_LEVEL_DB = 3.0, 4.0


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def sine(frequency, *, n_samples=SAMPLE_RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(n_samples) / SAMPLE_RATE)).astype(np.float32)


def call(**changes):
    return warbling_call(FRONTEND.config, **changes)


def taken(parameters):
    return {name for name, value in dataclasses.asdict(parameters).items() if value is not None}


# the draw

@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=len(SWITCHES))))
def test_draw_takes_enabled_transforms_only_and_at_least_one_that_shapes(rng, switches):
    config = AugmentationConfig(**dict(zip(SWITCHES.values(), switches)))
    enabled = {name for name, on in zip(SWITCHES, switches) if on}
    seen = set()
    for _ in range(60):
        names = taken(draw_waveform_parameters(config, rng=rng, with_background=True))
        assert bool(names) == bool(enabled)
        assert bool(names & SHAPING) == bool(enabled & SHAPING)
        seen |= names
    assert seen == enabled


def test_background_is_drawn_only_where_there_is_one(rng):
    only_background = AugmentationConfig(**OFF)
    assert taken(draw_waveform_parameters(only_background, rng=rng, with_background=True)) == {"background_snr_db"}
    for config in (only_background, only_background.replace(use_volume=True)):
        assert taken(draw_waveform_parameters(config, rng=rng)) <= {"gain_db"}


def test_draw_takes_each_transform_as_often_as_its_probability_says(rng):
    drawn = [taken(draw_waveform_parameters(ALL_ON, rng=rng, with_background=True)) for _ in range(4000)]
    # fair coins; where those of the five that shape all fail, one is turned: 1/2 + (1/2)^5 / 5 = 0.50625;
    # standard error 0.008
    for name in SWITCHES:
        share = np.mean([name in names for names in drawn])
        assert share == pytest.approx(0.5 if name == "gain_db" else 0.50625, abs=0.03)


def test_the_transform_that_is_drawn_when_all_coins_fail_is_any_of_those_enabled(rng):
    config = AugmentationConfig(**{**OFF, "use_pitch_shift": True, "use_noise": True})
    drawn = [taken(draw_waveform_parameters(config, rng=rng)) for _ in range(2000)]
    # 1/2 + (1/2)^2 / 2 = 0.625; standard error 0.011
    for name in ("n_semitones", "snr_db"):
        assert np.mean([name in names for names in drawn]) == pytest.approx(0.625, abs=0.05)


def test_draw_fills_its_range_and_stays_inside(rng):
    ranges = {"rate": (0.5, 0.6), "n_semitones": (3.0, 4.0), "background_snr_db": (1.0, 2.0), "snr_db": (40.0, 50.0),
              "band_gains_db": (-5.0, -4.0), "gain_db": (-2.0, -1.0)}
    config = ALL_ON.replace(**dict(zip(
        ("time_stretch_range", "pitch_shift_range", "background_snr_db_range", "noise_snr_db_range",
         "equaliser_gain_db_range", "gain_db_range"), ranges.values())))
    drawn = [draw_waveform_parameters(config, rng=rng, with_background=True) for _ in range(400)]
    for name, (low, high) in ranges.items():
        values = np.concatenate([np.atleast_1d(getattr(one, name)) for one in drawn if name in taken(one)])
        assert low <= min(values) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < max(values) <= high


def test_each_octave_has_a_gain_of_its_own(rng):
    config = AugmentationConfig(**OFF, use_waveform_equaliser=True)
    gains = draw_waveform_parameters(config, rng=rng).band_gains_db
    assert len(set(gains)) == len(gains) == N_EQUALISER_BANDS


@pytest.mark.parametrize("name", SWITCHES)
def test_switching_one_transform_off_leaves_the_others_as_they_were(name):
    for seed in range(40):
        everything = draw_waveform_parameters(ALL_ON, rng=np.random.default_rng(seed), with_background=True)
        fewer = draw_waveform_parameters(ALL_ON.replace(**{SWITCHES[name]: False}), rng=np.random.default_rng(seed),
                                         with_background=True)
        if taken(everything) - {name} & SHAPING:
            assert fewer == dataclasses.replace(everything, **{name: None})


def test_transforms_are_applied_in_order(monkeypatch, rng):
    calls = []

    def recorder(name):
        def transform(waveform, *arrays, **parameters):
            calls.append((name, {key: value for key, value in parameters.items() if key != "rng"}))
            return waveform
        return transform

    for name in ("add_noise", "change_gain", "equalise", "mix_background", "pitch_shift", "time_stretch"):
        monkeypatch.setattr(augmentation, name, recorder(name))
    gains = tuple(np.arange(N_EQUALISER_BANDS, dtype=float))
    parameters = WaveformParameters(rate=1.1, n_semitones=2.0, background_snr_db=6.0, snr_db=15.0,
                                    band_gains_db=gains, gain_db=-3.0)
    apply_waveform_parameters(sine(440), parameters, sample_rate=SAMPLE_RATE, rng=rng, background=sine(100))
    equaliser = calls.pop(4)
    assert calls == [("time_stretch", {"rate": 1.1}), ("pitch_shift", {"n_semitones": 2.0, "sample_rate": SAMPLE_RATE}),
                     ("mix_background", {"snr_db": 6.0}), ("add_noise", {"snr_db": 15.0}),
                     ("change_gain", {"gain_db": -3.0})]
    assert equaliser[0] == "equalise" and tuple(equaliser[1]["band_gains_db"]) == gains


# the log-mel of a draw

def log_mel_of(clip, *, background=None, seed=0, **parameters):
    return log_mel_of_parameters(clip, WaveformParameters(**parameters), frontend=FRONTEND,
                                 rng=np.random.default_rng(seed), background=background)


def waveform_log_mel_of(clip, *, background=None, seed=0, **parameters):
    return FRONTEND.log_mel(apply_waveform_parameters(
        FRONTEND.fit_length(clip), WaveformParameters(**parameters), sample_rate=SAMPLE_RATE,
        rng=np.random.default_rng(seed), background=background))


def test_an_empty_draw_gives_the_front_ends_own_log_mel():
    np.testing.assert_array_equal(log_mel_of(call()), FRONTEND.log_mel(call()))
    np.testing.assert_array_equal(log_mel_of(sine(440)), FRONTEND.log_mel(sine(440)))


@pytest.mark.parametrize("rate", [0.85, 1.18])
def test_a_stretched_call_is_the_call_at_that_speed(rate):
    truth = FRONTEND.log_mel(call(rate=rate))
    ours = distance(log_mel_of(call(), rate=rate), truth)
    assert ours.median < TRUTH_TOLERANCE_DB
    assert 3 * ours.median < distance(FRONTEND.log_mel(time_stretch(call(), rate=rate)), truth).median


@pytest.mark.parametrize("n_semitones", [-7.0, -2.0, 2.0, 7.0])
def test_a_shifted_call_is_the_call_at_that_pitch(n_semitones):
    truth = FRONTEND.log_mel(call(frequency_ratio=2 ** (n_semitones / 12)))
    ours = distance(log_mel_of(call(), n_semitones=n_semitones), truth)
    assert ours.median < TRUTH_TOLERANCE_DB
    vocoder = FRONTEND.log_mel(pitch_shift(call(), n_semitones=n_semitones, sample_rate=SAMPLE_RATE))
    assert 3 * ours.median < distance(vocoder, truth).median


@pytest.mark.parametrize("rate", [0.8, 1.25])
def test_a_stretched_tone_keeps_its_band_and_begins_at_its_time_over_the_rate(rate):
    clip = np.zeros(FRONTEND.config.segment_samples, dtype=np.float32)
    clip[SAMPLE_RATE:2 * SAMPLE_RATE] = sine(2000)
    mel_power = FRONTEND.mel_power(clip, rate=rate)
    band = np.argmax(mel_power.sum(axis=1))
    assert band == np.argmin(np.abs(FRONTEND.band_hertz - 2000))
    sounding = np.flatnonzero(mel_power[band] > mel_power[band].max() / 4)  # half the amplitude: half a frame is in it
    edges = np.array([1.0, 2.0]) / rate * SAMPLE_RATE / FRONTEND.config.hop_length
    np.testing.assert_allclose(sounding[[0, -1]], edges, atol=1)


@pytest.mark.parametrize("n_semitones", [-12.0, -2.0, 1.5, 7.0])
@pytest.mark.parametrize("frequency", [440, 3000])
def test_a_shifted_tone_stands_in_the_band_of_its_new_frequency(n_semitones, frequency):
    tone = sine(frequency, n_samples=FRONTEND.config.segment_samples)
    expected = FRONTEND.log_mel(sine(frequency * 2 ** (n_semitones / 12), n_samples=len(tone)))[:, 50]
    shifted = log_mel_of(tone, n_semitones=n_semitones)[:, 50]
    assert shifted.argmax() == expected.argmax()
    assert shifted.max() == pytest.approx(expected.max(), abs=TRUTH_TOLERANCE_DB)


def test_a_shift_loses_what_leaves_the_bands_and_leaves_nothing_where_nothing_comes_to(rng):
    high = sine(10500, n_samples=FRONTEND.config.segment_samples)
    middle = slice(5, -5)  # at its ends the tone breaks off, which sounds at every frequency
    kept, lost = (FRONTEND.mel_power(high, frequency_ratio=ratio)[:, middle].sum() for ratio in (1.0, 2 ** (2 / 12)))
    assert lost < 1e-6 * kept
    noise = rng.standard_normal(FRONTEND.config.segment_samples).astype(np.float32)
    ratio = 2 ** (-2 / 12)
    lowered = FRONTEND.mel_power(noise, frequency_ratio=ratio)
    band_widths = np.diff(FRONTEND.band_hertz).max()
    beyond = FRONTEND.band_hertz > ratio * SAMPLE_RATE / 2 + band_widths
    assert beyond.any() and not lowered[beyond].any() and lowered[~beyond].all()
    log_mel = log_mel_of(noise, n_semitones=-2.0)
    assert (log_mel[beyond] == log_mel.max() - np.float32(FRONTEND.config.top_db)).all()


def test_noise_and_background_fill_what_a_shift_empties(rng):
    noise = rng.standard_normal(FRONTEND.config.segment_samples).astype(np.float32)
    for surroundings in ({"snr_db": 20.0}, {"background_snr_db": 20.0, "background": noise[::-1]}):
        log_mel = log_mel_of(noise, n_semitones=-2.0, **surroundings)
        assert np.median(log_mel[-1] - log_mel[60]) == pytest.approx(-20, abs=SUM_TOLERANCE_DB + 0.5)  # 2 semitones


def test_noise_is_heard_over_the_whole_window_of_a_short_clip(rng):
    frontend = LogMelFrontend(FRONTEND.config.replace(padding="zeros"))
    log_mel = log_mel_of_parameters(sine(440), WaveformParameters(snr_db=8.0), frontend=frontend, rng=rng)
    assert (log_mel[:, -20:] > log_mel.max() - frontend.config.top_db).all()


@pytest.mark.parametrize("transform", [{"rate": 0.85}, {"rate": 1.18}, {"n_semitones": -2.0}, {"n_semitones": 2.0}])
def test_a_change_of_speed_or_pitch_keeps_the_power_of_noise(rng, transform):
    noise = rng.standard_normal(FRONTEND.config.segment_samples).astype(np.float32)
    log_mel, plain = log_mel_of(noise, **transform), FRONTEND.log_mel(noise)
    density_db = 10 * transform.get("n_semitones", 0) / 12 * np.log10(2)  # the same power over a wider band
    found_db = 10 * np.log10(np.mean(10 ** (log_mel[:100] / 10)) / np.mean(10 ** (plain[:100] / 10)))
    assert found_db == pytest.approx(-density_db, abs=0.1)  # 100 bands of 173 frames: some 0.05 dB at four to a window


def test_a_clip_that_becomes_too_short_is_repeated(rng):
    noise = rng.standard_normal(FRONTEND.config.segment_samples).astype(np.float32)
    rate = len(noise) / (100 * FRONTEND.config.hop_length)  # a fast copy is 100 frames long
    assert 1 < rate < 2 and FRONTEND.config.n_frames > 170
    mel_power = FRONTEND.mel_power(noise, rate=rate)
    # but for the first two frames, before which there is nothing
    np.testing.assert_array_equal(mel_power[:, 102:170], mel_power[:, 2:70])
    assert not np.array_equal(mel_power[:, 101:169], mel_power[:, 2:70])


@pytest.mark.parametrize(("parameters", "tolerance_db"), [
    ({"snr_db": 8.0}, SUM_TOLERANCE_DB), ({"background_snr_db": 5.0}, SUM_TOLERANCE_DB),
    ({"band_gains_db": (9.0, -9.0) * 4}, EQUALISER_TOLERANCE_DB), ({"gain_db": -7.0}, ROUNDING_DB),
    ({"background_snr_db": 10.0, "snr_db": 10.0, "band_gains_db": (0.0, 6.0) * 4, "gain_db": 3.0}, SUM_TOLERANCE_DB),
])
@pytest.mark.parametrize("n_samples", [FRONTEND.config.segment_samples, SAMPLE_RATE], ids=["whole", "short"])
def test_what_is_no_matter_of_the_vocoder_is_as_on_the_waveform(rng, parameters, tolerance_db, n_samples):
    background = np.cumsum(rng.standard_normal(3 * SAMPLE_RATE)).astype(np.float32)
    found, expected = (road(call()[:n_samples], background=background, **parameters)
                       for road in (log_mel_of, waveform_log_mel_of))
    assert distance(found, expected).median < tolerance_db


@pytest.mark.data
@pytest.mark.parametrize("transform", [{"rate": 0.85}, {"rate": 1.18}, {"n_semitones": -2.0}, {"n_semitones": 2.0}])
def test_real_recordings_are_near_to_the_vocoder(real_data, transform):
    clips = [FRONTEND.fit_length(load_audio(path, sample_rate=SAMPLE_RATE))
             for path in sorted((real_data / "wildlife").glob("*/*.ogg"))[::40]]
    distances = [distance(log_mel_of(clip, **transform), waveform_log_mel_of(clip, **transform))
                 for clip in clips if clip.any()]
    assert len(distances) > 10
    assert np.mean([one.beside_level for one in distances]) < VOCODER_TOLERANCE_DB
    assert 0 < np.mean([one.level for one in distances]) < VOCODER_LEVEL_DB


@pytest.mark.parametrize("rate", [1e-6, 0.08, 0.97, 7.3])
@pytest.mark.parametrize("n_fft", [31, 32])
@pytest.mark.parametrize("edge_mode", ["constant", "reflect"])
def test_every_frame_of_any_speed_is_there(rng, rate, n_fft, edge_mode):
    config = SMALL.replace(n_fft=n_fft, hop_length=1, edge_mode=edge_mode)
    mel_power = LogMelFrontend(config).mel_power(1 + rng.random(64, dtype=np.float32), rate=rate)
    assert mel_power.shape == (config.n_mels, config.n_frames)
    assert mel_power[0].all()


SMALL_CONFIGS = st.builds(
    SMALL.replace, n_fft=st.sampled_from([31, 32]), hop_length=st.sampled_from([5, 8, 31]),
    edge_mode=st.sampled_from(["constant", "reflect"]), padding=st.sampled_from(["repeat", "zeros"]),
    segment_duration_ms=st.integers(40, 70))
SMALL_SOUNDS = st.builds(lambda seed, n, level: (level * np.random.default_rng(seed).standard_normal(n)).astype("f4"),
                         st.integers(0, 99), st.integers(1, 150), st.sampled_from([0.0, 1e-6, 1.0]))
WIDE = ALL_ON.replace(time_stretch_range=(0.02, 5.0), pitch_shift_range=(-24.0, 24.0), noise_snr_db_range=(-20.0, 60.0))


@given(config=SMALL_CONFIGS, clip=SMALL_SOUNDS, background=st.none() | SMALL_SOUNDS, seed=st.integers(0, 999))
def test_any_clip_has_an_augmented_log_mel_and_the_seed_says_which(config, clip, background, seed):
    kept = clip.copy(), None if background is None else background.copy()
    pipeline, frontend = AudioAugmentationPipeline.from_config(WIDE), LogMelFrontend(config)
    first, again = (pipeline.augmented_log_mel(clip, frontend=frontend, rng=np.random.default_rng(seed),
                                               background=background) for _ in range(2))
    assert first.shape == (config.n_mels, config.n_frames) and first.dtype == np.float32
    assert np.isfinite(first).all() and first.min() >= first.max() - config.top_db - ROUNDING_DB
    assert first.tobytes() == again.tobytes()
    np.testing.assert_array_equal(clip, kept[0])
    assert background is None or np.array_equal(background, kept[1])


def test_augmented_log_mels_are_those_of_the_draw_and_differ(rng):
    pipeline, background = AudioAugmentationPipeline(), sine(200)
    made = [pipeline.augmented_log_mel(call(), frontend=FRONTEND, rng=np.random.default_rng(seed),
                                       background=background) for seed in range(8)]
    for seed, log_mel in enumerate(made):
        again = np.random.default_rng(seed)
        parameters = draw_waveform_parameters(pipeline.config, rng=again, with_background=True)
        np.testing.assert_array_equal(log_mel, log_mel_of_parameters(call(), parameters, frontend=FRONTEND, rng=again,
                                                                     background=background))
    plain = FRONTEND.log_mel(call())
    # a level alone would leave a constant difference; the network's normaliser takes that off
    assert all(np.std(log_mel - plain) > 1 for log_mel in made)
    assert len({log_mel.tobytes() for log_mel in made}) == len(made)


def test_augmented_waveforms_are_those_of_the_same_draw():
    pipeline, background = AudioAugmentationPipeline(), sine(200)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        parameters = draw_waveform_parameters(pipeline.config, rng=rng, with_background=True)
        expected = apply_waveform_parameters(sine(440), parameters, sample_rate=SAMPLE_RATE, rng=rng,
                                             background=background)
        found = pipeline.augment_waveform(sine(440), sample_rate=SAMPLE_RATE, rng=np.random.default_rng(seed),
                                          background=background)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("changes", "with_background", "varied"), [
    ({}, False, True), (OFF, True, True), (OFF, False, False), ({**OFF, "use_volume": True}, False, False),
    ({**OFF, "use_volume": True}, True, True), ({**OFF, "use_background": False}, True, False),
    ({**OFF, "use_waveform_equaliser": True}, False, True),
])
def test_copies_that_would_equal_their_windows_are_refused(changes, with_background, varied):
    pipeline = AudioAugmentationPipeline.from_config(AugmentationConfig(**changes))
    if varied:
        pipeline.require_variety(with_background=with_background)
    else:
        with pytest.raises(ConfigError, match="augmented copies would equal their windows.*switch on use_time_stretch"):
            pipeline.require_variety(with_background=with_background)


def test_a_copy_depends_on_every_setting_that_its_draw_reads():
    read = set()

    class Watched(AugmentationConfig):
        def __getattribute__(self, name):
            if name.startswith("use_") or name.endswith("_range"):
                read.add(name)
            return super().__getattribute__(name)

    config = Watched()
    read.clear()
    draw_waveform_parameters(config, rng=np.random.default_rng(0), with_background=True)
    assert read == set(WAVEFORM_SETTINGS)


def test_a_configuration_of_before_the_equaliser_and_the_background_can_be_read():
    old = {name: value for name, value in AugmentationConfig().to_dict().items()
           if name not in ("use_background", "use_waveform_equaliser")}
    assert AugmentationConfig.from_dict(old) == AugmentationConfig()


# the pipeline

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
    off = AudioAugmentationPipeline(use_mixup=False, mixup_alpha=0.7).mix(inputs, targets, rng=rng)
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
