"""Ctrl-C, in the process that a person would stop: what it says is true, and nothing that was done is lost."""

import signal
import sys

import pandas as pd
import pytest

from tests.conftest import PROJECT
from tests.scripts.processes import finish, heed_ctrl_c, killed, run, start, wait_for

MORE_EPOCHS_THAN_ARE_WAITED_FOR = "1000"

pytestmark = pytest.mark.skipif(sys.platform == "win32",
                                reason="Windows sends Ctrl-C to a whole console, not to one process")


def command(dataset, model_dir, *flags):
    return [sys.executable, str(PROJECT / "scripts" / "train_efficientnet.py"), "--train_csv",
            str(dataset.output_dir / "train.csv"), "--val_csv", str(dataset.output_dir / "val.csv"), "--model_dir",
            str(model_dir), "--model_name", "efficientnet-b0", "--batch_size", "16", "--device", "cpu", "--epochs",
            MORE_EPOCHS_THAN_ARE_WAITED_FOR, "--patience", "0", *flags]


def interrupt_when(arguments, done):
    """Start a command, send SIGINT as soon as ``done`` is true, and return its exit code and what it said."""
    process = start(arguments, preexec_fn=heed_ctrl_c)
    try:
        wait_for(done, process)
        process.send_signal(signal.SIGINT)
        return finish(process)
    finally:
        process.kill()


def errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("ERROR")]


def test_an_interrupted_run_is_refused_without_resume_and_continued_with_it(tiny_dataset, tmp_path):
    history, last = tmp_path / "history.csv", tmp_path / "efficientnet_last.pth"
    code, stderr = interrupt_when(command(tiny_dataset, tmp_path), history.exists)
    assert code == 130
    assert len(errors(stderr)) == 1 and "Traceback" not in stderr
    assert "finished work is kept and the same command with --resume goes on from the last finished epoch" in stderr
    rows, state = pd.read_csv(history), last.read_bytes()
    n_done = len(rows)
    assert n_done >= 1

    code, stderr = run(command(tiny_dataset, tmp_path))
    assert code == 2
    line, = errors(stderr)
    assert f"{tmp_path} holds a run of {n_done} epochs (efficientnet_last.pth): pass --resume to continue it" in line
    pd.testing.assert_frame_equal(pd.read_csv(history), rows, check_exact=True)
    assert last.read_bytes() == state

    code, stderr = run(command(tiny_dataset, tmp_path, "--resume", "--epochs", str(n_done + 1)))
    assert code == 0, stderr
    continued = pd.read_csv(history)
    assert continued["epoch"].tolist() == list(range(1, n_done + 2))
    pd.testing.assert_frame_equal(continued.iloc[:n_done], rows, check_exact=True)


def test_a_run_that_was_killed_before_its_last_row_was_written_has_it_in_the_end(tiny_dataset, tmp_path):
    arguments = command(tiny_dataset, tmp_path, "--epochs", "2")
    code, stderr = run(killed(arguments, "os.rename", "history.csv", nth=2))
    assert code == -signal.SIGKILL and len(pd.read_csv(tmp_path / "history.csv")) == 1, stderr
    code, stderr = run([*arguments, "--resume"])
    assert code == 0, stderr
    assert pd.read_csv(tmp_path / "history.csv")["epoch"].tolist() == [1, 2]
