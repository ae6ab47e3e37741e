import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from models import calibration
from models.audio_frontend import frontend_fingerprint
from models.calibration import Calibration, cross_fitted_probabilities
from models.classes import ClassList
from models.efficientnet import build_model
from models.efficientnet_config import AugmentationConfig
from models.errors import CheckpointError, ConfigError, ManifestError
from tests.conftest import TINY_CLASSES, TINY_FRONTEND, tiny_config
from utils import metrics, training_utils
from utils.storage import checkpoints
from utils.training import run as training
from utils.training import starter
from utils.storage.checkpoints import load_model, read_checkpoint
from utils.storage.config_files import read_config
from utils.storage.spectrograms import SpectrogramDataset
from utils.storage.locks import locked
from utils.storage.manifest import Manifest, recording_contents
from utils.storage.names import recording_hash
from utils.storage.splits import grouped_folds
from utils.training.distributed import Processes
from utils.training.data import TrainingData, check_shape, read_training_data, with_frontend
from utils.training.model_folder import ModelFolder, checkpoint_path
from utils.training.run import resume_config, train_model
from utils.training_utils import TrainingHistory, predict_logits

CPU = torch.device("cpu")
PICTURES = ("history.png", "confusion_matrix.png", "roc_curves.png", "precision_recall_curves.png", "reliability.png")


class SmallNetwork(nn.Module):
    """Stands for a backbone where a test is about the run, not the network; it has batch norm and dropout."""

    def __init__(self, n_classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                                    nn.Dropout(0.5), nn.Linear(4 * 8 * 8, n_classes))

    def forward(self, log_mel):
        return self.layers(log_mel / 20.0)


@pytest.fixture
def small_network(monkeypatch):
    """Build small networks and draw no pictures: a training run then takes a fraction of a second."""
    def build(config, n_classes):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            return SmallNetwork(n_classes)

    for module in (training, starter, checkpoints):
        monkeypatch.setattr(module, "build_model", build)
    for name in ("plot_history", "plot_confusion_matrix", "plot_roc_curves", "plot_precision_recall_curves",
                 "plot_reliability"):
        monkeypatch.setattr(training.reports, name, lambda *arguments, **named: None)


@pytest.fixture
def dataset_copy(tiny_dataset, tmp_path):
    """The preprocessed folder, free to be spoilt."""
    return shutil.copytree(tiny_dataset.output_dir, tmp_path / "dataset")


def read_data(folder, *, allow_leakage=False):
    return read_training_data(folder / "train.csv", folder / "val.csv", allow_leakage=allow_leakage)


def train(data, config, model_dir, *, resume_from=None):
    return train_model(data, config, model_dir=model_dir, device=CPU, n_workers=0, resume_from=resume_from)


def leak(folder):
    """Put one training recording into the validation manifest as well."""
    train_rows, val_rows = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "val.csv")
    pd.concat([val_rows, train_rows.iloc[:1]]).to_csv(folder / "val.csv", index=False)
    return train_rows["recording_id"].iloc[0]


def edit_frontend(folder, **changes):
    path = folder / "dataset.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    frontend = TINY_FRONTEND.replace(**changes)
    info.update(frontend=frontend.to_dict(), fingerprint=frontend_fingerprint(frontend))
    path.write_text(json.dumps(info), encoding="utf-8")


# the model folder

def test_the_folder_holds_what_the_contract_lists(tiny_model):
    assert tiny_model.files == {"efficientnet_best.pth", "efficientnet_last.pth", "config.json", "history.csv",
                                "metrics.json", *PICTURES}
    for name in PICTURES:
        assert (tiny_model.model_dir / name).read_bytes().startswith(b"\x89PNG")
    assert tiny_model.best.stat().st_size < 50e6


def test_config_json_is_the_resolved_config(tiny_model):
    assert read_config(tiny_model.model_dir / "config.json") == tiny_model.config.replace(frontend=TINY_FRONTEND)


def test_history_has_a_row_an_epoch_and_agrees_with_the_scores(tiny_model):
    history = pd.read_csv(tiny_model.model_dir / "history.csv")
    assert list(history.columns) == ["epoch", "train_loss", "val_loss", "val_accuracy", "val_macro_f1",
                                     "learning_rate", "seconds"]
    assert history["epoch"].tolist() == list(range(1, tiny_model.config.epochs + 1))
    scores = json.loads((tiny_model.model_dir / "metrics.json").read_text(encoding="utf-8"))
    assert scores["split"] == "validation" and scores["epochs"] == len(history)
    best = history.iloc[scores["best_epoch"] - 1]
    assert best["val_macro_f1"] == pytest.approx(history["val_macro_f1"].max())  # two epochs may differ by a rounding
    assert scores["accuracy"] == pytest.approx(best["val_accuracy"])
    assert scores["macro_f1"] == pytest.approx(best["val_macro_f1"])
    assert scores["accuracy"] == tiny_model.scores["accuracy"]


def test_scores_belong_to_the_deployed_checkpoint(tiny_model, tiny_dataset):
    trained = load_model(tiny_model.best)
    val = SpectrogramDataset(tiny_dataset.training_data().val)
    logits, labels = predict_logits(trained.network, val, config=trained.description.config, device=CPU, n_workers=0)
    assert tiny_model.scores["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())


def test_the_network_learns_the_tiny_classes(tiny_model):
    assert tiny_model.scores["accuracy"] > 0.5  # chance is a quarter


def test_the_checkpoint_is_self_contained(tiny_model, tiny_dataset):
    content, trained = read_checkpoint(tiny_model.best), load_model(tiny_model.best)
    assert trained.description.classes.names == TINY_CLASSES
    assert trained.description.frontend == TINY_FRONTEND
    assert content["thresholds"] == {"bird_song": 0.70, "mammal_call": 0.75, "insect_sound": 0.65,
                                     "amphibian_call": 0.70}
    assert content["metadata"]["allowed_leakage"] == [] and "training" not in content
    data = tiny_dataset.training_data()
    ids = set(data.train.recording_ids()) | set(data.val.recording_ids())
    assert content["metadata"]["recordings"] == sorted(map(recording_hash, ids))
    contents = {**recording_contents(data.train), **recording_contents(data.val)}
    assert set(contents) == ids and all(contents.values())
    assert content["metadata"]["recording_contents"] == sorted(set().union(*contents.values()))
    assert "training" in read_checkpoint(tiny_model.model_dir / "efficientnet_last.pth")


def test_batch_norm_settings_are_kept_with_the_weights(tiny_dataset, tmp_path, small_network):
    train(tiny_dataset.training_data(), tiny_config(epochs=1, batch_norm_momentum=None), tmp_path)
    # a handful of steps an epoch: the fastest momentum
    assert read_checkpoint(tmp_path / "efficientnet_best.pth")["config"]["batch_norm_momentum"] == 0.1
    assert read_config(tmp_path / "config.json").batch_norm_momentum == 0.1


def test_a_loaded_model_has_the_batch_norms_it_was_trained_with(tiny_model):
    norms = [m for m in load_model(tiny_model.best).network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and {(m.momentum, m.eps) for m in norms} == {(tiny_model.config.batch_norm_momentum, 1e-5)}


@pytest.mark.parametrize("name, kind, expected", [("efficientnet-b3", "best", "efficientnet_best.pth"),
                                                  ("resnet18", "last", "resnet18_last.pth")])
def test_checkpoint_names(tmp_path, name, kind, expected):
    assert checkpoint_path(tmp_path, name, kind) == tmp_path / expected


# what is said of validation, and the thresholds

def model_folder(path, labels, recording_ids, **changes):
    """Return a folder whose validation has these labels and recordings."""
    rows = pd.DataFrame({"label": labels, "recording_id": recording_ids})
    manifest = Manifest(path / "val.csv", rows, ClassList(TINY_CLASSES[:3]), TINY_FRONTEND)
    return ModelFolder(path, tiny_config(**changes), TrainingData(train=manifest, val=manifest, shared_recordings=[]),
                       {})


def finish(folder, logits, labels):
    """Save and finish a run of one epoch with these validation logits; return ``metrics.json``."""
    history = TrainingHistory()
    history.add({"epoch": 1, "val_macro_f1": 1.0}, monitor="macro_f1")
    network = SmallNetwork(3)
    folder.save_epoch(network, SimpleNamespace(kept=network, state_dict=dict), history, logits, labels)
    content = read_checkpoint(folder.best)
    folder.finish(logits, labels, Calibration.from_dict(content["calibration"]), about={})
    return json.loads((folder.path / "metrics.json").read_text(encoding="utf-8"))


def validation(rng, n_recordings, *, n_windows=1, signal=1.5):
    labels = np.repeat(rng.permutation(np.arange(n_recordings) % 3), n_windows)
    logits = signal * np.eye(3)[labels] + rng.normal(size=(len(labels), 3))
    return logits, labels, np.repeat([f"r{number}" for number in range(n_recordings)], n_windows)


def test_validation_scores_are_cross_fitted_by_recording(tmp_path, rng, small_network, monkeypatch):
    titles = []
    monkeypatch.setattr(training.reports, "plot_reliability",
                        lambda *arguments, title: titles.append(title))
    logits, labels, recording_ids = validation(rng, 30, n_windows=2)
    folder = model_folder(tmp_path, labels, recording_ids)
    scores = finish(folder, logits, labels)
    folds = grouped_folds(labels, recording_ids, n_folds=5, random_state=folder.config.seed)
    crossed = cross_fitted_probabilities(logits, labels, folds, recording_ids=recording_ids)
    expected = metrics.evaluate(crossed, labels, class_names=TINY_CLASSES[:3])
    for name in ("ece", "log_loss", "brier_score", "macro_f1"):
        assert scores[name] == pytest.approx(expected[name])
    assert scores["calibration_scores"] == "cross_fitted" and titles[0].endswith("calibration cross-fitted")
    deployed = calibration.fit(logits, labels, recording_ids=recording_ids)
    assert scores["temperature"] == deployed.temperature and scores["class_biases"] == list(deployed.class_biases)
    assert read_checkpoint(folder.best)["calibration"] == deployed.to_dict()
    in_sample = metrics.evaluate(deployed.probabilities(logits), labels, class_names=TINY_CLASSES[:3])
    assert scores["log_loss"] > in_sample["log_loss"]


def test_with_too_few_recordings_the_scores_are_in_sample_and_say_so(tmp_path, rng, small_network):
    logits, labels, recording_ids = validation(rng, 5, n_windows=4)
    scores = finish(model_folder(tmp_path, labels, recording_ids), logits, labels)
    assert scores["calibration_scores"] == "in_sample"
    fitted = calibration.fit(logits, labels, recording_ids=recording_ids)
    expected = metrics.evaluate(fitted.probabilities(logits), labels, class_names=TINY_CLASSES[:3])
    assert scores["log_loss"] == pytest.approx(expected["log_loss"])


def test_a_target_precision_sets_the_thresholds_of_the_checkpoint_and_the_config(tmp_path, rng, small_network):
    logits, labels, recording_ids = validation(rng, 300, signal=3.0)
    folder = model_folder(tmp_path, labels, recording_ids, target_precision=0.9, reject_class=TINY_CLASSES[2])
    scores = finish(folder, logits, labels)
    found = read_checkpoint(folder.best)["thresholds"]
    assert found[TINY_CLASSES[2]] == folder.config.threshold(TINY_CLASSES[2])  # the reject class promises nothing
    assert read_config(tmp_path / "config.json").thresholds == {**folder.config.thresholds, **found}
    for row in scores["answered"]["per_class"]:
        assert row["threshold"] == found[row["class_name"]] != folder.config.threshold(row["class_name"])
        assert row["precision"] >= 0.9
    # what is resumed asks for the precision again: it keeps the thresholds of the config
    assert read_checkpoint(folder.last)["config"] == folder.config.to_dict()


def test_a_class_that_cannot_keep_the_precision_is_never_reported(tmp_path, rng, small_network, caplog):
    logits, labels, recording_ids = validation(rng, 30, signal=0.0)
    folder = model_folder(tmp_path, labels, recording_ids, target_precision=0.9)
    scores = finish(folder, logits, labels)
    assert set(read_checkpoint(folder.best)["thresholds"].values()) == {1.0}
    assert scores["answered"]["share"] == 0.0
    assert "bird_song, mammal_call, insect_sound will never be reported: on validation no threshold" in caplog.text


def test_without_a_target_the_thresholds_stay(tmp_path, rng, small_network):
    logits, labels, recording_ids = validation(rng, 30)
    folder = model_folder(tmp_path, labels, recording_ids)
    finish(folder, logits, labels)
    assert read_checkpoint(folder.best)["thresholds"] == {name: folder.config.threshold(name)
                                                          for name in TINY_CLASSES[:3]}


# what is refused

def test_a_recording_on_both_sides_is_refused(dataset_copy):
    shared = leak(dataset_copy)
    with pytest.raises(ManifestError, match=rf"share 1 recordings \({shared}\).*--allow_leakage"):
        read_data(dataset_copy)


def test_allowed_leakage_stands_in_the_checkpoint(dataset_copy, tmp_path, small_network):
    shared = leak(dataset_copy)
    data = read_data(dataset_copy, allow_leakage=True)
    train(data, tiny_config(epochs=1), tmp_path / "model")
    assert load_model(tmp_path / "model" / "efficientnet_best.pth").description.metadata["allowed_leakage"] == [shared]
    scores = json.loads((tmp_path / "model" / "metrics.json").read_text(encoding="utf-8"))
    assert scores["allowed_leakage"] == [shared]


def test_different_front_ends_are_refused_by_the_field_that_differs(dataset_copy, tmp_path):
    other = shutil.copytree(dataset_copy, tmp_path / "other")
    edit_frontend(other, f_min=100.0)
    with pytest.raises(ManifestError, match=r"different front ends: f_min 50\.0 and 100\.0; preprocess both"):
        read_training_data(dataset_copy / "train.csv", other / "val.csv", allow_leakage=False)


def test_one_class_is_refused(dataset_copy):
    rows = pd.read_csv(dataset_copy / "train.csv")
    rows[rows["label"] == 2].to_csv(dataset_copy / "train.csv", index=False)
    with pytest.raises(ManifestError, match="train.csv holds only one class"):
        read_data(dataset_copy)


def test_a_missing_spectrogram_is_named(dataset_copy, tmp_path, small_network):
    lost = pd.read_csv(dataset_copy / "train.csv")["path"].iloc[3]
    (dataset_copy / lost).unlink()
    with pytest.raises(ManifestError, match=f"{lost.split('/')[-1]} cannot be read.*preprocess_enhanced.py"):
        train(read_data(dataset_copy), tiny_config(epochs=1), tmp_path / "model")


@pytest.mark.parametrize("spoilt, reason", [
    (np.full((32, 32), np.nan, dtype=np.float32), "must hold finite float"),
    (np.zeros((32, 31), dtype=np.float32), "has shape"),
    (np.zeros((32, 32), dtype=np.int16), "must hold finite float"),
])
def test_a_spoilt_spectrogram_is_named(dataset_copy, tmp_path, small_network, spoilt, reason):
    path = pd.read_csv(dataset_copy / "train.csv")["path"].iloc[5]
    np.save(dataset_copy / path, spoilt)
    with pytest.raises(ManifestError, match=f"{path.split('/')[-1]}.*{reason}"):
        train(read_data(dataset_copy), tiny_config(epochs=1), tmp_path / "model")


def test_spectrograms_of_another_front_end_are_refused(dataset_copy):
    edit_frontend(dataset_copy, n_mels=40)
    data = read_data(dataset_copy)
    config = with_frontend(tiny_config(), data.train)
    with pytest.raises(ManifestError, match=r"have shape \(32, 32\), the front end makes \(40, 32\)"):
        check_shape(SpectrogramDataset(data.train), config, data.train.path)


# going on

def interrupt_epoch(monkeypatch, epoch):
    """Stop a run, as Ctrl-C does, when an epoch begins."""
    usual = training_utils.train_epoch

    def train_epoch(task, optimisation, *, epoch):
        if epoch == stop_at:
            raise KeyboardInterrupt
        return usual(task, optimisation, epoch=epoch)

    stop_at = epoch
    monkeypatch.setattr(training_utils, "train_epoch", train_epoch)


def assert_same_run(first, second):
    one, two = read_checkpoint(first / "efficientnet_last.pth"), read_checkpoint(second / "efficientnet_last.pth")
    assert one["weights"].keys() == two["weights"].keys()
    for name, value in one["weights"].items():
        assert torch.equal(value, two["weights"][name]), name
    assert one["training"]["schedule"] == two["training"]["schedule"]
    averages = [state["training"].get("average", {}) for state in (one, two)]
    assert averages[0].keys() == averages[1].keys()
    for name, value in averages[0].items():
        assert torch.equal(value, averages[1][name]), name
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (first, second)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    best = [read_checkpoint(folder / "efficientnet_best.pth")["weights"] for folder in (first, second)]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_is_the_same_run(tiny_dataset, tmp_path, monkeypatch, small_network, optimizer):
    data = tiny_dataset.training_data()
    config = tiny_config(epochs=4, optimizer=optimizer, use_augmentation=True, warmup_epochs=1, accumulation_steps=2,
                         batch_size=4)
    straight = train(data, config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupt_epoch(patch, 3)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            train(data, config, tmp_path / "stopped")
    assert len(pd.read_csv(tmp_path / "stopped" / "history.csv")) == 2
    last = tmp_path / "stopped" / "efficientnet_last.pth"
    resumed = train(data, resume_config(last, None, []), tmp_path / "stopped", resume_from=last)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    assert resumed == straight


@pytest.mark.parametrize("changes", [
    {},
    {"freeze_epochs": 1, "layer_decay": 0.7, "l2_to_start": 50.0, "ema_decay": 0.9, "reestimate_batch_norm": True,
     "class_weights": "sqrt", "optimizer": "sgd", "accumulation_steps": 2, "probe_first": True},
    {"freeze_batch_norm": True, "l2_to_start": 50.0, "reestimate_batch_norm": True},
], ids=["plain", "fine_tuning", "frozen_batch_norm"])
def test_a_resumed_efficientnet_is_the_same_network(tiny_dataset, tmp_path, monkeypatch, changes):
    """Stochastic depth and dropout draw while training: they too must go on as they would have."""
    data = tiny_dataset.training_data()
    config = tiny_config(epochs=2, batch_size=16, dropout_rate=0.3, drop_connect_rate=0.2, use_augmentation=True,
                         augmentation=AugmentationConfig(use_equaliser=True, use_low_pass=True), **changes)
    for name in ("plot_history", "plot_confusion_matrix", "plot_roc_curves", "plot_precision_recall_curves",
                 "plot_reliability"):
        monkeypatch.setattr(training.reports, name, lambda *arguments, **named: None)
    train(data, config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupt_epoch(patch, 2)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            train(data, config, tmp_path / "stopped")
    last = tmp_path / "stopped" / "efficientnet_last.pth"
    train(data, resume_config(last, None, []), tmp_path / "stopped", resume_from=last)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.parametrize("interrupted_epoch", [2, 4])
def test_a_resumed_average_is_the_same_average(tiny_dataset, tmp_path, monkeypatch, small_network, interrupted_epoch):
    data = tiny_dataset.training_data()
    config = tiny_config(epochs=4, ema_decay=0.8, use_augmentation=True, batch_size=4)
    train(data, config, tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupt_epoch(patch, interrupted_epoch)
        with pytest.raises(KeyboardInterrupt, match="^$"):
            train(data, config, tmp_path / "stopped")
    last = tmp_path / "stopped" / "efficientnet_last.pth"
    train(data, resume_config(last, None, []), tmp_path / "stopped", resume_from=last)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_the_average_is_deployed_and_the_newest_weights_are_resumed(tiny_dataset, tmp_path, small_network):
    train(tiny_dataset.training_data(), tiny_config(epochs=1, ema_decay=0.9, batch_size=4), tmp_path)
    best, last = (read_checkpoint(tmp_path / f"efficientnet_{kind}.pth") for kind in ("best", "last"))
    average = last["training"]["average"]
    for name, value in best["weights"].items():
        assert torch.equal(value, average[f"module.{name}"])
    assert not torch.equal(best["weights"]["layers.0.weight"], last["weights"]["layers.0.weight"])


def test_the_same_seed_trains_the_same_model(tiny_dataset, tmp_path, small_network):
    data, config = tiny_dataset.training_data(), tiny_config(epochs=2, use_augmentation=True)
    for name in ("first", "second"):
        train(data, config, tmp_path / name)
    assert_same_run(tmp_path / "first", tmp_path / "second")


def test_a_finished_run_can_be_prolonged_but_not_changed(tiny_dataset, tmp_path, small_network):
    data, config = tiny_dataset.training_data(), tiny_config(epochs=2)
    train(data, config, tmp_path)
    last = tmp_path / "efficientnet_last.pth"
    asked = config.replace(epochs=3, learning_rate=0.5)
    with pytest.raises(ConfigError, match=r"--learning_rate 0\.5 differs from 0\.001 in .*efficientnet_last\.pth"):
        resume_config(last, asked, ["epochs", "learning_rate"])
    with pytest.raises(ConfigError, match="--mixup_alpha 0.7 differs from 0.0"):
        resume_config(last, config.replace(augmentation=config.augmentation.replace(mixup_alpha=0.7)), ["mixup_alpha"])
    resumed = resume_config(last, asked, ["epochs"])
    assert (resumed.epochs, resumed.learning_rate) == (3, 0.001)
    train(data, resumed, tmp_path, resume_from=last)
    assert pd.read_csv(tmp_path / "history.csv")["epoch"].tolist() == [1, 2, 3]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_run_is_never_overwritten(tiny_dataset, tmp_path, small_network):
    data, config = tiny_dataset.training_data(), tiny_config(epochs=2)
    model_dir, other = tmp_path / "model", tmp_path / "other"
    train(data, config, model_dir)
    train(data, config, other)
    before = files_of(model_dir)
    refusal = (r"model holds a run of 2 epochs \(efficientnet_last\.pth\): pass --resume to continue it, or choose"
               " another --model_dir")
    for changed, resume_from in ((config, None), (config.replace(model_name="resnet18"), None),
                                 (config, other / "efficientnet_last.pth")):
        with pytest.raises(ConfigError, match=refusal):
            train(data, changed, model_dir, resume_from=resume_from)
    assert files_of(model_dir) == before
    (model_dir / "history.csv").unlink()
    with pytest.raises(ConfigError, match=r"model holds a run \(efficientnet_last\.pth\): pass --resume"):
        train(data, config, model_dir)


def test_a_run_can_be_continued_in_another_folder(tiny_dataset, tmp_path, small_network):
    data, config = tiny_dataset.training_data(), tiny_config(epochs=1, monitor="loss")
    train(data, config, tmp_path / "first")
    train(data, config.replace(epochs=3), tmp_path / "second",
          resume_from=tmp_path / "first" / "efficientnet_last.pth")
    assert [len(pd.read_csv(tmp_path / name / "history.csv")) for name in ("first", "second")] == [1, 3]


def test_a_model_folder_is_held_while_it_is_written(tiny_dataset, tmp_path, small_network):
    with locked(tmp_path), pytest.raises(ConfigError, match="is being written by process"):
        train(tiny_dataset.training_data(), tiny_config(epochs=1), tmp_path)
    assert not files_of(tmp_path)


def test_only_the_main_process_holds_and_writes_the_folder(tiny_dataset, tmp_path, monkeypatch, small_network):
    """Where two start together, the other one must not wait for a lock that the main one holds."""
    class Second(Processes):
        def wrap(self, model, *, partly_frozen=False):
            return model

        def sum(self, value):
            return value

        def from_main(self, scores, names, device):
            return dict.fromkeys(names, 0.5)

    with locked(tmp_path):
        assert train_model(tiny_dataset.training_data(), tiny_config(epochs=1), model_dir=tmp_path, device=CPU,
                           n_workers=0, processes=Second(1, 2)) == {}
    assert not files_of(tmp_path)


def test_a_deployed_checkpoint_cannot_be_resumed(tiny_model, tiny_dataset, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no training state to resume: give a \*_last\.pth"):
        train(tiny_dataset.training_data(), tiny_model.config, tmp_path, resume_from=tiny_model.best)


def test_resuming_on_other_classes_is_refused(tiny_model, dataset_copy, tmp_path):
    path = dataset_copy / "dataset.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    info["class_names"] = ["owl", *info["class_names"][1:]]
    path.write_text(json.dumps(info), encoding="utf-8")
    for side in ("train", "val"):
        rows = pd.read_csv(dataset_copy / f"{side}.csv").replace({"class_name": {"bird_song": "owl"}})
        rows.to_csv(dataset_copy / f"{side}.csv", index=False)
    with pytest.raises(CheckpointError, match="was trained on the classes bird_song.*the manifests have owl"):
        train(read_data(dataset_copy), tiny_model.config, tmp_path,
              resume_from=tiny_model.model_dir / "efficientnet_last.pth")


def test_building_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    build_model(tiny_config(model_name="resnet18"), 2)
    assert torch.equal(torch.random.get_rng_state(), before)
