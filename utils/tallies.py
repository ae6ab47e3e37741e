"""What is counted of each group of rows, and the scores that sums of the groups give.

Every score but the areas is a function of sums over rows. A tally holds these sums per group, the groups on the last
axis: all rows in one group give the score itself; one group a recording, multiplied by how often each recording was
drawn, gives the score of each resample. So a score and its interval cannot disagree on a definition, and a resample
costs a matrix product over recordings instead of a pass over rows. An undefined score is NaN.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from models.classes import NO_ANSWER

N_CALIBRATION_BINS = 15  # Guo et al. 2017, section 5
N_RANKING_BINS = 256
_DENSE_SHARE = 1 / 64  # rows a cell above which a dense product is the faster one

Scores = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each row belongs to.

    Parameters
    ----------
    index : np.ndarray, int, shape (n,), range 0..n_groups-1
        Group of each row.
    n_groups : int
        Number of groups.
    """

    index: np.ndarray
    n_groups: int

    @classmethod
    def one(cls, n_rows: int) -> "Groups":
        """Put all rows into one group."""
        return cls(np.zeros(n_rows, dtype=np.intp), 1)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sum of a value per row in each group, float64 ``(n_groups,)``."""
        return np.bincount(self.index, weights=values, minlength=self.n_groups)

    def table(self, kinds: np.ndarray, n_kinds: int, *, values: np.ndarray | None = None,
              rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return how often (or the sum of ``values``) each kind stands in each group, float64 ``(n_kinds, n_groups)``.

        ``rows`` chooses what is counted; ``kinds``, int in 0..n_kinds-1, and ``values`` have an entry per row.
        """
        cells = kinds[rows] * self.n_groups + self.index[rows]
        chosen = None if values is None else values[rows]
        table = np.bincount(cells, weights=chosen, minlength=n_kinds * self.n_groups)
        return table.reshape(n_kinds, self.n_groups).astype(np.float64)


# The answers: which class was said


@dataclass(frozen=True, eq=False)
class Counts:
    """How often each class was rightly said, occurred, was said, and occurred and was answered with any class.

    Each array is float64 ``(n_classes, n_groups)``.
    """

    hits: np.ndarray
    support: np.ndarray
    predicted: np.ndarray
    answered: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, answers: np.ndarray, *, n_classes: int, groups: Groups) -> "Counts":
        """Count rows.

        Parameters
        ----------
        labels : np.ndarray, int, shape (n,), range 0..n_classes-1
            Truth.
        answers : np.ndarray, int, shape (n,), range -1..n_classes-1
            What was said; -1 (``NO_ANSWER``) where nothing was.
        n_classes : int
            Number of classes.
        groups : Groups
            Of the rows.
        """
        answered = answers != NO_ANSWER
        return cls(groups.table(labels, n_classes, rows=answers == labels), groups.table(labels, n_classes),
                   groups.table(answers, n_classes, rows=answered), groups.table(labels, n_classes, rows=answered))

    @classmethod
    def of_confusion(cls, confusion: np.ndarray) -> "Counts":
        """Count what a confusion matrix, rows the truth, holds; one group."""
        confusion = np.asarray(confusion, dtype=np.float64)
        support = confusion.sum(axis=1)[:, None]
        return cls(confusion.diagonal()[:, None], support, confusion.sum(axis=0)[:, None], support)

    def weighted(self, weights: np.ndarray) -> "Counts":
        """Return the sums over groups, each as often as ``weights``, float64 ``(n_groups, n_resamples)``, says."""
        return Counts(self.hits @ weights, self.support @ weights, self.predicted @ weights, self.answered @ weights)

    def plus(self, other: "Counts") -> "Counts":
        """Return the sums of both tallies, group by group."""
        return Counts(self.hits + other.hits, self.support + other.support, self.predicted + other.predicted,
                      self.answered + other.answered)

    def ratios(self) -> Scores:
        """Return ``precision``, ``recall`` and ``f1`` of each class; 0 where nothing stands below the line."""
        return {"precision": ratio(self.hits, self.predicted, empty=0.0),
                "recall": ratio(self.hits, self.support, empty=0.0),
                "f1": ratio(2 * self.hits, self.support + self.predicted, empty=0.0)}

    def averages(self) -> Scores:
        """Return the scores of ``metrics.classification_scores``."""
        ratios, occurs, n_rows = self.ratios(), self.support > 0, self.support.sum(axis=0)
        accuracy = ratio(self.hits.sum(axis=0), n_rows, empty=np.nan)
        scores = {"accuracy": accuracy, "balanced_accuracy": mean_where(ratios["recall"], occurs)}
        for name, values in ratios.items():
            scores[f"macro_{name}"] = mean_where(values, occurs)
            scores[f"micro_{name}"] = accuracy
            scores[f"weighted_{name}"] = ratio((values * self.support).sum(axis=0), n_rows, empty=np.nan)
        return scores

    def of_occurring(self) -> Scores:
        """Return ``ratios``, NaN for a class that does not occur."""
        return {name: np.where(self.support > 0, values, np.nan) for name, values in self.ratios().items()}

    def selective(self, *, is_reject: np.ndarray) -> tuple[Scores, Scores]:
        """Return the scores of ``metrics.answered_scores``: over all, and of each class.

        ``is_reject``, bool ``(n_classes,)``, says which class stands for what is not known.
        """
        n_answered, n_unknown = self.predicted.sum(axis=0), self.support[is_reject].sum(axis=0)
        unanswered = n_unknown - self.answered[is_reject].sum(axis=0)
        return ({"share": ratio(n_answered, self.support.sum(axis=0), empty=np.nan),
                 "precision": ratio(self.hits.sum(axis=0), n_answered, empty=np.nan),
                 "unknown_rejected": ratio(unanswered, n_unknown, empty=np.nan)},
                {"precision": ratio(self.hits, self.predicted, empty=np.nan),
                 "recall": ratio(self.hits, self.support, empty=np.nan)})


# The probabilities: are they right as numbers?


@dataclass(frozen=True, eq=False)
class Losses:
    """Sums over rows: their number, log loss, squared error, each float64 ``(n_groups,)``, and right less confident.

    ``gaps``, float64 ``(n_bins, n_groups)``, is the last of them in each bin of the confidence.
    """

    n_rows: np.ndarray
    log_loss: np.ndarray
    squares: np.ndarray
    gaps: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, *, groups: Groups) -> "Losses":
        """Sum over rows of float64 ``(n, n_classes)`` probabilities and int ``(n,)`` labels."""
        of_truth = probabilities[np.arange(len(labels)), labels]
        # the sum of (p - 1{k = label})^2 over classes k, without the matrix of indicators
        squares = np.square(probabilities).sum(axis=1) + 1 - 2 * of_truth
        return cls(groups.sums(np.ones(len(labels))),
                   groups.sums(-np.log(np.maximum(of_truth, np.finfo(np.float64).eps))), groups.sums(squares),
                   calibration_gaps(probabilities, labels, n_bins=N_CALIBRATION_BINS, groups=groups))

    def weighted(self, weights: np.ndarray) -> "Losses":
        """Return the sums over groups, each as often as ``weights``, float64 ``(n_groups, n_resamples)``, says."""
        return Losses(self.n_rows @ weights, self.log_loss @ weights, self.squares @ weights, self.gaps @ weights)

    def plus(self, other: "Losses") -> "Losses":
        """Return the sums of both tallies, group by group."""
        return Losses(self.n_rows + other.n_rows, self.log_loss + other.log_loss, self.squares + other.squares,
                      self.gaps + other.gaps)

    def beside(self, other: "Losses") -> "Losses":
        """Return these groups followed by those of another tally."""
        return Losses(*(np.concatenate(pair, axis=-1) for pair in (
            (self.n_rows, other.n_rows), (self.log_loss, other.log_loss), (self.squares, other.squares),
            (self.gaps, other.gaps))))

    def scores(self) -> Scores:
        """Return ``log_loss``, ``brier_score`` and ``ece``."""
        return {"log_loss": self.log_loss / self.n_rows, "brier_score": self.squares / self.n_rows,
                "ece": np.abs(self.gaps).sum(axis=0) / self.n_rows}


def binned_confidence(probabilities: np.ndarray, labels: np.ndarray, n_bins: int
                      ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row its confidence, whether it is right, and its bin, open below and closed above."""
    confidence = probabilities.max(axis=1)
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    return confidence, probabilities.argmax(axis=1) == labels, bins


def calibration_gaps(probabilities: np.ndarray, labels: np.ndarray, *, n_bins: int, groups: Groups) -> np.ndarray:
    """Return the sum of right (1 or 0) less confidence in each bin and group, float64 ``(n_bins, n_groups)``."""
    confidence, correct, bins = binned_confidence(probabilities, labels, n_bins)
    return groups.table(bins, n_bins, values=correct - confidence)


# Every threshold: ranking one class against the rest


@dataclass(frozen=True, eq=False)
class Ranking:
    """How well a score ranks one class above the rest.

    Parameters
    ----------
    true_positives, false_positives : np.ndarray, float64, shape (n_distinct_scores, n_groups)
        Counts of the rows at or above each distinct score, highest first; equal scores share one row.
    """

    true_positives: np.ndarray
    false_positives: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, positives: np.ndarray) -> "Ranking":
        """Rank rows by their score, in one group.

        Parameters
        ----------
        scores : np.ndarray, float, shape (n,)
            Larger means more likely positive.
        positives : np.ndarray, bool, shape (n,)
            Truth.
        """
        order = np.argsort(-scores, kind="stable")
        last_of_ties = np.flatnonzero(np.diff(scores[order], append=-np.inf))
        true_positives = np.cumsum(positives[order], dtype=np.float64)[last_of_ties, None]
        return cls(true_positives, last_of_ties[:, None] + 1 - true_positives)

    def roc_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Trace the receiver operating characteristic.

        Returns
        -------
        false_positive_rate, true_positive_rate : np.ndarray, float64, shape (n_distinct_scores + 1, n_groups)
            0..1, from (0, 0) to (1, 1), both never falling; NaN where there are no negatives or no positives.
        """
        return (ratio(_from_zero(self.false_positives), self.false_positives[-1], empty=np.nan),
                ratio(_from_zero(self.true_positives), self.true_positives[-1], empty=np.nan))

    def precision_recall_curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Trace precision against recall.

        Returns
        -------
        recall, precision : np.ndarray, float64, shape (n_distinct_scores + 1, n_groups)
            0..1, from (0, 1), recall never falling; recall is NaN where there are no positives.
        """
        recall = ratio(_from_zero(self.true_positives), self.true_positives[-1], empty=np.nan)
        return recall, np.vstack([np.ones_like(recall[:1]), self._precision()])

    def roc_auc(self) -> np.ndarray:
        """Return the area under ``roc_curve``, float64 ``(n_groups,)``; a tie counts one half, undefined is NaN."""
        rises = np.diff(self.false_positives, axis=0, prepend=0)
        means = self.true_positives - np.diff(self.true_positives, axis=0, prepend=0) / 2
        return ratio((rises * means).sum(axis=0), self.true_positives[-1] * self.false_positives[-1], empty=np.nan)

    def average_precision(self) -> np.ndarray:
        """Return the sum of precision times the rise of recall, float64 ``(n_groups,)``; NaN without positives."""
        rises = np.diff(self.true_positives, axis=0, prepend=0)
        return ratio((rises * self._precision()).sum(axis=0), self.true_positives[-1], empty=np.nan)

    def _precision(self) -> np.ndarray:
        return ratio(self.true_positives, self.true_positives + self.false_positives, empty=0.0)


@dataclass(frozen=True, eq=False)
class RankingBins:
    """The rows of one class and of the rest in bins of its score, so that a resample needs no sorting.

    With at most ``N_RANKING_BINS`` different scores each has a bin of its own and nothing is lost. Otherwise half of
    the edges are quantiles of the positives and half of the negatives, so a bin holds at most about 2/256 of either,
    and rows within a bin count as ties: ``roc_auc`` then errs by at most half the sum over bins of positives times
    negatives, shares of 1, which is below 0.004 and in practice below 0.0001.

    Parameters
    ----------
    bins : np.ndarray, int16, shape (n,)
        Bin of each row, the highest scores in bin 0.
    positives : np.ndarray, bool, shape (n,)
        Truth.
    n_bins : int
        Number of bins.
    """

    bins: np.ndarray
    positives: np.ndarray
    n_bins: int

    @classmethod
    def of(cls, scores: np.ndarray, positives: np.ndarray) -> "RankingBins":
        """Put rows into bins; arguments as in ``Ranking.of``."""
        edges = np.unique(scores)
        if len(edges) > N_RANKING_BINS:
            shares = np.linspace(0, 1, N_RANKING_BINS // 2 + 1)[:-1]
            edges = np.unique(np.concatenate([np.quantile(scores[chosen], shares, method="lower")
                                              for chosen in (positives, ~positives) if chosen.any()]))
        from_below = np.searchsorted(edges, scores, side="right") - 1
        return cls((len(edges) - 1 - from_below).astype(np.int16), positives, len(edges))

    def tally(self, groups: Groups) -> np.ndarray | sparse.csr_array:
        """Return how many positives, then negatives, stand in each bin and group, float32.

        The shape is ``(2 * n_bins, n_groups)``; where most of it is 0 it is a sparse array.
        """
        kinds, shape = self.bins + np.where(self.positives, 0, self.n_bins), (2 * self.n_bins, groups.n_groups)
        if len(kinds) > _DENSE_SHARE * shape[0] * shape[1]:
            return groups.table(kinds, shape[0]).astype(np.float32)
        ones = np.ones(len(kinds), dtype=np.float32)
        return sparse.coo_array((ones, (kinds, groups.index)), shape=shape).tocsr()

    def spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Return which share of the positives, and of the negatives, stands in each bin, float64 ``(n_bins,)``."""
        return tuple(np.bincount(self.bins[chosen], minlength=self.n_bins) / max(chosen.sum(), 1)
                     for chosen in (self.positives, ~self.positives))

    def ranking(self, tally: np.ndarray) -> Ranking:
        """Rank the rows that a tally of ``(2 * n_bins, n_groups)`` counts."""
        cumulative = tally.reshape(2, self.n_bins, -1).cumsum(axis=1, dtype=np.float64)
        return Ranking(cumulative[0], cumulative[1])


def ratio(numerator: np.ndarray, denominator: np.ndarray, *, empty: float) -> np.ndarray:
    """Divide with broadcasting; ``empty`` where the denominator is 0."""
    out = np.full(np.broadcast_shapes(np.shape(numerator), np.shape(denominator)), empty)
    return np.divide(numerator, denominator, out=out, where=np.asarray(denominator) != 0)


def mean_where(values: np.ndarray, defined: np.ndarray) -> np.ndarray:
    """Return the mean over the first axis of the values that are defined; NaN where none is."""
    return ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0), empty=np.nan)


def _from_zero(counts: np.ndarray) -> np.ndarray:
    return np.vstack([np.zeros_like(counts[:1]), counts])
