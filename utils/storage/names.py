r"""Names of files and recordings: writable in every table, safe on every system, told apart, inside their folder.

A file name on Linux is bytes, and not all bytes are text. Python keeps those that are not UTF-8 as lone surrogates,
which no table can hold. ``name_to_text`` writes them as ``\xe9``, ``text_to_name`` reads them back.
"""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from models.errors import ManifestError

LONGEST_NAME_BYTES = 255  # of a file or folder name, on all usual file systems
_MOST_STEM_CHARACTERS = 60
_MOST_STEM_BYTES = 180
_MOST_FOLDER_BYTES = 200
_SHORT_DIGEST, _LONG_DIGEST = 8, 32  # hexadecimal digits
_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")
_SURROGATE = re.compile("[\udc80-\udcff]")
_CONTROL = re.compile("[\x00-\x1f\x7f]")  # a table may break at them
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(?=\.|$)", re.IGNORECASE)  # on Windows, whatever follows the dot


def name_to_text(name: str | os.PathLike) -> str:
    """Return a path as text that UTF-8 can hold; ``text_to_name`` gives the path back."""
    text = os.fspath(name)
    if os.name == "nt":  # names are text there, and backslashes part folders
        return text
    # a name that itself reads like an escape has its backslash escaped, so that nothing is ambiguous
    text = _ESCAPE.sub(r"\\x5cx\1", text)
    text = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return _SURROGATE.sub(lambda found: f"\\x{ord(found[0]) - 0xdc00:02x}", text)


def text_to_name(text: str) -> str:
    """Return the path that ``name_to_text`` wrote."""
    if os.name == "nt":
        return text
    return _ESCAPE.sub(lambda found: _unescaped(int(found[1], 16), found[0]), text)


def _unescaped(value: int, text: str) -> str:
    if value == ord("\\") or _CONTROL.fullmatch(chr(value)):
        return chr(value)
    return chr(0xdc00 + value) if value >= 0x80 else text


def holds_control(text: str) -> bool:
    """Whether a text holds a control character: a line break, a tab, NUL."""
    return _CONTROL.search(text) is not None


def check_inside(folder: Path, entry: str, *, where: str, through_links: bool = False) -> Path:
    """Return the path that ``entry`` names below ``folder``; ManifestError when it lies outside.

    Parameters
    ----------
    folder : Path
        What must hold the file.
    entry : str
        Relative path, as ``name_to_text`` writes it.
    where : str
        Where the entry stands, for the message.
    through_links : bool
        Go where symbolic links in the folder lead: for a folder that the user has named, not one that came with the
        entry.
    """
    root = folder.resolve()
    target = root / text_to_name(entry)
    target = Path(os.path.normpath(target)) if through_links else target.resolve()
    if not entry or not target.is_relative_to(root):
        raise ManifestError(f"{where}: path {entry!r} is outside {folder}; only files below it are read")
    return target


def clip_id(source_path: str, *, n_digits: int = _SHORT_DIGEST) -> str:
    """Return a name for a source file: its stem made safe, and a hash that keeps equal stems apart."""
    return f"{short_stem(Path(source_path).stem)}-{_digest(source_path)[:n_digits]}"


def distinct_clip_ids(source_paths: Iterable[str]) -> dict[str, str]:
    """Return the ``clip_id`` of each source; where two would be the same, their hashes are longer.

    Eight digits keep names short, but among 100,000 equal stems two are the same with a probability of 0.69.
    """
    of_source = {path: clip_id(path) for path in source_paths}
    sources_of: dict[str, list[str]] = {}
    for path, own in of_source.items():
        sources_of.setdefault(own, []).append(path)
    for paths in sources_of.values():
        if len(paths) > 1:
            of_source.update((path, clip_id(path, n_digits=_LONG_DIGEST)) for path in paths)
    return of_source


def recording_hash(recording_id: str) -> str:
    """Return a short hash of a recording id: enough to find it in a list without telling its name."""
    return _digest(recording_id)[:12]


def folder_name(class_name: str) -> str:
    """Return a folder's name for a class; two classes never share one."""
    safe = safe_name(class_name)
    if safe == class_name and len(safe.encode()) <= _MOST_FOLDER_BYTES:
        return safe
    return f"{_cut(safe, _MOST_FOLDER_BYTES)}-{_digest(class_name)[:_SHORT_DIGEST]}"


def short_stem(text: str, *, most_bytes: int = _MOST_STEM_BYTES) -> str:
    """Return the start of a name, safe and short enough to be a part of a file's name."""
    return _cut(safe_name(text)[:_MOST_STEM_CHARACTERS], most_bytes)


def fitting_name(stem: str, ending: str) -> str:
    """Return a file's name: the stem as it is and an ending; too long a stem is cut and told apart by a hash."""
    name = stem + ending
    if len(os.fsencode(name)) <= LONGEST_NAME_BYTES:
        return name
    return f"{short_stem(stem)}-{_digest(name_to_text(stem))[:_SHORT_DIGEST]}{ending}"


def safe_name(text: str) -> str:
    """Return text usable as a file or folder name on every system."""
    return _RESERVED.sub(r"\1_", re.sub(r"[^\w.-]+", "_", text).strip("._")) or "unnamed"


def _cut(text: str, most_bytes: int) -> str:
    return text.encode()[:most_bytes].decode(errors="ignore")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
