"""The best model of a run as files that need no PyTorch, checked on the run's own validation windows."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.networks.export import MOST_WINDOWS, export_int8, export_onnx
from utils.storage.checkpoints import load_model
from utils.storage.manifest import Manifest
from utils.storage.spectrograms import SpectrogramDataset

logger = logging.getLogger(__name__)


def export_best(best: Path, val: Manifest, *, onnx: bool, int8: bool) -> Sequence[Path]:
    """Write the ``.onnx`` files that were asked for beside a checkpoint; return their paths.

    Parameters
    ----------
    best : Path
        A ``_best.pth``.
    val : Manifest
        Its validation windows, evenly chosen, are what an export is compared and scaled on.
    onnx : bool
        Write ``<name>.onnx`` in float32.
    int8 : bool
        Write ``<name>.int8.onnx``, a third of the size, and say how far it is from the checkpoint.

    Raises
    ------
    ConfigError
        If the export in float32 does not give the checkpoint's logits; it is not written.
    """
    model = load_model(best)
    rows = np.unique(np.linspace(0, len(val.rows) - 1, MOST_WINDOWS).round().astype(int))
    windows = SpectrogramDataset(val, rows)
    log_mels = np.stack([windows[row][0].numpy()[0] for row in range(len(windows))])
    written = []
    for asked, ending, export in ((onnx, ".onnx", export_onnx), (int8, ".int8.onnx", export_int8)):
        if asked:
            path = best.with_name(best.stem + ending)
            logger.info("%s: %s", path, export(model, path, log_mels))
            written.append(path)
    return written
