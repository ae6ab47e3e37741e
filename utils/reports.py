"""Every picture; the only module that draws.

Pictures are ``matplotlib.figure.Figure`` objects without pyplot, so no window system or global state is involved.
Class names come from strangers: they are never read as mathematical text, and cut when long.
"""

import contextlib
import io
import math
import os
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from models.audio_frontend import hertz_to_mel
from models.efficientnet_config import FrontendConfig
from utils.metrics import SCORE_TITLES, Interval, ModelScores, Ranking, reliability_curve
from utils.pages import number_text
from utils.storage.files import atomic_path

_STYLE = {"font.size": 10, "axes.titlesize": 11, "axes.spines.top": False, "axes.spines.right": False,
          "axes.grid.axis": "both", "grid.color": "#dddddd", "axes.axisbelow": True, "legend.frameon": False,
          "text.parse_math": False, "axes.formatter.limits": (-3, 5)}
_DARK = {"axes.facecolor": "#14141c", "axes.edgecolor": "#14141c", "xtick.color": "#d8d8e0", "ytick.color": "#d8d8e0"}
_DPI = 120
_BLUE, _ORANGE, _GREEN, _GREY = "#0072b2", "#d55e00", "#009e73", "#777777"  # Okabe and Ito: told apart by all eyes
_COLOURS = (_BLUE, _ORANGE, _GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")
_LINE_STYLES = ("-", "--", ":", "-.")
_LONGEST_LABEL = 30
_LEGEND_ROWS = 26
_MOST_WRITTEN_CLASSES = 20  # numbers in a larger confusion matrix could not be read
_TICKS_HZ = (250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 64000)
_LEAST_TICK_GAP = 0.06  # of the height, so that neighbouring labels do not touch
_NO_GLYPH = r"Glyph \d+ .*missing from"  # a script the font lacks is drawn as boxes; the tables name the class

_FINDINGS_INCHES, _FINDINGS_CHARACTERS, _MOST_CODES = 3.0, 40, 8
_SMALL_INCHES, _SMALL_DPI = (3.2, 1.5), 100
_SMALL_COLOURS = 24  # 3 dB each: half the bytes of a smooth scale
_SMALL_AXES = (0.085, 0.12, 0.905, 0.86)  # left, bottom, width and height, in shares of the picture

_KEY_SCORES = ("accuracy", "macro_f1", "macro_precision", "macro_recall", "macro_roc_auc", "macro_average_precision")


Curve = tuple[Sequence[float | None], Sequence[float | None]]  # x and y of its points; None where undefined


class Found(Protocol):
    """What was found in a data set: how bad it is, and of what kind."""

    @property
    def severity(self) -> str:
        """Tell how bad it is."""

    @property
    def code(self) -> str:
        """Tell its kind."""


def plot_overview(path: str | os.PathLike, *, counts: pd.DataFrame,
                  examples: Mapping[str, tuple[np.ndarray, FrontendConfig]], findings: Sequence[Found] = ()) -> None:
    """Draw the class balance of each split, what was found beside it, and below one example spectrogram per class.

    Parameters
    ----------
    path : path-like
        PNG to write.
    counts : pandas.DataFrame, index class name, columns train, val, test
        Spectrograms of each class in each split.
    examples : mapping of str to (np.ndarray float32 (n_mels, n_frames) in dB, FrontendConfig)
        Spectrograms by class name; a class may be missing.
    findings : sequence of Found
        The worst first; told by severity and code. None: nothing stands beside the balance.
    """
    told = _findings_text(findings)
    shown = [name for name in counts.index if name in examples]
    n_columns = 3 if len(shown) <= 12 else 6
    n_rows = math.ceil(len(shown) / n_columns)
    heights = [max(1.3 + 0.34 * len(counts), 0.5 + 0.19 * told.count("\n")), 2.2 * n_rows]
    width = max(10.0, 2.9 * n_columns) + (_FINDINGS_INCHES if told else 0)
    with _picture(path, width=width, height=sum(heights), is_cropped=False) as figure:
        if not shown:
            _draw_top(figure, counts, told)
            return
        top, bottom = figure.subfigures(2, 1, height_ratios=heights)
        _draw_top(top, counts, told)
        axes = bottom.subplots(n_rows, n_columns, squeeze=False).ravel()
        for ax in axes[len(shown):]:
            ax.set_axis_off()
        for ax, name in zip(axes, shown):
            image = _draw_spectrogram(ax, *examples[name])
            ax.set_title(_label(name), fontsize=9)
        bottom.colorbar(image, ax=axes, label="dB below the loudest point", fraction=0.03, pad=0.01)


def spectrogram_png(log_mel: np.ndarray, frontend: FrontendConfig) -> bytes:
    """Draw one spectrogram small, dark and with little around it, for a page that shows many.

    Parameters
    ----------
    log_mel : np.ndarray, float32, shape (n_mels, n_frames), dB
        What to draw.
    frontend : FrontendConfig
        What it was made with.

    Returns
    -------
    bytes
        A PNG of 320 by 150 pixels.
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE | _DARK):
        figure = Figure(figsize=_SMALL_INCHES, facecolor=_DARK["axes.facecolor"])
        ax = figure.add_axes(_SMALL_AXES)
        _draw_spectrogram(ax, log_mel, frontend).set(cmap=matplotlib.colormaps["magma"].resampled(_SMALL_COLOURS),
                                                     interpolation="nearest")
        ax.set(xlabel="", ylabel="")  # the page tells the units once for all
        ax.set_yticks(*_mel_ticks(frontend, least_gap=2 * _LEAST_TICK_GAP))
        ax.tick_params(labelsize=7, length=2, pad=1)
        figure.savefig(buffer, format="png", dpi=_SMALL_DPI)
    return buffer.getvalue()


def plot_history(path: str | os.PathLike, history: pd.DataFrame, *, best_epoch: int) -> None:
    """Draw how a training went.

    Parameters
    ----------
    path : path-like
        PNG to write.
    history : pandas.DataFrame
        Columns ``epoch, train_loss, val_loss, val_accuracy, val_macro_f1, learning_rate``, one row per epoch.
    best_epoch : int
        Epoch whose weights were kept; marked in each panel. 0 is what the training began with.
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
            ax.set_xlim(min(best_epoch, history["epoch"].min()) - 0.5, history["epoch"].max() + 0.5)
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
    import seaborn  # late: it takes half a second, and no other picture needs it

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
        figure.set_layout_engine("compressed")  # the colour bar stays beside the square
        ax = figure.subplots()
        seaborn.heatmap(shares, ax=ax, vmin=0, vmax=1, cmap="Blues", square=True, linewidths=0.5, linecolor="#dddddd",
                        annot=written if legible else False, fmt="",
                        annot_kws={"fontsize": 9}, xticklabels=names, yticklabels=rows,
                        cbar_kws={"label": "share of the true class", "shrink": 0.7})
        figure.suptitle(title, fontsize="medium")  # may be wider than a small matrix
        ax.set(xlabel="predicted class", ylabel="true class (segments)")
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
    _plot_curves(path, probabilities, labels, class_names=class_names, kind=_ROC)


def plot_precision_recall_curves(path: str | os.PathLike, probabilities: np.ndarray, labels: np.ndarray, *,
                                 class_names: Sequence[str]) -> None:
    """Draw precision against recall of each class against the rest; arguments as in ``plot_roc_curves``."""
    _plot_curves(path, probabilities, labels, class_names=class_names, kind=_PRECISION_RECALL)


def plot_reliability(path: str | os.PathLike, probabilities: np.ndarray, labels: np.ndarray, *, title: str,
                     uncalibrated: np.ndarray | None = None) -> None:
    """Draw accuracy against confidence above the number of segments at each confidence (Guo et al. 2017, figure 1).

    Parameters
    ----------
    path : path-like
        PNG to write.
    probabilities : np.ndarray, float, shape (n, n_classes), range 0..1
        The largest value of a row is its confidence.
    labels : np.ndarray, int, shape (n,), range 0..n_classes-1
        True class of each row.
    title : str
        Text above the picture: whose probabilities these are.
    uncalibrated : np.ndarray, float, shape (n, n_classes), range 0..1, optional
        What the probabilities were before calibration: drawn beside them.
    """
    confidence, accuracy, count, error = reliability_curve(probabilities, labels)
    edges, width = np.linspace(0, 1, len(count) + 1)[:-1], 1 / len(count)
    told = f"expected calibration error {error:.3f}"
    with _picture(path, width=6.5, height=7) as figure:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        top.bar(edges, np.nan_to_num(accuracy), width=width, align="edge", color=_BLUE, alpha=0.35,
                edgecolor="white", label="accuracy in the bin")
        bottom.bar(edges, count, width=width, align="edge", color=_GREY, edgecolor="white")
        top.plot(confidence, accuracy, "o", color=_BLUE, markersize=5, label="at the bin's mean confidence")
        if uncalibrated is not None:
            before_confidence, before_accuracy, before_count, before_error = reliability_curve(uncalibrated, labels)
            top.plot(before_confidence, before_accuracy, "D", color=_ORANGE, markersize=5, fillstyle="none",
                     label="before calibration")
            bottom.stairs(before_count, [*edges, 1.0], color=_ORANGE, linewidth=1.5)
            told = f"{told}, before calibration {before_error:.3f}"
        top.plot([0, 1], [0, 1], color=_GREY, linestyle="--", label="perfectly calibrated")
        top.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
        figure.suptitle(f"{title}\n{told}", fontsize="medium")
        top.legend(loc="upper left", fontsize=9)
        bottom.set(xlabel="confidence (probability of the predicted class)", ylabel="segments")
        bottom.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def plot_comparison(path: str | os.PathLike, results: Sequence[ModelScores]) -> None:
    """Draw the key scores and the F1 of each class for every model side by side, with their intervals.

    Parameters
    ----------
    path : path-like
        PNG to write.
    results : sequence of ModelScores
        One per model, on the same segments.
    """
    rows = results[0].metrics["per_class"]
    height = 1.6 + 0.22 * (len(results) + 1) * max(len(_KEY_SCORES), len(rows))
    with _picture(path, width=13, height=height) as figure:
        left, right = figure.subplots(1, 2)
        _draw_bars(left, [SCORE_TITLES[name] for name in _KEY_SCORES], values={
            result.name: [(result.metrics[name], result.intervals[name]) for name in _KEY_SCORES]
            for result in results})
        _draw_bars(right, [f"{_label(row['class_name'])} ({row['support']})" for row in rows], values={
            result.name: [(row["f1"], intervals["f1"])
                          for row, intervals in zip(result.metrics["per_class"], result.class_intervals)]
            for result in results})
        left.set_title("Scores over all classes (lines: intervals)")
        right.set_title("F1 of each class (segments)")
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(results))


def plot_coverage(path: str | os.PathLike, results: Sequence[ModelScores]) -> None:
    """Draw precision against the share of segments that is answered, for one threshold of all classes.

    Parameters
    ----------
    path : path-like
        PNG to write.
    results : sequence of ModelScores
        One per model, on the same segments; a point marks what each answers by its own thresholds.
    """
    with _picture(path, width=8.5, height=5.5) as figure:
        ax = figure.subplots()
        for colour, result in zip(_COLOURS, results):
            curve, answered = result.answered["curve"], result.answered
            ax.plot(*_told(curve["share"], curve["precision"]), color=colour, label=_label(result.name))
            ax.plot(*_told([answered["share"]], [answered["precision"]]), color=colour, marker="o", markersize=9,
                    linestyle="", markeredgecolor="black", label=f"{_label(result.name)}, by its thresholds")
        ax.set(title="Precision of what is answered", xlabel="share of the segments that is answered",
               ylabel="precision of the answers", xlim=(0, 1.01))
        ax.set_ylim(top=1.01)
        ax.grid(True)
        figure.legend(loc="outside right upper", fontsize=9)


def plot_learning_curve(path: str | os.PathLike, scores: pd.DataFrame, *, score_title: str) -> None:
    """Draw how a score grows with the recordings of a class that there are to learn from.

    Parameters
    ----------
    path : path-like
        PNG to write.
    scores : pandas.DataFrame
        Columns ``run``, ``recordings`` (text, in order: "5", "10", .. "all") and ``score``, a row a training; seeds of
        one run are drawn as points around the line of their means.
    score_title : str
        What the score is.
    """
    steps = list(dict.fromkeys(scores["recordings"]))
    with _picture(path, width=8.5, height=5.0) as figure:
        ax = figure.subplots()
        for colour, (run, rows) in zip(_COLOURS, scores.groupby("run", sort=False)):
            places = rows["recordings"].map(steps.index)
            means = rows["score"].groupby(places).mean()
            ax.plot(places, rows["score"], color=colour, marker="o", markersize=4, linestyle="", alpha=0.5)
            ax.plot(means.index, means, color=colour, marker="o", label=_label(str(run)))
        ax.set_xticks(range(len(steps)), steps)
        ax.set(title="What more recordings bring", xlabel="recordings of each class to learn from",
               ylabel=f"{score_title}, test")
        ax.grid(True)
        figure.legend(loc="outside right upper", fontsize=9)


def plot_detection_curves(path: str | os.PathLike, *, by_confidence: Mapping[str, Curve],
                          by_overlap: Mapping[str, Curve]) -> None:
    """Draw how good detections are: precision against recall over thresholds, and F1 over the overlap asked for.

    Parameters
    ----------
    path : path-like
        PNG to write.
    by_confidence : mapping of str to (recalls, precisions)
        By what they are of: classes, or all of them; 0..1, None where undefined.
    by_overlap : mapping of str to (intersections over union, F1)
        In the same way.
    """
    panels = (("Precision and recall over thresholds", "recall", "precision", by_confidence),
              ("F1 by how closely a detection must lie", "intersection over union asked for", "F1", by_overlap))
    with _picture(path, width=13, height=5) as figure:
        for ax, (title, x_label, y_label, curves) in zip(figure.subplots(1, 2), panels):
            for k, (name, (x, y)) in enumerate(curves.items()):
                ax.plot(*_told(x, y), color=_COLOURS[k % len(_COLOURS)], marker=".",
                        linestyle=_LINE_STYLES[k // len(_COLOURS) % 4], label=_label(name))
            ax.set(title=title, xlabel=x_label, ylabel=y_label, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
            ax.grid(True)
        # the classes are those of both
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper", fontsize=9,
                      ncols=math.ceil(len(by_overlap) / _LEGEND_ROWS) or 1)


def _told(x: Sequence[float | None], y: Sequence[float | None]) -> tuple[list[float], list[float]]:
    """Return the points that are defined."""
    points = [(one, other) for one, other in zip(x, y) if one is not None and other is not None]
    return [one for one, _ in points], [other for _, other in points]


@contextlib.contextmanager
def _picture(path: str | os.PathLike, *, width: float, height: float, is_cropped: bool = True) -> Iterator[Figure]:
    """Give a figure (inches) that is saved as PNG when the block succeeds; to crop it, it is drawn a second time."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=_NO_GLYPH)
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        if not is_cropped and (engine := figure.get_layout_engine()):
            engine.execute(figure)
            figure.set_layout_engine("none")  # or the figure is drawn once to be laid out and once to be seen
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI, bbox_inches="tight" if is_cropped else None)


def _label(name: str) -> str:
    """Cut a long name in the middle; matplotlib leaves a label that starts with an underscore out of a legend."""
    name = " ".join(str(name).split())
    if len(name) > _LONGEST_LABEL:
        half = (_LONGEST_LABEL - 1) // 2
        name = f"{name[:half + 1]}…{name[-half:]}"
    return f" {name}" if name.startswith("_") else name


def _findings_text(findings: Sequence[Found]) -> str:
    """Return a line for each code, counted, below its severity."""
    lines: list[str] = []
    for severity in dict.fromkeys(found.severity for found in findings):
        codes = Counter(found.code for found in findings if found.severity == severity)
        told = [code if number == 1 else f"{code} ({number})" for code, number in codes.items()]
        if len(told) > _MOST_CODES:
            told[_MOST_CODES:] = [f"{len(told) - _MOST_CODES} more kinds"]
        number = codes.total()
        lines.append(f"{number} {severity if number == 1 else f'{severity}s'}")
        lines += textwrap.wrap(", ".join(told), _FINDINGS_CHARACTERS, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def _draw_top(figure: Figure | SubFigure, counts: pd.DataFrame, told: str) -> None:
    """Draw the balance, and what was found to its right."""
    if not told:
        _draw_balance(figure.subplots(), counts)
        return
    width = figure.bbox.width / figure.dpi
    left, right = figure.subplots(1, 2, width_ratios=[width - _FINDINGS_INCHES, _FINDINGS_INCHES])
    _draw_balance(left, counts)
    right.set_axis_off()
    right.set_title("What was found (more with --audit)", loc="left", fontsize="medium")
    right.text(0, 1, told, va="top", fontsize=9, transform=right.transAxes)


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


def _mel_ticks(frontend: FrontendConfig, *,
               least_gap: float = _LEAST_TICK_GAP) -> tuple[list[float], list[str]]:
    """Place round frequencies on the axis of mel bands: band 0 is centred one step above ``f_min``."""
    low, high = (_mel(hertz, frontend) for hertz in (frontend.f_min, frontend.f_max))
    positions: list[float] = []
    labels: list[str] = []
    for hertz in _TICKS_HZ:
        position = (_mel(hertz, frontend) - low) / (high - low) * (frontend.n_mels + 1) - 1
        gap = position - positions[-1] if positions else math.inf
        if 0 <= position <= frontend.n_mels - 1 and gap >= least_gap * frontend.n_mels:
            positions.append(position)
            labels.append(f"{hertz / 1000:g}")
    return positions, labels


def _mel(hertz: float, frontend: FrontendConfig) -> float:
    return hertz_to_mel(hertz, mel_scale=frontend.mel_scale)


@dataclass(frozen=True, kw_only=True)
class _CurveKind:
    """What is told of each class against the rest: a curve, and the area below it."""

    title: str
    x_label: str
    y_label: str
    curve: Callable[[Ranking], tuple[np.ndarray, np.ndarray]]
    area: Callable[[Ranking], np.ndarray]
    area_name: str
    chance: tuple[Sequence[float], Sequence[float]] = ((), ())


_ROC = _CurveKind(title="ROC curves, one class against the rest (dashed: chance)", x_label="false positive rate",
                  y_label="true positive rate", curve=Ranking.roc_curve, area=Ranking.roc_auc, area_name="AUC",
                  chance=((0, 1), (0, 1)))
_PRECISION_RECALL = _CurveKind(title="Precision and recall, one class against the rest", x_label="recall",
                               y_label="precision", curve=Ranking.precision_recall_curve,
                               area=Ranking.average_precision, area_name="AP")


def _plot_curves(path: str | os.PathLike, probabilities: np.ndarray, labels: np.ndarray, *,
                 class_names: Sequence[str], kind: _CurveKind) -> None:
    legend_columns = math.ceil(len(class_names) / _LEGEND_ROWS)
    with _picture(path, width=5.7 + 3.7 * legend_columns, height=6) as figure:
        ax = figure.subplots()
        ax.plot(*kind.chance, color=_GREY, linewidth=1, linestyle="--")
        for k, name in enumerate(class_names):
            positives = np.asarray(labels) == k
            ranking = Ranking.of(np.asarray(probabilities)[:, k], positives)
            area = float(kind.area(ranking)[0])
            defined = math.isfinite(area)
            ax.plot(*(kind.curve(ranking) if defined else ((), ())), color=_COLOURS[k % len(_COLOURS)],
                    linestyle=_LINE_STYLES[k // len(_COLOURS) % 4],
                    label=f"{_label(name)}: {number_text(area if defined else None)} ({positives.sum()})")
        ax.set(title=kind.title, xlabel=kind.x_label, ylabel=kind.y_label, xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        ax.grid(True)
        figure.legend(loc="outside right upper", title=f"class: {kind.area_name} (segments)", fontsize=9,
                      alignment="left", ncols=legend_columns)


def _draw_bars(ax: Axes, titles: Sequence[str], *,
               values: Mapping[str, Sequence[tuple[float | None, Interval]]]) -> None:
    """Draw a group of bars per title; ``values`` holds by model name one score and interval for each."""
    height = 0.8 / len(values)
    for k, (name, pairs) in enumerate(values.items()):
        rows = np.arange(len(titles)) + (k - (len(values) - 1) / 2) * height
        ax.barh(rows, [value or 0 for value, _ in pairs], height=0.9 * height, color=_COLOURS[k], alpha=0.75,
                label=_label(name))
        for row, (_, interval) in zip(rows, pairs):
            if interval is not None:
                ax.plot(interval, [row, row], color="black", linewidth=1.5, marker="|", markersize=5)
    ax.set_yticks(range(len(titles)), titles)
    ax.set_ylim(len(titles) - 0.5, -0.5)
    ax.set_xlim(0, 1.02)
    ax.grid(True, axis="x")
