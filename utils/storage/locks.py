"""One writer for an output: a second run is refused and told who holds it."""

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from models.errors import ConfigError
from utils.storage.files import read_json, remove_temporaries, write_json


@contextlib.contextmanager
def locked(folder: str | os.PathLike, *, output: str = "", endings: Sequence[str] = ()) -> Iterator[None]:
    """Hold a folder, or one output in it, while the block runs.

    The operating system frees the lock when its holder ends, however it ends. Temporary files that a killed run
    left are removed.

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
        lock.acquire(timeout=0)
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


def _describe(owner: Path) -> str:
    try:
        holder = read_json(owner)
    except ConfigError:  # the holder is about to write it, or has just removed it
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
