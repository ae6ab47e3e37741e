"""What a network begins with: the starter that has heard sounds, ImageNet's pictures, a file, or nothing."""

import logging
from collections.abc import Mapping
from pathlib import Path

from models.efficientnet import (SpectrogramClassifier, body_weights, build_model, lite_weights, load_body,
                                 load_imagenet_weights)
from models.efficientnet_config import (EFFICIENTNET_NAMES, FROM_SCRATCH, IMAGENET, STARTER, STARTS,
                                        EfficientNetConfig, FrontendConfig)
from models.errors import CheckpointError
from models.growth import grow
from utils.storage.checkpoints import RECORDINGS_KNOWN, Start, imagenet_weights, lite0_weights, read_start

logger = logging.getLogger(__name__)

STARTER_FOLDER = Path(__file__).resolve().parents[2] / "models" / "starter"
_SMALLEST = EFFICIENTNET_NAMES[0]


def starter_path(model_name: str) -> Path:
    """Return where the starter of a network stands; the larger EfficientNets grow from B0's."""
    return STARTER_FOLDER / f"{_SMALLEST if model_name in EFFICIENTNET_NAMES else model_name}.pth"


def resolve_start(config: EfficientNetConfig) -> EfficientNetConfig:
    """Return the config with random weights where it asks for a starter that there is not; a line says so."""
    if config.initial_weights != STARTER or starter_path(config.model_name).is_file():
        return config
    logger.info("there is no starter for %s: it begins with random weights", config.model_name)
    return config.replace(initial_weights=FROM_SCRATCH)


def kind_of_start(config: EfficientNetConfig) -> str:
    """Return which of ``STARTS`` a config's start is like: a library's state dict in a file has seen pictures.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged.
    """
    config = resolve_start(config)
    if config.initial_weights in STARTS:
        return config.initial_weights
    return IMAGENET if isinstance(read_start(config.initial_weights), dict) else STARTER


def begin(config: EfficientNetConfig, n_classes: int) -> tuple[SpectrogramClassifier, EfficientNetConfig]:
    """Build the network of a config with the weights it asks for.

    Parameters
    ----------
    config : EfficientNetConfig
        ``initial_weights`` says which; the starter is taken wherever there is one.
    n_classes : int
        Number of outputs.

    Returns
    -------
    model : SpectrogramClassifier
        On the CPU, in training mode.
    config : EfficientNetConfig
        With what was found: ``none`` where there is no starter, and the batch-norm epsilon of the start.

    Raises
    ------
    CheckpointError
        If a file's weights are those of another network.
    ConfigError
        If ImageNet's weights are not to be had.
    """
    config = resolve_start(config)
    model = build_model(config, n_classes)
    if config.initial_weights == FROM_SCRATCH:
        return model, config
    if config.initial_weights == IMAGENET:
        _begin_with_pictures(model, config.model_name)
        return model, config
    path = _start_path(config)
    start = read_start(path, source=STARTER if config.initial_weights == STARTER else None)
    if isinstance(start, Start) and config.batch_norm_epsilon is None:
        config = config.replace(batch_norm_epsilon=start.batch_norm_epsilon)
        model = build_model(config, n_classes)
    try:
        if isinstance(start, dict):
            load_imagenet_weights(model, start, model_name=config.model_name)
            return model, config
        load_body(model, _fitted(start, model, config), model_name=config.model_name)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    logger.info("%s begins with %s (%s; licence: %s)", config.model_name, start.source, start.trained_on,
                start.licence)
    misfit = frontend_difference(start.frontend, config.frontend)
    if misfit:
        logger.warning("the start %s has heard another front end (%s): it is used all the same, and knows less",
                       start.source, misfit)
    return model, config


def stages_of_start(config: EfficientNetConfig) -> list[dict]:
    """Return what the start of a config tells of each distillation that made it, the oldest first.

    Raises
    ------
    CheckpointError
        If its file is damaged.
    """
    return list(_metadata_of_start(config).get("stages", ()))


def known_recordings(config: EfficientNetConfig) -> dict[str, list[str]]:
    """Return what the start of a config tells of its recordings, which go with every model that begins with it.

    Returns
    -------
    dict
        ``recordings`` and ``recording_contents``, those it learnt the labels of (see ``describe_recordings``), and
        ``heard_contents``, content ids of those it has only heard; each where the start has them.

    Raises
    ------
    CheckpointError
        If its file is damaged.
    """
    metadata = _metadata_of_start(config)
    return {name: list(metadata[name]) for name in RECORDINGS_KNOWN if name in metadata}


def _metadata_of_start(config: EfficientNetConfig) -> Mapping:
    config = resolve_start(config)
    if config.initial_weights in (FROM_SCRATCH, IMAGENET):
        return {}
    start = read_start(_start_path(config))
    return {} if isinstance(start, dict) else start.metadata


def _start_path(config: EfficientNetConfig) -> Path:
    """Return the file of a config's start: the project's, or the one it names."""
    return starter_path(config.model_name) if config.initial_weights == STARTER else Path(config.initial_weights)


def frontend_difference(heard: FrontendConfig | None, used: FrontendConfig) -> str:
    """Return in words what of two front ends differs; the length of a window does not matter to a network."""
    if heard is None:
        return ""
    return ", ".join(f"{name} {value} for {getattr(used, name)}" for name, value in heard.to_dict().items()
                     if name != "segment_duration_ms" and value != getattr(used, name))


def _begin_with_pictures(model: SpectrogramClassifier, model_name: str) -> None:
    """Put ImageNet's weights in: for B0 those of EfficientNet-Lite0, which need no network, for others a download."""
    if model_name == _SMALLEST:
        weights = lite_weights(lite0_weights(), model)
    else:
        weights = imagenet_weights(model_name)
    load_imagenet_weights(model, weights, model_name=model_name)


def _fitted(start: Start, model: SpectrogramClassifier, config: EfficientNetConfig) -> dict:
    """Return the start's weights for this network: its own, or those a smaller EfficientNet grows into."""
    if start.model_name == config.model_name:
        return dict(start.weights)
    names = EFFICIENTNET_NAMES
    of_smaller = " or of a smaller EfficientNet" if config.model_name in names[1:] else ""
    if not (start.model_name in names and config.model_name in names
            and names.index(start.model_name) < names.index(config.model_name)):
        raise CheckpointError(f"it holds {start.model_name}, which {config.model_name} cannot begin with: give a start"
                              f" of {config.model_name}{of_smaller}")
    smaller = build_model(config.replace(model_name=start.model_name), 2)
    load_body(smaller, start.weights, model_name=start.model_name)
    return {**body_weights(model, model_name=config.model_name),
            **grow(start.weights, model.backbone, smaller.backbone, seed=config.seed)}
