import numpy as np
import pytest

from models.efficientnet_config import DEFAULT_CLASS_NAMES
from models.errors import ConfigError
from utils.demo.sounds import PEAK, synthesise_recording

SAMPLE_RATE = 22050
N_EXAMPLES = 12  # of each class: with four equally likely kinds, each is missed with probability 0.03


def synthesise(class_name, seed, *, sample_rate=SAMPLE_RATE):
    return synthesise_recording(class_name, duration_seconds=5.0, sample_rate=sample_rate,
                                rng=np.random.default_rng(seed))


def band_shares(sound, *edges_hz, sample_rate=SAMPLE_RATE):
    """Return the share of the energy between each two neighbouring edges."""
    power = np.abs(np.fft.rfft(sound)) ** 2
    bins = np.round(np.array(edges_hz) * len(sound) / sample_rate).astype(int)
    return np.array([power[low:high].sum() for low, high in zip(bins, bins[1:])]) / power.sum()


def pulse_rate(sound, low, high):
    """Return the rate between two others, in Hz, at which the loudness changes most."""
    envelope = sound.astype(np.float64) ** 2
    rates = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    inside = (rates >= low) & (rates <= high)
    return rates[inside][np.argmax(np.abs(np.fft.rfft(envelope))[inside])]


@pytest.mark.parametrize("class_name", DEFAULT_CLASS_NAMES)
@pytest.mark.parametrize("sample_rate", [16000, 48000])
def test_recording_has_its_length_dtype_and_peak(class_name, sample_rate):
    sound = synthesise_recording(class_name, duration_seconds=3.2, sample_rate=sample_rate,
                                 rng=np.random.default_rng(0))
    assert sound.shape == (round(3.2 * sample_rate),) and sound.dtype == np.float32
    assert np.isfinite(sound).all()
    assert np.abs(sound).max() == pytest.approx(PEAK, rel=1e-6)


@pytest.mark.parametrize("class_name", DEFAULT_CLASS_NAMES)
def test_recording_depends_on_its_generator_alone(class_name):
    np.testing.assert_array_equal(synthesise(class_name, 3), synthesise(class_name, 3))
    assert not np.array_equal(synthesise(class_name, 3), synthesise(class_name, 4))


@pytest.mark.parametrize("class_name, low, high", [
    ("bird_song", 1900, 8500), ("mammal_call", 100, 5500), ("insect_sound", 2500, 10500),
    ("amphibian_call", 250, 9000), ("environmental_sound", 20, 9000), ("unknown_species", 20, 9500),
])
def test_energy_lies_in_the_band_of_the_class(class_name, low, high):
    for seed in range(N_EXAMPLES):
        assert band_shares(synthesise(class_name, seed), low, high).item() > 0.95


def test_birds_and_insects_are_high_and_mammals_and_frogs_low():
    high = {name: np.median([band_shares(synthesise(name, seed), 2500, 11025) for seed in range(N_EXAMPLES)])
            for name in ("bird_song", "insect_sound", "mammal_call", "amphibian_call")}
    assert min(high["bird_song"], high["insect_sound"]) > 0.7
    assert max(high["mammal_call"], high["amphibian_call"]) < 0.3


def test_insects_pulse_20_to_80_times_a_second():
    rates = [pulse_rate(synthesise("insect_sound", seed), 10, 300) for seed in range(N_EXAMPLES)]
    assert 19 < min(rates) < 35 and 65 < max(rates) < 81


def test_frogs_pulse_at_most_40_times_a_second():
    # below 4 Hz it is whole notes that come and go
    rates = [pulse_rate(synthesise("amphibian_call", seed), 4, 300) for seed in range(N_EXAMPLES)]
    assert min(rates) < 10 and 20 < max(rates) < 41


def test_no_partial_comes_near_the_nyquist_frequency_of_a_slow_recorder():
    for class_name in ("bird_song", "insect_sound"):
        for seed in range(N_EXAMPLES):
            sound = synthesise(class_name, seed, sample_rate=16000)
            assert band_shares(sound, 7700, 8000, sample_rate=16000).item() < 0.02


def test_unknown_class_is_refused():
    with pytest.raises(ConfigError, match="class_name must be one of bird_song, .* got 'whale'"):
        synthesise("whale", 0)
