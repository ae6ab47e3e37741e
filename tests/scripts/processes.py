"""The real commands in processes of their own, to be looked at, stopped and killed from outside."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import PROJECT, TINY_CLASSES, TINY_RATE, tiny_sound, write_audio

LONG_SECONDS = 1800
PATIENCE_SECONDS = 90  # for something to happen that takes a second on an idle machine
TINY_FLAGS = ["--sample_rate", str(TINY_RATE), "--n_fft", "512", "--hop_length", "256", "--n_mels", "32",
              "--f_max", "4000", "--segment_duration", "1000", "--segment_selection", "all"]

# runs a script whose process (or a worker of it) is killed when it is about to write or remove a certain file
_KILLED = """
import multiprocessing, os, re, runpy, signal, sys
victim, event, pattern, left = sys.argv[1:4] + [int(sys.argv[4])]
main = os.getpid()
multiprocessing.set_start_method("fork")  # workers watch too

def watch(what, arguments):
    global left
    if what == event:
        name = os.path.basename(os.fsdecode(arguments[1 if event == "os.rename" else 0]))
        left -= re.fullmatch(pattern, name) is not None
        if left == 0:
            os.kill(main if victim == "command" else os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
sys.argv = sys.argv[5:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are looked up in /proc")


def make_recordings(folder: Path, rng: np.random.Generator) -> Path:
    """Write four short recordings of each class, and in the first class a long one that is read first."""
    for class_name in TINY_CLASSES[:2]:
        for number in range(4):
            write_audio(folder / class_name / f"r{number}.wav", tiny_sound(class_name, seconds=1, rng=rng))
    samples = np.tile(tiny_sound(TINY_CLASSES[0], seconds=10, rng=rng), LONG_SECONDS // 10)
    soundfile.write(folder / TINY_CLASSES[0] / "a_long.wav", samples, TINY_RATE)
    return folder


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(PROJECT / "scripts" / script), *map(str, arguments)]


def preprocess_command(audio_dir: Path, output_dir: Path, *more: object) -> list[str]:
    return command("preprocess_enhanced.py", "--input_dir", audio_dir, "--output_dir", output_dir, *TINY_FLAGS, *more)


def predict_command(model: Path, audio_dir: Path, output: Path, *more: object) -> list[str]:
    return command("predict_efficientnet.py", "--model_path", model, "--input", audio_dir, "--output", output,
                   "--device", "cpu", "--batch_size", 8, *more)


def killed(arguments: list[str], event: str, pattern: str, *, nth: int = 1, victim: str = "command") -> list[str]:
    """Return a command that is killed at an ``event``: ``os.rename`` (to a file of this name) or ``os.remove``.

    The name is a regular expression. Events are counted in each process by itself; the ``victim`` is the ``command``,
    or the ``worker`` that is about to do it.
    """
    python, *script = arguments
    return [python, "-c", _KILLED, victim, event, pattern, str(nth), *script]


def start(arguments: list[str], **options) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options.pop("env", {})}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
                            **options)


def heed_ctrl_c() -> None:
    """Let a command heed SIGINT, as ``preexec_fn``: a shell starts background jobs, these tests maybe, without it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Wait for a command; return its exit code and what it said on stderr."""
    _, said = process.communicate(timeout=2 * PATIENCE_SECONDS)
    return process.returncode, said


def run(arguments: list[str], **options) -> tuple[int, str]:
    return finish(start(arguments, **options))


def wait_until(condition):
    """Return what ``condition`` gives as soon as it gives something."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    return pytest.fail("waited in vain")


def wait_for(condition, process: subprocess.Popen):
    """Return what ``condition`` gives as soon as it gives something; fail if the command ends before."""
    def found():
        given = condition()
        if not given and process.poll() is not None:
            pytest.fail(f"the command ended too early: {process.communicate()[1]}")
        return given
    return wait_until(found)


def descendants(pid: int) -> set[int]:
    """Return the processes below a process."""
    found = set()
    with contextlib.suppress(OSError):  # it has just ended, or one of its threads
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found |= {child} | descendants(child)
    return found


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def reader_of(pid: int, name: str) -> int | None:
    """Return the worker of a command that has a file of this name open."""
    for child in descendants(pid):
        try:
            opened = [os.readlink(entry) for entry in Path(f"/proc/{child}/fd").iterdir()]
        except OSError:  # it has just ended, or an entry has just been closed
            continue
        if any(path.endswith(f"/{name}") for path in opened):
            return child
    return None


def kill_when_reading(process: subprocess.Popen, name: str, *, how: signal.Signals, begun) -> int:
    """Send a signal to the worker that reads a file, as soon as it has also ``begun`` to give something."""
    worker = wait_for(lambda: begun() and reader_of(process.pid, name), process)
    os.kill(worker, how)
    return worker
