import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from models.errors import ConfigError, ManifestError
from utils.evaluation.facts import OTHER, PROPERTIES, UNKNOWN, facts_of_rows, put_into_bins
from utils.evaluation.failures_page import slices_part
from utils.evaluation.intervals import wilson_interval
from utils.evaluation.slices import holm, slice_scores
from utils.metrics import ScoredSegments
from utils.storage.manifest import read_manifest

ROUNDING = 1e-9  # float64 arithmetic in another order
NORMAL_QUANTILE = float(stats.norm.ppf(0.975))
NAMES = ("bird", "frog", "cow")
PROPERTY = {known.column: known for known in PROPERTIES}
HOSTILE = "<script>alert(1)</script>"


def binned(column, values, recordings=None):
    values = pd.Series(values)
    bins = put_into_bins(PROPERTY[column], values,
                         np.arange(len(values)).astype(str) if recordings is None else np.array(recordings))
    return list(bins.names), bins.of_segment.tolist()


def predicted(labels, told):
    return ScoredSegments(np.eye(len(NAMES))[told], np.asarray(labels), NAMES)


def sliced(labels, told, facts, *, recordings=None, confidence=0.95):
    models = told if isinstance(told, dict) else {"B1": told}
    recordings = np.arange(len(labels)).astype(str) if recordings is None else np.array(recordings)
    return slice_scores({name: predicted(labels, each) for name, each in models.items()}, recordings,
                        pd.DataFrame(facts), confidence=confidence, seed=0)


# What is known


@pytest.fixture
def test_set(tmp_path):
    """Write a manifest of three windows of two files, and what files.csv says of them."""
    pd.DataFrame({"path": ["a.npy", "b.npy", "c.npy"], "label": ["bird", "bird", "cow"],
                  "source_path": ["bird/field/1.wav", "bird/field/1.wav", "cow/esc50__2.wav"],
                  "start_seconds": ["0", "7200", ""]}).to_csv(tmp_path / "test.csv", index=False)
    pd.DataFrame({"path": ["bird/field/1.wav", "cow/esc50__2.wav", "else.wav"], "sample_rate": ["48000", "", "1"],
                  "rms_dbfs": ["-31.5", "-inf", "0"], "duration_seconds": ["9000.0", "x", "1"],
                  "recorder_id": ["SM4", "", ""], "site": ["", "Wood", ""],
                  "recorded_at": ["2024-05-01T22:30:00+02:00", "yesterday", ""]}).to_csv(tmp_path / "files.csv",
                                                                                         index=False)
    return tmp_path / "test.csv"


def test_facts_are_those_of_each_row_s_recording(test_set):
    facts = facts_of_rows(read_manifest(test_set))
    assert facts["sample_rate"].tolist()[:2] == [48000.0, 48000.0] and np.isnan(facts["sample_rate"][2])
    assert facts["rms_dbfs"].tolist()[:2] == [-31.5, -31.5] and np.isnan(facts["rms_dbfs"][2])
    assert facts["duration_seconds"].tolist()[:2] == [9000.0, 9000.0] and np.isnan(facts["duration_seconds"][2])
    assert facts["recorder_id"].tolist() == ["SM4", "SM4", ""]
    assert facts["site"].tolist() == ["", "", "Wood"]
    assert facts["source"].tolist() == ["field", "field", "esc50"]


def test_the_hour_is_that_of_the_segment_on_the_recorder_s_clock(test_set):
    hours = facts_of_rows(read_manifest(test_set))["hour"]
    # the recording begins at half past ten in the evening, and the second window two hours later
    assert hours.tolist()[:2] == pytest.approx([22.5, 0.5], abs=ROUNDING)
    assert np.isnan(hours[2])


def test_older_data_sets_know_less(test_set):
    files = test_set.parent / "files.csv"
    pd.read_csv(files)[["path", "sample_rate"]].to_csv(files, index=False)
    assert list(facts_of_rows(read_manifest(test_set))) == ["source", "sample_rate"]
    files.unlink()
    assert list(facts_of_rows(read_manifest(test_set))) == ["source"]


def test_a_broken_table_of_files_is_named(test_set):
    (test_set.parent / "files.csv").write_bytes(b"path\0,rate\n")
    with pytest.raises(ManifestError, match="files.csv holds a NUL"):
        facts_of_rows(read_manifest(test_set))


@pytest.mark.parametrize(("source_path", "source"), [
    ("bird/1.wav", ""), ("bird/night/deep/1.wav", "night"), ("night/1.wav", "night"), ("bird/a__b__c.wav", "a"),
    ("1.wav", ""), ("", "")])
def test_the_source_is_the_folder_below_the_class_or_the_file_name_s_beginning(tmp_path, source_path, source):
    pd.DataFrame({"path": ["a.npy"], "label": ["bird"], "source_path": [source_path]}).to_csv(
        tmp_path / "test.csv", index=False)
    assert facts_of_rows(read_manifest(tmp_path / "test.csv"))["source"].tolist() == [source]


def test_the_tiny_data_set_knows_its_recordings(tiny_dataset, tmp_path):
    for name in ("test.csv", "files.csv", "dataset.json"):
        shutil.copy(tiny_dataset.output_dir / name, tmp_path)
    facts = facts_of_rows(read_manifest(tmp_path / "test.csv"))
    assert set(facts["sample_rate"]) == {8000.0}
    assert facts[["duration_seconds", "rms_dbfs"]].notna().all(axis=None)


# Bins


def test_rates_stand_as_they_are_in_order():
    assert binned("sample_rate", [44100.0] * 5 + [8000.0] * 6) == (["8 kHz", "44.1 kHz"], [1] * 5 + [0] * 6)


@pytest.mark.parametrize(("column", "value", "name"), [
    ("duration_seconds", 2.99, "below 3 s"), ("duration_seconds", 3.0, "3 to 10 s"),
    ("duration_seconds", 3600.0, "3600 s and above"), ("rms_dbfs", -90.0, "below -60 dBFS"),
    ("rms_dbfs", -50.0, "-50 to -40 dBFS"), ("rms_dbfs", 0.0, "-20 dBFS and above"), ("hour", 0.0, "00:00 to 03:00"),
    ("hour", 2.999, "00:00 to 03:00"), ("hour", 23.99, "21:00 to 24:00"), ("hour", np.nan, UNKNOWN)])
def test_numbers_have_round_bins(column, value, name):
    assert binned(column, [value] * 5)[0] == [name]


def test_bins_of_few_recordings_are_other_and_what_is_not_told_is_unknown():
    names, of_segment = binned("site", ["a"] * 5 + ["b"] * 6 + ["c"] * 4 + ["d"] + [""] * 5)
    assert names == ["b", "a", OTHER, UNKNOWN]  # the largest first
    assert of_segment == [1] * 5 + [0] * 6 + [2] * 5 + [3] * 5


def test_what_is_few_even_together_is_in_no_bin():
    assert binned("site", ["a"] * 5 + ["c"] * 4 + [""] * 4) == (["a"], [0] * 5 + [-1] * 8)


def test_recordings_are_counted_not_segments():
    assert binned("site", ["a"] * 8, recordings=list("vwxyyyyy")) == ([], [-1] * 8)


def test_eight_bins_are_the_most_and_the_smallest_are_other():
    names, _ = binned("site", [name for name in "abcdefghij" for _ in range(5 + (name in "ij"))])
    assert names == [*"ij", *"abcdef", OTHER]


# Scores


def test_each_recording_counts_the_same():
    # site x: five recordings of one segment, four right; one of five segments, none right: 4 of 6
    labels = [0] * 10 + [1] * 5
    told = [0] * 4 + [1] + [1] * 5 + [1] * 5
    recordings = list("abcdeffffghijkl")
    recordings[9] = "f"
    found, = sliced(labels, told, {"site": ["x"] * 10 + ["y"] * 5}, recordings=recordings)
    x, y = found.slices
    assert (x.name, x.n_recordings, x.n_segments, x.n_classes) == ("x", 6, 10, 1)
    assert x.scores["B1"].accuracy == pytest.approx(4 / 6, abs=ROUNDING)
    # of the only class there: precision 1, recall 0.4
    assert x.scores["B1"].macro_f1 == pytest.approx(2 * 0.4 / 1.4, abs=ROUNDING)
    assert x.scores["B1"].interval == wilson_interval(4 / 6, 6, quantile=NORMAL_QUANTILE)
    assert (y.name, y.scores["B1"].accuracy, y.scores["B1"].macro_f1) == ("y", 1.0, 1.0)


def test_a_property_of_one_bin_is_left_out():
    assert sliced([0] * 10, [0] * 10, {"site": ["x"] * 10, "sample_rate": [8000.0] * 6 + [np.nan] * 4}) == []


def test_properties_that_are_not_known_are_left_out():
    found = sliced([0] * 10, [0] * 10, {"site": ["x"] * 5 + ["y"] * 5})
    assert [each.column for each in found] == ["site"]


def test_lengths_must_agree():
    with pytest.raises(ConfigError, match=r"one entry per segment \(3\), got 3 and 2"):
        sliced([0, 1, 2], [0, 1, 2], {"site": ["x", "y"]})


def test_holm_is_the_hand_computed_one():
    # sorted: 0.01*4, 0.02*3, 0.03*2, 0.9*1, none below its predecessor
    assert holm(np.array([0.03, 0.01, 0.9, 0.02])) == pytest.approx([0.06, 0.04, 0.9, 0.06], abs=ROUNDING)
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


# Which bins are worse


def test_a_bin_that_is_worse_is_told_in_one_sentence():
    labels = [0, 1] * 40
    told = [2] * 12 + [0, 1] * 34  # site x: every one of twelve wrong; elsewhere all right
    found, = sliced(labels, {"B1": told, "B2": labels}, {"site": ["x"] * 12 + ["y"] * 34 + ["z"] * 34})
    worse, = found.worse
    assert (worse.model, worse.slice_name, worse.n_recordings) == ("B1", "x", 12)
    assert (worse.accuracy, worse.accuracy_elsewhere) == (0.0, 1.0)
    # none of 4,999 permutations is as bad, and there are three bins
    assert worse.p == pytest.approx(3 / 5000, abs=ROUNDING)
    assert found.sentences() == [
        f"Site x: B1 reaches an accuracy of 0.00 on the 12 recordings that can be compared, and of 1.00 on recordings"
        f" of the same classes elsewhere (p = {worse.p:.2g}, corrected for all bins)."]
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_bin_of_the_harder_class_is_not_worse():
    # half of the frogs are wrong wherever they are, and x holds nearly all of them
    labels = [1] * 40 + [1] * 6 + [0] * 40
    told = [1, 2] * 20 + [1, 2] * 3 + [0] * 40
    found, = sliced(labels, told, {"site": ["x"] * 40 + ["y"] * 46})
    assert found.slices[1].scores["B1"].accuracy == 0.5 < found.slices[0].scores["B1"].accuracy
    assert found.worse == []


def test_a_class_that_is_nowhere_else_cannot_be_compared():
    found, = sliced([0] * 20 + [1] * 20, [2] * 20 + [1] * 20, {"site": ["x"] * 20 + ["y"] * 20})
    assert found.worse == []


def test_accuracy_elsewhere_has_the_bin_s_mix_of_classes():
    # x: 10 birds all wrong and 20 cows that are nowhere else; y: birds all right, frogs all wrong
    labels = [0] * 10 + [2] * 20 + [0] * 20 + [1] * 20
    told = [1] * 10 + [2] * 20 + [0] * 20 + [0] * 20
    worse, = sliced(labels, told, {"site": ["x"] * 30 + ["y"] * 40})[0].worse
    assert (worse.n_recordings, worse.accuracy, worse.accuracy_elsewhere) == (10, 0.0, 1.0)


def test_p_values_are_corrected_for_the_bins_of_all_properties():
    labels, told = [0] * 40, [1] * 4 + [0] * 2 + [1] * 7 + [0] * 27
    site = ["x"] * 6 + ["y"] * 34
    alone, = sliced(labels, told, {"site": site}, confidence=0.9)
    rng = np.random.default_rng(0)
    beside = sliced(labels, told, {"site": site, "source": rng.permutation(list("ab") * 20).tolist(),
                                   "recorder_id": rng.permutation(list("cdef") * 10).tolist()}, confidence=0.9)
    assert [each.slice_name for each in alone.worse] == ["x"]
    assert [worse for each in beside for worse in each.worse] == []


def test_chance_is_seldom_called_worse():
    rng, n, n_sets = np.random.default_rng(5), 120, 40
    n_called = 0
    for _ in range(n_sets):
        labels = rng.integers(0, 3, n)
        told = np.where(rng.random(n) < np.array([0.5, 0.7, 0.9])[labels], labels, (labels + 1) % 3)
        site = np.array(list("abcd"))[np.minimum(labels + rng.integers(0, 2, n), 3)]  # goes with the class
        n_called += bool(sliced(labels, told, {"site": site}, confidence=0.95)[0].worse)
    # one in twenty at most in the long run: seven of forty have a probability of 0.003 then
    assert n_called < 7


def test_slices_do_not_depend_on_the_order_of_models():
    labels, a, b = [0, 1] * 20, [0] * 40, [1] * 40
    facts = {"site": ["x"] * 10 + ["y"] * 30}
    first, second = (sliced(labels, told, facts) for told in ({"a": a, "b": b}, {"b": b, "a": a}))
    assert first[0].slices == second[0].slices


def test_the_page_of_slices_escapes_and_tells_its_confidence():
    found = sliced([0] * 20, [1] * 10 + [0] * 10, {"site": [HOSTILE] * 10 + ["y"] * 10})
    page = slices_part(found, confidence=0.9)
    assert found[0].worse and HOSTILE not in page and "&lt;script&gt;" in page
    assert "90% Wilson" in page
    assert '<p class="worse">Site' in page


def test_the_page_says_when_nothing_is_known_or_nothing_is_worse():
    assert "knows nothing" in slices_part([], confidence=0.95)
    assert "No model is significantly worse" in slices_part(
        sliced([0] * 10, [0] * 10, {"site": ["x"] * 5 + ["y"] * 5}), confidence=0.95)
