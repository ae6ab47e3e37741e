import contextlib
import os
import subprocess
import sys

import pytest

from models.errors import ConfigError
from tests.conftest import PROJECT
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
