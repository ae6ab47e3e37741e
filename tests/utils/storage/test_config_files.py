import json

import pytest

from models.efficientnet_config import AugmentationConfig, EfficientNetConfig, get_config
from models.errors import ConfigError
from utils.storage.config_files import read_config, settings_in_file, write_config


def write(path, values):
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_a_name_is_a_preset_and_a_file_comes_back_as_it_was_written(tmp_path):
    config = get_config("efficientnet_b2_quality").replace(learning_rate=3e-4, thresholds={"owl": 0.9})
    write_config(tmp_path / "config.json", config)
    assert read_config(tmp_path / "config.json") == config
    assert read_config("efficientnet_b2_quality") == get_config("efficientnet_b2_quality")


def test_a_file_changes_only_what_it_names(tmp_path):
    path = write(tmp_path / "c.json", {"preset": "efficientnet_b0_fast", "epochs": 7,
                                       "augmentation": {"mixup_alpha": 0.4}})
    expected = get_config("efficientnet_b0_fast")
    expected = expected.replace(epochs=7, augmentation=expected.augmentation.replace(mixup_alpha=0.4))
    assert read_config(path) == expected


def test_without_a_preset_the_rest_is_default(tmp_path):
    assert read_config(write(tmp_path / "c.json", {"epochs": 7})) == EfficientNetConfig(epochs=7)


@pytest.mark.parametrize(("values", "message"), [
    ({"epoch": 7}, r"unknown setting 'epoch'.*'epochs'.*c\.json"),
    ({"epochs": "7"}, r"epochs must be an integer, got '7'.*c\.json"),
    ({"augmentation": {"mixup": 1}}, r"unknown setting 'mixup' in AugmentationConfig"),
    ({"augmentation": 3}, "must be a JSON object, got 3"),
    ({"preset": "nope"}, r"unknown config 'nope'.*efficientnet_b0_fast"),
    ({"format_version": 9}, "format_version 9, this NightScan reads 1"),
])
def test_what_is_wrong_is_said(tmp_path, values, message):
    with pytest.raises(ConfigError, match=message):
        read_config(write(tmp_path / "c.json", values))


def test_a_file_that_is_no_json(tmp_path):
    (tmp_path / "c.json").write_text("epochs: 7", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"c\.json cannot be read as JSON"):
        read_config(tmp_path / "c.json")
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        read_config(tmp_path / "none.json")


def test_a_file_tells_which_settings_it_gives_itself(tmp_path):
    path = write(tmp_path / "c.json", {"format_version": 1, "preset": "efficientnet_b0_fast", "epochs": 7,
                                       "frontend": {"n_mels": 64}})
    assert settings_in_file(path) == {"epochs", "frontend"}
    assert settings_in_file(str(path)) == {"epochs", "frontend"}
    assert settings_in_file(write(tmp_path / "empty.JSON", {})) == frozenset()


def test_a_preset_gives_no_setting_itself():
    assert settings_in_file("efficientnet_b0_fast") == frozenset()


def test_a_written_config_gives_every_setting(tmp_path):
    write_config(tmp_path / "c.json", EfficientNetConfig())
    assert settings_in_file(tmp_path / "c.json") == set(EfficientNetConfig().to_dict())


def test_an_older_file_gives_its_start_under_the_newer_name(tmp_path):
    path = write(tmp_path / "c.json", {"pretrained": False, "epochs": 7})
    assert settings_in_file(path) == {"initial_weights", "epochs"}
    as_then = AugmentationConfig(use_equaliser=False, use_low_pass=False)
    assert read_config(path) == EfficientNetConfig(initial_weights="none", epochs=7, augmentation=as_then)


def test_an_unreadable_file_gives_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json cannot be read"):
        settings_in_file(tmp_path / "none.json")
