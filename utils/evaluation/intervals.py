"""How sure a score is: bootstrap intervals over recordings."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from models.classes import DecisionRules
from models.errors import ConfigError
from utils.metrics import Interval, ScoredSegments, Scores, weighted_answers, weighted_scores

RESAMPLED_CELLS = 4_000_000  # rows x resamples held at once: 32 MB an array


@dataclass(frozen=True, kw_only=True, eq=False)
class Bootstrap:
    """The resamples of a test set; the same for every model that is scored with them.

    Whole recordings are resampled, because the segments of one recording are not independent.

    Parameters
    ----------
    recording_ids : sequence of str, length n
        Recording each segment was cut from.
    n_bootstrap : int
        Number of resamples.
    confidence : float, range 0..1
        Share of the resamples inside an interval.
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
        if self.n_bootstrap < 1:
            raise ConfigError(f"n_bootstrap must be at least 1, got {self.n_bootstrap}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must be in 0..1 (both excluded), got {self.confidence}: 95 % is 0.95")

    @property
    def n_segments(self) -> int:
        """Segments of the test set."""
        return len(self.recording_ids)

    @property
    def n_recordings(self) -> int:
        """Different recordings among them."""
        return len(self._recordings[0])

    @cached_property
    def _recordings(self) -> tuple[np.ndarray, np.ndarray]:
        return np.unique(np.asarray(self.recording_ids), return_inverse=True)

    def scores(self, segments: ScoredSegments, *,
               score: Callable[[ScoredSegments, np.ndarray], tuple[Scores, Scores]] = weighted_scores
               ) -> tuple[Scores, Scores]:
        """Score a model on each resample.

        Parameters
        ----------
        segments : ScoredSegments
            One row for each of ``recording_ids``.
        score : callable
            What is computed; like ``metrics.weighted_scores``.

        Returns
        -------
        overall, by_class : dict of str to np.ndarray, float64, shapes (n_bootstrap,) and (n_classes, n_bootstrap)
            As ``score`` gives them.

        Raises
        ------
        ConfigError
            If the lengths differ.
        """
        if self.n_segments != len(segments.labels):
            raise ConfigError(f"recording_ids must have one entry per row ({len(segments.labels)}), got"
                              f" {self.n_segments}")
        overall, by_class = zip(*(score(segments, weights) for weights in self._weights()))
        return _joined(overall), _joined(by_class)

    def interval(self, values: np.ndarray) -> Interval:
        """Return the percentile interval (Efron and Tibshirani 1993, section 13.3) of a score.

        Parameters
        ----------
        values : np.ndarray, float64, shape (n_bootstrap,)
            The score on each resample; NaN where undefined.

        Returns
        -------
        (low, high) or None
            None where no resample defines it, or a single recording cannot tell how recordings vary.
        """
        values = values[np.isfinite(values)]
        if not len(values) or self.n_recordings < 2:
            return None
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail]).tolist()
        return low, high

    def _weights(self) -> Iterator[np.ndarray]:
        """Yield how often each segment was drawn, float64 ``(n, some resamples)``."""
        rng, (recordings, index) = np.random.default_rng(self.seed), self._recordings
        per_part = max(1, RESAMPLED_CELLS // len(index))
        for start in range(0, self.n_bootstrap, per_part):
            size = min(per_part, self.n_bootstrap - start)
            draws = rng.multinomial(len(recordings), np.full(len(recordings), 1 / len(recordings)), size=size)
            yield np.ascontiguousarray(draws.T[index], dtype=np.float64)


def score_intervals(segments: ScoredSegments, bootstrap: Bootstrap) -> tuple[dict[str, Interval], list[dict]]:
    """Give each score of ``metrics.evaluate_segments`` an interval.

    Parameters
    ----------
    segments : ScoredSegments
        A model's probabilities, and the truth.
    bootstrap : Bootstrap
        The resamples.

    Returns
    -------
    overall : dict of str to (low, high) or None
        Of each scalar.
    by_class : list of dict
        Per class ``class_name``, and score name to (low, high) or None.
    """
    return _intervals(segments, bootstrap, *bootstrap.scores(segments))


def answered_intervals(segments: ScoredSegments, rules: DecisionRules, bootstrap: Bootstrap
                       ) -> tuple[dict[str, Interval], list[dict]]:
    """Give the scores of ``metrics.answered_scores`` intervals; of the classes all but the reject class."""
    overall, by_class = _intervals(segments, bootstrap,
                                   *bootstrap.scores(segments, score=partial(weighted_answers, rules=rules)))
    return overall, [row for row in by_class if row["class_name"] != rules.reject_class]


def _intervals(segments: ScoredSegments, bootstrap: Bootstrap, overall: Scores, by_class: Scores
               ) -> tuple[dict[str, Interval], list[dict]]:
    return ({name: bootstrap.interval(values) for name, values in overall.items()},
            [{"class_name": class_name, **{name: bootstrap.interval(values[k]) for name, values in by_class.items()}}
             for k, class_name in enumerate(segments.class_names)])


def _joined(parts: Sequence[Scores]) -> Scores:
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}
