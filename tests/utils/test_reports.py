import warnings

import librosa
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from models.efficientnet_config import FrontendConfig
from models.calibration import Calibration
from utils import metrics, reports
from utils.evaluation import intervals

LEAST_PNG_BYTES = 5_000  # an empty white figure of these sizes is smaller
LEAST_COLOURS = 20  # white, black, two curve colours and their blended edges
TICK_TOLERANCE = 0.02  # of a band: np.interp is straight where the scale is curved
CLASS_NAMES = ("bird", "<script>alert('x')</script>", "_hidden $price$ of_an_uncommonly_long_class_name", "absent")


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    monkeypatch.setattr(reports, "_DPI", 60)  # a quarter of the pixels: the same picture sooner


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def frontend():
    return FrontendConfig(n_mels=32, segment_duration_ms=1000)


def predict(rng):
    """Draw probabilities and the labels they lean towards; class 3 never occurs."""
    labels = rng.integers(0, 3, size=60)
    return Calibration().probabilities(rng.normal(size=(60, 4)) + 2 * np.eye(4)[labels]), labels


def describe(name, probabilities, labels, *, latency):
    arguments = {"class_names": CLASS_NAMES, "n_bootstrap": 20, "confidence": 0.9}
    recording_ids = np.arange(len(labels)) // 3
    return {"name": name, "model_name": "efficientnet-b1", "n_parameters": 6_513_184, "file_megabytes": 26.4,
            "metrics": metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES), "latency": latency,
            "intervals": intervals.bootstrap_intervals(probabilities, labels, recording_ids,
                                                       rng=np.random.default_rng(0), **arguments),
            "class_intervals": intervals.per_class_intervals(probabilities, labels, recording_ids,
                                                             rng=np.random.default_rng(0), **arguments)}


def describe_two(probabilities, labels):
    latency = {"median_ms": 41.2, "p95_ms": 57.8, "clips_per_second": 24.3, "batch_size": 16, "device": "cpu"}
    return [describe("Strong", np.eye(4)[labels], labels, latency=latency),
            describe("Weak", probabilities, labels, latency=None)]


@pytest.fixture
def predictions(rng):
    return predict(rng)


@pytest.fixture
def results(predictions):
    return describe_two(*predictions)


def assert_is_a_picture(path):
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > LEAST_PNG_BYTES
    colours = matplotlib.image.imread(path)[..., :3] @ np.array([1, 256, 65536]) * 255
    assert len(np.unique(colours)) > LEAST_COLOURS
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("n_examples", [0, 1, 4])
def test_overview_is_drawn_with_and_without_examples(tmp_path, rng, frontend, n_examples):
    counts = pd.DataFrame({"train": [9, 4, 1, 0], "val": [2, 1, 1, 0], "test": [2, 1, 0, 0]}, index=CLASS_NAMES)
    log_mel = rng.normal(-40, 10, size=(frontend.n_mels, frontend.n_frames)).astype(np.float32)
    before = log_mel.copy()
    reports.plot_overview(tmp_path / "overview.png", counts=counts,
                          examples={name: (log_mel, frontend) for name in CLASS_NAMES[:n_examples]})
    assert_is_a_picture(tmp_path / "overview.png")
    np.testing.assert_array_equal(log_mel, before)


@pytest.mark.parametrize("mel_scale", ["slaney", "htk"])
def test_mel_ticks_stand_on_the_band_centred_at_their_frequency(mel_scale):
    frontend = FrontendConfig(mel_scale=mel_scale)
    centres = librosa.mel_frequencies(frontend.n_mels + 2, fmin=frontend.f_min, fmax=frontend.f_max,
                                      htk=mel_scale == "htk")[1:-1]
    positions, labels = reports._mel_ticks(frontend)
    assert labels == ["0.25", "0.5", "1", "2", "4", "8"]
    expected = np.interp(1000 * np.array(labels, dtype=float), centres, np.arange(frontend.n_mels))
    np.testing.assert_allclose(positions, expected, atol=TICK_TOLERANCE)


@pytest.mark.parametrize("n_epochs", [1, 5])
def test_history_is_drawn_even_with_one_epoch_or_a_missing_loss(tmp_path, rng, n_epochs):
    columns = ["train_loss", "val_loss", "val_accuracy", "val_macro_f1", "learning_rate"]
    history = pd.DataFrame(rng.random((n_epochs, 5)), columns=columns)
    history.insert(0, "epoch", np.arange(1, n_epochs + 1))
    history.loc[0, "train_loss"] = np.nan
    reports.plot_history(tmp_path / "history.png", history, best_epoch=1)
    assert_is_a_picture(tmp_path / "history.png")


@pytest.mark.parametrize("n_classes", [2, 4, 21])
def test_confusion_matrix_is_drawn_with_an_empty_row(tmp_path, n_classes):
    confusion = np.diag(np.arange(n_classes))  # class 0 has no rows
    names = [*CLASS_NAMES, *map(str, range(n_classes))][:n_classes]
    reports.plot_confusion_matrix(tmp_path / "confusion.png", confusion, class_names=names, title="test")
    assert_is_a_picture(tmp_path / "confusion.png")


@pytest.mark.parametrize("plot", [reports.plot_roc_curves, reports.plot_precision_recall_curves])
def test_curves_are_drawn_with_an_absent_class(tmp_path, predictions, plot):
    plot(tmp_path / "curves.png", *predictions, class_names=CLASS_NAMES)
    assert_is_a_picture(tmp_path / "curves.png")


def test_reliability_is_drawn_with_empty_bins(tmp_path, predictions):
    reports.plot_reliability(tmp_path / "reliability.png", *predictions)
    assert_is_a_picture(tmp_path / "reliability.png")


@pytest.mark.parametrize("n_models", [1, 2])
def test_comparison_is_drawn(tmp_path, results, n_models):
    reports.plot_comparison(tmp_path / "comparison.png", results[:n_models])
    assert_is_a_picture(tmp_path / "comparison.png")


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, predictions):
    (tmp_path / "curves.png").write_bytes(b"old")
    with pytest.raises(IndexError, match="out of bounds"):
        reports.plot_roc_curves(tmp_path / "curves.png", *predictions, class_names=[*CLASS_NAMES, "one too many"])
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_labels_are_cut_in_the_middle_and_kept_in_legends():
    assert reports._label("bird_song") == "bird_song"
    assert reports._label("_hidden") == " _hidden"
    cut = reports._label("a" * 40 + "z" * 40)
    assert (len(cut), cut[0], cut[-1]) == (reports._LONGEST_LABEL, "a", "z")
    assert "…" in cut


def test_names_in_a_script_the_font_lacks_raise_no_warning(tmp_path):
    names = ["\u9e1f", "\u86d9", "\u866b", "\u98ce"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports.plot_confusion_matrix(tmp_path / "confusion.png", np.eye(4, dtype=int), class_names=names, title="")
    assert_is_a_picture(tmp_path / "confusion.png")
