"""Detections as sound files of their own."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile as sf

from utils.audio.recordings import RecordingReader
from utils.running.parallel import report_alive
from utils.storage.files import atomic_path

Clip = tuple[float, float, Path]  # seconds of its beginning and end, and where it goes


def write_clips(path: str | os.PathLike, clips: Sequence[Clip]) -> int:
    """Write parts of a recording as mono WAV of 16 bits at its own rate, each atomically.

    Returns
    -------
    int
        How many were written; those that lie behind the end of the recording are left out.

    Raises
    ------
    AudioError
        If the recording can no longer be read.
    """
    n_written = 0
    for index, samples, rate in read_parts(path, [clip[:2] for clip in clips], sample_rate=None):
        _write(clips[index][2], samples, rate)
        n_written += 1
    return n_written


def read_parts(path: str | os.PathLike, spans: Sequence[tuple[float, float]], *, sample_rate: int | None
               ) -> Iterator[tuple[int, np.ndarray, int]]:
    """Read parts of a recording, in one pass where it cannot be sought in.

    Parameters
    ----------
    path : path-like
        The recording.
    spans : sequence of (float, float)
        Seconds of their beginning and end; they may overlap.
    sample_rate : int or None
        In Hz; the recording's own when None.

    Yields
    ------
    (int, numpy.ndarray, int)
        Which part, its mono samples, float32 in [-1, 1], and their rate. One that goes on past the end of the recording
        ends there; one that lies behind it is left out.

    Raises
    ------
    AudioError
        If the recording can no longer be read.
    """
    with RecordingReader(path, sample_rate=sample_rate) as reader:
        rate, can_seek = reader.sample_rate, reader.can_seek
    parts = [(round(start * rate), max(round(start * rate) + 1, round(end * rate))) for start, end in spans]
    if can_seek:
        for index, (first, end) in enumerate(parts):
            with RecordingReader(path, sample_rate=rate, on_block=report_alive) as reader:
                samples = _part(reader, first, end)
            if len(samples):  # else the recording breaks off before it
                yield index, samples, rate
        return
    longest = max(end - first for first, end in parts)
    with RecordingReader(path, sample_rate=rate, on_block=report_alive) as reader:
        for index, _, samples in reader.windows(segment_samples=longest, hop_samples=longest, least_new_samples=1,
                                                parts=parts):
            yield index, samples, rate


def _part(reader: RecordingReader, first: int, end: int) -> np.ndarray:
    pieces, n_samples = [np.empty(0, dtype=np.float32)], 0
    for block in reader.blocks(start=first):
        pieces.append(block)
        n_samples += len(block)
        if n_samples >= end - first:
            break
    return np.concatenate(pieces)[:end - first]


def _write(target: Path, samples: np.ndarray, rate: int) -> None:
    with atomic_path(target, durable=False) as temporary:
        sf.write(os.fsencode(temporary) if os.name != "nt" else str(temporary), samples, rate, subtype="PCM_16",
                 format="WAV")
