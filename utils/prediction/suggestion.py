"""Which segments are worth a person's hour: those of which the model is unsure, unlike each other, and from everywhere.

The choice is BADGE (Ash et al. 2020, "Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds", ICLR):
were a segment labelled as the model has it, the last layer would learn a gradient from it, which is long where the
model is unsure and points elsewhere for another sound. k-means++ (Arthur and Vassilvitskii 2007) draws segments whose
gradients are long and far apart.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from utils.audio.recorders import RecorderFacts
from utils.prediction.records import RecordMaker, ScoredRecording, recorder_columns, segments_of, site_of
from utils.prediction.reviewed import Reviewed
from utils.storage.names import name_to_text

_MOST_CANDIDATES = 10_000
_MOST_OF_SHARE = 2.0  # not less: with sites and hours full at twice their share, some segment is always left to choose
_UNSURE_MARGIN = 0.5  # between the two best classes; beyond it a segment was chosen for its sound
_SEED = 0  # the same scores give the same suggestions
_DECIMALS = 6


class Candidate(NamedTuple):
    """A segment that may be suggested; it holds nothing else of its recording, of which there may be very many.

    Parameters
    ----------
    name : str
        Path of its recording.
    recorder : RecorderFacts
        What is known of how that was made.
    start_seconds, end_seconds : float
        Where it lies in it.
    probabilities : numpy.ndarray
        float64 ``(n_classes,)``.
    embedding : numpy.ndarray
        float32 ``(n_features,)``.
    """

    name: str
    recorder: RecorderFacts
    start_seconds: float
    end_seconds: float
    probabilities: np.ndarray
    embedding: np.ndarray

    @property
    def site(self) -> str:
        """What the recorder calls the site, or else the recorder, or else the folder."""
        return site_of(self.recorder, self.name)

    @property
    def hour(self) -> int | None:
        """Hour of the day in which it begins, 0..23 by the recorder's clock; None where nobody knows the time."""
        started = self.recorder.started
        return None if started is None else (started + timedelta(seconds=self.start_seconds)).hour

    @property
    def gradient_length(self) -> float:
        """Length of its gradient: 0 where the model is certain."""
        return float(_squared_lengths(_errors(self.probabilities[None]), self.embedding[None])[0]) ** 0.5


def suggest_segments(recordings: Iterable[ScoredRecording], records: RecordMaker, *, n: int,
                     reviewed: Reviewed = Reviewed()) -> Iterator[dict]:
    """Yield a row for each suggested segment, in the order in which to review.

    Parameters
    ----------
    recordings : iterable of ScoredRecording
        With embeddings; taken one at a time, those that could not be used are left out.
    records : RecordMaker
        Classes, calibration, and how recordings were cut.
    n : int
        How many; all segments where there are fewer.
    reviewed : Reviewed
        What was decided already: it is left out.

    Yields
    ------
    dict
        ``rank`` from 1, ``file_path``, ``start_seconds``, ``end_seconds``, ``model_class`` and its probability
        ``confidence`` as the decisions of a review have them, ``reason``, and the recorder's columns.

    Notes
    -----
    Memory holds at most 20,000 segments, or 2 n where that is more: 102 MB at 1,280 features, and half of that again
    while choosing.
    """
    candidates = foremost((candidate for recording in recordings if recording.outcome.status == "ok"
                           for candidate in _candidates(recording, records)
                           if not reviewed.covers(candidate.name, start_seconds=candidate.start_seconds,
                                                  end_seconds=candidate.end_seconds)), most=max(n, _MOST_CANDIDATES))
    if not candidates:
        return
    chosen = suggest(np.stack([candidate.embedding for candidate in candidates]),
                     np.stack([candidate.probabilities for candidate in candidates]),
                     sites=[candidate.site for candidate in candidates],
                     hours=[candidate.hour for candidate in candidates], n=n, rng=np.random.default_rng(_SEED))
    for rank, index in enumerate(chosen, start=1):
        yield _row(rank, candidates[index], records.model.classes.names)


def suggest(embeddings: np.ndarray, probabilities: np.ndarray, *, sites: Sequence[str], hours: Sequence[int | None],
            n: int, rng: np.random.Generator) -> np.ndarray:
    """Choose segments to be labelled by a person.

    Parameters
    ----------
    embeddings : numpy.ndarray
        float32 ``(n_segments, n_features)``: what the network's last layer gets.
    probabilities : numpy.ndarray
        float64 ``(n_segments, n_classes)``, rows sum to 1.
    sites : sequence of str, (n_segments,)
        Where each was recorded.
    hours : sequence of int or None, (n_segments,)
        In which hour of the day, None where nobody knows. No site and no hour gives more of the choice than twice its
        share of the segments, rounded up; segments without an hour share one.
    n : int
        How many.
    rng : numpy.random.Generator
        Draws.

    Returns
    -------
    numpy.ndarray
        int ``(min(n, n_segments),)``, different indices in the order in which to review: any first part of it is a
        choice too.

    Notes
    -----
    k-means++ begins with a first centre at the origin, where what the model is certain of lies, so that none of it is
    drawn before what teaches more. A gradient is an outer product, so distances come from products of embeddings and
    of errors, and no gradient is ever held.
    """
    errors, n_segments = _errors(probabilities), len(embeddings)
    squared = _squared_lengths(errors, embeddings)
    nearest, free = squared, np.ones(n_segments, dtype=bool)
    places = [np.unique(np.array(values, dtype=str), return_inverse=True)[1] for values in (sites, hours)]
    left = [np.ceil(_MOST_OF_SHARE * n * np.bincount(place) / max(1, n_segments)) for place in places]
    chosen = np.empty(min(n, n_segments), dtype=np.intp)
    for number in range(len(chosen)):
        allowed = free & np.all([some[place] > 0 for some, place in zip(left, places, strict=True)], axis=0)
        weights = np.where(allowed, nearest, 0.0)
        total = weights.sum()
        pick = int(rng.choice(n_segments, p=weights / total)) if total > 0 else int(allowed.argmax())
        chosen[number], free[pick] = pick, False
        for some, place in zip(left, places, strict=True):
            some[place[pick]] -= 1
        products = (errors @ errors[pick]) * (embeddings @ embeddings[pick])
        nearest = np.minimum(nearest, np.maximum(squared + squared[pick] - 2 * products, 0.0))
    return chosen


def foremost(candidates: Iterable[Candidate], *, most: int) -> list[Candidate]:
    """Keep the segments with the longest gradients, as many of each site and hour as there is room for.

    Parameters
    ----------
    candidates : iterable of Candidate
        Taken one at a time; never more than ``2 * most`` are held.
    most : int
        How many to keep.

    Returns
    -------
    list of Candidate
        First the longest of each site and hour, then the second ones, and so on.
    """
    held: list[tuple[float, Candidate]] = []
    for candidate in candidates:
        if len(held) == 2 * most:
            held = _foremost(held, most)
        held.append((candidate.gradient_length, candidate))
    return [candidate for _, candidate in _foremost(held, most)]


def _foremost(held: list[tuple[float, Candidate]], most: int) -> list[tuple[float, Candidate]]:
    ranks: Counter[tuple[str, int | None]] = Counter()
    ranked = []
    for length, candidate in sorted(held, key=lambda entry: -entry[0]):
        place = (candidate.site, candidate.hour)
        ranked.append((ranks[place], (length, candidate)))
        ranks[place] += 1
    return [entry for _, entry in sorted(ranked, key=lambda entry: entry[0])[:most]]


def _candidates(recording: ScoredRecording, records: RecordMaker) -> Iterator[Candidate]:
    rate = records.model.frontend.sample_rate
    for scores in recording.spans():
        if not scores.span.n_windows:
            continue
        assert scores.embeddings is not None
        probabilities = records.model.calibration.probabilities(scores.logits)
        for segment in segments_of(records.plan, scores.span):
            yield Candidate(recording.name, recording.recorder, segment.start / rate, segment.end / rate,
                            probabilities[segment.rows].mean(axis=0), scores.embeddings[segment.rows].mean(axis=0))


def _row(rank: int, candidate: Candidate, class_names: Sequence[str]) -> dict:
    best, *others = np.argsort(-candidate.probabilities, kind="stable")[:2]
    confidence = float(candidate.probabilities[best])
    if others and confidence - candidate.probabilities[others[0]] < _UNSURE_MARGIN:
        reason = f"uncertain between {class_names[best]} and {class_names[others[0]]}"
    else:
        reason = f"probably {class_names[best]}, but unlike the other suggestions"
    start, end = (round(seconds, _DECIMALS) for seconds in (candidate.start_seconds, candidate.end_seconds))
    return {"rank": rank, "file_path": name_to_text(candidate.name), "start_seconds": start, "end_seconds": end,
            "model_class": class_names[best], "confidence": round(confidence, _DECIMALS), "reason": reason,
            **recorder_columns(candidate.recorder, after_seconds=candidate.start_seconds)}


def _errors(probabilities: np.ndarray) -> np.ndarray:
    """Return by how far probabilities miss the label that the model would give, ``(n_segments, n_classes)``."""
    return probabilities - np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]


def _squared_lengths(errors: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Return the squared lengths of gradients, float64 ``(n_segments,)``."""
    return np.einsum("ij,ij->i", errors, errors) * np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64)
