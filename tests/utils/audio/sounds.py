"""Recordings that several test modules write."""

import shutil

import numpy as np
import pytest
import soundfile as sf

RATE = 22050
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")


def tone(frequency, *, sample_rate=RATE, seconds=1.0, level=0.5):
    moments = np.arange(round(seconds * sample_rate)) / sample_rate
    return (level * np.sin(2 * np.pi * frequency * moments)).astype(np.float32)


def write(path, samples, *, sample_rate=RATE, format=None, subtype="FLOAT"):
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with sf.SoundFile(path, "w", sample_rate, channels, format=format, subtype=subtype) as sound:
        for first in range(0, len(samples), 65536):  # libsndfile overflows its stack on larger Vorbis writes
            sound.write(samples[first:first + 65536])
    return path


def count_up(path, n_samples):
    """Write a file whose sample ``i`` is ``i``, so that a slice shows where it came from."""
    return write(path, np.arange(n_samples, dtype=np.float32), sample_rate=1000)
