import dataclasses
import logging
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.audio_frontend import cached_frontend
from models.calibration import Calibration
from models.classes import ClassList
from models.efficientnet import build_model
from models.errors import CheckpointError, ConfigError
from tests.conftest import TINY_CLASSES, TINY_FRONTEND, TINY_RATE, tiny_config, tiny_sound
from utils.networks import export
from utils.networks.backends import NetworkOutput
from utils.networks.conversions import PROBABILITIES, conversion_places, read_description, read_metadata
from utils.networks.export import Comparison, ConvertingBackend, compare, convert, export_int8, export_onnx
from utils.networks.onnx_backends import open_converted
from utils.networks.opening import load_backend, plan_backend
from utils.networks.torch_backend import TorchBackend
from utils.storage.checkpoints import load_model, save_model
from utils.storage.files import file_sha256

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
# of logits of order 1 on sounds that the network knows: float32 added in another order; ten times what is measured
SAME_NETWORK = 3e-4
ROUNDED = 1e-5  # of a probability: the graph computes it in float32, calibration in float64
NETWORKS, LIBRARIES, CPU = ("tiny", "resnet18"), ("onnx", "openvino"), torch.device("cpu")
both_libraries = pytest.mark.parametrize("library", LIBRARIES)
# what ends a conversion that is not on trial here, at once
SAME = Comparison(1, 0.0, 0.0, 0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test sees or leaves converted networks in the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "nightscan"


@pytest.fixture(scope="module")
def log_mels():
    """64 windows of the sounds that the tiny network knows."""
    rng, frontend = np.random.default_rng(11), cached_frontend(TINY_FRONTEND)
    return np.stack([frontend.log_mel(tiny_sound(TINY_CLASSES[number % 4], seconds=1, rng=rng)[:TINY_RATE])
                     for number in range(64)])


def drawn_model(path, *, calibration=Calibration()):
    """Write a ResNet18 with drawn weights, which takes less to build than an EfficientNet, and read it."""
    torch.manual_seed(0)
    config = tiny_config(model_name="resnet18", frontend=TINY_FRONTEND)
    save_model(path, build_model(config, len(TINY_CLASSES)).state_dict(), config=config, calibration=calibration,
               classes=ClassList(TINY_CLASSES), metadata={"epoch": 1, "recordings": ["a", "b"]})
    return load_model(path)


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory, log_mels):
    """The tiny network, which was trained and calibrated, and a drawn ResNet18, each with its ``.onnx``."""
    folder, found = tmp_path_factory.mktemp("exported"), {}
    shutil.copy(tiny_model.best, folder / "tiny.pth")
    models = {"tiny": load_model(folder / "tiny.pth"), "resnet18": drawn_model(
        folder / "resnet18.pth", calibration=Calibration(1.5, (0.1, 0.0, -0.2, 0.0)))}
    for name, model in models.items():
        path = folder / f"{name}.onnx"
        found[name] = SimpleNamespace(model=model, path=path, comparison=export_onnx(model, path, log_mels))
    return found


@pytest.fixture
def model(exported, tmp_path):
    """The drawn ResNet18 in a folder of its own, since conversions are written beside it."""
    source = exported["resnet18"].model
    path = tmp_path / "model" / "best.pth"
    path.parent.mkdir()
    shutil.copy(source.description.path, path)
    return dataclasses.replace(source, description=dataclasses.replace(source.description, path=str(path)))


@pytest.fixture(scope="module")
def graph(exported, tmp_path_factory):
    """The traced ResNet18 with nothing written in it; tracing it again and again would take most of the time."""
    import onnx
    content = onnx.load(exported["resnet18"].path)
    del content.metadata_props[:]
    path = tmp_path_factory.mktemp("graph") / "resnet18.onnx"
    onnx.save(content, path)
    return path


@pytest.fixture
def traced(graph, monkeypatch):
    monkeypatch.setattr(export, "_trace", lambda model, path, windows: shutil.copyfile(graph, path))


@pytest.fixture
def opened_as(monkeypatch):
    """Put a back end of a test in the place of a converted network, and count how often one is written."""
    def put(backend, *, write=None):
        written = []

        def write_nothing(model, path, log_mels, **settings):
            written.append(path)
            if write is not None:
                write(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            return SAME

        monkeypatch.setattr(export, "_write", write_nothing)
        monkeypatch.setattr(export, "open_converted", lambda *arguments, **settings: backend)
        return written
    return put


def opened(one, library):
    pytest.importorskip("openvino" if library == "openvino" else "onnxruntime")
    return open_converted(one.path, one.model.description, library=library, precision="float32", n_threads=1)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# the same network

@both_libraries
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n_windows", [1, 64])
def test_logits_and_embeddings_are_those_of_pytorch(exported, log_mels, library, name, n_windows):
    backend = opened(exported[name], library)
    found = backend.run(log_mels[-n_windows:], with_embeddings=True)
    expected = TorchBackend(exported[name].model, CPU).run(log_mels[-n_windows:], with_embeddings=True)
    assert found.logits.shape == (n_windows, len(TINY_CLASSES)) and found.embeddings.shape == expected.embeddings.shape
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=SAME_NETWORK)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, rtol=SAME_NETWORK, atol=SAME_NETWORK)
    assert np.ptp(expected.logits) > 10 * SAME_NETWORK  # there is something to differ in


@both_libraries
def test_windows_do_not_touch_each_other(exported, log_mels, library):
    backend = opened(exported["tiny"], library)
    alone = np.concatenate([backend.run(log_mels[index:index + 1]).logits for index in range(6)])
    np.testing.assert_allclose(backend.run(log_mels[:6]).logits, alone, rtol=0, atol=SAME_NETWORK)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_graph_gives_calibrated_probabilities_too(exported, log_mels, name):
    import onnxruntime
    calibration = exported[name].model.description.calibration
    assert calibration != Calibration()
    session = onnxruntime.InferenceSession(str(exported[name].path), providers=["CPUExecutionProvider"])
    logits, probabilities = session.run(["logits", PROBABILITIES], {"log_mel": log_mels})
    np.testing.assert_allclose(probabilities, calibration.probabilities(logits), rtol=0, atol=ROUNDED)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_file_tells_all_that_the_checkpoint_tells(exported, name):
    one = exported[name]
    found = read_description(one.path)
    assert (found.path, found.sha256) == (str(one.path), file_sha256(one.path))
    assert dataclasses.replace(found, path=one.model.description.path, sha256=one.model.description.sha256
                               ) == one.model.description
    assert found.frontend == TINY_FRONTEND and found.classes.names == TINY_CLASSES
    description, content = read_metadata(one.path)
    assert description == one.model.description
    assert content["compared"] == vars(one.comparison)
    assert (content["library"], content["precision"]) == ("onnx", "float32")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_compared_is_told(exported, name):
    comparison = exported[name].comparison
    assert (comparison.n_windows, comparison.n_other_classes) == (64, 0)
    assert 0 <= comparison.largest_logit_difference < SAME_NETWORK
    assert 0 <= comparison.largest_probability_difference < SAME_NETWORK


def test_an_exported_file_is_used_like_the_checkpoint(exported, log_mels):
    one = exported["tiny"]
    backend = load_backend(one.path, backend="onnx")
    assert backend.description == read_description(one.path)
    expected = TorchBackend(one.model, CPU).run(log_mels[:4]).logits
    np.testing.assert_allclose(backend.run(log_mels[:4]).logits, expected, rtol=0, atol=SAME_NETWORK)


def test_an_exported_file_that_was_cut_off_is_no_network(exported, tmp_path):
    path = tmp_path / "best.onnx"
    path.write_bytes(exported["resnet18"].path.read_bytes()[:-1000])
    for use in (read_description, plan_backend):
        with pytest.raises(CheckpointError, match=r"best\.onnx cannot be read as ONNX"):
            use(path)


# comparing

class Shifted:
    """PyTorch's network with something added to its logits."""

    def __init__(self, model, shift):
        self._usual, self._shift = TorchBackend(model, CPU), np.asarray(shift, dtype=np.float32)
        self.n_windows = []

    def run(self, log_mels, *, with_embeddings=False):
        self.n_windows.append(len(log_mels))
        return NetworkOutput(self._usual.run(log_mels).logits + self._shift)


def test_a_comparison_finds_the_largest_difference(exported, log_mels):
    model = exported["resnet18"].model
    logits = TorchBackend(model, CPU).run(log_mels[:20]).logits
    shift = np.zeros_like(logits)
    shift[17, 2] = -0.25
    top = model.description.calibration.probabilities(logits[3]).argmax()
    shift[3, top] = -100.0  # another class is on top, and the others share what it had
    backend = Shifted(model, np.zeros(4))
    backend.run = lambda batch, **settings: NetworkOutput(
        logits[_place(batch, log_mels)] + shift[_place(batch, log_mels)])
    found = compare(backend, model, log_mels[:20])
    assert (found.n_windows, found.n_other_classes) == (20, 1)
    assert found.largest_logit_difference == pytest.approx(100.0, rel=SAME_NETWORK)
    probabilities = [model.description.calibration.probabilities(values) for values in (logits, logits + shift)]
    assert found.largest_probability_difference == pytest.approx(
        np.abs(probabilities[0] - probabilities[1]).max(), abs=SAME_NETWORK)


def _place(batch, log_mels):
    return [int(np.flatnonzero((log_mels == window).all(axis=(1, 2)))[0]) for window in batch]


def test_a_comparison_is_a_sentence():
    assert str(Comparison(45, 0.5, 0.0421, 3)) == (
        "on 45 windows the largest difference of a probability is 0.042, of a logit 0.5, and the top class is another"
        " in 3")


def test_a_graph_that_differs_is_refused_and_nothing_is_written(model, graph, log_mels, tmp_path, monkeypatch):
    def trace_another(model, path, windows):
        import onnx
        content = onnx.load(graph)
        bias, = (values for values in content.graph.initializer if values.name.endswith("fc.bias"))
        changed = onnx.numpy_helper.to_array(bias) + np.float32([0, 0.01, 0, 0])
        bias.CopyFrom(onnx.numpy_helper.from_array(changed, bias.name))
        onnx.save(content, path)

    monkeypatch.setattr(export, "_trace", trace_another)
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"best\.pth converted for onnx is not the checkpoint's network: on 2 windows"
                                          r" .* of a logit 0\.01, .*at most 0\.001 is allowed"):
        export_onnx(model, tmp_path / "out" / "best.onnx", log_mels[:2])
    assert names_in(tmp_path / "out") == []


def test_a_graph_that_gives_no_numbers_is_refused(model, traced, log_mels, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "open_converted", lambda *arguments, **settings: Shifted(model, np.nan))
    with pytest.raises(ConfigError, match="is not the checkpoint's network: .* of a logit nan"):
        export_onnx(model, tmp_path / "best.onnx", log_mels[:1])
    assert not (tmp_path / "best.onnx").exists()


def test_a_network_that_cannot_be_traced_is_told_in_a_line(model, log_mels, tmp_path, monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ConfigError, match=r"best\.pth cannot be converted to ONNX: no such operator$"):
        export_onnx(model, tmp_path / "best.onnx", log_mels[:1])
    assert not (tmp_path / "best.onnx").exists()


def test_only_some_windows_are_compared(model, traced, log_mels, tmp_path, monkeypatch):
    backend = Shifted(model, np.zeros(4))
    monkeypatch.setattr(export, "MOST_WINDOWS", 3)
    monkeypatch.setattr(export, "open_converted", lambda *arguments, **settings: backend)
    assert export_onnx(model, tmp_path / "best.onnx", log_mels).n_windows == sum(backend.n_windows) == 3


# lower precision

def test_integers_are_compared_and_say_what_they_are(model, traced, graph, log_mels, tmp_path):
    path = tmp_path / "best.int8.onnx"
    found = export_int8(model, path, log_mels[:3])
    assert found.n_windows == 3
    assert 0 < found.largest_logit_difference < 0.1 and 0 < found.largest_probability_difference < 0.1
    assert path.stat().st_size < 0.4 * graph.stat().st_size
    assert read_metadata(path)[1]["precision"] == "int8"
    assert read_metadata(path)[1]["compared"] == vars(found)
    plan = plan_backend(path)
    backend = plan.open()
    assert (plan.precision, plan.name(), backend.name) == ("int8", "onnx-cpu-int8", "onnx-cpu-int8")
    assert compare(backend, model, log_mels[:3]).largest_logit_difference == pytest.approx(
        found.largest_logit_difference, abs=SAME_NETWORK)


def test_of_an_efficientnet_only_the_dense_convolutions_become_integers(exported, log_mels, tmp_path, monkeypatch):
    from onnxruntime import quantization
    asked = {}
    monkeypatch.setattr(export, "_trace", lambda model, path, windows: shutil.copyfile(exported["tiny"].path, path))
    monkeypatch.setattr(quantization, "quantize_static", lambda source, target, reader, **settings: asked.update(
        settings, windows=list(iter(reader.get_next, None))))
    export_int8(exported["tiny"].model, tmp_path / "best.onnx", log_mels[:2])
    # of 81 convolutions: the first, 16 depthwise ones, and two in each of 16 squeeze-and-excitation layers
    assert len(asked["nodes_to_exclude"]) == 1 + 16 + 32
    assert asked["op_types_to_quantize"] == ["Conv"]
    np.testing.assert_array_equal([window["log_mel"][0] for window in asked["windows"]], log_mels[:2])


def test_bfloat16_is_compared_and_says_what_it_is(model, traced, log_mels):
    pytest.importorskip("openvino")
    path = convert(model, log_mels[:4], library="openvino", precision="bf16")
    compared = read_metadata(path)[1]["compared"]
    assert compared["n_windows"] == 4
    assert compared["largest_logit_difference"] < 1.0  # 0 where the processor lacks it
    plan = plan_backend(model.description.path, device="cpu", precision="bf16")
    assert plan.converted == str(path)
    assert plan.name() == plan.open().name == "openvino-cpu-bf16"


# converting when it is used first

@both_libraries
def test_a_checkpoint_is_converted_when_it_first_hears_windows(model, traced, log_mels, library):
    pytest.importorskip("openvino" if library == "openvino" else "onnxruntime")
    folder = Path(model.description.path).parent
    older = f"best.{'f' * 16}.{library}-0.1-float32.v1.onnx"
    for name in (older, "best.onnx", f"other.{'f' * 16}.{library}-0.1-float32.v1.onnx"):
        (folder / name).touch()
    plan = plan_backend(model.description.path, device="cpu", backend=library)
    backend = plan.open(n_threads=1)
    assert plan.needs_conversion and older in names_in(folder)
    found = backend.run(log_mels[:4], with_embeddings=True)
    assert backend.name == f"{library}-cpu"
    expected = TorchBackend(model, CPU).run(log_mels[:4], with_embeddings=True)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=SAME_NETWORK)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, rtol=SAME_NETWORK, atol=SAME_NETWORK)
    written = conversion_places(Path(model.description.path), model.description.sha256, library=library,
                                precision=None)[0].name
    assert model.description.sha256[:16] in written
    assert names_in(folder) == sorted(["best.onnx", "best.pth", written,
                                       f"other.{'f' * 16}.{library}-0.1-float32.v1.onnx"])
    again = plan_backend(model.description.path, device="cpu", backend=library)
    assert (again.is_light, again.name()) == (True, f"{library}-cpu")
    assert again.description() == model.description
    np.testing.assert_array_equal(again.open(n_threads=1).run(log_mels[:4]).logits, found.logits)


def converting(model, **settings):
    return ConvertingBackend(model, **{"library": "onnx", "precision": "float32", "n_threads": 1, "required": False,
                                       **settings})


def test_a_checkpoint_is_converted_once(model, log_mels, opened_as):
    other = TorchBackend(model, CPU)
    other.name, other.batch_size = "other", 7
    written = opened_as(other)
    backend = converting(model)
    assert (backend.name, written) == ("torch-cpu", [])
    for _ in range(2):
        backend.run(log_mels[:1])
    assert (backend.name, backend.batch_size, len(written)) == ("other", 7, 1)


def test_the_converted_network_is_opened_as_it_was_asked_for(model, log_mels, opened_as, monkeypatch):
    opened_as(None)
    asked, other = {}, TorchBackend(model, CPU)
    monkeypatch.setattr(export, "open_converted", lambda path, description, **settings: asked.update(
        settings, path=path, description=description) or other)
    converting(model, library="openvino", precision="bf16", n_threads=3).run(log_mels[:1])
    place = conversion_places(Path(model.description.path), model.description.sha256, library="openvino",
                              precision="bf16")[0]
    assert asked == {"path": place, "description": model.description, "library": "openvino", "precision": "bf16",
                     "n_threads": 3}


def test_threads_that_come_together_wait_for_one_conversion(model, log_mels, opened_as):
    written = opened_as(TorchBackend(model, CPU), write=lambda path: time.sleep(0.2))
    backend, found = converting(model), []
    threads = [threading.Thread(target=lambda: found.append(backend.run(log_mels[:1]).logits)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(found), len(written)) == (4, 1)


@both_libraries
def test_a_converted_network_that_differs_is_refused_where_it_was_asked_for(model, traced, log_mels, monkeypatch,
                                                                            library):
    pytest.importorskip("openvino" if library == "openvino" else "onnxruntime")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    backend = plan_backend(model.description.path, device="cpu", backend=library).open()
    with pytest.raises(ConfigError, match=f"converted for {library} is not the checkpoint's network: on 1 windows"):
        backend.run(log_mels[:1])
    assert names_in(Path(model.description.path).parent) == ["best.pth"]


def test_a_converted_network_that_differs_is_not_used_in_silence(model, traced, log_mels, monkeypatch, caplog):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    backend = plan_backend(model.description.path, device="cpu").open()
    expected = TorchBackend(model, CPU).run(log_mels[:2]).logits
    for _ in range(2):
        np.testing.assert_array_equal(backend.run(log_mels[:2]).logits, expected)
    assert backend.name == "torch-cpu"
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1 and "is not the checkpoint's network" in told[0]
    assert told[0].endswith("PyTorch is used, which is slower")
    assert names_in(Path(model.description.path).parent) == ["best.pth"]


# where it may be written

def test_beside_a_model_that_is_only_read_the_users_cache_is_used(model, traced, log_mels, cache, monkeypatch):
    folder, usual = Path(model.description.path).parent, export.atomic_path

    def refuse(path):  # a mode would not stop root
        if Path(path).parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return usual(path)

    monkeypatch.setattr(export, "atomic_path", refuse)
    path = convert(model, log_mels[:1], library="onnx", precision="float32")
    assert path.parent == cache and names_in(folder) == ["best.pth"]
    plan = plan_backend(model.description.path, device="cpu", backend="onnx")
    assert plan.converted == str(path)


def test_where_nothing_can_be_written_that_is_told(model, log_mels, tmp_path, monkeypatch):
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_the_way))
    lost = dataclasses.replace(model, description=dataclasses.replace(model.description,
                                                                      path=str(in_the_way / "best.pth")))
    with pytest.raises(ConfigError, match="can be written neither beside it nor in the user's cache"):
        convert(lost, log_mels[:1], library="onnx", precision="float32")
    np.testing.assert_array_equal(converting(lost).run(log_mels[:1]).logits,
                                  TorchBackend(model, CPU).run(log_mels[:1]).logits)
    with pytest.raises(ConfigError, match="can be written neither beside it nor in the user's cache"):
        converting(lost, required=True).run(log_mels[:1])
