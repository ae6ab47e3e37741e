import csv
import json
import os
from collections import Counter

import pytest
import torch
from torchvision.models import resnet18

from models.errors import AudioError, ConfigError
from tests.conftest import TINY_CLASSES, tiny_config, tiny_sound, write_audio
from tests.utils.prediction.conftest import (ODD_NAME, ODD_TEXT, any_bytes_are_names, broken_flac, predictor_of,
                                             without)
from utils.prediction.outputs import journal_path
from utils.prediction.predictor import EfficientNetPredictor
from utils.prediction.run import find_inputs, predict_to_files, predict_to_results
from utils.storage.checkpoints import read_checkpoint
from utils.storage.config_files import write_config
from utils.storage.files import file_sha256
from utils.storage.locks import locked
from utils.storage.names import text_to_name


@pytest.fixture
def folder(tmp_path, rng):
    for number, class_name in enumerate(TINY_CLASSES):
        write_audio(tmp_path / "audio" / f"{number}.wav", tiny_sound(class_name, seconds=1.5, rng=rng))
    (tmp_path / "audio" / "2_broken.wav").write_bytes(b"no recording at all" * 10)
    return tmp_path / "audio"


def predict(predictor, paths, output, *, config_path=None, formats=("json",), overwrite=False):
    return predict_to_files(predictor, paths, config_path=config_path, output=output, formats=formats,
                            overwrite=overwrite)[0]


def without_times(results):
    return list(map(without, results["predictions"])), results["errors"]


def interrupted(predictor, paths, output, *, n_files, **arguments):
    """Predict, and interrupt as Ctrl-C does when so many files are done."""
    usual = predictor.predict_files

    def stopping(paths):
        for number, predicted in enumerate(usual(paths)):
            if number == n_files:
                raise KeyboardInterrupt
            yield predicted

    predictor.predict_files = stopping
    with pytest.raises(KeyboardInterrupt, match="^$"):
        predict(predictor, paths, output, **arguments)


def count_files(predictor, monkeypatch):
    """Record which files are not taken from the journal."""
    usual, asked = predictor.predict_files, []

    def counting(paths):
        return usual(path for path in paths if asked.append(path.name) is None)

    monkeypatch.setattr(predictor, "predict_files", counting)
    return asked


# inputs

def test_files_folders_and_lists_are_found_once_and_in_order(folder):
    (folder / "notes.md").write_text("no audio", encoding="utf-8")
    (folder / "night.txt").write_text("# what to hear\n1.wav\n\n0.wav\n", encoding="utf-8")
    assert [path.name for path in find_inputs([folder / "3.wav", folder / "night.txt", folder])] == \
        ["3.wav", "1.wav", "0.wav", "2.wav", "2_broken.wav"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])  # PowerShell's redirection writes UTF-16
def test_a_list_may_be_written_in_any_unicode(folder, encoding):
    (folder / "0.wav").rename(folder / "grüße.wav")
    (folder / "night.txt").write_text("grüße.wav\n1.wav\n", encoding=encoding)
    assert [path.name for path in find_inputs([folder / "night.txt"])] == ["grüße.wav", "1.wav"]


def test_a_missing_input_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--input .*gone does not exist"):
        find_inputs([tmp_path / "gone"])


def test_a_folder_without_audio_is_an_error(tmp_path):
    (tmp_path / "notes.md").write_text("no audio", encoding="utf-8")
    with pytest.raises(AudioError, match="no recordings in .*files ending in"):
        find_inputs([tmp_path])


# results

def test_results_follow_the_contract(folder, tiny_model):
    results = predict_to_results(predictor_of(tiny_model.best, return_all_scores=True), find_inputs([folder]))
    assert list(results) == ["format_version", "created", "model", "settings", "summary", "predictions", "errors"]
    assert results["format_version"] == 1
    assert results["model"] == {"path": str(tiny_model.best), "sha256": file_sha256(tiny_model.best),
                                "model_name": "efficientnet-b0", "class_names": list(TINY_CLASSES),
                                "backend": "torch-cpu"}
    assert {name: results["settings"][name] for name in ("temperature", "class_biases")} == \
        read_checkpoint(tiny_model.best)["calibration"]
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
    results = predict_to_results(predictor_of(tiny_model.best, segment_mode=True), find_inputs([folder]))
    assert results["summary"]["segments"] == len(results["predictions"]) == 8
    assert results["summary"]["audio_seconds"] == 6.0
    assert results["settings"]["segment_mode"] is True


def test_the_summary_counts_what_the_records_say(folder, tiny_model):
    results = predict_to_results(predictor_of(tiny_model.best, use_thresholds=False), find_inputs([folder]))
    assert results["summary"]["per_class"] == Counter(record["predicted_class"] for record in results["predictions"])


def test_nothing_but_errors_are_results_too(folder, tiny_model):
    results = predict_to_results(predictor_of(tiny_model.best), [folder / "2_broken.wav"])
    assert results["predictions"] == [] and [error["status"] for error in results["errors"]] == ["corrupt"]
    assert results["summary"]["per_class"] == {} and results["summary"]["segments"] == 0


def test_what_is_written_is_what_is_returned_and_the_journal_goes(folder, tiny_model, tmp_path):
    output = tmp_path / "out" / "results.json"
    results, written = predict_to_files(predictor_of(tiny_model.best), find_inputs([folder]), config_path=None,
                                        output=output, formats=["json", "csv"], overwrite=False)
    assert written == [output, output.with_suffix(".csv")]

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(output.read_text(encoding="utf-8"), parse_constant=refuse) == results
    assert {path.name for path in output.parent.iterdir() if not path.name.startswith(".")} == {
        "results.json", "results.csv"}


def test_a_point_in_the_name_of_the_output_stays(folder, tiny_model, tmp_path):
    _, written = predict_to_files(predictor_of(tiny_model.best), [folder / "0.wav"], config_path=None,
                                  output=tmp_path / "survey_v1.2", formats=["json", "csv"], overwrite=False)
    assert written == [tmp_path / "survey_v1.2.json", tmp_path / "survey_v1.2.csv"]
    assert all(path.exists() for path in written)


def test_an_output_that_another_run_writes_is_refused(folder, tiny_model, tmp_path):
    with locked(tmp_path, output="results"), pytest.raises(ConfigError, match="is being written by process"):
        predict(predictor_of(tiny_model.best), [folder / "0.wav"], tmp_path / "results.json")


# bad files and odd names

def test_what_cannot_be_read_stands_beside_the_results(folder, tiny_model, caplog):
    """A list may name anything: raw samples without a header, a folder, a file that vanished since."""
    (folder / "x.raw").write_bytes(bytes(4000))
    (folder / "y.wav").mkdir()
    (folder / "night.txt").write_text("x.raw\n0.wav\ny.wav\ngone.wav\n1.wav\n", encoding="utf-8")
    results = predict_to_results(predictor_of(tiny_model.best), find_inputs([folder / "night.txt"]))
    assert [os.path.basename(record["file_path"]) for record in results["predictions"]] == ["0.wav", "1.wav"]
    assert [os.path.basename(error["file_path"]) for error in results["errors"]] == ["x.raw", "y.wav", "gone.wav"]
    assert [error["status"] for error in results["errors"][1:]] == ["unsupported", "corrupt"]  # x.raw: ffmpeg decides
    for error, reason in zip(results["errors"], ("not readable by libsndfile", "is no file", "cannot be opened"),
                             strict=True):
        assert reason in error["error"] and error["error"] in caplog.text


def test_a_broken_end_is_no_error(folder, tiny_model, rng, caplog):
    results = predict_to_results(predictor_of(tiny_model.best), [broken_flac(folder / "broken.flac", rng)])
    assert results["errors"] == [] and "breaks off after" in results["predictions"][0]["damage"]
    assert results["summary"]["audio_seconds"] == results["predictions"][0]["duration_seconds"]
    assert "breaks off after" in caplog.text


@any_bytes_are_names
def test_a_name_that_is_no_text_is_readable_and_leads_back_to_the_file(folder, tiny_model, tmp_path):
    (folder / "0.wav").rename(folder / ODD_NAME)
    (folder / "2_broken.wav").rename(folder / ("broken" + ODD_NAME))
    results, written = predict_to_files(predictor_of(tiny_model.best), find_inputs([folder]), config_path=None,
                                        output=tmp_path / "results.json", formats=["json", "csv"], overwrite=False)
    assert json.loads(written[0].read_text(encoding="utf-8")) == results
    assert [record["file_path"] for record in results["predictions"]][-1] == str(folder / ODD_TEXT)
    error, = results["errors"]
    assert error["file_path"] == str(folder / ("broken" + ODD_TEXT)) and ODD_TEXT in error["error"]
    with open(written[1], encoding="utf-8", newline="") as stream:
        listed = [row["file_path"] for row in csv.DictReader(stream)]
    assert listed[-2:] == [str(folder / ODD_TEXT), error["file_path"]]
    assert open(text_to_name(listed[-2]), "rb").read(4) == b"RIFF"


@any_bytes_are_names
def test_a_list_may_name_it_as_our_tables_do_or_in_its_own_bytes(folder):
    (folder / "0.wav").rename(folder / ODD_NAME)
    (folder / "escaped.txt").write_text(f"{ODD_TEXT}\n", encoding="utf-8")
    (folder / "bytes.txt").write_bytes(os.fsencode(ODD_NAME) + b"\n")
    assert find_inputs([folder / "escaped.txt"]) == find_inputs([folder / "bytes.txt"]) == [folder / ODD_NAME]


# going on

def test_an_interrupted_run_goes_on_to_the_same_results(folder, tiny_model, tmp_path, monkeypatch):
    paths, output = find_inputs([folder]), tmp_path / "results.json"
    straight = predict_to_results(predictor_of(tiny_model.best), paths)
    interrupted(predictor_of(tiny_model.best), paths, output, n_files=3)
    assert not output.exists()
    again = predictor_of(tiny_model.best)
    asked = count_files(again, monkeypatch)
    resumed = predict(again, paths, output)
    assert asked == [path.name for path in paths[3:]]
    assert without_times(resumed) == without_times(straight)
    assert resumed["summary"]["audio_seconds"] == straight["summary"]["audio_seconds"]
    assert not journal_path(output).exists()


@pytest.mark.parametrize("change", ["settings", "config", "model", "file", "overwrite"])
def test_what_changed_is_predicted_again(folder, tiny_model, tmp_path, monkeypatch, rng, change):
    paths, output, model_path = find_inputs([folder]), tmp_path / "results.json", tiny_model.best
    config_path = tmp_path / "config.json"
    write_config(config_path, tiny_config())
    interrupted(predictor_of(model_path), paths[:3], output, n_files=2, config_path=config_path)
    if change == "model":
        model_path = tmp_path / "other.pth"
        torch.save({**read_checkpoint(tiny_model.best), "metadata": {"trained": "again"}}, model_path)
    if change == "config":
        write_config(config_path, tiny_config(thresholds={"bird_song": 0.9}))
    if change == "file":
        write_audio(folder / "1.wav", tiny_sound("bird_song", seconds=1.2, rng=rng))
    predictor = predictor_of(model_path, **{"min_confidence": 0.9} if change == "settings" else {})
    asked = count_files(predictor, monkeypatch)
    predict(predictor, paths[:3], output, config_path=config_path, overwrite=change == "overwrite")
    assert asked == (["1.wav", "2.wav"] if change == "file" else ["0.wav", "1.wav", "2.wav"])


def test_an_interrupted_overwrite_goes_on_where_it_was(folder, tiny_model, tmp_path, monkeypatch):
    paths, output = [folder / f"{number}.wav" for number in range(4)], tmp_path / "results.json"
    interrupted(predictor_of(tiny_model.best), paths, output, n_files=3)
    interrupted(predictor_of(tiny_model.best), paths, output, n_files=1, overwrite=True)
    again = predictor_of(tiny_model.best)
    asked = count_files(again, monkeypatch)
    predict(again, paths, output)
    assert asked == ["1.wav", "2.wav", "3.wav"]


def test_what_could_not_be_used_is_tried_again(folder, tiny_model, tmp_path, monkeypatch):
    """The file is the same, but ffmpeg may have been installed since."""
    paths, output = [folder / "2_broken.wav", folder / "0.wav", folder / "1.wav"], tmp_path / "results.json"
    interrupted(predictor_of(tiny_model.best, batch_size=1), paths, output, n_files=2)
    again = predictor_of(tiny_model.best)
    asked = count_files(again, monkeypatch)
    assert [error["status"] for error in predict(again, paths, output)["errors"]] == ["corrupt"]
    assert asked == ["2_broken.wav", "1.wav"]


def test_a_file_that_came_back_is_predicted(folder, tiny_model, tmp_path, rng):
    paths, output = [folder / "late.wav", folder / "0.wav"], tmp_path / "results.json"
    interrupted(predictor_of(tiny_model.best), paths, output, n_files=1)
    write_audio(folder / "late.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    results = predict(predictor_of(tiny_model.best), paths, output)
    assert results["errors"] == [] and len(results["predictions"]) == 2


def test_names_that_differ_behind_a_point_have_journals_of_their_own(folder, tiny_model, tmp_path, monkeypatch):
    paths = [folder / "0.wav", folder / "1.wav"]
    interrupted(predictor_of(tiny_model.best), paths, tmp_path / "site.A", n_files=1)
    other = predictor_of(tiny_model.best)
    asked = count_files(other, monkeypatch)
    predict(other, paths, tmp_path / "site.B")
    assert asked == ["0.wav", "1.wav"]  # nothing is taken from the other's journal
    assert journal_path(tmp_path / "site.A").exists()  # nor is that removed
    assert (tmp_path / "site.B.json").exists() and not (tmp_path / "site.A.json").exists()


def test_other_names_of_the_outputs_are_not_taken_from_an_older_run(folder, tmp_path, monkeypatch):
    """NightScan 1's file does not hold its class names, so they are no part of its hash."""
    torch.manual_seed(0)
    path, output = tmp_path / "resnet18.pth", tmp_path / "results.json"
    paths = [folder / "0.wav", folder / "1.wav"]
    torch.save(resnet18(num_classes=2).state_dict(), path)
    interrupted(EfficientNetPredictor(path, device="cpu", class_names=("owl", "fox")), paths, output, n_files=1)
    predictor = EfficientNetPredictor(path, device="cpu", class_names=("fox", "owl"))
    asked = count_files(predictor, monkeypatch)
    predict(predictor, paths, output)
    assert asked == ["0.wav", "1.wav"]
