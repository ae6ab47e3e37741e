import pickle

import numpy as np
import pytest

from models.errors import CheckpointError, ConfigError
from tests.conftest import TINY_FRONTEND
from tests.utils.networks.onnx_files import DESCRIPTION, logits_by_hand, metadata, write_onnx
from utils.networks import conversions, opening
from utils.networks.conversions import conversion_places
from utils.networks.opening import load_backend, plan_backend
from utils.running.parallel import default_workers
from utils.storage.files import file_sha256

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
TWO_WAYS = 1e-5  # of logits of order 1: the mean of 32 float32 values may be added in another order
BOTH = ("openvino", "onnx")


@pytest.fixture(autouse=True)
def on_a_machine_of_its_own(tmp_path, monkeypatch):
    """No test sees what this machine has: its GPU, or networks that were converted on it."""
    monkeypatch.setattr(opening, "may_have_accelerator", lambda: False)
    monkeypatch.setattr(opening, "is_amd", lambda: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def libraries(monkeypatch):
    """Return a function that says which libraries are installed."""
    def put(*names):
        for module in (conversions, opening):
            monkeypatch.setattr(module, "installed_libraries", lambda: names)
        monkeypatch.setattr(conversions, "version", lambda name: "1.0")
    return put


@pytest.fixture
def checkpoint(tmp_path):
    """A file that stands for a ``.pth``: planning opens none."""
    path = tmp_path / "best.pth"
    path.write_bytes(b"not read")
    return path


@pytest.fixture
def exported(tmp_path):
    return write_onnx(tmp_path / "best.onnx")


@pytest.fixture
def log_mels(rng):
    return rng.uniform(-100, 0, (3, TINY_FRONTEND.n_mels, TINY_FRONTEND.n_frames)).astype(np.float32)


# which library

@pytest.mark.parametrize(("installed", "settings", "library"), [
    (BOTH, {}, "onnx"), (("openvino",), {}, "openvino"), (BOTH, {"precision": "bf16"}, "openvino"),
    (BOTH, {"backend": "openvino"}, "openvino"),
])
def test_on_a_processor_of_amd_the_fastest_is_another(libraries, checkpoint, monkeypatch, installed, settings, library):
    monkeypatch.setattr(opening, "is_amd", lambda: True)
    libraries(*installed)
    assert plan_backend(checkpoint, **settings).library == library


@pytest.mark.parametrize(("installed", "settings", "library"), [
    (BOTH, {}, "openvino"), (("onnx",), {}, "onnx"), (("openvino",), {}, "openvino"),
    (BOTH, {"device": "cpu"}, "openvino"), (BOTH, {"backend": "onnx"}, "onnx"),
    (BOTH, {"backend": "openvino"}, "openvino"), (BOTH, {"backend": "torch"}, "torch"),
    ((), {"backend": "torch"}, "torch"), (BOTH, {"precision": "bf16"}, "openvino"),
    (BOTH, {"precision": "int8"}, "onnx"), (("onnx",), {"precision": "int8"}, "onnx"),
    (BOTH, {"backend": "torch", "precision": "bf16"}, "torch"), (BOTH, {"device": "cuda"}, "torch"),
    (BOTH, {"device": "cuda:1"}, "torch"), (BOTH, {"device": "mps"}, "torch"),
    (BOTH, {"class_names": ["owl", "fox"]}, "torch"), ((), {"class_names": ["owl", "fox"]}, "torch"),
])
def test_the_library_is_the_one_asked_for_or_the_fastest(libraries, checkpoint, installed, settings, library):
    libraries(*installed)
    plan = plan_backend(checkpoint, **settings)
    assert (plan.library, plan.precision) == (library, settings.get("precision"))
    assert plan.required == ("backend" in settings)
    assert (plan.model_path, plan.sha256) == (str(checkpoint), file_sha256(checkpoint))
    assert (plan.converted, plan.is_light, plan.needs_conversion) == (None, False, library != "torch")


def test_where_there_is_an_accelerator_auto_is_pytorch_on_it(libraries, checkpoint, exported, monkeypatch):
    libraries(*BOTH)
    monkeypatch.setattr(opening, "may_have_accelerator", lambda: True)
    assert plan_backend(checkpoint).library == "torch"
    assert plan_backend(checkpoint, device="cpu").library == "openvino"
    assert plan_backend(exported).library == "openvino"  # it has no other place to go


def test_names_of_classes_are_those_of_the_plan(libraries, checkpoint):
    libraries(*BOTH)
    assert plan_backend(checkpoint, class_names=["owl", "fox"]).class_names == ("owl", "fox")


@pytest.mark.parametrize(("installed", "settings", "message"), [
    (BOTH, {"backend": "onnx", "precision": "bf16"}, "--precision bf16 is not for --backend onnx: use --backend torch"),
    (BOTH, {"backend": "openvino", "precision": "int8"}, "--precision int8 is not for --backend openvino: use"),
    (BOTH, {"backend": "torch", "precision": "int8"}, "--precision int8 is for"),
    (BOTH, {"device": "cuda", "precision": "int8"}, "--precision int8 is for"),
    (BOTH, {"device": "cuda", "backend": "onnx"}, "--backend onnx .*the processor"),
    (BOTH, {"device": "mps", "backend": "openvino"}, "--backend openvino .*the processor"),
    (BOTH, {"class_names": ["owl"], "backend": "onnx"}, "--backend onnx .*not for NightScan 1's ResNet18"),
    (("onnx",), {"backend": "openvino"}, "--backend openvino needs openvino, which is not installed"),
    (("openvino",), {"precision": "int8"}, "--backend onnx needs onnxruntime, which is not installed"),
    (("onnx",), {"precision": "bf16", "backend": "onnx"}, "--precision bf16 is not for --backend onnx"),
])
def test_what_does_not_go_together_is_refused(libraries, checkpoint, installed, settings, message):
    libraries(*installed)
    with pytest.raises(ConfigError, match=message):
        plan_backend(checkpoint, **settings)


@pytest.mark.parametrize("suffix", [".pth", ".onnx"])
def test_a_model_that_is_missing_is_told(tmp_path, suffix):
    with pytest.raises(ConfigError, match=rf"--model_path .*gone\{suffix} does not exist: give the \.pth"):
        plan_backend(tmp_path / f"gone{suffix}")


def test_without_pytorch_only_what_was_converted_is_used(libraries, checkpoint, exported, monkeypatch):
    libraries("onnx")
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    assert plan_backend(exported).library == "onnx"
    with pytest.raises(ConfigError, match=r"best\.pth needs PyTorch, which is not installed: give an \.onnx"):
        plan_backend(checkpoint)


def test_a_plan_can_be_sent_to_other_processes(libraries, checkpoint):
    libraries(*BOTH)
    plan = plan_backend(checkpoint)
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert hash(plan) == hash(plan_backend(checkpoint))
    assert plan == plan_backend(checkpoint, backend="openvino")  # who asked for it does not change what it computes
    assert plan != plan_backend(checkpoint, backend="onnx")


# what was converted before

def converted_of(checkpoint, *, cached=False, sha256=None, **settings):
    places = conversion_places(checkpoint, sha256 or file_sha256(checkpoint), **settings)
    places[cached].parent.mkdir(parents=True, exist_ok=True)
    return write_onnx(places[cached])


@pytest.mark.parametrize("cached", [False, True])
def test_what_was_converted_before_is_used(checkpoint, cached):
    path = converted_of(checkpoint, library="onnx", precision="float32", cached=cached)
    plan = plan_backend(checkpoint, backend="onnx")
    assert (plan.converted, plan.is_light, plan.needs_conversion) == (str(path), True, False)
    assert plan_backend(checkpoint, backend="onnx", precision="int8").needs_conversion


def test_what_was_converted_of_another_model_of_that_name_is_not_used(checkpoint):
    converted_of(checkpoint, library="onnx", precision="float32", sha256="f" * 64)
    assert plan_backend(checkpoint, backend="onnx").needs_conversion


def test_a_converted_network_is_known_by_its_checkpoint(checkpoint):
    path = converted_of(checkpoint, library="onnx", precision="float32")
    description = plan_backend(checkpoint, backend="onnx").description()
    assert (description.path, description.sha256) == (str(checkpoint), file_sha256(checkpoint))
    assert (description.classes, description.calibration) == (DESCRIPTION.classes, DESCRIPTION.calibration)
    own = plan_backend(path, backend="onnx").description()
    assert (own.path, own.sha256) == (str(path), file_sha256(path))


# exported files

@pytest.mark.parametrize(("settings", "library"), [({}, "openvino"), ({"backend": "onnx"}, "onnx"),
                                                   ({"device": "cpu"}, "openvino")])
def test_an_exported_file_is_ready(libraries, exported, settings, library):
    libraries(*BOTH)
    plan = plan_backend(exported, **settings)
    assert (plan.library, plan.converted, plan.is_light, plan.needs_conversion) == (library, str(exported), True, False)


@pytest.mark.parametrize("settings", [{"backend": "torch"}, {"device": "cuda"}, {"device": "mps", "backend": "onnx"}])
def test_an_exported_file_has_no_place_in_pytorch_or_on_another_device(exported, settings):
    with pytest.raises(ConfigError, match=r"best\.onnx is applied by ONNX Runtime or OpenVINO on the processor"):
        plan_backend(exported, **settings)


@pytest.mark.parametrize(("own", "asked", "expected"), [
    ("float32", None, None), ("float32", "float32", "float32"), ("float32", "bf16", "bf16"), ("int8", None, "int8"),
    ("int8", "int8", "int8")])
def test_the_precision_of_an_exported_file_is_that_which_stands_in_it(libraries, tmp_path, own, asked, expected):
    libraries(*BOTH)
    plan = plan_backend(write_onnx(tmp_path / "best.onnx", metadata(precision=own)), precision=asked)
    assert plan.precision == expected
    assert plan.library == ("onnx" if own == "int8" else "openvino")


@pytest.mark.parametrize(("own", "asked"), [("float32", "int8"), ("int8", "float32"), ("int8", "bf16")])
def test_an_exported_file_is_never_computed_in_another_precision_in_silence(libraries, tmp_path, own, asked):
    libraries(*BOTH)
    path = write_onnx(tmp_path / "best.onnx", metadata(precision=own))
    with pytest.raises(ConfigError, match=rf"--precision {asked}: .*best\.onnx was exported in {own}; give the \.pth"):
        plan_backend(path, precision=asked)


def test_an_exported_file_that_is_damaged_is_told_before_anything_is_read(exported):
    exported.write_bytes(exported.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"best\.onnx cannot be read as ONNX"):
        plan_backend(exported)


# opened

@pytest.mark.parametrize(("library", "precision"), [("onnx", None), ("openvino", None), ("openvino", "float32"),
                                                    ("openvino", "bf16")])
def test_the_name_is_known_before_the_network_is_loaded(exported, library, precision):
    pytest.importorskip("openvino" if library == "openvino" else "onnxruntime")
    plan = plan_backend(exported, backend=library, precision=precision)
    assert plan.name() == plan.open().name == f"{library}-cpu" + ("-bf16" if precision == "bf16" else "")


def test_the_name_of_integers_says_so(tmp_path):
    plan = plan_backend(write_onnx(tmp_path / "best.onnx", metadata(precision="int8")))
    assert plan.name() == plan.open().name == "onnx-cpu-int8"


@pytest.mark.parametrize("library", BOTH)
def test_a_network_that_was_opened_computes_what_it_should(exported, log_mels, library):
    pytest.importorskip("openvino" if library == "openvino" else "onnxruntime")
    backend = load_backend(exported, backend=library)
    assert backend.description == plan_backend(exported, backend=library).description()
    output = backend.run(log_mels, with_embeddings=True)
    np.testing.assert_allclose(output.logits, logits_by_hand(log_mels), rtol=0, atol=TWO_WAYS)
    np.testing.assert_allclose(output.embeddings, log_mels.mean(axis=2), rtol=TWO_WAYS)
    assert output.logits.dtype == output.embeddings.dtype == np.float32
    assert backend.run(log_mels).embeddings is None
    every_other = backend.run(log_mels[::2]).logits  # a view
    np.testing.assert_allclose(every_other, output.logits[::2], rtol=0, atol=TWO_WAYS)
    backend.run(log_mels[::-1], with_embeddings=True)  # must not write over what was given before
    np.testing.assert_allclose(output.logits, logits_by_hand(log_mels), rtol=0, atol=TWO_WAYS)
    np.testing.assert_allclose(output.embeddings, log_mels.mean(axis=2), rtol=TWO_WAYS)


@pytest.mark.parametrize(("precision", "hint"), [(None, "f32"), ("float32", "f32"), ("bf16", "bf16")])
def test_openvino_is_always_told_its_precision(exported, monkeypatch, precision, hint):
    """By itself it takes bfloat16 wherever the processor has it."""
    openvino, told = pytest.importorskip("openvino"), {}

    class Core(openvino.Core):
        def compile_model(self, model, device, properties):
            told.update(properties, device=device)
            return super().compile_model(model, device, properties)

    monkeypatch.setattr(openvino, "Core", Core)
    plan_backend(exported, backend="openvino", precision=precision).open(n_threads=1)
    assert (told["INFERENCE_PRECISION_HINT"], told["INFERENCE_NUM_THREADS"], told["device"]) == (hint, 1, "CPU")


@pytest.mark.parametrize("library", BOTH)
def test_a_network_is_told_how_many_threads_to_use(exported, library):
    pytest.importorskip("openvino" if library == "openvino" else "onnxruntime")
    plan = plan_backend(exported, backend=library)
    assert plan.open(n_threads=1).n_threads == 1
    assert plan.open().n_threads == default_workers()


def test_pytorch_has_no_integers():
    torch_backend = pytest.importorskip("utils.networks.torch_backend")
    torch = pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="--precision int8 is not for PyTorch"):
        torch_backend.TorchBackend(None, torch.device("cpu"), precision="int8")
