import dataclasses
import functools
import io
import itertools
import time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import soundfile

from models.audio_frontend import LogMelFrontend, segment_starts
from models.errors import AudioError
from tests.conftest import TINY_FRONTEND, TINY_RATE, tiny_sound, write_audio
from tests.scripts.processes import wait_until
from tests.utils.prediction.conftest import broken_flac
from utils.audio import recordings
from utils.audio.recorders import RecorderFacts
from utils.audio.recordings import load_audio
from utils.audio.streams import FileObject, Samples
from utils.prediction import spans as reading
from utils.prediction.records import segments_of
from utils.prediction.spans import (End, Failed, Opened, ReadingPlan, SpanJob, SpanRead, WindowRead, name_of,
                                    read_spans)
from utils.running.parallel import Done, Further, LocalProcesses, ThisProcess

PLAN = ReadingPlan(TINY_FRONTEND, TINY_RATE, TINY_RATE)
HALF = dataclasses.replace(PLAN, hop_samples=TINY_RATE // 2)
# dB: a resampler that begins in the middle rounds float32 another way, which changes 1e-5 here; a window that stands a
# sample aside differs by 0.1 and more
ROUNDING = 1e-4
SLOW_SECONDS = 0.02  # far more than a window takes
SHORT_SPAN = 3  # windows
WHOLE = 10 ** 9  # windows: everything is one span
SMALL_BLOCK = 1024  # samples: what a break may cost before it


class Reading(NamedTuple):
    """What came of a recording: ``Opened``, and each span with its log-mels, in order."""

    opened: Opened
    spans: list

    @property
    def ends(self):
        return [span.end for span, _ in self.spans]

    @property
    def log_mels(self):
        return np.concatenate([log_mels for _, log_mels in self.spans if len(log_mels)])

    def segments(self, plan):
        return [(segment.start, segment.end) for span, _ in self.spans for segment in segments_of(plan, span)]


def parts_of(plan, recording, *, done=frozenset()):
    """Yield all parts of a recording; ``Further`` becomes the parts of the other spans."""
    stream = ThisProcess().stream(functools.partial(read_spans, plan), [SpanJob(recording, 0, done=frozenset(done))])
    return (part for _, part in stream if not isinstance(part, Done))


def gathered(parts):
    """Yield spans with their log-mels."""
    windows = []
    for part in parts:
        if isinstance(part, WindowRead):
            windows.append(part.log_mel)
        else:
            assert isinstance(part, SpanRead) and part.n_windows == len(windows), part
            yield part, windows
            windows = []
    assert not windows


def read(recording, *, plan=PLAN, done=frozenset()):
    opened, *parts = parts_of(plan, recording, done=done)
    assert isinstance(opened, Opened)
    return Reading(opened, list(gathered(parts)))


def read_to_the_end(recording):
    """Read spans in order up to the first that knows the end: what a header promises behind it counts no more."""
    parts = parts_of(PLAN, recording)
    opened, found = next(parts), []
    for span, log_mels in gathered(parts):
        found.append((span, log_mels))
        if span.end is not None:
            break
    return Reading(opened, found)


def noise(frames, rng):
    return rng.uniform(-0.5, 0.5, frames)


def expected_of(path, plan):
    """Return segments and log-mels as they are without spans: of the whole recording in memory."""
    samples, frontend = load_audio(path, sample_rate=plan.frontend.sample_rate), LogMelFrontend(plan.frontend)
    starts = segment_starts(len(samples), segment_samples=plan.segment_samples, hop_samples=plan.hop_samples,
                            least_new_samples=plan.frontend.least_new_samples)
    ends = [min(start + plan.segment_samples, len(samples)) for start in starts]
    log_mels = [frontend.log_mel(samples[start + first:start + first + plan.frontend.segment_samples])
                for start, end in zip(starts, ends, strict=True) for first in plan.window_starts(end - start)]
    return list(zip(starts, ends, strict=True)), np.stack(log_mels)


# one span

def test_windows_are_log_mels_of_the_samples_at_their_place(tmp_path, rng):
    samples = tiny_sound("bird_song", seconds=2.6, rng=rng)
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    found = read(tmp_path / "a.wav")
    places = found.segments(PLAN)
    assert places == [(0, 8000), (8000, 16000), (12800, 20800)]
    frontend = LogMelFrontend(TINY_FRONTEND)
    for log_mel, (start, end) in zip(found.log_mels, places, strict=True):
        np.testing.assert_array_equal(log_mel, frontend.log_mel(samples[start:end]))
    (span, _), = found.spans
    assert (span.number, span.n_segments, span.last_segment, span.end) == (0, 2, (12800, 20800), End(2.6))
    assert span.peak == np.abs(samples).max() and span.seconds_spent > 0
    assert found.opened == Opened(1, 2.6, TINY_RATE, 1, RecorderFacts())


@pytest.mark.parametrize("seconds", [0.3, 0.99])
def test_a_recording_shorter_than_a_window_is_a_segment_that_is_shorter(tmp_path, rng, seconds):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=seconds, rng=rng))
    found, end = read(path), round(seconds * TINY_RATE)
    (span, _), = found.spans
    assert (span.n_segments, span.last_segment, span.end) == (0, (0, end), End(seconds))
    assert found.segments(PLAN) == [(0, end)]
    np.testing.assert_array_equal(found.log_mels, expected_of(path, PLAN)[1])


@pytest.mark.parametrize(("seconds", "n_windows"), [
    (1.0, 1), (2.0, 2),
    (2.05, 2),  # a last window would add a twentieth of a second, and count the rest twice
    (2.2, 3),
])
def test_the_last_window_is_there_if_it_adds_enough(tmp_path, rng, seconds, n_windows):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=seconds, rng=rng))
    found = read(path)
    assert len(found.log_mels) == n_windows
    assert found.ends == [End(seconds)]


def test_a_long_segment_has_several_windows(tmp_path, rng):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=5, rng=rng))
    plan = ReadingPlan(TINY_FRONTEND, round(2.05 * TINY_RATE), round(2.05 * TINY_RATE))
    found = read(path, plan=plan)
    # one rule places windows in segments too
    assert [segment.rows for span, _ in found.spans for segment in segments_of(plan, span)] == [
        slice(0, 2), slice(2, 4), slice(4, 6)]
    assert found.segments(plan) == [(0, 16400), (16400, 32800), (23600, 40000)]
    np.testing.assert_array_equal(found.log_mels, expected_of(path, plan)[1])


def test_samples_in_memory_are_read_like_a_file(tmp_path, rng):
    samples = tiny_sound("bird_song", seconds=2.6, rng=rng)
    soundfile.write(tmp_path / "a.wav", samples, TINY_RATE, subtype="FLOAT")
    of_file, of_memory = read(tmp_path / "a.wav"), read(Samples(samples, TINY_RATE))
    np.testing.assert_array_equal(of_file.log_mels, of_memory.log_mels)
    assert of_memory.segments(PLAN) == of_file.segments(PLAN) and of_memory.opened == of_file.opened
    assert of_memory.ends == [End(2.6)]


def test_a_recording_is_called_by_its_path_or_by_the_name_it_was_given(tmp_path):
    assert name_of(tmp_path / "a.wav") == str(tmp_path / "a.wav")
    assert name_of(Samples(np.zeros(1), TINY_RATE, "heard just now")) == "heard just now"
    assert name_of(FileObject(io.BytesIO(), "an upload")) == "an upload"


def test_who_recorded_it_and_when_is_told_before_anything_is_read(tmp_path, rng):
    path = write_audio(tmp_path / "SMM7_20240501_040000Z.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    recorder = next(read_spans(PLAN, SpanJob(path, 0))).recorder
    assert (recorder.recorder_id, recorder.started.isoformat()) == ("SMM7", "2024-05-01T04:00:00+00:00")


# spans

@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100])
@pytest.mark.parametrize("plan", [PLAN, HALF], ids=["apart", "overlapping"])
@pytest.mark.parametrize("n_segments", [7, 9])  # with the last span just begun, and just full
@pytest.mark.parametrize("span_windows", [1, SHORT_SPAN])
def test_spans_give_the_segments_of_the_whole(tmp_path, rng, monkeypatch, rate, plan, n_segments, span_windows):
    """Whether the recording ends on the grid, just before or after it, and whether a last segment is moved back."""
    seconds = (plan.segment_samples + (n_segments - 1) * plan.hop_samples) / TINY_RATE
    least = plan.frontend.least_new_samples * rate // TINY_RATE
    monkeypatch.setattr(reading, "SPAN_WINDOWS", span_windows)
    for extra in (0, -1, 1, -2, 2, least - 2, least + 2, -least):
        frames = round(seconds * rate) + extra
        soundfile.write(tmp_path / "a.wav", noise(frames, rng), rate)
        segments, log_mels = expected_of(tmp_path / "a.wav", plan)
        found = read(tmp_path / "a.wav", plan=plan)
        assert found.segments(plan) == segments, extra
        np.testing.assert_allclose(found.log_mels, log_mels, rtol=0, atol=ROUNDING)
        assert [span.number for span, _ in found.spans] == list(range(found.opened.n_spans))
        assert len(found.spans) >= (n_segments - 1) // span_windows  # it was read in spans indeed
        assert found.ends[-1] == End(frames / rate) and set(found.ends[:-1]) == {None}


def test_spans_of_the_usual_length_give_the_segments_of_the_whole(tmp_path, rng, monkeypatch):
    soundfile.write(tmp_path / "a.wav", noise(round(150.3 * 11025), rng), 11025)
    segments, log_mels = expected_of(tmp_path / "a.wav", PLAN)
    found = read(tmp_path / "a.wav")
    assert [span.n_windows for span, _ in found.spans] == [64, 64, 23]
    assert found.segments(PLAN) == segments
    np.testing.assert_allclose(found.log_mels, log_mels, rtol=0, atol=ROUNDING)
    monkeypatch.setattr(reading, "SPAN_WINDOWS", WHOLE)
    whole = read(tmp_path / "a.wav")
    assert len(whole.spans) == 1 and whole.segments(PLAN) == segments
    np.testing.assert_array_equal(whole.log_mels, log_mels)


@pytest.mark.parametrize("segment_seconds", [2, 5])  # of more windows than a span has, too
def test_spans_hold_whole_segments_of_several_windows(tmp_path, rng, monkeypatch, segment_seconds):
    plan = ReadingPlan(TINY_FRONTEND, segment_seconds * TINY_RATE, segment_seconds * TINY_RATE // 2)
    soundfile.write(tmp_path / "a.wav", noise(round(21.7 * 22050), rng), 22050)
    segments, log_mels = expected_of(tmp_path / "a.wav", plan)
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    found = read(tmp_path / "a.wav", plan=plan)
    assert plan.n_segments_of_span == 1 and len(found.spans) >= len(segments) - 1
    assert found.segments(plan) == segments
    np.testing.assert_allclose(found.log_mels, log_mels, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("kind", ["wav", "flac", "aiff", "caf", "w64", "samples", "file object"])
def test_whatever_can_be_sought_in_is_read_in_spans(tmp_path, rng, monkeypatch, kind):
    ending = kind if kind.isalnum() and kind != "samples" else "wav"
    path, values = tmp_path / f"a.{ending}", noise(round(10.4 * 22050), rng).astype(np.float32)
    soundfile.write(path, values, 22050, subtype="FLOAT" if kind == "samples" else "PCM_16")
    segments, log_mels = expected_of(path, PLAN)
    given = {"samples": Samples(values, 22050), "file object": FileObject(io.BytesIO(path.read_bytes()))}
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    found = read(given.get(kind, path))
    assert found.opened.n_spans == len(found.spans) == 4
    assert found.segments(PLAN) == segments
    np.testing.assert_allclose(found.log_mels, log_mels, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("ending", ["ogg", "mp3"])
@pytest.mark.parametrize("plan", [PLAN, HALF], ids=["apart", "overlapping"])
@pytest.mark.parametrize("seconds", [7, 9, 9.3])  # of Vorbis, which keeps its length, the last span just begun and full
def test_what_cannot_be_sought_in_gives_the_very_windows_of_the_whole(tmp_path, rng, monkeypatch, ending, plan,
                                                                      seconds):
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, noise(round(seconds * 22050), rng), 22050)
    segments, log_mels = expected_of(path, plan)
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    parts = list(read_spans(plan, SpanJob(path, 0)))
    assert not any(isinstance(part, Further) for part in parts)
    found = read(path, plan=plan)
    assert found.opened.n_spans is None
    assert found.segments(plan) == segments
    np.testing.assert_array_equal(found.log_mels, log_mels)
    assert len(found.spans) == -(-len(segments) // SHORT_SPAN)
    assert set(found.ends[:-1]) == {None} and found.ends[-1].damage == ""
    assert found.ends[-1].duration_seconds == soundfile.info(path).frames / 22050


@pytest.mark.parametrize("ending", ["wav", "ogg", "mp3"])
def test_what_is_done_is_not_read_again(tmp_path, rng, monkeypatch, ending):
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, noise(round(9.6 * 22050), rng), 22050)
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    whole = read(path)
    assert len(whole.spans) == 4
    for done in itertools.chain.from_iterable(itertools.combinations(range(4), n) for n in range(4)):
        found = read(path, done=done)
        assert [span.number for span, _ in found.spans] == [number for number in range(4) if number not in done]
        assert found.opened == whole.opened
        for span, log_mels in found.spans:
            expected, expected_log_mels = whole.spans[span.number]
            np.testing.assert_array_equal(log_mels, expected_log_mels)
            assert span._replace(seconds_spent=0.0) == expected._replace(seconds_spent=0.0)


@pytest.mark.parametrize("ending", ["ogg", "mp3"])
@pytest.mark.parametrize("done", [(), (0,), (1, 4), (0, 1, 2, 3)])
def test_workers_may_share_what_cannot_be_sought_in(tmp_path, rng, monkeypatch, ending, done):
    """Each takes every n-th span; whoever has the last one tells the end."""
    path = tmp_path / f"a.{ending}"
    soundfile.write(path, noise(round(15.7 * 22050), rng), 22050)
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    whole = read(path, done=done)
    monkeypatch.setattr(reading, "_SHARED_BYTES", path.stat().st_size)
    for n_shares in (2, 3, 4, 9):
        plan = dataclasses.replace(PLAN, n_shares=n_shares)
        opened, further, *parts = read_spans(plan, SpanJob(path, 7, done=frozenset(done)))
        assert opened == whole.opened and len(further.items) == n_shares - 1
        shares = [list(gathered(parts))]
        for job in further.items:
            assert (job.recording, job.index, job.number) == (path, 7, None)
            shares.append(list(gathered(read_spans(plan, job))))
        for number, share in enumerate(shares):
            assert [span.number for span, _ in share] == [
                span for span in range(6) if span % n_shares == number and span not in done]
        found = Reading(opened, sorted(itertools.chain.from_iterable(shares), key=lambda pair: pair[0].number))
        np.testing.assert_array_equal(found.log_mels, whole.log_mels)
        assert found.segments(PLAN) == whole.segments(PLAN) and found.ends == whole.ends


def test_what_is_short_or_no_file_is_not_shared(tmp_path, rng, monkeypatch):
    path, plan = tmp_path / "a.ogg", dataclasses.replace(PLAN, n_shares=4)
    soundfile.write(path, noise(round(9.6 * 22050), rng), 22050)
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    monkeypatch.setattr(reading, "_SHARED_BYTES", path.stat().st_size + 1)
    assert not any(isinstance(part, Further) for part in read_spans(plan, SpanJob(path, 0)))
    monkeypatch.setattr(reading, "_SHARED_BYTES", 0)
    assert any(isinstance(part, Further) for part in read_spans(plan, SpanJob(path, 0)))
    given = FileObject(io.BytesIO(path.read_bytes()))
    assert not any(isinstance(part, Further) for part in read_spans(plan, SpanJob(given, 0)))


def test_the_other_spans_are_handed_out_before_the_first_is_read(tmp_path, rng, monkeypatch):
    """Other workers need not wait; each span is a job of its own that tells which recording it is of."""
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=9.6, rng=rng))
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    opened, further, *parts = read_spans(PLAN, SpanJob(path, 7, done=frozenset({1})))
    assert isinstance(opened, Opened)
    assert [(job.recording, job.index, job.number) for job in further.items] == [(path, 7, 2), (path, 7, 3)]
    assert [part.number for part in parts if isinstance(part, SpanRead)] == [0]


def test_a_header_that_promises_too_much_or_too_little_costs_nothing(tmp_path, rng, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(round(9.6 * TINY_RATE), rng), TINY_RATE)
    segments, log_mels = expected_of(path, PLAN)
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    for factor in (0.3, 0.7, 1.0, 1.2, 1.7):
        monkeypatch.setattr(reading.RecordingReader, "n_samples", property(
            lambda reader, factor=factor: round(factor * 9.6 * TINY_RATE)))
        found = read_to_the_end(path)
        assert found.segments(PLAN) == segments, factor
        np.testing.assert_array_equal(found.log_mels, log_mels)
        assert found.ends[-1] == End(9.6)


# bad files

def test_a_bad_file_ends_with_its_reason(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"")
    failed, = parts_of(PLAN, tmp_path / "a.wav")
    assert isinstance(failed, Failed) and failed.status == "empty" and "a.wav has 0 bytes" in failed.reason


def test_a_broken_end_costs_the_end(tmp_path, rng):
    path = broken_flac(tmp_path / "a.flac", rng)
    first, further = [], []
    for part in read_spans(PLAN, SpanJob(path, 0)):
        (further if isinstance(part, Further) else first).append(part)
    opened, *windows, span = first
    assert opened.n_spans == 2 and len(further) == 1  # as the header has it
    assert len(windows) > 20 and all(isinstance(window, WindowRead) for window in windows)
    assert "a.flac breaks off after" in span.end.damage
    *_, (_, end) = Reading(opened, [(span, windows)]).segments(PLAN)
    assert end == round(span.end.duration_seconds * TINY_RATE)


def test_a_broken_end_costs_no_segment_before_it(tmp_path, rng, monkeypatch):
    """Every segment before the break comes, whichever span it is in, up to the one where the break is told."""
    path = broken_flac(tmp_path / "a.flac", rng)
    monkeypatch.setattr(recordings, "_BLOCK_VALUES", SMALL_BLOCK)
    n_intact = len(load_audio(path, sample_rate=TINY_RATE))
    before = [start for start in range(0, n_intact, TINY_RATE) if start + TINY_RATE <= n_intact - SMALL_BLOCK]
    assert len(before) > 20 and n_intact < 100 * TINY_RATE
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    found = read_to_the_end(path)
    assert found.opened.n_spans == 40  # as the header has it
    assert [start for start, _ in found.segments(PLAN)][:len(before)] == before
    assert "a.flac breaks off after" in found.ends[-1].damage
    end = round(found.ends[-1].duration_seconds * TINY_RATE)
    assert n_intact - SMALL_BLOCK <= end <= n_intact + SMALL_BLOCK
    # what is left of the last block is no segment's
    assert len(found.log_mels) == len(found.segments(PLAN)) and found.segments(PLAN)[-1][1] <= end


@pytest.mark.parametrize("ending", ["wav", "ogg"])
def test_a_file_that_vanishes_while_it_is_read_loses_only_its_clock(tmp_path, rng, monkeypatch, ending):
    path = write_audio(tmp_path / f"a.{ending}", tiny_sound("bird_song", seconds=2, rng=rng))
    usual = reading.read_recorder
    monkeypatch.setattr(reading, "read_recorder", lambda given: (path.unlink(), usual(given))[1])
    found = read(path)
    assert not path.exists()
    assert (len(found.log_mels), found.ends, found.opened.recorder) == (2, [End(2.0)], RecorderFacts())


def test_a_bug_is_no_bad_file(tmp_path, rng, monkeypatch):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=2, rng=rng))
    monkeypatch.setattr(reading, "cached_frontend", lambda config: 1 // 0)
    with pytest.raises(ZeroDivisionError, match="division"):
        list(read_spans(PLAN, SpanJob(path, 0)))


def test_a_decoder_s_error_is_the_file_s(tmp_path, rng, monkeypatch):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=10, rng=rng))
    blocks = itertools.count()

    def give_up():
        if next(blocks) == 1:
            raise AudioError(f"{path} made the decoder hang", status="timeout")

    monkeypatch.setattr(reading, "report_alive", give_up)
    opened, *windows, failed = parts_of(PLAN, path)
    # the first block is a second and a half long
    assert isinstance(opened, Opened) and [type(window) for window in windows] == [WindowRead]
    assert failed == Failed("timeout", f"{path} made the decoder hang")


# time and memory

def test_the_time_of_work_has_no_waiting_in_it(tmp_path, rng, monkeypatch):
    path, now = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=10, rng=rng)), itertools.count()
    monkeypatch.setattr(reading, "time", SimpleNamespace(perf_counter=lambda: next(now)))  # work takes a second
    n_parts = 0
    for part in parts_of(PLAN, path):
        now = itertools.count(next(now) + 1000)
        n_parts += 1
    assert n_parts == 1 + 10 + 1 and part.seconds_spent <= n_parts


class SlowFrontend(LogMelFrontend):
    """A front end that takes a while."""

    def log_mel(self, waveform):
        time.sleep(SLOW_SECONDS)
        return super().log_mel(waveform)


@pytest.mark.parametrize("ending", ["wav", "ogg"])
def test_the_time_of_work_has_all_the_work_in_it(tmp_path, rng, monkeypatch, ending):
    path = write_audio(tmp_path / f"a.{ending}", tiny_sound("bird_song", seconds=10, rng=rng))
    monkeypatch.setattr(reading, "cached_frontend", SlowFrontend)
    monkeypatch.setattr(reading, "SPAN_WINDOWS", SHORT_SPAN)
    for span, _ in read(path).spans:
        assert span.seconds_spent >= span.n_windows * SLOW_SECONDS


def counted(plan, job):
    for part in read_spans(plan, job):
        with open(job.recording.with_suffix(".count"), "ab") as stream:  # a byte for each
            stream.write(b".")
        yield part


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("ending", ["wav", "ogg"])
def test_a_worker_reads_only_as_far_ahead_as_there_is_room(tmp_path, rng, ending):
    """Memory does not grow with a recording while the network is busy: the worker waits."""
    path, second = tmp_path / f"long.{ending}", tiny_sound("bird_song", seconds=1, rng=rng)
    with soundfile.SoundFile(path, "w", TINY_RATE, 1) as sound:  # Vorbis does not stand ten minutes at once
        for _ in range(600):
            sound.write(second)
    stream = LocalProcesses(1).stream(functools.partial(counted, PLAN), [SpanJob(path, 0)], in_order=True)
    next(stream)
    given = path.with_suffix(".count")
    wait_until(lambda: given.stat().st_size > 10)  # some are ready
    time.sleep(1)
    assert given.stat().st_size < 400  # the others are not even read
    assert sum(not isinstance(part, Done) for _, part in stream) == 600 + 10  # what was opened was taken; ten spans end
