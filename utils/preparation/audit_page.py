"""What the dataset doctor found, as one HTML page with pictures and sounds that needs nothing beside it."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from models.errors import NightScanError
from utils.examples import EXAMPLE_SECONDS, EXAMPLES_CSS, example_figure, read_example
from utils.pages import DARK_CSS, Markup, document, element, escaped, number_text, table
from utils.preparation.findings import SEVERITIES, USABLE, Finding, counted, one_line, tidy_files, tidy_labels
from utils.storage.files import write_text

_MOST_BYTES = 13 << 20  # of pictures and sounds; a third more as text: phones open a page of 18 MB
_MOST_EXAMPLES = 240  # of all findings: each takes a tenth of a second
_MOST_ROWS = 200  # of a table; files.csv holds all of them
_MOST_RATES = 3
_FLAG = re.compile(r"--[a-z]\w+")
_EXAMPLES_NOTE = (f"Pictures: the loudest {EXAMPLE_SECONDS:g} seconds of the half minute after the first label begins;"
                  " kHz upwards, to half the recording's own rate, seconds to the right, the brighter the louder."
                  " Sounds are compressed, and as loud as they were recorded.")
_CONFOUNDS_NOTE = ("How well the class can be told from a property without hearing the recording: balanced accuracy, in"
                   " folds that keep a group whole. The line marks chance, the dashed line what shuffled classes stay"
                   " below. A coloured bar beyond both means that a network may learn the property instead of the"
                   " sound, and that scores on these data promise too much.")
_CSS = """
:root { --error: #a3211b; --warning: #8a5a00; }
.finding { border-top: 1px solid var(--line); padding: .9rem 0; }
.finding h3 { font-size: 1rem; margin: 0; } .finding p { margin: .3rem 0; overflow-wrap: anywhere; }
.severity { border: 1px solid; border-radius: .3rem; padding: 0 .4rem; margin-right: .5rem; font-size: .85rem; }
.error { color: var(--error); } .warning { color: var(--warning); } .remark { color: var(--faint); }
summary { cursor: pointer; padding: .3rem 0; color: var(--accent); }
.words td, .words th { text-align: left; }
.words td:last-child { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
code { white-space: nowrap; font-size: .92em; }
.chart { vertical-align: middle; } .chart rect { fill: var(--line); } .chart .untold { fill: var(--faint); }
.chart .told { fill: var(--accent); } .chart path { stroke: var(--text); fill: none; }
@media screen and (prefers-color-scheme: dark) {
:root { --error: #ff8f86; --warning: #f0b64d; } }
@media print { .finding { break-inside: avoid; } }
"""


def write_audit_page(path: str | os.PathLike, *, findings: Sequence[Finding], files: pd.DataFrame,
                     labels: pd.DataFrame, confounds: pd.DataFrame, input_dir: str | os.PathLike,
                     examples: int = 12) -> None:
    """Write what was found as one self-contained HTML page: no network, pictures and sounds inside.

    Parameters
    ----------
    path : path-like
        HTML file to write, below 20 MB.
    findings : sequence of Finding
        From ``audit``.
    files, labels : pandas.DataFrame
        As ``audit`` takes them.
    confounds : pandas.DataFrame
        From ``measure_confounds``.
    input_dir : path-like
        Folder that the recordings' paths are relative to.
    examples : int
        Most recordings shown of a finding; fewer where the page would grow too large. 0 shows none.
    """
    tidy = tidy_files(files)
    regions = tidy_labels(labels, tidy)
    gallery = _Gallery(Path(input_dir), tidy, labels, most=examples)
    write_text(path, document("NightScan dataset audit", [
        _summary(findings, tidy, regions),
        element("h2", "Classes"), _class_table(tidy, regions),
        element("h2", "Findings"), *_findings_part(findings, gallery),
        element("h2", "What gives a class away"), *_confounds_part(confounds),
        *_unusable_part(tidy)], css=DARK_CSS + EXAMPLES_CSS + _CSS))


def _summary(findings: Sequence[Finding], files: pd.DataFrame, regions: pd.DataFrame) -> Markup:
    usable = files[files["status"].isin(USABLE)]
    number = Counter(finding.severity for finding in findings)
    told = [counted(number[severity], severity) for severity in SEVERITIES if number[severity]]
    sentences = [f"{counted(len(files), 'recording')}, {_length(usable['duration_seconds'].sum())},"
                 f" {counted(regions['class_name'].nunique(), 'class', 'classes')}:"
                 f" {' and '.join(filter(None, [', '.join(told[:-1]), *told[-1:]])) or 'nothing was found'}."]
    if len(usable) < len(files):
        sentences.append(f"{counted(len(files) - len(usable), 'recording')} cannot be used; the reasons are below.")
    if findings:
        sentences.append(f"Begin with this {findings[0].severity}: {findings[0].message}.")
    return element("div", *(element("p", _with_flags(sentence)) for sentence in sentences), kind="verdict")


def _with_flags(text: str) -> Markup:
    """Return text in which no flag is broken at its hyphens."""
    return Markup(_FLAG.sub(r"<code>\g<0></code>", escaped(text)))


def _length(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 2 * 3600 else f"{seconds / 60:,.1f} minutes"


def _class_table(files: pd.DataFrame, regions: pd.DataFrame) -> Markup:
    facts = files.set_index("path")
    rows = []
    for name, of_class in regions.groupby("class_name"):
        recordings = facts.loc[of_class["path"].unique()]
        seconds = (of_class["end_seconds"] - of_class["start_seconds"]).sum()
        level = recordings["rms_dbfs"].median()
        rows.append([name, f"{len(recordings):,}", number_text(seconds / 60, decimals=1),
                     f"{of_class['group'].nunique():,}", _rates(recordings["sample_rate"]),
                     number_text(level if level == level else None, decimals=1)])
    return table(["Class", "Recordings", "Labelled minutes", "Groups", "Sample rates (kHz)", "Median level (dBFS)"],
                 rows)


def _rates(rates: pd.Series) -> str:
    """Return the most frequent rates, and how many others there are."""
    known = rates.dropna().value_counts()
    order = sorted(known.index, key=lambda rate: (-known[rate], rate))
    more = len(order) - _MOST_RATES
    return ", ".join(f"{rate / 1000:g}" for rate in order[:_MOST_RATES]) + (f" and {more} more" if more > 0 else "")


def _findings_part(findings: Sequence[Finding], gallery: "_Gallery") -> Iterable[Markup]:
    if not findings:
        return [element("p", "Nothing was found.")]
    return [element("p", _EXAMPLES_NOTE, kind="note"), *(_finding_section(finding, gallery) for finding in findings)]


def _finding_section(finding: Finding, gallery: "_Gallery") -> Markup:
    kind = "remark" if finding.severity == "note" else finding.severity
    heading = element("h3", element("span", finding.severity, kind=f"severity {kind}"),
                      finding.code.replace("_", " "))
    message = element("p", _with_flags(f"{finding.message[:1].upper()}{finding.message[1:]}."))
    return element("section", heading, message, gallery.of(finding), kind="finding")


@dataclass
class _Gallery:
    """Gives examples of findings until there is no more room for them."""

    input_dir: Path
    files: pd.DataFrame
    labels: pd.DataFrame
    most: int
    _n_bytes: int = field(default=0, init=False)
    _n_shown: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._rates = self.files.set_index("path")["sample_rate"].to_dict()
        first = self.labels.assign(start=pd.to_numeric(self.labels["start_seconds"], errors="coerce").fillna(0.0))
        first = first.sort_values(["path", "start"])
        self._starts: Mapping[str, float] = first.groupby("path")["start"].first().to_dict()
        self._classes = first.groupby("path")["class_name"].agg(lambda names: ", ".join(dict.fromkeys(names))).to_dict()

    def of(self, finding: Finding) -> Markup:
        """Return the examples of a finding, folded up unless it is an error."""
        paths = finding.paths[:self.most]
        if not paths:
            return Markup("")
        shown = [self._figure(path) for path in paths]
        opened = " open" if finding.severity == "error" else ""
        of_all = f"{len(paths)} of {counted(len(finding.paths), 'recording')}"
        return Markup(f"<details{opened}>{element('summary', of_all)}{element('div', *shown, kind='examples')}"
                      "</details>")

    def _figure(self, path: str) -> Markup:
        title = [element("strong", one_line(path))]
        if path in self._classes:
            title.append(escaped(f" ({one_line(self._classes[path])})"))
        if self._n_bytes >= _MOST_BYTES or self._n_shown >= _MOST_EXAMPLES:
            return element("figure", element("figcaption", *title, ": not shown, the page is full"))
        try:
            example = read_example(self.input_dir, path, sample_rate=self._rates.get(path, float("nan")),
                                   start_seconds=self._starts.get(path, 0.0))
        except NightScanError as error:
            return element("figure", element("figcaption", *title, f": {one_line(str(error))}"))
        self._n_bytes += len(example.png) + len(example.mp3)
        self._n_shown += 1
        name = one_line(path)
        place = f", {example.seconds:.1f} s from {example.start_seconds:.1f} s"
        return example_figure(name, example, *title, place)


def _confounds_part(confounds: pd.DataFrame) -> Iterable[Markup]:
    if confounds.empty:
        return [element("p", "Nothing could be measured: that takes two classes of five groups of recordings each, and"
                             " a property in which recordings differ.")]
    rows = [[row["property"], _chart(row), f"{row['balanced_accuracy']:.0%}", f"{row['chance']:.0%}",
             f"{row['null_limit']:.0%}", row["example"] or None]
            for row in confounds.to_dict("records")]
    return [element("p", _CONFOUNDS_NOTE, kind="note"),
            table(["Property", "Tells the class", "Balanced accuracy", "Chance", "Shuffled, at most",
                   "Where classes differ most"], rows, kind="words")]


def _chart(row: Mapping) -> Markup:
    """Return a bar for a balanced accuracy with lines at chance and at what shuffled classes stay below."""
    accuracy, chance, limit = (120 * row[name] for name in ("balanced_accuracy", "chance", "null_limit"))
    told = f"{row['balanced_accuracy']:.0%}, {'more' if row['predictive'] else 'no more'} than chance explains"
    return Markup(f'<svg class="chart" role="img" aria-label="{escaped(told)}" width="120" height="16">'
                  f'<rect y="3" width="120" height="10"/>'
                  f'<rect class="{"told" if row["predictive"] else "untold"}" y="3" width="{accuracy:.1f}"'
                  f' height="10"/><path d="M{chance:.1f} 0V16"/>'
                  f'<path stroke-dasharray="2 2" d="M{limit:.1f} 0V16"/></svg>')


def _unusable_part(files: pd.DataFrame) -> Iterable[Markup]:
    lost = files[files["status"] != "ok"]
    if lost.empty:
        return []
    rows = [[one_line(row["path"]), row["status"], one_line(row["reason"])]
            for row in lost.head(_MOST_ROWS).to_dict("records")]
    parts = [element("h2", "Recordings that are left out"),
             table(["Recording", "Status", "Reason"], rows, kind="words")]
    if len(lost) > _MOST_ROWS:
        parts.append(element("p", f"The first {_MOST_ROWS} of {counted(len(lost), 'recording')}; files.csv lists all of"
                                  " them.", kind="note"))
    return parts
