"""What the HTML pages share: one self-contained document, and text from strangers that stays text."""

import base64
import hashlib
import html
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

_FEWEST_LINKED = 3  # headings: fewer are seen at a glance
_CSS = """
:root { --text: #1c1c1c; --back: #fff; --faint: #4a4a4a; --line: #d5d5d5; --strong: #555; --raised: #f3f6f9;
        --accent: #0072b2; }
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif;
       color: var(--text); background: var(--back); max-width: 74rem; margin: 2rem auto; padding: 0 1.25rem;
       overflow-wrap: break-word; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
p, nav, figure, .verdict { max-width: 62rem; }
.note { color: var(--faint); font-size: .9rem; }
.verdict { box-sizing: border-box; border-left: .3rem solid var(--accent); background: var(--raised);
           padding: .75rem 1.25rem; }
.verdict p { margin: .4rem 0; } .verdict p:first-child { font-size: 1.15rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .1rem 1.25rem; list-style: none; margin: 1.5rem 0; padding: 0; }
nav a { display: inline-block; padding: .2rem 0; color: var(--accent); }
:focus-visible { outline: .15rem solid var(--accent); outline-offset: .1rem; }
.scroll { overflow-x: auto; scroll-padding-left: 10rem; } .scroll + .scroll { margin-top: 1.25rem; }
table { border-collapse: separate; border-spacing: 0; min-width: min(100%, 62rem); font-size: .9rem;
        font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 1rem 0 .4rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; min-width: 9rem; }
thead th { border-bottom: 2px solid var(--strong); vertical-align: bottom; }
tbody th { font-weight: 400; } tbody th, .settings td { overflow-wrap: anywhere; }
td { white-space: nowrap; } .settings th, .settings td { text-align: left; white-space: normal; }
.interval { display: block; color: var(--faint); font-size: .9em; white-space: nowrap; }
th:has(> button) { padding: 0; }
th button { width: 100%; padding: .3rem .6rem; border: 0; background: none; color: inherit; font: inherit;
            text-align: inherit; cursor: pointer; }
th button:focus-visible { outline-offset: -.15rem; }
th button::after { content: ""; display: inline-block; width: .5em; height: .8em; margin: 0 -.65em 0 .15em; opacity: .5;
                   background: currentColor;
                   clip-path: polygon(0 40%, 50% 0, 100% 40%, 0 40%, 0 60%, 100% 60%, 50% 100%, 0 60%); }
[aria-sort] button::after { opacity: 1; clip-path: polygon(0 80%, 50% 10%, 100% 80%); }
[aria-sort=descending] button::after { clip-path: polygon(0 20%, 100% 20%, 50% 90%); }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; margin-bottom: .4rem; }
img { max-width: 100%; height: auto; }
@page { margin: 1.5cm; }
@media screen { th:first-child { position: sticky; left: 0; z-index: 1; background: var(--back); } }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } .scroll { overflow: visible; }
               figure, tr, .verdict { break-inside: avoid; } h2, h3, caption, thead { break-after: avoid; }
               .note { break-before: avoid; } img { max-height: 11cm; }
               nav, th button::after { display: none; } th button { display: contents; }
               table { font-size: .65rem; } th, td, th:has(> button) { padding: .2rem .25rem; }
               th:first-child, td:first-child { min-width: 5rem; } td, .interval { white-space: normal; } }
"""
# for pages whose own colours are these variables; on paper they stay light
DARK_CSS = """
:root { color-scheme: light dark; }
@media screen and (prefers-color-scheme: dark) {
:root { --text: #e4e4e8; --back: #14141a; --faint: #a9a9b4; --line: #3a3a45; --strong: #8a8a96; --raised: #20202a;
        --accent: #58b4ec; } }
"""
# makes the titles of a table's columns buttons that sort its rows: down, up, as they were (of text: up, down, as they
# were); an interval below a number does not count, and what is undefined comes last
SCRIPT = r"""
"use strict";
const MISSING = "–", NUMBER = /^[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(e[+-]?\d+)?%?$/;
const order = new Intl.Collator("en", { numeric: true }).compare;

function textOf(cell) {
  const counted = [...cell.childNodes].filter(node => node.className !== "interval");
  return counted.map(node => node.textContent).join("").trim();
}

for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0], rows = [...body.rows], titles = [...table.tHead.rows[0].cells];
  if (rows.length < 3) continue;
  titles.forEach((title, column) => {
    const texts = new Map(rows.map(row => [row, textOf(row.cells[column])]));
    const isMissing = row => ["", MISSING].includes(texts.get(row));
    const known = rows.filter(row => !isMissing(row)), missing = rows.filter(isMissing);
    if (!known.length) return;
    const numeric = known.every(row => NUMBER.test(texts.get(row)));
    const number = row => parseFloat(texts.get(row).replaceAll(",", ""));
    const compare = numeric ? (a, b) => number(a) - number(b) : (a, b) => order(texts.get(a), texts.get(b));
    const turns = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null];

    const button = document.createElement("button");
    button.type = "button";
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const turn = turns[(turns.indexOf(title.getAttribute("aria-sort")) + 1) % turns.length];
      titles.forEach(each => each.removeAttribute("aria-sort"));
      if (turn) title.setAttribute("aria-sort", turn);
      const sign = turn === "descending" ? -1 : 1;
      body.append(...(turn ? [...[...known].sort((a, b) => sign * compare(a, b)), ...missing] : rows));
    });
  });
}
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

    Its policy lets a browser load nothing from elsewhere and run no script but that which sorts tables.

    Parameters
    ----------
    title : str
        Of the window, and the heading.
    parts : iterable of str
        Below the heading, in order; what is not ``Markup`` is escaped. Where three or more of them are headings of the
        second level, links to these stand above the first.
    css : str
        Rules of this page, after those of all pages.

    Returns
    -------
    str
        HTML.
    """
    return "".join(streamed_document(title, _with_links([escaped(part) for part in parts]), css=css))


def streamed_document(title: str, parts: Iterable[str], *, css: str = "", script: str = SCRIPT) -> Iterator[str]:
    """Yield a whole page piece by piece, for one that is too large to be held; parts are taken as they are needed.

    Parameters
    ----------
    title, parts, css
        As ``document`` takes them; headings are not linked.
    script : str
        The only one that a browser may run.
    """
    digest = _base64(hashlib.sha256(script.encode()).digest())
    policy = (f"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline';"
              f" script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")
    yield (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
           f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
           f'<meta name="viewport" content="width=device-width, initial-scale=1">'
           f"<title>{escaped(title)}</title><style>{_CSS}{css}</style></head><body><main>\n"
           f"<h1>{escaped(title)}</h1>\n")
    for part in parts:
        yield f"{escaped(part)}\n"
    yield f"</main><script>{script}</script></body></html>\n"


def data_block(name: str, value: object) -> Markup:
    """Return a value as JSON that a page's script finds under a name and a browser does not run."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return Markup(f'<script type="application/json" id="{html.escape(name)}">{text}</script>')


def _with_links(parts: Sequence[Markup]) -> list[Markup]:
    """Return parts with a list of links to their headings above the first, if these are three or more."""
    opening, closing = "<h2>", "</h2>"
    places = [place for place, part in enumerate(parts) if part.startswith(opening)]
    if len(places) < _FEWEST_LINKED:
        return list(parts)
    linked, links = list(parts), []
    for number, place in enumerate(places, start=1):
        heading = parts[place].removeprefix(opening)
        linked[place] = Markup(f'<h2 id="part-{number}">{heading}')
        links.append(f'<li><a href="#part-{number}">{heading.removesuffix(closing)}</a></li>')
    contents = Markup(f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>')
    return [*linked[:places[0]], contents, *linked[places[0]:]]


def element(tag: str, *contents: object, kind: str = "") -> Markup:
    """Return an HTML element around contents, escaped unless they are ``Markup``; ``kind`` is its CSS class."""
    attribute = f' class="{html.escape(kind)}"' if kind else ""
    return Markup(f"<{tag}{attribute}>{''.join(map(escaped, contents))}</{tag}>")


def table(head: Sequence[str], rows: Iterable[Sequence], *, caption: str = "", kind: str = "", sorts: bool = True
          ) -> Markup:
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
        Its CSS class; ``settings`` aligns text, and does not sort.
    sorts : bool
        Whether a reader may sort the rows: not where each is of another kind.

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
    kinds = [kind, "sorts" if sorts and kind != "settings" else ""]
    return Markup(f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption or ", ".join(head))}">'
                  f"{element('table', contents, kind=' '.join(filter(None, kinds)))}</div>")


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
