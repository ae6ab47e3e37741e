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
from utils import reports
from utils.evaluation.comparison import paired_comparison
from utils.evaluation.intervals import Bootstrap, answered_intervals, score_intervals
from utils.evaluation.page import write_evaluation_page
from utils.evaluation.results import Evaluation, Latency, ModelEvaluation
from utils.metrics import ScoredSegments, answered_scores, evaluate_segments

BOOTSTRAP = Bootstrap(recording_ids=np.arange(60) // 3, n_bootstrap=50, confidence=0.9, seed=0)
DESCRIPTION = ModelDescription(path="model.pth", sha256="0", model_name="efficientnet-b1", config=EfficientNetConfig(),
                               frontend=FrontendConfig(), classes=ClassList(CLASS_NAMES), calibration=Calibration(),
                               rules=DecisionRules(dict.fromkeys(CLASS_NAMES, 0.625), "unknown_species"),
                               n_parameters=6_513_184)
LATENCY = Latency(median_ms=41.2, p95_ms=57.8, clips_per_second=24.3, batch_size=16, n_runs=5, device="torch-cpu",
                  torch_threads=2)


@pytest.fixture
def predictions():
    return predict(np.random.default_rng(11))


def describe(name, probabilities, labels, *, seen=None):
    segments = ScoredSegments(probabilities, labels, CLASS_NAMES)
    intervals, class_intervals = score_intervals(segments, BOOTSTRAP)
    sure, sure_of_class = answered_intervals(segments, DESCRIPTION.rules, BOOTSTRAP)
    answered = {**answered_scores(segments, DESCRIPTION.rules), "intervals": sure, "class_intervals": sure_of_class}
    return ModelEvaluation(name=name, segments=segments, metrics=evaluate_segments(segments), intervals=intervals,
                           class_intervals=class_intervals, answered=answered, description=DESCRIPTION,
                           file_megabytes=26.4, latency=LATENCY, recordings_seen_in_training=seen)


@pytest.fixture
def strong(predictions):
    return describe("Strong", np.eye(4)[predictions[1]], predictions[1], seen=3)


@pytest.fixture
def weak(predictions):
    return describe("Weak", *predictions)


def evaluation_of(*models, bootstrap=BOOTSTRAP):
    comparison = None
    if len(models) == 2:
        comparison = paired_comparison(models[0].segments, models[1].segments, bootstrap)
    return Evaluation(test_csv="test.csv", class_names=CLASS_NAMES, bootstrap=bootstrap, models=models,
                      comparison=comparison)


def visible_text(page):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page.split("</style>")[1])).split())


def write_page(path, evaluation, pictures=()):
    write_evaluation_page(path, evaluation, pictures=pictures)
    return path.read_text(encoding="utf-8")


def test_page_tells_the_verdict_the_numbers_and_the_settings(tmp_path, strong, weak):
    evaluation = evaluation_of(strong, weak)
    text = visible_text(write_page(tmp_path / "report.html", evaluation))
    low, high = evaluation.comparison.differences["macro_f1"].interval
    weak_f1 = weak.metrics["macro_f1"]
    assert "Strong is better than Weak. " in text
    assert f"macro F1 is 1.000 against {weak_f1:.3f}: a difference of {1 - weak_f1:+.3f}" in text
    assert f"(90% interval {low:+.3f} to {high:+.3f}, which excludes 0)" in text
    assert "60 segments of 20 recordings" in text
    assert "Strong efficientnet-b1 6,513,184 – 26.4 41.2 57.8 24.3 16 – torch-cpu" in text
    assert "bootstrap 50" in text and "n_recordings 20" in text
    assert "Strong: test recordings seen in training 3" in text
    assert "Weak: test recordings seen in training unknown" in text
    for name in ("accuracy", "macro_roc_auc", "log_loss", "ece"):
        low, high = weak.intervals[name]
        assert f"{weak.metrics[name]:.3f} {low:.3f} to {high:.3f}" in text, name


def test_page_tells_the_scores_of_each_class(tmp_path, weak):
    text = visible_text(write_page(tmp_path / "report.html", evaluation_of(weak)))
    row, intervals = weak.metrics["per_class"][0], weak.class_intervals[0]
    cells = " ".join(f"{row[name]:.3f} {intervals[name][0]:.3f} to {intervals[name][1]:.3f}"
                     for name in ("precision", "recall", "f1", "roc_auc", "average_precision"))
    assert f"bird {row['support']} {cells}" in text
    assert "absent 0 – – – – –" in text


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
    low, high = evaluation.comparison.differences["macro_f1"].interval
    only_strong = evaluation.comparison.mcnemar.only_b_correct
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
    assert f"({told} interval" in text and f"Intervals are {told} bootstrap intervals" in text


def test_page_stands_alone_and_trusts_no_text(tmp_path, predictions, weak):
    picture = tmp_path / "reliability.png"
    reports.plot_reliability(picture, *predictions, title="Weak")
    hostile = "<img src=x onerror=alert(1)>\"'"
    model = dataclasses.replace(weak, name=hostile, description=dataclasses.replace(DESCRIPTION, model_name=hostile))
    evaluation = dataclasses.replace(evaluation_of(model), test_csv=hostile)
    page = write_page(tmp_path / "report.html", evaluation, [(hostile, picture)])
    assert "<script" not in page and "<img src=x" not in page
    assert html.escape(CLASS_NAMES[1]) in page
    # headline, two tables' captions and titles, a picture's title and text, two settings
    assert page.count(html.escape(hostile)) >= 8
    assert not re.search(r"(https?:)?//[a-z]|<link|@import|url\(", re.sub(r"base64,[^\"]*", "", page))
    assert re.search(r'src="data:image/png;base64,iVBOR[A-Za-z0-9+/]+=*"', page)


def test_page_is_balanced_html(tmp_path, weak):
    page = write_page(tmp_path / "report.html", evaluation_of(weak, weak))
    for tag in ("table", "tr", "td", "th", "div", "p", "span", "body", "html"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>") > 0, tag
