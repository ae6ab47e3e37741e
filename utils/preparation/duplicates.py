"""Copies of one sound: each window is kept once, contradictions are left out, and what resembles stays on one side."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from utils.preparation.extraction import ExtractedRecording, LabelledWindow
from utils.preparation.labelling import RegionOutcome, recounted
from utils.preparation.similarity import SimilarPair, components, find_similar

PROTECTED = ("test", "val", "train")  # where given folds hold copies of one sound, the first of these keeps its own


def content_of(result: ExtractedRecording) -> str:
    """Return what two recordings of one sound share: the hash of what was decoded."""
    return result.sound.content if result.sound else result.sha256


def settle_duplicates(results: Sequence[ExtractedRecording], *, sample_rate: int,
                      keepers: Mapping[str, int] | None = None) -> list[ExtractedRecording]:
    """Keep each window of recordings that hold the same sound once, and none to which they give different labels.

    The first by path keeps its windows. A recording of which none is left has the status ``duplicate`` and the reason.

    Parameters
    ----------
    results : sequence of ExtractedRecording
        In any order.
    sample_rate : int
        Hz of the samples that windows are counted in.
    keepers : mapping of str to int, optional
        Where they differ, a recording with a lower number comes before those with a higher one.
    """
    settled = {result.source_path: result for result in results}
    for copies in _by_content(results).values():
        copies.sort(key=lambda result: (keepers or {}).get(result.source_path, 0))
        settled.update((result.source_path, result) for result in _settle_copies(copies, sample_rate))
    return [settled[result.source_path] for result in results]


def without_windows(result: ExtractedRecording, reason: str) -> ExtractedRecording:
    """Return a recording that is left out as a copy of another, and tell why."""
    regions = tuple(_lost(region, reason) for region in result.regions)
    return replace(result, outcome=replace(result.outcome, status="duplicate", reason=reason), windows=(),
                   regions=regions)


def similar_recordings(results: Sequence[ExtractedRecording]) -> list[SimilarPair]:
    """Return the pairs of usable recordings that sound the same, by source path, sorted; copies of one content too."""
    usable = [result for result in results if result.outcome.status == "ok" and result.sound]
    pairs = find_similar({result.source_path: result.sound.fingerprint for result in usable if result.sound})
    found = {(pair.first, pair.second): pair for pair in pairs}
    for copies in _by_content(results).values():
        for other in copies[1:]:
            key = (copies[0].source_path, other.source_path)
            found[key] = SimilarPair(*key, 1.0)
    return [found[key] for key in sorted(found)]


def groups_of(recording_ids: Mapping[str, str], similar: Sequence[SimilarPair]) -> dict[str, str]:
    """Return for each recording id the name of the group that must stay on one side.

    Parameters
    ----------
    recording_ids : mapping of str to str
        Source path to recording id.
    similar : sequence of SimilarPair
        Source paths that are joined; those that no id is known of are passed over.
    """
    joined = set()
    for pair in similar:
        if pair.first in recording_ids and pair.second in recording_ids:
            joined.add(tuple(sorted((recording_ids[pair.first], recording_ids[pair.second]))))
    return components(sorted(set(recording_ids.values())),
                      [SimilarPair(first, second, 1.0) for first, second in sorted(joined) if first != second])


def unprotected(sides: Mapping[str, str], similar: Sequence[SimilarPair]) -> dict[str, str]:
    """Return the recordings that given folds put on another side than one they resemble: path to reason.

    Test keeps its recordings, then validation.
    """
    left_out: dict[str, str] = {}
    for pair in similar:
        on = [sides.get(path, "") for path in (pair.first, pair.second)]
        if "" in on or on[0] == on[1]:
            continue
        kept, lost = sorted((pair.first, pair.second), key=lambda path: PROTECTED.index(sides[path]))
        left_out.setdefault(lost, f"sounds like {kept} of {sides[kept]}: in {sides[lost]} it would leak")
    return left_out


def _by_content(results: Sequence[ExtractedRecording]) -> dict[str, list[ExtractedRecording]]:
    """Return the usable recordings of each content that several hold, sorted by path."""
    of_content: dict[str, list[ExtractedRecording]] = defaultdict(list)
    for result in sorted(results, key=lambda result: result.source_path):
        if result.outcome.status == "ok" and content_of(result):
            of_content[content_of(result)].append(result)
    return {content: copies for content, copies in of_content.items() if len(copies) > 1}


def _settle_copies(copies: Sequence[ExtractedRecording], sample_rate: int) -> list[ExtractedRecording]:
    holders: dict[int, list[tuple[ExtractedRecording, str]]] = defaultdict(list)  # by a window's start
    for result in copies:
        for window in result.windows:
            holders[window.start_sample].append((result, window.class_name))
    settled = []
    for result in copies:
        kept, contrary, same = [], [], []
        for window in result.windows:
            here = holders[window.start_sample]
            against = [(other, name) for other, name in here if name != window.class_name]
            if against:
                contrary.append((against[0], window.class_name))
            elif here[0][0] is not result:
                same.append(here[0][0])
            else:
                kept.append(window)
        if not contrary and not same:
            settled.append(result)
            continue
        if contrary:
            (other, name), own = contrary[0]
            reason = (f"{_like(result, other)} {other.source_path}, which is labelled {name}, not {own}: correct one of"
                      f" them")
        else:
            reason = f"{_like(result, same[0])} {same[0].source_path}"
        settled.append(_with_windows(result, kept, reason, sample_rate))
    return settled


def _like(result: ExtractedRecording, other: ExtractedRecording) -> str:
    return "same bytes as" if result.sha256 == other.sha256 else "same sound as"


def _with_windows(result: ExtractedRecording, kept: Sequence[LabelledWindow], reason: str,
                  sample_rate: int) -> ExtractedRecording:
    if not kept:
        return without_windows(result, reason)
    told = f"{len(result.windows) - len(kept)} of its windows are left out: {reason}"
    regions = tuple(recounted(region, [(window.start_sample, window.end_sample) for window in kept
                                       if window.class_name == region.class_name],
                              sample_rate=sample_rate, why=told) for region in result.regions)
    outcome = replace(result.outcome, reason="; ".join(filter(None, (result.outcome.reason, told))))
    return replace(result, outcome=outcome, windows=tuple(kept), regions=regions)


def _lost(region: RegionOutcome, reason: str) -> RegionOutcome:
    return replace(region, n_windows=0, labelled_seconds=0.0, reason=reason)
