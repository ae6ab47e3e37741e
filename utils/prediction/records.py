"""What is written of a recording: one record for all of it, or one for each segment."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from models.classes import DecisionRules
from models.description import ModelDescription
from utils.audio.recordings import Outcome
from utils.storage.names import name_to_text, text_to_name

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
    """

    segment_mode: bool = False
    segment_duration_ms: int | None = None
    segment_overlap_ms: int = 0
    use_thresholds: bool = True
    min_confidence: float | None = None
    return_all_scores: bool = False
    top_k: int = 0


@dataclass
class ScoredSegment:
    """A segment and the network's logits of its windows, each float32 ``(n_classes,)``."""

    start: int
    end: int
    logits: list[np.ndarray] = field(default_factory=list)


@dataclass
class ScoredRecording:
    """A recording that went through the network.

    Parameters
    ----------
    name : str
        Its path.
    outcome : Outcome
        What became of it.
    segments : list of ScoredSegment
        In order.
    recorded_at : datetime or None
        When it began, where the recorder tells.
    seconds_spent : float
        Time spent on it, without waiting.
    """

    name: str
    outcome: Outcome = Outcome()
    segments: list[ScoredSegment] = field(default_factory=list)
    recorded_at: datetime | None = None
    seconds_spent: float = 0.0


@dataclass(frozen=True)
class PredictedRecording:
    """What is reported of one recording: what became of it, and its records, none where it could not be used."""

    file_path: str
    outcome: Outcome
    records: list[dict]

    def error_record(self) -> dict:
        """Return what stands under ``errors`` for a recording that could not be used."""
        return {"file_path": self.file_path, "status": self.outcome.status,
                "error": name_to_text(self.outcome.reason)}

    def to_json(self) -> dict:
        """Return plain types for the journal."""
        return {"file_path": self.file_path, "records": self.records,
                "error": None if self.outcome.status == "ok" else self.error_record(),
                "duration_seconds": self.outcome.duration_seconds or 0.0}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "PredictedRecording":
        """Rebuild what ``to_json`` gave."""
        error = values["error"]
        outcome = (Outcome(error["status"], text_to_name(error["error"])) if error
                   else Outcome(duration_seconds=values["duration_seconds"]))
        return cls(values["file_path"], outcome, values["records"])


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
    """

    model: ModelDescription
    rules: DecisionRules
    settings: PredictionSettings

    def file_record(self, recording: ScoredRecording) -> dict:
        """Return one record over the whole recording: the mean probability of its segments."""
        per_segment = np.array([self._probabilities(segment) for segment in recording.segments])
        record = {"file_path": name_to_text(recording.name), **self._decision(per_segment.mean(axis=0)),
                  "duration_seconds": round(recording.outcome.duration_seconds or 0.0, 3),
                  "n_segments": len(per_segment), "processing_time": round(recording.seconds_spent, 4)}
        if recording.recorded_at is not None:
            record["recorded_at"] = recording.recorded_at.isoformat()
        if recording.outcome.reason:
            record["damage"] = name_to_text(recording.outcome.reason)
        return record

    def segment_records(self, recording: ScoredRecording) -> list[dict]:
        """Return one record per segment: the mean probability of its windows."""
        rate, common = self.model.frontend.sample_rate, self.file_record(recording)
        common["processing_time"] = round(recording.seconds_spent / len(recording.segments), 4)
        records = []
        for index, segment in enumerate(recording.segments):
            record = {**common, **self._decision(self._probabilities(segment)), "segment_index": index,
                      "segment_start_ms": round(1000 * segment.start / rate),
                      "segment_end_ms": round(1000 * segment.end / rate)}
            if recording.recorded_at is not None:
                started = recording.recorded_at + timedelta(seconds=segment.start / rate)
                record["recorded_at"] = started.isoformat()
            records.append(record)
        return records

    def _probabilities(self, segment: ScoredSegment) -> np.ndarray:
        return np.mean(self.model.calibration.probabilities(np.array(segment.logits)), axis=0)

    def _decision(self, probabilities: np.ndarray) -> dict[str, Any]:
        scores = {name: round(float(p), _PROBABILITY_DECIMALS)
                  for name, p in zip(self.model.classes.names, probabilities, strict=True)}
        decision: dict[str, Any] = asdict(self.rules.decide(scores))
        if self.settings.top_k:
            ranked = sorted(scores, key=lambda name: -scores[name])
            decision["top_k"] = [{"class": name, "probability": scores[name]}
                                 for name in ranked[:self.settings.top_k]]
        if self.settings.return_all_scores:
            decision["all_scores"] = scores
        return decision
