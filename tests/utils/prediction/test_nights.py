from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from utils.audio.recorders import RecorderFacts, parse_timezone
from utils.prediction.nights import NIGHT_COLUMNS, Nights

HOUR = 3600.0
ROUNDED = 5e-5  # h: effort is told with four decimals


def facts(text=None, *, site="ridge", hours=None, **others):
    started = datetime.fromisoformat(text) if text else None
    if hours is not None:
        started = started.replace(tzinfo=timezone(timedelta(hours=hours)))
    return RecorderFacts(started=started, site=site, **others)


def effort(*recordings):
    """Return ``{night: (recordings, hours)}`` of recordings at one place, each a clock and hours."""
    nights = Nights(["owl"])
    for recorder, hours in recordings:
        nights.add_effort(Path("x.wav"), recorder, duration_seconds=hours * HOUR)
    return {row["night"]: (row["n_recordings"], row["effort_hours"]) for row in nights.rows()}


def counts(nights):
    return {(row["site"], row["night"], row["class_name"]): row["n_detections"] for row in nights.rows()}


# which night

@pytest.mark.parametrize(("clock", "night"), [
    ("2024-05-01T12:00:00", "2024-05-01"), ("2024-05-01T23:59:59", "2024-05-01"),
    ("2024-05-02T00:00:00", "2024-05-01"), ("2024-05-02T11:59:59", "2024-05-01"),
    ("2024-05-02T12:00:00", "2024-05-02"), ("2024-03-01T03:00:00", "2024-02-29"),
    ("2024-01-01T03:00:00", "2023-12-31"),
])
def test_a_night_lasts_from_noon_to_noon_and_is_called_by_its_first_date(clock, night):
    nights = Nights(["owl"])
    nights.add_effort(Path("x.wav"), facts(clock), duration_seconds=0.5)
    nights.add_detection(Path("x.wav"), facts(clock), "owl", start_seconds=0.0)
    assert counts(nights) == {("ridge", night, "owl"): 1}


@pytest.mark.parametrize("hours", [-11, 0, 13])
def test_noon_is_that_of_the_recorders_own_clock(hours):
    assert list(effort((facts("2024-05-02T11:00:00", hours=hours), 0.5))) == ["2024-05-01"]
    assert list(effort((facts("2024-05-02T13:00:00", hours=hours), 0.5))) == ["2024-05-02"]


def test_noon_is_that_of_the_zone_that_was_asked_for():
    in_lima = facts("2024-05-02T16:30:00", hours=0).in_zone(parse_timezone("America/Lima"))  # 11:30 there
    assert effort((in_lima, 1.0)) == {"2024-05-01": (1, 0.5), "2024-05-02": (1, 0.5)}


# effort

def test_a_recording_across_noon_counts_in_both_nights_with_its_part():
    assert effort((facts("2024-05-02T11:15:00"), 1.0)) == {"2024-05-01": (1, 0.75), "2024-05-02": (1, 0.25)}


def test_a_recording_of_days_counts_in_every_night():
    assert effort((facts("2024-05-01T18:00:00"), 48.0)) == {
        "2024-05-01": (1, 18.0), "2024-05-02": (1, 24.0), "2024-05-03": (1, 6.0)}


def test_a_recording_that_ends_or_begins_at_noon_counts_once():
    assert effort((facts("2024-05-02T11:00:00"), 1.0)) == {"2024-05-01": (1, 1.0)}
    assert effort((facts("2024-05-02T12:00:00"), 24.0)) == {"2024-05-02": (1, 24.0)}


def test_recordings_of_a_night_are_summed():
    assert effort((facts("2024-05-01T20:00:00"), 0.5), (facts("2024-05-02T04:00:00"), 0.25),
                  (facts("2024-05-02T20:00:00"), 2.0)) == {"2024-05-01": (2, 0.75), "2024-05-02": (1, 2.0)}


def test_no_second_is_lost_or_counted_twice(rng):
    begins, seconds = rng.integers(0, 10 * 24 * 3600, 200), rng.uniform(0.1, 60 * HOUR, 200)
    start = datetime(2024, 2, 25)
    found = effort(*((facts((start + timedelta(seconds=int(begin))).isoformat()), length / HOUR)
                     for begin, length in zip(begins, seconds)))
    assert sum(hours for _, hours in found.values()) == pytest.approx(seconds.sum() / HOUR, abs=len(found) * ROUNDED)


def test_recordings_whose_time_nobody_knows_share_a_night_without_a_name():
    assert effort((facts(), 3.0), (facts(), 30.0), (facts("2024-05-01T20:00:00"), 1.0)) == {
        "": (2, 33.0), "2024-05-01": (1, 1.0)}


def test_a_detection_without_a_time_counts_there_too():
    nights = Nights(["owl"])
    nights.add_effort(Path("x.wav"), facts(), duration_seconds=90_000)
    nights.add_detection(Path("x.wav"), facts(), "owl", start_seconds=86_400)
    assert counts(nights) == {("ridge", "", "owl"): 1}


# detections

def test_a_detection_counts_in_the_night_in_which_it_begins():
    nights, recorder = Nights(["owl"]), facts("2024-05-02T11:00:00")
    nights.add_effort(Path("x.wav"), recorder, duration_seconds=2 * HOUR)
    for start_seconds in (0.0, 3599.5, 3600.0, 5000.0, 7199.0):
        nights.add_detection(Path("x.wav"), recorder, "owl", start_seconds=start_seconds)
    assert counts(nights) == {("ridge", "2024-05-01", "owl"): 2, ("ridge", "2024-05-02", "owl"): 3}


def test_every_class_has_a_row_for_every_site_and_night():
    nights = Nights(["owl", "fox", "cat"])
    nights.add_effort(Path("x.wav"), facts("2024-05-01T20:00:00"), duration_seconds=HOUR)
    nights.add_effort(Path("x.wav"), facts("2024-05-02T20:00:00", site="creek"), duration_seconds=HOUR)
    for _ in range(3):
        nights.add_detection(Path("x.wav"), facts("2024-05-01T20:00:00"), "fox", start_seconds=0.0)
    assert list(nights.rows()) == [
        dict(zip(NIGHT_COLUMNS, values)) for values in [
            ("creek", "2024-05-02", "owl", 0, 1, 1.0), ("creek", "2024-05-02", "fox", 0, 1, 1.0),
            ("creek", "2024-05-02", "cat", 0, 1, 1.0), ("ridge", "2024-05-01", "owl", 0, 1, 1.0),
            ("ridge", "2024-05-01", "fox", 3, 1, 1.0), ("ridge", "2024-05-01", "cat", 0, 1, 1.0)]]


def test_nothing_recorded_is_no_row():
    assert list(Nights(["owl"]).rows()) == []


# the site

@pytest.mark.parametrize(("recorder", "path", "site"), [
    (facts(site="ridge", recorder_id="SMM1"), "creek/x.wav", "ridge"),
    (facts(site="", recorder_id="SMM1"), "creek/x.wav", "SMM1"),
    (facts(site=""), "valley/creek/x.wav", "creek"),
    (facts(site=""), "/creek/x.wav", "creek"),
])
def test_a_site_is_what_the_recording_tells_or_else_the_recorder_or_else_the_folder(recorder, path, site):
    nights = Nights(["owl"])
    nights.add_effort(Path(path), recorder, duration_seconds=HOUR)
    nights.add_detection(Path(path), recorder, "owl", start_seconds=0.0)
    assert counts(nights) == {(site, "", "owl"): 1}


@pytest.mark.parametrize(("at_hand", "path"), [("creek", "x.wav"), ("creek/work", "../x.wav")])
def test_a_folder_has_its_own_name_however_the_recording_is_named(tmp_path, monkeypatch, at_hand, path):
    (tmp_path / at_hand).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / at_hand)
    nights = Nights(["owl"])
    nights.add_effort(Path(path), RecorderFacts(), duration_seconds=HOUR)
    assert [row["site"] for row in nights.rows()] == ["creek"]
