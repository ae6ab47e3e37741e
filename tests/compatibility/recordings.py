"""The recordings that the files in this folder were made of; each test makes them again.

Nothing of the project is imported, so that any version of it can be run on the same recordings.
"""

import os
import wave
from pathlib import Path

import numpy as np

CLASS_PITCHES_HZ = {"amphibian_call": 600.0, "bird_song": 3000.0, "insect_sound": 1800.0}
_SAMPLE_RATE = 8000
_SECONDS = 0.5
_RECORDINGS_PER_CLASS = 3
# journals know a recording by its name, its size and when it was changed
_CHANGED_NS = 1_700_000_000 * 10**9


def write_recordings(folder: Path) -> list[Path]:
    """Write WAV files ``<class>/night_<number>.wav``, each a tone with a little noise; return their paths."""
    rng = np.random.default_rng(0)
    time = np.arange(round(_SECONDS * _SAMPLE_RATE)) / _SAMPLE_RATE
    paths = []
    for class_name, pitch in CLASS_PITCHES_HZ.items():
        for number in range(_RECORDINGS_PER_CLASS):
            tone = np.sin(2 * np.pi * pitch * rng.uniform(0.95, 1.05) * time)
            samples = np.round(8000 * tone + rng.integers(-200, 201, len(time)))
            paths.append(_write_wav(folder / class_name / f"night_{number}.wav", samples.astype("<i2")))
    return paths


def _write_wav(path: Path, samples: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(_SAMPLE_RATE)
        stream.writeframes(samples.tobytes())
    os.utime(path, ns=(_CHANGED_NS, _CHANGED_NS))
    return path
