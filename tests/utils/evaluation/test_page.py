import html
import re

import numpy as np
import pytest

from tests.utils.test_reports import CLASS_NAMES, describe_two, predict
from utils import reports
from utils.evaluation import intervals
from utils.evaluation.page import write_evaluation_page


@pytest.fixture
def predictions():
    return predict(np.random.default_rng(11))


@pytest.fixture
def results(predictions):
    return describe_two(*predictions)


@pytest.fixture
def compare(predictions):
    def run(a, b):
        return intervals.paired_comparison(a, b, predictions[1], np.arange(60) // 3, class_names=CLASS_NAMES,
                                           n_bootstrap=50, confidence=0.9, rng=np.random.default_rng(0))
    return run


def visible_text(page):
    return html.unescape(re.sub(r"<[^>]*>", " ", page.split("</style>")[1]))


def write_page(path, **changes):
    arguments = {"comparison": None, "pictures": [], "settings": {}}
    write_evaluation_page(path, **{**arguments, **changes})
    return path.read_text(encoding="utf-8")


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
