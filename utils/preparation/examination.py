"""Facts about the sound of a recording, gathered while it passes by: the dataset doctor's instruments."""

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import fft

from utils.preparation.similarity import Fingerprinter

_CHUNK_VALUES = 1 << 17  # worked on at once: large enough that Python is not felt, small enough for a processor's cache
# numbers of float32 from 256 to 512 are multiples of 2^-15: adding this rounds a sample to 16 bits
_TO_16_BITS = np.float32(384)

_SHORTEST_RUN = 3  # equal samples where a wave was cut off: a crest that was not seldom gives so many
_QUIETEST_CLIPPING = 0.1  # of full scale: below -20 dBFS nothing is overdriven, and few bits make many samples equal
_LEAST_VARIANCE = 1e-12  # of a channel's mean square: more than rounding makes of a constant

_FRAME = 2048  # samples of a spectrum
_MOST_FRAMES = 64  # spectra that the bandwidth is found from, spread over the recording
_BINS_PER_BAND = 8
_NO_POWER = 1e-14  # of a full-scale sine: -140 dB, below what 16 bits and any microphone leave
_LOWEST_CUT = 3000  # Hz: no usual rate holds less, and wind and engines fall off as steeply
_CLIFF_DB = 10.0  # by which all that is above a cut lies below all that is beneath it
_CLIFF_BANDS = 3  # within which the level of what was resampled or compressed falls


@dataclass(frozen=True, kw_only=True)
class SoundFacts:
    """What was measured of a recording as it is stored, at its own rate.

    Parameters
    ----------
    peak_dbfs, rms_dbfs : float or None
        Highest absolute sample and root mean square, over all channels, in dB relative to full scale; None for digital
        silence.
    dc_offset : float
        The mean of the channel whose mean is farthest from 0, in -1..1.
    clipped_share : float
        Share of samples, 0..1, that stand in runs of three or more at the highest or lowest value of their channel,
        as a converter that was overdriven leaves them; 0 where these values are below -20 dBFS. A square wave counts
        wholly, what was clipped before a lossy codec hardly.
    channel_correlation : float or None
        Pearson correlation of the first two channels, -1..1: near -1 is antiphase; None for mono or a silent channel.
    bandwidth_hertz : float or None
        Frequency above which nothing is left (far below what its rate could hold where it was upsampled or compressed),
        as ``find_bandwidth`` has it; None for silence.
    content : str
        SHA-256 of rate, number of channels and samples rounded to 16 bits: the same for a copy in another lossless
        container, and for one of 16 bits stored with more.
    fingerprint : str
        What near-duplicates are recognised by, as text; see ``utils.preparation.similarity``.
    """

    peak_dbfs: float | None
    rms_dbfs: float | None
    dc_offset: float
    clipped_share: float
    channel_correlation: float | None
    bandwidth_hertz: float | None
    content: str
    fingerprint: str


class Examiner:
    """Measures a recording block by block; the facts do not depend on how it was cut into blocks.

    Memory stays the same however long the recording is: about 10 MB. An hour of mono at 48 kHz takes about a second.

    Parameters
    ----------
    sample_rate : int
        Of the recording as stored, Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._chunk = np.empty((0, 0), dtype=np.float32)  # (n_channels, n), whose first n_filled are taken
        self._n_filled = 0
        self._levels = _Levels()
        self._spectra = _Spectra()
        self._hash = hashlib.sha256()
        self._fingerprinter = Fingerprinter(sample_rate)

    def add(self, block: np.ndarray) -> None:
        """Take the next block, float32 ``(n, n_channels)``; full scale is -1..1."""
        if not self._chunk.size:
            n_channels = block.shape[1]
            n_frames = max(1, _CHUNK_VALUES // _FRAME // n_channels) * _FRAME
            self._chunk = np.empty((n_channels, n_frames), dtype=np.float32)
            self._hash.update(f"{self._sample_rate} {n_channels} ".encode())
        taken = 0
        while taken < len(block):
            some = block[taken:taken + self._chunk.shape[1] - self._n_filled]
            self._chunk[:, self._n_filled:self._n_filled + len(some)] = some.T
            taken += len(some)
            self._n_filled += len(some)
            if self._n_filled == self._chunk.shape[1]:
                self._examine_chunk()

    def facts(self) -> SoundFacts:
        """Return what was found, once nothing follows."""
        if self._n_filled:
            self._examine_chunk()
        return SoundFacts(**self._levels.facts(), bandwidth_hertz=self._spectra.bandwidth_hertz(self._sample_rate),
                          content=self._hash.hexdigest(), fingerprint=self._fingerprinter.text())

    def _examine_chunk(self) -> None:
        chunk, self._n_filled = self._chunk[:, :self._n_filled], 0
        # samples that are not numbers, or far from any: whoever reads the recording refuses it after this block
        with np.errstate(invalid="ignore", over="ignore"):
            self._levels.add(chunk)
            self._spectra.add(chunk)
            self._fingerprinter.add(chunk)
            self._hash.update((chunk + _TO_16_BITS).view(np.int32).astype("<i2").data)


class _Levels:
    """Peak, power, offset, clipping and correlation of what passes by."""

    def __init__(self) -> None:
        self._n_samples = 0  # of each channel
        self._peak = 0.0
        self._sums = self._squares = np.zeros(1)  # of each channel
        self._scatter = self._mean_products = np.zeros((2, 2))  # of the first two channels
        self._plateaus = _Plateaus()

    def add(self, chunk: np.ndarray) -> None:
        """Take the next chunk, float32 ``(n_channels, n)``."""
        n_channels, n_samples = chunk.shape
        self._n_samples += n_samples
        extremes = np.stack([chunk.max(axis=1), -chunk.min(axis=1)])
        self._peak = max(self._peak, float(extremes.max()))
        self._plateaus.add(chunk, extremes)
        sums = chunk.sum(axis=1).astype(np.float64)
        self._sums = self._sums + sums
        self._squares = self._squares + np.vecdot(chunk, chunk)
        if n_channels > 1:
            # within a chunk around its own mean: far from 0 the float32 products would not tell a quiet signal
            means = sums[:2] / n_samples
            around = chunk[:2] - means[:, None].astype(np.float32)
            self._scatter = self._scatter + around @ around.T
            self._mean_products = self._mean_products + n_samples * np.outer(means, means)

    def facts(self) -> dict[str, Any]:
        """Return these fields of ``SoundFacts``."""
        if not self._peak:
            return {"peak_dbfs": None, "rms_dbfs": None, "dc_offset": 0.0, "clipped_share": 0.0,
                    "channel_correlation": None}
        means = self._sums / self._n_samples
        n_values = self._n_samples * len(means)
        power = self._squares.sum() / n_values  # the squares of the smallest numbers are 0
        return {"peak_dbfs": 20 * math.log10(self._peak),
                "rms_dbfs": 10 * math.log10(power) if power else None,
                "dc_offset": float(means[np.abs(means).argmax()]),
                "clipped_share": self._plateaus.n_samples / n_values,
                "channel_correlation": self._correlation(means[:2])}

    def _correlation(self, means: np.ndarray) -> float | None:
        if len(means) < 2:
            return None
        scatter = self._scatter + self._mean_products - self._n_samples * np.outer(means, means)
        if (scatter.diagonal() <= _LEAST_VARIANCE * self._squares[:2]).any():
            return None
        return float(np.clip(scatter[0, 1] / math.sqrt(scatter[0, 0] * scatter[1, 1]), -1, 1))


class _Plateaus:
    """Counts samples in runs at the highest and the lowest value that each channel reaches."""

    def __init__(self) -> None:
        # the highest of each channel, and the lowest with its sign turned
        self._extremes: np.ndarray = np.full((2, 1), _QUIETEST_CLIPPING, dtype=np.float32)
        self._n_samples: np.ndarray = np.zeros((2, 1), dtype=np.int64)  # in long runs
        self._n_open: np.ndarray = np.zeros((2, 1), dtype=np.int64)  # in the run that may go on

    @property
    def n_samples(self) -> int:
        """Samples in runs, of all channels."""
        return int(self._n_samples.sum())

    def add(self, chunk: np.ndarray, extremes: np.ndarray) -> None:
        """Take the next chunk, float32 ``(n_channels, n)``, and its extremes, ``(2, n_channels)``."""
        if (extremes < self._extremes).all():
            self._n_open[:] = 0
            return
        reached = extremes == np.maximum(extremes, self._extremes)
        self._n_samples = np.where(extremes > self._extremes, 0, self._n_samples)
        self._n_open = np.where(extremes == self._extremes, self._n_open, 0)
        self._extremes = np.maximum(extremes, self._extremes)
        for side, channel in np.argwhere(reached):
            value = self._extremes[side, channel] if side == 0 else -self._extremes[side, channel]
            n_samples, n_open = _runs(chunk[channel] == value, n_open=int(self._n_open[side, channel]))
            self._n_samples[side, channel] += n_samples
            self._n_open[side, channel] = n_open


def _runs(marked: np.ndarray, *, n_open: int) -> tuple[int, int]:
    """Return how many more samples stand in long runs, and how long the run is that reaches the end.

    Parameters
    ----------
    marked : numpy.ndarray
        bool ``(n,)``, some of it true.
    n_open : int
        Length of the run that ended where this begins.
    """
    edges = np.flatnonzero(np.diff(marked, prepend=False, append=False))
    lengths = edges[1::2] - edges[::2]
    counted_before = 0
    if marked[0]:
        counted_before = n_open if n_open >= _SHORTEST_RUN else 0
        lengths[0] += n_open
    return int(lengths[lengths >= _SHORTEST_RUN].sum()) - counted_before, int(lengths[-1]) if marked[-1] else 0


class _Spectra:
    """Keeps the spectra of some moments, as far apart as the recording is long."""

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._n_seen, self._next, self._stride = 0, 0, 1  # in frames

    def add(self, chunk: np.ndarray) -> None:
        """Take the next chunk, float32 ``(n_channels, n)``; none but the last ends within a frame."""
        n_frames = chunk.shape[1] // _FRAME
        while self._next < self._n_seen + n_frames:
            start = (self._next - self._n_seen) * _FRAME
            self._kept.append(_power(chunk[:, start:start + _FRAME]))
            if len(self._kept) > _MOST_FRAMES:
                self._kept = self._kept[::2]
                self._stride *= 2
            self._next += self._stride
        self._n_seen += n_frames
        if not self._kept:  # it is shorter than a frame
            self._kept.append(_power(chunk))

    def bandwidth_hertz(self, sample_rate: int) -> float | None:
        """Return the bandwidth of what passed by; None for silence."""
        audible = [10 * np.log10(power + _NO_POWER) for power in self._kept if power.max() > _NO_POWER]
        if not audible:
            return None
        # the mean of decibels: one click fills the whole band and would outweigh all else as power
        return find_bandwidth(np.mean(audible, axis=0), sample_rate=sample_rate)


def _power(samples: np.ndarray) -> np.ndarray:
    """Return the power spectrum of ``(n_channels, n)`` without its lowest bin, mean of the channels."""
    spectra = fft.rfft(samples * _window(samples.shape[1]), n=_FRAME)[:, 1:]
    return (spectra.real ** 2 + spectra.imag ** 2).mean(axis=0)


@functools.lru_cache(maxsize=2)
def _window(n_samples: int) -> np.ndarray:
    window = np.hanning(n_samples + 2)[1:-1].astype(np.float32)
    return window * (2 / window.sum())


def find_bandwidth(levels_db: np.ndarray, *, sample_rate: int) -> float:
    """Return the frequency up to which a spectrum holds something, in Hz: half the rate unless it breaks off.

    What was upsampled or compressed falls off a cliff: just above a cut all bands lie far below even the quietest of
    those beneath it. A spectrum that falls gently has none, nor have a tone or insects that rise from a noise floor
    which is the same on both sides of them. Not found are a cut in a recording so quiet that the rounding to 16 bits is
    nearly as loud as what is beneath it, one below 3 kHz or above 97% of half the rate, and upsampling without a
    filter, which mirrors what is beneath.

    Parameters
    ----------
    levels_db : numpy.ndarray
        float ``(n_bins,)``, level at equal steps up to half the rate, in dB; a multiple of 8 bins.
    sample_rate : int
        Hz.
    """
    # the quieter bins of a band: a line of interference does not fill it
    bands = np.quantile(levels_db.reshape(-1, _BINS_PER_BAND), 0.25, axis=1)
    loudest_above = np.maximum.accumulate(bands[::-1])[::-1]
    cuts, numbers = np.arange(2, len(bands) - _CLIFF_BANDS), np.arange(len(bands))
    # not the lowest tenth of a spectrum, which a high-pass filter of the recorder may have emptied
    is_beneath = (numbers < cuts[:, None]) & (numbers >= cuts[:, None] // 10)
    beneath = np.sort(np.where(is_beneath, bands, np.inf), axis=1)
    quietest_beneath = beneath[np.arange(len(cuts)), is_beneath.sum(axis=1) // 10]
    # and those next to the cut, or a steep slope would pass for a cliff
    quietest_beneath = np.minimum(quietest_beneath, np.minimum(bands[cuts - 1], bands[cuts - 2]))
    gaps = quietest_beneath - loudest_above[cuts + _CLIFF_BANDS]
    gaps[cuts * sample_rate / 2 / len(bands) < _LOWEST_CUT] = 0
    if gaps.max() < _CLIFF_DB:
        return sample_rate / 2
    # the highest, for a codec may have left a step beneath its cut; not what is far smaller than the largest
    cut = int(cuts[gaps >= max(_CLIFF_DB, gaps.max() / 2)][-1])
    slope = bands[cut:cut + _CLIFF_BANDS]
    n_filled = cut + int((slope > loudest_above[cut + _CLIFF_BANDS] + _CLIFF_DB / 2).sum())
    return n_filled / len(bands) * sample_rate / 2
