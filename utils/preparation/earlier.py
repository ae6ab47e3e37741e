"""The recordings of a data set that was prepared earlier: their labels, groups and sides, for one that adds to it."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from models.errors import ConfigError, ManifestError
from utils.preparation.regions import Region, Source
from utils.storage.manifest import NOT_AUGMENTED, SPLITS, read_dataset_info
from utils.storage.names import distinct_clip_ids, name_to_text, text_to_name
from utils.storage.tables import read_table


def sources_from_dataset(dataset_dir: Path, input_dir: Path) -> list[Source]:
    """Return the recordings of an earlier data set, sorted by path, each with its labels and its side as ``fold``.

    Parameters
    ----------
    dataset_dir : Path
        Folder that preprocessing wrote.
    input_dir : Path
        Holds the recordings of the earlier data set, if deeper, as well as those that are added.

    Raises
    ------
    ConfigError
        If the earlier recordings do not lie below ``input_dir``.
    ManifestError
        If the folder holds no data set that tells its labels.
    """
    info, _ = read_dataset_info(dataset_dir)
    if not info:
        raise ManifestError(f"{dataset_dir} holds no dataset.json: give the folder that preprocess_enhanced.py wrote")
    try:
        return _sources(dataset_dir, info, input_dir)
    except ConfigError:  # of the folders, which is a ValueError too
        raise
    except (KeyError, ValueError) as error:
        raise ManifestError(f"{dataset_dir} cannot be added to, for its tables were changed or made by another program"
                            f" ({error!r}): run preprocess_enhanced.py there again") from error


def _sources(dataset_dir: Path, info: Mapping[str, Any], input_dir: Path) -> list[Source]:
    prefix = _prefix(dataset_dir / text_to_name(info["input_dir"]), input_dir, dataset_dir)
    rows = pd.concat([read_table(dataset_dir / f"{side}.csv").assign(split=side) for side in SPLITS])
    rows = rows[rows["augmentation"] == NOT_AUGMENTED]
    groups, sides = (dict(zip(rows["source_path"], rows[name], strict=True)) for name in ("recording_id", "split"))
    regions = defaultdict(list)
    for row in read_table(dataset_dir / "regions.csv").to_dict("records"):
        regions[row["path"]].append(Region(row["class_name"], float(row["start_seconds"]), *(
            float(row[name]) if row[name] else None for name in ("end_seconds", "low_hertz", "high_hertz"))))
    settings = info.get("settings", {})
    # only where background was asked for, the rest of a recording was known to be background
    listened = set(rows.loc[rows["class_name"] == settings.get("background_label"), "source_path"])
    sources, paths = [], sorted({*regions, *groups})
    for path, (own, clip_id) in zip(paths, distinct_clip_ids(prefix + path for path in paths).items(), strict=True):
        group = clip_id if settings.get("group_by") == "recording" else groups.get(path, clip_id)
        sources.append(Source(own, group, tuple(regions[path]), sides.get(path, ""), clip_id,
                              is_annotated=path in listened))
    return sources


def _prefix(earlier_input: Path, input_dir: Path, dataset_dir: Path) -> str:
    """Return what comes before the paths of the earlier recordings, seen from ``input_dir``."""
    try:
        deeper = earlier_input.resolve().relative_to(input_dir.resolve())
    except ValueError as error:
        raise ConfigError(f"--input_dir {input_dir} must hold the recordings of {dataset_dir} too, which lie in"
                          f" {earlier_input.resolve()}: give a folder that both are in") from error
    return "" if deeper == Path() else name_to_text(os.fspath(deeper.as_posix())) + "/"
