import dataclasses
import io
import warnings
from types import SimpleNamespace

import librosa
import matplotlib.image
import matplotlib.patches
import matplotlib.text
import numpy as np
import pandas as pd
import pytest

from models.efficientnet_config import FrontendConfig
from models.calibration import Calibration
from models.classes import DecisionRules
from utils import metrics, reports

LEAST_PNG_BYTES = 5_000  # an empty white figure of these sizes is smaller
SMALL_PNG_BYTES = 40_000  # noise, which compresses worst: 240 of them make a page of 13 MB
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


@pytest.fixture
def predictions(rng):
    return predict(rng)


@pytest.fixture
def results(predictions):
    """A perfect model and a weak one, with made-up intervals; those of the absent class are not told."""
    def describe(name, probabilities, labels):
        segments = metrics.ScoredSegments(probabilities, labels, CLASS_NAMES)
        scores = metrics.evaluate_segments(segments)
        rules = DecisionRules(dict.fromkeys(CLASS_NAMES, 0.6), "unknown")
        return metrics.ModelScores(
            name=name, metrics=scores, answered=metrics.answered_scores(segments, rules),
            intervals=dict.fromkeys(scores, (0.25, 0.75)),
            class_intervals=[{"f1": (0.1, 0.9) if row["support"] else None} for row in scores["per_class"]])

    probabilities, labels = predictions
    return [describe("Strong", np.eye(4)[labels], labels), describe("Weak", probabilities, labels)]


@pytest.fixture
def figures(monkeypatch):
    """Every figure that is drawn, to be looked at before it is pixels."""
    drawn, usual = [], reports.Figure
    monkeypatch.setattr(reports, "Figure", lambda **given: (drawn.append(usual(**given)), drawn[-1])[1])
    return drawn


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


@pytest.mark.parametrize("n_examples", [0, 2])
def test_overview_lists_what_was_found_beside_the_balance(tmp_path, rng, frontend, figures, n_examples):
    counts = pd.DataFrame({"train": [9, 4, 1, 0]}, index=CLASS_NAMES)
    log_mel = rng.normal(-40, 10, size=(frontend.n_mels, frontend.n_frames)).astype(np.float32)
    found = [SimpleNamespace(severity="error", code="silent"),
             *(SimpleNamespace(severity="note", code=code) for code in ["dc_offset", *"abcdefgh", "dc_offset"])]
    reports.plot_overview(tmp_path / "overview.png", counts=counts, findings=found,
                          examples={name: (log_mel, frontend) for name in CLASS_NAMES[:n_examples]})
    assert_is_a_picture(tmp_path / "overview.png")
    told = [" ".join(text.get_text().split()) for text in figures[0].findobj(matplotlib.text.Text)]
    assert "1 error silent 10 notes dc_offset (2), a, b, c, d, e, f, g, 1 more kinds" in told


def test_overview_without_findings_is_what_it_was(tmp_path, figures):
    counts = pd.DataFrame({"train": [9, 4, 1, 0]}, index=CLASS_NAMES)
    reports.plot_overview(tmp_path / "overview.png", counts=counts, examples={}, findings=[])
    assert len(figures[0].axes) == 1 and figures[0].get_size_inches()[0] == 10


@pytest.mark.parametrize("level", [-40.0, -100.0])
def test_a_small_spectrogram_is_a_small_picture(rng, frontend, level, figures):
    log_mel = rng.normal(level, 10, size=(frontend.n_mels, frontend.n_frames)).astype(np.float32)
    png = reports.spectrogram_png(log_mel, frontend)
    assert matplotlib.image.imread(io.BytesIO(png)).shape[:2] == (150, 320)
    assert len(png) < SMALL_PNG_BYTES
    ticks = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
    assert ticks == ["0.25", "1", "2", "4", "8"]  # half a kHz would touch a quarter
    np.testing.assert_array_equal(figures[0].axes[0].images[0].get_array(), log_mel - log_mel.max())


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


def test_confusion_matrix_has_truth_in_rows(tmp_path, figures):
    # three of four birds were heard as birds and one as a frog; both frogs were heard as frogs
    confusion = metrics.confusion_matrix(np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1]), n_classes=2)
    reports.plot_confusion_matrix(tmp_path / "confusion.png", confusion, class_names=("bird", "frog"), title="test")
    ax = figures[0].axes[0]
    assert ax.get_xlabel().startswith("predicted") and ax.get_ylabel().startswith("true")
    columns = {tick: label.get_text() for tick, label in zip(ax.get_xticks(), ax.get_xticklabels())}
    rows = {tick: label.get_text() for tick, label in zip(ax.get_yticks(), ax.get_yticklabels())}
    written = {(rows[y], columns[x]): text.get_text() for text in ax.texts for x, y in [text.get_position()]}
    assert written == {("bird (4)", "bird"): "3\n75%", ("bird (4)", "frog"): "1\n25%",
                       ("frog (2)", "bird"): "", ("frog (2)", "frog"): "2\n100%"}
    shares = ax.collections[0].get_array().reshape(2, 2)
    np.testing.assert_array_equal(shares, [[0.75, 0.25], [0, 1]])


@pytest.mark.parametrize("plot", [reports.plot_roc_curves, reports.plot_precision_recall_curves])
def test_curves_are_drawn_with_an_absent_class(tmp_path, predictions, plot):
    plot(tmp_path / "curves.png", *predictions, class_names=CLASS_NAMES)
    assert_is_a_picture(tmp_path / "curves.png")


@pytest.mark.parametrize(("plot", "points", "told"), [
    (reports.plot_roc_curves, [(0, 0), (0, 0.5), (0.5, 1), (1, 1)], "bird: 0.875 (2)"),
    (reports.plot_precision_recall_curves, [(0, 1), (0.5, 1), (1, 2 / 3), (1, 0.5)], "bird: 0.833 (2)"),
])
def test_curves_by_hand(tmp_path, figures, plot, points, told):
    bird = np.array([0.9, 0.5, 0.5, 0.1])
    plot(tmp_path / "curves.png", np.stack([bird, 1 - bird], axis=1), np.array([0, 0, 1, 1]),
         class_names=("bird", "frog"))
    lines = {line.get_label(): line for line in figures[0].axes[0].lines}
    np.testing.assert_allclose(lines[told].get_xydata(), points)


def test_reliability_is_drawn_with_empty_bins_and_says_whose_it_is(tmp_path, predictions, figures):
    reports.plot_reliability(tmp_path / "reliability.png", *predictions, title="validation, cross-fitted")
    assert_is_a_picture(tmp_path / "reliability.png")
    assert figures[0].get_suptitle().startswith("validation, cross-fitted\nexpected calibration error 0.")


def test_reliability_shows_what_calibration_changed(tmp_path, predictions, figures):
    probabilities, labels = predictions
    sharper = Calibration(0.5).probabilities(np.log(probabilities))
    reports.plot_reliability(tmp_path / "reliability.png", probabilities, labels, title="test", uncalibrated=sharper)
    after, before = (metrics.reliability_curve(each, labels) for each in (probabilities, sharper))
    top, bottom = figures[0].axes
    lines = {line.get_label(): line.get_xydata() for line in top.lines}
    for label, told in (("at the bin's mean confidence", after), ("before calibration", before)):
        np.testing.assert_array_equal(lines[label], np.stack(told[:2], axis=1))
    assert [bar.get_height() for bar in bottom.containers[0]] == after[2].tolist()
    outline, = bottom.findobj(matplotlib.patches.StepPatch)
    assert outline.get_data().values.tolist() == before[2].tolist() != after[2].tolist()
    assert figures[0].get_suptitle().endswith(f"error {after[3]:.3f}, before calibration {before[3]:.3f}")


@pytest.mark.parametrize("n_models", [1, 2])
def test_comparison_is_drawn(tmp_path, results, n_models):
    reports.plot_comparison(tmp_path / "comparison.png", results[:n_models])
    assert_is_a_picture(tmp_path / "comparison.png")


def test_comparison_draws_each_score_of_each_model_with_its_interval(tmp_path, results, figures):
    reports.plot_comparison(tmp_path / "comparison.png", results)
    left, right = figures[0].axes
    titles = [label.get_text() for label in left.get_yticklabels()]
    for bars, result in zip(left.containers, results):
        assert bars.get_label() == result.name
        assert bars[titles.index("F1, macro")].get_width() == result.metrics["macro_f1"]
    for bars, result in zip(right.containers, results):
        assert [bar.get_width() for bar in bars] == [row["f1"] or 0 for row in result.metrics["per_class"]]
    assert {tuple(line.get_xdata()) for line in left.lines} == {(0.25, 0.75)}
    assert len(right.lines) == 2 * 3  # two models, three classes that occur


@pytest.mark.parametrize("n_models", [1, 2])
def test_coverage_is_drawn_with_the_deployed_point_of_each_model(tmp_path, results, figures, n_models):
    reports.plot_coverage(tmp_path / "coverage.png", results[:n_models])
    assert_is_a_picture(tmp_path / "coverage.png")
    lines = figures[0].axes[0].lines
    assert len(lines) == 2 * n_models
    for curve, point, result in zip(lines[::2], lines[1::2], results):
        assert point.get_xydata().tolist() == [[result.answered["share"], result.answered["precision"]]]
        told = result.answered["curve"]
        assert curve.get_xydata().tolist() == [[share, precision] for share, precision
                                               in zip(told["share"], told["precision"]) if precision is not None]


def test_coverage_of_a_model_that_answers_nothing_is_an_empty_picture(tmp_path, results, figures):
    told = {"share": 0.0, "precision": None, "curve": {"threshold": [0.0], "share": [0.0], "precision": [None]}}
    reports.plot_coverage(tmp_path / "coverage.png", [dataclasses.replace(results[0], answered=told)])
    assert all(not len(line.get_xydata()) for line in figures[0].axes[0].lines)


def test_a_learning_curve_has_a_point_a_training_and_a_line_of_means(tmp_path, figures):
    scores = pd.DataFrame({"run": ["a", "a", "a", "b"], "recordings": ["5", "5", "all", "5"],
                           "score": [0.2, 0.4, 0.9, 0.1]})
    reports.plot_learning_curve(tmp_path / "curve.png", scores, score_title="macro F1")
    assert_is_a_picture(tmp_path / "curve.png")
    points, means, _, alone = (line.get_xydata().tolist() for line in figures[0].axes[0].lines)
    assert points == [[0, 0.2], [0, 0.4], [1, 0.9]]
    assert np.allclose(means, [[0, 0.3], [1, 0.9]]) and alone == [[0, 0.1]]
    assert [label.get_text() for label in figures[0].axes[0].get_xticklabels()] == ["5", "all"]


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
