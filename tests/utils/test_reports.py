import html
import re

import librosa
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from models.efficientnet_config import FrontendConfig
from utils import metrics, reports

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


@pytest.fixture
def predictions(rng):
    labels = rng.integers(0, 3, size=60)  # class 3 never occurs
    return metrics.softmax(rng.normal(size=(60, 4)) + 2 * np.eye(4)[labels], temperature=1.0), labels


def describe(name, probabilities, labels, *, latency):
    arguments = {"class_names": CLASS_NAMES, "n_bootstrap": 20, "confidence": 0.9}
    recording_ids = np.arange(len(labels)) // 3
    return {"name": name, "model_name": "efficientnet-b1", "n_parameters": 6_513_184, "file_megabytes": 26.4,
            "metrics": metrics.evaluate(probabilities, labels, class_names=CLASS_NAMES), "latency": latency,
            "intervals": metrics.bootstrap_intervals(probabilities, labels, recording_ids,
                                                     rng=np.random.default_rng(0), **arguments),
            "class_intervals": metrics.per_class_intervals(probabilities, labels, recording_ids,
                                                           rng=np.random.default_rng(0), **arguments)}


@pytest.fixture
def results(predictions):
    probabilities, labels = predictions
    latency = {"median_ms": 41.2, "p95_ms": 57.8, "clips_per_second": 24.3, "batch_size": 16, "device": "cpu"}
    return [describe("Strong", np.eye(4)[labels], labels, latency=latency),
            describe("Weak", probabilities, labels, latency=None)]


@pytest.fixture
def compare(predictions):
    def run(a, b):
        return metrics.paired_comparison(a, b, predictions[1], np.arange(60) // 3, class_names=CLASS_NAMES,
                                         n_bootstrap=50, confidence=0.9, rng=np.random.default_rng(0))
    return run


def assert_is_a_picture(path):
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > LEAST_PNG_BYTES
    colours = matplotlib.image.imread(path)[..., :3] @ np.array([1, 256, 65536]) * 255
    assert len(np.unique(colours)) > LEAST_COLOURS
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def visible_text(page):
    return html.unescape(re.sub(r"<[^>]*>", " ", page.split("</style>")[1]))


def write_page(path, **changes):
    arguments = {"comparison": None, "pictures": [], "settings": {}}
    reports.write_evaluation_page(path, **{**arguments, **changes})
    return path.read_text(encoding="utf-8")


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


def test_page_tells_the_verdict_the_numbers_and_the_settings(tmp_path, predictions, results, compare):
    comparison = compare(np.eye(4)[predictions[1]], predictions[0])
    page = write_page(tmp_path / "report.html", results=results, comparison=comparison, settings={"bootstrap": 50})
    text = " ".join(visible_text(page).split())
    low, high = comparison["differences"]["macro_f1"]["interval"]
    weak_f1 = results[1]["metrics"]["macro_f1"]
    assert "Strong is better than Weak. " in text
    assert f"macro F1 is 1.000 against {weak_f1:.3f}: a difference of {1 - weak_f1:+.3f}" in text
    assert f"(90% interval {low:+.3f} to {high:+.3f}, which excludes 0)" in text
    assert "60 segments of 20 recordings" in text
    assert "6,513,184 26.4 41.2 57.8 24.3 16 cpu" in text
    assert "Weak efficientnet-b1 6,513,184 26.4 – – – – –" in text
    assert "bootstrap 50" in text
    for name in ("accuracy", "macro_roc_auc", "log_loss", "ece"):
        low, high = results[1]["intervals"][name]
        assert f"{results[1]['metrics'][name]:.3f} {low:.3f} to {high:.3f}" in text, name


def test_page_names_the_better_model_when_it_comes_second(tmp_path, predictions, results, compare):
    comparison = compare(predictions[0], np.eye(4)[predictions[1]])
    low, high = comparison["differences"]["macro_f1"]["interval"]
    only_strong = comparison["mcnemar"]["only_b_correct"]
    text = visible_text(write_page(tmp_path / "report.html", results=results[::-1], comparison=comparison))
    assert "Strong is better than Weak." in text
    assert f"interval {-high:+.3f} to {-low:+.3f}, which excludes 0" in text
    assert f"Strong alone is right on {only_strong} segments, Weak alone on 0 " in text


def test_page_says_when_there_is_no_difference(tmp_path, predictions, results, compare):
    comparison = compare(predictions[0], predictions[0])
    text = visible_text(write_page(tmp_path / "report.html", results=results, comparison=comparison))
    assert "No significant difference between Strong and Weak." in text
    assert "which includes 0" in text


def test_page_of_one_model_tells_its_score(tmp_path, results):
    text = visible_text(write_page(tmp_path / "report.html", results=results[1:],
                                   settings={"confidence": 0.9, "n_recordings": 20}))
    low, high = results[1]["intervals"]["macro_f1"]
    assert f"Weak reaches a macro F1 of {results[1]['metrics']['macro_f1']:.3f} (interval {low:.3f} to {high:.3f})" \
        in text
    assert "60 segments of 20 recordings" in text and "90% bootstrap intervals" in text


def test_page_stands_alone_and_trusts_no_text(tmp_path, predictions, results):
    picture = tmp_path / "reliability.png"
    reports.plot_reliability(picture, *predictions)
    hostile = "<img src=x onerror=alert(1)>\"'"
    page = write_page(tmp_path / "report.html", results=[{**results[0], "name": hostile, "model_name": hostile}],
                      pictures=[(hostile, picture)], settings={hostile: hostile})
    assert "<script" not in page and "<img src=x" not in page
    assert html.escape(CLASS_NAMES[1]) in page and page.count(html.escape(hostile)) >= 5
    assert not re.search(r"(https?:)?//[a-z]|<link|@import|url\(", re.sub(r"base64,[^\"]*", "", page))
    assert re.search(r'src="data:image/png;base64,iVBOR[A-Za-z0-9+/]+=*"', page)


def test_page_is_balanced_html(tmp_path, results, compare, predictions):
    page = write_page(tmp_path / "report.html", results=results, comparison=compare(predictions[0], predictions[0]),
                      settings={"seed": 1})
    for tag in ("table", "tr", "td", "th", "div", "p", "span", "body", "html"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>") > 0, tag
