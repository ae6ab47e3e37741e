"""Tables of marked sounds that other programs read and write: Raven, Audacity, BirdNET, and the review page."""

import csv
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.efficientnet_config import BACKGROUND_CLASS
from models.errors import ManifestError

RAVEN_COLUMNS = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)",
                 "Begin File", "File Offset (s)", "Species", "Confidence")
BIRDNET_COLUMNS = ("Start (s)", "End (s)", "Scientific name", "Common name", "Confidence", "File")
DECISION_COLUMNS = ("file_path", "start_seconds", "end_seconds", "model_class", "confidence", "decision", "label",
                    "reviewed_at")
_RAVEN_TIMES = ("Begin Time (s)", "End Time (s)")
_RAVEN_LABELS = ("species", "annotation", "annotations", "common name", "tags", "label", "class")
_RAVEN_FILES = ("Begin Path", "Begin File")
_RAVEN_LOW, _RAVEN_HIGH = ("Low Freq (Hz)", "Low Frequency (Hz)"), ("High Freq (Hz)", "High Frequency (Hz)")
# what Raven and detectors write beside an annotation; a measurement's name ends with its unit or its relation
_RAVEN_STANDARD = frozenset({
    "", "selection", "view", "channel", "begin file", "end file", "begin path", "end path", "begin date", "end date",
    "begin date time", "end date time", "begin clock time", "end clock time", "begin hour", "species code",
    "confidence", "score", "occupancy", "detector", "template", "pfc num inf pts"})
_MEASUREMENT = re.compile(r"(\)|\brel\.?|\brelative)$")
_AUDACITY_FREQUENCIES = "\\"  # begins a line that only says how high the sound before it is
_NANOSECOND_DIGITS = 9  # finer than any table is written; what a difference of two times adds below it is rounding
_DECISIONS = ("confirmed", "relabelled", "rejected")


@dataclass(frozen=True)
class MarkedSound:
    """A stretch of a recording and what is heard in it.

    Parameters
    ----------
    start_seconds, end_seconds : float
        In the recording.
    label : str
        What is heard; empty where somebody drew a box and wrote nothing.
    confidence : float or None
        How sure that is, 0..1; None where the table does not tell.
    file_path : str
        The recording; empty where the table does not tell.
    low_hertz, high_hertz : float or None
        Frequencies it lies between; None where the table does not tell.
    """

    start_seconds: float
    end_seconds: float
    label: str
    confidence: float | None = None
    file_path: str = ""
    low_hertz: float | None = None
    high_hertz: float | None = None


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
        What the selection's box spans where the sound does not tell.
    opened_seconds : float
        Length of the recordings that Raven has opened before this one: its times run through all of them.
    """
    low = low_hertz if sound.low_hertz is None else sound.low_hertz
    high = high_hertz if sound.high_hertz is None else sound.high_hertz
    return [number, "Spectrogram 1", 1, f"{opened_seconds + sound.start_seconds:.6f}",
            f"{opened_seconds + sound.end_seconds:.6f}", str(float(low)), str(float(high)),
            Path(sound.file_path).name, f"{sound.start_seconds:.6f}", one_field(sound.label),
            "" if sound.confidence is None else f"{sound.confidence:.6f}"]


def audacity_line(sound: MarkedSound) -> str:
    """Return a label of an Audacity track: a line, and one below it for the frequencies where the sound tells them."""
    text = f"{sound.start_seconds:.6f}\t{sound.end_seconds:.6f}\t{one_field(sound.label)}\n"
    if sound.low_hertz is None and sound.high_hertz is None:
        return text
    low, high = (-1.0 if value is None else value for value in (sound.low_hertz, sound.high_hertz))
    return text + f"{_AUDACITY_FREQUENCIES}\t{low:.6f}\t{high:.6f}\n"


def birdnet_row(sound: MarkedSound) -> list:
    """Return a row of BirdNET's CSV; the class stands for both names."""
    label = one_field(sound.label)
    return [f"{sound.start_seconds:.6f}", f"{sound.end_seconds:.6f}", label, label,
            "" if sound.confidence is None else f"{sound.confidence:.6f}", sound.file_path]


def one_field(label: str) -> str:
    """Return a label as tables hold it: what ends a field, a line or a text in programs without quotes is a space."""
    return re.sub(r"[\t\r\n\0]+", " ", label)


def read_annotations(path: str | os.PathLike, *, label_column: str | None = None,
                     background_label: str = BACKGROUND_CLASS) -> list[MarkedSound]:
    """Read a table of marked sounds, whichever of the dialects it is in; its content tells.

    Parameters
    ----------
    path : path-like
        A Raven selection table, an Audacity label track, BirdNET's CSV, or the decisions of the review page. A text
        that holds nothing is a label track without labels.
    label_column : str or None
        Column that holds the labels of a table; None looks for a usual name.
    background_label : str
        Label of a detection that was rejected.

    Raises
    ------
    ManifestError
        If it is none of these, or damaged.
    """
    kind = annotation_kind(path)
    if kind == "raven":
        return read_raven(path, label_column=label_column)
    if kind == "birdnet":
        return read_birdnet(path, label_column=label_column)
    return read_decisions(path, background_label=background_label) if kind == "decisions" else read_audacity(path)


def annotation_kind(path: str | os.PathLike) -> str:
    """Return ``raven``, ``audacity``, ``birdnet`` or ``decisions``; ManifestError where a table is none of these."""
    head = next((line for line in _lines(path) if line.strip()), "")
    names = set(next(csv.reader([head], delimiter=_delimiter(head))))
    if _RAVEN_TIMES[0] in names:
        return "raven"
    if is_decisions(names):
        return "decisions"
    if BIRDNET_COLUMNS[0] in names:
        return "birdnet"
    if not head or all(_is_number(field) for field in head.split("\t")[:2]):
        return "audacity"
    raise ManifestError(f"{path} is no Raven, Audacity or BirdNET table and no review: it begins with"
                        f" {head.strip()[:60]!r}; leave it out, or give a table of labels as --labels_csv")


def read_raven(path: str | os.PathLike, *, label_column: str | None = None) -> list[MarkedSound]:
    """Read a Raven selection table; times are those in the recording, also where Raven had opened several.

    A selection that has a row for the waveform and one for the spectrogram counts once.

    Parameters
    ----------
    path : path-like
        The table.
    label_column : str or None
        Column of the labels; None takes the columns of usual names, or else the only one that is not Raven's own.

    Raises
    ------
    ManifestError
        If it is no such table, or several columns may hold the labels.
    """
    rows = _one_view(list(_rows(path, required=_RAVEN_TIMES)))
    labels = _raven_label_columns([name for name in rows[0][1] if name], label_column, path) if rows else []
    sounds = []
    for line, row in rows:
        begin, end = _span(row["Begin Time (s)"], row["End Time (s)"], path, line)
        if row.get("File Offset (s)"):
            offset = _seconds(row["File Offset (s)"], path, line)
            begin, end = offset, end_in_file(begin=begin, end=end, offset=offset)
        sounds.append(MarkedSound(begin, end, _first(row, labels),
                                  _score(row.get("Confidence") or row.get("Score"), path, line),
                                  _first(row, _RAVEN_FILES), _hertz(_first(row, _RAVEN_LOW), path, line),
                                  _hertz(_first(row, _RAVEN_HIGH), path, line)))
    return sounds


def end_in_file(*, begin: float, end: float, offset: float) -> float:
    """Return where a Raven selection ends in its file: its times run through all files opened, its offset does not."""
    return round(offset + (end - begin), _NANOSECOND_DIGITS)


def read_audacity(path: str | os.PathLike) -> list[MarkedSound]:
    """Read an Audacity label track; ManifestError where it is none."""
    sounds: list[MarkedSound] = []
    for line, text in enumerate(_lines(path), start=1):
        fields = text.rstrip("\r\n").split("\t")
        if not text.strip():
            continue
        if fields[0] == _AUDACITY_FREQUENCIES:
            if not sounds or len(fields) < 3:
                raise ManifestError(f"{path} line {line}: frequencies (low, high) belong below a label, got"
                                    f" {text.strip()[:60]!r}")
            low, high = (None if field.startswith("-") else _hertz(field, path, line) for field in fields[1:3])
            sounds[-1] = replace(sounds[-1], low_hertz=low, high_hertz=high)
            continue
        if len(fields) < 3:
            raise ManifestError(f"{path} line {line}: an Audacity label has start, end and label with tabs between, got"
                                f" {text.strip()[:60]!r}")
        start, end = _span(fields[0], fields[1], path, line)
        score = float(fields[3]) if len(fields) > 3 and _is_number(fields[3]) else None  # as BirdNET writes it
        sounds.append(MarkedSound(start, end, fields[2], score))
    return sounds


def read_birdnet(path: str | os.PathLike, *, label_column: str | None = None) -> list[MarkedSound]:
    """Read BirdNET's CSV, the common names unless another column is asked for; ManifestError where it is none."""
    label = label_column or "Common name"
    return [MarkedSound(*_span(row["Start (s)"], row["End (s)"], path, line), row[label] or "",
                        _score(row.get("Confidence"), path, line), row.get("File") or "")
            for line, row in _rows(path, required=("Start (s)", "End (s)", label))]


def read_decisions(path: str | os.PathLike, *, background_label: str = BACKGROUND_CLASS) -> list[MarkedSound]:
    """Read what the review page hands back; ManifestError where it is no such table."""
    sounds = []
    for line, row in _rows(path, required=DECISION_COLUMNS[:7]):
        label = decided_label(row, background_label=background_label, where=f"{path} line {line}")
        sounds.append(MarkedSound(*_span(row["start_seconds"], row["end_seconds"], path, line), label,
                                  file_path=row["file_path"]))
    return sounds


def is_decisions(names: Iterable[str]) -> bool:
    """Whether a table with these columns is what the review page hands back."""
    return {"decision", "model_class"} <= set(names)


def decided_label(row: Mapping[str, str], *, background_label: str, where: str) -> str:
    """Return what a reviewer says that a detection is.

    Raises
    ------
    ManifestError
        For a decision that is none, or one without its label; ``where`` says where it stands.
    """
    decision = (row.get("decision") or "").strip()
    if decision not in _DECISIONS:
        raise ManifestError(f"{where}: decision must be one of {', '.join(_DECISIONS)}, got {decision!r}")
    if decision == "rejected":
        return background_label
    names = ("model_class", "label") if decision == "confirmed" else ("label",)
    label = next((text for name in names if (text := (row.get(name) or "").strip())), "")
    if not label:
        raise ManifestError(f"{where}: a detection that is {decision} needs its {' or '.join(names)}, got none")
    return label


def _raven_label_columns(names: Sequence[str], asked: str | None, path: str | os.PathLike) -> list[str]:
    """Return the columns that may hold the labels, best first."""
    if asked is not None:
        if asked not in names:
            raise ManifestError(f"{path} has no column {asked!r} (--label_column); it has {', '.join(names)}")
        return [asked]
    usual = {name.strip().casefold(): name for name in names}
    known = [usual[name] for name in _RAVEN_LABELS if name in usual]
    own = [name for folded, name in usual.items() if folded not in _RAVEN_STANDARD and not _MEASUREMENT.search(folded)]
    if not known and len(own) > 1:
        raise ManifestError(f"{path} has several columns that may hold the labels ({', '.join(own)}): choose one with"
                            f" --label_column")
    return known or own


def _one_view(rows: list[tuple[int, dict[str, str]]]) -> list[tuple[int, dict[str, str]]]:
    """Return one row for each selection: that of the spectrogram, which tells the frequencies."""
    views: dict[tuple, str] = {}
    keys = [tuple(row.get(name) for name in ("Selection", *_RAVEN_TIMES, *_RAVEN_FILES)) for _, row in rows]
    for key, (_, row) in zip(keys, rows, strict=True):
        view = row.get("View") or ""
        if key not in views or view.startswith("Spectrogram") and not views[key].startswith("Spectrogram"):
            views[key] = view
    return [(line, row) for key, (line, row) in zip(keys, rows, strict=True) if (row.get("View") or "") == views[key]]


def _rows(path: str | os.PathLike, *, required: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    lines = _lines(path)
    delimiter = _delimiter(lines[0] if lines else "")
    quoted = delimiter != "\t" or _has_whole_quotes(lines)
    reader = csv.DictReader(lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
    try:
        missing = [name for name in required if name not in (reader.fieldnames or ())]
        if missing:
            raise ManifestError(f"{path} has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ManifestError(f"{path} line {reader.line_num}: the table is damaged: {error}") from error


def _delimiter(head: str) -> str:
    return max("\t,;", key=head.count)


def _has_whole_quotes(lines: Sequence[str]) -> bool:
    """Whether quotes part fields; Raven writes them as they come, and a lone one would swallow all rows to the next."""
    try:
        for _ in csv.reader(lines, delimiter="\t", strict=True):
            pass
    except csv.Error:
        return False
    return True


def _lines(path: str | os.PathLike) -> list[str]:
    """Return the lines of a text with their ends, which may stand in a quoted field."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            return list(stream)
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is no text in UTF-8 ({error.reason}): save it as UTF-8") from error
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}") from error


def _score(text: str | None, path: str | os.PathLike, line: int) -> float | None:
    if text and not _is_number(text):
        raise ManifestError(f"{path} line {line}: a confidence must be a number, got {text!r}")
    return float(text) if text else None


def _first(row: Mapping[str, str], names: Sequence[str]) -> str:
    return next((row[name] for name in names if row.get(name)), "")


def _span(start: str | None, end: str | None, path: str | os.PathLike, line: int) -> tuple[float, float]:
    first, last = _seconds(start, path, line), _seconds(end, path, line)
    if last <= first:
        raise ManifestError(f"{path} line {line}: end {last:g} s is not after start {first:g} s")
    return first, last


def _seconds(text: str | None, path: str | os.PathLike, line: int) -> float:
    if not (_is_number(text) and float(text or "") >= 0):
        raise ManifestError(f"{path} line {line}: a time must be seconds, 0 or more, got {text!r}")
    return float(text or "")


def _hertz(text: str, path: str | os.PathLike, line: int) -> float | None:
    if not text.strip():
        return None
    if not (_is_number(text) and float(text) >= 0):
        raise ManifestError(f"{path} line {line}: a frequency must be Hz, 0 or more, got {text!r}")
    return float(text)


def _is_number(text: str | None) -> bool:
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False
