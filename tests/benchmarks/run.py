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
from models.data_augmentation import AudioAugmentationPipeline
from models.efficientnet import build_model
from models.efficientnet_config import EfficientNetConfig, FrontendConfig
from models.waveform_augmentation import pitch_shift, time_stretch
from tests.conftest import DATA
from tests.models.augmented_calls import distance, warbling_call
from utils.audio.recordings import load_audio
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


def bench_augmentation() -> None:
    """Compare log-mels of stretched, shifted and fully augmented windows with those made by way of a waveform."""
    config = FrontendConfig()
    frontend, rate, ratio = LogMelFrontend(config), config.sample_rate, 2 ** (2 / 12)
    _bench_vocoder("stretched log-mel of 8 s", lambda clip: frontend.mel_power(clip, rate=1.18),
                   lambda clip: time_stretch(clip, rate=1.18), truth=warbling_call(config, rate=1.18))
    _bench_vocoder("shifted log-mel of 8 s", lambda clip: frontend.mel_power(clip, frequency_ratio=ratio),
                   lambda clip: pitch_shift(clip, n_semitones=2.0, sample_rate=rate),
                   truth=warbling_call(config, frequency_ratio=ratio))

    pipeline, call, keys = AudioAugmentationPipeline(), warbling_call(config), range(20)
    compare("20 augmented log-mels of 8 s", lambda: [
        pipeline.augmented_log_mel(call, frontend=frontend, rng=np.random.default_rng(key), background=call)
        for key in keys], lambda: [frontend.log_mel(pipeline.augment_waveform(
            call, sample_rate=rate, rng=np.random.default_rng(key), background=call)) for key in keys],
        against="librosa, the same draws")


def _bench_vocoder(name: str, mel_power: Callable[[np.ndarray], np.ndarray],
                   vocoder: Callable[[np.ndarray], np.ndarray], *, truth: np.ndarray) -> None:
    """Time both and say how far they are from the truth and, on real recordings where they are here, apart."""
    frontend = LogMelFrontend(FrontendConfig())
    call, expected = warbling_call(frontend.config), frontend.log_mel(truth)

    def ours(clip: np.ndarray) -> np.ndarray:
        return frontend.decibels(mel_power(clip))

    def with_librosa(clip: np.ndarray) -> np.ndarray:
        return frontend.log_mel(vocoder(clip))

    compare(name, lambda: ours(call), lambda: with_librosa(call), against="librosa")
    print(f"{'  from what it should be':34} {distance(ours(call), expected).median:9.2f} dB   "
          f"{distance(with_librosa(call), expected).median:9.2f} dB")
    paths = sorted((DATA / "wildlife").glob("*/*.ogg"))[::40]
    clips = [frontend.fit_length(load_audio(path, sample_rate=frontend.config.sample_rate)) for path in paths]
    if clips:
        apart = np.mean([distance(ours(clip), with_librosa(clip)) for clip in clips], axis=0)
        print(f"  on {len(clips)} recordings {apart[0]:.2f} dB apart; librosa {apart[1]:.2f} dB quieter,"
              f" {apart[2]:.2f} dB apart beside that", flush=True)


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
    bench_augmentation()
    bench_training()
    bench_prediction()


if __name__ == "__main__":
    main()
