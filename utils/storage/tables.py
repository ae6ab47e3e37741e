"""Tables that strangers wrote, read as text."""

import io
import os
from pathlib import Path

import pandas as pd

from models.errors import ManifestError
from utils.storage.files import atomic_path, read_text


def read_table(path: str | os.PathLike) -> pd.DataFrame:
    """Read a CSV or TAB table as text columns; ManifestError names what is wrong with it."""
    table = Path(path)
    try:
        text = read_text(table)
        text.encode()  # a table is text: bytes that are none would only fail later
        if "\0" in text:
            raise ManifestError(f"{table} holds a NUL character, which ends a text for many programs: save it anew")
        separator = "\t" if "\t" in text.partition("\n")[0] else ","
        read = pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise ManifestError(f"{table} does not exist") from error
    except (OSError, UnicodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ManifestError(f"{table} is not a readable table: {error}") from error
    if not isinstance(read.index, pd.RangeIndex):  # pandas takes what exceeds the header for an index
        raise ManifestError(f"{table} has rows with more fields than its header has names: name every column")
    return read


def write_table(path: str | os.PathLike, table: pd.DataFrame) -> None:
    """Write a table as CSV in UTF-8 with Unix line ends, atomically."""
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")
