"""Export: a checkpoint becomes an ``.onnx`` that needs no PyTorch, checked against it on real windows.

The graph takes log-mels and gives logits, calibrated probabilities and embeddings. The settings of the front end, the
class names, thresholds and calibration stand in the file's metadata, where ``conversions.read_description`` finds them.
"""

import json
import logging
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.calibration import Calibration
from models.efficientnet import SpectrogramClassifier
from models.errors import ConfigError
from utils.networks.backends import Backend, NetworkOutput
from utils.networks.conversions import (EMBEDDINGS, FORMAT_VERSION, INPUT, KIND, LOGITS, METADATA_KEY, PROBABILITIES,
                                        conversion_places, older_conversions)
from utils.networks.onnx_backends import open_converted
from utils.networks.torch_backend import TorchBackend
from utils.storage.checkpoints import TrainedModel
from utils.storage.files import atomic_path

logger = logging.getLogger(__name__)

# of the largest logit, at least of 1 nat: sums of float32 in another order differ by 1e-5, a wrong operator by 1
TOLERANCE = 1e-3
MOST_WINDOWS = 64  # that a conversion is compared on
_OPSET = 17


@dataclass(frozen=True)
class Comparison:
    """How a converted network differs from the checkpoint's on real windows.

    Parameters
    ----------
    n_windows : int
        Windows compared.
    largest_logit_difference : float
        In nats.
    largest_probability_difference : float
        Calibrated, 0..1.
    n_other_classes : int
        Windows whose top class is another.
    largest_logit : float
        Of the checkpoint, whatever its sign, in nats.
    """

    n_windows: int
    largest_logit_difference: float
    largest_probability_difference: float
    n_other_classes: int
    largest_logit: float = 0.0

    def __str__(self) -> str:
        return (f"on {self.n_windows} windows the largest difference of a probability is"
                f" {self.largest_probability_difference:.2g}, of a logit {self.largest_logit_difference:.2g}, and the"
                f" top class is another in {self.n_other_classes}")


def compare(backend: Backend, model: TrainedModel, log_mels: np.ndarray) -> Comparison:
    """Compare a back end with PyTorch in float32 on windows, float32 ``(n_windows, n_mels, n_frames)`` in dB."""
    reference = TorchBackend(model, torch.device("cpu"), precision="float32")
    batches = [log_mels[first:first + reference.batch_size] for first in range(0, len(log_mels), reference.batch_size)]
    expected, found = (np.concatenate([one.run(batch).logits for batch in batches]) for one in (reference, backend))
    calibration = model.description.calibration
    probabilities = [calibration.probabilities(logits) for logits in (expected, found)]
    return Comparison(len(log_mels), float(np.abs(found - expected).max()),
                      float(np.abs(probabilities[1] - probabilities[0]).max()),
                      int((probabilities[1].argmax(axis=1) != probabilities[0].argmax(axis=1)).sum()),
                      float(np.abs(expected).max()))


def export_onnx(model: TrainedModel, path: str | os.PathLike, log_mels: np.ndarray) -> Comparison:
    """Write a model as ``.onnx``, atomically, once ONNX Runtime has given the checkpoint's logits on real windows.

    Parameters
    ----------
    model : TrainedModel
        From ``load_model``.
    path : path-like
        Target.
    log_mels : numpy.ndarray
        float32 ``(n_windows, n_mels, n_frames)`` in dB, at least one; the first ``MOST_WINDOWS`` are used.

    Returns
    -------
    Comparison
        What was found.

    Raises
    ------
    ConfigError
        If a logit differs by more than ``TOLERANCE`` allows, or the network cannot be exported; nothing is written.
    """
    return _write(model, Path(path), log_mels, library="onnx", precision="float32")


def export_int8(model: TrainedModel, path: str | os.PathLike, log_mels: np.ndarray) -> Comparison:
    """Write a model as ``.onnx`` in integers of 8 bits, scaled on real windows; parameters as ``export_onnx``.

    How far it is from the checkpoint is returned and stands in the file; there is no limit to it.
    """
    return _write(model, Path(path), log_mels, library="onnx", precision="int8")


class ConvertingBackend:
    """A checkpoint that is converted when it first hears windows, and compared with PyTorch on them.

    Parameters
    ----------
    model : TrainedModel
        From ``load_model``.
    library : str
        ``onnx`` or ``openvino``.
    precision : str
        ``float32``, ``bf16`` or ``int8``.
    n_threads : int
        Processor threads a pass may use.
    required : bool
        Raise where the conversion fails, instead of going on with PyTorch.
    """

    def __init__(self, model: TrainedModel, *, library: str, precision: str, n_threads: int, required: bool) -> None:
        self._model, self._library, self._precision, self._required = model, library, precision, required
        self._lock, self._converted = threading.Lock(), False
        self._backend: Backend = TorchBackend(model, torch.device("cpu"), precision="float32")
        self.description, self.n_threads = model.description, n_threads

    @property
    def name(self) -> str:
        """Library, device and precision in use."""
        return self._backend.name

    @property
    def batch_size(self) -> int:
        """Windows of a pass that it is quickest with."""
        return self._backend.batch_size

    def run(self, log_mels: np.ndarray, *, with_embeddings: bool = False) -> NetworkOutput:
        """Apply the network to one batch; see ``Backend.run``.

        Raises
        ------
        ConfigError
            If the library was asked for by name and does not give what PyTorch gives.
        """
        with self._lock:
            if not self._converted:
                self._backend = self._convert(log_mels)
                self._converted = True
        return self._backend.run(log_mels, with_embeddings=with_embeddings)

    def _convert(self, log_mels: np.ndarray) -> Backend:
        try:
            path = convert(self._model, log_mels, library=self._library, precision=self._precision)
            return open_converted(path, self.description, library=self._library, precision=self._precision,
                                  n_threads=self.n_threads)
        except ConfigError as error:
            if self._required:
                raise
            logger.warning("%s: PyTorch is used, which is slower", error)
            return self._backend


def convert(model: TrainedModel, log_mels: np.ndarray, *, library: str, precision: str) -> Path:
    """Write the converted network of a model where ``find_converted`` looks for it, and return its path.

    Raises
    ------
    ConfigError
        If it does not give what PyTorch gives, or can be written nowhere.
    """
    description, problem = model.description, OSError("")
    model_path = Path(description.path)
    for place in conversion_places(model_path, description.sha256, library=library, precision=precision):
        try:
            found = _write(model, place, log_mels, library=library, precision=precision)
        except OSError as error:  # a folder that is only read
            problem = error
            continue
        logger.info("%s is converted to %s: %s", model_path, place, found)
        for older in older_conversions(place, model_path, description.sha256):
            older.unlink(missing_ok=True)
        return place
    raise ConfigError(f"the converted network of {model_path} can be written neither beside it nor in the user's cache"
                      f" ({problem})") from problem


class _Exported(nn.Module):
    """What the graph computes: all a caller may want of a log-mel."""

    def __init__(self, network: SpectrogramClassifier, calibration: Calibration, n_classes: int) -> None:
        super().__init__()
        self.network = network
        self.temperature = calibration.temperature
        self.class_biases = torch.tensor(calibration.class_biases or (0.0,) * n_classes)

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        embeddings = self.network.embed(log_mel[:, None])
        logits = self.network.classify(embeddings)
        return logits, torch.softmax(logits / self.temperature + self.class_biases, dim=-1), embeddings


def _write(model: TrainedModel, path: Path, log_mels: np.ndarray, *, library: str, precision: str) -> Comparison:
    windows = np.ascontiguousarray(log_mels[:MOST_WINDOWS], dtype=np.float32)
    with atomic_path(path) as temporary:
        _trace(model, temporary, windows[:1])
        if precision == "int8":
            _quantise(temporary, windows)
        backend = open_converted(temporary, model.description, library=library, precision=precision, n_threads=1)
        found = compare(backend, model, windows)
        del backend
        most = TOLERANCE * max(1.0, found.largest_logit)
        if precision == "float32" and not found.largest_logit_difference <= most:  # what NaN is not either
            raise ConfigError(f"{model.description.path} converted for {library} is not the checkpoint's network:"
                              f" {found}; at most {most:g} is allowed for a logit")
        _add_metadata(temporary, model, found, library=library, precision=precision)
    return found


def _trace(model: TrainedModel, path: Path, windows: np.ndarray) -> None:
    description, names = model.description, (LOGITS, PROBABILITIES, EMBEDDINGS)
    exported = _Exported(model.network, description.calibration, len(description.classes)).eval()
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")  # of sizes that become constants: the front end fixes them
            torch.onnx.export(exported, (torch.from_numpy(windows),), os.fspath(path), input_names=[INPUT],
                              output_names=list(names), opset_version=_OPSET, dynamo=False,
                              dynamic_axes={name: {0: "n_windows"} for name in (INPUT, *names)})
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"{description.path} cannot be converted to ONNX: {reason}") from error


def _quantise(path: Path, windows: np.ndarray) -> None:
    """Store the weights of the dense convolutions in 8 bits, and what flows between them in 16.

    On 45 windows of the synthesised recordings, B0: a probability differs by 0.04 at most. With 8 bits for both it
    differs by 0.19, and by 0.87 and another top class in 7 where depthwise and squeeze-and-excitation layers take part.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(windows)

        def get_next(self) -> dict | None:
            row = next(self._rows, None)
            return None if row is None else {INPUT: row[None]}

    convolutions = [node for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    kept = [node.name for node in convolutions if "_se_" in node.name
            or any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)]
    root = logging.getLogger()
    advice = _Silence()
    root.addFilter(advice)  # it advises a preparation that changes nothing here
    try:
        quantization.quantize_static(os.fspath(path), os.fspath(path), Reader(), per_channel=True,
                                     op_types_to_quantize=["Conv"], activation_type=quantization.QuantType.QUInt16,
                                     nodes_to_exclude=[convolutions[0].name, *kept])
    finally:
        root.removeFilter(advice)


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return False


def _add_metadata(path: Path, model: TrainedModel, found: Comparison, *, library: str, precision: str) -> None:
    import onnx
    content = onnx.load(path)
    text = json.dumps({"kind": KIND, "format_version": FORMAT_VERSION, "model": model.description.to_dict(),
                       "library": library, "precision": precision, "compared": vars(found)}, allow_nan=False)
    content.metadata_props.add(key=METADATA_KEY, value=text)
    onnx.save(content, path)
