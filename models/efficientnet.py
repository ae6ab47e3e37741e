"""The networks: EfficientNet B0-B3 and ResNet18 on one-channel log-mel spectrograms.

``build_model`` returns a ``SpectrogramClassifier``: normalisation and backbone in one module, so a caller
hands over decibels and cannot forget a step. The backbones are the libraries' own; what is changed is exact:
one input channel, batch-norm settings, and convolutions that pad by themselves.
"""

import itertools
import math
from collections.abc import Mapping

import torch
from efficientnet_pytorch import EfficientNet
from efficientnet_pytorch.utils import Conv2dDynamicSamePadding, Conv2dStaticSamePadding, round_repeats
from torch import Tensor, nn
from torch.nn import functional

from models.efficientnet_config import (EFFICIENTNET_NAMES, FROM_SCRATCH, RESNET_NAME, EfficientNetConfig,
                                        FrontendConfig)
from models.errors import CheckpointError, ConfigError

LEGACY_RESNET_NAME = "resnet18-nightscan1"
# torchaudio's MelSpectrogram(sample_rate=22050) and AmplitudeToDB(top_db=80), as NightScan 1 used them
LEGACY_FRONTEND = FrontendConfig(
    sample_rate=22050, n_fft=400, hop_length=200, n_mels=128, f_min=0.0, f_max=11025.0, segment_duration_ms=8000,
    mel_scale="htk", mel_norm="none", edge_mode="reflect", padding="zeros", top_db=80.0)

_DB_PER_UNIT = 20.0  # about the spread of a log-mel in dB: the network then sees values of order 1
_BATCH_NORM_MOMENTUM = 0.1  # PyTorch's own; training chooses by the length of an epoch
_SCRATCH_EPSILON = 1e-5
_PRETRAINED_EPSILON = {RESNET_NAME: 1e-5, **dict.fromkeys(EFFICIENTNET_NAMES, 1e-3)}  # what the weights were made with
_PASS_THROUGH = 3.0  # bias at which squeeze-and-excitation lets every channel pass
_STEM = {RESNET_NAME: "conv1.weight", **dict.fromkeys(EFFICIENTNET_NAMES, "_conv_stem.weight")}
_CLASSIFIER = {RESNET_NAME: "fc.", **dict.fromkeys(EFFICIENTNET_NAMES, "_fc.")}


class ClipNormaliser(nn.Module):
    """Subtract each clip's own mean and scale decibels to order 1, so that gain does not matter."""

    def forward(self, log_mel: Tensor) -> Tensor:
        """Map ``(B, 1, n_mels, n_frames)`` in dB to the same shape with mean 0 per clip."""
        return (log_mel - log_mel.mean(dim=(1, 2, 3), keepdim=True)) / _DB_PER_UNIT


class LegacyNormaliser(nn.Module):
    """NightScan 1's input: min-max per clip, three equal channels, resized to 224 x 224."""

    def forward(self, log_mel: Tensor) -> Tensor:
        """Map ``(B, 1, n_mels, n_frames)`` in dB to ``(B, 3, 224, 224)`` in [0, 1]."""
        low, high = log_mel.amin(dim=(1, 2, 3), keepdim=True), log_mel.amax(dim=(1, 2, 3), keepdim=True)
        scaled = (log_mel - low) / (high - low + 1e-9)
        return functional.interpolate(scaled.expand(-1, 3, -1, -1), size=(224, 224), mode="bilinear", antialias=True)


class SpectrogramClassifier(nn.Module):
    """A network that takes log-mel spectrograms in dB and returns logits.

    Parameters
    ----------
    normaliser : torch.nn.Module
        What the backbone needs done to decibels.
    backbone : torch.nn.Module
        Image network ending in ``n_classes`` outputs.
    """

    def __init__(self, normaliser: nn.Module, backbone: nn.Module) -> None:
        super().__init__()
        self.normaliser = normaliser
        self.backbone = backbone

    def forward(self, log_mel: Tensor) -> Tensor:
        """Return logits.

        Parameters
        ----------
        log_mel : torch.Tensor
            float32 ``(B, 1, n_mels, n_frames)`` in dB.

        Returns
        -------
        torch.Tensor
            ``(B, n_classes)``.
        """
        return self.backbone(self._inputs(log_mel))

    def embed(self, log_mel: Tensor) -> Tensor:
        """Return what the last layer sees of the same input, ``(B, n_features)``; ``classify`` gives its logits."""
        inputs = self._inputs(log_mel)
        if isinstance(self.backbone, EfficientNet):
            return self.backbone._avg_pooling(self.backbone.extract_features(inputs)).flatten(1)
        for layer in tuple(self.backbone.children())[:-1]:
            inputs = layer(inputs)
        return inputs.flatten(1)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Return the logits ``(B, n_classes)`` of embeddings ``(B, n_features)``."""
        if isinstance(self.backbone, EfficientNet):
            return self.backbone._fc(self.backbone._dropout(embeddings))
        return self.backbone.fc(embeddings)  # type: ignore[operator]

    def _inputs(self, log_mel: Tensor) -> Tensor:
        return self.normaliser(log_mel.float()).contiguous(memory_format=torch.channels_last)


def build_model(config: EfficientNetConfig, n_classes: int) -> SpectrogramClassifier:
    """Build the network of a config with random weights drawn from ``config.seed``.

    Parameters
    ----------
    config : EfficientNetConfig
        Its network fields are used: model_name, dropout, stochastic depth, batch norm, seed.
    n_classes : int
        Number of outputs, at least 2.

    Returns
    -------
    SpectrogramClassifier
        In training mode, on the CPU, channels last.

    Raises
    ------
    ConfigError
        If ``n_classes`` is below 2.
    """
    if n_classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes, got {n_classes}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)
        if config.model_name == RESNET_NAME:
            backbone = _one_channel_resnet18(config, n_classes)
        else:
            backbone = _one_channel_efficientnet(config, n_classes)
        _initialise(backbone)
    _set_batch_norm(backbone, config)
    model = SpectrogramClassifier(ClipNormaliser(), backbone)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def build_legacy_resnet18(n_classes: int) -> SpectrogramClassifier:
    """Build NightScan 1's ResNet18: three channels, min-max input, front end ``LEGACY_FRONTEND``."""
    return SpectrogramClassifier(LegacyNormaliser(), _resnet18(n_classes))


def load_imagenet_weights(model: SpectrogramClassifier, weights: Mapping[str, Tensor], *, model_name: str) -> None:
    """Put ImageNet weights into a one-channel model; its classifier keeps its own.

    Parameters
    ----------
    model : SpectrogramClassifier
        Changed in place.
    weights : Mapping
        State dict of the library's three-channel network.
    model_name : str
        Which network it is.

    Raises
    ------
    CheckpointError
        If the weights belong to another network; the first difference is named.

    Notes
    -----
    The stem's weights are summed over red, green and blue: the sum computes what three equal channels would.
    """
    stem, classifier = _STEM[model_name], _CLASSIFIER[model_name]
    own = model.backbone.state_dict()
    # batch counters are missing from the oldest files and mean nothing at a fixed momentum
    kept = {name: value for name, value in own.items()
            if name.startswith(classifier) or name.endswith("num_batches_tracked")}
    given = {name: value.sum(dim=1, keepdim=True) if name == stem and value.ndim == 4 else value
             for name, value in weights.items() if not name.startswith(classifier)}
    merged = {**kept, **given}
    problem = state_dict_problem(own, merged)
    if problem:
        raise CheckpointError(f"the pretrained weights are not those of {model_name}: {problem}")
    model.backbone.load_state_dict(merged)


def classifier_of(model: SpectrogramClassifier) -> nn.Linear:
    """Return the last layer of a model, from embeddings to logits."""
    return model.backbone._fc if isinstance(model.backbone, EfficientNet) else model.backbone.fc  # type: ignore


def batch_norm_epsilon(network: nn.Module) -> float:
    """Return what the batch norms of a network add to the variance."""
    return next(module.eps for module in network.modules() if isinstance(module, nn.BatchNorm2d))


def body_weights(model: SpectrogramClassifier, *, model_name: str) -> dict[str, Tensor]:
    """Return the backbone's weights without its classifier: what another set of classes can begin with."""
    return {name: value for name, value in model.backbone.state_dict().items()
            if not name.startswith(_CLASSIFIER[model_name])}


def load_body(model: SpectrogramClassifier, weights: Mapping[str, Tensor], *, model_name: str) -> None:
    """Put weights from ``body_weights`` into a model, whose classifier keeps its own.

    Raises
    ------
    CheckpointError
        If the weights belong to another network; the first difference is named.
    """
    problem = state_dict_problem(body_weights(model, model_name=model_name), weights)
    if problem:
        raise CheckpointError(f"the initial weights are not those of {model_name}: {problem}")
    model.backbone.load_state_dict({**model.backbone.state_dict(), **weights})


def lite_weights(weights: Mapping[str, Tensor], model: SpectrogramClassifier) -> dict[str, Tensor]:
    """Return EfficientNet-Lite0's weights as those of EfficientNet-B0.

    Parameters
    ----------
    weights : Mapping
        State dict of EfficientNet-Lite0, which is B0 without squeeze-and-excitation and with ReLU6 for swish.
    model : SpectrogramClassifier
        An EfficientNet-B0; its squeeze-and-excitation's first halves are taken, so that they can learn.

    Notes
    -----
    The second halves are 0 with a bias of 3: every channel passes by ``sigmoid(3) = 0.95``.
    """
    merged = dict(weights)
    for name, value in model.backbone.state_dict().items():
        if "_se_expand." in name:
            merged[name] = torch.full_like(value, _PASS_THROUGH) if name.endswith("bias") else torch.zeros_like(value)
        elif "_se_reduce." in name:
            merged[name] = value
    return merged


def stages(model: nn.Module) -> tuple[tuple[nn.Module, ...], ...]:
    """Return the modules of a network by depth, from the stem to the classifier; each parameter is in one of them.

    EfficientNet: stem, the seven stages of its blocks, head convolution, classifier. ResNet18: stem, its four layers,
    classifier.

    Raises
    ------
    TypeError
        If it is no ``SpectrogramClassifier``.
    """
    if not isinstance(model, SpectrogramClassifier):
        raise TypeError(f"only a SpectrogramClassifier has stages, got {type(model).__name__}")
    backbone = model.backbone
    if not isinstance(backbone, EfficientNet):
        parts = dict(backbone.named_children())
        return ((parts["conv1"], parts["bn1"]), *((parts[f"layer{number}"],) for number in range(1, 5)),
                (parts["fc"],))
    blocks = iter(backbone._blocks)
    groups = (tuple(itertools.islice(blocks, round_repeats(arguments.num_repeat, backbone._global_params)))
              for arguments in backbone._blocks_args)
    return ((backbone._conv_stem, backbone._bn0), *groups, (backbone._conv_head, backbone._bn1), (backbone._fc,))


def state_dict_problem(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Return the first difference between two state dicts in names or shapes, or None."""
    for name, value in expected.items():
        if name not in given:
            return f"{name} is missing"
        if not isinstance(given[name], Tensor):
            return f"{name} is no tensor but {type(given[name]).__name__}"
        if given[name].shape != value.shape:
            return f"{name} has shape {tuple(given[name].shape)}, expected {tuple(value.shape)}"
    extra = next((name for name in given if name not in expected), None)
    return f"{extra} is not part of it" if extra else None


def _resnet18(n_classes: int = 1000) -> nn.Module:
    from torchvision.models import resnet18  # torchvision takes a second that only ResNet18 is worth
    return resnet18(num_classes=n_classes)


def _one_channel_resnet18(config: EfficientNetConfig, n_classes: int) -> nn.Module:
    backbone = _resnet18()
    backbone.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    backbone.fc = _DropoutLinear(512, n_classes, config.dropout_rate)
    return backbone


class _DropoutLinear(nn.Linear):
    """A linear layer with dropout before it, under the same parameter names."""

    def __init__(self, in_features: int, out_features: int, dropout_rate: float) -> None:
        super().__init__(in_features, out_features)
        self.dropout_rate = dropout_rate

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.dropout(input, self.dropout_rate, self.training))


def _one_channel_efficientnet(config: EfficientNetConfig, n_classes: int) -> nn.Module:
    backbone = EfficientNet.from_name(
        config.model_name, in_channels=1, num_classes=n_classes, dropout_rate=config.dropout_rate,
        drop_connect_rate=config.drop_connect_rate, image_size=None)
    backbone.set_swish(memory_efficient=False)  # PyTorch's own SiLU, which is faster and exact
    for module in list(backbone.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (Conv2dDynamicSamePadding, Conv2dStaticSamePadding)):
                setattr(module, name, _SamePaddedConv2d(
                    child.in_channels, child.out_channels, child.kernel_size, stride=child.stride,
                    groups=child.groups, bias=child.bias is not None))
    return backbone


class _SamePaddedConv2d(nn.Conv2d):
    """TensorFlow's "SAME" convolution, exact, but faster than the library's "pad, then convolve".

    The padding is left to the convolution wherever it is symmetric, which saves a copy of the input. While
    training on a CPU in bfloat16, large or strided depthwise kernels compute in float32: oneDNN's bfloat16
    gradient of those takes two to three times as long.
    """

    def forward(self, input: Tensor) -> Tensor:
        slow_gradient = self.groups > 1 and (self.kernel_size[0] > 3 or self.stride[0] > 1)
        if not (slow_gradient and input.device.type == "cpu" and input.dtype == torch.bfloat16
                and torch.is_grad_enabled()):
            return self._convolve(input)
        with torch.autocast("cpu", enabled=False):
            return self._convolve(input.float()).to(torch.bfloat16)

    def _convolve(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        (top, bottom), (left, right) = (_same_padding(size, kernel, stride) for size in input.shape[2:])
        if top != bottom or left != right:
            input = functional.pad(input, (left, right, top, bottom))
            top = left = 0
        return functional.conv2d(input, self.weight, self.bias, self.stride, (top, left), self.dilation, self.groups)


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after an axis that make the output ``ceil(size / stride)`` long."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _initialise(backbone: nn.Module) -> None:
    """Draw weights as EfficientNet's authors do: normal with variance 2 / fan-out (He et al. 2015, eq. 14)."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            fan_out = height * width * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def _set_batch_norm(backbone: nn.Module, config: EfficientNetConfig) -> None:
    epsilon = config.batch_norm_epsilon
    if epsilon is None:
        epsilon = _SCRATCH_EPSILON if config.initial_weights == FROM_SCRATCH else _PRETRAINED_EPSILON[config.model_name]
    momentum = _BATCH_NORM_MOMENTUM if config.batch_norm_momentum is None else config.batch_norm_momentum
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = epsilon, momentum
