"""The scores of a run on disk: what was scored is written down span by span, and results are made from that alone.

An entry counts only under the key that it was written with: the model, what changes its logits, and the recording's
size, time, and first and last bytes.
"""

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.audio.recorders import RecorderFacts
from utils.audio.recordings import Outcome
from utils.prediction.records import ScoredRecording, conclude
from utils.prediction.scoring import SpanScores
from utils.prediction.spans import End, Failed, Opened, SpanJob, SpanRead
from utils.storage.journal import Journal, settings_key

CODE_VERSION = 1  # raise it when the computation between a file's bytes and its logits changes its result
_END_BYTES = 1 << 16
_LARGEST_GAP = 1000  # spans that one worker may be behind another in a recording whose length nobody knows
_KEPT_SPANS = 4  # of a recording, in memory, for the several passes over it


class ScoreStore:
    """Scored spans in a journal.

    Parameters
    ----------
    journal : Journal
        Where they stand.
    model_key : str
        What changes the logits, but for the recording: see ``scoring_key``.
    with_embeddings : bool
        Scores without embeddings do not count.
    """

    def __init__(self, journal: Journal, model_key: str, *, with_embeddings: bool = False) -> None:
        self._journal, self._model_key, self._with_embeddings = journal, model_key, with_embeddings
        self._single: dict[str, dict] = {}  # opened recordings of one span that is being scored

    def key(self, path: Path) -> str:
        """Return the key of a recording as it is now; of a missing one too."""
        try:
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                ends = hashlib.sha256(stream.read(_END_BYTES))
                stream.seek(max(_END_BYTES, status.st_size - _END_BYTES))
                ends.update(stream.read(_END_BYTES))
        except OSError:
            return settings_key(self._model_key, "unreadable")
        return settings_key(self._model_key, status.st_size, status.st_mtime_ns, ends.hexdigest())

    def add(self, path: Path, key: str, part: Opened | SpanScores | Failed) -> None:
        """Write down what came of a recording, or of a part of it."""
        name = os.fspath(path)
        if isinstance(part, SpanScores):
            opened = self._single.pop(name, None)
            if opened is not None:
                self._journal.add("recording", name, key, {**opened, "span": _scores_to_json(part)})
            else:
                self._journal.add("span", _span_name(name, part.span.number), key, _scores_to_json(part))
        elif isinstance(part, Opened):
            entry = {**part._asdict(), "recorder": part.recorder.to_dict()}
            if part.n_spans == 1:  # one entry for both, when it is scored
                self._single[name] = entry
            else:
                self._journal.add("recording", name, key, entry)
        else:
            self._single.pop(name, None)
            self._journal.add("recording", name, key, {"status": part.status, "reason": part.reason})

    def job(self, path: Path, index: int, key: str) -> SpanJob | None:
        """Return what is left to be done of a recording; None where all of it is scored."""
        opened = self._opened(path, key)
        if not isinstance(opened, Opened):  # never begun, or failed: ffmpeg may have been installed since
            return SpanJob(path, index)
        done, ended = self._scored_spans(path, key, opened)
        return None if ended else SpanJob(path, index, done=done)

    def recording(self, path: Path, key: str) -> ScoredRecording:
        """Return what became of a recording."""
        name, opened = os.fspath(path), self._opened(path, key)
        if isinstance(opened, Failed):
            return ScoredRecording(name, Outcome(opened.status, opened.reason))
        found = conclude(name, opened, self._spans_of(path, key)) if opened is not None else None
        return found or ScoredRecording(name, Outcome("corrupt", f"{name} was not scored to its end: run again"))

    def _opened(self, path: Path, key: str) -> Opened | Failed | None:
        entry = self._journal.find("recording", os.fspath(path), key)
        if entry is None:
            return None
        if "status" in entry:
            return Failed(entry["status"], entry["reason"])
        fields = {name: entry[name] for name in Opened._fields}
        return Opened(**{**fields, "recorder": RecorderFacts.from_dict(entry["recorder"])})

    def _scored_spans(self, path: Path, key: str, opened: Opened) -> tuple[frozenset[int], bool]:
        """Return the spans that are scored, and whether they are all up to the recording's end."""
        done: set[int] = set()
        number, n_missing = 0, 0
        while number < opened.n_spans if opened.n_spans is not None else n_missing < _LARGEST_GAP:
            entry = self._find_span(path, key, number)
            if entry is None:
                n_missing += 1
            else:
                done.add(number)
                if entry["end"] is not None and len(done) == number + 1:
                    return frozenset(done), True
                n_missing = 0
            number += 1
        return frozenset(done), False

    def _find_span(self, path: Path, key: str, number: int) -> dict | None:
        name = os.fspath(path)
        entry = self._journal.find("span", _span_name(name, number), key)
        if entry is None and number == 0:
            entry = (self._journal.find("recording", name, key) or {}).get("span")
        # a last span without windows has no embeddings either
        lacks_embeddings = entry is not None and entry["n_windows"] > 0 and "embeddings" not in entry
        return None if self._with_embeddings and lacks_embeddings else entry

    def _spans_of(self, path: Path, key: str):
        kept: dict[int, SpanScores] = {}

        def spans() -> Iterator[SpanScores]:
            number = 0
            while True:
                scores = kept.get(number)
                if scores is None:
                    entry = self._find_span(path, key, number)
                    if entry is None:
                        return
                    scores = _scores_from_json(entry)
                    if number < _KEPT_SPANS:
                        kept[number] = scores
                yield scores
                if scores.span.end is not None:
                    return
                number += 1
        return spans


def scoring_key(*parts: Any) -> str:
    """Return the key of what changes logits: model, front end, windows, back end, and the version of this code."""
    return settings_key(CODE_VERSION, *parts)


def _span_name(name: str, number: int) -> str:
    return f"{number}:{name}"


def _scores_to_json(scores: SpanScores) -> dict:
    entry = {**scores.span._asdict(), "logits": _to_text(scores.logits)}
    if scores.embeddings is not None:
        entry["embeddings"] = _to_text(scores.embeddings)
    return entry


def _scores_from_json(entry: dict) -> SpanScores:
    fields = {name: entry[name] for name in SpanRead._fields}
    end, last = fields["end"], fields["last_segment"]
    span = SpanRead(**{**fields, "end": None if end is None else End(*end),
                       "last_segment": None if last is None else (last[0], last[1])})
    embeddings = _from_text(entry["embeddings"], span.n_windows) if "embeddings" in entry else None
    return SpanScores(span, _from_text(entry["logits"], span.n_windows), embeddings)


def _to_text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode("ascii")


def _from_text(text: str, n_rows: int) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(text), dtype="<f4")
    return values.reshape(n_rows, -1) if n_rows else values.reshape(0, 1)
