import gc
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from tests.utils.prediction.test_outputs import SEGMENTS, feed, head_of, maker, scored
from utils.audio.recorders import RecorderFacts, parse_timezone
from utils.prediction.review_choice import ReviewChoice, ReviewItem, fair_share

STARTED = datetime(2024, 5, 1, 23, 59, 50)


def item(name="owl", confidence=0.9, *, site="ridge", day="2024-05-01", start=0.0):
    return ReviewItem(recording=f"{site}.wav", start_seconds=start, end_seconds=start + 1, model_class=name,
                      confidence=confidence, recorded_at=f"{day}T22:00:00" if day else "", site=site)


def items_of(rng, n):
    """Return detections of three classes, one rare, at two sites on three days; no two are equal."""
    return [item(rng.choice(["owl", "fox", "wren"], p=[0.8, 0.18, 0.02]), round(float(rng.uniform(0.5, 1)), 6),
                 site=rng.choice(["ridge", "marsh"]), day=f"2024-05-0{rng.integers(1, 4)}", start=float(number))
            for number in range(n)]


def chosen(recordings, *, most=100, suggested=(), settings=SEGMENTS):
    choice = ReviewChoice(head_of(settings), most=most, suggested=suggested)
    feed(choice, recordings, settings)
    return choice


def test_classes_take_turns_and_in_a_class_sites_and_days_the_best_first():
    items = [item("owl", 0.99, start=0), item("owl", 0.98, start=1), item("owl", 0.97, start=2),
             item("owl", 0.60, site="marsh"), item("owl", 0.55, day="2024-05-02"), item("fox", 0.51)]
    # of each of three places the best owl, by confidence, then the second best where there is one
    owls = [items[0], items[3], items[4], items[1], items[2]]
    assert fair_share(items, most=6) == [items[5], owls[0], *owls[1:]]
    assert fair_share(items, most=3) == [items[5], *owls[:2]]
    assert fair_share(items, most=0) == []


def test_no_class_has_more_than_another_that_has_some_left(rng):
    items = items_of(rng, 600)
    found = [one.model_class for one in items]
    kept = [one.model_class for one in fair_share(items, most=60)]
    rare = found.count("wren")
    assert 0 < rare < 20 and kept.count("wren") == rare
    assert sorted(kept.count(name) for name in ("owl", "fox")) == [(60 - rare) // 2, (60 - rare + 1) // 2]


@pytest.mark.parametrize("seed", range(5))
def test_what_was_dropped_on_the_way_would_not_have_been_chosen(seed):
    rng = np.random.default_rng(seed)
    items, held = items_of(rng, 400), []
    for one in items:
        held.append(one)
        if len(held) > 40:
            held = fair_share(held, most=20)
    assert fair_share(held, most=20) == fair_share(items, most=20)


def test_detections_are_shown_by_class_and_time_and_nothing_else_is():
    later = RecorderFacts(started=STARTED)
    choice = chosen([scored("b.wav", 0.9, 0.6, 0.1, recorder=later), scored("a.wav", 0.8, recorder=later)])
    assert [(one.model_class, one.recording, one.start_seconds, one.end_seconds) for one in choice.shown()] == [
        ("owl", "a.wav", 0, 1), ("owl", "b.wav", 0, 1), ("fox", "b.wav", 2, 3)]
    assert [one.confidence for one in choice.shown()] == pytest.approx([0.8, 0.9, 0.9], abs=1e-6)
    assert choice.n_found == {"owl": 2, "fox": 1}


@pytest.mark.parametrize(("started", "expected"), [
    (STARTED, "2024-05-01T23:59:52"),
    (STARTED.replace(tzinfo=timezone(timedelta(hours=2))), "2024-05-01T23:59:52+02:00"),
    # clocks in Berlin go from 2 to 3 at the end of March
    (datetime(2024, 3, 31, 1, 59, 59, tzinfo=parse_timezone("Europe/Berlin")), "2024-03-31T03:00:01+02:00"),
    (None, ""),
])
def test_a_detection_tells_its_own_time_by_the_recorders_clock(started, expected):
    shown = chosen([scored("a.wav", 0.6, 0.6, 0.9, recorder=RecorderFacts(started=started))]).shown()
    assert [(one.start_seconds, one.recorded_at) for one in shown] == [(2.0, expected)]


@pytest.mark.parametrize(("recorder", "site"), [
    (RecorderFacts(site="ridge", recorder_id="SMM1"), "ridge"), (RecorderFacts(recorder_id="SMM1"), "SMM1"),
    (RecorderFacts(), "marsh"),
])
def test_a_site_is_told_by_the_recording_or_its_recorder_or_its_folder(recorder, site):
    assert [one.site for one in chosen([scored("marsh/a.wav", 0.9, recorder=recorder)]).shown()] == [site]


def test_what_was_suggested_comes_first_and_once(tmp_path):
    row = {"rank": 1, "file_path": "a.wav", "start_seconds": 1.0, "end_seconds": 2.0, "model_class": "fox",
           "confidence": 0.51, "reason": "uncertain between fox and owl", "recorded_at": "2024-05-01T20:00:01+02:00"}
    below = {**row, "rank": 2, "start_seconds": 2.0, "end_seconds": 3.0, "recorded_at": None}
    suggested = [ReviewItem.of_suggestion(one) for one in (row, below)]
    choice = chosen([scored("a.wav", 0.9, 0.1, 0.55)], suggested=suggested)
    assert choice.shown() == [*suggested, *chosen([scored("a.wav", 0.9)]).shown()]
    assert suggested[0].recorded_at == row["recorded_at"] and suggested[1].recorded_at == ""
    assert choice.n_found == {"owl": 1}
    few = chosen([scored("a.wav", 0.9)], suggested=suggested, most=1)
    assert few.shown() == suggested[:1] and few.n_found == {"owl": 1}


def test_a_suggestion_without_a_time_has_that_of_the_files_name():
    row = {"file_path": "wood/20240501_235950.wav", "start_seconds": 15.0, "end_seconds": 16.0, "model_class": "fox",
           "confidence": 0.5, "reason": "uncertain"}
    assert ReviewItem.of_suggestion(row).recorded_at == "2024-05-02T00:00:05"


def test_memory_does_not_grow_with_what_is_found():
    choice = ReviewChoice(head_of(SEGMENTS), most=50)
    records = maker(SEGMENTS)
    for number in range(40):
        recording = scored(f"{number}.wav", *[0.9] * 100)
        for answer in records.segments(recording):
            choice.add(recording, answer, {})
    assert choice.n_found.total() == 4000
    gc.collect()
    assert sum(type(one) is ReviewItem for one in gc.get_objects()) <= 100
