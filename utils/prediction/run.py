"""A prediction run: inputs found, results gathered and written, resumable."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd

from models.errors import AudioError, ConfigError
from utils.audio.recordings import AUDIO_EXTENSIONS, find_recordings
from utils.storage.files import atomic_path, file_sha256, write_json
from utils.prediction.predictor import EfficientNetPredictor, FileOutcome
from utils.storage.journal import Journal, settings_key
from utils.running.progress import progress

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunInfo:
    """What identifies the model and settings of a run, for the results and for resuming."""

    model_path: Path
    model_sha256: str
    config_sha256: str


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


def predict_to_results(predictor: EfficientNetPredictor, paths: Sequence[Path], *, run: RunInfo,
                       output: Path | None, overwrite: bool) -> dict:
    """Predict every file and return the content of ``results.json``.

    Parameters
    ----------
    predictor : EfficientNetPredictor
        Model and settings.
    paths : sequence of Path
        From ``find_inputs``.
    run : RunInfo
        Identity of model and config.
    output : Path or None
        Where results will be written; a journal beside it keeps finished files should the run be stopped.
    overwrite : bool
        Forget such a journal.

    Returns
    -------
    dict
        As contracts say: model, settings, summary, predictions, errors.
    """
    started = time.perf_counter()
    bar = progress(total=len(paths), description="predicting", unit="file")
    outcomes = []
    with bar:
        for outcome in _outcomes(predictor, paths, run, output, overwrite):
            if outcome.error:
                logger.warning("%s: %s", outcome.error["status"], outcome.error["error"])
            outcomes.append(outcome)
            bar.update()
    return _results(predictor, outcomes, run, wall_seconds=time.perf_counter() - started)


def write_results(results: dict, output: Path, formats: Iterable[str]) -> list[Path]:
    """Write the results in each format beside ``output`` and drop the journal; return the paths."""
    written = []
    for kind in formats:
        path = output.with_suffix(f".{kind}")
        if kind == "json":
            write_json(path, results)
        else:
            with atomic_path(path) as temporary:
                results_table(results).to_csv(temporary, index=False, encoding="utf-8", lineterminator="\n")
        written.append(path)
    journal_path(output).unlink(missing_ok=True)
    return written


def results_table(results: dict) -> pd.DataFrame:
    """Return one row per record and per failed file; scores become columns ``score_<class>``."""
    rows = []
    for record in results["predictions"]:
        row = {name: value for name, value in record.items() if name not in ("all_scores", "top_k")}
        row |= {f"score_{name}": value for name, value in record.get("all_scores", {}).items()}
        for rank, entry in enumerate(record.get("top_k", []), start=1):
            row |= {f"top_{rank}_class": entry["class"], f"top_{rank}_probability": entry["probability"]}
        rows.append({**row, "status": "ok", "error": ""})
    rows += results["errors"]
    return pd.DataFrame(rows)


def journal_path(output: Path) -> Path:
    """Return where finished files are kept while a run is under way."""
    return output.with_name(f"{output.stem}.partial.jsonl")


def _listed(path: Path) -> list[Path]:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [path.parent / line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _outcomes(predictor: EfficientNetPredictor, paths: Sequence[Path], run: RunInfo, output: Path | None,
              overwrite: bool) -> Iterator[FileOutcome]:
    if output is None:
        yield from predictor.predict_files(paths)
        return
    with Journal(journal_path(output), fresh=overwrite) as journal:
        keys = {path: _file_key(predictor, run, path) for path in paths}
        finished = {path: journal.find("file", str(path), keys[path]) for path in paths}
        todo = [path for path in paths if finished[path] is None]
        if len(todo) < len(paths):
            logger.info("continuing: %d of %d files are already done", len(paths) - len(todo), len(paths))
        fresh = predictor.predict_files(todo)
        for path in paths:
            done = finished[path]
            outcome = FileOutcome(**done) if done is not None else next(fresh)
            if done is None:
                journal.add("file", str(path), keys[path], asdict(outcome))
            yield outcome


def _file_key(predictor: EfficientNetPredictor, run: RunInfo, path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return settings_key(run.model_sha256, "missing")
    # the names too: those of a NightScan 1 model are not in its file
    return settings_key(run.model_sha256, run.config_sha256, predictor.model.classes.names,
                        asdict(predictor.settings), status.st_size, status.st_mtime_ns)


def identify(model_path: Path, config_path: Path | None) -> RunInfo:
    """Return the identity of a model file and of the config laid over it."""
    return RunInfo(model_path, file_sha256(model_path), file_sha256(config_path) if config_path else "")


def _results(predictor: EfficientNetPredictor, outcomes: Sequence[FileOutcome], run: RunInfo, *,
             wall_seconds: float) -> dict:
    records = [record for outcome in outcomes for record in outcome.records]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    model = predictor.model
    return {
        "format_version": FORMAT_VERSION,
        "created": datetime.now(timezone.utc).astimezone().isoformat(timespec="seconds"),
        "model": {"path": str(run.model_path), "sha256": run.model_sha256, "model_name": model.model_name,
                  "class_names": list(model.classes.names), "backend": predictor.backend.name},
        "settings": {**asdict(predictor.settings), "batch_size": predictor.batch_size,
                     "thresholds": predictor.thresholds(), "temperature": model.calibration.temperature,
                     "window_ms": model.frontend.segment_duration_ms},
        "summary": {"files": len(outcomes), "ok": len(outcomes) - len(errors), "failed": len(errors),
                    "segments": sum(record["n_segments"] for record in records)
                    if not predictor.settings.segment_mode else len(records),
                    "audio_seconds": round(sum(outcome.duration_seconds for outcome in outcomes), 3),
                    "wall_seconds": round(wall_seconds, 3),
                    "per_class": dict(Counter(record["predicted_class"] for record in records).most_common())},
        "predictions": records,
        "errors": errors,
    }
