"""WAV files that hold more than their header tells: a length of 32 bits overflows at 4 GB."""

import io
import os
import re
import struct
from pathlib import Path
from typing import NamedTuple

_CHUNK = struct.Struct("<4sI")
_RIFF_BYTES = 12  # before the first chunk
_NAME = re.compile(rb"[\w -]{4}", re.ASCII)
_MOST_BYTES = 1 << 32  # that a length of 32 bits tells of


class Behind(NamedTuple):
    """What lies behind the sound that a header tells of.

    Parameters
    ----------
    data_begins : int
        Place of the first sample in the file.
    n_bytes : int
        Bytes behind the last chunk; 0 where the chunks reach the end.
    overflowed : bool
        Whether the length could not be told in 32 bits, so that those bytes are sound too.
    """

    data_begins: int = 0
    n_bytes: int = 0
    overflowed: bool = False


def find_behind(path: str | os.PathLike) -> Behind:
    """Return what a RIFF file holds behind its last chunk; nothing for other files, and RF64 tells lengths of 64 bits.

    Parameters
    ----------
    path : path-like
        A file that can be read.
    """
    with open(path, "rb") as stream:
        if stream.read(4) != b"RIFF":
            return Behind()
        size, place, data_begins = os.fstat(stream.fileno()).st_size, _RIFF_BYTES, 0
        while place + _CHUNK.size <= size:
            stream.seek(place)
            name, length = _CHUNK.unpack(stream.read(_CHUNK.size))
            if data_begins and not _NAME.fullmatch(name):
                return Behind(data_begins, size - place, size > _MOST_BYTES)
            place += _CHUNK.size
            data_begins = place if name == b"data" and not data_begins else data_begins
            place += length + length % 2
    return Behind()


class FileFrom(io.RawIOBase):
    """A file without its beginning; it can be read and sought in.

    Parameters
    ----------
    path : Path
        The file.
    begins : int
        Place in it that is place 0 here.
    """

    def __init__(self, path: Path, begins: int) -> None:
        self._stream, self._begins = open(path, "rb", buffering=0), begins
        self._stream.seek(begins)

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def seekable(self) -> bool:
        """Whether it can be sought in."""
        return True

    def readinto(self, buffer) -> int | None:
        """Fill a buffer; return the number of bytes."""
        return self._stream.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; return it."""
        return self._stream.seek(offset + (self._begins if whence == os.SEEK_SET else 0), whence) - self._begins

    def tell(self) -> int:
        """Return the place."""
        return self._stream.tell() - self._begins

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
        super().close()
