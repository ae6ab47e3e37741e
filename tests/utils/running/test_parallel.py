import multiprocessing
import os
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import pytest

from tests.utils.running import crashing
from utils.running import parallel
from utils.running.parallel import WorkerCrash, default_workers, map_unordered

SQUARES = {number: number * number for number in range(12)}


@pytest.fixture(params=[method for method in ("spawn", "fork") if method in multiprocessing.get_all_start_methods()])
def start_method(request):
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_every_item_gets_its_result(start_method):
    assert dict(map_unordered(crashing.square, range(12), n_workers=2)) == SQUARES


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_crash_costs_one_item(start_method):
    results = list(map_unordered(crashing.square_or_crash, range(12), n_workers=2))
    assert sorted(item for item, _ in results) == list(range(12))
    crashed = [item for item, result in results if isinstance(result, WorkerCrash)]
    assert crashed == [crashing.CRASHING]
    assert {item: result for item, result in results if item not in crashed} == {
        item: square for item, square in SQUARES.items() if item not in crashed}


def test_a_crash_as_the_last_of_many_is_survived():
    items = [*range(20, 40), crashing.CRASHING]
    results = dict(map_unordered(crashing.square_or_crash, items, n_workers=2))
    assert sorted(results) == sorted(items)
    assert isinstance(results[crashing.CRASHING], WorkerCrash)


def test_one_worker_stays_in_this_process_and_in_order():
    results = list(map_unordered(crashing.process_of, range(3), n_workers=1))
    assert results == [(item, os.getpid()) for item in range(3)]


def test_several_workers_are_other_processes():
    processes = {process for _, process in map_unordered(crashing.process_of, range(8), n_workers=2)}
    assert os.getpid() not in processes
    assert len(processes) == 2


@pytest.mark.parametrize("n_workers", [1, 2])
def test_an_error_of_the_function_is_not_swallowed(n_workers):
    with pytest.raises(ValueError, match="7 is not wanted"):
        dict(map_unordered(crashing.square_or_fail, range(12), n_workers=n_workers))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_nothing_to_do_gives_nothing(n_workers):
    assert list(map_unordered(crashing.square, [], n_workers=n_workers)) == []


def test_items_are_taken_only_as_workers_need_them():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number

    results = map_unordered(crashing.square, items(), n_workers=2)
    next(results)
    results.close()
    assert len(taken) < 50


def test_default_workers_are_cores_of_this_process():
    assert 1 <= default_workers() <= os.cpu_count()


class BreakingPool:
    """Runs items in this process; its first instance is broken when the third item is handed over."""

    n_made = 0

    def __init__(self, n_workers):
        BreakingPool.n_made += 1
        self.left = 2 if BreakingPool.n_made == 1 else None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None

    def submit(self, function, item):
        if self.left == 0:
            raise BrokenProcessPool("a worker died while waiting")
        if self.left:
            self.left -= 1
        future = Future()
        future.set_result(function(item))
        return future

    def shutdown(self, **options):
        pass


def test_an_item_is_not_lost_when_the_pool_breaks_before_taking_it(monkeypatch):
    monkeypatch.setattr(BreakingPool, "n_made", 0)
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", BreakingPool)
    assert dict(map_unordered(crashing.square, range(12), n_workers=2)) == SQUARES
    assert BreakingPool.n_made > 1
