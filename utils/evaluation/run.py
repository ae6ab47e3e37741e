"""Evaluation: models and a test manifest in; scores with intervals, pictures and a page out.

Each model sees the test recordings through its own front end: the stored spectrograms where they were made by it,
otherwise the audio itself.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from models.description import ModelDescription
from models.efficientnet import LEGACY_RESNET_NAME
from models.errors import CheckpointError, ConfigError, ManifestError
from utils import reports
from utils.evaluation.comparison import paired_comparison
from utils.evaluation.cost import count_multiply_adds, measure_latency
from utils.evaluation.facts import facts_of_rows
from utils.evaluation.failure_examples import failure_examples
from utils.evaluation.failures import find_failures
from utils.evaluation.intervals import Bootstrap, answered_intervals, score_intervals
from utils.evaluation.page import write_evaluation_page
from utils.evaluation.peak import measure_peak
from utils.evaluation.recordings import recording_scores
from utils.evaluation.results import Evaluation, Latency, ModelEvaluation
from utils.evaluation.slices import slice_scores
from utils.metrics import ScoredSegments, answered_scores, evaluate_segments
from utils.prediction.predictor import EfficientNetPredictor
from utils.running.progress import progress
from utils.storage.files import write_json
from utils.storage.locks import locked
from utils.storage.manifest import NOT_AUGMENTED, Manifest, recording_contents
from utils.storage.names import check_inside, recording_hash, safe_name
from utils.storage.spectrograms import SpectrogramDataset, make_loader
from utils.storage.tables import write_table

logger = logging.getLogger(__name__)

_BYTES_PER_MEGABYTE = 1e6
MOST_EXAMPLES = 8  # mistakes of a model that can be seen and heard on the page
_PICTURES_OF_A_MODEL = ("confusion_matrix", "roc_curves", "precision_recall_curves", "reliability")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How an evaluation is made.

    Parameters
    ----------
    output_dir : Path
        Where page, scores and pictures go.
    audio_dir : Path or None
        Folder of the manifest's ``source_path``; what ``dataset.json`` tells when None.
    n_bootstrap : int
        Resamples of the intervals.
    confidence : float
        Of the intervals, 0..1.
    n_workers : int
        Processes that read spectrograms; 0 reads in this one.
    latency_runs : int
        Timed runs after the warm-up.
    seed : int
        Of the resamples.
    other_backends : sequence of str
        Libraries that a checkpoint is timed in beside its own.
    measures_memory : bool
        Whether to load each model in a process of its own to see how much memory that takes.
    """

    output_dir: Path
    audio_dir: Path | None
    n_bootstrap: int
    confidence: float
    n_workers: int
    latency_runs: int
    seed: int
    other_backends: Sequence[str] = ()
    measures_memory: bool = False


def evaluate_models(predictors: Mapping[str, tuple[Path, EfficientNetPredictor]], manifest: Manifest,
                    settings: EvaluationSettings) -> Evaluation:
    """Score one or two models and write the whole output folder.

    Parameters
    ----------
    predictors : mapping
        Name to checkpoint path and loaded predictor; the first is compared against the second.
    manifest : Manifest
        Test rows; augmented copies are left out.
    settings : EvaluationSettings
        What to do. Pictures that an earlier evaluation left in the folder are removed.

    Returns
    -------
    Evaluation
        What ``metrics.json`` tells.

    Raises
    ------
    CheckpointError
        If a model's classes are not the manifest's.
    ConfigError
        If another process writes the folder, or two models would write the same pictures.
    ManifestError
        If a model needs the audio and it cannot be found.
    """
    if len({_stem(name) for name in predictors}) != len(predictors):
        raise ConfigError(f"the models' names must differ as file names, got {', '.join(predictors)}")
    with locked(settings.output_dir):
        test = _TestSet(manifest)
        bootstrap = Bootstrap(recording_ids=test.recording_ids, n_bootstrap=settings.n_bootstrap,
                              confidence=settings.confidence, seed=settings.seed)
        models = [_evaluate_model(name, path, predictor, test, bootstrap, settings)
                  for name, (path, predictor) in predictors.items()]
        comparison = None
        if len(models) == 2:
            comparison = paired_comparison(models[0].segments, models[1].segments, bootstrap)
        others = {model.name: paired_comparison(models[0].segments, model.segments, bootstrap)
                  for model in models[1:]} if len(models) > 2 else {}
        slices = slice_scores({model.name: model.segments for model in models}, test.recording_ids,
                              facts_of_rows(manifest).iloc[test.rows], confidence=settings.confidence,
                              seed=settings.seed)
        evaluation = Evaluation(test_csv=manifest.path.name, class_names=manifest.classes.names, bootstrap=bootstrap,
                                models=models, comparison=comparison, others=others, slices=slices)
        write_json(settings.output_dir / "metrics.json", evaluation.to_dict())
        _write_predictions(settings.output_dir / "predictions.csv", models, test)
        pictures = _draw_pictures(settings.output_dir, models)
        examples = {model.name: failure_examples(model.failures, manifest, settings.audio_dir, most=MOST_EXAMPLES)
                    for model in models if model.failures}
        write_evaluation_page(settings.output_dir / "report.html", evaluation, pictures=pictures, examples=examples)
        _remove_pictures_of_other_models(settings.output_dir, kept={path for _, path in pictures})
    return evaluation


class _TestSet:
    """The rows of a manifest that are scored: all but augmented copies."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.rows = np.flatnonzero(manifest.rows["augmentation"] == NOT_AUGMENTED)
        if not len(self.rows):
            raise ManifestError(f"{manifest.path} holds only augmented copies: evaluate on original recordings")
        self.labels = manifest.labels()[self.rows]
        self.recording_ids = manifest.recording_ids()[self.rows]

    @cached_property
    def contents(self) -> dict[str, frozenset[str]]:
        """What each recording is recognised by, whatever it is called."""
        return recording_contents(self.manifest)


def _evaluate_model(name: str, path: Path, predictor: EfficientNetPredictor, test: _TestSet, bootstrap: Bootstrap,
                    settings: EvaluationSettings) -> ModelEvaluation:
    logger.info("scoring %s on %d segments of %d recordings", name, bootstrap.n_segments, bootstrap.n_recordings)
    probabilities = model_probabilities(predictor, test.manifest, test.rows, audio_dir=settings.audio_dir,
                                        n_workers=settings.n_workers)
    order = _class_order(predictor, test.manifest)
    undone = predictor.model.calibration.undone(probabilities[:, np.argsort(order)])[:, order]
    segments = ScoredSegments(probabilities, test.labels, test.manifest.classes.names)
    intervals, class_intervals = score_intervals(segments, bootstrap)
    before = evaluate_segments(ScoredSegments(undone, test.labels, segments.class_names))
    rules = predictor.model.rules
    sure, sure_of_class = answered_intervals(segments, rules, bootstrap)
    return ModelEvaluation(
        name=name, segments=segments, metrics=evaluate_segments(segments), intervals=intervals,
        class_intervals=class_intervals, description=predictor.model,
        answered={**answered_scores(segments, rules), "intervals": sure, "class_intervals": sure_of_class},
        file_megabytes=round(path.stat().st_size / _BYTES_PER_MEGABYTE, 2),
        latency=_timed(path, predictor, settings),
        other_latencies=[_timed(path, EfficientNetPredictor(path, device="cpu", backend=backend), settings)
                         for backend in settings.other_backends
                         if path.suffix.lower() != ".onnx" and not _is_legacy(predictor)],
        n_multiply_adds=count_multiply_adds(path, predictor),
        before_calibration={score: before[score] for score in ("ece", "brier_score", "log_loss")},
        recording_metrics=evaluate_segments(recording_scores(segments, test.recording_ids)),
        failures=find_failures(segments, test.manifest.rows.iloc[test.rows], most=MOST_EXAMPLES),
        recordings_seen_in_training=_count_seen(predictor.model, test),
        recordings_heard_before=_count_heard(predictor.model, test))


def _timed(path: Path, predictor: EfficientNetPredictor, settings: EvaluationSettings) -> Latency:
    library, device, *_ = predictor.backend.name.split("-")
    peak = None
    if settings.measures_memory and device == "cpu":
        peak = measure_peak(path, backend=library,
                            class_names=predictor.model.classes.names if _is_legacy(predictor) else None)
    return measure_latency(predictor, n_runs=settings.latency_runs, peak_megabytes=peak)


def _is_legacy(predictor: EfficientNetPredictor) -> bool:
    """Whether it is NightScan 1's network, which PyTorch alone applies and whose file does not name its classes."""
    return predictor.model.model_name == LEGACY_RESNET_NAME


def model_probabilities(predictor: EfficientNetPredictor, manifest: Manifest, rows: np.ndarray, *,
                        audio_dir: Path | None, n_workers: int = 0) -> np.ndarray:
    """Return calibrated probabilities float64 ``(n_rows, n_classes)`` in the manifest's class order."""
    order = _class_order(predictor, manifest)
    if manifest.frontend is not None and manifest.frontend == predictor.model.frontend:
        loader = make_loader(SpectrogramDataset(manifest, rows), batch_size=predictor.batch_size, shuffle_seed=None,
                             n_workers=n_workers, pin_memory=False)
        bar = progress(loader, total=len(loader), description="scoring", unit="batch")
        probabilities = np.concatenate([predictor.probabilities(batch.log_mel[:, 0].numpy()) for batch in bar])
    else:
        probabilities = _from_audio(predictor, manifest, rows, audio_dir)
    return probabilities[:, order]


def _class_order(predictor: EfficientNetPredictor, manifest: Manifest) -> list[int]:
    own, wanted = predictor.model.classes.names, manifest.classes.names
    if set(own) != set(wanted):
        raise CheckpointError(f"the model knows the classes {', '.join(own)}, {manifest.path} has"
                              f" {', '.join(wanted)}: evaluate on a manifest of the same classes")
    return [own.index(name) for name in wanted]


def _from_audio(predictor: EfficientNetPredictor, manifest: Manifest, rows: np.ndarray,
                audio_dir: Path | None) -> np.ndarray:
    table = manifest.rows.iloc[rows]
    folder = _audio_folder(manifest, audio_dir)
    probabilities = np.empty((len(rows), len(predictor.model.classes)))
    places: dict[str, list[int]] = {}
    for place, source in enumerate(table["source_path"]):
        places.setdefault(source, []).append(place)
    for source, wanted in progress(places.items(), total=len(places), description="from audio", unit="file"):
        path = check_inside(folder, source, where=f"{manifest.path}, column source_path",
                            through_links=True)
        if not path.exists():
            raise ManifestError(f"{path} does not exist, and {predictor.model.model_name} has another front end than"
                                f" the spectrograms: give the folder of the recordings with --audio_dir")
        spans = [(float(table["start_seconds"].iloc[place]), float(table["end_seconds"].iloc[place]))
                 for place in wanted]
        probabilities[wanted] = predictor.span_probabilities(path, spans)
    return probabilities


def _audio_folder(manifest: Manifest, audio_dir: Path | None) -> Path:
    """Return the folder of the recordings; ManifestError when the manifest does not tell what is needed of them."""
    folder = audio_dir or manifest.input_dir
    placed = manifest.rows[["source_path", "start_seconds", "end_seconds"]].astype(str).ne("").all(axis=None)
    if not placed or folder is None:
        raise ManifestError(f"{manifest.path} does not tell {'where its recordings are' if placed else 'its windows'},"
                            f" and a model has another front end than its spectrograms: preprocess again, or"
                            f" {'give --audio_dir' if placed else 'evaluate a model of the same front end'}")
    return folder


def _count_seen(model: ModelDescription, test: _TestSet) -> int | None:
    """Return how many test recordings the model learnt from; None when its file has no list."""
    recordings = set(test.recording_ids.tolist())
    if "recording_contents" in model.metadata:
        learnt = set(model.metadata["recording_contents"])
        n_seen = sum(not learnt.isdisjoint(test.contents[recording_id]) for recording_id in recordings)
    elif "recordings" in model.metadata:  # NightScan 2.0 knew recordings by their name only
        n_seen = len({recording_hash(recording_id) for recording_id in recordings} & set(model.metadata["recordings"]))
    else:
        return None
    if n_seen:
        logger.warning("%d test recordings were used to train %s: its scores are too good", n_seen, model.model_name)
    return n_seen


def _count_heard(model: ModelDescription, test: _TestSet) -> int:
    """Return how many test recordings the model's start has heard, without labels."""
    heard = set(model.metadata.get("heard_contents", ()))
    if not heard:
        return 0
    n_heard = sum(not heard.isdisjoint(test.contents[recording_id]) for recording_id in set(test.recording_ids))
    if n_heard:
        logger.warning("%d test recordings were heard, without labels, by the network that %s began with: on"
                       " recordings that are new to it its scores may be lower", n_heard, model.model_name)
    return n_heard


def _write_predictions(path: Path, models: Sequence[ModelEvaluation], test: _TestSet) -> None:
    names, table = np.array(test.manifest.classes.names), test.manifest.rows.iloc[test.rows]
    parts = []
    for model in models:
        probabilities = model.segments.probabilities
        top = probabilities.argmax(axis=1)
        part = pd.DataFrame({
            "model": model.name, "path": table["path"].to_numpy(), "recording_id": table["recording_id"].to_numpy(),
            "source_path": table["source_path"].to_numpy(), "start_seconds": table["start_seconds"].to_numpy(),
            "end_seconds": table["end_seconds"].to_numpy(), "true_class": names[table["label"]],
            "top_class": names[top], "top_confidence": probabilities[np.arange(len(top)), top].round(6)})
        for index, name in enumerate(names):
            part[f"score_{name}"] = probabilities[:, index].round(6)
        parts.append(part)
    write_table(path, pd.concat(parts))


def _draw_pictures(folder: Path, models: Sequence[ModelEvaluation]) -> list[tuple[str, Path]]:
    """Draw every picture; return title and path of each in the order of the page."""
    pictures = [("Scores and classes", folder / "comparison.png"), ("What is answered", folder / "coverage.png")]
    reports.plot_comparison(pictures[0][1], models)
    reports.plot_coverage(pictures[1][1], models)
    for model in models:
        segments, names = model.segments, model.segments.class_names
        paths = {kind: folder / f"{kind}_{_stem(model.name)}.png" for kind in _PICTURES_OF_A_MODEL}
        reports.plot_confusion_matrix(paths["confusion_matrix"], np.array(model.metrics["confusion_matrix"]),
                                      class_names=names, title=model.name)
        reports.plot_roc_curves(paths["roc_curves"], segments.probabilities, segments.labels, class_names=names)
        reports.plot_precision_recall_curves(paths["precision_recall_curves"], segments.probabilities,
                                             segments.labels, class_names=names)
        reports.plot_reliability(paths["reliability"], segments.probabilities, segments.labels,
                                 title=model.name)
        pictures += [(f"{model.name}: {kind.replace('_', ' ')}", path) for kind, path in paths.items()]
    return pictures


def _remove_pictures_of_other_models(folder: Path, *, kept: set[Path]) -> None:
    """Remove what an earlier evaluation drew of models that this one does not have."""
    for kind in _PICTURES_OF_A_MODEL:
        for path in sorted(set(folder.glob(f"{kind}_*.png")) - kept):
            path.unlink()


def _stem(model_name: str) -> str:
    return safe_name(model_name).lower()


def legacy_class_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the manifest's classes in the order of NightScan 1's outputs: alphabetical folder names."""
    return tuple(sorted(manifest.classes.names))
