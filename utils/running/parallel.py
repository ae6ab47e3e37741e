"""Work on many items in processes of their own: a crash or a hang costs one item, never the run.

One ``Executor`` seam: whoever has work hands it a function and items, and gets the parts of each result as they come.
``LocalProcesses`` is the executor of one machine, ``cluster.DaskCluster`` that of several, ``ThisProcess`` runs in the
caller's process.

A worker sends each part through a pipe of its own and stops when the pipe is full, so that neither a day-long
recording nor a slow consumer fills the memory. Every part is a sign of life, and so is ``report_alive``: an item that
gives none for a while is hung, however long it may take in all.
"""

import contextlib
import itertools
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol, TypeVar

Item = TypeVar("Item")
Work = Callable[[Any], Iterable[Any]]

SILENCE_SECONDS = 120.0
_POLL_SECONDS = 1.0
_ALIVE_EVERY_SECONDS = 1.0
_WAITING_PARTS = 64  # parts a worker may have ready before it waits for the consumer
_ITEMS_AHEAD = 8  # of a worker whose turn it is not: many short files keep it busy meanwhile
_ITEMS_AHEAD_ANYHOW = 2  # where no turns are taken: a worker need not wait for the next item
_NO_MORE: Any = object()
_GOODBYE_SECONDS = 5.0
_HAS_GROUPS = os.name == "posix"
_tell_alive: ContextVar[Callable[[], None] | None] = ContextVar("_tell_alive", default=None)


class Done:
    """Follows the last part of an item."""


@dataclass(frozen=True)
class Lost:
    """Follows the parts of an item whose worker is gone.

    Parameters
    ----------
    hung : bool
        It gave no sign of life and was killed; False when it died by itself or was killed by another.
    reason : str
        What happened, for a person.
    """

    hung: bool
    reason: str

    @property
    def status(self) -> str:
        """Status of a file that was lost, as tables tell it."""
        return "timeout" if self.hung else "corrupt"

    @classmethod
    def silent(cls, seconds: float) -> "Lost":
        """Return how an item is lost that gave no sign of life for so long."""
        return cls(True, f"no block was read for {seconds:g} s")

    def told_of(self, name: object) -> str:
        """Return the message about a file that was lost."""
        return f"{name} could not be read: {self.reason}; run again, and if it fails again convert it to WAV"


@dataclass(frozen=True)
class Further:
    """A part of work that is no result but more work: items that come next, before those that still wait.

    Parameters
    ----------
    items : tuple
        What ``work`` takes.
    """

    items: tuple


class Executor(Protocol):
    """What work is handed to; ``Further`` among the parts of an item is taken as items, not given on."""

    def stream(self, work: Work, items: Iterable[Item], *, in_order: bool) -> Iterator[tuple[Item, Any]]:
        """Yield ``(item, part)`` for every part of ``work(item)``, then ``(item, Done())`` or ``(item, Lost(...))``.

        Parameters
        ----------
        work : callable
            Takes an item, gives an iterable of parts, the same each time; importable by name and picklable, as are
            items and parts.
        items : iterable
            Taken lazily.
        in_order : bool
            Give the items one after the other in their order; else whichever has something.
        """


class RemoteError(RuntimeError):
    """The traceback of an error in a worker; it is the cause of that error when it is raised here."""


class ThisProcess:
    """Runs the work where it is asked for: nothing is started, and nothing guards against a crash."""

    def stream(self, work: Work, items: Iterable[Item], *, in_order: bool = True) -> Iterator[tuple[Item, Any]]:
        """See ``Executor.stream``."""
        waiting = iter(items)
        for item in iter(lambda: next(waiting, _NO_MORE), _NO_MORE):
            for part in work(item):
                if isinstance(part, Further):
                    waiting = itertools.chain(part.items, waiting)
                else:
                    yield item, part
            yield item, Done()


class LocalProcesses:
    """Runs the work in processes of this machine, under spawn as well as fork.

    Parameters
    ----------
    n_workers : int
        Processes; one still is a process of its own.
    silence_seconds : float
        A worker that gives no sign of life for so long is killed.
    """

    def __init__(self, n_workers: int, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self.n_workers = n_workers
        self.silence_seconds = silence_seconds

    @property
    def n_threads(self) -> int:
        """Processor threads that the work of each process may use."""
        return max(1, default_workers() // self.n_workers)

    def stream(self, work: Work, items: Iterable[Item], *, in_order: bool) -> Iterator[tuple[Item, Any]]:
        """See ``Executor.stream``.

        Raises
        ------
        Exception
            Whatever ``work`` raised, with ``RemoteError`` as its cause: a bug is not a bad item.
        """
        return _Run(work, iter(items), self.n_workers, self.silence_seconds, in_order=in_order).parts()


def run_each(executor: Executor, function: Callable[[Item], Any], items: Iterable[Item]
             ) -> Iterator[tuple[Item, Any]]:
    """Yield ``(item, function(item))``, or ``(item, Lost(...))``, for every item as they are done."""
    for item, part in executor.stream(_OneResult(function), items, in_order=False):
        if not isinstance(part, Done):
            yield item, part


def default_workers() -> int:
    """Return the number of CPU cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def report_alive() -> None:
    """Tell, from inside of work, that it goes on; costs nothing outside of a worker or when told a moment ago."""
    tell = _tell_alive.get()
    if tell is not None:
        tell()


def report_alive_to(tell: Callable[[], None]) -> None:
    """Have ``report_alive`` call a function, in this thread."""
    _tell_alive.set(tell)


@dataclass(frozen=True)
class _OneResult:
    function: Callable

    def __call__(self, item: Any) -> Iterator[Any]:
        yield self.function(item)


# The parent's side


class _Message(NamedTuple):
    """What goes through a pipe: a part, the end of an item, or an error; nothing of it is a mere sign of life."""

    part: Any = None
    has_part: bool = False
    ended: bool = False
    error: Exception | None = None
    remote_traceback: str = ""


@dataclass
class _Given:
    """An item that a worker has: how many of its parts were received, and how it was lost, if it was."""

    item: Any
    serial: int
    n_parts: int = 0
    lost: Lost | None = None


@dataclass
class _Worker:
    """A process, its pipe, what it has begun last, and the items it was given, oldest first, until they are over."""

    process: Any
    channel: Connection
    begun: Any  # serial number, in memory that outlives the process
    given: deque[_Given] = field(default_factory=deque)
    silent_seconds: float = 0.0


class _Run:
    """One pass over some items; owns the workers."""

    def __init__(self, work: Work, items: Iterator, n_workers: int, silence_seconds: float, *, in_order: bool) -> None:
        self._work, self._items, self._in_order = work, items, in_order
        self._silence_seconds = silence_seconds
        self._n_workers = n_workers
        self._n_ahead = _ITEMS_AHEAD if in_order else _ITEMS_AHEAD_ANYHOW
        self._workers: list[_Worker] = []
        self._turns: deque[int] = deque()  # in order: number of the worker of each unfinished item
        self._exhausted = False
        self._serials = itertools.count(1)

    def parts(self) -> Iterator[tuple[Any, Any]]:
        try:
            self._hand_out()
            while self._turns:
                for number in self._ready():
                    yield from self._receive(number)
                self._hand_out()
        finally:
            # killed also where all went well: an idle worker has nothing to lose, and would take its time to leave
            for worker in self._workers:
                _end(worker)

    def _hand_out(self) -> None:
        """Give items to the workers that have fewest, starting workers as long as there is work for them."""
        while not self._exhausted:
            number = min(range(len(self._workers)), key=lambda n: len(self._workers[n].given), default=None)
            if number is None or self._workers[number].given and len(self._workers) < self._n_workers:
                number = len(self._workers)
            elif len(self._workers[number].given) >= self._n_ahead:
                return
            try:
                item = next(self._items)
            except StopIteration:
                self._exhausted = True
                return
            if number == len(self._workers):
                self._workers.append(_start(self._work, self._silence_seconds))
            given = _Given(item, next(self._serials))
            self._workers[number].given.append(given)
            self._turns.append(number)
            self._send(self._workers[number], given)

    def _send(self, worker: _Worker, given: _Given) -> None:
        if given is worker.given[0]:
            worker.silent_seconds = 0.0
        with contextlib.suppress(OSError):  # it died; its pipe tells when it is read next
            worker.channel.send((given.serial, given.n_parts, given.item))

    def _ready(self) -> list[int]:
        """Wait for workers that have something, or are lost; those in turn only where the order counts."""
        asked = [self._turns[0]] if self._in_order else [n for n, w in enumerate(self._workers) if w.given]
        if lost := [number for number in asked if self._workers[number].given[0].lost]:
            return lost
        started = time.monotonic()
        channels = wait([self._workers[number].channel for number in asked], timeout=_POLL_SECONDS)
        # a machine that was put to sleep must not look like a worker that hangs
        waited = min(time.monotonic() - started, _POLL_SECONDS)
        ready = []
        for number in asked:
            worker = self._workers[number]
            if worker.channel in channels:
                worker.silent_seconds = 0.0
                ready.append(number)
            else:
                worker.silent_seconds += waited
                if worker.silent_seconds >= self._silence_seconds:
                    ready.append(number)
        return ready

    def _receive(self, number: int) -> Iterator[tuple[Any, Any]]:
        worker = self._workers[number]
        first = worker.given[0]
        if first.lost is not None:
            yield self._finish(number, first.lost)
            return
        try:
            if worker.silent_seconds >= self._silence_seconds:
                raise BlockingIOError
            message: _Message = worker.channel.recv()
        except BlockingIOError:  # silent between two messages, or in the middle of one
            self._replace(number, Lost.silent(self._silence_seconds))
            return
        except (EOFError, OSError):
            worker.process.join(_GOODBYE_SECONDS)
            self._replace(number, Lost(False, f"the process that read it died (exit code {worker.process.exitcode})"))
            return
        if message.error is not None:
            raise message.error from RemoteError(message.remote_traceback)
        if message.has_part:
            first.n_parts += 1
            if isinstance(message.part, Further):
                self._items = itertools.chain(message.part.items, self._items)
                self._exhausted = False
            else:
                yield first.item, message.part
        if message.ended:
            yield self._finish(number, Done())

    def _finish(self, number: int, end: Done | Lost) -> tuple[Any, Done | Lost]:
        self._turns.remove(number)
        return self._workers[number].given.popleft().item, end

    def _replace(self, number: int, lost: Lost) -> None:
        """Put a fresh process in the place of a lost one; what that one had begun last is lost with it.

        Items before that one were done, but parts of them that had not been sent went with the process: those are made
        again.
        """
        old = self._workers[number]
        _end(old)
        culprit = next((given for given in old.given if given.serial == old.begun.value), old.given[0])
        culprit.lost = lost
        worker = self._workers[number] = _start(self._work, self._silence_seconds)
        worker.given = old.given
        for given in worker.given:
            if given.lost is None:
                self._send(worker, given)


def _start(work: Work, silence_seconds: float) -> _Worker:
    own, its = multiprocessing.Pipe()
    if os.name == "posix":
        _limit_waiting(own, silence_seconds)
    begun = multiprocessing.RawValue("q", 0)
    process = multiprocessing.Process(target=_serve, args=(its, own, begun, work, os.getpid()), daemon=True)
    process.start()
    its.close()
    return _Worker(process, own, begun)


def _limit_waiting(channel: Connection, seconds: float) -> None:
    """Let a read raise BlockingIOError when nothing comes for so long: a worker may stop in the middle of a message."""
    whole = int(seconds)
    with socket.socket(fileno=os.dup(channel.fileno())) as end:  # on POSIX, a pipe of two ends is a pair of sockets
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", whole, int(1e6 * (seconds - whole))))


def _end(worker: _Worker) -> None:
    """End a worker and what it has started: a decoder that hangs must not outlive it."""
    ended = not worker.process.is_alive()
    worker.process.kill()
    if _HAS_GROUPS and not (ended and _is_taken(worker.process.pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no one of the group is left
            os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.join()
    worker.channel.close()


def _is_taken(pid: int) -> bool:
    """Whether the number of a process that has ended is another's by now: then no one of its group can be left."""
    try:
        os.getpgid(pid)
    except ProcessLookupError:
        return False
    return True


# The worker's side


class _Outbox:
    """Sends from a thread of its own, so that the work goes on while the consumer is busy."""

    def __init__(self, channel: Connection) -> None:
        self._channel = channel
        self._waiting: queue.Queue[_Message] = queue.Queue(_WAITING_PARTS)
        self._last_put = time.monotonic()
        threading.Thread(target=self._send_all, daemon=True).start()

    def put(self, message: _Message) -> None:
        self._waiting.put(message)
        self._last_put = time.monotonic()

    def report_alive(self) -> None:
        if time.monotonic() - self._last_put > _ALIVE_EVERY_SECONDS:
            self.put(_Message())

    def _send_all(self) -> None:
        while True:
            try:
                self._channel.send(self._waiting.get())
            except OSError:
                os._exit(1)  # nobody listens any more


def _serve(channel: Connection, parents_end: Connection, begun: Any, work: Work, parent_pid: int) -> None:
    """Run ``work`` on items from the pipe as long as there is a parent; the whole life of a worker."""
    parents_end.close()  # under fork the worker holds a copy, which would keep the pipe open for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if _HAS_GROUPS:
        os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, args=(parent_pid,), daemon=True).start()
    outbox = _Outbox(channel)
    report_alive_to(outbox.report_alive)
    outbox.put(_Message())  # under spawn, importing has taken a while
    while True:
        try:
            serial, n_received, item = channel.recv()
        except (EOFError, OSError):  # the parent is gone
            return
        begun.value = serial
        try:
            # those that were received from a worker that is gone are not sent again
            for part in itertools.islice(work(item), n_received, None):
                outbox.put(_Message(part=part, has_part=True))
        except Exception as error:  # not to go on: it is raised in the parent
            outbox.put(_Message(error=_sendable(error), remote_traceback=traceback.format_exc()))
        outbox.put(_Message(ended=True))


def _end_with_parent(parent_pid: int) -> None:
    """End the worker when its parent was killed; a pipe alone may be held open by the workers started after it."""
    parent = multiprocessing.parent_process()
    while True:
        time.sleep(_POLL_SECONDS / 2)
        gone = os.getppid() != parent_pid if os.name == "posix" else parent is not None and not parent.is_alive()
        if gone and _HAS_GROUPS:
            os.killpg(0, signal.SIGKILL)
        if gone:
            os._exit(1)


def _sendable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except (pickle.PickleError, TypeError, AttributeError):  # its class cannot be sent, its text can
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
