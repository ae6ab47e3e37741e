"""A prediction run: inputs found, results gathered, resumable."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from models.errors import AudioError, ConfigError
from utils.audio.recordings import AUDIO_EXTENSIONS, find_recordings
from utils.prediction.outputs import journal_path, results_name, write_results
from utils.prediction.predictor import EfficientNetPredictor
from utils.prediction.records import PredictedRecording
from utils.running.progress import progress
from utils.storage.files import file_sha256, read_text
from utils.storage.journal import Journal, settings_key
from utils.storage.locks import locked
from utils.storage.names import name_to_text, text_to_name

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


def find_inputs(inputs: Sequence[Path]) -> list[Path]:
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
    found: dict[Path, None] = {}
    for path in inputs:
        if path.is_dir():
            found.update(dict.fromkeys(find_recordings(path)))
        elif path.suffix.lower() == ".txt" and path.is_file():
            found.update(dict.fromkeys(_listed(path)))
        elif path.exists():
            found[path] = None
        else:
            raise ConfigError(f"--input {path} does not exist: give files, folders or a .txt list")
    if not found:
        extensions = ", ".join(sorted(AUDIO_EXTENSIONS))
        raise AudioError(f"no recordings in {', '.join(map(str, inputs))}: files ending in {extensions} are read",
                         status="empty")
    return list(found)


def predict_to_files(predictor: EfficientNetPredictor, paths: Sequence[Path], *, config_path: Path | None,
                     output: Path, formats: Sequence[str], overwrite: bool) -> tuple[dict, list[Path]]:
    """Predict every file and write the results.

    Parameters
    ----------
    predictor : EfficientNetPredictor
        Model and settings.
    paths : sequence of Path
        From ``find_inputs``.
    config_path : Path or None
        What the predictor was given, for resuming.
    output : Path
        Name of the results; a journal beside it keeps finished files until they are written.
    formats : sequence of str
        Of ``outputs.FORMATS``.
    overwrite : bool
        Predict everything again instead of continuing.

    Returns
    -------
    results : dict
        As ``predict_to_results``.
    written : list of Path
        The files.

    Raises
    ------
    ConfigError
        If another run writes the same output.
    """
    with (locked(output.parent, output=results_name(output)),
          Journal(journal_path(output), fresh=overwrite) as journal):
        results = _results(predictor, paths, _resumed(predictor, paths, journal, config_path))
        written = write_results(results, output, formats)
        journal.remove()
    return results, written


def predict_to_results(predictor: EfficientNetPredictor, paths: Sequence[Path]) -> dict:
    """Predict every file and return the content of ``results.json``: model, settings, summary, predictions, errors."""
    return _results(predictor, paths, predictor.predict_files(paths))


def _listed(path: Path) -> list[Path]:
    found = []
    for line in read_text(path).splitlines():
        name = line.strip()
        if name and not name.startswith("#"):
            listed = path.parent / name
            # our own tables escape what is not UTF-8
            found.append(listed if listed.exists() else path.parent / text_to_name(name))
    return found


def _resumed(predictor: EfficientNetPredictor, paths: Sequence[Path], journal: Journal,
             config_path: Path | None) -> Iterator[PredictedRecording]:
    """Yield what is reported of each file, in order; finished ones from the journal, the others into it."""
    config_sha256 = file_sha256(config_path) if config_path else ""
    keys = {path: _file_key(predictor, config_sha256, path) for path in paths}
    # what could not be used is tried again: ffmpeg may have been installed since
    finished = {path for path in paths if (done := journal.find("file", str(path), keys[path])) and not done["error"]}
    if finished:
        logger.info("continuing: %d of %d files are already done", len(finished), len(paths))
    fresh = predictor.predict_files(path for path in paths if path not in finished)
    for path in paths:
        done = journal.find("file", str(path), keys[path]) if path in finished else None
        if done is not None:
            yield PredictedRecording.from_json(done)
            continue
        predicted = next(fresh)
        journal.add("file", str(path), keys[path], predicted.to_json())
        yield predicted


def _file_key(predictor: EfficientNetPredictor, config_sha256: str, path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return settings_key(predictor.model.sha256, "missing")
    # the names too: those of a NightScan 1 model are not in its file
    return settings_key(predictor.model.sha256, config_sha256, predictor.model.classes.names,
                        asdict(predictor.settings), status.st_size, status.st_mtime_ns)


def _results(predictor: EfficientNetPredictor, paths: Sequence[Path],
             predicted: Iterator[PredictedRecording]) -> dict:
    started = time.perf_counter()
    records, errors, audio_seconds = [], [], 0.0
    bar = progress(predicted, total=len(paths), description="predicting", unit="file")
    for recording in bar:
        if recording.outcome.status != "ok":
            errors.append(recording.error_record())
            logger.warning("%s: %s", errors[-1]["status"], errors[-1]["error"])
        elif recording.outcome.reason:
            logger.warning("%s", name_to_text(recording.outcome.reason))
        records += recording.records
        audio_seconds += recording.outcome.duration_seconds or 0.0
    model = predictor.model
    return {
        "format_version": FORMAT_VERSION,
        "created": datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        "model": {"path": model.path, "sha256": model.sha256, "model_name": model.model_name,
                  "class_names": list(model.classes.names), "backend": predictor.backend.name},
        "settings": {**asdict(predictor.settings), "batch_size": predictor.batch_size,
                     "thresholds": predictor.thresholds(), **model.calibration.to_dict(),
                     "window_ms": model.frontend.segment_duration_ms},
        "summary": {"files": len(paths), "ok": len(paths) - len(errors), "failed": len(errors),
                    "segments": len(records) if predictor.settings.segment_mode
                    else sum(record["n_segments"] for record in records),
                    "audio_seconds": round(audio_seconds, 3),
                    "wall_seconds": round(time.perf_counter() - started, 3),
                    "per_class": dict(Counter(record["predicted_class"] for record in records).most_common())},
        "predictions": records,
        "errors": errors,
    }
