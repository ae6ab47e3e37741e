import contextlib
import os
import signal
import subprocess
import sys

import pytest

from models.errors import ConfigError
from tests.conftest import PROJECT
from tests.scripts.processes import is_running, needs_proc
from utils.storage import locks
from utils.storage.files import atomic_path
from utils.storage.locks import locked

HOLDER = """
import sys, time
from utils.storage.locks import locked
with locked(sys.argv[1], output=sys.argv[2]):
    print("holding", flush=True)
    time.sleep(1000)
"""


@contextlib.contextmanager
def another_process(folder, output=""):
    """Let another process hold a lock; killed in the end."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder, output], cwd=PROJECT,
                          stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"holding\n"
            yield holder
        finally:
            holder.kill()


@pytest.mark.parametrize("output", ["", "survey"])
def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path, output):
    folder = tmp_path / "new" / "folder"
    with another_process(folder, output) as holder:
        with pytest.raises(ConfigError, match=rf"{output or 'folder'} is being written by process {holder.pid} on "):
            with locked(folder, output=output):
                pytest.fail("two writers")
    with locked(folder, output=output):  # kill -9 freed it
        pass


def test_different_outputs_in_one_folder_do_not_wait_for_each_other(tmp_path):
    with another_process(tmp_path, "survey"), locked(tmp_path, output="survey2"), locked(tmp_path, output="other"):
        pass


def test_a_lock_is_free_again_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the run fails"), locked(tmp_path):
            raise RuntimeError("the run fails")
    assert not list(tmp_path.glob("*.owner"))


def test_the_same_process_is_refused_too(tmp_path):
    with locked(tmp_path):
        with pytest.raises(ConfigError, match=f"is being written by process {os.getpid()} on .* since 20"):
            with locked(tmp_path):
                pytest.fail("two writers")


def test_what_a_killed_run_left_is_removed_and_the_work_of_others_is_not(tmp_path):
    left = tmp_path / "owl" / ".a.npy.abcd1234.tmp"
    left.parent.mkdir()
    left.touch()
    with atomic_path(tmp_path / "survey2.json") as at_work:
        with locked(tmp_path, output="survey"):
            assert left.exists()
            assert at_work.exists()
    with locked(tmp_path):
        assert not left.exists()


KILLED = """
import os, signal, sys, time
from utils.storage.locks import locked
with locked(sys.argv[1]):
    worker = os.fork()
    if not worker:
        os.close(1)  # it is read to the end
        time.sleep(float(sys.argv[2]))
        os._exit(0)
    print(worker, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def worker_of_a_killed_run(folder, *, seconds):
    """Return the number of a process that a run has left behind, which holds the run's lock for so long."""
    run = subprocess.run([sys.executable, "-c", KILLED, folder, str(seconds)], cwd=PROJECT, stdout=subprocess.PIPE)
    assert run.returncode == -signal.SIGKILL
    return int(run.stdout)


@needs_proc
def test_the_workers_of_a_killed_run_are_waited_for(tmp_path):
    worker = worker_of_a_killed_run(tmp_path, seconds=2)
    with locked(tmp_path):
        assert not is_running(worker)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers inherit a lock by a fork")
def test_a_worker_that_does_not_end_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_LEAVING_SECONDS", 0.2)
    worker = worker_of_a_killed_run(tmp_path, seconds=1000)
    try:
        with pytest.raises(ConfigError, match=r"is being written by what is left of process \d+ on .*, which has end"):
            with locked(tmp_path):
                pytest.fail("two writers")
    finally:
        os.kill(worker, signal.SIGKILL)
