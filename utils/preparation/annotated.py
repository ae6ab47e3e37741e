"""Labels from files of annotations: Raven selection tables, Audacity tracks, BirdNET's CSV, a review's decisions."""

import logging
from collections.abc import Sequence
from pathlib import Path

from models.efficientnet_config import BACKGROUND_CLASS
from models.errors import ManifestError
from utils.audio.annotation_tables import read_annotation_tables
from utils.audio.annotations import MarkedSound
from utils.audio.matching import RecordingIndex
from utils.preparation.grouping import group_ids
from utils.preparation.regions import Region, Source, unique_regions
from utils.storage.names import distinct_clip_ids

logger = logging.getLogger(__name__)


def sources_from_annotations(annotations: Path, input_dir: Path, *, group_by: str,
                             background_label: str = BACKGROUND_CLASS,
                             label_column: str | None = None) -> list[Source]:
    """Return the recordings that annotations are about, sorted by path.

    Parameters
    ----------
    annotations : Path
        One table, or a folder of them; see ``read_annotation_tables``.
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
    tables = read_annotation_tables(annotations, RecordingIndex.below(input_dir), input_dir=input_dir,
                                    background_label=background_label, label_column=label_column)
    marks, problems = tables.marks, tables.problems
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
    return [Source(path, groups[path], unique_regions(_regions(marks[path].sounds), where=path), "", own_id,
                   marks[path].is_annotated and not marks[path].n_unnamed) for path, own_id in ids.items()]


def _regions(sounds: Sequence[MarkedSound]) -> list[Region]:
    return [Region(sound.label, sound.start_seconds, sound.end_seconds, sound.low_hertz, sound.high_hertz)
            for sound in sounds]
