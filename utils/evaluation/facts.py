"""What a data set knows of the recordings behind its rows, and bins of it: rate, length, source, loudness, hour."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from utils.storage.manifest import Manifest
from utils.storage.tables import read_table

OTHER, UNKNOWN = "other", "unknown"
_FEWEST_RECORDINGS = 5  # of a bin: fewer say nothing
_MOST_BINS = 8  # of a property, without those that are other or unknown
_HOURS_OF_BIN = 3
_SOURCE_SEPARATOR = "__"
_NUMBERS = ("sample_rate", "duration_seconds", "rms_dbfs")
_TEXTS = ("recorder_id", "site")


def facts_of_rows(manifest: Manifest) -> pd.DataFrame:
    """Return what the data set knows of the recording of each row.

    Parameters
    ----------
    manifest : Manifest
        ``files.csv`` beside it is read where it is there, and joined by ``source_path``; older ones have fewer columns.

    Returns
    -------
    pandas.DataFrame
        One row per row of the manifest, with its index. ``source`` (the folder below that of the class, or else the
        file name up to ``__``); and where ``files.csv`` has them ``sample_rate`` (Hz), ``duration_seconds``,
        ``rms_dbfs``, ``recorder_id``, ``site``, and ``hour`` (0..24, at which the segment begins, by the recorder's
        clock). Numbers are float, NaN where unknown; texts are empty there.

    Raises
    ------
    ManifestError
        If ``files.csv`` is no table.
    """
    rows = manifest.rows
    facts = pd.DataFrame({"source": [_source(path, name) for path, name
                                     in zip(rows["source_path"], rows["class_name"], strict=True)]}, index=rows.index)
    path = manifest.path.parent / "files.csv"
    files = read_table(path) if path.is_file() else pd.DataFrame()
    if "path" not in files:
        return facts
    told = files.drop_duplicates("path").set_index("path").reindex(rows["source_path"]).set_axis(rows.index)
    for name in _NUMBERS:
        if name in told:
            facts[name] = pd.to_numeric(told[name], errors="coerce").astype(float).replace([-np.inf, np.inf], np.nan)
    for name in _TEXTS:
        if name in told:
            facts[name] = told[name].fillna("")
    if "recorded_at" in told:
        facts["hour"] = _hours(told["recorded_at"], rows["start_seconds"])
    return facts


def _source(source_path: str, class_name: str) -> str:
    *folders, name = source_path.split("/")
    if folders and folders[0] == class_name:
        folders = folders[1:]
    return folders[0] if folders else name.partition(_SOURCE_SEPARATOR)[0] if _SOURCE_SEPARATOR in name else ""


def _hours(recorded_at: pd.Series, start_seconds: pd.Series) -> pd.Series:
    # the offset from UTC is cut off: what tells day from night is the clock, and most recorders' is local
    clock = pd.to_datetime(recorded_at.str[:19], format="%Y-%m-%dT%H:%M:%S", errors="coerce")
    seconds = pd.to_numeric(start_seconds, errors="coerce").fillna(0.0)
    return ((clock - clock.dt.normalize()).dt.total_seconds() + seconds) / 3600 % 24


@dataclass(frozen=True)
class Property:
    """What may be known of a recording.

    Parameters
    ----------
    column, title : str
        Its column in ``facts_of_rows``, and what a reader calls it.
    name_of : callable or None
        Gives the bin of a number; None for texts, each of which is a bin.
    """

    column: str
    title: str
    name_of: Callable[[float], str] | None = None


def _between(edges: Sequence[int], unit: str) -> Callable[[float], str]:
    names = (f"below {edges[0]} {unit}", *(f"{low} to {high} {unit}" for low, high in zip(edges, edges[1:])),
             f"{edges[-1]} {unit} and above")
    return lambda value: names[int(np.searchsorted(edges, value, side="right"))]


def _hour_name(hour: float) -> str:
    first = int(hour // _HOURS_OF_BIN) * _HOURS_OF_BIN
    return f"{first:02d}:00 to {first + _HOURS_OF_BIN:02d}:00"


PROPERTIES = (
    Property("sample_rate", "Sample rate", lambda rate: f"{rate / 1000:g} kHz"),
    Property("duration_seconds", "Duration", _between((3, 10, 30, 60, 300, 3600), "s")),
    Property("rms_dbfs", "Loudness", _between((-60, -50, -40, -30, -20), "dBFS")),
    Property("hour", "Time of day by the recorder's clock", _hour_name),
    Property("source", "Source"),
    Property("recorder_id", "Recorder"),
    Property("site", "Site"),
)


@dataclass(frozen=True, eq=False)
class Bins:
    """The bins of a property.

    Parameters
    ----------
    property : Property
        What the bins are of.
    names : sequence of str
        In order of the numbers, or the largest first; then other and unknown.
    of_segment : np.ndarray, int, shape (n,)
        Bin of each segment; -1 where it is in none.
    """

    property: Property
    names: Sequence[str]
    of_segment: np.ndarray


def put_into_bins(known: Property, values: pd.Series, recording_ids: np.ndarray) -> Bins:
    """Put segments into bins.

    Parameters
    ----------
    known : Property
        What they are told apart by.
    values : pandas.Series, n entries
        Its column of ``facts_of_rows``.
    recording_ids : np.ndarray, str, shape (n,)
        Recording of each segment.

    Returns
    -------
    Bins
        At most eight with at least five recordings each; what is in none of them is ``OTHER``, what is not known
        ``UNKNOWN``, where these have as many.
    """
    if known.name_of is None:
        names = values.where(values != "", UNKNOWN).to_numpy(dtype=object)
    else:
        names = np.array([UNKNOWN if math.isnan(value) else known.name_of(value) for value in values], dtype=object)
    ranks = np.zeros(len(names)) if known.name_of is None else values.to_numpy(dtype=float)
    table = pd.DataFrame({"name": names, "recording": recording_ids, "rank": ranks})
    found = table.groupby("name").agg(n=("recording", "nunique"), rank=("rank", "min")).sort_values(
        "n", ascending=False, kind="stable")
    own = found[(found["n"] >= _FEWEST_RECORDINGS) & (found.index != UNKNOWN)][:_MOST_BINS].sort_values(
        "rank", kind="stable")
    table.loc[~table["name"].isin([*own.index, UNKNOWN]), "name"] = OTHER
    n_of = table.groupby("name")["recording"].nunique()
    kept = [*own.index, *(name for name in (OTHER, UNKNOWN)
                          if name not in own.index and n_of.get(name, 0) >= _FEWEST_RECORDINGS)]
    return Bins(known, kept, pd.Index(kept).get_indexer(pd.Index(table["name"])))
