import shutil

import pytest

from utils.evaluation.cost import count_multiply_adds, measure_latency
from utils.evaluation.peak import measure_peak, random_windows
from utils.networks.export import export_onnx
from utils.prediction.predictor import EfficientNetPredictor
from utils.storage.checkpoints import load_model


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    return shutil.copy(tiny_model.best, tmp_path_factory.mktemp("cost") / "model.pth")


@pytest.fixture(scope="module")
def predictor(model):
    return EfficientNetPredictor(model, device="cpu", backend="torch", batch_size=4)


def test_a_checkpoint_and_its_graph_multiply_the_same(model, predictor, tmp_path):
    exported = tmp_path / "model.onnx"
    export_onnx(load_model(model), exported, random_windows(predictor, 2))
    in_graph = EfficientNetPredictor(exported, device="cpu", backend="onnx")
    n_multiply_adds = count_multiply_adds(model, predictor)
    assert n_multiply_adds == count_multiply_adds(exported, in_graph) > 1e6


def test_times_are_of_one_window_and_of_a_batch(predictor):
    latency = measure_latency(predictor, n_runs=3, peak_megabytes=12.0)
    assert 0 < latency.median_ms <= latency.p95_ms and 0 < latency.batch_median_ms <= latency.batch_p95_ms
    assert latency.clips_per_second == pytest.approx(1000 * 4 / latency.batch_median_ms)
    assert (latency.batch_size, latency.n_runs, latency.device, latency.peak_megabytes) == (4, 3, "torch-cpu", 12.0)


def test_memory_is_that_of_a_process_of_its_own(model, tiny_model):
    peak = measure_peak(model, backend="torch", class_names=None)
    assert peak is None or model.stat().st_size / 1e6 < peak < 4000
