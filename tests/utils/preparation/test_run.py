import json
import multiprocessing
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile

from models.audio_frontend import LogMelFrontend, frontend_fingerprint
from models.efficientnet_config import AugmentationConfig
from models.errors import AudioError, ManifestError
from tests.conftest import TINY_CLASSES, TINY_FRONTEND, TINY_RATE, preprocess_settings, tiny_sound, write_audio
from utils.preparation import augmented_copies
from utils.preparation import run as preprocessing
from utils.preparation.augmented_copies import plan_copies
from utils.preparation.extraction import extract_recording
from utils.storage.manifest import MANIFEST_COLUMNS, SPLITS
from utils.preparation.run import FILE_COLUMNS, preprocess
from utils.preparation.sources import Region, Source, TableColumns, sources_from_folders, sources_from_table

FAST_AUGMENTATION = AugmentationConfig(use_time_stretch=False, use_pitch_shift=False)
SECONDS_TOLERANCE = 1e-6  # the manifest rounds seconds to microseconds


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Most of a small run would be spent on the overview; tiny_dataset keeps the real one."""
    monkeypatch.setattr(preprocessing, "plot_overview", lambda path, *, counts, examples: None)


@pytest.fixture
def audio_dir(tmp_path, rng):
    """Six recordings of one second in each of two classes."""
    for class_name in ("mammal_call", "amphibian_call"):
        for number in range(6):
            write_audio(tmp_path / "audio" / class_name / f"r{number}.wav", tiny_sound(class_name, seconds=1, rng=rng))
    return tmp_path / "audio"


def run(audio_dir, output_dir, *, n_workers=1, overwrite=False, **changes):
    return preprocess(preprocess_settings(audio_dir, output_dir, **changes),
                      sources_from_folders(audio_dir, group_by="recording"), n_workers=n_workers, overwrite=overwrite)


def all_rows(output_dir):
    return pd.concat([pd.read_csv(output_dir / f"{side}.csv") for side in SPLITS], ignore_index=True)


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
        samples, _ = soundfile.read(tiny_dataset.audio_dir / row.source_path, dtype="float32")
        part = samples[round(row.start_seconds * TINY_RATE):round(row.end_seconds * TINY_RATE)]
        log_mel = np.load(tiny_dataset.output_dir / row.path)
        assert log_mel.dtype == np.float32 and log_mel.shape == (32, 32)
        np.testing.assert_array_equal(log_mel, frontend.log_mel(part))


def test_windows_cover_every_recording_to_its_end(tiny_dataset):
    files = pd.read_csv(tiny_dataset.output_dir / "files.csv").set_index("path")
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
    assert info["leakage_check"] == {"recordings_on_two_sides": [], "augmented_outside_train": 0}
    assert (tiny_dataset.output_dir / "overview.png").read_bytes().startswith(b"\x89PNG")


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
    files = pd.read_csv(tmp_path / "out" / "files.csv", keep_default_na=False).set_index("path")
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
    shutil.copy(audio_dir / "mammal_call" / "r0.wav", audio_dir / "amphibian_call" / "copy.wav")
    sources = sources_from_folders(audio_dir, group_by="recording")
    settings = preprocess_settings(audio_dir, tmp_path / "out")
    results = preprocess(settings, sources[::-1], n_workers=1, overwrite=False)
    duplicates = {result.source_path: result.reason for result in results if result.status == "duplicate"}
    assert duplicates == {"mammal_call/r0.wav": "same bytes as amphibian_call/copy.wav"}


def test_a_file_the_table_names_but_nobody_has_is_a_row(audio_dir, tmp_path):
    table = tmp_path / "labels.csv"
    present = [path.relative_to(audio_dir).as_posix() for path in sorted(audio_dir.rglob("*.wav"))]
    lines = [f"{path},{path.split('/')[0]}" for path in [*present, "mammal_call/gone.wav"]]
    table.write_text("path,label\n" + "\n".join(lines), encoding="utf-8")
    sources = sources_from_table(table, audio_dir, columns=TableColumns(), group_by="recording")
    preprocess(preprocess_settings(audio_dir, tmp_path / "out"), sources, n_workers=1, overwrite=False)
    files = pd.read_csv(tmp_path / "out" / "files.csv").set_index("path")
    assert files.loc["mammal_call/gone.wav", "status"] == "corrupt"
    assert "cannot be opened" in files.loc["mammal_call/gone.wav", "reason"]
    assert (files["status"] == "ok").sum() == 12


def test_nothing_usable_is_an_error_that_counts_the_reasons(tmp_path):
    for name in ("a", "b"):
        write_audio(tmp_path / "audio" / "owl" / f"{name}.wav", np.zeros(8000 + len(name), dtype=np.float32))
    (tmp_path / "audio" / "owl" / "c.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="none of the 3 recordings.*2 silent, 1 empty"):
        run(tmp_path / "audio", tmp_path / "out")


def test_one_class_is_refused(audio_dir, tmp_path):
    shutil.rmtree(audio_dir / "amphibian_call")
    with pytest.raises(ManifestError, match=r"only one class was found.*mammal_call"):
        run(audio_dir, tmp_path / "out")


# augmented copies

def test_copies_are_made_of_training_segments_only_and_follow_their_recording(audio_dir, tmp_path):
    run(audio_dir, tmp_path / "out", augmentation_factor=2, augmentation=FAST_AUGMENTATION)
    rows = all_rows(tmp_path / "out")
    copies, originals = rows[rows["augmentation"] != "none"], rows[rows["augmentation"] == "none"]
    assert set(copies["split"]) == {"train"}
    assert len(copies) == 2 * (originals["split"] == "train").sum()
    assert set(copies["augmentation"]) == {"aug01", "aug02"}
    by_path = originals.set_index("path")
    for copy in copies.itertuples():
        original = by_path.loc[copy.path.replace(f"_{copy.augmentation}.npy", ".npy")]
        for column in ("recording_id", "source_path", "class_name", "label", "start_seconds", "end_seconds"):
            assert getattr(copy, column) == original[column]
        first, second = (np.load(tmp_path / "out" / path) for path in (copy.path, original.name))
        assert first.shape == second.shape and not np.array_equal(first, second)
    info = json.loads((tmp_path / "out" / "dataset.json").read_text(encoding="utf-8"))
    assert info["leakage_check"]["augmented_outside_train"] == 0


@pytest.mark.parametrize("factor, ratio, expected", [
    # 7 and 3 segments: 4 are missing, 3 get one and the first of them a second
    (0, 10.0, [0] * 7 + [2, 1, 1]),
    # both doubled to 14 and 6: 8 are missing, two each and the first two a third
    (1, 10.0, [1] * 7 + [4, 4, 3]),
    # at most twice its size: 6, so 3 copies
    (0, 2.0, [0] * 7 + [1, 1, 1]),
    (0, 1.0, [0] * 10),
])
def test_balancing_by_hand(tmp_path, factor, ratio, expected):
    train = pd.DataFrame({"label": [0] * 7 + [1] * 3})
    settings = preprocess_settings(tmp_path, tmp_path, augmentation_factor=factor, balance_classes=True,
                                   max_balance_ratio=ratio)
    assert plan_copies(train, settings).tolist() == expected


def test_balancing_makes_the_training_classes_equal(audio_dir, tmp_path):
    for number in range(3):
        (audio_dir / "mammal_call" / f"r{number}.wav").unlink()
    run(audio_dir, tmp_path / "out", balance_classes=True, augmentation=FAST_AUGMENTATION)
    rows = all_rows(tmp_path / "out")
    before = rows[rows["augmentation"] == "none"].groupby("split")["class_name"].value_counts().unstack()
    after = rows.groupby("split")["class_name"].value_counts().unstack()
    assert before.loc["train", "mammal_call"] < before.loc["train", "amphibian_call"]
    assert after.loc["train", "mammal_call"] == after.loc["train", "amphibian_call"]
    pd.testing.assert_frame_equal(after.loc[["val", "test"]], before.loc[["val", "test"]])


def test_copies_depend_on_the_seed_alone(audio_dir, tmp_path):
    for name, state in (("first", 1), ("again", 1), ("other", 2)):
        run(audio_dir, tmp_path / name, augmentation_factor=1, augmentation=FAST_AUGMENTATION, random_state=state)
    first, again, other = (spectrogram_bytes(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    shared = [path for path in first if "_aug" in path and path in other]
    assert shared and all(first[path] != other[path] for path in shared)


# going on

def test_a_second_run_redoes_nothing(audio_dir, tmp_path, monkeypatch):
    run(audio_dir, tmp_path / "out", augmentation_factor=1, augmentation=FAST_AUGMENTATION)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.npy")}
    texts = manifest_texts(tmp_path / "out")
    done = count_calls(monkeypatch)
    monkeypatch.setattr(augmented_copies, "augment_recording", lambda settings, job: pytest.fail("made again"))
    run(audio_dir, tmp_path / "out", augmentation_factor=1, augmentation=FAST_AUGMENTATION)
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


def test_a_lost_spectrogram_is_made_again(audio_dir, tmp_path, monkeypatch):
    run(audio_dir, tmp_path / "out")
    before = spectrogram_bytes(tmp_path / "out")
    next((tmp_path / "out").rglob("r2-*.npy")).unlink()
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


# workers

@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_change_nothing(tiny_dataset, tmp_path, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        run(tiny_dataset.audio_dir, tmp_path, n_workers=2)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert spectrogram_bytes(tmp_path) == spectrogram_bytes(tiny_dataset.output_dir)
    one, two = manifest_texts(tiny_dataset.output_dir), manifest_texts(tmp_path)
    assert {name: text for name, text in two.items() if name.endswith(".csv")} == \
        {name: text for name, text in one.items() if name.endswith(".csv")}


def test_the_seed_decides_the_split(audio_dir, tmp_path):
    splits = {}
    for name, state in (("first", 3), ("again", 3), ("other", 4)):
        run(audio_dir, tmp_path / name, random_state=state)
        splits[name] = dict(all_rows(tmp_path / name)[["recording_id", "split"]].to_numpy().tolist())
    assert splits["first"] == splits["again"]
    assert splits["first"] != splits["other"]


# which windows

def test_active_keeps_the_windows_that_hold_sound(tmp_path, rng):
    samples = 1e-4 * rng.standard_normal(4 * TINY_RATE)
    samples[2 * TINY_RATE:3 * TINY_RATE] += tiny_sound("bird_song", seconds=1, rng=rng)
    write_audio(tmp_path / "a.wav", samples.astype(np.float32))
    source = Source("a.wav", "a", (Region("bird_song"),))
    starts = {}
    for selection in ("active", "all"):
        settings = preprocess_settings(tmp_path, tmp_path / selection, segment_selection=selection)
        result = extract_recording(settings, source)
        starts[selection] = [segment.start_sample for segment in result.segments]
        assert set(spectrogram_bytes(tmp_path / selection)) == {segment.path for segment in result.segments}
    assert starts == {"active": [2 * TINY_RATE], "all": [0, TINY_RATE, 2 * TINY_RATE, 3 * TINY_RATE]}


def test_active_keeps_at_least_one_window_of_a_faint_recording(tmp_path, rng):
    write_audio(tmp_path / "a.wav", (1e-3 * rng.standard_normal(3 * TINY_RATE)).astype(np.float32))
    settings = preprocess_settings(tmp_path, tmp_path / "out", segment_selection="active")
    assert extract_recording(settings, Source("a.wav", "a", (Region("bird_song"),))).segments


def test_labelled_parts_become_windows_of_their_own_class(tmp_path, rng):
    samples = rng.uniform(-0.5, 0.5, 4 * TINY_RATE).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    table = tmp_path / "labels.csv"
    table.write_text("path,label,start,end\na.wav,owl,0,1\na.wav,fox,2,3.5\na.wav,owl,3.6,3.9\n", encoding="utf-8")
    source, = sources_from_table(table, tmp_path, columns=TableColumns(), group_by="recording")
    settings = preprocess_settings(tmp_path, tmp_path / "out")
    result = extract_recording(settings, source)
    # fox lasts 1.5 windows: the second is moved back to end with it; the last owl is shorter than a window
    expected = {("owl", 0, 1.0), ("fox", 2, 3.0), ("fox", 2.5, 3.5), ("owl", 3.6, 3.9)}
    assert {(s.class_name, s.start_sample / TINY_RATE, s.end_sample / TINY_RATE) for s in result.segments} == expected
    frontend = LogMelFrontend(TINY_FRONTEND)
    for segment in result.segments:
        np.testing.assert_array_equal(np.load(tmp_path / "out" / segment.path),
                                      frontend.log_mel(samples[segment.start_sample:segment.end_sample]))


def test_a_label_after_the_end_is_a_row_with_a_reason(tmp_path, rng):
    write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    result = extract_recording(preprocess_settings(tmp_path, tmp_path / "out"),
                               Source("a.wav", "a", (Region("owl", 5.0, 6.0),)))
    assert (result.status, result.segments) == ("empty", ())
    assert "none of its labelled times" in result.reason


def test_folds_of_a_table_become_sides(audio_dir, tmp_path):
    paths = [path.relative_to(audio_dir).as_posix() for path in sorted(audio_dir.rglob("*.wav"))]
    folds = {path: ("2", "9", "10")[index % 3] for index, path in enumerate(paths)}
    table = tmp_path / "labels.csv"
    table.write_text("path,label,fold\n" + "\n".join(f"{path},{path.split('/')[0]},{folds[path]}" for path in paths),
                     encoding="utf-8")
    sources = sources_from_table(table, audio_dir, columns=TableColumns(fold="fold"), group_by="recording")
    preprocess(preprocess_settings(audio_dir, tmp_path / "out"), sources, n_workers=1, overwrite=False)
    rows = all_rows(tmp_path / "out")
    side_of = {"2": "train", "9": "val", "10": "test"}  # by number, not by letter
    assert dict(rows[["source_path", "split"]].to_numpy().tolist()) == {path: side_of[folds[path]] for path in paths}


def test_two_folds_are_too_few(audio_dir, tmp_path):
    sources = [Source(source.source_path, source.recording_id, source.regions, str(index % 2))
               for index, source in enumerate(sources_from_folders(audio_dir, group_by="recording"))]
    with pytest.raises(ManifestError, match="--fold_column needs at least 3 folds.*got 0, 1"):
        preprocess(preprocess_settings(audio_dir, tmp_path / "out"), sources, n_workers=1, overwrite=False)


def test_equal_names_do_not_collide(audio_dir, tmp_path, rng):
    twins = ["mammal_call/a.wav", "mammal_call/a.flac", "mammal_call/deep/a.wav", "amphibian_call/a.wav"]
    for twin in twins:
        write_audio(audio_dir / twin, tiny_sound(twin.split("/")[0], seconds=1, rng=rng))
    run(audio_dir, tmp_path / "out")
    rows = all_rows(tmp_path / "out")
    assert rows["path"].nunique() == rows["recording_id"].nunique() == len(rows) == 12 + 4
    frontend = LogMelFrontend(TINY_FRONTEND)
    for row in rows[rows["source_path"].isin(twins)].itertuples():
        samples, _ = soundfile.read(audio_dir / row.source_path, dtype="float32")
        np.testing.assert_array_equal(np.load(tmp_path / "out" / row.path), frontend.log_mel(samples))


def test_a_whole_folder_stays_on_one_side(tmp_path, rng):
    audio_dir = tmp_path / "audio"
    for class_name in ("mammal_call", "amphibian_call"):
        for site in range(4):
            for number in range(2):
                write_audio(audio_dir / class_name / f"site{site}" / f"{number}.wav",
                            tiny_sound(class_name, seconds=1, rng=rng))
    preprocess(preprocess_settings(audio_dir, tmp_path / "out"), sources_from_folders(audio_dir, group_by="folder"),
               n_workers=1, overwrite=False)
    rows = all_rows(tmp_path / "out").assign(folder=lambda table: table["source_path"].str.rsplit("/", n=1).str[0])
    assert (rows.groupby("folder")["split"].nunique() == 1).all() and len(rows) == rows["path"].nunique() == 16
