"""Converted networks: the ``.onnx`` files of models, where they are kept, and what is written in them."""

import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from models.description import ModelDescription
from models.errors import CheckpointError, ConfigError
from utils.storage.files import file_sha256

FORMAT_VERSION = 1
KIND = "nightscan-onnx"
METADATA_KEY = "nightscan"
INPUT, LOGITS, EMBEDDINGS, PROBABILITIES = "log_mel", "logits", "embeddings", "probabilities"
# of the libraries that are installed the first is taken: on two cores OpenVINO 2026.4 takes 0.7 of ONNX Runtime's time
LIBRARIES = ("openvino", "onnx")
UNABLE = {"torch": ("int8",), "onnx": ("bf16",), "openvino": ("int8",)}  # precisions that a library lacks here
_CONVERSION = re.compile(rf"(.*)\.([0-9a-f]{{16}})\.(?:{'|'.join(LIBRARIES)})-.*\.v\d+\.onnx")
_MODULES = {"openvino": "openvino", "onnx": "onnxruntime"}


def installed_libraries() -> tuple[str, ...]:
    """Return those of ``LIBRARIES`` that are installed, the fastest first."""
    return tuple(name for name in LIBRARIES if find_spec(_MODULES[name]) is not None)


def find_converted(model_path: Path, sha256: str, *, library: str, precision: str | None) -> str | None:
    """Return the converted network of a model, beside it or in the user's cache; None where there is none."""
    for place in conversion_places(model_path, sha256, library=library, precision=precision):
        if place.is_file():
            return os.fspath(place)
    return None


def conversion_places(model_path: Path, sha256: str, *, library: str, precision: str | None) -> tuple[Path, Path]:
    """Return where a converted network may stand: beside the model, or else in the user's cache.

    The name holds the model's hash and the library's version, so that what was compared with PyTorch is what is used.
    """
    name = (f"{model_path.stem}.{sha256[:16]}.{library}-{version(_MODULES[library])}-{precision or 'float32'}"
            f".v{FORMAT_VERSION}.onnx")
    return model_path.parent / name, _user_cache() / "nightscan" / name


def older_conversions(place: Path, model_path: Path, sha256: str) -> list[Path]:
    """Return the conversions beside ``place`` of models that had the same name before."""
    found = ((path, _CONVERSION.fullmatch(path.name)) for path in place.parent.glob("*.onnx"))
    return [path for path, parts in found
            if parts and parts[1] == model_path.stem and parts[2] != sha256[:16]]


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def check_library(library: str, precision: str | None) -> None:
    """Raise ConfigError where a library is missing or does not compute in a precision."""
    if library not in installed_libraries():
        raise ConfigError(f"--backend {library} needs {_MODULES[library]}, which is not installed: pip install"
                          f" -r requirements-extra.txt, or use --backend auto")
    if precision in UNABLE[library]:
        able = " or ".join(name for name in ("torch", *LIBRARIES) if precision not in UNABLE[name])
        raise ConfigError(f"--precision {precision} is not for --backend {library}: use --backend {able}")


def read_description(path: str | os.PathLike) -> ModelDescription:
    """Read what must be known of a model from its ``.onnx``; its ``path`` and ``sha256`` are those of the file.

    Raises
    ------
    CheckpointError
        If the file is missing, no ONNX, not one of ours, of another version, or was edited.
    """
    return replace(read_metadata(path)[0], path=os.fspath(path), sha256=file_sha256(path))


def read_metadata(path: str | os.PathLike) -> tuple[ModelDescription, dict]:
    """Return the description of the checkpoint that was converted, and all that was written beside it.

    Raises
    ------
    CheckpointError
        As ``read_description``.
    """
    import onnxruntime
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist: give the .onnx that train_efficientnet.py --export_onnx wrote")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = opened(path, lambda: onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]))
    try:
        content = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        version = (content["kind"], content["format_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is an ONNX file, but none of NightScan's: its front end and classes are not in"
                              f" it; export the checkpoint with --export_onnx") from error
    if version != (KIND, FORMAT_VERSION):
        raise CheckpointError(f"{path} has format_version {version[1]!r}, this NightScan reads {FORMAT_VERSION}: use"
                              f" the version that wrote it or export again")
    try:
        return ModelDescription.from_dict(content["model"]), content
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}: it was edited; export it again") from error


def opened(path: str | os.PathLike, opener: Callable) -> Any:
    """Return what ``opener`` makes of an ONNX file; CheckpointError with the path where it cannot."""
    expected: tuple[type[Exception], ...] = (RuntimeError, ValueError, *onnx_errors())
    try:
        return opener()
    except expected as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise CheckpointError(f"{path} cannot be read as ONNX ({reason}): copy it again or export it again") from error


def onnx_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises; its errors share no base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as errors
    return (errors.Fail, errors.InvalidArgument, errors.InvalidGraph, errors.InvalidProtobuf, errors.NoModel,
            errors.NoSuchFile, errors.NotImplemented, errors.RuntimeException)
