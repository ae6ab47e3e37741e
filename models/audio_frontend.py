"""From waveform to log-mel spectrogram: the one front end that training and prediction share.

A clip goes through five steps: fit to length, frame, Hann window and Fourier transform, mel filter bank,
decibels. Each clip is treated alone, so its result never depends on what else is in a batch.
"""

import functools
import hashlib
import json
import math

import numpy as np
import scipy.fft
import scipy.sparse

from models.efficientnet_config import FrontendConfig

_FINGERPRINT_VERSION = 1  # raise it when the computation below changes its result
_SMALLEST_POWER = 1e-10  # -100 dB: what digital silence reads
_KEPT_BYTES = 8 << 20  # more than the frames of a block take
_FRAMES_PER_BLOCK = 64  # keeps frames, spectrum and power of a block in the processor's cache


def frontend_fingerprint(config: FrontendConfig) -> str:
    """Return the SHA-256 that identifies a front end: its settings and the version of this computation."""
    canonical = json.dumps({"version": _FINGERPRINT_VERSION, **config.to_dict()}, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def segment_starts(n_samples: int, *, segment_samples: int, hop_samples: int, least_new_samples: int) -> list[int]:
    """Place windows over a recording: the one rule for preparation and prediction.

    Windows start every ``hop_samples``; the last one is moved back to end with the recording, so that it holds real
    sound rather than padding. It is left out where it would add less than ``least_new_samples`` to the one before,
    for that would count the end of the recording twice. A recording shorter than a window gets one window at 0.

    Parameters
    ----------
    n_samples : int
        Length of the recording, at least 1.
    segment_samples : int
        Length of a window.
    hop_samples : int
        Distance between windows, 1..segment_samples.
    least_new_samples : int
        What a last window must add, see ``FrontendConfig.least_new_samples``.

    Returns
    -------
    list of int
        First sample of each window, ascending.
    """
    last = max(0, n_samples - segment_samples)
    regular = list(range(0, last, hop_samples))
    if regular and last - regular[-1] < min(least_new_samples, hop_samples):
        return regular
    return [*regular, last]


def mel_filters(config: FrontendConfig, *, frequency_ratio: float = 1.0) -> np.ndarray:
    """Return the mel filter bank: triangles between equally spaced points of the mel scale.

    The same numbers as ``librosa.filters.mel``, which takes half a second to import for them.

    Parameters
    ----------
    config : FrontendConfig
        Its rate, transform and mel settings are used.
    frequency_ratio : float
        Above 0: each frequency is weighted as this multiple of it, so that the bands show the sound higher or lower.

    Returns
    -------
    numpy.ndarray
        float32 ``(n_mels, n_fft // 2 + 1)``, at least 0; a band narrower than a frequency bin may be all 0.

    Notes
    -----
    Slaney (1998), Auditory Toolbox, Interval Research technical report 1998-010, function ``mfcc``: linear below
    1 kHz, logarithmic above, triangles of equal area (``mel_norm="slaney"``). ``mel_scale="htk"``: O'Shaughnessy
    (1987), Speech Communication, p. 150.
    """
    edges = _band_edges(config)
    widths = np.diff(edges)
    hertz = np.fft.rfftfreq(config.n_fft, d=1.0 / config.sample_rate)
    ramps = np.subtract.outer(edges, frequency_ratio * hertz)
    rising, falling = -ramps[:-2] / widths[:-1, None], ramps[2:] / widths[1:, None]
    filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    if config.mel_norm == "slaney":
        filters *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return filters


def _band_edges(config: FrontendConfig) -> np.ndarray:
    """Return the corners of the triangles in Hz, float64 ``(n_mels + 2,)``; the inner ones are their peaks."""
    to_mel, to_hertz = ((_hertz_to_mel_htk, _mel_to_hertz_htk) if config.mel_scale == "htk"
                        else (_hertz_to_mel_slaney, _mel_to_hertz_slaney))
    low, high = to_mel(np.array([config.f_min, config.f_max]))
    return to_hertz(np.linspace(low, high, config.n_mels + 2))


def hertz_to_mel(hertz: float, *, mel_scale: str) -> float:
    """Return the mel of a frequency, 0 Hz or more, on the scale ``slaney`` or ``htk``; see ``mel_filters``."""
    to_mel = _hertz_to_mel_htk if mel_scale == "htk" else _hertz_to_mel_slaney
    return float(to_mel(np.array([hertz]))[0])


_LINEAR_HERTZ = 200.0 / 3  # a mel below the break
_BREAK_HERTZ = 1000.0
_BREAK_MEL = _BREAK_HERTZ / _LINEAR_HERTZ
_LOG_STEP = np.log(6.4) / 27.0  # of frequency in a mel above the break


def _hertz_to_mel_slaney(hertz: np.ndarray) -> np.ndarray:
    logarithmic = _BREAK_MEL + np.log(np.maximum(hertz, _BREAK_HERTZ) / _BREAK_HERTZ) / _LOG_STEP
    return np.where(hertz >= _BREAK_HERTZ, logarithmic, hertz / _LINEAR_HERTZ)


def _mel_to_hertz_slaney(mel: np.ndarray) -> np.ndarray:
    logarithmic = _BREAK_HERTZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel >= _BREAK_MEL, logarithmic, _LINEAR_HERTZ * mel)


def _hertz_to_mel_htk(hertz: np.ndarray) -> np.ndarray:
    return 2595.0 * np.log10(1.0 + hertz / 700.0)


def _mel_to_hertz_htk(mel: np.ndarray) -> np.ndarray:
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


class LogMelFrontend:
    """Computes log-mel spectrograms with the settings of one ``FrontendConfig``.

    Parameters
    ----------
    config : FrontendConfig
        Rate, transform, mel bands, window length.

    Attributes
    ----------
    n_empty_bands : int
        Mel bands narrower than a frequency bin, which hold nothing: lower ``n_mels`` or raise ``n_fft``.
    band_hertz : numpy.ndarray
        float64 ``(n_mels,)``, the frequency in Hz at which each mel band peaks.
    """

    def __init__(self, config: FrontendConfig) -> None:
        self.config = config
        self.band_hertz = _band_edges(config)[1:-1]
        # glibc keeps what it is given back once it has been given back something larger; without this every block below
        # is handed to the system and fetched again, which takes a fifth of the time
        np.empty(_KEPT_BYTES, dtype=np.uint8)
        self._window = np.hanning(config.n_fft + 1)[:-1].astype(np.float32)  # periodic: the end is the next beginning
        filters = mel_filters(config)
        self.n_empty_bands = int((filters.max(axis=1) == 0).sum())
        # two triangles cover each frequency bin, so the filter bank is 98 % zeros
        self._filters = scipy.sparse.csr_array(filters)

    def fit_length(self, waveform: np.ndarray) -> np.ndarray:
        """Cut or fill a waveform to one window.

        Parameters
        ----------
        waveform : numpy.ndarray
            float32 ``(n_samples,)``, at least one sample.

        Returns
        -------
        numpy.ndarray
            float32 ``(segment_samples,)``; a short clip is repeated, or followed by zeros
            (``FrontendConfig.padding``).
        """
        n_samples = self.config.segment_samples
        if len(waveform) >= n_samples:
            return waveform[:n_samples]
        if self.config.padding == "repeat":
            return np.resize(waveform, n_samples)
        return np.pad(waveform, (0, n_samples - len(waveform)))

    def log_mel(self, waveform: np.ndarray) -> np.ndarray:
        """Return the log-mel spectrogram of one window.

        Parameters
        ----------
        waveform : numpy.ndarray
            float32 ``(n_samples,)`` in [-1, 1] at ``sample_rate``; fitted to the window length first.

        Returns
        -------
        numpy.ndarray
            float32 ``(n_mels, n_frames)`` in dB relative to full scale, floored ``top_db`` below the
            clip's own maximum and at -100 dB.

        Notes
        -----
        Frames are centred: frame ``i`` is centred on sample ``i * hop_length``. Power spectrum, mel
        triangles (Slaney 1998, Auditory Toolbox, or HTK), ``10 log10(max(power, 1e-10))``.
        """
        return self.decibels(self.mel_power(waveform))

    def mel_power(self, waveform: np.ndarray, *, rate: float = 1.0, frequency_ratio: float = 1.0) -> np.ndarray:
        """Return the power in each mel band, of the window as it is or as it would be at another speed and pitch.

        Parameters
        ----------
        waveform : numpy.ndarray
            float32 ``(n_samples,)`` in [-1, 1] at ``sample_rate``; fitted to the window length first.
        rate : float
            Speed, above 0: 2 is twice as fast at the same pitch. A result too short is repeated, one too long is cut.
        frequency_ratio : float
            Above 0: what sounds at ``f`` Hz is counted as if at ``frequency_ratio * f``, its duration unchanged. What
            comes to lie above ``f_max`` or below ``f_min`` is lost; bands that nothing comes to hold nothing.

        Returns
        -------
        numpy.ndarray
            float32 ``(n_mels, n_frames)``, at least 0, for ``decibels``.

        Notes
        -----
        Neither change needs a phase, so no waveform is built for it: frames are taken at other places, and the filter
        bank is warped, as in Jaitly and Hinton (2013), "Vocal Tract Length Perturbation (VTLP) improves speech
        recognition", ICML Workshop on Deep Learning for Audio, Speech and Language Processing.
        """
        frames = self._frames(self.fit_length(np.ascontiguousarray(waveform, dtype=np.float32)), rate=rate)
        filters = (self._filters if frequency_ratio == 1.0
                   else scipy.sparse.csr_array(mel_filters(self.config, frequency_ratio=frequency_ratio)))
        mel = np.empty((self.config.n_mels, len(frames)), dtype=np.float32)
        for first in range(0, len(frames), _FRAMES_PER_BLOCK):
            block = frames[first:first + _FRAMES_PER_BLOCK]
            spectrum = scipy.fft.rfft(block * self._window, axis=1)
            power = spectrum.real ** 2 + spectrum.imag ** 2
            mel[:, first:first + len(block)] = filters @ power.T
        return mel

    def _frames(self, clip: np.ndarray, *, rate: float) -> np.ndarray:
        """Return the frames of a window, float32 ``(n_frames, n_fft)``; at another rate those that stand there then."""
        config = self.config
        source = clip if rate == 1.0 else np.resize(clip, math.ceil(rate * len(clip)))
        padded = np.pad(source, config.n_fft // 2, mode="reflect" if config.edge_mode == "reflect" else "constant")
        frames = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)
        if rate == 1.0:
            return frames[::config.hop_length]  # a view, which costs nothing
        return frames[(np.arange(config.n_frames) * config.hop_length * rate).astype(np.intp)]

    def decibels(self, mel_power: np.ndarray) -> np.ndarray:
        """Return the power of one window in dB above its floor.

        Parameters
        ----------
        mel_power : numpy.ndarray
            float32 ``(n_mels, n_frames)``, at least 0, from ``mel_power``.

        Returns
        -------
        numpy.ndarray
            float32 ``(n_mels, n_frames)``, as ``log_mel`` returns it.
        """
        log_mel = 10.0 * np.log10(np.maximum(mel_power, _SMALLEST_POWER))
        return np.maximum(log_mel, log_mel.max() - np.float32(self.config.top_db))


@functools.lru_cache(maxsize=2)
def cached_frontend(config: FrontendConfig) -> LogMelFrontend:
    """Return the front end of a config, built once a process."""
    return LogMelFrontend(config)
