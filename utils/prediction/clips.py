"""Detections as sound files of their own."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile as sf

from utils.audio.recordings import RecordingReader
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
    with RecordingReader(path, sample_rate=None) as reader:
        rate, can_seek = reader.sample_rate, reader.can_seek
    parts = [(round(start * rate), max(round(start * rate) + 1, round(end * rate))) for start, end, _ in clips]
    n_written = 0
    if can_seek:
        for (first, end), (_, _, target) in zip(parts, clips, strict=True):
            with RecordingReader(path, sample_rate=rate) as reader:
                samples = _part(reader, first, end)
            if len(samples):  # else the recording breaks off before it
                _write(target, samples, rate)
                n_written += 1
        return n_written
    longest = max(end - first for first, end in parts)
    with RecordingReader(path, sample_rate=rate) as reader:
        for part, _, samples in reader.windows(segment_samples=longest, hop_samples=longest, least_new_samples=1,
                                               parts=parts):
            _write(clips[part][2], samples, rate)
            n_written += 1
    return n_written


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
