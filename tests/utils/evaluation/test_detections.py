import json

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from models.efficientnet_config import BACKGROUND_CLASS
from models.errors import ConfigError, ManifestError
from tests.conftest import TINY_CLASSES, TINY_RATE, tiny_sound, write_audio
from tests.utils.prediction.conftest import predictor_of
from utils.audio.annotations import RAVEN_COLUMNS, MarkedSound, audacity_line, raven_row
from utils.evaluation import detection_scores
from utils.evaluation.detection_files import event
from utils.evaluation.detection_scores import average_precision
from utils.evaluation.detections import ComparedRecording, DetectionSettings, compare, evaluate_detections
from utils.evaluation.intervals import score_interval
from utils.prediction.run import OutputSettings, find_inputs, predict_to_files
from utils.running.parallel import ThisProcess

ROUNDING = 1e-12  # float64 arithmetic in another order
FORMATS = ("json", "csv", "raven", "audacity", "birdnet")
RECORDINGS = ("json", "run.json"), ("csv", "run.csv"), ("raven", "run.selections.txt"), ("raven", "run.raven"), (
    "audacity", "run.audacity"), ("birdnet", "run.birdnet.csv")


def settings(**changes):
    return DetectionSettings(**{"n_bootstrap": 200, "confidence": 0.9, "seed": 3, **changes})


def recording(path, detections, annotations, *, seconds=3600.0):
    """Return a recording; a detection is ``(start, end, class, confidence)``, an annotation has no confidence."""
    return ComparedRecording(path, seconds, [event(*one) for one in detections], [event(*one) for one in annotations])


def judged(detections, annotations, **changes):
    return compare([recording("a.wav", detections, annotations)], settings(**changes))


def counts(scored, class_name="owl"):
    row = next(row for row in scored.per_class if row["class_name"] == class_name)
    return row["n_right"], row["n_detected"], row["n_annotated"]


def outcomes(evaluation):
    return [(one.outcome, one.class_name, one.start_ms, one.annotation_start_ms) for one in evaluation.outcomes]


# hand-computed cases

@pytest.mark.parametrize(("detections", "annotations", "events", "cells"), [
    ([(1, 3, "owl", 0.9)], [(1, 3, "owl")], (1, 1, 1), (2, 2, 2)),  # exactly
    ([(2, 4, "owl", 0.9)], [(1, 3, "owl")], (1, 1, 1), (1, 2, 2)),  # by half
    ([(2.1, 4, "owl", 0.9)], [(1, 3, "owl")], (0, 1, 1), (1, 2, 2)),  # by less than half of the shorter
    ([(0, 9, "owl", 0.9)], [(0, 1, "owl"), (3, 4, "owl"), (6, 7, "owl")], (1, 1, 3), (3, 9, 3)),  # one over three calls
    ([(0, 2, "owl", 0.9), (0, 2, "owl", 0.8)], [(0, 2, "owl")], (1, 2, 1), (2, 2, 2)),  # the same twice
    ([(0, 2, "owl", 0.9)], [(0, 2, "owl"), (0, 2, "owl")], (1, 1, 1), (2, 2, 2)),  # marked twice is marked once
    ([(0, 2, "owl", 0.9)], [], (0, 1, 0), (0, 2, 0)),  # somebody listened and found nothing
    ([], [(0, 2, "owl")], (0, 0, 1), (0, 0, 2)),
    ([(0.2, 0.4, "owl", 0.9)], [(0.6, 0.8, "owl")], (0, 1, 1), (1, 1, 1)),  # in one cell, not at one time
])
def test_events_and_cells_are_counted_as_by_hand(detections, annotations, events, cells):
    found = judged(detections, annotations)
    assert counts(found.events) == events
    assert counts(found.time) == cells


def test_another_class_at_the_same_time_is_false_and_its_call_missed():
    found = judged([(0, 2, "fox", 0.9)], [(0, 2, "owl")])
    assert counts(found.events, "fox") == (0, 1, 0) and counts(found.events, "owl") == (0, 0, 1)
    assert (found.only_annotated, found.only_detected) == (("owl",), ("fox",))
    assert outcomes(found) == [("false", "fox", 0, None), ("missed", "owl", None, 0)]


def test_the_least_overlap_and_the_cell_are_those_asked_for():
    assert counts(judged([(0, 4, "owl", 0.9)], [(3, 7, "owl")], min_overlap=0.25).events) == (1, 1, 1)
    assert counts(judged([(0, 4, "owl", 0.9)], [(3, 7, "owl")], min_overlap=0.26).events) == (0, 1, 1)
    assert counts(judged([(0, 4, "owl", 0.9)], [(3, 7, "owl")], grid_seconds=0.5).time) == (2, 8, 8)


def test_nothing_on_either_side_has_no_scores_and_says_so_in_json():
    found = judged([], [])
    assert found.events.per_class == [] and found.events.overall["micro_recall"] is None
    assert found.events.overall["false_per_hour"] == 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_outcomes_tell_which_annotation_a_detection_is():
    found = judged([(5, 6, "owl", 0.9), (0, 2, "owl", 0.4)], [(0.5, 2, "owl"), (8, 9, "owl")])
    assert outcomes(found) == [("right", "owl", 0, 500), ("false", "owl", 5000, None), ("missed", "owl", None, 8000)]
    assert [one.confidence for one in found.outcomes] == [0.4, 0.9, None]


# rates

MANY = [recording("a.wav", [(0, 1, "owl", 0.9), (2, 3, "owl", 0.8), (4, 5, "fox", 0.7)],
                  [(0, 1, "owl"), (2, 3, "fox"), (4, 5, "fox")], seconds=1800),
        recording("b.wav", [(0, 1, "fox", 0.95), (8, 9, "owl", 0.6), (6, 7, "hare", 0.5)],
                  [(0, 1, "fox"), (8, 9, "owl"), (2, 3, "fox"), (4, 5, "vole")], seconds=5400)]


def test_rates_are_those_of_scikit_learn_on_the_same_events():
    found = compare(MANY, settings()).events
    # one label a slot: where events coincide, hits and errors are those of a classifier with a class of silence
    truth = ["owl", "fox", "fox", "fox", "owl", "-", "fox", "vole"]
    guess = ["owl", "owl", "fox", "fox", "owl", "hare", "-", "-"]
    names = ["fox", "hare", "owl", "vole"]
    precision, recall, f1, _ = precision_recall_fscore_support(truth, guess, labels=names, zero_division=0)
    for row, *expected in zip(found.per_class, precision, recall, f1):
        told = [row["precision"], row["recall"], row["f1"]]
        assert told == pytest.approx([*expected[:1], None if row["class_name"] == "hare" else expected[1], expected[2]],
                                     abs=ROUNDING)
    assert [row["class_name"] for row in found.per_class] == names
    for average, labels in (("micro", names), ("macro", ["fox", "owl", "vole"])):
        expected = precision_recall_fscore_support(truth, guess, labels=labels, average=average, zero_division=0)[:3]
        told = [found.overall[f"{average}_{name}"] for name in ("precision", "recall", "f1")]
        assert told == pytest.approx(expected, abs=ROUNDING)


def test_false_alarms_are_told_per_hour_listened():
    found = compare(MANY, settings())
    assert found.hours == 2
    assert {row["class_name"]: row["false_per_hour"] for row in found.events.per_class} == {
        "fox": 0, "hare": 0.5, "owl": 0.5, "vole": 0}
    assert found.events.overall["false_per_hour"] == 1


def test_average_precision_is_that_of_scikit_learn_times_the_share_found():
    rng = np.random.default_rng(5)
    confidences, is_right = rng.integers(0, 8, 40) / 8, rng.random(40) < 0.4
    expected = average_precision_score(is_right, confidences) * is_right.sum() / 50
    assert average_precision(confidences, is_right, 50) == pytest.approx(expected, abs=ROUNDING)
    assert average_precision(confidences[:0], is_right[:0], 3) == 0
    assert average_precision(confidences, is_right, 0) is None


def test_a_threshold_leaves_what_reaches_it():
    curve = compare(MANY, settings()).by_confidence
    at = {level: place for place, level in enumerate(curve["threshold"])}
    for level, right, left in ((0.0, 4, 6), (0.6, 4, 5), (0.61, 3, 4), (0.9, 2, 2)):
        assert curve["micro_precision"][at[level]] == pytest.approx(right / left, abs=ROUNDING), level
        assert curve["micro_recall"][at[level]] == pytest.approx(right / 7, abs=ROUNDING), level
        assert curve["false_per_hour"][at[level]] == (left - right) / 2
    assert curve["micro_precision"][at[0.99]] is None and curve["micro_recall"][at[0.99]] == 0
    owl = next(row for row in curve["per_class"] if row["class_name"] == "owl")
    assert owl["average_precision"] == pytest.approx(1 / 2 * 1 + 1 / 2 * 2 / 3, abs=ROUNDING)


def test_without_confidences_there_is_no_curve_over_them():
    assert judged([(0, 1, "owl")], [(0, 1, "owl")]).by_confidence is None


def test_a_closer_overlap_leaves_fewer_right():
    curve = judged([(0, 10, "owl", 0.9), (20, 30, "owl", 0.8)], [(0, 10, "owl"), (23, 30, "owl")]).by_overlap
    assert curve["iou"] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert curve["micro_f1"] == curve["per_class"][0]["recall"] == [1] * 7 + [0.5] * 2


def test_intervals_have_the_spread_of_recordings_drawn_whole():
    many = [recording(f"{k}.wav", [(0, 1, "owl", 0.9)] * (k % 2), [(0, 1, "owl")]) for k in range(8)]
    found = compare(many, settings(n_bootstrap=500)).events
    drawn = np.random.default_rng(3).integers(0, 8, size=(500, 7))  # seven of eight, of which the odd ones are found
    expected = score_interval("recall", 0.5, (drawn % 2).mean(axis=1), quantile=float(stats.t.ppf(0.95, 7)))
    assert found.intervals["micro_recall"] == pytest.approx(expected, abs=ROUNDING)
    assert found.class_intervals[0]["recall"] == found.intervals["micro_recall"]


def test_a_class_of_one_recording_has_no_interval():
    many = [recording(f"{k}.wav", [(0, 1, "owl", 0.9)] * (k % 2), [(0, 1, "owl")]) for k in range(8)]
    many.append(recording("9.wav", [(0, 1, "fox", 0.9), (2, 3, "fox", 0.9)], [(0, 1, "fox")]))
    fox, owl = compare(many, settings()).events.class_intervals
    assert fox["precision"] is None and fox["recall"] is None
    assert owl["precision"] is not None and owl["recall"] is not None


def test_false_alarms_of_a_resample_are_told_per_hour_of_its_own_recordings():
    many = [recording("a.wav", [(0, 1, "owl", 0.9)] * 4, [], seconds=7200), recording("b.wav", [], [], seconds=3600)]
    found = compare(many, settings()).events.intervals["false_per_hour"]
    rates = np.array([2.0, 0.0])[np.random.default_rng(3).integers(0, 2, size=200)]  # one is drawn of the two
    expected = score_interval("false_per_hour", 4 / 3, rates, quantile=float(stats.t.ppf(0.95, 1)))
    assert found == pytest.approx(expected, abs=ROUNDING)


def test_resamples_do_not_depend_on_how_many_are_held_at_once(monkeypatch):
    whole = compare(MANY, settings()).to_dict()
    monkeypatch.setattr(detection_scores, "RESAMPLED_CELLS", 7 * 12)
    assert compare(MANY, settings()).to_dict() == whole


def test_recordings_that_are_all_alike_give_no_interval():
    found = compare([recording(name, [(0, 1, "owl", 0.9)], [(0, 1, "owl")]) for name in "abc"], settings()).events
    assert found.overall["micro_f1"] == 1 and found.intervals["micro_f1"] is None


def test_a_single_recording_has_no_intervals():
    found = compare(MANY[:1], settings())
    assert set(found.events.intervals.values()) == {None}
    assert {row[name] for row in found.time.class_intervals for name in row if name != "class_name"} == {None}


@pytest.mark.parametrize(("changes", "message"), [
    ({"min_overlap": 0.0}, r"min_overlap must be in 0..1 \(0 excluded\), got 0.0"),
    ({"min_overlap": 1.1}, "min_overlap must be .* got 1.1"),
    ({"n_bootstrap": 0}, "n_bootstrap must be at least 1, got 0"),
    ({"confidence": 1.0}, r"confidence must be in 0..1 \(both excluded\), got 1.0"),
    ({"grid_seconds": 0.0}, "grid_seconds must be at least 0.001, got 0.0"),
    ({"grid_seconds": float("nan")}, "grid_seconds must be at least 0.001, got nan")])
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        settings(**changes)


# files

def results(folder, recordings, detections):
    """Write a ``results.json``; a recording is its path and status."""
    rows = [{"file_path": path, "status": status, "duration_seconds": 60.0 if status == "ok" else 0.0}
            for path, status in recordings]
    records = [{"file_path": path, "predicted_class": name, "confidence": 0.8, "above_threshold": True,
                "segment_start_ms": start, "segment_end_ms": end} for path, start, end, name in detections]
    (folder / "run.json").write_text(json.dumps({
        "model": {"class_names": ["owl"]}, "settings": {"segment_mode": True}, "predictions": records, "errors": [],
        "recordings": rows}), encoding="utf-8")
    return folder / "run.json"


def tables(folder, **texts):
    (folder / "marks").mkdir()
    for name, text in texts.items():
        (folder / "marks" / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder / "marks"


def test_only_recordings_that_are_heard_and_wholly_annotated_are_compared(tmp_path):
    run = results(tmp_path, [("r/a.wav", "ok"), ("r/b.wav", "ok"), ("r/c.wav", "ok"), ("r/d.wav", "corrupt"),
                             ("r/f.wav", "ok")],
                  [("r/a.wav", 0, 2000, "owl"), ("r/b.wav", 0, 2000, "owl"), ("r/c.wav", 0, 9000, "owl"),
                   ("r/a.wav", 4000, 6000, BACKGROUND_CLASS)])
    marks = tables(tmp_path, a="0\t1\towl\n", b="", d="0\t1\towl\n", e="0\t1\towl\n", f="0\t1\towl\n2\t3\t\n", g="")
    found = evaluate_detections(run, marks, settings())
    assert (found.n_recordings, found.hours) == (2, pytest.approx(120 / 3600))
    assert counts(found.events) == (1, 2, 1)  # the empty table's recording has a false detection
    assert found.coverage.not_annotated == 1
    assert set(found.coverage.not_heard) == {"e", "g", "r/d.wav (corrupt)"}
    assert found.coverage.unsure == ("r/f.wav",)
    assert found.coverage.left_out == {BACKGROUND_CLASS: 1}


def test_detections_that_were_only_reviewed_say_nothing_of_what_was_missed(tmp_path):
    run = results(tmp_path, [("a.wav", "ok"), ("b.wav", "ok")], [("a.wav", 0, 1000, "owl")])
    marks = tables(tmp_path, b="")
    (marks / "review.csv").write_text("file_path,start_seconds,end_seconds,model_class,confidence,decision,label,"
                                      "reviewed_at\na.wav,0,1,owl,0.8,confirmed,,\n", encoding="utf-8")
    found = evaluate_detections(run, marks, settings())
    assert found.coverage.unsure == ("a.wav",) and found.n_recordings == 1


def test_labels_are_renamed_and_other_classes_left_out_on_both_sides(tmp_path):
    run = results(tmp_path, [("a.wav", "ok")], [("a.wav", 0, 1000, "owl"), ("a.wav", 0, 1000, "fox")])
    marks = tables(tmp_path, a="0\t1\tStrix aluco\n5\t6\tcar\n")
    found = evaluate_detections(run, marks, settings(label_map={"Strix aluco": "owl"}, class_names=("owl",)))
    assert found.events.class_names == ("owl",) and counts(found.events) == (1, 1, 1)
    assert found.coverage.left_out == {"car": 1, "fox": 1}


def test_no_recording_in_both_is_told_with_a_reason(tmp_path):
    run = results(tmp_path, [("a.wav", "ok")], [])
    with pytest.raises(ManifestError, match="no recording of .*run.json is annotated in .*marks: .*b.txt: 1 of 1 marked"
                                            " sounds are left out: the recording that it is called after is not among"
                                            " the recordings of run.json"):
        evaluate_detections(run, tables(tmp_path, b="0\t1\towl\n"), settings())
    (tmp_path / "none").mkdir()
    with pytest.raises(ManifestError, match="it holds no table"):
        evaluate_detections(run, tmp_path / "none", settings())


# a real run

@pytest.fixture(scope="module")
def survey(tiny_model, tmp_path_factory):
    """Return a folder with recordings, predictions of them in every format, and annotations of most of them."""
    folder, rng = tmp_path_factory.mktemp("survey"), np.random.default_rng(11)
    marks = folder / "marks"
    for number, name in enumerate(TINY_CLASSES):
        quiet = 0.001 * rng.standard_normal(2 * TINY_RATE).astype(np.float32)
        sound = tiny_sound(name, seconds=3.0, rng=rng)
        write_audio(folder / "audio" / f"site{number % 2}" / f"night{number}.wav",
                    np.concatenate([sound, quiet, sound]))
        sounds = [MarkedSound(0.0, 3.0, name, file_path=f"night{number}.wav"),
                  MarkedSound(5.0, 8.0, name, file_path=f"night{number}.wav")]
        place = marks / f"site{number % 2}" / f"night{number}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            place.write_text("".join(map(audacity_line, sounds)), encoding="utf-8")
        else:
            rows = [raven_row(sound, number=k, low_hertz=0, high_hertz=4000) for k, sound in enumerate(sounds, 1)]
            place.write_text("\n".join("\t".join(map(str, row)) for row in (RAVEN_COLUMNS, *rows)) + "\n",
                             encoding="utf-8")
    write_audio(folder / "audio" / "site0" / "extra.wav", tiny_sound("bird_song", seconds=2.0, rng=rng))
    (folder / "audio" / "site1" / "broken.wav").write_bytes(b"RIFF")
    predictor = predictor_of(tiny_model.best, segment_mode=True, merge_gap_seconds=0.5, min_confidence=0.3)
    predict_to_files(predictor, find_inputs([folder / "audio"]), OutputSettings(output=folder / "run", formats=FORMATS),
                     executor=ThisProcess())
    return folder


@pytest.mark.parametrize("name", [name for _, name in RECORDINGS])
def test_every_format_gives_the_same_figures(survey, name):
    expected = evaluate_detections(survey / "run.json", survey / "marks", settings()).to_dict()
    found = evaluate_detections(survey / name, survey / "marks", settings()).to_dict()
    assert expected["n_recordings"] == 4 and expected["coverage"]["not_annotated"] == 1
    assert expected["events"]["overall"]["n_right"] > 0
    if name == "run.audacity":  # its labels have no confidence
        expected["by_confidence"] = None
    assert found | {"predictions": ""} == expected | {"predictions": ""}
