"""One writer for an output: a second run is refused and told who holds it."""

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from models.errors import ConfigError
from utils.storage.files import read_json, remove_temporaries, write_json

_LEAVING_SECONDS = 20.0  # for the workers of a killed run, which hold its lock until they see that: half a second


@contextlib.contextmanager
def locked(folder: str | os.PathLike, *, output: str = "", endings: Sequence[str] = ()) -> Iterator[None]:
    """Hold a folder, or one output in it, while the block runs.

    The operating system frees the lock when its holder and the workers that it forked have ended, however they end.
    Those of a killed run are waited for a while. Temporary files that it left are removed.

    Parameters
    ----------
    folder : path-like
        Made when missing.
    output : str
        Start of the names of the files that are written, where the folder may hold those of other runs too.
    endings : sequence of str
        What may follow it.

    Raises
    ------
    ConfigError
        If another process holds it; the message names that process.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / f".{output}.nightscan.lock" if output else place / ".nightscan.lock")
    # beside the lock: Windows lets nobody read a file that is locked
    owner = Path(f"{lock.lock_file}.owner")
    try:
        lock.acquire(timeout=_LEAVING_SECONDS if _has_ended(_holder(owner)) else 0)
    except Timeout as error:
        raise ConfigError(f"{place / output} is being written by {_describe(owner)}: wait until it is done, or choose"
                          f" another output") from error
    try:
        write_json(owner, {"pid": os.getpid(), "host": socket.gethostname(),
                           "since": datetime.now().astimezone().isoformat(timespec="seconds")})
        remove_temporaries(place, output, endings)
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _holder(owner: Path) -> Mapping:
    try:
        return read_json(owner)
    except ConfigError:  # the holder is about to write it, or has just removed it
        return {}


def _has_ended(holder: Mapping) -> bool:
    """Whether a holder is known to have ended; under Windows, which has no fork, its lock has ended with it."""
    pid = holder.get("pid")
    if os.name != "posix" or holder.get("host") != socket.gethostname() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):  # it is somebody else's, or no number of a process
        pass
    return False


def _describe(owner: Path) -> str:
    holder = _holder(owner)
    if not holder:
        return "another process"
    process = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
    return f"what is left of {process}, which has ended" if _has_ended(holder) else process
