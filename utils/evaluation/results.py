"""What an evaluation finds, as ``metrics.json`` holds it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.description import ModelDescription
from utils.evaluation.comparison import Comparison
from utils.evaluation.failures import Failures
from utils.evaluation.intervals import Bootstrap
from utils.evaluation.slices import PropertySlices
from utils.metrics import ModelScores, ScoredSegments

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
class ModelEvaluation(ModelScores):
    """One model's scores and everything else said about it.

    Parameters
    ----------
    name, metrics, intervals, class_intervals, answered
        See ``ModelScores``; ``answered`` has ``intervals`` and ``class_intervals`` too.
    segments : ScoredSegments
        Its probabilities.
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
    before_calibration : mapping
        ``ece``, ``brier_score`` and ``log_loss`` of its probabilities as they were before calibration.
    recording_metrics : mapping
        Of ``evaluate``, with a row for each recording: the mean probability over its segments.
    failures : Failures or None
        Where it is wrong.
    """

    segments: ScoredSegments
    description: ModelDescription
    file_megabytes: float
    latency: Latency
    recordings_seen_in_training: int | None
    recordings_heard_before: int = 0
    other_latencies: Sequence[Latency] = ()
    n_multiply_adds: int | None = None
    before_calibration: Mapping[str, float | None] = field(default_factory=dict)
    recording_metrics: Mapping = field(default_factory=dict)
    failures: Failures | None = None

    def to_dict(self) -> dict:
        """Return the model's part of ``metrics.json``."""
        return {"name": self.name, "model_name": self.description.model_name, "sha256": self.description.sha256,
                "file_megabytes": self.file_megabytes, "n_parameters": self.description.n_parameters,
                "metrics": self.metrics, "intervals": self.intervals, "class_intervals": self.class_intervals,
                "answered": self.answered, "latency": dataclasses.asdict(self.latency),
                "other_latencies": [dataclasses.asdict(latency) for latency in self.other_latencies],
                "n_multiply_adds": self.n_multiply_adds, "before_calibration": dict(self.before_calibration),
                "recording_metrics": dict(self.recording_metrics),
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
    comparison : Comparison or None
        Of the first model against the second, where there are two.
    others : mapping of str to Comparison
        Of the first model against each other one by name, where there are more than two.
    slices : sequence of PropertySlices
        How good the models are on recordings that differ in rate, length, place and so on.
    """

    test_csv: str
    class_names: tuple[str, ...]
    bootstrap: Bootstrap
    models: Sequence[ModelEvaluation]
    comparison: Comparison | None
    others: Mapping[str, Comparison] = field(default_factory=dict)
    slices: Sequence[PropertySlices] = ()

    def settings(self) -> dict:
        """Return what ``metrics.json`` tells of how the evaluation was made."""
        return {"test_csv": self.test_csv, "bootstrap": self.bootstrap.n_bootstrap,
                "confidence": self.bootstrap.confidence, "seed": self.bootstrap.seed}

    def to_dict(self) -> dict:
        """Return the content of ``metrics.json``."""
        return {"format_version": FORMAT_VERSION, "class_names": list(self.class_names),
                "n_segments": self.bootstrap.n_segments, "n_recordings": self.bootstrap.n_recordings,
                "settings": self.settings(), "models": [model.to_dict() for model in self.models],
                "comparison": dataclasses.asdict(self.comparison) if self.comparison else None,
                "others": {name: dataclasses.asdict(other) for name, other in self.others.items()},
                "slices": [found.to_dict() for found in self.slices]}
