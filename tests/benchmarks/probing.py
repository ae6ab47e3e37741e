"""Measure what a network hears: linear probes on the features of a start or of a teacher, on the real recordings.

    python -m tests.benchmarks.probing --output_dir FOLDER --starts starter imagenet none mn04_as.onnx

A start is what ``--initial_weights`` takes, or a teacher (``.onnx``). Probes are scored in five folds over all clips:
by group, and by ``source_repo``, which is harder. The clips that no starter of the project has heard, validation and
test side of ``wildlife/splits.csv``, have a line of their own, and so has the test side. Calibration errors are
cross-fitted; beside them stands what a model whose probabilities are true would show. Each further start is compared
with the first one, in pairs, with intervals over recordings. Then probes learn from training sides, redrawn with each
seed, and are scored on the test side, as ``--linear_probe`` does. Nothing is asserted.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import special

from models import calibration
from models.efficientnet_config import STARTS, EfficientNetConfig
from tests.benchmarks.wildlife import DATA, SCORES, WINDOW_SECONDS, draw, prepare, read_sources, read_windows
from utils import metrics
from utils.audio.recordings import RecordingReader
from utils.evaluation.comparison import paired_comparison
from utils.evaluation.resampling import Bootstrap
from utils.metrics import ScoredSegments
from utils.networks.teachers import load_teacher
from utils.storage.checkpoints import read_start
from utils.storage.manifest import SPLITS, read_dataset_info
from utils.storage.spectrograms import ArrayDataset
from utils.storage.splits import grouped_folds
from utils.training.probe import choose_strength, embed, fit_linear
from utils.training.starter import begin

_BATCH, _N_FOLDS = 32, 5
_N_SIMULATED = 100
_N_BOOTSTRAP = 2000
_PARTS = {"all": SPLITS, "not heard": ("val", "test"), "test side": ("test",)}  # by side in splits.csv


def main() -> None:
    """Probe what was asked for and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the wildlife folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the data set is, or goes")
    parser.add_argument("--starts", nargs="+", required=True, help="as --initial_weights, or teachers (.onnx)")
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3], help="of training sides; none leaves the"
                        " test side alone")
    options = parser.parse_args()
    dataset = prepare(options.data, options.output_dir / "dataset")
    windows = read_windows(dataset)
    first: dict[tuple[str, str], Part] = {}
    for start in options.starts:
        embeddings = features(start, windows, options.data, dataset)
        print("| start | folds by | clips | windows | accuracy | macro F1 | weighted F1 | calibration error | of a true"
              " model | 95 % below |\n|---|---|---|---|---|---|---|---|---|---|")
        parts = in_folds(embeddings, windows, options.data, dataset)
        for (kind, name), part in parts.items():
            print(f"| {start} | {kind} | {name} | {part.cells()} |", flush=True)
        for (kind, name), part in first.items():
            print(f"{options.starts[0]} less {start}, by {kind}, {name}: {part.less(parts[kind, name])}", flush=True)
        first = first or parts
        if options.seeds:
            scores = pd.DataFrame([on_test_side(embeddings, windows, dataset, seed=seed) for seed in options.seeds])
            print(f"| start | {' | '.join(SCORES)} |\n|---{'|---' * len(SCORES)}|\n| {start} | "
                  + " | ".join(f"{scores[name].mean():.3f} ± {scores[name].std():.3f}" for name in SCORES) + " |",
                  flush=True)


@dataclass(frozen=True)
class Part:
    """Some windows, scored out of fold.

    Parameters
    ----------
    raw, calibrated : ScoredSegments
        As the probe gives them, and cross-fitted.
    recordings : numpy.ndarray
        Recording of each.
    """

    raw: ScoredSegments
    calibrated: ScoredSegments
    recordings: np.ndarray

    def cells(self) -> str:
        """Return cells of the table."""
        raw, found = (metrics.evaluate_segments(segments) for segments in (self.raw, self.calibrated))
        values = (*(raw[name] for name in SCORES[:3]), found["ece"],
                  *_error_of_true(self.calibrated.probabilities, self.calibrated.class_names))
        return f"{len(self.recordings)} | " + " | ".join(f"{value:.3f}" for value in values)

    def less(self, other: "Part") -> str:
        """Return how far this is ahead of the same windows of another start, and the verdict."""
        found = paired_comparison(self.raw, other.raw, Bootstrap(recording_ids=self.recordings, confidence=0.95,
                                                                 n_bootstrap=_N_BOOTSTRAP, seed=0))
        differences = [(name, found.differences[name]) for name in SCORES[:2]]
        return ", ".join(f"{name} {value.difference:+.3f} ({value.interval[0]:+.3f} to {value.interval[1]:+.3f})"
                         for name, value in differences) + f": {found.verdict}"


def in_folds(embeddings: np.ndarray, windows: pd.DataFrame, data: Path, dataset: Path) -> dict[tuple[str, str], Part]:
    """Return what probes say out of fold, by how the folds were made and of which clips."""
    labels, classes = windows["label"].to_numpy(), read_dataset_info(dataset)[0]["class_names"]
    recordings = windows["recording_id"].to_numpy(dtype=str)
    sources = windows["source_path"].map(read_sources(data)).to_numpy(dtype=str)
    sides = windows["source_path"].map(pd.read_csv(data / "splits.csv").set_index("path")["split"]).to_numpy(dtype=str)
    parts = {}
    for kind, groups in (("group", recordings), ("source", sources)):
        logits = np.zeros((len(labels), len(classes)), dtype=np.float32)
        folds = grouped_folds(labels, groups, n_folds=_N_FOLDS, random_state=0)
        for held_out in folds:
            learnt = np.setdiff1d(np.arange(len(labels)), held_out)
            logits[held_out] = _learnt(embeddings[learnt], labels[learnt], groups[learnt], n_classes=len(classes)
                                       ).logits(embeddings[held_out])
        raw = special.softmax(logits, axis=1)
        calibrated = calibration.cross_fitted_probabilities(logits, labels, folds, recording_ids=recordings)
        for name, of_part in _PARTS.items():
            chosen = np.isin(sides, of_part)
            parts[kind, name] = Part(*(ScoredSegments(given[chosen], labels[chosen], classes)
                                       for given in (raw, calibrated)), recordings[chosen])
    return parts


def on_test_side(embeddings: np.ndarray, windows: pd.DataFrame, dataset: Path, *, seed: int) -> dict[str, float]:
    """Return scores of a probe that learns from a training side, on the test side, calibrated on validation."""
    places = {path: place for place, path in enumerate(windows["path"])}
    manifests = draw(dataset, seed=seed)
    rows = {side: np.array([places[path] for path in pd.read_csv(manifests[side])["path"]]) for side in SPLITS}
    labels, classes = windows["label"].to_numpy(), read_dataset_info(dataset)[0]["class_names"]
    recordings = windows["recording_id"].to_numpy(dtype=str)
    classifier = _learnt(embeddings[rows["train"]], labels[rows["train"]], recordings[rows["train"]],
                         n_classes=len(classes), random_state=seed)
    found = calibration.fit(classifier.logits(embeddings[rows["val"]]), labels[rows["val"]],
                            recording_ids=recordings[rows["val"]])
    return metrics.evaluate(found.probabilities(classifier.logits(embeddings[rows["test"]])), labels[rows["test"]],
                            class_names=classes)


def _learnt(embeddings: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, n_classes: int, random_state: int = 0):
    strength, _ = choose_strength(embeddings, labels, groups, n_classes=n_classes, random_state=random_state)
    return fit_linear(embeddings, labels, n_classes=n_classes, strength=strength)


def _error_of_true(probabilities: np.ndarray, names: Sequence[str]) -> tuple[float, float]:
    """Return median and 95th percentile of the calibration error if the probabilities were true."""
    rng = np.random.default_rng(0)
    edges = probabilities.cumsum(axis=1)
    draws = [(rng.random((len(edges), 1)) > edges[:, :-1]).sum(axis=1) for _ in range(_N_SIMULATED)]
    errors = [metrics.evaluate(probabilities, labels, class_names=names)["ece"] for labels in draws]
    return float(np.median(errors)), float(np.quantile(errors, 0.95))


def features(start: str, windows: pd.DataFrame, data: Path, dataset: Path) -> np.ndarray:
    """Return embeddings of all windows, float32 ``(n_windows, n_features)``."""
    if start.endswith(".onnx"):
        teacher = load_teacher(start)
        waveforms = np.stack([_waveform(data / path, seconds, teacher.description.sample_rate)
                              for path, seconds in zip(windows["source_path"], windows["start_seconds"], strict=True)])
        return np.concatenate([teacher.hear(waveforms[first:first + _BATCH]).embeddings
                               for first in range(0, len(waveforms), _BATCH)])
    _, frontend = read_dataset_info(dataset)
    model_name = "efficientnet-b0" if start in STARTS else read_start(start).model_name
    model, _ = begin(EfficientNetConfig(model_name=model_name, initial_weights=start, frontend=frontend), 2)
    spectrograms = [np.load(dataset / path) for path in windows["path"]]
    return embed(model, ArrayDataset(spectrograms, np.zeros(len(windows), dtype=int)), batch_size=_BATCH,
                 device=torch.device("cpu"), n_workers=0)


def _waveform(path: Path, start_seconds: float, sample_rate: int) -> np.ndarray:
    with RecordingReader(path, sample_rate=sample_rate) as reader:
        waveform = np.concatenate(list(reader.blocks()))[round(start_seconds * sample_rate):]
    n_samples = WINDOW_SECONDS * sample_rate
    return np.resize(waveform, n_samples) if len(waveform) < n_samples else waveform[:n_samples]


if __name__ == "__main__":
    main()
