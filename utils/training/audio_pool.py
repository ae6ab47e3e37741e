"""A folder of recordings, decoded once: the audio a distillation draws its windows from.

The pool is three files: 16-bit samples, which are mapped, not loaded, a table that says which are whose, and how they
were decoded. Of a long recording random stretches are kept, so that neither memory nor disk grow with it.
"""

import functools
import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from models.errors import AudioError, ConfigError, ManifestError
from utils.audio.recordings import RecordingReader, find_recordings
from utils.running.parallel import Executor, Lost, report_alive, run_each
from utils.running.progress import progress
from utils.storage.files import atomic_path, file_sha256, read_json, write_json
from utils.storage.names import name_to_text
from utils.storage.tables import read_table, write_table

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_SAMPLES_NAME, _TABLE_NAME, _SETTINGS_NAME = "audio_pool.i16", "audio_pool.csv", "audio_pool.json"
_SAMPLE_TYPE = "<i2"
_COLUMNS = ["path", "status", "reason", "duration_seconds", "sha256", "first_sample", "n_samples"]
_STRETCH_SECONDS = 10
_FULL_SCALE = 32767
_HELD_OUT_SHARE = 0.03  # of the recordings: the agreement of student and teacher is told on them


@dataclass(frozen=True, eq=False)
class AudioPool:
    """Decoded audio.

    Parameters
    ----------
    samples : numpy.ndarray
        int16 ``(n_samples,)`` at ``sample_rate``, all recordings in a row, mapped from disk.
    firsts, lengths : numpy.ndarray
        int64 ``(n_recordings,)``: where each lies in it.
    sample_rate : int
        Hz.
    """

    samples: np.ndarray
    firsts: np.ndarray
    lengths: np.ndarray
    sample_rate: int

    @property
    def seconds(self) -> float:
        """Length of all of it."""
        return float(self.lengths.sum()) / self.sample_rate

    def part(self, rows: np.ndarray) -> "AudioPool":
        """Return the pool of some recordings."""
        return AudioPool(self.samples, self.firsts[rows], self.lengths[rows], self.sample_rate)

    def by_time(self, *, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut a piece at a moment drawn from all of the pool: every second is as likely as any other.

        Parameters
        ----------
        n_samples : int
            Longest piece; it never crosses the end of a recording.
        rng : numpy.random.Generator
            Source of the moment.

        Returns
        -------
        numpy.ndarray
            float32 ``(n,)`` in [-1, 1].
        """
        moment = int(rng.integers(self.lengths.sum()))
        row = int(np.searchsorted(self._ends, moment, side="right"))
        return self._cut(row, n_samples=n_samples, rng=rng)

    def by_recording(self, *, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Cut a piece of a recording drawn from all: every recording is as likely as any other, however short."""
        return self._cut(int(rng.integers(len(self.lengths))), n_samples=n_samples, rng=rng)

    @property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.lengths)

    def _cut(self, row: int, *, n_samples: int, rng: np.random.Generator) -> np.ndarray:
        length = int(self.lengths[row])
        start = int(rng.integers(max(1, length - n_samples + 1)))
        first = int(self.firsts[row]) + start
        return self.samples[first:first + min(n_samples, length)].astype(np.float32) / _FULL_SCALE


def gather(folder: Path, *, model_dir: Path, sample_rate: int, minutes_each: float, executor: Executor
           ) -> tuple[AudioPool, pd.DataFrame]:
    """Decode a folder, or find it decoded.

    Parameters
    ----------
    folder : Path
        Searched for recordings at every depth.
    model_dir : Path
        Where the pool's files stand.
    sample_rate : int
        Of the pool, in Hz.
    minutes_each : float
        Of a longer recording so much is kept, in random stretches of ten seconds.
    executor : Executor
        Decodes.

    Returns
    -------
    pool : AudioPool
        Of the recordings that could be used.
    files : pandas.DataFrame
        A row a recording: ``path, status, reason, duration_seconds, sha256, first_sample, n_samples``.

    Raises
    ------
    ManifestError
        If the folder holds nothing usable.
    ConfigError
        If other recordings were decoded before, or at another rate.
    """
    samples_path, table_path = model_dir / _SAMPLES_NAME, model_dir / _TABLE_NAME
    settings = {"format_version": FORMAT_VERSION, "sample_rate": sample_rate, "minutes_each": minutes_each}
    if table_path.is_file():
        _refuse_another_pool(folder, model_dir, settings)
    else:
        decoded = _decode(folder, samples_path, sample_rate=sample_rate, minutes_each=minutes_each, executor=executor)
        if not (decoded["status"] == "ok").any():
            reasons = "; ".join(decoded["reason"].head(3)) or "no recording was found"
            raise ManifestError(f"{folder} holds nothing to distil from: {reasons}")
        write_json(model_dir / _SETTINGS_NAME, settings)
        write_table(table_path, decoded)
    files = read_table(table_path)
    used = files[files["status"] == "ok"]
    firsts, lengths = (used[name].astype(np.int64).to_numpy() for name in ("first_sample", "n_samples"))
    pool = AudioPool(np.memmap(samples_path, dtype=_SAMPLE_TYPE, mode="r"), firsts, lengths, sample_rate)
    logger.info("%d of %d recordings, %.2f hours of audio", len(used), len(files), pool.seconds / 3600)
    return pool, files


def held_out(files: pd.DataFrame) -> np.ndarray:
    """Return which of the used recordings are kept for the score, bool ``(n_used,)``: by content, whatever their names.

    At least one is held out and one is not, where there are two.
    """
    used = files.loc[files["status"] == "ok", "sha256"]
    order = np.argsort([hashlib.sha256(f"held out {sha256}".encode()).hexdigest() for sha256 in used])
    chosen = np.zeros(len(used), dtype=bool)
    chosen[order[:min(max(1, round(_HELD_OUT_SHARE * len(used))), len(used) - 1)]] = True
    return chosen


def _refuse_another_pool(folder: Path, model_dir: Path, settings: Mapping) -> None:
    found = read_json(model_dir / _SETTINGS_NAME)
    for name, value in settings.items():
        if found.get(name) != value:
            raise ConfigError(f"{model_dir} holds audio that was decoded with {name} {found.get(name)!r}, not"
                              f" {value!r}: give the same, or choose another --model_dir")
    names = {_name(path, folder) for path in find_recordings(folder)}
    if names != set(read_table(model_dir / _TABLE_NAME)["path"]):
        raise ConfigError(f"{folder} holds other recordings than those that were decoded into {model_dir}: give the"
                          f" same folder, or choose another --model_dir")


def _name(path: Path, folder: Path) -> str:
    return name_to_text(os.path.relpath(path, folder))


def _decode(folder: Path, samples_path: Path, *, sample_rate: int, minutes_each: float,
            executor: Executor) -> pd.DataFrame:
    recordings = find_recordings(folder)
    work = functools.partial(_read, sample_rate=sample_rate, minutes=minutes_each)
    rows: list[dict] = []
    n_written = 0
    with atomic_path(samples_path) as temporary, open(temporary, "wb") as stream:
        for path, read in progress(run_each(executor, work, recordings), total=len(recordings),
                                   description="decoding", unit="file"):
            if isinstance(read, Lost):
                read = _Read(read.status, str(read.told_of(path)))
            if read.status != "ok":
                logger.warning("%s: %s", read.status, name_to_text(read.reason))
            stream.write(read.samples.tobytes())
            rows.append({"path": _name(path, folder), "status": read.status,
                         "reason": name_to_text(read.reason), "duration_seconds": read.duration_seconds,
                         "sha256": read.sha256, "first_sample": n_written, "n_samples": len(read.samples)})
            n_written += len(read.samples)
    files = pd.DataFrame(rows, columns=_COLUMNS).sort_values("path", ignore_index=True)  # workers finish in any order
    used = files[files["status"] == "ok"]
    copies = used.index[used.duplicated("sha256")]
    files.loc[copies, ["status", "reason"]] = "duplicate", "another recording has the same bytes"
    return files


@dataclass(frozen=True, eq=False)
class _Read:
    status: str
    reason: str = ""
    samples: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=_SAMPLE_TYPE))
    duration_seconds: float | str = ""
    sha256: str = ""


def _read(path: Path, *, sample_rate: int, minutes: float) -> _Read:
    """Return a recording, or random stretches of a long one.

    Which stretches are kept of a recording whose length shows only at its end: reservoir sampling (Vitter 1985,
    "Random Sampling with a Reservoir", ACM TOMS 11, algorithm R).
    """
    most, n_seen = max(1, round(minutes * 60 / _STRETCH_SECONDS)), 0
    kept: list[np.ndarray] = []
    try:
        sha256 = file_sha256(path)
        rng = np.random.default_rng(list(bytes.fromhex(sha256[:16])))
        with RecordingReader(path, sample_rate=sample_rate, on_block=report_alive) as reader:
            for piece in _stretches(reader, _STRETCH_SECONDS * sample_rate):
                n_seen += 1
                if len(kept) < most:
                    kept.append(piece)
                elif (place := int(rng.integers(n_seen))) < most:
                    kept[place] = piece
            duration, damage = round(reader.duration_seconds, 3), reader.damage
    except AudioError as error:
        return _Read(error.status, str(error))
    except OSError as error:
        return _Read("corrupt", f"{path} cannot be read: {error.strerror}")
    waveform = np.concatenate(kept) if kept else np.empty(0, dtype=np.float32)
    samples = np.clip(np.rint(waveform * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE).astype(_SAMPLE_TYPE)
    if not samples.any():
        return _Read("silent", f"{path} holds digital silence", duration_seconds=duration, sha256=sha256)
    return _Read("ok", damage, samples, duration, sha256)


def _stretches(reader: RecordingReader, n_samples: int) -> Iterator[np.ndarray]:
    waiting: list[np.ndarray] = []
    n_waiting = 0
    for block in reader.blocks():
        waiting.append(block)
        n_waiting += len(block)
        while n_waiting >= n_samples:
            joined = np.concatenate(waiting)
            yield joined[:n_samples]
            waiting, n_waiting = [joined[n_samples:]], n_waiting - n_samples
    if n_waiting:
        yield np.concatenate(waiting)
