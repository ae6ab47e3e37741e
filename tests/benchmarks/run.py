"""Measure what must stay fast, each against a plain baseline in the same run: ``make bench``.

Ratios are medians of alternating runs, so that a machine that speeds up or slows down affects both sides.
Nothing is asserted: these are measurements, not tests.
"""

import time
from collections.abc import Callable

import librosa
import numpy as np
import soxr
import torch
import torchaudio
from efficientnet_pytorch import EfficientNet
from torch import nn
from torch.nn import functional

from models.audio_frontend import LogMelFrontend
from models.efficientnet import build_model
from models.efficientnet_config import EfficientNetConfig, FrontendConfig
from utils.running.devices import autocast, autocast_dtype
from utils.storage.spectrograms import ArrayDataset
from utils.training_utils import TrainingTask, train_epoch

_RUNS = 7
_WINDOW = (128, 216)  # mel bands, frames of 5 s
_BATCH, _N_CLASSES = 16, 6


def compare(name: str, ours: Callable[[], object], baseline: Callable[[], object], *, against: str) -> None:
    """Time both in turn and print medians and the median of the pairwise ratios."""
    ours(), baseline()
    pairs = [(_seconds(ours), _seconds(baseline)) for _ in range(_RUNS)]
    own, other = np.median(pairs, axis=0) * 1000
    ratio = np.median([a / b for a, b in pairs])
    print(f"{name:34} {own:9.1f} ms   {other:9.1f} ms   x{ratio:.2f}   against {against}", flush=True)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def bench_frontend() -> None:
    """Compare the log-mel of a minute with librosa's."""
    config = FrontendConfig(segment_duration_ms=60_000)
    frontend, rng = LogMelFrontend(config), np.random.default_rng(0)
    waveform = rng.normal(0, 0.1, config.segment_samples).astype(np.float32)

    def with_librosa() -> np.ndarray:
        power = librosa.feature.melspectrogram(
            y=waveform, sr=config.sample_rate, n_fft=config.n_fft, hop_length=config.hop_length, n_mels=config.n_mels,
            fmin=config.f_min, fmax=config.f_max)
        return librosa.power_to_db(power, ref=1.0, top_db=config.top_db)

    compare("log-mel of 60 s", lambda: frontend.log_mel(waveform), with_librosa, against="librosa")


def bench_resampling() -> None:
    """Compare soxr with torchaudio's resampler on a minute at 48 kHz."""
    waveform = np.random.default_rng(0).normal(0, 0.1, 60 * 48_000).astype(np.float32)
    tensor = torch.from_numpy(waveform)
    compare("resampling 60 s, 48 to 22.05 kHz", lambda: soxr.resample(waveform, 48_000, 22_050),
            lambda: torchaudio.functional.resample(tensor, 48_000, 22_050), against="torchaudio")


def bench_training() -> None:
    """Compare a training step of B0, loading to schedule, with a plain loop around the library's network."""
    config = EfficientNetConfig(model_name="efficientnet-b0", batch_size=_BATCH, epochs=1000, use_augmentation=False,
                                dropout_rate=0.2, drop_connect_rate=0.2)
    device, labels = torch.device("cpu"), np.arange(_BATCH) % _N_CLASSES
    windows = np.random.default_rng(0).normal(size=(_BATCH, *_WINDOW)).astype(np.float32)
    data = ArrayDataset(windows, labels)
    task = TrainingTask(model=build_model(config, _N_CLASSES), config=config, train=data, val=data,
                        n_classes=_N_CLASSES, device=device)
    optimisation = task.optimisation()

    network = _library_network().train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    dtype = autocast_dtype(device, mixed_precision=config.mixed_precision)
    inputs, targets = torch.from_numpy(windows)[:, None], torch.from_numpy(labels)

    def plain_step() -> None:
        with autocast(device, dtype):
            logits = network(inputs)
        functional.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing).backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clipping)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)

    compare(f"B0 training step, {_BATCH} windows, 5 s", lambda: train_epoch(task, optimisation, epoch=1), plain_step,
            against=f"efficientnet-pytorch, {str(dtype or torch.float32).removeprefix('torch.')}")


def bench_prediction() -> None:
    """Compare a prediction of B0 with the library's network as it comes."""
    ours, library = build_model(EfficientNetConfig(model_name="efficientnet-b0"), _N_CLASSES), _library_network()
    batch = torch.randn(_BATCH, 1, *_WINDOW)

    def predict(network: nn.Module) -> torch.Tensor:
        network.eval()
        with torch.inference_mode():
            return network(batch)

    compare(f"B0 prediction, {_BATCH} windows, 5 s", lambda: predict(ours), lambda: predict(library),
            against="efficientnet-pytorch, float32")


def _library_network() -> EfficientNet:
    return EfficientNet.from_name("efficientnet-b0", in_channels=1, num_classes=_N_CLASSES, image_size=None)


def main() -> None:
    """Run every comparison."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {_RUNS} alternating runs\n"
          f"{'':34} {'ours':>12}   {'baseline':>12}   ratio")
    bench_frontend()
    bench_resampling()
    bench_training()
    bench_prediction()


if __name__ == "__main__":
    main()
