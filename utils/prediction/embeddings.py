"""The embeddings of a run's segments as one ``.npz``, written as a stream."""

import os
import zipfile
from array import array
from collections.abc import Iterable, Iterator

import numpy as np

from utils.prediction.records import ScoredRecording, segments_of
from utils.prediction.spans import ReadingPlan
from utils.storage.files import atomic_path
from utils.storage.names import name_to_text


def write_embeddings(path: str | os.PathLike, recordings: Iterable[ScoredRecording], plan: ReadingPlan, *,
                     n_segments: int) -> None:
    """Write the embedding of every segment, and beside it whose it is, atomically.

    Parameters
    ----------
    path : path-like
        An ``.npz``: ``embeddings``, float32 ``(n_segments, n_features)``, the mean over each segment's windows;
        ``file_paths``; ``file_index``, ``start_seconds`` and ``end_seconds`` of each row.
    recordings : iterable of ScoredRecording
        With embeddings; those that could not be used are left out.
    plan : ReadingPlan
        How they were cut.
    n_segments : int
        Of all recordings together, which the file's head tells.
    """
    names: list[str] = []
    numbers, starts, ends = array("q"), array("d"), array("d")

    def rows() -> Iterator[np.ndarray]:
        for recording in recordings:
            if recording.outcome.status != "ok":
                continue
            names.append(name_to_text(recording.name))
            for start, end, row in _segments(recording, plan):
                numbers.append(len(names) - 1)
                starts.append(start / plan.frontend.sample_rate)
                ends.append(end / plan.frontend.sample_rate)
                yield row

    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _write_rows(archive, "embeddings", rows(), n_segments)
        for name, values in (("file_paths", np.array(names, dtype=np.str_)),
                             ("file_index", np.array(numbers, dtype=np.int64)),
                             ("start_seconds", np.array(starts)), ("end_seconds", np.array(ends))):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, values, allow_pickle=False)


def _segments(recording: ScoredRecording, plan: ReadingPlan) -> Iterator[tuple[int, int, np.ndarray]]:
    for scores in recording.spans():
        for segment in segments_of(plan, scores.span):
            assert scores.embeddings is not None
            yield segment.start, segment.end, scores.embeddings[segment.rows].mean(axis=0).astype("<f4")


def _write_rows(archive: zipfile.ZipFile, name: str, rows: Iterator[np.ndarray], n_rows: int) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
        first = next(rows, None)
        n_features = 0 if first is None else len(first)
        np.lib.format.write_array_header_2_0(stream, {"descr": "<f4", "fortran_order": False,
                                                      "shape": (n_rows, n_features)})
        if first is not None:
            stream.write(first.tobytes())
        for row in rows:
            stream.write(row.tobytes())
