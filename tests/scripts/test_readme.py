"""Every command of the README is run, as it stands there, on a small data set."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.conftest import PROJECT
from utils.demo.recordings import write_demo_data

README = (PROJECT / "README.md").read_text(encoding="utf-8")
# what makes the commands short: the last of two equal flags counts, so the rest of the line is as in the README
SHORTENED = {"train_efficientnet.py": ["--epochs", "1"], "evaluate_model.py": ["--bootstrap", "50"]}


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def run(line: str, folder: Path) -> subprocess.CompletedProcess:
    words = shlex.split(line)
    assert words[0] == "python"
    script = words[1].removeprefix("scripts/")
    arguments = [str(PROJECT / "scripts" / script), *words[2:], *SHORTENED.get(script, [])]
    # the data set is smaller than five recordings a class, so five folds must be two
    if "--cross_validation" in arguments:
        arguments += ["--k_folds", "2"]
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """What the README's commands find: the synthesised recordings, cut short, and the files it names."""
    folder = tmp_path_factory.mktemp("readme")
    paths = write_demo_data(folder / "recordings", n_recordings_per_class=4, random_state=42)
    named = folder / re.search(r"--input (recordings/\S+\.WAV)", README)[1]
    for path in paths:
        samples, rate = sf.read(path)
        if path.suffix.lower() in (".wav", ".flac"):
            sf.write(path, samples[:2 * rate], rate)
    if not named.exists():
        next(named.parent.glob("*.WAV")).rename(named)
    table = "".join(f"{path.relative_to(folder / 'recordings').as_posix()},{path.parent.name},{path.stem}\n"
                    for path in sorted((folder / "recordings").rglob("*.*")))
    (folder / "recordings" / "labels.csv").write_text(f"path,label,group\n{table}", encoding="utf-8")
    sf.write(folder / "long_recording.wav", np.random.default_rng(0).normal(0, 0.1, 20 * 22050), 22050)
    (folder / "files.txt").write_text("long_recording.wav\n", encoding="utf-8")
    return folder


def test_readme_names_every_command_of_the_suite():
    names = {shlex.split(line)[1] for line in commands()}
    assert names == {f"scripts/{name}.py" for name in (
        "make_demo_data", "preprocess_enhanced", "train_efficientnet", "predict_efficientnet", "evaluate_model")}


def test_named_demo_recording_exists(tmp_path):
    named = re.search(r"--input recordings/(\S+\.WAV)", README)[1]
    done = run("python scripts/make_demo_data.py --output_dir recordings --recordings_per_class 1", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "recordings" / named).exists()


@pytest.fixture(scope="module")
def finished(workspace) -> tuple[Path, dict[str, subprocess.CompletedProcess]]:
    """The workspace after every command of the README, in its order; it already holds the recordings, cut short."""
    return workspace, {line: run(line, workspace) for line in commands() if "make_demo_data" not in line}


def test_every_command_works_in_order(finished):
    workspace, ran = finished
    assert len(ran) >= 15
    for line, done in ran.items():
        assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
    for name in ("dataset/overview.png", "model/efficientnet_best.pth", "baseline/resnet18_best.pth",
                 "model_cv/cross_validation/summary.json", "results.json", "segments.csv", "report/report.html"):
        assert (workspace / name).stat().st_size > 0


def test_api_lines_run(finished, monkeypatch):
    workspace, _ = finished
    block, = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    head, cross_validation, rest = re.split(r"(from utils import cross_validation.*?\n\n)", block, flags=re.DOTALL)
    monkeypatch.chdir(workspace)
    names: dict = {}
    exec(head, names)  # the README's own lines
    assert names["result"]["predicted_class"]
    assert names["results"][1]["status"] == "corrupt"
    exec(rest, names)
    assert names["pipeline"].config.freq_mask_param == 30
    assert "k_folds=5" in cross_validation  # run on arrays in test_cross_validation.py
