import dataclasses
import html
import re

import numpy as np
import pytest

from models.calibration import Calibration
from models.classes import ClassList, DecisionRules
from models.description import ModelDescription
from models.efficientnet_config import EfficientNetConfig, FrontendConfig
from tests.utils.test_reports import CLASS_NAMES, predict
from utils import metrics, reports
from utils.evaluation.comparison import paired_comparison
from utils.evaluation.page import write_evaluation_page
from utils.evaluation.pictures import Picture
from utils.evaluation.recordings import recording_scores
from utils.evaluation.resampling import Bootstrap
from utils.evaluation.results import Evaluation, Latency, ModelEvaluation, level_scores
from utils.metrics import ScoredSegments

BOOTSTRAP = Bootstrap(recording_ids=np.arange(60) // 3, n_bootstrap=50, confidence=0.9, seed=0)
DESCRIPTION = ModelDescription(path="model.pth", sha256="0", model_name="efficientnet-b1", config=EfficientNetConfig(),
                               frontend=FrontendConfig(), classes=ClassList(CLASS_NAMES), calibration=Calibration(1.5),
                               rules=DecisionRules(dict.fromkeys(CLASS_NAMES, 0.625), "unknown_species"),
                               n_parameters=6_513_184)
LATENCY = Latency(median_ms=41.2, p95_ms=57.8, clips_per_second=24.3, batch_size=16, n_runs=5, device="torch-cpu",
                  torch_threads=2)


@pytest.fixture
def predictions():
    return predict(np.random.default_rng(11))


def describe(name, probabilities, labels, *, seen=None):
    segments = ScoredSegments(probabilities, labels, CLASS_NAMES)
    recordings = level_scores(name, recording_scores(segments, BOOTSTRAP.recording_ids), DESCRIPTION.rules,
                              BOOTSTRAP.of_recordings())
    return ModelEvaluation(**vars(level_scores(name, segments, DESCRIPTION.rules, BOOTSTRAP)), recordings=recordings,
                           description=DESCRIPTION, file_megabytes=26.4, latency=LATENCY,
                           recordings_seen_in_training=seen)


@pytest.fixture
def strong(predictions):
    return describe("Strong", np.eye(4)[predictions[1]], predictions[1], seen=3)


@pytest.fixture
def weak(predictions):
    return describe("Weak", *predictions)


def evaluation_of(*models, bootstrap=BOOTSTRAP, shared=(0, 0, 0)):
    """Return an evaluation; ``shared`` is what the sides of the data set have in common."""
    first, *others = models
    none, some = (dict(zip(("recordings", "contents", "near_duplicates"), counts)) for counts in ((0, 0, 0), shared))
    data_set = {"sha256": "cafe", "as_prepared": True, "recordings": {"train": 122, "test": 20},
                "segments": {"train": 2330, "test": 60}, "group_by": "night", "ratios": [0.7, 0.15, 0.15],
                "random_state": 42, "leakage_check": {"shared": {"train-val": none, "train-test": some}}}
    return Evaluation(
        test_csv="test.csv", class_names=CLASS_NAMES, bootstrap=bootstrap, models=models,
        comparisons={other.name: paired_comparison(first.segments, other.segments, bootstrap) for other in others},
        recording_comparisons={other.name: paired_comparison(first.recordings.segments, other.recordings.segments,
                                                             BOOTSTRAP.of_recordings()) for other in others},
        provenance={"command": "evaluate_model.py --seed 0", "data_set": data_set,
                    "versions": {"NightScan": "9.9", "torch": "8.8"},
                    "machine": {"platform": "Linux", "processor": "x86_64", "n_processors": 7}})


def visible_text(page):
    body = page.split("</style>")[1].partition("<script")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def write_page(path, evaluation, pictures=()):
    write_evaluation_page(path, evaluation, pictures=pictures)
    return path.read_text(encoding="utf-8")


def test_page_tells_the_verdict_the_numbers_and_the_settings(tmp_path, strong, weak):
    evaluation = evaluation_of(strong, weak)
    text = visible_text(write_page(tmp_path / "report.html", evaluation))
    low, high = evaluation.comparisons["Weak"].differences["macro_f1"].interval
    weak_f1 = weak.metrics["macro_f1"]
    assert "Strong is better than Weak. " in text
    assert f"macro F1 is 1.000 against {weak_f1:.3f}: a difference of {1 - weak_f1:+.3f}" in text
    assert f"(90% interval {low:+.3f} to {high:+.3f}, which excludes 0)" in text
    assert "60 segments of 20 recordings" in text
    assert "Strong efficientnet-b1 6,513,184 – 26.4" in text
    assert "Strong torch-cpu 2 41.2 57.8 16 – – 24.3 –" in text
    for name in ("accuracy", "macro_roc_auc", "log_loss", "ece"):
        low, high = weak.intervals[name]
        assert f"{weak.metrics[name]:.3f} {low:.3f} to {high:.3f}" in text, name


def test_page_tells_the_scores_of_each_class(tmp_path, weak):
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(weak)))
    row, intervals = weak.metrics["per_class"][0], weak.class_intervals[0]
    cells = " ".join(f"{row[name]:.3f} {intervals[name][0]:.3f} to {intervals[name][1]:.3f}"
                     for name in ("precision", "recall", "f1", "roc_auc", "average_precision"))
    assert f"bird {row['support']} {cells}" in text
    assert "absent no intervals: the class does not occur in the test set 0 – – – – –" in text
    assert "60 segments of 20 recordings. absent does not occur in the test set: no average over classes" in text


def test_page_tells_why_a_class_has_no_intervals(tmp_path, predictions):
    probabilities, labels = predictions
    ids = np.where(labels == 1, 0, 1 + np.arange(60))
    bootstrap = dataclasses.replace(BOOTSTRAP, recording_ids=ids)
    model = dataclasses.replace(describe("Weak", probabilities, labels), **vars(level_scores(
        "Weak", ScoredSegments(probabilities, labels, CLASS_NAMES), DESCRIPTION.rules, bootstrap)))
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(model, bootstrap=bootstrap)))
    told = f"{CLASS_NAMES[1]} no intervals: one recording cannot tell how recordings vary"
    assert text.count(told) == 2  # with its scores and with its threshold
    row = model.metrics["per_class"][1]
    assert f"{told} {row['support']} {row['precision']:.3f} {row['recall']:.3f}" in text


def test_page_tells_how_good_the_models_are_on_whole_recordings(tmp_path, strong, weak):
    evaluation = evaluation_of(strong, weak)
    page = write_page(tmp_path / "report.html", evaluation)
    _, _, text = visible_text(page).rpartition("Whole recordings ")
    compared, (first, second) = evaluation.recording_comparisons["Weak"], (strong.recordings, weak.recordings)
    found = compared.differences["macro_f1"]
    assert text.startswith(f"Strong is better than Weak. Its macro F1 is {first.metrics['macro_f1']:.3f} against"
                           f" {second.metrics['macro_f1']:.3f}: a difference of {found.difference:+.3f}")
    assert f"Strong alone is right on {compared.mcnemar.only_a_correct} recordings" in text
    (low, high), (lower, higher) = (level.intervals["accuracy"] for level in (first, second))
    assert (f"Accuracy {first.metrics['accuracy']:.3f} {low:.3f} to {high:.3f} {second.metrics['accuracy']:.3f}"
            f" {lower:.3f} to {higher:.3f} {compared.differences['accuracy'].difference:+.3f}" in text)
    row = second.metrics["per_class"][0]
    assert f"bird {row['support']} {row['precision']:.3f}" in text
    assert f"Share that is answered {first.answered['share']:.3f}" in text


def test_page_tells_calibration_before_and_after(tmp_path, weak):
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(weak)))
    before, after = weak.before_calibration["log_loss"], weak.metrics["log_loss"]
    assert f"Log loss {before:.3f} {after:.3f}" in text
    # temperature 1.5: the logits are 1.5 times the logarithms
    wanted = Calibration(1 / 1.5).probabilities(np.log(weak.segments.probabilities))
    assert before == pytest.approx(metrics.evaluate(wanted, weak.segments.labels, class_names=CLASS_NAMES)["log_loss"])


def test_page_tells_how_it_was_measured(tmp_path, strong, weak):
    _, _, text = visible_text(write_page(tmp_path / "report.html", evaluation_of(strong, weak))).rpartition(
        "How it was measured ")
    for told in ("Command evaluate_model.py --seed 0", "Test set test.csv, 60 segments of 20 recordings",
                 "Its SHA-256 cafe", "As preprocessing wrote it yes",
                 "train 2,330 segments of 122 recordings; test 60 segments of 20 recordings",
                 "How it was split by night, 0.7 / 0.15 / 0.15, seed 42",
                 "train and test share 0 recordings, 0 contents and 0 near-duplicates",
                 "Strong: test recordings learnt from 3", "Weak: test recordings learnt from not known",
                 "Weak: test recordings heard before, without labels 0", "Intervals 90%, 50 resamples, seed 0",
                 "Versions NightScan 9.9, PyTorch 8.8", "Machine Linux, x86_64, 7 processors"):
        assert told in text, told


@pytest.mark.parametrize(("seen", "shared", "told"), [
    (None, (0, 0, 0), []), (0, (0, 0, 0), []),
    (3, (0, 0, 0), ["3 of 20 test recordings were used to train Weak: its scores are too good."]),
    (0, (2, 0, 1), ["as prepared, train and test share 2 recordings, 0 contents and 1 near-duplicates: scores of models"
                    " that learnt from that split are too good."])])
def test_a_leaked_test_set_is_called_leaked_before_all_else(tmp_path, weak, seen, shared, told):
    model = dataclasses.replace(weak, recordings_seen_in_training=seen)
    page = write_page(tmp_path / "report.html", evaluation_of(model, shared=shared))
    box = page.partition('<div class="verdict">')[2].partition("</div>")[0]
    assert re.findall(r"<p[^>]*>This test set is leaked: (.*?)</p>", box) == told
    assert page.count("is leaked") == len(told) and box.startswith('<p class="leaked">This') == bool(told)


def test_page_notes_what_was_heard_before(tmp_path, weak):
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(
        dataclasses.replace(weak, recordings_heard_before=4))))
    assert "4 test recordings were heard, without labels, by the network that Weak began with" in text


def test_page_tells_more_than_two_models_apart_from_the_first(tmp_path, strong, predictions):
    others = [describe(name, *predictions) for name in ("Other", "Third")]
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(strong, *others)))
    assert "Strong is better than Other. Its macro F1" in text and "Strong is better than Third. Its macro F1" in text
    assert "Strong minus" not in text


def test_page_tells_what_is_answered_at_which_precision(tmp_path, strong, weak):
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(strong, weak)))
    answered = weak.answered
    low, high = answered["intervals"]["share"]
    lowest, highest = strong.answered["intervals"]["share"]
    assert (f"Share that is answered 1.000 {lowest:.3f} to {highest:.3f} {answered['share']:.3f} {low:.3f} to"
            f" {high:.3f}" in text)
    assert "Segments of the reject class that are not answered – –" in text  # the test set has none
    row, (low, high) = answered["per_class"][0], answered["class_intervals"][0]["precision"]
    assert (f"bird 0.62 {row['n_answered']} {row['precision']:.3f} {low:.3f} to {high:.3f} {row['recall']:.3f}" in text)
    place = answered["curve"]["threshold"].index(0.8)
    share, precision = (answered["curve"][name][place] for name in ("share", "precision"))
    assert f"0.80 1.000 1.000 {share:.3f} {precision:.3f}" in text


def test_page_names_the_better_model_when_it_comes_second(tmp_path, strong, weak):
    evaluation = evaluation_of(weak, strong)
    low, high = evaluation.comparisons["Strong"].differences["macro_f1"].interval
    only_strong = evaluation.comparisons["Strong"].mcnemar.only_b_correct
    text = visible_text(write_page(tmp_path / "report.html", evaluation))
    assert "Strong is better than Weak." in text
    assert f"Its macro F1 is 1.000 against {weak.metrics['macro_f1']:.3f}: a difference of +0." in text
    assert f"interval {-high:+.3f} to {-low:+.3f}, which excludes 0" in text
    assert f"Strong alone is right on {only_strong} segments, Weak alone on 0 " in text


def test_page_says_when_there_is_no_difference(tmp_path, weak):
    text = visible_text(write_page(tmp_path / "report.html",
                                   evaluation_of(dataclasses.replace(weak, name="Twin"), weak)))
    assert "No significant difference between Twin and Weak." in text
    assert re.search(r"a difference of \+0.000 \(90% interval -0.0\d\d to \+0.0\d\d, which includes 0\)", text)


def test_page_says_when_recordings_are_too_few(tmp_path, strong, weak):
    bootstrap = dataclasses.replace(BOOTSTRAP, recording_ids=["only one"] * 60)
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(strong, weak, bootstrap=bootstrap)))
    assert "(too few recordings for an interval)" in text


def test_page_of_one_model_tells_its_score(tmp_path, weak):
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(weak)))
    low, high = weak.intervals["macro_f1"]
    assert f"Weak reaches a macro F1 of {weak.metrics['macro_f1']:.3f} (interval {low:.3f} to {high:.3f})" in text
    assert "60 segments of 20 recordings" in text


@pytest.mark.parametrize(("confidence", "told"), [(0.975, "97.5%"), (0.57, "57%"), (0.999, "99.9%"), (0.9, "90%")])
def test_confidence_is_told_as_it_was_asked_for(tmp_path, weak, confidence, told):
    bootstrap = dataclasses.replace(BOOTSTRAP, confidence=confidence)
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(weak, weak, bootstrap=bootstrap)))
    assert f"({told} interval" in text and f"Intervals are {told} intervals" in text


def test_page_stands_alone_and_trusts_no_text(tmp_path, predictions, weak):
    picture = tmp_path / "reliability.png"
    reports.plot_reliability(picture, *predictions, title="Weak")
    hostile = "<img src=x onerror=alert(1)>\"'"
    model = dataclasses.replace(weak, name=hostile, description=dataclasses.replace(DESCRIPTION, model_name=hostile))
    evaluation = dataclasses.replace(evaluation_of(model), test_csv=hostile)
    page = write_page(tmp_path / "report.html", evaluation, [Picture(hostile, picture, "Look here.")])
    assert "alert('x')" not in page and "<img src=x" not in page
    assert "Look here." in visible_text(page)
    assert html.escape(CLASS_NAMES[1]) in page
    # headline, two tables' captions and titles, a picture's title and text, two settings
    assert page.count(html.escape(hostile)) >= 8
    assert not re.search(r"(https?:)?//[a-z]|<link|@import|url\(|<script [^>]*src", re.sub(r"base64,[^\"]*", "", page))
    assert re.search(r'src="data:image/png;base64,iVBOR[A-Za-z0-9+/]+=*"', page)


def test_page_is_balanced_html(tmp_path, weak):
    page = write_page(tmp_path / "report.html", evaluation_of(weak, weak))
    for tag in ("table", "tr", "td", "th", "div", "p", "span", "body", "html"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>") > 0, tag
