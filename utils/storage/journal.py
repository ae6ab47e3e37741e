"""A list of finished work on disk, so that a run that was stopped goes on where it was.

The journal is read as a stream and knows only where each entry stands, so its size does not matter. What a result
holds is the business of whoever writes it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from models.errors import ConfigError

FORMAT_VERSION = 2
_FORGOTTEN = ""  # the key of an entry that no result counts under
_HEADER = {"journal": "NightScan", "format_version": FORMAT_VERSION}  # files of version 1 have no such line


def settings_key(*parts: Any) -> str:
    """Return a hash of JSON-able values: equal keys mean that finished work is still valid."""
    text = json.dumps(parts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Entry(NamedTuple):
    """One line of a journal: what kind of work, on what, under which key, and what came of it."""

    kind: str
    name: str
    key: str
    result: dict


class Journal:
    """An append-only file of JSON lines: a header, then one ``Entry`` a line; the last of a kind and name counts.

    Parameters
    ----------
    path : Path
        The file; made when missing.
    fresh : bool
        Do everything again. The entries so far stay on disk until ``finish``, and what is done meanwhile stands in a
        second file beside it, so a run that is stopped half-way goes on (``fresh`` or not) and forgets nothing.

    Raises
    ------
    ConfigError
        If the file was written by a later version.

    Notes
    -----
    A line that a kill cut off is ignored, so at most one result is lost.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self._next = path.with_name(f"{path.name}.new")
        self._places: dict[int, int] = {}  # a hash and a place: what a finished entry costs in memory
        path.parent.mkdir(parents=True, exist_ok=True)
        self._written = self._next if fresh or self._next.exists() else path
        # unbuffered: what is added is handed to the operating system at once, and nothing waits to fail a second time
        self._appending = open(self._written, "ab", buffering=0)
        self._stream: BinaryIO = open(self._written, "rb")
        try:
            self._index()
        except ConfigError:
            self._close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self._close()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is done yet."""
        return not self._places

    @property
    def path_size(self) -> int:
        """Bytes that are written."""
        return os.fstat(self._appending.fileno()).st_size

    def find(self, kind: str, name: str, key: str) -> dict | None:
        """Return the finished result of ``name``, or None when there is none with this key."""
        entry = self.latest(kind, name)
        return entry.result if entry is not None and entry.key == key else None

    def latest(self, kind: str, name: str) -> Entry | None:
        """Return what was written last of ``name``, under whatever key; None where there is nothing."""
        place = self._places.get(_digest(kind, name))
        if place is None:
            return None
        self._stream.seek(place)
        return _parse(self._stream.readline())

    def forget(self, kind: str, name: str) -> None:
        """Let no earlier result of ``name`` count: its files are about to be written over, and a kill may come."""
        if self._places.get(_digest(kind, name)) is not None:
            self.add(kind, name, _FORGOTTEN, {})

    def add(self, kind: str, name: str, key: str, result: dict) -> None:
        """Append a result and hand it to the operating system at once."""
        self._places[_digest(kind, name)] = self._append(
            {"kind": kind, "name": name, "key": key, "result": result})

    def entries(self) -> Iterator[Entry]:
        """Yield every entry there ever was, oldest first, those that count no more among them."""
        for path in dict.fromkeys((self.path, self._written)):
            if path.exists():
                with open(path, "rb") as stream:
                    yield from (entry for line in stream if (entry := _parse(line)) is not None)

    def finish(self) -> None:
        """Close the journal of a run that did all it had to; what a fresh run replaced is forgotten now."""
        self._close()
        if self._written != self.path:
            os.replace(self._written, self.path)

    def _append(self, line: dict) -> int:
        place = os.fstat(self._appending.fileno()).st_size
        self._write(json.dumps(line).encode("ascii") + b"\n", place)
        return place

    def _write(self, data: bytes, place: int) -> None:
        try:
            while data:
                data = data[self._appending.write(data) or 0:]
        except OSError as error:  # a full disk
            self._appending.truncate(place)
            raise OSError(error.errno, error.strerror, os.fspath(self._written)) from error

    def _close(self) -> None:
        self._stream.close()
        self._appending.close()

    def _index(self) -> None:
        self._stream.seek(0)
        place, line = 0, b"\n"
        for line in self._stream:
            entry = _parse(line)
            if entry is not None:
                self._places[_digest(entry.kind, entry.name)] = place
            elif place == 0:
                self._check_header(line)
            place += len(line)
        if not line.endswith(b"\n"):
            self._write(b"\n", place)
            place += 1
        if place == 0:
            self._append(_HEADER)

    def _check_header(self, line: bytes) -> None:
        header = _json_object(line)
        version = header.get("format_version", FORMAT_VERSION)
        if "journal" in header and version != FORMAT_VERSION:
            raise ConfigError(f"{self._written} has format_version {version!r}, this NightScan reads 1 and"
                              f" {FORMAT_VERSION}: use the version that wrote it, or remove the file to start anew")


def _digest(kind: str, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(json.dumps([kind, name]).encode(), digest_size=12).digest(), "big")


def _json_object(line: bytes) -> dict:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, or a number without end
        return {}
    return value if isinstance(value, dict) else {}


def _parse(line: bytes) -> Entry | None:
    """Return the entry of a line; None for the header and for what a kill or a stranger left."""
    value = _json_object(line)
    kind, name, key, result = (value.get(field) for field in Entry._fields)
    if isinstance(kind, str) and isinstance(name, str) and isinstance(key, str) and isinstance(result, dict):
        return Entry(kind, name, key, result)
    return None
