"""From the field back to training, on real recordings: predict, review, extend the data set, train on, compare."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest

from tests.browser.conftest import needs_chromium
from tests.browser.test_review import downloaded, id_of, table_of
from tests.conftest import PROJECT

SIDES = ("train", "val", "test")
PER_CLASS = 15  # recordings of the first data set
REVIEWED = 40

pytestmark = [needs_chromium, pytest.mark.slow]


@pytest.fixture
def project(tmp_path, real_data):
    """A part of the labelled clips as a first data set, and recordings of whole scenes as a survey."""
    clips = pd.read_csv(real_data / "wildlife" / "metadata.csv").groupby("label").head(PER_CLASS)
    for path in clips["path"]:
        (tmp_path / "recordings" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real_data / "wildlife" / path, tmp_path / "recordings" / path)
    (tmp_path / "survey").mkdir()
    for path in sorted((real_data / "long").iterdir()):
        if path.suffix.lower() in {".wav", ".flac", ".mp3"}:
            shutil.copy(path, tmp_path / "survey")
    return tmp_path


def run(command, *flags):
    subprocess.run([sys.executable, PROJECT / "scripts" / f"{command}.py", *map(str, flags)], check=True)


def train(dataset, model_dir, *more):
    run("train_efficientnet", "--config", "efficientnet_b0_fast", "--train_csv", dataset / "train.csv", "--val_csv",
        dataset / "val.csv", "--model_dir", model_dir, "--linear_probe", *more)
    return model_dir / "efficientnet_best.pth"


def rows_of(dataset):
    rows = pd.concat([pd.read_csv(dataset / f"{side}.csv") for side in SIDES])
    return rows.assign(name=rows["source_path"].str.split("/").str[-1])


def test_the_loop_from_the_field_back_to_training_is_closed(visits, project, capsys):
    prepared = ("--segment_duration", 5000)
    run("preprocess_enhanced", "--input_dir", project / "recordings", "--output_dir", project / "dataset", *prepared)
    first = train(project / "dataset", project / "model")
    run("predict_efficientnet", "--model_path", first, "--input", project / "survey", "--output",
        project / "survey.json", "--segment_mode", "--merge_gap", 0, "--no_threshold", "--suggest", 20, "--review",
        project / "review.html")

    page = visits.open(project / "review.html")
    keys = []
    for number in range(REVIEWED):
        keys.append("yyynr"[number % 5])
        page.keyboard.press(keys[-1])
        if keys[-1] == "r":
            page.keyboard.press("1")
    assert id_of(page, "count").inner_text().startswith(f"{REVIEWED} of ")
    decisions = downloaded(page, project)
    assert visits.complaints == []
    decided = table_of(decisions)
    assert Counter(row["decision"] for row in decided) == {"confirmed": 24, "rejected": 8, "relabelled": 8}

    run("preprocess_enhanced", "--input_dir", project, "--extend", project / "dataset", "--annotations", decisions,
        "--output_dir", project / "dataset2", *prepared)
    before, after = rows_of(project / "dataset"), rows_of(project / "dataset2")
    columns = ["name", "class_name", "start_seconds", "split"]
    assert set(map(tuple, before[columns].to_numpy())) <= set(map(tuple, after[columns].to_numpy()))
    added = after[after["source_path"].str.startswith("survey/")]
    assert len(after) == len(before) + len(added) and set(added["split"]) == {"train"}
    labels = {(row["file_path"].rpartition("/")[2], row["label"] or "environmental_sound") for row in decided}
    assert {(row["name"], row["class_name"]) for _, row in added.iterrows()} <= labels

    second = train(project / "dataset2", project / "model2", "--initial_weights", first)
    run("evaluate_model", "--test_csv", project / "dataset2" / "test.csv", "--output_dir", project / "report",
        "--models", second, first)
    found = json.loads((project / "report" / "metrics.json").read_text(encoding="utf-8"))
    scores = {model["name"]: model["metrics"]["macro_f1"] for model in found["models"]}
    with capsys.disabled():
        print(f"\n{len(before)} windows, {len(decided)} decisions gave {len(added)} more; macro F1 {scores}:"
              f" {found['comparison']['verdict']}")
    assert all(model["recordings_seen_in_training"] == 0 for model in found["models"])
    assert not any(count for counts in found["provenance"]["data_set"]["leakage_check"]["shared"].values()
                   for count in counts.values())
