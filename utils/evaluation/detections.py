"""Detections against annotations: which calls were found, which detections are right, and how sure that is.

Judged twice, as is usual for sound events (Mesaros, Heittola and Virtanen 2016, Applied Sciences 6(6):162): *by
events*, where each detection may be right about one annotation of its class and each annotation is found once; and *by
time*, where cells of a fixed grid are right, missed or false, so that one detection over several calls is judged by
what it covers. Counts are those of recordings, which the bootstrap draws.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.efficientnet_config import BACKGROUND_CLASS
from models.errors import ConfigError, ManifestError
from utils.audio.annotation_tables import AnnotationTables, Marks, read_annotation_tables
from utils.audio.matching import RecordingIndex
from utils.evaluation.detection_files import Event, Predictions, event, read_detections
from utils.evaluation.detection_scores import Resampling, Scored, confidence_curve, overlap_curve, score_counts
from utils.evaluation.event_matching import EventPairs, apart, cells_of, match_events, union_lengths

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
IOU_LEVELS = tuple(tenth / 10 for tenth in range(1, 10))
RIGHT, FALSE, MISSED = "right", "false", "missed"


@dataclass(frozen=True, kw_only=True)
class DetectionSettings:
    """How detections are judged.

    Parameters
    ----------
    n_bootstrap : int
        Resamples of the intervals.
    confidence : float, range 0..1
        Of the intervals.
    seed : int
        Of the resamples.
    min_overlap : float, range 0..1, 0 excluded
        Share of the shorter of a detection and an annotation that lies in the other, from which on they may be the same
        event. A window is longer than most calls, so a share of both together would call every window wrong.
    grid_seconds : float
        Cell of the judgement by time.
    label_map : mapping of str to str
        Class of a label in the annotations; a label that it lacks is the class of that name.
    class_names : tuple of str
        What counts; every other label and detection is left out. All that is annotated or detected where empty.
    background_label : str
        Class of stretches that hold no call: neither an annotation nor a detection of it is an event.
    label_column : str or None
        Column of the labels in the annotations; None looks for a usual name.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    n_bootstrap: int
    confidence: float
    seed: int
    min_overlap: float = 0.5
    grid_seconds: float = 1.0
    label_map: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    background_label: str = BACKGROUND_CLASS
    label_column: str | None = None

    def __post_init__(self) -> None:
        if self.n_bootstrap < 1:
            raise ConfigError(f"n_bootstrap must be at least 1, got {self.n_bootstrap}")
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence must be in 0..1 (both excluded), got {self.confidence}: 95 % is 0.95")
        if not 0 < self.min_overlap <= 1:
            raise ConfigError(f"min_overlap must be in 0..1 (0 excluded), got {self.min_overlap}: half is 0.5")
        if not self.grid_seconds >= 0.001:
            raise ConfigError(f"grid_seconds must be at least 0.001, got {self.grid_seconds}")


class ComparedRecording(NamedTuple):
    """A recording that was both heard and annotated.

    Parameters
    ----------
    path : str
        As the predictions call it.
    duration_seconds : float
        What was listened to.
    detections, annotations : sequence of Event
        In it; equal ones count once among annotations.
    """

    path: str
    duration_seconds: float
    detections: Sequence[Event]
    annotations: Sequence[Event]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What the comparison is about, and what is not part of it.

    Parameters
    ----------
    not_annotated : int
        Recordings that were heard and have no table.
    not_heard : tuple of str
        Recordings that were annotated and not heard, with the reason where prediction could not use them.
    unsure : tuple of str
        Recordings that were heard and are not wholly annotated: only detections were reviewed, or a box has no label.
    left_out : mapping of str to int
        Annotations and detections of labels that do not count.
    """

    not_annotated: int = 0
    not_heard: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)


class EventOutcome(NamedTuple):
    """A detection, ``right`` or ``false``, and the annotation that it is; or one that was ``missed``. Milliseconds."""

    path: str
    class_name: str
    outcome: str
    start_ms: int | None
    end_ms: int | None
    confidence: float | None
    annotation_start_ms: int | None
    annotation_end_ms: int | None


@dataclass(frozen=True, kw_only=True)
class DetectionEvaluation:
    """What is found of detections, as ``metrics.json`` holds it.

    Parameters
    ----------
    predictions, annotations : str
        Names of what was compared.
    settings : DetectionSettings
        How.
    coverage : Coverage
        What was not.
    n_recordings : int
        Recordings that were compared.
    hours : float
        Their length together.
    events, time : Scored
        The judgement by events, in events; that by time, in cells of the grid.
    by_overlap : dict
        Lists over ``iou``: scores where a detection must share that much of the union with its annotation.
    by_confidence : dict or None
        Lists over ``threshold``: scores of the detections that reach it; None where confidences are unknown.
    only_annotated, only_detected : tuple of str
        Classes that the other side lacks.
    outcomes : tuple of EventOutcome
        Every detection and every missed annotation, by recording and time.
    """

    predictions: str
    annotations: str
    settings: DetectionSettings
    coverage: Coverage
    n_recordings: int
    hours: float
    events: Scored
    time: Scored
    by_overlap: dict
    by_confidence: dict | None
    only_annotated: tuple[str, ...]
    only_detected: tuple[str, ...]
    outcomes: tuple[EventOutcome, ...]

    def to_dict(self) -> dict:
        """Return the content of ``metrics.json``: plain JSON types, None where a score is undefined."""
        settings, coverage = asdict(self.settings), asdict(self.coverage)
        return {"format_version": FORMAT_VERSION, "predictions": self.predictions, "annotations": self.annotations,
                "settings": {**settings, "class_names": list(settings["class_names"])},
                "coverage": {name: list(value) if isinstance(value, tuple) else value
                             for name, value in coverage.items()},
                "n_recordings": self.n_recordings, "hours": self.hours, "class_names": list(self.events.class_names),
                "only_annotated": list(self.only_annotated), "only_detected": list(self.only_detected),
                "events": self.events.to_dict(), "time": self.time.to_dict(), "by_overlap": self.by_overlap,
                "by_confidence": self.by_confidence}


def evaluate_detections(predictions: Path, annotations: Path, settings: DetectionSettings) -> DetectionEvaluation:
    """Compare what prediction found with what people marked.

    Parameters
    ----------
    predictions : Path
        What ``read_detections`` reads.
    annotations : Path
        A table or a folder of them, see ``read_annotation_tables``. A recording counts when it has one; an empty one
        says that nothing is there.
    settings : DetectionSettings
        How detections are judged.

    Returns
    -------
    DetectionEvaluation
        What is found.

    Raises
    ------
    ManifestError
        If one of them cannot be read, or no recording is in both.
    """
    found = read_detections(predictions)
    index = RecordingIndex(found.recordings, place=f"among the recordings of {found.path.name}")
    tables = read_annotation_tables(annotations, index, background_label=settings.background_label,
                                    label_column=settings.label_column)
    for problem in tables.problems:
        logger.warning("%s", problem)
    recordings, coverage = _compared(found, tables, settings)
    if not recordings:
        raise ManifestError(f"no recording of {found.path} is annotated in {annotations}:"
                            f" {(*tables.problems, *coverage.unsure, *coverage.not_heard, 'it holds no table')[0]}")
    return compare(recordings, settings, predictions=found.path.name, annotations=annotations.name, coverage=coverage)


def compare(recordings: Sequence[ComparedRecording], settings: DetectionSettings, *, predictions: str = "",
            annotations: str = "", coverage: Coverage = Coverage()) -> DetectionEvaluation:
    """Judge the detections of recordings.

    Parameters
    ----------
    recordings : sequence of ComparedRecording
        At least one; their paths differ.
    settings : DetectionSettings
        How.
    predictions, annotations : str
        What they are called in the report.
    coverage : Coverage
        What is not among them.

    Returns
    -------
    DetectionEvaluation
        What is found.
    """
    annotated = {one.class_name for recording in recordings for one in recording.annotations}
    detected = {one.class_name for recording in recordings for one in recording.detections}
    class_names = tuple(sorted(annotated | detected))
    resampling = Resampling(n_bootstrap=settings.n_bootstrap, confidence=settings.confidence, seed=settings.seed)
    judged = [_judge(recording, class_names, settings) for recording in recordings]
    outcomes = tuple(outcome for one in judged for outcome in one.outcomes)
    events, cells = (np.stack([getattr(one, name) for one in judged]) for name in ("events", "cells"))
    by_iou = np.sum([one.by_iou for one in judged], axis=0)
    hours = np.array([recording.duration_seconds / 3600 for recording in recordings])
    return DetectionEvaluation(
        predictions=predictions, annotations=annotations, settings=settings, coverage=coverage,
        n_recordings=len(recordings), hours=float(hours.sum()),
        events=score_counts(events, class_names, resampling, hours=hours),
        time=score_counts(cells, class_names, resampling, hours=hours),
        by_overlap=overlap_curve(by_iou, events.sum(axis=0), class_names, levels=IOU_LEVELS),
        by_confidence=confidence_curve(
            [(one.class_name, one.outcome == RIGHT, one.confidence) for one in outcomes if one.outcome != MISSED],
            events.sum(axis=0)[:, 2], class_names, hours=float(hours.sum())),
        only_annotated=tuple(sorted(annotated - detected)), only_detected=tuple(sorted(detected - annotated)),
        outcomes=outcomes)


class _Judged(NamedTuple):
    """A recording: right, detected and annotated of each class, in events and in cells; right at each IoU."""

    events: np.ndarray
    cells: np.ndarray
    by_iou: np.ndarray
    outcomes: list[EventOutcome]


def _judge(recording: ComparedRecording, class_names: Sequence[str], settings: DetectionSettings) -> _Judged:
    found = recording.detections
    # marked twice, by two people or in two views, is marked once
    true = list(dict.fromkeys(one._replace(confidence=None) for one in recording.annotations))
    label_of = {name: label for label, name in enumerate(class_names)}
    (detections, labels), (annotations, true_labels) = (_spans(events, label_of) for events in (found, true))
    latest = max((one.end_ms for one in (*found, *true)), default=0)
    pairs = EventPairs.of(apart(detections, labels, latest=latest), apart(annotations, true_labels, latest=latest))
    confidences = np.array([one.confidence or 0.0 for one in found])

    def count(of_labels: np.ndarray) -> np.ndarray:
        return np.bincount(of_labels, minlength=len(class_names))

    partners = match_events(pairs, confidences, least=settings.min_overlap, of_union=False)
    by_iou = [count(labels[match_events(pairs, confidences, least=level, of_union=True) >= 0]) for level in IOU_LEVELS]
    return _Judged(np.column_stack([count(labels[partners >= 0]), count(labels), count(true_labels)]),
                   _cells(detections, labels, annotations, true_labels, len(class_names),
                          cell_ms=round(1000 * settings.grid_seconds)),
                   np.column_stack(by_iou), _outcomes(recording.path, found, true, partners))


def _spans(events: Sequence[Event], label_of: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    return (np.array([one[:2] for one in events], dtype=np.int64).reshape(-1, 2),
            np.array([label_of[one.class_name] for one in events], dtype=np.int64))


def _cells(detections: np.ndarray, labels: np.ndarray, annotations: np.ndarray, true_labels: np.ndarray,
           n_classes: int, *, cell_ms: int) -> np.ndarray:
    """Return cells in which both are, those of detections, those of annotations: of each class."""
    found, true = (cells_of(spans, cell_ms=cell_ms) for spans in (detections, annotations))
    n_found, n_true, n_any = (union_lengths(spans, of_spans, n_labels=n_classes) // cell_ms for spans, of_spans in (
        (found, labels), (true, true_labels),
        (np.concatenate([found, true]), np.concatenate([labels, true_labels]))))
    return np.column_stack([n_found + n_true - n_any, n_found, n_true])


def _outcomes(path: str, found: Sequence[Event], true: Sequence[Event], partners: np.ndarray) -> list[EventOutcome]:
    rows = []
    for one, partner in zip(found, partners.tolist(), strict=True):
        told = true[partner][:2] if partner >= 0 else (None, None)
        rows.append(EventOutcome(path, one.class_name, RIGHT if partner >= 0 else FALSE, one.start_ms, one.end_ms,
                                 one.confidence, *told))
    matched = set(partners.tolist())
    rows += [EventOutcome(path, one.class_name, MISSED, None, None, None, *one[:2])
             for number, one in enumerate(true) if number not in matched]
    return sorted(rows, key=_moment)


def _moment(outcome: EventOutcome) -> tuple:
    start = outcome.annotation_start_ms if outcome.start_ms is None else outcome.start_ms
    return start, outcome.class_name, outcome.outcome


def _compared(found: Predictions, tables: AnnotationTables, settings: DetectionSettings
              ) -> tuple[list[ComparedRecording], Coverage]:
    """Return the recordings that are in both, and what is not."""
    left_out: Counter[str] = Counter()
    recordings, unsure, not_heard = [], [], list(tables.absent)
    for path, marks in sorted(tables.marks.items()):
        heard = found.recordings[path]
        if heard.status != "ok":
            not_heard.append(f"{path} ({heard.status})")
        elif not marks.is_annotated or marks.n_unnamed:
            unsure.append(path)
        else:
            recordings.append(ComparedRecording(
                path, heard.duration_seconds, _counting(found.detections.get(path, []), settings, left_out),
                _counting(_annotations(marks, settings), settings, left_out)))
    n_ok = sum(heard.status == "ok" for heard in found.recordings.values())
    return recordings, Coverage(not_annotated=n_ok - len(recordings) - len(unsure), not_heard=tuple(not_heard),
                                unsure=tuple(unsure), left_out=dict(sorted(left_out.items())))


def _annotations(marks: Marks, settings: DetectionSettings) -> list[Event]:
    return [event(sound.start_seconds, sound.end_seconds, settings.label_map.get(sound.label, sound.label))
            for sound in marks.sounds]


def _counting(events: Sequence[Event], settings: DetectionSettings, left_out: Counter[str]) -> list[Event]:
    """Return the events of classes that count, and count the others."""
    counts = [one.class_name != settings.background_label
              and (not settings.class_names or one.class_name in settings.class_names) for one in events]
    left_out.update(one.class_name for one, does in zip(events, counts) if not does)
    return [one for one, does in zip(events, counts) if does]
