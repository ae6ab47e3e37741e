"""What a worker does with a recording before the network sees it: decode, cut, compute log-mels."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.audio_frontend import cached_frontend, segment_starts
from models.efficientnet_config import FrontendConfig
from models.errors import AudioError
from utils.audio.recorders import read_recorded_at
from utils.audio.recordings import Outcome, RecordingReader, Samples, check_audible
from utils.running.parallel import report_alive

Recording = Path | Samples


@dataclass(frozen=True)
class ReadingPlan:
    """How recordings are cut.

    Parameters
    ----------
    frontend : FrontendConfig
        Of the model: rate, window, log-mel.
    segment_samples, hop_samples : int
        Length and distance of the segments that are reported, at the front end's rate.
    """

    frontend: FrontendConfig
    segment_samples: int
    hop_samples: int


class WindowRead(NamedTuple):
    """One input of the network.

    Parameters
    ----------
    segment : int
        Number of the segment it belongs to, from 0.
    start, end : int
        The segment's first sample and the one after its last, at the front end's rate.
    log_mel : numpy.ndarray
        float32 ``(n_mels, n_frames)`` in dB.
    """

    segment: int
    start: int
    end: int
    log_mel: np.ndarray


class RecordingRead(NamedTuple):
    """Follows the last window of a recording.

    Parameters
    ----------
    outcome : Outcome
        What became of it.
    recorded_at : datetime or None
        When it began, where the recorder tells.
    seconds_spent : float
        Time spent on reading it, without waiting.
    """

    outcome: Outcome
    recorded_at: datetime | None
    seconds_spent: float


def read_recording(plan: ReadingPlan, recording: Recording) -> Iterator[WindowRead | RecordingRead]:
    """Yield every window of a recording, then what became of it.

    Never raises for a bad file: the reason stands in the outcome.
    """
    clock = _Clock()
    recorded_at, peak = None, 0.0
    try:
        with RecordingReader(recording, sample_rate=plan.frontend.sample_rate, on_block=report_alive) as reader:
            frontend = cached_frontend(plan.frontend)
            length, least_new = plan.frontend.segment_samples, plan.frontend.least_new_samples
            segments = reader.windows(segment_samples=plan.segment_samples, hop_samples=plan.hop_samples,
                                      least_new_samples=least_new)
            for number, (_, start, samples) in enumerate(segments):
                peak = max(peak, float(np.abs(samples).max()))
                for first in segment_starts(len(samples), segment_samples=length, hop_samples=length,
                                            least_new_samples=least_new):
                    log_mel = frontend.log_mel(samples[first:first + length])
                    clock.stop()
                    yield WindowRead(number, start, start + len(samples), log_mel)
                    clock.go_on()
            outcome = Outcome(reason=reader.damage, duration_seconds=reader.duration_seconds,
                              sample_rate=reader.native_sample_rate, channels=reader.channels)
        check_audible(reader.path, duration_seconds=reader.duration_seconds, peak=peak)
        recorded_at = None if isinstance(recording, Samples) else read_recorded_at(recording)
    except AudioError as error:
        outcome = Outcome(error.status, str(error))
    clock.stop()
    yield RecordingRead(outcome, recorded_at, clock.seconds)


class _Clock:
    """Counts the time of work; a generator is not working while its consumer does not ask for more."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.go_on()

    def go_on(self) -> None:
        self._started = time.perf_counter()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._started
