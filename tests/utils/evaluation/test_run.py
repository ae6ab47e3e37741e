import base64
import dataclasses
import html
import json
import re
import shlex
import shutil
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import resnet18

from models.efficientnet import LEGACY_FRONTEND, LEGACY_RESNET_NAME
from models.errors import CheckpointError, ConfigError, ManifestError
from scripts import evaluate_model
from tests.conftest import TINY_CLASSES
from utils import pages, reports
from utils.evaluation import run as evaluation
from utils.evaluation.page import write_evaluation_page
from utils.evaluation.run import EvaluationSettings, evaluate_models, legacy_class_names, model_probabilities
from utils.metrics import evaluate
from utils.prediction.predictor import EfficientNetPredictor
from utils.storage.checkpoints import load_model
from utils.storage.files import file_sha256
from utils.storage.locks import locked
from utils.storage.manifest import read_manifest, recording_contents
from utils.storage.names import recording_hash

ROUNDING = 1e-9  # float64 arithmetic in another order
PRINTED = 1e-5  # scores of predictions.csv have six decimals
ALPHABETICAL = ("amphibian_call", "bird_song", "insect_sound", "mammal_call")
LEGACY_LOGIT = 5.0
DIGITS = 12  # of scores, where the page is compared with metrics.json
NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?%?")
COMPARED = ("comparison", "others", "recording_comparison", "recording_others")


def settings(output_dir, *, audio_dir=None):
    return EvaluationSettings(output_dir=output_dir, audio_dir=audio_dir, n_bootstrap=50, confidence=0.95,
                              n_workers=0, latency_runs=2, seed=3, command="evaluate_model.py --test_csv test.csv")


def efficientnet(tiny_model, **metadata):
    """Return the trained model; its file says what it learnt from, or ``metadata`` where given."""
    predictor = EfficientNetPredictor(tiny_model.best, device="cpu", batch_size=8)
    if metadata:
        predictor.model = dataclasses.replace(predictor.model, metadata=metadata)
    return tiny_model.best, predictor


@pytest.fixture(scope="module")
def legacy_file(tmp_path_factory):
    """NightScan 1's file: a bare state dict of torchvision's resnet18; this one always says its output 0."""
    torch.manual_seed(1)
    model = resnet18(num_classes=4)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias.copy_(torch.tensor([LEGACY_LOGIT, 0.0, 0.0, 0.0]))
    path = tmp_path_factory.mktemp("legacy") / "resnet18.pth"
    torch.save(model.state_dict(), path)
    return path


def legacy(legacy_file, manifest):
    return legacy_file, EfficientNetPredictor(legacy_file, device="cpu", batch_size=4,
                                              class_names=legacy_class_names(manifest))


@pytest.fixture(scope="module")
def manifest(tiny_dataset):
    return read_manifest(tiny_dataset.output_dir / "test.csv")


@pytest.fixture(scope="module")
def evaluated(tiny_model, legacy_file, manifest, tmp_path_factory):
    """Both models, evaluated once; folder and what was returned."""
    folder = tmp_path_factory.mktemp("evaluation")
    predictors = {"EfficientNet": efficientnet(tiny_model), "ResNet18": legacy(legacy_file, manifest)}
    return folder, evaluate_models(predictors, manifest, settings(folder))


@pytest.fixture
def moved(tiny_dataset, tmp_path):
    """The preprocessed folder at a place from which its recordings are not found."""
    return shutil.copytree(tiny_dataset.output_dir, tmp_path / "elsewhere" / "dataset")


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the pictures, which take most of an evaluation of this size."""
    monkeypatch.setattr(evaluation, "draw_pictures", lambda folder, models: [])


def rewrite(path, change):
    rows = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(rows).to_csv(path, index=False)


# scores

def test_scores_are_those_of_the_predictions_file(evaluated):
    folder, _ = evaluated
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table = pd.read_csv(folder / "predictions.csv")
    assert [model["name"] for model in content["models"]] == ["EfficientNet", "ResNet18"]
    for model in content["models"]:
        rows, scores = table[table["model"] == model["name"]], model["metrics"]
        right = rows["true_class"] == rows["top_class"]
        assert scores["accuracy"] == pytest.approx(right.mean(), abs=ROUNDING)
        f1 = []
        for index, name in enumerate(TINY_CLASSES):
            truth, guess = rows["true_class"] == name, rows["top_class"] == name
            assert scores["confusion_matrix"][index] == [int((truth & (rows["top_class"] == other)).sum())
                                                         for other in TINY_CLASSES]
            f1.append(2 * (truth & guess).sum() / (truth.sum() + guess.sum()))
        assert scores["macro_f1"] == pytest.approx(np.mean(f1), abs=ROUNDING)
        given = rows[[f"score_{name}" for name in TINY_CLASSES]].to_numpy()
        wanted = np.array([[name == truth for name in TINY_CLASSES] for truth in rows["true_class"]])
        assert scores["brier_score"] == pytest.approx(((given - wanted) ** 2).sum(axis=1).mean(), abs=PRINTED)


def test_the_predictions_file_has_a_row_for_each_segment_and_model(evaluated, manifest):
    table = pd.read_csv(evaluated[0] / "predictions.csv")
    assert len(table) == 2 * len(manifest.rows)
    for _, rows in table.groupby("model"):
        assert rows["path"].tolist() == manifest.rows["path"].tolist()
        assert rows["true_class"].tolist() == manifest.rows["class_name"].tolist()
    scores = table[[f"score_{name}" for name in TINY_CLASSES]]
    np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-5)
    tops = scores.to_numpy().argmax(axis=1)
    assert table["top_class"].tolist() == [TINY_CLASSES[top] for top in tops]


def test_the_contract_of_metrics_json(evaluated, manifest, tiny_model):
    content = json.loads((evaluated[0] / "metrics.json").read_text(encoding="utf-8"))
    assert content["format_version"] == 1 and content["class_names"] == list(TINY_CLASSES)
    assert content["n_segments"] == len(manifest.rows)
    assert content["n_recordings"] == manifest.rows["recording_id"].nunique()
    first, second = content["models"]
    assert (first["model_name"], second["model_name"]) == ("efficientnet-b0", LEGACY_RESNET_NAME)
    assert first["file_megabytes"] == pytest.approx(tiny_model.best.stat().st_size / 1e6, abs=0.01)
    for model in content["models"]:
        assert {"median_ms", "p95_ms", "clips_per_second"} <= set(model["latency"])
        low, high = model["intervals"]["accuracy"]
        assert 0 <= low <= model["metrics"]["accuracy"] <= high <= 1
    assert json.loads(json.dumps(evaluated[1].to_dict())) == content
    assert list(first) == ["name", "model_name", "sha256", "file_megabytes", "n_parameters", "metrics", "intervals",
                           "class_intervals", "answered", "latency", "other_latencies", "n_multiply_adds",
                           "before_calibration", "recording_metrics", "recording_intervals",
                           "recording_class_intervals", "recording_answered", "failures",
                           "recordings_seen_in_training", "recordings_heard_before"]
    assert first["sha256"] == file_sha256(tiny_model.best)
    assert content["settings"] == {"test_csv": "test.csv", "bootstrap": 50, "confidence": 0.95, "seed": 3}
    for name in ("comparison", "recording_comparison"):
        assert set(content[name]) == {"verdict", "reason", "verdict_metric", "confidence", "n_recordings",
                                      "differences", "mcnemar", "permutation"}
        assert set(content[name]["differences"]["accuracy"]) == {"difference", "interval"}
    assert content["others"] == content["recording_others"] == {}


def test_what_is_answered_is_decided_by_the_models_own_rules(evaluated, tiny_model):
    answered = json.loads((evaluated[0] / "metrics.json").read_text(encoding="utf-8"))["models"][0]["answered"]
    rules = load_model(tiny_model.best).description.rules
    table = pd.read_csv(evaluated[0] / "predictions.csv")
    rows = table[table["model"] == "EfficientNet"]
    told = rows[rows["top_confidence"] >= rows["top_class"].map(rules.thresholds)]
    assert (answered["n_answered"], answered["share"]) == (len(told), pytest.approx(len(told) / len(rows)))
    right = (told["top_class"] == told["true_class"]).mean() if len(told) else None
    assert answered["precision"] == (right if right is None else pytest.approx(right))
    assert [row["threshold"] for row in answered["per_class"]] == [rules.thresholds[name] for name in TINY_CLASSES]
    assert set(answered["intervals"]) == {"share", "precision", "unknown_rejected"}
    assert len(answered["class_intervals"]) == len(TINY_CLASSES)


def test_two_models_are_compared(evaluated):
    comparison = evaluated[1].comparisons["ResNet18"]
    first, second = (model.metrics["accuracy"] for model in evaluated[1].models)
    assert comparison.differences["accuracy"].difference == pytest.approx(first - second, abs=ROUNDING)
    table = pd.read_csv(evaluated[0] / "predictions.csv")
    right = {name: (rows["true_class"] == rows["top_class"]).to_numpy() for name, rows in table.groupby("model")}
    assert comparison.mcnemar.only_a_correct == (right["EfficientNet"] & ~right["ResNet18"]).sum()
    assert comparison.mcnemar.only_b_correct == (right["ResNet18"] & ~right["EfficientNet"]).sum()


@pytest.mark.parametrize(("first", "second", "verdict"), [
    ("oracle", "stubborn", "better"), ("stubborn", "oracle", "worse"),
    ("oracle", "oracle", "no significant difference"),
])
def test_the_verdict_is_about_the_first_model(tiny_model, manifest, tmp_path, monkeypatch, no_pictures, first, second,
                                              verdict):
    """One model is always right, the other always says class 0: the better one is known."""
    said = {"oracle": manifest.labels(), "stubborn": np.zeros(len(manifest.rows), dtype=int)}
    _, predictor = efficientnet(tiny_model)
    answers = iter([first, second])
    monkeypatch.setattr(evaluation, "model_probabilities", lambda *given, **options: np.eye(4)[said[next(answers)]])
    # they differ on four recordings, so p is 1/8
    given = dataclasses.replace(settings(tmp_path), confidence=0.8)
    found = evaluate_models(dict.fromkeys(("a", "b"), (tiny_model.best, predictor)), manifest, given)
    assert found.comparisons["b"].verdict == verdict


def test_one_model_stands_alone(tiny_model, manifest, tmp_path):
    found = evaluate_models({"EfficientNet": efficientnet(tiny_model)}, manifest, settings(tmp_path))
    content = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert [content[name] for name in COMPARED] == [None, {}, None, {}] and len(found.models) == 1
    assert (tmp_path / "report.html").exists() and len(pd.read_csv(tmp_path / "predictions.csv")) == len(manifest.rows)


def test_the_page_needs_nothing_beside_it(evaluated):
    page = (evaluated[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script[^>]*src|<link", page)
    sources = re.findall(r'src="([^"]*)"', page)
    pictures = [source for source in sources if source.startswith("data:image/png")]
    sounds = [source for source in sources if source.startswith("data:audio/mpeg")]
    # four pictures a model, the comparison and what is answered; a spectrogram and a sound of each failure shown
    assert len(pictures) == 10 + len(sounds) and len(pictures) + len(sounds) == len(sources) and sounds
    for source in pictures:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")
    assert not re.findall(r'href="http|url\(', page)
    # below each picture stands what to look at
    assert len(re.findall(r'</figure>\s*<p class="note">Look (?:at|for) ', page)) == 10


def test_recordings_are_scored_as_their_segments_mean_probability(evaluated):
    folder, found = evaluated
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    table, right = pd.read_csv(folder / "predictions.csv"), {}
    for model, evaluated_model in zip(content["models"], found.models):
        rows = table[table["model"] == model["name"]].groupby("recording_id")
        means = rows[[f"score_{name}" for name in TINY_CLASSES]].mean()
        truth = rows["true_class"].first()  # the segments of a recording have one class
        tops = means.to_numpy().argmax(axis=1)
        right[model["name"]] = tops == [TINY_CLASSES.index(name) for name in truth]
        assert model["recording_metrics"]["n_segments"] == len(means) == content["n_recordings"]
        assert model["recording_metrics"]["accuracy"] == pytest.approx(right[model["name"]].mean(), abs=ROUNDING)
        low, high = model["recording_intervals"]["accuracy"]
        assert 0 <= low <= model["recording_metrics"]["accuracy"] <= high <= 1
        assert [row["class_name"] for row in model["recording_class_intervals"]] == list(TINY_CLASSES)
        thresholds = evaluated_model.description.rules.thresholds
        told = means.max(axis=1) >= [thresholds[TINY_CLASSES[top]] for top in tops]
        assert model["recording_answered"]["n_answered"] == told.sum()
    compared = content["recording_comparison"]
    first, second = right["EfficientNet"], right["ResNet18"]
    assert compared["differences"]["accuracy"]["difference"] == pytest.approx(first.mean() - second.mean())
    assert compared["mcnemar"]["only_a_correct"] == (first & ~second).sum()
    assert compared["n_recordings"] == content["comparison"]["n_recordings"] == content["n_recordings"]


def test_calibration_is_undone_in_the_order_of_the_models_own_classes(evaluated, legacy_file, manifest):
    """What the network's logits alone give, by the network itself."""
    model = evaluated[1].models[0]
    rows = np.arange(len(manifest.rows))
    log_mels = np.stack([np.load(manifest.spectrogram_path(row)) for row in rows])
    network = load_model(model.description.path).network.eval()
    with torch.inference_mode():
        logits = network(torch.from_numpy(log_mels)[:, None]).double()
    np.testing.assert_allclose(model.uncalibrated, torch.softmax(logits, dim=1).numpy(), atol=PRINTED)
    wanted = evaluate(model.uncalibrated, manifest.labels(), class_names=TINY_CLASSES)
    assert model.before_calibration == {name: pytest.approx(wanted[name])
                                        for name in ("ece", "brier_score", "log_loss")}
    # nothing was calibrated in NightScan 1, and its classes have another order
    old = evaluated[1].models[1]
    np.testing.assert_allclose(old.uncalibrated, old.segments.probabilities, atol=ROUNDING)


# how it was measured

def test_the_report_tells_how_it_was_measured(evaluated, tiny_dataset):
    told = json.loads((evaluated[0] / "metrics.json").read_text(encoding="utf-8"))["provenance"]
    assert told["versions"]["torch"] == metadata.version("torch")
    devices = {model.latency.device for model in evaluated[1].models} - {"torch-cpu"}
    assert devices in ({"onnx-cpu"}, {"openvino-cpu"})  # whichever is faster on this processor
    used, other = ("onnxruntime", "openvino") if devices == {"onnx-cpu"} else ("openvino", "onnxruntime")
    assert told["versions"][used] == metadata.version(used) and other not in told["versions"]
    assert told["command"] == "evaluate_model.py --test_csv test.csv"
    info = json.loads((tiny_dataset.output_dir / "dataset.json").read_text(encoding="utf-8"))
    data = told["data_set"]
    assert data["sha256"] == file_sha256(tiny_dataset.output_dir / "test.csv") and data["as_prepared"] is True
    assert (data["recordings"], data["leakage_check"]) == (info["recordings"], info["leakage_check"])
    assert data["segments"] == {side: len(pd.read_csv(tiny_dataset.output_dir / f"{side}.csv"))
                                for side in ("train", "val", "test")}
    assert (data["group_by"], data["ratios"], data["random_state"]) == ("recording", [0.5, 0.25, 0.25], 42)


@pytest.fixture
def bare(moved):
    """A manifest with only path and label, and nothing beside it."""
    (moved / "dataset.json").unlink()
    (moved / "files.csv").unlink()
    rewrite(moved / "test.csv", lambda rows: rows[["path", "label"]])
    return read_manifest(moved / "test.csv", class_names=TINY_CLASSES)


def test_a_manifest_of_paths_and_labels_is_evaluated_and_told_as_far_as_it_is_known(tiny_model, bare, evaluated,
                                                                                    tmp_path, no_pictures, caplog):
    found = evaluate_models({"EfficientNet": efficientnet(tiny_model)}, bare, settings(tmp_path))
    np.testing.assert_allclose(found.models[0].segments.probabilities, evaluated[1].models[0].segments.probabilities,
                               atol=ROUNDING)
    assert "are taken to be made by the model's front end" in caplog.text
    told = {name: value for name, value in found.provenance["data_set"].items() if value is not None}
    assert told == {"sha256": file_sha256(bare.path), "knows_recordings": False}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "each is taken for a recording of its own" in page
    assert "each is taken for a recording of its own" not in (evaluated[0] / "report.html").read_text(encoding="utf-8")


def test_a_manifest_of_paths_and_labels_does_not_serve_another_front_end(tiny_model, legacy_file, bare, tmp_path):
    with pytest.raises(ManifestError, match="does not tell its windows"):
        evaluate_models({"ResNet18": legacy(legacy_file, bare)}, bare, settings(tmp_path))


def test_the_command_is_told_as_it_was_typed(tiny_model, tiny_dataset, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(evaluation, "evaluate_models", lambda predictors, manifest, settings: given.append(settings))
    words = ["--test_csv", str(tiny_dataset.output_dir / "test.csv"), "--output_dir", str(tmp_path / "a report"),
             "--efficientnet_model", str(tiny_model.best), "--device", "cpu"]
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'models'"):  # nothing was evaluated
        evaluate_model.main(words)
    assert shlex.split(given[0].command) == ["evaluate_model.py", *words]


def test_each_number_of_the_page_stands_in_metrics_json(evaluated, tmp_path, monkeypatch):
    """With so many digits that no number is found by chance."""
    monkeypatch.setitem(pages.number_text.__kwdefaults__, "decimals", DIGITS)
    write_evaluation_page(tmp_path / "report.html", evaluated[1], pictures=[])
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    content = json.loads((evaluated[0] / "metrics.json").read_text(encoding="utf-8"))
    known = set(number_texts(content))
    shown = page_numbers(page)
    assert len(shown) > 200 and shown - known == set()


def page_numbers(page):
    """Return the numbers of tables and of the verdict, without their signs; what is a name or a version is none."""
    scores, _, _ = page.partition("How it was measured</h2>")
    cells = re.findall(r"<td>(.*?)</td>", scores, re.DOTALL)
    verdict, = re.findall(r'<div class="verdict">(.*?)</div>', page, re.DOTALL)
    texts = [html.unescape(re.sub(r"<[^>]*>", " ", text)) for text in (*cells, verdict)]
    return {number.lstrip("+-") for text in texts for number in NUMBER.findall(text)}


def number_texts(value):
    """Yield every way in which the page may write the numbers of JSON: whole, rounded, in percent, in millions."""
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from number_texts(each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        size = abs(value)
        yield from (f"{size:,.{decimals}f}" for decimals in (0, 1, 2, DIGITS))
        yield from (f"{size:.3g}", f"{100 * size:.10g}%", f"{100 * size:.0f}%", f"{size / 1e6:,.0f}")
    elif isinstance(value, str):
        yield from (number.lstrip("+-") for number in NUMBER.findall(value))


# a leaked test set

@pytest.fixture
def leaked(moved):
    """The test manifest with two recordings that training had, under other names: manifest and their ids."""
    test, train = (pd.read_csv(moved / f"{side}.csv", dtype=str, keep_default_na=False) for side in ("test", "train"))
    ids = train["recording_id"].unique()[:2]
    added = train[train["recording_id"].isin(ids)]
    added = added.assign(recording_id="copy_of_" + added["recording_id"], split="test")
    pd.concat([test, added]).to_csv(moved / "test.csv", index=False)
    return read_manifest(moved / "test.csv"), {f"copy_of_{recording_id}" for recording_id in ids}


def test_a_leaked_test_set_is_called_leaked_on_top_of_the_page(tiny_model, leaked, tmp_path, no_pictures):
    manifest, ids = leaked
    found = evaluate_models({"EfficientNet": efficientnet(tiny_model)}, manifest, settings(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    told, = re.findall(r'<div class="verdict"><p[^>]*>(.*?)</p>', page)
    assert told == (f"This test set is leaked: {len(ids)} of {found.bootstrap.n_recordings} test recordings were used"
                    f" to train EfficientNet: its scores are too good.")
    content = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert content["models"][0]["recordings_seen_in_training"] == len(ids)
    assert content["provenance"]["data_set"]["as_prepared"] is False


def test_labels_that_a_model_learnt_are_not_offered_as_errors(tiny_model, leaked, tmp_path, monkeypatch, no_pictures):
    """The model is sure of the next class on every recording, so every label looks wrong to it."""
    manifest, ids = leaked
    answers = 0.7 * np.eye(4)[(manifest.labels() + 1) % 4] + 0.3 / 4
    monkeypatch.setattr(evaluation, "model_probabilities", lambda *given, **options: answers)
    path, predictor = efficientnet(tiny_model)
    found, other = (evaluate_models({"EfficientNet": (path, model)}, manifest, settings(tmp_path / name)).models[0]
                    for name, model in (("own", predictor), ("other", efficientnet(tiny_model, recordings=[])[1])))
    suspects, all_suspects = ({error.recording_id for error in each.failures.label_errors} for each in (found, other))
    assert suspects and not suspects & ids
    assert found.failures.n_label_errors == other.failures.n_label_errors - len(ids)
    assert (f"The labels of {len(ids)} test recordings that EfficientNet learnt from are not examined"
            in (tmp_path / "own" / "report.html").read_text(encoding="utf-8"))
    assert "so what it says of their labels is out of fold" in (
        tmp_path / "other" / "report.html").read_text(encoding="utf-8")


# the output folder

def test_a_folder_that_is_used_again_shows_one_evaluation(tiny_model, manifest, tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "_DPI", 20)  # the names count, not the pictures
    predictors = dict.fromkeys(("EfficientNet", "A/B ../C"), efficientnet(tiny_model))
    evaluate_models(predictors, manifest, settings(tmp_path / "out"))
    kinds = ("confusion_matrix", "roc_curves", "precision_recall_curves", "reliability")
    named = {f"{kind}_{name}.png" for kind in kinds for name in ("efficientnet", "a_b_.._c")} | \
        {"comparison.png", "coverage.png"}
    assert {path.name for path in (tmp_path / "out").rglob("*.png")} == named
    assert {path.name for path in tmp_path.iterdir()} == {"out"}  # a name leads to no other folder
    (tmp_path / "out" / "confusion_matrix.png").write_bytes(b"of a training")
    del predictors["A/B ../C"]
    evaluate_models(predictors, manifest, settings(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == \
        {f"{kind}_efficientnet.png" for kind in kinds} | {"comparison.png", "coverage.png", "confusion_matrix.png"}


def test_models_that_would_write_the_same_pictures_are_refused(tiny_model, manifest, tmp_path):
    predictors = dict.fromkeys(("Night 1", "night_1"), efficientnet(tiny_model))
    with pytest.raises(ConfigError, match="differ as file names, got Night 1, night_1"):
        evaluate_models(predictors, manifest, settings(tmp_path))


def test_a_folder_that_another_evaluation_writes_is_refused(tiny_model, manifest, tmp_path):
    predictors = {"EfficientNet": efficientnet(tiny_model)}
    with locked(tmp_path), pytest.raises(ConfigError, match="is being written by"):
        evaluate_models(predictors, manifest, settings(tmp_path))
    assert not (tmp_path / "metrics.json").exists()


# two front ends

def test_stored_spectrograms_serve_the_model_whose_front_end_made_them(tiny_model, manifest, monkeypatch):
    _, predictor = efficientnet(tiny_model)
    monkeypatch.setattr(predictor, "span_probabilities", lambda path, spans: pytest.fail("read audio"))
    rows = np.arange(len(manifest.rows))[::-1]
    log_mels = np.stack([np.load(manifest.spectrogram_path(row)) for row in rows])
    np.testing.assert_array_equal(model_probabilities(predictor, manifest, rows, audio_dir=None),
                                  predictor.probabilities(log_mels))


def test_another_front_end_hears_the_audio_itself(legacy_file, manifest, monkeypatch):
    _, predictor = legacy(legacy_file, manifest)
    shapes, usual = [], predictor.probabilities
    monkeypatch.setattr(predictor, "probabilities", lambda log_mels: (shapes.append(log_mels.shape),
                                                                      usual(log_mels))[1])
    model_probabilities(predictor, manifest, np.arange(2), audio_dir=None)
    assert {shape[1:] for shape in shapes} == {(LEGACY_FRONTEND.n_mels, LEGACY_FRONTEND.n_frames)}


def test_alphabetical_outputs_find_their_class(legacy_file, manifest):
    path, predictor = legacy(legacy_file, manifest)
    assert predictor.model.classes.names == ALPHABETICAL == legacy_class_names(manifest)
    probabilities = model_probabilities(predictor, manifest, np.arange(3), audio_dir=None)
    # output 0 is amphibian_call, which is the manifest's last class
    chosen, others = np.exp(LEGACY_LOGIT), 1.0
    np.testing.assert_allclose(probabilities, np.array([[others, others, others, chosen]] * 3) / (chosen + 3 * others),
                               rtol=1e-6)  # logits are float32


def test_segments_of_one_recording_keep_their_places(tiny_model, tiny_dataset, manifest):
    """From audio, rows are gathered by recording: each result must go back to its own row."""
    _, predictor = efficientnet(tiny_model)
    stored = model_probabilities(predictor, manifest, np.arange(len(manifest.rows)), audio_dir=None)
    shuffled = np.random.default_rng(0).permutation(len(manifest.rows))
    unknown_frontend = type(manifest)(manifest.path, manifest.rows, manifest.classes, None, manifest.dataset)
    from_audio = model_probabilities(predictor, unknown_frontend, shuffled, audio_dir=tiny_dataset.audio_dir)
    np.testing.assert_allclose(from_audio, stored[shuffled], rtol=0, atol=1e-5)


def test_missing_recordings_name_the_flag(legacy_file, moved, tmp_path, tiny_dataset):
    manifest = read_manifest(moved / "test.csv")
    predictors = {"ResNet18": legacy(legacy_file, manifest)}
    with pytest.raises(ManifestError, match=r"\.wav does not exist.*--audio_dir"):
        evaluate_models(predictors, manifest, settings(tmp_path / "out"))
    _, predictor = predictors["ResNet18"]
    found = model_probabilities(predictor, manifest, np.arange(1), audio_dir=tiny_dataset.audio_dir)
    assert found.shape == (1, 4)


def test_a_manifest_that_does_not_know_its_recordings_names_the_flag(legacy_file, moved, tmp_path):
    (moved / "dataset.json").unlink()
    manifest = read_manifest(moved / "test.csv", class_names=TINY_CLASSES)
    with pytest.raises(ManifestError, match="does not tell where its recordings are.*--audio_dir"):
        evaluate_models({"ResNet18": legacy(legacy_file, manifest)}, manifest, settings(tmp_path / "out"))


# what is counted

def test_other_classes_are_refused(tiny_model, moved, tmp_path):
    info = json.loads((moved / "dataset.json").read_text(encoding="utf-8"))
    info["class_names"] = ["owl", *info["class_names"][1:]]
    (moved / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    rewrite(moved / "test.csv", lambda rows: rows.replace({"class_name": {"bird_song": "owl"}}))
    with pytest.raises(CheckpointError, match="the model knows the classes bird_song.* has owl"):
        evaluate_models({"EfficientNet": efficientnet(tiny_model)}, read_manifest(moved / "test.csv"),
                        settings(tmp_path / "out"))


def test_augmented_copies_are_left_out(tiny_model, moved, manifest, tmp_path, no_pictures):
    rows = pd.read_csv(moved / "test.csv")
    pd.concat([rows.assign(augmentation="aug01"), rows]).to_csv(moved / "test.csv", index=False)
    found = evaluate_models({"EfficientNet": efficientnet(tiny_model)}, read_manifest(moved / "test.csv"),
                            settings(tmp_path / "out"))
    assert found.bootstrap.n_segments == len(rows)
    alone = model_probabilities(efficientnet(tiny_model)[1], manifest, np.arange(len(rows)), audio_dir=None)
    assert found.models[0].metrics["accuracy"] == \
        pytest.approx((alone.argmax(axis=1) == manifest.labels()).mean(), abs=ROUNDING)


def test_recordings_that_were_learnt_from_are_counted(tiny_model, tiny_dataset, evaluated, tmp_path, caplog,
                                                      no_pictures):
    val = read_manifest(tiny_dataset.output_dir / "val.csv")
    found = evaluate_models({"EfficientNet": efficientnet(tiny_model)}, val, settings(tmp_path))
    n_recordings = val.rows["recording_id"].nunique()
    assert found.models[0].recordings_seen_in_training == n_recordings
    assert f"{n_recordings} test recordings were used to train" in caplog.text
    # the test side shares none, and NightScan 1's file keeps no list
    assert [model.recordings_seen_in_training for model in evaluated[1].models] == [0, None]


def learnt_contents(manifest):
    """Return ``recording_contents`` as a checkpoint keeps it."""
    return sorted(set().union(*recording_contents(manifest).values()))


def n_seen(predictor, manifest, output_dir):
    found = evaluate_models({"EfficientNet": predictor}, manifest, settings(output_dir))
    return found.models[0].recordings_seen_in_training


def test_recordings_that_the_start_has_heard_are_counted_apart(tiny_model, manifest, tmp_path, caplog, no_pictures):
    heard = efficientnet(tiny_model, recording_contents=[],
                         heard_contents=[*learnt_contents(manifest), "audio:another"])
    found = evaluate_models({"EfficientNet": heard}, manifest, settings(tmp_path)).models[0]
    assert (found.recordings_seen_in_training, found.recordings_heard_before) == (
        0, manifest.rows["recording_id"].nunique())
    assert f"{found.recordings_heard_before} test recordings were heard, without labels" in caplog.text


@pytest.mark.parametrize("kind", ["audio:", "log_mel:"])
def test_a_moved_recording_is_recognised_by_its_content(tiny_model, manifest, moved, tmp_path, no_pictures, kind):
    contents = [content for content in learnt_contents(manifest) if content.startswith(kind)]
    rewrite(moved / "test.csv", lambda rows: rows.assign(recording_id="renamed/" + rows["recording_id"],
                                                         source_path="renamed/" + rows["source_path"]))
    rewrite(moved / "files.csv", lambda rows: rows.assign(path="renamed/" + rows["path"]))
    renamed = read_manifest(moved / "test.csv")
    learnt = efficientnet(tiny_model, recording_contents=contents)
    assert n_seen(learnt, renamed, tmp_path / "out") == manifest.rows["recording_id"].nunique()
    learnt_other = efficientnet(tiny_model, recording_contents=["audio:0", "log_mel:0"])
    assert n_seen(learnt_other, renamed, tmp_path / "out") == 0


def test_other_data_at_the_same_path_raises_no_alarm(tiny_model, manifest, moved, tmp_path, no_pictures, caplog):
    contents = learnt_contents(manifest)
    names = sorted(map(recording_hash, manifest.rows["recording_id"].unique()))
    for row in range(len(manifest.rows)):
        path = moved / manifest.rows["path"][row]
        np.save(path, np.load(path) - 1)
    rewrite(moved / "files.csv", lambda rows: rows.assign(sha256=rows["sha256"].str[::-1]))
    learnt = efficientnet(tiny_model, recording_contents=contents, recordings=names)
    assert n_seen(learnt, read_manifest(moved / "test.csv"), tmp_path / "out") == 0
    assert "were used to train" not in caplog.text


def test_a_file_of_an_older_version_is_compared_by_name(tiny_model, manifest, tmp_path, no_pictures):
    names = [recording_hash(name) for name in manifest.rows["recording_id"].unique()[:2]]
    assert n_seen(efficientnet(tiny_model, recordings=names), manifest, tmp_path) == 2
    assert n_seen(efficientnet(tiny_model, epoch=1), manifest, tmp_path) is None


def test_costs_are_told_in_other_libraries_and_those_of_the_old_network_in_its_own(tiny_model, legacy_file, manifest,
                                                                                   tmp_path, no_pictures):
    path = shutil.copy(tiny_model.best, tmp_path / "model.pth")  # its converted network is kept beside it
    predictors = {"New": (path, EfficientNetPredictor(path, device="cpu", backend="torch")),
                  "Old": legacy(legacy_file, manifest)}
    asked = dataclasses.replace(settings(tmp_path / "out"), other_backends=("onnx",), measures_memory=True)
    new, old = evaluate_models(predictors, manifest, asked).models
    assert [latency.device for latency in (new.latency, *new.other_latencies)] == ["torch-cpu", "onnx-cpu"]
    assert old.latency.device == "torch-cpu" and not old.other_latencies
    assert all(model.n_multiply_adds > 0 for model in (new, old))
    assert all(latency.peak_megabytes is None or latency.peak_megabytes > 10
               for latency in (new.latency, *new.other_latencies, old.latency))
