import json

import numpy as np
import pandas as pd
import pytest

from models.errors import ConfigError, ManifestError
from scripts import preprocess_enhanced
from tests.conftest import TINY_RATE, tiny_sound, write_audio
from utils.preparation.earlier import sources_from_dataset
from utils.storage.manifest import SPLITS

CLASSES = ("bird_song", "mammal_call")
TINY = ["--sample_rate", TINY_RATE, "--n_fft", 256, "--hop_length", 64, "--n_mels", 16, "--f_max", TINY_RATE // 2,
        "--segment_duration", 1000, "--workers", 1, "--quiet", "--segment_selection", "all"]


def prepare(*flags):
    return preprocess_enhanced.main(list(map(str, [*TINY, *flags])))


def rows_of(dataset):
    table = pd.concat([pd.read_csv(dataset / f"{side}.csv") for side in SPLITS])
    table["name"] = table["source_path"].str.split("/").str[-1]
    return table.sort_values(["name", "start_seconds"], ignore_index=True)


def write_decisions(path, *rows):
    head = "file_path,start_seconds,end_seconds,model_class,confidence,decision,label,reviewed_at"
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def project(tmp_path, rng):
    """A folder with the recordings of a first data set, and those of a survey beside them."""
    for class_name in CLASSES:
        for number in range(6):
            write_audio(tmp_path / "recordings" / class_name / f"{class_name}{number}.wav",
                        tiny_sound(class_name, seconds=2.5, rng=rng))
    for number in range(2):
        write_audio(tmp_path / "survey" / f"night{number}.wav", np.concatenate(
            [tiny_sound(CLASSES[k % 2], seconds=1.0, rng=rng) for k in range(5)]))
    assert prepare("--input_dir", tmp_path / "recordings", "--output_dir", tmp_path / "first") == 0
    write_decisions(tmp_path / "decisions.csv",
                    ("night0.wav", 0, 1, "bird_song", 0.9, "confirmed", "bird_song", "2026-01-01T00:00:00Z"),
                    ("night0.wav", 1, 2, "bird_song", 0.6, "relabelled", "mammal_call", "2026-01-01T00:00:01Z"),
                    ("night1.wav", 2, 3, "mammal_call", 0.5, "rejected", "", "2026-01-01T00:00:02Z"))
    return tmp_path


def extend(project, **changes):
    flags = {"input_dir": project, "output_dir": project / "both", "extend": project / "first",
             "annotations": project / "decisions.csv", **changes}
    return prepare(*(word for name, value in flags.items() if value is not None for word in (f"--{name}", value)))


def test_what_was_there_keeps_labels_windows_and_sides_and_decisions_go_to_training(project):
    assert extend(project) == 0
    before, after = rows_of(project / "first"), rows_of(project / "both")
    columns = ["name", "class_name", "start_seconds", "end_seconds", "split"]
    old = after[~after["name"].str.startswith("night")].reset_index(drop=True)
    pd.testing.assert_frame_equal(old[columns], before[columns])
    for path, earlier in zip(old["path"], before["path"]):
        np.testing.assert_array_equal(np.load(project / "both" / path), np.load(project / "first" / earlier))
    new = after[after["name"].str.startswith("night")]
    assert new[["name", "class_name", "start_seconds", "split"]].to_numpy().tolist() == [
        ["night0.wav", "bird_song", 0.0, "train"], ["night0.wav", "mammal_call", 1.0, "train"],
        ["night1.wav", "environmental_sound", 2.0, "train"]]
    assert set(after["source_path"].str.split("/").str[0]) == {"recordings", "survey"}


def test_it_can_be_extended_again(project):
    assert extend(project) == 0
    write_decisions(project / "more.csv", ("night1.wav", 3, 4, "mammal_call", 0.9, "confirmed", "mammal_call", ""))
    assert extend(project, extend=project / "both", annotations=project / "more.csv",
                  output_dir=project / "third") == 0
    before, after = rows_of(project / "both"), rows_of(project / "third")
    assert len(after) == len(before) + 1
    kept = after.merge(before, on=["source_path", "start_seconds", "class_name", "split", "recording_id"])
    assert len(kept) == len(before)


def test_labels_of_parts_come_back_as_they_were(project):
    write_decisions(project / "marked.csv", ("night0.wav", 0.25, 0.75, "", 1, "confirmed", "bird_song", ""),
                    ("night1.wav", 1.5, 3.5, "", 1, "confirmed", "mammal_call", ""))
    assert prepare("--input_dir", project / "survey", "--output_dir", project / "parts", "--annotations",
                   project / "marked.csv", "--segment_overlap", 500) == 0
    found = sources_from_dataset(project / "parts", project)
    assert [(source.source_path, [(r.class_name, r.start_seconds, r.end_seconds) for r in source.regions])
            for source in found] == [("survey/night0.wav", [("bird_song", 0.25, 0.75)]),
                                     ("survey/night1.wav", [("mammal_call", 1.5, 3.5)])]
    assert not any(source.is_annotated for source in found)


def test_a_newcomer_goes_with_its_group(project, rng):
    for number in range(6):
        for class_name in CLASSES:
            path = project / "recordings" / class_name / f"site{number}" / f"{class_name}{number}.wav"
            path.parent.mkdir()
            (project / "recordings" / class_name / path.name).rename(path)
    assert prepare("--input_dir", project / "recordings", "--output_dir", project / "first", "--group_by", "folder",
                   "--overwrite") == 0
    before = rows_of(project / "first")
    held_out = before.loc[before["split"] == "test", "recording_id"].iloc[0]
    write_audio(project / held_out / "new.wav", tiny_sound("bird_song", seconds=1.0, rng=rng))
    write_decisions(project / "decisions.csv", ("new.wav", 0, 1, "bird_song", 0.9, "confirmed", "bird_song", ""))
    assert extend(project, group_by="folder") == 0
    after = rows_of(project / "both")
    assert after.loc[after["name"] == "new.wav", ["recording_id", "split"]].to_numpy().tolist() == [
        [held_out, "test"]]


@pytest.mark.parametrize(("changes", "message"), [
    ({"input_dir": "survey"}, "--input_dir .*survey must hold the recordings of .*first too, which lie in"
                              " .*recordings: give a folder that both are in"),
    ({"extend": "survey"}, "survey holds no dataset.json: give the folder that preprocess_enhanced.py wrote"),
])
def test_a_wrong_folder_is_told(project, changes, message):
    assert extend(project, **{name: project / value for name, value in changes.items()}) != 0
    assert not (project / "both" / "dataset.json").exists()
    error = ConfigError if "input_dir" in changes else ManifestError
    with pytest.raises(error, match=message):
        sources_from_dataset(project / changes.get("extend", "first"), project / changes.get("input_dir", "."))


@pytest.mark.parametrize("more", [{"annotations": None}, {"labels_csv": "labels.csv", "fold_column": "fold"}])
def test_flags_that_do_not_fit_are_told(project, capsys, more):
    assert extend(project, **more) == 2
    assert "--extend needs --annotations or --labels_csv, and takes the sides" in capsys.readouterr().err


@pytest.mark.parametrize("change", [("class_name", "klass"), (",0.0,", ",soon,")])
def test_tables_that_were_changed_are_told(project, capsys, change):
    table = project / "first" / "regions.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    assert extend(project) != 0
    assert "first cannot be added to, for its tables were changed" in capsys.readouterr().err


def test_the_earlier_data_set_is_not_written_over(project, capsys):
    before = (project / "first" / "dataset.json").read_bytes()
    assert extend(project, output_dir=project / "recordings" / ".." / "first") == 2
    assert "the earlier data set stays as it is" in capsys.readouterr().err
    assert (project / "first" / "dataset.json").read_bytes() == before


def test_a_data_set_says_what_it_was_split_by(project):
    assert extend(project) == 0
    info = json.loads((project / "both" / "dataset.json").read_text(encoding="utf-8"))
    assert all(count == 0 for counts in info["leakage_check"]["shared"].values() for count in counts.values())
