"""What an evaluation finds, as ``metrics.json`` holds it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from models.classes import DecisionRules
from models.description import ModelDescription
from utils.evaluation.comparison import Comparison
from utils.evaluation.failures import Failures
from utils.evaluation.intervals import answered_intervals, score_intervals
from utils.evaluation.resampling import Bootstrap
from utils.evaluation.slices import PropertySlices
from utils.metrics import ModelScores, ScoredSegments, answered_scores, evaluate_segments
from utils.tallies import Groups, Losses

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How fast a network is.

    Parameters
    ----------
    median_ms, p95_ms : float
        Of ``n_runs`` passes of one window.
    clips_per_second : float
        In passes of ``batch_size`` windows.
    batch_median_ms, batch_p95_ms : float or None
        Of passes of ``batch_size`` windows.
    batch_size, n_runs : int
        See above.
    device : str
        Library and device, such as ``torch-cpu``.
    torch_threads : int
        Processor threads a pass may use.
    peak_megabytes : float or None
        Most memory of a process that loads the network and scores a batch, libraries included; None where it was not
        measured.
    """

    median_ms: float
    p95_ms: float
    clips_per_second: float
    batch_size: int
    n_runs: int
    device: str
    torch_threads: int
    batch_median_ms: float | None = None
    batch_p95_ms: float | None = None
    peak_megabytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class LevelScores(ModelScores):
    """One model's scores, and what they are of: a row for each segment, or one for each recording.

    Parameters
    ----------
    name, metrics, intervals, class_intervals, answered
        See ``ModelScores``; ``answered`` has ``intervals`` and ``class_intervals`` too.
    segments : ScoredSegments
        The probabilities, and the truth.
    """

    segments: ScoredSegments


def level_scores(name: str, segments: ScoredSegments, rules: DecisionRules, bootstrap: Bootstrap) -> LevelScores:
    """Score a model on segments, or on recordings with ``bootstrap.of_recordings()``."""
    intervals, class_intervals = score_intervals(segments, bootstrap)
    sure, sure_of_class = answered_intervals(segments, rules, bootstrap)
    return LevelScores(
        name=name, segments=segments, metrics=evaluate_segments(segments), intervals=intervals,
        class_intervals=class_intervals,
        answered={**answered_scores(segments, rules), "intervals": sure, "class_intervals": sure_of_class})


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation(LevelScores):
    """One model's scores on segments and everything else said about it.

    Parameters
    ----------
    name, metrics, intervals, class_intervals, answered, segments
        See ``LevelScores``.
    recordings : LevelScores
        Of whole recordings: ``recordings.recording_scores``.
    description : ModelDescription
        What it is.
    file_megabytes : float
        Size of its file.
    latency : Latency
        How fast it is.
    recordings_seen_in_training : int or None
        Test recordings that it learnt from; None when its file does not tell.
    recordings_heard_before : int
        Test recordings that the network it began with has heard, without their labels.
    other_latencies : sequence of Latency
        In other libraries.
    n_multiply_adds : int or None
        Of one window; None where they cannot be counted.
    failures : Failures or None
        Where it is wrong.
    """

    recordings: LevelScores
    description: ModelDescription
    file_megabytes: float
    latency: Latency
    recordings_seen_in_training: int | None
    recordings_heard_before: int = 0
    other_latencies: Sequence[Latency] = ()
    n_multiply_adds: int | None = None
    failures: Failures | None = None

    @cached_property
    def uncalibrated(self) -> np.ndarray:
        """The probabilities that the network's logits alone give: float64, shape and columns as in ``segments``."""
        own, names = self.description.classes.names, list(self.segments.class_names)
        undone = self.description.calibration.undone(self.segments.probabilities[:, [names.index(k) for k in own]])
        return undone[:, [own.index(name) for name in names]]

    @cached_property
    def before_calibration(self) -> dict[str, float]:
        """``ece``, ``brier_score`` and ``log_loss`` of ``uncalibrated``."""
        labels = self.segments.labels
        return {name: float(value[0]) for name, value in
                Losses.of(self.uncalibrated, labels, groups=Groups.one(len(labels))).scores().items()}

    def to_dict(self) -> dict:
        """Return the model's part of ``metrics.json``."""
        return {"name": self.name, "model_name": self.description.model_name, "sha256": self.description.sha256,
                "file_megabytes": self.file_megabytes, "n_parameters": self.description.n_parameters,
                "metrics": self.metrics, "intervals": self.intervals, "class_intervals": self.class_intervals,
                "answered": self.answered, "latency": dataclasses.asdict(self.latency),
                "other_latencies": [dataclasses.asdict(latency) for latency in self.other_latencies],
                "n_multiply_adds": self.n_multiply_adds, "before_calibration": self.before_calibration,
                "recording_metrics": self.recordings.metrics, "recording_intervals": self.recordings.intervals,
                "recording_class_intervals": self.recordings.class_intervals,
                "recording_answered": self.recordings.answered,
                "failures": self.failures.to_dict() if self.failures else None,
                "recordings_seen_in_training": self.recordings_seen_in_training,
                "recordings_heard_before": self.recordings_heard_before}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is found of all models on one test set.

    Parameters
    ----------
    test_csv : str
        Name of the manifest.
    class_names : tuple of str
        In the order of labels.
    bootstrap : Bootstrap
        The resamples of the test set.
    models : sequence of ModelEvaluation
        In the order given.
    comparisons, recording_comparisons : mapping of str to Comparison
        Of the first model against each other one by name: by segment, and by whole recording.
    slices : sequence of PropertySlices
        How good the models are on recordings that differ in rate, length, place and so on.
    provenance : mapping
        Of ``provenance.provenance``.
    """

    test_csv: str
    class_names: tuple[str, ...]
    bootstrap: Bootstrap
    models: Sequence[ModelEvaluation]
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    recording_comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    slices: Sequence[PropertySlices] = ()
    provenance: Mapping = field(default_factory=dict)

    def settings(self) -> dict:
        """Return what ``metrics.json`` tells of how the evaluation was made."""
        return {"test_csv": self.test_csv, "bootstrap": self.bootstrap.n_bootstrap,
                "confidence": self.bootstrap.confidence, "seed": self.bootstrap.seed}

    def to_dict(self) -> dict:
        """Return the content of ``metrics.json``."""
        return {"format_version": FORMAT_VERSION, "class_names": list(self.class_names),
                "n_segments": self.bootstrap.n_segments, "n_recordings": self.bootstrap.n_recordings,
                "settings": self.settings(), "provenance": dict(self.provenance),
                "models": [model.to_dict() for model in self.models],
                **_told(self.comparisons), **_told(self.recording_comparisons, prefix="recording_"),
                "slices": [found.to_dict() for found in self.slices]}


def _told(comparisons: Mapping[str, Comparison], *, prefix: str = "") -> dict:
    """Return ``comparison``, of two models, and ``others``, of more: one of them is empty."""
    told = {name: dataclasses.asdict(found) for name, found in comparisons.items()}
    only = next(iter(told.values())) if len(told) == 1 else None
    return {f"{prefix}comparison": only, f"{prefix}others": {} if only else told}
