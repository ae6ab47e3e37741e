"""All augmentations behind one class; what is done to a clip is drawn first, then applied.

The transforms of waveforms are in ``models.waveform_augmentation``, what is done to spectrograms while training in
``models.batch_augmentation``. A clip that only ever becomes a log-mel needs no stretched or shifted waveform:
``augmented_log_mel`` takes its frames at other places and warps the filter bank, several times as fast.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from models.audio_frontend import LogMelFrontend
from models.batch_augmentation import APPLY_PROBABILITY, SpecAugment, change_windows, mask_windows, mixup
from models.efficientnet_config import AugmentationConfig, FrontendConfig
from models.errors import ConfigError
from models.waveform_augmentation import (N_EQUALISER_BANDS, add_noise, change_gain, equalise, equaliser_gains_db,
                                          mix_background, pitch_shift, time_stretch)

_DEFAULTS = AugmentationConfig()


@dataclass(frozen=True, kw_only=True)
class WaveformParameters:
    """One draw of the transforms of a clip, in the order they are applied; None leaves a transform out.

    Parameters
    ----------
    rate : float or None
        Speed of the time stretch.
    n_semitones : float or None
        Pitch shift.
    background_snr_db, snr_db : float or None
        Level of the clip above the background, above the white noise.
    band_gains_db : tuple of float or None
        Gains of the equaliser, highest octave first.
    gain_db : float or None
        Change of level.
    """

    rate: float | None = None
    n_semitones: float | None = None
    background_snr_db: float | None = None
    snr_db: float | None = None
    band_gains_db: tuple[float, ...] | None = None
    gain_db: float | None = None


def draw_waveform_parameters(config: AugmentationConfig, *, rng: np.random.Generator,
                             with_background: bool = False) -> WaveformParameters:
    """Draw which enabled transforms to apply and how strongly.

    Each is taken with ``APPLY_PROBABILITY``, and at least one that changes the shape of a log-mel is: an unchanged
    copy would only weigh a window double, and so would one of another level, which the network does not see. So the
    level is changed alone only where nothing else is enabled. As many numbers are drawn whatever is enabled, so that
    switching one transform off leaves the others as they were.

    Parameters
    ----------
    config : AugmentationConfig
        What is enabled, and the range of each parameter; values are uniform in their range.
    rng : np.random.Generator
        Source of the draw.
    with_background : bool
        Whether there is a background to mix in.

    Returns
    -------
    WaveformParameters
        All None where nothing is enabled.
    """
    names = [f.name for f in dataclasses.fields(WaveformParameters)]
    coins, last_resort = rng.random(len(names)), rng.random()
    everything = WaveformParameters(
        rate=rng.uniform(*config.time_stretch_range), n_semitones=rng.uniform(*config.pitch_shift_range),
        background_snr_db=rng.uniform(*config.background_snr_db_range), snr_db=rng.uniform(*config.noise_snr_db_range),
        band_gains_db=tuple(rng.uniform(*config.equaliser_gain_db_range, N_EQUALISER_BANDS).tolist()),
        gain_db=rng.uniform(*config.gain_db_range))
    shaping = _enabled_shaping(config, with_background=with_background)
    enabled = [*shaping, "gain_db"] if config.use_volume else shaping
    chosen = {name for name, coin in zip(names, coins) if name in enabled and coin < APPLY_PROBABILITY}
    needed = shaping or enabled
    if needed and not chosen.intersection(needed):
        chosen.add(needed[int(last_resort * len(needed))])
    return dataclasses.replace(everything, **{name: None for name in names if name not in chosen})


def _enabled_shaping(config: AugmentationConfig, *, with_background: bool) -> list[str]:
    """Return the parameters of the enabled transforms that change the shape of a log-mel, not only its level."""
    enabled = {"rate": config.use_time_stretch, "n_semitones": config.use_pitch_shift,
               "background_snr_db": config.use_background and with_background, "snr_db": config.use_noise,
               "band_gains_db": config.use_waveform_equaliser}
    return [name for name, is_enabled in enabled.items() if is_enabled]


def apply_waveform_parameters(waveform: np.ndarray, parameters: WaveformParameters, *, sample_rate: int,
                              rng: np.random.Generator, background: np.ndarray | None = None) -> np.ndarray:
    """Apply one draw to a waveform: stretch, pitch, background, noise, equaliser, gain.

    Parameters
    ----------
    waveform : np.ndarray
        float32 ``(n_samples,)``.
    parameters : WaveformParameters
        What ``draw_waveform_parameters`` returned.
    sample_rate : int
        Hz, of waveform and background.
    rng : np.random.Generator
        Source of the excerpt and the noise samples.
    background : np.ndarray, optional
        float32 ``(n_background_samples,)``, at least one sample; without it none is mixed in.

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
    augmented = _add_surroundings(augmented, parameters, background=background, rng=rng)
    if parameters.band_gains_db is not None:
        augmented = equalise(augmented, band_gains_db=np.array(parameters.band_gains_db), sample_rate=sample_rate)
    if parameters.gain_db is not None:
        augmented = change_gain(augmented, gain_db=parameters.gain_db)
    return augmented


def log_mel_of_parameters(clip: np.ndarray, parameters: WaveformParameters, *, frontend: LogMelFrontend,
                          rng: np.random.Generator, background: np.ndarray | None = None) -> np.ndarray:
    """Return the log-mel of a clip to which one draw is applied, with no waveform in between.

    Background and noise are neither stretched nor shifted, so they fill the bands that a shift empties; their power
    is added to that of the clip, as that of sounds that have nothing to do with each other.

    Parameters
    ----------
    clip : np.ndarray
        float32 ``(n_samples,)``, at least one sample; fitted to the window length first.
    parameters : WaveformParameters
        What ``draw_waveform_parameters`` returned.
    frontend : LogMelFrontend
        Whose log-mel it is.
    rng : np.random.Generator
        Source of the excerpt and the noise samples.
    background : np.ndarray, optional
        float32 ``(n_background_samples,)`` at the front end's rate, at least one sample.

    Returns
    -------
    np.ndarray
        float32 ``(n_mels, n_frames)``, dB, floored as ``LogMelFrontend.log_mel`` does it.
    """
    clip = frontend.fit_length(clip)
    mel_power = frontend.mel_power(clip, rate=1.0 if parameters.rate is None else parameters.rate,
                                   frequency_ratio=2 ** ((parameters.n_semitones or 0.0) / 12))
    mixed = _add_surroundings(clip, parameters, background=background, rng=rng)
    if mixed is not clip:
        mel_power += frontend.mel_power(mixed - clip)
    gains_db = np.zeros(len(mel_power))
    if parameters.band_gains_db is not None:
        gains_db += equaliser_gains_db(frontend.band_hertz, np.array(parameters.band_gains_db),
                                       sample_rate=frontend.config.sample_rate)
    if parameters.gain_db is not None:
        gains_db += parameters.gain_db
    return frontend.decibels(mel_power * (10 ** (gains_db / 10)).astype(np.float32)[:, np.newaxis])


def _add_surroundings(waveform: np.ndarray, parameters: WaveformParameters, *, background: np.ndarray | None,
                      rng: np.random.Generator) -> np.ndarray:
    """Add background and noise; the waveform itself is returned where nothing is to be added."""
    if parameters.background_snr_db is not None and background is not None:
        waveform = mix_background(waveform, background, snr_db=parameters.background_snr_db, rng=rng)
    if parameters.snr_db is not None:
        waveform = add_noise(waveform, snr_db=parameters.snr_db, rng=rng)
    return waveform


class AudioAugmentationPipeline:
    """All augmentations behind one configuration; what the flags do not name is as ``AugmentationConfig`` has it.

    Parameters
    ----------
    use_time_stretch, use_pitch_shift, use_noise, use_volume : bool
        Waveform transforms.
    use_spec_augment, use_time_shift : bool
        Spectrogram transforms.
    use_mixup : bool
        Mix pairs of a batch, where ``mixup_alpha`` is above 0.
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

    def require_variety(self, *, with_background: bool) -> None:
        """Raise ConfigError where every augmented log-mel would be the clip's own, or that at another level.

        Parameters
        ----------
        with_background : bool
            Whether there will be a background to mix in.
        """
        if not _enabled_shaping(self.config, with_background=with_background):
            raise ConfigError("augmented copies would equal their windows, as at most their level changes: switch on"
                              " use_time_stretch, use_pitch_shift, use_noise, use_waveform_equaliser, or use_background"
                              " with background recordings, or make no copies")

    def augment_waveform(self, waveform: np.ndarray, *, sample_rate: int, rng: np.random.Generator,
                         background: np.ndarray | None = None) -> np.ndarray:
        """Draw waveform transforms and apply them.

        Parameters
        ----------
        waveform : np.ndarray
            float32 ``(n_samples,)``.
        sample_rate : int
            Hz, of waveform and background.
        rng : np.random.Generator
            Source of the draw, the excerpt and the noise.
        background : np.ndarray, optional
            float32 ``(n_background_samples,)``, at least one sample.

        Returns
        -------
        np.ndarray
            float32 ``(n_samples,)``.
        """
        parameters = draw_waveform_parameters(self.config, rng=rng, with_background=background is not None)
        return apply_waveform_parameters(waveform, parameters, sample_rate=sample_rate, rng=rng, background=background)

    def augmented_log_mel(self, clip: np.ndarray, *, frontend: LogMelFrontend, rng: np.random.Generator,
                          background: np.ndarray | None = None) -> np.ndarray:
        """Draw waveform transforms and return the log-mel that they give, without the waveform.

        The draw is that of ``augment_waveform`` for the same ``rng``; the log-mel differs from that of its waveform
        mostly by what a phase vocoder does to a sound. Where only the level may change (``require_variety`` tells),
        the log-mel is the clip's own at another level.

        Parameters
        ----------
        clip : np.ndarray
            float32 ``(n_samples,)``, at least one sample; fitted to the window length first.
        frontend : LogMelFrontend
            Whose log-mel it is.
        rng : np.random.Generator
            Source of the draw, the excerpt and the noise.
        background : np.ndarray, optional
            float32 ``(n_background_samples,)`` at the front end's rate, at least one sample.

        Returns
        -------
        np.ndarray
            float32 ``(n_mels, n_frames)``, dB.
        """
        parameters = draw_waveform_parameters(self.config, rng=rng, with_background=background is not None)
        return log_mel_of_parameters(clip, parameters, frontend=frontend, rng=rng, background=background)

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
