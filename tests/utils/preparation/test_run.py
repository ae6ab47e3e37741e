import json
import multiprocessing
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile

from models.audio_frontend import LogMelFrontend, frontend_fingerprint
from models.errors import AudioError, ConfigError, ManifestError
from tests.conftest import TINY_CLASSES, TINY_FRONTEND, TINY_RATE, preprocess_settings, tiny_sound, write_audio
from tests.utils.preparation.conftest import (CLASSES, ODD_TEXT, add_odd_name, all_rows, any_bytes_are_names,
                                              count_calls, files_table, manifest_texts, run, run_table,
                                              spectrogram_bytes, table_of)
from utils.audio.recordings import load_audio
from utils.preparation import augmented_copies
from utils.preparation.dataset import FILE_COLUMNS
from utils.preparation.run import preprocess
from utils.preparation.sources import TableColumns, sources_from_folders
from utils.running.parallel import LocalProcesses, ThisProcess
from utils.storage.locks import locked
from utils.storage.manifest import MANIFEST_COLUMNS, SPLITS
from utils.storage.names import text_to_name

SECONDS_TOLERANCE = 1e-6  # the manifest rounds seconds to microseconds
START_METHODS = [method for method in ("fork", "spawn") if method in multiprocessing.get_all_start_methods()]
FOLDS = TableColumns(fold="fold")


# what is written

def test_manifests_have_exactly_the_columns_of_the_contract(tiny_dataset):
    for side in SPLITS:
        assert tuple(pd.read_csv(tiny_dataset.output_dir / f"{side}.csv").columns) == MANIFEST_COLUMNS
    assert MANIFEST_COLUMNS == ("path", "label", "class_name", "recording_id", "source_path", "start_seconds",
                                "end_seconds", "split", "augmentation")


def test_labels_count_classes_in_readme_order(tiny_dataset):
    rows = all_rows(tiny_dataset.output_dir)
    assert set(zip(rows["label"], rows["class_name"], strict=True)) == set(enumerate(TINY_CLASSES))
    assert (rows["source_path"].str.split("/").str[0] == rows["class_name"]).all()


def test_no_recording_is_on_two_sides(tiny_dataset):
    rows = all_rows(tiny_dataset.output_dir)
    assert rows["recording_id"].nunique() == rows["source_path"].nunique() == 24
    assert (rows.groupby("recording_id")["split"].nunique() == 1).all()
    assert (rows.groupby("class_name")["split"].nunique() == 3).all()


def test_windows_lie_where_the_manifest_says(tiny_dataset):
    frontend = LogMelFrontend(TINY_FRONTEND)
    for row in all_rows(tiny_dataset.output_dir).iloc[::5].itertuples():
        samples = load_audio(tiny_dataset.audio_dir / row.source_path, sample_rate=TINY_RATE)
        part = samples[round(row.start_seconds * TINY_RATE):round(row.end_seconds * TINY_RATE)]
        log_mel = np.load(tiny_dataset.output_dir / row.path)
        assert log_mel.dtype == np.float32 and log_mel.shape == (32, 32)
        np.testing.assert_array_equal(log_mel, frontend.log_mel(part))


def test_windows_cover_every_recording_to_its_end(tiny_dataset):
    files = files_table(tiny_dataset.output_dir)
    for source, rows in all_rows(tiny_dataset.output_dir).groupby("source_path"):
        rows = rows.sort_values("start_seconds")
        assert rows["start_seconds"].iloc[0] == 0
        assert rows["end_seconds"].iloc[-1] == pytest.approx(files.loc[source, "duration_seconds"],
                                                             abs=SECONDS_TOLERANCE)
        assert (rows["start_seconds"].to_numpy()[1:] <= rows["end_seconds"].to_numpy()[:-1]).all()
        assert files.loc[source, "n_segments"] == len(rows)


def test_files_csv_names_every_input(tiny_dataset):
    files = pd.read_csv(tiny_dataset.output_dir / "files.csv")
    assert tuple(files.columns) == FILE_COLUMNS
    assert list(files["path"]) == sorted(path.relative_to(tiny_dataset.audio_dir).as_posix()
                                         for path in tiny_dataset.audio_dir.rglob("*.wav"))
    assert set(files["status"]) == {"ok"} and files["reason"].isna().all()
    assert set(files["sample_rate"]) == {TINY_RATE} and set(files["channels"]) == {1}
    sides = all_rows(tiny_dataset.output_dir).drop_duplicates("source_path").set_index("source_path")["split"]
    assert dict(zip(files["path"], files["split"], strict=True)) == dict(sides)


def test_dataset_json_tells_what_was_made(tiny_dataset):
    info = json.loads((tiny_dataset.output_dir / "dataset.json").read_text(encoding="utf-8"))
    rows = all_rows(tiny_dataset.output_dir)
    assert info["format_version"] == 1
    assert info["frontend"] == TINY_FRONTEND.to_dict()
    assert info["fingerprint"] == frontend_fingerprint(TINY_FRONTEND)
    assert info["class_names"] == list(TINY_CLASSES)
    for side in SPLITS:
        here = rows[rows["split"] == side]
        assert info["counts"][side] == {name: int((here["class_name"] == name).sum()) for name in TINY_CLASSES}
        assert info["recordings"][side] == here["recording_id"].nunique()
    assert (tiny_dataset.output_dir / info["input_dir"]).resolve() == tiny_dataset.audio_dir.resolve()
    assert info["settings"]["random_state"] == 42 and info["settings"]["ratios"] == [0.5, 0.25, 0.25]
    nothing = {"recordings": 0, "contents": 0, "near_duplicates": 0}
    assert info["leakage_check"] == {"recordings_on_two_sides": [], "augmented_outside_train": 0, "shared": {
        "train-val": nothing, "train-test": nothing, "val-test": nothing}}
    assert (tiny_dataset.output_dir / "overview.png").read_bytes().startswith(b"\x89PNG")


def duplicates_of(results):
    return {result.source_path: result.outcome.reason for result in results if result.outcome.status == "duplicate"}


def regions_text(output_dir):
    return (output_dir / "regions.csv").read_text(encoding="utf-8")


def test_a_folder_that_another_run_writes_is_refused(audio_dir, tmp_path):
    with locked(tmp_path / "out"), pytest.raises(ConfigError, match="out is being written by process"):
        run(audio_dir, tmp_path / "out")


# bad files

def test_every_bad_file_is_a_row_with_its_reason_and_harms_no_other(audio_dir, tmp_path, rng):
    folder = audio_dir / "mammal_call"
    (folder / "corrupt.wav").write_bytes(b"RIFF, but not a recording" * 20)
    (folder / "empty.wav").write_bytes(b"")
    write_audio(folder / "headeronly.wav", np.zeros(0, dtype=np.float32))
    write_audio(folder / "silent.wav", np.zeros(TINY_RATE, dtype=np.float32))
    write_audio(folder / "short.wav", tiny_sound("mammal_call", seconds=0.02, rng=rng))
    shutil.copy(folder / "r0.wav", folder / "twin.wav")
    results = run(audio_dir, tmp_path / "out")
    files = files_table(tmp_path / "out")
    expected = {"corrupt.wav": "corrupt", "empty.wav": "empty", "headeronly.wav": "empty", "silent.wav": "silent",
                "short.wav": "too_short", "twin.wav": "duplicate"}
    for name, status in expected.items():
        row = files.loc[f"mammal_call/{name}"]
        assert row["status"] == status and row["n_segments"] == 0 and row["split"] == ""
        assert name in row["reason"] or status == "duplicate"
    assert files.loc["mammal_call/twin.wav", "reason"] == "same bytes as mammal_call/r0.wav"
    assert (files["status"] == "ok").sum() == 12 and len(files) == len(results) == 18
    rows = all_rows(tmp_path / "out")
    assert rows["source_path"].nunique() == 12
    assert set(spectrogram_bytes(tmp_path / "out")) >= set(rows["path"])


def test_the_first_of_two_equal_files_stays_whatever_the_order(audio_dir, tmp_path):
    shutil.copy(audio_dir / "mammal_call" / "r0.wav", audio_dir / "mammal_call" / "copy.wav")
    sources = sources_from_folders(audio_dir, group_by="recording")
    settings = preprocess_settings(audio_dir, tmp_path / "out")
    results = preprocess(settings, sources[::-1], executor=ThisProcess(), overwrite=False)
    assert [result.source_path for result in results] == [source.source_path for source in sources[::-1]]
    assert duplicates_of(results) == {"mammal_call/r0.wav": "same bytes as mammal_call/copy.wav"}


def test_a_copy_in_another_container_is_known_by_its_sound(audio_dir, tmp_path):
    samples, rate = soundfile.read(audio_dir / "mammal_call" / "r0.wav", dtype="int16")
    soundfile.write(audio_dir / "mammal_call" / "s0.flac", samples, rate)
    results = run(audio_dir, tmp_path / "out")
    assert duplicates_of(results) == {"mammal_call/s0.flac": "same sound as mammal_call/r0.wav"}


def test_copies_with_different_labels_are_both_left_out(audio_dir, tmp_path):
    shutil.copy(audio_dir / "mammal_call" / "r0.wav", audio_dir / "amphibian_call" / "copy.wav")
    results = run(audio_dir, tmp_path / "out")
    assert duplicates_of(results) == {
        "amphibian_call/copy.wav": "same bytes as mammal_call/r0.wav, which is labelled mammal_call, not"
                                   " amphibian_call: correct one of them",
        "mammal_call/r0.wav": "same bytes as amphibian_call/copy.wav, which is labelled amphibian_call, not"
                              " mammal_call: correct one of them"}
    assert not set(all_rows(tmp_path / "out")["source_path"]) & set(duplicates_of(results))
    regions = pd.read_csv(tmp_path / "out" / "regions.csv").set_index("path")
    assert regions.loc["mammal_call/r0.wav", "n_windows"] == 0
    assert "correct one of them" in regions.loc["mammal_call/r0.wav", "reason"]


def test_copies_that_are_labelled_in_different_places_keep_their_labels(audio_dir, tmp_path, rng):
    """A file whose label lies past its end, and its byte copy with a valid one: nothing is lost."""
    write_audio(audio_dir / "long.wav", tiny_sound("mammal_call", seconds=4, rng=rng))
    for name in ("copy_a.wav", "copy_b.wav"):
        shutil.copy(audio_dir / "long.wav", audio_dir / name)
    table = table_of(audio_dir, {"start": lambda path, n: "", "end": lambda path, n: ""})
    table = table[~table["path"].str.match("long|copy")].reset_index(drop=True)
    table.loc[len(table)] = ["long.wav", "mammal_call", "90", "91"]
    table.loc[len(table)] = ["copy_a.wav", "mammal_call", "0", "2"]
    table.loc[len(table)] = ["copy_b.wav", "amphibian_call", "1", "3"]
    run_table(audio_dir, tmp_path / "out", table)
    rows = all_rows(tmp_path / "out").set_index("source_path")
    assert rows.loc["copy_a.wav", "start_seconds"] == 0 and rows.loc["copy_b.wav", "start_seconds"] == 2
    assert rows.loc["copy_a.wav", "split"] == rows.loc["copy_b.wav", "split"]
    files = files_table(tmp_path / "out")
    assert set(files.loc[["long.wav", "copy_a.wav", "copy_b.wav"], "status"]) == {"ok"}
    assert "the recording ends at 4.000 s" in regions_text(tmp_path / "out")


def test_a_file_the_table_names_but_nobody_has_is_a_row(audio_dir, tmp_path):
    table = table_of(audio_dir, {})
    table.loc[len(table)] = ["mammal_call/gone.wav", "mammal_call"]
    run_table(audio_dir, tmp_path / "out", table)
    files = files_table(tmp_path / "out")
    assert files.loc["mammal_call/gone.wav", "status"] == "corrupt"
    assert "cannot be opened" in files.loc["mammal_call/gone.wav", "reason"]
    assert (files["status"] == "ok").sum() == 12


def test_a_broken_end_is_told_beside_what_came_before(audio_dir, tmp_path, rng):
    # two minutes, for the block of half a minute in which the damage lies is lost as a whole
    path = write_audio(audio_dir / "mammal_call" / "broken.flac", tiny_sound("mammal_call", seconds=120, rng=rng))
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    run(audio_dir, tmp_path / "out")
    row = files_table(tmp_path / "out").loc["mammal_call/broken.flac"]
    assert row["status"] == "ok" and "broken.flac breaks off after" in row["reason"]
    rows = all_rows(tmp_path / "out").query("source_path == 'mammal_call/broken.flac'")
    assert len(rows) == row["n_segments"] > 20
    assert rows["end_seconds"].max() == pytest.approx(float(row["duration_seconds"]), abs=SECONDS_TOLERANCE)


def test_nothing_usable_is_an_error_that_counts_the_reasons(tmp_path):
    for name in ("a", "b"):
        write_audio(tmp_path / "audio" / "owl" / f"{name}.wav", np.zeros(8000 + len(name), dtype=np.float32))
    (tmp_path / "audio" / "owl" / "c.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="none of the 3 recordings.*2 silent, 1 empty"):
        run(tmp_path / "audio", tmp_path / "out")


def test_no_sources_at_all_are_told_in_words(tmp_path):
    with pytest.raises(AudioError, match="there are no recordings to preprocess"):
        preprocess(preprocess_settings(tmp_path, tmp_path / "out"), [], executor=ThisProcess(), overwrite=False)


def test_one_class_is_refused(audio_dir, tmp_path):
    shutil.rmtree(audio_dir / "amphibian_call")
    with pytest.raises(ManifestError, match=r"only one class was found.*mammal_call"):
        run(audio_dir, tmp_path / "out")


# names that are no text

@any_bytes_are_names
def test_a_name_that_is_no_text_is_readable_and_leads_back_to_the_file(audio_dir, tmp_path, rng):
    odd = add_odd_name(audio_dir / "mammal_call", rng)
    run(audio_dir, tmp_path / "out")
    written = f"mammal_call/{ODD_TEXT}"
    assert files_table(tmp_path / "out").loc[written, "status"] == "ok"
    rows = all_rows(tmp_path / "out").set_index("source_path")
    np.testing.assert_array_equal(
        np.load(tmp_path / "out" / rows.loc[written, "path"]),
        LogMelFrontend(TINY_FRONTEND).log_mel(load_audio(odd, sample_rate=TINY_RATE)))
    assert (audio_dir / text_to_name(written)).read_bytes() == odd.read_bytes()


@any_bytes_are_names
def test_a_name_that_is_no_text_is_found_again_by_the_next_run(audio_dir, tmp_path, rng, monkeypatch):
    add_odd_name(audio_dir / "mammal_call", rng)
    run(audio_dir, tmp_path / "out")
    done = count_calls(monkeypatch)
    run(audio_dir, tmp_path / "out")
    assert done == []


@any_bytes_are_names
def test_a_bad_file_whose_name_is_no_text_is_a_row(audio_dir, tmp_path, rng):
    add_odd_name(audio_dir / "mammal_call", rng).write_bytes(b"no recording at all" * 10)
    run(audio_dir, tmp_path / "out")
    row = files_table(tmp_path / "out").loc[f"mammal_call/{ODD_TEXT}"]
    assert row["status"] == "corrupt" and ODD_TEXT in row["reason"]


# going on

def test_a_second_run_redoes_nothing(audio_dir, tmp_path, monkeypatch):
    run(audio_dir, tmp_path / "out", augmentation_factor=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    texts = manifest_texts(tmp_path / "out")
    done = count_calls(monkeypatch)
    monkeypatch.setattr(augmented_copies, "augment_recording", lambda settings, job: pytest.fail("made again"))
    run(audio_dir, tmp_path / "out", augmentation_factor=1)
    assert done == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")} == before
    assert manifest_texts(tmp_path / "out") == texts


def test_a_changed_file_alone_is_redone(audio_dir, tmp_path, monkeypatch, rng):
    run(audio_dir, tmp_path / "out")
    before = spectrogram_bytes(tmp_path / "out")
    write_audio(audio_dir / "mammal_call" / "r3.wav", tiny_sound("mammal_call", seconds=1.5, rng=rng))
    done = count_calls(monkeypatch)
    run(audio_dir, tmp_path / "out")
    assert done == ["mammal_call/r3.wav"]
    changed = {path for path, content in spectrogram_bytes(tmp_path / "out").items() if before.get(path) != content}
    assert len(changed) == 2 and all("/r3-" in path for path in changed)


def test_what_could_not_be_decoded_is_tried_again(audio_dir, tmp_path, monkeypatch):
    """The reason says to install ffmpeg: whoever does must not be told the same again."""
    broken = audio_dir / "mammal_call" / "broken.wav"
    broken.write_bytes(b"no recording at all" * 10)
    run(audio_dir, tmp_path / "out")
    done = count_calls(monkeypatch)
    run(audio_dir, tmp_path / "out")
    assert done == [broken.relative_to(audio_dir).as_posix()]


@pytest.mark.parametrize("damage", ["removed", "emptied"])  # a power cut may leave a name without its content
def test_a_lost_spectrogram_is_made_again(audio_dir, tmp_path, monkeypatch, damage):
    run(audio_dir, tmp_path / "out")
    before = spectrogram_bytes(tmp_path / "out")
    lost = next((tmp_path / "out").rglob("r2-*.npy"))
    lost.unlink()
    if damage == "emptied":
        lost.touch()
    done = count_calls(monkeypatch)
    run(audio_dir, tmp_path / "out")
    assert len(done) == 1 and spectrogram_bytes(tmp_path / "out") == before


def test_overwrite_redoes_everything(audio_dir, tmp_path, monkeypatch):
    run(audio_dir, tmp_path / "out")
    done = count_calls(monkeypatch)
    run(audio_dir, tmp_path / "out", overwrite=True)
    assert len(done) == 12


def test_other_settings_leave_no_spectrogram_of_the_old_ones(audio_dir, tmp_path, rng):
    write_audio(audio_dir / "mammal_call" / "long.wav", tiny_sound("mammal_call", seconds=3, rng=rng))
    run(audio_dir, tmp_path / "out", segment_overlap_ms=500)
    assert len(spectrogram_bytes(tmp_path / "out")) == 12 + 5
    run(audio_dir, tmp_path / "out", segment_overlap_ms=0)
    assert set(spectrogram_bytes(tmp_path / "out")) == set(all_rows(tmp_path / "out")["path"])
    assert len(spectrogram_bytes(tmp_path / "out")) == 12 + 3


def test_an_interrupted_run_goes_on_to_the_same_result(audio_dir, tmp_path, monkeypatch):
    run(audio_dir, tmp_path / "straight")
    with monkeypatch.context() as patch:
        count_calls(patch, fail_after=5)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            run(audio_dir, tmp_path / "stopped")
    # a kill may also cut the line that was being written
    with open(tmp_path / "stopped" / "journal.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"kind": "recording", "name": "mamm')
    done = count_calls(monkeypatch)
    run(audio_dir, tmp_path / "stopped")
    assert len(done) == 12 - 5
    assert manifest_texts(tmp_path / "stopped") == manifest_texts(tmp_path / "straight")
    assert spectrogram_bytes(tmp_path / "stopped") == spectrogram_bytes(tmp_path / "straight")


@pytest.mark.parametrize("again_with_overwrite", [False, True])
def test_an_interrupted_overwrite_goes_on_and_leaves_no_orphans(audio_dir, tmp_path, monkeypatch, rng,
                                                                again_with_overwrite):
    gone = write_audio(audio_dir / "mammal_call" / "gone.wav", tiny_sound("mammal_call", seconds=3, rng=rng))
    run(audio_dir, tmp_path / "out", segment_overlap_ms=500)
    gone.unlink()
    with monkeypatch.context() as patch:
        count_calls(patch, fail_after=5)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            run(audio_dir, tmp_path / "out", overwrite=True)
    done = count_calls(monkeypatch)
    run(audio_dir, tmp_path / "out", overwrite=again_with_overwrite)
    assert len(done) == 12 - 5
    assert set(spectrogram_bytes(tmp_path / "out")) == set(all_rows(tmp_path / "out")["path"])


# workers and seeds

@pytest.mark.parametrize(("method", "n_workers"), [(method, n) for method in START_METHODS for n in (1, 2)])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_nothing(tiny_dataset, tmp_path, method, n_workers):
    usual = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        run(tiny_dataset.audio_dir, tmp_path, executor=LocalProcesses(n_workers))
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert spectrogram_bytes(tmp_path) == spectrogram_bytes(tiny_dataset.output_dir)
    one, other = manifest_texts(tiny_dataset.output_dir), manifest_texts(tmp_path)
    assert {name: text for name, text in other.items() if name.endswith(".csv")} == \
        {name: text for name, text in one.items() if name.endswith(".csv")}


def test_the_seed_decides_the_split(audio_dir, tmp_path):
    splits = {}
    for name, state in (("first", 3), ("again", 3), ("other", 4)):
        run(audio_dir, tmp_path / name, random_state=state)
        splits[name] = dict(all_rows(tmp_path / name)[["recording_id", "split"]].to_numpy().tolist())
    assert splits["first"] == splits["again"]
    assert splits["first"] != splits["other"]


def test_a_whole_folder_stays_on_one_side(tmp_path, rng):
    audio_dir = tmp_path / "audio"
    for class_name in CLASSES:
        for site in range(4):
            for number in range(2):
                write_audio(audio_dir / class_name / f"site{site}" / f"{number}.wav",
                            tiny_sound(class_name, seconds=1, rng=rng))
    preprocess(preprocess_settings(audio_dir, tmp_path / "out"), sources_from_folders(audio_dir, group_by="folder"),
               executor=ThisProcess(), overwrite=False)
    rows = all_rows(tmp_path / "out").assign(folder=lambda table: table["source_path"].str.rsplit("/", n=1).str[0])
    assert (rows.groupby("folder")["split"].nunique() == 1).all() and len(rows) == rows["path"].nunique() == 16


def test_equal_names_do_not_collide(audio_dir, tmp_path, rng):
    twins = ["mammal_call/a.wav", "mammal_call/a.flac", "mammal_call/deep/a.wav", "amphibian_call/a.wav"]
    for twin in twins:
        write_audio(audio_dir / twin, tiny_sound(twin.split("/")[0], seconds=1, rng=rng))
    run(audio_dir, tmp_path / "out")
    rows = all_rows(tmp_path / "out")
    assert rows["path"].nunique() == rows["recording_id"].nunique() == len(rows) == 12 + 4
    frontend = LogMelFrontend(TINY_FRONTEND)
    for row in rows[rows["source_path"].isin(twins)].itertuples():
        samples = load_audio(audio_dir / row.source_path, sample_rate=TINY_RATE)
        np.testing.assert_array_equal(np.load(tmp_path / "out" / row.path), frontend.log_mel(samples))


# given folds

def sides_of(output_dir):
    return dict(all_rows(output_dir)[["source_path", "split"]].to_numpy().tolist())


def test_numbered_folds_become_sides_by_number(audio_dir, tmp_path):
    table = table_of(audio_dir, {"fold": lambda path, number: ("2", "9", "10")[number % 3]})
    run_table(audio_dir, tmp_path / "out", table, columns=FOLDS)
    side_of = {"2": "train", "9": "val", "10": "test"}  # by number, not by letter
    assert sides_of(tmp_path / "out") == {row.path: side_of[row.fold] for row in table.itertuples()}


@pytest.mark.parametrize("names", [("train", "val", "test"), ("TRAIN", "Validation", "Test"),
                                   ("training", "valid", "test")])
def test_folds_that_are_called_like_sides_are_taken_literally(audio_dir, tmp_path, names):
    """By length and letter, which orders numbered folds, ``train`` would come last and be the test side."""
    train, val, test = names
    table = table_of(audio_dir, {"fold": lambda path, number: {0: val, 1: test}.get(number % 6, train)})
    run_table(audio_dir, tmp_path / "out", table, columns=FOLDS)
    side_of = {train: "train", val: "val", test: "test"}
    sides = sides_of(tmp_path / "out")
    assert sides == {row.path: side_of[row.fold] for row in table.itertuples()}
    assert [list(sides.values()).count(side) for side in SPLITS] == [8, 2, 2]


@pytest.mark.parametrize(("folds", "message"), [
    (("train", "test", "train"), "names the sides test, train but no val: add rows of it"),
    (("train", "train", "Training"), "names the sides Training, train but no val and no test"),
    (("train", "val", "3"), r"mixes sides and other values \(3, train, val\)"),
    (("0", "1", "0"), "needs at least 3 folds for train, val and test, got 0, 1"),
])
def test_folds_that_make_no_three_sides_are_refused(audio_dir, tmp_path, folds, message):
    table = table_of(audio_dir, {"fold": lambda path, number: folds[number % 3]})
    with pytest.raises(ManifestError, match=f"--fold_column {message}"):
        run_table(audio_dir, tmp_path / "out", table, columns=FOLDS)


def test_a_group_on_two_sides_is_named(audio_dir, tmp_path):
    table = table_of(audio_dir, {"fold": lambda path, number: ("train", "val", "test")[number % 3],
                                 "night": lambda path, number: f"night{min(number, 8)}"})
    with pytest.raises(ManifestError, match=r"puts 1 recordings or groups on two sides \(night8\)"):
        run_table(audio_dir, tmp_path / "out", table, columns=TableColumns(fold="fold", group="night"),
                  group_by="column")
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_group_in_two_folds_of_one_side_is_whole(audio_dir, tmp_path):
    table = table_of(audio_dir, {"fold": lambda path, number: str(number % 4),
                                 "night": lambda path, number: "a" if number in (0, 1) else f"night{number}"})
    run_table(audio_dir, tmp_path / "out", table, columns=TableColumns(fold="fold", group="night"), group_by="column")
    assert set(all_rows(tmp_path / "out").query("recording_id == 'a'")["split"]) == {"train"}
