"""What prediction found, read back from any of the formats it writes that tell where a detection lies."""

import csv
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from models.errors import ManifestError
from utils.audio.annotation_tables import read_annotation_tables
from utils.audio.annotations import read_annotations
from utils.audio.matching import RecordingIndex
from utils.prediction.outputs import RECORDINGS, output_path

_READ_CHARACTERS = 1 << 18
_MOST_CHARACTERS = 1 << 24  # of one value: what is longer is no record
_AFTER_VALUES = frozenset(" \t\r\n,:]}")
_MOST_SECONDS = 1e9  # of a recording: 30 years
_FOLDER_ENDINGS = (".raven", ".audacity")
_NEEDED = ("file_path", "predicted_class", "confidence", "above_threshold", "segment_start_ms", "segment_end_ms")
# Windows parts folders so; elsewhere it begins an escaped byte
_BACKSLASH = re.compile(r"\\(?!x[0-9a-f]{2})")


class Event(NamedTuple):
    """A stretch of a recording in which a class is heard.

    Parameters
    ----------
    start_ms, end_ms : int
        In the recording, the end above the start.
    class_name : str
        What is heard.
    confidence : float or None
        0..1; None of an annotation, and where the format does not tell.
    """

    start_ms: int
    end_ms: int
    class_name: str
    confidence: float | None = None


class Heard(NamedTuple):
    """What became of a recording: ``ok`` or why it could not be used, and its length in seconds."""

    status: str
    duration_seconds: float


@dataclass(frozen=True)
class Predictions:
    """What a run of prediction found.

    Parameters
    ----------
    path : Path
        Where it was read.
    recordings : mapping of str to Heard
        Every recording of the run, with forward slashes, also those in which nothing was found.
    detections : mapping of str to list of Event
        By recording, where there are any: segments, or detections joined of them, that reached their threshold.
    class_names : tuple of str
        What the model knows; empty where the format does not tell.
    """

    path: Path
    recordings: Mapping[str, Heard]
    detections: Mapping[str, list[Event]]
    class_names: tuple[str, ...] = ()


@dataclass
class _Found:
    recordings: dict[str, Heard] = field(default_factory=dict)
    detections: dict[str, list[Event]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()

    def add(self, path: str, found: Event) -> None:
        if found.confidence is not None and not 0 <= found.confidence <= 1:
            raise ManifestError(f"a confidence must be in 0..1, got {found.confidence} of {found.class_name!r} in"
                                f" {path}: give what predict_efficientnet.py wrote as --predictions")
        self.detections.setdefault(path, []).append(found)


def event(start_seconds: float, end_seconds: float, class_name: str, confidence: float | None = None) -> Event:
    """Return an event of times in seconds, a millisecond long at least; ManifestError for times no recording has."""
    if not (0 <= start_seconds <= _MOST_SECONDS and 0 <= end_seconds <= _MOST_SECONDS):
        raise ManifestError(f"a time must be in 0..{_MOST_SECONDS:g} s, got {start_seconds:g} to {end_seconds:g} s of"
                            f" {class_name!r}: correct it")
    start = round(1000 * start_seconds)
    return Event(start, max(start + 1, round(1000 * end_seconds)), sys.intern(class_name), confidence)


def read_detections(path: str | os.PathLike) -> Predictions:
    """Read what ``predict_efficientnet.py --segment_mode`` wrote.

    Parameters
    ----------
    path : path-like
        ``results.json``, which is read record by record; or ``results.csv``, ``results.selections.txt``,
        ``results.birdnet.csv``, or the folder ``results.raven`` or ``results.audacity``, beside which
        ``results.recordings.csv`` says what was heard. Audacity's labels have no confidence.

    Raises
    ------
    ManifestError
        If the file is none of these or damaged, tells a result per file only, or does not tell which recording is
        meant.
    """
    place = Path(path)
    if not place.exists():
        raise ManifestError(f"--predictions {place} does not exist: give what predict_efficientnet.py wrote")
    if place.suffix.lower() == ".json":
        found = _read_json(place)
    elif place.is_file() and "predicted_class" in _header(place):
        found = _read_csv(place)
    else:
        found = _read_marked(place)
    strangers = sorted(set(found.detections) - set(found.recordings))
    if strangers:
        raise ManifestError(f"{place} has detections in {strangers[0]}, which its recordings lack: give a file and its"
                            f" {RECORDINGS.ending} of one run")
    return Predictions(place, found.recordings, found.detections, found.class_names)


# results.json

def _read_json(path: Path) -> _Found:
    found, settings = _Found(), None
    try:
        for number, (name, value) in enumerate(json_members(path)):
            if name == "settings":
                settings = value
                _check_segments(path, bool(value["segment_mode"]))
            elif name == "model":
                found.class_names = tuple(map(str, value["class_names"]))
            elif name == "predictions":
                _add_record(found, value)
            elif name == "recordings":
                _add_recording(found, value)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ManifestError(f"{path}, value {number} ({name}): not as predict_efficientnet.py writes it ({error!r})"
                            ) from error
    if settings is None or not found.recordings:
        raise ManifestError(f"{path} lacks {'settings' if settings is None else 'recordings'}: it is no whole"
                            f" results.json of predict_efficientnet.py; predict again")
    return found


def _check_segments(path: Path, is_segments: bool) -> None:
    if not is_segments:
        raise ManifestError(f"{path} has one result per file, which tells not when anything was heard: predict with"
                            f" --segment_mode")


def _add_record(found: _Found, record: Mapping[str, Any]) -> None:
    if str(record["above_threshold"]) == "True":
        start, end = (float(record[f"segment_{side}_ms"]) / 1000 for side in ("start", "end"))
        found.add(forward(record["file_path"]), event(start, end, record["predicted_class"],
                                                      float(record["confidence"])))


def _add_recording(found: _Found, row: Mapping[str, Any]) -> None:
    found.recordings[forward(row["file_path"])] = Heard(row["status"], float(row["duration_seconds"] or 0))


def forward(path: str) -> str:
    """Return a path as tables of this project have it, with forward slashes whatever system wrote it."""
    return _BACKSLASH.sub("/", path)


def json_members(path: str | os.PathLike) -> Iterator[tuple[str, Any]]:
    """Yield the name and the value of each member of a JSON object; of a list each of its items.

    No more than one value is held, however large the file is.

    Raises
    ------
    ManifestError
        If it is no JSON object, or ends early.
    """
    try:
        with open(path, encoding="utf-8-sig") as stream:
            yield from _JsonReader(stream).members()
    except (ValueError, RecursionError, OSError) as error:  # ValueError: no JSON, or no UTF-8
        raise ManifestError(f"{path} cannot be read as JSON: {error}") from error


class _JsonReader:
    """Takes values off a text, of which it holds the part that it is at."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._decoder = stream, json.JSONDecoder()
        self._text, self._at = "", 0

    def members(self) -> Iterator[tuple[str, Any]]:
        self._take("{")
        while self._peek() != "}":
            name = self._value()
            self._take(":")
            if self._peek() == "[":
                yield from ((name, item) for item in self._items())
            else:
                yield name, self._value()
            if self._take(",}") == "}":
                return

    def _items(self) -> Iterator[Any]:
        self._take("[")
        if self._peek() == "]":
            self._take("]")
            return
        while True:
            yield self._value()
            if self._take(",]") == "]":
                return

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError:
                if not self._more():
                    raise
                continue
            # cut after its first digits or its point, a number is one too
            if self._text[end:end + 1] in _AFTER_VALUES or not self._more():
                self._at = end
                return value

    def _take(self, wanted: str) -> str:
        found = self._peek()
        if not found or found not in wanted:
            raise ValueError(f"{' or '.join(wanted)} is expected, got {found or 'the end of the file'}")
        self._at += 1
        return found

    def _peek(self) -> str:
        """Return the next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at].isspace():
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Hold more of the text; False where there is no more, or a value has no end."""
        if len(self._text) - self._at > _MOST_CHARACTERS:
            return False
        block = self._stream.read(_READ_CHARACTERS)
        self._text, self._at = self._text[self._at:] + block, 0
        return bool(block)


# tables

def _read_csv(path: Path) -> _Found:
    found = _recordings_beside(path)
    for line, row in _rows(path):
        if row.get("status") != "ok":
            continue
        _check_segments(path, "segment_start_ms" in row)
        try:
            _add_record(found, row)
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{path} line {line}: not as predict_efficientnet.py writes it ({error!r}): its columns"
                                f" are {', '.join(_NEEDED)}") from error
    return found


def _read_marked(path: Path) -> _Found:
    """Read tables of marked sounds, which may name recordings without their folders."""
    found = _recordings_beside(path)
    if path.is_file() and not read_annotations(path):
        return found
    index = RecordingIndex(found.recordings, place="among the recordings that were heard")
    tables = read_annotation_tables(path, index)
    if tables.problems:
        raise ManifestError(f"{tables.problems[0]}; results.json tells it for sure")
    for recording, marks in tables.marks.items():
        for sound in marks.sounds:
            found.add(recording, event(sound.start_seconds, sound.end_seconds, sound.label, sound.confidence))
    return found


def _recordings_beside(path: Path) -> _Found:
    """Read what was heard, from the table that stands beside every other."""
    output = path.with_suffix("") if path.suffix.lower() in _FOLDER_ENDINGS else path
    table, found = output_path(output, RECORDINGS.ending), _Found()
    if not table.is_file():
        raise ManifestError(f"{table} is not beside {path}: without it nobody knows what was heard and held nothing;"
                            f" copy it there, or give results.json as --predictions")
    for line, row in _rows(table):
        try:
            _add_recording(found, row)
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{table} line {line}: not as predict_efficientnet.py writes it ({error!r})") from error
    return found


def _header(path: Path) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as stream:
        return stream.readline()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path} is no readable table: {error}") from error
