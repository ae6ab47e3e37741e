import hashlib
import os
import stat

import numpy as np
import pytest

from models.errors import ConfigError
from utils.storage.files import atomic_path, file_sha256, read_json, save_array, write_json, write_text


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


@pytest.mark.parametrize(("content", "message"), [
    (b"[1, 2]", "must hold a JSON object, got list"), (b"{'a': 1}", "cannot be read as JSON"),
    (b'{"a": 1', "cannot be read as JSON"), (b"\xff\xfe", "cannot be read as JSON"), (b"", "cannot be read as JSON"),
])
def test_json_that_is_none_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ConfigError, match=f"file.json {message}"):
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
