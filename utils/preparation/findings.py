"""What the dataset doctor says, and the tables it reads."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pandas as pd

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # the worst first
USABLE = ("ok", "duplicate")  # a duplicate was decoded too, and left out only then
_MOST_PATHS = 20  # in JSON; the tables hold all of them
_MOST_NAMES = 3  # in a message
_NUMBERS = ("duration_seconds", "sample_rate", "channels", "declared_seconds", "peak_dbfs", "rms_dbfs", "dc_offset",
            "clipped_share", "channel_correlation", "bandwidth_hertz")
_TEXTS = ("path", "status", "reason", "content", "recorder_id", "site", "recorded_at")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was found in a data set.

    Parameters
    ----------
    code : str
        Its kind, such as ``duplicate_across``.
    severity : str
        ``error`` (the data contradict themselves or are lost), ``warning`` (scores or training will suffer) or
        ``note``.
    message : str
        One line: what, how many, an example, what to do.
    paths : tuple of str
        The recordings it is about, the worst first; copies of one sound stand side by side.
    value : float or None
        The number behind it, in the unit its message names.
    """

    code: str
    severity: Severity
    message: str
    paths: tuple[str, ...] = ()
    value: float | None = None

    def to_dict(self) -> dict:
        """Return plain JSON types; of many paths the first, and how many there are."""
        return {"code": self.code, "severity": self.severity, "message": self.message, "n_paths": len(self.paths),
                "paths": list(self.paths[:_MOST_PATHS]), "value": self.value}


def tidy_files(files: pd.DataFrame) -> pd.DataFrame:
    """Return a table of recordings whose numbers are float (NaN where unknown) and whose texts are never missing.

    Parameters
    ----------
    files : pandas.DataFrame
        One row per recording: ``path, status, reason, duration_seconds, sample_rate, channels, declared_seconds,
        peak_dbfs, rms_dbfs, dc_offset, clipped_share, channel_correlation, bandwidth_hertz, content, recorder_id, site,
        recorded_at``; a value may be NaN, None or "".

    Returns
    -------
    pandas.DataFrame
        Sorted by path.
    """
    tidy = files.copy()
    for name in _NUMBERS:
        tidy[name] = pd.to_numeric(tidy[name], errors="coerce").astype(float)
    for name in _TEXTS:
        tidy[name] = tidy[name].where(tidy[name].notna(), "").astype(str)
    return tidy.sort_values("path", ignore_index=True)


def tidy_labels(labels: pd.DataFrame, files: pd.DataFrame) -> pd.DataFrame:
    """Return the regions of the recordings that could be read, with an end each.

    Parameters
    ----------
    labels : pandas.DataFrame
        One row per region: ``path, class_name, start_seconds, end_seconds`` (NaN is the recording's end), ``group``.
    files : pandas.DataFrame
        From ``tidy_files``.

    Returns
    -------
    pandas.DataFrame
        Sorted by path, start and class, without repeated rows.
    """
    usable = files[files["status"].isin(USABLE)]
    tidy = labels[labels["path"].isin(usable["path"])].copy()
    for name in ("start_seconds", "end_seconds"):
        tidy[name] = pd.to_numeric(tidy[name], errors="coerce").astype(float)
    ends = tidy["path"].map(usable.set_index("path")["duration_seconds"])
    tidy["end_seconds"] = tidy["end_seconds"].fillna(ends)
    tidy["start_seconds"] = tidy["start_seconds"].fillna(0.0)
    tidy = tidy.astype({"path": str, "class_name": str, "group": str}).drop_duplicates()
    return tidy.sort_values(["path", "start_seconds", "class_name"], ignore_index=True)


def counted(number: int, word: str, plural: str = "") -> str:
    """Return a number with its word, in the plural where there are several."""
    return f"{number:,} {word if number == 1 else plural or f'{word}s'}"


def listed(names: Iterable[object]) -> str:
    """Return the first few names on one line, and how many more there are."""
    every = [one_line(str(name)) for name in names]
    more = len(every) - _MOST_NAMES
    return ", ".join(every[:_MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def one_line(text: str) -> str:
    """Return a stranger's text without line breaks and control characters, which a name may hold."""
    return "".join(character if character.isprintable() else " " for character in text)
