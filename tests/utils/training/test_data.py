"""What is said of the two sides before anything is learnt."""

import json
import logging
import shutil

import pandas as pd
import pytest

from models.errors import ManifestError
from utils.training.data import read_training_data

NOTHING = "0 recordings, 0 contents and 0 near-duplicates"


@pytest.fixture
def folder(tiny_dataset, tmp_path):
    """The preprocessed folder, free to be spoilt."""
    return shutil.copytree(tiny_dataset.output_dir, tmp_path / "dataset")


def edit_check(folder, **counts):
    """Write into ``dataset.json`` what preparation would have counted between train and test."""
    path = folder / "dataset.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    info["leakage_check"]["shared"]["train-test"].update(counts)
    path.write_text(json.dumps(info), encoding="utf-8")


def share_a_recording(folder):
    train_rows, val_rows = pd.read_csv(folder / "train.csv"), pd.read_csv(folder / "val.csv")
    pd.concat([val_rows, train_rows.iloc[:1]]).to_csv(folder / "val.csv", index=False)


def told(folder, caplog, *, allow_leakage=False):
    """Return the level and the words of the line about leakage."""
    with caplog.at_level(logging.INFO, logger="utils"):
        read_training_data(folder / "train.csv", folder / "val.csv", allow_leakage=allow_leakage)
    line, = [record for record in caplog.records if record.getMessage().startswith("leakage check: ")]
    return line.levelname, line.getMessage().removeprefix("leakage check: ")


def test_a_clean_split_is_told_with_every_count(folder, caplog):
    assert told(folder, caplog) == ("INFO", (
        f"train and val share 0 recordings; as prepared, train and test {NOTHING}, train and val {NOTHING},"
        f" val and test {NOTHING}"))


@pytest.mark.parametrize("name", ["recordings", "contents", "near_duplicates"])
def test_whatever_two_sides_share_as_prepared_is_a_warning(folder, caplog, name):
    edit_check(folder, **{name: 2})
    level, line = told(folder, caplog)
    assert level == "WARNING"
    assert f"train and test {NOTHING.replace(f'0 {name}'.replace('_', '-'), f'2 {name}'.replace('_', '-'))}" in line
    assert line.count(NOTHING) == 2


def test_leakage_that_was_allowed_is_a_warning(folder, caplog):
    share_a_recording(folder)
    level, line = told(folder, caplog, allow_leakage=True)
    assert level == "WARNING" and line.startswith("train and val share 1 recordings; as prepared, train and test 0 rec")


def test_leakage_that_was_not_allowed_is_refused_before_a_word_is_said(folder, caplog):
    share_a_recording(folder)
    with pytest.raises(ManifestError, match="share 1 recordings"), caplog.at_level(logging.INFO, logger="utils"):
        read_training_data(folder / "train.csv", folder / "val.csv", allow_leakage=False)
    assert "leakage check" not in caplog.text


@pytest.mark.parametrize("check", [None, {"recordings_on_two_sides": [], "augmented_outside_train": 0}])
def test_where_preparation_counted_nothing_the_manifests_are_compared_alone(folder, caplog, check):
    """Data sets of earlier versions tell less."""
    path = folder / "dataset.json"
    info = json.loads(path.read_text(encoding="utf-8"))
    del info["leakage_check"]
    path.write_text(json.dumps(info if check is None else {**info, "leakage_check": check}), encoding="utf-8")
    assert told(folder, caplog) == ("INFO", "train and val share 0 recordings")
