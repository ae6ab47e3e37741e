"""Tables that strangers wrote, read as text."""

import os
from pathlib import Path

import pandas as pd

from models.errors import ManifestError


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """Read a CSV or TAB table as text columns; ManifestError names what is wrong with it."""
    table = Path(path)
    try:
        with open(table, encoding="utf-8-sig") as stream:
            separator = "\t" if "\t" in stream.readline() else ","
        return pd.read_csv(table, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ManifestError(f"{table} does not exist") from error
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ManifestError(f"{table} is not a readable table: {error}") from error
