"""The predictor: a trained model and audio in, records out.

Windows flow from whoever reads recordings through the network in batches. Where windows and batches begin depends on
the settings alone, so a result depends neither on workers nor on what else is in the run; memory does not grow with a
recording, but for its scores.
"""

import functools
import io
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from models.audio_frontend import cached_frontend
from models.classes import DecisionRules
from models.efficientnet_config import DEFAULT_CLASS_NAMES
from models.errors import AudioError, ConfigError
from utils.audio.recorders import parse_timezone
from utils.audio.recordings import Outcome, RecordingReader
from utils.audio.streams import FileObject, Samples
from utils.audio.windows import Part
from utils.networks.backends import Backend
from utils.networks.opening import plan_backend
from utils.prediction.detections import join
from utils.prediction.records import (Answer, PredictedRecording, PredictionSettings, RecordMaker, ScoredRecording,
                                      conclude)
from utils.prediction.scores import scoring_key
from utils.prediction.scoring import ReadAndScore, Scorer, SpanScores, name_in_worker
from utils.prediction.spans import Failed, Opened, ReadingPlan, Recording, SpanJob, name_of, read_spans
from utils.running.cluster import DaskCluster
from utils.running.parallel import Done, Executor, LocalProcesses, Lost, ThisProcess, run_each
from utils.storage.config_files import read_config, settings_in_file
from utils.storage.names import name_to_text

_HERE = ThisProcess()
_MOST_SHARES = 4  # each decodes all of the recording
SCORE_TOLERANCE = 1e-4  # of a probability: what batches, workers, and the back ends in float32 may change


class EfficientNetPredictor:
    """Classifies recordings with a trained model.

    A predictor never changes once it is made: any number of threads may share one. It closes what it opens, prints
    nothing, and holds of a recording no more than a block of samples and the scores.

    Parameters
    ----------
    model_path : path-like
        A ``.pth`` that ``train_efficientnet.py`` wrote, an exported ``.onnx``, or NightScan 1's ResNet18.
    config_path : path-like, optional
        A JSON config whose ``thresholds`` and ``reject_class`` replace the model's. The front end is always the
        model's.
    device : str
        As ``--device``.
    backend : str
        As ``--backend``: ``auto``, ``torch``, ``onnx`` or ``openvino``.
    precision : str, optional
        As ``--precision``: ``float32``, ``bf16`` or ``int8``.
    batch_size : int, optional
        Windows per pass through the network; what the back end is quickest with when None.
    class_names : sequence of str, optional
        Names of the outputs of a NightScan 1 file.
    settings : PredictionSettings, optional
        What to report.
    executor : Executor, optional
        Where recordings are decoded; in this process when None. ``LocalProcesses`` uses all cores and survives a
        decoder that crashes or hangs; so does a ``DaskCluster``, each of whose workers has the network too.
    with_embeddings : bool
        Keep embeddings of what is scored.

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
                 device: str = "auto", backend: str = "auto", precision: str | None = None,
                 batch_size: int | None = None, class_names: Sequence[str] | None = None,
                 settings: PredictionSettings | None = None, executor: Executor | None = None,
                 with_embeddings: bool = False) -> None:
        self._backend_plan = plan_backend(model_path, device=device, class_names=class_names, backend=backend,
                                          precision=precision)
        self._executor: Executor = executor or ThisProcess()
        self._in_workers = isinstance(self._executor, DaskCluster) or (
            isinstance(self._executor, LocalProcesses) and self._backend_plan.is_light)
        self.model = self._backend_plan.description() if self._in_workers else self.backend.description
        self.settings = settings or PredictionSettings()
        self._with_embeddings = with_embeddings
        self._batch_size = batch_size
        self._zone = parse_timezone(self.settings.timezone) if self.settings.timezone else None
        self._rules = self.model.rules if config_path is None else self._rules_in(config_path)
        self.plan = self._make_plan()
        rules = DecisionRules(self.thresholds(), self._rules.reject_class)
        self.records = RecordMaker(self.model, rules, self.settings, self.plan)

    @functools.cached_property
    def backend(self) -> Backend:
        """The network; loaded here only where no worker has its own."""
        return self._backend_plan.open()

    @property
    def backend_name(self) -> str:
        """Library, device and precision."""
        if self._in_workers and self._backend_plan.is_light:
            return self._backend_plan.name()
        if isinstance(self._executor, DaskCluster):  # what it has is for its workers to tell
            asked = functools.partial(name_in_worker, self._executor.n_threads)
            (_, name), = run_each(self._executor, asked, [self._backend_plan])
            return self._backend_plan.library if isinstance(name, Lost) else name
        return self.backend.name

    @property
    def batch_size(self) -> int:
        """Windows per pass through the network."""
        return self._batch_size or self.backend.batch_size

    def predict_single(self, recording: str | os.PathLike | BinaryIO) -> dict:
        """Return the record of one recording over its whole length.

        Parameters
        ----------
        recording : path-like or binary file object
            A file object is read from its beginning and stays open.

        Returns
        -------
        dict
            ``file_path, predicted_class, confidence, above_threshold, top_class, top_confidence,
            duration_seconds, n_segments, processing_time`` and what the settings ask for.

        Raises
        ------
        AudioError
            If it cannot be used.
        ConfigError
            If the settings ask for segments.
        """
        return self._single(_recording(recording))

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

    def predict_segments(self, recording: str | os.PathLike | BinaryIO) -> list[dict]:
        """Return one record per segment of a recording, or per detection where the settings join segments.

        Raises
        ------
        AudioError
            If it cannot be used.
        """
        scored = self._score_one(_recording(recording))
        return [self.records.segment_record(scored, answer) for answer in self._segment_answers(scored)]

    def predict_batch(self, recordings: Iterable[str | os.PathLike | BinaryIO]) -> list[dict]:
        """Return one record per recording, in order; batches of the network are filled across them.

        For one that cannot be used: ``file_path, status, error``.
        """
        self._refuse_segments()
        return [predicted.records[0] if predicted.records else predicted.error_record()
                for predicted in self.predict_files(recordings)]

    def predict_files(self, recordings: Iterable[str | os.PathLike | BinaryIO]) -> Iterator[PredictedRecording]:
        """Yield what is reported of each recording, in order, as the settings ask: per file or per segment.

        A recording is yielded as soon as its last window and those of the recordings before it are scored.
        """
        for scored in self._score_in_order(map(_recording, recordings)):
            records = ([self.record(scored, answer) for answer in self.answers(scored)]
                       if scored.outcome.status == "ok" else [])
            yield PredictedRecording(name_to_text(scored.name), scored.outcome, records)

    def answers(self, scored: ScoredRecording) -> Iterator[Answer]:
        """Return what the settings ask to be told of a recording that was scored.

        Its segments, the detections that they join to, or without ``segment_mode`` the whole.
        """
        return self._segment_answers(scored) if self.settings.segment_mode else iter([self.records.whole(scored)])

    def record(self, scored: ScoredRecording, answer: Answer) -> dict:
        """Return the record of what ``answers`` gave."""
        make = self.records.segment_record if self.settings.segment_mode else self.records.file_record
        return make(scored, answer)

    def score(self, jobs: Iterable[SpanJob], *, executor: Executor | None = None
              ) -> Iterator[tuple[SpanJob, Opened | SpanScores | Failed]]:
        """Yield what comes of recordings, span by span, as it comes; those of one recording in any order.

        Parameters
        ----------
        jobs : iterable of SpanJob
            Taken lazily.
        executor : Executor, optional
            Where recordings are decoded, in place of the predictor's own.
        """
        for job, part in self._parts(jobs) if executor is None else self._score_here(executor, jobs):
            if isinstance(part, Lost):
                part = Failed(part.status, part.told_of(name_of(job.recording)))
            if not isinstance(part, Done):
                yield job, part

    def in_zone(self, scored: ScoredRecording) -> ScoredRecording:
        """Return a recording whose times are told in the time zone that was asked for."""
        return replace(scored, recorder=scored.recorder.in_zone(self._zone))

    def scoring_key(self) -> str:
        """Return what stands for all that changes logits, but for the recordings."""
        plan, backend = self.plan, self._backend_plan
        usual = "float16" if backend.library == "torch" and backend.device != "cpu" else "float32"
        return scoring_key(self.model.sha256, self.model.fingerprint, plan.segment_samples, plan.hop_samples,
                           plan.n_segments_of_span, backend.library, backend.precision or usual, backend.device)

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
        size = self.batch_size
        return np.concatenate([self.backend.run(log_mels[first:first + size]).logits
                               for first in range(0, len(log_mels), size)])

    def probabilities(self, log_mels: np.ndarray) -> np.ndarray:
        """Return calibrated probabilities of log-mels: float64 ``(n_windows, n_classes)``, rows sum to 1."""
        return self.model.calibration.probabilities(self.logits(log_mels))

    def _rules_in(self, config_path: str | os.PathLike) -> DecisionRules:
        """Return the model's rules with what a config file itself gives in their place."""
        config, given, rules = read_config(config_path), settings_in_file(config_path), self.model.rules
        thresholds = config.thresholds if "thresholds" in given else {}
        names = self.model.classes.names
        unknown = next((name for name in thresholds if name not in (*names, *DEFAULT_CLASS_NAMES)), None)
        if unknown is not None:
            raise ConfigError(f"thresholds[{unknown!r}] is for no class of the model ({config_path}): its classes are"
                              f" {', '.join(names)}")
        return DecisionRules({name: thresholds.get(name, rules.thresholds[name]) for name in names},
                             config.reject_class if "reject_class" in given else rules.reject_class)

    def _segment_answers(self, scored: ScoredRecording) -> Iterator[Answer]:
        segments, gap = self.records.segments(scored), self.settings.merge_gap_seconds
        return segments if gap is None else join(segments, gap_samples=round(gap * self.model.frontend.sample_rate))

    def _make_plan(self) -> ReadingPlan:
        frontend, settings = self.model.frontend, self.settings
        duration_ms = settings.segment_duration_ms or frontend.segment_duration_ms
        if not 0 <= settings.segment_overlap_ms < duration_ms:
            raise ConfigError(f"segment_overlap must be in 0..{duration_ms} ms (segment_duration excluded), got"
                              f" {settings.segment_overlap_ms} ms")
        if settings.merge_gap_seconds is not None and not settings.segment_mode:
            raise ConfigError("merge_gap joins segments: ask for them with segment_mode")
        segment_samples = max(1, round(frontend.sample_rate * duration_ms / 1000))
        overlap_samples = round(frontend.sample_rate * settings.segment_overlap_ms / 1000)
        return ReadingPlan(frontend, segment_samples, max(1, segment_samples - overlap_samples))

    def _parts(self, jobs: Iterable[SpanJob]) -> Iterator[tuple[SpanJob, Any]]:
        if self._in_workers:
            executor = self._executor
            assert isinstance(executor, (DaskCluster, LocalProcesses))
            plan = replace(self.plan, n_shares=min(executor.n_workers, _MOST_SHARES))
            work = ReadAndScore(plan, self._backend_plan, executor.n_threads, self._batch_size, self._with_embeddings)
            return executor.stream(work, jobs, in_order=False)
        return self._score_here(self._executor, jobs)

    def _score_here(self, executor: Executor, jobs: Iterable[SpanJob]) -> Iterator[tuple[SpanJob, Any]]:
        scorer = Scorer(self.backend, batch_size=self.batch_size, with_embeddings=self._with_embeddings,
                        across_spans=True)
        return scorer.score(executor.stream(functools.partial(read_spans, self.plan), jobs, in_order=True))

    def _single(self, recording: Recording) -> dict:
        self._refuse_segments()
        return self.records.file_record(self._score_one(recording))

    def _score_one(self, recording: Recording) -> ScoredRecording:
        scored = next(self._score_in_order([recording]))
        if scored.outcome.status != "ok":
            raise AudioError(scored.outcome.reason, status=scored.outcome.status)
        return scored

    def _refuse_segments(self) -> None:
        if self.settings.segment_mode:
            raise ConfigError("segment_mode gives several records a file: use predict_segments, or settings without"
                              " segment_mode")

    def _score_in_order(self, recordings: Iterable[Recording]) -> Iterator[ScoredRecording]:
        """Yield recordings in the order they were given, their scores in memory."""
        for executor, some in itertools.groupby(recordings, key=self._executor_for):
            yield from self._gathered(executor, some)

    def _executor_for(self, recording: Recording) -> Executor | None:
        """Return the executor for a recording, None for the predictor's own: only a path can be sent elsewhere."""
        return None if isinstance(recording, Path) else _HERE

    def _gathered(self, executor: Executor | None, recordings: Iterable[Recording]) -> Iterator[ScoredRecording]:
        waiting: deque[_Gathered] = deque()
        by_index: dict[int, _Gathered] = {}

        def jobs() -> Iterator[SpanJob]:
            for index, recording in enumerate(recordings):
                by_index[index] = _Gathered(recording)
                waiting.append(by_index[index])
                yield SpanJob(recording, index)

        for job, part in self.score(jobs(), executor=executor):
            if job.index in by_index:
                by_index[job.index].add(part)
                if by_index[job.index].scored() is not None:
                    del by_index[job.index]
            while waiting and (scored := waiting[0].scored()) is not None:
                yield self.in_zone(scored)
                waiting.popleft()


@dataclass(eq=False)
class _Gathered:
    """What has come of a recording so far."""

    recording: Recording
    opened: Opened | None = None
    failed: Failed | None = None
    spans: dict[int, SpanScores] = field(default_factory=dict)
    result: ScoredRecording | None = None

    def add(self, part: Opened | SpanScores | Failed) -> None:
        if isinstance(part, Opened):
            self.opened = part
        elif isinstance(part, Failed):
            self.failed = part
        else:
            self.spans[part.span.number] = part

    def scored(self) -> ScoredRecording | None:
        """Return the recording, or None as long as something is missing."""
        name = name_of(self.recording)
        if self.result is None and self.failed is not None:
            self.result = ScoredRecording(name, Outcome(self.failed.status, self.failed.reason))
        elif self.result is None and self.opened is not None:
            ended = any(scores.span.end is not None for scores in self.spans.values())
            self.result = conclude(name, self.opened, self._in_order) if ended else None
        return self.result

    def _in_order(self) -> Iterator[SpanScores]:
        for number in range(len(self.spans)):
            scores = self.spans.get(number)
            if scores is None:
                return
            yield scores
            if scores.span.end is not None:
                return


def _recording(given: str | os.PathLike | BinaryIO | Recording) -> Recording:
    if isinstance(given, (Path, Samples, FileObject)):
        return given
    if isinstance(given, (str, os.PathLike)):
        return Path(given)
    if isinstance(given, io.IOBase) or hasattr(given, "read") and hasattr(given, "seek"):
        return FileObject(given, str(getattr(given, "name", "file object")))
    raise ConfigError(f"a recording must be a path or a binary file object, got {type(given).__name__}: samples go to"
                      f" predict_samples")
