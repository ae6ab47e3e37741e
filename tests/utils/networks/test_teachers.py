import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from models.audio_frontend import LogMelFrontend
from models.calibration import Calibration
from models.classes import ClassList
from models.efficientnet import build_model
from models.efficientnet_config import FrontendConfig
from models.errors import CheckpointError, ConfigError
from tests.conftest import TINY_CLASSES, TINY_FRONTEND, TINY_RATE, tiny_config
from tests.utils.networks.make_teachers import FILTERS, MIX
from utils.networks.opening import load_backend
from utils.networks.teachers import CheckpointTeacher, OnnxTeacher, load_teacher, read_description
from utils.storage.checkpoints import save_model
from utils.storage.files import file_sha256

HERE = Path(__file__).parent
DESCRIPTION = {"format_version": 1, "name": "four filters", "trained_on": "nothing", "licence": "CC0",
               "source": "make_teachers.py", "sample_rate": TINY_RATE, "window_seconds": 1.0,
               "embedding": "embedding", "tags": "tags"}
LOG_MEL = {"name": "mean", "input": "log_mel", "input_name": "log_mel", "tags": None,
           "frontend": {"n_fft": 512, "hop_length": 256, "n_mels": 32, "f_max": 4000.0}}
FLOAT32 = 1e-5  # of values of order 1 and means of 2000 of them
DECIBELS = 1e-4  # of values near -50 in float32, averaged


def described(folder, network="tiny_waveform.onnx", **changes):
    """Put a teacher and its description into a folder; a value of ... leaves a key out."""
    path = Path(shutil.copy(HERE / network, folder / "teacher.onnx"))
    values = {name: value for name, value in {**DESCRIPTION, **changes}.items() if value is not ...}
    path.with_suffix(".json").write_text(json.dumps(values), encoding="utf-8")
    return path


def teacher(folder, network="tiny_waveform.onnx", **changes):
    return load_teacher(described(folder, network, **changes), device="cpu", n_threads=1)


def by_hand(waveforms):
    """Return what the four filters say of waveforms."""
    frames = np.lib.stride_tricks.sliding_window_view(waveforms, 8, axis=1)[:, ::4]
    return np.abs(frames @ np.array(FILTERS, dtype=np.float64).T).mean(axis=1)


@pytest.fixture
def waveforms(rng):
    return rng.uniform(-0.5, 0.5, (3, TINY_RATE)).astype(np.float32)


# the description

def test_a_description_says_what_a_teacher_needs(tmp_path):
    path = described(tmp_path).with_suffix(".json")
    read = read_description(path)
    assert (read.name, read.licence, read.sample_rate, read.window_seconds) == ("four filters", "CC0", TINY_RATE, 1.0)
    assert (read.input, read.input_name, read.tag_activation, read.frontend) == (
        "waveform", "waveform", "sigmoid", None)
    assert read.n_samples == TINY_RATE


def test_a_missing_description_is_asked_for(tmp_path):
    path = described(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(ConfigError, match=r"teacher\.json does not exist: a teacher needs a description beside it"):
        load_teacher(path, device="cpu")


@pytest.mark.parametrize(("changes", "message"), [
    ({"format_version": 2}, "has format_version 2, this NightScan reads 1"),
    ({"format_version": ...}, "has format_version None"),
    ({"samplerate": 8000}, "unknown key 'samplerate': the keys are name, trained_on"),
    ({"licence": ...}, "the key 'licence' is missing: the keys are name"),
    ({"sample_rate": ...}, "the key 'sample_rate' is missing"),
    ({"input": "picture"}, "input must be waveform or log_mel, got 'picture'"),
    ({"tag_activation": "tanh"}, "tag_activation must be one of sigmoid, softmax, none, got 'tanh'"),
    ({"tag_activation": ["sigmoid"]}, r"tag_activation must be text, got \['sigmoid'\]"),
    ({"name": 7}, "name must be text, got 7"),
    ({"embedding": None, "tags": None}, "embedding or tags must name an output"),
    ({"embedding": "", "tags": ""}, "embedding or tags must name an output"),
    ({"embedding": 3}, "embedding must be text or null, got 3"),
    ({"frontend": {}}, "frontend must be given where input is log_mel, and only there"),
    ({"input": "log_mel"}, "frontend must be given where input is log_mel, and only there"),
    ({"frontend": [1]}, r"frontend must be an object or null, got \[1\]"),
    ({"sample_rate": 0}, "sample_rate must be above 0, got 0"),
    ({"sample_rate": 8000.0}, r"sample_rate must be a whole number, got 8000\.0"),
    ({"sample_rate": True}, "sample_rate must be a whole number, got True"),
    ({"sample_rate": "8000"}, "sample_rate must be a whole number, got '8000'"),
    ({"window_seconds": -1.5}, r"window_seconds must be above 0, got -1\.5"),
    ({"window_seconds": float("inf")}, "window_seconds must be above 0, got inf"),
    ({"window_seconds": float("nan")}, "window_seconds must be above 0, got nan"),
    ({"window_seconds": None}, "window_seconds must be a number, got None"),
    ({**LOG_MEL, "frontend": {"n_mel": 3}}, "unknown setting 'n_mel' in FrontendConfig"),
    ({**LOG_MEL, "frontend": {"f_max": 9000.0}}, "f_max must be at most half the sample_rate"),
    ({**LOG_MEL, "frontend": {**LOG_MEL["frontend"], "sample_rate": 4000}},
     "sample_rate of frontend is 4000, but sample_rate and window_seconds make it 8000"),
    ({**LOG_MEL, "frontend": {**LOG_MEL["frontend"], "segment_duration_ms": 500}},
     "segment_duration_ms of frontend is 500, but sample_rate and window_seconds make it 1000"),
])
def test_a_wrong_description_is_told(tmp_path, changes, message):
    path = described(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as caught:
        load_teacher(path, device="cpu")
    assert str(path.with_suffix(".json")) in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), [
    ({"input_name": "audio"}, "teacher.onnx has no input 'audio': it has waveform"),
    ({"embedding": "features"}, "teacher.onnx has no output 'features': it has dropped, embedding, logs, mean, tags"),
    ({"tags": "classes"}, "teacher.onnx has no output 'classes'"),
])
def test_a_description_of_another_network_is_told(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        teacher(tmp_path, **changes)


# ONNX

def test_a_teacher_says_what_its_network_computes(tmp_path, waveforms):
    heard = teacher(tmp_path).hear(waveforms)
    levels = by_hand(waveforms)
    assert heard.embeddings.dtype == heard.tags.dtype == np.float32
    np.testing.assert_allclose(heard.embeddings, levels, rtol=0, atol=FLOAT32)
    np.testing.assert_allclose(heard.tags, special.expit(levels @ np.array(MIX)), rtol=0, atol=FLOAT32)


@pytest.mark.parametrize(("activation", "by_definition"), [
    ("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    ("softmax", lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)),
])
def test_tags_become_probabilities(tmp_path, waveforms, activation, by_definition):
    heard = teacher(tmp_path, tag_activation=activation).hear(waveforms)
    np.testing.assert_allclose(heard.tags, by_definition(by_hand(waveforms) @ np.array(MIX)), rtol=0, atol=FLOAT32)
    assert heard.tags.min() >= 0 and heard.tags.max() <= 1


def test_probabilities_are_taken_as_they_are_but_nothing_else_is(tmp_path, waveforms):
    quiet = waveforms / 100  # levels far below 1
    np.testing.assert_array_equal(teacher(tmp_path, tags="embedding", tag_activation="none").hear(quiet).tags,
                                  teacher(tmp_path).hear(quiet).embeddings)
    with pytest.raises(ConfigError, match=r"with tag_activation none the output 'tags' lies in .*give another"
                                          r" tag_activation in teacher\.json"):
        teacher(tmp_path, tag_activation="none").hear(10 * waveforms)


def test_an_output_that_is_not_named_is_not_given(tmp_path, waveforms):
    assert teacher(tmp_path, tags=None).hear(waveforms).tags is None
    assert teacher(tmp_path, embedding=None).hear(waveforms).embeddings is None


def test_one_window_is_one_row_where_the_network_drops_its_axis(tmp_path, waveforms):
    dropping, keeping = teacher(tmp_path, embedding="dropped", tags=None), teacher(tmp_path)
    for n_windows in (1, 3):
        found = dropping.hear(waveforms[:n_windows]).embeddings
        np.testing.assert_array_equal(found, keeping.hear(waveforms[:n_windows]).embeddings)
        assert found.shape == (n_windows, 4)


def test_a_network_that_mixes_its_windows_is_refused(tmp_path, waveforms):
    mixing = teacher(tmp_path, embedding="mean", tags=None)
    with pytest.raises(ConfigError, match=r"the output 'mean' has shape \(1, 4\) for 3 windows: the first axis must"):
        mixing.hear(waveforms)


def test_what_is_not_finite_is_refused(tmp_path, waveforms):
    with pytest.raises(ConfigError, match="the output 'logs' holds values that are not finite: .*silence"):
        teacher(tmp_path, embedding="logs", tags=None).hear(np.zeros_like(waveforms))


def test_a_network_that_takes_another_shape_says_so(tmp_path, waveforms):
    """A waveform has two axes; this network wants a log-mel of four."""
    wrong = teacher(tmp_path, "tiny_log_mel.onnx", input_name="log_mel", tags=None)
    with pytest.raises(ConfigError, match=r"does not take an input of shape \(3, 8000\).*correct teacher\.json"):
        wrong.hear(waveforms)


def test_a_log_mel_is_made_with_the_rate_and_the_length_of_the_description(tmp_path, waveforms):
    """They need not be told a second time, and those of our own default front end are not taken."""
    heard = teacher(tmp_path, "tiny_log_mel.onnx", **LOG_MEL).hear(waveforms)
    frontend = FrontendConfig(**LOG_MEL["frontend"], sample_rate=TINY_RATE, segment_duration_ms=1000)
    expected = [LogMelFrontend(frontend).log_mel(waveform).mean(axis=1) for waveform in waveforms]
    np.testing.assert_allclose(heard.embeddings, expected, rtol=0, atol=DECIBELS)
    assert heard.tags is None


def test_a_teacher_leaves_what_it_hears_as_it_is(tmp_path, waveforms):
    before = waveforms.copy()
    teacher(tmp_path).hear(waveforms[::2])
    np.testing.assert_array_equal(waveforms, before)


def test_a_teacher_is_known_by_its_bytes(tmp_path):
    path = described(tmp_path)
    assert isinstance(load_teacher(path, device="cpu"), OnnxTeacher)
    assert load_teacher(path, device="cpu").sha256 == file_sha256(path)


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x07"])
def test_a_file_that_is_no_network_is_refused(tmp_path, content):
    path = described(tmp_path)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"teacher\.onnx is no network that ONNX Runtime reads: "):
        load_teacher(path, device="cpu")


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.onnx does not exist: give the \.onnx of a teacher"):
        load_teacher(tmp_path / "gone.onnx", device="cpu")
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        load_teacher(tmp_path / "gone.pth", device="cpu")


# a network of ours

@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = tiny_config(frontend=TINY_FRONTEND)
    path = tmp_path_factory.mktemp("teacher") / "owls.pth"
    save_model(path, build_model(config, len(TINY_CLASSES)).state_dict(), config=config,
               classes=ClassList(TINY_CLASSES), calibration=Calibration(2.0), metadata={"epoch": 1})
    return path


def test_a_checkpoint_teaches_its_features_and_its_probabilities(checkpoint, waveforms):
    heard = load_teacher(checkpoint, device="cpu").hear(waveforms)
    backend = load_backend(checkpoint, device="cpu", backend="torch")
    frontend = LogMelFrontend(TINY_FRONTEND)
    said = backend.run(np.stack([frontend.log_mel(waveform) for waveform in waveforms]), with_embeddings=True)
    np.testing.assert_array_equal(heard.embeddings, said.embeddings)
    assert heard.embeddings.shape == (3, 1280)
    np.testing.assert_allclose(heard.tags, special.softmax(said.logits / 2.0, axis=1), rtol=0, atol=FLOAT32)
    assert heard.tags.dtype == np.float32


def test_a_checkpoint_describes_itself(checkpoint):
    found = load_teacher(checkpoint, device="cpu")
    assert isinstance(found, CheckpointTeacher)
    assert found.sha256 == file_sha256(checkpoint)
    assert (found.description.sample_rate, found.description.window_seconds) == (TINY_RATE, 1.0)
    assert (found.description.name, found.description.source) == ("efficientnet-b0", "owls.pth")
    assert found.description.trained_on == "the classes bird_song, mammal_call, insect_sound, amphibian_call"
