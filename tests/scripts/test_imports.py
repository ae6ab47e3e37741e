"""What a command must not load: each of these libraries takes from a quarter of a second to seconds to import."""

import subprocess
import sys

import pytest

from tests.conftest import PROJECT, TINY_CLASSES, tiny_sound, write_audio

OF_TRAINING = ("torchvision", "sklearn", "utils.training", "utils.training_utils")
OF_TABLES_AND_PICTURES = ("pandas", "matplotlib", "seaborn")
PROBE = """
import sys
sys.path.insert(0, {project!r})
{code}
loaded = [name for name in {unwanted!r} if name in sys.modules]
assert not loaded, loaded
"""


def check(code, *arguments, unwanted):
    """Run code in a fresh process and look at what it has loaded in the end."""
    probe = PROBE.format(project=str(PROJECT), code=code, unwanted=unwanted)
    done = subprocess.run([sys.executable, "-c", probe, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def audio_dir(tmp_path, rng):
    for class_name in TINY_CLASSES[:2]:
        for number in range(4):
            write_audio(tmp_path / "audio" / class_name / f"{number}.wav",
                        tiny_sound(class_name, seconds=1, rng=rng))
    return tmp_path / "audio"


def test_a_prediction_loads_nothing_of_training_tables_or_pictures(audio_dir, tiny_model):
    check("from scripts.predict_efficientnet import EfficientNetPredictor\n"
          "from utils.prediction.run import find_inputs, predict_to_results\n"
          "from pathlib import Path\n"
          "predictor = EfficientNetPredictor(sys.argv[1], device='cpu')\n"
          "results = predict_to_results(predictor, find_inputs([Path(sys.argv[2])]))\n"
          "assert results['summary']['ok'] == 1", tiny_model.best, audio_dir / TINY_CLASSES[0] / "0.wav",
          unwanted=OF_TRAINING + OF_TABLES_AND_PICTURES)


def test_the_prediction_command_loads_no_more(audio_dir, tiny_model, tmp_path):
    check("from scripts import predict_efficientnet\n"
          "assert predict_efficientnet.main(sys.argv[1:]) == 0", "--model_path", tiny_model.best, "--input", audio_dir,
          "--device", "cpu", "--workers", 1, "--output", tmp_path / "results.json", "--formats", "json,csv",
          unwanted=OF_TRAINING + OF_TABLES_AND_PICTURES)


def test_an_evaluation_loads_nothing_of_training(tiny_model):
    check("import utils.evaluation.run\n"
          "from utils.prediction.predictor import EfficientNetPredictor\n"
          "EfficientNetPredictor(sys.argv[1], device='cpu')", tiny_model.best, unwanted=OF_TRAINING)


def test_preprocessing_without_augmentation_loads_no_torch(audio_dir, tmp_path):
    check("from scripts import preprocess_enhanced\n"
          "assert preprocess_enhanced.main(sys.argv[1:]) == 0", "--input_dir", audio_dir, "--output_dir",
          tmp_path / "out", "--segment_duration", 1000, "--workers", 1, unwanted=("torch", "torchvision", "torchaudio"))
    assert (tmp_path / "out" / "dataset.json").exists()
