"""The table that an analysis of a survey starts from: site by night by class, with effort and with zeros."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from utils.audio.recorders import RecorderFacts

NIGHT_COLUMNS = ("site", "night", "class_name", "n_detections", "n_recordings", "effort_hours")
_HALF_DAY = timedelta(hours=12)


@dataclass
class _Night:
    n_recordings: int = 0
    effort_seconds: float = 0.0
    detections: dict[str, int] = field(default_factory=dict)


class Nights:
    """Counts detections and hours by site and night.

    A night lasts from noon to noon by the recorder's clock and is called by the date it begins on; recordings whose
    time nobody knows share a night without a name. A site is the one that the recording tells, or else its recorder, or
    else the folder it lies in.

    Parameters
    ----------
    class_names : sequence of str
        Every one of them has a row for every site and night.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = tuple(class_names)
        self._nights: dict[tuple[str, str], _Night] = {}

    def add_effort(self, path: Path, recorder: RecorderFacts, *, duration_seconds: float) -> None:
        """Count a recording; one that goes on past noon counts in both nights, with its part of the hours."""
        begin, left = recorder.started, duration_seconds
        while True:
            part = left if begin is None else min(left, _seconds_to_noon(begin))
            night = self._night(path, recorder, begin)
            night.n_recordings += 1
            night.effort_seconds += part
            left -= part
            if left <= 0 or begin is None:
                return
            begin += timedelta(seconds=part)

    def add_detection(self, path: Path, recorder: RecorderFacts, class_name: str, *, start_seconds: float) -> None:
        """Count a detection in the night in which it begins."""
        moment = recorder.started + timedelta(seconds=start_seconds) if recorder.started is not None else None
        detections = self._night(path, recorder, moment).detections
        detections[class_name] = detections.get(class_name, 0) + 1

    def rows(self) -> Iterator[dict]:
        """Yield a row for each site, night and class, in order."""
        for (site, name), night in sorted(self._nights.items()):
            for class_name in self._class_names:
                yield {"site": site, "night": name, "class_name": class_name,
                       "n_detections": night.detections.get(class_name, 0), "n_recordings": night.n_recordings,
                       "effort_hours": round(night.effort_seconds / 3600, 4)}

    def _night(self, path: Path, recorder: RecorderFacts, moment: datetime | None) -> _Night:
        site = recorder.site or recorder.recorder_id or os.path.basename(os.path.dirname(os.path.abspath(path)))
        name = (moment - _HALF_DAY).date().isoformat() if moment is not None else ""
        return self._nights.setdefault((site, name), _Night())


def _seconds_to_noon(moment: datetime) -> float:
    noon = moment.replace(hour=12, minute=0, second=0, microsecond=0)
    return ((noon if moment < noon else noon + 2 * _HALF_DAY) - moment).total_seconds()
