"""Measure preparation: an hour of recordings against a plain loop and its floor, workers, memory, and many rows.

    python -m tests.benchmarks.preparing [--folder FOLDER] [--minutes 60] [--hours 24] [--rows 100000]

The plain way is what a person writes first: ``librosa.load(sr=...)``, ``melspectrogram``, ``power_to_db`` and
``np.save``, window by window, on one core as one worker has it. The floor is decoding, resampling and front end, each
alone on one core, added up. Ratios are of one run; nothing is asserted.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from models.audio_frontend import LogMelFrontend
from models.efficientnet_config import FrontendConfig
from tests.benchmarks.field import PROJECT
from tests.benchmarks.survey import sparse_recording, tree_pss
from utils.preparation.assignment import assign_sides

RATE, SEGMENT_MS = 48_000, 5000
_RUNS = 3
_EVERY_SECONDS = 0.25
_CLASSES = ("bird_song", "mammal_call")
# a worker is a core: libraries that take both would be compared with one that takes one
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PLAIN = """
import sys, pathlib, numpy as np, librosa
from models.efficientnet_config import FrontendConfig
config = FrontendConfig(segment_duration_ms=int(sys.argv[3]))
target = pathlib.Path(sys.argv[2])
target.mkdir(parents=True, exist_ok=True)
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.wav")):
    samples, _ = librosa.load(path, sr=config.sample_rate)
    for start in range(0, len(samples) - config.segment_samples + 1, config.segment_samples):
        mel = librosa.feature.melspectrogram(
            y=samples[start:start + config.segment_samples], sr=config.sample_rate, n_fft=config.n_fft,
            hop_length=config.hop_length, n_mels=config.n_mels, fmin=config.f_min, fmax=config.f_max)
        np.save(target / f"{path.stem}_{start}.npy", librosa.power_to_db(mel))
"""


def main() -> None:
    """Run everything and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=60, help="of audio")
    parser.add_argument("--hours", type=float, nargs="*", default=[1.0, 24.0], help="of the long recordings")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where recordings are kept (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        compare(make_recordings(folder / "hour", n_files=2, minutes=options.minutes / 2), folder)
        compare_workers(make_recordings(folder / "sixty", n_files=60, minutes=options.minutes / 60), folder)
        for hours in options.hours:
            measure_memory(folder, hours)
        split_rows(options.rows)


def compare(recordings: Path, folder: Path) -> None:
    """Print what the whole command takes on one worker beside the plain way and the floor."""
    fixed = fixed_cost(folder)
    times: dict[str, list[float]] = {"command": [], "plain": []}
    for _ in range(_RUNS):
        times["command"].append(timed_anew(prepare, recordings, folder / "hour_out"))
        times["plain"].append(timed_anew(plain_way, recordings, folder / "plain_out"))
    command, plain = (float(np.median(times[name])) for name in ("command", "plain"))
    parts = floor(recordings)
    print(f"prepare an hour at {RATE} Hz, one worker: {command:.2f} s, the plain way {plain:.2f} s: ratio"
          f" {plain / command:.2f} (of {_RUNS} alternating runs: command {_spread(times['command'])},"
          f" plain {_spread(times['plain'])})")
    print(f"prepare, fixed cost: {fixed:.2f} s")
    print("prepare, floor: " + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in parts.items())
          + f"; the command without its fixed cost takes {(command - fixed) / sum(parts.values()):.2f} times as long",
          flush=True)


def compare_workers(recordings: Path, folder: Path) -> None:
    """Print how much faster two workers are than one, beyond the fixed cost."""
    fixed = fixed_cost(folder)
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(_RUNS):
        for workers in times:
            times[workers].append(timed_anew(functools.partial(prepare, workers=workers), recordings,
                                             folder / "sixty_out"))
    one, two = (float(np.median(times[workers])) for workers in (1, 2))
    print(f"prepare sixty files: one worker {one:.2f} s, two {two:.2f} s: ratio beyond the fixed cost"
          f" {(one - fixed) / (two - fixed):.2f}", flush=True)


def fixed_cost(folder: Path) -> float:
    """Return the seconds that four recordings of a second take."""
    few = make_recordings(folder / "few", n_files=4, minutes=1 / 60)
    return float(np.median([timed_anew(prepare, few, folder / "few_out") for _ in range(_RUNS)]))


def measure_memory(folder: Path, hours: float) -> None:
    """Print the peak memory of a worker on a long recording, with and without labelled regions."""
    audio = folder / f"long_{hours:g}h"
    for class_name in _CLASSES:
        (audio / class_name).mkdir(parents=True, exist_ok=True)
    sparse_recording(audio / _CLASSES[0] / "long.wav", hours)
    write_noise(audio / _CLASSES[1] / "short.wav", seconds=30, seed=1)
    table = folder / f"long_{hours:g}h.csv"
    rows = [f"{_CLASSES[0]}/long.wav,{_CLASSES[0]},{600 * number},{600 * number + 300}"
            for number in range(int(hours * 6))]
    table.write_text("\n".join(["path,label,start,end", *rows, f"{_CLASSES[1]}/short.wav,{_CLASSES[1]},,"]) + "\n",
                     encoding="utf-8")
    for labels in ([], ["--labels_csv", table]):
        seconds, peak = peak_of_worker(command(audio, folder / "long_out", "--overwrite", *labels))
        print(f"prepare {hours:g} h at {RATE} Hz {'with regions' if labels else 'without regions'}: {seconds:.0f} s,"
              f" {hours * 3600 / seconds:.0f} times real time, peak of a worker {peak:.0f} MB", flush=True)


def split_rows(n_rows: int) -> None:
    """Print how long it takes to split very many recordings."""
    rng = np.random.default_rng(0)
    names = [f"r{number:06}" for number in range(n_rows)]
    seconds = {name: {f"class{rng.integers(100)}": float(rng.integers(5, 60))} for name in names}
    together = {name: f"site{rng.integers(n_rows // 10)}" for name in names}
    took = timed(lambda: assign_sides(seconds, together, ratios=(0.7, 0.15, 0.15), random_state=42, earlier={}))
    print(f"split {n_rows} rows: {took:.2f} s", flush=True)


def command(audio: Path, output: Path, *more: object) -> list[str]:
    """Return the command that prepares a folder."""
    return list(map(str, [sys.executable, PROJECT / "scripts" / "preprocess_enhanced.py", "--input_dir", audio,
                          "--output_dir", output, "--segment_duration", SEGMENT_MS, "--segment_selection", "all",
                          "--workers", 1, "--quiet", *more]))


def prepare(audio: Path, output: Path, *, workers: int = 1) -> None:
    """Run the whole command."""
    subprocess.run([*command(audio, output), "--workers", str(workers)], check=True, capture_output=True,
                   env=_ENVIRONMENT)


def plain_way(audio: Path, output: Path) -> None:
    """Run the plain loop in a process of its own, as a script is run."""
    subprocess.run([sys.executable, "-c", PLAIN, str(audio), str(output), str(SEGMENT_MS)], check=True, cwd=PROJECT,
                   env=_ENVIRONMENT)


def floor(recordings: Path) -> dict[str, float]:
    """Return the seconds of decoding, resampling and front end, each alone."""
    config = FrontendConfig(segment_duration_ms=SEGMENT_MS)
    frontend = LogMelFrontend(config)
    seconds = {"decode": 0.0, "resample": 0.0, "front end": 0.0}
    for path in sorted(recordings.rglob("*.wav")):
        started = time.perf_counter()
        samples = soundfile.read(path, dtype="float32")[0]
        decoded = time.perf_counter()
        resampled = soxr.resample(samples, RATE, config.sample_rate)
        ready = time.perf_counter()
        for start in range(0, len(resampled) - config.segment_samples + 1, config.segment_samples):
            frontend.log_mel(resampled[start:start + config.segment_samples])
        seconds["decode"] += decoded - started
        seconds["resample"] += ready - decoded
        seconds["front end"] += time.perf_counter() - ready
    return seconds


def peak_of_worker(arguments: Sequence[str]) -> tuple[float, float]:
    """Return the seconds of a command and the highest PSS of one of its workers, in MB."""
    started = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        for child in children(process.pid):
            peak = max(peak, tree_pss(child))
        time.sleep(_EVERY_SECONDS)
    assert process.returncode == 0
    return time.perf_counter() - started, peak


def children(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def make_recordings(folder: Path, *, n_files: int, minutes: float) -> Path:
    """Write recordings of noise with calls in it into class folders."""
    for number in range(n_files):
        path = folder / _CLASSES[number % 2] / f"r{number:03}.wav"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_noise(path, seconds=60 * minutes, seed=number)
    return folder


def write_noise(path: Path, *, seconds: float, seed: int) -> None:
    """Write noise with a call a second."""
    rng = np.random.default_rng(seed)
    time_axis = np.arange(round(seconds * RATE)) / RATE
    calls = np.sin(2 * np.pi * rng.uniform(1000, 4000) * time_axis) * (time_axis % 1 < 0.2)
    soundfile.write(path, (0.1 * calls + 0.01 * rng.standard_normal(len(time_axis))).astype(np.float32), RATE)


def timed_anew(way: Callable[[Path, Path], None], audio: Path, output: Path) -> float:
    """Return the seconds of a way into a new folder: a disk takes long to write over thousands of files."""
    shutil.rmtree(output, ignore_errors=True)
    return timed(lambda: way(audio, output))


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _spread(seconds: Sequence[float]) -> str:
    return f"{min(seconds):.2f}-{max(seconds):.2f}"


if __name__ == "__main__":
    main()
