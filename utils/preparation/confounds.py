"""How well a class can be told from what is not its sound: length, level, rate, place.

A network learns whatever tells its classes apart. Where one class was recorded by one recorder, or cut to one length,
scores on the same data are too good and the field is a surprise (Geirhos et al. 2020, "Shortcut learning in deep neural
networks", Nature Machine Intelligence 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score
from sklearn.naive_bayes import CategoricalNB

from utils.preparation.findings import Finding, one_line, tidy_files, tidy_labels
from utils.storage.splits import grouped_folds

COMBINED = "all of these"
COLUMNS = ("property", "balanced_accuracy", "chance", "null_limit", "predictive", "example", "advice")
_N_FOLDS = 5
_N_SHUFFLES = 30  # enough for a mean and a spread
_NULL_SPREADS = 3.0  # standard deviations above the mean: eight properties seldom cry wolf
_LEAST_GAIN = 0.1  # of the way from chance to certainty; less is of no use to a network
_FEWEST_OF_CLASS = _N_FOLDS  # groups: one for each fold
_MOST_CLASSES = 30  # the largest
_MOST_ROWS = 4000  # of all classes: a balanced accuracy is then known to about 0.01
_N_BINS = 16
_CLASS_FOLDERS = 0.95  # of the recordings in their folder's usual class: then it is what they were labelled by
_MOST_THRESHOLDS = 200


@dataclass(frozen=True)
class _Property:
    """What is not the sound of an animal; ``wording`` says that a recording lies below, or has, a value."""

    column: str
    title: str
    wording: str
    missing: str
    advice: str
    numeric: bool = False


_SPREAD = "record every class there and elsewhere, or keep it on one side of a split with --group_by"
_PROPERTIES = (
    _Property("duration_seconds", "duration", "last less than {} s", "are of unknown length",
              "cut all classes to one length, or lower --segment_duration to what all of them have", numeric=True),
    _Property("rms_dbfs", "level", "are quieter than {} dBFS", "are of unknown level",
              "keep the volume augmentation on, or add recordings of the same level", numeric=True),
    _Property("bandwidth_kilohertz", "bandwidth", "hold nothing above {} kHz", "are of unknown bandwidth",
              "lower --f_max to what all classes hold", numeric=True),
    _Property("sample_rate", "sample rate", "have a rate of {} Hz", "are of unknown rate",
              "lower --f_max to half the lowest rate"),
    _Property("channels", "channels", "have {} channel(s)", "have an unknown number of channels",
              "mix all recordings down alike"),
    _Property("format", "file format", "are {} files", "have no extension",
              "compress all classes alike, or lower --f_max to what compression leaves"),
    _Property("folder", "folder", "lie in {}", "lie in no folder", _SPREAD),
    _Property("site", "site", "come from site {}", "have no site", _SPREAD),
    _Property("recorder_id", "recorder", "come from recorder {}", "name no recorder", _SPREAD),
)


def measure_confounds(files: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Measure how well the class of a recording is told by each property that is not its sound.

    One recording stands for each group and class. A naive Bayes classifier over the histogram of a property is fitted
    and scored in folds that keep a group whole, with all classes equally likely beforehand; then again with shuffled
    classes, for what chance gives on so many recordings. Large sets are thinned, always in the same way.

    Parameters
    ----------
    files, labels : pandas.DataFrame
        As ``audit`` takes them.

    Returns
    -------
    pandas.DataFrame
        The most telling property first, then ``all of these`` together. Columns ``property``; ``balanced_accuracy``
        and ``chance``, 0..1; ``null_limit``, what shuffled classes stay below (their mean and three standard
        deviations); ``predictive``, whether it lies above that and a tenth of the way from chance to 1; ``example``,
        the shares of two classes that differ most; ``advice``. A property that does not vary has no row; no rows at all
        where fewer than two classes have five groups.
    """
    tidy = tidy_files(files)
    rows = _rows(tidy, tidy_labels(labels, tidy))
    if rows["class_name"].nunique() < 2:
        return pd.DataFrame(columns=list(COLUMNS))
    chosen = _thinned(rows)
    properties = [p for p in _PROPERTIES if chosen[p.column].nunique(dropna=False) > 1]
    scores = _Scores(chosen)
    codes = [_codes(chosen[p.column], numeric=p.numeric) for p in properties]
    measured = [{"property": p.title, **scores.of(code[:, None]), "example": _example(rows, p), "advice": p.advice}
                for p, code in zip(properties, codes, strict=True)]
    measured.sort(key=lambda row: -row["balanced_accuracy"])
    if len(measured) > 1:
        measured.append({"property": COMBINED, **scores.of(np.stack(codes, axis=1)), "example": "", "advice": ""})
    return pd.DataFrame(measured, columns=list(COLUMNS))


def confound_findings(confounds: pd.DataFrame) -> list[Finding]:
    """Return a finding for each property of ``measure_confounds`` that tells the class, the worst first."""
    return [Finding(code="confound", severity="warning", value=float(row["balanced_accuracy"]), message=(
                f"the {row['property']} alone tells the class with a balanced accuracy of"
                f" {row['balanced_accuracy']:.0%} (chance: {row['chance']:.0%}): {row['example']}; a network may learn"
                f" this instead of the sound, so {row['advice']}"))
            for row in confounds.to_dict("records") if row["predictive"] and row["property"] != COMBINED]


def _rows(files: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Return one row per recording and class, of the classes that have enough groups."""
    rows = labels.drop_duplicates(["path", "class_name"])[["path", "class_name", "group"]].merge(files, on="path")
    n_groups = rows.groupby("class_name")["group"].nunique().sort_values(ascending=False, kind="stable")
    rows = rows[rows["class_name"].isin(n_groups[n_groups >= _FEWEST_OF_CLASS].index[:_MOST_CLASSES])].copy()
    paths = rows["path"].map(PurePosixPath)
    rows["bandwidth_kilohertz"] = rows["bandwidth_hertz"] / 1000
    rows["format"] = [path.suffix.lower().lstrip(".") for path in paths]
    rows["folder"] = _folders(paths.to_list(), rows["class_name"])
    for name in ("sample_rate", "channels"):
        rows[name] = [f"{value:.0f}" if value == value else "" for value in rows[name]]
    return rows


def _folders(paths: Sequence[PurePosixPath], class_names: pd.Series) -> list[str]:
    """Return the folder of each path, below the class folder where the first folder is what gives the class."""
    first = [path.parts[0] if len(path.parts) > 1 else "" for path in paths]
    counts = pd.crosstab(np.array(first, dtype=object), class_names.to_numpy())
    gives_class = counts.max(axis=1).sum() >= _CLASS_FOLDERS * len(paths)
    return ["/".join(path.parts[int(gives_class):-1]) for path in paths]


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one recording per group and class, and as many of each class as the bound allows."""
    single = rows.drop_duplicates(["group", "class_name"])
    order = np.random.default_rng(0).permutation(len(single))
    most = _MOST_ROWS // single["class_name"].nunique()
    return single.iloc[order].groupby("class_name").head(most).sort_index()


class _Scores:
    """Scores properties on the same recordings, folds and shuffles."""

    def __init__(self, rows: pd.DataFrame) -> None:
        names, labels = np.unique(rows["class_name"].to_numpy(dtype=str), return_inverse=True)
        self._folds = grouped_folds(labels, rows["group"].to_numpy(dtype=str), n_folds=_N_FOLDS, random_state=0)
        self._labels, self._chance = labels, 1.0 / len(names)
        rng = np.random.default_rng(1)
        self._shuffled = [rng.permutation(labels) for _ in range(_N_SHUFFLES)]

    def of(self, codes: np.ndarray) -> dict:
        """Return the columns of numbers for int codes ``(n_rows, n_properties)``."""
        accuracy = self._accuracy(codes, self._labels)
        null = np.array([self._accuracy(codes, labels) for labels in self._shuffled])
        limit = float(null.mean() + _NULL_SPREADS * null.std(ddof=1))
        least = self._chance + _LEAST_GAIN * (1 - self._chance)
        return {"balanced_accuracy": accuracy, "chance": self._chance, "null_limit": min(limit, 1.0),
                "predictive": accuracy > max(limit, least)}

    def _accuracy(self, codes: np.ndarray, labels: np.ndarray) -> float:
        predicted = np.empty_like(labels)
        for held_out in self._folds:
            train = np.ones(len(labels), dtype=bool)
            train[held_out] = False
            model = CategoricalNB(fit_prior=False, min_categories=codes.max(axis=0) + 1)
            predicted[held_out] = model.fit(codes[train], labels[train]).predict(codes[held_out])
        return float(balanced_accuracy_score(labels, predicted))


def _codes(values: pd.Series, *, numeric: bool) -> np.ndarray:
    """Return the bin of each value; 0 is missing, the last of a text is all that are rare."""
    if numeric:
        edges = np.unique(np.nanquantile(values, np.linspace(0, 1, _N_BINS + 1)[1:-1]))
        return np.where(values.isna(), 0, 1 + np.digitize(values, edges))
    known = values[values != ""].value_counts()
    common = sorted(known.index, key=lambda name: (-known[name], name))[:_N_BINS]
    places = {"": 0, **{name: place for place, name in enumerate(common, start=1)}}
    return values.map(lambda value: places.get(value, len(places))).to_numpy()


def _example(rows: pd.DataFrame, of: _Property) -> str:
    """Return in words where the shares of two classes differ most."""
    shares = _shares_below(rows, of.column) if of.numeric else _shares_with(rows, of.column)
    apart = (shares.max() - shares.min()).to_numpy()
    column = shares.columns[int(apart.argmax())]
    most, least = shares[column].idxmax(), shares[column].idxmin()
    told = of.missing if column == "" else of.wording.format(f"{column:g}" if of.numeric else one_line(column))
    return (f"{shares.loc[most, column]:.0%} of {one_line(most)} and {shares.loc[least, column]:.0%} of"
            f" {one_line(least)} {told}")


def _shares_below(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return by class the share of recordings below each round threshold; one that is unknown lies below none."""
    known = rows[column].dropna()
    candidates = known.quantile(np.linspace(0, 1, _MOST_THRESHOLDS)) if len(known) > _MOST_THRESHOLDS else known
    thresholds = np.unique([float(f"{value:.2g}") for value in candidates])
    by_class = {name: np.searchsorted(np.sort(of_class.dropna()), thresholds) / len(of_class)
                for name, of_class in rows.groupby("class_name")[column]}
    return pd.DataFrame.from_dict(by_class, orient="index", columns=thresholds)


def _shares_with(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    return pd.crosstab(rows["class_name"], rows[column], normalize="index")
