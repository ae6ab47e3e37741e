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
from efficientnet_pytorch.utils import url_map
from torch import Tensor
from torch.hub import load_state_dict_from_url
from torchvision.models import ResNet18_Weights

from models.audio_frontend import frontend_fingerprint
from models.efficientnet import (LEGACY_FRONTEND, LEGACY_RESNET_NAME, SpectrogramClassifier, build_legacy_resnet18,
                                 build_model, state_dict_problem)
from models.efficientnet_config import RESNET_NAME, EfficientNetConfig, FrontendConfig
from models.errors import CheckpointError, ConfigError
from utils.files import atomic_path
from utils.manifest import ClassList

FORMAT_VERSION = 1
_KIND = "nightscan-model"
# everything torch.load raises for a file that is damaged, truncated, no checkpoint, or not plain data
_LOAD_ERRORS = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError,
                IndexError, TypeError, ImportError, zipfile.BadZipFile)


@dataclass(frozen=True)
class ModelBundle:
    """A trained model and all that is needed to use it.

    Parameters
    ----------
    model : SpectrogramClassifier
        Weights loaded, evaluation mode, on the CPU.
    model_name : str
        Network.
    config : EfficientNetConfig
        How it was trained; for NightScan 1's ResNet18 the defaults.
    frontend : FrontendConfig
        The only front end its inputs may come from.
    classes : ClassList
        Order of its outputs.
    temperature : float
        Logits are divided by it before the softmax (calibration).
    metadata : dict
        Epoch, validation scores, whether leakage was allowed.
    """

    model: SpectrogramClassifier
    model_name: str
    config: EfficientNetConfig
    frontend: FrontendConfig
    classes: ClassList
    temperature: float = 1.0
    metadata: dict = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identity of the front end."""
        return frontend_fingerprint(self.frontend)


def save_model(path: str | os.PathLike, weights: Mapping[str, Tensor], *, config: EfficientNetConfig,
               classes: ClassList, temperature: float, metadata: Mapping, training: Mapping | None = None) -> None:
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
    temperature : float
        Calibration.
    metadata : Mapping
        Plain types.
    training : Mapping, optional
        Optimizer, schedule, scaler and loop state; what makes a ``_last.pth``.
    """
    content = {
        "format_version": FORMAT_VERSION, "kind": _KIND, "model_name": config.model_name, "config": config.to_dict(),
        "frontend": config.frontend.to_dict(), "fingerprint": frontend_fingerprint(config.frontend),
        "class_names": list(classes.names), "thresholds": {name: config.threshold(name) for name in classes.names},
        "reject_class": config.reject_class, "calibration": {"temperature": float(temperature)},
        "metadata": dict(metadata), "weights": {name: value.detach().cpu() for name, value in weights.items()},
    }
    if training is not None:
        content["training"] = dict(training)
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


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


def load_model(path: str | os.PathLike, *, class_names: Sequence[str] | None = None) -> ModelBundle:
    """Read a model that NightScan wrote, or NightScan 1's ResNet18.

    Parameters
    ----------
    path : path-like
        A ``.pth``.
    class_names : sequence of str, optional
        Names of the outputs of a NightScan 1 file, which holds none.

    Returns
    -------
    ModelBundle
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
        temperature, metadata = float(content["calibration"]["temperature"]), dict(content["metadata"])
        weights, fingerprint = dict(content["weights"]), content["fingerprint"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} lacks or garbles {error}: it was edited; train again") from error
    if fingerprint != frontend_fingerprint(frontend):
        raise CheckpointError(f"{path}: its front end does not match its fingerprint {str(fingerprint)[:12]}: it was"
                              f" edited or made by another version; train again")
    model = build_model(config, len(classes))
    load_weights(model, weights, path)
    return ModelBundle(model.eval(), config.model_name, config.replace(frontend=frontend), frontend, classes,
                       temperature, metadata)


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
    model.load_state_dict(weights)


def imagenet_weights(model_name: str, weights_file: str | os.PathLike | None) -> dict[str, Tensor]:
    """Return the libraries' ImageNet state dict, from a local copy or by download.

    Parameters
    ----------
    model_name : str
        Network.
    weights_file : path-like or None
        A local copy; None downloads (and keeps) it.

    Raises
    ------
    ConfigError
        If it cannot be downloaded; says which flag to use.
    CheckpointError
        If the local copy is no state dict.
    """
    if weights_file is not None:
        return read_checkpoint(weights_file)
    url = ResNet18_Weights.IMAGENET1K_V1.url if model_name == RESNET_NAME else url_map[model_name]
    try:
        return load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except (URLError, *_LOAD_ERRORS) as error:
        raise ConfigError(f"the ImageNet weights of {model_name} could not be downloaded from {url} ({error}): pass"
                          f" --pretrained_weights FILE with a local copy, or --no_pretrained") from error


def _load_legacy(path: str | os.PathLike, content: dict, class_names: Sequence[str] | None) -> ModelBundle:
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
    model = build_legacy_resnet18(n_classes)
    load_weights(model.backbone, content, path)
    config = EfficientNetConfig(model_name=RESNET_NAME, frontend=LEGACY_FRONTEND)
    return ModelBundle(model.eval(), LEGACY_RESNET_NAME, config, LEGACY_FRONTEND, ClassList(tuple(class_names)),
                       metadata={"origin": "NightScan 1"})
