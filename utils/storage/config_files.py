"""Configs by name or from JSON files, and back."""

import os
from pathlib import Path

from models.efficientnet_config import EfficientNetConfig, get_config
from models.errors import ConfigError
from utils.storage.files import read_json, write_json

FORMAT_VERSION = 1


def read_config(name_or_path: str | os.PathLike) -> EfficientNetConfig:
    """Return a preset by name, or the config in a JSON file.

    Parameters
    ----------
    name_or_path : str or path-like
        A name of ``list_configs()``, or a ``.json`` file: an object of settings; its key ``preset`` names what
        the others are put on top of.

    Returns
    -------
    EfficientNetConfig
        Checked.

    Raises
    ------
    ConfigError
        For an unknown preset or setting, an impossible value, or an unreadable file.
    """
    if Path(name_or_path).suffix.lower() != ".json":
        return get_config(str(name_or_path))
    values = read_json(name_or_path)
    version = values.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ConfigError(f"{name_or_path} has format_version {version!r}, this NightScan reads {FORMAT_VERSION}")
    try:
        base = get_config(values.pop("preset")).to_dict() if "preset" in values else {}
        nested = {name: {**base.get(name, {}), **values[name]} for name in ("augmentation", "frontend")
                  if isinstance(values.get(name), dict)}
        return EfficientNetConfig.from_dict({**base, **values, **nested})
    except ConfigError as error:
        raise ConfigError(f"{error} ({name_or_path})") from error


def settings_in_file(name_or_path: str | os.PathLike) -> frozenset[str]:
    """Return the names of the settings that a JSON file gives itself, as they are called now; of a preset, none.

    Raises
    ------
    ConfigError
        For an unreadable file.
    """
    if Path(name_or_path).suffix.lower() != ".json":
        return frozenset()
    names = frozenset(read_json(name_or_path)) - {"preset", "format_version"}
    return frozenset("initial_weights" if name == "pretrained" else name for name in names)


def write_config(path: str | os.PathLike, config: EfficientNetConfig) -> None:
    """Write a config so that ``read_config`` gives it back."""
    write_json(path, {"format_version": FORMAT_VERSION, **config.to_dict()})
