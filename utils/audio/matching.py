"""Which recording a table means, whatever machine its paths are from."""

import logging
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.audio.recordings import find_recordings
from utils.storage.names import name_to_text, text_to_name

logger = logging.getLogger(__name__)

_MOST_TOLD = 3  # candidates that a message names
_MOST_PARTS = 32  # folders of a path that are compared
# Windows goes to another drive without a slash too; elsewhere a colon may stand in a name
_DRIVE = re.compile(r"^[A-Za-z]:" if os.name == "nt" else r"^[A-Za-z]:(?=/|$)")


@dataclass(frozen=True)
class Match:
    """What was found for an entry of a table.

    Parameters
    ----------
    source_path : str
        The recording. Where none is found, where it would be: below the folder of all recordings all the same.
    is_found : bool
        Whether there is such a recording.
    problem : str
        Why none can be chosen; empty where one was, or none is there.
    """

    source_path: str
    is_found: bool
    problem: str = ""


def find_texts(input_dir: Path) -> list[str]:
    """Return the recordings below a folder as text, relative to it, sorted."""
    return [name_to_text(path.relative_to(input_dir).as_posix()) for path in find_recordings(input_dir)]


class RecordingIndex:
    """Recordings, to be found by the paths that tables hold.

    A path is taken as it stands where it is that of a recording, or leads to a file below the folder. Otherwise it may
    be from another machine (POSIX or Windows), and the recording is meant whose path ends like it for the longest.

    Parameters
    ----------
    paths : iterable of str
        The recordings, with forward slashes.
    root : Path or None
        Folder that ``paths`` are relative to, in which files that are no recordings by their names are found too; no
        file outside it is ever named. None: ``paths`` are all there is.
    place : str
        Where the recordings are, for messages.
    """

    def __init__(self, paths: Iterable[str], *, root: Path | None = None, place: str) -> None:
        self._root = None if root is None else Path(os.path.abspath(root))
        self.paths, self.place = list(paths), place
        self._known = frozenset(self.paths)
        self._of_tail: dict[str, list[str]] = defaultdict(list)
        self._of_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            for tail in _tails(path.split("/")):
                self._of_tail[tail].append(path)
            self._of_stem[posixpath.splitext(posixpath.basename(path))[0]].append(path)

    @classmethod
    def below(cls, input_dir: Path) -> "RecordingIndex":
        """Return the index of all recordings below a folder."""
        return cls(find_texts(input_dir), root=input_dir, place="below --input_dir")

    def locate(self, entries: Iterable[str]) -> dict[str, Match]:
        """Return what each entry means.

        Two entries that differ never mean one file: the one whose path agrees with it for longer has it, for recorders
        give equal names to files of different places.
        """
        matches = {entry: self._find(entry) for entry in dict.fromkeys(entries)}
        claims: dict[str, list[str]] = defaultdict(list)
        for entry, match in matches.items():
            if match.is_found:
                claims[match.source_path].append(entry)
        for path, claimants in claims.items():
            if len(claimants) > 1:
                matches.update(self._settle(path, claimants))
        _tell_by_name(matches)
        return matches

    def of_table(self, folder: str, stem: str) -> Match:
        """Return the recording that a table of annotations is about, by its name without endings and its folder.

        Parameters
        ----------
        folder : str
            Of the table, below that of all tables: a recording in the same folder counts before all others.
        stem : str
            Name of the recording, with or without its extension.
        """
        candidates = sorted({*self._of_stem.get(stem, ()), *self._of_tail.get(stem, ())})
        beside = [path for path in candidates if posixpath.dirname(path) == folder]
        above = {path: _n_common(_parts(posixpath.dirname(path)), _parts(folder)) for path in beside or candidates}
        most = max(above.values(), default=0)
        return _choose([path for path, n_common in above.items() if n_common == most], posixpath.join(folder, stem))

    def _find(self, entry: str) -> Match:
        # a backslash parts folders, or is the start of a byte that is no text
        spellings = list(dict.fromkeys((entry, entry.replace("\\", "/"))))
        for spelling in spellings:
            if inside := self._inside(spelling):
                return Match(inside, True)
        for tail in (tail for spelling in spellings for tail in _tails(_parts(spelling))):
            if tail in self._of_tail:
                return _choose(self._of_tail[tail], entry)
        parts = _parts(spellings[-1])
        return Match("/".join(parts), False, "" if parts else f"{entry!r} names no file")

    def _inside(self, entry: str) -> str:
        """Return the recording that an entry is, or the file below the folder that it leads to; empty if none."""
        plain = posixpath.normpath(entry) if entry else ""
        if plain in self._known:
            return plain
        if self._root is None:
            return ""
        target = os.path.normpath(self._root / text_to_name(entry))
        if target.startswith(os.path.join(self._root, "")) and os.path.isfile(target):
            return name_to_text(Path(target).relative_to(self._root).as_posix())
        return ""

    def _settle(self, path: str, claimants: Sequence[str]) -> dict[str, Match]:
        """Return the matches of entries that all seem to mean one file."""
        parts = {entry: _parts(entry.replace("\\", "/")) for entry in claimants}
        agreeing = {entry: _n_common(path.split("/"), parts[entry]) for entry in claimants}
        best = max(claimants, key=lambda entry: agreeing[entry])
        settled = {}
        for entry in claimants:
            if _n_common(parts[entry], parts[best]) == min(len(parts[entry]), len(parts[best])):
                continue  # one is the end of the other: two spellings of one path
            equal = agreeing[entry] == agreeing[best]
            settled[entry] = Match("/".join(parts[entry]), False,
                                   f"{entry!r} and {best!r} both may be {path}: give more of its path" if equal else "")
        return settled


def _tell_by_name(matches: Mapping[str, Match]) -> None:
    """Warn of recordings that were found by their names, in folders that are called otherwise."""
    by_name = [(entry, match.source_path) for entry, match in matches.items() if match.is_found
               and min(len(_parts(entry.replace("\\", "/"))), match.source_path.count("/") + 1) > 1
               and _n_common(_parts(entry.replace("\\", "/")), match.source_path.split("/")) == 1]
    if by_name:
        logger.warning("%d recordings lie in folders of other names than the labels say and are taken by their file"
                       " names (%s as %s): check that they are the same", len(by_name), *by_name[0])


def _choose(candidates: Sequence[str], entry: str) -> Match:
    """Return the only recording that an entry may mean, or why there is none."""
    if len(candidates) == 1:
        return Match(candidates[0], True)
    told = f"{', '.join(candidates[:_MOST_TOLD])}{', ...' if len(candidates) > _MOST_TOLD else ''}"
    problem = f"{entry!r} may be any of {len(candidates)} recordings ({told}): give more of its path"
    return Match("/".join(_parts(entry.replace("\\", "/"))), False, problem if candidates else "")


def _parts(entry: str) -> list[str]:
    """Return the folders and the name of a path, without what leads to another place: root, drive, ``..``."""
    return [part for part in _DRIVE.sub("", entry, count=1).split("/") if part not in ("", ".", "..")]


def _tails(parts: Sequence[str]) -> Iterator[str]:
    """Yield the ends of a path, the longest first."""
    for begin in range(min(len(parts), _MOST_PARTS), 0, -1):
        yield "/".join(parts[-begin:])


def _n_common(path: Sequence[str], other: Sequence[str]) -> int:
    """Return how many last parts two paths have in common."""
    pairs = zip(reversed(path), reversed(other))
    return next((n for n, (one, two) in enumerate(pairs) if one != two), min(len(path), len(other)))
