import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from models.calibration import Calibration
from models.classes import ClassList
from models.description import ModelDescription
from models.efficientnet import build_model
from models.errors import CheckpointError, ConfigError
from tests.conftest import TINY_CLASSES, TINY_FRONTEND, tiny_config
from utils.networks.opening import BACKENDS, load_backend
from utils.networks.torch_backend import BATCH_SIZES
from utils.storage.checkpoints import load_model, save_model

NETWORKS = ("efficientnet-b0", "resnet18")
N_FEATURES = {"efficientnet-b0": 1280, "resnet18": 512}
TWO_WAYS = 1e-5  # of logits of order 1: the last layer alone may add float32 in another order


@pytest.fixture(scope="module", params=NETWORKS)
def model_path(request, tmp_path_factory):
    """A network with drawn weights: what they are does not matter here."""
    torch.manual_seed(0)
    config = tiny_config(model_name=request.param, frontend=TINY_FRONTEND, dropout_rate=0.5)
    path = tmp_path_factory.mktemp("backend") / f"{request.param}.pth"
    save_model(path, build_model(config, len(TINY_CLASSES)).state_dict(), config=config,
               classes=ClassList(TINY_CLASSES), calibration=Calibration(), metadata={"epoch": 1})
    return path


def torch_backend(path):
    return load_backend(path, device="cpu", backend="torch")


@pytest.fixture
def log_mels(rng):
    """Five windows in dB."""
    return rng.uniform(-100, 0, (5, TINY_FRONTEND.n_mels, TINY_FRONTEND.n_frames)).astype(np.float32)


def everything_in(value):
    """Yield a value and all that it holds."""
    yield value
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from everything_in(part)


def test_logits_are_those_of_the_network(model_path, log_mels):
    backend, network = torch_backend(model_path), load_model(model_path).network
    output = backend.run(log_mels)
    with torch.no_grad():
        expected = network(torch.from_numpy(log_mels)[:, None]).numpy()
    np.testing.assert_array_equal(output.logits, expected)
    assert output.logits.dtype == np.float32 and output.logits.shape == (5, len(TINY_CLASSES))
    assert output.embeddings is None


def test_embeddings_are_what_the_last_layer_makes_logits_of(model_path, log_mels):
    backend, network = torch_backend(model_path), load_model(model_path).network
    output = backend.run(log_mels, with_embeddings=True)
    assert output.embeddings.dtype == np.float32
    assert output.embeddings.shape == (5, N_FEATURES[backend.description.model_name])
    with torch.no_grad():
        np.testing.assert_array_equal(network.classify(torch.from_numpy(output.embeddings)).numpy(), output.logits)
    np.testing.assert_allclose(output.logits, backend.run(log_mels).logits, rtol=0, atol=TWO_WAYS)


def test_windows_do_not_touch_each_other(model_path, log_mels):
    """Batch norm and dropout are those of a finished network, whatever else is in the batch."""
    backend = torch_backend(model_path)
    together = backend.run(log_mels).logits
    alone = np.concatenate([backend.run(log_mels[index:index + 1]).logits for index in range(5)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=TWO_WAYS)


def test_the_input_is_left_as_it_is_and_may_be_a_view(model_path, log_mels):
    backend, before = torch_backend(model_path), log_mels.copy()
    every_other = backend.run(log_mels[::2]).logits
    np.testing.assert_array_equal(log_mels, before)
    np.testing.assert_array_equal(every_other, backend.run(log_mels[::2].copy()).logits)


def test_the_description_holds_nothing_of_torch(model_path):
    description = torch_backend(model_path).description
    held = list(everything_in(description))
    assert isinstance(description, ModelDescription) and TINY_FRONTEND in held
    assert [value for value in held if type(value).__module__.split(".")[0] == "torch"] == []
    assert (description.path, description.classes.names) == (str(model_path), TINY_CLASSES)


def test_the_name_tells_library_and_device(model_path):
    backend = torch_backend(model_path)
    assert backend.name == "torch-cpu" and backend.n_threads == torch.get_num_threads()
    assert backend.batch_size == BATCH_SIZES["cpu"]


def test_what_cannot_be_loaded_is_told(model_path, tmp_path):
    for backend in BACKENDS:
        with pytest.raises(ConfigError, match=r"--model_path .*gone\.pth does not exist: give the \.pth that"):
            load_backend(tmp_path / "gone.pth", backend=backend)
    (tmp_path / "text.pth").write_text("no checkpoint", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"text\.pth"):
        torch_backend(tmp_path / "text.pth")
    with pytest.raises(ConfigError, match="--device cuda:99 is not available"):
        load_backend(model_path, device="cuda:99")
