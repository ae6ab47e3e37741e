import io
import logging
import sys

import pytest

from utils.running import progress as progress_module
from utils.running.progress import HoursProgress, progress

HOUR = 3600.0


class Clock:
    """Time that goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    ticking = Clock()
    monkeypatch.setattr(progress_module, "time", ticking)
    return ticking


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def watched(monkeypatch, caplog):
    """Return a function that puts a terminal in the place of stderr and gives it."""
    def put(stream=None, *, level=logging.INFO):
        caplog.set_level(level, logger="utils.running.progress")
        monkeypatch.setattr(sys, "stderr", stream or Terminal())
        return sys.stderr
    return put


def bar_of(*sizes):
    return HoursProgress(sizes, description="predicting")


# how much there is

def test_before_anything_is_opened_nothing_is_known(clock):
    bar = bar_of(100, 100)
    assert (bar.total_seconds, bar.scored_seconds, bar.seconds_left) == (0.0, 0.0, None)


def test_recordings_that_wait_are_guessed_by_their_size():
    bar = bar_of(100, 300, 200)
    bar.opened(0, 10.0)  # a tenth of a second in a byte
    assert bar.total_seconds == 10 + 30 + 20
    bar.opened(1, 70.0)  # 80 s in 400 bytes
    assert bar.total_seconds == pytest.approx(80 + 200 * 0.2)
    bar.opened(2, 1.0)
    assert bar.total_seconds == 81.0


def test_a_guess_changes_no_other_guess():
    bar = bar_of(*12 * [100])
    bar.opened(0, 10.0)
    for index in range(1, 9):
        bar.opened(index, None)
        assert bar.total_seconds == pytest.approx(120.0)


def test_a_length_that_the_header_does_not_tell_counts_when_it_is_known():
    bar = bar_of(100, 300, 200)
    bar.opened(0, 10.0)
    bar.opened(1, None)
    bar.ended(1, 90.0)
    assert bar.total_seconds == pytest.approx(100 + 200 * 0.25)
    bar.opened(2, 5.0)
    assert bar.total_seconds == pytest.approx(105.0)


def test_where_no_header_tells_those_that_ended_are_the_measure():
    bar = bar_of(100, 100, 100)
    bar.opened(0, None)
    bar.opened(1, None)
    assert bar.total_seconds == 0.0
    bar.ended(0, 10.0)
    bar.ended(1, 20.0)
    assert bar.total_seconds == pytest.approx(30 + 15)


def test_the_end_of_a_recording_whose_length_was_told_changes_nothing():
    bar = bar_of(100, 100)
    bar.opened(0, 10.0)
    bar.ended(0, 10.0)
    bar.ended(0, 10.0)
    assert bar.total_seconds == 20.0


def test_what_was_scored_before_does_not_count():
    bar = bar_of(100, 300, 200)
    bar.skip(1)
    bar.opened(0, 10.0)
    assert bar.total_seconds == 10 + 20
    bar.skip(2)
    assert bar.total_seconds == 10.0


def test_where_all_was_scored_before_nothing_is_left():
    bar = bar_of(100, 300)
    bar.skip(0)
    bar.skip(1)
    assert (bar.total_seconds, bar.seconds_left) == (0.0, None)
    bar.close()


def test_recordings_of_no_bytes_are_no_harm():
    bar = bar_of(0, 0)
    bar.opened(0, None)
    bar.ended(0, 5.0)
    assert bar.total_seconds == 5.0


# how fast

def test_speed_and_time_left_follow_from_what_was_scored(clock):
    bar = bar_of(100, 300)
    bar.opened(0, 100.0)
    clock.now += 2.0
    bar.scored(40.0)
    assert (bar.elapsed_seconds, bar.scored_seconds, bar.speed) == (2.0, 40.0, 20.0)
    assert bar.seconds_left == pytest.approx((400 - 40) / 20)
    clock.now += 2.0
    bar.scored(360.0)
    assert (bar.speed, bar.seconds_left) == (100.0, 0.0)


def test_no_time_at_all_is_no_division_by_zero(clock):
    bar = bar_of(100)
    bar.opened(0, 100.0)
    bar.scored(100.0)
    assert bar.speed > 0 and bar.seconds_left == 0.0


# what is shown

def test_hours_of_audio_and_speed_are_shown(watched, clock):
    terminal, bar = watched(), bar_of(100, 100)
    bar.opened(0, 2 * HOUR)
    clock.now += 60.0
    bar.scored(1 * HOUR)
    bar.scored(3 * HOUR)
    bar.close()
    shown = terminal.getvalue()
    assert "predicting: 100%" in shown and "4.00/4.00 h of audio" in shown and "x240 real time" in shown


def test_more_than_was_promised_is_no_more_than_everything(watched):
    terminal, bar = watched(), bar_of(100)
    bar.opened(0, 1 * HOUR)
    bar.scored(2 * HOUR)
    bar.close()
    assert "100%" in terminal.getvalue() and "2.00/2.00 h of audio" in terminal.getvalue()


@pytest.mark.parametrize("make", [lambda: bar_of(100), lambda: progress(total=3, description="x", unit="file")],
                         ids=["hours", "items"])
@pytest.mark.parametrize(("stream", "level"), [(Terminal, logging.WARNING), (io.StringIO, logging.INFO)],
                         ids=["quiet", "no terminal"])
def test_nothing_is_shown_where_nobody_wants_it_or_watches(watched, make, stream, level):
    seen = watched(stream(), level=level)
    make().close()
    assert seen.getvalue() == ""


def test_items_are_given_on_and_counted(watched):
    terminal = watched()
    assert list(progress("abc", total=3, description="cutting", unit="file")) == ["a", "b", "c"]
    assert "cutting: 100%" in terminal.getvalue() and "3/3" in terminal.getvalue()
