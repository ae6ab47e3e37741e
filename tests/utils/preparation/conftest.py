"""What the tests of preparation share: small runs and views of what they wrote."""

import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import preprocess_settings, tiny_sound, write_audio
from utils.preparation import run as preprocessing
from utils.preparation.extraction import extract_recording
from utils.preparation.run import preprocess
from utils.preparation.sources import Region, Source, TableColumns, sources_from_folders, sources_from_table
from utils.running.parallel import ThisProcess
from utils.storage.manifest import SPLITS

CLASSES = ("mammal_call", "amphibian_call")
ODD_NAME, ODD_TEXT = os.fsdecode(b"owl\xe9.wav"), r"owl\xe9.wav"  # Latin 1, as old recorders and ZIP files have it
any_bytes_are_names = pytest.mark.skipif(not sys.platform.startswith("linux"),
                                         reason="only Linux lets a file name be any bytes")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Most of a small run would be spent on the overview; tiny_dataset keeps the real one."""
    monkeypatch.setattr("utils.reports.plot_overview", lambda path, **shown: path.touch())


@pytest.fixture
def audio_dir(tmp_path, rng):
    """Six recordings of one second in each of two classes."""
    for class_name in CLASSES:
        for number in range(6):
            write_audio(tmp_path / "audio" / class_name / f"r{number}.wav", tiny_sound(class_name, seconds=1, rng=rng))
    return tmp_path / "audio"


def run(audio_dir, output_dir, *, executor=ThisProcess(), overwrite=False, **changes):
    return preprocess(preprocess_settings(audio_dir, output_dir, **changes),
                      sources_from_folders(audio_dir, group_by="recording"), executor=executor, overwrite=overwrite)


def table_of(audio_dir, columns):
    """Return a table of all recordings; every column maps a path and its number to a value."""
    paths = [path.relative_to(audio_dir).as_posix() for path in sorted(audio_dir.rglob("*.wav"))]
    rows = [[path, path.split("/")[0], *(value(path, n) for value in columns.values())] for n, path in enumerate(paths)]
    return pd.DataFrame(rows, columns=["path", "label", *columns])


def run_table(audio_dir, output_dir, table, *, columns=TableColumns(), group_by="recording"):
    path = output_dir.parent / "labels.csv"
    table.to_csv(path, index=False)
    sources = sources_from_table(path, audio_dir, columns=columns, group_by=group_by)
    return preprocess(preprocess_settings(audio_dir, output_dir), sources, executor=ThisProcess(), overwrite=False)


def source_of(path, *regions):
    return Source(path, "a", regions or (Region("bird_song"),), fold="", clip_id="a")


def all_rows(output_dir):
    tables = [pd.read_csv(output_dir / f"{side}.csv") for side in SPLITS]
    return pd.concat([table for table in tables if len(table)], ignore_index=True)


def files_table(output_dir):
    return pd.read_csv(output_dir / "files.csv", keep_default_na=False).set_index("path")


def spectrogram_bytes(output_dir):
    return {path.relative_to(output_dir).as_posix(): path.read_bytes() for path in output_dir.rglob("*.npy")}


def manifest_texts(output_dir):
    names = [f"{side}.csv" for side in SPLITS] + ["files.csv", "dataset.json"]
    return {name: (output_dir / name).read_text(encoding="utf-8") for name in names}


def count_calls(monkeypatch, *, fail_after=None):
    """Record which sources are extracted; interrupt, as Ctrl-C does, after some of them."""
    done = []

    def extract(settings, source):
        if len(done) == fail_after:
            raise KeyboardInterrupt
        done.append(source.source_path)
        return extract_recording(settings, source)

    monkeypatch.setattr(preprocessing, "extract_recording", extract)
    return done


def count_readers(monkeypatch, module):
    """Record every reader that a module opens."""
    opened, usual = [], module.RecordingReader

    def reader(*arguments, **named):
        opened.append(usual(*arguments, **named))
        return opened[-1]

    monkeypatch.setattr(module, "RecordingReader", reader)
    return opened


def add_odd_name(folder: Path, rng) -> Path:
    """Add a recording whose name is no text to a class folder."""
    path = folder / ODD_NAME
    write_audio(folder / "plain.wav", tiny_sound(folder.name, seconds=1, rng=rng)).rename(path)
    return path
