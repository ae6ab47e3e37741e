"""Linear probes: a regularised linear classifier on what a body hears."""

import numpy as np
import pytest
import torch
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from models.efficientnet import body_weights, build_model
from models.efficientnet_config import FrontendConfig
from models.errors import ConfigError
from scripts import train_efficientnet
from tests.conftest import tiny_config
from utils import training_utils
from utils.storage.checkpoints import Start, load_model, read_checkpoint, save_start
from utils.training.probe import choose_strength, fit_linear

SAME_FUNCTION = 1e-4  # float32 weights against float64


def clouds(rng, *, n_classes=3, n=40, n_features=6, apart=3.0):
    centres = apart * rng.standard_normal((n_classes, n_features))
    labels = np.repeat(np.arange(n_classes), n)
    return (centres[labels] + rng.standard_normal((len(labels), n_features))).astype(np.float32), labels


@pytest.mark.parametrize("n_classes", [2, 3])  # of two classes scikit-learn gives one row of coefficients
def test_the_classifier_is_the_regression_on_standardised_embeddings(rng, n_classes):
    embeddings, labels = clouds(rng, n_classes=n_classes, apart=0.5)
    embeddings = embeddings * np.array([1, 100, 0.01, 1, 5, 1], dtype=np.float32) + 7
    scaler = StandardScaler().fit(embeddings)
    regression = LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
    expected = regression.fit(scaler.transform(embeddings), labels).predict_proba(scaler.transform(embeddings))
    found = fit_linear(embeddings, labels, n_classes=n_classes, strength=0.1).logits(embeddings)
    np.testing.assert_allclose(special.softmax(found, axis=1), expected, atol=SAME_FUNCTION)


def test_a_class_without_rows_never_wins(rng):
    embeddings, labels = clouds(rng, n_classes=2)
    found = fit_linear(embeddings, labels * 2, n_classes=3, strength=0.1).logits(embeddings)
    assert set(found.argmax(axis=1)) == {0, 2}


def test_noise_asks_for_more_regularisation_than_a_clear_signal(rng):
    labels, ids = np.tile([0, 1], 60), np.arange(120).astype(str)
    noise = rng.standard_normal((120, 50)).astype(np.float32)
    signal = noise.copy()
    signal[:, 0] += 8 * labels
    weak, _ = choose_strength(noise, labels, ids, n_classes=2, random_state=0)
    strong, table = choose_strength(signal, labels, ids, n_classes=2, random_state=0)
    assert weak < strong
    assert min(table, key=lambda row: row["log_loss"])["strength"] == strong


def test_a_recording_is_never_on_both_sides_of_the_choice(rng):
    """Ten windows of each recording are equal: were they split, the noise would be learnt by heart."""
    labels = np.repeat(np.tile([0, 1], 10), 10)
    embeddings = np.repeat(rng.standard_normal((20, 200)), 10, axis=0).astype(np.float32)
    _, table = choose_strength(embeddings, labels, np.repeat(np.arange(20), 10).astype(str), n_classes=2,
                               random_state=0)
    assert max(row["accuracy"] for row in table) < 0.9


def train(dataset, folder, *flags, mode=("--linear_probe",)):
    return train_efficientnet.main([
        "--train_csv", str(dataset / "train.csv"), "--val_csv", str(dataset / "val.csv"), "--model_dir", str(folder),
        "--config", "efficientnet_b0_fast", "--initial_weights", "none", *mode, *flags])


def test_the_command_writes_an_ordinary_checkpoint_whose_body_is_the_start(tiny_dataset, tmp_path, capsys):
    assert train(tiny_dataset.output_dir, tmp_path) == 0
    assert "validation: accuracy" in capsys.readouterr().out
    model = load_model(tmp_path / "efficientnet_best.pth")
    start = build_model(tiny_config(drop_connect_rate=0.2), len(model.description.classes)).backbone.state_dict()
    body = model.network.backbone.state_dict()
    assert torch.equal(body["_conv_head.weight"], start["_conv_head.weight"])
    assert not torch.equal(body["_fc.weight"], start["_fc.weight"])
    assert {"config.json", "metrics.json", "history.csv", "reliability.png"} <= {
        path.name for path in tmp_path.iterdir()}


def write_start(path):
    start = Start(source="", model_name="efficientnet-b0", trained_on="owls", licence="CC0", frontend=FrontendConfig(),
                  weights=body_weights(build_model(tiny_config(), 2), model_name="efficientnet-b0"),
                  metadata={"heard_contents": ["audio:owl"], "recording_contents": ["audio:wren"], "recordings": []})
    save_start(path, start)
    return path


@pytest.mark.parametrize("mode", [("--linear_probe",), ("--epochs", "1"),
                                  ("--epochs", "1", "--cross_validation", "--k_folds", "2")])
def test_a_model_tells_what_its_start_has_heard_and_learnt(tiny_dataset, tmp_path, mode):
    start = write_start(tmp_path / "start.pth")
    assert train(tiny_dataset.output_dir, tmp_path / "model", "--initial_weights", str(start), mode=mode) == 0
    told = load_model(next((tmp_path / "model").rglob("*_best.pth"))).description.metadata
    assert told["heard_contents"] == ["audio:owl"]
    assert "audio:wren" in told["recording_contents"] and len(told["recording_contents"]) > 1
    assert len(told["recordings"]) > 1


def test_fine_tuning_begins_with_the_probe(tiny_dataset, tmp_path):
    """At a learning rate of nothing, what is trained after the probe is the probe."""
    assert train(tiny_dataset.output_dir, tmp_path / "probe") == 0
    still = ("--probe_first", "--learning_rate", "1e-12", "--freeze_batch_norm")
    assert train(tiny_dataset.output_dir, tmp_path / "first", "--epochs", "1", mode=still) == 0
    probe, first = (load_model(tmp_path / name / "efficientnet_best.pth").network.state_dict()
                    for name in ("probe", "first"))
    for name, value in probe.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-9, msg=name)


def test_a_run_stopped_in_its_first_epoch_has_its_probe_and_needs_no_start(tiny_dataset, tmp_path, monkeypatch):
    start = write_start(tmp_path / "start.pth")
    from_start = ("--initial_weights", str(start))
    with monkeypatch.context() as patch:
        patch.setattr(training_utils, "train_epoch", lambda *arguments, **named: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(tiny_dataset.output_dir, tmp_path, "--epochs", "1", *from_start, mode=())
    start.unlink()
    probe = load_model(tmp_path / "efficientnet_best.pth").network.state_dict()["backbone._fc.weight"]
    assert train(tiny_dataset.output_dir, tmp_path, *from_start, mode=("--resume",)) == 0
    last = read_checkpoint(tmp_path / "efficientnet_last.pth")
    assert last["training"]["loop"]["epoch"] == 1
    if not last["training"]["loop"]["best_epoch"]:
        assert torch.equal(load_model(tmp_path / "efficientnet_best.pth").network.state_dict()["backbone._fc.weight"],
                           probe)


def test_every_fold_begins_with_its_own_probe(tiny_dataset, tmp_path):
    still = ("--probe_first", "--learning_rate", "1e-12", "--freeze_batch_norm", "--cross_validation", "--k_folds", "2")
    assert train(tiny_dataset.output_dir, tmp_path, "--epochs", "1", "--initial_weights", "starter", mode=still) == 0
    first, second = (load_model(path).network.state_dict() for path in sorted(tmp_path.rglob("*_best.pth")))
    torch.testing.assert_close(first["backbone._conv_head.weight"], second["backbone._conv_head.weight"], rtol=0,
                               atol=1e-9)
    assert (first["backbone._fc.weight"] - second["backbone._fc.weight"]).abs().max() > 1e-4


def test_a_folder_that_holds_a_model_is_kept(tiny_dataset, tmp_path, capsys):
    (tmp_path / "efficientnet_best.pth").write_bytes(b"a model")
    assert train(tiny_dataset.output_dir, tmp_path) == 2
    assert "holds a model" in capsys.readouterr().err
    assert (tmp_path / "efficientnet_best.pth").read_bytes() == b"a model"


@pytest.mark.parametrize("flag", ["--resume", "--cross_validation"])
def test_flags_that_do_not_go_with_a_probe_are_refused(tiny_dataset, tmp_path, flag):
    with pytest.raises(ConfigError, match="--linear_probe goes neither"):
        train_efficientnet.check_flags(train_efficientnet.build_parser().parse_args([
            "--train_csv", "a", "--val_csv", "b", "--model_dir", str(tmp_path), "--linear_probe", flag]))
