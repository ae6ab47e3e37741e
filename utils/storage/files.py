"""Writing files whole or not at all, and reading text and JSON that strangers may have written."""

import codecs
import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from models.errors import ConfigError

_HASH_BLOCK_BYTES = 1 << 20
_TEMPORARY = re.compile(r"(\..*)\.[a-z0-9_]{8}\.tmp")  # what atomic_path makes
_NPY_HEADER_BYTES = 128  # numpy.lib.format 1.0, for any shape that has few dimensions
_NAME_SHARE = 40  # characters of the target's name in that of its temporary file


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, *, durable: bool = True) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that takes its name when the block succeeds.

    Parameters
    ----------
    path : path-like
        Where the file will stand; missing folders are made.
    durable : bool
        Wait until the disk has it, so that a power cut cannot leave an empty file under the final name. Thousands of
        small files that can be made again are better off without.

    Yields
    ------
    Path
        A temporary file in the same folder, removed when the block fails.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name[:_NAME_SHARE]}.", suffix=".tmp", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)
        if durable:
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


# mkstemp makes files that only their owner reads; finished files should have the user's usual mode
_UMASK = _read_umask()


def remove_temporaries(folder: Path, output: str = "", endings: Sequence[str] = ()) -> None:
    """Remove what ``atomic_path`` left when a run was killed, below a folder whose lock is held.

    Parameters
    ----------
    folder : Path
        Searched with all folders below it.
    output : str
        Only files of this name and one of the endings, in the folder itself; none where the name is too long to stand
        whole in that of a temporary file, for another output's would look alike.
    endings : sequence of str
        Such as ``.json``.
    """
    wanted = re.compile(rf"\.{re.escape(output)}(?:{'|'.join(map(re.escape, endings))})" if output else r"\..*")
    for parent, folders, names in os.walk(folder):
        if output:
            folders.clear()
        for name in names:
            temporary = _TEMPORARY.fullmatch(name)
            if temporary and wanted.fullmatch(temporary[1]):
                Path(parent, name).unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write ``text`` as UTF-8 with Unix line ends, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike, value: dict) -> None:
    """Write ``value`` as indented JSON, atomically; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def save_array(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write ``array`` as ``.npy``, atomically; after a power cut its size tells whether it is whole."""
    target = os.fspath(path)
    folder, name = os.path.split(target)
    # thousands of small files: fewer calls than atomic_path makes
    temporary = os.path.join(folder, f".{name[:_NAME_SHARE]}.{os.urandom(4).hex()}.tmp")
    try:
        with _opened_anew(temporary) as stream:
            np.save(stream, array, allow_pickle=False)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):  # where all went well it has its name
            os.unlink(temporary)


def _opened_anew(path: str) -> BinaryIO:
    try:
        return open(path, "xb")
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return open(path, "xb")


def is_whole_array(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a file that ``save_array`` wrote of a float32 array of this shape has its full size."""
    try:
        return path.stat().st_size == _NPY_HEADER_BYTES + 4 * math.prod(shape)
    except OSError:
        return False


def read_text(path: str | os.PathLike) -> str:
    """Read a text file in UTF-8, or in UTF-16 where its first bytes say so, as PowerShell writes it.

    Bytes that are not UTF-8 are kept as Python keeps those of file names, so that a list can name any file.
    """
    content = Path(path).read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    return content.decode("utf-8-sig", errors="surrogateescape")


def read_json(path: str | os.PathLike) -> dict:
    """Read a JSON object.

    Raises
    ------
    ConfigError
        If the file is missing, is not JSON that can be held, or holds no object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, or a number without end
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal text."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
