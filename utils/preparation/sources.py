"""What to preprocess: recordings with their labels, from class folders, tables and annotations."""

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from models.errors import AudioError, ConfigError, ManifestError
from utils.audio.matching import find_texts
from utils.preparation.annotated import sources_from_annotations
from utils.preparation.earlier import sources_from_dataset
from utils.preparation.grouping import GROUPINGS, group_ids
from utils.preparation.label_tables import TableColumns, sources_from_table
from utils.preparation.regions import Region, Source, unique_regions
from utils.storage.files import read_json
from utils.storage.names import distinct_clip_ids
from utils.storage.tables import read_table

__all__ = ["GROUPINGS", "Region", "Source", "TableColumns", "apply_label_map", "combine", "find_sources",
           "read_label_map", "sources_from_annotations", "sources_from_folders", "sources_from_table"]

logger = logging.getLogger(__name__)


def sources_from_folders(input_dir: Path, *, group_by: str, need_labels: bool = True) -> list[Source]:
    """Return the recordings of class folders: the first folder below ``input_dir`` is the class.

    Parameters
    ----------
    input_dir : Path
        Holds the class folders.
    group_by : str
        ``recording``, ``folder`` (below the class folder), ``site`` or ``night``, see ``group_ids``.
    need_labels : bool
        Whether recordings that lie in no class folder are left out; else they have no label.

    Raises
    ------
    AudioError
        If no class folder holds a recording.
    ConfigError
        If ``group_by`` is ``column``, which a folder has not.
    """
    if group_by == "column":
        raise ConfigError("--group_by column needs --labels_csv")
    paths = find_texts(input_dir)
    inside = [path for path in paths if "/" in path]
    if not need_labels:
        inside = paths
    elif not inside:
        raise AudioError(f"{input_dir} holds no class folders with audio files: expected"
                         f" {input_dir}/<class>/<recording>.wav, or give --labels_csv", status="empty")
    if len(inside) < len(paths):
        logger.warning("%d audio files lie directly in %s, in no class folder, and are left out",
                       len(paths) - len(inside), input_dir)
    ids = distinct_clip_ids(inside)
    groups = group_ids(ids, input_dir, group_by=group_by, n_class_folders=1)
    return [Source(path, groups[path], (Region(path.split("/")[0]),) if "/" in path else (), "", ids[path])
            for path in inside]


def find_sources(input_dir: Path, *, labels_csv: Path | None, annotations: Path | None, columns: TableColumns,
                 group_by: str, label_map: Path | None, drop_unmapped: bool, background_label: str,
                 need_labels: bool, extend: Path | None = None) -> list[Source]:
    """Return the recordings that a table and annotations name, or else those of class folders, with their labels.

    Parameters
    ----------
    input_dir : Path
        Holds the recordings.
    labels_csv, annotations : Path or None
        Table of labels; folder or file of annotations. Without either, the first folder below ``input_dir`` is the
        class.
    columns : TableColumns
        Of the table; without one, ``label`` is the column of Raven's tables.
    group_by : str
        One of ``GROUPINGS``.
    label_map : Path or None
        Raw label to class, see ``read_label_map``.
    drop_unmapped : bool
        Leave out labels that the map lacks.
    background_label : str
        What a rejected decision stands for.
    need_labels : bool
        Whether recordings without a label are of no use.
    extend : Path or None
        Earlier data set whose recordings are there too, with their labels and sides.

    Raises
    ------
    AudioError, ConfigError, ManifestError
        For what cannot be read or contradicts itself.
    """
    found: list[Source] = []
    if labels_csv is not None:
        found = sources_from_table(labels_csv, input_dir, columns=columns, group_by=group_by,
                                   background_label=background_label)
    if annotations is not None:
        found = combine(found, sources_from_annotations(
            annotations, input_dir, group_by=group_by, background_label=background_label,
            label_column=columns.label if labels_csv is None else None))
    if labels_csv is None and annotations is None:
        found = sources_from_folders(input_dir, group_by=group_by, need_labels=need_labels)
    if label_map is not None:
        found = apply_label_map(found, read_label_map(label_map), drop_unmapped=drop_unmapped)
    return found if extend is None else combine(sources_from_dataset(extend, input_dir), found)


def combine(sources: Sequence[Source], more: Sequence[Source]) -> list[Source]:
    """Return the recordings of two lists, sorted by path, each with all its labels.

    Group and fold are those of ``sources`` where both have the recording. What is not marked is background only where
    both say so.

    Raises
    ------
    ManifestError
        If a recording as a whole has two labels.
    """
    first, second = ({source.source_path: source for source in listed} for listed in (sources, more))
    ids = distinct_clip_ids(sorted({**first, **second}))
    combined = []
    for path, clip_id in ids.items():
        source = first.get(path) or second[path]
        if path in first and path in second:
            other = second[path]
            source = replace(source, regions=unique_regions(source.regions + other.regions, where=path),
                             fold=source.fold or other.fold, is_annotated=source.is_annotated and other.is_annotated)
        own_group = source.recording_id == source.clip_id
        combined.append(replace(source, clip_id=clip_id, recording_id=clip_id if own_group else source.recording_id))
    return combined


def apply_label_map(sources: Sequence[Source], label_map: Mapping[str, str], *, drop_unmapped: bool) -> list[Source]:
    """Rename labels; ManifestError for labels the map lacks, unless they are to be dropped.

    A recording all of whose labels are dropped is dropped too; where some are, the rest is not known to be background.
    """
    unmapped = Counter(region.class_name for source in sources for region in source.regions
                       if region.class_name not in label_map)
    if unmapped and not drop_unmapped:
        listing = ", ".join(f"{name} ({n})" for name, n in unmapped.most_common(5))
        raise ManifestError(f"--label_map has no class for {len(unmapped)} labels: {listing}; add them or pass"
                            f" --drop_unmapped")
    mapped = []
    for source in sources:
        kept = [region for region in source.regions if region.class_name in label_map]
        if kept or not source.regions:
            regions = unique_regions((replace(region, class_name=label_map[region.class_name]) for region in kept),
                                     where=source.source_path)
            mapped.append(replace(source, regions=regions,
                                  is_annotated=source.is_annotated and len(kept) == len(source.regions)))
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
