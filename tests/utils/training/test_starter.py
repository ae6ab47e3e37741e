import dataclasses
import functools
import logging
from urllib.error import URLError

import pytest
import torch

from models.calibration import Calibration
from models.classes import ClassList
from models.efficientnet import batch_norm_epsilon, body_weights, build_model, classifier_of
from models.efficientnet_config import FrontendConfig
from models.errors import CheckpointError, ConfigError
from tests.conftest import TINY_FRONTEND, tiny_config
from utils.storage import checkpoints
from utils.storage.checkpoints import Start, lite0_weights, save_model, save_start
from utils.training import starter
from utils.training.starter import begin, frontend_difference, kind_of_start, resolve_start, starter_path

N_CLASSES = 3
EPSILON = 2e-4  # of no network's own choice
FLOAT32 = 1e-4  # relative to the largest feature: a sum over copies adds float32 in another order, in each layer


def config_of(initial_weights, **changes):
    return tiny_config(**{"frontend": TINY_FRONTEND, "initial_weights": str(initial_weights), **changes})


@functools.cache
def clips():
    return torch.normal(-50.0, 15.0, (3, 1, 32, 32), generator=torch.Generator().manual_seed(2))


@functools.cache
def start_of(model_name="efficientnet-b0"):
    """Return a start whose batch-norm statistics fit, and whose weights half precision holds as they are."""
    model = build_model(config_of("none", model_name=model_name, seed=9, batch_norm_epsilon=EPSILON,
                                  batch_norm_momentum=1.0), 2)
    with torch.no_grad():
        model(clips())
    weights = {name: value.half().float() if value.is_floating_point() else value
               for name, value in body_weights(model, model_name=model_name).items()}
    return Start(source="test", model_name=model_name, weights=weights, trained_on="owls", licence="CC0",
                 frontend=TINY_FRONTEND, batch_norm_epsilon=EPSILON)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The folder of starters, empty."""
    monkeypatch.setattr(starter, "STARTER_FOLDER", tmp_path / "starters")
    return tmp_path / "starters"


@pytest.fixture
def no_network(monkeypatch):
    def unreachable(url, **settings):
        raise URLError("no route to host")

    monkeypatch.setattr(checkpoints, "load_state_dict_from_url", unreachable)


def body(model):
    return {name: value for name, value in model.backbone.state_dict().items() if not name.startswith(("_fc", "fc"))}


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


def features(model):
    with torch.inference_mode():
        return model.eval().embed(clips())


# nothing, pictures

@pytest.mark.parametrize("model_name", ["efficientnet-b0", "resnet18"])
def test_none_begins_with_random_weights(model_name):
    config = config_of("none", model_name=model_name)
    model, found = begin(config, N_CLASSES)
    assert found == config
    assert_same(model.state_dict(), build_model(config, N_CLASSES).state_dict())


def test_b0_begins_with_pictures_without_a_network(no_network):
    model, found = begin(config_of("imagenet"), N_CLASSES)
    lite = lite0_weights()
    assert found.initial_weights == "imagenet"
    assert torch.equal(model.backbone._conv_head.weight, lite["_conv_head.weight"])
    assert (model.backbone._blocks[4]._se_expand.bias == 3).all()
    assert batch_norm_epsilon(model) == 1e-3  # TensorFlow's, which the weights were made with
    assert classifier_of(model).out_features == N_CLASSES


@pytest.mark.parametrize("model_name", ["efficientnet-b1", "efficientnet-b3", "resnet18"])
def test_other_networks_ask_for_a_file_where_there_is_no_network(no_network, model_name):
    with pytest.raises(ConfigError, match=f"ImageNet weights of {model_name} could not be downloaded.*"
                                          "pass --initial_weights FILE with a local copy"):
        begin(config_of("imagenet", model_name=model_name), N_CLASSES)


def test_other_networks_begin_with_what_is_downloaded(monkeypatch):
    from torchvision.models import resnet18
    weights = resnet18().state_dict()
    monkeypatch.setattr(checkpoints, "load_state_dict_from_url", lambda url, **settings: weights)
    model, _ = begin(config_of("imagenet", model_name="resnet18"), N_CLASSES)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])


# files

def test_a_start_file_is_what_the_network_begins_with(tmp_path, caplog):
    save_start(tmp_path / "start.pth", start_of())
    with caplog.at_level(logging.INFO, logger="utils"):
        model, found = begin(config_of(tmp_path / "start.pth"), N_CLASSES)
    assert_same(body(model), start_of().weights)
    assert model.training and classifier_of(model).out_features == N_CLASSES
    assert f"efficientnet-b0 begins with {tmp_path / 'start.pth'} (owls; licence: CC0)" in caplog.text
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_what_a_file_holds_decides_how_its_network_is_trained(tmp_path):
    save_start(tmp_path / "start.pth", start_of())
    torch.save({"features.weight": torch.zeros(1)}, tmp_path / "library.pth")
    kinds = {name: kind_of_start(config_of(name)) for name in (
        "starter", "imagenet", "none", tmp_path / "start.pth", tmp_path / "library.pth")}
    assert list(kinds.values()) == ["starter", "imagenet", "none", "starter", "imagenet"]
    assert kind_of_start(config_of("starter", model_name="resnet18")) == "none"


def test_the_classifier_is_drawn_from_the_seed_as_always(tmp_path):
    save_start(tmp_path / "start.pth", start_of())
    config = config_of(tmp_path / "start.pth", seed=4)
    assert torch.equal(classifier_of(begin(config, N_CLASSES)[0]).weight,
                       classifier_of(build_model(config, N_CLASSES)).weight)


def test_a_start_brings_its_batch_norm_epsilon_unless_one_is_given(tmp_path):
    save_start(tmp_path / "start.pth", start_of())
    model, found = begin(config_of(tmp_path / "start.pth"), N_CLASSES)
    assert batch_norm_epsilon(model) == found.batch_norm_epsilon == EPSILON
    model, found = begin(config_of(tmp_path / "start.pth", batch_norm_epsilon=7e-4), N_CLASSES)
    assert batch_norm_epsilon(model) == found.batch_norm_epsilon == 7e-4


@pytest.mark.parametrize("model_name", ["efficientnet-b0", "resnet18"])
def test_a_trained_model_goes_on_as_the_function_it_was(tmp_path, model_name):
    """It was trained from scratch, whose batch norms have another epsilon than those of ImageNet."""
    config = config_of("none", model_name=model_name, batch_norm_momentum=1.0)
    trained = build_model(config, 2)
    with torch.no_grad():
        trained(clips())
    save_model(tmp_path / "best.pth", trained.state_dict(), config=config, classes=ClassList(("ant", "owl")),
               calibration=Calibration(), metadata={})
    model, _ = begin(config_of(tmp_path / "best.pth", model_name=model_name), N_CLASSES)
    assert torch.equal(features(model), features(trained))


def test_a_librarys_state_dict_is_what_the_network_begins_with(tmp_path):
    from torchvision.models import resnet18
    weights = resnet18(num_classes=9).state_dict()
    torch.save(weights, tmp_path / "library.pth")
    model, _ = begin(config_of(tmp_path / "library.pth", model_name="resnet18"), N_CLASSES)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, weights["layer4.1.conv2.weight"])
    assert torch.equal(model.backbone.conv1.weight, weights["conv1.weight"].sum(dim=1, keepdim=True))


@pytest.mark.parametrize(("given", "wanted", "message"), [
    ("efficientnet-b0", "resnet18", "holds efficientnet-b0, which resnet18 cannot begin with: give a start of"
                                    " resnet18$"),
    ("resnet18", "efficientnet-b1", "holds resnet18, which efficientnet-b1 cannot begin with: give a start of"
                                    " efficientnet-b1 or of a smaller EfficientNet"),
    ("efficientnet-b1", "efficientnet-b0", "holds efficientnet-b1, which efficientnet-b0 cannot begin with: give a"
                                           " start of efficientnet-b0$"),
])
def test_a_start_of_another_architecture_is_refused(tmp_path, given, wanted, message):
    save_start(tmp_path / "start.pth", start_of(given))
    with pytest.raises(CheckpointError, match=message) as caught:
        begin(config_of(tmp_path / "start.pth", model_name=wanted), N_CLASSES)
    assert str(tmp_path / "start.pth") in str(caught.value)


def test_a_state_dict_of_another_architecture_is_refused(tmp_path):
    torch.save(lite0_weights(), tmp_path / "lite.pth")
    with pytest.raises(CheckpointError, match=r"lite\.pth: the pretrained weights are not those of resnet18: "
                                              r"conv1\.weight is missing"):
        begin(config_of(tmp_path / "lite.pth", model_name="resnet18"), N_CLASSES)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        begin(config_of(tmp_path / "gone.pth"), N_CLASSES)


# growth

@pytest.mark.parametrize("model_name", ["efficientnet-b1", "efficientnet-b2", "efficientnet-b3"])
def test_a_larger_network_begins_as_the_function_of_the_smaller_start(tmp_path, model_name):
    """The start has learnt, for the rounding to half precision is magnified by a network that is drawn."""
    pictures, _ = begin(config_of("imagenet"), N_CLASSES)
    save_start(tmp_path / "start.pth", dataclasses.replace(start_of(), weights=body(pictures)))
    small, _ = begin(config_of(tmp_path / "start.pth"), N_CLASSES)
    large, found = begin(config_of(tmp_path / "start.pth", model_name=model_name), N_CLASSES)
    expected, grown = features(small), features(large)
    assert found.model_name == model_name and found.batch_norm_epsilon == EPSILON
    assert grown.shape[1] == classifier_of(large).in_features
    assert float((expected[0] - expected[1]).abs().max()) > 0.1 * float(expected.abs().max())
    torch.testing.assert_close(grown[:, :expected.shape[1]], expected, rtol=0,
                               atol=FLOAT32 * float(expected.abs().max()))


# the starter

def test_where_there_is_no_starter_random_weights_are_taken_and_a_line_says_so(shelf, caplog):
    config = config_of("starter", model_name="resnet18")
    with caplog.at_level(logging.INFO, logger="utils"):
        model, found = begin(config, N_CLASSES)
    assert "there is no starter for resnet18: it begins with random weights" in caplog.text
    assert found == config.replace(initial_weights="none") == resolve_start(config)
    assert_same(model.state_dict(), build_model(found, N_CLASSES).state_dict())


def test_the_starter_is_taken_where_there_is_one(shelf, caplog):
    save_start(shelf / "efficientnet-b0.pth", start_of())
    with caplog.at_level(logging.INFO, logger="utils"):
        model, found = begin(config_of("starter"), N_CLASSES)
    assert_same(body(model), start_of().weights)
    assert found.initial_weights == "starter"
    assert "efficientnet-b0 begins with starter (owls; licence: CC0)" in caplog.text


@pytest.mark.parametrize("model_name", ["efficientnet-b1", "efficientnet-b2", "efficientnet-b3"])
def test_larger_networks_share_the_starter_of_the_smallest_and_others_have_their_own(shelf, model_name):
    assert starter_path(model_name) == shelf / "efficientnet-b0.pth"
    assert starter_path("resnet18") == shelf / "resnet18.pth"


@pytest.mark.parametrize("initial_weights", ["none", "imagenet", "file.pth"])
def test_only_a_wish_for_the_starter_is_resolved(shelf, initial_weights):
    config = config_of(initial_weights)
    assert resolve_start(config) == config


# another front end

def test_a_start_that_has_heard_another_front_end_is_used_with_a_warning_that_names_the_difference(tmp_path, caplog):
    save_start(tmp_path / "start.pth", start_of())
    frontend = TINY_FRONTEND.replace(n_fft=256, f_min=20.0)
    with caplog.at_level(logging.WARNING, logger="utils"):
        model, _ = begin(config_of(tmp_path / "start.pth", frontend=frontend), N_CLASSES)
    assert_same(body(model), start_of().weights)
    warning, = caplog.records
    assert "another front end (n_fft 512 for 256, f_min 50.0 for 20.0)" in warning.getMessage()
    assert "start.pth" in warning.getMessage()


def test_the_difference_of_two_front_ends_in_words():
    heard = FrontendConfig()
    assert frontend_difference(heard, heard) == ""
    assert frontend_difference(heard, heard.replace(segment_duration_ms=3000)) == ""  # a network hears any length
    used = heard.replace(n_mels=64, top_db=60.0)
    assert frontend_difference(heard, used) == "n_mels 128 for 64, top_db 80.0 for 60.0"
    assert frontend_difference(None, heard) == ""
