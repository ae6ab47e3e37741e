"""Measure trainings on the real recordings beside the project: the figures that the README quotes.

    python -m tests.benchmarks.wildlife --output_dir FOLDER --runs b0-starter-probe b0-starter --seeds 1 2 3

The test side is that of ``wildlife/splits.csv``; a seed redraws training and validation among the other groups, and
seeds weights and order. With ``--by_source`` a seed takes the next third of the sources (``source_repo``) for the test
side, so that three seeds score every clip once. Every run is a training command of the README in a folder of its own,
scored once on the test side by ``evaluate_model.py``; what is there already is not done again. ``--validation_only``
scores nothing on the test side: it is for choosing. Nothing is asserted.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from tests.benchmarks.splitting import grouped_split
from utils import reports
from utils.storage.manifest import SPLITS
from utils.storage.splits import grouped_folds

PROJECT = Path(__file__).resolve().parents[2]
DATA = PROJECT.parent / "shared" / "data" / "wildlife"
SCORES = ("accuracy", "macro_f1", "weighted_f1", "macro_roc_auc", "ece")
WINDOW_SECONDS = 5
_N_PARTS = 3  # of the sources
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
    parser.add_argument("--by_source", action="store_true", help="hold out a third of the sources, each seed another")
    parser.add_argument("--validation_only", action="store_true", help="score nothing on the test side")
    options = parser.parse_args()
    dataset = prepare(options.data, options.output_dir / "dataset")
    sources = read_sources(options.data) if options.by_source else None
    rows, curve = [], []
    for text in options.runs:
        name, _, flags = text.partition("=")
        for n_recordings in options.per_class:
            results = [run(name, flags.split() if flags else RUNS[name], dataset, seed=seed, sources=sources,
                           n_recordings=n_recordings, on_test=not options.validation_only) for seed in options.seeds]
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
               "--group_by", "column", "--fold_column", "split", "--segment_duration", 1000 * WINDOW_SECONDS)
    return dataset


def read_windows(dataset: Path, sides: Sequence[str] = SPLITS) -> pd.DataFrame:
    """Return the manifests of some sides as one table."""
    return pd.concat([pd.read_csv(dataset / f"{side}.csv") for side in sides], ignore_index=True)


def read_sources(data: Path) -> pd.Series:
    """Return who published a recording (``source_repo``), by the path of the recording."""
    return pd.read_csv(data / "metadata.csv").set_index("path")["source_repo"]


def draw(dataset: Path, *, seed: int, n_recordings: int = 0, sources: pd.Series | None = None) -> dict[str, Path]:
    """Redraw training and validation, and by source the test side too.

    Parameters
    ----------
    dataset : Path
        From ``prepare``; the manifests are written into it.
    seed : int
        Of the draw; with ``sources`` which third is held out.
    n_recordings : int
        Of each class so many groups are kept to learn from, one window of each; 0 is all of all.
    sources : pandas.Series, optional
        From ``read_sources``.

    Returns
    -------
    dict
        Manifest of each side.
    """
    name = f"{'seed' if sources is None else 'source'}{seed}_{n_recordings}"
    paths = {side: dataset / f"{side}_{name}.csv" for side in SPLITS}
    if sources is None:
        rows, paths["test"] = read_windows(dataset, ("train", "val")), dataset / "test.csv"
    else:
        windows = read_windows(dataset)
        thirds = grouped_folds(windows["label"].to_numpy(), windows["source_path"].map(sources).to_numpy(dtype=str),
                               n_folds=_N_PARTS, random_state=0)
        held_out = windows.index.isin(thirds[seed % _N_PARTS])
        windows[held_out].to_csv(paths["test"], index=False)
        rows = windows[~held_out]
    sides = grouped_split(rows["label"].to_numpy(), rows["recording_id"].to_numpy(dtype=str),
                          ratios=(1 - _VAL_SHARE, _VAL_SHARE, 0.0), random_state=seed)
    train, val = rows[sides == "train"], rows[sides == "val"]
    if n_recordings:
        rng = np.random.default_rng(seed)
        groups = train.groupby("label")["recording_id"].unique()
        kept = {name for names in groups for name in rng.permutation(np.sort(names))[:n_recordings]}
        # one window of a recording: a recording is what a user has to label
        train = train[train["recording_id"].isin(kept)].groupby(["label", "recording_id"]).sample(1, random_state=seed)
    train.to_csv(paths["train"], index=False)
    val.to_csv(paths["val"], index=False)
    return paths


def run(name: str, flags: list[str], dataset: Path, *, seed: int, n_recordings: int = 0,
        sources: pd.Series | None = None, on_test: bool = True) -> dict[str, float]:
    """Train and score once; return scores and minutes of training."""
    manifests = draw(dataset, seed=seed, n_recordings=n_recordings, sources=sources)
    folder = dataset.parent / "models" / f"{name}_{manifests['train'].stem.removeprefix('train_')}"
    report, minutes = folder / "report" / "metrics.json", folder / "minutes.json"
    if not minutes.is_file():
        started = time.perf_counter()
        resumed = ["--resume"] if list(folder.glob("*_last.pth")) else []
        script("train_efficientnet.py", "--train_csv", manifests["train"], "--val_csv", manifests["val"], "--model_dir",
               folder, "--seed", seed, *flags, *resumed)
        minutes.write_text(json.dumps((time.perf_counter() - started) / 60))
    if on_test and not report.is_file():
        script("evaluate_model.py", "--test_csv", manifests["test"], "--output_dir", folder / "report", "--models",
               next(folder.glob("*_best.pth")))
    scores = (json.loads(report.read_text())["models"][0]["metrics"] if on_test
              else json.loads((folder / "metrics.json").read_text()))
    return {**{score: scores[score] for score in SCORES}, "minutes": json.loads(minutes.read_text())}


def summary(name: str, results: list[dict[str, float]]) -> str:
    """Return a line of the table: means and, of several seeds, their standard deviations."""
    table = pd.DataFrame(results)
    cells = [f"{table[score].mean():.3f}" + (f" ± {table[score].std():.3f}" if len(table) > 1 else "")
             for score in SCORES]
    return f"| {name} | {len(table)} | " + " | ".join(cells) + f" | {table['minutes'].median():.1f} |"


def script(name: str, *arguments: object) -> None:
    """Run one of the four commands; its failure ends the benchmark."""
    subprocess.run([sys.executable, str(PROJECT / "scripts" / name), *map(str, arguments)], check=True,
                   stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
