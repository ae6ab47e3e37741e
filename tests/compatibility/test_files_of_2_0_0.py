"""What NightScan 2.0.0 wrote is still read, and its stopped runs still go on; README.md tells of the files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from models.efficientnet_config import FrontendConfig
from tests.compatibility.recordings import CLASS_PITCHES_HZ, write_recordings
from tests.conftest import PROJECT
from utils.storage.checkpoints import load_model
from utils.storage.manifest import SPLITS, read_manifest

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "efficientnet_best.pth"
# the order in which labels count; the alphabet would put amphibian_call first
CLASSES = ("bird_song", "insect_sound", "amphibian_call")
FRONTEND = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=8, f_max=4000.0, segment_duration_ms=250)
FRONTEND_FLAGS = ("--sample_rate", "8000", "--n_fft", "256", "--hop_length", "128", "--n_mels", "8", "--f_max", "4000",
                  "--segment_duration", "250")
N_RECORDINGS = 9
# float32 sums in another order (one thread, no oneDNN, float64) move these logits by 0.00005; batch norms with
# another epsilon move them by more than 10
LOGIT_TOLERANCE = 1e-3
PROBABILITY_TOLERANCE = 1e-3


def run_script(name: str, *arguments: str, cwd: Path) -> str:
    """Run a command of today in ``cwd``; return what it says on stderr."""
    done = subprocess.run([sys.executable, str(PROJECT / "scripts" / f"{name}.py"), *arguments], cwd=cwd,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def log_mels() -> np.ndarray:
    """The spectrograms, float32 ``(4, n_mels, n_frames)`` in dB, that the kept logits belong to."""
    values = np.random.default_rng(0).uniform(-80, 0, (4, 1, FRONTEND.n_mels, FRONTEND.n_frames))
    return values[:, 0].astype(np.float32)


def test_checkpoint_tells_of_its_model():
    description = load_model(CHECKPOINT).description
    assert description.classes.names == CLASSES
    assert description.frontend == FRONTEND
    assert description.calibration.temperature == 1.5
    assert description.config.model_name == "efficientnet-b0"
    assert description.config.threshold("insect_sound") == 0.65
    assert description.metadata["best_epoch"] == 2
    assert description.metadata["recordings"] == ["0123456789abcdef"]


def test_checkpoint_gives_the_same_logits_and_probabilities(log_mels):
    model, said = load_model(CHECKPOINT), json.loads((HERE / "said.json").read_text(encoding="utf-8"))
    with torch.inference_mode():
        logits = model.network(torch.from_numpy(log_mels)[:, None]).numpy()
    np.testing.assert_allclose(logits, said["logits"], rtol=0, atol=LOGIT_TOLERANCE)
    np.testing.assert_allclose(model.description.calibration.probabilities(logits), said["probabilities"], rtol=0,
                               atol=PROBABILITY_TOLERANCE)


@pytest.mark.parametrize("side", SPLITS)
def test_manifest_has_the_same_labels_classes_and_front_end(side):
    manifest = read_manifest(HERE / "dataset" / f"{side}.csv")
    assert manifest.classes.names == CLASSES
    assert manifest.frontend == FRONTEND
    assert manifest.labels().tolist() == [0, 0, 1, 1, 2, 2]
    assert manifest.rows["class_name"].tolist() == [CLASSES[label] for label in manifest.labels()]
    assert set(manifest.rows["split"]) == {side}
    for row in range(len(manifest.rows)):
        assert np.load(manifest.spectrogram_path(row)).shape == (FRONTEND.n_mels, FRONTEND.n_frames)


def test_preprocessing_does_all_again_and_leaves_every_recording_on_its_side(tmp_path):
    assert len(write_recordings(tmp_path / "recordings")) == N_RECORDINGS
    shutil.copytree(HERE / "dataset", tmp_path / "dataset")
    said = run_script("preprocess_enhanced", "--input_dir", "recordings", "--output_dir", "dataset", *FRONTEND_FLAGS,
                      cwd=tmp_path)
    assert "every recording is done again: an earlier version prepared dataset" in said
    columns = ["path", "label", "recording_id", "split"]
    for side in SPLITS:
        before, after = (pd.read_csv(folder / "dataset" / f"{side}.csv")[columns] for folder in (HERE, tmp_path))
        pd.testing.assert_frame_equal(after, before)


def test_prediction_gives_the_records_that_the_journal_of_2_0_0_holds(tmp_path):
    """That journal held records instead of scores, so its recordings are scored again; it is left where it is."""
    write_recordings(tmp_path)
    folder = tmp_path / "bird_song"
    for kept_file in (HERE / "results.partial.jsonl", CHECKPOINT):
        shutil.copy(kept_file, folder)
    said = run_script("predict_efficientnet", "--model_path", CHECKPOINT.name, "--input", "night_0.wav", "night_1.wav",
                      "night_2.wav", "--output", "results.json", "--device", "cpu", cwd=folder)
    assert "Traceback" not in said and (folder / "results.partial.jsonl").exists()
    journal = (HERE / "results.partial.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [record for line in journal for record in json.loads(line)["result"]["records"]]
    found = json.loads((folder / "results.json").read_text(encoding="utf-8"))["predictions"]
    assert [record["file_path"] for record in found] == ["night_0.wav", "night_1.wav", "night_2.wav"]
    for old, new in zip(kept, found, strict=False):
        assert set(old) <= set(new)
        told = {name: value for name, value in old.items() if name not in ("processing_time", "top_confidence")}
        assert {name: new[name] for name in told} == told
        assert new["top_confidence"] == pytest.approx(old["top_confidence"], abs=PROBABILITY_TOLERANCE)


def test_the_recordings_are_those_the_files_were_made_of(tmp_path):
    made = {path.relative_to(tmp_path).as_posix(): path.stat().st_size for path in write_recordings(tmp_path)}
    assert set(made) == set(pd.read_csv(HERE / "dataset" / "files.csv")["path"])
    assert {name.split("/")[0] for name in made} == set(CLASS_PITCHES_HZ)
