"""Measure prediction at field scale: two hours of recordings, the whole command against a plain loop and its floor.

    python -m tests.benchmarks.field [--minutes 120] [--backend auto] [--folder FOLDER]

The plain way is what a person writes first: ``librosa.load``, ``melspectrogram``, eager PyTorch, window by window. The
floor is decoding, resampling, front end and network, each alone on all cores, added up: nothing can be faster without
making one of them faster. Ratios are of one run; nothing is asserted.
"""

import argparse
import functools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import librosa
import numpy as np
import soundfile
import soxr
import torch

from models.audio_frontend import LogMelFrontend
from models.calibration import Calibration
from models.classes import ClassList
from models.efficientnet import build_model
from models.efficientnet_config import DEFAULT_CLASS_NAMES, EfficientNetConfig, FrontendConfig
from utils.networks.opening import plan_backend
from utils.running.parallel import default_workers
from utils.storage.checkpoints import load_model, save_model

PROJECT = Path(__file__).resolve().parents[2]
RATE, FILE_MINUTES, SEGMENT_MS = 44_100, 5, 5000
_RUNS = 3


def main() -> None:
    """Write recordings and a model, time everything, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=120, help="of audio")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--folder", type=Path, help="where recordings are kept (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        paths = make_recordings(folder / "recordings", options.minutes // FILE_MINUTES)
        model = make_model(folder / "model.pth")
        measure(paths, model, folder, backend=options.backend)


def measure(paths: Sequence[Path], model: Path, folder: Path, *, backend: str) -> None:
    """Print what a command takes beside the plain loop and the floor."""
    command = functools.partial(run_command, model, folder, backend=backend)
    short = folder / "second.wav"
    soundfile.write(short, soundfile.read(paths[0], frames=RATE)[0], RATE)
    command([short])  # converts the network
    start_up = np.median([command([short]) for _ in range(_RUNS)])
    whole = np.median([command(paths) for _ in range(_RUNS)])
    parts = floor(paths, model, backend)
    plain = timed(lambda: plain_way(paths[:max(1, len(paths) // 6)], model)) * len(paths) / max(1, len(paths) // 6)
    audio = len(paths) * FILE_MINUTES * 60
    total = sum(parts.values())
    print(f"{audio / 3600:.1f} h at {RATE} Hz, B0, {SEGMENT_MS // 1000} s windows, {default_workers()} cores,"
          f" {plan_backend(model, device='cpu', backend=backend).library}")
    print(f"start-up                     {start_up:8.2f} s")
    print(f"whole command                {whole:8.2f} s   {audio / whole:6.0f} times real time")
    print(f"plain way                    {plain:8.2f} s   the command is {plain / whole:.1f} times faster")
    print("floor: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items()))
    print(f"floor                        {total:8.2f} s   the command without start-up reaches"
          f" {total / (whole - start_up):.2f} of it")


def make_recordings(folder: Path, n_files: int) -> list[Path]:
    """Write recordings of noise with calls in it, 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"night_{number:03}.wav" for number in range(n_files)]
    n_samples = FILE_MINUTES * 60 * RATE
    seconds = np.arange(n_samples, dtype=np.float32) / RATE
    for number, path in enumerate(paths):
        if not path.exists():
            noise = np.random.default_rng(number).normal(0, 0.02, n_samples).astype(np.float32)
            calls = 0.2 * np.sin(2 * np.pi * (2000 + 100 * number) * seconds) * (seconds % 7 < 1)
            soundfile.write(path, noise + calls, RATE, subtype="PCM_16")
    return paths


def make_model(path: Path, *, window_ms: int = SEGMENT_MS) -> Path:
    """Write a B0 with drawn weights, the same each time: what they are does not change its speed."""
    if path.exists():
        return path
    config = EfficientNetConfig(model_name="efficientnet-b0", initial_weights="none",
                                frontend=FrontendConfig(segment_duration_ms=window_ms))
    classes = ClassList(DEFAULT_CLASS_NAMES)
    save_model(path, build_model(config, len(classes)).state_dict(), config=config, classes=classes,
               calibration=Calibration(), metadata={})
    return path


def run_command(model: Path, folder: Path, paths: Sequence[Path], *, backend: str) -> float:
    """Return the seconds of the whole command."""
    listed = folder / "list.txt"
    listed.write_text("\n".join(map(str, paths)), encoding="utf-8")
    arguments = [sys.executable, PROJECT / "scripts" / "predict_efficientnet.py", "--model_path", model, "--input",
                 listed, "--output", folder / "results.json", "--segment_mode", "--device", "cpu", "--backend", backend,
                 "--overwrite", "--quiet"]
    seconds = timed(lambda: subprocess.run(list(map(str, arguments)), check=True, stdout=subprocess.DEVNULL))
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["summary"]["ok"] == len(paths)
    return seconds


def plain_way(paths: Sequence[Path], model_path: Path) -> None:
    """Score recordings as a person would who writes it in ten lines."""
    model = load_model(model_path)
    frontend, network = model.description.frontend, model.network
    for path in paths:
        waveform, _ = librosa.load(path, sr=frontend.sample_rate)
        for first in range(0, len(waveform) - frontend.segment_samples + 1, frontend.segment_samples):
            power = librosa.feature.melspectrogram(
                y=waveform[first:first + frontend.segment_samples], sr=frontend.sample_rate, n_fft=frontend.n_fft,
                hop_length=frontend.hop_length, n_mels=frontend.n_mels, fmin=frontend.f_min, fmax=frontend.f_max)
            log_mel = librosa.power_to_db(power, ref=1.0, top_db=frontend.top_db)
            with torch.inference_mode():
                network(torch.from_numpy(log_mel)[None, None])


def floor(paths: Sequence[Path], model: Path, backend: str) -> dict[str, float]:
    """Return the seconds that each step takes alone, on all cores."""
    plan = plan_backend(model, device="cpu", backend=backend)
    steps = {"decode": decode, "resample": resample, "front end": compute_log_mels,
             "network": functools.partial(score, plan)}
    found = {}
    for name, step in steps.items():
        with multiprocessing.get_context("spawn").Pool(default_workers()) as pool:
            shares = [len(paths)] * default_workers()
            pool.map(functools.partial(_warm, step, paths[0]), shares, chunksize=1)
            # what one file takes, times the files of a core: reading is cached, arrays are made beforehand
            found[name] = float(np.median(pool.map(functools.partial(_repeat, step, paths[0]), shares, chunksize=1)))
            found[name] *= len(paths) / default_workers()
    return found


def _warm(step: Callable, path: Path, _: int) -> None:
    step(path)


def _repeat(step: Callable, path: Path, n_files: int) -> float:
    """Return the seconds of a file, the mean over as many as a core would have, while the others do the same."""
    return float(np.mean([step(path) for _ in range(max(1, n_files // default_workers()))]))


def decode(path: Path) -> float:
    """Return the seconds of decoding a file."""
    return timed(lambda: soundfile.read(path, dtype="float32"))


def resample(path: Path) -> float:
    """Return the seconds of resampling it."""
    samples, _ = soundfile.read(path, dtype="float32")
    return timed(lambda: soxr.resample(samples, RATE, FrontendConfig().sample_rate))


def compute_log_mels(path: Path) -> float:
    """Return the seconds of its log-mels."""
    config = FrontendConfig(segment_duration_ms=SEGMENT_MS)
    frontend, windows = LogMelFrontend(config), FILE_MINUTES * 60_000 // SEGMENT_MS
    waveform = np.random.default_rng(0).normal(0, 0.1, config.segment_samples).astype(np.float32)
    return timed(lambda: [frontend.log_mel(waveform) for _ in range(windows)])


@functools.cache
def _opened(plan):
    return plan.open(n_threads=1)


def score(plan, path: Path) -> float:
    """Return the seconds of the network on its windows."""
    backend, config = _opened(plan), FrontendConfig(segment_duration_ms=SEGMENT_MS)
    log_mels = np.random.default_rng(0).uniform(-80, 0, (backend.batch_size, config.n_mels, config.n_frames))
    batch, windows = log_mels.astype(np.float32), FILE_MINUTES * 60_000 // SEGMENT_MS
    return timed(lambda: [backend.run(batch) for _ in range(windows // backend.batch_size)])


def timed(call: Callable[[], object]) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
