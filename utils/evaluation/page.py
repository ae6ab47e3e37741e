"""The evaluation as one HTML page that needs nothing beside it.

Names come from strangers: none is trusted in HTML.
"""

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils.metrics import SCORE_TITLES
from utils.pages import number_text
from utils.storage.files import write_text

_CLASS_SCORES = {"precision": "Precision", "recall": "Recall", "f1": "F1", "roc_auc": "ROC AUC",
                 "average_precision": "Average precision"}
_UNDEFINED_NOTE = ('<p class="note">A dash stands where a value is undefined, such as the ROC AUC of a class that does'
                   " not occur. Macro averages count the classes that occur in the test set. With one label per"
                   " segment, micro averages equal the accuracy and balanced accuracy equals macro recall.</p>")

_CSS = """
body { font: 16px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 62rem; margin: 2rem auto; padding: 0 1.25rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
.verdict { border-left: .3rem solid #0072b2; background: #f3f6f9; padding: .75rem 1.25rem; }
.verdict p { margin: .4rem 0; } .verdict p:first-child { font-size: 1.15rem; }
.note { color: #4a4a4a; font-size: .9rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 1rem 0 .4rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #d5d5d5; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; min-width: 9rem; } thead th { border-bottom: 2px solid #555; }
tbody th { font-weight: 400; } tbody th, .settings td { overflow-wrap: anywhere; }
.interval { display: block; color: #4a4a4a; font-size: .8rem; white-space: nowrap; }
td { white-space: nowrap; } .settings th, .settings td { text-align: left; white-space: normal; }
figure { margin: 1.5rem 0; } figcaption { font-weight: 600; margin-bottom: .4rem; }
img { max-width: 100%; height: auto; }
@media print { body { margin: 0; max-width: none; font-size: 11pt; } .scroll { overflow: visible; }
               figure, tr, .verdict { break-inside: avoid; } h2, caption { break-after: avoid; }
               img { max-height: 11cm; } table { font-size: .75rem; } }
"""


def write_evaluation_page(path: str | os.PathLike, *, results: Sequence[Mapping], comparison: Mapping | None,
                          pictures: Iterable[tuple[str, Path]], settings: Mapping) -> None:
    """Write the evaluation as one self-contained HTML page: no script, no network, pictures inside.

    Parameters
    ----------
    path : path-like
        HTML file to write.
    results : sequence of mappings
        One per model: ``name``, ``model_name``, ``metrics`` (of ``metrics.evaluate``), ``intervals`` (of
        ``intervals.bootstrap_intervals``), ``n_parameters``, ``file_megabytes``, ``latency`` (``median_ms``,
        ``p95_ms``, ``clips_per_second``, ``batch_size``, ``device``; or None) and, if wanted, ``class_intervals``
        (of ``intervals.per_class_intervals``).
    comparison : mapping or None
        ``intervals.paired_comparison`` of the first two results.
    pictures : iterable of (str, Path)
        Title and PNG of each picture, in order.
    settings : mapping
        Shown as a table. ``confidence`` and ``n_recordings``, where present, are also told in words.
    """
    parts = [_verdict_part(results, comparison, settings), "<h2>Scores</h2>", _scores_table(results, comparison),
             "<h2>Classes</h2>", *(_class_table(result) for result in results), _UNDEFINED_NOTE,
             "<h2>Size and speed</h2>", _speed_table(results), "<h2>Pictures</h2>",
             *(_figure_part(title, picture) for title, picture in pictures), "<h2>Settings</h2>",
             _table(["Setting", "Value"], [[key, _setting(value)] for key, value in settings.items()], kind="settings")]
    write_text(path, f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
                     f'<meta name="viewport" content="width=device-width, initial-scale=1">'
                     f"<title>NightScan evaluation</title><style>{_CSS}</style></head><body>\n"
                     f"<h1>NightScan evaluation</h1>\n{chr(10).join(parts)}\n</body></html>\n")


def _verdict_part(results: Sequence[Mapping], comparison: Mapping | None, settings: Mapping) -> str:
    sentences = _comparison_sentences(results, comparison) if comparison else []
    for result in [] if comparison else results:
        sentences.append(f"{result['name']} reaches a macro F1 of"
                         f" {_interval_text(result['metrics']['macro_f1'], result['intervals'].get('macro_f1'))}.")
    known = comparison or settings
    n_recordings = known.get("n_recordings")
    measured = f"Measured on {results[0]['metrics']['n_segments']} segments"
    measured += f" of {n_recordings} recordings." if n_recordings is not None else "."
    share = f"{known['confidence']:.0%} " if "confidence" in known else ""
    note = (f"Intervals are {share}bootstrap intervals over recordings: they say how far a score may move with another"
            " sample of recordings of the same kind.")
    return (f'<div class="verdict">{"".join(f"<p>{html.escape(text)}</p>" for text in [*sentences, measured])}</div>'
            f'<p class="note">{html.escape(note)}</p>')


def _comparison_sentences(results: Sequence[Mapping], comparison: Mapping) -> list[str]:
    first, second = results[:2]
    metric, verdict = comparison["verdict_metric"], comparison["verdict"]
    row, title = comparison["differences"][metric], metric.replace("_", " ").replace("f1", "F1")
    if verdict == "worse":
        first, second = second, first
        row = {"difference": -row["difference"], "interval": [-value for value in reversed(row["interval"])]}
    if verdict == "no significant difference":
        headline = f"No significant difference between {first['name']} and {second['name']}."
    else:
        headline = f"{first['name']} is better than {second['name']}."
    if row["interval"] is None:
        chance = "too few recordings for an interval"
    else:
        low, high = row["interval"]
        chance = (f"{comparison['confidence']:.0%} interval {low:+.3f} to {high:+.3f}, which"
                  f" {'includes' if low <= 0 <= high else 'excludes'} 0")
    mcnemar = comparison["mcnemar"]
    alone = [mcnemar["only_a_correct"], mcnemar["only_b_correct"]][::-1 if verdict == "worse" else 1]
    return [headline,
            f"Its {title} is {number_text(first['metrics'][metric])} against {number_text(second['metrics'][metric])}:"
            f" a difference of {number_text(row['difference'], sign='+')} ({chance})."
            if verdict != "no significant difference" else
            f"The {title} of {first['name']} is {number_text(first['metrics'][metric])}, that of {second['name']}"
            f" {number_text(second['metrics'][metric])}: a difference of {number_text(row['difference'], sign='+')}"
            f" ({chance}).",
            f"{first['name']} alone is right on {alone[0]} segments, {second['name']} alone on {alone[1]}"
            f" (McNemar's exact test, which takes segments as independent: p = {mcnemar['p']:.3g})."]


def _scores_table(results: Sequence[Mapping], comparison: Mapping | None) -> str:
    head = ["Score", *(result["name"] for result in results)]
    rows = [[title, *((result["metrics"][name], result["intervals"].get(name)) for result in results)]
            for name, title in SCORE_TITLES.items()]
    if comparison:
        head.append(f"{results[0]['name']} minus {results[1]['name']}")
        for row, name in zip(rows, SCORE_TITLES):
            difference = comparison["differences"][name]
            row.append((difference["difference"], difference["interval"], "+"))
    return _table(head, rows)


def _class_table(result: Mapping) -> str:
    rows = result["metrics"]["per_class"]
    intervals = result.get("class_intervals") or [{}] * len(rows)
    return _table(["Class", "Segments", *_CLASS_SCORES.values()],
                  [[row["class_name"], row["support"], *((row[name], interval.get(name)) for name in _CLASS_SCORES)]
                   for row, interval in zip(rows, intervals)], caption=result["name"])


def _speed_table(results: Sequence[Mapping]) -> str:
    rows = []
    for result in results:
        latency = result["latency"] or {}
        rows.append([result["name"], result["model_name"], number_text(result["n_parameters"], decimals=0),
                     number_text(result["file_megabytes"], decimals=1),
                     *(number_text(latency.get(key), decimals=1)
                       for key in ("median_ms", "p95_ms", "clips_per_second")),
                     latency.get("batch_size"), latency.get("device")])
    return _table(["Model", "Network", "Parameters", "File (MB)", "Median (ms)", "95th percentile (ms)",
                   "Clips per second", "Batch size", "Device"], rows)


def _figure_part(title: str, picture: Path) -> str:
    data = base64.b64encode(Path(picture).read_bytes()).decode("ascii")
    title = html.escape(title)
    return f'<figure><figcaption>{title}</figcaption><img alt="{title}" src="data:image/png;base64,{data}"></figure>'


def _table(head: Sequence, rows: Iterable[Sequence], *, caption: str = "", kind: str = "") -> str:
    body = "\n".join(f'<tr><th scope="row">{_cell(row[0])}</th>{"".join(f"<td>{_cell(cell)}</td>" for cell in row[1:])}'
                     "</tr>" for row in rows)
    titles = "".join(f'<th scope="col">{html.escape(str(title))}</th>' for title in head)
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (f'<div class="scroll"><table class="{kind}">{above}<thead><tr>{titles}</tr></thead>'
            f"<tbody>\n{body}\n</tbody></table></div>")


def _cell(value) -> str:
    """Format text, a number, or a (value, interval[, sign]) pair as safe HTML."""
    if isinstance(value, tuple):
        number, interval, sign = (*value, "")[:3]
        below = f'<span class="interval">{_range_text(interval, sign=sign)}</span>' if interval else ""
        return html.escape(number_text(number, sign=sign)) + below
    return html.escape("–" if value is None else str(value))


def _interval_text(value: float | None, interval: Sequence[float] | None) -> str:
    return number_text(value) + (f" (interval {_range_text(interval)})" if interval else "")


def _range_text(interval: Sequence[float], *, sign: str = "") -> str:
    return f"{number_text(interval[0], sign=sign)} to {number_text(interval[1], sign=sign)}"


def _setting(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
