import dataclasses
import re
import sys
from pathlib import Path

import pytest

from models.errors import CheckpointError, ConfigError
from tests.utils.networks.onnx_files import DESCRIPTION, metadata, write_onnx
from utils.networks import conversions
from utils.networks.conversions import (check_library, conversion_places, find_converted, installed_libraries,
                                        older_conversions, read_description, read_metadata)
from utils.storage.files import file_sha256

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
SHA256 = "0123456789abcdef" * 4
OTHER_SHA256 = "f" * 64


@pytest.fixture
def installed(monkeypatch):
    """Return a function that says which modules there are."""
    def put(*modules):
        monkeypatch.setattr(conversions, "find_spec", lambda name: object() if name in modules else None)
        monkeypatch.setattr(conversions, "version", {"openvino": "2.0", "onnxruntime": "1.0"}.__getitem__)
    return put


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nightscan"


def places(model_path, *, sha256=SHA256, library="onnx", precision=None):
    return conversion_places(model_path, sha256, library=library, precision=precision)


# libraries

@pytest.mark.parametrize(("modules", "expected"), [
    (("onnxruntime", "openvino"), ("openvino", "onnx")), (("onnxruntime",), ("onnx",)), (("openvino",), ("openvino",)),
    ((), ())])
def test_the_fastest_library_that_is_installed_comes_first(installed, modules, expected):
    installed(*modules)
    assert installed_libraries() == expected


@pytest.mark.parametrize(("library", "precision", "message"), [
    ("openvino", None, "--backend openvino needs openvino, which is not installed: pip install -r requirements-extra"),
    ("onnx", "bf16", "--precision bf16 is not for --backend onnx: use --backend torch or openvino$"),
])
def test_what_a_library_lacks_is_refused(installed, library, precision, message):
    installed("onnxruntime")
    with pytest.raises(ConfigError, match=message):
        check_library(library, precision)


def test_integers_are_for_onnx_runtime_alone(installed):
    installed("openvino", "onnxruntime")
    with pytest.raises(ConfigError, match="--precision int8 is not for --backend openvino: use --backend onnx$"):
        check_library("openvino", "int8")
    check_library("onnx", "int8")
    check_library("openvino", "bf16")


# places

def test_a_converted_network_stands_beside_its_model_or_in_the_users_cache(tmp_path, installed, cache):
    installed("openvino", "onnxruntime")
    model_path = tmp_path / "model" / "best.v2.pth"
    name = "best.v2.0123456789abcdef.openvino-2.0-bf16.v1.onnx"
    assert places(model_path, library="openvino", precision="bf16") == (tmp_path / "model" / name, cache / name)


def test_whatever_changes_the_network_changes_its_name(tmp_path, installed, cache, monkeypatch):
    installed("openvino", "onnxruntime")
    model_path, names = tmp_path / "best.pth", set()
    for settings in ({}, {"sha256": OTHER_SHA256}, {"library": "openvino"}, {"precision": "int8"}):
        names |= {place.name for place in places(model_path, **settings)}
    assert places(model_path) == places(model_path, precision="float32")
    monkeypatch.setattr(conversions, "version", lambda module: "9.9")
    names |= {place.name for place in places(model_path)}
    monkeypatch.setattr(conversions, "FORMAT_VERSION", 2)
    names |= {place.name for place in places(model_path)}
    names |= {place.name for place in places(tmp_path / "other.pth")}
    assert len(names) == 7


@pytest.mark.parametrize(("platform", "variables", "expected"), [
    ("linux", {"XDG_CACHE_HOME": "/x/cache"}, "/x/cache"), ("linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache"),
    ("darwin", {"XDG_CACHE_HOME": "/x/cache"}, "/home/me/Library/Caches"),
    ("win32", {"LOCALAPPDATA": "/x/local"}, "/x/local"), ("win32", {"LOCALAPPDATA": ""}, "/home/me/AppData/Local"),
])
def test_the_users_cache_is_where_the_system_has_it(installed, monkeypatch, platform, variables, expected):
    installed("onnxruntime")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert places(Path("best.pth"))[1].parent == Path(expected) / "nightscan"


def test_what_was_converted_before_is_found_beside_the_model_first(tmp_path, installed, cache):
    installed("openvino", "onnxruntime")
    model_path = tmp_path / "best.pth"

    def found(**settings):
        return find_converted(model_path, **{"sha256": SHA256, "library": "onnx", "precision": None, **settings})

    beside, cached = places(model_path)
    assert found() is None
    cache.mkdir(parents=True)
    cached.touch()
    assert found() == str(cached)
    beside.touch()
    assert found() == found(precision="float32") == str(beside)
    assert found(sha256=OTHER_SHA256) is found(library="openvino") is found(precision="int8") is None


def test_older_conversions_are_those_of_models_that_had_the_same_name(tmp_path, installed):
    installed("openvino", "onnxruntime")
    model_path = tmp_path / "best.pth"
    place = places(model_path)[0]
    older = ["best.ffffffffffffffff.onnx-1.0-float32.v1.onnx", "best.ffffffffffffffff.openvino-0.1-bf16.v1.onnx",
             "best.ffffffffffffffff.onnx-0.1-int8.v0.onnx"]
    kept = [place.name, "best.0123456789abcdef.openvino-2.0-float32.v1.onnx", "best.onnx", "best.int8.onnx",
            "best.pth", "other.ffffffffffffffff.onnx-1.0-float32.v1.onnx",
            "best.v2.ffffffffffffffff.onnx-1.0-float32.v1.onnx", "best.ffff.onnx-1.0-float32.v1.onnx",
            "best.ffffffffffffffff.mine-1.0-float32.v1.onnx"]
    for name in older + kept:
        (tmp_path / name).touch()
    assert sorted(path.name for path in older_conversions(place, model_path, SHA256)) == sorted(older)


# what is written in one

def test_a_description_comes_back_with_the_path_and_hash_of_the_file(tmp_path):
    path = write_onnx(tmp_path / "best.onnx")
    assert read_description(path) == dataclasses.replace(DESCRIPTION, path=str(path), sha256=file_sha256(path))
    description, content = read_metadata(path)
    assert description == DESCRIPTION
    assert (content["precision"], content["compared"]) == ("float32", {"n_windows": 4})


def garbled(**changes):
    return metadata(model={**DESCRIPTION.to_dict(), **changes})


def lacking(name):
    return metadata(model={key: value for key, value in DESCRIPTION.to_dict().items() if key != name})


FRONTEND = {**DESCRIPTION.frontend.to_dict(), "f_min": 77.0}
EDITED = [
    (garbled(frontend=FRONTEND), "lacks or garbles its front end does not match its fingerprint [0-9a-f]{12}: it was"),
    (garbled(fingerprint=None), "lacks or garbles its front end does not match its fingerprint None"),
    (lacking("calibration"), "lacks or garbles 'calibration': it was edited; export it again"),
    (lacking("class_names"), "lacks or garbles 'class_names'"),
    (garbled(thresholds={}), "lacks or garbles 'bird_song'"),
    (garbled(class_names=["owl", "owl"]), "lacks or garbles class names must differ"),
    (garbled(calibration={"temperature": 0.0}), "lacks or garbles temperature must be positive"),
    (garbled(n_parameters="many"), "lacks or garbles invalid literal"),
    (metadata(model=[]), "lacks or garbles"), (metadata(model=None), "lacks or garbles"),
    (metadata(format_version=2), r"has format_version 2, this NightScan reads 1: use the version that wrote it"),
    (metadata(kind="other"), "has format_version 1, this NightScan reads 1"),
    ("", "is an ONNX file, but none of NightScan's: its front end and classes are not in it; export the checkpoint"),
    ("{", "is an ONNX file, but none of NightScan's"), ("[]", "is an ONNX file, but none of NightScan's"),
    ("7", "is an ONNX file, but none of NightScan's"), ("{}", "is an ONNX file, but none of NightScan's"),
]


@pytest.mark.parametrize(("content", "message"), EDITED)
def test_a_file_that_was_edited_or_is_anothers_is_refused(tmp_path, content, message):
    path = write_onnx(tmp_path / "best.onnx", content)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))} {message}"):
        read_description(path)


@pytest.mark.parametrize("make", [
    lambda content: b"", lambda content: content[:-20], lambda content: content[:10], lambda content: b"\0" * 1000,
    lambda content: b"this is a letter, not a network\n" * 40,
], ids=["empty", "cut at the end", "cut at the beginning", "zeros", "text"])
def test_what_is_no_whole_onnx_file_is_refused_in_a_line(tmp_path, make):
    path = write_onnx(tmp_path / "best.onnx")
    path.write_bytes(make(path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"^{re.escape(str(path))} (cannot be read as ONNX \(.*\): copy it again"
                                              rf"|is an ONNX file, but none of NightScan's)") as caught:
        read_description(path)
    assert "\n" not in str(caught.value)


def test_of_what_a_library_says_the_first_line_is_told():
    def fail():
        raise RuntimeError("the graph is torn\nand much more")

    with pytest.raises(CheckpointError, match=r"best\.onnx cannot be read as ONNX \(the graph is torn\): copy it"):
        conversions.opened("best.onnx", fail)


@pytest.mark.parametrize("name", ["gone.onnx", "."])
def test_a_file_that_is_missing_is_told(tmp_path, name):
    with pytest.raises(CheckpointError, match="does not exist: give the .onnx that train_efficientnet.py"):
        read_description(tmp_path / name)
