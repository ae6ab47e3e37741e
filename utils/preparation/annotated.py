"""Labels from files of annotations: Raven selection tables, Audacity tracks, BirdNET's CSV, a review's decisions."""

import logging
import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from models.efficientnet_config import BACKGROUND_CLASS
from models.errors import ManifestError
from utils.audio.annotations import MarkedSound, annotation_kind, read_annotations
from utils.preparation.grouping import group_ids
from utils.preparation.matching import Match, RecordingIndex
from utils.preparation.regions import Region, Source, unique_regions
from utils.storage.names import distinct_clip_ids, name_to_text

logger = logging.getLogger(__name__)

_EXTENSIONS = (".txt", ".csv", ".tsv")
# what Raven, OpenSoundscape, Koogu, BirdNET and prediction write behind the name of a recording
_ENDING = re.compile(r"(\.Table\.\d+\.selections|\.selections|\.BirdNET\.selection\.table|\.BirdNET\.results)?"
                     r"\.(txt|csv|tsv)$", re.IGNORECASE)


@dataclass
class _Marks:
    """What all tables say of one recording."""

    regions: list[Region] = field(default_factory=list)
    n_unnamed: int = 0
    is_annotated: bool = True


@dataclass(frozen=True)
class _Table:
    """A table of annotations, and the recording that its own name stands for."""

    path: Path
    sounds: Sequence[MarkedSound]
    own: Match
    is_review: bool

    def is_own(self, file_path: str) -> bool:
        """Whether a file that the table names, or does not, is the recording it is called after."""
        name = posixpath.basename(file_path.replace("\\", "/"))
        return not file_path or self.own.is_found and name == posixpath.basename(self.own.source_path)


def sources_from_annotations(annotations: Path, input_dir: Path, *, group_by: str,
                             background_label: str = BACKGROUND_CLASS,
                             label_column: str | None = None) -> list[Source]:
    """Return the recordings that annotations are about, sorted by path.

    Parameters
    ----------
    annotations : Path
        One table, or a folder of them, searched recursively. A table is about the recordings that it names, or else
        about the one it is called after: in the folder of the same name, or the only one of that name anywhere.
    input_dir : Path
        Folder that holds the recordings.
    group_by : str
        ``recording``, ``folder``, ``site`` or ``night``, see ``group_ids``; with ``column`` each recording is its own
        group until ``combine`` gives it that of the labels table.
    background_label : str
        Class of detections that a reviewer rejected.
    label_column : str or None
        Column of the labels; None looks for a usual name.

    Returns
    -------
    list of Source
        One with an empty table has no region: somebody listened and found nothing. A box without a label is no region
        either, but the rest of its recording is no longer known to be background; nor is that of a recording of which
        only detections were reviewed.

    Raises
    ------
    ManifestError
        If no table is usable. Of others that are damaged or whose recording is not found, each is told as a warning.
    """
    marks, problems = _read_marks(annotations, RecordingIndex(input_dir), input_dir, background_label, label_column)
    for problem in problems:
        logger.warning("%s", problem)
    if not marks:
        raise ManifestError(f"no annotations can be used of {annotations}:"
                            f" {problems[0] if problems else 'it holds no .txt, .csv or .tsv table'}")
    n_unnamed = sum(mark.n_unnamed for mark in marks.values())
    if n_unnamed:
        logger.warning("%d marked sounds of %s have no label and are left out; the rest of their recordings does not"
                       " count as background", n_unnamed, annotations)
    ids = distinct_clip_ids(sorted(marks))
    groups = group_ids(ids, input_dir, group_by=group_by)
    return [Source(path, groups[path], unique_regions(marks[path].regions, where=path), "", own_id,
                   marks[path].is_annotated and not marks[path].n_unnamed) for path, own_id in ids.items()]


def _read_marks(annotations: Path, index: RecordingIndex, input_dir: Path, background_label: str,
                label_column: str | None) -> tuple[dict[str, _Marks], list[str]]:
    """Return what is marked in each recording, and what could not be used."""
    marks: dict[str, _Marks] = {}
    problems: list[str] = []
    tables = []
    for path in _find_tables(annotations):
        try:
            tables.append(_read_table(path, _place(path, annotations, input_dir), index, background_label,
                                      label_column))
        except ManifestError as error:
            problems.append(str(error))
    matches = index.locate(sound.file_path for table in tables for sound in table.sounds
                           if not table.is_own(sound.file_path))
    for table in tables:
        _add_table(table, matches, marks, problems)
    return marks, problems


def _find_tables(annotations: Path) -> list[Path]:
    if annotations.is_file():
        return [annotations]
    if not annotations.is_dir():
        raise ManifestError(f"{annotations} does not exist: --annotations is a table or a folder of tables")
    found = [Path(parent, name) for parent, folders, names in os.walk(annotations) for name in names
             if name.lower().endswith(_EXTENSIONS) and not name.startswith(".")]
    return sorted(found, key=lambda path: path.parts)


def _place(path: Path, annotations: Path, input_dir: Path) -> str:
    """Return where a table stands, as text: its folders are those of its recording."""
    above = annotations if path != annotations else path.parent
    # below the recordings' folder it may lie beside its own
    root = next(folder for folder in map(os.path.abspath, (input_dir, above))
                if Path(os.path.abspath(path)).is_relative_to(folder))
    return name_to_text(Path(os.path.relpath(path, root)).as_posix())


def _read_table(path: Path, place: str, index: RecordingIndex, background_label: str,
                label_column: str | None) -> _Table:
    own = index.of_table(posixpath.dirname(place), _ENDING.sub("", posixpath.basename(place)))
    sounds = read_annotations(path, label_column=label_column, background_label=background_label)
    return _Table(path, sounds, own, is_review=annotation_kind(path) == "decisions")


def _add_table(table: _Table, matches: Mapping[str, Match], marks: dict[str, _Marks], problems: list[str]) -> None:
    """Add what a table says to the marks of its recordings, and what cannot be used of it to the problems."""
    if not table.sounds and not table.is_review:
        if table.own.is_found:
            marks.setdefault(table.own.source_path, _Marks())
        else:
            problems.append(f"{table.path} is empty, and {_missing(table.own, '')}")
    lost = []
    for sound in table.sounds:
        match = table.own if table.is_own(sound.file_path) else matches[sound.file_path]
        if match.is_found:
            mark = marks.setdefault(match.source_path, _Marks())
            mark.is_annotated = mark.is_annotated and not table.is_review
            _add_sound(mark, sound)
        else:
            lost.append(_missing(match, sound.file_path))
    if lost:
        problems.append(f"{table.path}: {len(lost)} of {len(table.sounds)} marked sounds are left out: {lost[0]}")


def _add_sound(mark: _Marks, sound: MarkedSound) -> None:
    label = sound.label.strip()
    if label:
        mark.regions.append(Region(label, sound.start_seconds, sound.end_seconds, sound.low_hertz, sound.high_hertz))
    else:
        mark.n_unnamed += 1


def _missing(match: Match, file_path: str) -> str:
    name = repr(file_path) if file_path else "the recording that it is called after"
    return match.problem or f"{name} is not below --input_dir"
