"""Measure what ``--suggest`` saves a reviewer: simulated reviewing of the real recordings beside the project.

    python -m tests.benchmarks.reviewing --output_dir FOLDER
    python -m tests.benchmarks.reviewing --output_dir FOLDER --side val --seeds 0 1 2 3 4 5 6 7 8 9

The labels are known and hidden. A reviewer begins with a few labelled segments of each class; a linear probe on the
starter's features learns from what is labelled, the next segments are chosen and labelled, the probe is fitted anew,
and so on. After each batch the probe is scored on the side of ``wildlife/splits.csv`` that is held out: ``test``, with
all others to choose from, or ``val``, with ``train`` to choose from, on which the method was chosen. Where a clip comes
from (``source_repo``) stands for its site; its hour nobody knows. All ways to choose begin with the same segments of a
seed. Written are ``reviewing.csv`` and ``reviewing.png``; embeddings are computed once. Nothing is asserted.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import special

from tests.benchmarks.probing import features
from tests.benchmarks.wildlife import DATA, prepare, read_sources, read_windows
from utils import metrics
from utils.prediction.suggestion import suggest
from utils.storage.manifest import SPLITS
from utils.training.probe import choose_strength, fit_linear

_SEEDS_OF_CLASS, _BATCH, _N_BATCHES = 5, 50, 4
_SHOWN = (0, 50, 100, 200)  # reviewed segments


def _at_random(embeddings: np.ndarray, probabilities: np.ndarray, sites: Sequence[str], n: int,
               rng: np.random.Generator) -> np.ndarray:
    return rng.choice(len(embeddings), n, replace=False)


def _most_uncertain(embeddings: np.ndarray, probabilities: np.ndarray, sites: Sequence[str], n: int,
                    rng: np.random.Generator) -> np.ndarray:
    best = np.sort(probabilities, axis=1)
    return np.argsort(best[:, -1] - best[:, -2], kind="stable")[:n]


def _suggested(embeddings: np.ndarray, probabilities: np.ndarray, sites: Sequence[str], n: int,
               rng: np.random.Generator) -> np.ndarray:
    return suggest(embeddings, probabilities, sites=sites, hours=[None] * len(sites), n=n, rng=rng)


METHODS: dict[str, Callable[..., np.ndarray]] = {"random": _at_random, "smallest margin": _most_uncertain,
                                                 "--suggest": _suggested}


def main() -> None:
    """Review as often as asked for, print a table and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the wildlife folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="where data set, embeddings and results go")
    parser.add_argument("--side", choices=("test", "val"), default="test", help="what is held out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"skipped: the real recordings ({options.data}) are not here")
        return
    rows, embeddings = read(options.data, options.output_dir)
    scores = pd.DataFrame([{"method": method, "seed": seed, "reviewed": reviewed, "macro_f1": score}
                           for method in METHODS for seed in options.seeds
                           for reviewed, score in review(METHODS[method], rows, embeddings, side=options.side,
                                                         seed=seed)])
    scores.to_csv(options.output_dir / "reviewing.csv", index=False)
    draw(options.output_dir / "reviewing.png", scores, side=options.side)
    print_table(scores)


def read(data: Path, output_dir: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the rows of all sides, and the starter's embeddings, float32 ``(n_rows, n_features)``."""
    dataset = prepare(data, output_dir / "dataset")
    rows = read_windows(dataset)
    rows["site"] = rows["source_path"].map(read_sources(data))
    kept = output_dir / "embeddings.npy"
    if not kept.is_file():
        np.save(kept, features("starter", rows, data, dataset))
    return rows, np.load(kept)


def review(choose: Callable[..., np.ndarray], rows: pd.DataFrame, embeddings: np.ndarray, *, side: str,
           seed: int) -> list[tuple[int, float]]:
    """Return how many segments were reviewed and the macro F1 on the held-out side, after each batch."""
    labels, recordings, sites = (rows[name].to_numpy() for name in ("label", "recording_id", "site"))
    n_classes = labels.max() + 1
    held_out = np.flatnonzero(rows["split"] == side)
    pool = np.flatnonzero(rows["split"].isin(SPLITS[:SPLITS.index(side)]))
    first, choices = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    known = np.concatenate([first.choice(pool[labels[pool] == label], _SEEDS_OF_CLASS, replace=False)
                            for label in range(n_classes)])
    scores = []
    for n_batches in range(_N_BATCHES + 1):
        strength, _ = choose_strength(embeddings[known], labels[known], recordings[known], n_classes=n_classes,
                                      random_state=seed)
        probe = fit_linear(embeddings[known], labels[known], n_classes=n_classes, strength=strength)
        found = metrics.confusion_matrix(labels[held_out], probe.logits(embeddings[held_out]).argmax(axis=1),
                                         n_classes=n_classes)
        scores.append((n_batches * _BATCH, metrics.classification_scores(found)["macro_f1"]))
        left = np.setdiff1d(pool, known)
        probabilities = special.softmax(probe.logits(embeddings[left]).astype(np.float64), axis=1)
        chosen = choose(embeddings[left], probabilities, sites[left], _BATCH, choices)
        known = np.concatenate([known, left[chosen]])
    return scores


def print_table(scores: pd.DataFrame) -> None:
    """Print means and standard deviations over seeds, and what each way is ahead of chance, seed by seed."""
    print("| chosen | " + " | ".join(f"{n} reviewed" for n in _SHOWN) + " |\n" + "|---" * (len(_SHOWN) + 1) + "|")
    table = scores.pivot(index="seed", columns=["method", "reviewed"], values="macro_f1")
    for method in METHODS:
        print(f"| {method} | " + " | ".join(_mean_and_deviation(table[method][n]) for n in _SHOWN) + " |")
    for method in list(METHODS)[1:]:
        ahead = table[method] - table["random"]
        print(f"| {method} less random | " + " | ".join(
            f"{_mean_and_deviation(ahead[n])} ({(ahead[n] > 0).sum()} of {len(ahead)} ahead)" for n in _SHOWN) + " |")


def _mean_and_deviation(values: pd.Series) -> str:
    return f"{values.mean():.3f} ± {values.std():.3f}"


def draw(path: Path, scores: pd.DataFrame, *, side: str) -> None:
    """Draw the mean over seeds of each way to choose, with a standard deviation to both sides."""
    figure = Figure(figsize=(8.5, 5.0), layout="constrained")
    axes = figure.subplots()
    for number, (method, rows) in enumerate(scores.groupby("method", sort=False)):
        colour, found = f"C{number}", rows.groupby("reviewed")["macro_f1"].agg(["mean", "std"])
        axes.plot(found.index, found["mean"], color=colour, marker="o", label=method)
        axes.fill_between(found.index, found["mean"] - found["std"], found["mean"] + found["std"], color=colour,
                          alpha=0.12)
    axes.set(title="What reviewing brings, by how the segments were chosen", xlabel="segments reviewed",
             ylabel=f"macro F1, {side}", xticks=sorted(set(scores["reviewed"])))
    axes.grid(True)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
