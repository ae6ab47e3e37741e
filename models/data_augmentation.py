"""Augmentation of waveforms, spectrograms and batches; parameters are drawn first, then applied.

Every function takes what it needs as arguments and leaves its input alone. Randomness is a
``np.random.Generator`` handed in, so one key gives one result, whatever ran before.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import librosa
import numpy as np
import torch
from torchaudio.functional import mask_along_axis

from models.efficientnet_config import AugmentationConfig
from models.errors import ConfigError

APPLY_PROBABILITY = 0.5  # of each enabled waveform transform, independently
_DEFAULTS = AugmentationConfig()


def time_stretch(waveform: np.ndarray, *, rate: float) -> np.ndarray:
    """Play faster or slower with the pitch unchanged, then fit to the original length.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    rate : float
        Speed, above 0: 2 is twice as fast. A result too short is repeated, one too long is cut.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``.
    """
    stretched = librosa.effects.time_stretch(waveform, rate=rate)
    return np.resize(stretched, waveform.shape).astype(waveform.dtype, copy=False)


def pitch_shift(waveform: np.ndarray, *, n_semitones: float, sample_rate: int) -> np.ndarray:
    """Multiply every frequency by ``2 ** (n_semitones / 12)`` with the duration unchanged.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    n_semitones : float
        Twelfths of an octave, negative is lower.
    sample_rate : int
        Hz.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``.
    """
    shifted = librosa.effects.pitch_shift(waveform, sr=sample_rate, n_steps=n_semitones)
    return shifted.astype(waveform.dtype, copy=False)


def add_noise(waveform: np.ndarray, *, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Add white Gaussian noise, scaled so that this very waveform has the signal-to-noise ratio asked for.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    snr_db : float
        Mean power of the waveform over mean power of the noise, in dB.
    rng : np.random.Generator
        Source of the noise.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``; a copy of the input where that is silent, for silence has no such ratio.
    """
    if not np.any(waveform):
        return waveform.copy()
    noise = rng.standard_normal(waveform.shape)
    # float64: the squares of a quiet float32 recording would lose digits
    noise_power = np.mean(np.square(waveform, dtype=np.float64)) / 10 ** (snr_db / 10)
    noise *= np.sqrt(noise_power / np.mean(noise ** 2))
    return (waveform + noise).astype(waveform.dtype)


def change_gain(waveform: np.ndarray, *, gain_db: float) -> np.ndarray:
    """Change the level without clipping.

    The result may exceed 1. That is fine here: the waveform stays in float32 and goes to a log-mel whose
    dynamic range hangs from the window's own maximum, where a gain is a constant offset. Clipping would add
    harmonics that the animal never sang.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    gain_db : float
        Change of level in dB.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``.
    """
    return waveform * waveform.dtype.type(10 ** (gain_db / 20))


@dataclass(frozen=True, kw_only=True)
class WaveformParameters:
    """One draw of the waveform transforms, in the order they are applied; None leaves a transform out."""

    rate: float | None = None
    n_semitones: float | None = None
    gain_db: float | None = None
    snr_db: float | None = None


def draw_waveform_parameters(config: AugmentationConfig, *, rng: np.random.Generator) -> WaveformParameters:
    """Draw which enabled waveform transforms to apply and how strongly.

    Each is taken with ``APPLY_PROBABILITY``; at least one is, as an unchanged copy would only weigh a window double.

    Parameters
    ----------
    config : AugmentationConfig
        What is enabled, and the range of each parameter; values are uniform in their range.
    rng : np.random.Generator
        Source of the draw.

    Returns
    -------
    WaveformParameters
        All None where nothing is enabled.
    """
    ranges = {
        name: value_range for name, enabled, value_range in (
            ("rate", config.use_time_stretch, config.time_stretch_range),
            ("n_semitones", config.use_pitch_shift, config.pitch_shift_range),
            ("gain_db", config.use_volume, config.gain_db_range),
            ("snr_db", config.use_noise, config.noise_snr_db_range),
        ) if enabled
    }
    if not ranges:
        return WaveformParameters()
    chosen = rng.random(len(ranges)) < APPLY_PROBABILITY
    if not chosen.any():
        chosen[rng.integers(len(ranges))] = True
    return WaveformParameters(**{
        name: float(rng.uniform(*value_range)) for (name, value_range), take in zip(ranges.items(), chosen) if take
    })


def apply_waveform_parameters(waveform: np.ndarray, parameters: WaveformParameters, *, sample_rate: int,
                              rng: np.random.Generator) -> np.ndarray:
    """Apply one draw: stretch, pitch, gain, noise.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    parameters : WaveformParameters
        What ``draw_waveform_parameters`` returned.
    sample_rate : int
        Hz.
    rng : np.random.Generator
        Source of the noise samples.

    Returns
    -------
    np.ndarray
        float32 ``(n_samples,)``, never the input itself.
    """
    augmented = waveform.copy()
    if parameters.rate is not None:
        augmented = time_stretch(augmented, rate=parameters.rate)
    if parameters.n_semitones is not None:
        augmented = pitch_shift(augmented, n_semitones=parameters.n_semitones, sample_rate=sample_rate)
    if parameters.gain_db is not None:
        augmented = change_gain(augmented, gain_db=parameters.gain_db)
    if parameters.snr_db is not None:
        augmented = add_noise(augmented, snr_db=parameters.snr_db, rng=rng)
    return augmented


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Hide random bands and times of a spectrogram behind its own mean.

    Park et al. (2019), "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition",
    Interspeech, section 2, without the time warp.

    Parameters
    ----------
    freq_mask_param, time_mask_param : int
        Each mask is narrower than this many mel bands, frames; limited to the size of the spectrogram.
    n_freq_masks, n_time_masks : int
        Masks per call; they may overlap.
    """

    freq_mask_param: int
    time_mask_param: int
    n_freq_masks: int
    n_time_masks: int

    def __call__(self, log_mel: torch.Tensor, *, rng: np.random.Generator) -> torch.Tensor:
        """Mask a spectrogram on the device it is on.

        Parameters
        ----------
        log_mel : torch.Tensor
            Floating point ``(..., n_mels, n_frames)``. Windows of a batch share their masks; each has its own fill.
        rng : np.random.Generator
            Source of the masks; the state of torch's own generators is left as it was.

        Returns
        -------
        torch.Tensor
            Same shape, dtype and device.
        """
        visible = torch.ones(log_mel.shape[-2:], device=log_mel.device)
        # torchaudio draws from torch's CPU generator; torch.manual_seed would reseed CUDA as well
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2 ** 63 - 1)))
            for axis, mask_param, n_masks in ((0, self.freq_mask_param, self.n_freq_masks),
                                              (1, self.time_mask_param, self.n_time_masks)):
                # torchaudio starts a mask wider than the axis before its beginning, so that it may hide nothing
                mask_param = min(mask_param, visible.shape[axis])
                for _ in range(n_masks):
                    visible = mask_along_axis(visible, mask_param=mask_param, mask_value=0.0, axis=axis)
        return torch.where(visible.bool(), log_mel, log_mel.mean(dim=(-2, -1), keepdim=True))


def shift_time(log_mel: torch.Tensor, *, n_frames: int) -> torch.Tensor:
    """Rotate a spectrogram in time; what leaves at the end returns at the start.

    Parameters
    ----------
    log_mel : torch.Tensor
        ``(..., n_mels, n_frames)``.
    n_frames : int
        Frames to move later; negative is earlier.

    Returns
    -------
    torch.Tensor
        Same shape, dtype and device.
    """
    return torch.roll(log_mel, n_frames, dims=-1)


def mixup(inputs: torch.Tensor, targets: torch.Tensor, *, alpha: float,
          rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each window, and its label, with another one of the batch.

    Zhang et al. (2018), "mixup: Beyond Empirical Risk Minimization", ICLR, section 2: one weight
    ``lam ~ Beta(alpha, alpha)`` and one permutation per batch.

    Parameters
    ----------
    inputs : torch.Tensor
        Floating point ``(B, ...)``.
    targets : torch.Tensor
        Floating point ``(B, n_classes)``, rows sum to 1.
    alpha : float
        At least 0; 0 returns both unchanged.
    rng : np.random.Generator
        Source of the weight and the permutation.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        Inputs and targets as given, blended; the rows of the targets still sum to 1.
    """
    if alpha == 0:
        return inputs, targets
    lam = float(rng.beta(alpha, alpha))
    order = torch.from_numpy(rng.permutation(len(inputs))).to(inputs.device)
    return lam * inputs + (1 - lam) * inputs[order], lam * targets + (1 - lam) * targets[order]


class AudioAugmentationPipeline:
    """All augmentations behind one configuration.

    Parameters
    ----------
    use_time_stretch, use_pitch_shift, use_noise, use_volume : bool
        Waveform transforms.
    use_spec_augment, use_time_shift : bool
        Spectrogram transforms.
    use_mixup : bool
        Blend pairs of a batch.
    spec_augment_config : Mapping[str, int], optional
        Any of the parameters of ``SpecAugment``; those left out keep the default of ``AugmentationConfig``.
    mixup_alpha : float
        Beta parameter of mixup; 0 is off.

    Raises
    ------
    ConfigError
        For an unknown key in ``spec_augment_config`` or an impossible value.

    Examples
    --------
    >>> pipeline = AudioAugmentationPipeline(use_mixup=False, spec_augment_config={"freq_mask_param": 20})
    >>> pipeline.config.freq_mask_param
    20
    """

    def __init__(self, *, use_time_stretch: bool = _DEFAULTS.use_time_stretch,
                 use_pitch_shift: bool = _DEFAULTS.use_pitch_shift, use_noise: bool = _DEFAULTS.use_noise,
                 use_volume: bool = _DEFAULTS.use_volume, use_spec_augment: bool = _DEFAULTS.use_spec_augment,
                 use_time_shift: bool = _DEFAULTS.use_time_shift, use_mixup: bool = _DEFAULTS.use_mixup,
                 spec_augment_config: Mapping[str, int] | None = None,
                 mixup_alpha: float = _DEFAULTS.mixup_alpha) -> None:
        masks = dict(spec_augment_config or {})
        allowed = [f.name for f in dataclasses.fields(SpecAugment)]
        for key in masks:
            if key not in allowed:
                raise ConfigError(f"unknown setting {key!r} in spec_augment_config: choose from {', '.join(allowed)}")
        self.config = AugmentationConfig(
            use_time_stretch=use_time_stretch, use_pitch_shift=use_pitch_shift, use_noise=use_noise,
            use_volume=use_volume, use_spec_augment=use_spec_augment, use_time_shift=use_time_shift,
            use_mixup=use_mixup, mixup_alpha=mixup_alpha).replace(**masks)

    @classmethod
    def from_config(cls, config: AugmentationConfig) -> "AudioAugmentationPipeline":
        """Return the pipeline of a configuration, with the ranges that the constructor leaves at their default."""
        pipeline = cls.__new__(cls)  # a pipeline is its configuration, which the constructor would build from flags
        pipeline.config = config
        return pipeline

    def augment_waveform(self, waveform: np.ndarray, *, sample_rate: int, rng: np.random.Generator) -> np.ndarray:
        """Draw waveform transforms and apply them.

        Parameters
        ----------
        waveform : np.ndarray
            float32 ``(n_samples,)``.
        sample_rate : int
            Hz.
        rng : np.random.Generator
            Source of the draw and the noise.

        Returns
        -------
        np.ndarray
            float32 ``(n_samples,)``.
        """
        parameters = draw_waveform_parameters(self.config, rng=rng)
        return apply_waveform_parameters(waveform, parameters, sample_rate=sample_rate, rng=rng)

    def augment_log_mel(self, log_mel: torch.Tensor, *, rng: np.random.Generator) -> torch.Tensor:
        """Rotate a spectrogram in time, then mask it.

        Parameters
        ----------
        log_mel : torch.Tensor
            Floating point ``(..., n_mels, n_frames)``, dB.
        rng : np.random.Generator
            Source of the shift and the masks.

        Returns
        -------
        torch.Tensor
            Same shape, dtype and device; the input itself where both are off.
        """
        config = self.config
        if config.use_time_shift:
            log_mel = shift_time(log_mel, n_frames=int(rng.integers(log_mel.shape[-1])))
        if config.use_spec_augment:
            masks = {f.name: getattr(config, f.name) for f in dataclasses.fields(SpecAugment)}
            log_mel = SpecAugment(**masks)(log_mel, rng=rng)
        return log_mel

    def mix(self, inputs: torch.Tensor, targets: torch.Tensor, *,
            rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Blend the windows of a batch as ``mixup`` does; inputs and targets are returned as given where it is off."""
        if not self.config.use_mixup:
            return inputs, targets
        return mixup(inputs, targets, alpha=self.config.mixup_alpha, rng=rng)
