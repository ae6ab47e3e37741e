"""What the HTML pages share: one self-contained document, and text from strangers that stays text."""

import base64
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

_CSS = """
:root { --text: #1c1c1c; --back: #fff; --faint: #4a4a4a; --line: #d5d5d5; --strong: #555; --raised: #f3f6f9; }
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif;
       color: var(--text); background: var(--back); max-width: 62rem; margin: 2rem auto; padding: 0 1.25rem;
       overflow-wrap: break-word; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
.note { color: var(--faint); font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 1rem 0 .4rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; min-width: 9rem; }
thead th { border-bottom: 2px solid var(--strong); }
tbody th { font-weight: 400; } tbody th, .settings td { overflow-wrap: anywhere; }
td { white-space: nowrap; } .settings th, .settings td { text-align: left; white-space: normal; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; margin-bottom: .4rem; }
img { max-width: 100%; height: auto; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } .scroll { overflow: visible; }
               figure, tr { break-inside: avoid; } h2, caption { break-after: avoid; }
               img { max-height: 11cm; } table { font-size: .75rem; } }
"""
# for pages whose own colours are these variables; on paper they stay light
DARK_CSS = """
:root { color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) {
:root { --text: #e4e4e8; --back: #14141a; --faint: #a9a9b4; --line: #3a3a45; --strong: #8a8a96; --raised: #20202a; } }
"""


class Markup(str):
    """Text that is HTML already; whatever else a page is given is escaped."""


def escaped(value: object) -> Markup:
    """Return a value as safe HTML: ``Markup`` as it stands, None as a dash, anything else as text."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape("–" if value is None else str(value)))


def document(title: str, parts: Iterable[str], *, css: str = "") -> str:
    """Return a whole page that needs nothing beside it.

    Parameters
    ----------
    title : str
        Of the window, and the heading.
    parts : iterable of str
        Below the heading, in order; what is not ``Markup`` is escaped.
    css : str
        Rules of this page, after those of all pages.

    Returns
    -------
    str
        HTML.
    """
    body = "\n".join(map(escaped, parts))
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escaped(title)}</title><style>{_CSS}{css}</style></head><body>\n"
            f"<h1>{escaped(title)}</h1>\n{body}\n</body></html>\n")


def element(tag: str, *contents: object, kind: str = "") -> Markup:
    """Return an HTML element around contents, escaped unless they are ``Markup``; ``kind`` is its CSS class."""
    attribute = f' class="{html.escape(kind)}"' if kind else ""
    return Markup(f"<{tag}{attribute}>{''.join(map(escaped, contents))}</{tag}>")


def table(head: Sequence[str], rows: Iterable[Sequence], *, caption: str = "", kind: str = "") -> Markup:
    """Return a table that scrolls where it is wider than the page.

    Parameters
    ----------
    head : sequence of str
        Titles of the columns.
    rows : iterable of sequences
        Cells, the first of a row being its title; None is a dash, what is not ``Markup`` is escaped.
    caption : str
        Above the table.
    kind : str
        Its CSS class; ``settings`` aligns text.

    Returns
    -------
    Markup
        HTML.
    """
    titles = "".join(f'<th scope="col">{escaped(title)}</th>' for title in head)
    body = "\n".join(f'<tr><th scope="row">{escaped(row[0])}</th>'
                     f"{''.join(element('td', cell) for cell in row[1:])}</tr>" for row in rows)
    contents = Markup(f"{element('caption', caption) if caption else ''}<thead><tr>{titles}</tr></thead>"
                      f"<tbody>\n{body}\n</tbody>")
    return element("div", element("table", contents, kind=kind), kind="scroll")


def figure(title: str, picture: str | os.PathLike) -> Markup:
    """Return a picture, a PNG file, that is part of the page, below its title."""
    return element("figure", element("figcaption", title), image(title, Path(picture).read_bytes()))


def image(description: str, png: bytes) -> Markup:
    """Return a picture that is part of the page; ``description`` is read out where it cannot be seen."""
    return Markup(f'<img alt="{escaped(description)}" src="data:image/png;base64,{_base64(png)}">')


def audio_player(description: str, mp3: bytes) -> Markup:
    """Return a player of a sound that is part of the page; ``description`` is what a screen reader calls it."""
    return Markup(f'<audio controls preload="none" aria-label="{escaped(description)}"'
                  f' src="data:audio/mpeg;base64,{_base64(mp3)}"></audio>')


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


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
