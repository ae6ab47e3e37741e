import dataclasses
import json
import pickle
import subprocess
import sys

import pytest

from models.efficientnet_config import (DEFAULT_CLASS_NAMES, DEFAULT_PRESET, DEFAULT_THRESHOLDS, AugmentationConfig,
                                        EfficientNetConfig, FrontendConfig, get_config, list_configs,
                                        with_distillation_settings, with_start_settings)
from models.errors import ConfigError, NightScanError
from tests.conftest import PROJECT

CONFIG_CLASSES = (FrontendConfig, AugmentationConfig, EfficientNetConfig)


@pytest.mark.parametrize(("name", "model_name", "batch_size", "epochs", "learning_rate"), [
    ("efficientnet_b0_fast", "efficientnet-b0", 64, 30, 2e-4),
    ("efficientnet_b1_balanced", "efficientnet-b1", 32, 50, 1e-4),
    ("efficientnet_b2_quality", "efficientnet-b2", 16, 100, 5e-5),
    ("efficientnet_b3_best", "efficientnet-b3", 8, 150, 2e-5),
])
def test_the_numbers_of_the_presets(name, model_name, batch_size, epochs, learning_rate):
    config = get_config(name)
    found = (config.model_name, config.batch_size, config.epochs, config.learning_rate)
    assert found == (model_name, batch_size, epochs, learning_rate)


def test_the_presets_are_five_and_each_can_be_had():
    assert list_configs() == ("efficientnet_b0_fast", "efficientnet_b1_balanced", "efficientnet_b2_quality",
                              "efficientnet_b3_best", "resnet18_baseline")
    assert get_config("resnet18_baseline").model_name == "resnet18"
    assert get_config(DEFAULT_PRESET) == EfficientNetConfig() == get_config("efficientnet_b1_balanced")


def test_a_config_as_the_architecture_writes_it():
    config = EfficientNetConfig(model_name="efficientnet-b1", batch_size=32, epochs=75, learning_rate=1e-4,
                                use_augmentation=True, mixed_precision=True, gradient_clipping=1.0)
    assert config == get_config("efficientnet_b1_balanced").replace(epochs=75)


def test_the_default_front_end():
    config = EfficientNetConfig().frontend
    assert (config.sample_rate, config.n_fft, config.hop_length, config.n_mels) == (22050, 2048, 512, 128)
    assert (config.f_min, config.f_max, config.segment_duration_ms) == (50, 11025, 8000)
    assert (config.segment_samples, config.n_frames) == (176400, 345)


def test_the_default_thresholds_and_classes():
    assert DEFAULT_CLASS_NAMES == ("bird_song", "mammal_call", "insect_sound", "amphibian_call",
                                   "environmental_sound", "unknown_species")
    assert dict(DEFAULT_THRESHOLDS) == dict(zip(DEFAULT_CLASS_NAMES, (0.70, 0.75, 0.65, 0.70, 0.80, 0.50)))
    assert EfficientNetConfig().threshold("environmental_sound") == 0.80
    assert EfficientNetConfig().threshold("a class of one's own") == 0.50
    assert EfficientNetConfig(thresholds={"lion": 0.9}).threshold("lion") == 0.9


def test_a_duration_is_rounded_not_cut():
    # 48000 * 4.35 is 208799.99... in floating point
    assert FrontendConfig(sample_rate=48000, segment_duration_ms=4350).segment_samples == 208800


@pytest.mark.parametrize("cls", CONFIG_CLASSES)
def test_configs_are_frozen_and_keyword_only(cls):
    config = cls()
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError, match=name):
        setattr(config, name, getattr(config, name))
    with pytest.raises(TypeError, match="positional"):
        cls(getattr(config, name))


@pytest.mark.parametrize("cls", CONFIG_CLASSES)
def test_every_flat_field_has_a_help_text(cls):
    flat = [f for f in dataclasses.fields(cls) if f.name not in ("augmentation", "frontend")]
    assert [f.name for f in flat if not f.metadata.get("help")] == []


def test_two_configs_share_nothing_that_can_change():
    first, second = EfficientNetConfig(), EfficientNetConfig()
    first.thresholds["bird_song"] = 0.1
    assert second.threshold("bird_song") == DEFAULT_THRESHOLDS["bird_song"] == 0.70


@pytest.mark.parametrize("copy", [
    lambda config: config.replace(epochs=3), lambda config: EfficientNetConfig(thresholds=config.thresholds),
    lambda config: EfficientNetConfig.from_dict({"thresholds": config.thresholds}), dataclasses.replace,
])
def test_a_copy_has_thresholds_of_its_own(copy):
    config = EfficientNetConfig(thresholds={"owl": 0.9})
    copied = copy(config)
    copied.thresholds["owl"] = 0.1
    assert config.threshold("owl") == 0.9


def test_all_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        EfficientNetConfig(model_name="vgg16", batch_size=0, epochs=-3, learning_rate=0.0, dropout_rate=1.0,
                           thresholds={"bird_song": 1.5}, batch_norm_momentum=0.0)
    message = str(caught.value)
    for part in ("model_name must be one of efficientnet-b0", "got 'vgg16'", "batch_size must be at least 1, got 0",
                 "epochs must be at least 1, got -3", "learning_rate must be positive, got 0",
                 "dropout_rate must be in", "thresholds['bird_song'] must be in 0..1, got 1.5",
                 "batch_norm_momentum must be in"):
        assert part in message, part
    assert "\n" not in message


def test_all_wrong_types_are_told_at_once():
    with pytest.raises(ConfigError, match="batch_size must be an integer, got '32'; learning_rate must be a finite "
                                          "number, got nan; mixed_precision must be true or false, got 1"):
        EfficientNetConfig(batch_size="32", learning_rate=float("nan"), mixed_precision=1)


@pytest.mark.parametrize(("values", "message"), [
    ({"n_mels": 4096}, r"n_mels must be in 1\.\.1025 for n_fft=2048, got 4096"),
    ({"n_mels": True}, "n_mels must be an integer, got True"),
    ({"sample_rate": 999, "f_max": 400.0, "n_fft": 16, "hop_length": 8, "n_mels": 4}, "sample_rate must be at least"),
    ({"n_fft": 8, "hop_length": 8, "n_mels": 4}, "n_fft must be at least 16, got 8"),
    ({"hop_length": 0}, r"hop_length must be in 1\.\.2048"),
    ({"hop_length": 2049}, r"hop_length must be in 1\.\.2048 \(n_fft\), got 2049"),
    ({"f_min": 11025.0}, "f_min must be in"),
    ({"f_min": -1.0}, "f_min must be in"),
    ({"f_max": 11026.0}, r"f_max must be at most half the sample_rate \(11025 Hz\), got 11026; lower --f_max"),
    ({"segment_duration_ms": 50}, "segment_duration must be at least 93 ms"),
    ({"top_db": 0.0}, "top_db must be positive"),
    ({"mel_scale": "bark"}, "mel_scale must be one of slaney, htk, got 'bark'"),
    ({"padding": "wrap"}, "padding must be one of repeat, zeros, got 'wrap'"),
])
def test_an_impossible_front_end_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        FrontendConfig(**values)


@pytest.mark.parametrize("values", [
    {"n_mels": 1025}, {"n_mels": 1}, {"hop_length": 2048}, {"hop_length": 1}, {"f_min": 0.0}, {"f_max": 11025.0},
    {"segment_duration_ms": 93}, {"sample_rate": 1000, "f_max": 500.0},
])
def test_the_edges_of_the_front_end_are_allowed(values):
    config = FrontendConfig(**values)
    assert {name: getattr(config, name) for name in values} == values


@pytest.mark.parametrize(("values", "message"), [
    ({"freq_mask_param": -1}, "freq_mask_param must not be negative, got -1"),
    ({"pitch_shift_range": (2.0, -2.0)}, "pitch_shift_range must be ordered low, high"),
    ({"time_stretch_range": (0.0, 1.2)}, "time_stretch_range must be positive"),
    ({"gain_db_range": (1.0, 2.0, 3.0)}, "gain_db_range must be 2 values"),
    ({"noise_snr_db_range": 8.0}, "noise_snr_db_range must be 2 values"),
    ({"equaliser_gain_db_range": (9.0, -9.0)}, "equaliser_gain_db_range must be ordered low, high"),
    ({"background_snr_db_range": (20.0, 5.0)}, "background_snr_db_range must be ordered low, high"),
    ({"low_pass_share_range": (0.0, 1.0)}, "low_pass_share_range must be in"),
    ({"low_pass_share_range": (0.5, 1.5)}, "low_pass_share_range must be in"),
])
def test_an_impossible_augmentation_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        AugmentationConfig(**values)


def test_what_begins_frozen_must_thaw():
    with pytest.raises(ConfigError, match=r"freeze_epochs must be below epochs \(3\), got 3: lower --freeze_epochs or"
                                          " raise --epochs"):
        EfficientNetConfig(epochs=3, freeze_epochs=3)
    assert EfficientNetConfig(epochs=3, freeze_epochs=2).freeze_epochs == 2


def test_background_is_mixed_in_only_where_it_is_asked_for():
    """It needs a class that not everybody has."""
    config = AugmentationConfig()
    assert config.use_equaliser and config.use_low_pass and not config.use_background_mix


def test_a_run_of_2_0_0_goes_on_as_it_began():
    old = EfficientNetConfig.from_dict({"pretrained": False, "augmentation": {"n_time_masks": 1}}).augmentation
    assert (old.use_equaliser, old.use_low_pass, old.n_time_masks) == (False, False, 1)
    assert not EfficientNetConfig.from_dict({"pretrained": True}).augmentation.use_equaliser


def test_a_short_run_may_have_any_warm_up():
    """Models of 2.0.0 have been trained so, and must be read; the schedule shortens it."""
    assert EfficientNetConfig(epochs=1).warmup_epochs == 2


@pytest.mark.parametrize(("build", "message"), [
    (lambda: EfficientNetConfig.from_dict({"bach_size": 3}), "unknown setting 'bach_size'.*did you mean 'batch_size'"),
    (lambda: EfficientNetConfig.from_dict({"frontend": {"n_mel": 3}}), "'n_mel' in FrontendConfig.*'n_mels'"),
    (lambda: EfficientNetConfig().replace(epoch=3), "unknown setting 'epoch'.*did you mean 'epochs'"),
    (lambda: EfficientNetConfig.from_dict({"augmentation": {"mixup_alfa": 1}}), "did you mean 'mixup_alpha'"),
    (lambda: EfficientNetConfig.from_dict(["epochs"]), "settings must be a JSON object"),
    (lambda: EfficientNetConfig.from_dict({"frontend": 7}), "FrontendConfig settings must be a JSON object, got 7"),
    (lambda: get_config("efficientnet_b7"), "unknown config 'efficientnet_b7'.*efficientnet_b0_fast.*resnet18"),
])
def test_a_misspelt_name_is_answered_with_the_right_one(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_config_error_is_also_a_value_error():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, NightScanError)


@pytest.mark.parametrize("name", list_configs())
def test_a_config_survives_json_and_pickle(name):
    config = get_config(name).replace(
        seed=7, batch_norm_momentum=0.05, thresholds={"lion": 0.9},
        augmentation=AugmentationConfig(pitch_shift_range=(-1.0, 3.0), mixup_alpha=0.4),
        frontend=FrontendConfig(sample_rate=16000, f_max=8000.0))
    assert EfficientNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_missing_keys_take_their_default():
    assert EfficientNetConfig.from_dict({}) == EfficientNetConfig()
    partly = EfficientNetConfig.from_dict({"epochs": 3, "frontend": {"n_mels": 64}})
    assert partly == EfficientNetConfig(epochs=3, frontend=FrontendConfig(n_mels=64))


def test_whole_and_decimal_numbers_are_one_setting():
    config = FrontendConfig(f_min=50, top_db=80)
    assert config.to_dict() == FrontendConfig().to_dict()
    assert json.dumps(config.to_dict()) == json.dumps(FrontendConfig().to_dict())


def test_replace_and_to_dict_leave_the_original_alone():
    config = EfficientNetConfig()
    before = json.dumps(config.to_dict())
    config.to_dict()["thresholds"]["bird_song"] = 0.0
    assert config.replace(epochs=3).epochs == 3
    assert json.dumps(config.to_dict()) == before


def test_only_the_standard_library_is_imported():
    program = ("import sys; before = set(sys.modules); import models.efficientnet_config;"
               "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))")
    answer = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True, capture_output=True, text=True)
    imported = set(answer.stdout.split())
    assert "models" in imported
    assert imported - {"models"} <= set(sys.stdlib_module_names)


# starts

@pytest.mark.parametrize(("pretrained", "start"), [(True, "imagenet"), (False, "none")])
def test_a_config_of_2_0_0_says_pretrained(pretrained, start):
    values = {"epochs": 3, "pretrained": pretrained}
    of_then = AugmentationConfig(use_equaliser=False, use_low_pass=False)
    assert EfficientNetConfig.from_dict(values) == EfficientNetConfig(epochs=3, initial_weights=start,
                                                                      augmentation=of_then)
    assert values == {"epochs": 3, "pretrained": pretrained}


@pytest.mark.parametrize("pretrained", ["yes", 1, None, "starter"])
def test_pretrained_is_true_or_false(pretrained):
    with pytest.raises(ConfigError, match=f"pretrained must be true or false, got {pretrained!r}"):
        EfficientNetConfig.from_dict({"pretrained": pretrained})


def test_the_newer_name_counts_where_both_are_given():
    assert EfficientNetConfig.from_dict({"pretrained": True, "initial_weights": "a.pth"}).initial_weights == "a.pth"


def test_only_the_newer_name_is_written():
    assert "pretrained" not in EfficientNetConfig.from_dict({"pretrained": True}).to_dict()


def test_a_start_needs_a_name():
    assert EfficientNetConfig().initial_weights == "starter"
    with pytest.raises(ConfigError, match="initial_weights must be starter, imagenet, none or a file, got ' '"):
        EfficientNetConfig(initial_weights=" ")


@pytest.mark.parametrize("bring", [with_start_settings, with_distillation_settings])
def test_what_was_given_stays(bring):
    config = get_config("efficientnet_b0_fast").replace(epochs=3, learning_rate=7e-5, drop_connect_rate=0.1)
    given = {"epochs", "learning_rate", "drop_connect_rate", "initial_weights", "batch_size", "warmup_epochs"}
    assert given <= {f.name for f in dataclasses.fields(EfficientNetConfig)}
    brought = bring(config, given=given)
    assert all(getattr(brought, name) == getattr(config, name) for name in given)


def test_a_start_brings_its_own_length_and_rate_and_a_preset_keeps_those_of_training_from_scratch():
    preset = get_config("efficientnet_b3_best")
    knowing, seeing, fresh = (with_start_settings(preset.replace(initial_weights=start), given={"initial_weights"})
                              for start in ("starter", "imagenet", "none"))
    assert fresh.epochs == preset.epochs
    assert knowing.epochs < fresh.epochs and seeing.epochs < fresh.epochs
    assert knowing.learning_rate < seeing.learning_rate  # what knows more is changed less
    for config in (knowing, seeing, fresh):
        assert (config.model_name, config.batch_size) == (preset.model_name, preset.batch_size)


def test_a_file_is_a_start_that_knows_something():
    preset = get_config("efficientnet_b0_fast")
    from_file = with_start_settings(preset.replace(initial_weights="mine.pth"), given={"initial_weights"})
    assert from_file.replace(initial_weights="starter") == with_start_settings(preset, given=())


def test_each_setting_is_kept_by_itself():
    preset = get_config("efficientnet_b0_fast")
    kept = with_start_settings(preset.replace(epochs=77), given={"epochs"})
    assert kept.epochs == 77
    assert kept.replace(epochs=preset.epochs) == with_start_settings(preset, given=()).replace(epochs=preset.epochs)


def test_a_distillation_begins_with_pictures_unless_told():
    preset = get_config("efficientnet_b1_balanced")
    assert with_distillation_settings(preset, given=()).initial_weights == "imagenet"
    assert with_distillation_settings(preset, given={"initial_weights"}).initial_weights == "starter"
    assert with_distillation_settings(preset, given=()).model_name == preset.model_name


@pytest.mark.parametrize("name", list_configs())
@pytest.mark.parametrize("start", ["starter", "imagenet", "none", "file.pth"])
def test_every_preset_can_have_every_start(name, start):
    """Impossible combinations of a preset and what a start brings would be refused."""
    config = get_config(name).replace(initial_weights=start)
    assert with_start_settings(config, given={"initial_weights"}).initial_weights == start
    assert with_distillation_settings(config, given={"initial_weights"}).initial_weights == start
