"""Measure memory and time of prediction on a day-long recording, or on very many short ones.

    python -m tests.benchmarks.survey --folder FOLDER --hours 1 6 24
    python -m tests.benchmarks.survey --folder FOLDER --files 10000 100000

The recordings are synthesised: a sparse WAV at 48 kHz that is digital silence but for a call every ten minutes, and
files of one second, for a model with windows of one second. Memory is the proportional set size (PSS) of the command
and all its workers, sampled while it runs. Nothing is asserted.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from tests.benchmarks.field import PROJECT, make_model

RATE, SEGMENT_SECONDS = 48_000, 5
_EVERY_SECONDS = 0.5


def main() -> None:
    """Run what was asked for and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--hours", type=float, nargs="*", default=[])
    parser.add_argument("--files", type=int, nargs="*", default=[])
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    model, short_model = (make_model(options.folder / f"{ms}ms.pth", window_ms=ms) for ms in (5000, 1000))
    for hours in options.hours:
        path = sparse_recording(options.folder / f"{hours:g}h.wav", hours)
        seconds, peak, quarters = measure(model, path, options.folder / f"{hours:g}h", options.backend)
        results = json.loads((options.folder / f"{hours:g}h.json").read_text(encoding="utf-8"))
        last = results["predictions"][-1]
        print(f"{hours:g} h at {RATE} Hz: {seconds:.1f} s, {hours * 3600 / seconds:.0f} times real time; PSS peak"
              f" {peak:.0f} MB, in each quarter {quarters}; {len(results['predictions'])} segments, the last"
              f" {last['segment_start_ms']}-{last['segment_end_ms']} ms", flush=True)
    for n_files in options.files:
        folder = many_files(options.folder / f"{n_files}", n_files)
        seconds, peak, quarters = measure(short_model, folder, options.folder / f"{n_files}files", options.backend)
        print(f"{n_files} files: {seconds:.1f} s, {1e3 * seconds / n_files:.2f} ms a file; PSS peak {peak:.0f} MB, in"
              f" each quarter {quarters}", flush=True)


def measure(model: Path, audio: Path, output: Path, backend: str) -> tuple[float, float, list[int]]:
    """Return the seconds of the command, its peak PSS in MB, and the peak of each quarter of the time."""
    arguments = [sys.executable, PROJECT / "scripts" / "predict_efficientnet.py", "--model_path", model, "--input",
                 audio, "--output", output, "--segment_mode", "--device", "cpu", "--overwrite", "--quiet", "--backend",
                 backend, "--formats", "json,csv"]
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, arguments)), stdout=subprocess.DEVNULL)
    samples = []
    while process.poll() is None:
        samples.append(tree_pss(process.pid))
        time.sleep(_EVERY_SECONDS)
    seconds = time.perf_counter() - started
    assert process.returncode == 0
    return seconds, max(samples), [round(max(part)) for part in np.array_split(samples, 4)]


def tree_pss(pid: int) -> float:
    """Return the proportional set size of a process and all below it, in MB."""
    total = 0.0
    for member in [pid, *descendants(pid)]:
        try:
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1000
        except (OSError, ProcessLookupError):  # it has just ended
            continue
    return total


def descendants(pid: int) -> list[int]:
    """Return the processes below a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def sparse_recording(path: Path, hours: float) -> Path:
    """Write a recording whose silence takes no room on the disk; 0.3 s longer than whole segments."""
    if path.exists():
        return path
    n_frames = round(hours * 3600 * RATE) + round(0.3 * RATE)
    call = (0.3 * np.sin(2 * np.pi * 3000 * np.arange(RATE) / RATE) * 32767).astype("<i2")
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16", format="RF64" if n_frames > 2 ** 30 else "WAV") as sound:
        sound.write(call)
    begins = path.stat().st_size - 2 * RATE
    with open(path, "rb+") as stream:
        header = bytearray(stream.read(begins))
        data_bytes = 2 * n_frames
        if header[:4] == b"RF64":
            place = header.index(b"ds64") + 8
            header[place:place + 24] = ((begins - 8 + data_bytes).to_bytes(8, "little")
                                        + data_bytes.to_bytes(8, "little") + n_frames.to_bytes(8, "little"))
        else:
            header[4:8] = (begins - 8 + data_bytes).to_bytes(4, "little")
            header[begins - 4:begins] = data_bytes.to_bytes(4, "little")
        stream.seek(0)
        stream.write(header)
        for second in range(0, int(hours * 3600), 600):
            stream.seek(begins + 2 * RATE * second)
            stream.write(call.tobytes())
        stream.truncate(begins + data_bytes)
    return path


def many_files(folder: Path, n_files: int) -> Path:
    """Write files of one second, a thousand in a folder."""
    rng = np.random.default_rng(0)
    sound = rng.normal(0, 0.1, 22_050).astype(np.float32)
    for number in range(n_files):
        path = folder / f"{number // 1000:03}" / f"{number:06}.wav"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            soundfile.write(path, np.roll(sound, number), 22_050, subtype="PCM_16")
    return folder


if __name__ == "__main__":
    main()
