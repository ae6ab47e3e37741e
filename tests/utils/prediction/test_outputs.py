import csv
import json
from pathlib import Path

import pytest

from utils.prediction.outputs import journal_path, output_path, table_rows, write_results

RECORDS = [{"file_path": "a.wav", "predicted_class": "owl", "confidence": 0.75,
            "all_scores": {"owl": 0.75, "fox": 0.25},
            "top_k": [{"class": "owl", "probability": 0.75}, {"class": "fox", "probability": 0.25}]},
           {"file_path": "b.wav", "predicted_class": "fox", "confidence": 1.0, "damage": "b.wav breaks off",
            "all_scores": {"owl": 0.0, "fox": 1.0}}]
ERRORS = [{"file_path": r"owl\xe9.wav", "status": "corrupt", "error": "no audio, only “text”"}]
RESULTS = {"format_version": 1, "predictions": RECORDS, "errors": ERRORS}


@pytest.mark.parametrize(("output", "json_name", "csv_name"), [
    ("results.json", "results.json", "results.csv"),
    ("results.csv", "results.json", "results.csv"),
    ("results", "results.json", "results.csv"),
    ("survey_v1.2", "survey_v1.2.json", "survey_v1.2.csv"),
    ("survey_v1.2.json", "survey_v1.2.json", "survey_v1.2.csv"),
    ("site.A", "site.A.json", "site.A.csv"),
])
def test_a_format_takes_the_place_of_another_but_not_of_a_part_of_the_name(output, json_name, csv_name):
    assert output_path(Path("in") / output, "json") == Path("in") / json_name
    assert output_path(Path("in") / output, "csv") == Path("in") / csv_name


def test_outputs_that_differ_have_journals_that_differ():
    names = ["site.A", "site.B", "site", "survey_v1.2", "survey_v1.3"]
    assert len({journal_path(Path(name)) for name in names}) == len(names)
    assert journal_path(Path("out/results.json")) == Path("out/results.partial.jsonl")


def test_each_format_is_written_beside_the_output(tmp_path):
    written = write_results(RESULTS, tmp_path / "survey_v1.2", ["csv", "json"])
    assert written == [tmp_path / "survey_v1.2.csv", tmp_path / "survey_v1.2.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["survey_v1.2.csv", "survey_v1.2.json"]


def test_json_and_csv_say_the_same(tmp_path):
    json_path, csv_path = write_results(RESULTS, tmp_path / "results.json", ["json", "csv"])
    assert json.loads(json_path.read_text(encoding="utf-8")) == RESULTS
    with open(csv_path, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["file_path"], row["status"]) for row in rows] == [
        ("a.wav", "ok"), ("b.wav", "ok"), (r"owl\xe9.wav", "corrupt")]
    assert [(row["confidence"], row["score_owl"], row["score_fox"]) for row in rows] == [
        ("0.75", "0.75", "0.25"), ("1.0", "0.0", "1.0"), ("", "", "")]
    assert [rows[0][f"top_{rank}_{what}"] for rank in (1, 2) for what in ("class", "probability")] == [
        "owl", "0.75", "fox", "0.25"]
    assert [row["damage"] for row in rows] == ["", "b.wav breaks off", ""]
    assert [row["error"] for row in rows] == ["", "", ERRORS[0]["error"]]
    assert b"\r" not in csv_path.read_bytes()


def test_a_table_of_nothing_but_errors():
    assert table_rows({"predictions": [], "errors": ERRORS}) == ERRORS


def test_a_number_that_json_cannot_hold_leaves_the_old_results(tmp_path):
    write_results(RESULTS, tmp_path / "results.json", ["json"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results({**RESULTS, "summary": float("nan")}, tmp_path / "results.json", ["json"])
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == RESULTS
