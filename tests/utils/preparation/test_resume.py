"""Runs that go on, are stopped, and see their input change, each the way it once went wrong."""

import logging
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile

from models.audio_frontend import LogMelFrontend
from models.efficientnet_config import AugmentationConfig
from models.errors import AudioError, ConfigError
from tests.conftest import TINY_FRONTEND, TINY_RATE, preprocess_settings, tiny_sound, write_audio
from tests.utils.preparation.conftest import (CLASSES, all_rows, count_calls, files_table, manifest_texts, run,
                                              spectrogram_bytes, table_of)
from utils.audio.recordings import load_audio
from utils.preparation import augmented_copies
from utils.preparation import run as preprocessing
from utils.preparation.run import preprocess
from utils.preparation.sources import TableColumns, apply_label_map, sources_from_folders, sources_from_table
from utils.running.parallel import ThisProcess
from utils.storage.files import read_json
from utils.storage.manifest import SPLITS, read_manifest
from utils.storage.spectrograms import SpectrogramDataset

COPIES = {"augmentation_factor": 1,
          "augmentation": AugmentationConfig(use_time_stretch=False, use_pitch_shift=False)}
SIDES_TOLERANCE = 0.05  # of 50 recordings of a class, two or three may lie elsewhere than the ratios say


def count_copies(monkeypatch, *, stopped_at=None):
    """Record which copies are written; stop, as Ctrl-C does, when one of them is written and not yet noted."""
    made, usual = [], augmented_copies.save_array

    def save(path, array):
        made.append(path.name)
        usual(path, array)
        if len(made) == stopped_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(augmented_copies, "save_array", save)
    return made


def stop_run(audio_dir, output_dir, *, n_noted, **changes):
    """Stop a run, as Ctrl-C does, when so many recordings are noted and the windows of one more are written."""
    begun, usual = [], preprocessing.extract_recording

    def extract(settings, source):
        begun.append(usual(settings, source))
        if len(begun) > n_noted:
            raise KeyboardInterrupt
        return begun[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocessing, "extract_recording", extract)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            run(audio_dir, output_dir, **changes)


def add_recordings(audio_dir, rng, *names):
    for class_name in CLASSES:
        for name in names:
            write_audio(audio_dir / class_name / f"{name}.wav", tiny_sound(class_name, seconds=1, rng=rng))


# augmented copies belong to a sound (3)

def test_a_recording_that_is_edited_at_equal_length_gets_new_copies(audio_dir, tmp_path, rng, monkeypatch):
    out, all_train = tmp_path / "out", {"ratios": (1.0, 0.0, 0.0), **COPIES}
    run(audio_dir, out, **all_train)
    before = spectrogram_bytes(out)
    size = (audio_dir / "mammal_call" / "r3.wav").stat().st_size
    edited = write_audio(audio_dir / "mammal_call" / "r3.wav", tiny_sound("insect_sound", seconds=1, rng=rng))
    assert edited.stat().st_size == size
    made = count_copies(monkeypatch)
    run(audio_dir, out, **all_train)
    changed = {path for path, content in spectrogram_bytes(out).items() if before[path] != content}
    assert len(changed) == 2 and all("mammal_call/r3-" in path for path in changed)
    assert made == [path.rsplit("/", 1)[1] for path in changed if "_aug01" in path]
    run(audio_dir, tmp_path / "fresh", **all_train)
    assert spectrogram_bytes(out) == spectrogram_bytes(tmp_path / "fresh")


def test_one_more_class_redoes_no_copy_and_no_window(audio_dir, tmp_path, rng, monkeypatch):
    """The new class is the first of all: every other label counts one more."""
    run(audio_dir, tmp_path / "out", **COPIES)
    before = spectrogram_bytes(tmp_path / "out")
    old = dict(all_rows(tmp_path / "out")[["class_name", "label"]].to_numpy().tolist())
    for number in range(6):
        write_audio(audio_dir / "bird_song" / f"b{number}.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    done, made = count_calls(monkeypatch), count_copies(monkeypatch)
    run(audio_dir, tmp_path / "out", **COPIES)
    assert len(done) == 6 and all(path.startswith("bird_song/") for path in done)
    assert made and all(name.startswith("b") for name in made)
    after = spectrogram_bytes(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    new = dict(all_rows(tmp_path / "out")[["class_name", "label"]].to_numpy().tolist())
    assert new == {"bird_song": 0, **{name: label + 1 for name, label in old.items()}}


# a run trusts only what it wrote (4)

OTHER = {"frontend": TINY_FRONTEND.replace(f_min=500.0)}  # spectrograms of one shape and other content


@pytest.mark.parametrize("n_noted", [0, 6, 11])
def test_a_run_with_other_settings_that_was_stopped_leaves_nothing_in_the_next(audio_dir, tmp_path, n_noted):
    """Settings A, then B stopped half-way, then A again: all of it is A's."""
    out = tmp_path / "out"
    run(audio_dir, out, **COPIES)
    spectrograms, texts = spectrogram_bytes(out), manifest_texts(out)
    stop_run(audio_dir, out, n_noted=n_noted, **OTHER, **COPIES)
    assert spectrogram_bytes(out) != spectrograms
    run(audio_dir, out, **COPIES)
    assert spectrogram_bytes(out) == spectrograms
    assert manifest_texts(out) == texts


def test_a_run_with_other_copies_that_was_stopped_leaves_nothing_in_the_next(audio_dir, tmp_path, monkeypatch):
    out = tmp_path / "out"
    run(audio_dir, out, **COPIES)
    spectrograms = spectrogram_bytes(out)
    louder = COPIES["augmentation"].replace(noise_snr_db_range=(0.0, 1.0))
    with monkeypatch.context() as patch:
        count_copies(patch, stopped_at=3)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            run(audio_dir, out, augmentation_factor=1, augmentation=louder)
    assert spectrogram_bytes(out) != spectrograms
    run(audio_dir, out, **COPIES)
    assert spectrogram_bytes(out) == spectrograms


def test_a_stopped_overwrite_with_other_settings_leaves_nothing_in_the_next(audio_dir, tmp_path):
    run(audio_dir, tmp_path / "out")
    spectrograms = spectrogram_bytes(tmp_path / "out")
    stop_run(audio_dir, tmp_path / "out", n_noted=5, overwrite=True, **OTHER)
    run(audio_dir, tmp_path / "out")
    assert spectrogram_bytes(tmp_path / "out") == spectrograms
    assert not (tmp_path / "out" / "journal.jsonl.new").exists()


@pytest.mark.parametrize("changes", [OTHER, {"overwrite": True}])
def test_nothing_says_that_a_data_set_is_there_once_a_file_is_written_over(audio_dir, tmp_path, changes, monkeypatch):
    run(audio_dir, tmp_path / "out")
    seen, usual = [], preprocessing.extract_recording

    def extract(settings, source):
        seen.append([name for name in ("dataset.json", "train.csv", "val.csv", "test.csv")
                     if (tmp_path / "out" / name).exists()])
        return usual(settings, source)

    monkeypatch.setattr(preprocessing, "extract_recording", extract)
    run(audio_dir, tmp_path / "out", **changes)
    assert seen == [[]] * 12
    assert (tmp_path / "out" / "dataset.json").exists()


def test_a_file_that_is_only_added_takes_nothing_away(audio_dir, tmp_path, rng):
    """What is there stays usable until the new data set is: no file of it has changed."""
    run(audio_dir, tmp_path / "out")
    texts = manifest_texts(tmp_path / "out")
    add_recordings(audio_dir, rng, "s1", "s2")
    stop_run(audio_dir, tmp_path / "out", n_noted=2)
    assert manifest_texts(tmp_path / "out") == texts


def test_nothing_says_that_a_data_set_is_there_once_a_copy_is_written_over(audio_dir, tmp_path, monkeypatch):
    run(audio_dir, tmp_path / "out", **COPIES)
    count_copies(monkeypatch, stopped_at=3)
    with pytest.raises(KeyboardInterrupt, match="^$"):
        run(audio_dir, tmp_path / "out", augmentation_factor=1,
            augmentation=COPIES["augmentation"].replace(noise_snr_db_range=(0.0, 1.0)))
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_nothing_says_that_a_data_set_is_there_once_a_spectrogram_is_deleted(audio_dir, tmp_path, monkeypatch):
    run(audio_dir, tmp_path / "out")
    (audio_dir / "mammal_call" / "r3.wav").unlink()

    def stop(settings, dataset):
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocessing, "write_dataset", stop)
    with pytest.raises(KeyboardInterrupt, match="^$"):
        run(audio_dir, tmp_path / "out")
    named = [path for side in SPLITS if (tmp_path / "out" / f"{side}.csv").exists()
             for path in pd.read_csv(tmp_path / "out" / f"{side}.csv")["path"]]
    assert [path for path in named if not (tmp_path / "out" / path).exists()] == []


# ratios and additions (8)

def test_one_more_recording_moves_no_other(audio_dir, tmp_path, rng):
    add_recordings(audio_dir, rng, *(f"s{number}" for number in range(9)))
    run(audio_dir, tmp_path / "out")
    before = files_table(tmp_path / "out")["split"]
    write_audio(audio_dir / "mammal_call" / "aaa_first.wav", tiny_sound("mammal_call", seconds=1, rng=rng))
    run(audio_dir, tmp_path / "out")
    after = files_table(tmp_path / "out")["split"]
    assert len(after) == len(before) + 1 and after[before.index].equals(before)


def test_small_shares_are_no_empty_sides(tmp_path, rng):
    for class_name in CLASSES:
        for number in range(50):
            write_audio(tmp_path / "audio" / class_name / f"r{number}.wav",
                        tiny_sound(class_name, seconds=0.3, rng=rng))
    run(tmp_path / "audio", tmp_path / "out", ratios=(0.92, 0.04, 0.04))
    shares = pd.crosstab(all_rows(tmp_path / "out")["class_name"], all_rows(tmp_path / "out")["split"]) / 50
    for side, ratio in zip(SPLITS, (0.92, 0.04, 0.04), strict=True):
        assert shares[side].min() > 0
        assert shares[side].tolist() == pytest.approx(2 * [ratio], abs=SIDES_TOLERANCE)


# samples that cannot be (12)

def test_samples_without_measure_are_a_row_and_never_a_spectrogram(audio_dir, tmp_path, rng, monkeypatch):
    out, sound = tmp_path / "out", tiny_sound("mammal_call", seconds=2, rng=rng).astype(np.float64)
    for name, value in (("huge", 1e25), ("nan", math.nan), ("infinite", math.inf)):
        sound[12_000] = value
        soundfile.write(audio_dir / "mammal_call" / f"{name}.wav", sound, TINY_RATE, subtype="DOUBLE")
    run(audio_dir, out)
    files = files_table(out)
    for name in ("huge", "nan", "infinite"):
        row = files.loc[f"mammal_call/{name}.wav"]
        assert row["status"] == "corrupt" and f"{name}.wav" in row["reason"] and row["split"] == ""
    assert set(spectrogram_bytes(out)) == set(all_rows(out)["path"]) and len(all_rows(out)) == 12
    for side in SPLITS:
        dataset = SpectrogramDataset(read_manifest(out / f"{side}.csv"))
        assert all(dataset[number][0].isfinite().all() for number in range(len(dataset)))
    sound[12_000] = 0.1
    soundfile.write(audio_dir / "mammal_call" / "huge.wav", sound, TINY_RATE, subtype="DOUBLE")
    run(audio_dir, out)  # the advice to run again is worth something
    assert files_table(out)["status"]["mammal_call/huge.wav"] == "ok"


# values that once ended in a traceback (14)

def test_a_table_without_rows_is_told_in_words(tmp_path, audio_dir):
    (tmp_path / "labels.csv").write_text("path,label\n", encoding="utf-8")
    sources = sources_from_table(tmp_path / "labels.csv", audio_dir, columns=TableColumns(), group_by="recording")
    with pytest.raises(AudioError, match="there are no recordings to preprocess in .*audio: the table names none"):
        preprocess(preprocess_settings(audio_dir, tmp_path / "out"), sources, executor=ThisProcess(), overwrite=False)


def test_a_table_of_which_every_row_is_dropped_is_told_in_words(tmp_path, audio_dir):
    table_of(audio_dir, {}).to_csv(tmp_path / "labels.csv", index=False)
    sources = sources_from_table(tmp_path / "labels.csv", audio_dir, columns=TableColumns(), group_by="recording")
    dropped = apply_label_map(sources, {"owl": "owl"}, drop_unmapped=True)
    with pytest.raises(AudioError, match="or all its rows were dropped"):
        preprocess(preprocess_settings(audio_dir, tmp_path / "out"), dropped, executor=ThisProcess(), overwrite=False)


def test_classes_may_grow_without_bound(audio_dir, tmp_path):
    for number in range(4):
        (audio_dir / "mammal_call" / f"r{number}.wav").unlink()
    run(audio_dir, tmp_path / "out", balance_classes=True, max_balance_ratio=math.inf, ratios=(1.0, 0.0, 0.0),
        augmentation=COPIES["augmentation"])
    assert all_rows(tmp_path / "out")["class_name"].value_counts().to_dict() == {"amphibian_call": 6, "mammal_call": 6}
    assert read_json(tmp_path / "out" / "dataset.json")["settings"]["max_balance_ratio"] is None


# what belongs together lies together (16)

@pytest.mark.parametrize(("group_by", "path"), [("folder", "{name}/night{night}/{number}.wav"),
                                                ("night", "{name}/SMM1_2024050{night}_22{number}000.wav")])
def test_one_night_in_two_class_folders_is_one_group(tmp_path, rng, group_by, path):
    for name in CLASSES:
        for night in range(1, 7):
            for number in range(2):
                write_audio(tmp_path / "audio" / path.format(name=name, night=night, number=number),
                            tiny_sound(name, seconds=1, rng=rng))
    preprocess(preprocess_settings(tmp_path / "audio", tmp_path / "out", group_by=group_by),
               sources_from_folders(tmp_path / "audio", group_by=group_by), executor=ThisProcess(), overwrite=False)
    rows = all_rows(tmp_path / "out")
    assert rows["recording_id"].nunique() == 6 and set(rows["split"]) == set(SPLITS)
    of_group = rows.groupby("recording_id")
    assert (of_group["class_name"].nunique() == 2).all() and (of_group["split"].nunique() == 1).all()


def test_flat_class_folders_do_not_all_go_into_train(audio_dir, tmp_path, caplog):
    preprocess(preprocess_settings(audio_dir, tmp_path / "out", group_by="folder"),
               sources_from_folders(audio_dir, group_by="folder"), executor=ThisProcess(), overwrite=False)
    assert set(all_rows(tmp_path / "out")["split"]) == set(SPLITS)
    assert "--group_by folder: 12 of 12 recordings lie in no folder of their own" in caplog.text


# sound that was lost or copied in vain (17)

def test_copies_that_would_differ_in_level_alone_are_refused(audio_dir, tmp_path):
    level = AugmentationConfig(use_time_stretch=False, use_pitch_shift=False, use_noise=False,
                               use_waveform_equaliser=False, use_background=False)
    with pytest.raises(ConfigError, match="augmented copies would equal their windows"):
        run(audio_dir, tmp_path / "out", augmentation_factor=1, augmentation=level)


def test_one_click_costs_no_other_window_and_opposite_channels_are_told(audio_dir, tmp_path, rng):
    faint = 0.01 * tiny_sound("mammal_call", seconds=6, rng=rng)
    faint[2000:2016] = 0.9
    write_audio(audio_dir / "mammal_call" / "click.wav", faint)
    sound = tiny_sound("mammal_call", seconds=2, rng=rng)
    soundfile.write(audio_dir / "mammal_call" / "antiphase.wav", np.stack([sound, -sound], axis=1), TINY_RATE)
    run(audio_dir, tmp_path / "out", segment_selection="active")
    files = files_table(tmp_path / "out")
    assert files["n_segments"]["mammal_call/click.wav"] == 6
    row = files.loc["mammal_call/antiphase.wav"]
    assert row["status"] == "silent" and "antiphase" in row["reason"]


def test_a_broken_end_costs_the_sound_near_it_alone(audio_dir, tmp_path, rng):
    path = write_audio(audio_dir / "mammal_call" / "long.flac", tiny_sound("mammal_call", seconds=60, rng=rng))
    path.write_bytes(path.read_bytes()[:int(0.9 * path.stat().st_size)])
    run(audio_dir, tmp_path / "out")
    row = files_table(tmp_path / "out").loc["mammal_call/long.flac"]
    assert row["status"] == "ok" and "breaks off" in row["reason"] and row["n_segments"] >= 45


# nothing is done twice (18)

def test_ten_more_files_cost_the_work_of_ten_and_a_second_run_none(audio_dir, tmp_path, rng, monkeypatch):
    out = tmp_path / "out"
    run(audio_dir, out)
    add_recordings(audio_dir, rng, *(f"s{number}" for number in range(5)))
    done = count_calls(monkeypatch)
    run(audio_dir, out)
    assert sorted(done) == sorted(f"{name}/s{number}.wav" for name in CLASSES for number in range(5))
    done.clear()
    monkeypatch.setattr("utils.preparation.audit.audit", lambda *arguments, **named: pytest.fail("audited again"))
    monkeypatch.setattr("utils.reports.plot_overview", lambda *arguments, **named: pytest.fail("drawn again"))
    run(audio_dir, out)
    assert done == []


def test_a_folder_that_was_moved_is_not_worked_on_again(audio_dir, tmp_path, monkeypatch):
    """Paths in the journal are relative; copying keeps the times of files."""
    run(audio_dir, tmp_path / "out", **COPIES)
    texts = manifest_texts(tmp_path / "out")
    for name in ("audio", "out"):
        shutil.copytree(tmp_path / name, tmp_path / "elsewhere" / name)
    done, made = count_calls(monkeypatch), count_copies(monkeypatch)
    run(tmp_path / "elsewhere" / "audio", tmp_path / "elsewhere" / "out", **COPIES)
    assert (done, made) == ([], [])
    assert manifest_texts(tmp_path / "elsewhere" / "out") == texts


def test_a_changed_front_end_is_told_as_the_reason_why_all_is_done_again(audio_dir, tmp_path, caplog, monkeypatch):
    run(audio_dir, tmp_path / "out")
    done = count_calls(monkeypatch)
    assert "done again" not in caplog.text
    frontend = TINY_FRONTEND.replace(n_mels=16)
    run(audio_dir, tmp_path / "out", frontend=frontend, segment_overlap_ms=250)
    again = [message for message in caplog.messages if "done again" in message]
    assert again == ["every recording is done again: n_mels was 32, is 16; segment_overlap_ms was 0, is 250"]
    assert len(done) == 12
    caplog.clear()
    run(audio_dir, tmp_path / "out", frontend=frontend, segment_overlap_ms=250)
    assert "done again" not in caplog.text and len(done) == 12


def test_what_goes_on_says_how_much_is_done(audio_dir, tmp_path, caplog):
    stop_run(audio_dir, tmp_path / "out", n_noted=5)
    with caplog.at_level(logging.INFO, logger="utils.preparation.run"):
        run(audio_dir, tmp_path / "out")
    assert "continuing: 5 of 12 recordings are already done" in caplog.messages


def test_windows_of_an_edited_recording_are_those_of_its_sound(audio_dir, tmp_path, rng):
    run(audio_dir, tmp_path / "out")
    edited = write_audio(audio_dir / "mammal_call" / "r3.wav", tiny_sound("insect_sound", seconds=1, rng=rng))
    run(audio_dir, tmp_path / "out")
    path = all_rows(tmp_path / "out").set_index("source_path")["path"]["mammal_call/r3.wav"]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / path), LogMelFrontend(TINY_FRONTEND).log_mel(
        load_audio(edited, sample_rate=TINY_RATE)))
