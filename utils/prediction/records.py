"""What is reported of a recording: segments and their probabilities, and the records made of them."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta, timezone
from typing import Any, NamedTuple

import numpy as np

from models.classes import Decision, DecisionRules
from models.description import ModelDescription
from models.errors import AudioError
from utils.audio.recorders import RecorderFacts
from utils.audio.recordings import Outcome, check_audible
from utils.prediction.scoring import SpanScores
from utils.prediction.spans import Opened, ReadingPlan, SpanRead
from utils.storage.names import name_to_text

_PROBABILITY_DECIMALS = 6


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """What a prediction is asked for.

    Parameters
    ----------
    segment_mode : bool
        One record per segment instead of one per file.
    segment_duration_ms : int or None
        Length of a segment; the model's window when None.
    segment_overlap_ms : int
        Overlap of segments, below their length.
    use_thresholds : bool
        False always reports the top class.
    min_confidence : float or None
        One threshold for every class instead of the model's own.
    return_all_scores : bool
        Add ``all_scores`` to each record.
    top_k : int
        Add the ``top_k`` best classes to each record; 0 is off.
    merge_gap_seconds : float or None
        Join the segments of a class that lie no further apart to detections; None leaves segments alone.
    timezone : str or None
        Zone of clocks that do not tell theirs, and in which times are told; see ``parse_timezone``.
    """

    segment_mode: bool = False
    segment_duration_ms: int | None = None
    segment_overlap_ms: int = 0
    use_thresholds: bool = True
    min_confidence: float | None = None
    return_all_scores: bool = False
    top_k: int = 0
    merge_gap_seconds: float | None = None
    timezone: str | None = None


class Segment(NamedTuple):
    """A segment: samples at the front end's rate, and the rows of its windows among those of the span."""

    start: int
    end: int
    rows: slice


def segments_of(plan: ReadingPlan, span: SpanRead) -> Iterator[Segment]:
    """Yield the segments of a span in order."""
    row, first = 0, span.number * plan.n_segments_of_span
    n_regular = len(plan.window_starts(plan.segment_samples))
    for number in range(first, first + span.n_segments):
        start = number * plan.hop_samples
        yield Segment(start, start + plan.segment_samples, slice(row, row + n_regular))
        row += n_regular
    if span.last_segment is not None:
        start, end = span.last_segment
        yield Segment(start, end, slice(row, row + len(plan.window_starts(end - start))))


@dataclass(frozen=True, eq=False)
class ScoredRecording:
    """A recording that went through the network, or could not be used.

    Parameters
    ----------
    name : str
        Its path.
    outcome : Outcome
        What became of it.
    recorder : RecorderFacts
        What is known of how it was made.
    n_segments : int
        Segments in all spans.
    seconds_spent : float
        Time spent on it, without waiting.
    spans : callable
        Gives its spans in order, each time anew, so that they need not all be held.
    """

    name: str
    outcome: Outcome
    recorder: RecorderFacts = RecorderFacts()
    n_segments: int = 0
    seconds_spent: float = 0.0
    spans: Callable[[], Iterator[SpanScores]] = lambda: iter(())


def conclude(name: str, opened: Opened, spans: Callable[[], Iterator[SpanScores]]) -> ScoredRecording | None:
    """Sum the spans of a recording up; None where one is missing.

    Parameters
    ----------
    name : str
        Its path.
    opened : Opened
        What was found when it was opened.
    spans : callable
        Gives its spans in order, up to the one in which it ends.
    """
    n_segments, peak, seconds, end = 0, 0.0, 0.0, None
    for scores in spans():
        span = scores.span
        n_segments += span.n_segments + (span.last_segment is not None)
        peak, seconds, end = max(peak, span.peak), seconds + span.seconds_spent, span.end
    if end is None:
        return None
    outcome = Outcome("ok", end.damage, end.duration_seconds, opened.sample_rate, opened.channels)
    try:
        check_audible(name, duration_seconds=end.duration_seconds, peak=peak)
    except AudioError as error:
        outcome = Outcome(error.status, str(error), end.duration_seconds, opened.sample_rate, opened.channels)
    return ScoredRecording(name, outcome, opened.recorder, n_segments, seconds, spans)


@dataclass(frozen=True)
class PredictedRecording:
    """What is reported of one recording: what became of it, and its records, none where it could not be used."""

    file_path: str
    outcome: Outcome
    records: Sequence[dict]

    def error_record(self) -> dict:
        """Return what stands under ``errors`` for a recording that could not be used."""
        return {"file_path": self.file_path, "status": self.outcome.status,
                "error": name_to_text(self.outcome.reason)}


class Answer(NamedTuple):
    """A stretch of a recording, in samples at the front end's rate, and what is said of it.

    Parameters
    ----------
    start, end : int
        First sample and the one after the last.
    number : int
        Of the first segment in it, from 0.
    n_segments : int
        Segments in it.
    decision : Decision
        What is reported; unrounded.
    probabilities : numpy.ndarray
        float64 ``(n_classes,)``.
    """

    start: int
    end: int
    number: int
    n_segments: int
    decision: Decision
    probabilities: np.ndarray


@dataclass(frozen=True)
class RecordMaker:
    """Turns scored recordings into records.

    Parameters
    ----------
    model : ModelDescription
        Classes, rate and calibration.
    rules : DecisionRules
        When a class is reported.
    settings : PredictionSettings
        What to report.
    plan : ReadingPlan
        How recordings were cut.
    """

    model: ModelDescription
    rules: DecisionRules
    settings: PredictionSettings
    plan: ReadingPlan

    def whole(self, recording: ScoredRecording) -> Answer:
        """Return the answer on a whole recording: the mean probability of its segments."""
        total, n_segments, end = np.zeros(len(self.model.classes)), 0, 0
        for segment, probabilities in self._segments(recording):
            total += probabilities
            n_segments, end = n_segments + 1, max(end, segment.end)
        mean = total / n_segments
        return Answer(0, end, 0, n_segments, self._decide(mean), mean)

    def segments(self, recording: ScoredRecording) -> Iterator[Answer]:
        """Yield the answer on each segment, in order: the mean probability of its windows."""
        for number, (segment, probabilities) in enumerate(self._segments(recording)):
            yield Answer(segment.start, segment.end, number, 1, self._decide(probabilities), probabilities)

    def file_record(self, recording: ScoredRecording, answer: Answer | None = None) -> dict:
        """Return one record over the whole recording; ``answer`` is that of ``whole``, where it is at hand."""
        values = self._values(answer or self.whole(recording))
        return {**self._common(recording), **values, **self._context(recording, 0)}

    def segment_record(self, recording: ScoredRecording, answer: Answer) -> dict:
        """Return the record of a segment or of a detection."""
        rate, common = self.model.frontend.sample_rate, self._common(recording)
        common["processing_time"] = round(answer.n_segments * recording.seconds_spent / recording.n_segments, 4)
        return {**common, **self._values(answer), "segment_index": answer.number,
                "segment_start_ms": round(1000 * answer.start / rate),
                "segment_end_ms": round(1000 * answer.end / rate), **self._context(recording, answer.start / rate)}

    def _common(self, recording: ScoredRecording) -> dict:
        return {"file_path": name_to_text(recording.name), "predicted_class": "", "confidence": 0.0,
                "above_threshold": False, "top_class": "", "top_confidence": 0.0,
                "duration_seconds": round(recording.outcome.duration_seconds or 0.0, 3),
                "n_segments": recording.n_segments, "processing_time": round(recording.seconds_spent, 4)}

    def _context(self, recording: ScoredRecording, start_seconds: float) -> dict:
        """Return where and when, as far as it is known, and what was wrong."""
        record = recorder_columns(recording.recorder, after_seconds=start_seconds)
        if recording.outcome.reason:
            record["damage"] = name_to_text(recording.outcome.reason)
        return record

    def _values(self, answer: Answer) -> dict[str, Any]:
        decision = answer.decision
        values = {**asdict(decision), "confidence": round(decision.confidence, _PROBABILITY_DECIMALS),
                  "top_confidence": round(decision.top_confidence, _PROBABILITY_DECIMALS)}
        if self.settings.top_k or self.settings.return_all_scores:
            scores = {name: round(float(p), _PROBABILITY_DECIMALS)
                      for name, p in zip(self.model.classes.names, answer.probabilities, strict=True)}
            if self.settings.top_k:
                ranked = sorted(scores, key=lambda name: -scores[name])
                values["top_k"] = [{"class": name, "probability": scores[name]}
                                   for name in ranked[:self.settings.top_k]]
            if self.settings.return_all_scores:
                values["all_scores"] = scores
        return values

    def _segments(self, recording: ScoredRecording) -> Iterator[tuple[Segment, np.ndarray]]:
        for scores in recording.spans():
            if not scores.span.n_windows:  # all that was left of the recording was too short to add anything
                continue
            probabilities = self.model.calibration.probabilities(scores.logits)
            for segment in segments_of(self.plan, scores.span):
                yield segment, probabilities[segment.rows].mean(axis=0)

    def _decide(self, probabilities: np.ndarray) -> Decision:
        return self.rules.decide(dict(zip(self.model.classes.names, probabilities.tolist(), strict=True)))


def site_of(recorder: RecorderFacts, name: str) -> str:
    """Return what the recorder calls the site of a recording, or else the recorder, or else the recording's folder."""
    return recorder.site or recorder.recorder_id or os.path.dirname(name)


def recorder_columns(recorder: RecorderFacts, *, after_seconds: float = 0.0) -> dict:
    """Return what is known of when and where, in the columns that all tables share.

    ``recorded_at`` is told only with its offset from UTC.
    """
    columns: dict[str, Any] = {}
    if recorder.started is not None and recorder.started.tzinfo is not None:
        # through UTC: a clock may be set to summer time meanwhile
        moment = recorder.started.astimezone(timezone.utc) + timedelta(seconds=after_seconds)
        columns["recorded_at"] = moment.astimezone(recorder.started.tzinfo).isoformat()
    for name in ("recorder_id", "site", "latitude", "longitude", "temperature_c", "gain"):
        value = getattr(recorder, name)
        if value not in ("", None):
            columns[name] = value
    return columns
