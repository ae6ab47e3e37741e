import csv
import json

import pytest

from tests.utils.evaluation.test_detections import MANY, recording, settings
from tests.utils.evaluation.test_page import visible_text
from tests.utils.test_reports import assert_is_a_picture, figures  # noqa: F401
from utils import reports
from utils.evaluation.detections import Coverage, compare
from utils.evaluation.detections_page import OUTCOME_COLUMNS, write_detection_report
from utils.pages import SCRIPT


def report(folder, recordings=MANY, *, coverage=Coverage(), **changes):
    """Write a report; return its text and its page."""
    evaluation = compare(recordings, settings(**changes), predictions="run.json", annotations="marks",
                         coverage=coverage)
    page = write_detection_report(folder, evaluation)[0].read_text(encoding="utf-8")
    return visible_text(page), page, evaluation


def test_the_report_begins_with_what_was_found_and_what_is_right(tmp_path):
    text, _, evaluation = report(tmp_path)
    assert "NightScan detections 4 of 7 annotated events were found (57%, interval " in text
    assert "), and 4 of 6 detections are right (67%). Measured" in text  # both recordings have 2 of 3: no interval
    assert " Measured on 2 annotated recordings, 2.00 h: 1.00 false detections an hour, macro F1" in text
    assert "Never detected: vole. " in text and "nowhere annotated: hare. " in text
    assert f"macro F1 {evaluation.events.overall['macro_f1']:.3f}" in text


def test_the_report_lists_what_to_listen_to_the_surest_first(tmp_path):
    text = report(tmp_path)[0]
    false = text[text.index("False detections, the surest first (2 of 2)"):text.index("Missed annotations (3 of 3)")]
    assert "a.wav owl 2.000 3.000 0.800 b.wav hare 6.000 7.000 0.500" in false
    assert "a.wav fox 2.000 3.000 b.wav fox 2.000 3.000 b.wav vole 4.000 5.000" in text


def test_the_table_has_a_row_for_each_detection_and_each_missed_annotation(tmp_path):
    report(tmp_path)
    with open(tmp_path / "detections.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == OUTCOME_COLUMNS
    assert [tuple(row.values()) for row in rows[:4]] == [
        ("a.wav", "owl", "right", "0.0", "1.0", "0.9", "0.0", "1.0"),
        ("a.wav", "fox", "missed", "", "", "", "2.0", "3.0"),
        ("a.wav", "owl", "false", "2.0", "3.0", "0.8", "", ""),
        ("a.wav", "fox", "right", "4.0", "5.0", "0.7", "4.0", "5.0")]
    assert len(rows) == 9


def test_metrics_are_the_evaluation(tmp_path):
    evaluation = report(tmp_path)[2]
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert content["format_version"] == 1 and content["predictions"] == "run.json"


def test_what_was_not_compared_is_named(tmp_path):
    text = report(tmp_path, coverage=Coverage(not_annotated=1234, not_heard=("n1.wav",), unsure=("u1.wav", "u2.wav"),
                                              left_out={"car": 3}))[0]
    assert "1 annotated recordings are not among the predictions." in text
    assert "Heard, but not annotated (left out) 1,234" in text
    assert "Annotated, but not heard (left out) 1: n1.wav" in text
    assert "Not wholly annotated (left out) 2: u1.wav, u2.wav" in text and "Labels that do not count car (3)" in text


def test_names_of_strangers_stay_text(tmp_path):
    evil = "<script>alert(1)</script>"
    page = report(tmp_path, [recording(evil, [(0, 1, evil, 0.9)], [(0, 1, "$x$")])],
                  coverage=Coverage(not_heard=(evil,), left_out={evil: 1}))[1]
    assert page.count("<script") == 1 and SCRIPT in page and evil not in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("recordings", [[recording("a.wav", [], [])], [recording("a.wav", [], [(0, 1, "owl")])],
                                        [recording("a.wav", [(0, 1, "owl")], [])]])
def test_a_side_without_events_still_gives_a_report(tmp_path, recordings):
    text, _, evaluation = report(tmp_path, recordings)
    n_true, n_found = (evaluation.events.overall[name] for name in ("n_annotated", "n_detected"))
    assert f"0 of {n_true} annotated events were found" in text and f"0 of {n_found} detections are right" in text
    assert ("The predictions tell no confidences" in text) == bool(n_found)


def test_curves_are_drawn_where_they_are_defined(tmp_path, figures):  # noqa: F811
    reports.plot_detection_curves(tmp_path / "curves.png", by_confidence={"all": ([1, 0.5, 0], [0.5, 1, None])},
                                  by_overlap={"all": ([0.1, 0.9], [0.8, 0.2]), "owl": ([0.1, 0.9], [None, None])})
    assert_is_a_picture(tmp_path / "curves.png")
    left, right = figures[0].axes
    assert [line.get_xydata().tolist() for line in left.lines] == [[[1, 0.5], [0.5, 1]]]
    assert [line.get_xydata().tolist() for line in right.lines] == [[[0.1, 0.8], [0.9, 0.2]], []]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == ["all", "owl"]
