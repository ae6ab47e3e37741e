import ast
import functools
import os
import pickle
import re
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from models.audio_frontend import frontend_fingerprint
from models.calibration import Calibration
from models.classes import ClassList
from models.efficientnet import (LEGACY_FRONTEND, LEGACY_RESNET_NAME, batch_norm_epsilon, body_weights, build_model,
                                 lite_weights, load_body, load_imagenet_weights)
from models.efficientnet_config import MODEL_NAMES, EfficientNetConfig, FrontendConfig
from models.errors import CheckpointError, ConfigError
from tests.conftest import PROJECT
from utils.storage import checkpoints
from utils.storage.checkpoints import (Start, imagenet_weights, lite0_weights, load_model, read_checkpoint, read_start,
                                       save_model, save_start)

CLASSES = ClassList(("wolf", "ant", "yak"))  # neither sorted nor README order
LARGEST_MEGABYTES = 50
LARGEST_START_MEGABYTES = 9  # it is stored inside the project
HALF = 2.0 ** -11  # half precision keeps 11 bits: this is the largest relative error of rounding to it...
SMALLEST_HALF = 2.0 ** -25  # ...and this the absolute one of numbers that are smaller than it can scale
CONFIG = EfficientNetConfig(model_name="efficientnet-b0", thresholds={"wolf": 0.9}, reject_class="yak", seed=3,
                            frontend=FrontendConfig(n_mels=64, segment_duration_ms=2000))


@functools.cache
def model_of(config_name):
    config = {"scratch": CONFIG, "pretrained": CONFIG.replace(initial_weights="imagenet"),
              "resnet": CONFIG.replace(model_name="resnet18")}[config_name]
    model = build_model(config, len(CLASSES))
    clips = torch.from_numpy(np.random.default_rng(1).normal(-50, 15, size=(4, 1, 64, 64)).astype(np.float32))
    with torch.no_grad(), torch.random.fork_rng():
        model(clips)  # moves the batch-norm statistics
    return config, model.eval(), clips


def save(path, config_name="scratch", **changes):
    config, model, _ = model_of(config_name)
    values = {"config": config, "classes": CLASSES, "calibration": Calibration(1.7),
              "metadata": {"epoch": 4, "val": 0.5}, **changes}
    save_model(path, model.state_dict(), **values)
    return path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("checkpoint") / "model.pth")


def edited(saved, path, **changes):
    """Write a copy of a checkpoint with some entries replaced, or removed where they are None."""
    content = {**torch.load(saved, weights_only=True), **changes}
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


# round trip

@pytest.mark.parametrize("config_name", ["scratch", "pretrained", "resnet"])
def test_a_model_survives_saving_and_loading(tmp_path, config_name):
    config, model, clips = model_of(config_name)
    trained = load_model(save(tmp_path / "folder" / "model.pth", config_name))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in trained.network.state_dict().items())
    with torch.inference_mode():
        assert torch.equal(trained.network(clips), model(clips))
    assert not trained.network.training
    assert trained.description.classes == CLASSES
    assert (trained.description.config, trained.description.model_name) == (config, config.model_name)
    assert trained.description.calibration == Calibration(1.7)
    assert trained.description.metadata == {"epoch": 4, "val": 0.5}
    assert trained.description.frontend == config.frontend
    assert trained.description.fingerprint == frontend_fingerprint(config.frontend)
    assert trained.description.config.threshold("wolf") == 0.9
    assert os.listdir(tmp_path / "folder") == ["model.pth"]


def test_what_a_checkpoint_holds(saved):
    content = read_checkpoint(saved)
    assert content["format_version"] == 1
    assert content["class_names"] == ["wolf", "ant", "yak"]
    assert content["thresholds"] == {"wolf": 0.9, "ant": 0.5, "yak": 0.5}
    assert content["reject_class"] == "yak"
    assert content["calibration"] == {"temperature": 1.7}
    assert content["frontend"] == CONFIG.frontend.to_dict()
    assert "training" not in content
    assert saved.stat().st_size < LARGEST_MEGABYTES * 1e6


@pytest.mark.parametrize("model_name", MODEL_NAMES)
def test_every_network_is_small_enough_to_deploy(model_name):
    weights = build_model(EfficientNetConfig(model_name=model_name), 6).state_dict()
    assert sum(value.numel() * value.element_size() for value in weights.values()) < LARGEST_MEGABYTES * 1e6


def test_training_state_travels_along(tmp_path):
    state = {"loop": {"epoch": 3, "history": [{"loss": 0.5}]}, "optimizer": {"state": {0: torch.ones(2)}}}
    content = read_checkpoint(save(tmp_path / "last.pth", training=state))
    assert content["training"]["loop"] == state["loop"]
    assert torch.equal(content["training"]["optimizer"]["state"][0], torch.ones(2))


def test_a_failed_save_keeps_the_old_file(tmp_path, saved):
    path = save(tmp_path / "model.pth")
    before = path.read_bytes()
    with pytest.raises(AttributeError, match="local object|Can't get"):
        save(path, metadata={"bad": lambda: None})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pth"]


# files that cannot be trusted

class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def write_zip(path, content):
    torch.save(content, path)


def write_old_format(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))  # as torch's own old format


@pytest.mark.skipif(os.name == "nt", reason="the crafted file uses a Unix command")
@pytest.mark.parametrize("write", [write_zip, write_old_format, write_pickle])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"kind": "nightscan-model", "weights": {}, "metadata": x}],
                         ids=["bare", "inside"])
@pytest.mark.parametrize("load", [load_model, read_checkpoint, read_start])
def test_a_crafted_file_is_refused_and_not_run(tmp_path, write, wrap, load):
    marker, path = tmp_path / "marker", tmp_path / "model.pth"
    write(path, wrap(Malicious(marker)))
    with pytest.raises(CheckpointError, match="model.pth is damaged or is not a checkpoint.*nothing in it was run"):
        load(path)
    assert not marker.exists()


@pytest.mark.skipif(os.name == "nt", reason="the crafted file uses a Unix command")
def test_the_crafted_file_would_have_worked(tmp_path):
    pickle.loads(pickle.dumps(Malicious(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("n_bytes", [0, 1, 100, 5000, 1_000_000])
def test_a_truncated_file_is_refused(tmp_path, saved, n_bytes):
    path = tmp_path / "model.pth"
    path.write_bytes(saved.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError, match="model.pth is damaged"):
        load_model(path)


@pytest.mark.parametrize("content", [b"not a checkpoint", b"PK\x03\x04 not a zip", b"\x80\x02."])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="model.pth is damaged"):
        load_model(tmp_path / "model.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="nowhere.pth does not exist"):
        load_model(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"format_version": 2}, "has format_version 2, this NightScan reads 1"),
    ({"format_version": None}, "has format_version None"),
    ({"frontend": FrontendConfig(n_mels=65, segment_duration_ms=2000).to_dict()}, "does not match its fingerprint"),
    ({"fingerprint": "0" * 64}, "does not match its fingerprint 000000000000: it was edited"),
    ({"frontend": {"n_mel": 3}}, "lacks or garbles unknown setting 'n_mel'"),
    ({"config": None}, "lacks or garbles 'config'"),
    ({"weights": None}, "lacks or garbles 'weights'"),
    ({"weights": 7}, "lacks or garbles"),
    ({"calibration": {"temperature": "warm"}}, "lacks or garbles"),
    ({"class_names": ["wolf", "wolf", "yak"]}, "lacks or garbles class names must differ"),
    ({"class_names": ["wolf", "ant"]}, r"backbone\._fc\.weight has shape \(3, 1280\), expected \(2, 1280\)"),
    ({"kind": None}, "is neither a NightScan checkpoint nor a ResNet18 state dict: its keys begin with format_version"),
])
def test_an_edited_checkpoint_is_refused(tmp_path, saved, changes, message):
    path = edited(saved, tmp_path / "model.pth", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path)
    assert str(path) in str(caught.value)


def test_weights_of_another_network_name_the_first_tensor(tmp_path, saved):
    weights = {f"backbone.{name}": value for name, value in resnet18(num_classes=3).state_dict().items()}
    path = edited(saved, tmp_path / "model.pth", weights=weights)
    with pytest.raises(CheckpointError, match=r"do not fit the network: backbone\._conv_stem\.weight is missing"):
        load_model(path)


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match="holds a list, not a checkpoint"):
        load_model(tmp_path / "model.pth")


# NightScan 1

@pytest.fixture(scope="module")
def legacy(tmp_path_factory):
    path = tmp_path_factory.mktemp("legacy") / "best_model.pth"
    torch.save(resnet18(num_classes=3).state_dict(), path)
    return path


def test_nightscan_1_weights_are_read_with_their_own_front_end(legacy):
    trained = load_model(legacy, class_names=["ant", "wolf", "yak"])
    weights = torch.load(legacy, weights_only=True)
    assert all(torch.equal(value, weights[name]) for name, value in trained.network.backbone.state_dict().items())
    assert (trained.description.model_name, trained.description.frontend) == (LEGACY_RESNET_NAME, LEGACY_FRONTEND)
    assert trained.description.classes.names == ("ant", "wolf", "yak")
    assert trained.description.calibration.temperature == 1.0
    assert not trained.network.training
    with torch.inference_mode():
        assert trained.network(torch.randn(1, 1, 128, 90, generator=torch.Generator().manual_seed(0))).shape == (1, 3)


@pytest.mark.parametrize(("class_names", "message"), [
    (None, "NightScan 1's ResNet18, which does not name its 3 outputs: pass --class_names"),
    (["ant", "wolf"], "has 3 outputs, but 2 class names were given: ant, wolf"),
])
def test_nightscan_1_weights_need_the_right_names(legacy, class_names, message):
    with pytest.raises(CheckpointError, match=message):
        load_model(legacy, class_names=class_names)


def test_a_damaged_nightscan_1_state_names_the_tensor(tmp_path, legacy):
    weights = torch.load(legacy, weights_only=True)
    del weights["layer1.0.conv1.weight"]
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight is missing"):
        load_model(tmp_path / "model.pth", class_names=["ant", "wolf", "yak"])


# what a network begins with

def a_start(**changes):
    _, model, _ = model_of("scratch")
    values = {"source": "here", "model_name": "efficientnet-b0", "trained_on": "owls", "licence": "CC0",
              "weights": body_weights(model, model_name="efficientnet-b0"), "frontend": CONFIG.frontend,
              "batch_norm_epsilon": 2e-4, "metadata": {"passes": 3, "heard_contents": ["audio:ab"]}, **changes}
    return Start(**values)


@pytest.fixture(scope="module")
def saved_start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "starter.pth"
    save_start(path, a_start())
    return path


def test_a_start_survives_saving_and_reading_but_for_half_precision(saved_start):
    given, read = a_start(), read_start(saved_start)
    assert (read.model_name, read.trained_on, read.licence) == ("efficientnet-b0", "owls", "CC0")
    assert (read.frontend, read.batch_norm_epsilon) == (CONFIG.frontend, 2e-4)
    assert read.metadata == {"passes": 3, "heard_contents": ["audio:ab"]}
    assert read.source == str(saved_start)
    assert list(read.weights) == list(given.weights)
    for name, value in given.weights.items():
        assert read.weights[name].dtype == value.dtype
        torch.testing.assert_close(read.weights[name], value, rtol=HALF, atol=SMALLEST_HALF)
    assert any(not torch.equal(read.weights[name], value) for name, value in given.weights.items())


def test_a_start_is_small_and_holds_nothing_but_the_body(saved_start):
    assert saved_start.stat().st_size < LARGEST_START_MEGABYTES * 1e6
    content = read_checkpoint(saved_start)
    assert {value.dtype for value in content["weights"].values()} == {torch.float16, torch.int64}
    assert not any("_fc" in name for name in content["weights"])


def test_a_start_is_called_what_the_caller_calls_it(saved_start):
    assert read_start(saved_start, source="starter").source == "starter"


def test_a_start_read_and_saved_again_is_the_same(saved_start, tmp_path):
    save_start(tmp_path / "again.pth", read_start(saved_start))
    first, second = read_checkpoint(saved_start)["weights"], read_checkpoint(tmp_path / "again.pth")["weights"]
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e5])
def test_a_weight_beyond_half_precision_is_refused(tmp_path, value):
    weights = {**a_start().weights, "_bn1.running_var": torch.full((1280,), value)}
    with pytest.raises(CheckpointError, match=r"_bn1\.running_var is not finite in half precision: did training"):
        save_start(tmp_path / "starter.pth", a_start(weights=weights))
    assert os.listdir(tmp_path) == []


def test_a_start_that_has_heard_nothing_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"starter\.pth: a start that has heard nothing needs no file"):
        save_start(tmp_path / "starter.pth", a_start(frontend=None))


@pytest.mark.parametrize(("changes", "message"), [
    ({"format_version": 2}, "has format_version 2, this NightScan reads 1"),
    ({"frontend": FrontendConfig(n_mels=65).to_dict()}, "its front end does not match its fingerprint"),
    ({"fingerprint": "0" * 64}, "does not match its fingerprint 000000000000: it was edited"),
    ({"fingerprint": None}, "lacks or garbles 'fingerprint'"),
    ({"frontend": {"n_mel": 3}}, "lacks or garbles unknown setting 'n_mel'"),
    ({"licence": None}, "lacks or garbles 'licence'"),
    ({"weights": None}, "lacks or garbles 'weights'"),
    ({"weights": {"_bn1.weight": "heavy"}}, "lacks or garbles"),
    ({"metadata": 7}, "lacks or garbles"),
])
def test_an_edited_start_is_refused(tmp_path, saved_start, changes, message):
    path = edited(saved_start, tmp_path / "starter.pth", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_start(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("config_name", ["scratch", "pretrained", "resnet"])
def test_a_trained_model_is_a_start_that_computes_the_same(tmp_path, config_name):
    """Also what its batch norms add to the variance is the trained model's, though its config leaves it open."""
    config, model, clips = model_of(config_name)
    contents = {"train": ["audio:ab"]}
    start = read_start(save(tmp_path / "model.pth", config_name, metadata={"recording_contents": contents, "epoch": 4}))
    assert (start.model_name, start.frontend, start.metadata) == (
        config.model_name, config.frontend, {"recording_contents": contents})
    assert start.trained_on == "the classes wolf, ant, yak"
    assert config.batch_norm_epsilon is None and start.batch_norm_epsilon == batch_norm_epsilon(model)
    begun = build_model(config.replace(initial_weights="model.pth", batch_norm_epsilon=start.batch_norm_epsilon), 7)
    load_body(begun, start.weights, model_name=config.model_name)
    with torch.inference_mode():
        assert torch.equal(begun.eval().embed(clips), model.embed(clips))


def test_the_file_of_a_training_under_way_is_a_start_too(tmp_path):
    path = save(tmp_path / "last.pth", training={"loop": {"epoch": 3}})
    assert read_start(path).model_name == "efficientnet-b0"


def test_an_edited_model_is_no_start(tmp_path, saved):
    path = edited(saved, tmp_path / "model.pth", fingerprint="0" * 64)
    with pytest.raises(CheckpointError, match="does not match its fingerprint"):
        read_start(path)


def test_a_librarys_state_dict_is_handed_on_as_it_is(tmp_path):
    weights = resnet18(num_classes=9).state_dict()
    torch.save(weights, tmp_path / "resnet.pth")
    read = read_start(tmp_path / "resnet.pth")
    assert isinstance(read, dict) and list(read) == list(weights)
    assert all(torch.equal(value, weights[name]) for name, value in read.items())


def test_the_installed_pictures_fit_b0():
    """Every tensor of EfficientNet-Lite0 finds its place in B0, which has 64 more: squeeze-and-excitation."""
    model = build_model(CONFIG.replace(initial_weights="imagenet"), 3)
    lite = lite0_weights()
    assert len([name for name in model.backbone.state_dict() if name not in lite]) == 64
    load_imagenet_weights(model, lite_weights(lite, model), model_name="efficientnet-b0")
    assert torch.equal(model.backbone._conv_head.weight, lite["_conv_head.weight"])
    torch.testing.assert_close(model.backbone._conv_stem.weight.detach(),
                               lite["_conv_stem.weight"].sum(dim=1, keepdim=True))


@pytest.mark.parametrize("model_name", ["efficientnet-b1", "resnet18"])
def test_without_a_network_the_pictures_are_asked_for_as_a_file(monkeypatch, model_name):
    def unreachable(url, **settings):
        assert settings["weights_only"] and settings["check_hash"]
        raise URLError("no route to host")

    monkeypatch.setattr(checkpoints, "load_state_dict_from_url", unreachable)
    with pytest.raises(ConfigError, match=rf"{model_name} could not be downloaded from https://.*{model_name}.*no route"
                                          rf" to host.*pass --initial_weights FILE"):
        imagenet_weights(model_name)


# the whole project

def calls_of(tree, dotted_name):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == dotted_name]


def keyword_value(call, name):
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


@pytest.mark.parametrize(("function", "keyword", "wanted"), [
    ("torch.load", "weights_only", True), ("np.load", "allow_pickle", False),
    ("load_state_dict_from_url", "weights_only", True), ("torch.hub.load_state_dict_from_url", "weights_only", True),
])
def test_every_load_below_the_tests_reads_data_only(function, keyword, wanted):
    careless = []
    for folder in ("models", "utils", "scripts"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            careless += [f"{path.relative_to(PROJECT)}:{call.lineno}"
                         for call in calls_of(ast.parse(path.read_text(encoding="utf-8")), function)
                         if keyword_value(call, keyword) is not wanted]
    assert careless == []


# what a command hands to the workers of its cluster: no file, and whoever reaches a Dask scheduler runs code anyway
FROM_THE_COMMAND_ITSELF = {"    work, item, silence_seconds = pickle.loads(payload)"}


def test_no_unpickling_below_the_tests():
    pattern = re.compile(r"pickle\.loads?\((?!pickle\.dumps\()|joblib|torch\.jit\.load|\beval\(|\bexec\(|yaml\.load\(")
    for folder in ("models", "utils", "scripts"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            found = [line for line in path.read_text(encoding="utf-8").splitlines()
                     if pattern.search(line) and ".eval()" not in line and line not in FROM_THE_COMMAND_ITSELF]
            assert found == [], path.name
