"""Augmentation of waveforms, and all augmentations behind one class; parameters are drawn first, then applied.

Every function takes what it needs as arguments and leaves its input alone. Randomness is a
``np.random.Generator`` handed in, so one key gives one result, whatever ran before. What is done to spectrograms
while training is in ``models.batch_augmentation``.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import librosa
import numpy as np
import torch

from models.batch_augmentation import APPLY_PROBABILITY, SpecAugment, change_windows, mask_windows, mixup
from models.efficientnet_config import AugmentationConfig, FrontendConfig
from models.errors import ConfigError

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


class AudioAugmentationPipeline:
    """All augmentations behind one configuration; what the flags do not name is as ``AugmentationConfig`` has it.

    Parameters
    ----------
    use_time_stretch, use_pitch_shift, use_noise, use_volume : bool
        Waveform transforms.
    use_spec_augment, use_time_shift : bool
        Spectrogram transforms.
    use_mixup : bool
        Mix pairs of a batch.
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
        """Rotate a spectrogram in time, filter it if that is enabled, then mask it.

        Parameters
        ----------
        log_mel : torch.Tensor
            Floating point ``(..., n_mels, n_frames)``, dB, of a front end with the usual dynamic range. What comes
            before the last two axes shares its shift and masks.
        rng : np.random.Generator
            Source of all that is drawn.

        Returns
        -------
        torch.Tensor
            Same shape, dtype and device.
        """
        window = change_windows(log_mel[None], self.config, top_db=FrontendConfig.top_db, rngs=[rng])
        return mask_windows(window, self.config, rngs=[rng])[0]

    def mix(self, inputs: torch.Tensor, targets: torch.Tensor, *,
            rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix the windows of a batch as ``mixup`` does; inputs and targets are returned as given where it is off."""
        if not self.config.use_mixup:
            return inputs, targets
        return mixup(inputs, targets, alpha=self.config.mixup_alpha, rng=rng)
