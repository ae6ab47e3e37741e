"""The parts of the evaluation page that show where a model fails."""

from collections.abc import Sequence

from utils.evaluation.failure_examples import MOST_SHOWN_SECONDS, FailureExample
from utils.evaluation.failures import Failures, LabelError, Mistake, Place
from utils.evaluation.slices import PropertySlices, Slice, SliceScore
from utils.examples import EXAMPLES_CSS, example_figure
from utils.pages import Markup, element, escaped, number_text, table

# after the rules of all pages; colours are variables, so that dark pages need no more
FAILURES_CSS = EXAMPLES_CSS + """
.failures h3, .slices h3 { font-size: 1.05rem; margin: 1.5rem 0 .5rem; }
.failures summary { cursor: pointer; padding: .3rem 0; } .failures details { margin: .5rem 0 1rem; }
.examples p { font-size: .8rem; margin: 0; padding: .75rem; border: 1px solid var(--line); overflow-wrap: anywhere; }
.worse { border-left: .3rem solid #d55e00; padding-left: .75rem; margin: .5rem 0; overflow-wrap: anywhere; }
.range { vertical-align: middle; margin-left: .5rem; } .range rect { fill: var(--line); }
.range path { stroke: var(--text); stroke-width: 2; } .range circle { fill: var(--text); }
"""
_MISTAKES_NOTE = (f"One of each recording, the most confident first; the told class is the most probable one, whatever"
                  f" its threshold. Pictures and sounds are the segments themselves, of long ones the loudest"
                  f" {MOST_SHOWN_SECONDS:g} seconds: kHz upwards, to half the recording's own rate, seconds to the"
                  f" right, the brighter the louder.")
_PAIRS_NOTE = "Share: of the recordings that hold the true class, those in which it was taken for the other."
_LABELS_NOTE = ("Files in which the model is as sure of another class as it is of that class's own files, and surer"
                " than of the label (confident learning: Northcutt, Jiang and Chuang 2021), the largest margin first."
                " This is a list of what to listen to, not of what is wrong: a faint or rare call looks the same to a"
                " model. It finds no error that many labels share, and says nothing where the model learnt from these"
                " recordings.")
_SLICES_NOTE = ("Accuracy is the mean over recordings of the share of their segments that are right, with its"
                " {percent:g}% Wilson interval over recordings; the macro F1 counts the classes that occur in the bin."
                " Bins have at least five recordings; those with fewer are other, and what the data set does not tell"
                " is unknown. Bins may hold other classes than the rest, so their numbers alone do not compare; a"
                " sentence stands where a model is worse than on recordings of the same classes elsewhere"
                " (permutation of recordings within classes, Holm's correction).")
_CHART_WIDTH, _DOT_RADIUS = 80, 4


def failures_part(name: str, failures: Failures, examples: Sequence[FailureExample]) -> Markup:
    """Return what a model gets wrong, with what there is to see and hear of it.

    Parameters
    ----------
    name : str
        The model.
    failures : Failures
        What was found.
    examples : sequence of FailureExample
        Of its segments; one without an example is listed only.

    Returns
    -------
    Markup
        A section with headings of the third level; its rules are ``FAILURES_CSS``.
    """
    example_of = {example.row: example for example in examples}
    return element("section", *_mistakes_part(name, failures, example_of), *_pairs_part(name, failures),
                   *_labels_part(name, failures, example_of), kind="failures")


def slices_part(properties: Sequence[PropertySlices], *, confidence: float) -> Markup:
    """Return the scores of all models by what is known of recordings.

    Parameters
    ----------
    properties : sequence of PropertySlices
        From ``slice_scores``.
    confidence : float, range 0..1
        Of their intervals.

    Returns
    -------
    Markup
        A section; its rules are ``FAILURES_CSS``.
    """
    heading = element("h3", "By what is known of the recordings")
    if not properties:
        return element("section", heading, element("p", "The data set knows nothing that tells its recordings apart:"
                                                        " that takes five recordings on either side."), kind="slices")
    sentences = [sentence for found in properties for sentence in found.sentences()]
    told = [element("p", sentence, kind="worse") for sentence in sentences] or [
        element("p", "No model is significantly worse on a part of the recordings than on others of the same classes.")]
    note = element("p", _SLICES_NOTE.format(percent=round(100 * confidence, 10)), kind="note")
    return element("section", heading, *told, *map(_property_table, properties), note, kind="slices")


def _mistakes_part(name: str, failures: Failures, example_of: dict[int, FailureExample]) -> list[Markup]:
    heading = element("h3", f"{name}: most confident mistakes")
    if not failures.mistakes:
        return [heading, element("p", "Every segment is right.")]
    counts = (f"{failures.n_wrong_segments:,} of {failures.n_segments:,} segments are wrong, in"
              f" {failures.n_wrong_recordings:,} of {failures.n_recordings:,} recordings.")
    rows = [[_place_text(mistake), mistake.true_class, mistake.told_class, number_text(mistake.confidence),
             number_text(mistake.true_probability)] for mistake in failures.mistakes]
    return [heading, element("p", counts), _gallery(failures.mistakes, example_of, opened=True),
            table(["Segment", "True class", "Told class", "Confidence", "Probability of the truth"], rows),
            element("p", _MISTAKES_NOTE, kind="note")]


def _pairs_part(name: str, failures: Failures) -> list[Markup]:
    if not failures.confused_pairs:
        return []
    rows = [[pair.true_class, pair.told_class, f"{pair.n_recordings:,}", f"{pair.n_segments:,}", f"{pair.share:.0%}"]
            for pair in failures.confused_pairs]
    shown = _of_all(len(rows), failures.n_confused_pairs, "pairs that occur")
    return [element("h3", f"{name}: most confused pairs"), *shown,
            table(["True class", "Told class", "Recordings", "Segments", "Share"], rows),
            element("p", _PAIRS_NOTE, kind="note")]


def _labels_part(name: str, failures: Failures, example_of: dict[int, FailureExample]) -> list[Markup]:
    heading = element("h3", f"{name}: labels that may be wrong")
    if not failures.label_errors:
        return [heading, element("p", "No label looks wrong."), element("p", _LABELS_NOTE, kind="note")]
    rows = [[error.source_path or error.recording_id, error.label, error.suggested_class,
             number_text(error.label_probability), number_text(error.suggested_probability), f"{error.n_segments:,}"]
            for error in failures.label_errors]
    return [heading, *_of_all(len(rows), failures.n_label_errors, "labels that look wrong"),
            _gallery(failures.label_errors, example_of, opened=False),
            table(["File", "Label", "Suggested", "Probability of the label", "Of the suggested", "Segments"], rows),
            element("p", _LABELS_NOTE, kind="note")]


def _of_all(n_shown: int, n_all: int, what: str) -> list[Markup]:
    return [element("p", f"The first {n_shown:,} of {n_all:,} {what}.")] if n_shown < n_all else []


def _gallery(places: Sequence[Mistake] | Sequence[LabelError], example_of: dict[int, FailureExample], *, opened: bool
             ) -> Markup:
    figures = [_figure(place, example_of[place.row]) for place in places if place.row in example_of]
    if not figures:
        return Markup("")
    summary = element("summary", f"Pictures and sounds ({len(figures)})")
    return Markup(f"<details{' open' if opened else ''}>{summary}{element('div', *figures, kind='examples')}</details>")


def _figure(place: Mistake | LabelError, found: FailureExample) -> Markup:
    title = element("strong", _place_text(place))
    if isinstance(place, Mistake):
        told = f": {place.told_class} ({place.confidence:.2f}), but is {place.true_class}"
    else:
        told = f": labelled {place.label}, but may be {place.suggested_class}"
    if found.example is None:
        return element("figure", element("p", f"Not shown: {found.reason}"), element("figcaption", title, told))
    return example_figure(_place_text(place), found.example, title, told)


def _place_text(place: Place) -> str:
    name = place.source_path or place.recording_id
    if place.start_seconds is None or place.end_seconds is None:
        return name
    return f"{name}, {place.start_seconds:.1f} to {place.end_seconds:.1f} s"


def _property_table(found: PropertySlices) -> Markup:
    models = list(found.slices[0].scores)
    head = [found.title, "Recordings", "Segments", "Classes",
            *(f"{name}: {score}" for name in models for score in ("accuracy", "macro F1"))]
    return table(head, [_slice_row(each, models) for each in found.slices])


def _slice_row(each: Slice, models: Sequence[str]) -> list:
    scores = [cell for name in models for cell in (_accuracy_cell(each.scores[name]),
                                                   number_text(each.scores[name].macro_f1))]
    return [each.name, f"{each.n_recordings:,}", f"{each.n_segments:,}", each.n_classes, *scores]


def _accuracy_cell(score: SliceScore) -> Markup:
    """Return a number, its interval below it, and both drawn beside them on a line from 0 to 1."""
    low, high = score.interval
    left, middle, right = (_DOT_RADIUS + _CHART_WIDTH * value for value in (low, score.accuracy, high))
    chart = (f'<svg class="range" aria-hidden="true" width="{_CHART_WIDTH + 2 * _DOT_RADIUS}" height="12">'
             f'<rect x="{_DOT_RADIUS}" y="5" width="{_CHART_WIDTH}" height="2"/><path d="M{left:.1f} 6H{right:.1f}"/>'
             f'<circle cx="{middle:.1f}" cy="6" r="{_DOT_RADIUS}"/></svg>')
    told = element("span", f"{number_text(low)} to {number_text(high)}", kind="interval")
    return Markup(f"{escaped(number_text(score.accuracy))}{chart}{told}")
