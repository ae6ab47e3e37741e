import shutil

import numpy as np
import pandas as pd
import pytest

from models.errors import ManifestError
from tests.conftest import TINY_FRONTEND, preprocess_settings, tiny_sound, write_audio
from tests.utils.preparation.conftest import all_rows, files_table, run, run_table, table_of
from tests.utils.preparation.test_duplicates import pair, recording
from utils.audio.recorders import RECORDER_COLUMNS
from utils.preparation import dataset as datasets
from utils.preparation.dataset import FILE_COLUMNS, Dataset, leakage_check, write_dataset
from utils.preparation.labelling import REGION_COLUMNS
from utils.preparation.regions import Region, Source
from utils.storage.files import file_sha256, read_json, save_array
from utils.storage.manifest import MANIFEST_COLUMNS, SPLITS
from utils.storage.tables import read_table

WRITTEN = ("train.csv", "val.csv", "test.csv", "files.csv", "regions.csv", "overview.png", "dataset.json")
TABLES = WRITTEN[:5]
PAIRS_OF_SIDES = ("train-val", "train-test", "val-test")


def rows_of(*places):
    """Return manifest rows of recordings: path, side and, where they differ, id and copy."""
    rows = [(*place, *(place[0], "none")[len(place) - 2:]) for place in places]
    return pd.DataFrame([(f"spectrograms/owl/{path}_{n}.npy", "owl", own_id, path, 0.0, 1.0, side, augmentation)
                         for n, (path, side, own_id, augmentation) in enumerate(rows)],
                        columns=[name for name in MANIFEST_COLUMNS if name != "label"])


def checked(rows, *, contents=None, similar=()):
    """Return the leakage check of rows; recordings are of one content where it says so."""
    contents = {path: path for path in rows["source_path"]} | (contents or {})
    results = [recording(path, "owl", content=content) for path, content in contents.items()]
    return leakage_check(Dataset((), results, similar, rows), rows)


def shared(check):
    """Return the counts of every two sides that are not 0."""
    return {f"{sides} {name}": n for sides, counts in check["shared"].items() for name, n in counts.items() if n}


# the leakage check

def test_a_clean_split_shares_nothing():
    check = checked(rows_of(("a", "train"), ("a", "train"), ("a", "train", "a", "aug01"), ("b", "val"), ("c", "test")),
                    contents={"silent": "a", "unlabelled": "b"}, similar=[pair("a", "silent"), pair("b", "gone")])
    assert check == {"recordings_on_two_sides": [], "augmented_outside_train": 0, "shared": dict.fromkeys(
        PAIRS_OF_SIDES, {"recordings": 0, "contents": 0, "near_duplicates": 0})}
    assert tuple(check["shared"]) == PAIRS_OF_SIDES


def test_a_recording_on_two_sides_is_counted_where_it_is():
    check = checked(rows_of(("a1", "train", "a"), ("a2", "test", "a"), ("b1", "train", "b"), ("b2", "test", "b"),
                            ("c1", "val", "c"), ("c2", "test", "c"), ("d", "train")))
    assert check["recordings_on_two_sides"] == ["a", "b", "c"]
    assert shared(check) == {"train-test recordings": 2, "val-test recordings": 1}


def test_a_recording_on_all_sides_is_between_every_two():
    check = checked(rows_of(("a1", "train", "a"), ("a2", "test", "a"), ("a3", "val", "a")))
    assert shared(check) == {f"{sides} recordings": 1 for sides in PAIRS_OF_SIDES}


def test_a_sound_on_two_sides_is_counted_once_however_often_it_is_there():
    rows = rows_of(("a", "train"), ("b", "train"), ("c", "val"), ("d", "val"), ("e", "test"), ("f", "train"))
    check = checked(rows, contents={"a": "1", "b": "1", "c": "1", "d": "2", "e": "3", "f": "3"})
    assert shared(check) == {"train-val contents": 1, "train-test contents": 1}
    assert check["recordings_on_two_sides"] == []


def test_pairs_that_sound_alike_are_counted_where_both_have_rows():
    rows = rows_of(("a", "train"), ("b", "train"), ("c", "val"), ("d", "test"))
    similar = [pair("a", "b"), pair("a", "c"), pair("b", "c"), pair("c", "d"), pair("a", "gone")]
    assert shared(checked(rows, similar=similar)) == {"train-val near_duplicates": 2, "val-test near_duplicates": 1}


def test_augmented_copies_outside_train_are_counted():
    rows = rows_of(("a", "train", "a", "aug01"), ("b", "val", "b", "aug01"), ("b", "val"), ("c", "test", "c", "aug02"))
    assert checked(rows)["augmented_outside_train"] == 2


def test_a_leak_stands_in_dataset_json(tmp_path):
    """Were the split ever wrong, the file would say so: what is written is counted, not what was meant."""
    rows = rows_of(("a", "train"), ("b", "val", "a"), ("c", "test", "c", "aug01"), ("d", "test"))
    rows["class_name"] = ["owl", "owl", "fox", "fox"]
    rows["augmentation"] = ["none", "none", "none", "aug01"]
    for path in rows["path"]:
        save_array(tmp_path / path, np.zeros((32, 32), dtype=np.float32))
    results = [recording(path, "owl", content="x" if path in "bd" else path) for path in "abcd"]
    sources = [Source(path, path, (Region("owl"),), "", path) for path in "abcd"]
    write_dataset(preprocess_settings(tmp_path, tmp_path), Dataset(sources, results, [pair("a", "c")], rows))
    check = read_json(tmp_path / "dataset.json")["leakage_check"]
    assert check["recordings_on_two_sides"] == ["a"] and check["augmented_outside_train"] == 1
    assert shared(check) == {"train-val recordings": 1, "val-test contents": 1, "train-test near_duplicates": 1}


# writing it, and leaving it alone

def stamps(output_dir):
    """Return when each file but the journal was written; two writes never have one inode and time."""
    return {path.relative_to(output_dir).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in output_dir.rglob("*") if path.is_file() and path.suffix in (".csv", ".json", ".png", ".npy")}


def contents(output_dir):
    return {name: (output_dir / name).read_bytes() for name in WRITTEN}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Recordings and what was made of them once; read-only."""
    root, rng = tmp_path_factory.mktemp("made"), np.random.default_rng(3)
    for name in ("mammal_call", "insect_sound"):
        for number in range(5):
            write_audio(root / "audio" / name / f"r{number}.wav", tiny_sound(name, seconds=1.5, rng=rng))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.reports.plot_overview", lambda path, **shown: path.touch())
        run(root / "audio", root / "out", balance_classes=True, augmentation_factor=1)
    return root


@pytest.fixture
def folder(made, tmp_path):
    """A copy of a finished run that may be spoilt."""
    return shutil.copytree(made, tmp_path / "made")


def run_again(folder, **changes):
    return run(folder / "audio", folder / "out", **{"balance_classes": True, "augmentation_factor": 1, **changes})


def test_where_all_stands_nothing_is_written(folder):
    before = stamps(folder / "out")
    assert set(WRITTEN) < set(before)
    run_again(folder)
    assert stamps(folder / "out") == before


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_was_edited_by_hand_is_written_again(folder, name):
    before = contents(folder / "out")
    (folder / "out" / name).write_bytes(before[name].replace(b"mammal", b"mammoth", 1) + b"\n")
    run_again(folder)
    assert contents(folder / "out") == before


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_that_is_missing_is_written_again(folder, name):
    before = contents(folder / "out")
    (folder / "out" / name).unlink()
    run_again(folder)
    assert contents(folder / "out") == before


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format_version": 1}'])
def test_a_dataset_json_that_says_nothing_is_written_again(folder, text):
    before = contents(folder / "out")
    (folder / "out" / "dataset.json").write_text(text, encoding="utf-8")
    run_again(folder)
    assert contents(folder / "out") == before


@pytest.mark.parametrize("changes", [{"max_balance_ratio": 3.0}, {"group_by": "folder"}])
def test_other_settings_are_told_although_they_change_no_row(folder, changes):
    before = all_rows(folder / "out")
    run_again(folder, ratios=(0.5, 0.25, 0.25), **changes)
    assert len(all_rows(folder / "out")) == len(before)
    name, value = next(iter(changes.items()))
    assert read_json(folder / "out" / "dataset.json")["settings"][name] == value


def test_dataset_json_comes_last(folder, monkeypatch):
    """Whoever finds it finds all that it speaks of; until then nothing says that there is a data set."""
    def stop(path, **shown):
        assert all((folder / "out" / name).exists() for name in TABLES)
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.reports.plot_overview", stop)
    (folder / "out" / "files.csv").unlink()
    with pytest.raises(KeyboardInterrupt, match="^$"):
        run_again(folder)
    assert not (folder / "out" / "dataset.json").exists()
    seen = []
    monkeypatch.setattr("utils.reports.plot_overview", lambda path, **shown: path.touch())
    monkeypatch.setattr(datasets, "write_json", lambda path, info: seen.append(
        (path.name, sorted(other.name for other in path.parent.iterdir() if other.name in WRITTEN))))
    run_again(folder)
    assert seen == [("dataset.json", sorted(set(WRITTEN) - {"dataset.json"}))]


def test_dataset_json_tells_the_bytes_of_every_table(made):
    info = read_json(made / "out" / "dataset.json")
    assert info["sha256"] == {name: file_sha256(made / "out" / name) for name in TABLES}


def test_an_empty_side_is_an_empty_manifest(folder, caplog):
    run_again(folder, ratios=(0.8, 0.2, 0.0))
    assert (folder / "out" / "test.csv").read_text(encoding="utf-8") == ",".join(MANIFEST_COLUMNS) + "\n"
    assert "class mammal_call has no segment in test: too few recordings" in caplog.text


# what the tables tell

def test_files_csv_tells_who_recorded_and_what_it_sounds_like(tmp_path, rng):
    audio_dir = tmp_path / "audio"
    for name in ("mammal_call", "insect_sound"):
        for number in range(3):
            sound = tiny_sound(name, seconds=1.5, rng=rng)
            write_audio(audio_dir / name / f"SMM0{number}_20240501_22{number}000.wav", sound)
    loud = np.clip(4 * tiny_sound("mammal_call", seconds=2, rng=rng), -0.5, 0.5) + 0.25
    write_audio(audio_dir / "mammal_call" / "loud.wav", loud)
    (audio_dir / "mammal_call" / "bad.wav").write_bytes(b"no recording at all" * 9)
    run(audio_dir, tmp_path / "out")
    files = files_table(tmp_path / "out")
    assert (files.index.name, *files.columns) == FILE_COLUMNS and set(RECORDER_COLUMNS) < set(files.columns)
    named = files.loc["insect_sound/SMM01_20240501_221000.wav"]
    assert (named["recorder_id"], named["recorded_at"]) == ("SMM01", "2024-05-01T22:10:00")
    assert (named["duration_seconds"], named["declared_seconds"], named["sample_rate"]) == ("1.5", "1.5", "8000")
    assert files["content"].str.len().tolist() == [64 if status == "ok" else 0 for status in files["status"]]
    facts = files.loc["mammal_call/loud.wav"]
    assert float(facts["peak_dbfs"]) == pytest.approx(20 * np.log10(0.75), abs=1e-3)  # 16 bits
    assert float(facts["dc_offset"]) == pytest.approx(0.25, abs=0.01)  # a square wave's halves differ by a sample
    bad = files.loc["mammal_call/bad.wav"]
    assert bad["status"] == "corrupt" and set(bad[["content", "peak_dbfs", "recorded_at", "sha256", "split"]]) == {""}


def test_findings_stand_beside_their_recordings_and_in_dataset_json(tmp_path, rng):
    audio_dir = tmp_path / "audio"
    for name in ("insect_sound", "bird_song"):
        for number in range(4):
            write_audio(audio_dir / name / f"r{number}.wav", tiny_sound(name, seconds=1, rng=rng))
    clipped = np.clip(40 * tiny_sound("amphibian_call", seconds=1, rng=rng), -1, 1)
    write_audio(audio_dir / "bird_song" / "clipped.wav", clipped)
    shutil.copy(audio_dir / "insect_sound" / "r0.wav", audio_dir / "bird_song" / "copy.wav")
    run(audio_dir, tmp_path / "out")
    findings = {finding["code"]: finding for finding in read_json(tmp_path / "out" / "dataset.json")["findings"]}
    files = files_table(tmp_path / "out")
    for code in ("clipped", "duplicate_across"):
        told = {path for path, codes in files["findings"].items() if code in codes.split("; ")}
        assert told == set(findings[code]["paths"]), findings.keys()
    assert files["findings"]["bird_song/clipped.wav"] == "clipped"
    assert set(findings["duplicate_across"]["paths"]) == {"insect_sound/r0.wav", "bird_song/copy.wav"}


def test_regions_csv_has_a_row_for_every_label_of_every_recording(tmp_path, rng):
    audio_dir = tmp_path / "audio"
    for name in ("mammal_call", "insect_sound"):
        for number in range(4):
            write_audio(audio_dir / name / f"r{number}.wav", tiny_sound(name, seconds=3, rng=rng))
    shutil.copy(audio_dir / "insect_sound" / "r1.wav", audio_dir / "insect_sound" / "r2.wav")
    write_audio(audio_dir / "insect_sound" / "r3.wav", np.zeros(8000, dtype=np.float32))
    table = table_of(audio_dir, {"start": lambda path, n: "0.5", "end": lambda path, n: "2.5",
                                 "low_f": lambda path, n: "300", "high_f": lambda path, n: "900"})
    second = table.assign(start="2.6", end="9")
    table = pd.concat([table, second], ignore_index=True)
    table.loc[len(table)] = ["gone.wav", "mammal_call", "", "", "", ""]
    run_table(audio_dir, tmp_path / "out", table)
    regions = read_table(tmp_path / "out" / "regions.csv")
    assert tuple(regions.columns) == REGION_COLUMNS
    told = regions[["path", "class_name", "start_seconds", "end_seconds", "low_hertz", "high_hertz"]]
    wanted = {(row.path, row.label, float(row.start or 0), *(float(value) if value else None for value in (
        row.end, row.low_f, row.high_f))) for row in table.itertuples()}
    assert {tuple(values[:2]) + tuple(float(value) if value else None for value in values[2:])
            for values in told.to_numpy().tolist()} == wanted and len(told) == len(table)
    reason_of = {(row.path, row.start_seconds): row.reason for row in regions.itertuples()}
    assert reason_of["insect_sound/r0.wav", "0.5"] == ""
    assert reason_of["insect_sound/r0.wav", "2.6"].endswith("the recording ends at 3.000 s")
    assert reason_of["insect_sound/r2.wav", "0.5"] == "same bytes as insect_sound/r1.wav"
    assert reason_of["insect_sound/r3.wav", "0.5"] == "silent: see files.csv"
    assert reason_of["gone.wav", "0.0"] == "corrupt: see files.csv"
    assert list(regions["path"]) == sorted(regions["path"])


def test_where_nothing_comes_of_a_run_the_reasons_are_written(tmp_path, rng):
    write_audio(tmp_path / "audio" / "owl" / "a.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    (tmp_path / "audio" / "owl" / "b.wav").write_bytes(b"no recording at all" * 9)
    with pytest.raises(ManifestError, match="only one class"):
        run(tmp_path / "audio", tmp_path / "out")
    assert files_table(tmp_path / "out")["status"].to_dict() == {"owl/a.wav": "ok", "owl/b.wav": "corrupt"}
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_dataset_json_tells_the_settings_and_counts_augmented_rows_too(made):
    info = read_json(made / "out" / "dataset.json")
    assert info["frontend"] == TINY_FRONTEND.to_dict()
    assert info["settings"]["max_balance_ratio"] == 10.0 and info["settings"]["group_by"] == "recording"
    counted = {side: sum(counts.values()) for side, counts in info["counts"].items()}
    assert counted == {side: len(read_table(made / "out" / f"{side}.csv")) for side in SPLITS}
