"""Results as files: one registry of formats, each fed record by record, so that none of them holds a survey.

A format is a context manager that gives a ``Writer``; its file takes its name when the block succeeds.
"""

import contextlib
import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from models.errors import ConfigError
from utils.audio.annotations import (BIRDNET_COLUMNS, RAVEN_COLUMNS, MarkedSound, audacity_line, birdnet_row,
                                     raven_row)
from utils.audio.recorders import RECORDER_COLUMNS
from utils.prediction.nights import NIGHT_COLUMNS, Nights
from utils.prediction.records import (Answer, PredictedRecording, PredictionSettings, ScoredRecording,
                                      recorder_columns)
from utils.storage.files import atomic_path
from utils.storage.names import clip_id, fitting_name, name_to_text

_PARQUET_ROWS = 20_000  # of a row group: what is held in memory
_SPOOLED_BYTES = 1 << 20
_AddSound = Callable[..., object]  # takes a MarkedSound; that of all recordings also what Raven has opened before
_RECORDING_COLUMNS = ("file_path", "status", "error", "duration_seconds", "n_segments", "n_detections",
                      *RECORDER_COLUMNS)
# of them, file_path to confidence as the review's decisions have them
_SUGGESTED_COLUMNS = ("rank", "file_path", "start_seconds", "end_seconds", "model_class", "confidence", "reason",
                      *RECORDER_COLUMNS)


@dataclass(frozen=True)
class ResultsHead:
    """What all formats are told of a run before its first record.

    Parameters
    ----------
    content : Mapping
        What stands at the head of ``results.json``: format version, model, settings, summary.
    settings : PredictionSettings
        What was asked for.
    class_names : tuple of str
        In order.
    sample_rate : int
        Of the samples that answers count, in Hz.
    low_hertz, high_hertz : float
        What the front end hears.
    root : Path
        Folder that holds all recordings.
    """

    content: Mapping[str, Any]
    settings: PredictionSettings
    class_names: tuple[str, ...]
    sample_rate: int
    low_hertz: float
    high_hertz: float
    root: Path

    def sound(self, recording: ScoredRecording, answer: Answer) -> MarkedSound:
        """Return a detection as tables of marked sounds have it."""
        rate, decision = self.sample_rate, answer.decision
        return MarkedSound(answer.start / rate, answer.end / rate, decision.predicted_class, decision.confidence,
                           name_to_text(recording.name))


class Writer:
    """What a format does with a run; in the order of the inputs, for each recording ``begin``, its ``add``, ``end``."""

    def begin(self, recording: ScoredRecording) -> None:
        """Take note of a recording, one that could not be used too."""

    def add(self, recording: ScoredRecording, answer: Answer, record: dict) -> None:
        """Take a record and the answer it was made of."""

    def end(self, recording: ScoredRecording, *, n_detections: int) -> None:
        """Take note that a recording has no more records."""


def recording_row(recording: ScoredRecording, *, n_detections: int) -> dict:
    """Return what became of a recording, whether anything was found in it or not."""
    outcome = recording.outcome
    return {"file_path": name_to_text(recording.name), "status": outcome.status,
            "error": name_to_text(outcome.reason),
            "duration_seconds": round(outcome.duration_seconds or 0.0, 3), "n_segments": recording.n_segments,
            "n_detections": n_detections, **recorder_columns(recording.recorder)}


def error_record(recording: ScoredRecording) -> dict:
    """Return what stands under ``errors`` for a recording that could not be used."""
    return PredictedRecording(name_to_text(recording.name), recording.outcome, ()).error_record()


# JSON

class JsonWriter(Writer):
    """Writes ``results.json`` as a stream: one record a line; what comes after them waits in a temporary file."""

    def __init__(self, stream: TextIO, head: ResultsHead, *, ensure_ascii: bool = False) -> None:
        self._stream, self._ensure_ascii = stream, ensure_ascii
        self._errors, self._recordings = (tempfile.SpooledTemporaryFile(_SPOOLED_BYTES, "w+", encoding="utf-8")
                                          for _ in range(2))
        text = json.dumps(dict(head.content), indent=2, ensure_ascii=ensure_ascii, allow_nan=False)
        stream.write(text.removesuffix("\n}") + ',\n  "predictions": [')
        self._first = {id(stream): True, id(self._errors): True, id(self._recordings): True}

    def begin(self, recording: ScoredRecording) -> None:
        """See ``Writer.begin``."""
        if recording.outcome.status != "ok":
            self._put(self._errors, error_record(recording))

    def add(self, recording: ScoredRecording, answer: Answer, record: dict) -> None:
        """See ``Writer.add``."""
        self._put(self._stream, record)

    def end(self, recording: ScoredRecording, *, n_detections: int) -> None:
        """See ``Writer.end``."""
        self._put(self._recordings, recording_row(recording, n_detections=n_detections))

    def finish(self) -> None:
        """Write what comes after the records."""
        for name, spool in (("errors", self._errors), ("recordings", self._recordings)):
            self._stream.write(f'\n  ],\n  "{name}": [')
            spool.seek(0)
            shutil.copyfileobj(spool, self._stream)
            spool.close()
        self._stream.write("\n  ]\n}\n")

    def _put(self, stream: Any, value: dict) -> None:
        stream.write(("\n    " if self._first[id(stream)] else ",\n    ")
                     + json.dumps(value, ensure_ascii=self._ensure_ascii, allow_nan=False))
        self._first[id(stream)] = False


@contextlib.contextmanager
def _json(path: Path, head: ResultsHead) -> Iterator[Writer]:
    with _text(path) as stream:
        writer = JsonWriter(stream, head)
        yield writer
        writer.finish()


# tables

def record_columns(head: ResultsHead) -> list[str]:
    """Return the columns of the table of records, which do not depend on what was found."""
    settings = head.settings
    segment = ("segment_index", "segment_start_ms", "segment_end_ms") if settings.segment_mode else ()
    ranks = [f"top_{rank}_{what}" for rank in range(1, min(settings.top_k, len(head.class_names)) + 1)
             for what in ("class", "probability")]
    scores = [f"score_{name}" for name in head.class_names] if settings.return_all_scores else []
    return ["file_path", "predicted_class", "confidence", "above_threshold", "top_class", "top_confidence",
            "duration_seconds", "n_segments", "processing_time", *segment, *RECORDER_COLUMNS, "damage", *ranks, *scores,
            "status", "error"]


def flat_record(record: Mapping) -> dict:
    """Return a record as a row: scores become columns ``score_<class>``, ranks ``top_<rank>_class``."""
    row = {name: value for name, value in record.items() if name not in ("all_scores", "top_k")}
    row |= {f"score_{name}": value for name, value in record.get("all_scores", {}).items()}
    for rank, entry in enumerate(record.get("top_k", []), start=1):
        row |= {f"top_{rank}_class": entry["class"], f"top_{rank}_probability": entry["probability"]}
    return {**row, "status": "ok", "error": ""}


class _RowWriter(Writer):
    """Gives a row for each record and for each recording that could not be used."""

    def __init__(self, write_row: Callable[[dict], Any]) -> None:
        self._write_row = write_row

    def begin(self, recording: ScoredRecording) -> None:
        if recording.outcome.status != "ok":
            self._write_row(error_record(recording))

    def add(self, recording: ScoredRecording, answer: Answer, record: dict) -> None:
        self._write_row(flat_record(record))


@contextlib.contextmanager
def _csv(path: Path, head: ResultsHead) -> Iterator[Writer]:
    with _table(path, record_columns(head)) as table:
        yield _RowWriter(table.writerow)


@contextlib.contextmanager
def _parquet(path: Path, head: ResultsHead) -> Iterator[Writer]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError("--formats parquet needs pyarrow: pip install -r requirements-extra.txt") from error
    kinds = {"confidence": pyarrow.float64(), "above_threshold": pyarrow.bool_(), "top_confidence": pyarrow.float64(),
             "duration_seconds": pyarrow.float64(), "n_segments": pyarrow.int64(), "processing_time": pyarrow.float64(),
             "segment_index": pyarrow.int64(), "segment_start_ms": pyarrow.int64(), "segment_end_ms": pyarrow.int64(),
             "latitude": pyarrow.float64(), "longitude": pyarrow.float64(), "temperature_c": pyarrow.float64()}
    schema = pyarrow.schema([(name, pyarrow.float64() if name.startswith("score_") or name.endswith("_probability")
                              else kinds.get(name, pyarrow.string())) for name in record_columns(head)])
    held: list[dict] = []
    with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, schema) as table:
        def flush() -> None:
            table.write_table(pyarrow.Table.from_pylist(held, schema=schema))
            held.clear()

        def write_row(row: dict) -> None:
            held.append(row)
            if len(held) == _PARQUET_ROWS:
                flush()
        yield _RowWriter(write_row)
        flush()


class _RecordingsWriter(Writer):
    def __init__(self, table: csv.DictWriter) -> None:
        self._table = table

    def end(self, recording: ScoredRecording, *, n_detections: int) -> None:
        self._table.writerow(recording_row(recording, n_detections=n_detections))


@contextlib.contextmanager
def _recordings(path: Path, head: ResultsHead) -> Iterator[Writer]:
    with _table(path, _RECORDING_COLUMNS) as table:
        yield _RecordingsWriter(table)


class _NightsWriter(Writer):
    def __init__(self, head: ResultsHead) -> None:
        self._head, self.nights = head, Nights(head.class_names)

    def begin(self, recording: ScoredRecording) -> None:
        if recording.outcome.status == "ok":
            self.nights.add_effort(Path(recording.name), recording.recorder,
                                   duration_seconds=recording.outcome.duration_seconds or 0.0)

    def add(self, recording: ScoredRecording, answer: Answer, record: dict) -> None:
        if answer.decision.above_threshold:
            self.nights.add_detection(Path(recording.name), recording.recorder, answer.decision.predicted_class,
                                      start_seconds=answer.start / self._head.sample_rate)


@contextlib.contextmanager
def _nights(path: Path, head: ResultsHead) -> Iterator[Writer]:
    writer = _NightsWriter(head)
    yield writer
    with _table(path, NIGHT_COLUMNS) as table:
        table.writerows(writer.nights.rows())


def write_suggested(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the table of what a person should hear first; rows as ``suggest_segments`` gives them."""
    with _table(path, _SUGGESTED_COLUMNS) as table:
        table.writerows(rows)


# marked sounds

class _SoundsWriter(Writer):
    """Gives each detection to a table of all recordings and to one of its own recording."""

    def __init__(self, head: ResultsHead, folder: Path, ending: str,
                 open_one: Callable[[Path], AbstractContextManager[_AddSound]],
                 add_to_all: _AddSound | None = None) -> None:
        self._head, self._folder, self._ending = head, folder, ending
        self._open_one, self._add_to_all = open_one, add_to_all
        self._taken: set[Path] = set()
        self._opened_seconds = 0.0
        self._stack = contextlib.ExitStack()
        self._add_to_one: _AddSound | None = None

    def begin(self, recording: ScoredRecording) -> None:
        if recording.outcome.status == "ok":
            self._add_to_one = self._stack.enter_context(self._open_one(self._place(Path(recording.name))))

    def add(self, recording: ScoredRecording, answer: Answer, record: dict) -> None:
        if answer.decision.above_threshold and self._add_to_one is not None:
            sound = self._head.sound(recording, answer)
            self._add_to_one(sound)
            if self._add_to_all is not None:
                self._add_to_all(sound, self._opened_seconds)

    def end(self, recording: ScoredRecording, *, n_detections: int) -> None:
        self._stack.close()
        self._add_to_one = None
        self._opened_seconds += recording.outcome.duration_seconds or 0.0 if recording.outcome.status == "ok" else 0.0

    def _place(self, path: Path) -> Path:
        """Return where the table of a recording stands: folders as those of the recordings, names that differ."""
        try:
            folder = self._folder / Path(os.path.abspath(path)).parent.relative_to(self._head.root)
        except ValueError:
            folder = self._folder
        for stem in (path.stem, path.name, clip_id(name_to_text(path))):
            place = folder / fitting_name(stem, self._ending)
            if place not in self._taken:
                break
        self._taken.add(place)
        return place


@contextlib.contextmanager
def _raven(path: Path, head: ResultsHead) -> Iterator[Writer]:
    @contextlib.contextmanager
    def open_table(place: Path) -> Iterator[_AddSound]:
        with _text(place, durable=place == path) as stream:
            table, number = csv.writer(stream, delimiter="\t", lineterminator="\n"), 0
            table.writerow(RAVEN_COLUMNS)

            def add(sound: MarkedSound, opened_seconds: float = 0.0) -> None:
                nonlocal number
                number += 1
                table.writerow(raven_row(sound, number=number, low_hertz=head.low_hertz, high_hertz=head.high_hertz,
                                         opened_seconds=opened_seconds))
            yield add

    with open_table(path) as add_to_all:
        yield _SoundsWriter(head, _folder_of(path, "raven"), ".selections.txt", open_table, add_to_all)


@contextlib.contextmanager
def _audacity(path: Path, head: ResultsHead) -> Iterator[Writer]:
    @contextlib.contextmanager
    def open_labels(place: Path) -> Iterator[_AddSound]:
        with _text(place, durable=False) as stream:
            yield lambda sound: stream.write(audacity_line(sound))

    path.mkdir(parents=True, exist_ok=True)
    yield _SoundsWriter(head, path, ".txt", open_labels)


class _BirdNetWriter(Writer):
    def __init__(self, head: ResultsHead, write_row: Callable[[list], Any]) -> None:
        self._head, self._write_row = head, write_row

    def add(self, recording: ScoredRecording, answer: Answer, record: dict) -> None:
        if answer.decision.above_threshold:
            self._write_row(birdnet_row(self._head.sound(recording, answer)))


@contextlib.contextmanager
def _birdnet(path: Path, head: ResultsHead) -> Iterator[Writer]:
    with _text(path) as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(BIRDNET_COLUMNS)
        yield _BirdNetWriter(head, table.writerow)


# the registry

@dataclass(frozen=True)
class Format:
    """A format of results.

    Parameters
    ----------
    ending : str
        What follows the name of the results.
    open : callable
        Takes the path and the head, gives a context with a ``Writer``.
    """

    ending: str
    open: Callable[[Path, ResultsHead], AbstractContextManager[Writer]]


FORMATS: Mapping[str, Format] = {
    "json": Format(".json", _json),
    "csv": Format(".csv", _csv),
    "parquet": Format(".parquet", _parquet),
    "raven": Format(".selections.txt", _raven),
    "audacity": Format(".audacity", _audacity),
    "birdnet": Format(".birdnet.csv", _birdnet),
    "nights": Format(".nights.csv", _nights),
}
RECORDINGS = Format(".recordings.csv", _recordings)  # what became of each input: always written
SUGGESTED_ENDING = ".suggested.csv"


def output_path(output: Path, ending: str) -> Path:
    """Return ``output`` with an ending: in the place of a format's own, or behind the name."""
    return output.with_name(results_name(output) + ending)


def results_name(output: Path) -> str:
    """Return what the names of all files of these results begin with."""
    for ending in sorted((kind.ending for kind in FORMATS.values()), key=len, reverse=True):
        if output.name.lower().endswith(ending) and len(output.name) > len(ending):
            return output.name[:-len(ending)]
    return output.name


def journal_path(output: Path) -> Path:
    """Return where the scores of a run are kept, from which its results are made."""
    return output_path(output, ".scores.jsonl")


def _folder_of(path: Path, name: str) -> Path:
    return path.with_name(f"{results_name(path)}.{name}")


@contextlib.contextmanager
def _text(path: Path, *, durable: bool = True) -> Iterator[TextIO]:
    with atomic_path(path, durable=durable) as temporary, \
            open(temporary, "w", encoding="utf-8", newline="") as stream:
        yield stream


@contextlib.contextmanager
def _table(path: Path, columns: Any) -> Iterator[csv.DictWriter]:
    with _text(path) as stream:
        table = csv.DictWriter(stream, list(columns), lineterminator="\n")
        table.writeheader()
        yield table
