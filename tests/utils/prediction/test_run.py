import csv
import json
import os

import pandas as pd
import pytest
import torch
from torchvision.models import resnet18

from models.errors import AudioError, ConfigError
from tests.conftest import TINY_CLASSES, tiny_sound, write_audio
from utils.storage.files import file_sha256
from utils.prediction.predictor import EfficientNetPredictor, PredictionSettings
from utils.prediction.run import find_inputs, identify, journal_path, predict_to_results, results_table, write_results


@pytest.fixture
def folder(tmp_path, rng):
    for number, class_name in enumerate(TINY_CLASSES):
        write_audio(tmp_path / "audio" / f"{number}.wav", tiny_sound(class_name, seconds=1.5, rng=rng))
    (tmp_path / "audio" / "2_broken.wav").write_bytes(b"no recording at all" * 10)
    return tmp_path / "audio"


def predictor_of(tiny_model, **settings):
    return EfficientNetPredictor(tiny_model.best, device="cpu", batch_size=4, n_workers=1,
                                 settings=PredictionSettings(**settings))


def predict(predictor, paths, tiny_model, *, output=None, overwrite=False, model_path=None):
    return predict_to_results(predictor, paths, run=identify(model_path or tiny_model.best, None), output=output,
                              overwrite=overwrite)


def without_times(results):
    return [{name: value for name, value in record.items() if name != "processing_time"}
            for record in results["predictions"]], results["errors"]


def stop_after(predictor, monkeypatch, n_files):
    """Interrupt, as Ctrl-C does, when so many files are done."""
    usual = predictor.predict_files

    def stopping(paths):
        for number, outcome in enumerate(usual(paths)):
            if number == n_files:
                raise KeyboardInterrupt
            yield outcome

    monkeypatch.setattr(predictor, "predict_files", stopping)


def count_files(predictor, monkeypatch):
    usual, asked = predictor.predict_files, []

    def counting(paths):
        asked.extend(path.name for path in paths)
        return usual(paths)

    monkeypatch.setattr(predictor, "predict_files", counting)
    return asked


# inputs

def test_files_folders_and_lists_are_found_once_and_in_order(folder, tmp_path):
    (folder / "notes.md").write_text("no audio", encoding="utf-8")
    (folder / "night.txt").write_text("# what to hear\n1.wav\n\n0.wav\n", encoding="utf-8")
    assert [path.name for path in find_inputs([folder / "3.wav", folder / "night.txt", folder])] == \
        ["3.wav", "1.wav", "0.wav", "2.wav", "2_broken.wav"]


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--input .*gone does not exist"):
        find_inputs([tmp_path / "gone"])


def test_a_folder_without_audio_is_an_error(tmp_path):
    (tmp_path / "notes.md").write_text("no audio", encoding="utf-8")
    with pytest.raises(AudioError, match="no recordings in .*files ending in"):
        find_inputs([tmp_path])


# results

def test_results_follow_the_contract(folder, tiny_model):
    results = predict(predictor_of(tiny_model, return_all_scores=True), find_inputs([folder]), tiny_model)
    assert list(results) == ["format_version", "created", "model", "settings", "summary", "predictions", "errors"]
    assert results["format_version"] == 1
    assert results["model"] == {"path": str(tiny_model.best), "sha256": file_sha256(tiny_model.best),
                                "model_name": "efficientnet-b0", "class_names": list(TINY_CLASSES),
                                "backend": "torch-cpu"}
    summary = results["summary"]
    assert set(summary) == {"files", "ok", "failed", "segments", "audio_seconds", "wall_seconds", "per_class"}
    assert (summary["files"], summary["ok"], summary["failed"], summary["segments"]) == (5, 4, 1, 8)
    assert summary["audio_seconds"] == 6.0
    assert sum(summary["per_class"].values()) == 4
    assert [os.path.basename(record["file_path"]) for record in results["predictions"]] == \
        ["0.wav", "1.wav", "2.wav", "3.wav"]
    error, = results["errors"]
    assert set(error) == {"file_path", "status", "error"} and error["status"] == "corrupt"


def test_segments_are_counted_in_segment_mode(folder, tiny_model):
    results = predict(predictor_of(tiny_model, segment_mode=True), find_inputs([folder]), tiny_model)
    assert results["summary"]["segments"] == len(results["predictions"]) == 8
    assert results["summary"]["audio_seconds"] == 6.0
    assert results["settings"]["segment_mode"] is True


def test_json_and_csv_say_the_same(folder, tiny_model, tmp_path):
    output = tmp_path / "results.json"
    results = predict(predictor_of(tiny_model, return_all_scores=True, top_k=2), find_inputs([folder]), tiny_model,
                      output=output)
    assert write_results(results, output, ["json", "csv"]) == [output, tmp_path / "results.csv"]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(output.read_text(encoding="utf-8"), parse_constant=refuse) == results
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["corrupt"]
    for row, record in zip(rows, results["predictions"], strict=False):
        assert row["file_path"] == record["file_path"] and row["predicted_class"] == record["predicted_class"]
        for name, score in record["all_scores"].items():
            assert float(row[f"score_{name}"]) == score
        assert row["top_2_class"] == record["top_k"][1]["class"]
    assert rows[-1]["error"] == results["errors"][0]["error"]
    assert not journal_path(output).exists()


def test_a_table_of_nothing_but_errors(folder, tiny_model):
    results = predict(predictor_of(tiny_model), [folder / "2_broken.wav"], tiny_model)
    table = results_table(results)
    assert results["predictions"] == [] and table["status"].tolist() == ["corrupt"]
    assert results["summary"]["per_class"] == {} and results["summary"]["segments"] == 0


# going on

def test_an_interrupted_run_goes_on_to_the_same_results(folder, tiny_model, tmp_path, monkeypatch):
    paths, output = find_inputs([folder]), tmp_path / "results.json"
    straight = predict(predictor_of(tiny_model), paths, tiny_model)
    with monkeypatch.context() as patch:
        predictor = predictor_of(tiny_model)
        stop_after(predictor, patch, 3)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            predict(predictor, paths, tiny_model, output=output)
    again = predictor_of(tiny_model)
    asked = count_files(again, monkeypatch)
    resumed = predict(again, paths, tiny_model, output=output)
    assert asked == [path.name for path in paths[3:]]
    assert without_times(resumed) == without_times(straight)
    assert resumed["summary"]["audio_seconds"] == straight["summary"]["audio_seconds"]


@pytest.mark.parametrize("change", ["settings", "model", "file", "overwrite"])
def test_what_changed_is_predicted_again(folder, tiny_model, tmp_path, monkeypatch, rng, change):
    paths, output = find_inputs([folder]), tmp_path / "results.json"
    predict(predictor_of(tiny_model), paths, tiny_model, output=output)
    assert journal_path(output).exists()
    predictor = predictor_of(tiny_model, min_confidence=0.9) if change == "settings" else predictor_of(tiny_model)
    model_path = None
    if change == "model":
        model_path = tmp_path / "other.pth"
        model_path.write_bytes(b"another model")
    if change == "file":
        write_audio(folder / "1.wav", tiny_sound("bird_song", seconds=1.2, rng=rng))
    asked = count_files(predictor, monkeypatch)
    predict(predictor, paths, tiny_model, output=output, model_path=model_path, overwrite=change == "overwrite")
    assert asked == (["1.wav"] if change == "file" else [path.name for path in paths])


def test_a_file_that_came_back_is_predicted(folder, tiny_model, tmp_path, rng):
    output = tmp_path / "results.json"
    first = predict(predictor_of(tiny_model), [folder / "late.wav"], tiny_model, output=output)
    assert "cannot be opened" in first["errors"][0]["error"]
    write_audio(folder / "late.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    second = predict(predictor_of(tiny_model), [folder / "late.wav"], tiny_model, output=output)
    assert second["errors"] == [] and len(second["predictions"]) == 1


def test_the_summary_counts_what_the_records_say(folder, tiny_model):
    results = predict(predictor_of(tiny_model, use_thresholds=False), find_inputs([folder]), tiny_model)
    counted = pd.Series([record["predicted_class"] for record in results["predictions"]]).value_counts()
    assert results["summary"]["per_class"] == counted.to_dict()


def test_other_names_of_the_outputs_are_not_taken_from_an_older_run(folder, tmp_path, monkeypatch):
    """NightScan 1's file does not hold its class names, so they are no part of its hash."""
    torch.manual_seed(0)
    path, output = tmp_path / "resnet18.pth", tmp_path / "results.json"
    torch.save(resnet18(num_classes=2).state_dict(), path)
    for names in (("owl", "fox"), ("fox", "owl")):
        predictor = EfficientNetPredictor(path, device="cpu", class_names=names)
        asked = count_files(predictor, monkeypatch)
        predict_to_results(predictor, [folder / "0.wav"], run=identify(path, None), output=output, overwrite=False)
        assert asked == ["0.wav"]
