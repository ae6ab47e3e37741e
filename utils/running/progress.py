"""Progress bars with rate and time left, on stderr, silent where nobody watches."""

import logging
from collections.abc import Iterable

from tqdm import tqdm


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
    quiet = not logging.getLogger(__name__).isEnabledFor(logging.INFO)
    return tqdm(items, total=total, desc=description, unit=unit, leave=leave, disable=True if quiet else None)
