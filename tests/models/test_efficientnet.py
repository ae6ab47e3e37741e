import functools

import numpy as np
import pytest
import torch
from efficientnet_pytorch import EfficientNet
from torch import nn
from torch.nn import functional
from torchvision.models import resnet18

from models import efficientnet
from models.efficientnet import (ClipNormaliser, LegacyNormaliser, batch_norm_epsilon, body_weights,
                                 build_legacy_resnet18, build_model, classifier_of, lite_weights, load_body,
                                 load_imagenet_weights, stages, state_dict_problem)
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


# body and classifier

@pytest.mark.parametrize("model_name", MODEL_NAMES)
def test_the_body_is_all_but_the_classifier(model_name):
    model = build(model_name)
    body, own = body_weights(model, model_name=model_name), model.backbone.state_dict()
    prefix = "fc." if model_name == "resnet18" else "_fc."
    assert sorted(set(own) - set(body)) == [prefix + "bias", prefix + "weight"]
    assert all(torch.equal(value, own[name]) for name, value in body.items())
    assert classifier_of(model).weight is model.backbone.get_parameter(prefix + "weight")


@pytest.mark.parametrize("model_name", LIBRARY_MODELS)
def test_the_classifier_makes_logits_of_embeddings(model_name):
    model, clips = trained(model_name), log_mels(2, 1, 64, 96)
    with torch.inference_mode():
        assert_same_logits(classifier_of(model)(model.embed(clips)), model(clips))


@pytest.mark.parametrize("model_name", LIBRARY_MODELS)
def test_a_body_carries_its_embeddings_to_another_set_of_classes(model_name):
    given, clips = trained(model_name), log_mels(2, 1, 64, 96)
    model = build_model(EfficientNetConfig(model_name=model_name, seed=5), N_CLASSES + 3)
    before = classifier_of(model).weight.detach().clone()
    load_body(model, body_weights(given, model_name=model_name), model_name=model_name)
    assert torch.equal(classifier_of(model).weight, before)
    with torch.inference_mode():
        assert torch.equal(model.eval().embed(clips), given.embed(clips))


def test_a_loaded_body_is_a_copy():
    given, model = build(seed=1), build(seed=2)
    weights = body_weights(given, model_name="efficientnet-b0")
    load_body(model, weights, model_name="efficientnet-b0")
    with torch.no_grad():
        given.backbone._conv_stem.weight.zero_()
    assert model.backbone._conv_stem.weight.abs().max() > 0


@pytest.mark.parametrize(("given", "message"), [
    (lambda: body_weights(build("efficientnet-b1"), model_name="efficientnet-b1"),
     r"initial weights are not those of efficientnet-b0: _blocks\.1\._expand_conv\.weight is missing"),
    (lambda: body_weights(build("resnet18"), model_name="resnet18"),
     "initial weights are not those of efficientnet-b0: _conv_stem.weight is missing"),
    (lambda: build().backbone.state_dict(), r"_fc\.weight is not part of it"),
])
def test_a_body_of_another_network_is_refused(given, message):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_body(model, given(), model_name="efficientnet-b0")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("epsilon", [1e-5, 2e-4])
def test_the_batch_norms_tell_their_epsilon(epsilon):
    assert batch_norm_epsilon(build(batch_norm_epsilon=epsilon)) == epsilon


# EfficientNet-Lite0

def lite_state(model):
    """Return the weights that a Lite network has: no squeeze-and-excitation, three colours."""
    weights = {name: value for name, value in model.backbone.state_dict().items() if "_se_" not in name}
    weights["_conv_stem.weight"] = weights["_conv_stem.weight"].expand(-1, 3, -1, -1) / 3
    return weights


def test_lite_weights_fill_what_the_lite_network_lacks():
    model, lite = build(seed=1), lite_state(build(seed=2))
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    load_imagenet_weights(model, lite_weights(lite, model), model_name="efficientnet-b0")
    own = model.backbone.state_dict()
    assert sum("_se_" in name for name in own) == 64
    for name, value in own.items():
        if "_se_expand" in name:
            assert (value == (3.0 if name.endswith("bias") else 0.0)).all()
        elif "_se_reduce" in name:
            assert torch.equal(value, before[name])
        elif not name.startswith(("_fc.", "_conv_stem.")):
            assert torch.equal(value, lite[name])


def test_lite_weights_leave_what_they_are_given_alone():
    lite = lite_state(build(seed=2))
    names = set(lite)
    lite_weights(lite, build())
    assert set(lite) == names


def test_squeeze_and_excitation_lets_every_channel_of_lite_weights_pass():
    model = build().eval()
    load_imagenet_weights(model, lite_weights(lite_state(trained()), model), model_name="efficientnet-b0")
    block, seen = model.backbone._blocks[3], {}
    block._se_reduce.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0]))
    block._bn1.register_forward_hook(lambda *of_layer: seen.update(normed=of_layer[-1]))
    block._project_conv.register_forward_pre_hook(lambda _, inputs: seen.update(passed=inputs[0]))
    with torch.inference_mode():
        model(log_mels(2, 1, 64, 96))
    activated = functional.silu(seen["normed"])
    assert seen["pooled"].abs().max() > 0
    torch.testing.assert_close(seen["passed"], activated * torch.sigmoid(torch.tensor(3.0)), rtol=GAIN, atol=GAIN)


def test_squeeze_and_excitation_of_lite_weights_can_learn():
    model = build()
    load_imagenet_weights(model, lite_weights(lite_state(trained()), model), model_name="efficientnet-b0")
    model(log_mels(4, 1, 32, 32)).square().sum().backward()
    assert all(block._se_expand.weight.grad.abs().max() > 0 for block in model.backbone._blocks)


# exactness

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


# stages

@pytest.mark.parametrize("model_name", MODEL_NAMES)
def test_every_parameter_belongs_to_one_stage(model_name):
    model = build(model_name)
    staged = [id(p) for stage in stages(model) for module in stage for p in module.parameters()]
    assert len(staged) == len(set(staged))
    assert set(staged) == {id(p) for p in model.parameters()}


def test_the_stages_of_an_efficientnet_by_hand():
    model = build("efficientnet-b0")
    found, backbone = stages(model), model.backbone
    assert found[0] == (backbone._conv_stem, backbone._bn0)
    # Tan & Le (2019), table 1: 1, 2, 2, 3, 3, 4 and 1 blocks, each stage of one width
    assert [len(stage) for stage in found[1:8]] == [1, 2, 2, 3, 3, 4, 1]
    assert [{block._bn2.num_features for block in stage} for stage in found[1:8]] == [
        {16}, {24}, {40}, {80}, {112}, {192}, {320}]
    assert found[8:] == ((backbone._conv_head, backbone._bn1), (backbone._fc,))


def test_a_deeper_efficientnet_has_deeper_stages_of_one_width():
    found = stages(build("efficientnet-b3"))
    assert [len({block._bn2.num_features for block in stage}) for stage in found[1:8]] == [1] * 7
    assert sum(len(stage) for stage in found[1:8]) == 26


def test_the_stages_of_a_resnet_by_hand():
    model = build("resnet18")
    backbone = model.backbone
    assert stages(model) == ((backbone.conv1, backbone.bn1), (backbone.layer1,), (backbone.layer2,),
                             (backbone.layer3,), (backbone.layer4,), (backbone.fc,))


def test_another_network_has_no_stages():
    with pytest.raises(TypeError, match="only a SpectrogramClassifier has stages, got Linear"):
        stages(nn.Linear(3, 2))
