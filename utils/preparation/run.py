"""Recordings to spectrograms and leak-free manifests.

Extraction decodes each recording once and writes its log-mels; the split follows, by recording; augmented
copies are made last, of training segments only. A journal lets a run that was stopped go on.
"""

import functools
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from models.audio_frontend import cached_frontend, frontend_fingerprint
from models.classes import ClassList
from models.errors import AudioError, ManifestError
from utils.audio.recordings import Outcome
from utils.preparation.extraction import ExtractedRecording, PreprocessSettings, extract_recording
from utils.preparation.sources import Source
from utils.running.parallel import Executor, Lost, run_each
from utils.running.progress import progress
from utils.storage.files import write_json
from utils.storage.journal import Journal, settings_key
from utils.storage.locks import locked
from utils.storage.manifest import FORMAT_VERSION, NOT_AUGMENTED, SPLITS, write_manifest
from utils.storage.names import name_to_text
from utils.storage.tables import write_table

logger = logging.getLogger(__name__)

_TRIED_AGAIN = ("corrupt", "unsupported", "timeout")
# how tables call the sides of a split
_NAMED_SIDES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                "test": "test"}
FILE_COLUMNS = ("path", "status", "reason", "duration_seconds", "sample_rate", "channels", "sha256", "n_segments",
                "split")


def preprocess(settings: PreprocessSettings, sources: Sequence[Source], *, executor: Executor,
               overwrite: bool) -> list[ExtractedRecording]:
    """Write spectrograms, manifests, ``dataset.json``, ``files.csv`` and ``overview.png``.

    Parameters
    ----------
    settings : PreprocessSettings
        What to do.
    sources : sequence of Source
        Recordings and labels.
    executor : Executor
        Where recordings are worked on.
    overwrite : bool
        Redo everything instead of continuing.

    Returns
    -------
    list of ExtractedRecording
        One per source, in the order of ``sources``.

    Raises
    ------
    ManifestError
        If fewer than two classes are left.
    AudioError
        If there is no source, or none gave a window.
    ConfigError
        If another run writes the folder.
    """
    if not sources:
        raise AudioError(f"there are no recordings to preprocess in {settings.input_dir}: the table names none, or all"
                         f" its rows were dropped", status="empty")
    n_empty = cached_frontend(settings.frontend).n_empty_bands
    if n_empty:
        logger.warning("%d of %d mel bands are narrower than a frequency bin and stay empty: lower --n_mels or raise"
                       " --n_fft", n_empty, settings.frontend.n_mels)
    with locked(settings.output_dir), Journal(settings.output_dir / "journal.jsonl", fresh=overwrite) as journal:
        extracted = _extract_all(settings, sources, journal, executor)
        results = mark_duplicates(extracted)
        _write_files_csv(settings.output_dir, results, {})  # the reasons are told even if nothing is usable
        rows = _manifest_rows(settings, sources, results)
        sides = dict(zip(rows["source_path"], rows["split"], strict=True))
        _write_files_csv(settings.output_dir, results, sides)
        everything = rows
        if settings.makes_copies:
            # late: it brings torch, which nothing else here needs
            from utils.preparation.augmented_copies import augment_all, plan_copies
            copies = plan_copies(rows[rows["split"] == "train"], settings)
            augmented = augment_all(settings, rows, copies, journal, executor)
            everything = pd.concat([rows, augmented], ignore_index=True) if len(augmented) else rows
        kept = {window.path for result in extracted for window in result.windows}
        _remove_stale(journal, settings.output_dir, kept.union(everything["path"]))
        journal.finish()
        _write_dataset(settings, everything)
    return results


def _remove_stale(journal: Journal, output_dir: Path, kept: set[str]) -> None:
    """Delete the spectrograms that earlier runs made and that are not among ``kept``."""
    root = output_dir.resolve()
    for entry in journal.entries():
        for made in entry.result.get("segments", entry.result.get("rows", [])):
            name = made.get("path") if isinstance(made, dict) else None
            if not isinstance(name, str) or name in kept:
                continue
            path = (root / name).resolve()
            if path.is_relative_to(root) and path.suffix == ".npy":
                path.unlink(missing_ok=True)


def mark_duplicates(results: Sequence[ExtractedRecording]) -> list[ExtractedRecording]:
    """Give every file whose bytes were seen before the status ``duplicate``; the first by path stays."""
    first_with: dict[str, str] = {}
    marked = {}
    for result in sorted(results, key=lambda r: r.source_path):
        original = first_with.setdefault(result.sha256, result.source_path) if result.sha256 else result.source_path
        if result.outcome.status == "ok" and original != result.source_path:
            outcome = replace(result.outcome, status="duplicate", reason=f"same bytes as {original}")
            result = replace(result, outcome=outcome, windows=())
        marked[result.source_path] = result
    return [marked[result.source_path] for result in results]


def _extract_all(settings: PreprocessSettings, sources: Sequence[Source], journal: Journal,
                 executor: Executor) -> list[ExtractedRecording]:
    results, todo, keys = {}, [], {}
    for source in sources:
        key = settings_key(settings.extraction_key(), source.key(), _stamp(source.audio_path(settings.input_dir)))
        done = journal.find("recording", source.source_path, key)
        result = ExtractedRecording.from_json(done) if done else None
        # what could not be decoded is tried again: ffmpeg may have been installed since
        if result and result.outcome.status not in _TRIED_AGAIN and settings.are_whole(
                window.path for window in result.windows):
            results[source.source_path] = result
        else:
            todo.append(source)
            keys[source.source_path] = key
    if results:
        logger.info("continuing: %d of %d recordings are already done", len(results), len(sources))
    pending = run_each(executor, functools.partial(extract_recording, settings), todo)
    for source, result in progress(pending, total=len(todo), description="spectrograms", unit="file"):
        if isinstance(result, Lost):
            result = ExtractedRecording(source.source_path, Outcome(
                result.status, result.told_of(source.audio_path(settings.input_dir))))
        if result.outcome.status != "ok":
            logger.warning("%s: %s", result.outcome.status, name_to_text(result.outcome.reason))
        elif result.outcome.reason:
            logger.warning("%s", name_to_text(result.outcome.reason))
        results[source.source_path] = result
        journal.add("recording", source.source_path, keys[source.source_path], result.to_json())
    return [results[source.source_path] for source in sources]


def _stamp(path: Path) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _manifest_rows(settings: PreprocessSettings, sources: Sequence[Source],
                   results: Sequence[ExtractedRecording]) -> pd.DataFrame:
    rate = settings.frontend.sample_rate
    rows = pd.DataFrame([
        {"path": window.path, "class_name": window.class_name, "recording_id": source.recording_id,
         "source_path": source.source_path, "start_seconds": round(window.start_sample / rate, 6),
         "end_seconds": round(window.end_sample / rate, 6), "fold": source.fold, "augmentation": NOT_AUGMENTED}
        for source, result in zip(sources, results, strict=True) for window in result.windows])
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


def _tally(results: Sequence[ExtractedRecording]) -> str:
    return ", ".join(f"{n} {status}" for status, n in Counter(r.outcome.status for r in results).most_common())


def _split(rows: pd.DataFrame, settings: PreprocessSettings) -> np.ndarray:
    folds = set(rows["fold"])
    if folds == {""}:
        # late: it brings scikit-learn, which given folds do not need
        from utils.storage.splits import grouped_split
        return grouped_split(rows["label"].to_numpy(), rows["recording_id"].to_numpy(dtype=str),
                             ratios=settings.ratios, random_state=settings.random_state)
    sides = rows["fold"].map(_sides_of_folds(folds))
    of_recording = sides.groupby(rows["recording_id"]).nunique()
    torn = sorted(of_recording.index[of_recording > 1])
    if torn:
        raise ManifestError(f"--fold_column puts {len(torn)} recordings or groups on two sides ({', '.join(torn[:3])}):"
                            f" give all their rows one fold")
    return sides.to_numpy(dtype=str)


def _sides_of_folds(folds: set[str]) -> dict[str, str]:
    """Return the side each fold stands for: what it is called, or of other folds the last is test, then val."""
    named = {fold: _NAMED_SIDES.get(fold.lower(), "") for fold in folds}
    if all(named.values()):
        missing = [side for side in SPLITS if side not in named.values()]
        if missing:
            raise ManifestError(f"--fold_column names the sides {', '.join(sorted(folds))} but no"
                                f" {' and no '.join(missing)}: add rows of it, or leave --fold_column out")
        return named
    if any(named.values()):
        raise ManifestError(f"--fold_column mixes sides and other values ({', '.join(sorted(folds))}): name train, val"
                            f" and test, or number the folds")
    if len(folds) < 3:
        raise ManifestError(f"--fold_column needs at least 3 folds for train, val and test, got"
                            f" {', '.join(sorted(folds))}")
    *others, val, test = sorted(folds, key=lambda fold: (len(fold), fold))
    return {**dict.fromkeys(others, "train"), val: "val", test: "test"}


def _write_files_csv(output_dir: Path, results: Sequence[ExtractedRecording], sides: dict[str, str]) -> None:
    table = pd.DataFrame([
        {**{name: getattr(r.outcome, name) for name in FILE_COLUMNS if hasattr(r.outcome, name)},
         "path": r.source_path, "sha256": r.sha256, "n_segments": len(r.windows),
         "split": sides.get(r.source_path, "")} for r in results])
    table["reason"] = table["reason"].map(name_to_text)
    table = table.astype({"sample_rate": "Int64", "channels": "Int64"}).sort_values("path")
    write_table(output_dir / "files.csv", table.loc[:, list(FILE_COLUMNS)])


def _write_dataset(settings: PreprocessSettings, rows: pd.DataFrame) -> None:
    # late: drawing takes half a second to import, while nothing can be worked on
    from utils.reports import plot_overview
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
        "input_dir": name_to_text(_relative(settings.input_dir, settings.output_dir)),
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
