import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from models.waveform_augmentation import (N_EQUALISER_BANDS, add_noise, change_gain, equalise, equaliser_gains_db,
                                          mix_background, pitch_shift, time_stretch)

SAMPLE_RATE = 22050
FLOAT32_RTOL = 1e-5  # a few roundings of float32 (6e-8 each) over a sum
SNR_ATOL_DB = 1e-3  # float32 rounding of the sum adds noise some 100 dB below the signal
CLICK_ATOL_SAMPLES = 1024  # the phase vocoder of librosa smears a click over half of its 2048-sample window
GAIN_ATOL_DB = 1e-3  # of a tone on a whole bin, through a float32 transform and back
SOUNDS = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1, 1, width=32))


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


def ratio_db(signal, added):
    signal, added = (np.asarray(sound, dtype=np.float64) for sound in (signal, added))
    return 10 * np.log10(np.mean(signal ** 2) / np.mean(added ** 2))


@pytest.mark.parametrize("transform", [
    lambda x: time_stretch(x, rate=0.8),
    lambda x: time_stretch(x, rate=1.3),
    lambda x: pitch_shift(x, n_semitones=-1.5, sample_rate=SAMPLE_RATE),
    lambda x: add_noise(x, snr_db=10, rng=np.random.default_rng(0)),
    lambda x: mix_background(x, sine(3000, n_samples=500), snr_db=10, rng=np.random.default_rng(0)),
    lambda x: equalise(x, band_gains_db=np.full(N_EQUALISER_BANDS, -6.0), sample_rate=SAMPLE_RATE),
    lambda x: change_gain(x, gain_db=3),
], ids=["slower", "faster", "pitch", "noise", "background", "equaliser", "gain"])
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
@pytest.mark.parametrize("level", [1.0, 1e-4, 1e-25])
def test_noise_has_exactly_the_ratio_asked_for(rng, snr_db, level):
    waveform = sine(440) * np.float32(level)
    noise = add_noise(waveform, snr_db=snr_db, rng=rng).astype(np.float64) - waveform
    assert ratio_db(waveform, noise) == pytest.approx(snr_db, abs=SNR_ATOL_DB)


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


@pytest.mark.parametrize("snr_db", [-5.0, 20.0])
@pytest.mark.parametrize("n_background_samples", [1, 300, SAMPLE_RATE, 3 * SAMPLE_RATE])
@pytest.mark.parametrize("level", [1.0, 1e-4, 1e-25])
def test_background_has_exactly_the_ratio_asked_for(rng, snr_db, n_background_samples, level):
    waveform, background = sine(440), np.float32(level) * (1 + sine(3000, n_samples=n_background_samples))
    added = mix_background(waveform, background, snr_db=snr_db, rng=rng).astype(np.float64) - waveform
    assert ratio_db(waveform, added) == pytest.approx(snr_db, abs=SNR_ATOL_DB)


def test_background_is_a_piece_of_the_recording_and_not_always_the_same(rng):
    waveform, background = np.ones(4, dtype=np.float32), np.arange(1, 10, dtype=np.float32)
    firsts = set()
    for _ in range(60):
        added = mix_background(waveform, background, snr_db=0, rng=rng) - waveform
        excerpt = added / (added[1] - added[0])  # neighbours of the recording differ by one
        np.testing.assert_allclose(excerpt, round(float(excerpt[0])) + np.arange(4), rtol=FLOAT32_RTOL)
        firsts.add(round(float(excerpt[0])))
    assert firsts == {1, 2, 3, 4, 5, 6}


def test_a_short_background_is_repeated(rng):
    waveform, background = np.ones(7, dtype=np.float32), np.array([1, 2, 4], dtype=np.float32)
    added = mix_background(waveform, background, snr_db=0, rng=rng) - waveform
    np.testing.assert_allclose(added[3:], added[:4], rtol=FLOAT32_RTOL)
    np.testing.assert_allclose(sorted(added[:3] / added.min()), [1, 2, 4], rtol=FLOAT32_RTOL)


@pytest.mark.parametrize(("waveform", "background"), [(np.zeros(5), np.ones(9)), (np.ones(5), np.zeros(9))])
def test_background_is_not_mixed_with_silence(rng, waveform, background):
    waveform = waveform.astype(np.float32)
    result = mix_background(waveform, background.astype(np.float32), snr_db=3, rng=rng)
    np.testing.assert_array_equal(result, waveform)
    assert not np.shares_memory(result, waveform)


@given(waveform=SOUNDS, background=SOUNDS, snr_db=st.floats(-20, 60), seed=st.integers(0, 9))
def test_any_background_can_be_mixed_in_and_the_seed_says_how(waveform, background, snr_db, seed):
    kept = waveform.copy(), background.copy()
    first, again = (mix_background(waveform, background, snr_db=snr_db, rng=np.random.default_rng(seed))
                    for _ in range(2))
    assert first.shape == waveform.shape and first.dtype == np.float32 and np.isfinite(first).all()
    assert first.tobytes() == again.tobytes()
    np.testing.assert_array_equal(waveform, kept[0])
    np.testing.assert_array_equal(background, kept[1])


def test_the_equaliser_has_a_band_in_each_octave_and_goes_over_smoothly():
    gains = np.array([6.0, -3.0, 0.0])
    hertz = np.array([4000, 2000, 1000, 300, 0, 4000 / np.sqrt(2), 4000 / 2 ** 0.25])
    quarter = 6 + (0.5 - 0.5 * np.cos(np.pi / 4)) * -9  # a quarter of the way from 6 to -3, on a raised cosine
    np.testing.assert_allclose(equaliser_gains_db(hertz, gains, sample_rate=8000),
                               [6, -3, 0, 0, 0, 1.5, quarter], atol=GAIN_ATOL_DB)


@pytest.mark.parametrize(("frequency", "gain_db"), [(SAMPLE_RATE / 4, -4.0), (SAMPLE_RATE / 8, 7.0), (20, 3.0)])
def test_equaliser_gives_a_tone_the_gain_of_its_octave(frequency, gain_db):
    waveform = sine(frequency, n_samples=2 * SAMPLE_RATE)  # so that each frequency is a whole bin
    coloured = equalise(waveform, band_gains_db=np.array([0, -4.0, 7.0, 3.0]), sample_rate=SAMPLE_RATE)
    assert ratio_db(coloured, waveform) == pytest.approx(gain_db, abs=GAIN_ATOL_DB)


def test_gain_of_six_db_doubles_and_does_not_clip():
    waveform = np.array([0.25, -0.9], dtype=np.float32)
    np.testing.assert_allclose(change_gain(waveform, gain_db=6.0206), [0.5, -1.8], rtol=FLOAT32_RTOL)
