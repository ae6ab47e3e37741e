"""What may be done to a waveform: stretched, shifted, mixed with noise or background, coloured, made louder.

Every function takes what it needs as arguments and leaves its input alone. Randomness is a ``np.random.Generator``
handed in, so one key gives one result, whatever ran before.
"""

import librosa
import numpy as np
import scipy.fft

from models.sound_variation import fill

N_EQUALISER_BANDS = 8  # an octave each: down to 86 Hz at 22 050 Hz


def time_stretch(waveform: np.ndarray, *, rate: float) -> np.ndarray:
    """Play faster or slower with the pitch unchanged, then fit to the original length.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    rate : float
        Speed, above 0: 2 is twice as fast. A result too short is repeated, one too long is cut.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``.
    """
    stretched = librosa.effects.time_stretch(waveform, rate=rate)
    return np.resize(stretched, waveform.shape).astype(waveform.dtype, copy=False)


def pitch_shift(waveform: np.ndarray, *, n_semitones: float, sample_rate: int) -> np.ndarray:
    """Multiply every frequency by ``2 ** (n_semitones / 12)`` with the duration unchanged.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    n_semitones : float
        Twelfths of an octave, negative is lower.
    sample_rate : int
        Hz.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``.
    """
    shifted = librosa.effects.pitch_shift(waveform, sr=sample_rate, n_steps=n_semitones)
    return shifted.astype(waveform.dtype, copy=False)


def add_noise(waveform: np.ndarray, *, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Add white Gaussian noise, scaled so that this very waveform has the signal-to-noise ratio asked for.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    snr_db : float
        Mean power of the waveform over mean power of the noise, in dB.
    rng : np.random.Generator
        Source of the noise.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``; a copy of the input where that is silent, for silence has no such ratio.
    """
    return _mix(waveform, rng.standard_normal(waveform.shape), snr_db=snr_db)


def mix_background(waveform: np.ndarray, background: np.ndarray, *, snr_db: float,
                   rng: np.random.Generator) -> np.ndarray:
    """Mix in a random excerpt of a recording, scaled so that it has the signal-to-noise ratio asked for.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    background : np.ndarray
        float32 ``(n_background_samples,)``, at least one sample; repeated from a random place where it is the shorter.
    snr_db : float
        Mean power of the waveform over mean power of the excerpt, in dB.
    rng : np.random.Generator
        Source of the place.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``; a copy of the input where that or the excerpt is silent.
    """
    return _mix(waveform, fill(background, n_samples=len(waveform), rng=rng), snr_db=snr_db)


def _mix(waveform: np.ndarray, added: np.ndarray, *, snr_db: float) -> np.ndarray:
    # float64: the squares of a quiet float32 recording would lose digits
    power, added_power = (np.mean(np.square(sound, dtype=np.float64)) for sound in (waveform, added))
    if added_power == 0:
        return waveform.copy()
    return (waveform + added * np.sqrt(power / added_power / 10 ** (snr_db / 10))).astype(waveform.dtype)


def equaliser_gains_db(hertz: np.ndarray, band_gains_db: np.ndarray, *, sample_rate: int) -> np.ndarray:
    """Return the gain of an equaliser, which goes over smoothly from octave to octave.

    Parameters
    ----------
    hertz : np.ndarray
        Frequencies in 0..sample_rate / 2, of any shape.
    band_gains_db : np.ndarray
        ``(n_bands,)``, dB: the first at half the sample rate, each of the others an octave lower.
    sample_rate : int
        Hz.

    Returns
    -------
    np.ndarray
        float64, dB, shape of ``hertz``; below the lowest band its gain.
    """
    gains = np.append(band_gains_db, band_gains_db[-1])
    highest, lowest = sample_rate / 2, sample_rate / 2 ** len(band_gains_db)
    octaves_down = np.log2(highest / np.maximum(hertz, lowest))
    above = octaves_down.astype(np.intp)
    share = 0.5 - 0.5 * np.cos(np.pi * (octaves_down - above))
    return gains[above] + share * (gains[above + 1] - gains[above])


def equalise(waveform: np.ndarray, *, band_gains_db: np.ndarray, sample_rate: int) -> np.ndarray:
    """Colour a waveform, as another microphone or distance does.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    band_gains_db : np.ndarray
        ``(n_bands,)``, dB, as ``equaliser_gains_db`` takes them.
    sample_rate : int
        Hz.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``; the filter has no delay, and at the ends it wraps around.
    """
    hertz = np.fft.rfftfreq(len(waveform), 1 / sample_rate)
    gains = 10 ** (equaliser_gains_db(hertz, band_gains_db, sample_rate=sample_rate) / 20)
    return scipy.fft.irfft(scipy.fft.rfft(waveform) * gains, len(waveform)).astype(waveform.dtype)


def change_gain(waveform: np.ndarray, *, gain_db: float) -> np.ndarray:
    """Change the level without clipping.

    The result may exceed 1. That is fine here: the waveform stays in float32 and goes to a log-mel whose
    dynamic range hangs from the window's own maximum, where a gain is a constant offset. Clipping would add
    harmonics that the animal never sang.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    gain_db : float
        Change of level in dB.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``.
    """
    return waveform * waveform.dtype.type(10 ** (gain_db / 20))
