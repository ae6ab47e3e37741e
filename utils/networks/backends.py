"""Back ends: what turns log-mels into logits, and into embeddings where asked.

Whoever scores windows holds a ``Backend`` and a ``ModelDescription``, and knows nothing of the library below.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from models.description import ModelDescription
from models.errors import ConfigError
from utils.running.devices import resolve_device, synchronise
from utils.storage.checkpoints import TrainedModel, load_model


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
    """A network that is ready to be applied.

    Attributes
    ----------
    description : ModelDescription
        Classes, front end and calibration of the network.
    name : str
        Library and device, such as ``torch-cpu``.
    n_threads : int
        Processor threads a pass may use.
    """

    description: ModelDescription
    name: str
    n_threads: int

    def run(self, log_mels: np.ndarray, *, with_embeddings: bool = False) -> NetworkOutput:
        """Apply the network to one batch of log-mels, float32 ``(n_windows, n_mels, n_frames)`` in dB."""


class TorchBackend:
    """A network in PyTorch, on one device.

    Parameters
    ----------
    model : TrainedModel
        From ``load_model``.
    device : torch.device
        Where to compute.
    """

    def __init__(self, model: TrainedModel, device: torch.device) -> None:
        self.description = model.description
        self.device = device
        self.name = f"torch-{device.type}"
        self.n_threads = torch.get_num_threads()
        self._network = model.network.to(device)

    def run(self, log_mels: np.ndarray, *, with_embeddings: bool = False) -> NetworkOutput:
        """Apply the network to one batch; returns when the device is done.

        Parameters
        ----------
        log_mels : numpy.ndarray
            float32 ``(n_windows, n_mels, n_frames)`` in dB from the model's own front end.
        with_embeddings : bool
            Return the pooled features too.

        Returns
        -------
        NetworkOutput
            Logits, and embeddings where asked.

        Raises
        ------
        ConfigError
            If the GPU's memory does not hold the batch.
        """
        try:
            with torch.inference_mode():
                batch = torch.from_numpy(np.ascontiguousarray(log_mels))[:, None].to(self.device)
                if not with_embeddings:
                    return NetworkOutput(_to_numpy(self._network(batch)))
                embeddings = self._network.embed(batch)
                return NetworkOutput(_to_numpy(self._network.classify(embeddings)), _to_numpy(embeddings))
        except torch.OutOfMemoryError as error:
            raise ConfigError(f"the GPU's memory does not hold a batch of {len(log_mels)}: lower"
                              f" --batch_size") from error
        finally:
            synchronise(self.device)


def load_backend(model_path: str | os.PathLike, *, device: str = "auto",
                 class_names: Sequence[str] | None = None) -> Backend:
    """Read a model file and make it ready on a device.

    Parameters
    ----------
    model_path : path-like
        A ``.pth`` that ``train_efficientnet.py`` wrote, or NightScan 1's ResNet18.
    device : str
        As ``--device``.
    class_names : sequence of str, optional
        Names of the outputs of a NightScan 1 file.

    Raises
    ------
    CheckpointError, ConfigError
        If the model cannot be trusted or the device is not there.
    """
    return TorchBackend(load_model(model_path, class_names=class_names), resolve_device(device))


def _to_numpy(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
