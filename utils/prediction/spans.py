"""What is done with a recording before the network sees it: decode, cut, compute log-mels; a span at a time.

A span is a fixed number of segments, so where it begins depends on nothing but the settings. A recording that can be
sought in is read by several workers, a span each. Another one is decoded by each of them from its beginning, which is
little of the work, and each takes its share of the spans.
"""

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.audio_frontend import LogMelFrontend, cached_frontend, segment_starts
from models.efficientnet_config import FrontendConfig
from models.errors import AudioError
from utils.audio.recorders import RecorderFacts, read_recorder
from utils.audio.recordings import RecordingReader
from utils.audio.streams import FileObject, Samples
from utils.running.parallel import Further, report_alive

Recording = Path | Samples | FileObject
_SHARED_BYTES = 4 << 20  # of a recording that cannot be sought in: minutes at least, worth decoding more than once
SPAN_WINDOWS = 64  # about half a second of work: what a kill costs, and what a worker does at a time


def name_of(recording: Recording) -> str:
    """Return what records and messages call a recording."""
    return recording.name if isinstance(recording, (Samples, FileObject)) else str(recording)


@dataclass(frozen=True)
class ReadingPlan:
    """How recordings are cut.

    Parameters
    ----------
    frontend : FrontendConfig
        Of the model: rate, window, log-mel.
    segment_samples, hop_samples : int
        Length and distance of the segments that are reported, at the front end's rate.
    n_shares : int
        Workers that share the spans of a long recording that cannot be sought in.
    """

    frontend: FrontendConfig
    segment_samples: int
    hop_samples: int
    n_shares: int = 1

    @property
    def n_segments_of_span(self) -> int:
        """Segments of every span but the last one of a recording."""
        return max(1, SPAN_WINDOWS // len(self.window_starts(self.segment_samples)))

    def window_starts(self, n_samples: int) -> list[int]:
        """Return where the network's windows stand in a segment."""
        length = self.frontend.segment_samples
        return segment_starts(n_samples, segment_samples=length, hop_samples=length,
                              least_new_samples=self.frontend.least_new_samples)

    def n_spans(self, n_samples: int) -> int:
        """Return the number of spans of a recording of that length; the last one may turn out to be empty."""
        n_regular = max(0, math.ceil((n_samples - self.segment_samples) / self.hop_samples))
        return n_regular // self.n_segments_of_span + 1


@dataclass(frozen=True, eq=False)
class SpanJob:
    """A recording to be read, or one span of it.

    Parameters
    ----------
    recording : Recording
        A file, or what stands for one.
    index : int
        Position of the recording among the inputs.
    number : int or None
        Span; None opens the recording and hands its spans out.
    done : frozenset of int
        Spans that are scored already.
    share : (int, int) or None
        ``(i, n)``: every span whose number leaves ``i`` when it is divided by ``n``, of a recording that cannot be
        sought in.
    """

    recording: Recording
    index: int
    number: int | None = None
    done: frozenset[int] = frozenset()
    share: tuple[int, int] | None = None

    def leaves_out(self, number: int) -> bool:
        """Whether a span is not this job's business."""
        return number in self.done or self.share is not None and number % self.share[1] != self.share[0]


class Opened(NamedTuple):
    """Comes first of a recording.

    Parameters
    ----------
    n_spans : int or None
        How many there are; None where only reading to the end tells.
    duration_seconds : float or None
        As the header has it.
    sample_rate, channels : int
        As stored in the file.
    recorder : RecorderFacts
        What is known of how it was made.
    """

    n_spans: int | None
    duration_seconds: float | None
    sample_rate: int
    channels: int
    recorder: RecorderFacts


class WindowRead(NamedTuple):
    """One input of the network: log_mel, float32 ``(n_mels, n_frames)`` in dB."""

    log_mel: np.ndarray


class End(NamedTuple):
    """Where a recording turned out to end, and why it breaks off there, if it does."""

    duration_seconds: float
    damage: str = ""


class SpanRead(NamedTuple):
    """Follows the last window of a span.

    Parameters
    ----------
    number : int
        From 0.
    n_segments : int
        Segments on the grid: number ``i`` of them begins ``number * n_segments_of_span + i`` distances in.
    last_segment : (int, int) or None
        One more, which ends with the recording: its first sample and the one after its last.
    n_windows : int
        Inputs of the network in all of them.
    peak : float
        Highest absolute sample.
    end : End or None
        Of the recording, where it ends in this span.
    seconds_spent : float
        Time spent on it, without waiting.
    """

    number: int
    n_segments: int
    last_segment: tuple[int, int] | None
    n_windows: int
    peak: float
    end: End | None
    seconds_spent: float


class Failed(NamedTuple):
    """A recording that could not be used: status and reason, as in ``Outcome``."""

    status: str
    reason: str


Part = Opened | WindowRead | SpanRead | Failed | Further


def read_spans(plan: ReadingPlan, job: SpanJob) -> Iterator[Part]:
    """Yield the windows of a recording's spans, each span followed by a ``SpanRead``.

    Never raises for a bad file: the last part then is ``Failed``.
    """
    try:
        with RecordingReader(job.recording, sample_rate=plan.frontend.sample_rate, on_block=report_alive) as reader:
            spans = _Spans(plan, reader)
            if job.number is not None:
                yield from spans.one(job.number)
                return
            if job.share is not None:
                yield from spans.all(job)
                return
            n_spans = plan.n_spans(reader.n_samples) if reader.can_seek and reader.n_samples is not None else None
            yield _opened(job, reader, n_spans)
            if n_spans is None:
                own, *of_others = _shares(plan, job)
                if of_others:
                    yield Further(tuple(of_others))
                yield from spans.all(own)
                return
            first, *others = [number for number in range(n_spans) if number not in job.done] or [0]
            if others:
                yield Further(tuple(SpanJob(job.recording, job.index, number) for number in others))
            yield from spans.one(first)
    except AudioError as error:
        yield Failed(error.status, str(error))


def _opened(job: SpanJob, reader: RecordingReader, n_spans: int | None) -> Opened:
    recording = job.recording
    duration = None if reader.n_samples is None else reader.n_samples / reader.sample_rate
    recorder = read_recorder(recording) if isinstance(recording, Path) else RecorderFacts()
    return Opened(n_spans, duration, reader.native_sample_rate, reader.channels, recorder)


def _shares(plan: ReadingPlan, job: SpanJob) -> list[SpanJob]:
    """Return the jobs that a recording is divided into that cannot be sought in."""
    recording = job.recording
    try:
        is_long = isinstance(recording, Path) and recording.stat().st_size >= _SHARED_BYTES
    except OSError:  # it is open, and may be gone
        is_long = False
    n_shares = plan.n_shares if is_long else 1
    return [replace(job, share=(number, n_shares)) for number in range(n_shares)]


class _Spans:
    """Reads spans of one open recording."""

    def __init__(self, plan: ReadingPlan, reader: RecordingReader) -> None:
        self._plan, self._reader = plan, reader
        self._frontend: LogMelFrontend = cached_frontend(plan.frontend)
        self._size = plan.n_segments_of_span

    def one(self, number: int) -> Iterator[WindowRead | SpanRead]:
        """Yield one span, and whatever follows it where the header has promised no more."""
        n_promised = self._plan.n_spans(self._reader.n_samples or 0)
        is_last = number >= n_promised - 1
        segments = self._segments(number)
        yield from self._read(number, segments if is_last else itertools.islice(segments, self._size),
                              may_go_on=not is_last)

    def all(self, job: SpanJob) -> Iterator[WindowRead | SpanRead]:
        """Yield the spans of a job in order; the others are decoded, for what follows them, and not given."""
        segments = self._segments(0)
        ahead = next(segments, None)
        for number in itertools.count():
            span = [] if ahead is None else [ahead]
            rest = itertools.chain(span, itertools.islice(segments, self._size - len(span)))
            if job.leaves_out(number):
                for _ in rest:
                    pass
                ahead = next(segments, None)
            else:
                # whether a full span is the last one shows only when the next segment is asked for
                held = list(self._read(number, rest, may_go_on=True))
                ahead = next(segments, None)
                last = held.pop()
                assert isinstance(last, SpanRead)
                yield from held
                yield last if ahead is not None or last.end else last._replace(end=self._end())
            if ahead is None:
                return

    def _segments(self, number: int) -> Iterator[tuple[int, np.ndarray]]:
        plan = self._plan
        for _, start, samples in self._reader.windows(
                segment_samples=plan.segment_samples, hop_samples=plan.hop_samples,
                least_new_samples=plan.frontend.least_new_samples, first_window=number * self._size):
            yield start, samples

    def _read(self, number: int, segments: Iterator[tuple[int, np.ndarray]], *, may_go_on: bool
              ) -> Iterator[WindowRead | SpanRead]:
        plan, clock = self._plan, _Clock()
        n_segments, n_windows, peak, last_segment = 0, 0, 0.0, None
        for start, samples in segments:
            on_grid = (number * self._size + n_segments) * plan.hop_samples
            if start == on_grid and len(samples) == plan.segment_samples:
                n_segments += 1
            else:
                last_segment = (start, start + len(samples))
            peak = max(peak, float(samples.max()), -float(samples.min()))
            for first in plan.window_starts(len(samples)):
                log_mel = self._frontend.log_mel(samples[first:first + plan.frontend.segment_samples])
                n_windows += 1
                clock.stop()
                yield WindowRead(log_mel)
                clock.go_on()
        clock.stop()
        goes_on = may_go_on and n_segments == self._size
        yield SpanRead(number, n_segments, last_segment, n_windows, peak, None if goes_on else self._end(),
                       clock.seconds)

    def _end(self) -> End:
        return End(self._reader.duration_seconds, self._reader.damage)


class _Clock:
    """Counts the time of work; a generator is not working while its consumer does not ask for more."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.go_on()

    def go_on(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._started
