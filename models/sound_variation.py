"""Variety for distillation: the same audio mixed, shifted, resampled, filtered and masked.

Parameters are drawn first, then applied; every function is handed its generator. What comes out is what teacher and
student both hear, so any change is allowed that leaves a sound a sound.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
import soxr

PEAK = 0.5  # of full scale: a student that normalises each clip cannot know a level, so none is taught
_PLAIN_SHARE = 0.35  # of the windows are heard as they are: that is how the network will hear
_SPEED_OCTAVES = 0.7
_CURVE_POINTS_HERTZ = np.geomspace(60.0, 16000.0, 7)
_CURVE_DB = 12.0
_LOW_PASS_HERTZ = (1500.0, 15000.0)
_HIGH_PASS_HERTZ = (60.0, 2000.0)
_STEEP_DB = -80.0  # what a low- or high-pass leaves of the other side
_MIX_DB = (-12.0, 12.0)
_NOISE_DB = (-40.0, -6.0)
_NOISE_SLOPE = (-1.0, 0.25)  # exponent of its power over frequency: -1 is pink, 0 is white
_REPEATED_SHARE = (0.08, 0.7)
_MASKED_SHARE = (0.05, 0.4)
_SMALLEST = 1e-9  # below it nothing is made louder: silence stays silent


@dataclass(frozen=True, kw_only=True)
class Variation:
    """One draw of what is done to a window; None leaves a step out.

    Parameters
    ----------
    speed : float
        Playing speed: 2 is an octave higher and half as long.
    n_mixed : int
        Other pieces mixed in.
    repeated_share : float or None
        Share of the window that is kept and repeated, as short recordings are.
    masked : tuple of float or None
        Start and length of a silence, as shares of the window.
    curve_db : numpy.ndarray or None
        float64 ``(7,)``, gain at ``60 Hz .. 16 kHz``: another microphone, another distance.
    low_pass_hertz, high_pass_hertz : float or None
        Cut-off frequencies: another sample rate, a recorder's filter.
    noise_db, noise_slope : float or None
        Level below the window's own and colour of added noise.
    """

    speed: float
    n_mixed: int
    repeated_share: float | None
    masked: tuple[float, float] | None
    curve_db: np.ndarray | None
    low_pass_hertz: float | None
    high_pass_hertz: float | None
    noise_db: float | None
    noise_slope: float


def draw_variation(rng: np.random.Generator) -> Variation:
    """Draw how a window is varied.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the draw.
    """
    plain = rng.random() < _PLAIN_SHARE

    def sometimes(probability: float) -> bool:
        return bool(rng.random() < probability) and not plain

    low, high = np.log(_LOW_PASS_HERTZ), np.log(_HIGH_PASS_HERTZ)
    return Variation(
        speed=float(2 ** rng.uniform(-_SPEED_OCTAVES, _SPEED_OCTAVES)) if sometimes(0.5) else 1.0,
        n_mixed=0 if plain else int(rng.choice(3, p=(0.4, 0.4, 0.2))),
        repeated_share=float(rng.uniform(*_REPEATED_SHARE)) if sometimes(0.2) else None,
        masked=(float(rng.random()), float(rng.uniform(*_MASKED_SHARE))) if sometimes(0.2) else None,
        curve_db=rng.uniform(-_CURVE_DB, _CURVE_DB, len(_CURVE_POINTS_HERTZ)) if sometimes(0.5) else None,
        low_pass_hertz=float(np.exp(rng.uniform(*low))) if sometimes(0.25) else None,
        high_pass_hertz=float(np.exp(rng.uniform(*high))) if sometimes(0.15) else None,
        noise_db=float(rng.uniform(*_NOISE_DB)) if sometimes(0.3) else None,
        noise_slope=float(rng.uniform(*_NOISE_SLOPE)))


def change_speed(waveform: np.ndarray, *, speed: float) -> np.ndarray:
    """Play a waveform faster or slower, as a tape: pitch and duration change together.

    Parameters
    ----------
    waveform : numpy.ndarray
        float32 ``(n_samples,)``.
    speed : float
        Above 0; the result has about ``n_samples / speed`` samples, at least one.
    """
    if speed == 1.0:
        return waveform
    changed = soxr.resample(waveform, speed, 1.0, quality="LQ")
    return changed if len(changed) else waveform[:1]


def fill(waveform: np.ndarray, *, n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Cut a waveform at a random place to a length, or repeat it from a random place until it has it.

    Parameters
    ----------
    waveform : numpy.ndarray
        float32, at least one sample.
    n_samples : int
        Wanted length.
    rng : numpy.random.Generator
        Source of the place.
    """
    if len(waveform) >= n_samples:
        first = int(rng.integers(len(waveform) - n_samples + 1))
        return waveform[first:first + n_samples]
    return np.resize(np.roll(waveform, int(rng.integers(len(waveform)))), n_samples)


def blend(pieces: list[np.ndarray], *, rng: np.random.Generator) -> np.ndarray:
    """Add pieces of one length, each at a level drawn around the first one's.

    Parameters
    ----------
    pieces : list of numpy.ndarray
        float32 ``(n_samples,)`` each; silent ones add nothing.
    rng : numpy.random.Generator
        Source of the levels, in dB of mean power.
    """
    mixed = pieces[0] / np.float32(_rms(pieces[0]))
    for piece in pieces[1:]:
        gain = 10 ** (rng.uniform(*_MIX_DB) / 20)
        mixed = mixed + piece * np.float32(gain / _rms(piece))
    return mixed


def colour(waveform: np.ndarray, variation: Variation, *, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Filter a waveform and add coloured noise, both in one Fourier transform.

    Parameters
    ----------
    waveform : numpy.ndarray
        float32 ``(n_samples,)``.
    variation : Variation
        Its curve, filters and noise are applied.
    sample_rate : int
        Hz.
    rng : numpy.random.Generator
        Source of the noise.
    """
    if (variation.curve_db is None and variation.low_pass_hertz is None and variation.high_pass_hertz is None
            and variation.noise_db is None):
        return waveform
    spectrum = scipy.fft.rfft(waveform)
    hertz = np.fft.rfftfreq(len(waveform), 1 / sample_rate).astype(np.float32)
    if variation.noise_db is not None:
        shape = np.maximum(hertz, 20.0) ** (variation.noise_slope / 2)
        noise = scipy.fft.rfft(rng.standard_normal(len(waveform), dtype=np.float32)) * shape
        level = float(np.linalg.norm(spectrum)) / max(float(np.linalg.norm(noise)), _SMALLEST)
        level *= 10 ** (variation.noise_db / 20)
        spectrum = spectrum + noise * np.float32(level)
    gain_db = np.zeros_like(hertz)
    if variation.curve_db is not None:
        gain_db += np.interp(np.log(np.maximum(hertz, 1.0)), np.log(_CURVE_POINTS_HERTZ),
                             variation.curve_db).astype(np.float32)
    if variation.low_pass_hertz is not None:
        gain_db[hertz > variation.low_pass_hertz] += _STEEP_DB
    if variation.high_pass_hertz is not None:
        gain_db[hertz < variation.high_pass_hertz] += _STEEP_DB
    return scipy.fft.irfft(spectrum * np.float32(10) ** (gain_db / 20), len(waveform))


def vary(pieces: list[np.ndarray], variation: Variation, *, n_samples: int, sample_rate: int,
         rng: np.random.Generator) -> np.ndarray:
    """Apply one draw to some pieces of audio.

    Parameters
    ----------
    pieces : list of numpy.ndarray
        float32, of any lengths: what is heard, and ``variation.n_mixed`` others.
    variation : Variation
        From ``draw_variation``.
    n_samples : int
        Length of the result.
    sample_rate : int
        Hz, of pieces and result.
    rng : numpy.random.Generator
        Source of places, levels and noise.

    Returns
    -------
    numpy.ndarray
        float32 ``(n_samples,)`` with a peak of ``PEAK``; silence stays silent.
    """
    first = change_speed(pieces[0], speed=variation.speed)
    if variation.repeated_share is not None:
        first = fill(first, n_samples=max(1, round(variation.repeated_share * n_samples)), rng=rng)
    filled = [fill(piece, n_samples=n_samples, rng=rng) for piece in (first, *pieces[1:])]
    mixed = colour(blend(filled, rng=rng), variation, sample_rate=sample_rate, rng=rng)
    if variation.masked is not None:
        start, length = (round(share * n_samples) for share in variation.masked)
        mixed[start:start + length] = 0
    peak = float(np.abs(mixed).max())
    return (mixed * (PEAK / peak if peak > 0 else 0.0)).astype(np.float32)


def _rms(waveform: np.ndarray) -> float:
    return max(float(np.sqrt(np.mean(np.square(waveform), dtype=np.float32))), _SMALLEST)
