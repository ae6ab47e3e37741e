"""Measure what a network hears: linear probes on the features of a start or of a teacher, on the real recordings.

    python -m tests.benchmarks.probing --output_dir FOLDER --starts starter imagenet none mn04_as.onnx

A start is what ``--initial_weights`` takes, or a teacher (``.onnx``). Probes are scored in five folds over all clips:
by group, and by ``source_repo``, which is harder. The clips of the test side, which a starter of the project has not
heard, have a line of their own. Calibration errors are cross-fitted; beside them stands what a model whose
probabilities are true would show. Then probes learn from training sides, redrawn with each seed, and are scored on the
test side of ``wildlife/splits.csv``, as ``--linear_probe`` does. Nothing is asserted.
"""

import argparse
from collections.abc import Sequence
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
from utils.networks.teachers import load_teacher
from utils.storage.checkpoints import read_start
from utils.storage.manifest import SPLITS, read_dataset_info
from utils.storage.spectrograms import ArrayDataset
from utils.storage.splits import grouped_folds
from utils.training.probe import choose_strength, embed, fit_linear
from utils.training.starter import begin

_BATCH, _N_FOLDS = 32, 5
_N_SIMULATED = 100


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
    for start in options.starts:
        embeddings = features(start, windows, options.data, dataset)
        print("| start | folds by | clips | accuracy | macro F1 | weighted F1 | calibration error | of a true model |"
              " 95 % below |\n|---|---|---|---|---|---|---|---|---|")
        for line in in_folds(embeddings, windows, read_sources(options.data), dataset):
            print(f"| {start} | {line} |", flush=True)
        if options.seeds:
            scores = pd.DataFrame([on_test_side(embeddings, windows, dataset, seed=seed) for seed in options.seeds])
            print(f"| start | {' | '.join(SCORES)} |\n|---{'|---' * len(SCORES)}|\n| {start} | "
                  + " | ".join(f"{scores[name].mean():.3f} ± {scores[name].std():.3f}" for name in SCORES) + " |",
                  flush=True)


def in_folds(embeddings: np.ndarray, windows: pd.DataFrame, sources: pd.Series, dataset: Path) -> list[str]:
    """Return lines of scores, out of fold, for each way to make the folds."""
    labels, classes = windows["label"].to_numpy(), read_dataset_info(dataset)[0]["class_names"]
    recordings = windows["recording_id"].to_numpy(dtype=str)
    on_test = np.isin(windows["path"], read_windows(dataset, ("test",))["path"])
    lines = []
    for kind, groups in (("group", recordings), ("source", windows["source_path"].map(sources).to_numpy(dtype=str))):
        logits = np.zeros((len(labels), len(classes)), dtype=np.float32)
        folds = grouped_folds(labels, groups, n_folds=_N_FOLDS, random_state=0)
        for held_out in folds:
            learnt = np.setdiff1d(np.arange(len(labels)), held_out)
            logits[held_out] = _learnt(embeddings[learnt], labels[learnt], groups[learnt], n_classes=len(classes)
                                       ).logits(embeddings[held_out])
        probabilities = calibration.cross_fitted_probabilities(logits, labels, folds, recording_ids=recordings)
        for part, chosen in (("all", np.ones(len(labels), dtype=bool)), ("test side", on_test)):
            raw, found = (metrics.evaluate(given[chosen], labels[chosen], class_names=classes)
                          for given in (special.softmax(logits, axis=1), probabilities))
            shown = (*(raw[name] for name in SCORES[:3]), found["ece"],
                     *_error_of_true(probabilities[chosen], classes))
            lines.append(f"{kind} | {part} | " + " | ".join(f"{value:.3f}" for value in shown))
    return lines


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
