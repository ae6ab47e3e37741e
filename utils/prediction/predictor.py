"""The predictor: a trained model and audio in, records out.

Windows flow from the workers that read recordings through the network in batches that span files. Order is that of
the input, so a result depends neither on workers nor on what else is in the run; memory does not grow with a recording.
"""

import functools
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from models.audio_frontend import cached_frontend
from models.classes import DecisionRules
from models.errors import AudioError, ConfigError
from utils.audio.recordings import Outcome, RecordingReader, Samples
from utils.audio.windows import Part
from utils.networks.backends import Backend, load_backend
from utils.prediction.reading_ahead import ReadingPlan, Recording, RecordingRead, WindowRead, read_recording
from utils.prediction.records import (PredictedRecording, PredictionSettings, RecordMaker, ScoredRecording,
                                      ScoredSegment)
from utils.running.parallel import Executor, Lost, ThisProcess
from utils.storage.config_files import read_config
from utils.storage.names import name_to_text


class EfficientNetPredictor:
    """Classifies recordings with a trained model.

    A predictor never changes once it is made, so several threads may use one.

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
    class_names : sequence of str, optional
        Names of the outputs of a NightScan 1 file.
    settings : PredictionSettings, optional
        What to report.
    executor : Executor, optional
        Where recordings are decoded; in this process when None. ``LocalProcesses`` reads ahead and survives a decoder
        that crashes or hangs.

    Attributes
    ----------
    model : ModelDescription
        What there is to know of the model.
    backend : Backend
        The network.

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
                 device: str = "auto", batch_size: int = 32, class_names: Sequence[str] | None = None,
                 settings: PredictionSettings | None = None, executor: Executor | None = None) -> None:
        self.backend: Backend = load_backend(model_path, device=device, class_names=class_names)
        self.model = self.backend.description
        self.settings = settings or PredictionSettings()
        self.batch_size = batch_size
        self._executor: Executor = executor or ThisProcess()
        self._rules = (self.model.rules if config_path is None
                       else DecisionRules.of_config(read_config(config_path), self.model.classes))
        rules = DecisionRules(self.thresholds(), self._rules.reject_class)
        self._records = RecordMaker(self.model, rules, self.settings)
        self._plan = self._make_plan()

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
        ConfigError
            If the settings ask for segments.
        """
        return self._single(Path(path))

    def predict_samples(self, samples: np.ndarray, *, sample_rate: int, name: str = "samples") -> dict:
        """Return the record of a recording in memory.

        Parameters
        ----------
        samples : numpy.ndarray
            Floating point ``(n_samples,)`` or ``(n_samples, n_channels)`` in [-1, 1].
        sample_rate : int
            Hz; any, it is resampled as a file is.
        name : str
            What stands as its ``file_path``.

        Returns
        -------
        dict
            As ``predict_single``.

        Raises
        ------
        AudioError
            If there is nothing to classify in them.
        ConfigError
            If they have another form, or the settings ask for segments.
        """
        return self._single(Samples(np.asarray(samples), sample_rate, name))

    def predict_segments(self, path: str | os.PathLike) -> list[dict]:
        """Return one record per segment of a file, as ``--segment_mode`` does; raises AudioError."""
        return self._records.segment_records(self._score_one(Path(path)))

    def predict_batch(self, paths: Iterable[str | os.PathLike]) -> list[dict]:
        """Return one record per file, in order; for a file that cannot be used ``file_path, status, error``."""
        self._refuse_segments()
        return [predicted.records[0] if predicted.records else predicted.error_record()
                for predicted in self.predict_files(Path(path) for path in paths)]

    def predict_files(self, paths: Iterable[Path]) -> Iterator[PredictedRecording]:
        """Yield what is reported of each file, in order, as the settings ask: per file or per segment.

        A file is yielded as soon as its last window and those of the files before it are scored.
        """
        for recording in self._score(paths):
            records = []
            if recording.outcome.status == "ok":
                records = (self._records.segment_records(recording) if self.settings.segment_mode
                           else [self._records.file_record(recording)])
            yield PredictedRecording(name_to_text(recording.name), recording.outcome, records)

    def thresholds(self) -> dict[str, float]:
        """Return the probability each class must reach, as the settings and the config have it."""
        settings, names = self.settings, self.model.classes.names
        if not settings.use_thresholds:
            return dict.fromkeys(names, 0.0)
        if settings.min_confidence is not None:
            return dict.fromkeys(names, settings.min_confidence)
        return dict(self._rules.thresholds)

    def span_probabilities(self, path: Path, spans: Sequence[tuple[float, float]]) -> np.ndarray:
        """Return calibrated probabilities ``(n_spans, n_classes)`` of parts of a recording, given in seconds.

        Raises
        ------
        AudioError
            If the file cannot be read or a part lies after its end.
        """
        frontend = self.model.frontend
        rate, length = frontend.sample_rate, frontend.segment_samples
        parts: list[Part] = [(round(start * rate), max(round(start * rate) + 1, round(end * rate)))
                             for start, end in spans]
        log_mels: list[list[np.ndarray]] = [[] for _ in spans]
        with RecordingReader(path, sample_rate=rate) as reader:
            for part, _, samples in reader.windows(segment_samples=length, hop_samples=length, parts=parts,
                                                   least_new_samples=frontend.least_new_samples):
                log_mels[part].append(cached_frontend(frontend).log_mel(samples))
        if not all(log_mels):
            raise AudioError(f"{path} ends before a labelled part: it is not the file that was preprocessed")
        return np.stack([self.probabilities(np.stack(of_part)).mean(axis=0) for of_part in log_mels])

    def logits(self, log_mels: np.ndarray) -> np.ndarray:
        """Return the network's logits of log-mels, in batches.

        Parameters
        ----------
        log_mels : numpy.ndarray
            float32 ``(n_windows, n_mels, n_frames)`` in dB from the model's own front end.

        Returns
        -------
        numpy.ndarray
            float32 ``(n_windows, n_classes)``.

        Raises
        ------
        ConfigError
            If the GPU's memory does not hold a batch.
        """
        return np.concatenate([self.backend.run(log_mels[first:first + self.batch_size]).logits
                               for first in range(0, len(log_mels), self.batch_size)])

    def probabilities(self, log_mels: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities of log-mels: float64 ``(n_windows, n_classes)``, rows sum to 1."""
        return self.model.calibration.probabilities(self.logits(log_mels))

    def _make_plan(self) -> ReadingPlan:
        frontend, settings = self.model.frontend, self.settings
        duration_ms = settings.segment_duration_ms or frontend.segment_duration_ms
        if not 0 <= settings.segment_overlap_ms < duration_ms:
            raise ConfigError(f"segment_overlap must be in 0..{duration_ms} ms (segment_duration excluded), got"
                              f" {settings.segment_overlap_ms} ms")
        segment_samples = max(1, round(frontend.sample_rate * duration_ms / 1000))
        overlap_samples = round(frontend.sample_rate * settings.segment_overlap_ms / 1000)
        return ReadingPlan(frontend, segment_samples, max(1, segment_samples - overlap_samples))

    def _single(self, recording: Recording) -> dict:
        self._refuse_segments()
        return self._records.file_record(self._score_one(recording))

    def _score_one(self, recording: Recording) -> ScoredRecording:
        scored = next(self._score([recording]))
        if scored.outcome.status != "ok":
            raise AudioError(scored.outcome.reason, status=scored.outcome.status)
        return scored

    def _refuse_segments(self) -> None:
        if self.settings.segment_mode:
            raise ConfigError("segment_mode gives several records a file: use predict_segments, or settings without"
                              " segment_mode")

    def _score(self, recordings: Iterable[Recording]) -> Iterator[ScoredRecording]:
        """Yield scored recordings in order, filling batches across them."""
        unfinished: deque[ScoredRecording] = deque()  # the last one is being read, those before wait for a batch
        held: list[tuple[ScoredRecording, WindowRead]] = []
        work = functools.partial(read_recording, self._plan)
        current: ScoredRecording | None = None
        for recording, part in self._executor.stream(work, recordings, in_order=True):
            if current is None:
                current = ScoredRecording(recording.name if isinstance(recording, Samples) else str(recording))
                unfinished.append(current)
            if isinstance(part, WindowRead):
                held.append((current, part))
                if len(held) == self.batch_size:
                    self._run_batch(held)
                    held = []
                    while unfinished[0] is not current:
                        yield unfinished.popleft()
                continue
            if isinstance(part, RecordingRead):
                current.outcome, current.recorded_at = part.outcome, part.recorded_at
                current.seconds_spent += part.seconds_spent
                continue
            if isinstance(part, Lost):
                current.outcome = Outcome(part.status, part.told_of(current.name))
            if current.outcome.status != "ok":
                held = [(owner, window) for owner, window in held if owner is not current]
            current = None
            if not held:
                yield from _all_of(unfinished)
        if held:
            self._run_batch(held)
        yield from _all_of(unfinished)

    def _run_batch(self, held: Sequence[tuple[ScoredRecording, WindowRead]]) -> None:
        started = time.perf_counter()
        logits = self.logits(np.stack([window.log_mel for _, window in held]))
        share = (time.perf_counter() - started) / len(held)
        for (recording, window), row in zip(held, logits, strict=True):
            if window.segment == len(recording.segments):
                recording.segments.append(ScoredSegment(window.start, window.end))
            recording.segments[window.segment].logits.append(row)
            recording.seconds_spent += share


def _all_of(recordings: deque[ScoredRecording]) -> Iterator[ScoredRecording]:
    while recordings:
        yield recordings.popleft()
