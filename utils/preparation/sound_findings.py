"""What is wrong with the sound of recordings, read from the table of their facts."""

from collections.abc import Callable, Iterator

import pandas as pd

from utils.preparation.findings import USABLE, Finding, Severity, counted, listed, one_line

_CLIPPED_SHARE = 0.001  # a millisecond in every second: heard as crackling
_DC_OFFSET = 0.01  # of full scale: -40 dBFS, louder than many recordings
_ANTIPHASE = -0.9  # the mean of two such channels has lost at least 13 dB
_HEADER_SECONDS = 0.25  # encoders of MP3 and AAC add up to 0.1 s of their own at both ends
_EMPTY_SHARE = 0.55  # of half the rate: a recording brought from half the rate holds 0.5, and filters are not steep
_NOT_NUMBERS = "not numbers"  # how the reader tells of NaN and infinity


def sound_findings(files: pd.DataFrame) -> list[Finding]:
    """Return what is wrong with the sound of recordings.

    Parameters
    ----------
    files : pandas.DataFrame
        From ``findings.tidy_files``.

    Returns
    -------
    list of Finding
        ``unusable``, ``silent``, ``nan``, ``damaged``, ``clipped``, ``dc_offset``, ``antiphase``, ``header_length``,
        ``mixed_sample_rates``, ``empty_upper_band``; in this order.
    """
    usable = files[files["status"].isin(USABLE)]
    checks: tuple[Callable[[pd.DataFrame], Iterator[Finding]], ...] = (
        _damaged, _clipped, _dc_offset, _antiphase, _header_length, _mixed_sample_rates, _empty_upper_band)
    return [*_unusable(files), *(finding for check in checks for finding in check(usable))]


def _unusable(files: pd.DataFrame) -> Iterator[Finding]:
    lost = files[~files["status"].isin(USABLE)]
    nan = (lost["status"] == "corrupt") & lost["reason"].str.contains(_NOT_NUMBERS, regex=False)
    silent = lost["status"] == "silent"
    for status, rows in lost[~nan & ~silent].groupby("status"):
        yield _of(rows, "unusable", "error",
                  f"{counted(len(rows), 'recording')} that cannot be used ({status}), such as {_reason(rows)}")
    yield from _if_any(lost[silent], "silent", "error", lambda rows: (
        f"digital silence in {counted(len(rows), 'recording')}, such as {_first(rows)}: check the recorder's"
        f" microphone, and leave such recordings out"))
    yield from _if_any(lost[nan], "nan", "error", lambda rows: (
        f"samples that are not numbers (NaN or infinity) in {counted(len(rows), 'recording')}, such as {_first(rows)}:"
        f" copy from the recorder or convert again"))


def _damaged(files: pd.DataFrame) -> Iterator[Finding]:
    rows = files[(files["status"] == "ok") & (files["reason"] != "")]
    yield from _if_any(rows, "damaged", "warning", lambda rows: (
        f"a broken end in {counted(len(rows), 'recording')}, such as {_reason(rows)}"))


def _clipped(files: pd.DataFrame) -> Iterator[Finding]:
    rows = _worst(files[files["clipped_share"] > _CLIPPED_SHARE], "clipped_share", ascending=False)
    yield from _if_any(rows, "clipped", "warning", lambda rows: (
        f"overdriven sound in {counted(len(rows), 'recording')} (more than {_CLIPPED_SHARE:.1%} of samples clipped),"
        f" the worst {_first(rows)} with {rows['clipped_share'].iloc[0]:.1%}: leave the worst out and lower the"
        f" recorder's gain"))


def _dc_offset(files: pd.DataFrame) -> Iterator[Finding]:
    size = files["dc_offset"].abs()
    rows = _worst(files.assign(size=size)[size > _DC_OFFSET], "size", ascending=False)
    yield from _if_any(rows, "dc_offset", "note", lambda rows: (
        f"a mean beyond {_DC_OFFSET:.0%} of full scale (DC offset) in {counted(len(rows), 'recording')}, the"
        f" worst {_first(rows)} with {rows['dc_offset'].iloc[0]:+.1%}: harmless above --f_min, but have the recorder"
        f" looked at"))


def _antiphase(files: pd.DataFrame) -> Iterator[Finding]:
    rows = _worst(files[files["channel_correlation"] < _ANTIPHASE], "channel_correlation", ascending=True)
    yield from _if_any(rows, "antiphase", "warning", lambda rows: (
        f"channels of opposite sign in {counted(len(rows), 'recording')}, the worst {_first(rows)} with a"
        f" correlation of {rows['channel_correlation'].iloc[0]:.2f}: mixing them down cancels the sound, so keep one"
        f" channel or turn one over"))


def _header_length(files: pd.DataFrame) -> Iterator[Finding]:
    error = files["declared_seconds"] - files["duration_seconds"]
    rows = _worst(files.assign(error=error, size=error.abs())[error.abs() > _HEADER_SECONDS], "size", ascending=False)
    yield from _if_any(rows, "header_length", "warning", lambda rows: (
        f"a wrong length in the header of {counted(len(rows), 'recording')}, the worst {_first(rows)}:"
        f" {rows['declared_seconds'].iloc[0]:.1f} s promised, {rows['duration_seconds'].iloc[0]:.1f} s found; copy from"
        f" the recorder again, and check labels near the end"))


def _mixed_sample_rates(files: pd.DataFrame) -> Iterator[Finding]:
    rates = files["sample_rate"].dropna().value_counts()
    if len(rates) > 1:
        told = listed(f"{rate:.0f} Hz ({number:,})" for rate, number in sorted(rates.items(), key=_most_first))
        one_of_each = files.dropna(subset="sample_rate").drop_duplicates("sample_rate")
        yield _of(one_of_each, "mixed_sample_rates", "note", (
            f"{len(rates)} sample rates: {told}; all are brought to --sample_rate, but a low one leaves"
            f" the upper band empty: set --f_max to what all of them hold if rates differ between classes"),
            value=float(len(rates)))


def _most_first(rate_and_count: tuple) -> tuple:
    return -rate_and_count[1], rate_and_count[0]


def _empty_upper_band(files: pd.DataFrame) -> Iterator[Finding]:
    filled = files["bandwidth_hertz"] / (files["sample_rate"] / 2)
    for rate, rows in files.assign(filled=filled)[filled < _EMPTY_SHARE].groupby("sample_rate"):
        rows = _worst(rows, "filled", ascending=True)
        n_all = int((files["sample_rate"] == rate).sum())
        yield _of(rows, "empty_upper_band", "note", (
            f"nothing above {_EMPTY_SHARE * rate / 2000:.1f} kHz in {len(rows):,} of {counted(n_all, 'recording')} at"
            f" {rate:.0f} Hz, the barest {_first(rows)} ({rows['bandwidth_hertz'].iloc[0] / 1000:.1f} kHz): upsampled,"
            f" compressed or filtered, so set --f_max below that if only some classes are"), value=len(rows) / n_all)


def _worst(rows: pd.DataFrame, column: str, *, ascending: bool) -> pd.DataFrame:
    return rows.sort_values(column, ascending=ascending, kind="stable")


def _if_any(rows: pd.DataFrame, code: str, severity: Severity,
            message: Callable[[pd.DataFrame], str]) -> Iterator[Finding]:
    if len(rows):
        yield _of(rows, code, severity, message(rows))


def _of(rows: pd.DataFrame, code: str, severity: Severity, message: str, *, value: float | None = None) -> Finding:
    return Finding(code=code, severity=severity, message=message, paths=tuple(rows["path"]),
                   value=float(len(rows)) if value is None else value)


def _first(rows: pd.DataFrame) -> str:
    return one_line(rows["path"].iloc[0])


def _reason(rows: pd.DataFrame) -> str:
    return one_line(rows["reason"].iloc[0] or rows["path"].iloc[0])
