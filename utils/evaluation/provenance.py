"""How an evaluation came about: the command, the data and their split, the versions, the machine."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import version

from utils.running.cli import VERSION
from utils.storage.files import file_sha256
from utils.storage.manifest import Manifest

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch")
_LIBRARY_OF_BACKEND = {"onnx": "onnxruntime", "openvino": "openvino"}
_OF_SPLIT = ("group_by", "ratios", "random_state")


def provenance(manifest: Manifest, *, command: str, backends: Iterable[str]) -> dict:
    """Return what another person needs to make the evaluation again.

    Parameters
    ----------
    manifest : Manifest
        The test rows, and what ``dataset.json`` beside them tells.
    command : str
        As it was given.
    backends : iterable of str
        What applied the networks, such as ``onnx-cpu``.

    Returns
    -------
    dict
        Plain JSON types. ``command``; ``versions`` by name; ``machine``; and ``data_set``: ``sha256`` of the manifest,
        ``as_prepared`` (whether preprocessing wrote this very manifest), ``knows_recordings`` (False where each segment
        is taken for a recording, because the manifest does not tell), ``recordings`` and ``segments`` (numbers by side
        of the split), ``group_by``, ``ratios`` and ``random_state`` of the split, and ``leakage_check``; what the
        data set does not tell is None.
    """
    libraries = [*_LIBRARIES, *(name for backend, name in _LIBRARY_OF_BACKEND.items()
                                if any(used.startswith(backend) for used in backends))]
    return {"command": command,
            "versions": {"NightScan": VERSION, "Python": platform.python_version(),
                         **{name: version(name) for name in libraries}},
            "machine": {"platform": platform.platform(), "processor": platform.processor() or platform.machine(),
                        "n_processors": os.cpu_count()},
            "data_set": _data_set(manifest)}


def _data_set(manifest: Manifest) -> dict:
    told, sha256 = manifest.dataset, file_sha256(manifest.path)
    prepared, settings = told.get("sha256", {}).get(manifest.path.name), told.get("settings", {})
    return {"sha256": sha256, "as_prepared": None if prepared is None else prepared == sha256,
            "knows_recordings": not manifest.rows["recording_id"].equals(manifest.rows["path"]),
            "recordings": told.get("recordings"),
            "segments": {side: sum(counts.values()) for side, counts in told["counts"].items()}
            if "counts" in told else None,
            **{name: settings.get(name) for name in _OF_SPLIT}, "leakage_check": told.get("leakage_check")}
