import codecs
import hashlib
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from models.errors import ConfigError
from tests.conftest import PROJECT
from utils.storage.files import (atomic_path, file_sha256, is_whole_array, read_json, read_text, remove_temporaries,
                                 save_array, write_json, write_text)

KILLED_WRITER = """
import sys, time
from utils.storage.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half of the ta")
    print("writing", flush=True)
    time.sleep(1000)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "new" / "folder" / "file.txt"
    for text in ("first", "second"):
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent  # a rename is atomic only within a file system
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == text
    assert names(target.parent) == ["file.txt"]


def test_a_block_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="interrupted"), atomic_path(target) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError("interrupted")
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_an_interruption_cleans_up_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / "file.txt"):
        raise KeyboardInterrupt
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
def test_a_finished_file_has_the_usual_mode(tmp_path):
    (tmp_path / "usual.txt").touch()
    write_text(tmp_path / "ours.txt", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual.txt", "ours.txt")}
    assert len(modes) == 1


def test_a_very_long_name_can_be_written(tmp_path):
    name = "x" * 240 + ".csv"
    write_text(tmp_path / name, "a")
    assert names(tmp_path) == [name]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(os, "fsync", lambda handle: steps.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda source, target, replace=os.replace:
                        (steps.append("replace"), replace(source, target)))
    write_text(tmp_path / "file.txt", "x")
    assert steps == ["fsync", "replace"]
    save_array(tmp_path / "a.npy", np.zeros(3))  # thousands of these, each checked by its size instead
    assert steps == ["fsync", "replace", "replace"]


# what a kill leaves

def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path):
    deep = tmp_path / "spectrograms" / "owl"
    deep.mkdir(parents=True)
    kept = [".notes.tmp", "table.csv.abcd1234.tmp", ".table.csv.ABCD1234.tmp", ".table.csv.abcd1234.tmp.bak", "a.tmp"]
    for name in kept:
        (deep / name).touch()
    with subprocess.Popen([sys.executable, "-c", KILLED_WRITER, deep / "table.csv"], cwd=PROJECT,
                          stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        writer.kill()
    assert len(names(deep)) == len(kept) + 1
    remove_temporaries(tmp_path)
    assert names(deep) == sorted(kept)


def test_only_those_of_one_output_are_removed(tmp_path):
    ours = [".survey.csv.abcd1234.tmp", ".survey.json.zz__9999.tmp", ".survey.nights.csv.zz__9999.tmp"]
    endings = (".csv", ".json", ".nights.csv")
    others = [".survey2.csv.abcd1234.tmp", ".survey.v2.csv.abcd1234.tmp", ".surveyXcsv.abcd1234.tmp",
              ".other.csv.abcd1234.tmp"]
    (tmp_path / "deeper").mkdir()
    for name in (*ours, *others, f"deeper/{ours[0]}"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path, "survey", endings)
    assert names(tmp_path) == sorted([*others, "deeper"])
    assert names(tmp_path / "deeper") == ours[:1]


def test_those_of_an_output_whose_name_was_cut_are_left(tmp_path):
    # another output that begins alike may be under way, and cut names do not tell them apart
    with atomic_path(tmp_path / ("x" * 60 + "_other.csv")) as temporary:
        remove_temporaries(tmp_path, "x" * 60, (".csv", "_other.csv"))
        assert temporary.exists()


@pytest.mark.parametrize("shape", [(128, 345), (1, 1), (32, 100000)])
def test_an_array_that_lost_bytes_is_noticed(tmp_path, shape):
    path = tmp_path / "a.npy"
    save_array(path, np.zeros(shape, dtype=np.float32))
    assert is_whole_array(path, shape)
    assert not is_whole_array(path, (shape[0], shape[1] + 1))
    os.truncate(path, path.stat().st_size - 1)
    assert not is_whole_array(path, shape)
    os.truncate(path, 0)
    assert not is_whole_array(path, shape)
    assert not is_whole_array(tmp_path / "missing.npy", shape)


# text

def test_text_is_utf8_with_unix_line_ends(tmp_path):
    write_text(tmp_path / "file.txt", "Käuzchen\nFuchs\n")
    assert (tmp_path / "file.txt").read_bytes() == "Käuzchen\nFuchs\n".encode()


def test_json_survives_and_has_no_nan(tmp_path):
    path = tmp_path / "file.json"
    value = {"name": "Käuzchen", "scores": [0.1, 1e-300, None, True], "nested": {"n": 3}}
    write_json(path, value)
    assert read_json(path) == value
    assert "Käuzchen" in path.read_text(encoding="utf-8")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="Out of range float values"):
            write_json(path, {"score": bad})
    assert read_json(path) == value


@pytest.mark.parametrize("content", [
    codecs.BOM_UTF16_LE + "梟.wav\n".encode("utf-16-le"), codecs.BOM_UTF16_BE + "梟.wav\n".encode("utf-16-be"),
    codecs.BOM_UTF8 + "梟.wav\n".encode(), "梟.wav\n".encode(),
], ids=["utf-16-le", "utf-16-be", "utf-8 with mark", "utf-8"])
def test_text_is_read_in_the_encoding_that_it_says(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    assert read_text(tmp_path / "list.txt") == "梟.wav\n"


def test_bytes_that_are_no_text_name_the_file_they_came_from(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"owl\xe9.wav")
    assert os.fsencode(read_text(tmp_path / "list.txt")) == b"owl\xe9.wav"


@pytest.mark.parametrize(("content", "message"), [
    (b"[1, 2]", "must hold a JSON object, got list"), (b"{'a': 1}", "cannot be read as JSON"),
    (b'{"a": 1', "cannot be read as JSON"), (b"\xff\xfe", "cannot be read as JSON"), (b"", "cannot be read as JSON"),
])
def test_json_that_is_none_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"file.json {message}"):
        read_json(tmp_path / "file.json")


@pytest.mark.parametrize("content", [b'{"a": ' * 100_000, b'{"a": ' + b"7" * 5000 + b"}"], ids=["deep", "long"])
def test_json_that_cannot_be_held_is_refused_too(tmp_path, content):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ConfigError, match="file.json cannot be read as JSON"):
        read_json(tmp_path / "file.json")


def test_missing_json_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.json cannot be read as JSON: .*No such file"):
        read_json(tmp_path / "nowhere.json")


def test_arrays_survive_and_objects_are_refused(tmp_path, rng):
    array = rng.normal(size=(3, 4)).astype(np.float32)
    save_array(tmp_path / "a.npy", array)
    loaded = np.load(tmp_path / "a.npy", allow_pickle=False)
    assert np.array_equal(loaded, array)
    assert loaded.dtype == np.float32
    with pytest.raises(ValueError, match="allow_pickle=False"):
        save_array(tmp_path / "b.npy", np.array([{}], dtype=object))
    assert names(tmp_path) == ["a.npy"]


@pytest.mark.parametrize("n_bytes", [0, 5, (1 << 20) + 1])
def test_sha256_is_that_of_the_whole_file(tmp_path, rng, n_bytes):
    content = rng.bytes(n_bytes)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()
