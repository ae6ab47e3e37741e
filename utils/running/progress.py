"""Progress bars with rate and time left, on stderr, silent where nobody watches."""

import logging
import time
from array import array
from collections.abc import Iterable

from tqdm import tqdm

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio [{elapsed}<{remaining}{postfix}]"


def progress(items: Iterable | None = None, *, total: int, description: str, unit: str, leave: bool = True) -> tqdm:
    """Wrap an iterable in a progress bar, or make a bar to update by hand.

    Parameters
    ----------
    items : iterable, optional
        What is worked through; None for a bar that is updated by hand.
    total : int
        How many there are.
    description : str
        What is done.
    unit : str
        What one item is.
    leave : bool
        Keep the finished bar on the screen.

    Returns
    -------
    tqdm.tqdm
        The bar; it shows nothing with ``--quiet`` or when stderr is no terminal.
    """
    return tqdm(items, total=total, desc=description, unit=unit, leave=leave, disable=_disabled())


class HoursProgress:
    """Progress in hours of audio, with the speed as times real time.

    How long a recording is shows when it is opened; until then its size tells, by what the recordings opened so far
    hold in a byte.

    Parameters
    ----------
    sizes : iterable of int
        Bytes of each recording.
    description : str
        What is done.
    """

    def __init__(self, sizes: Iterable[int], *, description: str) -> None:
        self._sizes = array("q", sizes)
        self._unopened_bytes = sum(self._sizes)
        self._known_bytes, self._known_seconds = 0, 0.0
        self._guessed: dict[int, float] = {}  # seconds of recordings under way whose header does not tell
        self.scored_seconds = 0.0
        self._began = time.monotonic()
        self._bar = tqdm(total=1.0, desc=description, bar_format=_BAR, disable=_disabled())

    def opened(self, index: int, duration_seconds: float | None) -> None:
        """Take note of how long a recording is, if its header tells."""
        self._unopened_bytes -= self._sizes[index]
        if duration_seconds is None:
            self._guessed[index] = self._sizes[index] * self._seconds_per_byte
        else:
            self._know(index, duration_seconds)

    def scored(self, seconds: float) -> None:
        """Count a part of a recording."""
        self.scored_seconds += seconds
        if not self._bar.disable:
            self._bar.total = max(self.total_seconds, self.scored_seconds, 1e-6) / 3600
            self._bar.set_postfix_str(f"x{self.speed:.0f} real time", refresh=False)
            self._bar.update(seconds / 3600)

    def ended(self, index: int, duration_seconds: float) -> None:
        """Take note of how long a recording was, now that it is known."""
        if self._guessed.pop(index, None) is not None:
            self._know(index, duration_seconds)

    def skip(self, index: int) -> None:
        """Leave out a recording that was scored before."""
        self._unopened_bytes -= self._sizes[index]

    @property
    def elapsed_seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    @property
    def total_seconds(self) -> float:
        """Audio that is scored in this run, as far as it is known or guessed."""
        return self._known_seconds + sum(self._guessed.values()) + self._unopened_bytes * self._seconds_per_byte

    @property
    def speed(self) -> float:
        """Times real time."""
        return self.scored_seconds / max(self.elapsed_seconds, 1e-6)

    @property
    def seconds_left(self) -> float | None:
        """Of waiting; None before anything is scored."""
        return (self.total_seconds - self.scored_seconds) / self.speed if self.scored_seconds else None

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    @property
    def _seconds_per_byte(self) -> float:
        return self._known_seconds / self._known_bytes if self._known_bytes else 0.0

    def _know(self, index: int, seconds: float) -> None:
        self._known_bytes += self._sizes[index]
        self._known_seconds += seconds


def _disabled() -> bool | None:
    quiet = not logging.getLogger(__name__).isEnabledFor(logging.INFO)
    return True if quiet else None
