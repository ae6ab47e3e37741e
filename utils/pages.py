"""What the HTML pages share."""


def number_text(value: float | None, *, decimals: int = 3, sign: str = "") -> str:
    """Write a number for a reader.

    Parameters
    ----------
    value : float or None
        What to write; None becomes a dash.
    decimals : int
        Digits after the point.
    sign : str
        ``+`` writes the sign of a positive number too.

    Returns
    -------
    str
        Thousands are parted by commas.
    """
    return "–" if value is None else f"{value:{sign},.{decimals}f}"
