import json

import numpy as np
import pandas as pd
import pytest
import soundfile

from utils.preparation.audit import audit
from utils.preparation.confounds import COMBINED, COLUMNS, measure_confounds
from utils.preparation.findings import Finding, tidy_files, tidy_labels
from utils.preparation.similarity import SimilarPair

ROUNDING = 1e-12  # of one division
N_OF_CLASS = 25  # above what is called few
NULL_TRIALS = 6  # of which a limit at three spreads lets about none through


def file_row(path, **facts):
    """Return a healthy recording, some facts changed."""
    return {"path": path, "status": "ok", "reason": "", "duration_seconds": 5.0, "sample_rate": 48000, "channels": 1,
            "declared_seconds": 5.0, "peak_dbfs": -3.0, "rms_dbfs": -30.0, "dc_offset": 0.0, "clipped_share": 0.0,
            "channel_correlation": None, "bandwidth_hertz": 20_000.0, "content": path, "recorder_id": "", "site": None,
            "recorded_at": np.nan, **facts}


def label_row(path, class_name=None, start=0.0, end=np.nan, group=None):
    return {"path": path, "class_name": class_name or path.split("/")[0], "start_seconds": start, "end_seconds": end,
            "group": group or path}


def healthy(classes=("bird", "frog"), n=N_OF_CLASS):
    """Return the rows of a data set in which nothing is wrong."""
    paths = [f"{name}/{number:03}.wav" for name in classes for number in range(n)]
    return [file_row(path) for path in paths], [label_row(path) for path in paths]


def findings_of(files, labels, similar=()):
    return audit(pd.DataFrame(files), pd.DataFrame(labels), similar=similar)


def only(findings, code):
    found = [finding for finding in findings if finding.code == code]
    assert len(found) == 1, findings
    return found[0]


def with_facts(**facts):
    """Return the one finding of a healthy data set of which one recording has other facts."""
    files, labels = healthy()
    files[7] = file_row(files[7]["path"], **facts)
    found = findings_of(files, labels)
    assert len(found) == 1, found
    assert found[0].paths[0] == files[7]["path"]
    return found[0]


def test_a_healthy_data_set_gives_no_finding():
    assert findings_of(*healthy()) == []


@pytest.mark.parametrize(("facts", "code", "severity", "told"), [
    ({"status": "unsupported", "reason": "bird/007.wav is a film"}, "unusable", "error", "(unsupported), such as"),
    ({"status": "silent", "reason": "no sound"}, "silent", "error", "digital silence in 1 recording, such as bird/007"),
    ({"status": "corrupt", "reason": "bird/007.wav holds samples that are not numbers (NaN"}, "nan", "error", "NaN"),
    ({"status": "corrupt", "reason": "bird/007.wav cannot be read"}, "unusable", "error", "(corrupt)"),
    ({"reason": "bird/007.wav breaks off after 1.0 s"}, "damaged", "warning", "breaks off after 1.0 s"),
    ({"clipped_share": 0.0011}, "clipped", "warning", "with 0.1%"),
    ({"dc_offset": -0.011}, "dc_offset", "note", "with -1.1%"),
    ({"channel_correlation": -0.91}, "antiphase", "warning", "correlation of -0.91"),
    ({"declared_seconds": 5.26}, "header_length", "warning", "5.3 s promised, 5.0 s found"),
    ({"bandwidth_hertz": 13_000.0}, "empty_upper_band", "note", "13.2 kHz in 1 of 50 recordings at 48000 Hz"),
])
def test_each_fault_of_a_sound_is_told_alone(facts, code, severity, told):
    finding = with_facts(**facts)
    assert (finding.code, finding.severity) == (code, severity)
    assert told in finding.message and "\n" not in finding.message


@pytest.mark.parametrize("facts", [
    {"clipped_share": 0.0009}, {"dc_offset": 0.009}, {"channel_correlation": -0.89}, {"declared_seconds": 4.76},
    {"bandwidth_hertz": 13_300.0}, {"declared_seconds": None}, {"bandwidth_hertz": ""}, {"content": None}])
def test_what_is_within_bounds_or_unknown_is_not_told(facts):
    files, labels = healthy()
    files[7] = file_row(files[7]["path"], **facts)
    assert findings_of(files, labels) == []


def test_the_worst_recording_comes_first():
    files, labels = healthy()
    for place, share in ((3, 0.01), (20, 0.3), (30, 0.05)):
        files[place]["clipped_share"] = share
    finding = only(findings_of(files, labels), "clipped")
    assert finding.paths == tuple(files[place]["path"] for place in (20, 30, 3)) and finding.value == 3
    assert "the worst bird/020.wav with 30.0%" in finding.message


def test_sample_rates_are_counted_the_most_frequent_first():
    files, labels = healthy()
    files[0]["sample_rate"] = files[N_OF_CLASS]["sample_rate"] = 44100
    finding = only(findings_of(files, labels), "mixed_sample_rates")
    assert "2 sample rates: 48000 Hz (48), 44100 Hz (2);" in finding.message and finding.value == 2
    assert finding.paths == ("bird/000.wav", "bird/001.wav")  # one of each


@pytest.mark.parametrize(("rows", "code", "severity", "told"), [
    ((0, 1), "duplicate_within", "note", "the first by path is used"),
    ((1, 30), "duplicate_across", "error", "none of them is used")])
def test_copies_within_a_class_cost_nothing_and_across_classes_contradict(rows, code, severity, told):
    files, labels = healthy()
    for place in rows:
        files[place]["content"] = "the same"
    files[rows[1]]["status"] = "duplicate"  # it was left out for that
    finding = only(findings_of(files, labels), code)
    assert finding.severity == severity and finding.value == 1 and told in finding.message
    assert finding.paths == tuple(files[place]["path"] for place in rows)


def test_near_copies_are_told_unless_they_are_exact():
    files, labels = healthy()
    files[2]["content"] = files[3]["content"] = "the same"
    files[9]["status"] = "corrupt"
    path = [row["path"] for row in files]
    similar = [SimilarPair(path[2], path[3], 1.0), SimilarPair(path[4], path[5], 0.6),
               SimilarPair(path[6], path[30], 0.7), SimilarPair(path[5], path[8], 0.9),
               SimilarPair(path[9], path[10], 0.9)]
    found = findings_of(files, labels, similar)
    within, across = only(found, "near_duplicate_within"), only(found, "near_duplicate_across")
    assert within.paths == (path[5], path[8], path[4]) and within.value == 2  # the most alike first
    assert across.paths == (path[6], path[30]) and across.severity == "warning"
    assert "bird/006.wav (bird) and frog/005.wav (frog)" in across.message
    assert only(found, "duplicate_within").value == 1


@pytest.mark.parametrize(("first", "second", "contradict"), [
    ((0.0, 2.0), (1.0, 3.0), True), ((0.0, np.nan), (4.0, 5.0), True), ((0.0, 2.0), (0.0, 2.0), True),
    ((0.0, 2.0), (2.0, 3.0), False), ((0.0, 2.03), (2.0, 3.0), False), ((3.0, 4.0), (0.0, 2.0), False)])
def test_labels_of_two_classes_at_one_time_contradict(first, second, contradict):
    files, labels = healthy()
    path = labels[0]["path"]
    labels[0] = label_row(path, "bird", *first)
    found = findings_of(files, [*labels, label_row(path, "frog", *second)])
    assert [finding.code for finding in found] == ["contradicting_labels"] * contradict
    same_class = findings_of(files, [*labels, label_row(path, "bird", *second)])
    assert same_class == []


@pytest.mark.parametrize(("name", "alike"), [
    ("Robin Song", True), ("robin-song", True), ("robn_song", True), ("robin_songs", True), ("robim_song", True),
    ("roibn_song", True), ("robin_sing2", False), ("rabbit", False), ("rubim_song", False)])
def test_class_names_that_may_be_one_are_told_the_rarer_first(name, alike):
    files, labels = healthy(("robin_song", "toad"))
    files.append(file_row("odd.wav"))
    found = [f for f in findings_of(files, [*labels, label_row("odd.wav", name)]) if f.code == "label_typo"]
    assert len(found) == alike
    if alike:
        assert f"{name} (1) and robin_song (25)" in found[0].message and found[0].paths == ("odd.wav",)


@pytest.mark.parametrize("classes", [("site_1", "site_2"), ("owl", "fowl"), ("robin_song", "robin_sing")])
def test_names_with_other_numbers_short_ones_and_frequent_ones_are_no_typos(classes):
    files, labels = healthy(classes)
    if classes[0] != "robin_song":  # as rare as a typo
        labels = labels[:N_OF_CLASS + 1]
    assert "label_typo" not in {finding.code for finding in findings_of(files, labels)}


def test_classes_of_few_groups_are_told_even_where_no_recording_of_them_is_left():
    files, labels = healthy(("bird", "frog", "newt", "toad"))
    for row in labels[2 * N_OF_CLASS:3 * N_OF_CLASS]:
        row["group"] = f"pond {int(row['path'][-5]) % 4}"
    for row in files[3 * N_OF_CLASS:]:
        row["status"] = "corrupt"
    few = [finding for finding in findings_of(files, labels) if finding.code == "few_recordings"]
    assert [(finding.severity, finding.value) for finding in few] == [("warning", 0.0), ("note", 4.0)]
    assert ": toad (0);" in few[0].message and ": newt (4);" in few[1].message


@pytest.mark.parametrize(("n_frogs", "told"), [(20, False), (2, True)])
def test_imbalance_is_told_from_ten_to_one(n_frogs, told):
    files, labels = healthy()
    found = findings_of(files, labels[:N_OF_CLASS + n_frogs])
    imbalance = [finding for finding in found if finding.code == "class_imbalance"]
    assert [finding.value for finding in imbalance] == [12.5] * told
    assert all("bird (25) and frog (2)" in finding.message for finding in imbalance)


def test_findings_do_not_depend_on_the_order_of_rows_and_come_by_severity(rng):
    files, labels = healthy()
    files[1]["dc_offset"], files[2]["clipped_share"], files[3]["status"] = 0.5, 0.5, "silent"
    for row in files[:N_OF_CLASS]:
        row["duration_seconds"] = row["declared_seconds"] = 2.0
    found = findings_of(files, labels)
    assert [finding.severity for finding in found] == ["error", "warning", "warning", "note"]
    tables = pd.DataFrame(files), pd.DataFrame(labels)
    before = [table.copy() for table in tables]
    shuffled = [table.iloc[rng.permutation(len(table))] for table in tables]
    assert audit(*shuffled, similar=[]) == found
    audit(*tables, similar=[])
    for table, copy in zip(tables, before):
        pd.testing.assert_frame_equal(table, copy)


def test_names_of_strangers_stay_on_one_line():
    files, labels = healthy()
    files[7] = file_row("bird/a\nb\x1b.wav", clipped_share=0.5)
    labels[7] = label_row(files[7]["path"])
    assert "bird/a b .wav" in only(findings_of(files, labels), "clipped").message


def test_no_recordings_and_no_labels_give_no_finding():
    files, labels = healthy()
    assert audit(pd.DataFrame(files).iloc[:0], pd.DataFrame(labels).iloc[:0], similar=[]) == []


def test_a_finding_becomes_json_with_its_first_paths():
    finding = Finding(code="clipped", severity="note", message="told", paths=tuple(map(str, range(50))), value=0.5)
    assert json.loads(json.dumps(finding.to_dict())) == {
        "code": "clipped", "severity": "note", "message": "told", "n_paths": 50,
        "paths": [str(number) for number in range(20)], "value": 0.5}


def test_tidy_labels_end_with_the_recording_and_leave_out_what_cannot_be_used():
    files = tidy_files(pd.DataFrame([file_row("a.wav", duration_seconds=3.0), file_row("b.wav", status="corrupt")]))
    labels = tidy_labels(pd.DataFrame([label_row("b.wav", "frog"), label_row("a.wav", "frog", 1.0),
                                       label_row("a.wav", "frog", 1.0)]), files)
    assert labels.to_dict("records") == [{"path": "a.wav", "class_name": "frog", "start_seconds": 1.0,
                                          "end_seconds": 3.0, "group": "a.wav"}]


def confounds_of(files, labels):
    return measure_confounds(pd.DataFrame(files), pd.DataFrame(labels)).set_index("property")


def test_a_length_that_gives_the_class_away_is_found_and_worded():
    files, labels = healthy()
    for place, row in enumerate(files):  # 20 of 25 birds and 1 of 25 frogs are short
        short = place < 20 or place == N_OF_CLASS
        row["duration_seconds"] = 2.0 if short else 5.0
    row = confounds_of(files, labels).loc["duration"]
    assert row["example"] == "80% of bird and 4% of frog last less than 5 s"
    assert row["balanced_accuracy"] == pytest.approx((20 / 25 + 24 / 25) / 2, abs=ROUNDING)
    assert row["chance"] == 0.5 < row["null_limit"] < row["balanced_accuracy"] and row["predictive"]
    finding = only(findings_of(files, labels), "confound")
    assert "the duration alone tells the class" in finding.message and row["example"] in finding.message
    assert finding.value == row["balanced_accuracy"] and finding.severity == "warning"


@pytest.mark.parametrize(("facts", "name", "example"), [
    ({"sample_rate": 44100}, "sample rate", "100% of bird and 0% of frog have a rate of 44100 Hz"),
    ({"site": "the pond"}, "site", "100% of frog and 0% of bird have no site"),
    ({"recorder_id": "A1"}, "recorder", "100% of frog and 0% of bird name no recorder"),
    ({"rms_dbfs": -40.0}, "level", "100% of bird and 0% of frog are quieter than -30 dBFS"),
    ({"bandwidth_hertz": 15_000.0}, "bandwidth", "100% of bird and 0% of frog hold nothing above 20 kHz"),
    ({"channels": 2}, "channels", "100% of frog and 0% of bird have 1 channel(s)"),
])
def test_every_property_is_measured(facts, name, example):
    files, labels = healthy()
    for row in files[:N_OF_CLASS]:
        row.update(facts)
    table = confounds_of(files, labels)
    assert list(table.index) == [name]  # what does not vary has no row, and one is not combined
    assert table.loc[name, "balanced_accuracy"] == 1 and table.loc[name, "predictive"]
    assert table.loc[name, "example"] == example


def test_the_folder_that_gives_the_class_is_no_confound_but_those_below_it_are():
    files, labels = [], []
    for name, site in (("bird", "pond"), ("frog", "wood")):
        files += [file_row(f"{name}/{site}/{number}.wav") for number in range(N_OF_CLASS)]
    labels = [label_row(row["path"]) for row in files]
    assert confounds_of(files, labels).loc["folder", "example"] == "100% of bird and 0% of frog lie in pond"
    labels[0]["class_name"] = "frog"  # one mistake does not make the folders something else
    assert confounds_of(files, labels).loc["folder", "example"] == "100% of bird and 4% of frog lie in pond"


def test_properties_together_tell_more_than_each(rng):
    files, labels = healthy(n=200)
    for row in files:
        bird = row["path"].startswith("bird")
        for name, low, high in (("duration_seconds", 3.0, 5.0), ("rms_dbfs", -40.0, -30.0)):
            row[name] = low if bird == (rng.random() < 0.7) else high
    table = confounds_of(files, labels)
    assert table.index[-1] == COMBINED
    assert table["balanced_accuracy"].iloc[-1] >= table["balanced_accuracy"].iloc[:-1].max()
    assert table["balanced_accuracy"].iloc[:-1].between(0.6, 0.8).all()  # 0.7 by construction


def test_noise_in_small_data_sets_is_no_confound(rng):
    cries = 0
    for _ in range(NULL_TRIALS):
        files, labels = healthy(n=8)
        for row in files:
            row.update(duration_seconds=rng.gamma(2.0), rms_dbfs=rng.normal(-30, 5), site=rng.choice(["a", "b"]))
        cries += confounds_of(files, labels)["predictive"].any()
    assert cries == 0


def test_many_recordings_of_one_group_count_once():
    files, labels = healthy()
    for number in range(100):  # one long night of birds that alone is short
        files.append(file_row(f"bird/night{number}.wav", duration_seconds=1.0))
        labels.append(label_row(files[-1]["path"], group="night"))
    row = confounds_of(files, labels).loc["duration"]
    assert not row["predictive"] and row["balanced_accuracy"] < 0.6
    assert row["example"] == "80% of bird and 0% of frog last less than 5 s"  # told of all recordings


@pytest.mark.parametrize("n", [0, 4])
def test_classes_of_too_few_groups_give_an_empty_table(n):
    files, labels = healthy()
    table = measure_confounds(pd.DataFrame(files), pd.DataFrame(labels[:N_OF_CLASS + n]))
    assert table.empty and tuple(table.columns) == COLUMNS


@pytest.mark.data
def test_lengths_that_give_real_birds_away_are_found(real_data):
    metadata = pd.read_csv(real_data / "wildlife" / "metadata.csv")
    files = [file_row(path, duration_seconds=info.frames / info.samplerate, sample_rate=info.samplerate)
             for path in metadata["path"] for info in [soundfile.info(real_data / "wildlife" / path)]]
    labels = [label_row(row.path, row.label, group=row.group) for row in metadata.itertuples()]
    table = confounds_of(files, labels)
    assert table.loc["duration", "example"] == "61% of bird_song and 1% of environmental_sound last less than 4.9 s"
    assert table["predictive"].all() and table.index[-1] == COMBINED
