"""Tables of marked sounds that other programs read and write: Raven, Audacity, BirdNET."""

import csv
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import ManifestError

RAVEN_COLUMNS = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)",
                 "Begin File", "File Offset (s)", "Species", "Confidence")
BIRDNET_COLUMNS = ("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File")
_RAVEN_LABELS = ("Species", "Annotation", "Common Name", "Tags", "Label", "Class")
_RAVEN_FILES = ("Begin Path", "Begin File")
_AUDACITY_FREQUENCIES = "\\"  # begins a line that only says how high the sound before it is


@dataclass(frozen=True)
class MarkedSound:
    """A stretch of a recording and what is heard in it.

    Parameters
    ----------
    start_seconds, end_seconds : float
        In the recording.
    label : str
        What is heard.
    confidence : float or None
        How sure that is, 0..1; None where the table does not tell.
    file_path : str
        The recording; empty where the table does not tell.
    """

    start_seconds: float
    end_seconds: float
    label: str
    confidence: float | None = None
    file_path: str = ""


def raven_row(sound: MarkedSound, *, number: int, low_hertz: float, high_hertz: float,
              opened_seconds: float = 0.0) -> list:
    """Return a row of a Raven selection table.

    Parameters
    ----------
    sound : MarkedSound
        In its recording.
    number : int
        Of the selection, from 1.
    low_hertz, high_hertz : float
        What the selection's box spans.
    opened_seconds : float
        Length of the recordings that Raven has opened before this one: its times run through all of them.
    """
    return [number, "Spectrogram 1", 1, f"{opened_seconds + sound.start_seconds:.6f}",
            f"{opened_seconds + sound.end_seconds:.6f}", str(float(low_hertz)), str(float(high_hertz)),
            Path(sound.file_path).name, f"{sound.start_seconds:.6f}", _one_line(sound.label),
            "" if sound.confidence is None else f"{sound.confidence:.6f}"]


def audacity_line(sound: MarkedSound) -> str:
    """Return a line of an Audacity label track; what would end its field or line becomes a space."""
    label = " ".join(sound.label.split())
    return f"{sound.start_seconds:.6f}\t{sound.end_seconds:.6f}\t{label}\n"


def birdnet_row(sound: MarkedSound) -> list:
    """Return a row of BirdNET's CSV; the class stands for both names."""
    label = _one_line(sound.label)
    return [f"{sound.start_seconds:.6f}", f"{sound.end_seconds:.6f}", label, label,
            "" if sound.confidence is None else f"{sound.confidence:.6f}", sound.file_path]


def read_raven(path: str | os.PathLike) -> list[MarkedSound]:
    """Read a Raven selection table; times are those in the recording, also where Raven had opened several.

    Raises
    ------
    ManifestError
        If it is no such table.
    """
    sounds = []
    for line, row in _rows(path, "\t", required=("Begin Time (s)", "End Time (s)")):
        begin, end = (_seconds(row[name], path, line) for name in ("Begin Time (s)", "End Time (s)"))
        if row.get("File Offset (s)"):
            offset = _seconds(row["File Offset (s)"], path, line)
            begin, end = offset, end_in_file(begin=begin, end=end, offset=offset)
        sounds.append(MarkedSound(begin, end, _first(row, _RAVEN_LABELS),
                                  _score(row.get("Confidence") or row.get("Score"), path, line),
                                  _first(row, _RAVEN_FILES)))
    return sounds


def end_in_file(*, begin: float, end: float, offset: float) -> float:
    """Return where a Raven selection ends in its file: its times run through all files opened, its offset does not."""
    return offset + (end - begin)


def read_audacity(path: str | os.PathLike) -> list[MarkedSound]:
    """Read an Audacity label track; ManifestError where it is none."""
    sounds = []
    for line, text in enumerate(_lines(path), start=1):
        fields = text.rstrip("\r\n").split("\t")
        if fields == [""] or fields[0] == _AUDACITY_FREQUENCIES:
            continue
        if len(fields) < 3:
            raise ManifestError(f"{path} line {line}: an Audacity label has start, end and label with tabs between, got"
                                f" {text.strip()[:60]!r}")
        sounds.append(MarkedSound(_seconds(fields[0], path, line), _seconds(fields[1], path, line), fields[2]))
    return sounds


def read_birdnet(path: str | os.PathLike) -> list[MarkedSound]:
    """Read BirdNET's CSV; ManifestError where it is none."""
    return [MarkedSound(_seconds(row["Start (s)"], path, line), _seconds(row["End (s)"], path, line),
                        row["Common name"], _score(row.get("Confidence"), path, line), row.get("File") or "")
            for line, row in _rows(path, ",", required=("Start (s)", "End (s)", "Common name"))]


def _rows(path: str | os.PathLike, delimiter: str, *, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    reader = csv.DictReader(_lines(path), delimiter=delimiter)
    missing = [name for name in required if name not in (reader.fieldnames or ())]
    if missing:
        raise ManifestError(f"{path} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}")
    for row in reader:
        yield reader.line_num, row


def _lines(path: str | os.PathLike) -> list[str]:
    """Return the lines of a text with their ends, which may stand in a quoted field."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            return list(stream)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is no text in UTF-8 ({error.reason}): save it as UTF-8") from error


def _one_line(label: str) -> str:
    return re.sub(r"[\r\n]+", " ", label)


def _score(text: str | None, path: str | os.PathLike, line: int) -> float | None:
    try:
        return float(text) if text else None
    except ValueError as error:
        raise ManifestError(f"{path} line {line}: a confidence must be a number, got {text!r}") from error


def _first(row: dict[str, str], names: Sequence[str]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _seconds(text: str | None, path: str | os.PathLike, line: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise ManifestError(f"{path} line {line}: a time must be seconds, 0 or more, got {text!r}")
    return value
