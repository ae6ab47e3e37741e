"""The evaluation of detections as a folder: one HTML page that needs nothing beside it, scores, a table, a picture."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from utils import reports
from utils.evaluation.detection_scores import Scored
from utils.evaluation.detections import FALSE, MISSED, Coverage, DetectionEvaluation, EventOutcome
from utils.metrics import Interval
from utils.pages import DARK_CSS, Markup, document, element, escaped, figure, number_text, table
from utils.storage.files import write_json, write_text
from utils.storage.locks import locked
from utils.storage.tables import write_table

OUTCOME_COLUMNS = ("path", "class_name", "outcome", "start_seconds", "end_seconds", "confidence",
                   "annotation_start_seconds", "annotation_end_seconds")
_OVERALL = {"precision": "Precision", "recall": "Recall", "f1": "F1"}
_CLASS_SCORES = {**_OVERALL, "false_per_hour": "False per hour"}
_MOST_LISTED = 30
_SHOWN_THRESHOLDS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_ALL = "all classes"
_EVENTS_NOTE = ("By events: a detection is right where it and an annotation of its class share at least {share:g} of"
                " the shorter of both; each annotation makes one detection right, so a second detection of the same"
                " call is false, and of several calls below one detection one is found.")
_TIME_NOTE = ("By time: each recording is cut into cells of {seconds:g} s (cells are what is counted here). A cell"
              " belongs to a class where any of it is marked: one long detection over several calls is right where they"
              " are and false between them.")
_SCORES_NOTE = ("Micro averages count every event alike; macro averages count every annotated class alike. The"
                " precision of a class that was never detected is 0; a dash stands where a value is undefined. Below"
                " each score is its {percent:g}% bootstrap interval over recordings, where these differ at all.")
_THRESHOLDS_NOTE = ("What one threshold would leave of the detections. What lies below the threshold of the prediction"
                    " was never written: for more recall, predict with a lower --min_confidence.")
_OVERLAP_NOTE = ("A stricter measure: here a detection is right where it shares that much of the time that it or the"
                 " annotation lasts. Whole windows seldom lie so closely around a short call.")


def write_detection_report(output_dir: str | os.PathLike, evaluation: DetectionEvaluation) -> list[Path]:
    """Write an evaluation of detections.

    Parameters
    ----------
    output_dir : path-like
        Gets ``report.html``, ``metrics.json``, ``detections.csv`` (a row for each detection, with the annotation that
        it is, and for each missed annotation) and ``detection_curves.png``.
    evaluation : DetectionEvaluation
        What was found.

    Returns
    -------
    list of Path
        What was written, the page first.

    Raises
    ------
    ConfigError
        If another process writes the folder.
    """
    folder = Path(output_dir)
    page, metrics, rows, picture = (folder / name for name in ("report.html", "metrics.json", "detections.csv",
                                                               "detection_curves.png"))
    with locked(folder):
        write_json(metrics, evaluation.to_dict())
        write_table(rows, pd.DataFrame([_row(outcome) for outcome in evaluation.outcomes], columns=OUTCOME_COLUMNS))
        reports.plot_detection_curves(
            picture, by_confidence=_curves(evaluation.by_confidence, "recall", "precision"),
            by_overlap=_curves(evaluation.by_overlap, "iou", "f1"))
        write_text(page, detections_page(evaluation, picture=picture))
    return [page, metrics, rows, picture]


def detections_page(evaluation: DetectionEvaluation, *, picture: Path) -> str:
    """Return the page of an evaluation of detections; ``picture`` is that of its curves."""
    settings = evaluation.settings
    return document("NightScan detections", [
        *_verdict_part(evaluation),
        element("h2", "By events"), *_scored_part(evaluation.events),
        element("p", _EVENTS_NOTE.format(share=settings.min_overlap), kind="note"),
        element("h2", "By time"), *_scored_part(evaluation.time),
        element("p", _TIME_NOTE.format(seconds=settings.grid_seconds), kind="note"),
        element("p", _SCORES_NOTE.format(percent=100 * settings.confidence), kind="note"),
        element("h2", "By threshold"), *_threshold_part(evaluation.by_confidence),
        element("h2", "By overlap"), _overlap_table(evaluation), element("p", _OVERLAP_NOTE, kind="note"),
        element("h2", "Curves"), figure("Over thresholds, and over the overlap asked for", picture),
        element("h2", "What to listen to"), *_listed_part(evaluation.outcomes),
        element("h2", "What was compared"), *_coverage_part(evaluation)], css=DARK_CSS)


def _verdict_part(evaluation: DetectionEvaluation) -> list[Markup]:
    events, coverage = evaluation.events.overall, evaluation.coverage
    found, right = (_share_text(evaluation.events, name) for name in ("recall", "precision"))
    sentences = [f"{events['n_right']:,} of {events['n_annotated']:,} annotated events were found{found}, and"
                 f" {events['n_right']:,} of {events['n_detected']:,} detections are right{right}.",
                 f"Measured on {evaluation.n_recordings:,} annotated recordings, {evaluation.hours:,.2f} h:"
                 f" {number_text(events['false_per_hour'], decimals=2)} false detections an hour, macro F1"
                 f" {number_text(events['macro_f1'])}."]
    if evaluation.only_annotated:
        sentences.append(f"Never detected: {', '.join(evaluation.only_annotated)}. If the model does not know them, say"
                         " which classes count.")
    if evaluation.only_detected:
        sentences.append(f"Detected, but nowhere annotated: {', '.join(evaluation.only_detected)}. If nobody looked for"
                         " them, say which classes count.")
    if coverage.not_heard:
        sentences.append(f"{len(coverage.not_heard):,} annotated recordings are not among the predictions.")
    return [element("div", *(element("p", sentence) for sentence in sentences), kind="verdict")]


def _share_text(scored: Scored, name: str) -> str:
    value, interval = scored.overall[f"micro_{name}"], scored.intervals[f"micro_{name}"]
    if value is None:
        return ""
    told = f", interval {100 * interval[0]:.0f}% to {100 * interval[1]:.0f}%" if interval else ""
    return f" ({100 * value:.0f}%{told})"


def _scored_part(scored: Scored) -> list[Markup]:
    averages = [[f"{kind}, {_ALL}", *(_estimate(scored.overall[f"{prefix}_{name}"],
                                                scored.intervals[f"{prefix}_{name}"]) for name in _OVERALL)]
                for prefix, kind in (("micro", "Micro"), ("macro", "Macro"))]
    rows = [[row["class_name"], row["n_annotated"], row["n_detected"], row["n_right"],
             row["n_detected"] - row["n_right"], row["n_annotated"] - row["n_right"],
             *(_estimate(row[name], intervals[name]) for name in _CLASS_SCORES)]
            for row, intervals in zip(scored.per_class, scored.class_intervals)]
    return [table(["Average", *_OVERALL.values()], averages),
            table(["Class", "Annotated", "Detected", "Right", "False", "Missed", *_CLASS_SCORES.values()], rows)]


def _threshold_part(curve: Mapping | None) -> list[Markup]:
    if curve is None:
        return [element("p", "The predictions tell no confidences; results.json does.")]
    names = ("micro_precision", "micro_recall", "micro_f1", "macro_f1")
    rows = [[number_text(threshold, decimals=2), *(number_text(curve[name][place]) for name in names),
             number_text(curve["false_per_hour"][place], decimals=2)]
            for place, threshold in enumerate(curve["threshold"]) if threshold in _SHOWN_THRESHOLDS]
    averages = [[row["class_name"], number_text(row["average_precision"])] for row in curve["per_class"]]
    return [table(["Threshold", "Precision, micro", "Recall, micro", "F1, micro", "F1, macro", "False per hour"], rows),
            table(["Class", "Average precision"], averages), element("p", _THRESHOLDS_NOTE, kind="note")]


def _overlap_table(evaluation: DetectionEvaluation) -> Markup:
    curve = evaluation.by_overlap
    rows = [[_ALL, *map(number_text, curve["micro_f1"])],
            *([row["class_name"], *map(number_text, row["f1"])] for row in curve["per_class"])]
    return table(["F1 at an intersection over union of", *(f"{level:g}" for level in curve["iou"])], rows)


def _listed_part(outcomes: Sequence[EventOutcome]) -> list[Markup]:
    false = sorted((one for one in outcomes if one.outcome == FALSE), key=lambda one: -(one.confidence or 0))
    missed = [one for one in outcomes if one.outcome == MISSED]
    return [table(["Recording", "Class", "Start (s)", "End (s)", "Confidence"],
                  [[one.path, one.class_name, *_seconds_texts(one.start_ms, one.end_ms), number_text(one.confidence)]
                   for one in false[:_MOST_LISTED]],
                  caption=_listed_caption("False detections, the surest first", false)),
            table(["Recording", "Class", "Start (s)", "End (s)"],
                  [[one.path, one.class_name, *_seconds_texts(one.annotation_start_ms, one.annotation_end_ms)]
                   for one in missed[:_MOST_LISTED]], caption=_listed_caption("Missed annotations", missed)),
            element("p", "All of them stand in detections.csv. A false detection may be a call that nobody marked:"
                    " listen to the surest before you believe the precision.", kind="note")]


def _listed_caption(title: str, outcomes: Sequence[EventOutcome]) -> str:
    return f"{title} ({min(_MOST_LISTED, len(outcomes)):,} of {len(outcomes):,})"


def _coverage_part(evaluation: DetectionEvaluation) -> list[Markup]:
    coverage, settings = evaluation.coverage, evaluation.settings
    rows = {"Predictions": evaluation.predictions, "Annotations": evaluation.annotations,
            "Recordings compared": f"{evaluation.n_recordings:,} ({evaluation.hours:,.2f} h)",
            "Heard, but not annotated (left out)": f"{coverage.not_annotated:,}",
            "Annotated, but not heard (left out)": _names_text(coverage.not_heard),
            "Not wholly annotated (left out)": _names_text(coverage.unsure),
            "Labels that do not count": _left_out_text(coverage),
            "Classes that count": ", ".join(settings.class_names) or "all",
            "Least overlap, of the shorter": settings.min_overlap, "Cells (s)": settings.grid_seconds,
            "Resamples": settings.n_bootstrap, "Seed": settings.seed}
    return [table(["What", "Value"], rows.items(), kind="settings")]


def _names_text(names: Sequence[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - _MOST_LISTED:,} more (metrics.json names them)" if len(names) > _MOST_LISTED else ""
    return f"{len(names):,}: {', '.join(names[:_MOST_LISTED])}{more}"


def _left_out_text(coverage: Coverage) -> str:
    return ", ".join(f"{name} ({number:,})" for name, number in coverage.left_out.items()) or "none"


def _curves(curve: Mapping | None, x: str, y: str) -> dict[str, reports.Curve]:
    """Return the lines of a picture: all classes, and each; ``iou`` is the same for all."""
    if curve is None:
        return {}
    common = curve.get(x)
    return {_ALL: (common or curve[f"micro_{x}"], curve[f"micro_{y}"]),
            **{row["class_name"]: (common or row[x], row[y]) for row in curve["per_class"]}}


def _row(outcome: EventOutcome) -> list:
    return [*outcome[:3], _seconds(outcome.start_ms), _seconds(outcome.end_ms), outcome.confidence,
            _seconds(outcome.annotation_start_ms), _seconds(outcome.annotation_end_ms)]


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _seconds_texts(*milliseconds: int | None) -> list[str]:
    return [number_text(_seconds(value), decimals=3) for value in milliseconds]


def _estimate(value: float | None, interval: Interval) -> Markup:
    """Return a cell with a number and, below it, its interval."""
    below = element("span", f"{number_text(interval[0])} to {number_text(interval[1])}", kind="interval"
                    ) if interval else ""
    return Markup(escaped(number_text(value)) + below)
