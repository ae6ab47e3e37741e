"""Synthesised sounds of the six classes, from simple acoustic models.

Calls are whistles, harmonic stacks, pulse trains or shaped noise; what a recorder adds is not in them.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.fft
import scipy.interpolate
import scipy.signal

from models.errors import ConfigError

PEAK = 0.9
HIGHEST_SHARE = 0.45  # of the sample rate: no partial comes closer to the Nyquist frequency
DB_PER_DOUBLING = 20 * np.log10(2)
# F1, F2, F3 in Hz: Peterson and Barney (1952), "Control methods used in a study of the vowels", JASA 24(2), table II
VOWELS_HZ = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _n_samples(seconds: float, sample_rate: int) -> int:
    return max(1, round(seconds * sample_rate))


def _curve(points: Sequence[float] | np.ndarray, n_samples: int) -> np.ndarray:
    """Return a smooth line through evenly spaced points that never leaves their range."""
    curve = scipy.interpolate.PchipInterpolator(np.arange(len(points)), points)
    return curve(np.linspace(0, len(points) - 1, n_samples))


def _edges(n_samples: int, sample_rate: int, *, attack: float, release: float) -> np.ndarray:
    """Return an envelope that rises and falls in the given seconds."""
    t = np.arange(n_samples) / sample_rate
    rise, fall = np.minimum(t / attack, 1), np.minimum((t[-1] - t) / release, 1)
    return np.sin(np.pi / 2 * rise) ** 2 * np.sin(np.pi / 2 * fall) ** 2


def tone(frequency: np.ndarray, sample_rate: int, *, harmonics: Sequence[float] | np.ndarray = (1.0,)) -> np.ndarray:
    """Synthesise a tone with its harmonics, as far as the rate allows.

    Parameters
    ----------
    frequency : np.ndarray, float, shape (n_samples,)
        Fundamental at each sample, in Hz.
    sample_rate : int
        Hz.
    harmonics : sequence of float
        Amplitude of the fundamental, of twice its frequency, and so on.

    Returns
    -------
    np.ndarray, float64, shape (n_samples,)
        Within the sum of the amplitudes.
    """
    phase = 2 * np.pi * np.cumsum(frequency) / sample_rate
    highest = HIGHEST_SHARE * sample_rate
    sound = np.zeros(len(frequency))
    for k, amplitude in enumerate(harmonics, start=1):
        if amplitude and k * frequency.min() < highest:
            # faded, for a partial that ended at once would click
            sound += amplitude * np.sin(k * phase) * np.clip((highest - k * frequency) / (0.05 * highest), 0, 1)
    return sound


def shaped_noise(n_samples: int, sample_rate: int, rng: np.random.Generator, *, slope_db: float = 0.0,
                 band: tuple[float, float] = (20.0, np.inf), side_db: float = 24.0) -> np.ndarray:
    """Synthesise Gaussian noise of unit power.

    Parameters
    ----------
    n_samples : int
        Length.
    sample_rate : int
        Hz.
    rng : np.random.Generator
        Source of the noise.
    slope_db : float
        Tilt of the spectrum in dB per octave.
    band : tuple of float
        Lowest and highest frequency in Hz.
    side_db : float
        Fall beside the band in dB per octave.

    Returns
    -------
    np.ndarray, float64, shape (n_samples,)
        Mean square 1.
    """
    n_fft = scipy.fft.next_fast_len(n_samples, real=True)
    octave = np.log2(np.maximum(scipy.fft.rfftfreq(n_fft, 1 / sample_rate), 1))
    low, high = np.log2(band)
    gain_db = slope_db * octave - side_db * (np.maximum(low - octave, 0) + np.maximum(octave - high, 0))
    spectrum = scipy.fft.rfft(rng.standard_normal(n_fft)) * np.exp2((gain_db - gain_db.max()) / DB_PER_DOUBLING)
    noise = scipy.fft.irfft(spectrum, n=n_fft)[:n_samples]
    return noise / np.sqrt(np.mean(noise ** 2))


def _resonate(sound: np.ndarray, sample_rate: int, *, formants_hz: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return ``sound`` through a vocal tract: parallel resonances, each 6 dB below the one before."""
    resonances = (scipy.signal.iirpeak(f, 5, fs=sample_rate) for f in formants_hz)
    return sum((scipy.signal.lfilter(b, a, sound) * 0.5 ** k for k, (b, a) in enumerate(resonances)),
               start=np.zeros(len(sound)))


def _repeat(make_sound: Callable[[], np.ndarray], *, duration_seconds: float, sample_rate: int,
            pause_range: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Fill a track with sounds from a random onset on, with pauses (seconds) between them."""
    track = np.zeros(_n_samples(duration_seconds, sample_rate))
    start = _n_samples(rng.uniform(0, 0.25 * duration_seconds), sample_rate)
    while start < len(track):
        sound = make_sound()[:len(track) - start]
        track[start:start + len(sound)] += sound
        start += len(sound) + _n_samples(rng.uniform(*pause_range), sample_rate)
    return track


def _series(sounds: Sequence[np.ndarray], sample_rate: int, *, pause_range: tuple[float, float],
            rng: np.random.Generator) -> np.ndarray:
    """Join sounds with pauses (seconds) between them."""
    parts = [part for sound in sounds
             for part in (sound, np.zeros(_n_samples(rng.uniform(*pause_range), sample_rate)))]
    return np.concatenate(parts)


def _bird_song(duration_seconds: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Phrases of whistles and sweeps, a small repertoire in runs of one syllable."""
    base = rng.uniform(2500, 5200)

    def syllable():
        n = _n_samples(rng.uniform(0.06, 0.3), sample_rate)
        contour = base * 2 ** rng.uniform(-0.35, 0.6, size=rng.integers(2, 5))
        trill = 1 + rng.choice([0, 0.03, 0.07]) * np.sin(
            2 * np.pi * rng.uniform(25, 60) * np.arange(n) / sample_rate)
        harmonics = (1.0, 10 ** (rng.uniform(-35, -14) / 20))
        return (tone(_curve(contour, n) * trill, sample_rate, harmonics=harmonics)
                * _edges(n, sample_rate, attack=0.012, release=0.03) * rng.uniform(0.5, 1))

    repertoire = [syllable() for _ in range(rng.integers(2, 5))]
    tempo = rng.uniform(0.02, 0.12)

    def phrase():
        order = np.sort(rng.integers(len(repertoire), size=rng.integers(4, 13)))
        return _series([repertoire[i] for i in order], sample_rate, pause_range=(tempo, 1.5 * tempo), rng=rng)

    return _repeat(phrase, duration_seconds=duration_seconds, sample_rate=sample_rate, pause_range=(0.6, 2.5), rng=rng)


_MAMMAL_KINDS = (  # seconds, fundamental in Hz, breath, calls in a bout, glide in shares of the fundamental
    ((0.09, 0.25), (180, 450), 0.25, (2, 7), (0.8, 1.1, 0.7)),  # bark
    ((1.0, 2.6), (250, 750), 0.03, (1, 2), (0.6, 0.95, 1.0, 1.0, 0.75)),  # howl
    ((0.3, 0.8), (450, 900), 0.08, (1, 4), (0.85, 1.15, 0.9)),  # whine
    ((0.2, 0.5), (150, 220), 0.4, (2, 5), (1.0, 1.05, 0.85)),  # grunt
)


def _mammal_call(duration_seconds: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Bouts of barks, howls, whines or grunts: harmonic stacks through a vocal tract."""
    length_range, f0_range, breath, n_calls, glide = _MAMMAL_KINDS[rng.integers(len(_MAMMAL_KINDS))]
    fundamental = rng.uniform(*f0_range)
    formants = rng.uniform(0.8, 1.3) * np.array([650.0, 1500.0, 2700.0])

    def call():
        n = _n_samples(rng.uniform(*length_range), sample_rate)
        contour = fundamental * rng.uniform(0.9, 1.1) * _curve(glide, n)
        voice = tone(contour, sample_rate, harmonics=1 / np.arange(1, 16))
        sound = voice + breath * shaped_noise(n, sample_rate, rng, band=(200, 5000))
        # some of the source passes the tract, else a fundamental between formants would vanish
        sound = 0.2 * sound + _resonate(sound, sample_rate, formants_hz=formants)
        edge = 0.15 * n / sample_rate
        return sound * _edges(n, sample_rate, attack=edge, release=2 * edge)

    def bout():
        return _series([call() for _ in range(rng.integers(*n_calls))], sample_rate,
                       pause_range=(0.1, 0.35), rng=rng)

    return _repeat(bout, duration_seconds=duration_seconds, sample_rate=sample_rate, pause_range=(0.8, 2.5), rng=rng)


def _insect_sound(duration_seconds: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Long trills or chirps of a high carrier, tone or rasp, in pulses."""
    carrier = rng.uniform(3200, min(9000, 0.9 * HIGHEST_SHARE * sample_rate))
    pulses_per_second = rng.uniform(20, 80)
    is_rasp, is_chirping = rng.random(2) < (0.4, 0.4)
    chirp_seconds = rng.uniform(0.15, 0.5) if is_chirping else rng.uniform(3, 8)
    pause_range = (0.8 * chirp_seconds, chirp_seconds) if is_chirping else (0.2, 0.8)

    def stridulation():
        n = _n_samples(chirp_seconds * rng.uniform(0.9, 1.1), sample_rate)
        if is_rasp:
            sound = shaped_noise(n, sample_rate, rng, band=(0.9 * carrier, 1.1 * carrier), side_db=60)
        else:
            sound = tone(np.full(n, carrier), sample_rate)
        phase = np.arange(n) / sample_rate * pulses_per_second % 1
        pulses = np.where(phase < 0.7, np.sin(np.pi * phase / 0.7), 0) ** 2
        loudness = _curve(rng.uniform(0.7, 1, size=4), n)
        return sound * pulses * loudness * _edges(n, sample_rate, attack=0.05, release=0.05)

    return _repeat(stridulation, duration_seconds=duration_seconds, sample_rate=sample_rate,
                   pause_range=pause_range, rng=rng)


def _amphibian_call(duration_seconds: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """One to three frogs, each repeating one pulsed note."""
    def frog():
        carrier, pulses_per_second = _log_uniform(350, 2600, rng), _log_uniform(5, 40, rng)
        n = _n_samples(max(rng.uniform(0.25, 1.0), 3 / pulses_per_second), sample_rate)
        phase = np.arange(n) / sample_rate * pulses_per_second % 1
        pulses = np.exp(-5 * phase) * np.minimum(phase / 0.05, 1)
        rise = _curve([1, rng.uniform(0.95, 1.15)], n)
        note = tone(carrier * rise, sample_rate, harmonics=(1, 0.35, 0.15)) * pulses
        note *= _curve([0.4, 1, 1], n) * _edges(n, sample_rate, attack=0.02, release=0.05)
        pause = rng.uniform(0.3, 1.5)
        return _repeat(lambda: note, duration_seconds=duration_seconds, sample_rate=sample_rate,
                       pause_range=(pause, 1.2 * pause), rng=rng)

    return sum((frog() * 0.5 ** k for k in range(rng.integers(1, 4))),
               start=np.zeros(_n_samples(duration_seconds, sample_rate)))


def _rain(n_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    drops = np.zeros(n_samples)
    n_drops = round(_log_uniform(300, 3000, rng) * n_samples / sample_rate)
    drops[rng.integers(n_samples, size=n_drops)] = rng.lognormal(sigma=1.0, size=n_drops)
    splash = scipy.signal.butter(2, (900, 6000), btype="bandpass", fs=sample_rate, output="sos")
    drops = scipy.signal.sosfilt(splash, drops)
    return drops / np.std(drops) + rng.uniform(0.7, 1.5) * shaped_noise(n_samples, sample_rate, rng, slope_db=-2)


def _wind(n_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    gusts = _curve(rng.uniform(0, 1, size=3 + n_samples // sample_rate), n_samples)
    rumble = shaped_noise(n_samples, sample_rate, rng, slope_db=-6, band=(30, 300))
    hiss = shaped_noise(n_samples, sample_rate, rng, slope_db=-6, band=(150, 1500))
    return (0.1 + gusts ** 2) * rumble + 0.5 * gusts ** 3 * hiss


def _thunder(n_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    def roll():
        n = _n_samples(rng.uniform(2, 5), sample_rate)
        t = np.arange(n) / sample_rate
        claps = _curve(rng.uniform(0.2, 1, size=12), n) ** 2 * np.exp(-t / rng.uniform(0.6, 1.5))
        crack = np.exp(-t / 0.3) * shaped_noise(n, sample_rate, rng, slope_db=-4, band=(60, 1200))
        rumble = shaped_noise(n, sample_rate, rng, slope_db=-5, band=(30, 160))
        return (claps * rumble + 0.3 * crack) * _edges(n, sample_rate, attack=0.03, release=0.5)

    seconds = n_samples / sample_rate
    thunder = _repeat(roll, duration_seconds=seconds, sample_rate=sample_rate, pause_range=(0.5, 3), rng=rng)
    return thunder + 0.03 * _rain(n_samples, sample_rate, rng)


def _stream(n_samples: int, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    bubbles = np.zeros(n_samples)
    for _ in range(round(15 * n_samples / sample_rate)):
        n = _n_samples(rng.uniform(0.02, 0.08), sample_rate)
        start = int(rng.integers(n_samples))
        pitch = _log_uniform(400, 1600, rng)
        bubble = tone(_curve([pitch, 1.2 * pitch], n), sample_rate) * np.exp(-_curve([0, 5], n))
        bubbles[start:start + n] += rng.uniform(0.2, 1) * bubble[:n_samples - start]
    return 5 * bubbles + shaped_noise(n_samples, sample_rate, rng, slope_db=-3, band=(300, 5000))


def _environmental_sound(duration_seconds: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Rain, wind, thunder or a stream."""
    kinds = (_rain, _wind, _thunder, _stream)
    return kinds[rng.integers(len(kinds))](_n_samples(duration_seconds, sample_rate), sample_rate, rng)


def _spoken_word(sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    pitch = rng.uniform(85, 220)

    def spoken():
        n = _n_samples(rng.uniform(0.12, 0.3), sample_rate)
        voice = tone(pitch * _curve(rng.uniform(0.85, 1.15, size=3), n), sample_rate,
                     harmonics=1 / np.arange(1, 36))
        vowel = _resonate(voice, sample_rate, formants_hz=VOWELS_HZ[rng.integers(len(VOWELS_HZ))])
        consonant = 0.1 * shaped_noise(n // 3, sample_rate, rng, band=(2500, 7000))
        return np.concatenate([consonant * _edges(len(consonant), sample_rate, attack=0.01, release=0.03),
                               vowel * _edges(n, sample_rate, attack=0.03, release=0.06)])

    return _series([spoken() for _ in range(rng.integers(2, 7))], sample_rate, pause_range=(0.01, 0.06), rng=rng)


def _engine(sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    n = _n_samples(rng.uniform(4, 10), sample_rate)
    speed = rng.uniform(28, 75) * _curve(rng.uniform(0.85, 1.15, size=5), n)
    strokes = tone(speed, sample_rate, harmonics=rng.uniform(0.2, 1, size=24) / np.arange(1, 25) ** 0.6)
    exhaust = 0.4 * shaped_noise(n, sample_rate, rng, slope_db=-4, band=(60, 2500))
    return (strokes + exhaust) * _edges(n, sample_rate, attack=1.0, release=1.0)


def _clank(sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    n = _n_samples(1.0, sample_rate)
    t = np.arange(n) / sample_rate
    return sum((tone(np.full(n, rng.uniform(400, 6500)), sample_rate) * np.exp(-t / rng.uniform(0.05, 0.3))
                for _ in range(8)), start=np.zeros(n))


def _beeps(sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    n = _n_samples(rng.uniform(0.08, 0.3), sample_rate)
    beep = tone(np.full(n, rng.uniform(700, 2200)), sample_rate, harmonics=(1, 0, 0.33, 0, 0.2))
    beep *= _edges(n, sample_rate, attack=0.004, release=0.004)
    return _series([beep] * rng.integers(2, 6), sample_rate, pause_range=(n / sample_rate,) * 2, rng=rng)


def _unknown_species(duration_seconds: float, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
    """Things that are no animal and no weather: speech, engines, clanking metal, beeps."""
    kinds = (_spoken_word, _engine, _clank, _beeps)
    kind = kinds[rng.integers(len(kinds))]
    return _repeat(lambda: kind(sample_rate, rng), duration_seconds=duration_seconds, sample_rate=sample_rate,
                   pause_range=(0.4, 1.5), rng=rng)


_SYNTHESISERS: Mapping[str, Callable[[float, int, np.random.Generator], np.ndarray]] = {
    "bird_song": _bird_song, "mammal_call": _mammal_call, "insect_sound": _insect_sound,
    "amphibian_call": _amphibian_call, "environmental_sound": _environmental_sound,
    "unknown_species": _unknown_species,
}


def synthesise_recording(class_name: str, *, duration_seconds: float, sample_rate: int,
                         rng: np.random.Generator) -> np.ndarray:
    """Synthesise a clean recording of one class, as if near a perfect microphone.

    Parameters
    ----------
    class_name : str
        One of ``DEFAULT_CLASS_NAMES``.
    duration_seconds : float
        Length in seconds.
    sample_rate : int
        Hz, at least 16000 for the highest calls.
    rng : np.random.Generator
        Source of everything that varies.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``, largest absolute value ``PEAK``.

    Raises
    ------
    ConfigError
        If there is no such class.
    """
    if class_name not in _SYNTHESISERS:
        raise ConfigError(f"class_name must be one of {', '.join(_SYNTHESISERS)}, got {class_name!r}")
    sound = _SYNTHESISERS[class_name](duration_seconds, sample_rate, rng)
    return (sound * (PEAK / np.abs(sound).max())).astype(np.float32)
