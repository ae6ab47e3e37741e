from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from models.calibration import Calibration
from models.classes import ClassList, DecisionRules
from models.description import ModelDescription
from tests.conftest import TINY_FRONTEND, TINY_RATE, tiny_config
from tests.utils.prediction.conftest import FILE_KEYS, ODD_NAME, ODD_TEXT, PRINTED, SEGMENT_KEYS, any_bytes_are_names
from utils.audio.recordings import Outcome
from utils.prediction.records import (PredictedRecording, PredictionSettings, RecordMaker, ScoredRecording,
                                      ScoredSegment)

BEGAN = datetime(2025, 5, 3, 3, 13, tzinfo=timezone(timedelta(hours=2)))
# of two classes: probabilities 3/4 and 1/4, 1/2 and 1/2
OWL, EVEN = np.array([np.log(3), 0.0]), np.zeros(2)


def recorder_of(*, temperature=1.0, owl=0.7, reject_class="unknown", **settings):
    rules = DecisionRules({"owl": owl, "fox": 0.7}, reject_class)
    model = ModelDescription(
        path="m.pth", sha256="0", model_name="efficientnet-b0", config=tiny_config(), frontend=TINY_FRONTEND,
        classes=ClassList(("owl", "fox")), calibration=Calibration(temperature=temperature), rules=rules,
        n_parameters=1)
    return RecordMaker(model, rules, PredictionSettings(**settings))


def scored(**changes):
    """A second with the probability 3/4 of an owl, then a longer segment of two windows with 1/2 and 3/4."""
    segments = [ScoredSegment(0, TINY_RATE, [OWL]), ScoredSegment(TINY_RATE, 3 * TINY_RATE, [EVEN, OWL])]
    return ScoredRecording("night.wav", Outcome(duration_seconds=3.00049), segments, seconds_spent=0.5, **changes)


def test_a_file_is_the_mean_of_its_segments_and_a_segment_that_of_its_windows():
    record = recorder_of(return_all_scores=True).file_record(scored())
    assert set(record) == FILE_KEYS | {"all_scores"}
    assert record["all_scores"] == {"owl": 0.6875, "fox": 0.3125}  # the means of 3/4 and 5/8, of 1/4 and 3/8
    assert (record["file_path"], record["duration_seconds"], record["n_segments"]) == ("night.wav", 3.0, 2)
    assert record["processing_time"] == 0.5


def test_segments_have_their_own_times_scores_and_share_of_the_work():
    records = recorder_of().segment_records(scored())
    assert all(set(record) == SEGMENT_KEYS for record in records)
    assert [(r["segment_index"], r["segment_start_ms"], r["segment_end_ms"]) for r in records] == [
        (0, 0, 1000), (1, 1000, 3000)]
    assert [(r["predicted_class"], r["top_confidence"]) for r in records] == [("owl", 0.75), ("unknown", 0.625)]
    assert [r["processing_time"] for r in records] == [0.25, 0.25]
    assert {(r["n_segments"], r["duration_seconds"]) for r in records} == {(2, 3.0)}


def test_calibration_divides_the_logits():
    record = recorder_of(temperature=2.0).segment_records(scored())[0]
    assert record["top_confidence"] == pytest.approx(3 ** 0.5 / (3 ** 0.5 + 1), abs=PRINTED)


@pytest.mark.parametrize(("owl", "reject_class", "expected"), [
    (0.6875, "unknown", ("owl", 0.6875, True)),
    (0.6876, "unknown", ("unknown", 0.0, False)),
    (0.6876, "fox", ("fox", 0.3125, False)),  # a class of the model keeps its own probability
])
def test_below_its_threshold_a_class_is_rejected_but_kept_in_view(owl, reject_class, expected):
    record = recorder_of(owl=owl, reject_class=reject_class).file_record(scored())
    assert (record["predicted_class"], record["confidence"], record["above_threshold"]) == expected
    assert (record["top_class"], record["top_confidence"]) == ("owl", 0.6875)


def test_the_best_classes_are_listed_when_asked_for():
    record = recorder_of(top_k=1).file_record(scored())
    assert record["top_k"] == [{"class": "owl", "probability": 0.6875}]


def test_a_recorder_s_clock_dates_the_file_and_each_segment():
    recording = scored(recorded_at=BEGAN)
    assert recorder_of().file_record(recording)["recorded_at"] == "2025-05-03T03:13:00+02:00"
    assert [r["recorded_at"] for r in recorder_of().segment_records(recording)] == [
        "2025-05-03T03:13:00+02:00", "2025-05-03T03:13:01+02:00"]


def test_what_was_found_wrong_stands_in_every_record():
    recording = scored()
    recording.outcome = Outcome(reason="night.wav breaks off after 3.0 s", duration_seconds=3.0)
    assert recorder_of().file_record(recording)["damage"] == "night.wav breaks off after 3.0 s"
    assert {r["damage"] for r in recorder_of().segment_records(recording)} == {"night.wav breaks off after 3.0 s"}


@any_bytes_are_names
def test_a_name_that_is_no_text_is_written_readably():
    recording = scored()
    recording.name, recording.outcome = ODD_NAME, Outcome(reason=f"{ODD_NAME} breaks off", duration_seconds=3.0)
    record = recorder_of().file_record(recording)
    assert (record["file_path"], record["damage"]) == (ODD_TEXT, f"{ODD_TEXT} breaks off")


@pytest.mark.parametrize("predicted", [
    PredictedRecording("a.wav", Outcome(duration_seconds=2.5), [{"file_path": "a.wav", "confidence": 0.5}]),
    PredictedRecording("a.wav", Outcome("silent", "a.wav never exceeds one step"), []),
    pytest.param(PredictedRecording(ODD_TEXT, Outcome("corrupt", f"{ODD_NAME} cannot be opened"), []),
                 marks=any_bytes_are_names),
])
def test_what_is_reported_survives_the_journal(predicted):
    assert PredictedRecording.from_json(predicted.to_json()) == predicted


@any_bytes_are_names
def test_an_error_record_is_readable():
    predicted = PredictedRecording(ODD_TEXT, Outcome("corrupt", f"{ODD_NAME} cannot be opened"), [])
    assert predicted.error_record() == {"file_path": ODD_TEXT, "status": "corrupt",
                                        "error": f"{ODD_TEXT} cannot be opened"}
