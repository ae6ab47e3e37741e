"""Recordings to spectrograms and leak-free manifests.

Extraction decodes each recording once and writes its log-mels; the split follows, by recording; augmented
copies are made last, of training segments only. A journal lets a run that was stopped go on.
"""

import functools
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from models.audio_frontend import frontend_fingerprint
from models.errors import AudioError, ManifestError
from utils.running import parallel
from utils.preparation.augmented_copies import augment_all, plan_copies
from utils.preparation.extraction import PreprocessSettings, RecordingResult, cached_frontend, extract_recording
from utils.storage.files import atomic_path, write_json
from utils.storage.journal import Journal, settings_key
from models.classes import ClassList
from utils.storage.manifest import FORMAT_VERSION, NOT_AUGMENTED, SPLITS, write_manifest
from utils.storage.splits import grouped_split
from utils.running.progress import progress
from utils.reports import plot_overview
from utils.preparation.sources import Source

logger = logging.getLogger(__name__)

_TRIED_AGAIN = ("corrupt", "unsupported")
FILE_COLUMNS = ("path", "status", "reason", "duration_seconds", "sample_rate", "channels", "sha256", "n_segments",
                "split")


def preprocess(settings: PreprocessSettings, sources: Sequence[Source], *, n_workers: int,
               overwrite: bool) -> list[RecordingResult]:
    """Write spectrograms, manifests, ``dataset.json``, ``files.csv`` and ``overview.png``.

    Parameters
    ----------
    settings : PreprocessSettings
        What to do.
    sources : sequence of Source
        Recordings and labels.
    n_workers : int
        Processes.
    overwrite : bool
        Redo everything instead of continuing.

    Returns
    -------
    list of RecordingResult
        One per source, in the order of ``sources``.

    Raises
    ------
    ManifestError
        If fewer than two classes are left.
    AudioError
        If no recording gave a segment.
    """
    n_empty = cached_frontend(settings.frontend).n_empty_bands
    if n_empty:
        logger.warning("%d of %d mel bands are narrower than a frequency bin and stay empty: lower --n_mels or raise"
                       " --n_fft", n_empty, settings.frontend.n_mels)
    with Journal(settings.output_dir / "journal.jsonl", fresh=overwrite) as journal:
        extracted = _extract_all(settings, sources, journal, n_workers)
        results = mark_duplicates(extracted)
        _write_files_csv(settings.output_dir, results, {})  # the reasons are told even if nothing is usable
        rows = _manifest_rows(settings, sources, results)
        sides = dict(zip(rows["source_path"], rows["split"], strict=True))
        _write_files_csv(settings.output_dir, results, sides)
        copies = plan_copies(rows[rows["split"] == "train"], settings)
        augmented = augment_all(settings, rows, copies, journal, n_workers)
        kept = [segment.path for result in extracted for segment in result.segments]
        journal.remove_stale(settings.output_dir, [*kept, *augmented["path"]])
    everything = pd.concat([rows, augmented], ignore_index=True) if len(augmented) else rows
    _write_dataset(settings, everything)
    return results


def mark_duplicates(results: Sequence[RecordingResult]) -> list[RecordingResult]:
    """Give every file whose bytes were seen before the status ``duplicate``; the first by path stays."""
    first_with: dict[str, str] = {}
    marked = {}
    for result in sorted(results, key=lambda r: r.source_path):
        original = first_with.setdefault(result.sha256, result.source_path) if result.sha256 else result.source_path
        if result.status == "ok" and original != result.source_path:
            result = replace(result, status="duplicate", reason=f"same bytes as {original}", segments=())
        marked[result.source_path] = result
    return [marked[result.source_path] for result in results]


def _extract_all(settings: PreprocessSettings, sources: Sequence[Source], journal: Journal,
                 n_workers: int) -> list[RecordingResult]:
    results, todo = {}, []
    for source in sources:
        key = settings_key(settings.extraction_key(), asdict(source), _stamp(settings.input_dir / source.source_path))
        done = journal.find("recording", source.source_path, key)
        result = RecordingResult.from_json(done) if done else None
        # what could not be decoded is tried again: ffmpeg may have been installed since
        if result and result.status not in _TRIED_AGAIN and all(
                (settings.output_dir / segment.path).exists() for segment in result.segments):
            results[source.source_path] = result
        else:
            todo.append((source, key))
    if results:
        logger.info("continuing: %d of %d recordings are already done", len(results), len(sources))
    keys = {source.source_path: key for source, key in todo}
    work = functools.partial(extract_recording, settings)
    pending = parallel.map_unordered(work, [source for source, _ in todo], n_workers=n_workers)
    for source, result in progress(pending, total=len(todo), description="spectrograms", unit="file"):
        if isinstance(result, parallel.WorkerCrash):
            result = RecordingResult(source.source_path, "corrupt", "the decoder crashed on this file")
        if result.status != "ok":
            logger.warning("%s: %s", result.status, result.reason)
        results[source.source_path] = result
        journal.add("recording", source.source_path, keys[source.source_path], asdict(result))
    return [results[source.source_path] for source in sources]


def _stamp(path: Path) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _manifest_rows(settings: PreprocessSettings, sources: Sequence[Source],
                   results: Sequence[RecordingResult]) -> pd.DataFrame:
    rate = settings.frontend.sample_rate
    rows = pd.DataFrame([
        {"path": segment.path, "class_name": segment.class_name, "recording_id": source.recording_id,
         "source_path": source.source_path, "start_seconds": round(segment.start_sample / rate, 6),
         "end_seconds": round(segment.end_sample / rate, 6), "fold": source.fold, "augmentation": NOT_AUGMENTED}
        for source, result in zip(sources, results, strict=True) for segment in result.segments])
    if rows.empty:
        raise AudioError(f"none of the {len(results)} recordings in {settings.input_dir} could be used; the reasons:"
                         f" {_tally(results)}", status="empty")
    classes = ClassList.from_labels(rows["class_name"])
    if len(classes) < 2:
        raise ManifestError(f"only one class was found in {settings.input_dir} ({classes.names[0]}): a classifier"
                            f" needs at least two; a folder of background sound is a good second")
    rows["label"] = [classes.index(name) for name in rows["class_name"]]
    rows["split"] = _split(rows, settings)
    return rows.sort_values(["label", "path"], ignore_index=True)


def _tally(results: Sequence[RecordingResult]) -> str:
    return ", ".join(f"{n} {status}" for status, n in Counter(r.status for r in results).most_common())


def _split(rows: pd.DataFrame, settings: PreprocessSettings) -> np.ndarray:
    folds = sorted(set(rows["fold"]), key=lambda fold: (len(fold), fold))
    if folds == [""]:
        return grouped_split(rows["label"].to_numpy(), rows["recording_id"].to_numpy(dtype=str),
                             ratios=settings.ratios, random_state=settings.random_state)
    if len(folds) < 3:
        raise ManifestError(f"--fold_column needs at least 3 folds for train, val and test, got {', '.join(folds)}")
    sides = {folds[-1]: "test", folds[-2]: "val"}
    return rows["fold"].map(lambda fold: sides.get(fold, "train")).to_numpy(dtype=str)


def _write_files_csv(output_dir: Path, results: Sequence[RecordingResult], sides: dict[str, str]) -> None:
    table = pd.DataFrame([
        {**{name: getattr(r, name) for name in FILE_COLUMNS if hasattr(r, name)}, "path": r.source_path,
         "n_segments": len(r.segments), "split": sides.get(r.source_path, "")} for r in results])
    with atomic_path(output_dir / "files.csv") as temporary:
        table = table.astype({"sample_rate": "Int64", "channels": "Int64"}).sort_values("path")
        table.loc[:, list(FILE_COLUMNS)].to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")


def _write_dataset(settings: PreprocessSettings, rows: pd.DataFrame) -> None:
    output_dir = settings.output_dir
    classes = ClassList.from_labels(rows["class_name"])
    counts = pd.crosstab(rows["class_name"], rows["split"]).reindex(
        index=list(classes.names), columns=list(SPLITS), fill_value=0)
    for side in SPLITS:
        write_manifest(output_dir / f"{side}.csv", rows[rows["split"] == side])
    examples = {}
    for name in classes.names:
        row = rows[(rows["class_name"] == name) & (rows["augmentation"] == NOT_AUGMENTED)].iloc[0]
        examples[name] = (np.load(output_dir / row["path"], allow_pickle=False), settings.frontend)
    plot_overview(output_dir / "overview.png", counts=counts, examples=examples)
    _warn_of_gaps(counts)
    write_json(output_dir / "dataset.json", _dataset_info(settings, rows, classes, counts))


def _warn_of_gaps(counts: pd.DataFrame) -> None:
    for name, row in counts.iterrows():
        gaps = [side for side in SPLITS if row[side] == 0]
        if gaps:
            logger.warning("class %s has no segment in %s: too few recordings to put one on every side", name,
                           " and ".join(gaps))


def _dataset_info(settings: PreprocessSettings, rows: pd.DataFrame, classes: ClassList,
                  counts: pd.DataFrame) -> dict:
    sides_of: dict[str, set] = defaultdict(set)
    for recording_id, side in zip(rows["recording_id"], rows["split"], strict=True):
        sides_of[recording_id].add(side)
    shared = sorted(recording_id for recording_id, sides in sides_of.items() if len(sides) > 1)
    return {
        "format_version": FORMAT_VERSION,
        "frontend": settings.frontend.to_dict(),
        "fingerprint": frontend_fingerprint(settings.frontend),
        "class_names": list(classes.names),
        "counts": {side: {name: int(counts.loc[name, side]) for name in classes.names} for side in SPLITS},
        "recordings": {side: int(rows.loc[rows["split"] == side, "recording_id"].nunique()) for side in SPLITS},
        "input_dir": _relative(settings.input_dir, settings.output_dir),
        "settings": {
            "segment_overlap_ms": settings.segment_overlap_ms, "segment_selection": settings.segment_selection,
            "augmentation_factor": settings.augmentation_factor, "balance_classes": settings.balance_classes,
            "max_balance_ratio": settings.max_balance_ratio, "ratios": list(settings.ratios),
            "random_state": settings.random_state, "augmentation": settings.augmentation.to_dict()},
        "leakage_check": {"recordings_on_two_sides": shared,
                          "augmented_outside_train": int(((rows["augmentation"] != NOT_AUGMENTED)
                                                          & (rows["split"] != "train")).sum())},
    }


def _relative(input_dir: Path, output_dir: Path) -> str:
    try:
        return Path(os.path.relpath(input_dir, output_dir)).as_posix()
    except ValueError:  # two drives on Windows have no relative path
        return input_dir.resolve().as_posix()
