"""Results as files: one registry of formats, each written from the content of ``results.json``."""

import csv
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from utils.storage.files import atomic_path, write_json


def write_results(results: dict, output: Path, formats: Iterable[str]) -> list[Path]:
    """Write the results in each format beside ``output``; return the paths."""
    written = []
    for kind in formats:
        path = output_path(output, kind)
        FORMATS[kind](path, results)
        written.append(path)
    return written


def output_path(output: Path, kind: str) -> Path:
    """Return ``output`` with the extension of a format: in the place of another format's, or behind the name."""
    known = output.suffix.lower().lstrip(".") in FORMATS
    return output.with_suffix(f".{kind}") if known else output.with_name(f"{output.name}.{kind}")


def results_name(output: Path) -> str:
    """Return what the names of all files of these results begin with, before their extension."""
    return output_path(output, "json").stem


def journal_path(output: Path) -> Path:
    """Return where finished files are kept while a run is under way."""
    return output_path(output, "partial.jsonl")


def table_rows(results: Mapping) -> list[dict]:
    """Return one row per record and per failed file; scores become columns ``score_<class>``."""
    rows = []
    for record in results["predictions"]:
        row = {name: value for name, value in record.items() if name not in ("all_scores", "top_k")}
        row |= {f"score_{name}": value for name, value in record.get("all_scores", {}).items()}
        for rank, entry in enumerate(record.get("top_k", []), start=1):
            row |= {f"top_{rank}_class": entry["class"], f"top_{rank}_probability": entry["probability"]}
        rows.append({**row, "status": "ok", "error": ""})
    return rows + list(results["errors"])


def _write_csv(path: Path, results: Mapping) -> None:
    rows = table_rows(results)
    columns = dict.fromkeys(name for row in rows for name in row)
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


FORMATS: Mapping[str, Callable[[Path, dict], None]] = {"json": write_json, "csv": _write_csv}
