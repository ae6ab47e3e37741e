"""Back ends: what turns log-mels into logits, and into embeddings where asked.

Whoever scores windows holds a ``Backend`` and a ``ModelDescription``, and knows nothing of the library below.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.description import ModelDescription


@dataclass(frozen=True)
class NetworkOutput:
    """What a network says of some windows.

    Parameters
    ----------
    logits : numpy.ndarray
        float32 ``(n_windows, n_classes)``.
    embeddings : numpy.ndarray or None
        float32 ``(n_windows, n_features)``; None where they were not asked for.
    """

    logits: np.ndarray
    embeddings: np.ndarray | None = None


class Backend(Protocol):
    """A network that is ready to be applied; threads may share it.

    Attributes
    ----------
    description : ModelDescription
        Classes, front end and calibration of the network.
    name : str
        Library, device and, unless it is float32, precision, such as ``torch-cpu``.
    n_threads : int
        Processor threads a pass may use.
    batch_size : int
        Windows of a pass that it is quickest with.
    """

    description: ModelDescription
    n_threads: int

    @property
    def name(self) -> str:
        """Library, device and precision."""

    @property
    def batch_size(self) -> int:
        """Windows of a pass that it is quickest with."""

    def run(self, log_mels: np.ndarray, *, with_embeddings: bool = False) -> NetworkOutput:
        """Apply the network to one batch of log-mels, float32 ``(n_windows, n_mels, n_frames)`` in dB."""


def backend_name(library: str, device: str, precision: str | None) -> str:
    """Return the name of a back end; float32, which is usual, is not told."""
    return f"{library}-{device}" + ("" if precision in (None, "float32") else f"-{precision}")
