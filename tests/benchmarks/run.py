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

from models.audio_frontend import LogMelFrontend
from models.efficientnet import build_model
from models.efficientnet_config import EfficientNetConfig, FrontendConfig
from utils.running.devices import autocast, autocast_dtype

_RUNS = 7
_CLIP = (1, 128, 216)  # one channel, mel bands, frames of 5 s


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


def bench_network() -> None:
    """Compare a training step and a prediction of B0 with the library's network as it comes."""
    config = EfficientNetConfig(model_name="efficientnet-b0")
    ours = build_model(config, 6)
    library = EfficientNet.from_name("efficientnet-b0", in_channels=1, num_classes=6, image_size=None)
    device = torch.device("cpu")
    dtype = autocast_dtype(device, mixed_precision=True)
    batch = torch.randn(16, *_CLIP)

    def step(network: nn.Module, precision: torch.dtype | None) -> None:
        network.train()
        with autocast(device, precision):
            logits = network(batch)
        logits.float().logsumexp(dim=1).sum().backward()

    def predict(network: nn.Module) -> torch.Tensor:
        network.eval()
        with torch.inference_mode():
            return network(batch)

    compare("B0 training step, 16 clips of 5 s", lambda: step(ours, dtype), lambda: step(library, None),
            against="efficientnet-pytorch, float32")
    compare("B0 prediction, 16 clips of 5 s", lambda: predict(ours), lambda: predict(library),
            against="efficientnet-pytorch, float32")


def main() -> None:
    """Run every comparison."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {_RUNS} alternating runs\n"
          f"{'':34} {'ours':>12}   {'baseline':>12}   ratio")
    bench_frontend()
    bench_resampling()
    bench_network()


if __name__ == "__main__":
    main()
