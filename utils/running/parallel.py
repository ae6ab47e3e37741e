"""Run one function over many files in worker processes, one crash costing one file."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_QUEUED_PER_WORKER = 4  # enough to keep workers busy, few enough that memory does not grow with the file list


class WorkerCrash:
    """Stands for the result of an item whose worker process died (a decoder that crashed, say)."""


def default_workers() -> int:
    """Return the number of CPU cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def map_unordered(function: Callable[[Any], Any], items: Iterable[Any], *, n_workers: int) -> Iterator[tuple]:
    """Yield ``(item, function(item))`` as results arrive.

    Parameters
    ----------
    function : callable
        Importable by name, so that it reaches workers under spawn as well as fork.
    items : iterable
        Picklable arguments; taken lazily.
    n_workers : int
        Processes; 1 runs in this process.

    Yields
    ------
    item, result : tuple
        ``result`` is a ``WorkerCrash`` where the worker died on that item, alone as well as in company.
    """
    if n_workers <= 1:
        for item in items:
            yield item, function(item)
        return
    remaining = iter(items)
    suspects: list = []
    while True:
        suspects, finished = yield from _run_pool(function, remaining, n_workers)
        for item in suspects:
            yield item, _run_alone(function, item)
        if finished:
            return


def _run_pool(function: Callable, items: Iterator, n_workers: int):
    """Yield results until the items or the pool are done; return the items in flight and whether all is done."""
    pool = ProcessPoolExecutor(n_workers)
    in_flight: dict[Future, Any] = {}
    try:
        for item in itertools.islice(items, n_workers * _QUEUED_PER_WORKER):
            in_flight[_submit(pool, function, item, in_flight)] = item
        while in_flight:
            done, _ = wait(in_flight, return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                yield in_flight.pop(future), result
                for item in itertools.islice(items, 1):
                    in_flight[_submit(pool, function, item, in_flight)] = item
        return [], True
    except BrokenProcessPool:
        return list(in_flight.values()), False
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, function: Callable, item: Any, in_flight: dict) -> Future:
    try:
        return pool.submit(function, item)
    except BrokenProcessPool:
        in_flight[Future()] = item  # it was taken from the iterator, so it must be run with the suspects
        raise


def _run_alone(function: Callable, item: Any) -> Any:
    with ProcessPoolExecutor(1) as pool:
        try:
            return pool.submit(function, item).result()
        except BrokenProcessPool:
            return WorkerCrash()
