"""Augmentation of a batch of log-mel spectrograms while training, in a few operations for all of its windows.

What changes a window alone is handed one generator for each window, so that the result does not depend on the batch;
what mixes windows is handed one for the batch. Inputs are left alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.efficientnet_config import AugmentationConfig

APPLY_PROBABILITY = 0.5  # of each enabled transform that is not applied always, independently
SILENCE_DB = -100.0  # the lowest level that the front end writes
_EQUALISER_POINTS = 6  # over the mel bands; between them the gain goes over smoothly
_NEPERS_PER_DB = math.log(10) / 10  # of power

Generators = Sequence[np.random.Generator]


def shift_time(log_mels: Tensor, *, rngs: Generators) -> Tensor:
    """Rotate each window in time by a random number of frames; what leaves at the end returns at the start.

    Parameters
    ----------
    log_mels : torch.Tensor
        ``(B, ..., n_mels, n_frames)``.
    rngs : sequence of np.random.Generator
        One for each window.

    Returns
    -------
    torch.Tensor
        Same shape, dtype and device.
    """
    n_frames = log_mels.shape[-1]
    shifts = np.array([rng.integers(n_frames) for rng in rngs])
    sources = (np.arange(n_frames) - shifts[:, None]) % n_frames
    return log_mels.gather(-1, _along(sources, log_mels, axis=-1).expand_as(log_mels))


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Hide random bands and times of each window behind its own mean.

    Park et al. (2019), "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition",
    Interspeech, section 2, without the time warp.

    Parameters
    ----------
    freq_mask_param, time_mask_param : int
        Each mask is narrower than this many mel bands, frames; limited to the size of the spectrogram.
    n_freq_masks, n_time_masks : int
        Masks of a window; they may overlap.
    """

    freq_mask_param: int
    time_mask_param: int
    n_freq_masks: int
    n_time_masks: int

    def __call__(self, log_mels: Tensor, *, rngs: Generators) -> Tensor:
        """Mask windows on the device they are on.

        Parameters
        ----------
        log_mels : torch.Tensor
            Floating point ``(B, ..., n_mels, n_frames)``.
        rngs : sequence of np.random.Generator
            One for each window.

        Returns
        -------
        torch.Tensor
            Same shape, dtype and device.
        """
        bands = _masked(log_mels.shape[-2], mask_param=self.freq_mask_param, n_masks=self.n_freq_masks, rngs=rngs)
        frames = _masked(log_mels.shape[-1], mask_param=self.time_mask_param, n_masks=self.n_time_masks, rngs=rngs)
        hidden = _along(bands, log_mels, axis=-2) | _along(frames, log_mels, axis=-1)
        return torch.where(hidden, _mean(log_mels), log_mels)


def _masked(size: int, *, mask_param: int, n_masks: int, rngs: Generators) -> np.ndarray:
    """Return which places of an axis the masks of each window hide, bool ``(B, size)``."""
    draws = np.stack([rng.random((2, n_masks, 1)) for rng in rngs])
    widths = draws[:, 0] * min(mask_param, size)
    first = np.floor(draws[:, 1] * (size - widths))
    places = np.arange(size)
    return ((places >= first) & (places < first + np.floor(widths))).any(axis=1)


def equalise(log_mels: Tensor, *, gain_db_range: tuple[float, float], top_db: float, rngs: Generators) -> Tensor:
    """Bend the spectrum of some windows by a smooth random gain, as another microphone or distance does.

    What lies at a window's floor stays there, for nothing is known of the sound below it.

    Parameters
    ----------
    log_mels : torch.Tensor
        Floating point ``(B, ..., n_mels, n_frames)``, dB.
    gain_db_range : tuple of float
        Lowest and highest gain at each of the control points.
    top_db : float
        Dynamic range of the front end.
    rngs : sequence of np.random.Generator
        One for each window; it is changed with ``APPLY_PROBABILITY``.

    Returns
    -------
    torch.Tensor
        Same shape, dtype and device.
    """
    n_mels = log_mels.shape[-2]
    distances = np.abs(np.linspace(0, _EQUALISER_POINTS - 1, n_mels) - np.arange(_EQUALISER_POINTS)[:, None])
    influence = 0.5 + 0.5 * np.cos(np.pi * np.minimum(distances, 1))  # of each point on each band; they sum to 1

    def bend(windows: Tensor, rngs: Generators) -> Tensor:
        points = np.stack([rng.uniform(*gain_db_range, (_EQUALISER_POINTS, 1)) for rng in rngs])
        gains = (points * influence).sum(axis=1).astype(np.float32)
        floor = _floor(windows, top_db=top_db)
        bent = torch.where(windows > floor, windows + _along(gains, windows, axis=-2).to(windows.dtype), floor)
        return bent.maximum(_floor(bent, top_db=top_db))

    return _sometimes(bend, log_mels, rngs=rngs)


def low_pass(log_mels: Tensor, *, share_range: tuple[float, float], top_db: float, rngs: Generators) -> Tensor:
    """Let the highest bands of some windows fall to the window's floor, as if it had been recorded at a lower rate.

    Parameters
    ----------
    log_mels : torch.Tensor
        Floating point ``(B, ..., n_mels, n_frames)``, dB.
    share_range : tuple of float
        Lowest and highest share of the mel bands that are kept.
    top_db : float
        Dynamic range of the front end.
    rngs : sequence of np.random.Generator
        One for each window; it is changed with ``APPLY_PROBABILITY``.

    Returns
    -------
    torch.Tensor
        Same shape, dtype and device.
    """
    n_mels = log_mels.shape[-2]

    def cut(windows: Tensor, rngs: Generators) -> Tensor:
        n_kept = np.array([round(n_mels * rng.uniform(*share_range)) for rng in rngs])
        emptied = _along(np.arange(n_mels) >= n_kept[:, None], windows, axis=-2)
        return torch.where(emptied, _floor(windows, top_db=top_db), windows)

    return _sometimes(cut, log_mels, rngs=rngs)


def mixup(log_mels: Tensor, targets: Tensor, *, alpha: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mix each window, and its label, with another one of the batch.

    Zhang et al. (2018), "mixup: Beyond Empirical Risk Minimization", ICLR, section 2, but with a weight
    ``lam ~ Beta(alpha, alpha)`` for each window, and in power as sounds mix: see ``blend``.

    Parameters
    ----------
    log_mels : torch.Tensor
        Floating point ``(B, ..., n_mels, n_frames)``, dB.
    targets : torch.Tensor
        Floating point ``(B, n_classes)``, rows sum to 1.
    alpha : float
        At least 0; 0 returns both unchanged.
    rng : np.random.Generator
        Source of weights and partners.

    Returns
    -------
    tuple of torch.Tensor
        Windows and targets, mixed with the same weights; the rows of the targets still sum to 1.
    """
    if alpha == 0:
        return log_mels, targets
    weights, order = rng.beta(alpha, alpha, len(log_mels)), rng.permutation(len(log_mels))
    own = torch.from_numpy(weights[:, None]).to(targets)
    return blend(log_mels, partners=order, shares=weights), own * targets + (1 - own) * targets[order]


def mix_background(log_mels: Tensor, is_background: np.ndarray, *, snr_db_range: tuple[float, float],
                   rng: np.random.Generator) -> Tensor:
    """Mix background windows of the batch into some of the others, well below them, so that labels stay.

    Parameters
    ----------
    log_mels : torch.Tensor
        Floating point ``(B, ..., n_mels, n_frames)``, dB.
    is_background : np.ndarray
        bool ``(B,)``: which windows may be mixed into the others, and stay as they are.
    snr_db_range : tuple of float
        Mean power of a window above that of the background, lowest and highest, in dB.
    rng : np.random.Generator
        Source of which, with what, and how loud; a window is changed with ``APPLY_PROBABILITY``.

    Returns
    -------
    torch.Tensor
        Same shape, dtype and device.
    """
    chosen = (rng.random(len(log_mels)) < APPLY_PROBABILITY) & ~is_background
    if not is_background.any():
        return log_mels
    partners = rng.choice(np.flatnonzero(is_background), len(log_mels))
    shares = 1 / (1 + 10 ** (-rng.uniform(*snr_db_range, len(log_mels)) / 10))
    return torch.where(_along(chosen[:, None], log_mels, axis=-1), blend(log_mels, partners=partners, shares=shares),
                       log_mels)


def blend(log_mels: Tensor, *, partners: np.ndarray, shares: np.ndarray) -> Tensor:
    """Mix each window with another one of the batch as sounds mix: their powers add up.

    Both are brought to one mean power first. The level of a recording tells of the recorder's gain, the network does
    not see it, and without this the louder window would be all that is heard of a mixture labelled half and half.
    A mixture reaches no further below its maximum than the windows it is made of, so it needs no floor of its own.

    Parameters
    ----------
    log_mels : torch.Tensor
        Floating point ``(B, ..., n_mels, n_frames)``, dB.
    partners : np.ndarray
        int64 ``(B,)``: with which window each is mixed.
    shares : np.ndarray
        float64 ``(B,)`` in 0..1: what the window itself gives to the power of the mixture.

    Returns
    -------
    torch.Tensor
        dB, each window at its own level; same shape, dtype and device.
    """
    highest = log_mels.amax(dim=(-2, -1), keepdim=True)  # relative to it no power overflows
    # in place where it can be: to ask the system for more memory takes longer than to compute
    powers = (log_mels - highest).mul_(_NEPERS_PER_DB).exp_()
    means = _mean(powers)
    own = _along(shares[:, None], log_mels, axis=-1).to(log_mels.dtype)
    mixed = powers[partners].mul_((1 - own) * means / means[partners]).addcmul_(powers, own)
    return mixed.clamp_min_(torch.finfo(mixed.dtype).tiny).log_().div_(_NEPERS_PER_DB).add_(highest)


def change_windows(log_mels: Tensor, config: AugmentationConfig, *, top_db: float, rngs: Generators) -> Tensor:
    """Shift, equalise and low-pass windows, as far as a configuration asks for it; masks come later.

    Parameters
    ----------
    log_mels : torch.Tensor
        Floating point ``(B, ..., n_mels, n_frames)``, dB.
    config : AugmentationConfig
        What is enabled, and the ranges.
    top_db : float
        Dynamic range of the front end.
    rngs : sequence of np.random.Generator
        One for each window.
    """
    if config.use_time_shift:
        log_mels = shift_time(log_mels, rngs=rngs)
    if config.use_equaliser:
        log_mels = equalise(log_mels, gain_db_range=config.equaliser_gain_db_range, top_db=top_db, rngs=rngs)
    if config.use_low_pass:
        log_mels = low_pass(log_mels, share_range=config.low_pass_share_range, top_db=top_db, rngs=rngs)
    return log_mels


def mask_windows(log_mels: Tensor, config: AugmentationConfig, *, rngs: Generators) -> Tensor:
    """Apply ``SpecAugment`` as a configuration has it, with one generator for each window."""
    if not config.use_spec_augment:
        return log_mels
    masks = SpecAugment(freq_mask_param=config.freq_mask_param, time_mask_param=config.time_mask_param,
                        n_freq_masks=config.n_freq_masks, n_time_masks=config.n_time_masks)
    return masks(log_mels, rngs=rngs)


def _sometimes(change: Callable[[Tensor, Generators], Tensor], log_mels: Tensor, *, rngs: Generators) -> Tensor:
    """Change each window with ``APPLY_PROBABILITY`` and leave the others as they are."""
    chosen = [number for number, rng in enumerate(rngs) if rng.random() < APPLY_PROBABILITY]
    if not chosen:
        return log_mels
    changed = log_mels.clone()
    changed[chosen] = change(log_mels[chosen], [rngs[number] for number in chosen])
    return changed


def _floor(log_mels: Tensor, *, top_db: float) -> Tensor:
    """Return the level at which the front end cuts each window off."""
    return (log_mels.amax(dim=(-2, -1), keepdim=True) - top_db).clamp_min(SILENCE_DB)


def _mean(log_mels: Tensor) -> Tensor:
    # in two steps, as threads share out the sum over a lone window: it would be rounded otherwise than in a batch
    return log_mels.mean(dim=-1, keepdim=True).mean(dim=-2, keepdim=True)


def _along(values: np.ndarray, log_mels: Tensor, *, axis: int) -> Tensor:
    """Return the values of each window, ``(B, n)``, on its device and in a shape that lies along an axis of it."""
    shape = [len(values), *[1] * (log_mels.ndim - 1)]
    shape[axis] = values.shape[1]
    return torch.from_numpy(values).reshape(shape).to(log_mels.device)
