"""Evaluation: models and a test manifest in; scores with intervals, pictures and a page out.

Each model sees the test recordings through its own front end: the stored spectrograms where they were made by it,
otherwise the audio itself.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from models.errors import CheckpointError, ManifestError
from utils import metrics, reports
from utils.evaluation import intervals
from utils.storage.spectrograms import SpectrogramDataset, make_loader
from utils.evaluation.page import write_evaluation_page
from utils.storage.files import atomic_path, write_json
from utils.prediction.predictor import EfficientNetPredictor
from utils.storage.manifest import NOT_AUGMENTED, Manifest
from utils.storage.names import check_inside, recording_hash
from utils.running.progress import progress

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_WARM_UP_RUNS = 5
_BYTES_PER_MEGABYTE = 1e6


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
    """

    output_dir: Path
    audio_dir: Path | None
    n_bootstrap: int
    confidence: float
    n_workers: int
    latency_runs: int
    seed: int


@dataclass(frozen=True)
class ModelResult:
    """One model's probabilities on the test set and everything said about it."""

    name: str
    probabilities: np.ndarray
    summary: dict


def evaluate_models(predictors: Mapping[str, tuple[Path, EfficientNetPredictor]], manifest: Manifest,
                    settings: EvaluationSettings) -> dict:
    """Score one or two models and write the whole output folder.

    Parameters
    ----------
    predictors : mapping
        Name to checkpoint path and loaded predictor; the first is compared against the second.
    manifest : Manifest
        Test rows; augmented copies are left out.
    settings : EvaluationSettings
        What to do.

    Returns
    -------
    dict
        Content of ``metrics.json``.

    Raises
    ------
    CheckpointError
        If a model's classes are not the manifest's.
    ManifestError
        If a model needs the audio and it cannot be found.
    """
    test = _TestSet(manifest)
    results = []
    for name, (path, predictor) in predictors.items():
        logger.info("scoring %s on %d segments of %d recordings", name, len(test.rows), test.n_recordings)
        probabilities = model_probabilities(predictor, manifest, test.rows, audio_dir=settings.audio_dir,
                                            n_workers=settings.n_workers)
        results.append(ModelResult(name, probabilities, {
            "name": name, "model_name": predictor.model.model_name, "sha256": predictor.model.sha256,
            "file_megabytes": round(path.stat().st_size / _BYTES_PER_MEGABYTE, 2),
            "n_parameters": predictor.model.n_parameters,
            **_scores(probabilities, test, settings),
            "latency": measure_latency(predictor, n_runs=settings.latency_runs),
            "recordings_seen_in_training": _seen(predictor, test.recording_ids)}))
    content = {
        "format_version": FORMAT_VERSION, "class_names": list(test.class_names), "n_segments": len(test.rows),
        "n_recordings": test.n_recordings,
        "settings": {"test_csv": manifest.path.name, "bootstrap": settings.n_bootstrap,
                     "confidence": settings.confidence, "seed": settings.seed},
        "models": [result.summary for result in results], "comparison": _compare(results, test, settings)}
    write_json(settings.output_dir / "metrics.json", content)
    _write_predictions(settings.output_dir / "predictions.csv", results, manifest, test.rows)
    _write_page(settings, content, results, test.labels)
    return content


class _TestSet:
    """The rows of a manifest that are scored: all but augmented copies."""

    def __init__(self, manifest: Manifest) -> None:
        self.rows = np.flatnonzero(manifest.rows["augmentation"] == NOT_AUGMENTED)
        if not len(self.rows):
            raise ManifestError(f"{manifest.path} holds only augmented copies: evaluate on original recordings")
        self.labels = manifest.labels()[self.rows]
        self.recording_ids = manifest.recording_ids()[self.rows]
        self.class_names = manifest.classes.names
        self.n_recordings = len(set(self.recording_ids))


def _scores(probabilities: np.ndarray, test: _TestSet, settings: EvaluationSettings) -> dict:
    def with_intervals(function: Callable) -> Any:
        return function(probabilities, test.labels, test.recording_ids, class_names=test.class_names,
                        n_bootstrap=settings.n_bootstrap, confidence=settings.confidence,
                        rng=np.random.default_rng(settings.seed))

    return {"metrics": metrics.evaluate(probabilities, test.labels, class_names=test.class_names),
            "intervals": with_intervals(intervals.bootstrap_intervals),
            "class_intervals": with_intervals(intervals.per_class_intervals)}


def _compare(results: Sequence[ModelResult], test: _TestSet, settings: EvaluationSettings) -> dict | None:
    if len(results) != 2:
        return None
    return intervals.paired_comparison(
        results[0].probabilities, results[1].probabilities, test.labels, test.recording_ids,
        class_names=test.class_names, n_bootstrap=settings.n_bootstrap, confidence=settings.confidence,
        rng=np.random.default_rng(settings.seed))


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


def measure_latency(predictor: EfficientNetPredictor, *, n_runs: int) -> dict:
    """Time the network on one window and on full batches, after a warm-up, waiting for the device.

    Returns
    -------
    dict
        ``median_ms``, ``p95_ms`` of one window; ``clips_per_second`` in batches of ``batch_size``; ``device``.
    """
    frontend = predictor.model.frontend
    rng = np.random.default_rng(0)
    batch = rng.normal(-40.0, 10.0, (predictor.batch_size, frontend.n_mels, frontend.n_frames)).astype(np.float32)

    def seconds(log_mels: np.ndarray) -> float:
        started = time.perf_counter()
        predictor.probabilities(log_mels)
        return time.perf_counter() - started

    for _ in range(_WARM_UP_RUNS):
        seconds(batch[:1])
    single_ms = [1000 * seconds(batch[:1]) for _ in range(n_runs)]
    seconds(batch)
    n_batch_runs = max(1, n_runs // 10)
    batch_seconds = float(np.median([seconds(batch) for _ in range(n_batch_runs)]))
    return {"median_ms": float(np.median(single_ms)), "p95_ms": float(np.percentile(single_ms, 95)),
            "clips_per_second": len(batch) / batch_seconds, "batch_size": len(batch), "n_runs": n_runs,
            "device": predictor.backend.name, "torch_threads": predictor.backend.n_threads}


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
        path = check_inside(folder, source, where=f"{manifest.path}, column source_path")
        if not path.exists():
            raise ManifestError(f"{path} does not exist, and {predictor.model.model_name} has another front end than"
                                f" the spectrograms: give the folder of the recordings with --audio_dir")
        spans = [(float(table["start_seconds"].iloc[place]), float(table["end_seconds"].iloc[place]))
                 for place in wanted]
        probabilities[wanted] = predictor.span_probabilities(path, spans)
    return probabilities


def _audio_folder(manifest: Manifest, audio_dir: Path | None) -> Path:
    """Return the folder of the recordings; ManifestError when the manifest does not tell what is needed of them."""
    recorded = manifest.dataset.get("input_dir")
    placed = manifest.rows[["source_path", "start_seconds", "end_seconds"]].astype(str).ne("").all(axis=None)
    if not placed or audio_dir is None and not recorded:
        raise ManifestError(f"{manifest.path} does not tell {'where its recordings are' if placed else 'its windows'},"
                            f" and a model has another front end than its spectrograms: preprocess again, or"
                            f" {'give --audio_dir' if placed else 'evaluate a model of the same front end'}")
    return audio_dir or manifest.path.parent / str(recorded)


def _seen(predictor: EfficientNetPredictor, recording_ids: np.ndarray) -> int | None:
    """Return how many test recordings the checkpoint lists as learnt from; None when it has no list."""
    listed = predictor.model.metadata.get("recordings")
    if listed is None:
        return None
    n_seen = len({recording_hash(recording_id) for recording_id in recording_ids} & set(listed))
    if n_seen:
        logger.warning("%d test recordings were used to train %s: its scores are too good", n_seen,
                       predictor.model.model_name)
    return n_seen


def _write_predictions(path: Path, results: Sequence[ModelResult], manifest: Manifest, rows: np.ndarray) -> None:
    names = np.array(manifest.classes.names)
    table = manifest.rows.iloc[rows]
    parts = []
    for result in results:
        top = result.probabilities.argmax(axis=1)
        part = pd.DataFrame({
            "model": result.name, "path": table["path"].to_numpy(), "recording_id": table["recording_id"].to_numpy(),
            "source_path": table["source_path"].to_numpy(), "start_seconds": table["start_seconds"].to_numpy(),
            "end_seconds": table["end_seconds"].to_numpy(), "true_class": names[table["label"]],
            "top_class": names[top], "top_confidence": result.probabilities[np.arange(len(top)), top].round(6)})
        for index, name in enumerate(names):
            part[f"score_{name}"] = result.probabilities[:, index].round(6)
        parts.append(part)
    with atomic_path(path) as temporary:
        pd.concat(parts).to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")


def _write_page(settings: EvaluationSettings, content: dict, results: Sequence[ModelResult],
                labels: np.ndarray) -> None:
    names, folder, pictures = content["class_names"], settings.output_dir, []
    for result in results:
        stem = result.name.lower().replace(" ", "_")
        paths = {kind: folder / f"{kind}_{stem}.png"
                 for kind in ("confusion_matrix", "roc_curves", "precision_recall_curves", "reliability")}
        confusion = np.array(result.summary["metrics"]["confusion_matrix"])
        reports.plot_confusion_matrix(paths["confusion_matrix"], confusion, class_names=names, title=result.name)
        reports.plot_roc_curves(paths["roc_curves"], result.probabilities, labels, class_names=names)
        reports.plot_precision_recall_curves(paths["precision_recall_curves"], result.probabilities, labels,
                                             class_names=names)
        reports.plot_reliability(paths["reliability"], result.probabilities, labels)
        pictures += [(f"{result.name}: {kind.replace('_', ' ')}", path) for kind, path in paths.items()]
    reports.plot_comparison(folder / "comparison.png", [result.summary for result in results])
    pictures.insert(0, ("Scores and classes", folder / "comparison.png"))
    seen = {f"{result.name}: test recordings seen in training":
            "unknown" if result.summary["recordings_seen_in_training"] is None
            else result.summary["recordings_seen_in_training"] for result in results}
    write_evaluation_page(folder / "report.html", results=[result.summary for result in results],
                          comparison=content["comparison"], pictures=pictures,
                          settings={**content["settings"], "n_segments": content["n_segments"],
                                    "n_recordings": content["n_recordings"], **seen})


def legacy_class_names(manifest: Manifest) -> tuple[str, ...]:
    """Return the manifest's classes in the order of NightScan 1's outputs: alphabetical folder names."""
    return tuple(sorted(manifest.classes.names))
