"""Recordings that hold the same sound: fingerprints, the pairs they find, the groups these make.

A fingerprint is made of landmarks: moments at which a frequency band is louder than all around it, each described by
which of the bands beside it rise and fall. Energies are compared in time and frequency at once, as by Haitsma and
Kalker ("A Highly Robust Audio Fingerprinting System", ISMIR 2002), so that neither level nor equalisation counts;
only around peaks, as by Anguera, Garzon and Adamek ("MASK: Robust Local Features for Audio Fingerprinting", ICME
2012), so that a landmark does not depend on where a file begins; and two recordings are the same where landmarks
agree at one distance in time, as by Wang ("An Industrial-Strength Audio Search Algorithm", ISMIR 2003). Of a
recording the landmarks with the lowest codes are kept (Broder, "On the Resemblance and Containment of Documents",
1997), so that a fingerprint is short and that of an excerpt still shares what lies within it.

Not found: what has too few landmarks (silence, steady tones, most of what is shorter than a second); what agrees only
above 3.6 kHz; a speed or pitch that was changed; a mixture with other sounds; most short excerpts of long recordings.
Of noise, 5 seconds of a minute are found, of two minutes two times in three, of 5 minutes seldom; 2 minutes are found
of 5 minutes, half of the time of a quarter of an hour, seldom of an hour.
"""

import base64
import binascii
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import soxr
from scipy import fft, ndimage, sparse
from scipy.sparse import csgraph

from models.errors import ManifestError

LANDMARK_RATE = 8000  # Hz: what the lowest usual rate holds is all that copies of a recording have in common
_FRAME, _HOP = 1024, 64  # samples: a trim moves the frames by 4 ms at most, little beside their 128 ms
_TICKS_PER_SECOND = LANDMARK_RATE // _HOP
_BINS_PER_BAND = 8
_FIRST_BAND, _LAST_BAND = 4, 58  # of 62.5 Hz each: 250 to 3625 Hz, above wind and below the resampler's slope
_FRAMES_AT_ONCE = 256
_NO_POWER = 1e-20  # relative to a full-scale sine: -200 dB, below every sound

_PEAK_TICKS, _PEAK_BANDS = 17, 5  # a peak is the loudest of so many around it
_CONTEXT_TICKS, _PROMINENCE_DB = 17, 1.0  # and above the mean of its band, which no steady tone is
_QUIETEST_DB = -115.0  # of a band, relative to a full-scale sine: about what rounding to 16 bits leaves
# where levels are compared around a peak: 3 x 5 comparisons that copies keep, 2 x 4 that they change more often
_ROBUST_TICKS, _ROBUST_BANDS = np.array([-36, -12, 12, 36]), np.array([-5, -3, -1, 1, 3, 5])
_FRAIL_TICKS, _FRAIL_BANDS = np.array([-24, 0, 24]), np.array([-4, -2, 0, 2, 4])
_COMPARISON_BITS, _ROBUST_BITS, _FRAIL_BITS = 15, 21, 8  # robust: the comparisons and 6 bits for the band
_MIXER = 0x9E3779B1  # odd, so that no two codes become one

_MOST_LANDMARKS = 256
_WHOLE_MINUTES = 1  # heard in full, of each further one a part: most recordings of a species are shorter
_PART_SECONDS = 4
_TICK_BYTES = 3
_ENTRY = np.dtype([("code", "<u4"), ("tick", "u1", _TICK_BYTES)])
_VERSION = "1:"

# of 1.7 million pairs of clips chance gave 2 to 80 and 3 to one; each further one is about 100 times rarer
_FEWEST_SHARED = 5
_TOLERANCE_TICKS = 2  # by which a landmark moves in a copy
_FEWEST_WHOLE_CODES = 2  # equal in all bits, for two recordings to be compared at all
_MOST_OWNERS = 64  # a code of more recordings tells nothing, and would make the work quadratic
_ENTRIES_AT_ONCE = 1 << 20


class Landmarks(NamedTuple):
    """Landmarks of a recording.

    Parameters
    ----------
    codes : numpy.ndarray
        uint32 ``(n,)``, ascending: 21 bits that most copies keep, no two the same, and below them 8 that fewer keep.
    ticks : numpy.ndarray
        int64 ``(n,)``, when they are, in steps of 8 ms.
    """

    codes: np.ndarray
    ticks: np.ndarray


@dataclass(frozen=True, order=True)
class SimilarPair:
    """Two recordings that share sound.

    Parameters
    ----------
    first, second : str
        Their names; ``first < second``.
    similarity : float
        Share, 0..1, of the landmarks of the one that has fewer that the other has too, at one distance in time: 1 for
        copies, 0.1 to 0.6 where a codec or a trim has worked on one, less for an excerpt of a long recording.
    """

    first: str
    second: str
    similarity: float


_NO_LANDMARKS = Landmarks(np.empty(0, dtype=np.uint32), np.empty(0, dtype=np.int64))


class Fingerprinter:
    """Makes the fingerprint of a recording that passes by in blocks.

    A minute is heard in full, of every further minute 4 seconds, at places that differ from one minute to the
    next so that a copy that begins later still shares some.

    Parameters
    ----------
    sample_rate : int
        Of the blocks, Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._position = 0  # of the next sample
        self._minute = 0
        self._resampler: soxr.ResampleStream | None = None  # of the part that is being heard
        self._heard: list[np.ndarray] = []
        self._landmarks = _NO_LANDMARKS

    def add(self, block: np.ndarray) -> None:
        """Take the next block, float32 ``(n_channels, n)``; it may be overwritten afterwards."""
        end = self._position + block.shape[1]
        while True:
            first, last = (seconds * self._sample_rate for seconds in _part(self._minute))
            if first >= end:
                break
            if self._resampler is None:
                self._resampler = soxr.ResampleStream(self._sample_rate, LANDMARK_RATE, 1, dtype="float32")
            heard = block[:, max(0, first - self._position):last - self._position]
            self._heard.append(self._resampler.resample_chunk(heard.mean(axis=0) if len(heard) > 1 else heard[0]))
            if last > end:
                break
            self._finish_part(self._resampler)
        self._position = end

    def text(self) -> str:
        """Return the fingerprint of all that was added, once nothing follows; empty where it has no landmarks."""
        if self._resampler is not None:
            self._finish_part(self._resampler)
        return encode_landmarks(self._landmarks)

    def _finish_part(self, resampler: soxr.ResampleStream) -> None:
        samples = np.concatenate([*self._heard, resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True)])
        found = find_landmarks(samples, first_tick=_part(self._minute)[0] * _TICKS_PER_SECOND)
        self._landmarks = _lowest(np.concatenate([self._landmarks.codes, found.codes]),
                                  np.concatenate([self._landmarks.ticks, found.ticks]))
        self._heard, self._resampler = [], None
        self._minute += 1


def _part(minute: int) -> tuple[int, int]:
    """Return when in a recording the part of a minute that is heard begins and ends, in seconds."""
    start = 60 * minute
    if minute < _WHOLE_MINUTES:
        return start, start + 60
    # a hash, for the same recording has the same fingerprint
    start += zlib.crc32(str(minute).encode()) % (60 - _PART_SECONDS + 1)
    return start, start + _PART_SECONDS


def find_landmarks(samples: np.ndarray, *, first_tick: int = 0) -> Landmarks:
    """Return the landmarks with the lowest codes, each where it first occurs.

    Parameters
    ----------
    samples : numpy.ndarray
        float32 ``(n,)`` mono at ``LANDMARK_RATE``.
    first_tick : int
        When they begin in the recording, in steps of 8 ms.
    """
    # what a code looks at must lie within
    n_ticks, n_bands = int(_ROBUST_TICKS.max()), int(_ROBUST_BANDS.max())
    if len(samples) < _FRAME + 2 * n_ticks * _HOP:
        return _NO_LANDMARKS
    levels = _band_levels(samples)
    loudest = ndimage.maximum_filter(levels, size=(_PEAK_TICKS, _PEAK_BANDS), mode="nearest")
    usual = ndimage.uniform_filter1d(levels, _CONTEXT_TICKS, axis=0, mode="nearest")
    is_peak = (levels == loudest) & (levels > _QUIETEST_DB) & (levels - usual > _PROMINENCE_DB)
    ticks, bands = np.nonzero(is_peak[n_ticks:-n_ticks, n_bands:-n_bands])
    ticks, bands = ticks + n_ticks, bands + n_bands
    robust = _mixed(bands << _COMPARISON_BITS | _comparisons(levels, ticks, bands, _ROBUST_TICKS, _ROBUST_BANDS))
    codes = robust << _FRAIL_BITS | _comparisons(levels, ticks, bands, _FRAIL_TICKS, _FRAIL_BANDS)
    return _lowest(codes.astype(np.uint32), ticks + first_tick)


def _band_levels(samples: np.ndarray) -> np.ndarray:
    """Return the level of each band over time, float32 ``(n_ticks, n_bands)``, dB relative to a full-scale sine."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, _FRAME)[::_HOP]
    window = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
    window *= 2 / window.sum()
    bins = slice(_FIRST_BAND * _BINS_PER_BAND, _LAST_BAND * _BINS_PER_BAND)
    levels = np.empty((len(frames), _LAST_BAND - _FIRST_BAND), dtype=np.float32)
    for first in range(0, len(frames), _FRAMES_AT_ONCE):
        spectrum = fft.rfft(frames[first:first + _FRAMES_AT_ONCE] * window)[:, bins]
        power = spectrum.real ** 2 + spectrum.imag ** 2
        while power.shape[1] > levels.shape[1]:  # a band has a power of two of bins
            power = power[:, ::2] + power[:, 1::2]
        levels[first:first + _FRAMES_AT_ONCE] = power / _BINS_PER_BAND
    return 10 * np.log10(levels + np.float32(_NO_POWER))


def _comparisons(levels: np.ndarray, ticks: np.ndarray, bands: np.ndarray, tick_offsets: np.ndarray,
                 band_offsets: np.ndarray) -> np.ndarray:
    """Return for each peak, as bits of an int64, where a band rises more than the one below it."""
    around = levels[ticks[:, None, None] + tick_offsets[:, None], bands[:, None, None] + band_offsets]
    rises = np.diff(np.diff(around, axis=1), axis=2) > 0
    n_bits = (len(tick_offsets) - 1) * (len(band_offsets) - 1)
    return rises.reshape(len(ticks), n_bits) @ (1 << np.arange(n_bits))


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return other numbers of as many bits, none twice, of which the lowest are a fair sample of all sounds."""
    mask = (1 << _ROBUST_BITS) - 1
    values = (values ^ values >> 11) * _MIXER & mask
    return (values ^ values >> 10) * _MIXER & mask


def _lowest(codes: np.ndarray, ticks: np.ndarray) -> Landmarks:
    """Return the landmarks to keep of some in the order of time."""
    _, places = np.unique(codes >> _FRAIL_BITS, return_index=True)
    places = places[:_MOST_LANDMARKS]
    return Landmarks(codes[places], ticks[places])


def encode_landmarks(landmarks: Landmarks) -> str:
    """Return landmarks as text: empty, or at most 2.4 kB in ASCII."""
    if not len(landmarks.codes):
        return ""
    entries = np.empty(len(landmarks.codes), dtype=_ENTRY)
    entries["code"] = landmarks.codes
    # 37 hours pass before three bytes begin again, and distances in time are small
    entries["tick"] = landmarks.ticks.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :_TICK_BYTES]
    return _VERSION + base64.b64encode(entries.tobytes()).decode()


def decode_landmarks(text: str) -> Landmarks:
    """Return the landmarks that ``encode_landmarks`` wrote; ManifestError for any other text."""
    if not text:
        return _NO_LANDMARKS
    try:
        entries = np.frombuffer(base64.b64decode(text.removeprefix(_VERSION), validate=True), dtype=_ENTRY)
    except (binascii.Error, ValueError) as error:
        raise _unknown(text) from error
    if not text.startswith(_VERSION):
        raise _unknown(text)
    ticks = np.zeros((len(entries), 4), dtype=np.uint8)
    ticks[:, :_TICK_BYTES] = entries["tick"]
    return Landmarks(entries["code"].astype(np.uint32), ticks.view("<u4")[:, 0].astype(np.int64))


def _unknown(text: str) -> ManifestError:
    return ManifestError(f"a fingerprint must begin with {_VERSION!r} and go on in base64, got {text[:20]!r}: examine"
                         f" the recording again")


def find_similar(fingerprints: Mapping[str, str]) -> list[SimilarPair]:
    """Return the pairs of recordings that share sound.

    Of recordings whose fingerprints are the same the first by name stands for all: the others are paired with it alone.
    100,000 recordings take a quarter of a minute and about 1 GB.

    Parameters
    ----------
    fingerprints : mapping of str to str
        Name of each recording and what ``Fingerprinter`` made of it; an empty one is similar to nothing.

    Returns
    -------
    list of SimilarPair
        Sorted; the same for any order of ``fingerprints``.

    Raises
    ------
    ManifestError
        For a fingerprint of another version.
    """
    first_of: dict[str, str] = {}
    pairs = []
    for name in sorted(fingerprints):
        text = fingerprints[name]
        if text and first_of.setdefault(text, name) != name:
            pairs.append(SimilarPair(first_of[text], name, 1.0))
    names = list(first_of.values())
    landmarks = [decode_landmarks(text) for text in first_of]
    for first, second in _candidates(landmarks):
        similarity = _similarity(landmarks[first], landmarks[second])
        if similarity:
            pairs.append(SimilarPair(names[first], names[second], similarity))
    return sorted(pairs)


def _candidates(landmarks: Sequence[Landmarks]) -> Iterator[tuple[int, int]]:
    """Yield the recordings, lower number first, that have some codes in common with all their bits."""
    codes, owners = _codes_of_several(landmarks)
    # pairs of a portion of the recordings with any later one, so that memory does not grow with the number of pairs
    portions = (np.cumsum(np.bincount(owners, minlength=len(landmarks))) // _ENTRIES_AT_ONCE)[owners]
    for portion in range(int(portions.max(initial=-1)) + 1):
        places = np.flatnonzero(portions == portion)
        found = []
        for distance in range(1, _MOST_OWNERS):
            places = places[places < len(codes) - distance]
            places = places[codes[places] == codes[places + distance]]
            found.append(owners[places] * len(landmarks) + owners[places + distance])
        pairs, n_codes = np.unique(np.concatenate(found), return_counts=True)
        for pair in pairs[n_codes >= _FEWEST_WHOLE_CODES].tolist():
            yield divmod(pair, len(landmarks))


def _codes_of_several(landmarks: Sequence[Landmarks]) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes that two to ``_MOST_OWNERS`` recordings have, and these as int64, sorted by code and number."""
    keys = np.concatenate([np.empty(0, dtype=np.uint64), *(own.codes.astype(np.uint64) << np.uint64(32)
                                                           | np.uint64(number)
                                                           for number, own in enumerate(landmarks))])
    keys.sort()
    codes = (keys >> np.uint64(32)).astype(np.uint32)
    firsts = np.flatnonzero(np.diff(codes, prepend=~codes[:1]))
    n_owners = np.diff(firsts, append=len(codes))
    kept = np.repeat((n_owners >= 2) & (n_owners <= _MOST_OWNERS), n_owners)
    return codes[kept], (keys[kept] & np.uint64(0xffffffff)).astype(np.int64)


def _similarity(first: Landmarks, second: Landmarks) -> float:
    """Return the share of landmarks that agree at one distance in time; 0 where they may agree by chance."""
    robust = first.codes >> _FRAIL_BITS, second.codes >> _FRAIL_BITS
    _, of_first, of_second = np.intersect1d(*robust, assume_unique=True, return_indices=True)
    distances = np.sort(first.ticks[of_first] - second.ticks[of_second])
    ends = np.searchsorted(distances, distances + 2 * _TOLERANCE_TICKS, side="right")
    n_shared = int((ends - np.arange(len(distances))).max(initial=0))
    if n_shared < _FEWEST_SHARED:
        return 0.0
    # above the highest code that was kept of a long recording nothing is known of it
    known_to = min([int(own[-1]) for own in robust if len(own) == _MOST_LANDMARKS], default=1 << _ROBUST_BITS)
    return n_shared / min(int(np.searchsorted(own, known_to, side="right")) for own in robust)


def components(names: Collection[str], pairs: Iterable[SimilarPair]) -> dict[str, str]:
    """Return what belongs together: for each name the smallest of all that pairs lead to, itself included.

    Parameters
    ----------
    names : collection of str
        Every recording, those of ``pairs`` among them.
    pairs : iterable of SimilarPair
        What connects them.
    """
    ordered = sorted(names)
    number_of = {name: number for number, name in enumerate(ordered)}
    ends = np.array([(number_of[pair.first], number_of[pair.second]) for pair in pairs], dtype=np.int64).reshape(-1, 2)
    graph = sparse.coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])),
                              shape=(len(ordered), len(ordered)))
    labels = csgraph.connected_components(graph, directed=False)[1]
    _, firsts = np.unique(labels, return_index=True)
    return {name: ordered[firsts[label]] for name, label in zip(ordered, labels, strict=True)}
