"""What the commands promise a person: help at once, one-line errors, exit codes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile as sf

from scripts import evaluate_model, make_demo_data, predict_efficientnet, preprocess_enhanced, train_efficientnet
from tests.conftest import PROJECT, TINY_CLASSES
from utils.prediction.outputs import FORMATS
from utils.storage.checkpoints import load_model

COMMANDS = {"preprocess_enhanced": preprocess_enhanced, "train_efficientnet": train_efficientnet,
            "predict_efficientnet": predict_efficientnet, "evaluate_model": evaluate_model,
            "make_demo_data": make_demo_data}
HEAVY = ("torch", "numpy", "pandas", "librosa", "sklearn", "matplotlib")


def run_script(name: str, *arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(PROJECT / "scripts" / f"{name}.py"), *map(str, arguments)],
                          capture_output=True, text=True, cwd=cwd)


def write_tone(path, seconds=1.0, rate=8000, frequency=1000.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, 0.3 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate), rate)


def check(module, arguments, capsys, *, code: int, words: tuple[str, ...]) -> None:
    """Run a command in this process; its error must be one line holding all words."""
    try:
        got = module.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        got = stop.code
    stderr = capsys.readouterr().err
    errors = [line for line in stderr.splitlines() if "error:" in line.lower()]
    assert got == code, stderr
    assert len(errors) == 1, stderr
    assert "Traceback" not in stderr
    for word in words:
        assert word in errors[0], errors[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loads_nothing_heavy_and_shows_defaults(name):
    probe = (f"import sys; sys.argv = ['{name}', '--help']; sys.path.insert(0, {str(PROJECT)!r})\n"
             f"from scripts import {name}\n"
             f"try:\n    {name}.main()\nexcept SystemExit as stop:\n    code = stop.code\n"
             f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\nassert not loaded, loaded\nassert code == 0")
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "default:" in done.stdout
    for flag in ("--verbose", "--quiet", "--log_file", "--version"):
        assert flag in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_runs_as_a_module_and_tells_its_version(name):
    done = subprocess.run([sys.executable, "-m", f"scripts.{name}", "--version"], capture_output=True, text=True,
                          cwd=PROJECT)
    assert done.returncode == 0
    assert done.stdout.startswith("NightScan Audio ")


def test_predictor_is_importable_from_the_script_and_rows_of_other_names_are_not():
    from utils.prediction.predictor import EfficientNetPredictor

    assert predict_efficientnet.EfficientNetPredictor is EfficientNetPredictor
    with pytest.raises(AttributeError, match="has no attribute 'Predictor'"):
        predict_efficientnet.Predictor


def test_unknown_flag(capsys):
    check(preprocess_enhanced, ["--input_dir", "a", "--output_dir", "b", "--frobnicate"], capsys, code=2,
          words=("--frobnicate", "--help"))


def test_missing_input_folder(tmp_path, capsys):
    check(preprocess_enhanced, ["--input_dir", tmp_path / "none", "--output_dir", tmp_path / "out"], capsys, code=2,
          words=("--input_dir", "none", "not a folder"))


def test_empty_folder(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    check(preprocess_enhanced, ["--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out"], capsys, code=1,
          words=("holds no class folders", "--labels_csv"))


def test_one_class_only(tmp_path, capsys):
    for index in range(3):
        write_tone(tmp_path / "in" / "frog" / f"{index}.wav", frequency=500 + 100 * index)
    check(preprocess_enhanced, ["--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out", "--workers", 1],
          capsys, code=2, words=("only one class", "frog", "at least two"))


def test_only_corrupt_files(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "x.wav").write_bytes(b"this is no audio" * 10)
    code = preprocess_enhanced.main(["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"),
                                     "--workers", "1"])
    assert code == 1
    assert "2 corrupt" in capsys.readouterr().err
    assert (tmp_path / "out" / "files.csv").read_text(encoding="utf-8").count(",corrupt,") == 2


def test_strict_counts_what_failed_and_not_what_was_there_twice(tmp_path, capsys):
    for name in ("frog", "owl"):
        for index in range(3):
            write_tone(tmp_path / "in" / name / f"{index}.wav", frequency=500 + 100 * index + len(name))
    shutil.copy(tmp_path / "in" / "owl" / "0.wav", tmp_path / "in" / "owl" / "again.wav")
    arguments = ["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "out"), "--workers", "1",
                 "--segment_duration", "1000", "--strict"]
    assert preprocess_enhanced.main(arguments) == 0
    assert "1 could not be used (1 duplicate)" in capsys.readouterr().out
    (tmp_path / "in" / "owl" / "empty.wav").write_bytes(b"")
    assert preprocess_enhanced.main(arguments) == 1
    assert "2 could not be used (1 duplicate, 1 empty)" in capsys.readouterr().out


@pytest.mark.parametrize(("flags", "words"), [
    (["--train_ratio", "0.9"], ("--train_ratio", "sum to 1", "0.9")),
    (["--segment_overlap", "8000"], ("--segment_overlap", "below", "8000")),
    (["--sample_rate", "16000"], ("f_max", "8000 Hz", "--f_max")),
    (["--n_mels", "4096"], ("n_mels", "1..1025", "4096")),
    (["--label_column", "x"], ("--label_column", "--labels_csv")),
    (["--drop_unmapped"], ("--label_map",)),
    (["--max_balance_ratio", "0.5"], ("--max_balance_ratio", "0.5")),
    (["--group_by", "column"], ("--group_by column", "--labels_csv")),
])
def test_preprocess_flags_that_do_not_fit(tmp_path, capsys, flags, words):
    write_tone(tmp_path / "in" / "a" / "x.wav")
    check(preprocess_enhanced, ["--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out", *flags], capsys,
          code=2, words=words)


def test_dashed_flags_are_accepted(tmp_path, capsys):
    write_tone(tmp_path / "in" / "a" / "x.wav")
    check(preprocess_enhanced, ["--input-dir", tmp_path / "in", "--output-dir=" + str(tmp_path / "out"),
                                "--segment-overlap", 9000], capsys, code=2, words=("--segment_overlap",))


@pytest.mark.parametrize(("flags", "words"), [
    (["--config", "efficientnet_b9"], ("unknown config", "efficientnet_b9", "efficientnet_b0_fast")),
    (["--learning_rate", "-1", "--batch_size", "0"], ("learning_rate", "batch_size")),
    (["--model_name", "vgg"], ("--model_name", "vgg", "resnet18")),
    (["--device", "cuda:99"], ("--device", "cuda:99")),
    (["--k_folds", "1"], ("--k_folds",)),
    (["--resume", "--resume_from", "x.pth"], ("--resume_from",)),
])
def test_train_flags_that_do_not_fit(tmp_path, capsys, flags, words):
    check(train_efficientnet, ["--train_csv", tmp_path / "t.csv", "--val_csv", tmp_path / "v.csv", "--model_dir",
                               tmp_path / "m", *flags], capsys, code=2, words=words)


def test_config_file_with_an_unknown_key(tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({"learnig_rate": 1e-3}), encoding="utf-8")
    check(train_efficientnet, ["--train_csv", "t.csv", "--val_csv", "v.csv", "--model_dir", "m", "--config",
                               tmp_path / "c.json"], capsys, code=2, words=("learnig_rate", "learning_rate", "c.json"))


def test_missing_manifest(tmp_path, capsys):
    check(train_efficientnet, ["--train_csv", tmp_path / "t.csv", "--val_csv", tmp_path / "v.csv", "--model_dir",
                               tmp_path / "m"], capsys, code=2, words=("t.csv", "does not exist"))


def test_manifest_that_points_outside(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("path,label\n../secret.npy,0\n", encoding="utf-8")
    check(train_efficientnet, ["--train_csv", tmp_path / "t.csv", "--val_csv", tmp_path / "t.csv", "--model_dir",
                               tmp_path / "m"], capsys, code=2, words=("../secret.npy", "outside", "line 2"))


def test_cross_validation_is_refused_under_torchrun(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check(train_efficientnet, ["--train_csv", "t.csv", "--val_csv", "v.csv", "--model_dir", "m",
                               "--cross_validation"], capsys, code=2, words=("--cross_validation", "torchrun"))


def test_torchrun_trains_one_model_on_two_processes(tmp_path, tiny_dataset):
    data = tiny_dataset.output_dir
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
         str(PROJECT / "scripts" / "train_efficientnet.py"), "--train_csv", str(data / "train.csv"), "--val_csv",
         str(data / "val.csv"), "--model_dir", str(tmp_path), "--model_name", "efficientnet-b0", "--epochs", "2",
         "--batch_size", "4", "--device", "cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("validation: accuracy") == 1  # the main process alone tells and writes
    assert len((tmp_path / "history.csv").read_text(encoding="utf-8").splitlines()) == 1 + 2
    assert load_model(tmp_path / "efficientnet_best.pth").description.classes.names == TINY_CLASSES


def test_predict_without_a_model(tmp_path, capsys):
    write_tone(tmp_path / "x.wav")
    check(predict_efficientnet, ["--model_path", tmp_path / "m.pth", "--input", tmp_path / "x.wav"], capsys, code=2,
          words=("m.pth", "does not exist"))


def test_predict_offers_every_format_there_is():
    assert predict_efficientnet._FORMATS == tuple(FORMATS)


def test_predict_refuses_csv_on_stdout_and_unknown_formats(tmp_path, capsys):
    common = ["--model_path", "m.pth", "--input", "x.wav", "--formats"]
    check(predict_efficientnet, [*common, "csv"], capsys, code=2, words=("only JSON goes to stdout", "--output"))
    check(predict_efficientnet, [*common, "pdf"], capsys, code=2, words=("pdf", "json, csv"))
    check(predict_efficientnet, [*common, "json", "--embeddings", "e.npz"], capsys, code=2, words=("--embeddings",))


def test_evaluate_needs_a_model(tmp_path, capsys):
    check(evaluate_model, ["--test_csv", "t.csv", "--output_dir", tmp_path], capsys, code=2,
          words=("--efficientnet_model", "--resnet18_model"))


def test_predict_in_its_own_process(tmp_path, tiny_model):
    """JSON alone on stdout, failures beside results, exit code 1 with --strict and for nothing usable."""
    write_tone(tmp_path / "in" / "good.WAV", seconds=2.5)
    (tmp_path / "in" / "bad.wav").write_bytes(b"no audio at all, only text")
    done = run_script("predict_efficientnet", "--model_path", tiny_model.best, "--input", "in", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert [record["file_path"] for record in results["predictions"]] == [os.path.join("in", "good.WAV")]
    assert [record["status"] for record in results["errors"]] == ["corrupt"]
    model = ("--model_path", tiny_model.best)
    strict = run_script("predict_efficientnet", *model, "--input", "in", "--strict", cwd=tmp_path)
    assert strict.returncode == 1
    nothing = run_script("predict_efficientnet", *model, "--input", "in/bad.wav", cwd=tmp_path)
    assert nothing.returncode == 1
    assert "Traceback" not in nothing.stderr


def test_predict_an_empty_folder(tmp_path, tiny_model, capsys):
    (tmp_path / "in").mkdir()
    check(predict_efficientnet, ["--model_path", tiny_model.best, "--input", tmp_path / "in"], capsys, code=1,
          words=("no recordings", ".wav"))


def test_interrupt_leaves_with_130(tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    write_tone(tmp_path / "in" / "a" / "x.wav")
    monkeypatch.setattr("utils.preparation.run.preprocess", interrupt)
    assert preprocess_enhanced.main(["--input_dir", str(tmp_path / "in"), "--output_dir", str(tmp_path / "o")]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(tmp_path, capsys):
    write_tone(tmp_path / "in" / "a" / "x.wav")
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    check(preprocess_enhanced, ["--input_dir", tmp_path / "in", "--output_dir", tmp_path / "file" / "out"], capsys,
          code=2, words=("file", "writable"))


def test_log_file_gets_the_messages(tmp_path, capsys):
    log = tmp_path / "logs" / "run.log"
    preprocess_enhanced.main(["--input_dir", str(tmp_path / "none"), "--output_dir", "o", "--log_file", str(log)])
    assert "not a folder" in log.read_text(encoding="utf-8")
