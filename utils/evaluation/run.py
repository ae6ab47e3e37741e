"""Evaluation: models and a test manifest in; scores with intervals, pictures and a page out.

Each model sees the test recordings through its own front end: the stored spectrograms where they were made by it,
otherwise the audio itself. Where nothing tells what made them they are taken if they fit, as training does.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from models.efficientnet import LEGACY_RESNET_NAME
from models.efficientnet_config import FrontendConfig
from models.errors import CheckpointError, ConfigError, ManifestError
from utils.evaluation.comparison import Comparison, paired_comparison
from utils.evaluation.cost import count_multiply_adds, measure_latency
from utils.evaluation.facts import facts_of_rows
from utils.evaluation.failure_examples import failure_examples
from utils.evaluation.failures import find_failures
from utils.evaluation.leakage import recordings_heard, recordings_learnt
from utils.evaluation.page import write_evaluation_page
from utils.evaluation.peak import measure_peak
from utils.evaluation.pictures import draw_pictures, picture_name, remove_other_pictures
from utils.evaluation.provenance import provenance
from utils.evaluation.recordings import recording_scores
from utils.evaluation.resampling import Bootstrap
from utils.evaluation.results import Evaluation, Latency, LevelScores, ModelEvaluation, level_scores
from utils.evaluation.slices import slice_scores
from utils.metrics import ScoredSegments
from utils.prediction.predictor import EfficientNetPredictor
from utils.running.progress import progress
from utils.storage.files import write_json
from utils.storage.locks import locked
from utils.storage.manifest import NOT_AUGMENTED, Manifest, recording_contents
from utils.storage.names import check_inside
from utils.storage.spectrograms import SpectrogramDataset, make_loader
from utils.storage.tables import write_table

logger = logging.getLogger(__name__)

_BYTES_PER_MEGABYTE = 1e6
MOST_EXAMPLES = 8  # mistakes of a model that can be seen and heard on the page


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
    command : str
        What was typed to ask for it; the report repeats it.
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
    command: str = ""


def evaluate_models(predictors: Mapping[str, tuple[Path, EfficientNetPredictor]], manifest: Manifest,
                    settings: EvaluationSettings) -> Evaluation:
    """Score models and write the whole output folder.

    Parameters
    ----------
    predictors : mapping
        Name to checkpoint path and loaded predictor; the first is compared against each other one.
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
        If a model needs the audio and it cannot be found, or a spectrogram cannot be read.
    """
    if len({picture_name(name) for name in predictors}) != len(predictors):
        raise ConfigError(f"the models' names must differ as file names, got {', '.join(predictors)}")
    with locked(settings.output_dir):
        test = _TestSet(manifest)
        bootstrap = Bootstrap(recording_ids=test.recording_ids, n_bootstrap=settings.n_bootstrap,
                              confidence=settings.confidence, seed=settings.seed)
        models = [_evaluate_model(name, path, predictor, test, bootstrap, settings)
                  for name, (path, predictor) in predictors.items()]
        evaluation = Evaluation(
            test_csv=manifest.path.name, class_names=manifest.classes.names, bootstrap=bootstrap, models=models,
            comparisons=_comparisons(models, bootstrap),
            recording_comparisons=_comparisons([model.recordings for model in models], bootstrap.of_recordings()),
            slices=slice_scores({model.name: model.segments for model in models}, test.recording_ids,
                                test.facts.iloc[test.rows], confidence=settings.confidence, seed=settings.seed),
            provenance=provenance(manifest, command=settings.command,
                                  backends={latency.device for model in models
                                            for latency in (model.latency, *model.other_latencies)}))
        write_json(settings.output_dir / "metrics.json", evaluation.to_dict())
        _write_predictions(settings.output_dir / "predictions.csv", models, test)
        pictures = draw_pictures(settings.output_dir, models)
        examples = {model.name: failure_examples(model.failures, test.facts, settings.audio_dir or manifest.input_dir,
                                                 most=MOST_EXAMPLES)
                    for model in models if model.failures}
        write_evaluation_page(settings.output_dir / "report.html", evaluation, pictures=pictures, examples=examples)
        remove_other_pictures(settings.output_dir, kept={picture.path for picture in pictures})
    return evaluation


def _comparisons(models: Sequence[LevelScores], bootstrap: Bootstrap) -> dict[str, Comparison]:
    """Compare the first model with each other one."""
    first, *others = models
    return {other.name: paired_comparison(first.segments, other.segments, bootstrap) for other in others}


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
    def facts(self) -> pd.DataFrame:
        """What is known of the recording of each row of the manifest."""
        return facts_of_rows(self.manifest)

    @cached_property
    def contents(self) -> dict[str, frozenset[str]]:
        """What each recording is recognised by, whatever it is called."""
        return recording_contents(self.manifest)


def _evaluate_model(name: str, path: Path, predictor: EfficientNetPredictor, test: _TestSet, bootstrap: Bootstrap,
                    settings: EvaluationSettings) -> ModelEvaluation:
    logger.info("scoring %s on %d segments of %d recordings", name, bootstrap.n_segments, bootstrap.n_recordings)
    probabilities = model_probabilities(predictor, test.manifest, test.rows, audio_dir=settings.audio_dir,
                                        n_workers=settings.n_workers)
    segments = ScoredSegments(probabilities, test.labels, test.manifest.classes.names)
    rules = predictor.model.rules
    recordings = level_scores(name, recording_scores(segments, test.recording_ids), rules, bootstrap.of_recordings())
    learnt = recordings_learnt(predictor.model, test.contents)
    heard = recordings_heard(predictor.model, test.contents)
    _warn_of_leakage(name, learnt or (), heard)
    return ModelEvaluation(
        **vars(level_scores(name, segments, rules, bootstrap)), recordings=recordings, description=predictor.model,
        file_megabytes=round(path.stat().st_size / _BYTES_PER_MEGABYTE, 2),
        latency=_timed(path, predictor, settings),
        other_latencies=[_timed(path, EfficientNetPredictor(path, device="cpu", backend=backend), settings)
                         for backend in settings.other_backends
                         if path.suffix.lower() != ".onnx" and not _is_legacy(predictor)],
        n_multiply_adds=count_multiply_adds(path, predictor),
        failures=find_failures(segments, test.manifest.rows.iloc[test.rows], learnt=learnt or (), most=MOST_EXAMPLES),
        recordings_seen_in_training=None if learnt is None else len(learnt), recordings_heard_before=len(heard))


def _warn_of_leakage(name: str, learnt: Collection[str], heard: Collection[str]) -> None:
    if learnt:
        logger.warning("%d test recordings were used to train %s: its scores are too good", len(learnt), name)
    if heard:
        logger.warning("%d test recordings were heard, without labels, by the network that %s began with: on"
                       " recordings that are new to it its scores may be lower", len(heard), name)


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
    if _serves(manifest, rows, predictor.model.frontend, audio_dir):
        loader = make_loader(SpectrogramDataset(manifest, rows), batch_size=predictor.batch_size, shuffle_seed=None,
                             n_workers=n_workers, pin_memory=False)
        bar = progress(loader, total=len(loader), description="scoring", unit="batch")
        probabilities = np.concatenate([predictor.probabilities(batch.log_mel[:, 0].numpy()) for batch in bar])
    else:
        probabilities = _from_audio(predictor, manifest, rows, audio_dir)
    return probabilities[:, order]


def _serves(manifest: Manifest, rows: np.ndarray, frontend: FrontendConfig, audio_dir: Path | None) -> bool:
    """Whether the stored spectrograms are those of a model's front end, as far as that can be told."""
    if manifest.frontend is not None:
        return manifest.frontend == frontend
    if audio_dir is not None and _tells_windows(manifest):
        return False
    shape = SpectrogramDataset(manifest, rows).shape
    if shape != (frontend.n_mels, frontend.n_frames):
        return False
    logger.warning("%s has no dataset.json beside it: its spectrograms, of shape %s, are taken to be made by the"
                   " model's front end", manifest.path, shape)
    return True


def _tells_windows(manifest: Manifest) -> bool:
    return bool(manifest.rows[["source_path", "start_seconds", "end_seconds"]].astype(str).ne("").all(axis=None))


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
    placed = _tells_windows(manifest)
    if not placed or folder is None:
        raise ManifestError(f"{manifest.path} does not tell {'where its recordings are' if placed else 'its windows'},"
                            f" and a model has another front end than its spectrograms: preprocess again, or"
                            f" {'give --audio_dir' if placed else 'evaluate a model of the same front end'}")
    return folder


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


def legacy_class_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the manifest's classes in the order of NightScan 1's outputs: alphabetical folder names."""
    return tuple(sorted(manifest.classes.names))
