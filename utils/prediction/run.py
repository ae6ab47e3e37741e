"""A prediction run: recordings are scored into a journal, and results are made from that alone.

A run that was stopped goes on where it was. One that is asked for again with other thresholds, joins or formats makes
its results anew without scoring anything twice.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TextIO

from models.errors import AudioError, ConfigError
from utils.audio.recordings import AUDIO_EXTENSIONS, find_recordings
from utils.prediction.clips import Clip, write_clips
from utils.prediction.embeddings import write_embeddings
from utils.prediction.outputs import (FORMATS, RECORDINGS, SUGGESTED_ENDING, JsonWriter, ResultsHead, Writer,
                                      journal_path, output_path, results_name, write_suggested)
from utils.prediction.predictor import EfficientNetPredictor
from utils.prediction.records import ScoredRecording
from utils.prediction.review_choice import ReviewItem
from utils.prediction.review_page import review_page
from utils.prediction.reviewed import Reviewed
from utils.prediction.scores import ScoreStore
from utils.prediction.scoring import SpanScores
from utils.prediction.spans import Failed, Opened, SpanJob
from utils.prediction.suggestion import suggest_segments
from utils.running.parallel import Executor, Lost, run_each
from utils.running.progress import HoursProgress, progress
from utils.storage.files import read_text, remove_temporaries
from utils.storage.journal import Journal
from utils.storage.locks import locked
from utils.storage.names import clip_id, folder_name, name_to_text, text_to_name

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_TOLD_AFTER_SECONDS = 5.0  # by then the speed is known
_WORTH_TELLING_SECONDS = 60.0
_RESULT_BYTES = 300  # of a segment in a format, about


@dataclass(frozen=True, kw_only=True)
class OutputSettings:
    """What a run writes.

    Parameters
    ----------
    output : Path
        Name of the results; the formats' endings are put behind it.
    formats : tuple of str
        Of ``outputs.FORMATS``.
    embeddings : Path or None
        An ``.npz`` with the embedding of every segment.
    clips_dir : Path or None
        Where detections are written as WAV, in a folder for each class.
    n_suggested : int
        Segments in a table of those that are worth a person's time; 0 writes none.
    reviewed : tuple of Path
        Tables of decisions: what stands in them is not suggested again.
    review : Path or None
        An HTML page on which a person checks what was found; what is suggested comes first.
    """

    output: Path
    formats: tuple[str, ...] = ("json",)
    embeddings: Path | None = None
    clips_dir: Path | None = None
    n_suggested: int = 0
    reviewed: tuple[Path, ...] = ()
    review: Path | None = None

    @property
    def needs_embeddings(self) -> bool:
        """Whether the predictor must keep embeddings."""
        return self.embeddings is not None or self.n_suggested > 0


@dataclass(frozen=True)
class RunResult:
    """What came of a run: the summary of ``results.json``, the files, and why some recordings failed."""

    summary: dict
    written: list[Path] = field(default_factory=list)


class PathList(Sequence[Path]):
    """Paths of very many recordings, kept as text, which takes a tenth of the memory.

    Parameters
    ----------
    texts : iterable of str
        The paths.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = list(texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index):
        """Return one path, or a list of them for a slice."""
        return [Path(text) for text in self._texts[index]] if isinstance(index, slice) else Path(self._texts[index])


def find_inputs(inputs: Sequence[Path]) -> PathList:
    """Return the recordings that files, folders and ``.txt`` lists name, each once, in order.

    Parameters
    ----------
    inputs : sequence of Path
        A folder is searched recursively; a list holds one path a line, relative to the list's folder.

    Raises
    ------
    ConfigError
        If an input does not exist.
    AudioError
        If nothing is found.
    """
    found: dict[str, None] = {}
    for path in inputs:
        if path.is_dir():
            found.update(dict.fromkeys(map(os.fspath, find_recordings(path))))
        elif path.suffix.lower() == ".txt" and path.is_file():
            found.update(dict.fromkeys(map(os.fspath, _listed(path))))
        elif path.exists():
            found[os.fspath(path)] = None
        else:
            raise ConfigError(f"--input {path} does not exist: give files, folders or a .txt list")
    if not found:
        extensions = ", ".join(sorted(AUDIO_EXTENSIONS))
        raise AudioError(f"no recordings in {', '.join(map(str, inputs))}: files ending in {extensions} are read",
                         status="empty")
    return PathList(found)


def predict_to_files(predictor: EfficientNetPredictor, paths: Sequence[Path], settings: OutputSettings, *,
                     executor: Executor, overwrite: bool = False) -> RunResult:
    """Score every recording that is not scored yet, and write the results.

    Parameters
    ----------
    predictor : EfficientNetPredictor
        Model and what to report.
    paths : sequence of Path
        From ``find_inputs``.
    settings : OutputSettings
        What to write.
    executor : Executor
        Where clips are cut, and those of the review page made.
    overwrite : bool
        Score everything again.

    Returns
    -------
    RunResult
        Summary and files.

    Raises
    ------
    ConfigError
        If another run writes the same output, or it cannot be told what a decision is about.
    ManifestError
        If a table holds no decisions or is damaged.
    OSError
        If the disk is full; what is scored is kept.
    """
    output = settings.output
    endings = [kind.ending for kind in (*FORMATS.values(), RECORDINGS)] + [SUGGESTED_ENDING]
    with (locked(output.parent, output=results_name(output), endings=endings),
          Journal(journal_path(output), fresh=overwrite) as journal):
        for ending in (".raven", ".audacity"):
            remove_temporaries(output_path(output, ending))
        # before hours of scoring: a table may be none
        reviewed = Reviewed.read(settings.reviewed, map(os.fspath, paths)) if settings.reviewed else Reviewed()
        run = _Run(predictor, paths, journal, with_embeddings=settings.needs_embeddings)
        run.score(n_formats=len(settings.formats))
        result = run.write(settings, reviewed, executor)
        if settings.clips_dir is not None:
            result.summary["clips"] = run.cut_clips(settings.clips_dir, executor)
            result.written.append(settings.clips_dir)
        journal.finish()
    return result


def predict_to_stream(predictor: EfficientNetPredictor, paths: Sequence[Path], stream: TextIO, *,
                      ensure_ascii: bool = False) -> RunResult:
    """Score every recording and write ``results.json`` to a text stream; nothing is kept to go on from."""
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "scores.jsonl", fresh=False) as journal:
        run = _Run(predictor, paths, journal)
        run.score(n_formats=1)
        head = run.head()
        writer = JsonWriter(stream, head, ensure_ascii=ensure_ascii)
        run.feed([writer])
        writer.finish()
        return RunResult(dict(head.content["summary"]))


class _Run:
    """One pass from recordings to results."""

    def __init__(self, predictor: EfficientNetPredictor, paths: Sequence[Path], journal: Journal, *,
                 with_embeddings: bool = False) -> None:
        self._predictor, self._paths, self._journal = predictor, paths, journal
        self._store = ScoreStore(journal, predictor.scoring_key(), with_embeddings=with_embeddings)
        self._keys = array("Q")  # numbers, for there may be very many
        self._started = time.perf_counter()

    # scoring

    def score(self, *, n_formats: int) -> None:
        """Score what is not scored yet, into the journal."""
        if not self._journal.is_empty:
            logger.info("continuing: what %s holds already is not scored again", self._journal.path)
        bar = HoursProgress(map(_size, self._paths), description="predicting")
        told = False
        with contextlib.closing(bar):
            for job, part in self._predictor.score(self._jobs(bar)):
                self._store.add(self._paths[job.index], _key_text(self._keys[job.index]), part)
                if isinstance(part, Opened):
                    bar.opened(job.index, part.duration_seconds)
                elif isinstance(part, Failed):
                    logger.warning("%s: %s", part.status, name_to_text(part.reason))
                else:
                    self._scored(bar, job, part)
                if not told and bar.elapsed_seconds > _TOLD_AFTER_SECONDS:
                    told = True
                    self._tell_need(bar, n_formats)

    def _jobs(self, bar: HoursProgress) -> Iterator[SpanJob]:
        for index, path in enumerate(self._paths):
            key = self._store.key(path)
            self._keys.append(int(key, 16))
            job = self._store.job(path, index, key)
            if job is None:
                bar.skip(index)
            else:
                yield job

    def _scored(self, bar: HoursProgress, job: SpanJob, part: SpanScores) -> None:
        plan, span = self._predictor.plan, part.span
        seconds = span.n_segments * plan.hop_samples / plan.frontend.sample_rate
        if span.end is not None:
            begins = span.number * plan.n_segments_of_span * plan.hop_samples / plan.frontend.sample_rate
            seconds = max(seconds, span.end.duration_seconds - begins)
            bar.ended(job.index, span.end.duration_seconds)
        bar.scored(seconds)

    def _tell_need(self, bar: HoursProgress, n_formats: int) -> None:
        left = bar.seconds_left
        if left is None or left < _WORTH_TELLING_SECONDS:
            return
        plan = self._predictor.plan
        n_segments = bar.total_seconds * plan.frontend.sample_rate / plan.hop_samples
        share = bar.scored_seconds / bar.total_seconds
        needed = self._journal.path_size / share + n_segments * _RESULT_BYTES * n_formats
        free = shutil.disk_usage(self._journal.path.parent).free
        logger.log(logging.WARNING if needed > free else logging.INFO,
                   "about %.1f h of audio at %.0f times real time: about %s; scores and results take about %.0f MB, and"
                   " %.0f MB are free", bar.total_seconds / 3600, bar.speed, timedelta(seconds=round(left)),
                   needed / 1e6, free / 1e6)

    # results

    def recordings(self) -> Iterator[ScoredRecording]:
        """Yield what became of each input, in order, from the journal."""
        for path, key in zip(self._paths, self._keys, strict=True):
            yield self._predictor.in_zone(self._store.recording(path, _key_text(key)))

    def head(self) -> ResultsHead:
        """Return what all formats begin with; a pass over the scores."""
        predictor = self._predictor
        model, settings, frontend = predictor.model, predictor.settings, predictor.model.frontend
        content = {
            "format_version": FORMAT_VERSION,
            "created": datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
            "model": {"path": model.path, "sha256": model.sha256, "model_name": model.model_name,
                      "class_names": list(model.classes.names), "backend": predictor.backend_name},
            "settings": {**asdict(settings), "thresholds": predictor.thresholds(), **model.calibration.to_dict(),
                         "window_ms": frontend.segment_duration_ms},
            "summary": self._summary(),
        }
        return ResultsHead(content, settings, model.classes.names, frontend.sample_rate, frontend.f_min,
                           frontend.f_max, _common_folder(self._paths))

    def _summary(self) -> dict:
        statuses: Counter[str] = Counter()
        per_class: Counter[str] = Counter()
        n_segments = n_detections = 0
        audio_seconds = 0.0
        for recording in self.recordings():
            statuses[recording.outcome.status] += 1
            if recording.outcome.status != "ok":
                if recording.n_segments:  # all of it was scored before it was known to hold nothing
                    logger.warning("%s: %s", recording.outcome.status, name_to_text(recording.outcome.reason))
                continue
            if recording.outcome.reason:
                logger.warning("%s", name_to_text(recording.outcome.reason))
            audio_seconds += recording.outcome.duration_seconds or 0.0
            n_segments += recording.n_segments
            for answer in self._predictor.answers(recording):
                per_class[answer.decision.predicted_class] += 1
                n_detections += answer.decision.above_threshold
        n_ok = statuses.pop("ok", 0)
        return {"files": len(self._paths), "ok": n_ok, "failed": statuses.total(),
                "failures": dict(statuses.most_common()), "segments": n_segments, "detections": n_detections,
                "audio_seconds": round(audio_seconds, 3), "wall_seconds": round(time.perf_counter() - self._started, 3),
                "per_class": dict(per_class.most_common())}

    def write(self, settings: OutputSettings, reviewed: Reviewed, executor: Executor) -> RunResult:
        """Write every format, each whole or not at all."""
        head, written = self.head(), []
        suggested = self._suggested(settings.n_suggested, reviewed)
        with contextlib.ExitStack() as stack:
            writers: list[Writer] = []
            if settings.review is not None:  # first: it is written when all others are
                writers.append(stack.enter_context(review_page(
                    settings.review, head, executor=executor, suggested=map(ReviewItem.of_suggestion, suggested))))
            for kind in (*(FORMATS[name] for name in settings.formats), RECORDINGS):
                path = output_path(settings.output, kind.ending)
                writers.append(stack.enter_context(kind.open(path, head)))
                written.append(path)
            self.feed(writers)
        if settings.embeddings is not None:
            write_embeddings(settings.embeddings, self.recordings(), self._predictor.plan,
                             n_segments=head.content["summary"]["segments"])
            written.append(settings.embeddings)
        if settings.n_suggested:
            path = output_path(settings.output, SUGGESTED_ENDING)
            write_suggested(path, suggested)
            written.append(path)
        if settings.review is not None:
            written.append(settings.review)
        return RunResult(dict(head.content["summary"]), written)

    def _suggested(self, n: int, reviewed: Reviewed) -> list[dict]:
        """Return the rows of so many segments that are worth a person's time, best first."""
        if not n:
            return []
        recordings = progress(self.recordings(), total=len(self._paths), description="choosing", unit="file")
        return list(suggest_segments(recordings, self._predictor.records, n=n, reviewed=reviewed))

    def feed(self, writers: Sequence[Writer]) -> None:
        """Give every record to every writer."""
        predictor = self._predictor
        for recording in progress(self.recordings(), total=len(self._paths), description="writing", unit="file"):
            for writer in writers:
                writer.begin(recording)
            n_detections = 0
            if recording.outcome.status == "ok":
                for answer in predictor.answers(recording):
                    record = predictor.record(recording, answer)
                    n_detections += answer.decision.above_threshold
                    for writer in writers:
                        writer.add(recording, answer, record)
            for writer in writers:
                writer.end(recording, n_detections=n_detections)

    def cut_clips(self, folder: Path, executor: Executor) -> int:
        """Cut every detection out of its recording; return how many were cut."""
        total = len(self._paths)
        n_clips = 0
        for job, found in progress(run_each(executor, _cut, self._clip_jobs(folder)), total=total,
                                   description="cutting", unit="file"):
            if isinstance(found, Lost):
                found = found.told_of(job[0])
            if isinstance(found, str):
                logger.warning("%s", name_to_text(found))
            else:
                n_clips += found
        return n_clips

    def _clip_jobs(self, folder: Path) -> Iterator[tuple[Path, list[Clip]]]:
        rate = self._predictor.model.frontend.sample_rate
        for path, recording in zip(self._paths, self.recordings(), strict=True):
            if recording.outcome.status != "ok":
                continue
            name = clip_id(name_to_text(path))
            clips = [(answer.start / rate, answer.end / rate,
                      folder / folder_name(answer.decision.predicted_class) /
                      f"{name}_{round(1000 * answer.start / rate)}-{round(1000 * answer.end / rate)}ms.wav")
                     for answer in self._predictor.answers(recording) if answer.decision.above_threshold]
            if clips:
                yield path, clips


def _cut(job: tuple[Path, list[Clip]]) -> int | str:
    path, clips = job
    try:
        return write_clips(path, clips)
    except AudioError as error:
        return str(error)


def _listed(path: Path) -> list[Path]:
    found = []
    for line in read_text(path).splitlines():
        name = line.strip()
        if name and not name.startswith("#"):
            listed = path.parent / name
            # our own tables escape what is not UTF-8
            found.append(listed if listed.exists() else path.parent / text_to_name(name))
    return found


def _key_text(key: int) -> str:
    return f"{key:016x}"


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _common_folder(paths: Sequence[Path]) -> Path:
    """Return the folder that holds all recordings; the one at hand where they share none."""
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:  # other drives on Windows
        return Path.cwd()
