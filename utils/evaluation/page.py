"""The evaluation as one HTML page that needs nothing beside it."""

import os
from collections.abc import Iterable, Mapping, Sequence

from utils.evaluation.comparison import BETTER, TOO_FEW, WORSE, Comparison
from utils.evaluation.failure_examples import FailureExample
from utils.evaluation.failures_page import FAILURES_CSS, failures_part, slices_part
from utils.evaluation.pictures import Picture
from utils.evaluation.results import Evaluation, LevelScores, ModelEvaluation
from utils.metrics import SCORE_TITLES, Interval
from utils.pages import DARK_CSS, Markup, document, element, escaped, figure, number_text, table
from utils.storage.files import write_text

_CLASS_SCORES = {"precision": "Precision", "recall": "Recall", "f1": "F1", "roc_auc": "ROC AUC",
                 "average_precision": "Average precision"}
_ANSWERED_SCORES = {"share": "Share that is answered", "precision": "Precision of the answers",
                    "unknown_rejected": "Segments of the reject class that are not answered"}
_SHOWN_THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_YES_NO = {True: "yes", False: "no: it was changed or replaced", None: "not known"}
_CALIBRATION_SCORES = ("ece", "brier_score", "log_loss")
_VERSIONED = {"NightScan": "NightScan", "Python": "Python", "numpy": "NumPy", "scipy": "SciPy",
              "scikit-learn": "scikit-learn", "torch": "PyTorch", "onnxruntime": "ONNX Runtime",
              "openvino": "OpenVINO"}
_INTERVALS_NOTE = ("Intervals are {percent} intervals from drawing whole recordings again, {n_bootstrap:,} times. They"
                   " say how far a score may move with other recordings of the same kind, not with those of another"
                   " place; how they are made stands at the end.")
_HOW_INTERVALS_ARE_MADE = (
    "A true score beyond its interval would seldom give what was measured. How much a score varies is found by drawing"
    " whole recordings again within their class, because the segments of one recording are alike; a little of imagined"
    " recordings that turn out otherwise is drawn with them, because four of four right is no certainty. From that"
    " variance comes an interval of Wilson's kind, which stays within 0 and 1 and reaches further towards the middle;"
    " of log loss, Brier score and calibration error it reaches further upwards, and a difference lies in the middle"
    " of its interval.")
_NO_RECORDINGS_NOTE = ("The test manifest does not tell which recording a segment is of, so each is taken for a"
                       " recording of its own. Where several are of one, intervals are too narrow, and p is too small.")
_ANSWERED_NOTE = ("An answer is any class but the reject class, which stands where the top class does not reach its"
                  " threshold. The first tables go by the thresholds in the model's file: precision is what a threshold"
                  " reaches, and the difference of the two recalls what it costs. The last goes by one threshold for"
                  " all classes: choose there how much silence a precision is worth.")
_RECORDINGS_NOTE = ("A recording is told by the mean probability of its segments, as prediction tells whole files, and"
                    " is labelled as most of them are.")
_CALIBRATION_NOTE = ("Calibration makes a model's probabilities honest: of all answers given with 0.8, eight of ten"
                     " should be right. It was fitted in training, on other recordings; here it is seen whether it"
                     " holds on these. All three are better the lower they are.")
_SPEED_NOTE = ("The median and the 95th percentile are of passes through the network alone, after a warm-up. Memory is"
               " the most that a process takes which loads the network and scores a batch, libraries included.")
_UNDEFINED_NOTE = ("A dash stands where a value is undefined, such as the ROC AUC of a class that does not occur. Macro"
                   " averages count the classes that occur in the test set. With one label per segment, micro averages"
                   " equal the accuracy and balanced accuracy equals macro recall.")
_CSS = """
.reason { display: block; color: var(--faint); font-size: .9em; }
.leaked { border-left: .3rem solid #d55e00; padding-left: .75rem; font-weight: 600; }
"""


def write_evaluation_page(path: str | os.PathLike, evaluation: Evaluation, *, pictures: Iterable[Picture],
                          examples: Mapping[str, Sequence[FailureExample]] | None = None) -> None:
    """Write the evaluation as one self-contained HTML page: no network, pictures and sounds inside.

    Parameters
    ----------
    path : path-like
        HTML file to write.
    evaluation : Evaluation
        What was found.
    pictures : iterable of Picture
        In order.
    examples : mapping of str to sequence of FailureExample, optional
        What can be seen and heard of each model's failures, by its name.
    """
    models = evaluation.models
    write_text(path, document("NightScan evaluation", [
        *_verdict_part(evaluation),
        element("h2", "Scores"), _scores_table(models, _only(evaluation.comparisons)),
        element("h2", "Classes"), *(_class_table(model, "Segments") for model in models),
        element("p", _UNDEFINED_NOTE, kind="note"),
        element("h2", "What is answered"), _answered_table(models), *map(_answered_class_table, models),
        _thresholds_table(models), element("p", _ANSWERED_NOTE, kind="note"),
        element("h2", "Whole recordings"), *_recordings_part(evaluation),
        element("h2", "Calibration"), _calibration_table(models), element("p", _CALIBRATION_NOTE, kind="note"),
        element("h2", "Size and speed"), _size_table(models), _speed_table(models),
        element("p", _SPEED_NOTE, kind="note"),
        element("h2", "Pictures"), *(part for picture in pictures for part in _picture_parts(picture)),
        element("h2", "Where they fail"), *_failures_parts(evaluation, examples or {}),
        element("h2", "How it was measured"), table(["What", "Value"], _measured(evaluation).items(), kind="settings"),
        element("p", _HOW_INTERVALS_ARE_MADE, kind="note")],
        css=DARK_CSS + _CSS + FAILURES_CSS))


def _verdict_part(evaluation: Evaluation) -> list[Markup]:
    bootstrap, models = evaluation.bootstrap, evaluation.models
    compared = [_comparison_sentences(_pair(models, name), comparison, "segments")
                for name, comparison in evaluation.comparisons.items()]
    sentences = compared[0] if len(compared) == 1 else [" ".join(told) for told in compared]
    if not compared:
        sentences = [f"{model.name} reaches a macro F1 of"
                     f" {_interval_text(model.metrics['macro_f1'], model.intervals['macro_f1'])}." for model in models]
    sentences.append(f"Measured on {bootstrap.n_segments:,} segments of {bootstrap.n_recordings:,} recordings."
                     f"{_absent_text(models[0].metrics['absent_classes'])}")
    return [element("div", *(element("p", sentence, kind="leaked") for sentence in _leak_sentences(evaluation)),
                    *(element("p", sentence) for sentence in sentences), kind="verdict"),
            *(element("p", note, kind="note") for note in _notes(evaluation))]


def _notes(evaluation: Evaluation) -> list[str]:
    """Return what a reader of the scores must know, the graver first."""
    knows_recordings = evaluation.provenance.get("data_set", {}).get("knows_recordings", True)
    heard = [f"{model.recordings_heard_before:,} test recordings were heard, without labels, by the network that"
             f" {model.name} began with: on recordings that are new to it its scores may be lower."
             for model in evaluation.models if model.recordings_heard_before]
    intervals = _INTERVALS_NOTE.format(percent=_percent(evaluation.bootstrap.confidence),
                                       n_bootstrap=evaluation.bootstrap.n_bootstrap)
    return [*([] if knows_recordings else [_NO_RECORDINGS_NOTE]), *heard, intervals]


def _leak_sentences(evaluation: Evaluation) -> list[str]:
    """Say of a leaked test set that it is one: by what the models learnt from, and by what preprocessing counted."""
    n_recordings = evaluation.bootstrap.n_recordings
    sentences = [f"This test set is leaked: {model.recordings_seen_in_training:,} of {n_recordings:,} test recordings"
                 f" were used to train {model.name}: its scores are too good."
                 for model in evaluation.models if model.recordings_seen_in_training]
    sentences += [f"This test set is leaked: as prepared, {_shared_text(sides, counts)}: scores of models that learnt"
                  f" from that split are too good."
                  for sides, counts in _shared(evaluation).items() if "test" in sides and any(counts.values())]
    return sentences


def _shared(evaluation: Evaluation) -> Mapping[str, Mapping[str, int]]:
    """Return what the leakage check of the data set counted, by two sides of the split."""
    check = evaluation.provenance.get("data_set", {}).get("leakage_check") or {}
    return check.get("shared", {})


def _shared_text(sides: str, counts: Mapping[str, int]) -> str:
    return (f"{sides.replace('-', ' and ')} share {counts['recordings']:,} recordings, {counts['contents']:,} contents"
            f" and {counts['near_duplicates']:,} near-duplicates")


def _absent_text(absent: Sequence[str]) -> str:
    if not absent:
        return ""
    verb, counted = ("does", "it") if len(absent) == 1 else ("do", "them")
    return f" {_listed(absent)} {verb} not occur in the test set: no average over classes counts {counted}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _only(comparisons: Mapping[str, Comparison]) -> Comparison | None:
    """Return the comparison of two models; None where there are more or fewer."""
    return next(iter(comparisons.values())) if len(comparisons) == 1 else None


def _pair(models: Sequence[LevelScores], name: str) -> list[LevelScores]:
    """Return the first model and the one of a name."""
    return [models[0], *(model for model in models[1:] if model.name == name)]


def _comparison_sentences(models: Sequence[LevelScores], comparison: Comparison, unit: str) -> list[str]:
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
            f"{first.name} alone is right on {alone[0]:,} {unit}, {second.name} alone on {alone[1]:,}"
            f" (McNemar's exact test, which takes {unit} as independent: p = {mcnemar.p:.3g})."]


def _chance(interval: Interval, confidence: float) -> str:
    if interval is None:
        return "too few recordings for an interval"
    includes = "includes" if interval[0] <= 0 <= interval[1] else "excludes"
    return f"{_percent(confidence)} interval {_range_text(interval, sign='+')}, which {includes} 0"


def _scores_table(models: Sequence[LevelScores], comparison: Comparison | None) -> Markup:
    head = ["Score", *(model.name for model in models)]
    rows = [[title, *(_estimate(model.metrics[name], model.intervals[name]) for model in models)]
            for name, title in SCORE_TITLES.items()]
    if comparison:
        head.append(f"{models[0].name} minus {models[1].name}")
        for row, name in zip(rows, SCORE_TITLES):
            found = comparison.differences[name]
            row.append(_estimate(found.difference, found.interval, sign="+"))
    return table(head, rows, sorts=False)


def _class_table(model: LevelScores, unit: str) -> Markup:
    rows = [[_class_cell(intervals), row["support"], *(_estimate(row[name], intervals[name]) for name in _CLASS_SCORES)]
            for row, intervals in zip(model.metrics["per_class"], model.class_intervals)]
    return table(["Class", unit, *_CLASS_SCORES.values()], rows, caption=model.name)


def _class_cell(intervals: Mapping) -> Markup:
    """Return the name of a class and, below it, why it has no intervals."""
    below = element("span", f"no intervals: {intervals['reason']}", kind="reason") if intervals["reason"] else ""
    return Markup(escaped(intervals["class_name"]) + below)


def _answered_table(models: Sequence[LevelScores]) -> Markup:
    rows = [[title, *(_estimate(model.answered[score], model.answered["intervals"][score]) for model in models)]
            for score, title in _ANSWERED_SCORES.items()]
    return table(["By the model's thresholds", *(model.name for model in models)], rows, sorts=False)


def _answered_class_table(model: LevelScores) -> Markup:
    recalls = {row["class_name"]: row["recall"] for row in model.metrics["per_class"]}
    rows = [[_class_cell(intervals), number_text(row["threshold"], decimals=2), row["n_answered"],
             *(_estimate(row[score], intervals[score]) for score in ("precision", "recall")),
             number_text(recalls[row["class_name"]])]
            for row, intervals in zip(model.answered["per_class"], model.answered["class_intervals"])]
    return table(["Class", "Threshold", "Answered with it", "Precision", "Recall", "Recall without threshold"], rows,
                 caption=f"{model.name}, by its thresholds")


def _thresholds_table(models: Sequence[LevelScores]) -> Markup:
    curves = [model.answered["curve"] for model in models]
    rows = [[number_text(threshold, decimals=2),
             *(number_text(curve[score][place]) for curve in curves for score in ("share", "precision"))]
            for place, threshold in enumerate(curves[0]["threshold"]) if threshold in _SHOWN_THRESHOLDS]
    return table(["Threshold", *(f"{model.name}: {told}" for model in models for told in ("answered", "precision"))],
                 rows, caption="One threshold for all classes")


def _recordings_part(evaluation: Evaluation) -> list[Markup]:
    models = [model.recordings for model in evaluation.models]
    sentences = [" ".join(_comparison_sentences(_pair(models, name), comparison, "recordings"))
                 for name, comparison in evaluation.recording_comparisons.items()]
    return [*(element("p", sentence) for sentence in sentences),
            _scores_table(models, _only(evaluation.recording_comparisons)),
            *(_class_table(model, "Recordings") for model in models), _answered_table(models),
            *map(_answered_class_table, models), element("p", _RECORDINGS_NOTE, kind="note")]


def _calibration_table(models: Sequence[ModelEvaluation]) -> Markup:
    rows = [[SCORE_TITLES[score].partition(" (")[0], *(cell for model in models for cell in (
        number_text(model.before_calibration[score]), number_text(model.metrics[score])))]
        for score in _CALIBRATION_SCORES]
    return table(["Score", *(f"{model.name}: {when}" for model in models for when in ("before", "after"))], rows,
                 sorts=False)


def _picture_parts(picture: Picture) -> list[Markup]:
    return [figure(picture.title, picture.path), element("p", picture.note, kind="note")]


def _failures_parts(evaluation: Evaluation, examples: Mapping[str, Sequence[FailureExample]]) -> list[Markup]:
    parts = []
    for model in evaluation.models:
        if model.failures:
            parts += [failures_part(model.name, model.failures, examples.get(model.name, ())),
                      element("p", _out_of_fold_text(model), kind="note")]
    return [*parts, slices_part(evaluation.slices, confidence=evaluation.bootstrap.confidence)]


def _out_of_fold_text(model: ModelEvaluation) -> str:
    n_seen = model.recordings_seen_in_training
    if n_seen is None:
        return (f"The file of {model.name} does not tell what it learnt from. Where it learnt from these recordings, it"
                f" repeats their labels, wrong ones too.")
    if n_seen:
        return (f"The labels of {n_seen:,} test recordings that {model.name} learnt from are not examined: it would"
                f" repeat them, wrong ones too.")
    return (f"{model.name} has not learnt from any test recording, so what it says of their labels is out of fold: it"
            f" cannot have copied them.")


def _size_table(models: Sequence[ModelEvaluation]) -> Markup:
    rows = [[model.name, model.description.model_name, number_text(model.description.n_parameters, decimals=0),
             number_text(None if model.n_multiply_adds is None else model.n_multiply_adds / 1e6, decimals=0),
             number_text(model.file_megabytes, decimals=1)] for model in models]
    return table(["Model", "Network", "Parameters", "Multiply-adds of a clip (millions)", "File (MB)"], rows)


def _speed_table(models: Sequence[ModelEvaluation]) -> Markup:
    rows = [[model.name, latency.device, latency.torch_threads,
             *(number_text(value, decimals=1) for value in (latency.median_ms, latency.p95_ms)), latency.batch_size,
             *(number_text(value, decimals=1) for value in (latency.batch_median_ms, latency.batch_p95_ms,
                                                            latency.clips_per_second)),
             number_text(latency.peak_megabytes, decimals=0)]
            for model in models for latency in (model.latency, *model.other_latencies)]
    return table(["Model", "Device", "Threads", "A clip: median (ms)", "95th percentile (ms)", "Batch size",
                  "A batch: median (ms)", "95th percentile (ms)", "Clips per second", "Memory (MB)"], rows)


def _measured(evaluation: Evaluation) -> Mapping[str, str]:
    told, bootstrap = evaluation.provenance, evaluation.bootstrap
    data, machine, versions = (told.get(name, {}) for name in ("data_set", "machine", "versions"))
    rows = {"Command": told.get("command"),
            "Test set": f"{evaluation.test_csv}, {bootstrap.n_segments:,} segments of {bootstrap.n_recordings:,}"
                        f" recordings",
            "Its SHA-256": data.get("sha256"),
            "As preprocessing wrote it": _YES_NO[data.get("as_prepared")], **_split_rows(data),
            "Leakage check of the data set": "; ".join(
                _shared_text(sides, counts) for sides, counts in _shared(evaluation).items())}
    for model in evaluation.models:
        n_seen = model.recordings_seen_in_training
        rows[f"{model.name}: test recordings learnt from"] = "not known" if n_seen is None else f"{n_seen:,}"
        rows[f"{model.name}: test recordings heard before, without labels"] = f"{model.recordings_heard_before:,}"
        rows[f"{model.name}: SHA-256 of its file"] = model.description.sha256
    rows |= {"Intervals": f"{_percent(bootstrap.confidence)}, {bootstrap.n_bootstrap:,} resamples,"
                          f" seed {bootstrap.seed}",
             "Versions": ", ".join(f"{_VERSIONED[name]} {version}" for name, version in versions.items()),
             "Machine": f"{machine['platform']}, {machine['processor']}, {machine['n_processors']} processors"
             if machine else None}
    return {title: value for title, value in rows.items() if value}


def _split_rows(data: Mapping) -> dict[str, str]:
    rows = {}
    if data.get("recordings") and data.get("segments"):
        rows["Sides of the split"] = "; ".join(f"{side} {data['segments'][side]:,} segments of {n:,} recordings"
                                               for side, n in data["recordings"].items())
    if data.get("group_by") and data.get("ratios"):
        ratios = " / ".join(f"{ratio:g}" for ratio in data["ratios"])
        rows["How it was split"] = f"by {data['group_by']}, {ratios}, seed {data['random_state']}"
    return rows


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
