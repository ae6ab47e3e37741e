"""How much memory a model takes, in a process of its own that loads nothing else: keep these imports few."""

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from utils.prediction.predictor import EfficientNetPredictor


def measure_peak(path: Path, *, backend: str, class_names: Sequence[str] | None) -> float | None:
    """Return the most memory, in MB, of a process of its own that loads a model and scores a batch on the processor.

    None on Windows, where nothing tells it.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_peak, path, backend, class_names).result()


def random_windows(predictor: EfficientNetPredictor, n: int) -> np.ndarray:
    """Return float32 ``(n, n_mels, n_frames)`` of noise in dB, such as the front end of a model gives."""
    frontend = predictor.model.frontend
    rng = np.random.default_rng(0)
    return rng.normal(-40.0, 10.0, (n, frontend.n_mels, frontend.n_frames)).astype(np.float32)


def _peak(path: Path, backend: str, class_names: Sequence[str] | None) -> float | None:
    predictor = EfficientNetPredictor(path, device="cpu", backend=backend, class_names=class_names)
    predictor.probabilities(random_windows(predictor, predictor.batch_size))
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells includes the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return None
    import resource  # it is not there on Windows
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6
