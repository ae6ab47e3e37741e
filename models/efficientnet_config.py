"""Every setting of a NightScan model, once: front end, augmentation, experiment, presets.

Only the standard library is imported here, so that ``--help`` stays instant.

Three frozen dataclasses nest: ``EfficientNetConfig`` holds a ``FrontendConfig`` and an
``AugmentationConfig``. The constructor reports every problem at once; ``from_dict`` refuses unknown keys.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from models.errors import ConfigError

DEFAULT_CLASS_NAMES = (
    "bird_song", "mammal_call", "insect_sound", "amphibian_call", "environmental_sound", "unknown_species",
)
DEFAULT_THRESHOLDS = types.MappingProxyType({
    "bird_song": 0.70, "mammal_call": 0.75, "insect_sound": 0.65,
    "amphibian_call": 0.70, "environmental_sound": 0.80, "unknown_species": 0.50,
})
LEAST_NEW_SECONDS = 0.1  # a last window that adds less is the one before once more
FALLBACK_THRESHOLD = 0.50  # for classes that DEFAULT_THRESHOLDS does not name
REJECT_CLASS = "unknown_species"
BACKGROUND_CLASS = "environmental_sound"  # its windows are mixed into others by use_background_mix

EFFICIENTNET_NAMES = ("efficientnet-b0", "efficientnet-b1", "efficientnet-b2", "efficientnet-b3")
RESNET_NAME = "resnet18"
MODEL_NAMES = (*EFFICIENTNET_NAMES, RESNET_NAME)
STARTER, IMAGENET, FROM_SCRATCH = STARTS = ("starter", "imagenet", "none")  # anything else names a file


def _setting(default, description: str, *, choices: tuple | None = None):
    """Declare a field whose default, help text and allowed values stand in one place."""
    return field(default=default, metadata={"help": description, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What the three config dataclasses share: strict reading, copying, checking."""

    def __post_init__(self) -> None:
        problems = [*self._type_problems()]
        if not problems:
            problems += [*self._choice_problems(), *self._problems()]
        if problems:
            raise ConfigError("; ".join(problems))
        for name, expected in typing.get_type_hints(type(self)).items():
            if isinstance(getattr(self, name), Mapping):  # a copy of one's own: no two configs share it
                object.__setattr__(self, name, dict(getattr(self, name)))
            if expected is float:  # 50 and 50.0 are one setting: they must be written, and so fingerprinted, alike
                object.__setattr__(self, name, float(getattr(self, name)))

    def _type_problems(self):
        for name, expected in typing.get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, expected):
                yield f"{name} must be {_type_name(expected)}, got {value!r}"

    def _choice_problems(self):
        for f in dataclasses.fields(self):
            choices, value = f.metadata.get("choices"), getattr(self, f.name)
            if choices and value not in choices:
                yield f"{f.name} must be one of {', '.join(map(str, choices))}, got {value!r}"

    def _problems(self):
        return ()

    def replace(self, **changes):
        """Return a copy with some fields changed; unknown names raise ConfigError."""
        _refuse_unknown(type(self), changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        """Return the settings as plain JSON types, nested configs as dicts."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping):
        """Build the config from a mapping; missing keys take their default.

        Parameters
        ----------
        values : Mapping
            Field names to values, as ``to_dict`` writes them.

        Returns
        -------
        config
            An instance of the class.

        Raises
        ------
        ConfigError
            For an unknown key (the nearest valid one is named) or an impossible value.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{cls.__name__} settings must be a JSON object, got {values!r}")
        _refuse_unknown(cls, values)
        hints = typing.get_type_hints(cls)
        return cls(**{name: _revive(value, hints[name]) for name, value in values.items()})


def _refuse_unknown(cls: type, values: Mapping) -> None:
    names = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
            raise ConfigError(f"unknown setting {key!r} in {cls.__name__}: did you mean {near!r}?")


def _fits(value, expected) -> bool:
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(expected))
    if expected is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if typing.get_origin(expected) is tuple:
        parts = typing.get_args(expected)
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_fits, value, parts))
    if typing.get_origin(expected) is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(k, a) and _fits(v, b) for (k, v) in value.items() for (a, b) in [typing.get_args(expected)])
    return isinstance(value, expected)


def _type_name(expected) -> str:
    if typing.get_origin(expected) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(option) for option in typing.get_args(expected))
    if typing.get_origin(expected) is tuple:
        return f"{len(typing.get_args(expected))} values"
    return {"NoneType": "null", "float": "a finite number", "int": "an integer", "bool": "true or false",
            "str": "text", "Mapping": "a mapping of class to number"}.get(
                getattr(expected, "__name__", "Mapping"), expected.__name__)


def _plain(value):
    if isinstance(value, _Settings):
        return value.to_dict()
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _revive(value, expected):
    if isinstance(expected, type) and issubclass(expected, _Settings) and not isinstance(value, expected):
        return expected.from_dict(value)
    if typing.get_origin(expected) is tuple and isinstance(value, list):
        return tuple(value)
    return value


@dataclass(frozen=True, kw_only=True)
class FrontendConfig(_Settings):
    """How a waveform becomes a log-mel spectrogram: the one home of these numbers."""

    sample_rate: int = _setting(22050, "rate every recording is resampled to, in Hz")
    n_fft: int = _setting(2048, "length of the Fourier transform and its Hann window, in samples")
    hop_length: int = _setting(512, "distance between frames, in samples")
    n_mels: int = _setting(128, "number of mel bands")
    f_min: float = _setting(50.0, "lower edge of the lowest mel band, in Hz")
    f_max: float = _setting(11025.0, "upper edge of the highest mel band, in Hz")
    segment_duration_ms: int = _setting(8000, "length of one window, in ms")
    mel_scale: str = _setting("slaney", "mel formula", choices=("slaney", "htk"))
    mel_norm: str = _setting("slaney", "scaling of the mel triangles", choices=("slaney", "none"))
    edge_mode: str = _setting("constant", "what stands outside the window for its first and last frame",
                              choices=("constant", "reflect"))
    padding: str = _setting("repeat", "how a recording shorter than a window is filled", choices=("repeat", "zeros"))
    top_db: float = _setting(80.0, "dynamic range kept below a window's own maximum, in dB")

    def _problems(self):
        if self.sample_rate < 1000:
            yield f"sample_rate must be at least 1000 Hz, got {self.sample_rate}"
        if self.n_fft < 16:
            yield f"n_fft must be at least 16, got {self.n_fft}"
        if not 1 <= self.hop_length <= self.n_fft:
            yield f"hop_length must be in 1..{self.n_fft} (n_fft), got {self.hop_length}"
        if not 1 <= self.n_mels <= self.n_fft // 2 + 1:
            yield f"n_mels must be in 1..{self.n_fft // 2 + 1} for n_fft={self.n_fft}, got {self.n_mels}"
        if not 0 <= self.f_min < self.f_max:
            yield f"f_min must be in 0..f_max ({self.f_max}), got {self.f_min}"
        if self.f_max > self.sample_rate / 2:
            yield (f"f_max must be at most half the sample_rate ({self.sample_rate / 2:g} Hz), got {self.f_max:g};"
                   f" lower --f_max or raise --sample_rate")
        if self.segment_samples < self.n_fft:
            yield (f"segment_duration must be at least {1000 * self.n_fft / self.sample_rate:.0f} ms"
                   f" (n_fft={self.n_fft} samples), got {self.segment_duration_ms} ms")
        if self.top_db <= 0:
            yield f"top_db must be positive, got {self.top_db}"

    @property
    def segment_samples(self) -> int:
        """Samples in one window, rounded once here."""
        return round(self.sample_rate * self.segment_duration_ms / 1000)

    @property
    def n_frames(self) -> int:
        """Spectrogram columns of one window: frames that fit into it padded by half an ``n_fft`` on both sides."""
        return 1 + (self.segment_samples + 2 * (self.n_fft // 2) - self.n_fft) // self.hop_length

    @property
    def least_new_samples(self) -> int:
        """Samples that a last window must add to the one before to be worth having."""
        return round(self.sample_rate * LEAST_NEW_SECONDS)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(_Settings):
    """Strength of each augmentation; every one can be switched off.

    The first block changes the sound itself (``preprocess_enhanced.py --apply_augmentation``), the second
    spectrograms while training. What both do, bend the spectrum and mix background in, has one range for both.
    """

    use_time_stretch: bool = _setting(True, "play faster or slower, pitch unchanged")
    use_pitch_shift: bool = _setting(True, "raise or lower the pitch, duration unchanged")
    use_noise: bool = _setting(True, "add white noise at a drawn signal-to-noise ratio")
    use_volume: bool = _setting(True, "change the level, never alone where another change is enabled")
    use_background: bool = _setting(True, "mix in an excerpt of a background recording, where there are such, at a"
                                          " level drawn from background_snr_db_range")
    use_waveform_equaliser: bool = _setting(False, "colour the sound by a smooth gain, drawn for each octave from"
                                                   " equaliser_gain_db_range; off, as use_equaliser does it anew in"
                                                   " each epoch of training")
    time_stretch_range: tuple[float, float] = _setting((0.85, 1.18), "rate of the time stretch, lowest and highest")
    pitch_shift_range: tuple[float, float] = _setting((-2.0, 2.0), "pitch shift in semitones, lowest and highest")
    noise_snr_db_range: tuple[float, float] = _setting((8.0, 30.0), "signal-to-noise ratio in dB")
    gain_db_range: tuple[float, float] = _setting((-9.0, 9.0), "change of level in dB")

    use_spec_augment: bool = _setting(True, "mask random bands and times (SpecAugment)")
    use_time_shift: bool = _setting(True, "rotate the window in time by a random amount")
    use_mixup: bool = _setting(True, "blend pairs of windows and their labels (mixup), where mixup_alpha is above 0")
    freq_mask_param: int = _setting(30, "widest frequency mask, in mel bands")
    time_mask_param: int = _setting(40, "widest time mask, in frames")
    n_freq_masks: int = _setting(2, "frequency masks per window")
    n_time_masks: int = _setting(2, "time masks per window")
    mixup_alpha: float = _setting(0.0, "Beta parameter of mixup, as 0.2; 0 is off")
    use_equaliser: bool = _setting(True, "tilt and bend the spectrum, as another microphone or distance does")
    use_low_pass: bool = _setting(True, "empty the highest bands, as a recording at a lower rate has them")
    use_background_mix: bool = _setting(False, f"mix windows of the class {BACKGROUND_CLASS} into the others")
    equaliser_gain_db_range: tuple[float, float] = _setting((-9.0, 9.0), "gain of the equaliser in dB")
    low_pass_share_range: tuple[float, float] = _setting((0.6, 1.0), "share of the mel bands that a low-pass keeps")
    background_snr_db_range: tuple[float, float] = _setting((5.0, 20.0), "level of a window above the background mixed"
                                                                         " into it, in dB")

    def _problems(self):
        for name in ("freq_mask_param", "time_mask_param", "n_freq_masks", "n_time_masks", "mixup_alpha"):
            if getattr(self, name) < 0:
                yield f"{name} must not be negative, got {getattr(self, name)}"
        for name in ("time_stretch_range", "pitch_shift_range", "noise_snr_db_range", "gain_db_range",
                     "equaliser_gain_db_range", "low_pass_share_range", "background_snr_db_range"):
            low, high = getattr(self, name)
            if low > high:
                yield f"{name} must be ordered low, high; got {low}, {high}"
        if self.time_stretch_range[0] <= 0:
            yield f"time_stretch_range must be positive, got {self.time_stretch_range}"
        if not (0 < self.low_pass_share_range[0] and self.low_pass_share_range[1] <= 1):
            yield f"low_pass_share_range must be in 0..1 (0 excluded), got {self.low_pass_share_range}"


# those of AugmentationConfig that change the sound itself: what an augmented copy depends on
WAVEFORM_SETTINGS = ("use_time_stretch", "use_pitch_shift", "use_noise", "use_volume", "use_background",
                     "use_waveform_equaliser", "time_stretch_range", "pitch_shift_range", "noise_snr_db_range",
                     "gain_db_range", "background_snr_db_range", "equaliser_gain_db_range")

# names of numbers, what each must fulfil unless it is null, and that in words
_RULES_OF_NUMBERS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("batch_size", "epochs", "accumulation_steps"), lambda value: value >= 1, "be at least 1"),
    (("weight_decay", "gradient_clipping", "warmup_epochs", "patience", "seed", "freeze_epochs", "l2_to_start"),
     lambda value: value >= 0, "not be negative"),
    (("learning_rate", "batch_norm_epsilon"), lambda value: value > 0, "be positive"),
    (("dropout_rate", "drop_connect_rate", "label_smoothing", "ema_decay"), lambda value: 0 <= value < 1,
     "be in 0..1 (1 excluded)"),
    (("layer_decay", "batch_norm_momentum"), lambda value: 0 < value <= 1, "be in 0..1 (0 excluded)"),
    (("target_precision",), lambda value: 0 < value < 1, "be between 0 and 1"),
)


@dataclass(frozen=True, kw_only=True)
class EfficientNetConfig(_Settings):
    """One experiment: network, optimisation, augmentation, front end, thresholds.

    Examples
    --------
    >>> EfficientNetConfig(model_name="efficientnet-b1", batch_size=32, epochs=75).epochs
    75
    """

    model_name: str = _setting("efficientnet-b1", "network", choices=MODEL_NAMES)
    batch_size: int = _setting(32, "windows per step")
    epochs: int = _setting(50, "passes over the training data")
    learning_rate: float = _setting(1e-4, "peak learning rate")
    weight_decay: float = _setting(0.01, "decoupled weight decay (L2 for sgd and adam)")
    dropout_rate: float = _setting(0.3, "dropout before the classifier, 0..1")
    drop_connect_rate: float = _setting(0.2, "stochastic depth of EfficientNet, 0..1")
    optimizer: str = _setting("adamw", "optimizer", choices=("adamw", "adam", "sgd"))
    scheduler: str = _setting("cosine", "learning rate after the warm-up", choices=("cosine", "constant"))
    warmup_epochs: int = _setting(2, "epochs of linear warm-up; at most half of the run")
    accumulation_steps: int = _setting(1, "batches per optimizer step")
    gradient_clipping: float = _setting(1.0, "largest gradient norm; 0 is off")
    mixed_precision: bool = _setting(True, "float16 on CUDA, bfloat16 on a CPU that has it")
    use_augmentation: bool = _setting(True, "augment while training")
    label_smoothing: float = _setting(0.1, "share of the label spread over all classes, 0..1")
    class_weights: str = _setting("balanced", "weight of a window in the loss by its class: inverse to the class's"
                                              " frequency, to its square root, or equal",
                                  choices=("balanced", "sqrt", "none"))
    patience: int = _setting(15, "epochs without improvement before stopping; 0 is never")
    monitor: str = _setting("macro_f1", "validation score that decides what is best",
                            choices=("macro_f1", "accuracy", "loss"))
    initial_weights: str = _setting("starter", "what the network begins with: starter (it has heard sounds), imagenet"
                                               " (it has seen pictures), none (random weights), or a FILE")
    batch_norm_momentum: float | None = _setting(None, "weight of a new batch in the running statistics;"
                                                       " null chooses by the steps in an epoch")
    batch_norm_epsilon: float | None = _setting(None, "batch-norm epsilon; null chooses by initial_weights")
    probe_first: bool = _setting(False, "begin with the classifier of a linear probe, which already knows the classes")
    freeze_epochs: int = _setting(0, "first epochs in which only the classifier learns")
    freeze_batch_norm: bool = _setting(False, "keep the start's batch-norm statistics while training")
    layer_decay: float = _setting(1.0, "learning rate of a stage as a share of the stage behind it, 0..1")
    l2_to_start: float = _setting(0.0, "pull of the body's weights towards the start (L2-SP); 0 is off")
    ema_decay: float = _setting(0.0, "weight of the past in the moving average of weights that is kept; 0 is off")
    reestimate_batch_norm: bool = _setting(False, "take batch-norm statistics anew from clean windows after each epoch")
    target_precision: float | None = _setting(None, "precision each class must reach on validation, which sets its"
                                              " threshold; null keeps the thresholds")
    seed: int = _setting(42, "seed of weights, order and augmentation")
    reject_class: str = _setting(REJECT_CLASS, "class given when no class reaches its threshold")
    thresholds: Mapping[str, float] = field(
        default_factory=lambda: dict(DEFAULT_THRESHOLDS),
        metadata={"help": "probability a class must reach, by class name"})
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    frontend: FrontendConfig = field(default_factory=FrontendConfig)

    def _problems(self):
        for names, fits, rule in _RULES_OF_NUMBERS:
            for name in names:
                value = getattr(self, name)
                if value is not None and not fits(value):
                    yield f"{name} must {rule}, got {value}"
        if self.freeze_epochs >= self.epochs >= 1:
            yield (f"freeze_epochs must be below epochs ({self.epochs}), got {self.freeze_epochs}: lower"
                   f" --freeze_epochs or raise --epochs")
        if not self.initial_weights.strip():
            yield f"initial_weights must be {', '.join(STARTS)} or a file, got {self.initial_weights!r}"
        for name, value in self.thresholds.items():
            if not 0 <= value <= 1:
                yield f"thresholds[{name!r}] must be in 0..1, got {value}"

    @classmethod
    def from_dict(cls, values: Mapping):
        """Build the config from a mapping, as ``to_dict`` writes it now or as version 2.0.0 did.

        2.0.0 knew ``pretrained``, true or false, in place of ``initial_weights``, and trained without what was added
        since, the equaliser and the low-pass too. Raises ConfigError for an unknown key or an impossible value.
        """
        if isinstance(values, Mapping) and "pretrained" in values:
            values = dict(values)
            pretrained = values.pop("pretrained")
            if not isinstance(pretrained, bool):
                raise ConfigError(f"pretrained must be true or false, got {pretrained!r}")
            values.setdefault("initial_weights", IMAGENET if pretrained else FROM_SCRATCH)
            values["augmentation"] = {"use_equaliser": False, "use_low_pass": False,
                                      **values.get("augmentation", {})}
        return super().from_dict(values)

    def threshold(self, class_name: str) -> float:
        """Return the probability that ``class_name`` must reach to be reported, 0..1."""
        return self.thresholds.get(class_name, FALLBACK_THRESHOLD)


_PRESETS: Mapping[str, Mapping] = {
    "efficientnet_b0_fast": {"model_name": "efficientnet-b0", "batch_size": 64, "epochs": 30, "learning_rate": 2e-4},
    "efficientnet_b1_balanced": {},
    "efficientnet_b2_quality": {"model_name": "efficientnet-b2", "batch_size": 16, "epochs": 100,
                                "learning_rate": 5e-5},
    "efficientnet_b3_best": {"model_name": "efficientnet-b3", "batch_size": 8, "epochs": 150, "learning_rate": 2e-5},
    "resnet18_baseline": {"model_name": RESNET_NAME},
}
DEFAULT_PRESET = "efficientnet_b1_balanced"

# what a start brings, in place of a preset's number that nobody gave
_SETTINGS_OF_STARTS: Mapping[str, Mapping] = {
    STARTER: {"epochs": 4, "learning_rate": 1e-4, "drop_connect_rate": 0.0, "warmup_epochs": 1, "ema_decay": 0.98,
              "probe_first": True},
    IMAGENET: {"epochs": 14, "learning_rate": 1e-3},
    FROM_SCRATCH: {"learning_rate": 1e-3, "drop_connect_rate": 0.0},
}
_SETTINGS_OF_DISTILLATION: Mapping = {
    "initial_weights": IMAGENET, "batch_size": 32, "epochs": 20, "learning_rate": 1e-3, "drop_connect_rate": 0.0,
    "warmup_epochs": 1,
}


def with_start_settings(config: EfficientNetConfig, *, given: Collection[str], start: str | None = None
                        ) -> EfficientNetConfig:
    """Return a config with the settings that its start brings, but for those that were given.

    Parameters
    ----------
    config : EfficientNetConfig
        A preset's, with what was given on top.
    given : collection of str
        Names of the settings that a file or a flag gave.
    start : str, optional
        Which of ``STARTS`` the start is like; without it a file is like the starter.
    """
    start = start or (config.initial_weights if config.initial_weights in STARTS else STARTER)
    return _without_given(config, _SETTINGS_OF_STARTS[start], given)


def with_distillation_settings(config: EfficientNetConfig, *, given: Collection[str]) -> EfficientNetConfig:
    """Return a config with the settings that a distillation brings, but for those that were given."""
    return _without_given(config, _SETTINGS_OF_DISTILLATION, given)


def _without_given(config: EfficientNetConfig, settings: Mapping, given: Collection[str]) -> EfficientNetConfig:
    return config.replace(**{name: value for name, value in settings.items() if name not in given})


def list_configs() -> tuple[str, ...]:
    """Return the names of the presets."""
    return tuple(_PRESETS)


def get_config(name: str) -> EfficientNetConfig:
    """Return a preset by name.

    Parameters
    ----------
    name : str
        One of ``list_configs()``.

    Returns
    -------
    EfficientNetConfig
        The preset.

    Raises
    ------
    ConfigError
        If there is no such preset; the message lists those there are.
    """
    if name not in _PRESETS:
        raise ConfigError(f"unknown config {name!r}: choose one of {', '.join(_PRESETS)}, or a .json file")
    return EfficientNetConfig(**_PRESETS[name])
