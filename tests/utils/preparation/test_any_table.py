"""Whatever a table holds: no label changes, no labelled second is lost in silence, no recording is on two sides."""

import csv
import itertools
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from models.audio_frontend import segment_starts
from models.errors import ManifestError
from tests.conftest import TINY_FRONTEND, TINY_RATE, preprocess_settings, tiny_sound, write_audio
from utils.preparation.labelling import _LEAST_TOLD_SECONDS
from utils.preparation.run import preprocess
from utils.preparation.sources import TableColumns, sources_from_table
from utils.running.parallel import ThisProcess
from utils.storage.files import read_json
from utils.storage.manifest import SPLITS, read_manifest
from utils.storage.tables import read_table

# what tables, folders and file systems take for something else than a name
ODD_NAMES = ("1", "2", "10", "007", "1e3", "-1", "0.5", "inf", "nan", "NaN", "NA", "N/A", "null", "None", "TRUE",
             "False", "train", "val", "test", "none", "aug01", "con", "aux.txt", "barn owl", "a,b", 'the "owl"', "a;b",
             "a/b", "..", ".", "a\\b", "=1+1", "#", "Ä", "A\u0308", "梟", "🦉", "ي", "owl", "Owl", "OWL", "o_w_l",
             "environmental_sound")
LENGTHS = {"a.wav": 8000, "b.wav": 12345, "deep/c.wav": 24001, "d.wav": 5000, "e.wav": 32000, "1.wav": 9999,
           "anchor0.wav": 8000, "anchor1.wav": 8000, "anchor2.wav": 8000, "anchor3.wav": 8000}  # samples
COPY, SILENT, CORRUPT, GONE = "copy of e.wav", "silent.wav", "corrupt.wav", "gone.wav"
ANCHORS = tuple(name for name in LENGTHS if name.startswith("anchor"))  # so that there are classes and sides enough
OTHERS = tuple(name for name in LENGTHS if name not in ANCHORS) + (COPY, SILENT, CORRUPT, GONE)
READINGS = {"train": "train", "Training": "train", "val": "val", "valid": "val", "Test": "test"}
MICROSECOND = 1e-6  # to which tables are rounded
QUIET_SHARE = 0.003  # 50 dB below the rest: active windows leave it out, and 16 bits still hold it


class Row(NamedTuple):
    """A row of a table: times are text, and empty where nobody said."""

    path: str
    label: str
    start: str
    end: str

    @property
    def start_seconds(self):
        return float(self.start or 0)

    @property
    def end_seconds(self):
        return float(self.end or "inf")


@pytest.fixture(scope="module")
def audio_dir(tmp_path_factory):
    """Recordings with a quiet second that share no sound, a copy of one, and some that cannot be used."""
    folder, rng = tmp_path_factory.mktemp("any_table"), np.random.default_rng(11)
    for name, n_samples in LENGTHS.items():
        samples = tiny_sound("insect_sound", seconds=n_samples / TINY_RATE, rng=rng)
        samples[TINY_RATE:2 * TINY_RATE] *= QUIET_SHARE
        write_audio(folder / name, samples)
    shutil.copy(folder / "e.wav", folder / COPY)
    write_audio(folder / SILENT, np.zeros(TINY_RATE, dtype=np.float32))
    (folder / CORRUPT).write_bytes(b"no recording at all" * 9)
    return folder


class_names = st.sampled_from(ODD_NAMES) | st.text(
    st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)
milliseconds = st.integers(0, 4500)


@st.composite
def tables(draw):
    """Return rows in any order: of each recording a label as a whole, or some of parts, or both."""
    names = draw(st.lists(class_names, min_size=2, max_size=4, unique_by=str.strip))
    rows = [Row(path, names[number % 2], "", "") for number, path in enumerate(ANCHORS)]
    for path in draw(st.permutations(OTHERS))[:draw(st.integers(3, 7))]:
        parts = [(name, start / 1000, (start + length) / 1000) for name, start, length in draw(st.lists(
            st.tuples(st.sampled_from(names), milliseconds, st.integers(1, 3000)), max_size=3))]
        rows += [Row(path, name, f"{start:.3f}", f"{end:.3f}") for name, start, end in parts]
        if not parts or draw(st.booleans()):
            rows.append(Row(path, draw(st.sampled_from(names)), draw(st.sampled_from(["", "0", "0.000"])), ""))
    return draw(st.permutations(rows))


folds = st.none() | st.lists(st.sampled_from(sorted(READINGS)), min_size=len(OTHERS), max_size=len(OTHERS))
choices = st.fixed_dictionaries({
    "segment_overlap_ms": st.sampled_from([0, 333, 500, 900]), "segment_selection": st.sampled_from(["all", "active"]),
    "min_overlap_seconds": st.sampled_from([0.0, 0.3, 0.5, 1.0, 5.0]),
    "background_label": st.none() | st.sampled_from(["environmental_sound", "nan", "calm"]),
    "random_state": st.integers(0, 3)})


def sides_given(fold_names):
    """Return the fold of every recording that has one; each side has an anchor."""
    if fold_names is None:
        return {}
    return dict(zip((*ANCHORS, *OTHERS), ("train", "Training", "val", "Test", *fold_names), strict=True))


def prepare(audio_dir, folder, rows, fold_of, changes):
    """Write the table as a spreadsheet does, and make of it what there is to make."""
    with open(folder / "labels.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*Row._fields, *(["fold"] if fold_of else [])])
        writer.writerows([*row, *([fold_of[row.path]] if fold_of else [])] for row in rows)
    sources = sources_from_table(folder / "labels.csv", audio_dir, group_by="recording",
                                 columns=TableColumns(fold="fold" if fold_of else None))
    preprocess(preprocess_settings(audio_dir, folder / "out", **changes), sources, executor=ThisProcess(),
               overwrite=False)


def manifest_rows(output_dir):
    """Return the rows of all sides as training reads them, the side in ``read_from``."""
    tables = [(side, read_table(output_dir / f"{side}.csv")) for side in SPLITS]
    return [{**row, "read_from": side} for side, table in tables if len(table)
            for row in read_manifest(output_dir / f"{side}.csv").rows.to_dict("records")]


def covered(first, end, spans):
    """Return how many samples of a stretch lie in at least one of some spans."""
    return len(set(itertools.chain.from_iterable(range(max(first, low), min(end, high)) for low, high in spans)))


def length_of(path):
    """Return the samples of a recording; a copy has those of what it is a copy of."""
    return LENGTHS[path.removeprefix("copy of ")]


def sample(seconds):
    return round(float(seconds) * TINY_RATE)


@settings(max_examples=60, phases=(Phase.reuse, Phase.generate))  # shrinking would take minutes
@given(rows=tables(), fold_names=folds, changes=choices)
def test_labels_stay_and_every_labelled_second_is_accounted_for(audio_dir, rows, fold_names, changes):
    fold_of = sides_given(fold_names)
    with tempfile.TemporaryDirectory() as name:
        prepare(audio_dir, Path(name), rows, fold_of, changes)
        windows = manifest_rows(Path(name) / "out")
        regions = read_table(Path(name) / "out" / "regions.csv").to_dict("records")
        files = read_table(Path(name) / "out" / "files.csv").set_index("path")
        names = read_json(Path(name) / "out" / "dataset.json")["class_names"]
    of_recording = defaultdict(list)
    for window in windows:
        of_recording[window["source_path"]].append(window)
    check_sides(windows, fold_of)
    check_grid(of_recording, changes)
    check_labels(of_recording, rows, names, changes["background_label"])
    check_regions(of_recording, rows, regions, files)
    assert sorted(files.index) == sorted({row.path for row in rows})


@pytest.mark.parametrize("label", ["barn\rowl", "barn\x1bowl", "barn\nowl"])
def test_a_label_at_which_a_table_may_break_is_refused(audio_dir, tmp_path, label):
    rows = [Row(path, (label, "fox")[number % 2], "", "") for number, path in enumerate(ANCHORS)]
    with pytest.raises(ManifestError, match="holds a control character"):
        prepare(audio_dir, tmp_path, rows, {}, {})


def check_sides(windows, fold_of):
    """No recording is on two sides, and each is where it was put."""
    sides = defaultdict(set)
    for window in windows:
        assert window["split"] == window["read_from"]
        sides[window["source_path"]].add(window["split"])
        sides[window["recording_id"]].add(window["split"])
    assert all(len(found) == 1 for found in sides.values())
    if fold_of:
        assert all(sides[path] == {READINGS[fold]} for path, fold in fold_of.items() if path in sides)


def check_grid(of_recording, changes):
    """Windows lie where prediction would cut them, each once."""
    hop = TINY_FRONTEND.segment_samples - round(changes["segment_overlap_ms"] * TINY_RATE / 1000)
    for path, windows in of_recording.items():
        n_samples = length_of(path)
        grid = segment_starts(n_samples, segment_samples=TINY_FRONTEND.segment_samples, hop_samples=hop,
                              least_new_samples=TINY_FRONTEND.least_new_samples)
        starts = [sample(window["start_seconds"]) for window in windows]
        assert len(set(starts)) == len(starts) and set(starts) <= set(grid)
        assert all(sample(window["end_seconds"]) == min(start + TINY_FRONTEND.segment_samples, n_samples)
                   for start, window in zip(starts, windows, strict=True))


def check_labels(of_recording, rows, names, background):
    """A window's label is one that a row gives to that time, or background where no row gives one."""
    for path, windows in of_recording.items():
        for window in windows:
            start, end = sample(window["start_seconds"]), sample(window["end_seconds"])
            touching = {row.label.strip() for row in rows if row.path == path and sample(row.start_seconds) < end
                        and row.end_seconds * TINY_RATE > start}
            assert window["class_name"] in (touching or {background})
            assert names[window["label"]] == window["class_name"]


def check_regions(of_recording, rows, regions, files):
    """Every label has its row, and what of it is in no window of that label is told there."""
    told = {(region["path"], region["class_name"], float(region["start_seconds"]),
             float(region["end_seconds"] or "inf")): region for region in regions}
    assert set(told) == {(row.path, row.label.strip(), row.start_seconds, row.end_seconds) for row in rows}
    assert len(told) == len(regions)
    for (path, name, start, end), region in told.items():
        if files["status"][path] in ("corrupt", "silent"):
            assert region["reason"] == f"{files['status'][path]}: see files.csv"
            continue
        spans = [(sample(window["start_seconds"]), sample(window["end_seconds"]))
                 for window in of_recording.get(path, ()) if window["class_name"] == name]
        n_samples = length_of(path)
        first, last = sample(start), n_samples if end == float("inf") else sample(end)
        n_covered = covered(first, last, spans)
        assert region["reason"] or n_covered >= last - first - _LEAST_TOLD_SECONDS * TINY_RATE
        if "same bytes as" not in region["reason"]:
            assert float(region["labelled_seconds"]) == pytest.approx(n_covered / TINY_RATE, abs=MICROSECOND)
            assert int(region["n_windows"]) == sum(low < last and high > first for low, high in spans)
