"""Augmented copies of training windows: how many, with which background, and making them."""

import functools
import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from models.audio_frontend import cached_frontend
from models.data_augmentation import AudioAugmentationPipeline
from models.efficientnet_config import BACKGROUND_CLASS, FrontendConfig
from models.errors import AudioError
from utils.audio.recordings import RecordingReader, find_recordings
from utils.preparation.dataset import retract
from utils.preparation.extraction import PreprocessSettings
from utils.running.parallel import Executor, Lost, report_alive, run_each
from utils.running.progress import progress
from utils.storage.files import file_sha256, save_array
from utils.storage.journal import Journal, settings_key
from utils.storage.names import name_to_text, text_to_name

logger = logging.getLogger(__name__)

_MOST_KEPT_BACKGROUNDS = 64  # windows a worker keeps decoded: some 700 kB each
_MOST_PARTS_OF_A_BACKGROUND = 16  # windows, evenly spread, that a recording of --background_dir offers


class Background(NamedTuple):
    """A stretch of a recording without calls, to be mixed into a copy.

    Parameters
    ----------
    path : str
        The recording.
    start_sample, end_sample : int
        At the front end's rate.
    content : str
        Hash of the recording, so that an edited one is not taken for what it was.
    """

    path: str
    start_sample: int
    end_sample: int
    content: str


class Copy(NamedTuple):
    """One copy to make: its number, and what is mixed into it, if anything."""

    number: int
    background: Background | None


@dataclass(frozen=True)
class AugmentationJob:
    """The training windows of one recording and the copies each gets."""

    source_path: str
    rows: list[dict]
    copies: list[list[Copy]]


def plan_copies(train_rows: pd.DataFrame, settings: PreprocessSettings) -> np.ndarray:
    """Return how many augmented copies each training row gets, int ``(n_train_rows,)``."""
    copies = np.full(len(train_rows), settings.augmentation_factor)
    if not settings.balance_classes or train_rows.empty:
        return copies
    labels = train_rows["class_name"].to_numpy()
    counts = Counter(labels.tolist())
    largest = max(counts.values()) * (1 + settings.augmentation_factor)
    for label, n_rows in counts.items():
        wanted = round(min(largest, settings.max_balance_ratio * n_rows))
        missing = max(0, wanted - n_rows * (1 + settings.augmentation_factor))
        share, rest = divmod(missing, n_rows)
        copies[labels == label] += share + (np.arange(n_rows) < rest)
    return copies


def background_pool(settings: PreprocessSettings, train_rows: pd.DataFrame,
                    contents: Mapping[str, str], held_out: set[str]) -> list[Background]:
    """Return what copies may be mixed with: the recordings of ``background_dir``, or training windows without calls.

    Parameters
    ----------
    settings : PreprocessSettings
        Names the folder.
    train_rows : pandas.DataFrame
        Windows of the training split alone: nothing of validation or test may sound in a copy.
    contents : mapping of str to str
        SHA-256 of each recording of the data set, by source path.
    held_out : set of str
        SHA-256 of the recordings of validation and test, which are left out of ``background_dir`` too.
    """
    if not settings.augmentation.use_background:
        return []
    if settings.background_dir is not None:
        return list(_of_folder(settings.background_dir, settings.frontend, held_out))
    calm = train_rows[train_rows["class_name"] == BACKGROUND_CLASS]
    rate = settings.frontend.sample_rate
    return [Background(str(settings.input_dir / text_to_name(row.source_path)), round(row.start_seconds * rate),
                       round(row.end_seconds * rate), contents[row.source_path]) for row in calm.itertuples()]


def augment_recording(settings: PreprocessSettings, job: AugmentationJob) -> list[str]:
    """Write the augmented copies of one recording's training windows and return their paths."""
    pipeline = AudioAugmentationPipeline.from_config(settings.augmentation)
    frontend = cached_frontend(settings.frontend)
    rate, length = settings.frontend.sample_rate, settings.frontend.segment_samples
    parts = [(round(row["start_seconds"] * rate), round(row["end_seconds"] * rate)) for row in job.rows]
    made = []
    with RecordingReader(settings.input_dir / text_to_name(job.source_path), sample_rate=rate,
                         on_block=report_alive) as reader:
        for part, _, samples in reader.windows(segment_samples=length, hop_samples=length, least_new_samples=length,
                                               parts=parts):
            path, clip = job.rows[part]["path"], frontend.fit_length(samples)
            for copy in job.copies[part]:
                # the seed names the window and the copy, so neither order nor workers matter
                rng = np.random.default_rng([settings.random_state, *path.encode(), copy.number])
                background = None if copy.background is None else _read_background(copy.background, rate)
                made.append(copy_path(path, copy.number))
                save_array(settings.output_dir / made[-1], pipeline.augmented_log_mel(
                    clip, frontend=frontend, rng=rng, background=background))
    return made


def augment_all(settings: PreprocessSettings, train_rows: pd.DataFrame, n_copies: np.ndarray,
                pool: Sequence[Background], *, contents: Mapping[str, str], journal: Journal,
                executor: Executor) -> pd.DataFrame:
    """Make every planned copy in worker processes and return their manifest rows, sorted by class and path.

    Parameters
    ----------
    settings : PreprocessSettings
        How copies are made.
    train_rows : pandas.DataFrame
        Windows of the training split.
    n_copies : numpy.ndarray
        int ``(n_train_rows,)``, from ``plan_copies``.
    pool : sequence of Background
        From ``background_pool``.
    contents : mapping of str to str
        SHA-256 of each recording, by source path.
    journal : Journal
        Copies that stand in it and on disk are not made again.
    executor : Executor
        Where recordings are worked on.
    """
    made: list[dict] = []
    todo = []
    for job in _jobs(train_rows, n_copies, pool, settings.random_state):
        key = settings_key(settings.augmentation_key(), contents[job.source_path])
        wanted = _digests(job)
        done = journal.find("augmentation", job.source_path, key) or {}
        there = {path for path, digest in done.get("copies", {}).items()
                 if wanted.get(path) == digest and settings.are_whole([path])}
        if len(there) < len(wanted):
            todo.append(_Todo(job, _without(job, there), key, there))
        made += _rows_of(job, there)
    pending = run_each(executor, functools.partial(_augment, settings), _begun(todo, journal, settings.output_dir))
    for one, result in progress(pending, total=len(todo), description="augmented copies", unit="file"):
        if isinstance(result, Lost):
            logger.warning("%s has no augmented copies: %s", one.job.source_path, result.reason)
            result = []
        made += _rows_of(one.job, set(result))
        wanted = _digests(one.job)
        copies = {path: wanted[path] for path in sorted(one.there.union(result))}
        journal.add("augmentation", one.job.source_path, one.key, {"copies": copies})
    frame = pd.DataFrame(made, columns=train_rows.columns)
    return frame.sort_values(["class_name", "path"], ignore_index=True)


@dataclass(frozen=True)
class _Todo:
    """A job, what of it is missing, the key that it is done under, and the copies that are there already."""

    job: AugmentationJob
    missing: AugmentationJob
    key: str
    there: set[str]


def _augment(settings: PreprocessSettings, todo: _Todo) -> list[str]:
    return augment_recording(settings, todo.missing)


def _begun(todo: Sequence[_Todo], journal: Journal, output_dir: Path) -> Iterator[_Todo]:
    """Hand out work; what counted before is forgotten first, for its files are about to be written over."""
    for one in todo:
        before = journal.latest("augmentation", one.job.source_path)
        # an earlier version noted rows
        if before is not None and (before.result.get("copies") or before.result.get("rows")):
            retract(output_dir)  # until the new one is whole there is no data set: its files would be of both
        journal.forget("augmentation", one.job.source_path)
        yield one


def _jobs(train_rows: pd.DataFrame, n_copies: np.ndarray, pool: Sequence[Background],
          random_state: int) -> list[AugmentationJob]:
    jobs: dict[str, AugmentationJob] = {}
    chooser = _Chooser(pool, random_state)
    for row, n in zip(train_rows.to_dict("records"), n_copies, strict=True):
        if n:
            job = jobs.setdefault(row["source_path"], AugmentationJob(row["source_path"], [], []))
            job.rows.append(row)
            job.copies.append([Copy(number, chooser.choose(copy_path(row["path"], number)))
                               for number in range(1, int(n) + 1)])
    return list(jobs.values())


class _Chooser:
    """Chooses a background for each copy so that one more in the pool changes few choices.

    Highest random weight (Thaler and Ravishankar 1998, IEEE/ACM Transactions on Networking 6(1)): by recording, and
    then one of its windows.
    """

    def __init__(self, pool: Sequence[Background], random_state: int) -> None:
        self._random_state = random_state
        of_content: dict[str, list[Background]] = {}
        for background in pool:
            of_content.setdefault(background.content, []).append(background)
        self._windows = [of_content[content] for content in sorted(of_content)]
        self._hashes = np.array([_number(content) for content in sorted(of_content)], dtype=np.uint64)

    def choose(self, path: str) -> Background | None:
        if not self._windows:
            return None
        own = _number(f"{self._random_state}:{path}")
        windows = self._windows[int(np.argmax(_mixed(self._hashes ^ np.uint64(own))))]
        return windows[own % len(windows)]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _mixed(values: np.ndarray) -> np.ndarray:
    """Return uint64 of which every bit depends on all bits of its value: SplitMix64 (Steele et al. 2014, OOPSLA)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
    return values ^ (values >> np.uint64(31))


def _without(job: AugmentationJob, there: set[str]) -> AugmentationJob:
    """Return the part of a job that is not there yet."""
    missing = AugmentationJob(job.source_path, [], [])
    for row, copies in zip(job.rows, job.copies, strict=True):
        left = [copy for copy in copies if copy_path(row["path"], copy.number) not in there]
        if left:
            missing.rows.append(row)
            missing.copies.append(left)
    return missing


def _digests(job: AugmentationJob) -> dict[str, str]:
    """Return what each copy depends on beside the recording and the settings, as a hash, by its path."""
    return {copy_path(row["path"], copy.number): settings_key(
        row["class_name"], row["start_seconds"], row["end_seconds"], copy.background and copy.background[1:])
        for row, copies in zip(job.rows, job.copies, strict=True) for copy in copies}


def _rows_of(job: AugmentationJob, paths: set[str]) -> list[dict[str, Any]]:
    rows = [{**row, "path": copy_path(row["path"], copy.number), "augmentation": f"aug{copy.number:02d}"}
            for row, copies in zip(job.rows, job.copies, strict=True) for copy in copies]
    return [row for row in rows if row["path"] in paths]


def copy_path(path: str, number: int) -> str:
    """Return where the copy of a window lies."""
    return f"{path.removesuffix('.npy')}_aug{number:02d}.npy"


def _of_folder(folder: Path, frontend: FrontendConfig, held_out: set[str]) -> Iterator[Background]:
    for path in find_recordings(folder):
        try:
            sha256 = file_sha256(path)
            with RecordingReader(path, sample_rate=frontend.sample_rate) as reader:
                n_windows = max(1, (reader.n_samples or 0) // frontend.segment_samples)
        except (AudioError, OSError) as error:
            logger.warning("--background_dir: %s is left out", name_to_text(str(error)))
            continue
        if sha256 in held_out:
            logger.warning("--background_dir: %s is left out: it is in validation or test too", name_to_text(path))
            continue
        for number in np.unique(np.linspace(0, n_windows - 1, _MOST_PARTS_OF_A_BACKGROUND).astype(int)):
            start = int(number) * frontend.segment_samples
            yield Background(str(path), start, start + frontend.segment_samples, sha256)


@functools.lru_cache(maxsize=_MOST_KEPT_BACKGROUNDS)
def _read_background(background: Background, sample_rate: int) -> np.ndarray | None:
    """Return float32 ``(n_samples,)``; None where nothing can be read there."""
    pieces, position, wanted = [], background.start_sample, background.end_sample
    try:
        with RecordingReader(background.path, sample_rate=sample_rate, on_block=report_alive) as reader:
            for block in reader.blocks(start=background.start_sample):
                pieces.append(block[:wanted - position])
                position += len(block)
                if position >= wanted:
                    break
    except AudioError as error:
        logger.warning("a background is left out: %s", error)
    samples = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.float32)
    return samples if len(samples) else None
