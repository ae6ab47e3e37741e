"""Where a model fails: its most confident mistakes, the classes it confuses, labels that look wrong.

The class a model tells is the most probable one, whatever the thresholds in its file make of it.
"""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from models.errors import ConfigError
from utils.metrics import ScoredSegments

MOST_LISTED = 12
_NO_CLASS = -1


@dataclass(frozen=True, kw_only=True)
class Place:
    """A segment of the test set.

    Parameters
    ----------
    row : int
        Its row in the manifest, from 0.
    recording_id, source_path : str
        As the manifest tells them; the second may be empty.
    start_seconds, end_seconds : float or None
        Where it lies in the recording; None where the manifest does not tell.
    """

    row: int
    recording_id: str
    source_path: str
    start_seconds: float | None
    end_seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Mistake(Place):
    """A segment that was taken for another class.

    Parameters
    ----------
    true_class, told_class : str
        What the label says, what the model says.
    confidence, true_probability : float, range 0..1
        What the model gives to either: to ``told_class`` and to ``true_class``.
    """

    true_class: str
    told_class: str
    confidence: float
    true_probability: float


@dataclass(frozen=True, kw_only=True)
class ConfusedPair:
    """How often one class was taken for one other.

    Parameters
    ----------
    true_class, told_class : str
        What the labels say, what the model says.
    n_segments, n_recordings : int
        Segments that were taken so, and the recordings they are from.
    share : float, range 0..1
        Of the recordings that hold the true class, those in which that happened.
    """

    true_class: str
    told_class: str
    n_segments: int
    n_recordings: int
    share: float


@dataclass(frozen=True, kw_only=True)
class LabelError(Place):
    """A label that may be wrong: the place is the segment of the file that speaks most for another class.

    Parameters
    ----------
    label, suggested_class : str
        The class that the file is labelled with, and the one the model is confident of.
    label_probability, suggested_probability : float, range 0..1
        Means over the file's segments of that label.
    n_segments : int
        How many these are.
    """

    label: str
    suggested_class: str
    label_probability: float
    suggested_probability: float
    n_segments: int


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What a model gets wrong on a test set.

    Parameters
    ----------
    n_segments, n_recordings : int
        Of the test set.
    n_wrong_segments, n_wrong_recordings : int
        Segments taken for another class, and the recordings that hold such a segment.
    mistakes : sequence of Mistake
        The most confident first, at most one of a recording.
    n_confused_pairs : int
        Pairs of a true and a told class that occur.
    confused_pairs : sequence of ConfusedPair
        Those with the most recordings first.
    n_label_errors : int
        Labels that look wrong.
    label_errors : sequence of LabelError
        Those with the largest margin between the two probabilities first.
    """

    n_segments: int
    n_recordings: int
    n_wrong_segments: int
    n_wrong_recordings: int
    mistakes: Sequence[Mistake]
    n_confused_pairs: int
    confused_pairs: Sequence[ConfusedPair]
    n_label_errors: int
    label_errors: Sequence[LabelError]

    def to_dict(self) -> dict:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


def find_failures(segments: ScoredSegments, rows: pd.DataFrame, *, learnt: Collection[str] = (),
                  most: int = MOST_LISTED) -> Failures:
    """Find what a model gets wrong, the worst first.

    Parameters
    ----------
    segments : ScoredSegments
        Its probabilities and the truth.
    rows : pandas.DataFrame
        The manifest's row of each segment, in the same order, with ``recording_id``, ``source_path``,
        ``start_seconds`` and ``end_seconds``; its index is the row's number in the manifest.
    learnt : collection of str
        Ids of the recordings that the model learnt from. Their labels are not examined: it would repeat them.
    most : int
        Entries of each list.

    Returns
    -------
    Failures
        Mistakes, confused pairs and likely label errors.

    Raises
    ------
    ConfigError
        If there is not one row for each segment.
    """
    if len(rows) != len(segments.labels):
        raise ConfigError(f"rows must have one entry per segment ({len(segments.labels)}), got {len(rows)}: give the"
                          f" manifest's rows that were scored")
    wrong = segments.probabilities.argmax(axis=1) != segments.labels
    mistakes = _mistakes(segments, rows, np.flatnonzero(wrong))
    pairs = _confused_pairs(segments, rows)
    new = ~rows["recording_id"].isin(list(learnt)).to_numpy()
    errors = likely_label_errors(ScoredSegments(segments.probabilities[new], segments.labels[new],
                                                segments.class_names), rows[new]) if new.any() else []
    return Failures(n_segments=len(rows), n_recordings=rows["recording_id"].nunique(),
                    n_wrong_segments=int(wrong.sum()), n_wrong_recordings=len(mistakes), mistakes=mistakes[:most],
                    n_confused_pairs=len(pairs), confused_pairs=pairs[:most], n_label_errors=len(errors),
                    label_errors=errors[:most])


def likely_label_errors(segments: ScoredSegments, rows: pd.DataFrame) -> list[LabelError]:
    """Find labels that look wrong, by confident learning.

    A label is given to a file, so probabilities are averaged over the file's segments of that label first. What is
    listed is the off-diagonal of the confident joint, in which a file counts for the most probable of the classes that
    reach the mean probability their own files have (Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating
    Uncertainty in Dataset Labels", Journal of Artificial Intelligence Research 70, section 3.1), ranked by the margin
    between that class and the label (section 3.2). Left out are files whose label is more probable all the same.

    Parameters
    ----------
    segments, rows
        As ``find_failures`` takes them. The model must not have learnt from these recordings: it would repeat their
        labels, wrong ones too.

    Returns
    -------
    list of LabelError
        The largest margin first. What to listen to, no verdict: a rare or faint call looks the same to a model as a
        wrong label, and an error that many labels of its training share is not found.
    """
    files, numbers = _labelled_files(segments, rows)
    labels = files["label"].to_numpy()
    n_segments = np.bincount(numbers)
    sums = np.stack([np.bincount(numbers, weights=column) for column in segments.probabilities.T], axis=1)
    means = sums / n_segments[:, None]
    confident = confident_classes(means, labels)
    each = np.arange(len(labels))
    margins = means[each, confident] - means[each, labels]
    suspects = np.flatnonzero((confident != _NO_CLASS) & (margins > 0))
    names, errors = segments.class_names, []
    for file in suspects[np.argsort(-margins[suspects], kind="stable")]:
        own, suggested = int(labels[file]), int(confident[file])
        of_file = np.flatnonzero(numbers == file)
        clearest = of_file[segments.probabilities[of_file, suggested].argmax()]
        errors.append(LabelError(label=names[own], suggested_class=names[suggested],
                                 label_probability=float(means[file, own]),
                                 suggested_probability=float(means[file, suggested]),
                                 n_segments=int(n_segments[file]), **_place(rows, clearest)))
    return errors


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class each example counts for in the confident joint (Northcutt et al. 2021, equations 1 and 2).

    Parameters
    ----------
    probabilities : np.ndarray, float64, shape (n, n_classes), range 0..1
        Of a model that has not learnt from these examples.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        Given labels; some may be wrong.

    Returns
    -------
    np.ndarray, int, shape (n,)
        The most probable of the classes whose probability reaches its threshold, which is the mean it has over the
        examples labelled so; -1 where none does. A class without examples has no threshold and is never reached.
    """
    n_classes = probabilities.shape[1]
    thresholds = np.full(n_classes, np.inf)
    for k in range(n_classes):
        if (labels == k).any():
            thresholds[k] = probabilities[labels == k, k].mean()
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), _NO_CLASS)


def _labelled_files(segments: ScoredSegments, rows: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """Return each pair of file and label, and the number of the pair that each segment belongs to."""
    # an older manifest does not tell its files, and then a recording is one
    table = pd.DataFrame({"recording_id": rows["recording_id"].to_numpy(),
                          "source_path": rows["source_path"].to_numpy(), "label": segments.labels})
    numbers = table.groupby(list(table), sort=False).ngroup().to_numpy()
    return table.drop_duplicates(ignore_index=True), numbers


def _mistakes(segments: ScoredSegments, rows: pd.DataFrame, wrong: np.ndarray) -> list[Mistake]:
    """Return the most confident mistake of each recording that has one."""
    names, told = segments.class_names, segments.probabilities.argmax(axis=1)
    confidence = segments.probabilities.max(axis=1)
    ranked = wrong[np.argsort(-confidence[wrong], kind="stable")]
    first = ~rows["recording_id"].iloc[ranked].duplicated().to_numpy()
    return [Mistake(true_class=names[segments.labels[place]], told_class=names[told[place]],
                    confidence=float(confidence[place]),
                    true_probability=float(segments.probabilities[place, segments.labels[place]]),
                    **_place(rows, place)) for place in ranked[first]]


def _confused_pairs(segments: ScoredSegments, rows: pd.DataFrame) -> list[ConfusedPair]:
    table = pd.DataFrame({"true": segments.labels, "told": segments.probabilities.argmax(axis=1),
                          "recording": rows["recording_id"].to_numpy()})
    n_of_class = table.groupby("true")["recording"].nunique()
    counts = table[table["true"] != table["told"]].groupby(["true", "told"])["recording"].agg(["size", "nunique"])
    counts = counts.reset_index().sort_values(["nunique", "size"], ascending=False, kind="stable")
    names = segments.class_names
    return [ConfusedPair(true_class=names[true], told_class=names[told], n_segments=size, n_recordings=n_recordings,
                         share=n_recordings / int(n_of_class[true]))
            for true, told, size, n_recordings in counts.to_numpy().tolist()]


def _place(rows: pd.DataFrame, position: int) -> dict:
    row = rows.iloc[position]
    return {"row": int(rows.index[position]), "recording_id": str(row["recording_id"]),
            "source_path": str(row["source_path"]), "start_seconds": _seconds(row["start_seconds"]),
            "end_seconds": _seconds(row["end_seconds"])}


def _seconds(value: object) -> float | None:
    """Return a manifest's number of seconds; None where it is none."""
    number = pd.to_numeric(value, errors="coerce")
    return float(number) if np.isfinite(number) and number >= 0 else None
