"""The resamples of a test set, and every score on each of them.

Whole recordings are resampled, because the segments of one recording are not independent, and within their class, so
that no resample lacks a class. Of a class's n recordings n - 1 are drawn and count n / (n - 1) times each: then the
resamples vary as much as test sets do, while n of n vary too little by the factor (n - 1) / n (Rao, Wu and Yue 1992,
section 2).

Recordings that are all alike would vary nothing at all: four of four right is not certainty. So each resample also
holds a little of imagined recordings of each class, one rightly recognised and one taken for each other class, as
Agresti and Coull (1998) add successes and failures. They are as long as the class's recordings are in the mean and
otherwise like those that are there: the right one ranks its class on top, a missed one looks like the class it is taken
for; right and missed rows lose what the rows of the test set lose with their first or second guess as truth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from models.classes import DecisionRules
from models.errors import ConfigError
from utils.evaluation.recordings import recording_groups, recording_labels
from utils.metrics import ScoredSegments, all_scores, answer_counts, guess_counts, reject_classes
from utils.tallies import Counts, Groups, Losses, RankingBins, Scores

RESAMPLED_CELLS = 4_000_000  # recordings x resamples held at once: 32 MB
# how much of a recording is imagined of each class: more makes intervals wide for nothing, less too narrow. Two models
# disagree on a whole recording far more seldom than one misses it (both by simulation, tests/benchmarks/evaluating.py)
IMAGINED_RECORDINGS = 0.5
IMAGINED_DISAGREEMENTS = 0.02
_SILENT_SHARE = 0.5  # of a missed recording's segments, where a model may refuse to answer


@dataclass(frozen=True, eq=False)
class Draws:
    """How often each recording counts in some resamples.

    Parameters
    ----------
    recordings : np.ndarray, float64, shape (n_recordings, n_resamples)
        Of the test set; 1 in the mean.
    right, missed : np.ndarray, float64, shape (n_classes, n_classes, n_resamples)
        Of the imagined recordings of each class (second axis): those that are recognised, and those that are taken
        for each other class (first axis). Which one the recognised ones would have been taken for matters to a second
        model only.
    """

    recordings: np.ndarray
    right: np.ndarray
    missed: np.ndarray

    def swapped(self) -> "Draws":
        """Return the draws of a model that misses what this one recognises."""
        return Draws(self.recordings, self.missed, self.right)

    @cached_property
    def imagined(self) -> np.ndarray:
        """Those recognised, of each class, then those missed: float64 ``(n_classes + n_classes ** 2, n_resamples)``."""
        return np.vstack([self.right.sum(axis=0), self.missed.reshape(-1, self.missed.shape[-1])])


@dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap:
    """The resamples of a test set; the same for every model that is scored with them.

    Parameters
    ----------
    recording_ids : sequence of str, length n
        Recording each segment was cut from.
    n_bootstrap : int
        Number of resamples.
    confidence : float, range 0..1
        Of the intervals.
    seed : int
        Of the resamples.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    recording_ids: Sequence[str] | np.ndarray
    n_bootstrap: int
    confidence: float
    seed: int

    def __post_init__(self) -> None:
        if self.n_bootstrap < 2:
            raise ConfigError(f"n_bootstrap must be at least 2, got {self.n_bootstrap}: one resample shows no spread")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must be in 0..1 (both excluded), got {self.confidence}: 95 % is 0.95")

    @property
    def n_segments(self) -> int:
        """Segments of the test set."""
        return len(self.recording_ids)

    @property
    def n_recordings(self) -> int:
        """Different recordings among them."""
        return self.groups.n_groups

    @cached_property
    def groups(self) -> Groups:
        """Which recording each segment is of."""
        return recording_groups(self.recording_ids)[1]

    def of_recordings(self) -> "Bootstrap":
        """Return the same resamples for the rows of ``recordings.recording_scores``."""
        return replace(self, recording_ids=recording_groups(self.recording_ids)[0])

    def check(self, segments: ScoredSegments) -> None:
        """Raise ConfigError if the segments are not those of ``recording_ids``."""
        if self.n_segments != len(segments.labels):
            raise ConfigError(f"recording_ids must have one entry per row ({len(segments.labels)}), got"
                              f" {self.n_segments}")

    def draws(self, labels: np.ndarray, *, n_classes: int, n_imagined: float) -> Iterator[Draws]:
        """Yield the resamples, some at a time.

        Parameters
        ----------
        labels : np.ndarray, int, shape (n,)
            Of the segments; each recording is drawn among those of its own label (``recording_labels``).
        n_classes : int
            Number of classes.
        n_imagined : float
            How much is imagined of each class, right and missed together, in the mean.
        """
        # a stream for each class, so that how many resamples are held at once changes no draw
        *of_classes, of_imagined = np.random.default_rng(self.seed).spawn(n_classes + 1)
        of_recordings = recording_labels(labels, n_classes=n_classes, groups=self.groups)
        classes = [np.flatnonzero(of_recordings == k) for k in range(n_classes)]
        per_part = max(1, RESAMPLED_CELLS // self.n_recordings)
        for start in range(0, self.n_bootstrap, per_part):
            n_resamples = min(per_part, self.n_bootstrap - start)
            counts = np.empty((self.n_recordings, n_resamples))
            for recordings, rng in zip(classes, of_classes):
                counts[recordings] = drawn_counts(rng, len(recordings), n_resamples)
            right, missed = _imagined_weights(of_imagined, n_imagined, n_classes, n_resamples)
            yield Draws(counts, right, missed)


def drawn_counts(rng: np.random.Generator, n_recordings: int, n_resamples: int) -> np.ndarray:
    """Return how often each recording counts in some resamples, float64 ``(n_recordings, n_resamples)``."""
    if n_recordings < 2:
        return np.ones((n_recordings, n_resamples))
    drawn = rng.integers(0, n_recordings, size=(n_resamples, n_recordings - 1))
    cells = drawn * n_resamples + np.arange(n_resamples)[:, None]
    counts = np.bincount(cells.ravel(), minlength=n_recordings * n_resamples).reshape(n_recordings, n_resamples)
    return counts * (n_recordings / (n_recordings - 1))


def _imagined_weights(rng: np.random.Generator, n_imagined: float, n_classes: int, n_resamples: int) -> np.ndarray:
    """Draw how often the imagined recordings count: ``(right or missed, taken for, class, n_resamples)``.

    The variance of a gamma variate equals its mean, as that of a drawn recording does; so sums of them vary alike,
    whatever the number of classes.
    """
    shape = n_imagined / 2 / max(n_classes - 1, 1)
    weights = rng.gamma(shape, size=(n_resamples, 2, n_classes, n_classes))
    return np.moveaxis(weights * (1 - np.eye(n_classes)), 0, -1)


def resampled_scores(segments: ScoredSegments, bootstrap: Bootstrap, *, n_imagined: float = IMAGINED_RECORDINGS,
                     swapped: bool = False) -> tuple[Scores, Scores]:
    """Compute each score of ``metrics.evaluate_segments`` on each resample.

    Parameters
    ----------
    segments : ScoredSegments
        A model's probabilities, and the truth; one row for each of the bootstrap's ``recording_ids``.
    bootstrap : Bootstrap
        The resamples.
    n_imagined : float
        How much is imagined of each class.
    swapped : bool
        For the second of two models that are compared: it misses what the first is imagined to recognise.

    Returns
    -------
    overall, by_class : dict of str to np.ndarray, float64, shapes (n_bootstrap,) and (n_classes, n_bootstrap)
        NaN where undefined.

    Raises
    ------
    ConfigError
        If the lengths differ.
    """
    bootstrap.check(segments)
    groups, n_classes = bootstrap.groups, len(segments.class_names)
    counts = guess_counts(segments, groups=groups)
    sizes = _mean_sizes(counts.support)
    imagined = _imagined_counts(sizes, is_reject=np.zeros(n_classes, dtype=bool), silent_share=0.0)
    losses = Losses.of(segments.probabilities, segments.labels, groups=groups)
    imagined_losses = _imagined_losses(segments.probabilities, sizes)
    bins = [RankingBins.of(scores, segments.labels == k) for k, scores in enumerate(segments.probabilities.T)]
    parts = []
    for draws in bootstrap.draws(segments.labels, n_classes=n_classes, n_imagined=n_imagined):
        draws = draws.swapped() if swapped else draws
        areas = _areas(bins, sizes, groups, draws)
        parts.append(all_scores(counts.weighted(draws.recordings).plus(imagined.weighted(draws.imagined)),
                                losses.weighted(draws.recordings).plus(imagined_losses.weighted(draws.imagined)),
                                areas))
    return _joined(parts)


def resampled_answers(segments: ScoredSegments, rules: DecisionRules, bootstrap: Bootstrap) -> tuple[Scores, Scores]:
    """Compute the scores of ``metrics.answered_scores`` on each resample, as ``resampled_scores`` does."""
    bootstrap.check(segments)
    is_reject = reject_classes(segments, rules)
    counts = answer_counts(segments, rules, groups=bootstrap.groups)
    imagined = _imagined_counts(_mean_sizes(counts.support), is_reject=is_reject, silent_share=_SILENT_SHARE)
    return _joined([counts.weighted(draws.recordings).plus(imagined.weighted(draws.imagined))
                    .selective(is_reject=is_reject)
                    for draws in bootstrap.draws(segments.labels, n_classes=len(segments.class_names),
                                                 n_imagined=IMAGINED_RECORDINGS)])


def _mean_sizes(support: np.ndarray) -> np.ndarray:
    """Return the mean number of segments of a class in a recording that has some, float64 ``(n_classes,)``."""
    return support.sum(axis=1) / np.maximum((support > 0).sum(axis=1), 1)


def _imagined_counts(sizes: np.ndarray, *, is_reject: np.ndarray, silent_share: float) -> Counts:
    """Count what is said of the recordings of ``Draws.imagined``.

    The reject class is rightly recognised by silence, and missed by an answer; it is never said.
    """
    n_classes, own = len(sizes), np.diag(sizes)
    right = own * ~is_reject
    said = sizes * np.where(is_reject, 1.0, 1 - silent_share) * ~is_reject[:, None]  # of a class, taken for each class
    predicted = np.eye(n_classes)[:, :, None] * said
    answered = np.eye(n_classes)[:, None, :] * said
    support = np.eye(n_classes)[:, None, :] * np.tile(sizes, (n_classes, 1))
    return Counts(*(np.hstack([of_right, of_missed.reshape(n_classes, -1)]) for of_right, of_missed in (
        (right, np.zeros_like(support)), (own, support), (right, predicted), (right, answered))))


def _imagined_losses(probabilities: np.ndarray, sizes: np.ndarray) -> Losses:
    """Give a row of a right recording the mean loss of the test set's rows were their first guess the truth.

    A row of a missed one has that of the second guess.
    """
    everything, n_rows, n_classes = Groups.one(len(probabilities)), len(probabilities), len(sizes)
    guesses = [probabilities.argmax(axis=1)]
    if n_classes > 1:
        without_first = probabilities.copy()
        without_first[np.arange(n_rows), guesses[0]] = -1
        guesses.append(without_first.argmax(axis=1))
    right, missed = (Losses.of(probabilities, guess, groups=everything).weighted(weights[None] / n_rows)
                     for guess, weights in ((guesses[0], sizes), (guesses[-1], np.tile(sizes, n_classes))))
    return right.beside(missed)


def _areas(bins: Sequence[RankingBins], sizes: np.ndarray, groups: Groups, draws: Draws) -> np.ndarray:
    """Return ROC AUC and average precision of each class on each resample, ``(n_classes, 2, n_resamples)``."""
    recordings, areas = draws.recordings.astype(np.float32), []
    for k, of_class in enumerate(bins):  # one after the other: the tally of a class is large
        tally = of_class.tally(groups) @ recordings
        ranking = of_class.ranking(tally + _imagined_bins(of_class, k, sizes) @ draws.imagined)
        areas.append((ranking.roc_auc(), ranking.average_precision()))
    return np.array(areas)


def _imagined_bins(bins: RankingBins, k: int, sizes: np.ndarray) -> np.ndarray:
    """Return where the recordings of ``Draws.imagined`` stand in the ranking of class ``k``.

    A right one of the class stands on top, one of another at the bottom. A missed one of the class is spread like the
    others, one of another like the class where that is what it is taken for, else like the others.

    Returns
    -------
    np.ndarray, float64, shape (2 * n_bins, n_classes + n_classes ** 2)
        Positives, then negatives.
    """
    n_classes, others = len(sizes), np.arange(len(sizes)) != k
    positives, negatives = bins.spread()
    right, missed = np.zeros((2, bins.n_bins, n_classes)), np.zeros((2, bins.n_bins, n_classes, n_classes))
    right[0, 0, k], right[1, -1, others] = sizes[k], sizes[others]
    missed[0, :, :, k] = (sizes[k] * negatives)[:, None]
    missed[1, :, :, others] = (sizes[others, None] * negatives)[:, :, None]
    missed[1, :, k, others] = sizes[others, None] * positives
    return np.concatenate([right, missed.reshape(2, bins.n_bins, -1)], axis=2).reshape(2 * bins.n_bins, -1)


def _joined(parts: Sequence[tuple[Scores, Scores]]) -> tuple[Scores, Scores]:
    overall, by_class = ({name: np.concatenate([part[name] for part in side], axis=-1) for name in side[0]}
                         for side in zip(*parts))
    return overall, by_class
