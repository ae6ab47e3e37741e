import codecs

import pandas as pd
import pytest

from models.errors import ManifestError
from utils.storage.tables import read_table, write_table


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_tables_are_read_as_text_with_comma_or_tab(tmp_path):
    commas = read_table(written(tmp_path / "comma.csv", "a,b\n007,NA\n"))
    tabs = read_table(written(tmp_path / "tab.txt", "a\tb\n007\tx,y\n"))
    assert commas.to_dict("records") == [{"a": "007", "b": "NA"}]
    assert tabs.to_dict("records") == [{"a": "007", "b": "x,y"}]


@pytest.mark.parametrize("content", [
    codecs.BOM_UTF16_LE + "a,b\r\nKäuzchen,梟\r\n".encode("utf-16-le"),  # PowerShell's usual
    codecs.BOM_UTF16_BE + "a,b\r\nKäuzchen,梟\r\n".encode("utf-16-be"),
    codecs.BOM_UTF8 + "a,b\nKäuzchen,梟\n".encode(),  # Excel's
    "a,b\nKäuzchen,梟\n".encode(),
], ids=["utf-16-le", "utf-16-be", "utf-8 with mark", "utf-8"])
def test_a_table_is_read_in_the_encoding_that_it_says(tmp_path, content):
    assert read_table(written(tmp_path / "table.csv", content)).to_dict("records") == [{"a": "Käuzchen", "b": "梟"}]


@pytest.mark.parametrize("content", [b"", b"a,b\ncaf\xe9,1\n", b"a,b\n1,2,3,4\n5\n6,7,8,9,0\n"])
def test_what_is_no_table_is_refused_by_name(tmp_path, content):
    with pytest.raises(ManifestError, match="table.csv is not a readable table"):
        read_table(written(tmp_path / "table.csv", content))


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ManifestError, match="nowhere.csv does not exist"):
        read_table(tmp_path / "nowhere.csv")


def test_a_table_comes_back_as_it_was_written(tmp_path):
    table = pd.DataFrame({"path": ["a,b.wav", "ü \"x\".wav"], "label": ["007", ""]})
    write_table(tmp_path / "folder" / "table.csv", table)
    assert read_table(tmp_path / "folder" / "table.csv").equals(table)
    assert b"\r" not in (tmp_path / "folder" / "table.csv").read_bytes()
