import json

import numpy as np
import pandas as pd
import pytest

from models.audio_frontend import frontend_fingerprint
from models.efficientnet_config import DEFAULT_CLASS_NAMES, FrontendConfig
from models.errors import ConfigError, ManifestError
from utils.storage import splits
from models.classes import ClassList
from utils.storage.manifest import (MANIFEST_COLUMNS, NOT_AUGMENTED, SPLITS, check_no_shared_recording, read_manifest,
                                    write_manifest)
from utils.storage.names import check_inside, clip_id, safe_name
from utils.storage.splits import grouped_folds, grouped_split
from utils.storage.tables import read_table

RATIOS = (0.7, 0.15, 0.15)
RATIO_TOLERANCE = 0.06  # of the rows: folds are sevenths and sixths, and a recording moves up to 4 % of a class at once
N_STRUCTURES = 100


def draw_recordings(rng, *, n_classes, n_recordings, longest=8):
    """Draw rows of recordings: each of one class, with 1..longest segments."""
    classes = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, size=n_recordings - n_classes)])
    sizes = rng.integers(1, longest + 1, size=n_recordings)
    names = np.array([f"recording{number}" for number in rng.permutation(n_recordings)])
    return np.repeat(classes, sizes), np.repeat(names, sizes)


def write_rows(folder, text, name="train.csv"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def write_dataset_info(folder, **changes):
    frontend = FrontendConfig(n_mels=64)
    info = {"format_version": 1, "frontend": frontend.to_dict(), "fingerprint": frontend_fingerprint(frontend),
            "class_names": ["owl", "fox"], **changes}
    (folder / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


# splits

def sides_of_groups(groups, sides):
    return pd.Series(sides).groupby(groups).nunique()


@pytest.mark.parametrize("seed", range(0, N_STRUCTURES, 10))
def test_no_recording_is_on_two_sides_and_no_class_is_lost_to_train(seed, monkeypatch):
    monkeypatch.setattr(splits, "_SPLIT_CANDIDATES", 2)  # must hold for every shuffling: fewer are faster
    for structure in range(seed, seed + 10):
        rng = np.random.default_rng(structure)
        n_classes = int(rng.integers(2, 7))
        labels, groups = draw_recordings(rng, n_classes=n_classes, n_recordings=n_classes + int(rng.integers(0, 12)))
        sides = grouped_split(labels, groups, ratios=RATIOS, random_state=structure)
        assert sides_of_groups(groups, sides).max() == 1, structure
        assert set(sides) <= set(SPLITS), structure
        assert set(labels[sides == "train"]) == set(labels), structure


def test_recordings_of_several_classes_stay_whole_too(rng):
    groups = np.repeat([f"recording{number}" for number in range(20)], 15)
    labels = rng.integers(0, 4, size=len(groups))
    sides = grouped_split(labels, groups, ratios=RATIOS, random_state=0)
    assert sides_of_groups(groups, sides).max() == 1
    assert set(sides) == set(SPLITS)


@pytest.mark.parametrize("n_rare", [1, 4, 12])
def test_a_class_of_one_recording_can_only_be_learnt_and_costs_the_others_nothing(n_rare):
    labels = np.concatenate([np.zeros(40, dtype=int), 1 + np.arange(n_rare)])
    groups = np.array([f"recording{number}" for number in range(40 + n_rare)])
    sides = grouped_split(labels, groups, ratios=RATIOS, random_state=0)
    assert set(sides[40:]) == {"train"}
    shares = [np.mean(sides[:40] == side) for side in SPLITS]
    np.testing.assert_allclose(shares, RATIOS, atol=RATIO_TOLERANCE)


def test_classes_of_one_recording_alone_are_all_learnt():
    sides = grouped_split(np.repeat([0, 1, 2], 5), np.repeat(["a", "b", "c"], 5), ratios=RATIOS, random_state=0)
    assert set(sides) == {"train"}


@pytest.mark.parametrize("seed", range(3))
def test_the_ratios_are_kept_in_every_class(seed):
    labels, groups = draw_recordings(np.random.default_rng(seed), n_classes=3, n_recordings=120, longest=3)
    sides = grouped_split(labels, groups, ratios=RATIOS, random_state=seed)
    for label in range(3):
        shares = [np.mean(sides[labels == label] == side) for side in SPLITS]
        np.testing.assert_allclose(shares, RATIOS, atol=RATIO_TOLERANCE)


def test_a_side_without_a_share_stays_empty(rng):
    labels, groups = draw_recordings(rng, n_classes=3, n_recordings=60)
    assert set(grouped_split(labels, groups, ratios=(0.8, 0.2, 0.0), random_state=0)) == {"train", "val"}
    assert set(grouped_split(labels, groups, ratios=(1.0, 0.0, 0.0), random_state=0)) == {"train"}


def test_the_seed_decides_the_split(rng):
    labels, groups = draw_recordings(rng, n_classes=3, n_recordings=60)
    first, again, other = (grouped_split(labels, groups, ratios=RATIOS, random_state=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("n_folds", [2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_folds_are_disjoint_complete_and_grouped(seed, n_folds):
    labels, groups = draw_recordings(np.random.default_rng(seed), n_classes=3, n_recordings=30)
    folds = grouped_folds(labels, groups, n_folds=n_folds, random_state=seed)
    assert len(folds) == n_folds
    assert sorted(np.concatenate(folds)) == list(range(len(labels)))
    fold_of = np.empty(len(labels), dtype=int)
    for number, rows in enumerate(folds):
        assert len(rows) > 0
        assert list(rows) == sorted(rows)
        fold_of[rows] = number
    assert sides_of_groups(groups, fold_of).max() == 1


@pytest.mark.filterwarnings("error")
def test_folds_are_stratified_to_within_a_recording():
    labels = np.repeat([0, 1], 50)
    groups = np.repeat([f"recording{number}" for number in range(20)], 5)
    for rows in grouped_folds(labels, groups, n_folds=5, random_state=0):
        assert np.abs(np.bincount(labels[rows], minlength=2) - 10).max() <= 5


def test_fewer_recordings_than_folds_is_an_error():
    with pytest.raises(ManifestError, match="5 folds need at least 5 recordings, got 3: lower --k_folds"):
        grouped_folds(np.repeat([0, 1, 0], 10), np.repeat(["a", "b", "c"], 10), n_folds=5, random_state=0)


def test_too_few_segments_for_the_folds_is_an_error():
    with pytest.raises(ManifestError, match="5 folds need a class with at least 5 segments"):
        grouped_folds(np.array([0, 0, 1, 1, 2]), np.array(list("abcde")), n_folds=5, random_state=0)


# classes

def test_default_classes_stand_in_readme_order_others_alphabetically():
    assert ClassList.from_labels(reversed(DEFAULT_CLASS_NAMES)).names == DEFAULT_CLASS_NAMES
    assert ClassList.from_labels(["insect_sound", "bird_song", "insect_sound"]).names == ("bird_song", "insect_sound")
    assert ClassList.from_labels(["mammal_call", "zebra", "bird_song"]).names == ("bird_song", "mammal_call", "zebra")


def test_class_list_finds_indices_and_refuses_nonsense():
    classes = ClassList(("owl", "fox"))
    assert (len(classes), classes.index("fox")) == (2, 1)
    with pytest.raises(ManifestError, match="unknown class 'wolf': the classes are owl, fox"):
        classes.index("wolf")
    with pytest.raises(ConfigError, match="class names must differ, got owl, owl"):
        ClassList(("owl", "owl"))
    with pytest.raises(ConfigError, match="must not be empty"):
        ClassList(("owl", " "))


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


@pytest.mark.parametrize("entry", ["../x.npy", "a/../../x.npy", "/etc/passwd", ""])
def test_a_path_outside_the_manifests_folder_is_refused(tmp_path, entry):
    path = write_rows(tmp_path / "data", f"path,label\nok.npy,a\n{entry},b\n")
    with pytest.raises(ManifestError, match=r"train\.csv line 3: path .* is outside"):
        read_manifest(path)


def test_a_link_that_leads_outside_is_refused(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "inside/link").symlink_to(tmp_path / "secret")
    with pytest.raises(ManifestError, match="'link/x.npy' is outside"):
        check_inside(tmp_path / "inside", "link/x.npy", where="here")
    assert check_inside(tmp_path / "inside", "a/../b.npy", where="here") == (tmp_path / "inside/b.npy").resolve()


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


def test_tables_are_read_as_text_with_comma_or_tab(tmp_path):
    commas = read_table(write_rows(tmp_path, "a,b\n007,NA\n", "comma.csv"))
    tabs = read_table(write_rows(tmp_path, "a\tb\n007\tx,y\n", "tab.txt"))
    marked = read_table(write_rows(tmp_path, "\ufeffa,b\n1,2\n", "excel.csv"))
    assert commas.to_dict("records") == [{"a": "007", "b": "NA"}]
    assert tabs.to_dict("records") == [{"a": "007", "b": "x,y"}]
    assert list(marked.columns) == ["a", "b"]


def test_a_file_that_is_no_text_is_no_table(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ManifestError, match="table.csv is not a readable table"):
        read_table(tmp_path / "table.csv")


def test_shared_recordings_are_listed(tmp_path):
    header = "path,label,recording_id\n"
    train = read_manifest(write_rows(tmp_path, header + "a.npy,x,r2\nb.npy,y,r1\nc.npy,y,r3\n"))
    val = read_manifest(write_rows(tmp_path, header + "d.npy,x,r3\ne.npy,y,r2\nf.npy,y,r4\n", "val.csv"))
    test = read_manifest(write_rows(tmp_path, header + "g.npy,x,r5\nh.npy,y,r6\n", "test.csv"))
    assert check_no_shared_recording(train, val) == ["r2", "r3"]
    assert check_no_shared_recording(train, test) == []


def test_names_are_safe_and_kept_apart():
    assert safe_name("a b/c:ü?.wav") == "a_b_c_ü_.wav"
    assert safe_name("../..") == safe_name("") == "unnamed"
    assert clip_id("fox/clip.wav") != clip_id("owl/clip.wav")
    assert clip_id("fox/clip.wav").startswith("clip-")
    assert len(clip_id("x" * 500 + ".wav")) <= 70
