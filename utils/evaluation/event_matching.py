"""Which detection is which annotation, and how long two sets of events last together: pure functions of spans.

A span is a row ``(start, end)`` of int64 milliseconds, its end above its start, so that no sum is rounded.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_ROUNDING = 1e-9  # of a share: 0.55 is no binary fraction, and 55 of 100 ms are enough for it
_TIE = 1e-7  # a closer pair decides between equal confidences alone: these have six decimals


@dataclass(frozen=True, eq=False)
class EventPairs:
    """Every pair of a detection and an annotation that share some time.

    Parameters
    ----------
    rows, columns : np.ndarray, int64, shape (n_pairs,)
        Of the detections and of the annotations.
    shared : np.ndarray, int64, shape (n_pairs,), ms
        How long both last.
    shorter, union : np.ndarray, int64, shape (n_pairs,), ms
        How long the shorter of both lasts, and how long either.
    """

    rows: np.ndarray
    columns: np.ndarray
    shared: np.ndarray
    shorter: np.ndarray
    union: np.ndarray

    @classmethod
    def of(cls, detections: np.ndarray, annotations: np.ndarray) -> "EventPairs":
        """Find the pairs of spans, int64 ``(n, 2)`` and ``(m, 2)`` ms, in any order; they may overlap."""
        order = np.argsort(annotations[:, 0], kind="stable")
        starts, ends = annotations[order].T
        # ends do not ascend, but the latest end up to here does
        first = np.searchsorted(np.maximum.accumulate(ends), detections[:, 0], side="right")
        n_near = np.maximum(np.searchsorted(starts, detections[:, 1], side="left") - first, 0)
        rows = np.repeat(np.arange(len(detections)), n_near)
        columns = order[np.arange(len(rows)) - np.repeat(np.cumsum(n_near) - n_near - first, n_near)]
        (begin, end), (true_begin, true_end) = detections[rows].T, annotations[columns].T
        shared = np.minimum(end, true_end) - np.maximum(begin, true_begin)
        lengths, true_lengths = end - begin, true_end - true_begin
        real = shared > 0
        return cls(*(values[real] for values in (rows, columns, shared, np.minimum(lengths, true_lengths),
                                                 lengths + true_lengths - shared)))


def match_events(pairs: EventPairs, confidences: np.ndarray, *, least: float, of_union: bool) -> np.ndarray:
    """Give as many detections as possible an annotation of their own.

    Among all such matchings it is the one whose detections are the most confident, so that above every confidence
    there are as many as a matching of the detections above it alone would have: one matching serves every threshold.
    (The sets of detections that can be matched at once are the independent sets of a transversal matroid, for which
    the heaviest set is the greedy one: Edmonds 1971, Mathematical Programming 1:127-136.)

    Parameters
    ----------
    pairs : EventPairs
        Of one class in one recording.
    confidences : np.ndarray, float64, shape (n_detections,), range 0..1
        Of the detections.
    least : float, range 0..1, 0 excluded
        Share of the time that a pair must have in common.
    of_union : bool
        True: of the time that either lasts (intersection over union). False: of the shorter of both.

    Returns
    -------
    np.ndarray, int64, shape (n_detections,)
        Row of its annotation for each detection; -1 for one that has none.
    """
    partners = np.full(len(confidences), -1)
    enough = pairs.shared >= (least - _ROUNDING) * (pairs.union if of_union else pairs.shorter)
    rows, columns = pairs.rows[enough], pairs.columns[enough]
    closeness = (pairs.shared / pairs.union)[enough]
    # most have nothing to do with each other
    alone = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1)
    partners[rows[alone]] = columns[alone]
    weights = 1 + confidences[rows] + _TIE * closeness / max(1, len(confidences))
    rows, columns, weights = rows[~alone], columns[~alone], weights[~alone]
    for part in _components(rows, columns):
        own_rows, row_places = np.unique(rows[part], return_inverse=True)
        own_columns, column_places = np.unique(columns[part], return_inverse=True)
        table = np.zeros((len(own_rows), len(own_columns)))
        table[row_places, column_places] = weights[part]
        chosen = linear_sum_assignment(table, maximize=True)
        real = table[chosen] > 0
        partners[own_rows[chosen[0][real]]] = own_columns[chosen[1][real]]
    return partners


def _components(rows: np.ndarray, columns: np.ndarray) -> list[np.ndarray]:
    """Return the pairs that compete with each other: a night is many small problems."""
    if not len(rows):
        return []
    n_rows = rows.max() + 1
    n_nodes = n_rows + columns.max() + 1
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns + n_rows)), shape=(n_nodes, n_nodes))
    component = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(component, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(component[order])) + 1)


def cells_of(spans: np.ndarray, *, cell_ms: int) -> np.ndarray:
    """Return spans widened to whole cells of a grid: a cell counts where any of it is marked."""
    return np.column_stack([spans[:, 0] // cell_ms, -(-spans[:, 1] // cell_ms)]) * cell_ms


def apart(spans: np.ndarray, labels: np.ndarray, *, latest: int) -> np.ndarray:
    """Return spans so moved that those of different labels never meet.

    Parameters
    ----------
    spans : np.ndarray, int64, shape (n, 2), ms
        Of any labels.
    labels : np.ndarray, int64, shape (n,)
        From 0.
    latest : int
        The latest end of all spans, ms.
    """
    return spans + labels[:, None] * (latest + 1)


def union_lengths(spans: np.ndarray, labels: np.ndarray, *, n_labels: int) -> np.ndarray:
    """Return how many milliseconds lie in at least one of the spans of each label: int64 ``(n_labels,)``."""
    if not len(spans):
        return np.zeros(n_labels, dtype=np.int64)
    moved = apart(spans, labels, latest=spans.max())
    order = np.argsort(moved[:, 0], kind="stable")
    starts, ends = moved[order].T
    reached = np.concatenate([starts[:1], np.maximum.accumulate(ends)[:-1]])
    added = np.maximum(ends - np.maximum(starts, reached), 0)
    return np.bincount(labels[order], weights=added, minlength=n_labels).astype(np.int64)
