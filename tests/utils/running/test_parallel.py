import itertools
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import PROJECT
from tests.scripts.processes import wait_until
from tests.utils.running import crashing
from utils.running import parallel
from utils.running.parallel import (Done, Further, LocalProcesses, Lost, RemoteError, ThisProcess, default_workers,
                                    run_each)

SQUARES = {number: number * number for number in range(12)}
PARTS = [(number, part) for number in range(12) for part in range(crashing.N_PARTS)]
SILENCE_SECONDS = 5.0  # on a busy machine a process that is well needs two to begin

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(params=[method for method in ("spawn", "fork") if method in multiprocessing.get_all_start_methods()])
def start_method(request):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


def processes(n_workers):
    return LocalProcesses(n_workers, silence_seconds=SILENCE_SECONDS)


def children():
    return multiprocessing.active_children()


@pytest.mark.parametrize("n_workers", [1, 2])
def test_every_item_gets_its_result(start_method, n_workers):
    assert dict(run_each(LocalProcesses(n_workers), crashing.square, range(12))) == SQUARES
    assert children() == []


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize(("function", "hung", "reason"), [
    (crashing.square_or_crash, False, r"the process that read it died \(exit code 1\)"),
    (crashing.square_or_hang, True, "no block was read for 5 s"),
])
def test_a_crash_or_a_hang_costs_one_item(start_method, n_workers, function, hung, reason):
    results = dict(run_each(processes(n_workers), function, range(12)))
    lost = results.pop(crashing.BAD)
    assert isinstance(lost, Lost)
    assert lost.hung == hung
    assert re.search(reason, lost.reason)
    assert results == {number: square for number, square in SQUARES.items() if number != crashing.BAD}
    assert children() == []


def test_an_item_that_takes_long_but_reports_is_not_hung():
    assert dict(run_each(processes(1), crashing.slow_but_alive, [1])) == {1: 1}  # twice the silence allowed


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_parts_come_in_the_order_of_the_items(start_method, n_workers):
    streamed = list(LocalProcesses(n_workers).stream(crashing.parts, range(12), in_order=True))
    assert [part for _, part in streamed if not isinstance(part, Done)] == PARTS
    assert [item for item, part in streamed if isinstance(part, Done)] == list(range(12))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_a_crash_in_the_middle_of_an_item_keeps_order_and_the_others(n_workers):
    streamed = list(LocalProcesses(n_workers).stream(crashing.parts_or_crash, range(12), in_order=True))
    assert [part for _, part in streamed if isinstance(part, tuple)] == [
        part for part in PARTS if part[0] != crashing.BAD or part[1] == 0]
    assert [item for item, part in streamed if isinstance(part, Lost)] == [crashing.BAD]
    assert [item for item, part in streamed if isinstance(part, (Done, Lost))] == list(range(12))


def test_this_process_gives_what_other_processes_give():
    here = list(ThisProcess().stream(crashing.parts, range(3)))
    there = list(LocalProcesses(1).stream(crashing.parts, range(3), in_order=True))
    assert [(item, type(part)) for item, part in here] == [(item, type(part)) for item, part in there]
    assert dict(run_each(ThisProcess(), crashing.process_of, [1])) == {1: os.getpid()}


@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_are_other_processes(n_workers):
    found = {process for _, process in run_each(LocalProcesses(n_workers), crashing.process_of, range(8))}
    assert os.getpid() not in found
    assert len(found) == n_workers


@pytest.mark.parametrize("n_workers", [1, 2])
def test_an_error_of_the_function_is_raised_with_its_traceback(n_workers):
    with pytest.raises(ValueError, match="5 is not wanted") as caught:
        dict(run_each(LocalProcesses(n_workers), crashing.square_or_fail, range(12)))
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "square_or_fail" in str(caught.value.__cause__)
    assert children() == []


def test_an_error_that_cannot_be_sent_is_told_in_words():
    with pytest.raises(RuntimeError, match="UnpicklableError: cannot be sent"):
        dict(run_each(LocalProcesses(1), crashing.fail_unpicklably, [1]))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_nothing_to_do_gives_nothing(n_workers):
    assert list(run_each(LocalProcesses(n_workers), crashing.square, [])) == []


def test_items_are_taken_only_as_workers_need_them():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = run_each(LocalProcesses(2), crashing.square, items())
    next(results)
    results.close()
    assert len(taken) < 50
    assert children() == []


def test_a_slow_consumer_makes_the_worker_wait(tmp_path):
    made = tmp_path / "made"
    stream = LocalProcesses(1).stream(crashing.many_large_parts, [made], in_order=True)
    next(stream)
    wait_until(lambda: made.stat().st_size > 10)  # some parts are made ahead
    time.sleep(0.5)
    assert made.stat().st_size < 200  # the others are not even made
    assert sum(not isinstance(part, Done) for _, part in stream) == made.stat().st_size - 1 == 999


def test_default_workers_are_cores_of_this_process():
    assert 1 <= default_workers() <= os.cpu_count()


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("work", ["large_parts_or_crash", pytest.param("large_parts_or_stop", marks=pytest.mark.skipif(
    not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process"))])
def test_a_crash_does_not_cost_what_was_done_but_not_yet_sent(n_workers, work):
    """A pipe holds less than one part, so a worker dies with the parts of earlier items still in its hands."""
    stream = processes(n_workers).stream(getattr(crashing, work), range(12), in_order=True)
    streamed = [next(stream)]
    time.sleep(0.5)  # the workers go on meanwhile, up to the item that ends one of them
    streamed += stream
    assert [item for item, part in streamed if isinstance(part, Lost)] == [crashing.BAD]
    assert [item for item, part in streamed if isinstance(part, (Done, Lost))] == list(range(12))
    found = [(abs(part[0]), part[1]) for _, part in streamed if isinstance(part, tuple)]
    assert found == [part for part in PARTS if part[0] != crashing.BAD]  # each once, also those made a second time
    assert children() == []


def test_a_worker_that_never_begins_costs_its_items_and_does_not_go_on_for_ever(monkeypatch):
    monkeypatch.setattr(parallel, "_serve", crashing.exit_at_once)
    results = dict(run_each(processes(1), crashing.square, range(3)))
    assert all(isinstance(result, Lost) for result in results.values()) and len(results) == 3


# in a name space of its own, where the next process can be given a number without any other program minding
NUMBERED = ["unshare", "--map-root-user", "--pid", "--fork"]
SAME_NUMBER = """
import subprocess
from tests.utils.running import crashing
from utils.running import parallel

worker = parallel._start(crashing.parts, 5.0)
worker.process.kill()
worker.process.join()
with open("/proc/sys/kernel/ns_last_pid", "w") as last:
    last.write(str(worker.process.pid - 1))
with subprocess.Popen(["sleep", "10"], start_new_session=True) as other:
    assert other.pid == worker.process.pid
    parallel._end(worker)
    try:
        other.wait(0.2)
    except subprocess.TimeoutExpired:
        print("lives", end="")
    other.kill()
"""


@pytest.mark.skipif(not shutil.which("unshare") or subprocess.run(
    [*NUMBERED, "sh", "-c", "echo 1 > /proc/sys/kernel/ns_last_pid"], capture_output=True).returncode != 0,
    reason="needs a system that lets a process choose the number of the next one")
def test_whoever_gets_the_number_of_a_worker_that_died_is_left_alone():
    done = subprocess.run([*NUMBERED, sys.executable, "-c", SAME_NUMBER], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout == "lives", done.stderr


# work that hands out more work

def here_and_there():
    return pytest.mark.parametrize("executor", [ThisProcess(), LocalProcesses(1), LocalProcesses(3)],
                                   ids=["this process", "one process", "three processes"])


def given_parts(streamed):
    return [(item, part) for item, part in streamed if not isinstance(part, (Done, Lost))]


def ends(streamed):
    return [item for item, part in streamed if isinstance(part, (Done, Lost))]


def test_further_items_come_before_those_that_wait():
    """Depth first, so that a recording is done before the next is begun."""
    streamed = list(ThisProcess().stream(crashing.halves, [(0, 3), (3, 4)]))
    assert ends(streamed) == [(0, 3), (0, 1), (1, 3), (1, 2), (2, 3), (3, 4)]
    assert [part[1] for _, part in streamed if isinstance(part, tuple) and part[0] == "number"] == [0, 1, 2, 3]


@here_and_there()
@pytest.mark.parametrize("in_order", [True, False])
def test_further_items_are_done_once_each_however_deep(start_method, executor, in_order):
    streamed = list(executor.stream(crashing.halves, [(0, 8), (8, 13), (13, 14)], in_order=in_order))
    assert sorted(part[1] for _, part in streamed if isinstance(part, tuple) and part[0] == "number"
                  ) == list(range(14))
    assert len(ends(streamed)) == len(set(ends(streamed))) == 15 + 9 + 1  # of n numbers 2 n - 1 ranges
    assert not any(isinstance(part, (Further, Lost)) for _, part in streamed)
    for item in set(ends(streamed)):  # what an item gives comes in its order, and its end last
        of_item = [part for other, part in streamed if other == item]
        assert [part[0] for part in of_item[:-1]] in (["begun", "over"], ["begun", "number", "over"])
        assert isinstance(of_item[-1], Done)
    assert children() == []


@here_and_there()
def test_in_order_every_item_is_whole_and_comes_after_the_one_that_handed_it_out(executor):
    streamed = list(executor.stream(crashing.spans, range(20), in_order=True))
    items = [item for item, _ in itertools.groupby(item for item, _ in streamed)]
    assert items == ends(streamed)  # none is interrupted by another
    assert [item for item in items if isinstance(item, int)] == list(range(20))
    for number in range(20):
        parts = [place for place, item in enumerate(items) if item in [(number, part) for part in range(3)]]
        assert len(parts) == 3 and parts[0] > items.index(number)


def test_further_items_do_not_wait_for_all_that_still_wait():
    streamed = list(LocalProcesses(1).stream(crashing.spans, range(25), in_order=True))
    # those that the worker had already come first, and no others
    assert ends(streamed).index((0, 0)) <= parallel._ITEMS_AHEAD + 1


@pytest.mark.parametrize("in_order", [True, False])
def test_all_workers_help_with_what_one_item_hands_out(in_order):
    streamed = list(LocalProcesses(2).stream(crashing.spans, [7], in_order=in_order))
    assert len({part[1] for item, part in streamed if isinstance(item, tuple) and isinstance(part, tuple)}) == 2


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("in_order", [True, False])
def test_a_crash_after_handing_out_costs_the_item_and_not_what_it_handed_out(start_method, n_workers, in_order):
    streamed = list(processes(n_workers).stream(crashing.spans_or_crash, range(8), in_order=in_order))
    assert [item for item, part in streamed if isinstance(part, Lost)] == [crashing.BAD]
    assert sorted(map(str, ends(streamed))) == sorted(
        [str(number) for number in range(8)] + [str((number, part)) for number in range(8) for part in range(3)])
    firsts = [part for item, part in streamed if item == crashing.BAD]
    assert firsts[0] == (crashing.BAD, "first") and len(firsts) == 2  # its last part is lost with it
    assert children() == []


@pytest.mark.parametrize("n_workers", [1, 2])
def test_what_was_handed_out_before_a_crash_is_not_handed_out_again(n_workers):
    """The worker dies with parts of earlier items in its hands; those are made again, the items are not."""
    stream = processes(n_workers).stream(crashing.large_spans_or_crash, range(8), in_order=True)
    streamed = [next(stream)]
    for _ in range(200):  # the workers go on meanwhile, up to the item that ends one of them
        if len(children()) < n_workers:
            break
        time.sleep(0.05)
    streamed += stream
    assert [item for item, part in streamed if isinstance(part, Lost)] == [crashing.BAD]
    others = [number for number in range(8) if number != crashing.BAD]
    assert sorted(item[0] for item in ends(streamed) if isinstance(item, tuple)) == others
    assert [part[:2] for item, part in given_parts(streamed) if isinstance(item, int)] == [
        (number, part) for number in others for part in range(crashing.N_PARTS)]


@here_and_there()
def test_nothing_further_changes_nothing(executor):
    streamed = list(executor.stream(crashing.nothing_further, range(3), in_order=True))
    assert [(item, part if part == item else type(part)) for item, part in streamed] == [
        (number, what) for number in range(3) for what in (number, Done)]
