import json
import os
import sys

import numpy as np
import pandas as pd
import pytest

from models.audio_frontend import frontend_fingerprint
from models.efficientnet_config import FrontendConfig
from models.errors import ConfigError, ManifestError
from utils.storage.files import file_sha256, save_array
from utils.storage.manifest import (MANIFEST_COLUMNS, NOT_AUGMENTED, check_no_shared_recording, read_manifest,
                                    recording_contents, write_manifest)
from utils.storage.names import name_to_text


def write_rows(folder, text, name="train.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def write_dataset_info(folder, **changes):
    frontend = FrontendConfig(n_mels=64)
    info = {"format_version": 1, "frontend": frontend.to_dict(), "fingerprint": frontend_fingerprint(frontend),
            "class_names": ["owl", "fox"], **changes}
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


# reading and writing

def test_a_manifest_survives_writing_and_reading(tmp_path):
    write_dataset_info(tmp_path)
    rows = pd.DataFrame({
        "path": ["spectrograms/fox/é.npy", "spectrograms/owl/b,c.npy"], "label": [1, 0], "class_name": ["fox", "owl"],
        "recording_id": ["007", "r2"], "source_path": ["fox/é.wav", "owl/b.wav"], "start_seconds": [0.0, 4.5],
        "end_seconds": [8.0, 12.5], "split": "train", "augmentation": [NOT_AUGMENTED, "pitch_shift"], "extra": 1})
    write_manifest(tmp_path / "train.csv", rows)
    manifest = read_manifest(tmp_path / "train.csv")
    assert tuple(manifest.rows.columns) == MANIFEST_COLUMNS
    assert manifest.labels().tolist() == [1, 0]
    assert manifest.labels().dtype == np.int64
    assert manifest.recording_ids().tolist() == ["007", "r2"]
    assert manifest.classes.names == ("owl", "fox")
    assert manifest.frontend == FrontendConfig(n_mels=64)
    assert manifest.spectrogram_path(0) == tmp_path / "spectrograms/fox/é.npy"
    assert manifest.rows["start_seconds"].astype(float).tolist() == [0.0, 4.5]
    assert b"\r" not in (tmp_path / "train.csv").read_bytes()


def test_an_old_manifest_of_two_columns_is_read(tmp_path):
    path = write_rows(tmp_path, "path,label\nfrog/a.npy,1\nbird/b.npy,0\nbird/c.npy,0\n")
    manifest = read_manifest(path)
    assert manifest.classes.names == ("bird", "frog")
    assert manifest.labels().tolist() == [1, 0, 0]
    assert manifest.rows["class_name"].tolist() == ["frog", "bird", "bird"]
    assert manifest.recording_ids().tolist() == ["frog/a.npy", "bird/b.npy", "bird/c.npy"]
    assert set(manifest.rows["augmentation"]) == {NOT_AUGMENTED}
    assert set(MANIFEST_COLUMNS) <= set(manifest.rows.columns)
    assert (manifest.frontend, manifest.dataset) == (None, {})


@pytest.mark.parametrize(("text", "class_names", "expected"), [
    ("path,label\na.npy,mammal_call\nb.npy,bird_song\n", None, ("bird_song", "mammal_call")),
    ("path,label\na.npy,wolf\nb.npy,ant\n", None, ("ant", "wolf")),
    ("path,label\na.npy,wolf\nb.npy,wolf\n", ["wolf", "ant"], ("wolf", "ant")),
    ("path,label\na.npy,0\nb.npy,2\n", None, ("class_0", "class_1", "class_2")),
    ("path,label\na.npy,0\nb.npy,2\n", ["x", "y", "z"], ("x", "y", "z")),
    ("path,label,class_name\na.npy,1,wolf\nb.npy,0,yak\n", None, ("yak", "wolf")),
])
def test_where_the_class_order_comes_from(tmp_path, text, class_names, expected):
    assert read_manifest(write_rows(tmp_path, text), class_names=class_names).classes.names == expected


def test_dataset_json_decides_the_class_order(tmp_path):
    write_dataset_info(tmp_path)
    manifest = read_manifest(write_rows(tmp_path, "path,label\na.npy,fox\nb.npy,0\n"), class_names=["x", "y"])
    assert manifest.classes.names == ("owl", "fox")
    assert manifest.labels().tolist() == [1, 0]


@pytest.mark.parametrize("text", [
    "path,label\na.npy,0\nb.npy,1\nc.npy,2\n", "path,label,class_name\na.npy,0,1\nb.npy,1,2\nc.npy,2,3\n",
])
def test_a_number_is_an_index_even_where_classes_are_called_by_numbers(tmp_path, text):
    write_dataset_info(tmp_path, class_names=["1", "2", "3"])
    manifest = read_manifest(write_rows(tmp_path, text))
    assert manifest.labels().tolist() == [0, 1, 2]
    assert manifest.rows["class_name"].tolist() == ["1", "2", "3"]


def test_a_class_name_that_disagrees_with_its_label_is_refused(tmp_path):
    write_dataset_info(tmp_path)
    path = write_rows(tmp_path, "path,label,class_name\na.npy,0,owl\nb.npy,0,fox\n")
    with pytest.raises(ManifestError, match="train.csv line 3: label 0 is 'owl', but class_name says 'fox'"):
        read_manifest(path)


@pytest.mark.parametrize("entry", ["../x.npy", "a/../../x.npy", "/etc/passwd", ""])
def test_a_path_outside_the_manifests_folder_is_refused(tmp_path, entry):
    path = write_rows(tmp_path / "data", f"path,label\nok.npy,a\n{entry},b\n")
    with pytest.raises(ManifestError, match=r"train\.csv line 3: path .* is outside"):
        read_manifest(path)


@pytest.mark.parametrize(("text", "message"), [
    ("path,class\na.npy,x\n", "lacks the column 'label'; it has path, class"),
    ("file,label\na.npy,x\n", "lacks the column 'path'"),
    ("path,label\n", "holds no rows"),
    ("", "is not a readable table"),
    ("path,label\na.npy,0\nb.npy,-1\n", "line 3: label '-1' is neither an index below 2"),
    ("path,label\na.npy,x\nb.npy,\n", "class names must not be empty"),
    ("path,label\na.npy,x\nb.npy,x,y,z\n", "is not a readable table"),
])
def test_a_faulty_manifest_is_explained(tmp_path, text, message):
    path = write_rows(tmp_path, text)
    with pytest.raises((ManifestError, ConfigError), match=message):
        read_manifest(path, class_names=["owl", "fox"] if "-1" in text else None)


def test_an_unknown_label_is_named_with_its_line(tmp_path):
    write_dataset_info(tmp_path)
    for label in ("wolf", "2"):
        path = write_rows(tmp_path, f"path,label\na.npy,owl\nb.npy,{label}\n")
        with pytest.raises(ManifestError, match=f"line 3: label '{label}' is neither an index below 2.*owl, fox"):
            read_manifest(path)


def test_a_missing_manifest_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="nowhere.csv does not exist"):
        read_manifest(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"fingerprint": "0" * 64}, ManifestError, "does not match its fingerprint 000000000000.*run preprocess"),
    ({"frontend": FrontendConfig(n_mels=65).to_dict()}, ManifestError, "does not match its fingerprint"),
    ({"format_version": 2}, ManifestError, "has format_version 2, this NightScan reads 1"),
    ({"frontend": {"n_mel": 64}}, ConfigError, "did you mean 'n_mels'"),
])
def test_an_edited_dataset_json_is_refused(tmp_path, changes, error, message):
    write_dataset_info(tmp_path, **changes)
    with pytest.raises(error, match=message):
        read_manifest(write_rows(tmp_path, "path,label\na.npy,owl\n"))


def test_shared_recordings_are_listed(tmp_path):
    header = "path,label,recording_id\n"
    train = read_manifest(write_rows(tmp_path, header + "a.npy,x,r2\nb.npy,y,r1\nc.npy,y,r3\n"))
    val = read_manifest(write_rows(tmp_path, header + "d.npy,x,r3\ne.npy,y,r2\nf.npy,y,r4\n", "val.csv"))
    test = read_manifest(write_rows(tmp_path, header + "g.npy,x,r5\nh.npy,y,r6\n", "test.csv"))
    assert check_no_shared_recording(train, val) == ["r2", "r3"]
    assert check_no_shared_recording(train, test) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text exist on Linux only")
def test_a_row_names_the_file_that_was_checked(tmp_path):
    name = os.fsdecode(b"owl\xe9.npy")
    manifest = read_manifest(write_rows(tmp_path, f"path,label\n{name_to_text(name)},owl\n"))
    assert manifest.spectrogram_path(0) == tmp_path / name


# what a recording is recognised by

def dataset(folder, rows, hashes):
    """Write a data set of ``(path, recording, source, augmentation, value)`` and the hashes of its sources."""
    lines = ["path,label,recording_id,source_path,augmentation"]
    for path, recording, source, augmentation, value in rows:
        save_array(folder / path, np.full((2, 3), value, dtype=np.float32))
        lines.append(f"{path},owl,{recording},{source},{augmentation}")
    if hashes is not None:
        listed = [f"{source},{sha256}" for source, sha256 in hashes.items()]
        write_rows(folder, "\n".join(["path,sha256", *listed]) + "\n", "files.csv")
    return read_manifest(write_rows(folder, "\n".join(lines) + "\n"))


def test_a_recording_is_recognised_by_its_audio_and_its_first_spectrogram(tmp_path):
    rows = [("b.npy", "night", "night.wav", "none", 2.0), ("a.npy", "night", "night.wav", "none", 1.0)]
    manifest = dataset(tmp_path, rows, {"night.wav": "ab" * 32, "broken.wav": ""})
    first = file_sha256(tmp_path / "a.npy")[:16]
    assert recording_contents(manifest) == {"night": frozenset({"audio:abababababababab", f"log_mel:{first}"})}


@pytest.mark.parametrize("with_hashes", [True, False])
def test_a_moved_and_renamed_copy_is_recognised(tmp_path, with_hashes):
    here = dataset(tmp_path / "a", [("owl/x_0.npy", "r1", "owl/x.wav", "none", 1.0)],
                   {"owl/x.wav": "ab" * 32} if with_hashes else None)
    there = dataset(tmp_path / "b", [("strix/y_0.npy", "other", "strix/y.wav", "none", 1.0)],
                    {"strix/y.wav": "ab" * 32} if with_hashes else None)
    assert recording_contents(here)["r1"] == recording_contents(there)["other"]
    assert len(recording_contents(here)["r1"]) == 1 + with_hashes


def test_other_content_under_the_same_path_is_another_recording(tmp_path):
    here = dataset(tmp_path / "a", [("x_0.npy", "r1", "x.wav", "none", 1.0)], {"x.wav": "ab" * 32})
    there = dataset(tmp_path / "b", [("x_0.npy", "r1", "x.wav", "none", 1.5)], {"x.wav": "cd" * 32})
    assert recording_contents(here)["r1"].isdisjoint(recording_contents(there)["r1"])


def test_augmented_copies_tell_nothing_of_a_recording(tmp_path):
    rows = [("b.npy", "r1", "x.wav", "none", 1.0), ("a.npy", "r1", "x.wav", "pitch_shift", 2.0)]
    only = dataset(tmp_path / "only", rows[:1], None)
    both = dataset(tmp_path / "both", [*rows, ("c.npy", "r2", "y.wav", "noise", 3.0)], None)
    assert recording_contents(both) == recording_contents(only)
