"""Make the files of this folder again with NightScan 2.0.0: ``make_files.py CHECKOUT FOLDER`` (see README.md)."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from recordings import CLASS_PITCHES_HZ, write_recordings

# modules of 2.0.0, which stand elsewhere today
from models.efficientnet import SpectrogramClassifier, build_model
from models.efficientnet_config import EfficientNetConfig, FrontendConfig
from utils.checkpoints import load_model, save_model
from utils.inference import EfficientNetPredictor
from utils.manifest import ClassList
from utils.prediction import identify, predict_to_results

FRONTEND = FrontendConfig(sample_rate=8000, n_fft=256, hop_length=128, n_mels=8, f_max=4000.0, segment_duration_ms=250)
FRONTEND_FLAGS = ("--sample_rate", "8000", "--n_fft", "256", "--hop_length", "128", "--n_mels", "8", "--f_max", "4000",
                  "--segment_duration", "250")
_POOL_SIZE = 10_500
_STRIDES = (7, 3, 2, 1)  # of the views into the pool, which is just long enough for those of EfficientNet-B0


def make_dataset(checkout: Path, folder: Path) -> None:
    """Preprocess the recordings with the command of 2.0.0."""
    write_recordings(folder / "recordings")
    script = checkout / "scripts" / "preprocess_enhanced.py"
    subprocess.run([sys.executable, str(script), "--input_dir", "recordings", "--output_dir", "dataset",
                    *FRONTEND_FLAGS], cwd=folder, check=True)
    (folder / "dataset" / "overview.png").unlink()


def make_checkpoint(path: Path) -> None:
    """Write an EfficientNet-B0 for three classes, and beside it what it says of fixed spectrograms."""
    classes = ClassList.from_labels(CLASS_PITCHES_HZ)
    config = EfficientNetConfig(model_name="efficientnet-b0", frontend=FRONTEND, dropout_rate=0.0,
                                drop_connect_rate=0.0)
    shape = (4, 1, FRONTEND.n_mels, FRONTEND.n_frames)
    log_mels = torch.from_numpy(np.random.default_rng(0).uniform(-80, 0, shape).astype(np.float32))
    metadata = {"epoch": 3, "best_epoch": 2, "validation": {"accuracy": 0.5, "macro_f1": 0.5}, "allowed_leakage": [],
                "torch": str(torch.__version__), "recordings": ["0123456789abcdef"]}
    save_model(path, small_weights(build_model(config, len(classes)), log_mels), config=config, classes=classes,
               temperature=1.5, metadata=metadata)
    bundle = load_model(path)
    with torch.inference_mode():
        logits = bundle.model(log_mels).double()
    said = {"logits": logits.numpy().round(6).tolist(),
            "probabilities": (logits / bundle.temperature).softmax(dim=1).numpy().round(6).tolist()}
    path.with_name("said.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def small_weights(model: SpectrogramClassifier, log_mels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return weights that take little room in a file: all are views of one small storage.

    Batch norms have one mean and one variance each, those of ``log_mels``, so that the signal neither fades nor
    explodes on its way.
    """
    pool = torch.from_numpy(np.random.default_rng(1).normal(0, 0.01, _POOL_SIZE).astype(np.float32))
    norms = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    weights = {}
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(100)
        elif name.removesuffix(".weight") in norms:
            weights[name] = torch.ones(()).expand(value.shape)
        else:
            weights[name] = pool.as_strided(value.shape, _STRIDES[:value.ndim], storage_offset=len(weights))
    for norm in norms.values():
        norm.momentum = 1.0
    model.load_state_dict(weights)
    with torch.no_grad():
        model.train()(log_mels)
    return weights | {name: value.mean().clone().expand(value.shape) for name, value in model.state_dict().items()
                      if "running" in name}


def make_prediction_journal(checkpoint: Path, folder: Path) -> None:
    """Predict two recordings but do not write the results, as a run that is stopped, so that its journal is left."""
    os.chdir(folder)  # the names stand in the journal as they were given
    predict_to_results(EfficientNetPredictor(checkpoint, device="cpu"), [Path("night_0.wav"), Path("night_1.wav")],
                       run=identify(checkpoint, None), output=Path("results.json"), overwrite=False)


def main(checkout: Path, folder: Path) -> None:
    """Make everything in a new folder, then put beside this file what is kept."""
    folder.mkdir()
    make_dataset(checkout, folder)
    make_checkpoint(folder / "efficientnet_best.pth")
    make_prediction_journal(folder / "efficientnet_best.pth", folder / "recordings" / "bird_song")
    here = Path(__file__).resolve().parent
    shutil.copytree(folder / "dataset", here / "dataset")
    for name in ("efficientnet_best.pth", "said.json", "recordings/bird_song/results.partial.jsonl"):
        shutil.copy(folder / name, here)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
