"""Thresholds that keep a promise: how sure a model must be of a class so that what it reports is mostly right."""

from collections.abc import Sequence

import numpy as np

NEVER = 1.0  # for a class that cannot keep the promise: reached only by a probability that rounds to 1
# What the calibrated probabilities themselves say of the precision counts as that many recordings. In a simulation with
# 100 to 1 000 recordings it halves the classes that are never reported, at no cost in precision.
PRIOR_RECORDINGS = 20
# One-sided 80 % bound. A bound and no bare estimate, because the smallest of many thresholds is the luckiest one too:
# by the estimate, half of the classes fall short on new recordings.
BOUND_DEVIATIONS = 0.8416


def thresholds_for_precision(probabilities: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str],
                             target_precision: float, recording_ids: Sequence[str] | np.ndarray) -> dict[str, float]:
    """Find for each class the smallest threshold at which its precision is high enough, as far as can be told.

    The windows whose top class it is, and whose probability reaches the threshold, are those that will be reported.
    Their precision is the share that is right, shrunk towards their mean probability; as trials count the recordings
    among them and ``PRIOR_RECORDINGS``. It is high enough where its lower bound (Wilson 1927; for the manner, Geifman
    and El-Yaniv 2017, algorithm 1) reaches the target.

    Parameters
    ----------
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        Calibrated on other rows than these; see ``calibration.cross_fitted_probabilities``.
    labels : np.ndarray, int, shape (n,)
        True class of each row.
    class_names : sequence of str, length n_classes
        Name of each column.
    target_precision : float, range 0..1
        Share of the reported windows that must be right.
    recording_ids : sequence of str, length n
        Recording of each row.

    Returns
    -------
    dict of str to float
        Threshold of each class, 0..1, a probability that occurred; ``NEVER`` where none is enough.
    """
    top, recordings = probabilities.argmax(axis=1), np.asarray(recording_ids)
    found = {}
    for k, name in enumerate(class_names):
        rows = np.flatnonzero(top == k)
        rows = rows[np.argsort(-probabilities[rows, k], kind="stable")]
        found[name] = _smallest_threshold(probabilities[rows, k], labels[rows] == k, recordings[rows],
                                          target_precision)
    return found


def _smallest_threshold(scores: np.ndarray, right: np.ndarray, recordings: np.ndarray, target: float) -> float:
    """Return the smallest of ``scores``, which fall, whose windows and those above it are precise enough."""
    n_windows = np.arange(1, len(scores) + 1)
    begins_recording = np.zeros(len(scores), dtype=int)
    begins_recording[np.unique(recordings, return_index=True)[1]] = 1
    n_recordings = np.cumsum(begins_recording)
    n_trials = n_recordings + PRIOR_RECORDINGS
    precision = (np.cumsum(right) * n_recordings + np.cumsum(scores) * PRIOR_RECORDINGS) / (n_windows * n_trials)
    last_of_ties = np.diff(scores, append=-np.inf) < 0
    enough = np.flatnonzero(last_of_ties & (_lower_bound(precision, n_trials) >= target))
    return float(scores[enough[-1]]) if len(enough) else NEVER


def _lower_bound(share: np.ndarray, n_trials: np.ndarray) -> np.ndarray:
    """Return Wilson's lower bound of a probability of which ``share`` was seen in ``n_trials``."""
    squared = BOUND_DEVIATIONS ** 2
    spread = BOUND_DEVIATIONS * np.sqrt(share * (1 - share) / n_trials + squared / (4 * n_trials ** 2))
    return (share + squared / (2 * n_trials) - spread) / (1 + squared / n_trials)
