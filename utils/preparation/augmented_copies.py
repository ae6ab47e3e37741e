"""Augmented copies of training windows: how many, and making them."""

import functools
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from models.audio_frontend import cached_frontend
from models.data_augmentation import AudioAugmentationPipeline
from utils.audio.recordings import RecordingReader
from utils.preparation.extraction import PreprocessSettings
from utils.storage.files import save_array
from utils.storage.journal import Journal, settings_key
from utils.storage.names import text_to_name
from utils.running.parallel import Executor, Lost, report_alive, run_each
from utils.running.progress import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AugmentationJob:
    """The training windows of one recording and how many copies each gets."""

    source_path: str
    rows: list[dict]
    n_copies: list[int]


def plan_copies(train_rows: pd.DataFrame, settings: PreprocessSettings) -> np.ndarray:
    """Return how many augmented copies each training row gets, int ``(n_train_rows,)``."""
    copies = np.full(len(train_rows), settings.augmentation_factor)
    if not settings.balance_classes or train_rows.empty:
        return copies
    labels = train_rows["label"].to_numpy()
    counts = Counter(labels.tolist())
    largest = max(counts.values()) * (1 + settings.augmentation_factor)
    for label, n_rows in counts.items():
        wanted = min(largest, round(settings.max_balance_ratio * n_rows))
        missing = max(0, wanted - n_rows * (1 + settings.augmentation_factor))
        share, rest = divmod(missing, n_rows)
        copies[labels == label] += share + (np.arange(n_rows) < rest)
    return copies


def augment_recording(settings: PreprocessSettings, job: AugmentationJob) -> list[dict[str, Any]]:
    """Write the augmented copies of one recording's training windows and return their manifest rows."""
    pipeline = AudioAugmentationPipeline.from_config(settings.augmentation)
    frontend = cached_frontend(settings.frontend)
    rate = settings.frontend.sample_rate
    length = settings.frontend.segment_samples
    parts = [(round(row["start_seconds"] * rate), round(row["end_seconds"] * rate)) for row in job.rows]
    made = []
    with RecordingReader(settings.input_dir / text_to_name(job.source_path), sample_rate=rate,
                         on_block=report_alive) as reader:
        for part, _, samples in reader.windows(segment_samples=length, hop_samples=length, least_new_samples=length,
                                               parts=parts):
            row = job.rows[part]
            clip = frontend.fit_length(samples)
            for copy in range(1, job.n_copies[part] + 1):
                # the seed names the window and the copy, so neither order nor workers matter
                rng = np.random.default_rng([settings.random_state, *row["path"].encode(), copy])
                augmented = pipeline.augment_waveform(clip, sample_rate=rate, rng=rng)
                path = f"{row['path'].removesuffix('.npy')}_aug{copy:02d}.npy"
                save_array(settings.output_dir / path, frontend.log_mel(augmented))
                made.append({**row, "path": path, "augmentation": f"aug{copy:02d}"})
    return made


def augment_all(settings: PreprocessSettings, rows: pd.DataFrame, copies: np.ndarray, journal: Journal,
                executor: Executor) -> pd.DataFrame:
    """Make every planned copy in worker processes and return their manifest rows, sorted."""
    jobs: dict[str, AugmentationJob] = {}
    for row, n_copies in zip(rows[rows["split"] == "train"].to_dict("records"), copies, strict=True):
        if n_copies:
            job = jobs.setdefault(row["source_path"], AugmentationJob(row["source_path"], [], []))
            job.rows.append(row)
            job.n_copies.append(int(n_copies))
    made, todo = [], []
    for job in jobs.values():
        key = settings_key(settings.augmentation_key(), asdict(job))
        done = journal.find("augmentation", job.source_path, key)
        if done and settings.are_whole(row["path"] for row in done["rows"]):
            made += done["rows"]
        else:
            todo.append(job)
    work = functools.partial(augment_recording, settings)
    pending = run_each(executor, work, todo)
    for job, result in progress(pending, total=len(todo), description="augmented copies", unit="file"):
        if isinstance(result, Lost):
            logger.warning("%s has no augmented copies: %s", job.source_path, result.reason)
            continue
        made += result
        journal.add("augmentation", job.source_path, settings_key(settings.augmentation_key(), asdict(job)),
                    {"rows": result})
    frame = pd.DataFrame(made, columns=rows.columns)
    return frame.sort_values(["label", "path"], ignore_index=True)
