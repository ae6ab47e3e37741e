"""A network in PyTorch, on any device: what every other back end is compared with."""

import numpy as np
import torch

from models.errors import ConfigError
from utils.networks.backends import NetworkOutput, backend_name
from utils.running.devices import autocast, synchronise
from utils.storage.checkpoints import TrainedModel

_DTYPES = {"float32": None, "float16": torch.float16, "bf16": torch.bfloat16}
BATCH_SIZES = {"cpu": 16, "cuda": 128, "mps": 32}  # windows a pass


class TorchBackend:
    """A network in PyTorch, on one device.

    Parameters
    ----------
    model : TrainedModel
        From ``load_model``.
    device : torch.device
        Where to compute.
    precision : str, optional
        ``float32``, ``float16`` or ``bf16``; float16 on CUDA, float32 elsewhere when None.

    Raises
    ------
    ConfigError
        If it cannot compute in that precision.
    """

    def __init__(self, model: TrainedModel, device: torch.device, *, precision: str | None = None) -> None:
        precision = precision or ("float16" if device.type == "cuda" else "float32")
        if precision not in _DTYPES:
            raise ConfigError(f"--precision {precision} is not for PyTorch: use --backend onnx")
        self.description = model.description
        self.device = device
        self.name = backend_name("torch", device.type, precision)
        self.n_threads = torch.get_num_threads()
        self.batch_size = BATCH_SIZES[device.type]
        self._dtype = _DTYPES[precision]
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
            with torch.inference_mode(), autocast(self.device, self._dtype):
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


def _to_numpy(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
