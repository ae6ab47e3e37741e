"""Measure what the statistics of an evaluation are worth, and how long they take.

    python -m tests.benchmarks.evaluating
    python -m tests.benchmarks.evaluating coverage --n_simulations 1000
    python -m tests.benchmarks.evaluating verdicts --n_simulations 10000
    python -m tests.benchmarks.evaluating binning

Without a word it tells the speed: a million ready probabilities are evaluated. ``coverage`` simulates test sets whose
true scores are known and counts how often a 95 % interval covers the truth. ``verdicts`` simulates models that are
equally good and counts how often one is called better. ``binning`` tells how far an area from bins is from the exact
one. Nothing is asserted.
"""

import argparse
import resource
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from models.classes import DecisionRules
from utils.evaluation.comparison import BETTER, WORSE, fewest_recordings, paired_comparison
from utils.evaluation.intervals import answered_intervals, score_intervals
from utils.evaluation.permutation import permutation_test
from utils.evaluation.recordings import recording_scores
from utils.evaluation.resampling import Bootstrap
from utils.evaluation.results import level_scores
from utils.metrics import ScoredSegments, answered_scores, evaluate_segments
from utils.tallies import Groups, Ranking, RankingBins

CONFIDENCE = 0.95
_N_BOOTSTRAP = 500
_N_SWAPS = 1999  # p = 0.05 is one of the steps
_N_OF_TRUTH = 10_000  # recordings a class whose scores are taken for the truth
_WINDOWS = (4, 16)  # of a recording, the last one excluded
_FAVOURITE = 0.7  # of a recording's confusions are with one and the same class
_SCORES = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "weighted_f1", "macro_roc_auc",
           "macro_average_precision", "log_loss", "brier_score", "ece")
_CLASS_SCORES = ("recall", "precision", "f1", "roc_auc", "average_precision")


@dataclass(frozen=True, kw_only=True)
class World:
    """Where simulated recordings come from.

    Parameters
    ----------
    recalls : tuple of float
        Of each class, in the mean over its recordings.
    correlation : float, range 0..1
        Between the windows of a recording, whether they are right.
    sizes : tuple of float
        Recordings of each class, as a share of what is asked for.
    is_calibrated : bool
        Whether a window is right as often as its confidence says; then the recalls are not those given.
    """

    recalls: tuple[float, ...] = (0.99, 0.95, 0.85, 0.7, 0.4, 0.03)
    correlation: float = 0.3
    sizes: tuple[float, ...] = (1.0,) * 6
    is_calibrated: bool = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return a name for each class."""
        return tuple(f"class_{k}" for k in range(len(self.recalls)))


WORLDS = {"varied": World(), "lumpy": World(correlation=0.6), "spread": World(correlation=0.05),
          "easy": World(recalls=(0.9, 0.93, 0.95, 0.97, 0.985, 0.995)),
          "uneven": World(sizes=(1.0, 5.0, 2.0, 1.0, 0.5, 3.0)), "calibrated": World(is_calibrated=True)}


def draw(world: World, n_recordings: int, rng: np.random.Generator) -> tuple[ScoredSegments, np.ndarray]:
    """Return a test set of so many recordings a class, and the recording of each of its segments.

    How often the windows of a recording are right follows a beta distribution; those that are wrong are mostly taken
    for the same class. A right window is more confident than a wrong one, and a recording has a confidence of its own.
    """
    labels = np.repeat(np.arange(len(world.recalls)), [max(2, round(n_recordings * size)) for size in world.sizes])
    recordings = np.repeat(np.arange(len(labels)), rng.integers(*_WINDOWS, size=len(labels)))
    certainty = 1 / world.correlation - 1
    recalls = np.array(world.recalls)[labels]
    rates = rng.beta(recalls * certainty, (1 - recalls) * certainty)
    right = rng.random(len(recordings)) < rates[recordings]
    own = rng.normal(size=len(labels))[recordings]
    noise = rng.normal(size=len(recordings))
    if world.is_calibrated:
        confidence = _confidence(1.2 + 0.8 * own + 0.8 * noise)
        right = rng.random(len(recordings)) < confidence
    else:
        confidence = _confidence(0.4 + 1.2 * right + 0.5 * own + 0.8 * noise)
    top = _top_classes(labels, recordings, right, len(world.recalls), rng)
    return ScoredSegments(_probabilities(top, confidence, len(world.recalls), rng), labels[recordings],
                          world.class_names), recordings


def _confidence(logits: np.ndarray) -> np.ndarray:
    return 0.25 + 0.74 / (1 + np.exp(-logits))


def _top_classes(labels: np.ndarray, recordings: np.ndarray, right: np.ndarray, n_classes: int,
                 rng: np.random.Generator) -> np.ndarray:
    favourites = rng.integers(1, n_classes, size=len(labels))[recordings]
    others = np.where(rng.random(len(recordings)) < _FAVOURITE, favourites,
                      rng.integers(1, n_classes, size=len(recordings)))
    return (labels[recordings] + np.where(right, 0, others)) % n_classes


def _probabilities(top: np.ndarray, confidence: np.ndarray, n_classes: int, rng: np.random.Generator) -> np.ndarray:
    rest = rng.dirichlet(np.full(n_classes - 1, 0.6), size=len(top)) * (1 - confidence)[:, None]
    too_much = rest.max(axis=1) >= confidence
    rest[too_much] = ((1 - confidence) / (n_classes - 1))[too_much, None]
    probabilities = np.empty((len(top), n_classes))
    is_top = np.arange(n_classes) == top[:, None]
    probabilities[is_top], probabilities[~is_top] = confidence, rest.ravel()
    return probabilities


def draw_equal_models(world: World, n_recordings: int, rng: np.random.Generator
                      ) -> tuple[ScoredSegments, ScoredSegments, np.ndarray]:
    """Return two models of equal worth on the same recordings, and the recording of each segment.

    On each recording both have the same rate, so they agree more than chance has it, and err window by window.
    """
    a, recordings = draw(world, n_recordings, rng)
    labels = a.labels[np.flatnonzero(np.diff(recordings, prepend=-1))]
    certainty = 1 / world.correlation - 1
    recalls = np.array(world.recalls)[labels]
    rates = rng.beta(recalls * certainty, (1 - recalls) * certainty)[recordings]
    return (*(ScoredSegments(np.eye(len(world.recalls))[_top_classes(
        labels, recordings, rng.random(len(recordings)) < rates, len(world.recalls), rng)], a.labels, a.class_names)
        for _ in range(2)), recordings)


@cache
def truth(name: str) -> dict[str, float]:
    """Return the scores of very many recordings of a world, of classes too: ``recall of class_0``."""
    segments, _ = draw(WORLDS[name], _N_OF_TRUTH, np.random.default_rng(1))
    found = evaluate_segments(segments)
    return _flat(found, found["per_class"])


def _flat(overall: dict, by_class: Sequence[dict]) -> dict:
    return {**{score: overall[score] for score in _SCORES},
            **{f"{score} of {row['class_name']}": row[score] for score in _CLASS_SCORES for row in by_class}}


def covered(name: str, n_recordings: int, seed: int) -> dict[str, tuple[bool, float]]:
    """Return of each score whether the interval of one simulated test set covers the truth, and its width.

    A score that is undefined in the test set is left out.
    """
    segments, recordings = draw(WORLDS[name], n_recordings, np.random.default_rng([seed, n_recordings]))
    bootstrap = Bootstrap(recording_ids=recordings, n_bootstrap=_N_BOOTSTRAP, confidence=CONFIDENCE, seed=seed)
    intervals = _flat(*score_intervals(segments, bootstrap))
    return {score: (interval[0] <= truth(name)[score] <= interval[1], interval[1] - interval[0])
            for score, interval in intervals.items() if interval is not None}


def false_verdict(name: str, n_recordings: int, seed: int) -> tuple[bool, bool]:
    """Return whether the permutation test rejects that equal models are equal, and whether one is called better."""
    a, b, recordings = draw_equal_models(WORLDS[name], n_recordings, np.random.default_rng([seed, n_recordings]))
    groups = Groups(recordings, recordings[-1] + 1)
    test = permutation_test(a, b, groups, seed=seed, n_swaps=_N_SWAPS)
    rejects = test.p <= 1 - CONFIDENCE and groups.n_groups >= fewest_recordings(CONFIDENCE)
    if not rejects:  # then no verdict can be given, and the resamples need not be drawn
        return False, False
    bootstrap = Bootstrap(recording_ids=recordings, n_bootstrap=_N_BOOTSTRAP, confidence=CONFIDENCE, seed=seed)
    return True, paired_comparison(a, b, bootstrap).verdict in (BETTER, WORSE)


def print_coverage(names: Sequence[str], sizes: Sequence[int], n_simulations: int) -> None:
    """Print a row for each score: coverage in percent and mean width."""
    for name in names:
        columns = []
        for n_recordings in sizes:
            with ProcessPoolExecutor(2) as pool:
                found = list(pool.map(covered, *zip(*((name, n_recordings, seed) for seed in range(n_simulations))),
                                      chunksize=10))
            columns.append({score: np.mean([row[score] for row in found if score in row], axis=0)
                            for score in truth(name) if any(score in row for row in found)})
        print(f"\n{name}: {n_simulations} test sets of {', '.join(map(str, sizes))} recordings a class\n"
              f"{'':34}{'truth':>8}" + "".join(f"{size:>15}" for size in sizes))
        for score, value in truth(name).items():
            cells = (f"{100 * column[score][0]:8.1f} ({column[score][1]:.2f})" if score in column else f"{'–':>15}"
                     for column in columns)
            print(f"{score:34}{value:8.3f}" + "".join(cells), flush=True)


def print_verdicts(names: Sequence[str], sizes: Sequence[int], n_simulations: int) -> None:
    """Print how often equal models are told apart."""
    for name in names:
        for n_recordings in sizes:
            with ProcessPoolExecutor(2) as pool:
                found = np.array(list(pool.map(false_verdict, *zip(*(
                    (name, n_recordings, seed) for seed in range(n_simulations))), chunksize=20)))
            rejected, told = 100 * found.mean(axis=0)
            print(f"{name}, {n_recordings} recordings a class: p <= {1 - CONFIDENCE:.2f} in {rejected:.2f} %, a verdict"
                  f" in {told:.2f} % of {n_simulations}", flush=True)


def print_binning() -> None:
    """Print how far the areas from bins are from the exact ones."""
    for n_recordings in (50, 500, 5000):
        segments, _ = draw(WORLDS["varied"], n_recordings, np.random.default_rng(3))
        errors = np.array([binning_errors(segments, k) for k in range(len(segments.class_names))])
        print(f"{len(segments.labels)} segments: ROC AUC off by up to {errors[:, 0].max():.1e}, average precision by up"
              f" to {errors[:, 1].max():.1e}")


def binning_errors(segments: ScoredSegments, k: int) -> tuple[float, float]:
    """Return by how much bins change ROC AUC and average precision of a class."""
    scores, positives = segments.probabilities[:, k], segments.labels == k
    bins, exact = RankingBins.of(scores, positives), Ranking.of(scores, positives)
    binned = bins.ranking(bins.tally(Groups.one(len(scores))) @ np.ones((1, 1), dtype=np.float32))
    return (abs(float(binned.roc_auc()[0] - exact.roc_auc()[0])),
            abs(float(binned.average_precision()[0] - exact.average_precision()[0])))


def print_speed(n_segments: int, n_recordings: int, n_bootstrap: int) -> None:
    """Print seconds and memory of evaluating two models from ready probabilities, by segment and by recording."""
    rng, world = np.random.default_rng(0), WORLDS["varied"]
    recordings = np.sort(np.arange(n_segments) % n_recordings)
    labels = np.arange(n_recordings) % len(world.recalls)
    models = [ScoredSegments(_probabilities(
        _top_classes(labels, recordings, rng.random(n_segments) < 0.8, len(world.recalls), rng),
        _confidence(rng.normal(size=n_segments)), len(world.recalls), rng), labels[recordings], world.class_names)
        for _ in range(2)]
    before = _peak_megabytes()
    for part, seconds in _timed(models, Bootstrap(recording_ids=recordings, n_bootstrap=n_bootstrap,
                                                  confidence=CONFIDENCE, seed=0)):
        print(f"{part:24} {seconds:6.1f} s", flush=True)
    print(f"{n_segments} segments of {n_recordings} recordings, {n_bootstrap} resamples, two models; memory peak"
          f" {_peak_megabytes():.0f} MB, {before:.0f} MB before")


def _timed(models: Sequence[ScoredSegments], bootstrap: Bootstrap) -> Iterator[tuple[str, float]]:
    rules = DecisionRules(dict.fromkeys(models[0].class_names, 0.7), models[0].class_names[-1])

    def whole_recordings() -> None:
        recordings = [recording_scores(model, bootstrap.recording_ids) for model in models]
        for model in recordings:
            level_scores("", model, rules, bootstrap.of_recordings())
        paired_comparison(*recordings, bootstrap.of_recordings())

    steps = {"scores": lambda: [evaluate_segments(model) for model in models],
             "answers": lambda: [answered_scores(model, rules) for model in models],
             "intervals": lambda: [score_intervals(model, bootstrap) for model in models],
             "intervals of answers": lambda: [answered_intervals(model, rules, bootstrap) for model in models],
             "comparison": lambda: paired_comparison(*models, bootstrap), "whole recordings": whole_recordings}
    started = time.perf_counter()
    for part, step in steps.items():
        part_started = time.perf_counter()
        step()
        yield part, time.perf_counter() - part_started
    yield "in all", time.perf_counter() - started


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("speed", "coverage", "verdicts", "binning"), default="speed")
    parser.add_argument("--n_simulations", type=int, default=1000)
    parser.add_argument("--worlds", nargs="*", choices=tuple(WORLDS), default=["varied"])
    parser.add_argument("--n_recordings", type=int, nargs="*", default=[4, 10, 50], help="of each class")
    parser.add_argument("--n_segments", type=int, default=1_000_000, help="for speed")
    parser.add_argument("--n_recordings_in_all", type=int, default=10_000, help="for speed")
    parser.add_argument("--n_bootstrap", type=int, default=2000, help="for speed")
    options = parser.parse_args()
    if options.what == "coverage":
        print_coverage(options.worlds, options.n_recordings, options.n_simulations)
    elif options.what == "verdicts":
        print_verdicts(options.worlds, options.n_recordings, options.n_simulations)
    elif options.what == "binning":
        print_binning()
    else:
        print_speed(options.n_segments, options.n_recordings_in_all, options.n_bootstrap)


if __name__ == "__main__":
    main()
