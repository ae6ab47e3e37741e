import functools

import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet
from torch import nn
from torchvision.models import resnet18

from models import efficientnet
from models.efficientnet import (ClipNormaliser, LegacyNormaliser, build_legacy_resnet18, build_model,
                                 load_imagenet_weights, state_dict_problem)
from models.efficientnet_config import MODEL_NAMES, EfficientNetConfig
from models.errors import CheckpointError, ConfigError

N_CLASSES = 5
FLOAT32 = 1e-4  # relative to the largest logit: other kernels, the same sums in another order
GAIN = 1e-5  # of inputs of order 1: what float32 loses by adding a constant to values near -50
SPREAD = 0.03  # relative sampling error of a standard deviation over more than 10 000 weights (0.7 %), four times over
LIBRARY_MODELS = ("efficientnet-b0", "resnet18")


def log_mels(*shape, seed=3):
    return torch.from_numpy(np.random.default_rng(seed).normal(-50, 15, size=shape).astype(np.float32))


def build(model_name="efficientnet-b0", **settings):
    return build_model(EfficientNetConfig(model_name=model_name, **settings), N_CLASSES)


def library_network(model_name, *, in_channels=3, seed=0):
    """Build the library's own network with every weight and statistic drawn, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if model_name == "resnet18":
            network = resnet18(num_classes=N_CLASSES)
        else:
            # image_size=None: padding follows the input, as the library recommends for sizes that vary
            network = EfficientNet.from_name(model_name, in_channels=in_channels, num_classes=N_CLASSES,
                                             image_size=None)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                module.momentum = 1.0
        with torch.no_grad():  # takes the statistics, without which the signal dies out in the depth
            network.train()(log_mels(8, 1, 48, 48, seed=4).expand(-1, in_channels, -1, -1) / 20 + 2.5)
    return network.eval()


def assert_same_logits(found, expected):
    tolerance = FLOAT32 * float(expected.abs().max())
    between_clips = float((expected[0] - expected[1]).abs().max())
    assert between_clips > 10 * tolerance  # else a network that does not look at its input would pass too
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@functools.cache
def trained(model_name="efficientnet-b0"):
    """Build a model in evaluation mode whose batch-norm statistics fit its activations."""
    model = build(model_name, batch_norm_momentum=1.0, drop_connect_rate=0.0, dropout_rate=0.0)
    with torch.no_grad():
        model(log_mels(8, 1, 64, 96, seed=4))
    return model.eval()


@pytest.mark.parametrize("model_name", MODEL_NAMES)
def test_logits_have_one_row_per_clip_and_one_column_per_class(model_name):
    model = build(model_name).eval()
    with torch.inference_mode():
        logits = model(log_mels(2, 1, 64, 96))
    assert logits.shape == (2, N_CLASSES)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("model_name", MODEL_NAMES)
def test_names_and_shapes_are_the_librarys_but_for_the_stem(model_name):
    stem = "conv1.weight" if model_name == "resnet18" else "_conv_stem.weight"
    own, library = build(model_name).backbone.state_dict(), library_network(model_name).state_dict()
    assert list(own) == list(library)
    assert [name for name in own if own[name].shape != library[name].shape] == [stem]
    assert own[stem].shape[1] == 1


@pytest.mark.parametrize("model_name", LIBRARY_MODELS)
def test_pretrained_weights_give_the_logits_of_three_equal_channels(model_name):
    library = library_network(model_name)
    model = build(model_name, initial_weights="imagenet").eval()
    load_imagenet_weights(model, library.state_dict(), model_name=model_name)
    classifier = "fc" if model_name == "resnet18" else "_fc"
    getattr(model.backbone, classifier).load_state_dict(getattr(library, classifier).state_dict())
    inputs = model.normaliser(log_mels(2, 1, 64, 96))
    with torch.inference_mode():
        assert_same_logits(model.backbone(inputs), library(inputs.expand(-1, 3, -1, -1)))


def test_pretrained_weights_leave_the_classifier_alone():
    library, model = library_network("efficientnet-b0"), build(initial_weights="imagenet")
    before = model.backbone._fc.weight.clone()
    weights = {name: value for name, value in library.state_dict().items()
               if not name.endswith("num_batches_tracked")}  # as the oldest files are
    load_imagenet_weights(model, weights, model_name="efficientnet-b0")
    assert torch.equal(model.backbone._fc.weight, before)
    assert torch.equal(model.backbone._conv_head.weight, library._conv_head.weight)


def test_pretrained_weights_may_have_another_number_of_classes():
    model = build("resnet18")
    load_imagenet_weights(model, resnet18(num_classes=9).state_dict(), model_name="resnet18")
    assert model.backbone.fc.out_features == N_CLASSES


@pytest.mark.parametrize(("given", "message"), [
    ("efficientnet-b1", r"not those of efficientnet-b0: _blocks\.1\._expand_conv\.weight is missing"),
    ("resnet18", "not those of efficientnet-b0: _conv_stem.weight is missing"),
])
def test_pretrained_weights_of_another_network_are_refused(given, message):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_imagenet_weights(model, library_network(given).state_dict(), model_name="efficientnet-b0")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_state_dict_problem_names_the_first_difference():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert state_dict_problem(expected, dict(expected)) is None
    assert state_dict_problem(expected, {"a": torch.zeros(2)}) == "b is missing"
    assert state_dict_problem(expected, {**expected, "c": torch.zeros(1)}) == "c is not part of it"
    assert state_dict_problem(expected, {**expected, "b": torch.zeros(4)}) == "b has shape (4,), expected (3,)"


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 50), (128, 31)])
def test_the_rewritten_convolutions_are_exact(size):
    library = library_network("efficientnet-b0", in_channels=1)
    model = build(initial_weights="imagenet").eval()
    model.backbone.load_state_dict(library.state_dict())
    inputs = model.normaliser(log_mels(2, 1, *size))
    with torch.inference_mode():
        assert_same_logits(model.backbone(inputs), library(inputs))


def test_a_clips_gain_does_not_matter():
    normaliser, clips = ClipNormaliser(), log_mels(3, 1, 32, 40)
    louder = clips + torch.tensor([0.0, 6.0, -20.0]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(normaliser(louder), normaliser(clips), rtol=0, atol=GAIN)


def test_the_normaliser_treats_each_clip_alone():
    clips = log_mels(3, 1, 32, 40) * torch.tensor([1.0, 0.1, 2.0]).reshape(3, 1, 1, 1)
    normalised = ClipNormaliser()(clips)
    torch.testing.assert_close(normalised.mean(dim=(1, 2, 3)), torch.zeros(3), rtol=0, atol=GAIN)
    torch.testing.assert_close(normalised[1:2], ClipNormaliser()(clips[1:2]), rtol=0, atol=GAIN)
    by_hand = ClipNormaliser()(torch.tensor([[[[-60.0, -40.0], [-20.0, -40.0]]]]))
    assert by_hand.tolist() == [[[[-1.0, 0.0], [1.0, 0.0]]]]


def test_the_networks_answer_does_not_change_with_gain():
    model, clips = trained(), log_mels(2, 1, 64, 96)
    with torch.inference_mode():
        assert_same_logits(model(clips + 10), model(clips))


@pytest.mark.parametrize("model_name", LIBRARY_MODELS)
def test_a_clips_logits_do_not_depend_on_its_batch(model_name):
    model, clips = trained(model_name), log_mels(4, 1, 64, 96)
    with torch.inference_mode():
        together = model(clips)
        one_by_one = torch.cat([model(clip[None]) for clip in clips])
    assert_same_logits(together, one_by_one)


@pytest.mark.parametrize("model_name", LIBRARY_MODELS)
def test_the_seed_decides_the_weights(model_name):
    first, again, other = build(model_name, seed=1), build(model_name, seed=1), build(model_name, seed=2)
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    stem = "backbone.conv1.weight" if model_name == "resnet18" else "backbone._conv_stem.weight"
    assert not torch.equal(first.state_dict()[stem], other.state_dict()[stem])


def test_building_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    build()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_are_drawn_with_variance_two_over_fan_out():
    backbone = build().backbone
    pointwise, depthwise = backbone._conv_head, backbone._blocks[15]._depthwise_conv
    assert depthwise.weight.shape == (1152, 1, 3, 3)
    assert float(pointwise.weight.detach().std()) == pytest.approx((2 / 1280) ** 0.5, rel=SPREAD)
    assert float(depthwise.weight.detach().std()) == pytest.approx((2 / 9) ** 0.5, rel=SPREAD)
    assert backbone._fc.bias.abs().max() == 0


@pytest.mark.parametrize(("model_name", "settings", "epsilon", "momentum"), [
    ("efficientnet-b0", {"initial_weights": "none"}, 1e-5, 0.1),
    ("efficientnet-b0", {"initial_weights": "imagenet"}, 1e-3, 0.1),
    ("resnet18", {"initial_weights": "imagenet"}, 1e-5, 0.1),
    ("efficientnet-b0", {"initial_weights": "imagenet", "batch_norm_epsilon": 2e-4, "batch_norm_momentum": 0.03}, 2e-4,
     0.03),
])
def test_batch_norm_settings(model_name, settings, epsilon, momentum):
    norms = [m for m in build(model_name, **settings).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(epsilon, momentum)}


@pytest.mark.parametrize("model_name", LIBRARY_MODELS)
def test_dropout_acts_while_training_only(model_name):
    clips, statistics_free = log_mels(2, 1, 64, 96), build(model_name, dropout_rate=0.5)
    for module in statistics_free.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        assert not torch.equal(statistics_free(clips), statistics_free(clips))
        statistics_free.eval()
        assert torch.equal(statistics_free(clips), statistics_free(clips))


@pytest.mark.parametrize("n_classes", [1, 0])
def test_a_classifier_of_one_class_is_refused(n_classes):
    with pytest.raises(ConfigError, match=f"at least 2 classes, got {n_classes}"):
        build_model(EfficientNetConfig(), n_classes)


def test_the_legacy_normaliser_by_hand():
    ramp = torch.linspace(-80, 0, 224 * 224).reshape(1, 1, 224, 224)
    normalised = LegacyNormaliser()(ramp)
    assert normalised.shape == (1, 3, 224, 224)
    torch.testing.assert_close(normalised[0, 0], (ramp[0, 0] + 80) / 80, rtol=0, atol=GAIN)
    assert torch.equal(normalised[:, 0], normalised[:, 1])
    assert torch.equal(normalised[:, 0], normalised[:, 2])


def test_the_legacy_normaliser_stretches_each_clip_to_zero_and_one():
    clips = torch.cat([log_mels(1, 1, 224, 224), 0.1 * log_mels(1, 1, 224, 224, seed=5)])
    normalised = LegacyNormaliser()(clips)
    for clip in normalised:
        assert float(clip.min()) == pytest.approx(0, abs=GAIN)
        assert float(clip.max()) == pytest.approx(1, abs=GAIN)


def test_the_legacy_normaliser_resizes_and_survives_silence():
    assert LegacyNormaliser()(log_mels(2, 1, 128, 883)).shape == (2, 3, 224, 224)
    assert LegacyNormaliser()(torch.full((1, 1, 128, 883), -100.0)).abs().max() == 0


def test_the_legacy_network_is_torchvisions():
    model, library = build_legacy_resnet18(N_CLASSES).eval(), library_network("resnet18")
    model.backbone.load_state_dict(library.state_dict())
    clips = log_mels(2, 1, 128, 300)
    with torch.inference_mode():
        assert_same_logits(model(clips), library(LegacyNormaliser()(clips)))


BFLOAT16_STEP = 2.0 ** -7  # a bfloat16 holds 8 bits: neighbours are this far apart, relative to the largest value


@pytest.mark.parametrize(("kernel", "stride"), [(5, 1), (3, 2), (5, 2)])
def test_depthwise_gradients_in_bfloat16_are_those_of_float32(kernel, stride):
    """While training on a CPU these convolutions compute in float32: their gradient is not rounded on the way."""
    torch.manual_seed(0)
    layer = efficientnet._SamePaddedConv2d(8, 8, kernel, stride=stride, groups=8, bias=False)
    inputs = torch.randn(2, 8, 16, 27)
    exact = layer(inputs)
    exact.square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(inputs.bfloat16())
    assert output.dtype == torch.bfloat16  # what follows goes on in bfloat16
    output.float().square().sum().backward()
    assert (output.float() - exact).abs().max() <= 2 * BFLOAT16_STEP * exact.abs().max()
    assert layer.weight.grad.dtype == torch.float32
    assert (layer.weight.grad - expected).abs().max() <= 2 * BFLOAT16_STEP * expected.abs().max()
