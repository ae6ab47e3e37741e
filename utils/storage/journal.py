"""A list of finished work on disk, so that a run that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def settings_key(*parts: Any) -> str:
    """Return a hash of JSON-able values: equal keys mean that finished work is still valid."""
    text = json.dumps(parts, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """An append-only file of JSON lines: kind, name, key, result.

    Parameters
    ----------
    path : Path
        The file; made when missing.
    fresh : bool
        Forget what is in it.

    Notes
    -----
    A line that was cut off by a kill is ignored, so at most one result is lost.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self.path = path
        self._entries: dict[tuple[str, str], tuple[str, dict]] = {}
        self._known_files: set[str] = set()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            self._read(fresh)
        self._stream = open(path, "w" if fresh else "a", encoding="utf-8")

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self._stream.close()

    def find(self, kind: str, name: str, key: str) -> dict | None:
        """Return the finished result of ``name``, or None when there is none with this key."""
        found_key, result = self._entries.get((kind, name), ("", None))
        return result if found_key == key else None

    def add(self, kind: str, name: str, key: str, result: dict) -> None:
        """Append a result and hand it to the operating system at once."""
        self._stream.write(json.dumps({"kind": kind, "name": name, "key": key, "result": result}) + "\n")
        self._stream.flush()

    def remove_stale(self, folder: Path, kept: Iterable[str]) -> None:
        """Delete files below ``folder`` that earlier runs made and that are not among ``kept``."""
        root = folder.resolve()
        for name in self._known_files - set(kept):
            path = (root / name).resolve()
            if path.is_relative_to(root) and path.suffix == ".npy":
                path.unlink(missing_ok=True)

    def _read(self, fresh: bool) -> None:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                result = entry["result"]
                files = [item["path"] for item in result.get("segments", result.get("rows", []))]
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                continue
            self._known_files.update(files)
            if not fresh:
                self._entries[entry["kind"], entry["name"]] = entry["key"], result
        if text and not text.endswith("\n") and not fresh:
            with open(self.path, "a", encoding="utf-8") as stream:
                stream.write("\n")
