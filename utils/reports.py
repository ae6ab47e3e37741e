"""Every picture and page; the only module that draws.

Pictures are ``matplotlib.figure.Figure`` objects without pyplot, so no window system or global state is involved.
Class names come from strangers: they are never read as mathematical text, never trusted in HTML, and cut when long.
"""

import base64
import contextlib
import html
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import librosa
import matplotlib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from models.efficientnet_config import FrontendConfig
from utils import metrics
from utils.files import atomic_path, write_text

_STYLE = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid.axis": "both", "grid.color": "#dddddd", "axes.axisbelow": True, "legend.frameon": False,
          "text.parse_math": False, "axes.formatter.limits": (-3, 5)}
_DPI = 120
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#777777"  # Okabe and Ito: told apart by all eyes
_COLOURS = (_BLUE, _ORANGE, _GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
_LINE_STYLES = ("-", "--", ":", "-.")
_LONGEST_LABEL = 30
_LEGEND_ROWS = 26
_MOST_WRITTEN_CLASSES = 20  # numbers in a larger confusion matrix could not be read
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000)
_LEAST_TICK_GAP = 0.06  # of the height, so that neighbouring labels do not touch

_SCORE_TITLES = {
    "accuracy": "Accuracy", "macro_f1": "F1, macro", "macro_precision": "Precision, macro",
    "macro_recall": "Recall, macro", "weighted_f1": "F1, weighted", "weighted_precision": "Precision, weighted",
    "weighted_recall": "Recall, weighted",
    "macro_roc_auc": "ROC AUC, macro", "macro_average_precision": "Average precision, macro",
    "log_loss": "Log loss (lower is better)", "brier_score": "Brier score (lower is better)",
    "ece": "Calibration error (lower is better)",
}
_KEY_SCORES = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "macro_roc_auc", "macro_average_precision")
_CLASS_SCORES = {"precision": "Precision", "recall": "Recall", "f1": "F1", "roc_auc": "ROC AUC",
                 "average_precision": "Average precision"}

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


# Pictures


def plot_overview(path: str | os.PathLike, *, counts: pd.DataFrame,
                  examples: Mapping[str, tuple[np.ndarray, FrontendConfig]]) -> None:
    """Draw the class balance of each split above one example spectrogram per class.

    Parameters
    ----------
    path : path-like
        PNG to write.
    counts : pandas.DataFrame, index class name, columns train, val, test
        Spectrograms of each class in each split.
    examples : mapping of str to (np.ndarray float32 (n_mels, n_frames) in dB, FrontendConfig)
        Spectrograms by class name; a class may be missing.
    """
    shown = [name for name in counts.index if name in examples]
    n_columns = 3 if len(shown) <= 12 else 6
    n_rows = math.ceil(len(shown) / n_columns)
    heights = [1.3 + 0.34 * len(counts), 2.2 * n_rows]
    with _picture(path, width=max(10.0, 2.9 * n_columns), height=sum(heights)) as figure:
        if not shown:
            _draw_balance(figure.subplots(), counts)
            return
        top, bottom = figure.subfigures(2, 1, height_ratios=heights)
        _draw_balance(top.subplots(), counts)
        axes = bottom.subplots(n_rows, n_columns, squeeze=False).ravel()
        for ax in axes[len(shown):]:
            ax.set_axis_off()
        for ax, name in zip(axes, shown):
            image = _draw_spectrogram(ax, *examples[name])
            ax.set_title(_label(name), fontsize=9)
        bottom.colorbar(image, ax=axes, label="dB below the loudest point", fraction=0.03, pad=0.01)


def plot_history(path: str | os.PathLike, history: pd.DataFrame, *, best_epoch: int) -> None:
    """Draw how a training went.

    Parameters
    ----------
    path : path-like
        PNG to write.
    history : pandas.DataFrame
        Columns ``epoch, train_loss, val_loss, val_accuracy, val_macro_f1, learning_rate``, one row per epoch.
    best_epoch : int
        Epoch whose weights were kept; marked in each panel.
    """
    panels = {"Loss": {"train_loss": "training", "val_loss": "validation"},
              "Validation scores": {"val_accuracy": "accuracy", "val_macro_f1": "macro F1"},
              "Learning rate": {"learning_rate": "learning rate"}}
    with _picture(path, width=13, height=4) as figure:
        for ax, (title, columns) in zip(figure.subplots(1, len(panels)), panels.items()):
            for colour, (column, label) in zip(_COLOURS, columns.items()):
                ax.plot(history["epoch"], history[column], color=colour, label=label, marker=".")
            ax.axvline(best_epoch, color=_GREY, linestyle="--", label=f"best epoch ({best_epoch})")
            ax.set(title=title, xlabel="epoch")
            ax.axhline(0, color="black", linewidth=0.8)
            ax.set_xlim(history["epoch"].min() - 0.5, history["epoch"].max() + 0.5)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            ax.grid(True)
            ax.legend(fontsize=9)


def plot_confusion_matrix(path: str | os.PathLike, confusion: np.ndarray, *, class_names: Sequence[str],
                          title: str) -> None:
    """Draw a confusion matrix, coloured and written in percent of each row, with the counts.

    Parameters
    ----------
    path : path-like
        PNG to write.
    confusion : np.ndarray, int, shape (n_classes, n_classes)
        Rows are the truth, columns the prediction; a row without counts stays empty.
    class_names : sequence of str, length n_classes
        Name of each row and column.
    title : str
        Text above the picture.
    """
    confusion = np.asarray(confusion)
    support = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(support, 1)
    written = np.array([[f"{count}\n{share:.0%}" if count else "" for count, share in zip(*rows)]
                        for rows in zip(confusion, shares)])
    names = [_label(name) for name in class_names]
    rows = [f"{name} ({total})" for name, total in zip(names, support[:, 0])]
    legible = len(names) <= _MOST_WRITTEN_CLASSES
    size = 3.5 + (0.72 if legible else 0.25) * len(names)
    with _picture(path, width=size + 1.2, height=size) as figure:
        ax = figure.subplots()
        seaborn.heatmap(shares, ax=ax, vmin=0, vmax=1, cmap="Blues", square=True, linewidths=0.5, linecolor="#dddddd",
                        annot=written if legible else False, fmt="",
                        annot_kws={"fontsize": 9}, xticklabels=names, yticklabels=rows,
                        cbar_kws={"label": "share of the true class", "shrink": 0.7})
        ax.set(title=title, xlabel="predicted class", ylabel="true class (segments)")
        ax.tick_params(axis="y", rotation=0)
        ax.set_xticks(ax.get_xticks(), names, rotation=40 if legible else 70, ha="right", rotation_mode="anchor")


def plot_roc_curves(path: str | os.PathLike, probabilities: np.ndarray, labels: np.ndarray, *,
                    class_names: Sequence[str]) -> None:
    """Draw the receiver operating characteristic of each class against the rest.

    Parameters
    ----------
    path : path-like
        PNG to write.
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row; a class that never occurs is named without a curve.
    class_names : sequence of str, length n_classes
        Name of each column.
    """
    with _picture(path, width=5.7 + 3.7 * _legend_columns(class_names), height=6) as figure:
        ax = figure.subplots()
        ax.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle="--")
        ax.set(title="ROC curves, one class against the rest (dashed: chance)", xlabel="false positive rate",
               ylabel="true positive rate")
        _draw_curves(ax, probabilities, labels, class_names=class_names, curve=metrics.roc_curve,
                     area=metrics.roc_auc, area_name="AUC")


def plot_precision_recall_curves(path: str | os.PathLike, probabilities: np.ndarray, labels: np.ndarray, *,
                                 class_names: Sequence[str]) -> None:
    """Draw precision against recall of each class against the rest.

    Parameters
    ----------
    path : path-like
        PNG to write.
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row; a class that never occurs is named without a curve.
    class_names : sequence of str, length n_classes
        Name of each column.
    """
    with _picture(path, width=5.7 + 3.7 * _legend_columns(class_names), height=6) as figure:
        ax = figure.subplots()
        ax.set(title="Precision and recall, one class against the rest", xlabel="recall", ylabel="precision")
        _draw_curves(ax, probabilities, labels, class_names=class_names, curve=metrics.precision_recall_curve,
                     area=metrics.average_precision, area_name="AP")


def plot_reliability(path: str | os.PathLike, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Draw accuracy against confidence above the number of segments at each confidence (Guo et al. 2017, figure 1).

    Parameters
    ----------
    path : path-like
        PNG to write.
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        One row per segment.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    """
    confidence, accuracy, count = metrics.reliability_curve(probabilities, labels)
    error = metrics.expected_calibration_error(probabilities, labels)
    edges = np.linspace(0, 1, len(count) + 1)
    with _picture(path, width=6.5, height=7) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.bar(edges[:-1], np.nan_to_num(accuracy), width=1 / len(count), align="edge", color=_BLUE, alpha=0.35,
                edgecolor="white", label="accuracy in the bin")
        top.plot(confidence, accuracy, "o", color=_BLUE, markersize=5, label="at the bin's mean confidence")
        top.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="perfectly calibrated")
        top.set(title=f"Reliability (expected calibration error {error:.3f})", ylabel="accuracy", xlim=(0, 1),
                ylim=(0, 1.02))
        top.legend(loc="upper left", fontsize=9)
        bottom.bar(edges[:-1], count, width=1 / len(count), align="edge", color=_GREY, edgecolor="white")
        bottom.set(xlabel="confidence (probability of the predicted class)", ylabel="segments")
        bottom.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def plot_comparison(path: str | os.PathLike, results: Sequence[Mapping]) -> None:
    """Draw the key scores and the F1 of each class for every model side by side, with their intervals.

    Parameters
    ----------
    path : path-like
        PNG to write.
    results : sequence of mappings
        One per model, as in ``write_evaluation_page``; the keys ``name``, ``metrics``, ``intervals`` and, if there,
        ``class_intervals`` are read.
    """
    classes = [row["class_name"] for row in results[0]["metrics"]["per_class"]]
    support = [row["support"] for row in results[0]["metrics"]["per_class"]]
    height = 1.6 + 0.22 * (len(results) + 1) * max(len(_KEY_SCORES), len(classes))
    with _picture(path, width=13, height=height) as figure:
        left, right = figure.subplots(1, 2)
        _draw_bars(left, results, [_SCORE_TITLES[name] for name in _KEY_SCORES], values=[
            [(result["metrics"][name], result["intervals"].get(name)) for name in _KEY_SCORES] for result in results])
        _draw_bars(right, results, [f"{_label(name)} ({n})" for name, n in zip(classes, support)],
                   values=[_class_f1(result) for result in results])
        left.set_title("Scores over all classes")
        right.set_title("F1 of each class (segments)")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(results))


@contextlib.contextmanager
def _picture(path: str | os.PathLike, *, width: float, height: float) -> Iterator[Figure]:
    """Give a figure (inches) that is saved as PNG when the block succeeds."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI)


def _label(name: str) -> str:
    """Cut a long name in the middle; matplotlib leaves a label that starts with an underscore out of a legend."""
    name = " ".join(str(name).split())
    if len(name) > _LONGEST_LABEL:
        half = (_LONGEST_LABEL - 1) // 2
        name = f"{name[:half + 1]}…{name[-half:]}"
    return f" {name}" if name.startswith("_") else name


def _draw_balance(ax: Axes, counts: pd.DataFrame) -> None:
    left = np.zeros(len(counts))
    rows = np.arange(len(counts))
    for colour, split in zip(_COLOURS, counts.columns):
        ax.barh(rows, counts[split], left=left, color=colour, label=split, height=0.7)
        left += counts[split].to_numpy()
    for row, (total, numbers) in enumerate(zip(left, counts.itertuples(index=False))):
        ax.annotate(" / ".join(map(str, numbers)), (total, row), xytext=(5, 0), textcoords="offset points",
                    va="center", fontsize=9)
    ax.set_yticks(rows, [_label(name) for name in counts.index])
    ax.set_ylim(len(counts) - 0.5, -0.5)
    ax.set_xlim(0, max(1.0, left.max(initial=0) * 1.15))  # room for the numbers at the end of a bar
    ax.set(title=f"Spectrograms per class ({' / '.join(counts.columns)})", xlabel="spectrograms")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _draw_spectrogram(ax: Axes, log_mel: np.ndarray, frontend: FrontendConfig) -> AxesImage:
    n_mels, n_frames = log_mel.shape
    frame_seconds = frontend.hop_length / frontend.sample_rate
    image = ax.imshow(log_mel - log_mel.max(), origin="lower", aspect="auto", cmap="magma", vmin=-frontend.top_db,
                      vmax=0, extent=(-frame_seconds / 2, (n_frames - 0.5) * frame_seconds, -0.5, n_mels - 0.5))
    positions, labels = _mel_ticks(frontend)
    ax.set_yticks(positions, labels)
    ax.set(xlabel="seconds", ylabel="kHz")
    ax.tick_params(labelsize=8)
    return image


def _mel_ticks(frontend: FrontendConfig) -> tuple[list[float], list[str]]:
    """Place round frequencies on the axis of mel bands: band 0 is centred one step above ``f_min``."""
    low, high = (_mel(hertz, frontend) for hertz in (frontend.f_min, frontend.f_max))
    positions: list[float] = []
    labels: list[str] = []
    for hertz in _TICKS_HZ:
        position = (_mel(hertz, frontend) - low) / (high - low) * (frontend.n_mels + 1) - 1
        gap = position - positions[-1] if positions else math.inf
        if 0 <= position <= frontend.n_mels - 1 and gap >= _LEAST_TICK_GAP * frontend.n_mels:
            positions.append(position)
            labels.append(f"{hertz / 1000:g}")
    return positions, labels


def _mel(hertz: float, frontend: FrontendConfig) -> float:
    return float(librosa.hz_to_mel(hertz, htk=frontend.mel_scale == "htk"))


def _draw_curves(ax: Axes, probabilities: np.ndarray, labels: np.ndarray, *, class_names: Sequence[str],
                 curve: Callable, area: Callable, area_name: str) -> None:
    for k, name in enumerate(class_names):
        scores, positives = np.asarray(probabilities)[:, k], np.asarray(labels) == k
        value = area(scores, positives)
        points = ([], []) if value is None else curve(scores, positives)
        ax.plot(*points, color=_COLOURS[k % len(_COLOURS)], linestyle=_LINE_STYLES[k // len(_COLOURS) % 4],
                label=f"{_label(name)}: {_number(value)} ({positives.sum()})")
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    ax.grid(True)
    ax.figure.legend(loc="outside right upper", title=f"class: {area_name} (segments)", fontsize=9,
                     ncols=_legend_columns(class_names))


def _legend_columns(class_names: Sequence[str]) -> int:
    return math.ceil(len(class_names) / _LEGEND_ROWS)


def _draw_bars(ax: Axes, results: Sequence[Mapping], titles: Sequence[str], *, values: Sequence[Sequence]) -> None:
    height = 0.8 / len(results)
    for k, (result, pairs) in enumerate(zip(results, values)):
        rows = np.arange(len(titles)) + (k - (len(results) - 1) / 2) * height
        ax.barh(rows, [value or 0 for value, _ in pairs], height=0.9 * height, color=_COLOURS[k], alpha=0.75,
                label=_label(result["name"]))
        for row, (_, interval) in zip(rows, pairs):
            if interval is not None:
                ax.plot(interval, [row, row], color="black", linewidth=1.5, marker="|", markersize=5)
    ax.set_yticks(range(len(titles)), titles)
    ax.set_ylim(len(titles) - 0.5, -0.5)
    ax.set_xlim(0, 1.02)
    ax.grid(True, axis="x")


def _class_f1(result: Mapping) -> list[tuple[float | None, list[float] | None]]:
    rows = result["metrics"]["per_class"]
    intervals = result.get("class_intervals") or [{}] * len(rows)
    return [(row["f1"], interval.get("f1")) for row, interval in zip(rows, intervals)]


# Page


def write_evaluation_page(path: str | os.PathLike, *, results: Sequence[Mapping], comparison: Mapping | None,
                          pictures: Iterable[tuple[str, Path]], settings: Mapping) -> None:
    """Write the evaluation as one self-contained HTML page: no script, no network, pictures inside.

    Parameters
    ----------
    path : path-like
        HTML file to write.
    results : sequence of mappings
        One per model: ``name``, ``model_name``, ``metrics`` (of ``metrics.evaluate``), ``intervals`` (of
        ``metrics.bootstrap_intervals``), ``n_parameters``, ``file_megabytes``, ``latency`` (``median_ms``, ``p95_ms``,
        ``clips_per_second``, ``batch_size``, ``device``; or None) and, if wanted, ``class_intervals`` (of
        ``metrics.per_class_intervals``).
    comparison : mapping or None
        ``metrics.paired_comparison`` of the first two results.
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


_UNDEFINED_NOTE = ('<p class="note">A dash stands where a value is undefined, such as the ROC AUC of a class that does'
                   " not occur. Macro averages count the classes that occur in the test set. With one label per"
                   " segment, micro averages equal the accuracy and balanced accuracy equals macro recall.</p>")


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
            f"Its {title} is {_number(first['metrics'][metric])} against {_number(second['metrics'][metric])}: a"
            f" difference of {_number(row['difference'], sign='+')} ({chance})."
            if verdict != "no significant difference" else
            f"The {title} of {first['name']} is {_number(first['metrics'][metric])}, that of {second['name']}"
            f" {_number(second['metrics'][metric])}: a difference of {_number(row['difference'], sign='+')}"
            f" ({chance}).",
            f"{first['name']} alone is right on {alone[0]} segments, {second['name']} alone on {alone[1]}"
            f" (McNemar's exact test, which takes segments as independent: p = {mcnemar['p']:.3g})."]


def _scores_table(results: Sequence[Mapping], comparison: Mapping | None) -> str:
    head = ["Score", *(result["name"] for result in results)]
    rows = [[title, *((result["metrics"][name], result["intervals"].get(name)) for result in results)]
            for name, title in _SCORE_TITLES.items()]
    if comparison:
        head.append(f"{results[0]['name']} minus {results[1]['name']}")
        for row, name in zip(rows, _SCORE_TITLES):
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
        rows.append([result["name"], result["model_name"], _number(result["n_parameters"], decimals=0),
                     _number(result["file_megabytes"], decimals=1),
                     *(_number(latency.get(key), decimals=1) for key in ("median_ms", "p95_ms", "clips_per_second")),
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
        return html.escape(_number(number, sign=sign)) + below
    return html.escape("–" if value is None else str(value))


def _interval_text(value: float | None, interval: Sequence[float] | None) -> str:
    return _number(value) + (f" (interval {_range_text(interval)})" if interval else "")


def _range_text(interval: Sequence[float], *, sign: str = "") -> str:
    return f"{_number(interval[0], sign=sign)} to {_number(interval[1], sign=sign)}"


def _number(value: float | None, *, decimals: int = 3, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign},.{decimals}f}"


def _setting(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
