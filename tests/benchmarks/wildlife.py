"""Measure accuracy on the real recordings beside the project: the figures that the README quotes.

    python -m tests.benchmarks.wildlife --output_dir FOLDER --runs b0-starter-probe b0-starter --seeds 1 2 3
    python -m tests.benchmarks.wildlife --output_dir FOLDER --runs --probes starter imagenet none teacher.onnx

The test side is that of ``wildlife/splits.csv``; a seed redraws training and validation among the other groups, and
seeds weights and order. Every run is a training command of the README in a folder of its own, scored once on the test
side by ``evaluate_model.py``; what is there already is not done again.

``--probes`` scores linear probes on the features of a start or of a teacher, in five folds over all
clips: by group, and by ``source_repo``, which is harder. The clips of the test side,
which a starter of the project has not heard, have a line of their own. The calibration error is cross-fitted; beside it
stands what a model whose probabilities are true would show. Nothing is asserted.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import special

from models import calibration
from models.efficientnet_config import get_config
from tests.benchmarks.splitting import grouped_split
from utils import metrics, reports
from utils.audio.recordings import RecordingReader
from utils.networks.teachers import load_teacher
from utils.storage.manifest import read_dataset_info
from utils.storage.spectrograms import ArrayDataset
from utils.storage.splits import grouped_folds
from utils.training.probe import choose_strength, embed, fit_linear
from utils.training.starter import begin

PROJECT = Path(__file__).resolve().parents[2]
DATA = PROJECT.parent / "shared" / "data" / "wildlife"
SCORES = ("accuracy", "macro_f1", "weighted_f1", "macro_roc_auc", "ece")
_WINDOW_SECONDS, _BATCH, _N_FOLDS = 5, 32, 5
_N_SIMULATED = 100
_VAL_SHARE = 0.17  # of train and val: as in splits.csv
_B0, _RESNET = ["--config", "efficientnet_b0_fast"], ["--config", "resnet18_baseline"]
_SCRATCH = ["--initial_weights", "none", "--epochs", "24", "--batch_size", "32"]
RUNS = {
    "b0-scratch": [*_B0, *_SCRATCH, "--learning_rate", "3e-3"],
    "b0-imagenet": [*_B0, "--initial_weights", "imagenet"],
    "b0-starter": _B0,
    "b0-starter-probe": [*_B0, "--linear_probe"],
    "b0-starter-probe-sure": [*_B0, "--linear_probe", "--target_precision", "0.9"],
    "b1-starter-probe": ["--config", "efficientnet_b1_balanced", "--linear_probe"],
    "b2-starter-probe": ["--config", "efficientnet_b2_quality", "--linear_probe"],
    "b3-starter-probe": ["--config", "efficientnet_b3_best", "--linear_probe"],
    "resnet18-scratch": [*_RESNET, *_SCRATCH, "--learning_rate", "1e-3"],
}


def main() -> None:
    """Run what was asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the wildlife folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="where data set, models and reports go")
    parser.add_argument("--runs", nargs="*", default=list(RUNS), help=f"of {', '.join(RUNS)}, or NAME=FLAGS")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--per_class", nargs="+", type=int, default=[0],
                        help="recordings of a class to learn from, for the learning curve; 0 is all")
    parser.add_argument("--probes", nargs="*", default=[], help="starts, as --initial_weights, or teachers (.onnx)")
    options = parser.parse_args()
    dataset = prepare(options.data, options.output_dir / "dataset")
    for start in options.probes:
        print_probe(start, options.data, dataset)
    rows, curve = [], []
    for text in options.runs:
        name, _, flags = text.partition("=")
        for n_recordings in options.per_class:
            results = [run(name, flags.split() if flags else RUNS[name], dataset, seed=seed,
                           n_recordings=n_recordings) for seed in options.seeds]
            rows.append(summary(name if not n_recordings else f"{name}, {n_recordings} a class", results))
            curve += [{"run": name, "recordings": str(n_recordings or "all"), "score": result["macro_f1"]}
                      for result in results]
            print(rows[-1], flush=True)
    if len(options.per_class) > 1:
        reports.plot_learning_curve(options.output_dir / "learning_curve.png", pd.DataFrame(curve),
                                    score_title="macro F1")
    header = "| run | seeds | " + " | ".join(SCORES) + " | minutes |"
    print("\n".join([header, "|---" * (len(SCORES) + 3) + "|", *rows]))


def prepare(data: Path, dataset: Path) -> Path:
    """Make the data set, 5 s windows, sides as in ``splits.csv``."""
    if not (dataset / "dataset.json").is_file():
        script("preprocess_enhanced.py", "--input_dir", data, "--output_dir", dataset, "--labels_csv",
               data / "splits.csv", "--path_column", "path", "--label_column", "label", "--group_column", "group",
               "--group_by", "column", "--fold_column", "split", "--segment_duration", 1000 * _WINDOW_SECONDS)
    return dataset


def draw(dataset: Path, *, seed: int, n_recordings: int) -> tuple[Path, Path]:
    """Redraw training and validation; of each class keep ``n_recordings`` groups to learn from, 0 is all."""
    rows = pd.concat([pd.read_csv(dataset / f"{side}.csv") for side in ("train", "val")], ignore_index=True)
    sides = grouped_split(rows["label"].to_numpy(), rows["recording_id"].to_numpy(dtype=str),
                          ratios=(1 - _VAL_SHARE, _VAL_SHARE, 0.0), random_state=seed)
    train, val = rows[sides == "train"], rows[sides == "val"]
    if n_recordings:
        rng = np.random.default_rng(seed)
        groups = train.groupby("label")["recording_id"].unique()
        kept = {name for names in groups for name in rng.permutation(np.sort(names))[:n_recordings]}
        # one window of a recording: a recording is what a user has to label
        train = train[train["recording_id"].isin(kept)].groupby(["label", "recording_id"]).sample(1, random_state=seed)
    paths = tuple(dataset / f"{side}_seed{seed}_{n_recordings}.csv" for side in ("train", "val"))
    for path, part in zip(paths, (train, val), strict=True):
        part.to_csv(path, index=False)
    return paths


def run(name: str, flags: list[str], dataset: Path, *, seed: int, n_recordings: int) -> dict[str, float]:
    """Train and score once; return scores and minutes of training."""
    folder = dataset.parent / "models" / f"{name}_seed{seed}_{n_recordings}"
    report, minutes = folder / "report" / "metrics.json", folder / "minutes.json"
    if not report.is_file():
        train_csv, val_csv = draw(dataset, seed=seed, n_recordings=n_recordings)
        started = time.perf_counter()
        resumed = ["--resume"] if list(folder.glob("*_last.pth")) else []
        script("train_efficientnet.py", "--train_csv", train_csv, "--val_csv", val_csv, "--model_dir", folder,
               "--seed", seed, *flags, *resumed)
        minutes.write_text(json.dumps((time.perf_counter() - started) / 60))
        best = next(folder.glob("*_best.pth"))
        kind = "resnet18" if best.name.startswith("resnet18") else "efficientnet"
        script("evaluate_model.py", "--test_csv", dataset / "test.csv", "--output_dir", folder / "report",
               f"--{kind}_model", best)
    model = json.loads(report.read_text())["models"][0]
    return {**{score: model["metrics"][score] for score in SCORES}, "minutes": json.loads(minutes.read_text())}


def summary(name: str, results: list[dict[str, float]]) -> str:
    """Return a line of the table: means and, of several seeds, their standard deviations."""
    table = pd.DataFrame(results)
    cells = [f"{table[score].mean():.3f}" + (f" ± {table[score].std():.3f}" if len(table) > 1 else "")
             for score in SCORES]
    return f"| {name} | {len(table)} | " + " | ".join(cells) + f" | {table['minutes'].median():.1f} |"


def print_probe(start: str, data: Path, dataset: Path) -> None:
    """Print lines of scores, out of fold, for each way to make the folds."""
    rows = pd.concat([pd.read_csv(dataset / f"{side}.csv") for side in ("train", "val", "test")], ignore_index=True)
    sources = pd.read_csv(data / "metadata.csv").set_index("path")["source_repo"]
    labels, classes = rows["label"].to_numpy(), sorted(set(rows["label"]))
    embeddings = _features(start, rows, data, dataset)
    on_test = np.isin(rows["path"], pd.read_csv(dataset / "test.csv")["path"])
    for kind, groups in (("group", rows["recording_id"]), ("source_repo", rows["source_path"].map(sources))):
        groups = groups.to_numpy(dtype=str)
        logits = np.zeros((len(labels), len(classes)), dtype=np.float32)
        folds = grouped_folds(labels, groups, n_folds=_N_FOLDS, random_state=0)
        for held_out in folds:
            learnt = np.setdiff1d(np.arange(len(labels)), held_out)
            strength, _ = choose_strength(embeddings[learnt], labels[learnt], groups[learnt], n_classes=len(classes),
                                          random_state=0)
            classifier = fit_linear(embeddings[learnt], labels[learnt], n_classes=len(classes), strength=strength)
            logits[held_out] = classifier.logits(embeddings[held_out])
        probabilities = calibration.cross_fitted_probabilities(
            logits, labels, folds, recording_ids=rows["recording_id"].to_numpy(dtype=str))
        names = [str(label) for label in classes]
        for part, chosen in (("all", np.ones(len(labels), dtype=bool)), ("test side", on_test)):
            raw, found = special.softmax(logits[chosen], axis=1), probabilities[chosen]
            scores, calibrated = (metrics.evaluate(given, labels[chosen], class_names=names) for given in (raw, found))
            shown = (*(scores[name] for name in SCORES[:3]), calibrated["accuracy"], calibrated["macro_f1"],
                     calibrated["ece"], *_error_of_true(found, names))
            print(f"| {start} | {kind} | {part} | " + " | ".join(f"{value:.3f}" for value in shown) + " |", flush=True)


def _error_of_true(probabilities: np.ndarray, names: list[str]) -> tuple[float, float]:
    """Return median and 95th percentile of the calibration error if the probabilities were true."""
    rng = np.random.default_rng(0)
    edges = probabilities.cumsum(axis=1)
    draws = [(rng.random((len(edges), 1)) > edges[:, :-1]).sum(axis=1) for _ in range(_N_SIMULATED)]
    errors = [metrics.evaluate(probabilities, labels, class_names=names)["ece"] for labels in draws]
    return float(np.median(errors)), float(np.quantile(errors, 0.95))


def _features(start: str, rows: pd.DataFrame, data: Path, dataset: Path) -> np.ndarray:
    """Return embeddings of all windows, float32 ``(n_windows, n_features)``."""
    if start.endswith(".onnx"):
        teacher = load_teacher(start)
        windows = np.stack([_window(data / path, seconds, teacher.description.sample_rate)
                            for path, seconds in zip(rows["source_path"], rows["start_seconds"], strict=True)])
        return np.concatenate([teacher.hear(windows[first:first + _BATCH]).embeddings
                               for first in range(0, len(windows), _BATCH)])
    _, frontend = read_dataset_info(dataset)
    config = get_config("efficientnet_b0_fast").replace(initial_weights=start, frontend=frontend)
    model, config = begin(config, 2)
    spectrograms = [np.load(dataset / path) for path in rows["path"]]
    return embed(model, ArrayDataset(spectrograms, np.zeros(len(rows), dtype=int)), batch_size=_BATCH,
                 device=torch.device("cpu"), n_workers=0)


def _window(path: Path, start_seconds: float, sample_rate: int) -> np.ndarray:
    with RecordingReader(path, sample_rate=sample_rate) as reader:
        waveform = np.concatenate(list(reader.blocks()))[round(start_seconds * sample_rate):]
    return np.resize(waveform, _WINDOW_SECONDS * sample_rate) if len(waveform) < _WINDOW_SECONDS * sample_rate \
        else waveform[:_WINDOW_SECONDS * sample_rate]


def script(name: str, *arguments: object) -> None:
    """Run one of the four commands; its failure ends the benchmark."""
    subprocess.run([sys.executable, str(PROJECT / "scripts" / name), *map(str, arguments)], check=True,
                   stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
