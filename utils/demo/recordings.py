"""A synthesised data set: six classes of sound heard through four imperfect recorders.

It shows the whole way from recordings to a report where no real recordings are at hand. Recorders differ in rate,
noise, level and file format, and none of them belongs to one class.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from models.efficientnet_config import DEFAULT_CLASS_NAMES
from models.errors import ConfigError
from utils.demo.sounds import PEAK, shaped_noise, synthesise_recording, tone

DURATION_RANGE_SECONDS = (3.0, 14.0)
SNR_DB_MEAN_AND_DEVIATION = (14.0, 6.0)
BACKGROUND_PROBABILITY = 0.25
BACKGROUND_DB_RANGE = (-22.0, -12.0)  # a second class in the distance, against the first
FIRST_NIGHT = datetime.datetime(2024, 5, 1, 20)
NIGHT_SECONDS = 9 * 3600
WRITE_BLOCK = 65536  # libsndfile crashes on one long write to Ogg Vorbis
FRAME_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class _Recorder:
    """What a recorder adds to every sound."""

    name: str
    sample_rate: int
    extension: str
    n_channels: int
    noise_db: float  # against full scale
    noise_slope_db: float  # per octave
    hum_db: float  # mains hum against the noise


_RECORDERS = (
    _Recorder(name="AM01", sample_rate=48000, extension=".WAV", n_channels=1,
              noise_db=-50.0, noise_slope_db=-3.0, hum_db=-60.0),
    _Recorder(name="SM02", sample_rate=32000, extension=".wav", n_channels=2,
              noise_db=-44.0, noise_slope_db=-5.0, hum_db=-60.0),
    _Recorder(name="FR03", sample_rate=22050, extension=".flac", n_channels=1,
              noise_db=-54.0, noise_slope_db=-1.0, hum_db=-6.0),
    _Recorder(name="PH04", sample_rate=16000, extension=".ogg", n_channels=1,
              noise_db=-38.0, noise_slope_db=-2.0, hum_db=-20.0),
)


def _loud_power(sound: np.ndarray, sample_rate: int) -> float:
    """Return the mean power of the loudest tenth of the frames: of the calls, not of the pauses."""
    frame = round(FRAME_SECONDS * sample_rate)
    power = np.mean(sound[:len(sound) // frame * frame].reshape(-1, frame) ** 2, axis=1)
    return float(np.mean(np.sort(power)[-max(1, len(power) // 10):]))


def _record(sound: np.ndarray, recorder: _Recorder, rng: np.random.Generator) -> np.ndarray:
    """Return ``sound`` as the recorder hears it: float32 ``(n_samples, n_channels)``, at most ``PEAK``."""
    n, sample_rate = len(sound), recorder.sample_rate
    noise_level = 10 ** ((recorder.noise_db + rng.uniform(-4, 4)) / 20)
    snr_db = rng.normal(*SNR_DB_MEAN_AND_DEVIATION)
    sound = sound * noise_level * 10 ** (snr_db / 20) / np.sqrt(_loud_power(sound, sample_rate))
    # one second of it holds whole periods
    hum = 10 ** (recorder.hum_db / 20) * np.resize(
        tone(np.full(sample_rate, 50.0), sample_rate, harmonics=(1, 0.5, 0.7, 0.2, 0.3)), n)
    channels = []
    for _ in range(recorder.n_channels):
        noise = shaped_noise(n, sample_rate, rng, slope_db=recorder.noise_slope_db)
        delay = rng.integers(round(0.0005 * sample_rate))  # microphones some 15 cm apart
        channels.append(rng.uniform(0.7, 1) * np.roll(sound, delay) + noise_level * (noise + hum))
    recording = np.stack(channels, axis=1)
    return (recording * min(1.0, PEAK / np.abs(recording).max())).astype(np.float32)


def _write_audio(path: Path, recording: np.ndarray, *, sample_rate: int) -> None:
    with soundfile.SoundFile(path, "w", samplerate=sample_rate, channels=recording.shape[1]) as file:
        for start in range(0, len(recording), WRITE_BLOCK):
            file.write(recording[start:start + WRITE_BLOCK])


def _write_recording(folder: Path, class_index: int, recording_index: int, *, random_state: int) -> Path:
    rng = np.random.default_rng([random_state, class_index, recording_index])
    # taken in turn, so that every class is heard through every recorder
    recorder = _RECORDERS[(class_index + recording_index) % len(_RECORDERS)]
    duration_seconds, n_classes = rng.uniform(*DURATION_RANGE_SECONDS), len(DEFAULT_CLASS_NAMES)

    def synthesise(index):
        return synthesise_recording(DEFAULT_CLASS_NAMES[index % n_classes], duration_seconds=duration_seconds,
                                    sample_rate=recorder.sample_rate, rng=rng)

    sound = synthesise(class_index)
    if rng.random() < BACKGROUND_PROBABILITY:
        level = 10 ** (rng.uniform(*BACKGROUND_DB_RANGE) / 20)
        sound = sound + level * synthesise(class_index + rng.integers(1, n_classes))
    # one recorder is in one place at a time: the class index keeps its file names apart
    seconds = n_classes * int(rng.integers(NIGHT_SECONDS // n_classes)) + class_index
    started = FIRST_NIGHT + datetime.timedelta(days=recording_index, seconds=seconds)
    path = folder / f"{recorder.name}_{started:%Y%m%d_%H%M%S}{recorder.extension}"
    _write_audio(path, _record(sound, recorder, rng), sample_rate=recorder.sample_rate)
    return path


def write_demo_data(output_dir: Path | str, *, n_recordings_per_class: int, random_state: int) -> list[Path]:
    """Write a synthesised data set, one folder per class.

    Parameters
    ----------
    output_dir : Path or str
        New or empty folder; gets ``<class>/<recorder>_<YYYYMMDD>_<HHMMSS>.<extension>``.
    n_recordings_per_class : int
        At least 1; 4 or more bring every recorder into every class.
    random_state : int
        At least 0; the same value writes the same recordings.

    Returns
    -------
    list[Path]
        The files, in order of class and recording.

    Raises
    ------
    ConfigError
        If the folder holds something or a number is out of range.
    """
    output_dir = Path(output_dir)
    if n_recordings_per_class < 1:
        raise ConfigError(f"recordings_per_class must be at least 1, got {n_recordings_per_class}")
    if random_state < 0:
        raise ConfigError(f"random_state must not be negative, got {random_state}")
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ConfigError(f"output_dir must be a new or empty folder, {output_dir} is not; remove it or choose another")
    paths = []
    for class_index, class_name in enumerate(DEFAULT_CLASS_NAMES):
        folder = output_dir / class_name
        folder.mkdir(parents=True)
        paths += [_write_recording(folder, class_index, i, random_state=random_state)
                  for i in range(n_recordings_per_class)]
    return paths
