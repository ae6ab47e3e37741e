"""Cutting a recording into windows while it passes by, a block at a time."""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

Part = tuple[int, int | None]  # first sample and the one after the last; None is the end of the recording


class Window(NamedTuple):
    """A piece of a part of a recording.

    Parameters
    ----------
    part : int
        Position of the part among those asked for.
    start : int
        First sample, counted from the start of the recording.
    samples : numpy.ndarray
        float32 ``(segment_samples,)`` in [-1, 1], or fewer where the part itself is shorter.
    """

    part: int
    start: int
    samples: np.ndarray


class PartCutter:
    """Cuts one part of a recording into windows while its samples pass by; holds a window and a block at most.

    Parameters
    ----------
    index : int
        Position of the part among those asked for.
    first, end : int, int or None
        First sample of the part and the one after its last; None is the end of the recording.
    segment_samples, hop_samples, least_new_samples : int
        As ``models.audio_frontend.segment_starts`` takes them.
    first_window : int
        Number of the window to begin with; those before it are another's business.

    Attributes
    ----------
    needed_from : int
        First sample it must be fed: the last window may reach back by a whole window.
    """

    def __init__(self, index: int, first: int, end: int | None, segment_samples: int, hop_samples: int,
                 least_new_samples: int, *, first_window: int = 0) -> None:
        self.first = first
        self._index, self._end = index, end
        self._segment_samples, self._hop_samples = segment_samples, hop_samples
        self._least_new_samples = min(least_new_samples, hop_samples)
        self._held: deque[tuple[int, np.ndarray]] = deque()  # position and samples of blocks not yet done with
        self._next_start = first + first_window * hop_samples
        self.needed_from = max(first, self._next_start - segment_samples)
        self._held_end = self.needed_from

    def is_over(self, position: int) -> bool:
        """Whether nothing of the part lies at or after a position of the recording."""
        return self._end is not None and self._end <= position

    def feed(self, position: int, block: np.ndarray) -> Iterator[Window]:
        """Take the next block, which begins at ``position``, and yield the windows that are certain now."""
        low = max(self.needed_from - position, 0)
        high = len(block) if self._end is None else min(self._end - position, len(block))
        if high <= low:
            return
        self._held.append((position + low, block[low:high]))
        self._held_end = position + high
        # strictly more: a window that ends exactly with the part is the last one, given by ``finish``
        while self._held_end > self._next_start + self._segment_samples:
            yield self._window(self._next_start, self._next_start + self._segment_samples)
            self._next_start += self._hop_samples
        # the last window may reach back by a whole window
        needed = min(self._next_start, self._held_end - self._segment_samples)
        while self._held and self._held[0][0] + len(self._held[0][1]) <= needed:
            self._held.popleft()

    def finish(self) -> Iterator[Window]:
        """Yield the last window, moved back to end with the part, if it adds something worth having."""
        last = max(self.first, self._held_end - self._segment_samples)
        if self._held_end == self.needed_from:
            return
        if self._next_start > self.first and last - (self._next_start - self._hop_samples) < self._least_new_samples:
            return
        yield self._window(last, self._held_end)

    def _window(self, low: int, high: int) -> Window:
        pieces = [samples[max(low - start, 0):high - start] for start, samples in self._held
                  if start < high and start + len(samples) > low]
        return Window(self._index, low, pieces[0].copy() if len(pieces) == 1 else np.concatenate(pieces))
