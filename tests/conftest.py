"""Fixtures that several test modules share."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, settings

from models.efficientnet_config import EfficientNetConfig, FrontendConfig
from utils.preparation.extraction import ExtractedRecording, PreprocessSettings
from utils.preparation.run import preprocess
from utils.preparation.sources import sources_from_folders
from utils.running.parallel import ThisProcess
from utils.training.data import TrainingData, read_training_data
from utils.training.run import train_model

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT.parent / "shared" / "data"

TINY_RATE = 8000
TINY_FRONTEND = FrontendConfig(sample_rate=TINY_RATE, n_fft=512, hop_length=256, n_mels=32, f_max=4000.0,
                               segment_duration_ms=1000)
# the order in which labels count; the alphabet would put amphibian_call first
TINY_CLASSES = ("bird_song", "mammal_call", "insect_sound", "amphibian_call")
_RECORDINGS_PER_CLASS = 6

# drawn examples are the same in every run, and none of them has a time limit: a busy machine changes no result. Others,
# and more, are drawn by pytest --hypothesis-profile explore
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("explore", deadline=None, max_examples=1500, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


class TinyDataset(NamedTuple):
    """A folder of synthetic recordings and what preprocessing made of it; read-only."""

    audio_dir: Path
    output_dir: Path
    results: Sequence[ExtractedRecording]

    def training_data(self) -> TrainingData:
        return read_training_data(self.output_dir / "train.csv", self.output_dir / "val.csv", allow_leakage=False)


class TinyModel(NamedTuple):
    """A model folder that training wrote; read-only."""

    model_dir: Path
    best: Path
    config: EfficientNetConfig
    scores: dict
    files: frozenset[str]


def tiny_sound(class_name: str, *, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """Return float32 samples of a sound that its class alone makes, with a little noise of its own."""
    time = np.arange(round(seconds * TINY_RATE)) / TINY_RATE
    noise = rng.standard_normal(len(time))
    pitch = rng.uniform(0.95, 1.05)
    clean = {
        "bird_song": np.sin(2 * np.pi * 3000 * pitch * time),
        "mammal_call": np.sign(np.sin(2 * np.pi * 250 * pitch * time)),
        "insect_sound": noise / 3,
        "amphibian_call": np.sin(2 * np.pi * 1000 * pitch * time) * (np.sin(2 * np.pi * 8 * time) > 0),
    }[class_name]
    return (0.3 * clean + 0.003 * noise).astype(np.float32)


def write_audio(path: Path, samples: np.ndarray) -> Path:
    """Write mono samples at the tiny rate; the extension chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, TINY_RATE)
    return path


def preprocess_settings(input_dir: Path, output_dir: Path, **changes) -> PreprocessSettings:
    """Return small settings, some of them changed."""
    values = {"frontend": TINY_FRONTEND, "segment_overlap_ms": 0, "segment_selection": "all",
              "augmentation_factor": 0, "balance_classes": False, "max_balance_ratio": 10.0,
              "ratios": (0.5, 0.25, 0.25), "random_state": 42, **changes}
    return PreprocessSettings(input_dir=input_dir, output_dir=output_dir, **values)


def tiny_config(**changes) -> EfficientNetConfig:
    """Return a config that trains in seconds, in float32 so that a CPU's instructions do not matter."""
    values = {"model_name": "efficientnet-b0", "batch_size": 8, "epochs": 4, "learning_rate": 1e-3,
              "warmup_epochs": 0, "batch_norm_momentum": 0.5, "mixed_precision": False, "use_augmentation": False,
              "dropout_rate": 0.0, "drop_connect_rate": 0.0, "label_smoothing": 0.0,
              "initial_weights": "none", **changes}
    return EfficientNetConfig(**values)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20240501)


@pytest.fixture
def real_data() -> Path:
    if not DATA.is_dir():
        pytest.skip("the real recordings (shared/data beside the project) are not here")
    return DATA


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> TinyDataset:
    root, rng = tmp_path_factory.mktemp("tiny_dataset"), np.random.default_rng(7)
    audio_dir, output_dir = root / "audio", root / "spectrograms"
    for class_name in TINY_CLASSES:
        for number in range(_RECORDINGS_PER_CLASS):
            seconds = 1.0 + 0.4 * number
            write_audio(audio_dir / class_name / f"night{number}.wav",
                        tiny_sound(class_name, seconds=seconds, rng=rng))
    results = preprocess(preprocess_settings(audio_dir, output_dir),
                         sources_from_folders(audio_dir, group_by="recording"), executor=ThisProcess(),
                         overwrite=False)
    return TinyDataset(audio_dir, output_dir, results)


@pytest.fixture(scope="session")
def tiny_model(tiny_dataset, tmp_path_factory) -> TinyModel:
    # this rate and length give logits of order 10: far larger ones magnify rounding into different probabilities
    model_dir, config = tmp_path_factory.mktemp("tiny_model"), tiny_config(epochs=6, learning_rate=3e-3)
    scores = train_model(tiny_dataset.training_data(), config, model_dir=model_dir, device=torch.device("cpu"),
                         n_workers=0)
    # as training left it: prediction keeps its converted network beside the model
    files = frozenset(path.name for path in model_dir.iterdir() if not path.name.startswith("."))
    return TinyModel(model_dir, model_dir / "efficientnet_best.pth", config, scores, files)
