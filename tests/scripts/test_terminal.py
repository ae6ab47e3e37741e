"""What the commands do with a terminal or a log that cannot take what they have to say."""

import json
import shutil

import pytest

from tests.scripts.processes import command, run, start


@pytest.mark.parametrize("script, arguments", [
    ("preprocess_enhanced.py", ["--input_dir", ".", "--output_dir", "out"]),
    ("train_efficientnet.py", ["--train_csv", "a.csv", "--val_csv", "b.csv", "--model_dir", "out"]),
    ("predict_efficientnet.py", ["--model_path", "m.pth", "--input", "."]),
    ("evaluate_model.py", ["--test_csv", "a.csv", "--output_dir", "out", "--efficientnet_model", "m.pth"]),
])
def test_a_log_file_that_cannot_be_written_is_wrong_usage(tmp_path, script, arguments):
    (tmp_path / "file").touch()
    code, said = run(command(script, *arguments, "--log_file", "file/log.txt"), cwd=tmp_path)
    assert code == 2
    assert "--log_file file/log.txt cannot be written" in said and said.count("\n") == 1


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_names_of_any_script_reach_any_terminal(tiny_dataset, tiny_model, tmp_path, encoding):
    path = tmp_path / "夜明け_сова.wav"
    shutil.copy(next(tiny_dataset.audio_dir.rglob("*.wav")), path)
    process = start(command("predict_efficientnet.py", "--model_path", tiny_model.best, "--input", path),
                    env={"PYTHONIOENCODING": encoding})
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    record, = json.loads(printed)["predictions"]
    assert record["file_path"] == str(path)


def test_messages_with_such_names_reach_any_terminal(tiny_model, tmp_path):
    path = tmp_path / "夜明け.wav"
    path.write_bytes(b"no recording" * 20)
    code, said = run(command("predict_efficientnet.py", "--model_path", tiny_model.best, "--input", path, "--output",
                             tmp_path / "results.json", "--log_file", tmp_path / "log.txt"),
                     env={"PYTHONIOENCODING": "cp1252"})
    assert code == 1 and "Traceback" not in said and "\\u591c" in said
    assert "夜明け" in (tmp_path / "log.txt").read_text(encoding="utf-8")
