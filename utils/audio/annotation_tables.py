"""Files of annotations, and the recordings they are about: Raven, Audacity, BirdNET's CSV, a review's decisions."""

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.efficientnet_config import BACKGROUND_CLASS
from models.errors import ManifestError
from utils.audio.annotations import MarkedSound, annotation_kind, read_annotations
from utils.audio.matching import Match, RecordingIndex
from utils.storage.names import name_to_text

_EXTENSIONS = (".txt", ".csv", ".tsv")
# what Raven, OpenSoundscape, Koogu, BirdNET and prediction write behind the name of a recording
_ENDING = re.compile(r"(\.Table\.\d+\.selections|\.selections|\.BirdNET\.selection\.table|\.BirdNET\.results)?"
                     r"\.(txt|csv|tsv)$", re.IGNORECASE)


@dataclass
class Marks:
    """What all tables say of one recording.

    Parameters
    ----------
    sounds : list of MarkedSound
        Those that have a label, without white space around it.
    n_unnamed : int
        Boxes without a label.
    is_annotated : bool
        False where only detections were reviewed: nobody says that nothing is there where nothing is marked.
    """

    sounds: list[MarkedSound] = field(default_factory=list)
    n_unnamed: int = 0
    is_annotated: bool = True


@dataclass
class AnnotationTables:
    """What tables say.

    Parameters
    ----------
    marks : dict of str to Marks
        By recording, as the index has it; empty marks where a table without sounds says that nothing is there.
    problems : list of str
        What could not be used, and why.
    absent : list of str
        Recordings that tables are about and that were not found, as the tables call them, each once.
    """

    marks: dict[str, Marks] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Table:
    """A table of annotations, and the recording that its own name stands for."""

    path: Path
    sounds: Sequence[MarkedSound]
    own_name: str
    own: Match
    is_review: bool

    def is_own(self, file_path: str) -> bool:
        """Whether a file that the table names, or does not, is the recording it is called after."""
        name = posixpath.basename(file_path.replace("\\", "/"))
        return not file_path or self.own.is_found and name == posixpath.basename(self.own.source_path)


def read_annotation_tables(annotations: Path, index: RecordingIndex, *, input_dir: Path | None = None,
                           background_label: str = BACKGROUND_CLASS,
                           label_column: str | None = None) -> AnnotationTables:
    """Read what is marked in recordings.

    Parameters
    ----------
    annotations : Path
        One table, or a folder of them, searched recursively. A table is about the recordings that it names, or else
        about the one it is called after: in the folder of the same name, or the only one of that name anywhere.
    index : RecordingIndex
        The recordings that may be meant.
    input_dir : Path or None
        Folder of the recordings, where tables may lie beside them.
    background_label : str
        Label of detections that a reviewer rejected.
    label_column : str or None
        Column of the labels; None looks for a usual name.

    Raises
    ------
    ManifestError
        If there is neither such a table nor such a folder. A table that is damaged is one of the problems.
    """
    found = AnnotationTables()
    tables = []
    for path in _find_tables(annotations):
        try:
            tables.append(_read_table(path, _place(path, annotations, input_dir), index, background_label,
                                      label_column))
        except ManifestError as error:
            found.problems.append(str(error))
    matches = index.locate(sound.file_path for table in tables for sound in table.sounds
                           if not table.is_own(sound.file_path))
    for table in tables:
        _add_table(table, matches, found, index.place)
    found.absent = list(dict.fromkeys(found.absent))
    return found


def _find_tables(annotations: Path) -> list[Path]:
    if annotations.is_file():
        return [annotations]
    if not annotations.is_dir():
        raise ManifestError(f"{annotations} does not exist: --annotations is a table or a folder of tables")
    found = [Path(parent, name) for parent, folders, names in os.walk(annotations) for name in names
             if name.lower().endswith(_EXTENSIONS) and not name.startswith(".")]
    return sorted(found, key=lambda path: path.parts)


def _place(path: Path, annotations: Path, input_dir: Path | None) -> str:
    """Return where a table stands, as text: its folders are those of its recording."""
    above = annotations if path != annotations else path.parent
    # below the recordings' folder it may lie beside its own
    root = next(folder for folder in map(os.path.abspath, filter(None, (input_dir, above)))
                if Path(os.path.abspath(path)).is_relative_to(folder))
    return name_to_text(Path(os.path.relpath(path, root)).as_posix())


def _read_table(path: Path, place: str, index: RecordingIndex, background_label: str,
                label_column: str | None) -> _Table:
    folder, stem = posixpath.dirname(place), _ENDING.sub("", posixpath.basename(place))
    sounds = read_annotations(path, label_column=label_column, background_label=background_label)
    return _Table(path, sounds, posixpath.join(folder, stem), index.of_table(folder, stem),
                  is_review=annotation_kind(path) == "decisions")


def _add_table(table: _Table, matches: Mapping[str, Match], found: AnnotationTables, place: str) -> None:
    """Add what a table says to the marks of its recordings, and what cannot be used of it to the problems."""
    if not table.sounds and not table.is_review:
        if table.own.is_found:
            found.marks.setdefault(table.own.source_path, Marks())
        else:
            found.absent.append(table.own_name)
            found.problems.append(f"{table.path} is empty, and {_missing(table.own, '', place)}")
    lost = []
    for sound in table.sounds:
        match = table.own if table.is_own(sound.file_path) else matches[sound.file_path]
        if match.is_found:
            mark = found.marks.setdefault(match.source_path, Marks())
            mark.is_annotated = mark.is_annotated and not table.is_review
            _add_sound(mark, sound)
        else:
            found.absent.append(sound.file_path or table.own_name)
            lost.append(_missing(match, sound.file_path, place))
    if lost:
        found.problems.append(f"{table.path}: {len(lost)} of {len(table.sounds)} marked sounds are left out: {lost[0]}")


def _add_sound(mark: Marks, sound: MarkedSound) -> None:
    label = sound.label.strip()
    if label:
        mark.sounds.append(sound if label == sound.label else replace(sound, label=label))
    else:
        mark.n_unnamed += 1


def _missing(match: Match, file_path: str, place: str) -> str:
    name = repr(file_path) if file_path else "the recording that it is called after"
    return match.problem or f"{name} is not {place}"
