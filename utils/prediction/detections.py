"""Detections: the segments in which a class was found, joined where they follow each other."""

from collections.abc import Iterable, Iterator

from utils.prediction.records import Answer


def join(answers: Iterable[Answer], *, gap_samples: int | None) -> Iterator[Answer]:
    """Yield the detections among the answers on a recording's segments, by their beginning.

    A segment is part of a detection where its top class reaches the threshold. Segments of the same class are joined
    when the next one begins at most ``gap_samples`` after the end of those before; other classes between them do not
    matter. A detection lasts from the first sample of its first segment to the last one of its last. Its confidence is
    the highest of its segments', and its other probabilities are those of that segment: joining more never lowers it,
    and it does not depend on how much segments overlap.

    Parameters
    ----------
    answers : iterable of Answer
        In order of their beginning.
    gap_samples : int or None
        The largest gap that is bridged, in samples at the front end's rate; None joins nothing.
    """
    growing: dict[str, Answer] = {}
    ended: list[Answer] = []
    for answer in answers:
        if not answer.decision.above_threshold:
            continue
        if gap_samples is None:
            yield answer
            continue
        for name in [name for name, detection in growing.items() if answer.start - detection.end > gap_samples]:
            ended.append(growing.pop(name))
        name = answer.decision.predicted_class
        growing[name] = _joined(growing[name], answer) if name in growing else answer
        earliest = min(detection.start for detection in growing.values())
        yield from sorted((one for one in ended if one.start < earliest), key=_place)
        ended = [one for one in ended if one.start >= earliest]
    yield from sorted([*ended, *growing.values()], key=_place)


def _joined(detection: Answer, answer: Answer) -> Answer:
    better = answer if answer.decision.confidence > detection.decision.confidence else detection
    return Answer(detection.start, max(detection.end, answer.end), detection.number,
                  detection.n_segments + answer.n_segments, better.decision, better.probabilities)


def _place(detection: Answer) -> tuple[int, int]:
    return detection.start, detection.number
