"""A batch as the data set gives it becomes what the network learns from."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.data_augmentation import AudioAugmentationPipeline
from models.efficientnet_config import EfficientNetConfig
from utils.storage.spectrograms import Batch

_MIXUP_DRAWS = 1  # last number of mixup's key: keeps it apart from the keys of windows


@dataclass(frozen=True, kw_only=True)
class Augmenter:
    """Turns the batches of one epoch into inputs and soft targets.

    What is drawn for a window depends on seed, epoch and the window's index alone, not on batches or workers.

    Parameters
    ----------
    config : EfficientNetConfig
        ``use_augmentation``, ``augmentation``, ``seed``.
    n_classes : int
        Number of outputs.
    epoch : int
        Counted from 1.
    """

    config: EfficientNetConfig
    n_classes: int
    epoch: int

    def __call__(self, batch: Batch, *, number: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Parameters
        ----------
        batch : Batch
            Left as it is.
        number : int
            Of the batch in its epoch.
        device : torch.device
            Where to.

        Returns
        -------
        inputs : torch.Tensor
            float32 ``(B, 1, n_mels, n_frames)``, dB.
        targets : torch.Tensor
            float32 ``(B, n_classes)``, rows sum to 1.
        """
        inputs = batch.log_mel.to(device, non_blocking=True)
        targets = functional.one_hot(batch.labels, self.n_classes).float().to(device, non_blocking=True)
        if not self.config.use_augmentation:
            return inputs, targets
        pipeline = AudioAugmentationPipeline.from_config(self.config.augmentation)
        key = (self.config.seed, self.epoch)
        inputs = torch.stack([pipeline.augment_log_mel(log_mel, rng=np.random.default_rng([*key, index]))
                              for log_mel, index in zip(inputs, batch.indices.tolist(), strict=True)])
        return pipeline.mix(inputs, targets, rng=np.random.default_rng([*key, number, _MIXUP_DRAWS]))
