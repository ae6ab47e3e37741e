"""What preprocessing leaves behind: manifests, ``dataset.json``, ``files.csv``, ``regions.csv`` and the overview."""

import hashlib
import itertools
import logging
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from models.audio_frontend import frontend_fingerprint
from models.classes import ClassList
from models.errors import ConfigError
from utils.audio.recorders import RECORDER_COLUMNS
from utils.preparation.duplicates import content_of
from utils.preparation.extraction import ExtractedRecording, PreprocessSettings
from utils.preparation.labelling import REGION_COLUMNS
from utils.preparation.similarity import SimilarPair
from utils.preparation.regions import Source
from utils.storage.files import file_sha256, read_json, write_json
from utils.storage.journal import settings_key
from utils.storage.manifest import FORMAT_VERSION, NOT_AUGMENTED, SPLITS, write_manifest
from utils.storage.names import name_to_text
from utils.storage.tables import write_table

logger = logging.getLogger(__name__)

_SOUND_COLUMNS = ("peak_dbfs", "rms_dbfs", "dc_offset", "clipped_share", "channel_correlation", "bandwidth_hertz",
                  "content")
FILE_COLUMNS = ("path", "status", "reason", "duration_seconds", "sample_rate", "channels", "sha256", "n_segments",
                "split", "declared_seconds", *RECORDER_COLUMNS, *_SOUND_COLUMNS, "findings")
_MANIFESTS = tuple(f"{side}.csv" for side in SPLITS)
_TABLES = (*_MANIFESTS, "files.csv", "regions.csv")


@dataclass(frozen=True)
class Dataset:
    """What there is to write.

    Parameters
    ----------
    sources, results : sequences
        In one order.
    similar : sequence of SimilarPair
        Source paths that sound the same.
    rows : pandas.DataFrame
        Of the manifests, all but ``label``.
    """

    sources: Sequence[Source]
    results: Sequence[ExtractedRecording]
    similar: Sequence[SimilarPair]
    rows: pd.DataFrame


def retract(output_dir: Path) -> None:
    """Remove what says that a data set is there: some of its files are about to become another's."""
    for name in ("dataset.json", *_MANIFESTS):
        (output_dir / name).unlink(missing_ok=True)


def write_dataset(settings: PreprocessSettings, dataset: Dataset) -> None:
    """Write all but the spectrograms; ``dataset.json`` comes last, and nothing is written that stands already."""
    output_dir, rows = settings.output_dir, dataset.rows
    classes = ClassList.from_labels(rows["class_name"])
    rows = rows.assign(label=rows["class_name"].map(classes.index)).sort_values(["label", "path"], ignore_index=True)
    counts = pd.crosstab(rows["class_name"], rows["split"]).reindex(
        index=list(classes.names), columns=list(SPLITS), fill_value=0)
    _warn_of_gaps(counts)
    sides = dict(zip(rows["source_path"], rows["split"], strict=True))
    files, labels = files_frame(dataset.results, sides=sides), labels_frame(dataset.sources)
    regions = _regions_frame(dataset.results)
    info = {**_dataset_info(settings, dataset, rows, classes, counts),
            "made_from": _digest(rows, files, labels, regions, pd.DataFrame(dataset.similar))}
    if _stands(output_dir, info):
        return
    # late: statistics and pictures take a second to import, while nothing can be worked on
    from utils.preparation.audit import audit
    findings = audit(files, labels, similar=dataset.similar)
    retract(output_dir)
    write_table(output_dir / "files.csv", _with_findings(files, findings))
    write_table(output_dir / "regions.csv", regions)
    for side in SPLITS:
        write_manifest(output_dir / f"{side}.csv", rows[rows["split"] == side])
    _draw(settings, rows, classes, counts, findings)
    write_json(output_dir / "dataset.json", {
        **info, "findings": [finding.to_dict() for finding in findings],
        "sha256": {name: file_sha256(output_dir / name) for name in _TABLES}})


def write_reasons(output_dir: Path, results: Sequence[ExtractedRecording]) -> None:
    """Write ``files.csv`` alone, where nothing came of the run but reasons."""
    write_table(output_dir / "files.csv", files_frame(results))


def files_frame(results: Sequence[ExtractedRecording], *, sides: Mapping[str, str] | None = None,
                findings: Sequence = ()) -> pd.DataFrame:
    """Return what is known of each recording, a row each, sorted by path.

    Parameters
    ----------
    results : sequence of ExtractedRecording
        What extraction found.
    sides : mapping of str to str, optional
        Side of the split, by source path.
    findings : sequence of Finding
        What was found wrong.

    Returns
    -------
    pandas.DataFrame
        Columns ``FILE_COLUMNS``.
    """
    table = pd.DataFrame([_file_row(result) for result in results], columns=list(FILE_COLUMNS))
    table["reason"] = table["reason"].map(name_to_text)
    table["split"] = [(sides or {}).get(path, "") for path in table["path"]]
    table = table.astype({"sample_rate": "Int64", "channels": "Int64"}).sort_values("path", ignore_index=True)
    return _with_findings(table, findings)


def _with_findings(files: pd.DataFrame, findings: Sequence) -> pd.DataFrame:
    codes: dict[str, dict[str, None]] = defaultdict(dict)  # a dict keeps the order
    for finding in findings:
        for path in finding.paths:
            codes[path][finding.code] = None
    return files.assign(findings=["; ".join(codes.get(path, ())) for path in files["path"]])


def labels_frame(sources: Sequence[Source]) -> pd.DataFrame:
    """Return the labelled regions, a row each: path, class_name, start_seconds, end_seconds, group."""
    return pd.DataFrame([(source.source_path, region.class_name, region.start_seconds, region.end_seconds,
                          source.recording_id) for source in sources for region in source.regions],
                        columns=["path", "class_name", "start_seconds", "end_seconds", "group"])


def _file_row(result: ExtractedRecording) -> dict:
    recorder = {name: getattr(result.recorder, name, None) for name in RECORDER_COLUMNS}
    recorder["recorded_at"] = result.recorder.started.isoformat() if result.recorder.started else None
    sound = {name: getattr(result.sound, name, None) for name in _SOUND_COLUMNS}
    return {"path": result.source_path, **asdict(result.outcome), "sha256": result.sha256,
            "n_segments": len(result.windows), "declared_seconds": result.declared_seconds, **recorder, **sound}


def _regions_frame(results: Sequence[ExtractedRecording]) -> pd.DataFrame:
    table = pd.DataFrame([{"path": result.source_path, **asdict(region)} for result in results
                          for region in result.regions], columns=list(REGION_COLUMNS))
    table["reason"] = table["reason"].map(name_to_text)
    return table.sort_values(["path", "start_seconds", "class_name"], kind="stable", ignore_index=True)


def _digest(*tables: pd.DataFrame) -> str:
    return settings_key(*(hashlib.sha256(table.to_csv(index=False).encode()).hexdigest() for table in tables))


def _stands(output_dir: Path, info: Mapping) -> bool:
    """Whether this very data set stands there already, whole."""
    try:
        before = read_json(output_dir / "dataset.json")
        return (all(before.get(name) == value for name, value in info.items())
                and (output_dir / "overview.png").exists()
                and before.get("sha256") == {name: file_sha256(output_dir / name) for name in _TABLES})
    except (ConfigError, OSError):
        return False


def _draw(settings: PreprocessSettings, rows: pd.DataFrame, classes: ClassList, counts: pd.DataFrame,
          findings: Sequence) -> None:
    # late: drawing takes half a second to import, while nothing can be worked on
    from utils.reports import plot_overview
    examples = {}
    for name in classes.names:
        row = rows[(rows["class_name"] == name) & (rows["augmentation"] == NOT_AUGMENTED)].iloc[0]
        examples[name] = (np.load(settings.output_dir / row["path"], allow_pickle=False), settings.frontend)
    plot_overview(settings.output_dir / "overview.png", counts=counts, examples=examples, findings=findings)


def _warn_of_gaps(counts: pd.DataFrame) -> None:
    for name, row in counts.iterrows():
        gaps = [side for side in SPLITS if row[side] == 0]
        if gaps:
            logger.warning("class %s has no segment in %s: too few recordings to put one on every side", name,
                           " and ".join(gaps))


def _dataset_info(settings: PreprocessSettings, dataset: Dataset, rows: pd.DataFrame, classes: ClassList,
                  counts: pd.DataFrame) -> dict:
    return {
        "format_version": FORMAT_VERSION,
        "frontend": settings.frontend.to_dict(),
        "fingerprint": frontend_fingerprint(settings.frontend),
        "class_names": list(classes.names),
        "counts": {side: {name: int(counts.loc[name, side]) for name in classes.names} for side in SPLITS},
        "recordings": {side: int(rows.loc[rows["split"] == side, "recording_id"].nunique()) for side in SPLITS},
        "input_dir": name_to_text(_relative(settings.input_dir, settings.output_dir)),
        "settings": {
            "segment_overlap_ms": settings.segment_overlap_ms, "segment_selection": settings.segment_selection,
            "min_overlap_seconds": settings.min_overlap_seconds, "background_label": settings.background_label,
            "augmentation_factor": settings.augmentation_factor, "balance_classes": settings.balance_classes,
            "max_balance_ratio": settings.max_balance_ratio if math.isfinite(settings.max_balance_ratio) else None,
            "group_by": settings.group_by,
            "ratios": list(settings.ratios), "random_state": settings.random_state,
            "augmentation": settings.augmentation.to_dict()},
        "leakage_check": leakage_check(dataset, rows),
    }


def leakage_check(dataset: Dataset, rows: pd.DataFrame) -> dict:
    """Count what every two sides of the split share, from the rows that are written: all counts should be 0.

    Returns
    -------
    dict
        ``recordings_on_two_sides``, ``augmented_outside_train``, and ``shared``: by two sides, the number of
        ``recordings`` (ids), ``contents`` (decoded signals) and ``near_duplicates`` (pairs that sound the same).
    """
    sides_of: dict[str, set[str]] = defaultdict(set)
    for recording_id, side in zip(rows["recording_id"], rows["split"], strict=True):
        sides_of[recording_id].add(side)
    of_path: dict[str, set[str]] = defaultdict(set)
    for path, side in zip(rows["source_path"], rows["split"], strict=True):
        of_path[path].add(side)
    contents: dict[str, set[str]] = defaultdict(set)
    for result in dataset.results:
        for side in of_path.get(result.source_path, ()):
            contents[side].add(content_of(result))
    pairs = [(of_path.get(pair.first, set()), of_path.get(pair.second, set())) for pair in dataset.similar]
    shared = {}
    for one, other in itertools.combinations(SPLITS, 2):
        shared[f"{one}-{other}"] = {
            "recordings": sum({one, other} <= sides for sides in sides_of.values()),
            "contents": len(contents[one] & contents[other]),
            "near_duplicates": sum(one in first and other in second or other in first and one in second
                                   for first, second in pairs)}
    augmented = (rows["augmentation"] != NOT_AUGMENTED) & (rows["split"] != "train")
    return {"recordings_on_two_sides": sorted(name for name, sides in sides_of.items() if len(sides) > 1),
            "augmented_outside_train": int(augmented.sum()), "shared": shared}


def _relative(input_dir: Path, output_dir: Path) -> str:
    try:
        return Path(os.path.relpath(input_dir, output_dir)).as_posix()
    except ValueError:  # two drives on Windows have no relative path
        return input_dir.resolve().as_posix()
