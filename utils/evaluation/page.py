"""The evaluation as one HTML page that needs nothing beside it."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from utils.evaluation.comparison import BETTER, TOO_FEW, WORSE, Comparison
from utils.evaluation.failure_examples import FailureExample
from utils.evaluation.failures_page import FAILURES_CSS, failures_part, slices_part
from utils.evaluation.results import Evaluation, ModelEvaluation
from utils.metrics import SCORE_TITLES, Interval
from utils.pages import DARK_CSS, Markup, document, element, escaped, figure, number_text, table
from utils.storage.files import write_text

_CLASS_SCORES = {"precision": "Precision", "recall": "Recall", "f1": "F1", "roc_auc": "ROC AUC",
                 "average_precision": "Average precision"}
_ANSWERED_SCORES = {"share": "Share that is answered", "precision": "Precision of the answers",
                    "unknown_rejected": "Segments of the reject class that are not answered"}
_SHOWN_THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_ANSWERED_NOTE = ("An answer is any class but the reject class, which stands where the top class does not reach its"
                  " threshold. The first tables go by the thresholds in the model's file, the last by one threshold for"
                  " all classes: choose there how much silence a precision is worth.")
_UNDEFINED_NOTE = ("A dash stands where a value is undefined, such as the ROC AUC of a class that does not occur. Macro"
                   " averages count the classes that occur in the test set. With one label per segment, micro averages"
                   " equal the accuracy and balanced accuracy equals macro recall.")
_CSS = """
.verdict { border-left: .3rem solid #0072b2; background: var(--raised); padding: .75rem 1.25rem; }
.verdict p { margin: .4rem 0; } .verdict p:first-child { font-size: 1.15rem; }
.interval { display: block; color: var(--faint); font-size: .8rem; white-space: nowrap; }
@media print { .verdict { break-inside: avoid; } }
"""


def write_evaluation_page(path: str | os.PathLike, evaluation: Evaluation, *, pictures: Iterable[tuple[str, Path]],
                          examples: Mapping[str, Sequence[FailureExample]] | None = None) -> None:
    """Write the evaluation as one self-contained HTML page: no script, no network, pictures and sounds inside.

    Parameters
    ----------
    path : path-like
        HTML file to write.
    evaluation : Evaluation
        What was found.
    pictures : iterable of (str, Path)
        Title and PNG of each picture, in order.
    examples : mapping of str to sequence of FailureExample, optional
        What can be seen and heard of each model's failures, by its name.
    """
    write_text(path, document("NightScan evaluation", [
        *_verdict_part(evaluation),
        element("h2", "Scores"), _scores_table(evaluation.models, evaluation.comparison),
        element("h2", "Classes"), *map(_class_table, evaluation.models), element("p", _UNDEFINED_NOTE, kind="note"),
        element("h2", "What is answered"), *_answered_part(evaluation.models),
        element("h2", "Whole recordings, and calibration"), _recordings_table(evaluation.models),
        element("h2", "Size and speed"), _speed_table(evaluation.models),
        element("h2", "Pictures"), *(figure(title, picture) for title, picture in pictures),
        element("h2", "Where they fail"), *_failures_parts(evaluation, examples or {}),
        element("h2", "Settings"), table(["Setting", "Value"], _settings(evaluation).items(), kind="settings")],
        css=DARK_CSS + _CSS + FAILURES_CSS))


def _verdict_part(evaluation: Evaluation) -> list[Markup]:
    bootstrap = evaluation.bootstrap
    if evaluation.comparison:
        sentences = _comparison_sentences(evaluation.models, evaluation.comparison)
    elif evaluation.others:
        first = evaluation.models[0]
        sentences = [sentence for model in evaluation.models[1:]
                     for sentence in _comparison_sentences([first, model], evaluation.others[model.name])[:3]]
    else:
        sentences = [f"{model.name} reaches a macro F1 of"
                     f" {_interval_text(model.metrics['macro_f1'], model.intervals['macro_f1'])}."
                     for model in evaluation.models]
    sentences.append(f"Measured on {bootstrap.n_segments} segments of {bootstrap.n_recordings} recordings.")
    note = (f"Intervals are {_percent(bootstrap.confidence)} bootstrap intervals over recordings: they say how far a"
            " score may move with another sample of recordings of the same kind.")
    return [element("div", *(element("p", sentence) for sentence in sentences), kind="verdict"),
            element("p", note, kind="note")]


def _comparison_sentences(models: Sequence[ModelEvaluation], comparison: Comparison) -> list[str]:
    (first, second), metric, mcnemar = models, comparison.verdict_metric, comparison.mcnemar
    title, found = metric.replace("_", " ").replace("f1", "F1"), comparison.differences[metric]
    difference, interval = found.difference, found.interval
    alone = [mcnemar.only_a_correct, mcnemar.only_b_correct]
    if comparison.verdict == WORSE and difference is not None and interval is not None:
        first, second, alone = second, first, alone[::-1]  # the better model is named first
        difference, interval = -difference, (-interval[1], -interval[0])
    scores = [number_text(model.metrics[metric]) for model in (first, second)]
    if comparison.verdict not in (BETTER, WORSE):
        headline = f"No significant difference between {first.name} and {second.name}."
        if comparison.verdict == TOO_FEW:
            headline = f"Too few recordings to tell {first.name} and {second.name} apart."
        told = f"The {title} of {first.name} is {scores[0]}, that of {second.name} {scores[1]}"
    else:
        headline = f"{first.name} is better than {second.name}."
        told = f"Its {title} is {scores[0]} against {scores[1]}"
    chance = _chance(interval, comparison.confidence)
    return [headline,
            f"{told}: a difference of {number_text(difference, sign='+')} ({chance}).",
            comparison.reason[:1].upper() + comparison.reason[1:] + ".",
            f"{first.name} alone is right on {alone[0]} segments, {second.name} alone on {alone[1]}"
            f" (McNemar's exact test, which takes segments as independent: p = {mcnemar.p:.3g})."]


def _chance(interval: Interval, confidence: float) -> str:
    if interval is None:
        return "too few recordings for an interval"
    includes = "includes" if interval[0] <= 0 <= interval[1] else "excludes"
    return f"{_percent(confidence)} interval {_range_text(interval, sign='+')}, which {includes} 0"


def _scores_table(models: Sequence[ModelEvaluation], comparison: Comparison | None) -> Markup:
    head = ["Score", *(model.name for model in models)]
    rows = [[title, *(_estimate(model.metrics[name], model.intervals[name]) for model in models)]
            for name, title in SCORE_TITLES.items()]
    if comparison:
        head.append(f"{models[0].name} minus {models[1].name}")
        for row, name in zip(rows, SCORE_TITLES):
            found = comparison.differences[name]
            row.append(_estimate(found.difference, found.interval, sign="+"))
    return table(head, rows)


def _class_table(model: ModelEvaluation) -> Markup:
    rows = [[row["class_name"], row["support"], *(_estimate(row[name], intervals[name]) for name in _CLASS_SCORES)]
            for row, intervals in zip(model.metrics["per_class"], model.class_intervals)]
    return table(["Class", "Segments", *_CLASS_SCORES.values()], rows, caption=model.name)


def _answered_part(models: Sequence[ModelEvaluation]) -> list[Markup]:
    names = [model.name for model in models]
    whole = [[title, *(_estimate(model.answered[score], model.answered["intervals"][score]) for model in models)]
             for score, title in _ANSWERED_SCORES.items()]
    curves = [model.answered["curve"] for model in models]
    swept = [[number_text(threshold, decimals=2),
              *(number_text(curve[score][place]) for curve in curves for score in ("share", "precision"))]
             for place, threshold in enumerate(curves[0]["threshold"]) if threshold in _SHOWN_THRESHOLDS]
    return [table(["By the model's thresholds", *names], whole), *map(_answered_class_table, models),
            table(["Threshold", *(f"{name}: {told}" for name in names for told in ("answered", "precision"))], swept,
                  caption="One threshold for all classes"),
            element("p", _ANSWERED_NOTE, kind="note")]


def _answered_class_table(model: ModelEvaluation) -> Markup:
    rows = [[row["class_name"], number_text(row["threshold"], decimals=2), row["n_answered"],
             *(_estimate(row[score], intervals[score]) for score in ("precision", "recall"))]
            for row, intervals in zip(model.answered["per_class"], model.answered["class_intervals"])]
    return table(["Class", "Threshold", "Answered with it", "Precision", "Recall"], rows,
                 caption=f"{model.name}, by its thresholds")


def _recordings_table(models: Sequence[ModelEvaluation]) -> Markup:
    rows = [[f"{title} of whole recordings", *(number_text(model.recording_metrics.get(score)) for model in models)]
            for score, title in (("accuracy", "Accuracy"), ("macro_f1", "Macro F1"))]
    rows += [[f"{SCORE_TITLES[score]}, before calibration",
              *(number_text(model.before_calibration.get(score)) for model in models)]
             for score in ("ece", "brier_score", "log_loss")]
    return table(["A recording is its segments' mean probability", *(model.name for model in models)], rows)


def _failures_parts(evaluation: Evaluation, examples: Mapping[str, Sequence[FailureExample]]) -> list[Markup]:
    parts = [failures_part(model.name, model.failures, examples.get(model.name, ()))
             for model in evaluation.models if model.failures]
    return [*parts, slices_part(evaluation.slices, confidence=evaluation.bootstrap.confidence)]


def _speed_table(models: Sequence[ModelEvaluation]) -> Markup:
    rows = []
    for model in models:
        millions = None if model.n_multiply_adds is None else model.n_multiply_adds / 1e6
        for latency in (model.latency, *model.other_latencies):
            rows.append([model.name, model.description.model_name,
                         number_text(model.description.n_parameters, decimals=0), number_text(millions, decimals=0),
                         *(number_text(value, decimals=1) for value in (model.file_megabytes, latency.median_ms,
                                                                        latency.p95_ms, latency.clips_per_second)),
                         latency.batch_size, number_text(latency.peak_megabytes, decimals=0), latency.device])
    return table(["Model", "Network", "Parameters", "Multiply-adds (millions)", "File (MB)", "Median (ms)",
                  "95th percentile (ms)", "Clips per second", "Batch size", "Memory (MB)", "Device"], rows)


def _settings(evaluation: Evaluation) -> Mapping[str, object]:
    seen = {f"{model.name}: test recordings seen in training":
            "unknown" if model.recordings_seen_in_training is None else model.recordings_seen_in_training
            for model in evaluation.models}
    seen |= {f"{model.name}: test recordings heard before, without labels": model.recordings_heard_before
             for model in evaluation.models}
    return {**evaluation.settings(), "n_segments": evaluation.bootstrap.n_segments,
            "n_recordings": evaluation.bootstrap.n_recordings, **seen}


def _estimate(value: float | None, interval: Interval, *, sign: str = "") -> Markup:
    """Return a cell with a number and, below it, its interval."""
    below = element("span", _range_text(interval, sign=sign), kind="interval") if interval else ""
    return Markup(escaped(number_text(value, sign=sign)) + below)


def _interval_text(value: float | None, interval: Interval) -> str:
    return number_text(value) + (f" (interval {_range_text(interval)})" if interval else "")


def _range_text(interval: tuple[float, float], *, sign: str = "") -> str:
    return f"{number_text(interval[0], sign=sign)} to {number_text(interval[1], sign=sign)}"


def _percent(share: float) -> str:
    """Write a share of 1 in percent with the decimals it has."""
    return f"{100 * share:.10g}%"
