"""What a model costs: time, memory and operations."""

import os
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch.utils.flop_counter import FlopCounterMode

from utils.evaluation.peak import random_windows
from utils.evaluation.results import Latency
from utils.prediction.predictor import EfficientNetPredictor
from utils.storage.checkpoints import load_model

_WARM_UP_RUNS = 5
_MULTIPLYING = {"Conv", "Gemm", "MatMul"}  # nodes of a graph; those of integers are not counted


def measure_latency(predictor: EfficientNetPredictor, *, n_runs: int, peak_megabytes: float | None = None) -> Latency:
    """Time the network on one window and on full batches, after a warm-up, waiting for the device.

    Parameters
    ----------
    predictor : EfficientNetPredictor
        Holds the network.
    n_runs : int
        Timed passes of one window; a tenth as many of batches.
    peak_megabytes : float, optional
        From ``measure_peak``.
    """
    batch = random_windows(predictor, predictor.batch_size)

    def milliseconds(log_mels: np.ndarray) -> float:
        started = time.perf_counter()
        predictor.probabilities(log_mels)
        return 1000 * (time.perf_counter() - started)

    for _ in range(_WARM_UP_RUNS):
        milliseconds(batch[:1])
    single = [milliseconds(batch[:1]) for _ in range(n_runs)]
    milliseconds(batch)
    batches = [milliseconds(batch) for _ in range(max(1, n_runs // 10))]
    return Latency(median_ms=float(np.median(single)), p95_ms=float(np.percentile(single, 95)),
                   batch_median_ms=float(np.median(batches)), batch_p95_ms=float(np.percentile(batches, 95)),
                   clips_per_second=1000 * len(batch) / float(np.median(batches)), batch_size=len(batch), n_runs=n_runs,
                   device=predictor.backend.name, torch_threads=predictor.backend.n_threads,
                   peak_megabytes=peak_megabytes)


def count_multiply_adds(path: Path, predictor: EfficientNetPredictor) -> int | None:
    """Return the multiplications of one window that are added up, those of convolutions and linear layers.

    None for a graph of integers, which counts otherwise.
    """
    if path.suffix.lower() != ".onnx":
        network = load_model(path, class_names=predictor.model.classes.names).network.eval()
        batch = torch.from_numpy(random_windows(predictor, 1))[:, None]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(batch)
        return counter.get_total_flops() // 2
    return _of_graph(path, random_windows(predictor, 1))


def _of_graph(path: Path, window: np.ndarray) -> int | None:
    model = onnx.load(os.fspath(path))
    counted = [node for node in model.graph.node if node.op_type in _MULTIPLYING]
    if not counted:
        return None
    # the graph is run once for the sizes of what these give, which no file tells where windows may be of any number
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in counted)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    given = session.run(None, {session.get_inputs()[0].name: window})
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    total = 0
    for node, values in zip(counted, given, strict=True):
        weights = sizes[node.input[1]]
        # of a convolution (out, in / groups, height, width), of a linear layer (in, out) or (out, in)
        per_value = np.prod(weights[1:]) if node.op_type == "Conv" else np.prod(weights) / values.shape[-1]
        total += int(values.size * per_value)
    return total
