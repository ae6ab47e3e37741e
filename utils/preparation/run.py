"""Recordings to spectrograms and leak-free manifests.

Extraction decodes each recording once and writes its log-mels; copies of one sound are settled; the split follows, by
recording; augmented copies are made last, of training windows only. A journal lets a run that was stopped go on.
"""

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from models.audio_frontend import cached_frontend
from models.classes import ClassList
from models.errors import AudioError, ManifestError
from utils.audio.recordings import Outcome
from utils.preparation.dataset import Dataset, retract, write_dataset, write_reasons
from utils.preparation.duplicates import settle_duplicates, similar_recordings
from utils.preparation.extraction import (ExtractedRecording, PreprocessSettings, examine_recording, extract_recording)
from utils.preparation.sides import adopt_sides, give_sides, keepers, leave_out
from utils.preparation.regions import Source
from utils.running.parallel import Executor, Lost, run_each
from utils.running.progress import progress
from utils.storage.files import remove_temporaries
from utils.storage.journal import Journal, settings_key
from utils.storage.locks import locked
from utils.storage.manifest import NOT_AUGMENTED
from utils.storage.names import name_to_text

logger = logging.getLogger(__name__)

_TRIED_AGAIN = ("corrupt", "unsupported", "timeout")
_OURS = re.compile(r".+-[0-9a-f]{8,32}_\d+(-\d+)?(_aug\d+)?\.npy")  # how spectrograms are called


def preprocess(settings: PreprocessSettings, sources: Sequence[Source], *, executor: Executor,
               overwrite: bool) -> list[ExtractedRecording]:
    """Write spectrograms, manifests, ``dataset.json``, ``files.csv``, ``regions.csv`` and ``overview.png``.

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
    _check_sources(settings, sources)
    n_empty = cached_frontend(settings.frontend).n_empty_bands
    if n_empty:
        logger.warning("%d of %d mel bands are narrower than a frequency bin and stay empty: lower --n_mels or raise"
                       " --n_fft", n_empty, settings.frontend.n_mels)
    with locked(settings.output_dir), Journal(settings.output_dir / "journal.jsonl", fresh=overwrite) as journal:
        if overwrite or journal.is_empty:
            retract(settings.output_dir)
        _tell_what_changed(settings, journal)
        extracted = _extract_all(settings, sources, journal, executor)
        results: Sequence[ExtractedRecording] = extracted
        try:
            ranks, similar = keepers(settings, sources, journal), similar_recordings(extracted)
            # before copies are settled: who has a side must not depend on where windows lie
            sides, left_out = give_sides(settings, sources, extracted, similar, journal,
                                         is_complete=not any(result.lost_worker for result in extracted))
            results = settle_duplicates(extracted, sample_rate=settings.frontend.sample_rate, keepers=ranks)
            results = leave_out(results, left_out)
            rows = _manifest_rows(settings, sources, results, sides)
        except (AudioError, ManifestError):
            write_reasons(settings.output_dir, results)
            raise
        copies = _copies(settings, rows, results, journal, executor)
        write_dataset(settings, Dataset(sources, results, similar, pd.concat([rows, copies], ignore_index=True)
                                        if len(copies) else rows))
        kept = {window.path for result in extracted for window in result.windows}
        _remove_stale(settings.output_dir, kept.union(copies["path"]))
        remove_temporaries(settings.output_dir / "spectrograms")  # what a process was writing that was lost
        journal.finish()
    return list(results)


def examine(settings: PreprocessSettings, sources: Sequence[Source], *, executor: Executor) -> list[ExtractedRecording]:
    """Examine every recording, write ``audit.html``, ``audit.json`` and ``audit.csv``, and make nothing of them.

    Parameters and errors are those of ``preprocess``.
    """
    _check_sources(settings, sources)
    # late: pictures, tables and statistics take a second to import, while nothing can be worked on
    from utils.preparation.audit_files import write_audit
    with locked(settings.output_dir), Journal(settings.output_dir / "journal.jsonl", fresh=False) as journal:
        results = _work_on_all("examination", functools.partial(examine_recording, settings), sources, journal,
                               executor, key=settings_key(settings.of_windows()["code_version"]), settings=settings)
        similar = similar_recordings(results)
        results = settle_duplicates(results, sample_rate=settings.frontend.sample_rate)
        write_audit(settings, sources, results, similar)
    return results


def _check_sources(settings: PreprocessSettings, sources: Sequence[Source]) -> None:
    if not sources:
        raise AudioError(f"there are no recordings to preprocess in {settings.input_dir}: the table names none, or all"
                         f" its rows were dropped", status="empty")


def _tell_what_changed(settings: PreprocessSettings, journal: Journal) -> None:
    """Say why everything is done again, where the settings differ from those of the last run."""
    now, entry = settings.of_windows(), journal.latest("settings", "windows")
    if entry is None and any(done.kind == "recording" for done in journal.entries()):
        logger.warning("every recording is done again: an earlier version prepared %s", settings.output_dir)
        adopt_sides(settings, journal)
    before = entry.result if entry else now
    changed = [f"{name} was {before.get(name)}, is {now.get(name)}" for name in now
               if before.get(name) != now[name] and name != "fingerprint"]
    if changed:
        logger.warning("every recording is done again: %s", "; ".join(changed))
    if not entry or before != now:
        journal.add("settings", "windows", "", now)


def _extract_all(settings: PreprocessSettings, sources: Sequence[Source], journal: Journal,
                 executor: Executor) -> list[ExtractedRecording]:
    return _work_on_all("recording", functools.partial(extract_recording, settings), sources, journal, executor,
                        key=settings_key(settings.of_windows()), settings=settings)


def _work_on_all(kind: str, work: functools.partial, sources: Sequence[Source], journal: Journal, executor: Executor,
                 *, key: str, settings: PreprocessSettings) -> list[ExtractedRecording]:
    """Return the result of each source, from the journal where it is still right."""
    results, todo, keys = {}, [], {}
    for source in sources:
        own_key = settings_key(key, source.key(), _stamp(source.audio_path(settings.input_dir)))
        done = journal.find(kind, source.source_path, own_key)
        result = ExtractedRecording.from_json(done) if done else None
        # what could not be decoded is tried again: ffmpeg may have been installed since
        if result and result.outcome.status not in _TRIED_AGAIN and settings.are_whole(
                window.path for window in result.windows):
            results[source.source_path] = result
        else:
            todo.append(source)
            keys[source.source_path] = own_key
    if results:
        logger.info("continuing: %d of %d recordings are already done", len(results), len(sources))
    pending = run_each(executor, work, _begun(kind, todo, journal, settings.output_dir))
    for source, result in progress(pending, total=len(todo), description="recordings", unit="file"):
        if isinstance(result, Lost):
            result = ExtractedRecording.lost(source, lost_worker=True, outcome=Outcome(
                result.status, result.told_of(source.audio_path(settings.input_dir))))
        if result.outcome.status != "ok":
            logger.warning("%s: %s", result.outcome.status, name_to_text(result.outcome.reason))
        elif result.outcome.reason:
            logger.warning("%s", name_to_text(result.outcome.reason))
        results[source.source_path] = result
        if journal.find(kind, source.source_path, keys[source.source_path]) != result.to_json():
            journal.add(kind, source.source_path, keys[source.source_path], result.to_json())
    return [results[source.source_path] for source in sources]


def _begun(kind: str, todo: Sequence[Source], journal: Journal, output_dir: Path) -> Iterator[Source]:
    """Hand out work; what counted before is forgotten first, for its files are about to be written over."""
    for source in todo:
        before = journal.latest(kind, source.source_path)
        if before is not None and before.result.get("segments"):
            retract(output_dir)  # until the new one is whole there is no data set: its files would be of both
            journal.forget(kind, source.source_path)
        yield source
    if todo:
        # late: the last recordings are worked on while this is imported, which takes a while
        import utils.preparation.audit_files  # noqa: F401


def _stamp(path: Path) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _manifest_rows(settings: PreprocessSettings, sources: Sequence[Source], results: Sequence[ExtractedRecording],
                   sides: dict[str, str]) -> pd.DataFrame:
    rate = settings.frontend.sample_rate
    rows = pd.DataFrame([
        {"path": window.path, "class_name": window.class_name, "recording_id": source.recording_id,
         "source_path": source.source_path, "start_seconds": round(window.start_sample / rate, 6),
         "end_seconds": round(window.end_sample / rate, 6), "split": sides[source.recording_id],
         "augmentation": NOT_AUGMENTED}
        for source, result in zip(sources, results, strict=True) for window in result.windows])
    if rows.empty:
        raise AudioError(f"none of the {len(results)} recordings in {settings.input_dir} could be used; the reasons:"
                         f" {_tally(results)}", status="empty")
    classes = ClassList.from_labels(rows["class_name"])
    if len(classes) < 2:
        raise ManifestError(f"only one class was found in {settings.input_dir} ({classes.names[0]}): a classifier"
                            f" needs at least two; a folder of background sound is a good second")
    return rows


def _tally(results: Sequence[ExtractedRecording]) -> str:
    return ", ".join(f"{n} {status}" for status, n in Counter(
        result.outcome.status if result.outcome.status != "ok" else "without a window" for result in results
    ).most_common())


def _copies(settings: PreprocessSettings, rows: pd.DataFrame, results: Sequence[ExtractedRecording], journal: Journal,
            executor: Executor) -> pd.DataFrame:
    if not settings.makes_copies:
        return rows.iloc[:0]
    # late: it brings torch, which nothing else here needs
    from models.data_augmentation import AudioAugmentationPipeline
    from utils.preparation.augmented_copies import augment_all, background_pool, plan_copies
    train = rows[rows["split"] == "train"].sort_values("path", ignore_index=True)
    contents = {result.source_path: result.sha256 for result in results}
    held_out = {contents[path] for path in rows.loc[rows["split"] != "train", "source_path"].unique()}
    pool = background_pool(settings, train, contents, held_out)
    AudioAugmentationPipeline.from_config(settings.augmentation).require_variety(with_background=bool(pool))
    return augment_all(settings, train, plan_copies(train, settings), pool, contents=contents, journal=journal,
                       executor=executor)


def _remove_stale(output_dir: Path, kept: set[str]) -> None:
    """Delete the spectrograms that earlier runs made and that are not among ``kept``, and folders they leave empty."""
    root = output_dir / "spectrograms"
    for parent, _, names in os.walk(root, topdown=False):
        folder = Path(parent)
        for name in names:
            path = folder / name
            if _OURS.fullmatch(name) and path.relative_to(output_dir).as_posix() not in kept:
                path.unlink(missing_ok=True)
        if folder != root and not any(folder.iterdir()):
            folder.rmdir()
