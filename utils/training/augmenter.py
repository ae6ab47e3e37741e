"""A batch as the data set gives it becomes what the network learns from."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models.batch_augmentation import change_windows, mask_windows, mix_background, mixup
from models.efficientnet_config import BACKGROUND_CLASS, EfficientNetConfig
from models.errors import ConfigError
from utils.storage.spectrograms import Batch

_MIXUP_DRAWS = 1  # last number of mixup's key: keeps it apart from the keys of windows


@dataclass(frozen=True, kw_only=True)
class Augmenter:
    """Turns the batches of one epoch into inputs and soft targets.

    What is drawn for a window depends on seed, epoch and the window's index alone, not on batches or workers. With
    which windows it is mixed depends on seed, epoch and the number of its batch.

    Parameters
    ----------
    config : EfficientNetConfig
        ``use_augmentation``, ``augmentation``, ``seed``, ``frontend.top_db``.
    n_classes : int
        Number of outputs.
    epoch : int
        Counted from 1.
    background_label : int, optional
        The class whose windows are mixed into the others.

    Raises
    ------
    ConfigError
        If background is to be mixed in and there is no such class.
    """

    config: EfficientNetConfig
    n_classes: int
    epoch: int
    background_label: int | None = None

    def __post_init__(self) -> None:
        if self.config.use_augmentation and self.config.augmentation.use_background_mix and (
                self.background_label is None):
            raise ConfigError(f"use_background_mix needs the class {BACKGROUND_CLASS}, which is not among those that"
                              f" are trained: label some windows with it, or switch use_background_mix off")

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
        augmentation, key = self.config.augmentation, (self.config.seed, self.epoch)
        rngs = [np.random.default_rng([*key, index]) for index in batch.indices.tolist()]
        rng = np.random.default_rng([*key, number, _MIXUP_DRAWS])
        inputs = change_windows(inputs, augmentation, top_db=self.config.frontend.top_db, rngs=rngs)
        if augmentation.use_background_mix:
            inputs = mix_background(inputs, batch.labels.numpy() == self.background_label,
                                    snr_db_range=augmentation.background_snr_db_range, rng=rng)
        if augmentation.use_mixup:
            inputs, targets = mixup(inputs, targets, alpha=augmentation.mixup_alpha, rng=rng)
        return mask_windows(inputs, augmentation, rngs=rngs), targets
