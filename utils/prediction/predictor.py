"""Prediction: a checkpoint and audio in, records out.

Windows flow from decoding threads through the network in batches that span files. Order is that of the input,
so a result depends neither on threads nor on what else is in the run; memory does not grow with a recording.
"""

import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from models.audio_frontend import LogMelFrontend, segment_starts
from models.errors import AudioError, ConfigError
from utils.audio.recordings import RecordingReader, check_audible, read_recorded_at
from utils.networks.backends import load_backend
from utils.storage.config_files import read_config

_QUEUED_WINDOWS = 64  # per file being read: bounds memory, and keeps the network from waiting
_PROBABILITY_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """What a prediction is asked for.

    Parameters
    ----------
    segment_mode : bool
        One record per segment instead of one per file.
    segment_duration_ms : int or None
        Length of a segment; the model's window when None.
    segment_overlap_ms : int
        Overlap of segments, below their length.
    use_thresholds : bool
        False always reports the top class.
    min_confidence : float or None
        One threshold for every class instead of the model's own.
    return_all_scores : bool
        Add ``all_scores`` to each record.
    top_k : int
        Add the ``top_k`` best classes to each record; 0 is off.
    """

    segment_mode: bool = False
    segment_duration_ms: int | None = None
    segment_overlap_ms: int = 0
    use_thresholds: bool = True
    min_confidence: float | None = None
    return_all_scores: bool = False
    top_k: int = 0


@dataclass
class _FileProgress:
    """What is known of a file while its windows pass through the network."""

    path: Path
    probabilities: list[list[np.ndarray]] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    duration_seconds: float = 0.0
    seconds_spent: float = 0.0
    recorded_at: datetime | None = None
    error: AudioError | None = None


@dataclass(frozen=True)
class _Window:
    """One input of the network: the log-mel of a window of a segment of a file."""

    segment: int
    span: tuple[int, int]
    log_mel: np.ndarray
    seconds: float


@dataclass(frozen=True)
class FileOutcome:
    """What came of one file: records, or an error."""

    file_path: str
    records: list[dict]
    error: dict | None
    duration_seconds: float


class EfficientNetPredictor:
    """Classifies recordings with a trained model.

    Parameters
    ----------
    model_path : path-like
        A ``.pth`` that ``train_efficientnet.py`` wrote, or NightScan 1's ResNet18.
    config_path : path-like, optional
        A JSON config whose ``thresholds`` and ``reject_class`` replace the model's. The front end is always the
        checkpoint's.
    device : str
        As ``--device``.
    batch_size : int
        Windows per pass through the network.
    n_workers : int
        Threads that decode ahead.
    class_names : sequence of str, optional
        Names of the outputs of a NightScan 1 file.
    settings : PredictionSettings, optional
        What to report.

    Raises
    ------
    CheckpointError, ConfigError
        If the model cannot be trusted or the settings do not fit it.

    Examples
    --------
    >>> predictor = EfficientNetPredictor("model/efficientnet_best.pth")     # doctest: +SKIP
    >>> predictor.predict_single("clip.wav")["predicted_class"]              # doctest: +SKIP
    'bird_song'
    """

    def __init__(self, model_path: str | os.PathLike, config_path: str | os.PathLike | None = None, *,
                 device: str = "auto", batch_size: int = 32, n_workers: int = 2,
                 class_names: Sequence[str] | None = None, settings: PredictionSettings | None = None) -> None:
        self.backend = load_backend(model_path, device=device, class_names=class_names)
        self.model = self.backend.description
        self.settings = settings or PredictionSettings()
        self.batch_size, self.n_workers = batch_size, n_workers
        self._rules = self.model.config if config_path is None else read_config(config_path)
        self._frontend = LogMelFrontend(self.model.frontend)
        rate = self.model.frontend.sample_rate
        duration_ms = self.settings.segment_duration_ms or self.model.frontend.segment_duration_ms
        if not 0 <= self.settings.segment_overlap_ms < duration_ms:
            raise ConfigError(f"segment_overlap must be in 0..{duration_ms} ms (segment_duration excluded), got"
                              f" {self.settings.segment_overlap_ms} ms")
        self._segment_samples = max(1, round(rate * duration_ms / 1000))
        self._hop_samples = max(1, self._segment_samples - round(rate * self.settings.segment_overlap_ms / 1000))

    def predict_single(self, path: str | os.PathLike) -> dict:
        """Return the record of one file over its whole length.

        Parameters
        ----------
        path : path-like
            A recording.

        Returns
        -------
        dict
            ``file_path, predicted_class, confidence, above_threshold, top_class, top_confidence,
            duration_seconds, n_segments, processing_time`` and what the settings ask for.

        Raises
        ------
        AudioError
            If the file cannot be used.
        """
        progress = next(self._process([Path(path)]))
        if progress.error is not None:
            raise progress.error
        return self._file_record(progress)

    def predict_batch(self, paths: Iterable[str | os.PathLike]) -> list[dict]:
        """Return one record per file, in order; for a file that cannot be used ``file_path, status, error``."""
        outcomes = (self._process([Path(path) for path in paths]))
        return [self._file_record(progress) if progress.error is None else _error_record(progress)
                for progress in outcomes]

    def predict_files(self, paths: Iterable[Path]) -> Iterator[FileOutcome]:
        """Yield what came of each file, in order, as the settings ask: per file or per segment."""
        for progress in self._process(paths):
            if progress.error is not None:
                yield FileOutcome(str(progress.path), [], _error_record(progress), 0.0)
                continue
            records = self._segment_records(progress) if self.settings.segment_mode else [self._file_record(progress)]
            yield FileOutcome(str(progress.path), records, None, progress.duration_seconds)

    def thresholds(self) -> dict[str, float]:
        """Return the probability each class must reach, as the settings and the config have it."""
        settings = self.settings
        if not settings.use_thresholds:
            return dict.fromkeys(self.model.classes.names, 0.0)
        if settings.min_confidence is not None:
            return dict.fromkeys(self.model.classes.names, settings.min_confidence)
        return {name: self._rules.threshold(name) for name in self.model.classes.names}

    def span_probabilities(self, path: Path, spans: Sequence[tuple[float, float]]) -> np.ndarray:
        """Return calibrated probabilities ``(n_spans, n_classes)`` of parts of a recording, given in seconds.

        Raises
        ------
        AudioError
            If the file cannot be read or a part lies after its end.
        """
        rate, length = self.model.frontend.sample_rate, self.model.frontend.segment_samples
        in_samples = [(round(start * rate), max(round(start * rate) + 1, round(end * rate))) for start, end in spans]
        result = np.full((len(spans), len(self.model.classes)), np.nan)
        with RecordingReader(path, sample_rate=rate) as reader:
            for index, samples in reader.intervals(in_samples):
                starts = segment_starts(len(samples), segment_samples=length, hop_samples=length)
                log_mels = [self._frontend.log_mel(samples[first:first + length]) for first in starts]
                result[index] = self.probabilities(np.stack(log_mels)).mean(axis=0)
        if np.isnan(result).any():
            raise AudioError(f"{path} ends before a labelled part: it is not the file that was preprocessed")
        return result

    def probabilities(self, log_mels: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities of log-mels.

        Parameters
        ----------
        log_mels : numpy.ndarray
            float32 ``(n_windows, n_mels, n_frames)`` in dB from the model's own front end.

        Returns
        -------
        numpy.ndarray
            float64 ``(n_windows, n_classes)``, rows sum to 1.

        Raises
        ------
        ConfigError
            If the GPU's memory does not hold a batch.
        """
        logits = [self.backend.run(log_mels[first:first + self.batch_size]).logits
                  for first in range(0, len(log_mels), self.batch_size)]
        return self.model.calibration.probabilities(np.concatenate(logits))

    def _process(self, paths: Iterable[Path]) -> Iterator[_FileProgress]:
        """Yield finished files in order, filling batches across them."""
        unfinished: deque[_FileProgress] = deque()
        held: list[tuple[_FileProgress, _Window]] = []
        for progress, item in _read_ahead(paths, self._windows, self.n_workers):
            if not unfinished or unfinished[-1] is not progress:
                unfinished.append(progress)
            if isinstance(item, _Window):
                held.append((progress, item))
                if len(held) == self.batch_size:
                    self._run_batch(held)
                    held = []
                continue
            # the last file may still wait for its batch; those before it are complete
            waiting = {id(owner) for owner, _ in held}
            while unfinished and unfinished[0] is not progress and id(unfinished[0]) not in waiting:
                yield unfinished.popleft()
        if held:
            self._run_batch(held)
        yield from unfinished

    def _run_batch(self, held: Sequence[tuple[_FileProgress, _Window]]) -> None:
        started = time.perf_counter()
        probabilities = self.probabilities(np.stack([window.log_mel for _, window in held]))
        share = (time.perf_counter() - started) / len(held)
        for (progress, window), row in zip(held, probabilities, strict=True):
            if window.segment == len(progress.spans):
                progress.spans.append(window.span)
                progress.probabilities.append([])
            progress.probabilities[window.segment].append(row)
            progress.seconds_spent += window.seconds + share

    def _windows(self, progress: _FileProgress) -> Iterator[_Window]:
        """Decode a file and yield its windows; runs in a reading thread."""
        length, peak = self.model.frontend.segment_samples, 0.0
        with RecordingReader(progress.path, sample_rate=self.model.frontend.sample_rate) as reader:
            started = time.perf_counter()
            segments = reader.segments(segment_samples=self._segment_samples, hop_samples=self._hop_samples)
            for number, (start, samples) in enumerate(segments):
                peak = max(peak, float(np.abs(samples).max()))
                for first in segment_starts(len(samples), segment_samples=length, hop_samples=length):
                    log_mel = self._frontend.log_mel(samples[first:first + length])
                    spent, started = time.perf_counter() - started, time.perf_counter()
                    yield _Window(number, (start, start + len(samples)), log_mel, spent)
            progress.duration_seconds = reader.duration_seconds
        check_audible(progress.path, duration_seconds=progress.duration_seconds, peak=peak)
        progress.recorded_at = read_recorded_at(progress.path)

    def _file_record(self, progress: _FileProgress) -> dict:
        per_segment = np.array([np.mean(windows, axis=0) for windows in progress.probabilities])
        record = {"file_path": str(progress.path), **self._decision(per_segment.mean(axis=0)),
                  "duration_seconds": round(progress.duration_seconds, 3), "n_segments": len(per_segment),
                  "processing_time": round(progress.seconds_spent, 4)}
        if progress.recorded_at is not None:
            record["recorded_at"] = progress.recorded_at.isoformat()
        return record

    def _segment_records(self, progress: _FileProgress) -> list[dict]:
        rate, common = self.model.frontend.sample_rate, self._file_record(progress)
        common["processing_time"] = round(progress.seconds_spent / len(progress.spans), 4)
        records = []
        for index, (windows, (start, end)) in enumerate(zip(progress.probabilities, progress.spans, strict=True)):
            record = {**common, **self._decision(np.mean(windows, axis=0)), "segment_index": index,
                      "segment_start_ms": round(1000 * start / rate), "segment_end_ms": round(1000 * end / rate)}
            if progress.recorded_at is not None:
                record["recorded_at"] = (progress.recorded_at + timedelta(seconds=start / rate)).isoformat()
            records.append(record)
        return records

    def _decision(self, probabilities: np.ndarray) -> dict[str, Any]:
        names, settings = self.model.classes.names, self.settings
        scores: Mapping[str, float] = {name: round(float(p), _PROBABILITY_DECIMALS)
                                       for name, p in zip(names, probabilities, strict=True)}
        ranked = sorted(scores, key=lambda name: -scores[name])
        top = ranked[0]
        above = scores[top] >= self.thresholds()[top]
        predicted = top if above else self._rules.reject_class
        decision = {"predicted_class": predicted, "confidence": scores.get(predicted, 0.0), "above_threshold": above,
                    "top_class": top, "top_confidence": scores[top]}
        if settings.top_k:
            decision["top_k"] = [{"class": name, "probability": scores[name]} for name in ranked[:settings.top_k]]
        if settings.return_all_scores:
            decision["all_scores"] = dict(scores)
        return decision


def _error_record(progress: _FileProgress) -> dict:
    assert progress.error is not None
    return {"file_path": str(progress.path), "status": progress.error.status, "error": str(progress.error)}


def _read_ahead(paths: Iterable[Path], windows_of: Callable[[_FileProgress], Iterator[_Window]],
                n_threads: int) -> Iterator[tuple[_FileProgress, _Window | None]]:
    """Yield every window of every file in order, then None for the file's end; some files are read ahead."""
    remaining = iter(paths)
    reading: deque[tuple[_FileProgress, queue.Queue, Future]] = deque()
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, n_threads)) as pool:

        def start_reading(n_files: int) -> None:
            for path in itertools.islice(remaining, n_files):
                progress = _FileProgress(path)
                items: queue.Queue[_Window | None] = queue.Queue(_QUEUED_WINDOWS)
                reading.append((progress, items, pool.submit(_read_file, progress, items, windows_of, stop)))

        try:
            start_reading(max(1, n_threads))
            while reading:
                progress, items, future = reading[0]
                item = items.get()
                if item is None:
                    future.result()  # raises what is no AudioError: a bug is not a bad file
                    reading.popleft()
                    start_reading(1)
                yield progress, item
        finally:
            stop.set()


def _read_file(progress: _FileProgress, items: queue.Queue, windows_of: Callable[[_FileProgress], Iterator[_Window]],
               stop: threading.Event) -> None:
    """Put the windows of one file into its queue, then None."""
    try:
        for window in windows_of(progress):
            if not _put(items, window, stop):
                return
    except AudioError as error:
        progress.error = error
    finally:
        _put(items, None, stop)


def _put(items: queue.Queue, item: object, stop: threading.Event) -> bool:
    """Put an item, giving up when the consumer is gone; return whether it was put."""
    while not stop.is_set():
        try:
            items.put(item, timeout=0.1)
        except queue.Full:
            continue
        return True
    return False
