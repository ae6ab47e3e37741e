"""Recordings from disk: found, decoded, mixed down, resampled, cut into windows, one block at a time.

Memory does not grow with the recording. Both preprocessing and prediction read through
``RecordingReader``, so they see the same samples.
"""

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from models.errors import AudioError
from utils.audio.ffmpeg import FORMATS
from utils.audio.streams import FileObject, Samples, Stream, open_stream
from utils.audio.windows import Part, PartCutter, Window

logger = logging.getLogger(__name__)

AUDIO_EXTENSIONS = frozenset(FORMATS)
SHORTEST_RECORDING_SECONDS = 0.05
_SILENT_PEAK = 2.0 ** -15  # one step of 16-bit audio: a recording that never exceeds it is silent
# of a block: large enough that Python is not felt, and short, for where a recording breaks off its last one is lost
_BLOCK_VALUES, _FEWEST_FRAMES = 1 << 16, 1 << 12
_MOST_SECONDS = 1.5
_LOWEST_RATE, _HIGHEST_RATE = 100, 20_000_000  # Hz: whales and bats lie between, damaged headers do not
_LARGEST_SAMPLE = 1e12  # integers of 32 bits pass that were stored as floats; their power still is a float32
WHOLE = ((0, None),)
# what a resampler that begins in the middle of a recording must have heard before it gives the same samples as one that
# began with it: samples of its own rate, and frames of the recording's
_LEAD_SAMPLES, _LEAD_FRAMES = 1024, 256


@dataclass(frozen=True)
class Outcome:
    """What became of a recording: the same for preprocessing and prediction.

    Parameters
    ----------
    status : str
        ``ok``, or the status of the ``AudioError`` that says why it could not be used.
    reason : str
        Why; with ``ok``, what was found wrong all the same, such as a broken end.
    duration_seconds : float or None
        Its length; None where it could not be read.
    sample_rate, channels : int or None
        As stored in the file.
    """

    status: str = "ok"
    reason: str = ""
    duration_seconds: float | None = None
    sample_rate: int | None = None
    channels: int | None = None


def find_recordings(folder: str | os.PathLike[str]) -> list[Path]:
    """Return every audio file below a folder, sorted, whatever the letter case of its extension.

    Symbolic links to folders are followed, each real folder once. Hidden files and folders (names that begin with a
    dot, such as macOS's ``._clip.wav``) are passed over. A folder that cannot be read is told as a warning.
    """
    found: list[str] = []
    seen = set()
    for parent, folders, names in os.walk(os.fspath(folder), followlinks=True, onerror=_tell_unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(parent, name) for name in names
                  if not name.startswith(".") and os.path.splitext(name)[1].lower() in AUDIO_EXTENSIONS]
    # by folder and name; sorted as text, for a path that is compared keeps its parts for ever
    return [Path(path) for path in sorted(found, key=lambda path: path.split(os.sep))]


def _tell_unreadable(error: OSError) -> None:
    logger.warning("the folder %s cannot be read (%s): what lies in it is left out; change its permissions",
                   error.filename, error.strerror)


class RecordingReader:
    """Reads one recording as mono float32 at a chosen rate.

    Parameters
    ----------
    recording : path-like, Samples or FileObject
        A file, or what stands for one.
    sample_rate : int or None
        Rate of the samples it yields, in Hz; the recording's own when None.
    on_block : callable, optional
        Called for every block that was decoded: a sign of life, however little a block gives.

    Attributes
    ----------
    native_sample_rate, channels : int
        As stored in the file.
    can_seek : bool
        Whether reading may begin anywhere without reading what comes before.
    n_samples : int or None
        Length at ``sample_rate`` as the header has it, which may be wrong; None where it does not tell.
    examine : callable or None
        To be set before reading: called with every block as it is stored, float32 ``(n, channels)`` at the recording's
        own rate, in order.
    damage : str
        Where and why the recording breaks off, once ``blocks`` is exhausted; empty where it is whole.

    Raises
    ------
    AudioError
        ``empty``, ``corrupt``, ``unsupported`` or ``timeout``, with the reason.
    """

    def __init__(self, recording: str | os.PathLike | Samples | FileObject, *, sample_rate: int | None,
                 on_block: Callable[[], None] | None = None) -> None:
        self.path = Path(recording.name if isinstance(recording, (Samples, FileObject)) else recording)
        self.damage = ""
        self._on_block = on_block
        self.examine: Callable[[np.ndarray], None] | None = None
        self._frames_read = 0
        try:
            self._source: Stream = open_stream(recording)
        except AudioError as error:
            raise AudioError(f"{self.path} {error}", status=error.status) from error
        self.native_sample_rate, self.channels = self._source.sample_rate, self._source.channels
        self.sample_rate = sample_rate or self.native_sample_rate
        self.can_seek = self._source.can_seek
        if not _LOWEST_RATE <= self.native_sample_rate <= _HIGHEST_RATE:
            self._source.close()
            raise AudioError(f"{self.path} says it has {self.native_sample_rate} samples a second, {_LOWEST_RATE} to"
                             f" {_HIGHEST_RATE} are possible: its header is damaged, copy it from the recorder again",
                             status="corrupt")

    def __enter__(self) -> "RecordingReader":
        return self

    def __exit__(self, *exception) -> None:
        self._source.close()

    @property
    def duration_seconds(self) -> float:
        """Seconds decoded so far; the recording's exact length once ``blocks`` is exhausted."""
        return self._frames_read / self.native_sample_rate

    @property
    def n_samples(self) -> int | None:
        """Samples that the header promises, at ``sample_rate``."""
        n_frames = self._source.n_frames
        return None if n_frames is None else math.ceil(n_frames * self.sample_rate / self.native_sample_rate)

    def blocks(self, *, start: int = 0) -> Iterator[np.ndarray]:
        """Yield the recording in order.

        A recording that breaks off after some sound ends there, and ``damage`` tells. Where it can be sought in, what
        comes before ``start`` is not read; the samples are those of a reading from the beginning but for the rounding
        of float32.

        Parameters
        ----------
        start : int
            First sample to yield, at ``sample_rate``.

        Yields
        ------
        numpy.ndarray
            float32 ``(n,)`` in [-1, 1] at ``sample_rate``; the mean of the channels.

        Raises
        ------
        AudioError
            ``corrupt`` when nothing can be decoded or samples are NaN, ``empty`` when there are none, ``timeout`` when
            the decoder hangs.
        """
        resampler = None
        if self.native_sample_rate != self.sample_rate:
            resampler = soxr.ResampleStream(self.native_sample_rate, self.sample_rate, 1, dtype="float32")
        try:
            position = self._seek(start)  # of the next sample, at sample_rate
        except AudioError as error:  # the header promises what is not there
            self.damage = self._breaks_off(error)
            return
        if self._source.warning:
            self.damage = f"{self.path} {self._source.warning}"
        n_dropped = start - position
        for block in self._native_blocks():
            with np.errstate(invalid="ignore", over="ignore"):  # what is no number is told below
                mono = block[:, 0] if self.channels == 1 else block.mean(axis=1)
            if not (mono.max() < _LARGEST_SAMPLE and mono.min() > -_LARGEST_SAMPLE):  # what NaN is not either
                raise AudioError(f"{self.path} holds samples that are not numbers (NaN, infinity or beyond"
                                 f" {_LARGEST_SAMPLE:g}): copy it from the recorder again", status="corrupt")
            samples = mono if resampler is None else resampler.resample_chunk(mono)
            position += len(samples)
            yield samples[n_dropped:]
            n_dropped = max(0, n_dropped - len(samples))
        if self._frames_read == 0:
            raise AudioError(f"{self.path} holds a header but no samples: copy it from the recorder again, or leave"
                             f" it out", status="empty")
        if resampler is not None:
            # rounded half down: the resampler itself rounds half a sample this way or that
            n_left = -((self.native_sample_rate - 2 * self._frames_read * self.sample_rate)
                       // (2 * self.native_sample_rate)) - position
            rest = resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True)
            yield rest[n_dropped:max(n_left, 0)]

    def _seek(self, start: int) -> int:
        """Go to where reading must begin so that ``start`` and all after it come out right; return that sample."""
        if not start or not self.can_seek:
            return 0
        # a place that both rates have a sample at
        common = math.gcd(self.native_sample_rate, self.sample_rate)
        frames, samples = self.native_sample_rate // common, self.sample_rate // common
        lead = 0 if frames == samples else _LEAD_SAMPLES + _LEAD_FRAMES * samples // frames
        number = max(0, start - lead) // samples
        self._frames_read = number * frames
        self._source.seek(number * frames)
        return number * samples

    def windows(self, *, segment_samples: int, hop_samples: int, least_new_samples: int,
                parts: Sequence[Part] = WHOLE, first_window: int = 0) -> Iterator[Window]:
        """Cut the recording, or parts of it, into windows as ``models.audio_frontend.segment_starts`` places them.

        One pass over the recording, whatever the parts are; it is always read to its end, so that its length is exact
        and damage is seen. Memory holds a window and a block of each part that is under way.

        Parameters
        ----------
        segment_samples, hop_samples, least_new_samples : int
            Window length, distance, and what a last window must add, in samples at ``sample_rate``.
        parts : sequence of (int, int or None)
            First sample and the one after the last; None is the end of the recording. They may overlap.
        first_window : int
            Number of the window to begin with, in each part. What lies before it is not read where that can be sought.

        Yields
        ------
        Window
            In order within a part, parts as they pass. A part wholly after the end gives none.
        """
        waiting = deque(sorted((PartCutter(index, first, end, segment_samples, hop_samples, least_new_samples,
                                           first_window=first_window)
                                for index, (first, end) in enumerate(parts)), key=lambda cutter: cutter.needed_from))
        under_way: list[PartCutter] = []
        position = waiting[0].needed_from if first_window else 0
        for block in self.blocks(start=position):
            end = position + len(block)
            while waiting and waiting[0].needed_from < end:
                under_way.append(waiting.popleft())
            for cutter in under_way:
                yield from cutter.feed(position, block)
                if cutter.is_over(end):
                    yield from cutter.finish()
            under_way = [cutter for cutter in under_way if not cutter.is_over(end)]
            position = end
        for cutter in under_way:
            yield from cutter.finish()

    def _breaks_off(self, error: AudioError) -> str:
        return (f"{self.path} breaks off after {self.duration_seconds:.1f} s ({error}): what comes before is used; copy"
                f" it from the recorder again for the rest")

    def _native_blocks(self) -> Iterator[np.ndarray]:
        # as many frames as give a block of the usual size, whatever the header says of rate and channels
        n_frames = min(_BLOCK_VALUES, _BLOCK_VALUES * self.native_sample_rate // self.sample_rate,
                       max(_FEWEST_FRAMES, int(_MOST_SECONDS * self.native_sample_rate)))
        blocks = self._source.blocks(max(1, n_frames // self.channels))
        while True:
            try:
                block = next(blocks, None)
            except AudioError as error:
                if error.status == "timeout" or self._frames_read == 0:
                    raise AudioError(f"{self.path} {error}", status=error.status) from error
                self.damage = self._breaks_off(error)
                return
            if block is None:
                return
            self._frames_read += len(block)
            if self._on_block is not None:
                self._on_block()
            if self.examine is not None:
                self.examine(block)
            yield block


def check_audible(path: str | os.PathLike, *, duration_seconds: float, peak: float) -> None:
    """Raise AudioError for a recording that holds nothing to learn from or to classify.

    Parameters
    ----------
    path : path-like
        For the message.
    duration_seconds : float
        Its length.
    peak : float
        Its highest absolute sample, 0..1.

    Raises
    ------
    AudioError
        ``too_short`` or ``silent``.
    """
    if duration_seconds < SHORTEST_RECORDING_SECONDS:
        raise AudioError(f"{path} lasts {duration_seconds:.4f} s, at least {SHORTEST_RECORDING_SECONDS} s are needed:"
                         f" leave it out", status="too_short")
    if peak <= _SILENT_PEAK:
        raise AudioError(f"{path} never exceeds one 16-bit step: digital silence, check the recorder's microphone",
                         status="silent")


def load_audio(path: str | os.PathLike, *, sample_rate: int) -> np.ndarray:
    """Read a whole recording; float32 ``(n_samples,)`` mono at ``sample_rate``. Raises AudioError."""
    with RecordingReader(path, sample_rate=sample_rate) as reader:
        return np.concatenate(list(reader.blocks()))
