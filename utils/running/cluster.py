"""Work on many items on a Dask cluster, whose workers see the same files under the same paths.

Every item is a task. Its parts come back when it is done, so there are all of them or none: a worker that dies costs
the time of its tasks, which Dask has done again elsewhere. An item is lost only if it ends whoever works on it alone.
"""

import contextlib
import functools
import itertools
import logging
import os
import pickle
import queue
import secrets
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from models.errors import ConfigError
from utils.running.cluster_worker import Expected, code_hash, stamp
from utils.running.parallel import SILENCE_SECONDS, Further, Item, Lost, Work

logger = logging.getLogger(__name__)

WORKER_SECONDS = 30.0  # until there must be a first worker
_CONNECT_SECONDS = 5.0
_COUNT_EVERY_SECONDS = 5.0  # workers may come and go
_ITEMS_AHEAD = 4  # of each worker: its next one must be there while the last result is still on its way
_N_WITNESSES = 8  # files that every worker must see as they are here
_OF_SCHEDULER = ("distributed", "cloudpickle")
_OF_WORKERS = (*_OF_SCHEDULER, "numpy", "scipy", "soundfile", "soxr", "onnxruntime", "openvino", "torch")
_Tell = Callable[[list[Any] | None, Exception | None], None]
_START = "python -m dask worker {address} --nthreads 1"


class DaskCluster:
    """An ``Executor`` whose workers are those of a Dask scheduler; a context, which ends the connection.

    What hangs in a worker is given up there, in a thread of its own, which is left to itself.

    Parameters
    ----------
    address : str
        Of the scheduler, such as ``tcp://host:8786``.
    recordings : sequence of path-like
        What the work reads, absolute; every worker must see some of them as they are here.
    files : sequence of path-like
        What else it reads, absolute; every worker must see all of it.
    folder : Path, optional
        Where the work writes, absolute; made where it is missing.
    silence_seconds : float
        An item that gives no sign of life for so long is given up.

    Attributes
    ----------
    n_workers, n_threads : int
        Workers at the start, and processor threads that the work of each may use.

    Raises
    ------
    ConfigError
        If the scheduler does not answer, has no workers, or one of them has other software, code or files.
    """

    n_threads = 1

    def __init__(self, address: str, *, recordings: Sequence[Path] = (), files: Sequence[str | os.PathLike] = (),
                 folder: Path | None = None, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._address, self._silence_seconds = address, silence_seconds
        self._distributed = _library()
        with contextlib.ExitStack() as stack:
            self._client = stack.enter_context(self._connect())
            self._n_threads_in_all, self._counted = 0, -_COUNT_EVERY_SECONDS
            self.n_workers = self._wait_for_workers()
            self._require_software()
            shared = [(os.fspath(path), os.fspath(path)) for path in (*files, *_spread(recordings))]
            if folder is not None:
                shared.append((os.fspath(folder), os.fspath(stack.enter_context(_token(folder)))))
            stamps = ((name, path, stamp(path)) for name, path in shared)
            # what cannot be read here is a bad recording, not a bad worker
            self._expected: Expected = (code_hash(), None if folder is None else os.fspath(folder), tuple(
                (name, path, found) for name, path, found in stamps if found is not None))
            self._require_files()
            self._stack = stack.pop_all()

    def __enter__(self) -> "DaskCluster":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def stream(self, work: Work, items: Iterable[Item], *, in_order: bool) -> Iterator[tuple[Item, Any]]:
        """See ``Executor.stream``.

        Raises
        ------
        ConfigError
            If the scheduler is gone, or a worker that came later does not have what it needs.
        Exception
            Whatever ``work`` raised.
        """
        return _Run(self, work, iter(items), in_order=in_order).parts()

    # what a run needs

    def begin(self, work: Work, item: Any, tell: _Tell) -> None:
        """Have an item worked on; ``tell`` gets its parts or an error, neither if the workers that had it died.

        It is called in Dask's thread, in which the results of many items travel at once.
        """
        payload = pickle.dumps((work, item, self._silence_seconds))
        future = self._client.submit(_task(), self._expected, payload, pure=False)
        self._client.loop.add_callback(self._fetch, future, tell)

    async def _fetch(self, future: Any, tell: _Tell) -> None:
        parts: list[Any] | None = None
        problem: Exception | None = None
        try:
            parts = await future
        except self._distributed.KilledWorker:
            pass
        except self._distributed.CancelledError:
            problem = self._gone()
        except Exception as error:  # not to go on: it is raised where the item is waited for
            problem = error
        tell(parts, problem)

    def n_ahead(self) -> int:
        """Return how many items may be under way."""
        if time.monotonic() - self._counted > _COUNT_EVERY_SECONDS:
            n_before, self._n_threads_in_all = self._n_threads_in_all, self._count()
            self._counted = time.monotonic()
            if n_before and not self._n_threads_in_all:
                logger.warning("%s has no workers any more: waiting for one (%s)", self._address, self._start)
        return _ITEMS_AHEAD * max(1, self._n_threads_in_all)

    # what is certain before the first task

    @property
    def _start(self) -> str:
        return _START.format(address=self._address)

    def _gone(self) -> ConfigError:
        return ConfigError(f"--cluster {self._address}: the scheduler is gone: start it and its workers again; what is"
                           f" done is kept, and the same command goes on from it")

    def _count(self) -> int:
        try:
            return sum(self._client.nthreads().values())
        except OSError as error:
            raise self._gone() from error

    def _connect(self) -> Any:
        errors = (OSError, ValueError, ImportError, self._distributed.TimeoutError)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._distributed.versions.VersionMismatchWarning)  # what matters is told
            try:
                place = self._distributed.comm.get_address_host_port(self._address)
                socket.create_connection(place, timeout=_CONNECT_SECONDS).close()  # refuses at once, as Dask does not
                return self._distributed.Client(self._address, timeout=_CONNECT_SECONDS, set_as_default=False)
            except errors as error:
                raise ConfigError(f"--cluster {self._address}: no Dask scheduler answers there ({error}): give the"
                                  f" address that `python -m dask scheduler` tells, such as"
                                  f" tcp://host:8786") from error

    def _wait_for_workers(self) -> int:
        if not self._client.nthreads():
            logger.info("waiting for workers of %s", self._address)
        try:
            self._client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except self._distributed.TimeoutError as error:
            raise ConfigError(f"--cluster {self._address}: the scheduler has no workers after {WORKER_SECONDS:g} s:"
                              f" start one in NightScan's folder with {self._start}") from error
        n_threads = self._client.nthreads()
        if max(n_threads.values()) > 1:
            logger.warning("a worker of %s works on several recordings at once, and dies with all of them: start as"
                           " many workers as there are cores, with --nthreads 1", self._address)
        return len(n_threads)

    def _require_software(self) -> None:
        found = self._client.get_versions(packages=list(_OF_WORKERS))
        here = _versions(found["client"], _OF_WORKERS)
        places = {"the scheduler": _versions(found["scheduler"], _OF_SCHEDULER),
                  **{f"the worker {address}": _versions(of_worker, _OF_WORKERS)
                     for address, of_worker in sorted(found["workers"].items())}}
        for place, there in places.items():
            for name, version in there.items():
                if here[name] not in (None, version):
                    raise ConfigError(f"--cluster: {place} has {name} {version or 'not at all'}, this machine"
                                      f" {here[name]}: install the same requirements on both")

    def _require_files(self) -> None:
        answers = self._client.run(_task(), self._expected, None, on_error="return")
        for address, answer in sorted(answers.items()):
            if isinstance(answer, ImportError):
                raise ConfigError(f"--cluster: the worker {address} cannot import NightScan ({answer}): start it in"
                                  f" NightScan's folder with {self._start}") from answer
            if isinstance(answer, Exception):
                raise answer


@dataclass(eq=False)
class _Given:
    """An item that was handed out, what came of it, and whether it is on its own because its workers died."""

    item: Any
    parts: list[Any] | None = None
    error: Exception | None = None
    is_alone: bool = False


class _Run:
    """One pass over some items."""

    def __init__(self, cluster: DaskCluster, work: Work, items: Iterator, *, in_order: bool) -> None:
        self._cluster, self._work, self._items, self._in_order = cluster, work, items, in_order
        self._given: list[_Given] = []  # in order, until they are over
        self._finished: queue.SimpleQueue[_Given] = queue.SimpleQueue()
        self._n_running = 0

    def parts(self) -> Iterator[tuple[Any, Any]]:
        while True:
            self._hand_out()
            if not self._given:
                return
            self._take(self._next_finished())
            yield from self._give_on()

    def _hand_out(self) -> None:
        for item in itertools.islice(self._items, max(0, self._cluster.n_ahead() - len(self._given))):
            self._given.append(_Given(item))
            self._begin(self._given[-1])
        if self._given and not self._n_running:  # of those that died with their workers, one may have killed the others
            self._given[0].is_alone = True
            self._begin(self._given[0])

    def _begin(self, given: _Given) -> None:
        self._n_running += 1
        self._cluster.begin(self._work, given.item, functools.partial(self._over, given))

    def _over(self, given: _Given, parts: list[Any] | None, error: Exception | None) -> None:
        given.parts, given.error = parts, error
        self._finished.put(given)

    def _next_finished(self) -> _Given:
        while True:
            try:
                return self._finished.get(timeout=_COUNT_EVERY_SECONDS)
            except queue.Empty:
                self._cluster.n_ahead()  # tells if nobody is left

    def _take(self, given: _Given) -> None:
        self._n_running -= 1
        if given.error is not None:
            raise given.error
        if given.parts is None and given.is_alone:
            given.parts = [Lost(False, "each worker that read it died")]

    def _give_on(self) -> Iterator[tuple[Any, Any]]:
        told = (itertools.takewhile if self._in_order else filter)(lambda given: given.parts is not None, self._given)
        for given in list(told):
            self._given.remove(given)
            for part in given.parts or ():
                if isinstance(part, Further):
                    self._items = itertools.chain(part.items, self._items)
                else:
                    yield given.item, part


def _library() -> ModuleType:
    try:
        import distributed
    except ImportError as error:
        raise ConfigError("--cluster needs Dask, which is not installed: pip install -r"
                          " requirements-extra.txt") from error
    if not logger.isEnabledFor(logging.DEBUG):
        for name in ("distributed", "distributed.client"):  # what it tells is told here, or it mends it by itself
            logging.getLogger(name).setLevel(logging.CRITICAL)
    return distributed


def _task() -> Callable[[Expected, bytes | None], list[Any]]:
    """Return what workers run; it travels as code, not by name, for the scheduler reads it and knows no NightScan."""
    def nightscan(expected, payload):
        from utils.running.cluster_worker import perform
        return perform(expected, payload)
    return nightscan


def _versions(found: dict, packages: Sequence[str]) -> dict[str, str | None]:
    """Return the versions that matter, without what tells builds apart, such as ``+cpu``."""
    python = ".".join(found["host"]["python"].split(".")[:2])
    return {"Python": python, **{name: (found["packages"].get(name) or "").partition("+")[0] or None
                                 for name in packages}}


def _spread(paths: Sequence[Path]) -> list[Path]:
    """Return some of very many paths, evenly spread, the first and the last among them."""
    step = max(1, (len(paths) - 1) // (_N_WITNESSES - 1))
    return [*paths[:-1:step], *paths[-1:]]


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """Keep a file in a folder, with content that nobody can guess: who reads it sees the same folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".nightscan-cluster-{secrets.token_hex(8)}"
    path.write_text(secrets.token_hex(16), encoding="ascii")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
