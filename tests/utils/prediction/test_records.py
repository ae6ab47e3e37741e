import dataclasses
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from models.calibration import Calibration
from models.classes import ClassList, DecisionRules
from models.description import ModelDescription
from tests.conftest import TINY_FRONTEND, TINY_RATE, tiny_config
from tests.utils.prediction.conftest import FILE_KEYS, ODD_NAME, ODD_TEXT, PRINTED, SEGMENT_KEYS, any_bytes_are_names
from utils.audio.recorders import RecorderFacts
from utils.audio.recordings import Outcome
from utils.prediction.records import (PredictedRecording, PredictionSettings, RecordMaker, ScoredRecording, conclude,
                                      recorder_columns, segments_of)
from utils.prediction.scoring import SpanScores
from utils.prediction.spans import End, Opened, ReadingPlan, SpanRead

BEGAN = datetime(2025, 5, 3, 3, 13, tzinfo=timezone(timedelta(hours=2)))
# of two classes: probabilities 3/4 and 1/4, 1/2 and 1/2
OWL, EVEN = [np.log(3), 0.0], [0.0, 0.0]
TWO_SECONDS = ReadingPlan(TINY_FRONTEND, 2 * TINY_RATE, 2 * TINY_RATE)  # segments of two windows, 32 of them in a span
OPENED = Opened(None, None, 44100, 2, RecorderFacts(site="pond"))


def recorder_of(*, temperature=1.0, owl=0.7, reject_class="unknown", **settings):
    rules = DecisionRules({"owl": owl, "fox": 0.7}, reject_class)
    model = ModelDescription(
        path="m.pth", sha256="0", model_name="efficientnet-b0", config=tiny_config(), frontend=TINY_FRONTEND,
        classes=ClassList(("owl", "fox")), calibration=Calibration(temperature=temperature), rules=rules,
        n_parameters=1)
    return RecordMaker(model, rules, PredictionSettings(**settings), TWO_SECONDS)


def span_of(number, logits, *, n_segments=0, last_segment=None, peak=0.5, end=None, seconds_spent=0.25):
    span = SpanRead(number, n_segments, last_segment, len(logits), peak, end, seconds_spent)
    return SpanScores(span, np.array(logits, dtype=np.float32).reshape(-1, 2))


def scored(**changes):
    """Two seconds of which the second has an owl, and two from the second on, which have one all the time."""
    span = span_of(0, [EVEN, OWL, OWL, OWL], n_segments=1, last_segment=(TINY_RATE, 3 * TINY_RATE), end=End(3.00049))
    values = {"name": "night.wav", "outcome": Outcome(duration_seconds=3.00049), "n_segments": 2, "seconds_spent": 0.5,
              "spans": lambda: iter([span]), **changes}
    return ScoredRecording(**values)


def segment_records(maker, recording):
    return [maker.segment_record(recording, answer) for answer in maker.segments(recording)]


# records

def test_a_file_is_the_mean_of_its_segments_and_a_segment_that_of_its_windows():
    record = recorder_of(return_all_scores=True).file_record(scored())
    assert set(record) == FILE_KEYS | {"all_scores"}
    assert record["all_scores"] == {"owl": 0.6875, "fox": 0.3125}  # the means of 5/8 and 3/4, of 3/8 and 1/4
    assert (record["file_path"], record["duration_seconds"], record["n_segments"]) == ("night.wav", 3.0, 2)
    assert record["processing_time"] == 0.5


def test_segments_have_their_own_times_scores_and_share_of_the_work():
    records = segment_records(recorder_of(), scored())
    assert all(set(record) == SEGMENT_KEYS for record in records)
    assert [(r["segment_index"], r["segment_start_ms"], r["segment_end_ms"]) for r in records] == [
        (0, 0, 2000), (1, 1000, 3000)]
    assert [(r["predicted_class"], r["top_confidence"]) for r in records] == [("unknown", 0.625), ("owl", 0.75)]
    assert [r["processing_time"] for r in records] == [0.25, 0.25]
    assert {(r["n_segments"], r["duration_seconds"]) for r in records} == {(2, 3.0)}


def test_a_later_span_goes_on_where_the_one_before_it_ends():
    """Its segments' times, numbers and windows; a last span may hold nothing."""
    spans = [span_of(0, 63 * [EVEN] + [OWL], n_segments=32),
             span_of(1, [OWL, OWL, EVEN, OWL], n_segments=1, last_segment=(65 * TINY_RATE, 67 * TINY_RATE)),
             span_of(2, [], end=End(67.01))]
    recording = scored(spans=lambda: iter(spans), n_segments=34)
    records = segment_records(recorder_of(), recording)
    assert [r["segment_index"] for r in records] == list(range(34))
    assert [(r["segment_start_ms"], r["segment_end_ms"], r["top_confidence"]) for r in records[-4:]] == [
        (60_000, 62_000, 0.5), (62_000, 64_000, 0.625), (64_000, 66_000, 0.75), (65_000, 67_000, 0.625)]
    mean = (31 * 0.5 + 0.625 + 0.75 + 0.625) / 34
    assert recorder_of().file_record(recording)["top_confidence"] == pytest.approx(mean, abs=PRINTED)
    assert recorder_of().whole(recording).end == 67 * TINY_RATE


def test_segments_shorter_than_a_window_have_one():
    plan = dataclasses.replace(TWO_SECONDS, segment_samples=TINY_RATE // 2, hop_samples=TINY_RATE // 4)
    span = span_of(1, 65 * [EVEN], n_segments=64, last_segment=(1000, 5000)).span
    segments = list(segments_of(plan, span))
    assert segments[0] == (64 * TINY_RATE // 4, 66 * TINY_RATE // 4, slice(0, 1))
    assert segments[63] == (127 * TINY_RATE // 4, 129 * TINY_RATE // 4, slice(63, 64))
    assert segments[64] == (1000, 5000, slice(64, 65)) and len(segments) == 65


def test_calibration_divides_the_logits():
    record = segment_records(recorder_of(temperature=2.0), scored())[1]
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
    assert [entry["class"] for entry in recorder_of(top_k=9).file_record(scored())["top_k"]] == ["owl", "fox"]


def test_an_answer_at_hand_is_not_looked_for_again():
    maker, recording = recorder_of(), scored()
    answer = maker.whole(recording)
    assert maker.file_record(dataclasses.replace(recording, spans=divide_by_nothing), answer) == \
        maker.file_record(recording)


def divide_by_nothing():
    return 1 // 0


def test_what_was_found_wrong_stands_in_every_record():
    recording = scored(outcome=Outcome(reason="night.wav breaks off after 3.0 s", duration_seconds=3.0))
    assert recorder_of().file_record(recording)["damage"] == "night.wav breaks off after 3.0 s"
    assert {r["damage"] for r in segment_records(recorder_of(), recording)} == {"night.wav breaks off after 3.0 s"}


@any_bytes_are_names
def test_a_name_that_is_no_text_is_written_readably():
    recording = scored(name=ODD_NAME, outcome=Outcome(reason=f"{ODD_NAME} breaks off", duration_seconds=3.0))
    record = recorder_of().file_record(recording)
    assert (record["file_path"], record["damage"]) == (ODD_TEXT, f"{ODD_TEXT} breaks off")


@any_bytes_are_names
def test_an_error_record_is_readable():
    predicted = PredictedRecording(ODD_TEXT, Outcome("corrupt", f"{ODD_NAME} cannot be opened"), [])
    assert predicted.error_record() == {"file_path": ODD_TEXT, "status": "corrupt",
                                        "error": f"{ODD_TEXT} cannot be opened"}


# recorders

def test_a_recorder_s_clock_dates_the_file_and_each_segment():
    recording = scored(recorder=RecorderFacts(started=BEGAN))
    assert recorder_of().file_record(recording)["recorded_at"] == "2025-05-03T03:13:00+02:00"
    assert [r["recorded_at"] for r in segment_records(recorder_of(), recording)] == [
        "2025-05-03T03:13:00+02:00", "2025-05-03T03:13:01+02:00"]


def test_a_clock_without_an_offset_dates_nothing():
    recording = scored(recorder=RecorderFacts(started=BEGAN.replace(tzinfo=None)))
    assert set(recorder_of().file_record(recording)) == FILE_KEYS


def test_what_is_known_of_the_recorder_stands_in_every_record_and_nothing_else():
    facts = {"recorder_id": "SMM7", "site": "pond", "latitude": 0.0, "longitude": -60.25, "temperature_c": 0.0,
             "gain": "medium"}
    recording = scored(recorder=RecorderFacts(**facts))
    for record, keys in [(recorder_of().file_record(recording), FILE_KEYS),
                         *((record, SEGMENT_KEYS) for record in segment_records(recorder_of(), recording))]:
        assert {name: value for name, value in record.items() if name not in keys} == facts
    assert recorder_columns(RecorderFacts(site="pond", temperature_c=-3.5)) == {"site": "pond", "temperature_c": -3.5}


# spans summed up

def test_spans_are_summed_up():
    spans = [span_of(0, 64 * [EVEN], n_segments=32, peak=0.1), span_of(1, 4 * [EVEN], n_segments=1, peak=0.75,
             last_segment=(0, 1), end=End(67.5, "night.wav breaks off"), seconds_spent=1.0)]
    found = conclude("night.wav", OPENED, lambda: iter(spans))
    assert found.outcome == Outcome("ok", "night.wav breaks off", 67.5, 44100, 2)
    assert (found.name, found.recorder.site) == ("night.wav", "pond")
    assert (found.n_segments, found.seconds_spent) == (34, 1.25)
    assert list(found.spans()) == list(found.spans()) == spans  # as often as they are needed


@pytest.mark.parametrize("spans", [[], [span_of(0, 64 * [EVEN], n_segments=32)]], ids=["none", "no end"])
def test_a_recording_whose_end_is_missing_is_not_done(spans):
    assert conclude("night.wav", OPENED, lambda: iter(spans)) is None


@pytest.mark.parametrize(("peaks", "seconds", "status", "reason"), [
    ((2.0 ** -15, 2.0 ** -16), 67.0, "silent", "night.wav never exceeds one 16-bit step"),
    ((2.0 ** -14, 0.0), 67.0, "ok", ""), ((0.0, 2.0 ** -14), 67.0, "ok", ""),
    ((0.5, 0.5), 0.0499, "too_short", "night.wav lasts 0.0499 s"), ((0.5, 0.5), 0.05, "ok", ""),
])
def test_silence_and_snippets_are_found_when_all_is_read(peaks, seconds, status, reason):
    spans = [span_of(0, 64 * [EVEN], n_segments=32, peak=peaks[0]),
             span_of(1, 2 * [EVEN], n_segments=1, peak=peaks[1], end=End(seconds))]
    outcome = conclude("night.wav", OPENED, lambda: iter(spans)).outcome
    assert outcome.status == status and outcome.reason.startswith(reason) and bool(outcome.reason) == bool(reason)
    assert (outcome.duration_seconds, outcome.sample_rate, outcome.channels) == (seconds, 44100, 2)
