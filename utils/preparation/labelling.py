"""Which label each window gets, and what became of every labelled region: counted in samples, nothing unaccounted for.

Windows lie where prediction would cut them; annotations lie where somebody heard something. A window gets the label of
which it holds most, if it holds enough of it: ``min_overlap_seconds``, or half of one of its annotations where those
are shorter. Where two labels fill a window equally it gets neither.
"""

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from utils.preparation.regions import Region

REGION_COLUMNS = ("path", "class_name", "start_seconds", "end_seconds", "low_hertz", "high_hertz", "n_windows",
                  "labelled_seconds", "reason")
QUIET, TIE, TOO_LITTLE = "quiet", "tie", "too little"  # why a window has no label although something is marked in it
_LEAST_TOLD_SECONDS = 0.0005  # of a region that is in no window; less is rounding


class Decision(NamedTuple):
    """What a window was given.

    Parameters
    ----------
    class_name : str
        Its label, or empty.
    cause : str
        Why it has none: ``TIE``, ``TOO_LITTLE``, or empty where nothing is marked in it.
    is_marked : bool
        Whether somebody marked a part of the recording for this label, rather than the whole.
    """

    class_name: str = ""
    cause: str = ""
    is_marked: bool = False


@dataclass(frozen=True)
class RegionOutcome:
    """What became of a labelled region.

    Parameters
    ----------
    class_name : str
        Its label.
    start_seconds, end_seconds : float, float or None
        As the source has it.
    low_hertz, high_hertz : float or None
        As the source has it.
    n_windows : int
        Windows of its label that hold some of it.
    labelled_seconds : float
        How much of it lies in them.
    reason : str
        Why the rest does not; empty where there is no rest.
    """

    class_name: str
    start_seconds: float
    end_seconds: float | None
    low_hertz: float | None
    high_hertz: float | None
    n_windows: int
    labelled_seconds: float
    reason: str


class WindowLabeller:
    """Labels the windows of one recording as they pass by, in ascending order, and accounts for its regions.

    Parameters
    ----------
    regions : sequence of Region
        What is marked in it; they may overlap.
    sample_rate : int
        Hz of the samples that windows are counted in.
    min_overlap_seconds : float
        How much of a label a window must hold.
    background : str or None
        Label of windows in which nothing at all is marked; None leaves them out.
    """

    def __init__(self, regions: Sequence[Region], *, sample_rate: int, min_overlap_seconds: float,
                 background: str | None) -> None:
        self._regions, self._rate, self._background = regions, sample_rate, background
        self._min_overlap = round(min_overlap_seconds * sample_rate)
        self._spans = [_span(region, sample_rate) for region in regions]
        self._waiting = sorted(range(len(regions)), key=lambda n: self._spans[n], reverse=True)
        self._under_way: list[int] = []
        self._windows: list[tuple[int, int, str, str]] = []  # start, end, label, cause

    def label(self, start: int, end: int) -> Decision:
        """Decide on the window of samples ``start`` to ``end``; windows ascend in both."""
        while self._waiting and self._spans[self._waiting[-1]][0] < end:
            self._under_way.append(self._waiting.pop())
        self._under_way = [n for n in self._under_way if self._spans[n][1] > start]
        decision = self._decide(start, end)
        self._windows.append((start, end, decision.class_name, decision.cause))
        return decision

    def take_back(self, start: int, cause: str) -> None:
        """Note that the window that began at ``start`` is left out after all."""
        place = bisect.bisect_left(self._windows, start, key=lambda window: window[0])
        first, end, _, _ = self._windows[place]
        self._windows[place] = (first, end, "", cause)

    def outcomes(self, n_samples: int) -> list[RegionOutcome]:
        """Return what became of each region of a recording of ``n_samples``, in the order of the regions."""
        return [self._outcome(region, span, n_samples) for region, span in zip(self._regions, self._spans, strict=True)]

    def _decide(self, start: int, end: int) -> Decision:
        held = [n for n in self._under_way if self._spans[n][0] < end]
        if not held:
            return Decision(self._background or "")
        by_class: dict[str, list[int]] = {}
        for n in held:
            by_class.setdefault(self._regions[n].class_name, []).append(n)
        overlaps = {name: _union_length((max(self._spans[n][0], start), min(self._spans[n][1], end)) for n in numbers)
                    for name, numbers in by_class.items()}
        enough = {name: overlap for name, overlap in overlaps.items()
                  if overlap >= min(self._min_overlap, end - start) or any(
                      2 * self._overlap(n, start, end) >= self._spans[n][1] - self._spans[n][0]
                      for n in by_class[name])}
        if not enough:
            return Decision(cause=TOO_LITTLE)
        most = max(enough.values())
        winners = [name for name, overlap in enough.items() if overlap == most]
        if len(winners) > 1:
            return Decision(cause=TIE)
        return Decision(winners[0], is_marked=not all(self._regions[n].is_whole for n in by_class[winners[0]]))

    def _overlap(self, number: int, start: int, end: int) -> float:
        first, last = self._spans[number]
        return min(last, end) - max(first, start)

    def _outcome(self, region: Region, span: tuple[int, float], n_samples: int) -> RegionOutcome:
        first, last = span[0], min(span[1], n_samples)
        near = self._windows_over(first, last)
        own = [(max(start, first), min(end, last)) for start, end, name, _ in near if name == region.class_name]
        labelled = _union_length(own) if own else 0
        reasons = []
        if (last - first - labelled) / self._rate > _LEAST_TOLD_SECONDS or not own and last > first:
            reasons.append(f"{(last - first - labelled) / self._rate:.3f} s of it are in no window of its label:"
                           f" {_causes(near, region.class_name)}")
        if region.end_seconds is not None and span[1] - n_samples > _LEAST_TOLD_SECONDS * self._rate:
            reasons.append(f"the recording ends at {n_samples / self._rate:.3f} s")
        return RegionOutcome(region.class_name, region.start_seconds, region.end_seconds, region.low_hertz,
                             region.high_hertz, len(own), round(labelled / self._rate, 6), "; ".join(reasons))

    def _windows_over(self, first: int, last: float) -> list[tuple[int, int, str, str]]:
        # both ends ascend: the last window alone may be moved back, but ends later than all
        low = bisect.bisect_right(self._windows, first, key=lambda window: window[1])
        high = bisect.bisect_left(self._windows, last, key=lambda window: window[0])
        return self._windows[low:high]


def lost_regions(regions: Iterable[Region], reason: str) -> list[RegionOutcome]:
    """Return the outcome of regions whose recording gave nothing at all."""
    return [RegionOutcome(region.class_name, region.start_seconds, region.end_seconds, region.low_hertz,
                          region.high_hertz, 0, 0.0, reason) for region in regions]


def recounted(outcome: RegionOutcome, kept: Sequence[tuple[int, int]], *, sample_rate: int,
              why: str) -> RegionOutcome:
    """Return what became of a region after some windows of its label were left out.

    Parameters
    ----------
    outcome : RegionOutcome
        With all windows.
    kept : sequence of (int, int)
        First sample of each window of its label that is left, and the one after its last.
    sample_rate : int
        Hz.
    why : str
        Why the others were left out; told where the region lost one.
    """
    first, last = _span(Region(outcome.class_name, outcome.start_seconds, outcome.end_seconds), sample_rate)
    own = [(max(start, first), min(end, last)) for start, end in kept if start < last and end > first]
    if len(own) == outcome.n_windows:
        return outcome
    return replace(outcome, n_windows=len(own), labelled_seconds=round(_union_length(own) / sample_rate, 6),
                   reason="; ".join(filter(None, (outcome.reason, why))))


def _span(region: Region, sample_rate: int) -> tuple[int, float]:
    """Return a region in samples, at least one long; an open end is infinite."""
    first = round(region.start_seconds * sample_rate)
    return first, math.inf if region.end_seconds is None else max(first + 1, round(region.end_seconds * sample_rate))


def _union_length(spans: Iterable[tuple[float, float]]) -> int:
    """Return how many samples lie in at least one span."""
    total, reached = 0.0, -math.inf
    for first, last in sorted(spans):
        total += max(0.0, last - max(first, reached))
        reached = max(reached, last)
    return int(total)


def _causes(near: Sequence[tuple[int, int, str, str]], class_name: str) -> str:
    winners = Counter(name for _, _, name, _ in near if name and name != class_name)
    causes = Counter(cause for _, _, _, cause in near if cause)
    told = [f"{n} {'hold' if n > 1 else 'holds'} more of {name}" for name, n in winners.most_common()]
    words = {QUIET: ("is quiet", "are quiet"), TIE: ("holds as much of another", "hold as much of another"),
             TOO_LITTLE: ("holds too little of it", "hold too little of it")}
    told += [f"{n} {words[cause][n > 1]}" for cause, n in causes.most_common()]
    return f"of the windows there, {', '.join(told)}" if told else "no window reaches it"
