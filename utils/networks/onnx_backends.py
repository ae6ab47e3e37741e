"""Back ends for a converted network: ONNX Runtime and OpenVINO, both on the processor.

Neither needs PyTorch. What must be known of the model stands in the ``.onnx`` file itself.
"""

import os
import threading

import numpy as np

from models.description import ModelDescription
from utils.networks.backends import NetworkOutput, backend_name
from utils.networks.conversions import EMBEDDINGS, INPUT, LOGITS, check_library, opened

BATCH_SIZE = 4  # on a core, larger ones only fall out of its cache


class OnnxBackend:
    """A converted network in ONNX Runtime.

    Parameters
    ----------
    path : path-like
        What ``utils.networks.export`` wrote.
    description : ModelDescription
        Of the model.
    n_threads : int
        Processor threads a pass may use.
    precision : str
        ``float32`` or ``int8``, as the file has it.
    """

    def __init__(self, path: str | os.PathLike, description: ModelDescription, *, n_threads: int,
                 precision: str = "float32") -> None:
        import onnxruntime
        self.description, self.n_threads, self.batch_size = description, n_threads, BATCH_SIZE
        self.name = backend_name("onnx", "cpu", precision)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = n_threads, 1
        options.log_severity_level = 3
        self._session = opened(path, lambda: onnxruntime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]))

    def run(self, log_mels: np.ndarray, *, with_embeddings: bool = False) -> NetworkOutput:
        """Apply the network to one batch; see ``Backend.run``. Threads may share it."""
        wanted = [LOGITS, EMBEDDINGS] if with_embeddings else [LOGITS]
        return NetworkOutput(*self._session.run(wanted, {INPUT: np.ascontiguousarray(log_mels, dtype=np.float32)}))


class OpenVinoBackend:
    """A converted network in OpenVINO.

    Parameters
    ----------
    path : path-like
        What ``utils.networks.export`` wrote.
    description : ModelDescription
        Of the model.
    n_threads : int
        Processor threads a pass may use.
    precision : str
        ``float32`` or ``bf16``.
    """

    def __init__(self, path: str | os.PathLike, description: ModelDescription, *, n_threads: int,
                 precision: str = "float32") -> None:
        import openvino
        self.description, self.n_threads, self.batch_size = description, n_threads, BATCH_SIZE
        self.name = backend_name("openvino", "cpu", precision)
        # the precision is always told: by itself OpenVINO takes bfloat16 where the processor has it
        properties = {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
                      "INFERENCE_NUM_THREADS": n_threads, "NUM_STREAMS": 1}
        core = openvino.Core()
        compiled = opened(path, lambda: core.compile_model(core.read_model(os.fspath(path)), "CPU", properties))
        self._request, self._lock = compiled.create_infer_request(), threading.Lock()

    def run(self, log_mels: np.ndarray, *, with_embeddings: bool = False) -> NetworkOutput:
        """Apply the network to one batch; see ``Backend.run``. Threads take turns."""
        with self._lock:
            outputs = self._request.infer({INPUT: np.ascontiguousarray(log_mels, dtype=np.float32)})
            return NetworkOutput(outputs[LOGITS].copy(), outputs[EMBEDDINGS].copy() if with_embeddings else None)


def open_converted(path: str | os.PathLike, description: ModelDescription, *, library: str, precision: str,
                   n_threads: int) -> OnnxBackend | OpenVinoBackend:
    """Open a converted network in a library.

    Raises
    ------
    ConfigError
        If the library is not installed or does not compute in that precision.
    CheckpointError
        If it cannot read the file.
    """
    check_library(library, precision)
    kind = OpenVinoBackend if library == "openvino" else OnnxBackend
    return kind(path, description, n_threads=n_threads, precision=precision)
