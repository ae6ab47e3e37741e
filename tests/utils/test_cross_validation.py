import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from models.errors import ConfigError, ManifestError
from tests.conftest import TINY_CLASSES, tiny_config
from utils import cross_validation as cv
from utils.storage.checkpoints import read_checkpoint
from utils.storage.locks import locked
from utils.storage.manifest import read_manifest, recording_contents
from utils.storage.names import recording_hash

CPU = torch.device("cpu")
ROUNDING = 1e-12  # float64 sums of a few scores


class SmallNetwork(nn.Module):
    """A network that trains in milliseconds: cross-validation is about who sees which row."""

    def __init__(self, n_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d((8, 1)), nn.Flatten(), nn.Linear(8, n_classes))

    def forward(self, log_mel):
        return self.layers((log_mel - log_mel.mean(dim=(1, 2, 3), keepdim=True)) / 20.0)


@pytest.fixture
def small_network(monkeypatch):
    def begin(config, n_classes):
        torch.manual_seed(config.seed)
        return SmallNetwork(n_classes), config

    monkeypatch.setattr(cv, "begin", begin)


@pytest.fixture
def manifests(tiny_dataset, tmp_path):
    """Train and val, with an augmented copy of every training row (the same spectrogram will do)."""
    folder = tiny_dataset.output_dir
    rows = pd.read_csv(folder / "train.csv")
    copies = rows.assign(augmentation="aug01")
    with_copies = folder / "train_with_copies.csv"
    pd.concat([rows, copies]).to_csv(with_copies, index=False)
    yield [read_manifest(with_copies), read_manifest(folder / "val.csv")]
    with_copies.unlink()


def run(manifests, folder, *, k_folds=3, resume=False, config=None):
    return cv.cross_validate_manifests(manifests, config or tiny_config(epochs=2), model_dir=folder, k_folds=k_folds,
                                       device=CPU, n_workers=0, resume=resume)


def spy_on_rows(monkeypatch):
    """Return a list that gets the rows of every fold's training, selection and held-out data, in turn."""
    taken, usual = [], cv.SpectrogramDataset

    class Spy(usual):
        def __init__(self, manifest, rows=None):
            super().__init__(manifest, rows)
            taken.append(manifest.rows.iloc[np.asarray(rows)])

    monkeypatch.setattr(cv, "SpectrogramDataset", Spy)
    return taken


def test_no_fold_is_scored_on_what_it_saw(manifests, tmp_path, monkeypatch, small_network):
    taken = spy_on_rows(monkeypatch)
    run(manifests, tmp_path)
    _, *parts = taken  # the first only looks at the shape
    assert len(parts) == 3 * 3
    held_out_everywhere = []
    for train, selection, held_out in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        groups = [set(part["recording_id"]) for part in (train, selection, held_out)]
        assert all(groups)
        assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
        assert set(selection["augmentation"]) == set(held_out["augmentation"]) == {"none"}
        assert set(train["augmentation"]) == {"none", "aug01"}
        held_out_everywhere += list(held_out["path"])
    originals = [path for manifest in manifests
                 for path in manifest.rows.loc[manifest.rows["augmentation"] == "none", "path"]]
    assert sorted(path.split("/")[-1] for path in held_out_everywhere) == \
        sorted(path.split("/")[-1] for path in originals)


def test_each_recording_is_held_out_once_and_whole(manifests, tmp_path, monkeypatch, small_network):
    taken = spy_on_rows(monkeypatch)
    run(manifests, tmp_path)
    folds = [set(part["recording_id"]) for part in taken[1:][2::3]]
    everything = {recording for manifest in manifests for recording in manifest.recording_ids()}
    assert set.union(*folds) == everything
    assert sum(map(len, folds)) == len(everything)


def test_a_fold_is_calibrated_by_the_recordings_that_chose_its_epoch(manifests, tmp_path, monkeypatch, small_network):
    taken, fitted_on = spy_on_rows(monkeypatch), []
    usual = cv.calibration.fit

    def fit(logits, labels, *, recording_ids):
        fitted_on.append((labels.tolist(), list(recording_ids)))
        return usual(logits, labels, recording_ids=recording_ids)

    monkeypatch.setattr(cv.calibration, "fit", fit)
    run(manifests, tmp_path, config=tiny_config(epochs=1))
    selections = taken[1:][1::3]
    assert fitted_on == [(rows["label"].tolist(), list(rows["recording_id"])) for rows in selections]


def test_mean_and_deviation_are_those_of_the_folds(manifests, tmp_path, small_network):
    summary = run(manifests, tmp_path)
    for name in ("accuracy", "macro_f1", "log_loss"):
        scores = [fold[name] for fold in summary["folds"]]
        assert len(scores) == 3
        mean = sum(scores) / 3
        assert summary["mean"][name] == pytest.approx(mean, abs=ROUNDING)
        assert summary["std"][name] == pytest.approx((sum((s - mean) ** 2 for s in scores) / 2) ** 0.5, abs=ROUNDING)
    n_originals = sum((manifest.rows["augmentation"] == "none").sum() for manifest in manifests)
    assert summary["n_clips"] == n_originals == sum(np.sum(fold["confusion_matrix"]) for fold in summary["folds"])


def test_the_folder_of_a_cross_validation(manifests, tmp_path, small_network):
    summary = run(manifests, tmp_path)
    written = json.loads((tmp_path / "cross_validation" / "summary.json").read_text(encoding="utf-8"))
    assert written["format_version"] == 1 and written["mean"] == summary["mean"] and written["k_folds"] == 3
    for number, scores in enumerate(summary["folds"], start=1):
        fold = tmp_path / "cross_validation" / f"fold_{number}"
        assert read_checkpoint(fold / "efficientnet_best.pth")["class_names"] == list(TINY_CLASSES)
        assert len(pd.read_csv(fold / "history.csv")) == 2
        assert json.loads((fold / "metrics.json").read_text(encoding="utf-8"))["scores"] == scores


def test_resuming_keeps_finished_folds(manifests, tmp_path, monkeypatch, small_network):
    straight = run(manifests, tmp_path / "straight")
    usual, started = cv.fit, []

    def fit(task, optimisation, history, *, after_epoch):
        if len(started) == stop_before:
            raise KeyboardInterrupt
        started.append(1)
        return usual(task, optimisation, history, after_epoch=after_epoch)

    stop_before = 2
    monkeypatch.setattr(cv, "fit", fit)
    with pytest.raises(KeyboardInterrupt, match="^$"):
        run(manifests, tmp_path / "stopped")
    started.clear()
    assert run(manifests, tmp_path / "stopped", resume=True) == straight
    assert len(started) == 1


def test_folds_of_other_settings_are_not_kept(manifests, tmp_path, monkeypatch, small_network):
    run(manifests, tmp_path)
    usual, started = cv.fit, []

    def fit(task, optimisation, history, *, after_epoch):
        started.append(task.config.learning_rate)
        return usual(task, optimisation, history, after_epoch=after_epoch)

    monkeypatch.setattr(cv, "fit", fit)
    run(manifests, tmp_path, resume=True, config=tiny_config(epochs=2, learning_rate=0.01))
    assert started == [0.01] * 3


def test_finished_folds_are_continued_or_kept(manifests, tmp_path, small_network):
    run(manifests, tmp_path)
    folder = tmp_path / "cross_validation"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="cross_validation holds a cross-validation with 3 finished folds: pass"
                                          " --resume to continue it, or choose another --model_dir"):
        run(manifests, tmp_path)
    (folder / "summary.json").unlink()  # as after an interruption
    with pytest.raises(ConfigError, match="with 3 finished folds"):
        run(manifests, tmp_path)
    run(manifests, tmp_path, resume=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for number in (1, 2, 3):  # a person who keeps the summary alone wants to keep that
        shutil.rmtree(folder / f"fold_{number}")
    with pytest.raises(ConfigError, match="with 0 finished folds"):
        run(manifests, tmp_path)


def test_a_model_folder_is_held_while_folds_are_trained(manifests, tmp_path, small_network):
    with locked(tmp_path), pytest.raises(ConfigError, match="is being written by process"):
        run(manifests, tmp_path)
    assert not (tmp_path / "cross_validation").exists()


def test_fold_checkpoints_tell_what_they_learnt_from_and_not_what_was_held_out(manifests, tmp_path, monkeypatch,
                                                                               small_network):
    taken = spy_on_rows(monkeypatch)
    run(manifests, tmp_path)
    contents = {}
    for manifest in manifests:
        contents.update(recording_contents(manifest))
    assert all(contents.values())
    for number, held_out in enumerate(taken[1:][2::3], start=1):
        fold = read_checkpoint(tmp_path / "cross_validation" / f"fold_{number}" / "efficientnet_best.pth")
        learnt = set(contents) - set(held_out["recording_id"])
        assert fold["metadata"]["recordings"] == sorted(map(recording_hash, learnt))
        assert fold["metadata"]["recording_contents"] == sorted(set().union(*(contents[name] for name in learnt)))
        assert not set().union(*(contents[name] for name in held_out["recording_id"])) & \
            set(fold["metadata"]["recording_contents"])


def test_fewer_recordings_than_folds_are_refused(manifests, tmp_path, small_network):
    with pytest.raises(ManifestError, match="50 folds need at least 50 recordings, got .*: lower --k_folds"):
        run(manifests, tmp_path, k_folds=50)


def test_mean_and_deviation_by_hand():
    mean, deviation = cv.mean_and_deviation([{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 3.0}, {"a": 6.0, "b": 3.0}])
    assert mean == pytest.approx({"a": 3.0, "b": 3.0})
    assert deviation == pytest.approx({"a": math.sqrt((4 + 1 + 9) / 2), "b": 0.0})
    assert cv.mean_and_deviation([{"a": 5.0}]) == ({"a": 5.0}, {"a": 0.0})


# the documented call

def arrays(rng, n_windows):
    labels = np.arange(n_windows) % 2
    log_mels = -40 + rng.standard_normal((n_windows, 32, 16)).astype(np.float32)
    log_mels[labels == 1, 16:] += 30
    return log_mels, labels


def test_the_documented_call(rng, monkeypatch):
    all_spectrograms, all_labels = arrays(rng, 12)
    fast = tiny_config(epochs=1, model_name="resnet18")
    monkeypatch.setattr(cv, "get_config", lambda name: fast)
    cv_results = cv.run_cross_validation(spectrograms=all_spectrograms, labels=all_labels, k_folds=3, random_state=42)
    assert cv_results["k_folds"] == 3 and cv_results["n_clips"] == 12 and cv_results["random_state"] == 42
    assert [len(fold["confusion_matrix"]) for fold in cv_results["folds"]] == [2, 2, 2]
    confusions = np.array([fold["confusion_matrix"] for fold in cv_results["folds"]])
    assert confusions.sum(axis=(0, 2)).tolist() == [6, 6]  # every spectrogram was scored once, under its own label
    accuracies = confusions.trace(axis1=1, axis2=2) / confusions.sum(axis=(1, 2))
    assert cv_results["mean"]["accuracy"] == pytest.approx(accuracies.mean(), abs=ROUNDING)


def test_separable_classes_are_learnt_and_the_seed_repeats(rng, small_network):
    spectrograms, labels = arrays(rng, 24)
    config = tiny_config(epochs=20, learning_rate=0.05)
    first = cv.run_cross_validation(list(spectrograms), labels.tolist(), k_folds=3, random_state=1, config=config,
                                    device="cpu")
    again = cv.run_cross_validation(spectrograms, labels, k_folds=3, random_state=1, config=config, device="cpu")
    assert first["mean"]["accuracy"] == 1.0
    assert first == again


def test_recording_ids_keep_windows_together(rng, monkeypatch, small_network):
    spectrograms, labels = arrays(rng, 24)
    recordings = np.array([f"r{label}{index // 6}" for index, label in enumerate(labels)])
    seen, usual = [], cv.ArrayDataset

    def spy(chosen, chosen_labels):
        seen.append({recordings[index] for window in chosen for index in np.flatnonzero(
            (spectrograms == window).all(axis=(1, 2)))})
        return usual(chosen, chosen_labels)

    monkeypatch.setattr(cv, "ArrayDataset", spy)
    cv.run_cross_validation(spectrograms, labels, k_folds=2, random_state=0, recording_ids=recordings,
                            config=tiny_config(epochs=1), device="cpu")
    for train, selection, held_out in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
        assert not train & held_out and not selection & held_out and not train & selection


@pytest.mark.parametrize("labels, reason", [
    ([0, 1], "must be equally long, got 4 and 2"),
    ([0, 0, 0, 0], "of at least 2 classes"),
    ([1, 2, 1, 2], r"labels must be 0\.\.n_classes-1"),
    ([0, 2, 0, 2], r"labels must be 0\.\.n_classes-1"),
])
def test_labels_that_do_not_fit_are_refused(labels, reason):
    with pytest.raises(ConfigError, match=reason):
        cv.run_cross_validation(np.zeros((4, 8, 8), dtype=np.float32), labels, k_folds=2)
