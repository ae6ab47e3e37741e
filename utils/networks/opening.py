"""Which library applies a model, decided before one is loaded.

PyTorch takes longer to load than a short recording to score, so a converted network is used without it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from models.description import ModelDescription
from models.errors import ConfigError
from utils.networks.backends import Backend, backend_name
from utils.networks.conversions import (LIBRARIES, UNABLE, check_library, find_converted, installed_libraries,
                                        read_description, read_metadata)
from utils.running.hardware import is_amd, may_have_accelerator
from utils.running.parallel import default_workers
from utils.storage.files import file_sha256

BACKENDS = ("auto", "torch", "onnx", "openvino")


@dataclass(frozen=True)
class BackendPlan:
    """Which library applies a model, and from which file; it can be sent to other processes.

    Parameters
    ----------
    model_path : str
        The model, ``.pth`` or ``.onnx``.
    library : str
        ``torch``, ``onnx`` or ``openvino``.
    device : str
        As ``--device``.
    precision : str or None
        ``float32``, ``bf16`` or ``int8``; the library's usual one when None.
    class_names : tuple of str or None
        Names of the outputs of a NightScan 1 file.
    sha256 : str
        Of the model.
    converted : str or None
        The converted network that a library other than PyTorch reads; None where there is none yet.
    required : bool
        The library was asked for by name, so another may not take its place.
    """

    model_path: str
    library: str
    device: str
    precision: str | None = None
    class_names: tuple[str, ...] | None = None
    sha256: str = ""
    converted: str | None = None
    required: bool = field(default=False, compare=False)

    @property
    def is_light(self) -> bool:
        """Whether opening it takes a moment and little memory, so that every worker may have its own."""
        return self.converted is not None

    @property
    def needs_conversion(self) -> bool:
        """Whether the first windows will be spent on converting the network and comparing it with PyTorch's."""
        return self.library != "torch" and self.converted is None

    def description(self) -> ModelDescription:
        """Read what must be known of the model; quick where it was converted before.

        Raises
        ------
        CheckpointError
            If the model cannot be trusted.
        """
        if self.converted is None:
            from utils.storage.checkpoints import load_model
            return load_model(self.model_path, class_names=self.class_names).description
        if self.converted == self.model_path:
            return read_description(self.converted)
        return replace(read_description(self.converted), path=self.model_path, sha256=self.sha256)

    def open(self, *, n_threads: int | None = None) -> Backend:
        """Load the library and the network.

        Parameters
        ----------
        n_threads : int, optional
            Processor threads a pass may use, where the library can be told; all when None.

        Raises
        ------
        CheckpointError, ConfigError
            If the model cannot be trusted, or the device or precision is not there.
        """
        threads = n_threads or default_workers()
        if self.converted is not None:
            from utils.networks.onnx_backends import open_converted
            return open_converted(self.converted, self.description(), library=self.library,
                                  precision=self.precision or "float32", n_threads=threads)
        from utils.networks.torch_backend import TorchBackend
        from utils.running.devices import resolve_device
        from utils.storage.checkpoints import load_model
        model = load_model(self.model_path, class_names=self.class_names)
        if self.library == "torch":
            return TorchBackend(model, resolve_device(self.device), precision=self.precision)
        from utils.networks.export import ConvertingBackend
        return ConvertingBackend(model, library=self.library, precision=self.precision or "float32",
                                 n_threads=threads, required=self.required)

    def name(self) -> str:
        """Return the name that the back end will have, without loading it; only where ``is_light``."""
        return backend_name(self.library, "cpu", self.precision)


def plan_backend(model_path: str | os.PathLike, *, device: str = "auto", class_names: Sequence[str] | None = None,
                 backend: str = "auto", precision: str | None = None) -> BackendPlan:
    """Choose the library for a model.

    Parameters
    ----------
    model_path : path-like
        A ``.pth`` that ``train_efficientnet.py`` wrote, NightScan 1's ResNet18, or an exported ``.onnx``.
    device : str
        As ``--device``.
    class_names : sequence of str, optional
        Names of the outputs of a NightScan 1 file.
    backend : str
        ``auto`` is the fastest library that is installed where the processor computes, PyTorch elsewhere.
    precision : str, optional
        ``float32``, ``bf16`` or ``int8``; the library's usual one when None, which is float32 on a processor.

    Raises
    ------
    ConfigError
        If the file does not exist, or library, device and precision do not go together.
    """
    path = Path(model_path)
    if not path.is_file():
        raise ConfigError(f"--model_path {path} does not exist: give the .pth that train_efficientnet.py wrote, or an"
                          f" exported .onnx")
    names = tuple(class_names) if class_names is not None else None
    is_onnx = path.suffix.lower() == ".onnx"
    on_processor = device == "cpu" or device == "auto" and (is_onnx or not may_have_accelerator())
    plan = BackendPlan(os.fspath(path), "torch", "cpu" if on_processor else device, precision, names,
                       file_sha256(path), required=backend != "auto")
    if is_onnx:
        return _plan_exported(plan, backend)
    # NightScan 1's network, whose classes are named, begins with a resampling that ONNX lacks
    if backend == "torch" or not on_processor or names is not None:
        if precision in UNABLE["torch"] or backend not in ("auto", "torch"):
            raise ConfigError(f"--backend {backend} --precision {precision or 'float32'} is for the processor, and not"
                              f" for NightScan 1's ResNet18: leave both out, or use --device cpu")
        return plan
    library = _library(backend, precision)
    check_library(library, precision)
    converted = find_converted(path, plan.sha256, library=library, precision=precision)
    if converted is None and find_spec("torch") is None:
        raise ConfigError(f"{path} needs PyTorch, which is not installed: give an .onnx that train_efficientnet.py"
                          f" --export_onnx wrote, or pip install -r requirements.txt")
    return replace(plan, library=library, converted=converted)


def _plan_exported(plan: BackendPlan, backend: str) -> BackendPlan:
    if backend == "torch" or plan.device != "cpu":
        raise ConfigError(f"{plan.model_path} is applied by ONNX Runtime or OpenVINO on the processor: leave out"
                          f" --backend and --device, or give the .pth")
    precision = _precision_of(plan.model_path, plan.precision)
    library = _library(backend, precision)
    check_library(library, precision)
    return replace(plan, library=library, precision=precision, converted=plan.model_path)


def load_backend(model_path: str | os.PathLike, *, device: str = "auto", class_names: Sequence[str] | None = None,
                 backend: str = "auto", precision: str | None = None) -> Backend:
    """Read a model file and make it ready; parameters and errors as ``plan_backend`` and ``BackendPlan.open``."""
    return plan_backend(model_path, device=device, class_names=class_names, backend=backend, precision=precision).open()


def _precision_of(path: str, asked: str | None) -> str | None:
    """Return the precision of an exported file, which stands in it: it is never another one in silence."""
    own = str(read_metadata(path)[1].get("precision", "float32"))
    if asked not in (None, own) and not (own == "float32" and asked == "bf16"):
        raise ConfigError(f"--precision {asked}: {path} was exported in {own}; give the .pth, or leave --precision out")
    return asked or (None if own == "float32" else own)


def _library(backend: str, precision: str | None) -> str:
    if backend != "auto":
        return backend
    libraries = installed_libraries()
    if is_amd():  # there OpenVINO takes 1.7 times as long as ONNX Runtime (an EPYC with AVX-512), elsewhere 0.7
        libraries = tuple(sorted(libraries, key=lambda name: name != "onnx"))
    return next((name for name in libraries if precision not in UNABLE[name]), LIBRARIES[-1])
