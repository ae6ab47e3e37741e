"""What a Dask worker does of a command: see that it is fit for it, then work on an item that it can give up."""

import contextlib
import ctypes
import functools
import hashlib
import os
import pickle
import queue
import socket
import threading
from pathlib import Path
from typing import Any, NoReturn

from models.errors import ConfigError
from utils.running.parallel import Done, Lost, Work, report_alive_to

# code: hash of NightScan's own; folder that is written to; for each shared file: what messages call it, path, stamp.
# Plain types, for a worker with other code must be able to read it.
Expected = tuple[str, str | None, tuple[tuple[str, str, str], ...]]

_PROJECT = Path(__file__).resolve().parents[2]
_END_BYTES = 1 << 16
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_ALIVE, _OVER = True, False


def perform(expected: Expected, payload: bytes | None) -> list[Any]:
    """Work on an item, once it is certain that this worker has the same code and files as the command.

    Parameters
    ----------
    expected : tuple
        What the command has.
    payload : bytes or None
        The pickled ``(work, item, silence_seconds)``; None asks only whether the worker is fit.

    Returns
    -------
    list
        The parts of the item and ``Done``, or ``Lost`` when it gave no sign of life for so long: what hangs is left to
        itself, in a thread.

    Raises
    ------
    ConfigError
        If the worker is not fit.
    Exception
        Whatever ``work`` raised.
    """
    _require(*expected)
    _keep_memory()
    if payload is None:
        return []
    work, item, silence_seconds = pickle.loads(payload)
    return _Doing(work, item).parts_within(silence_seconds)


@functools.lru_cache(maxsize=1)
def code_hash() -> str:
    """Return the SHA-256 of NightScan's code as it was when first asked for, which is soon after it was imported."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ("models", "utils") for path in (_PROJECT / room).rglob("*.py")):
        digest.update(path.relative_to(_PROJECT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def stamp(path: str | os.PathLike) -> str | None:
    """Return what tells a file from others, its size and the hash of both ends; None where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            ends = stream.read(_END_BYTES)
            stream.seek(max(len(ends), size - _END_BYTES))
            return f"{size}:{hashlib.sha256(ends + stream.read(_END_BYTES)).hexdigest()}"
    except OSError:
        return None


@functools.lru_cache(maxsize=8)  # an error is not kept: what was wrong may be mended
def _require(code: str, folder: str | None, files: tuple[tuple[str, str, str], ...]) -> None:
    if code != code_hash():
        _refuse("has other NightScan code: bring its folder up to date and start the worker again")
    for name, path, expected in files:
        if stamp(path) != expected:
            _refuse(f"does not see {name}, or something else there: mount the storage on every worker under the same"
                    f" path as here")
    if folder is not None and not os.access(folder, os.W_OK):
        _refuse(f"may not write to {folder}: start it as a user who may")


def _refuse(reason: str) -> NoReturn:
    raise ConfigError(f"--cluster: the worker on {socket.gethostname()} {reason}")


@functools.lru_cache(maxsize=1)
def _keep_memory() -> None:
    """Undo that Dask has workers give every array back to the system, which makes preparing take 1.8 times as long."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # it does so, and can be undone, with glibc only
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 256 << 20)


class _Doing(threading.Thread):
    """An item that is worked on, in a thread of its own."""

    def __init__(self, work: Work, item: Any) -> None:
        super().__init__(daemon=True)
        self._work, self._item = work, item
        self._parts: list[Any] = []
        self._error: Exception | None = None
        self._signs: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def run(self) -> None:
        report_alive_to(lambda: self._signs.put(_ALIVE))
        try:
            for part in self._work(self._item):
                self._parts.append(part)
                self._signs.put(_ALIVE)
        except Exception as error:  # not to go on: it is raised where the item is waited for
            self._error = error
        self._signs.put(_OVER)

    def parts_within(self, silence_seconds: float) -> list[Any]:
        """Start, and return the parts once they are all there, or those that are when it falls silent."""
        self.start()
        try:
            while self._signs.get(timeout=silence_seconds) is not _OVER:
                pass
        except queue.Empty:
            return [*self._parts, Lost.silent(silence_seconds)]
        if self._error is not None:
            raise self._error
        return [*self._parts, Done()]
