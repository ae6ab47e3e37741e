"""What there is to see and hear of a model's failures: the segments themselves."""

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from models.errors import NightScanError
from utils.evaluation.failures import Failures, Place
from utils.examples import Example, read_example
from utils.storage.names import text_to_name

MOST_SHOWN_SECONDS = 10.0  # of a segment; of a longer one the loudest are shown


@dataclass(frozen=True, kw_only=True)
class FailureExample:
    """A segment that can be seen and heard, or why not.

    Parameters
    ----------
    row : int
        The segment's row in the manifest, as ``failures.Place`` has it.
    example : Example or None
        Picture and sound.
    reason : str
        Why there are none; empty where there are.
    """

    row: int
    example: Example | None = None
    reason: str = ""


def failure_examples(failures: Failures, facts: pd.DataFrame, folder: Path | None, *, most: int
                     ) -> list[FailureExample]:
    """Read the segments that a model fails on from the recordings themselves.

    Parameters
    ----------
    failures : Failures
        Of a model on the manifest.
    facts : pandas.DataFrame
        Of ``facts_of_rows``, a row for each of the manifest.
    folder : Path or None
        Of the manifest's ``source_path``; None where it is not known.
    most : int
        Of the mistakes, and of the likely label errors.

    Returns
    -------
    list of FailureExample
        One for each segment; what cannot be found or read is told in words and never raised.
    """
    places = {place.row: place for place in (*islice(failures.mistakes, most), *islice(failures.label_errors, most))}
    rates = facts["sample_rate"] if "sample_rate" in facts else pd.Series(math.nan, index=facts.index)
    return [_example(place, folder, sample_rate=float(rates.loc[row])) for row, place in places.items()]


def _example(place: Place, folder: Path | None, *, sample_rate: float) -> FailureExample:
    if folder is None or not place.source_path:
        what = "its file" if folder is not None else "where its recordings are"
        return FailureExample(row=place.row, reason=f"the manifest does not tell {what}")
    try:
        if not folder.joinpath(text_to_name(place.source_path)).is_file():
            return FailureExample(row=place.row, reason="the recording is not there: give its folder with --audio_dir")
        example = read_example(folder, place.source_path, sample_rate=sample_rate,
                               start_seconds=place.start_seconds or 0.0,
                               end_seconds=math.inf if place.end_seconds is None else place.end_seconds,
                               most_seconds=MOST_SHOWN_SECONDS)
    except (NightScanError, OSError) as error:
        return FailureExample(row=place.row, reason=str(error))
    return FailureExample(row=place.row, example=example)
