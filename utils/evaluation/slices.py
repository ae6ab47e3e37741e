"""How scores differ with what is known of a recording: its rate, length, source, recorder, loudness and hour.

Classes are not spread evenly over such bins, so a bin is compared with recordings of the same classes elsewhere.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from models.errors import ConfigError
from utils.evaluation.facts import PROPERTIES, Bins, put_into_bins
from utils.evaluation.intervals import wilson_interval
from utils.metrics import ScoredSegments, classification_scores, confusion_matrix

_MOST_PERMUTATIONS, _FEWEST_PERMUTATIONS = 4999, 1999  # these can still tell at 5 % after correction for 90 bins
_PERMUTED_VALUES = 10_000_000  # of all permutations of a property: half a second
_VALUES_AT_ONCE = 2_000_000  # 16 MB
_ROUNDING = 1e-9  # sums of the same numbers in another order


@dataclass(frozen=True, kw_only=True)
class SliceScore:
    """How good a model is on a bin.

    Parameters
    ----------
    accuracy : float, range 0..1
        Mean over the recordings of the share of their segments that are right: each recording counts the same.
    interval : (low, high)
        Wilson interval of ``accuracy``, with as many trials as there are recordings.
    macro_f1 : float or None, range 0..1
        Of the segments, over the classes that occur in the bin.
    """

    accuracy: float
    interval: tuple[float, float]
    macro_f1: float | None


@dataclass(frozen=True, kw_only=True)
class Slice:
    """One bin of a property.

    Parameters
    ----------
    name : str
        The bin, with its unit; ``facts.OTHER`` is what has no bin of its own, ``facts.UNKNOWN`` what is not told.
    n_recordings, n_segments, n_classes : int
        What it holds.
    scores : mapping of str to SliceScore
        By model.
    """

    name: str
    n_recordings: int
    n_segments: int
    n_classes: int
    scores: Mapping[str, SliceScore]


@dataclass(frozen=True, kw_only=True)
class WorseSlice:
    """A bin on which a model is significantly worse than on recordings of the same classes elsewhere.

    Parameters
    ----------
    model, slice_name : str
        Which model, and which bin.
    n_recordings : int
        Of the bin whose classes occur elsewhere too.
    accuracy, accuracy_elsewhere : float, range 0..1
        Of these recordings, and of recordings elsewhere in the same mix of classes.
    p : float, range 0..1
        One-sided, corrected for all bins of all properties (Holm 1979).
    """

    model: str
    slice_name: str
    n_recordings: int
    accuracy: float
    accuracy_elsewhere: float
    p: float


@dataclass(frozen=True, kw_only=True)
class PropertySlices:
    """The bins of one property.

    Parameters
    ----------
    column, title : str
        Its column in ``facts_of_rows``, and what a reader calls it.
    slices : sequence of Slice
        In order of the numbers, or the largest first.
    worse : sequence of WorseSlice
        For each model the most significant of the bins it is worse on, if there is one.
    """

    column: str
    title: str
    slices: Sequence[Slice]
    worse: Sequence[WorseSlice]

    def sentences(self) -> list[str]:
        """Return one sentence for each model that is worse on a bin."""
        return [f"{self.title} {found.slice_name}: {found.model} reaches an accuracy of {found.accuracy:.2f} on the"
                f" {found.n_recordings} recordings that can be compared, and of {found.accuracy_elsewhere:.2f} on"
                f" recordings of the same classes elsewhere (p = {found.p:.2g}, corrected for all bins)."
                for found in self.worse]

    def to_dict(self) -> dict:
        """Return plain JSON types."""
        return dataclasses.asdict(self)


def slice_scores(segments_of_models: Mapping[str, ScoredSegments], recording_ids: Sequence[str] | np.ndarray,
                 facts: pd.DataFrame, *, confidence: float, seed: int) -> list[PropertySlices]:
    """Score models on the bins of each property, and tell the bins they are worse on.

    Whether a model is worse on a bin is told by permuting recordings of the same class between bins, 1,999 to 4,999
    times. That a bin holds the harder classes does not make it worse, and neither does it where no recording of its
    classes lies elsewhere.

    Parameters
    ----------
    segments_of_models : mapping of str to ScoredSegments
        By name of the model; the same segments in the same order.
    recording_ids : sequence of str, length n
        Recording of each segment.
    facts : pandas.DataFrame, n rows
        Of ``facts_of_rows``, those of the segments; a property without a column is left out.
    confidence : float, range 0..1
        Of intervals and of what is called significant.
    seed : int
        Of the permutations.

    Returns
    -------
    list of PropertySlices
        Properties with at least two bins; bins with at least five recordings, and at most eight beside other and
        unknown.

    Raises
    ------
    ConfigError
        If the lengths differ.
    """
    recordings = np.asarray(recording_ids)
    for segments in segments_of_models.values():
        if not len(segments.labels) == len(recordings) == len(facts):
            raise ConfigError(f"recording_ids and facts must have one entry per segment ({len(segments.labels)}), got"
                              f" {len(recordings)} and {len(facts)}")
    every = [put_into_bins(known, facts[known.column], recordings) for known in PROPERTIES if known.column in facts]
    every = [bins for bins in every if len(bins.names) > 1]
    units = {name: [_Units.of(segments, recordings, bins.of_segment) for bins in every]
             for name, segments in segments_of_models.items()}
    worse = [found for name in units for found in _worse(name, units[name], every, confidence=confidence, seed=seed)]
    return [PropertySlices(
        column=bins.property.column, title=bins.property.title,
        slices=[_slice(bins, place, recordings, segments_of_models,
                       {name: units[name][number] for name in units}, confidence)
                for place in range(len(bins.names))],
        worse=[found for column, found in worse if column == bins.property.column])
        for number, bins in enumerate(every)]


@dataclass(frozen=True, eq=False)
class _Units:
    """What is permuted, a recording in a bin: its bin, its most frequent class, the share of its segments told right.

    Each is an array ``(n_units,)``.
    """

    bins: np.ndarray
    classes: np.ndarray
    right: np.ndarray

    @classmethod
    def of(cls, segments: ScoredSegments, recordings: np.ndarray, bins: np.ndarray) -> "_Units":
        table = pd.DataFrame({"bin": bins, "recording": recordings, "label": segments.labels,
                              "right": segments.probabilities.argmax(axis=1) == segments.labels})
        grouped = table.groupby(["bin", "recording"])
        labels = table.groupby(["bin", "recording", "label"]).size().unstack(fill_value=0)
        right = grouped["right"].mean()
        return cls(right.index.get_level_values("bin").to_numpy(), labels.columns.to_numpy()[
            labels.to_numpy().argmax(axis=1)], right.to_numpy(dtype=float))


def _slice(bins: Bins, place: int, recordings: np.ndarray, segments_of_models: Mapping[str, ScoredSegments],
           units: Mapping[str, _Units], confidence: float) -> Slice:
    chosen, scores, quantile = bins.of_segment == place, {}, float(stats.norm.ppf((1 + confidence) / 2))
    n_recordings = len(np.unique(recordings[chosen]))
    for name, segments in segments_of_models.items():
        labels = segments.labels[chosen]
        confusion = confusion_matrix(labels, segments.probabilities[chosen].argmax(axis=1),
                                     n_classes=len(segments.class_names))
        accuracy = float(units[name].right[units[name].bins == place].mean())
        scores[name] = SliceScore(accuracy=accuracy, macro_f1=classification_scores(confusion)["macro_f1"],
                                  interval=wilson_interval(accuracy, n_recordings, quantile=quantile))
    return Slice(name=bins.names[place], n_recordings=n_recordings, n_segments=int(chosen.sum()),
                 n_classes=len(np.unique(labels)), scores=scores)


# Which bins are worse


def _worse(model: str, units: Sequence[_Units], every: Sequence[Bins], *, confidence: float, seed: int
           ) -> list[tuple[str, WorseSlice]]:
    """Return column and bin of the properties that have a bin on which the model is worse."""
    rng, p_of_bins = np.random.default_rng(seed), []
    for of_property, bins in zip(units, every):
        p_of_bins.append(_p_values(of_property, len(bins.names), rng))
    adjusted = iter(holm(np.concatenate(p_of_bins)) if p_of_bins else ())
    found = []
    for of_property, bins in zip(units, every):
        p, place = min((float(next(adjusted)), place) for place in range(len(bins.names)))
        if p < 1 - confidence:
            here, elsewhere, n_recordings = _same_classes(of_property, place)
            found.append((bins.property.column, WorseSlice(
                model=model, slice_name=bins.names[place], n_recordings=n_recordings, accuracy=here,
                accuracy_elsewhere=elsewhere, p=p)))
    return found


def _p_values(units: _Units, n_bins: int, rng: np.random.Generator) -> np.ndarray:
    """Return for each bin how often chance makes it as bad as it is, float64 ``(n_bins,)``: one-sided, at most 1."""
    members = (units.bins[:, None] == np.arange(n_bins)).astype(float)
    of_class = [np.flatnonzero(units.classes == k) for k in np.unique(units.classes)]
    observed, n_as_bad = units.right @ members, np.zeros(n_bins)
    n_permutations = min(max(_FEWEST_PERMUTATIONS, _PERMUTED_VALUES // len(units.right)), _MOST_PERMUTATIONS)
    at_once = max(1, _VALUES_AT_ONCE // len(units.right))
    for start in range(0, n_permutations, at_once):
        shuffled = np.tile(units.right, (min(at_once, n_permutations - start), 1))
        for places in of_class:
            shuffled[:, places] = rng.permuted(shuffled[:, places], axis=1)
        n_as_bad += (shuffled @ members <= observed + _ROUNDING).sum(axis=0)
    return (1 + n_as_bad) / (1 + n_permutations)


def holm(p_values: np.ndarray) -> np.ndarray:
    """Correct p-values for their number (Holm 1979, "A simple sequentially rejective multiple test procedure").

    Parameters
    ----------
    p_values : np.ndarray, float64, shape (n,), range 0..1
        As tests give them.

    Returns
    -------
    np.ndarray, float64, shape (n,), range 0..1
        What to compare with the level, in the same order.
    """
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)))
    return adjusted


def _same_classes(units: _Units, place: int) -> tuple[float, float, int]:
    """Return the accuracy of a bin, that elsewhere in the same mix of classes, and of how many recordings."""
    inside = units.bins == place
    elsewhere = pd.Series(units.right[~inside]).groupby(units.classes[~inside]).mean()
    compared = inside & np.isin(units.classes, elsewhere.index)
    return (float(units.right[compared].mean()), float(elsewhere.loc[units.classes[compared]].mean()),
            int(compared.sum()))
