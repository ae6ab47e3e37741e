"""Windows through the network, in batches: spans that were read become spans that are scored."""

import functools
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from utils.networks.backends import Backend
from utils.networks.opening import BackendPlan
from utils.prediction.spans import Failed, ReadingPlan, SpanJob, SpanRead, WindowRead, name_of, read_spans


@dataclass(frozen=True, eq=False)
class SpanScores:
    """A span that went through the network.

    Parameters
    ----------
    span : SpanRead
        What was read; its ``seconds_spent`` holds the network's share too.
    logits : numpy.ndarray
        float32 ``(n_windows, n_classes)``.
    embeddings : numpy.ndarray or None
        float32 ``(n_windows, n_features)``, where asked for.
    """

    span: SpanRead
    logits: np.ndarray
    embeddings: np.ndarray | None = None


class Scorer:
    """Fills batches with windows and gives the spans back in order.

    Parameters
    ----------
    backend : Backend
        The network.
    batch_size : int
        Windows a pass.
    with_embeddings : bool
        Keep embeddings too.
    across_spans : bool
        Fill batches across spans, which pays where many recordings are short and the device is large; otherwise each
        span is done when its last window is.
    """

    def __init__(self, backend: Backend, *, batch_size: int, with_embeddings: bool = False,
                 across_spans: bool = False) -> None:
        self._backend, self._batch_size = backend, batch_size
        self._with_embeddings, self._across_spans = with_embeddings, across_spans
        self._held: list[tuple[_Unscored, np.ndarray]] = []
        self._waiting: deque[_Unscored | tuple[SpanJob, Any]] = deque()

    def score(self, stream: Iterable[tuple[SpanJob, Any]]) -> Iterator[tuple[SpanJob, Any]]:
        """Yield ``(job, SpanScores)`` in place of windows, and every other part as it is.

        A recording whose logits are not finite is ``Failed``.
        """
        current: _Unscored | None = None
        for job, part in stream:
            if isinstance(part, WindowRead):
                current = current or self._begin(job)
                self._held.append((current, part.log_mel))
                if len(self._held) == self._batch_size:
                    self._run()
            elif isinstance(part, SpanRead):
                current = current or self._begin(job)
                current.read, current = part, None
                if not self._across_spans:
                    self._run()
            else:
                if current is not None:  # the recording breaks down in the middle of a span
                    self._forget(current)
                    current = None
                self._waiting.append((job, part))
            yield from self._finished()
        self._run()
        yield from self._finished()

    def _begin(self, job: SpanJob) -> "_Unscored":
        span = _Unscored(job)
        self._waiting.append(span)
        return span

    def _forget(self, span: "_Unscored") -> None:
        self._held = [(owner, log_mel) for owner, log_mel in self._held if owner is not span]
        self._waiting.remove(span)

    def _run(self) -> None:
        if not self._held:
            return
        started = time.perf_counter()
        output = self._backend.run(np.stack([log_mel for _, log_mel in self._held]),
                                   with_embeddings=self._with_embeddings)
        share = (time.perf_counter() - started) / len(self._held)
        for row, (span, _) in enumerate(self._held):
            span.logits.append(output.logits[row])
            if output.embeddings is not None:
                span.embeddings.append(output.embeddings[row])
            span.seconds_spent += share
        self._held = []

    def _finished(self) -> Iterator[tuple[SpanJob, Any]]:
        while self._waiting:
            first = self._waiting[0]
            if isinstance(first, _Unscored):
                if not first.is_done:
                    return
                yield first.job, first.result(len(self._backend.description.classes))
            else:
                yield first
            self._waiting.popleft()


@dataclass(eq=False)
class _Unscored:
    """A span some of whose windows may still wait for their batch."""

    job: SpanJob
    read: SpanRead | None = None
    logits: list[np.ndarray] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    seconds_spent: float = 0.0

    @property
    def is_done(self) -> bool:
        return self.read is not None and len(self.logits) == self.read.n_windows

    def result(self, n_classes: int) -> SpanScores | Failed:
        assert self.read is not None
        logits = np.array(self.logits, dtype=np.float32).reshape(-1, n_classes)
        if not np.isfinite(logits).all():
            return Failed("corrupt", f"{name_of(self.job.recording)}: the network's numbers for it are not finite: is"
                                     f" the sound damaged, or --precision too low?")
        span = self.read._replace(seconds_spent=self.read.seconds_spent + self.seconds_spent)
        return SpanScores(span, logits, np.array(self.embeddings, dtype=np.float32) if self.embeddings else None)


@dataclass(frozen=True)
class ReadAndScore:
    """The work of a process that has a network of its own.

    Parameters
    ----------
    plan : ReadingPlan
        How recordings are cut.
    backend : BackendPlan
        The network; a light one.
    n_threads, batch_size : int
        Processor threads and windows of a pass.
    with_embeddings : bool
        Keep embeddings too.
    """

    plan: ReadingPlan
    backend: BackendPlan
    n_threads: int
    batch_size: int | None
    with_embeddings: bool

    def __call__(self, job: SpanJob) -> Iterator[Any]:
        """Yield the parts of ``read_spans`` with ``SpanScores`` in place of windows."""
        backend = _opened(self.backend, self.n_threads)
        scorer = Scorer(backend, batch_size=self.batch_size or backend.batch_size,
                        with_embeddings=self.with_embeddings)
        for _, part in scorer.score((job, part) for part in read_spans(self.plan, job)):
            yield part


def name_in_worker(n_threads: int, backend: BackendPlan) -> str:
    """Return the name of the network that ``ReadAndScore`` has in a worker: its library, device and precision."""
    return _opened(backend, n_threads).name


@functools.lru_cache(maxsize=1)
def _opened(plan: BackendPlan, n_threads: int) -> Backend:
    """Return the network of a worker, opened once."""
    return plan.open(n_threads=n_threads)
