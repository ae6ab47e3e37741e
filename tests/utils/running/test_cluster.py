"""A real Dask scheduler and workers, in processes of their own on this machine."""

import itertools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from models.errors import ConfigError
from scripts import preprocess_enhanced
from tests.conftest import PROJECT, TINY_CLASSES, tiny_sound, write_audio
from tests.scripts.processes import (finish, needs_proc, predict_command, preprocess_command, reader_of, run, start,
                                     wait_for)
from tests.utils.running import crashing
from utils.prediction.predictor import SCORE_TOLERANCE, EfficientNetPredictor
from utils.prediction.records import PredictionSettings
from utils.running import cluster as cluster_module
from utils.running.cluster import DaskCluster
from utils.running.cluster_worker import code_hash, perform, stamp
from utils.running.parallel import Done, Lost, ThisProcess, default_workers, run_each

SQUARES = {number: number * number for number in range(12)}
SILENCE_SECONDS = 5.0
START_SECONDS = 90  # for what takes three seconds on an idle machine
GOODBYE_SECONDS = 20
LONG, LONG_SECONDS = "a_long.wav", 600
TIMES = ("created", "wall_seconds", "processing_time")


class Processes:
    """A scheduler, in a folder that holds no NightScan, and workers."""

    def __init__(self, folder, **settings):
        pytest.importorskip("distributed", reason="Dask is an extra: pip install -r requirements-extra.txt")
        self.folder, self.workers = folder, []
        self.environment = {**os.environ, **settings}
        place = folder / "scheduler.json"
        self.scheduler = self._start(folder, "scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", place)
        self._wait_for(lambda: place.exists() and place.read_text().rstrip().endswith("}"))
        self.address = json.loads(place.read_text())["address"]

    def start_workers(self, n_workers, *, cwd=PROJECT, prefix=()):
        """Start workers and wait until they are there."""
        self.workers += [self._start(cwd, "worker", self.address, "--nworkers", 1, "--nthreads", 1, "--local-directory",
                                     self.folder / "scratch", prefix=prefix) for _ in range(n_workers)]
        import distributed
        with distributed.Client(self.address, set_as_default=False) as client:
            self._wait_for(lambda: len(client.nthreads()) == len(self.workers))

    def end_workers(self):
        for process in self.workers:
            process.terminate()
        for process in self.workers:
            process.wait(GOODBYE_SECONDS)
        self.workers = []

    def end(self):
        self.end_workers()
        self.scheduler.kill()
        self.scheduler.wait()

    def reader_of(self, name):
        """Return the worker that has a file of this name open."""
        return next(filter(None, (reader_of(process.pid, name) for process in self.workers)), None)

    def _start(self, cwd, *arguments, prefix=()):
        with open(self.folder / f"{arguments[0]}.log", "ab") as log:
            return subprocess.Popen([*prefix, sys.executable, "-m", "dask", *map(str, arguments), "--no-dashboard"],
                                    cwd=cwd, stdout=log, stderr=log, env=self.environment)

    def _wait_for(self, condition):
        deadline = time.monotonic() + START_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail("".join(path.read_text()[-2000:] for path in self.folder.glob("*.log")))
            time.sleep(0.05)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    processes = Processes(tmp_path_factory.mktemp("cluster"))
    processes.start_workers(2)
    yield processes
    processes.end()


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """A scheduler on which each test that needs a worker has one of its own; a task may end none."""
    processes = Processes(tmp_path_factory.mktemp("scheduler"), DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")
    yield processes
    processes.end()


@pytest.fixture
def its_workers(scheduler):
    yield scheduler
    scheduler.end_workers()


@pytest.fixture(scope="module")
def executor(two_workers):
    with DaskCluster(two_workers.address, silence_seconds=SILENCE_SECONDS) as executor:
        yield executor


# the executor

@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize(("work", "items"), [
    (crashing.parts, [*range(12)]), (crashing.halves, [(0, 8), (8, 13), (13, 14)]),
    (crashing.nothing_further, [*range(3)])])
def test_every_item_gives_what_it_gives_in_this_process(executor, work, items, in_order):
    there, here = ([(item, None if isinstance(part, Done) else part) for item, part in found] for found in (
        executor.stream(work, items, in_order=in_order), ThisProcess().stream(work, items)))
    assert Counter(there) == Counter(here)
    for item, parts in itertools.groupby(there, key=lambda pair: pair[0]):  # each in one piece
        assert [*parts] == [pair for pair in here if pair[0] == item]
    if in_order and work is crashing.parts:
        assert there == here


def test_the_work_is_shared_out(executor):
    assert executor.n_workers == 2
    found = {process for _, process in run_each(executor, crashing.process_of, range(20))}
    assert len(found) == 2 and os.getpid() not in found


def test_an_item_that_ends_its_workers_is_lost_and_no_other(its_workers):
    """Dask suspects whatever waits in a worker that dies; here it gives all of it up at once."""
    its_workers.start_workers(1)
    with DaskCluster(its_workers.address) as executor:
        check_lost(executor, crashing.square_or_crash, Lost(False, "each worker that read it died"))


def test_an_item_that_hangs_is_lost_and_no_other(executor):
    check_lost(executor, crashing.square_or_hang, Lost(True, "no block was read for 5 s"))


def check_lost(executor, function, lost):
    results = [*run_each(executor, function, range(12))]
    assert len(results) == 12
    assert dict(results) == {**SQUARES, crashing.BAD: lost}


def test_in_order_an_item_that_ends_its_workers_has_its_place(executor):
    streamed = [*executor.stream(crashing.parts_or_crash, range(8), in_order=True)]
    assert [item for item, _ in itertools.groupby(streamed, key=lambda pair: pair[0])] == [*range(8)]
    assert {item for item, part in streamed if isinstance(part, Lost)} == {crashing.BAD}


def test_what_hangs_keeps_the_parts_that_it_gave():
    """No parts are taken back that a worker has: as from ``LocalProcesses``."""
    payload = pickle.dumps((crashing.part_and_hang, 1, 0.2))
    part, lost = perform((code_hash(), None, ()), payload)
    assert part == 1 and lost == Lost.silent(0.2)


def test_an_item_that_takes_long_but_reports_is_not_hung(executor):
    assert dict(run_each(executor, crashing.slow_but_alive, [1])) == {1: 1}  # twice the silence allowed


@pytest.mark.parametrize(("function", "error", "text"), [
    (crashing.square_or_fail, ValueError, f"{crashing.BAD} is not wanted"),
    (crashing.fail_unpicklably, Exception, "cannot be sent")])
def test_an_error_of_the_work_is_raised_here(executor, function, error, text):
    with pytest.raises(error, match=text):
        dict(run_each(executor, function, range(12)))


def test_items_are_taken_as_they_are_needed(executor):
    taken = []
    results = run_each(executor, crashing.square, (taken.append(number) or number for number in itertools.count()))
    for _ in range(20):
        next(results)
    results.close()
    assert len(taken) <= 20 + cluster_module._ITEMS_AHEAD * 2


# the commands: everything as on this machine, whatever happens to a worker

@pytest.fixture(scope="module")
def audio_dir(tmp_path_factory):
    """Short recordings of two classes, a broken one, and one that is long enough for a worker to be killed in it."""
    folder, rng = tmp_path_factory.mktemp("recordings") / "audio", np.random.default_rng(5)
    for class_name, number in itertools.product(TINY_CLASSES[:2], range(4)):
        write_audio(folder / class_name / f"r{number}.wav", tiny_sound(class_name, seconds=1.5, rng=rng))
    (folder / TINY_CLASSES[1] / "broken.wav").write_bytes(b"no sound" * 100)
    write_audio(folder / TINY_CLASSES[0] / LONG,
                np.tile(tiny_sound(TINY_CLASSES[0], seconds=10, rng=rng), LONG_SECONDS // 10))
    return folder


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    return shutil.copy(tiny_model.best, tmp_path_factory.mktemp("model") / "model.pth")


def check_done(process):
    code, said = finish(process)
    assert code == 0, said
    return said


def kill_reader(two_workers, command):
    """Kill the worker that reads the long recording, in the middle of it."""
    worker = wait_for(lambda: two_workers.reader_of(LONG), command)
    os.kill(worker, signal.SIGKILL)


def outputs(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and not path.name.endswith((".nightscan.lock", "journal.jsonl", ".scores.jsonl"))}


def journalled(path):
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return Counter((line["kind"], line["name"]) for line in lines if "kind" in line)


@pytest.fixture(scope="module")
def prepared(audio_dir):
    folder = audio_dir.parent / "here"
    check_done(start(preprocess_command(audio_dir, folder)))
    return folder


@needs_proc
@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "a worker is killed"])
def test_preparing_on_a_cluster_gives_the_same_files(audio_dir, prepared, two_workers, kill):
    folder = audio_dir.parent / f"there_{kill}"
    # relative paths: the workers' working directory is another one
    process = start(preprocess_command(audio_dir.name, folder.name, "--cluster", two_workers.address),
                    cwd=audio_dir.parent)
    if kill:
        kill_reader(two_workers, process)
    check_done(process)
    assert outputs(folder) == outputs(prepared)
    counts = journalled(folder / "journal.jsonl")
    assert counts == journalled(prepared / "journal.jsonl")
    assert {name for kind, name in counts if kind == "recording"} == {
        path.relative_to(audio_dir).as_posix() for path in audio_dir.rglob("*.wav")}
    assert set(counts.values()) == {1}


def predicting(audio_dir, model, folder, *more):
    return start(predict_command(model, audio_dir, folder / "r.json", "--segment_mode", "--return_all_scores",
                                 "--formats", "json,raven,birdnet", "--embeddings", folder / "e.npz", "--clips_dir",
                                 folder / "clips", *more))


def without_times(folder):
    found = outputs(folder)
    results = json.loads(found.pop("r.json"), object_hook=lambda values: {
        name: value for name, value in values.items() if name not in TIMES})
    return results, found


@pytest.fixture(scope="module")
def predicted(audio_dir, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    # with one thread each, as on a cluster
    check_done(predicting(audio_dir, model, folder, "--workers", default_workers()))
    return folder


@needs_proc
@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "a worker is killed"])
def test_predicting_on_a_cluster_gives_the_same_files(audio_dir, model, predicted, two_workers, tmp_path, kill):
    process = predicting(audio_dir, model, tmp_path, "--cluster", two_workers.address)
    if kill:
        kill_reader(two_workers, process)
    check_done(process)
    there, here = without_times(tmp_path), without_times(predicted)
    assert there == here and len(here[0]["predictions"]) > LONG_SECONDS
    counts = journalled(tmp_path / "r.scores.jsonl")
    assert counts == journalled(predicted / "r.scores.jsonl") and set(counts.values()) == {1}


def test_a_network_in_pytorch_is_the_workers_own(two_workers, model, audio_dir):
    settings = PredictionSettings(return_all_scores=True)
    path = audio_dir / TINY_CLASSES[0] / "r0.wav"
    with DaskCluster(two_workers.address, recordings=[path], files=[model]) as executor:
        there, here = (EfficientNetPredictor(model, device="cpu", backend="torch", settings=settings, executor=where)
                       for where in (executor, ThisProcess()))
        record, = there.predict_batch([path])
        assert there.backend_name == "torch-cpu"
        assert "backend" not in vars(there)  # nothing was loaded here
    assert record["all_scores"] == pytest.approx(here.predict_single(path)["all_scores"], abs=SCORE_TOLERANCE)


def test_nothing_is_left_in_the_folder_that_workers_write_to(two_workers, tmp_path):
    with DaskCluster(two_workers.address, folder=tmp_path / "new"):
        assert len([*(tmp_path / "new").iterdir()]) == 1
    assert [*(tmp_path / "new").iterdir()] == []


# what is told before the first task

def check_refused(text, address, **arguments):
    with pytest.raises(ConfigError, match=text):
        DaskCluster(address, **arguments)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "ftp://127.0.0.1:9", ""])
def test_a_scheduler_that_does_not_answer_is_told(two_workers, address):
    check_refused(f"--cluster {address}: no Dask scheduler answers there", address)


def test_a_command_says_in_one_line_that_there_is_no_scheduler(audio_dir, tmp_path, two_workers):
    code, said = run(preprocess_command(audio_dir, tmp_path / "out", "--cluster", "tcp://127.0.0.1:9"))
    assert code == 2 and len(said.splitlines()) == 1 and "no Dask scheduler answers" in said


def test_a_cluster_without_workers_is_told_after_a_while(scheduler, monkeypatch):
    monkeypatch.setattr(cluster_module, "WORKER_SECONDS", 0.3)
    check_refused(f"no workers after 0.3 s: start one in NightScan's folder with python -m dask worker"
                  f" {scheduler.address}", scheduler.address)


def test_a_worker_that_was_started_elsewhere_is_told(its_workers, tmp_path):
    its_workers.start_workers(1, cwd=tmp_path)
    check_refused(r"the worker tcp://\S+ cannot import NightScan \(No module named 'utils'\)", its_workers.address)


HIDDEN = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"']


@pytest.mark.skipif(not shutil.which("unshare") or subprocess.run(
    [*HIDDEN, "/mnt", "true"], capture_output=True).returncode != 0,
    reason="needs a system that lets a process mount something else over a folder")
def test_a_worker_with_another_folder_under_the_same_path_is_told(its_workers, tmp_path, rng):
    """As where the storage is not mounted: in this worker's view of the file system the folder is another one."""
    recording = write_audio(tmp_path / "audio" / "a.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    its_workers.start_workers(1, prefix=[*HIDDEN, str(tmp_path)])
    check_refused(f"does not see {recording}, or something else there", its_workers.address, recordings=[recording])
    check_refused(f"does not see {tmp_path / 'out'}, or", its_workers.address, folder=tmp_path / "out")
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_recording_that_nobody_can_read_is_no_fault_of_a_worker(two_workers, tmp_path):
    with DaskCluster(two_workers.address, recordings=[tmp_path / "missing.wav"]) as executor:
        assert dict(run_each(executor, crashing.square, [3])) == {3: 9}


def test_other_software_on_a_worker_is_told(two_workers, monkeypatch):
    from distributed import versions
    of_this_process = versions.get_versions

    def others(packages=None):
        found = of_this_process(packages)
        return {**found, "packages": {**found["packages"], "numpy": "1.0"}}
    monkeypatch.setattr(versions, "get_versions", others)
    check_refused(r"the worker tcp://\S+ has numpy 2\S+, this machine 1.0", two_workers.address)


def test_other_code_on_a_worker_is_told():
    with pytest.raises(ConfigError, match="has other NightScan code"):
        perform(("0" * 64, None, ()), None)


def test_a_file_of_the_same_size_with_another_end_is_another_file(tmp_path):
    model = tmp_path / "model.pth"
    model.write_bytes(bytes(1 << 20))
    before = stamp(model)
    model.write_bytes(bytes((1 << 20) - 1) + b"\1")
    assert perform((code_hash(), None, (("the model", str(model), stamp(model)),)), None) == []
    with pytest.raises(ConfigError, match="does not see the model, or something else there"):
        perform((code_hash(), None, (("the model", str(model), before),)), None)


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    check_refused(r"pip install -r requirements-extra\.txt", "tcp://127.0.0.1:9")


def test_workers_of_this_machine_and_a_cluster_exclude_each_other(capsys):
    with pytest.raises(SystemExit, match="2"):
        preprocess_enhanced.main(["--input_dir", "a", "--output_dir", "b", "--workers", "2", "--cluster", "tcp://h:1"])
    assert "--cluster: not allowed with argument --workers" in capsys.readouterr().err
