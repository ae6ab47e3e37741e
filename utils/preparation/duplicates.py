"""Copies of one sound: each window is kept once, contradictions are left out, and what resembles stays on one side."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from utils.preparation.extraction import ExtractedRecording, LabelledWindow
from utils.preparation.labelling import RegionOutcome
from utils.preparation.similarity import SimilarPair, components, find_similar

_PROTECTED = ("test", "val", "train")  # where given folds hold copies of one sound, the first of these keeps its own


def content_of(result: ExtractedRecording) -> str:
    """Return what two recordings of one sound share: the hash of what was decoded."""
    return result.sound.content if result.sound else result.sha256


def settle_duplicates(results: Sequence[ExtractedRecording]) -> list[ExtractedRecording]:
    """Keep each window of recordings that hold the same sound once, and none to which they give different labels.

    The first by path keeps its windows. A recording of which none is left has the status ``duplicate`` and the reason.
    """
    of_content: dict[str, list[ExtractedRecording]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.source_path):
        if result.outcome.status == "ok" and content_of(result):
            of_content[content_of(result)].append(result)
    settled = {result.source_path: result for result in results}
    for copies in of_content.values():
        if len(copies) > 1:
            settled.update((result.source_path, result) for result in _settle_copies(copies))
    return [settled[result.source_path] for result in results]


def without_windows(result: ExtractedRecording, reason: str) -> ExtractedRecording:
    """Return a recording that is left out as a copy of another, and tell why."""
    regions = tuple(_lost(region, reason) for region in result.regions)
    return replace(result, outcome=replace(result.outcome, status="duplicate", reason=reason), windows=(),
                   regions=regions)


def similar_recordings(results: Sequence[ExtractedRecording]) -> list[SimilarPair]:
    """Return the pairs of usable recordings that sound the same, by source path, copies of one content among them."""
    return find_similar({result.source_path: result.sound.fingerprint for result in results
                         if result.outcome.status == "ok" and result.sound and result.sound.fingerprint})


def groups_of(recording_ids: Mapping[str, str], results: Sequence[ExtractedRecording],
              similar: Sequence[SimilarPair]) -> dict[str, str]:
    """Return for each recording id the name of the group that must stay on one side.

    Parameters
    ----------
    recording_ids : mapping of str to str
        Source path to recording id.
    results : sequence of ExtractedRecording
        Those of one content are joined.
    similar : sequence of SimilarPair
        Source paths that are joined.
    """
    first_with: dict[str, str] = {}
    pairs = [(pair.first, pair.second) for pair in similar]
    for result in results:
        if content_of(result):
            pairs.append((first_with.setdefault(content_of(result), result.source_path), result.source_path))
    joined = sorted({tuple(sorted((recording_ids[first], recording_ids[second]))) for first, second in pairs})
    return components(sorted(set(recording_ids.values())),
                      [SimilarPair(first, second, 1.0) for first, second in joined if first != second])


def unprotected(sides: Mapping[str, str], results: Sequence[ExtractedRecording],
                similar: Sequence[SimilarPair]) -> dict[str, str]:
    """Return the recordings that given folds put on another side than one they resemble: path to reason.

    Test keeps its recordings, then validation.
    """
    left_out: dict[str, str] = {}
    for pair in similar:
        on = [sides.get(path, "") for path in (pair.first, pair.second)]
        if "" in on or on[0] == on[1]:
            continue
        kept, lost = sorted((pair.first, pair.second), key=lambda path: _PROTECTED.index(sides[path]))
        left_out.setdefault(lost, f"sounds like {kept} of {sides[kept]}: in {sides[lost]} it would leak")
    return left_out


def _settle_copies(copies: Sequence[ExtractedRecording]) -> list[ExtractedRecording]:
    labels: dict[int, set[str]] = defaultdict(set)
    for result in copies:
        for window in result.windows:
            labels[window.start_sample].add(window.class_name)
    taken: set[int] = set()
    settled = []
    for result in copies:
        others = [other for other in copies if other is not result]
        kept: list[LabelledWindow] = []
        for window in result.windows:
            if len(labels[window.start_sample]) == 1 and window.start_sample not in taken:
                kept.append(window)
        taken.update(window.start_sample for window in kept)
        settled.append(_with_windows(result, kept, others))
    return settled


def _with_windows(result: ExtractedRecording, kept: Sequence[LabelledWindow],
                  others: Sequence[ExtractedRecording]) -> ExtractedRecording:
    if len(kept) == len(result.windows):
        return result
    own = {window.class_name for window in result.windows}
    contrary = next((other for other in others if {window.class_name for window in other.windows} - own), None)
    same = "same bytes as" if result.sha256 == others[0].sha256 else "same sound as"
    if contrary is None:
        reason = f"{same} {others[0].source_path}"
    else:
        names = ", ".join(sorted({window.class_name for window in contrary.windows}))
        reason = (f"{same} {contrary.source_path}, which is labelled {names}, not {', '.join(sorted(own))}: correct one"
                  f" of them")
    if not kept:
        return without_windows(result, reason)
    told = f"{len(result.windows) - len(kept)} of its windows are left out: {reason}"
    regions = tuple(replace(region, reason="; ".join(filter(None, (region.reason, told)))) for region in result.regions)
    outcome = replace(result.outcome, reason="; ".join(filter(None, (result.outcome.reason, told))))
    return replace(result, outcome=outcome, windows=tuple(kept), regions=regions)


def _lost(region: RegionOutcome, reason: str) -> RegionOutcome:
    return replace(region, n_windows=0, labelled_seconds=0.0, reason=reason)
