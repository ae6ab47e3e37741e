"""Measure what a Dask cluster costs: two workers of it on this machine against two local processes.

    python -m tests.benchmarks.cluster [--folder FOLDER] [--minutes 60]

Preparing and predicting sixty recordings, as whole commands, whose start-up is measured on a few short ones and taken
off: a command that uses a cluster also loads Dask and looks at what the workers have. Ratios are of one run; nothing is
asserted.
"""

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.field import PROJECT, make_model, timed
from tests.benchmarks.preparing import SEGMENT_MS, make_recordings

N_WORKERS = 2
_RUNS = 5  # the quickest counts: what else the machine does only adds
_START_SECONDS = 60
# a worker is a core, of either kind
_ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """Write recordings and a model, start a cluster, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=60, help="of audio")
    parser.add_argument("--folder", type=Path, help="where recordings are kept (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, cluster(Path(temporary)) as address:
        folder = options.folder or Path(temporary)
        few = make_recordings(folder / "few", n_files=4, minutes=1 / 60)
        many = make_recordings(folder / "sixty", n_files=60, minutes=options.minutes / 60)
        model = make_model(folder / "model.pth")
        compare("prepare", few, many, address, [
            "preprocess_enhanced.py", "--segment_duration", SEGMENT_MS, "--segment_selection", "all", "--output_dir",
            folder / "out", "--input_dir"])
        compare("predict", few, many, address, [
            "predict_efficientnet.py", "--model_path", model, "--segment_mode", "--device", "cpu", "--output",
            folder / "results.json", "--input"])


def compare(name: str, few: Path, many: Path, address: str, command: list[object]) -> None:
    """Print what a command takes on the cluster and in local processes."""
    places = {"local": ["--workers", N_WORKERS], "cluster": ["--cluster", address]}
    times: dict[tuple[str, Path], list[float]] = {(place, audio): [] for audio in (few, many) for place in places}
    run([*command, few, *places["cluster"]])  # converts the network; loads the libraries in the workers
    for _ in range(_RUNS):
        for place, audio in times:
            times[place, audio].append(timed(functools.partial(run, [*command, audio, *places[place]])))
    fixed, whole = ({place: min(times[place, audio]) for place in places} for audio in (few, many))
    ratio = (whole["cluster"] - fixed["cluster"]) / (whole["local"] - fixed["local"])
    told = ", ".join(f"{place} {whole[place]:.2f} s of which start-up {fixed[place]:.2f} s" for place in places)
    print(f"{name} sixty files with {N_WORKERS} workers: {told}; beyond start-up the cluster takes {ratio:.2f} times as"
          f" long (the quickest of {_RUNS} alternating runs each)", flush=True)


def run(arguments: list[object]) -> None:
    """Run a command anew."""
    script, *rest = map(str, arguments)
    subprocess.run([sys.executable, str(PROJECT / "scripts" / script), *rest, "--overwrite"], check=True,
                   capture_output=True, env=_ENVIRONMENT)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start a scheduler and workers of one thread each; give the scheduler's address."""
    place = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    with contextlib.ExitStack() as stack, open(folder / "dask.log", "w") as log:
        def start(*arguments: object) -> None:
            process = stack.enter_context(subprocess.Popen([*dask, *map(str, arguments), "--no-dashboard"],
                                                           cwd=PROJECT, stdout=log, stderr=log, env=_ENVIRONMENT))
            stack.callback(process.terminate)
        start("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", place)
        deadline = time.monotonic() + _START_SECONDS
        while not (place.exists() and place.read_text().rstrip().endswith("}")) and time.monotonic() < deadline:
            time.sleep(0.1)
        address = json.loads(place.read_text())["address"]
        start("worker", address, "--nworkers", N_WORKERS, "--nthreads", 1, "--local-directory", folder / "scratch")
        import distributed
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(N_WORKERS, timeout=_START_SECONDS)
        yield address


if __name__ == "__main__":
    main()
