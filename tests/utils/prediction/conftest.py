"""What the tests of prediction share: predictors, and views of their answers."""

import os
import sys

import numpy as np
import pytest

from tests.conftest import tiny_sound, write_audio
from utils.networks.backends import NetworkOutput
from utils.networks.opening import BackendPlan
from utils.prediction.predictor import EfficientNetPredictor
from utils.prediction.records import PredictionSettings

FILE_KEYS = {"file_path", "predicted_class", "confidence", "above_threshold", "top_class", "top_confidence",
             "duration_seconds", "n_segments", "processing_time"}
SEGMENT_KEYS = FILE_KEYS | {"segment_start_ms", "segment_end_ms", "segment_index"}
PRINTED = 1e-6  # probabilities are rounded to six decimals
ODD_NAME, ODD_TEXT = os.fsdecode(b"owl\xe9.wav"), r"owl\xe9.wav"  # Latin 1, as old recorders and ZIP files have it
any_bytes_are_names = pytest.mark.skipif(not sys.platform.startswith("linux"),
                                         reason="only Linux lets a file name be any bytes")


class SilentBackend:
    """A network that finds every class equally likely, at once."""

    name, n_threads, batch_size = "none", 1, 4

    def __init__(self, description):
        self.description = description

    def run(self, log_mels, *, with_embeddings=False):
        return NetworkOutput(np.zeros((len(log_mels), len(self.description.classes)), dtype=np.float32))


def predictor_of(path, *, batch_size=4, config_path=None, executor=None, backend="torch", with_embeddings=False,
                 **settings):
    """Return a predictor in PyTorch, unless another back end is asked for: nothing is converted, every bit is known."""
    return EfficientNetPredictor(path, config_path, device="cpu", backend=backend, batch_size=batch_size,
                                 executor=executor, with_embeddings=with_embeddings,
                                 settings=PredictionSettings(**settings))


def silent_predictor(path, **arguments):
    predictor = predictor_of(path, **arguments)
    predictor.backend = SilentBackend(predictor.model)
    return predictor


def records_of(predictor, path):
    predicted, = predictor.predict_files([path])
    assert predicted.outcome.status == "ok"
    return predicted.records


def without(record, *names):
    """Return a record without the time it took, and without what else is named."""
    return {name: value for name, value in record.items() if name not in ("processing_time", *names)}


def broken_flac(path, rng):
    """Write two minutes, as many as two spans have, and cut the file in the middle, in the first of them."""
    write_audio(path, tiny_sound("bird_song", seconds=120, rng=rng))
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    return path


_open, _opened = BackendPlan.open, {}


def _open_once(plan, **options):
    if plan.library != "torch":
        return _open(plan, **options)
    key = (plan, *options.items())
    if key not in _opened:
        _opened[key] = _open(plan, **options)
    return _opened[key]


@pytest.fixture(autouse=True)
def networks_are_loaded_once(monkeypatch):
    """Load the network of a file once, in PyTorch, which keeps nothing of what it is asked: half of a test's time."""
    monkeypatch.setattr(BackendPlan, "open", _open_once)


@pytest.fixture
def recording(tmp_path, rng):
    """2.6 s: two whole windows and a last one that is moved back."""
    return write_audio(tmp_path / "clip.wav", tiny_sound("bird_song", seconds=2.6, rng=rng))
