"""A call of which is known what it becomes at another speed or pitch, and how far apart two log-mels are."""

from typing import NamedTuple

import numpy as np

from models.efficientnet_config import FrontendConfig

HEARD_DB = 40.0  # what lies deeper below a window's maximum is the smear of the analysis and of silence


def warbling_call(config: FrontendConfig, *, rate: float = 1.0, frequency_ratio: float = 1.0) -> np.ndarray:
    """Return a window of warbling syllables with two overtones, computed for a speed and a pitch."""
    seconds = np.arange(config.segment_samples) / config.sample_rate
    moments = (rate * seconds) % seconds[-1]
    frequency = 1800 + 900 * np.sin(2 * np.pi * 1.5 * moments) + 300 * np.sin(2 * np.pi * 11 * moments)
    phase = 2 * np.pi * np.cumsum(frequency * frequency_ratio) / config.sample_rate
    loudness = 0.3 * np.sqrt(np.maximum(np.sin(4 * np.pi * moments), 0))
    return (loudness * (np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase))).astype(np.float32)


class Distance(NamedTuple):
    """How far a log-mel is from another one where either is heard, in dB."""

    median: float  # of the absolute difference
    level: float  # median difference, with its sign
    beside_level: float  # what the first is once the second is taken off


def distance(log_mel: np.ndarray, expected: np.ndarray) -> Distance:
    """Compare two log-mels of one shape, dB, over the cells within ``HEARD_DB`` of either maximum."""
    heard = (log_mel > log_mel.max() - HEARD_DB) | (expected > expected.max() - HEARD_DB)
    difference = (log_mel - expected)[heard]
    level = np.median(difference)
    return Distance(float(np.median(np.abs(difference))), float(level), float(np.median(np.abs(difference - level))))
