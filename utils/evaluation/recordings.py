"""From segments to recordings: which recording a segment is of, what a recording is, and what is said of it."""

from collections.abc import Sequence

import numpy as np

from utils.metrics import ScoredSegments
from utils.tallies import Groups


def recording_groups(recording_ids: Sequence[str] | np.ndarray) -> tuple[np.ndarray, Groups]:
    """Return the different recordings in sorted order, and which of them each segment was cut from."""
    recordings, index = np.unique(np.asarray(recording_ids), return_inverse=True)
    return recordings, Groups(index, len(recordings))


def recording_labels(labels: np.ndarray, *, n_classes: int, groups: Groups) -> np.ndarray:
    """Return the label of each recording, int ``(n_recordings,)``.

    It is the label of most of its segments; of labels that are equally frequent, the first in the order of classes.
    """
    return groups.table(labels, n_classes).argmax(axis=0)


def recording_scores(segments: ScoredSegments, recording_ids: Sequence[str] | np.ndarray) -> ScoredSegments:
    """Return one row per recording, sorted by its id, so that every score can be told of recordings too.

    Parameters
    ----------
    segments : ScoredSegments
        A model's probabilities, and the truth.
    recording_ids : sequence of str, length n
        Recording each segment was cut from.

    Returns
    -------
    ScoredSegments
        Probabilities are the mean over a recording's segments, the label is that of ``recording_labels``. The
        intervals go by ``Bootstrap.of_recordings``.
    """
    groups = recording_groups(recording_ids)[1]
    sums = np.stack([groups.sums(scores) for scores in segments.probabilities.T], axis=1)
    labels = recording_labels(segments.labels, n_classes=len(segments.class_names), groups=groups)
    return ScoredSegments(sums / np.bincount(groups.index)[:, None], labels, segments.class_names)
