import functools

import pytest
import torch

from models.efficientnet import body_weights, build_model, load_body
from models.efficientnet_config import EfficientNetConfig
from models.growth import grow

SMALLEST = "efficientnet-b0"
LARGER = ("efficientnet-b1", "efficientnet-b2", "efficientnet-b3")
N_FEATURES = {"efficientnet-b0": 1280, "efficientnet-b1": 1280, "efficientnet-b2": 1408, "efficientnet-b3": 1536}
N_BLOCKS_OF_B0 = 16
FLOAT32 = 1e-4  # relative to the largest feature: a sum over copies adds float32 in another order, in each of 80 layers
SUM = 1e-6  # of shares near 1 in float32


@functools.cache
def clips():
    generator = torch.Generator().manual_seed(3)
    return torch.normal(-50.0, 15.0, (4, 1, 32, 32), generator=generator)


def build(model_name):
    return build_model(EfficientNetConfig(model_name=model_name, drop_connect_rate=0.0, dropout_rate=0.0,
                                          batch_norm_momentum=1.0), 2)


@functools.cache
def smallest():
    """B0 in evaluation mode, its batch norms those of its inputs."""
    model = build(SMALLEST)
    with torch.no_grad():
        model(clips())
    return model.eval()


def weights_of_smallest():
    return body_weights(smallest(), model_name=SMALLEST)


def grown(model_name, *, seed=0):
    model = build(model_name)
    load_body(model, grow(weights_of_smallest(), model.backbone, smallest().backbone, seed=seed),
              model_name=model_name)
    return model.eval()


def features(model):
    with torch.inference_mode():
        return model.embed(clips())


def added_blocks(model):
    """Return the blocks of a larger network that B0 has none for, by the number of repeats of its stages."""
    repeats = {"efficientnet-b1": (2, 3, 3, 4, 4, 5, 2), "efficientnet-b2": (2, 3, 3, 4, 4, 5, 2),
               "efficientnet-b3": (2, 3, 3, 5, 5, 6, 2)}[model]  # Tan & Le 2019 with depths 1.1, 1.2, 1.4
    of_b0, added, first = (1, 2, 2, 3, 3, 4, 1), [], 0
    for own, small in zip(repeats, of_b0, strict=True):
        added += range(first + small, first + own)
        first += own
    return added


@pytest.mark.parametrize("model_name", LARGER)
def test_a_grown_network_computes_the_features_of_the_smaller_one(model_name):
    expected, found = features(smallest()), features(grown(model_name))
    assert found.shape == (4, N_FEATURES[model_name])
    copied = expected[:, torch.arange(N_FEATURES[model_name]) % N_FEATURES[SMALLEST]]
    tolerance = FLOAT32 * float(expected.abs().max())
    assert float((expected[0] - expected[1]).abs().max()) > 10 * tolerance  # it looks at its input
    torch.testing.assert_close(found, copied, rtol=0, atol=tolerance)


@pytest.mark.parametrize("model_name", LARGER)
def test_added_blocks_pass_on_what_they_are_given(model_name):
    backbone, added = grown(model_name).backbone, added_blocks(model_name)
    assert len(backbone._blocks) == N_BLOCKS_OF_B0 + len(added)
    for number in added:
        block = backbone._blocks[number]
        inputs = torch.randn(2, block._block_args.input_filters, 4, 4, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            assert torch.equal(block(inputs), inputs)


@pytest.mark.parametrize("model_name", LARGER)
def test_added_blocks_can_learn(model_name):
    """Only the last scale of an added block is 0: its gradient is not, so the block leaves the identity."""
    model = grown(model_name)
    model.embed(clips()).square().sum().backward()
    for number in added_blocks(model_name):
        assert model.backbone._blocks[number]._bn2.weight.grad.abs().max() > 0


@pytest.mark.parametrize(("model_name", "layer", "layer_of_b0"), [
    ("efficientnet-b2", "_blocks.21._depthwise_conv.weight", "_blocks.15._depthwise_conv.weight"),
    ("efficientnet-b3", "_blocks.24._depthwise_conv.weight", "_blocks.15._depthwise_conv.weight"),
    ("efficientnet-b3", "_conv_stem.weight", "_conv_stem.weight"),
])
def test_copies_of_a_channel_part_with_the_first_step(model_name, layer, layer_of_b0):
    model, n_old = grown(model_name).train(), len(weights_of_smallest()[layer_of_b0])
    weight = model.backbone.get_parameter(layer)
    n_copies = len(weight) - n_old
    assert n_copies > 0 and torch.equal(weight[n_old:], weight[:n_copies])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.embed(clips()).square().sum().backward()
    optimizer.step()
    assert (weight[n_old:] != weight[:n_copies]).flatten(1).any(dim=1).all()


def test_what_a_channel_feeds_is_shared_among_its_copies_and_never_evenly():
    old = weights_of_smallest()["_conv_head.weight"].flatten(1)
    new = grown("efficientnet-b3").backbone._conv_head.weight.detach().flatten(1)
    n_old = old.shape[1]
    n_copies = new.shape[1] - n_old
    shares = [part / old[:, :n_copies] for part in (new[:len(old), :n_copies], new[:len(old), n_old:])]
    torch.testing.assert_close(sum(shares), torch.ones_like(shares[0]), rtol=0, atol=SUM)
    assert float(torch.cat(shares).min()) > 0.15  # the least share is 0.25 / (0.25 + 1.25)
    assert float((shares[0] - shares[1]).abs().median()) > 0.1
    torch.testing.assert_close(new[:len(old), n_copies:n_old], old[:, n_copies:])  # channels that have no copy


def test_the_seed_decides_the_shares():
    first, again, other = (grown("efficientnet-b2", seed=seed).backbone._conv_head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_networks_and_the_weights_are_left_as_they_are():
    larger, weights = build("efficientnet-b2"), weights_of_smallest()
    before = {name: value.clone() for name, value in larger.state_dict().items()}
    small_before = {name: value.clone() for name, value in weights.items()}
    result = grow(weights, larger.backbone, smallest().backbone, seed=0)
    for value in result.values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in larger.state_dict().items())
    assert all(torch.equal(value, small_before[name]) for name, value in weights_of_smallest().items())


def test_weights_in_half_precision_grow_into_float32():
    larger = build("efficientnet-b1")
    halved = {name: value.half() if value.is_floating_point() else value
              for name, value in weights_of_smallest().items()}
    result = grow(halved, larger.backbone, smallest().backbone, seed=0)
    assert {value.dtype for name, value in result.items() if "num_batches" not in name} == {torch.float32}
    assert torch.equal(result["_conv_head.weight"], halved["_conv_head.weight"].float())


def test_growth_goes_on_from_a_network_that_has_grown():
    middle, largest = grown("efficientnet-b1"), build("efficientnet-b3")
    load_body(largest, grow(body_weights(middle, model_name="efficientnet-b1"), largest.backbone, middle.backbone,
                            seed=0), model_name="efficientnet-b3")
    expected = features(smallest())
    torch.testing.assert_close(features(largest.eval())[:, :N_FEATURES[SMALLEST]], expected, rtol=0,
                               atol=FLOAT32 * float(expected.abs().max()))
