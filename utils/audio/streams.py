"""Where the samples of a recording come from: a file, a file object, an array."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile as sf

from models.errors import AudioError, ConfigError
from utils.audio.ffmpeg import FfmpegStream
from utils.audio.wav_length import FileFrom, find_behind

# of these libsndfile finds any frame at once and exactly; a compressed frame needs those before it
_SEEKABLE_FORMATS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC"})
_LEAST_BEHIND_BYTES = 1 << 13  # less behind the chunks of a WAV file is no sound worth telling of
_SEEKABLE_SUBTYPES = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"})


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


@dataclass(frozen=True, eq=False)
class FileObject:
    """A recording in an open binary file, such as an upload; it is read from its beginning and stays open.

    Parameters
    ----------
    stream : binary file object
        It can seek.
    name : str
        What records and messages call it.
    """

    stream: BinaryIO
    name: str = "file object"


def open_stream(recording: str | os.PathLike | Samples | FileObject) -> "Stream":
    """Open a recording; an ``AudioError`` is worded to follow its name."""
    if isinstance(recording, Samples):
        return ArrayStream(recording)
    if isinstance(recording, FileObject):
        return _open_object(recording)
    return _open_file(Path(recording))


class Stream(Protocol):
    """Where the samples of a recording come from; an ``AudioError`` of it is worded to follow the file's name."""

    sample_rate: int
    channels: int
    can_seek: bool
    n_frames: int | None
    warning: str  # what is wrong with the file although it can be read; worded to follow its name

    def seek(self, frame: int) -> None:
        """Go to a frame; only where ``can_seek``."""

    def blocks(self, n_frames: int) -> Iterator[np.ndarray]:
        """Yield float32 ``(n, channels)`` in order, ``n`` in 1..n_frames."""

    def close(self) -> None:
        """Let go of the file."""


class ArrayStream:
    """Samples in memory."""

    def __init__(self, recording: Samples) -> None:
        self._values = recording.values[:, None] if recording.values.ndim == 1 else recording.values
        self.sample_rate, self.channels = recording.sample_rate, self._values.shape[1]
        self.can_seek, self._position, self.warning = True, 0, ""
        self.n_frames: int | None = len(self._values)

    def seek(self, frame: int) -> None:
        """See ``Stream.seek``."""
        self._position = frame

    def blocks(self, n_frames: int) -> Iterator[np.ndarray]:
        """See ``Stream.blocks``."""
        for first in range(self._position, len(self._values), n_frames):
            yield self._values[first:first + n_frames].astype(np.float32)

    def close(self) -> None:
        """See ``Stream.close``."""


class _ForwardSoundFile(sf.SoundFile):
    """A sound file that is only read on.

    soundfile seeks to where it is after every read. A decoder of MP3 then begins anew, without what it keeps of the
    frames before, so that every block would begin with a click.
    """

    def seekable(self) -> bool:
        """Whether to seek; never."""
        return False


class LibsndfileStream:
    """A file that libsndfile reads; ``warning`` is what is to be told of it."""

    def __init__(self, file: str | bytes | BinaryIO | FileFrom, **raw: Any) -> None:
        self._sound, self.warning = _ForwardSoundFile(file, **raw), ""
        self.sample_rate, self.channels = self._sound.samplerate, self._sound.channels
        self.can_seek = self._sound.format in _SEEKABLE_FORMATS | {"RAW"} and self._sound.subtype in _SEEKABLE_SUBTYPES
        self.n_frames: int | None = self._sound.frames if self.can_seek else None
        self.subtype = self._sound.subtype

    def seek(self, frame: int) -> None:
        """See ``Stream.seek``."""
        try:
            self._sound.seek(frame)
        except Exception as error:  # whatever a decoder raises is this file's
            raise AudioError(f"cannot be read at frame {frame}: {_reason(error)}", status="corrupt") from error

    def blocks(self, n_frames: int) -> Iterator[np.ndarray]:
        """See ``Stream.blocks``."""
        while True:
            try:
                block = self._sound.read(n_frames, dtype="float32", always_2d=True)
            except Exception as error:  # whatever a decoder raises is this file's
                raise AudioError(f"cannot be decoded further: {_reason(error)}", status="corrupt") from error
            if not len(block):
                return
            yield block

    def close(self) -> None:
        """See ``Stream.close``."""
        self._sound.close()


def _open_file(path: Path) -> Stream:
    try:
        status = path.stat()
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror}", status="corrupt") from error
    if not stat.S_ISREG(status.st_mode):
        raise AudioError("is no file: leave it out", status="unsupported")
    if status.st_size == 0:
        raise AudioError("has 0 bytes: copy it from the recorder again, or leave it out", status="empty")
    try:
        # bytes: soundfile encodes a name strictly, and not every name on Linux is UTF-8
        stream = LibsndfileStream(os.fspath(path) if os.name == "nt" else os.fsencode(path))
        return stream if status.st_size < _LEAST_BEHIND_BYTES else _with_what_lies_behind(path, stream)
    except Exception as error:  # whatever a decoder raises is this file's, and ffmpeg may know better
        return FfmpegStream(path, refused=_reason(error))


def _with_what_lies_behind(path: Path, stream: LibsndfileStream) -> LibsndfileStream:
    """Return a stream of all that a WAV file holds, also where its header cannot tell of it."""
    behind = find_behind(path)
    if behind.n_bytes < _LEAST_BEHIND_BYTES:
        return stream
    stream.warning = (f"holds {behind.n_bytes / 1e3:,.0f} kB behind what its header tells of, which are not read: copy"
                      f" it from the recorder again")
    if not behind.overflowed or stream.subtype not in _SEEKABLE_SUBTYPES:
        return stream
    stream.close()
    # libsndfile is told where the samples begin, and reads to the end of the file
    whole = LibsndfileStream(FileFrom(path, behind.data_begins), samplerate=stream.sample_rate,
                             channels=stream.channels, subtype=stream.subtype, format="RAW", endian="LITTLE")
    whole.warning = "is longer than a WAV header can tell: all that follows the header is taken for sound"
    return whole


def _open_object(recording: FileObject) -> Stream:
    try:
        recording.stream.seek(0)
        return LibsndfileStream(recording.stream)
    except Exception as error:  # whatever a decoder raises is this recording's
        raise AudioError(f"is not readable by libsndfile ({_reason(error)}): other formats are read from a file, save"
                         f" it first", status="unsupported") from error


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return text.strip().rstrip(".").splitlines()[0]
