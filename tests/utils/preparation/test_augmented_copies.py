import json
import math

import numpy as np
import pandas as pd
import pytest
import soundfile

from models.efficientnet_config import AugmentationConfig
from tests.conftest import TINY_RATE, preprocess_settings
from tests.utils.preparation.conftest import (ODD_TEXT, add_odd_name, all_rows, any_bytes_are_names, count_calls,
                                              count_readers, run, source_of, spectrogram_bytes)
from utils.preparation import augmented_copies
from utils.preparation.augmented_copies import AugmentationJob, Copy, augment_recording, copy_path, plan_copies
from utils.preparation.extraction import extract_recording
from utils.running.parallel import LocalProcesses
from utils.storage.files import save_array

FAST_AUGMENTATION = AugmentationConfig(use_time_stretch=False, use_pitch_shift=False)
NO_CHANGE = AugmentationConfig(use_time_stretch=False, use_pitch_shift=False, use_noise=False, use_volume=False,
                               use_waveform_equaliser=False, use_background=False)


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
    (0, math.inf, [0] * 7 + [2, 1, 1]),
])
def test_balancing_by_hand(tmp_path, factor, ratio, expected):
    train = pd.DataFrame({"class_name": ["owl"] * 7 + ["fox"] * 3})
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


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_change_no_copy(audio_dir, tmp_path):
    run(audio_dir, tmp_path / "here", augmentation_factor=2)
    run(audio_dir, tmp_path / "there", augmentation_factor=2, executor=LocalProcesses(2))
    assert spectrogram_bytes(tmp_path / "here") == spectrogram_bytes(tmp_path / "there")
    for name in ("train.csv", "val.csv", "test.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_the_copies_of_a_recording_come_from_one_pass(tmp_path, rng, monkeypatch):
    """Nothing is changed in these copies, so each must equal its window."""
    samples = rng.uniform(-0.5, 0.5, 90 * TINY_RATE).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    settings = preprocess_settings(tmp_path, tmp_path / "out", augmentation=NO_CHANGE, segment_overlap_ms=500)
    windows = extract_recording(settings, source_of("a.wav")).windows
    rows = [{"path": window.path, "start_seconds": window.start_sample / TINY_RATE,
             "end_seconds": window.end_sample / TINY_RATE} for window in windows]
    opened = count_readers(monkeypatch, augmented_copies)
    copies = [[Copy(1, None), Copy(2, None)]] * len(rows)
    made = augment_recording(settings, AugmentationJob("a.wav", rows, copies))
    assert [reader.duration_seconds for reader in opened] == [90.0]
    assert made == [copy_path(window.path, number) for window in windows for number in (1, 2)]
    for path in made:
        np.testing.assert_array_equal(np.load(tmp_path / "out" / path),
                                      np.load(tmp_path / "out" / f"{path[:-len('_aug01.npy')]}.npy"))


def test_an_emptied_copy_is_made_again(audio_dir, tmp_path, monkeypatch):
    run(audio_dir, tmp_path / "out", augmentation_factor=1, augmentation=FAST_AUGMENTATION)
    before = spectrogram_bytes(tmp_path / "out")
    path = next((tmp_path / "out").rglob("*_aug01.npy"))
    path.write_bytes(b"")
    extracted = count_calls(monkeypatch)
    made = []
    monkeypatch.setattr(augmented_copies, "save_array", lambda path, array: (made.append(path.name),
                                                                             save_array(path, array)))
    run(audio_dir, tmp_path / "out", augmentation_factor=1, augmentation=FAST_AUGMENTATION)
    assert extracted == [] and made == [path.name]
    assert spectrogram_bytes(tmp_path / "out") == before


@pytest.mark.parametrize(("changes", "n_made"), [({"use_low_pass": False, "n_time_masks": 5}, 0),
                                                 ({"noise_snr_db_range": (3.0, 4.0)}, None)])
def test_only_settings_of_waveforms_make_copies_anew(audio_dir, tmp_path, monkeypatch, changes, n_made):
    run(audio_dir, tmp_path / "out", augmentation_factor=1, augmentation=FAST_AUGMENTATION)
    made = []
    monkeypatch.setattr(augmented_copies, "save_array", lambda path, array: (made.append(path.name),
                                                                             save_array(path, array)))
    run(audio_dir, tmp_path / "out", augmentation_factor=1, augmentation=FAST_AUGMENTATION.replace(**changes))
    n_copies = len(list((tmp_path / "out").rglob("*_aug01.npy")))
    assert len(made) == (n_copies if n_made is None else n_made) and n_copies


@any_bytes_are_names
def test_a_recording_whose_name_is_no_text_gets_its_copies(audio_dir, tmp_path, rng):
    add_odd_name(audio_dir / "mammal_call", rng)
    run(audio_dir, tmp_path / "out", augmentation_factor=1, augmentation=FAST_AUGMENTATION,
        ratios=(1.0, 0.0, 0.0))  # all of them are for training
    rows = all_rows(tmp_path / "out")
    odd = rows[rows["source_path"] == f"mammal_call/{ODD_TEXT}"]
    assert sorted(odd["augmentation"]) == ["aug01", "none"]
    assert all((tmp_path / "out" / path).exists() for path in odd["path"])
