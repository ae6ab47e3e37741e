"""Recordings from disk: found, decoded, mixed down, resampled, cut into windows, one block at a time.

Memory does not grow with the recording. Both preprocessing and prediction read through
``RecordingReader``, so they see the same samples.
"""

import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile as sf
import soxr

from models.errors import AudioError, ConfigError
from utils.audio.ffmpeg import FORMATS, FfmpegStream
from utils.audio.windows import Part, PartCutter, Window

logger = logging.getLogger(__name__)

AUDIO_EXTENSIONS = frozenset(FORMATS)
SHORTEST_RECORDING_SECONDS = 0.05
_SILENT_PEAK = 2.0 ** -15  # one step of 16-bit audio: a recording that never exceeds it is silent
# 1.5 s at 22.05 kHz: as much as may be lost before a break, large enough that Python is not felt
_BLOCK_VALUES = 1 << 15
_LOWEST_RATE, _HIGHEST_RATE = 100, 20_000_000  # Hz: whales and bats lie between, damaged headers do not
_LARGEST_SAMPLE = 1e12  # integers of 32 bits pass that were stored as floats; their power still is a float32
WHOLE = ((0, None),)


@dataclass(frozen=True, eq=False)
class Samples:
    """A recording that is already in memory.

    Parameters
    ----------
    values : numpy.ndarray
        Floating point ``(n_samples,)`` or ``(n_samples, n_channels)`` in [-1, 1].
    sample_rate : int
        Hz.
    name : str
        What records and messages call it.
    """

    values: np.ndarray
    sample_rate: int
    name: str = "samples"

    def __post_init__(self) -> None:
        if (self.values.ndim not in (1, 2) or 0 in self.values.shape[1:]
                or not np.issubdtype(self.values.dtype, np.floating)):
            raise ConfigError(f"samples must be floating point (n_samples,) or (n_samples, n_channels) in [-1, 1], got"
                              f" {self.values.dtype} {self.values.shape}: divide integers by their largest value")


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
    found, seen = [], set()
    for parent, folders, names in os.walk(os.fspath(folder), followlinks=True, onerror=_tell_unreadable):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_EXTENSIONS]
    return sorted(found)


def _tell_unreadable(error: OSError) -> None:
    logger.warning("the folder %s cannot be read (%s): what lies in it is left out; change its permissions",
                   error.filename, error.strerror)


class RecordingReader:
    """Reads one recording as mono float32 at a chosen rate.

    Parameters
    ----------
    recording : path-like or Samples
        A file, or what stands for one.
    sample_rate : int
        Rate of the samples it yields, in Hz.
    on_block : callable, optional
        Called for every block that was decoded: a sign of life, however little a block gives.

    Attributes
    ----------
    native_sample_rate, channels : int
        As stored in the file.
    damage : str
        Where and why the recording breaks off, once ``blocks`` is exhausted; empty where it is whole.

    Raises
    ------
    AudioError
        ``empty``, ``corrupt``, ``unsupported`` or ``timeout``, with the reason.
    """

    def __init__(self, recording: str | os.PathLike | Samples, *, sample_rate: int,
                 on_block: Callable[[], None] | None = None) -> None:
        self.path = Path(recording.name if isinstance(recording, Samples) else recording)
        self.sample_rate = sample_rate
        self.damage = ""
        self._on_block = on_block
        self._frames_read = 0
        try:
            self._source: _Stream = _ArrayStream(recording) if isinstance(recording, Samples) else _open(self.path)
        except AudioError as error:
            raise AudioError(f"{self.path} {error}", status=error.status) from error
        self.native_sample_rate, self.channels = self._source.sample_rate, self._source.channels
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

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the recording in order.

        A recording that breaks off after some sound ends there, and ``damage`` tells.

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
        for block in self._native_blocks():
            mono = block.mean(axis=1)
            if not np.abs(mono).max() < _LARGEST_SAMPLE:  # what NaN is not either
                raise AudioError(f"{self.path} holds samples that are not numbers (NaN, infinity or beyond"
                                 f" {_LARGEST_SAMPLE:g}): copy it from the recorder again", status="corrupt")
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if self._frames_read == 0:
            raise AudioError(f"{self.path} holds a header but no samples: copy it from the recorder again, or leave"
                             f" it out", status="empty")
        if resampler is not None:
            yield resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True)

    def windows(self, *, segment_samples: int, hop_samples: int, least_new_samples: int,
                parts: Sequence[Part] = WHOLE) -> Iterator[Window]:
        """Cut the recording, or parts of it, into windows as ``models.audio_frontend.segment_starts`` places them.

        One pass over the recording, whatever the parts are; it is always read to its end, so that its length is exact
        and damage is seen. Memory holds a window and a block of each part that is under way.

        Parameters
        ----------
        segment_samples, hop_samples, least_new_samples : int
            Window length, distance, and what a last window must add, in samples at ``sample_rate``.
        parts : sequence of (int, int or None)
            First sample and the one after the last; None is the end of the recording. They may overlap.

        Yields
        ------
        Window
            In order within a part, parts as they pass. A part wholly after the end gives none.
        """
        waiting = deque(sorted((PartCutter(index, first, end, segment_samples, hop_samples, least_new_samples)
                                for index, (first, end) in enumerate(parts)), key=lambda cutter: cutter.first))
        under_way: list[PartCutter] = []
        position = 0
        for block in self.blocks():
            end = position + len(block)
            while waiting and waiting[0].first < end:
                under_way.append(waiting.popleft())
            for cutter in under_way:
                yield from cutter.feed(position, block)
                if cutter.is_over(end):
                    yield from cutter.finish()
            under_way = [cutter for cutter in under_way if not cutter.is_over(end)]
            position = end
        for cutter in under_way:
            yield from cutter.finish()

    def _native_blocks(self) -> Iterator[np.ndarray]:
        # as many frames as give a block of the usual size, whatever the header says of rate and channels
        n_frames = min(_BLOCK_VALUES, _BLOCK_VALUES * self.native_sample_rate // self.sample_rate)
        blocks = self._source.blocks(max(1, n_frames // self.channels))
        while True:
            try:
                block = next(blocks, None)
            except AudioError as error:
                if error.status == "timeout" or self._frames_read == 0:
                    raise AudioError(f"{self.path} {error}", status=error.status) from error
                self.damage = (f"{self.path} breaks off after {self.duration_seconds:.1f} s ({error}): what comes"
                               f" before is used; copy it from the recorder again for the rest")
                return
            if block is None:
                return
            self._frames_read += len(block)
            if self._on_block is not None:
                self._on_block()
            yield block


class _Stream(Protocol):
    """Where the samples of a recording come from; an ``AudioError`` of it is worded to follow the file's name."""

    sample_rate: int
    channels: int

    def blocks(self, n_frames: int) -> Iterator[np.ndarray]:
        """Yield float32 ``(n, channels)`` in order, ``n`` in 1..n_frames."""

    def close(self) -> None:
        """Let go of the file."""


class _ArrayStream:
    """Samples in memory."""

    def __init__(self, recording: Samples) -> None:
        self._values = recording.values[:, None] if recording.values.ndim == 1 else recording.values
        self.sample_rate, self.channels = recording.sample_rate, self._values.shape[1]

    def blocks(self, n_frames: int) -> Iterator[np.ndarray]:
        for first in range(0, len(self._values), n_frames):
            yield self._values[first:first + n_frames].astype(np.float32)

    def close(self) -> None:
        pass


class _ForwardSoundFile(sf.SoundFile):
    """A sound file that is only read on.

    soundfile seeks to where it is after every read. A decoder of MP3 then begins anew, without what it keeps of the
    frames before, so that every block would begin with a click.
    """

    def seekable(self) -> bool:
        """Whether to seek; never."""
        return False


class _LibsndfileStream:
    """A file that libsndfile reads."""

    def __init__(self, path: Path) -> None:
        # bytes: soundfile encodes a name strictly, and not every name on Linux is UTF-8
        self._sound = _ForwardSoundFile(os.fspath(path) if os.name == "nt" else os.fsencode(path))
        self.sample_rate, self.channels = self._sound.samplerate, self._sound.channels

    def blocks(self, n_frames: int) -> Iterator[np.ndarray]:
        while True:
            try:
                block = self._sound.read(n_frames, dtype="float32", always_2d=True)
            except Exception as error:  # whatever a decoder raises is this file's
                raise AudioError(f"cannot be decoded further: {_reason(error)}", status="corrupt") from error
            if not len(block):
                return
            yield block

    def close(self) -> None:
        self._sound.close()


def _open(path: Path) -> _Stream:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror}", status="corrupt") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError("is no file: leave it out", status="unsupported")
    if status.st_size == 0:
        raise AudioError("has 0 bytes: copy it from the recorder again, or leave it out", status="empty")
    try:
        return _LibsndfileStream(path)
    except Exception as error:  # whatever a decoder raises is this file's, and ffmpeg may know better
        return FfmpegStream(path, refused=_reason(error))


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return text.strip().rstrip(".").splitlines()[0]


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
