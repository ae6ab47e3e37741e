"""Which detections a review shows: all of them, or of too many a fair share of each class, site and day."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta, timezone
from typing import Any

from utils.audio.recorders import RecorderFacts, read_recorder
from utils.prediction.outputs import ResultsHead, Writer
from utils.prediction.records import Answer, ScoredRecording, site_of
from utils.storage.names import text_to_name

MOST_SHOWN = 2000
_DECIMALS = 6  # of seconds and probabilities, as in all tables


@dataclass(frozen=True, kw_only=True)
class ReviewItem:
    """A stretch of a recording that a person is asked about.

    Parameters
    ----------
    recording : str
        Path of the recording, as the run has it.
    start_seconds, end_seconds : float
        Where it lies.
    model_class : str
        What the model says that it is.
    confidence : float
        How sure that is, 0..1.
    recorded_at : str
        When it begins by the recorder's clock, ISO 8601; empty where nobody knows.
    site : str
        The one that the recording tells, or else its recorder, or else its folder.
    reason : str
        Why it comes first; empty for a detection.
    """

    recording: str
    start_seconds: float
    end_seconds: float
    model_class: str
    confidence: float
    recorded_at: str = ""
    site: str = ""
    reason: str = ""

    @classmethod
    def of_detection(cls, recording: ScoredRecording, answer: Answer, *, sample_rate: int) -> "ReviewItem":
        """Return the item for a detection whose samples are counted at a rate."""
        recorder, start = recording.recorder, answer.start / sample_rate
        return cls(recording=recording.name, start_seconds=round(start, _DECIMALS),
                   end_seconds=round(answer.end / sample_rate, _DECIMALS),
                   model_class=answer.decision.predicted_class, confidence=round(answer.decision.confidence, _DECIMALS),
                   recorded_at=_clock(recorder, start),
                   site=site_of(recorder, recording.name))

    @classmethod
    def of_suggestion(cls, row: Mapping[str, Any]) -> "ReviewItem":
        """Return the item for a row of ``suggest_segments``."""
        name = text_to_name(row["file_path"])
        return cls(recording=name, start_seconds=row["start_seconds"], end_seconds=row["end_seconds"],
                   model_class=row["model_class"], confidence=row["confidence"], reason=row["reason"],
                   recorded_at=row.get("recorded_at") or _clock(read_recorder(name), row["start_seconds"]))

    @property
    def place(self) -> tuple[str, float, float]:
        """What a decision is about."""
        return self.recording, self.start_seconds, self.end_seconds


def _clock(recorder: RecorderFacts, start_seconds: float) -> str:
    started = recorder.started
    if started is None:
        return ""
    after = timedelta(seconds=start_seconds)
    # through UTC: a clock may be set to summer time meanwhile
    moment = (started + after if started.tzinfo is None
              else (started.astimezone(timezone.utc) + after).astimezone(started.tzinfo))
    return moment.isoformat(timespec="seconds")


class ReviewChoice(Writer):
    """Takes the detections of a run and keeps those that are shown; memory does not grow with the run.

    Where there are more than can be shown, each class has as many as another, or all it has. Those of a class come in
    turn from each site and day, the most confident one of each first: whether a species was there that day is what a
    survey asks most.

    Parameters
    ----------
    head : ResultsHead
        What is known of the run.
    suggested : iterable of ReviewItem
        What is shown first, whether it was detected or not.
    most : int
        How many are shown.

    Attributes
    ----------
    n_found : Counter
        Detections of each class that were not suggested, shown or not.
    """

    def __init__(self, head: ResultsHead, *, suggested: Iterable[ReviewItem] = (), most: int = MOST_SHOWN) -> None:
        self.head = head
        self._suggested = {item.place: item for item in itertools.islice(suggested, most)}
        self._most = most - len(self._suggested)
        self.n_found: Counter[str] = Counter()
        self._held: list[ReviewItem] = []

    def add(self, recording: ScoredRecording, answer: Answer, record: dict) -> None:
        """See ``Writer.add``."""
        if not answer.decision.above_threshold:
            return
        item = ReviewItem.of_detection(recording, answer, sample_rate=self.head.sample_rate)
        if item.place in self._suggested:
            return
        self.n_found[item.model_class] += 1
        self._held.append(item)
        if len(self._held) > 2 * self._most:
            self._held = fair_share(self._held, most=self._most)

    def shown(self) -> list[ReviewItem]:
        """Return what is shown: what was suggested, in its order, then detections by class and time."""
        chosen = fair_share(self._held, most=self._most)
        names = {name: number for number, name in enumerate(self.head.class_names)}
        return [*self._suggested.values(), *sorted(chosen, key=lambda item: (
            names.get(item.model_class, len(names)), item.recorded_at, item.recording, item.start_seconds))]


def fair_share(items: Iterable[ReviewItem], *, most: int) -> list[ReviewItem]:
    """Return the items that come first when classes take turns, and in a class sites and days.

    Whether items come all at once or what was chosen of some comes with others, the result is the same.
    """
    groups: dict[tuple[str, str, str], list[ReviewItem]] = defaultdict(list)
    for item in items:
        groups[item.model_class, item.site, item.recorded_at[:10]].append(item)
    of_class: dict[str, list[tuple[int, float, str, float, ReviewItem]]] = defaultdict(list)
    for (name, _, _), group in groups.items():
        group.sort(key=_best_first)
        of_class[name] += [(turn, *_best_first(item), item) for turn, item in enumerate(group)]
    ordered = []
    for name, turns in of_class.items():
        turns.sort(key=lambda one: one[:-1])
        ordered += [(number, name, one[-1]) for number, one in enumerate(turns)]
    ordered.sort(key=lambda one: one[:2])
    return [item for _, _, item in ordered[:most]]


def _best_first(item: ReviewItem) -> tuple[float, str, float]:
    return -item.confidence, item.recording, item.start_seconds
