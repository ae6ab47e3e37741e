import os
import sys
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from utils.audio.recorders import RecorderFacts
from utils.audio.recordings import Outcome
from utils.prediction import scores as scores_module
from utils.prediction.scores import ScoreStore, scoring_key
from utils.prediction.scoring import SpanScores
from utils.prediction.spans import End, Failed, Opened, SpanRead
from utils.storage.journal import Journal

N_CLASSES, N_FEATURES = 4, 7
LARGE = 200_000  # bytes: more than the first and the last 64 KiB, which stand for a recording
RECORDER = RecorderFacts(started=datetime(2024, 5, 1, 20, tzinfo=timezone(timedelta(hours=-5))), site="ridge",
                         latitude=9.5)
BROKEN_OFF = End(2.5, "a.wav breaks off after 2.5 s")


@pytest.fixture
def recording(tmp_path, rng):
    path = tmp_path / "a.wav"
    path.write_bytes(rng.bytes(LARGE))
    return path


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "scores.jsonl", fresh=False) as opened:
        yield opened


def store_of(journal, *, model="model", with_embeddings=False):
    return ScoreStore(journal, model, with_embeddings=with_embeddings)


def opened(n_spans, *, seconds=3.0, recorder=RECORDER):
    return Opened(n_spans, seconds, 48000, 2, recorder)


def span(number, rng, *, n_segments=2, last_segment=None, end=None, embeddings=False, peak=0.5):
    """Return a span with a window in each segment; of ends, a length in seconds stands for a whole recording."""
    n_windows = n_segments + (last_segment is not None)
    end = End(end) if isinstance(end, float) else end
    return SpanScores(SpanRead(number, n_segments, last_segment, n_windows, peak, end, 0.25),
                      rng.normal(size=(n_windows, N_CLASSES)).astype(np.float32),
                      rng.normal(size=(n_windows, N_FEATURES)).astype(np.float32) if embeddings else None)


def add(store, path, *parts):
    for part in parts:
        store.add(path, store.key(path), part)


def left(store, path):
    """Return the spans that need not be scored again; None where nothing is left to be done."""
    job = store.job(path, 3, store.key(path))
    if job is None:
        return None
    assert (job.recording, job.index, job.number) == (path, 3, None)
    return set(job.done)


def found(store, path):
    return store.recording(path, store.key(path))


def assert_same(one, other):
    assert one.span == other.span
    assert isinstance(one.span.last_segment, (tuple, type(None))) and isinstance(one.span.end, (End, type(None)))
    for values, expected in ((one.logits, other.logits), (one.embeddings, other.embeddings)):
        if expected is None:
            assert values is None
        else:
            assert values.dtype == np.float32
            np.testing.assert_array_equal(values, expected)


# written and read back

@pytest.mark.parametrize("embeddings", [False, True])
def test_spans_come_back_bit_by_bit(tmp_path, rng, recording, embeddings):
    spans = [span(0, rng, embeddings=embeddings), span(1, rng, embeddings=embeddings),
             span(2, rng, n_segments=1, last_segment=(50, 99), end=BROKEN_OFF, embeddings=embeddings)]
    with Journal(tmp_path / "scores.jsonl", fresh=False) as journal:
        add(store_of(journal), recording, opened(3), *spans)
    with Journal(tmp_path / "scores.jsonl", fresh=False) as journal:
        scored = found(store_of(journal), recording)
        for _ in range(2):  # each pass begins anew
            for one, other in zip(scored.spans(), spans, strict=True):
                assert_same(one, other)


def test_a_span_of_no_windows_comes_back(journal, rng, recording):
    store = store_of(journal)
    add(store, recording, opened(2), span(0, rng), span(1, rng, n_segments=0, end=2.0))
    _, last = found(store, recording).spans()
    assert (last.span.n_windows, last.span.end, len(last.logits)) == (0, End(2.0), 0)


def test_numbers_that_are_hard_to_write_come_back(journal, rng, recording):
    part = span(0, rng, n_segments=1, end=1.0)
    values = np.array([[1e-45, -0.0, 3.4e38, np.float32(1) / 3]], dtype=np.float32)
    add(store_of(journal), recording, opened(1), SpanScores(part.span, values))
    only, = found(store_of(journal), recording).spans()
    assert only.logits.tobytes() == values.tobytes()


def test_spans_come_in_their_order_however_they_came(journal, rng, recording):
    n_spans = 2 * scores_module._KEPT_SPANS + 1
    spans = [span(number, rng, end=9.0 if number == n_spans - 1 else None) for number in range(n_spans)]
    add(store_of(journal), recording, opened(n_spans), *(spans[number] for number in rng.permutation(n_spans)))
    scored = found(store_of(journal), recording)
    for _ in range(2):
        for one, other in zip(scored.spans(), spans, strict=True):
            assert_same(one, other)


def test_a_recording_is_summed_up_from_its_spans(journal, rng, recording):
    add(store_of(journal), recording, opened(2, seconds=99.0), span(0, rng, peak=0.01),
        span(1, rng, n_segments=1, last_segment=(50, 99), end=BROKEN_OFF, peak=0.02))
    scored = found(store_of(journal), recording)
    assert scored.outcome == Outcome("ok", "a.wav breaks off after 2.5 s", 2.5, 48000, 2)
    assert (scored.name, scored.n_segments, scored.seconds_spent) == (str(recording), 4, 0.5)
    assert scored.recorder == RECORDER
    assert scored.recorder.started.utcoffset() == timedelta(hours=-5)


@pytest.mark.parametrize(("peak", "seconds", "status"), [(2.0 ** -15, 3.0, "silent"), (0.5, 0.04, "too_short"),
                                                         (2.0 ** -14, 0.06, "ok")])
def test_what_holds_nothing_to_classify_is_no_result(journal, rng, recording, peak, seconds, status):
    add(store_of(journal), recording, opened(1), span(0, rng, peak=peak, end=seconds))
    scored = found(store_of(journal), recording)
    assert (scored.outcome.status, scored.outcome.duration_seconds) == (status, seconds)


def test_why_a_recording_failed_is_kept(journal, recording):
    add(store_of(journal), recording, Failed("unsupported", "a.wav: ffmpeg is not installed"))
    scored = found(store_of(journal), recording)
    assert scored.outcome == Outcome("unsupported", "a.wav: ffmpeg is not installed")
    assert list(scored.spans()) == [] and scored.n_segments == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux lets a file name be any bytes")
def test_a_name_that_is_no_text_is_found_again(tmp_path, journal, rng, recording):
    odd = recording.rename(tmp_path / os.fsdecode(b"owl\xe9.wav"))
    add(store_of(journal), odd, opened(1), span(0, rng, end=1.0))
    assert left(store_of(journal), odd) is None
    assert left(store_of(journal), tmp_path / "owl\xe9.wav") == set()


# what is left to be done

def test_what_was_never_begun_is_all_to_be_done(journal, recording):
    assert left(store_of(journal), recording) == set()
    assert found(store_of(journal), recording).outcome == Outcome(
        "corrupt", f"{recording} was not scored to its end: run again")


def test_of_a_recording_under_way_the_spans_that_are_done_are_left_out(journal, rng, recording):
    store = store_of(journal)
    add(store, recording, opened(4))
    assert left(store, recording) == set()
    add(store, recording, span(0, rng), span(2, rng))
    assert left(store, recording) == {0, 2}
    add(store, recording, span(3, rng, end=6.0))
    assert left(store, recording) == {0, 2, 3}
    assert found(store, recording).outcome.status == "corrupt"  # the second span is missing
    add(store, recording, span(1, rng))
    assert left(store, recording) is None
    assert found(store, recording).outcome.status == "ok"


def test_a_recording_that_cannot_be_sought_in_goes_on_after_its_last_span(journal, rng, recording):
    store = store_of(journal)
    add(store, recording, opened(None, seconds=None), span(0, rng), span(1, rng))
    assert left(store, recording) == {0, 1}
    assert found(store, recording).outcome.status == "corrupt"
    add(store, recording, span(2, rng, end=6.0))
    assert left(store, recording) is None
    assert found(store, recording).outcome == Outcome("ok", "", 6.0, 48000, 2)


def test_of_a_recording_that_cannot_be_sought_in_workers_score_spans_in_any_order(journal, rng, recording):
    store = store_of(journal)
    add(store, recording, opened(None, seconds=None), span(0, rng), span(3, rng))
    assert left(store, recording) == {0, 3}
    add(store, recording, span(4, rng, end=10.0), span(1, rng))
    assert left(store, recording) == {0, 1, 3, 4}
    assert found(store, recording).outcome.status == "corrupt"
    add(store, recording, span(2, rng))
    assert left(store, recording) is None
    assert [one.span.number for one in found(store, recording).spans()] == [0, 1, 2, 3, 4]


def test_a_worker_that_is_far_behind_the_others_ends_the_search(journal, rng, recording, monkeypatch):
    monkeypatch.setattr(scores_module, "_LARGEST_GAP", 2)
    store = store_of(journal)
    add(store, recording, opened(None, seconds=None), *(span(number, rng) for number in (0, 2, 4, 7)))
    assert left(store, recording) == {0, 2, 4}  # each gap counts by itself


def test_a_short_recording_that_was_only_opened_is_all_to_be_done(tmp_path, rng, recording):
    with Journal(tmp_path / "scores.jsonl", fresh=False) as journal:
        add(store_of(journal), recording, opened(1))
    with Journal(tmp_path / "scores.jsonl", fresh=False) as journal:
        store = store_of(journal)
        assert left(store, recording) == set()
        assert found(store, recording).outcome.status == "corrupt"
        add(store, recording, opened(1), Failed("timeout", "it hung"))
        assert found(store, recording).outcome.status == "timeout"
        part = span(0, rng, end=1.0, embeddings=True)
        add(store, recording, opened(1), part)
        assert left(store, recording) is None
        assert_same(next(found(store, recording).spans()), part)


@pytest.mark.parametrize("n_spans", [1, 2, None])
def test_recordings_that_are_scored_together_are_kept_apart(tmp_path, journal, rng, n_spans):
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    store, parts = store_of(journal), [span(0, rng, end=float(number + 1)) for number in range(3)]
    for path in paths:
        path.write_bytes(path.name.encode())
        add(store, path, opened(n_spans, recorder=RecorderFacts(recorder_id=path.name)))
    for number in (2, 0, 1):
        add(store, paths[number], parts[number])
    for path, part in zip(paths, parts, strict=True):
        only, = found(store, path).spans()
        assert_same(only, part)
        assert found(store, path).recorder.recorder_id == path.name


def test_a_recording_that_ends_before_what_its_header_promised_is_complete(journal, rng, recording):
    store = store_of(journal)
    add(store, recording, opened(4), span(0, rng), span(1, rng, end=BROKEN_OFF))
    assert left(store, recording) is None
    assert found(store, recording).n_segments == 4


def test_a_recording_whose_last_span_has_no_end_is_not_complete(journal, rng, recording):
    store = store_of(journal)
    add(store, recording, opened(2), span(0, rng), span(1, rng))
    assert left(store, recording) == {0, 1}
    assert found(store, recording).outcome.status == "corrupt"


def test_a_recording_that_failed_is_tried_again(journal, rng, recording):
    store = store_of(journal)
    add(store, recording, opened(2), span(0, rng), Failed("timeout", "it hung"))
    assert left(store, recording) == set()
    assert found(store, recording).outcome.status == "timeout"
    add(store, recording, opened(2), span(0, rng), span(1, rng, end=4.0))
    assert left(store, recording) is None
    assert found(store, recording).outcome.status == "ok"


def test_recordings_of_the_same_bytes_are_scored_each(tmp_path, journal, rng, recording):
    twin = tmp_path / "twin.wav"
    twin.write_bytes(recording.read_bytes())
    os.utime(twin, ns=(0, recording.stat().st_mtime_ns))
    store = store_of(journal)
    assert store.key(twin) == store.key(recording)
    add(store, recording, opened(1), span(0, rng, end=1.0))
    assert left(store, twin) == set()


# embeddings

def test_scores_without_embeddings_do_not_count_where_those_are_asked_for(journal, rng, recording):
    add(store_of(journal), recording, opened(2), span(0, rng, embeddings=True), span(1, rng, end=4.0))
    assert left(store_of(journal), recording) is None
    asking = store_of(journal, with_embeddings=True)
    assert left(asking, recording) == {0}
    assert found(asking, recording).outcome.status == "corrupt"
    add(asking, recording, span(1, rng, end=4.0, embeddings=True))
    assert left(asking, recording) is None
    assert [one.embeddings.shape for one in found(asking, recording).spans()] == 2 * [(2, N_FEATURES)]


def test_a_last_span_without_windows_needs_no_embeddings(journal, rng, recording):
    asking = store_of(journal, with_embeddings=True)
    add(asking, recording, opened(2), span(0, rng, embeddings=True), span(1, rng, n_segments=0, end=2.0))
    assert left(asking, recording) is None and found(asking, recording).outcome.status == "ok"
    assert [one.span.n_windows for one in found(asking, recording).spans()] == [2, 0]


def test_a_short_recording_without_embeddings_is_scored_again_where_those_are_asked_for(journal, rng, recording):
    add(store_of(journal), recording, opened(1), span(0, rng, end=1.0))
    asking = store_of(journal, with_embeddings=True)
    assert left(asking, recording) == set()
    add(asking, recording, opened(1), span(0, rng, end=1.0, embeddings=True))
    assert left(asking, recording) is left(store_of(journal), recording) is None
    assert next(found(asking, recording).spans()).embeddings.shape == (2, N_FEATURES)


# keys

def changed(recording, change):
    """Change a recording, but for its time of modification."""
    content, moment = bytearray(recording.read_bytes()), recording.stat().st_mtime_ns
    if change == "size":
        content[LARGE // 2:LARGE // 2] = b"x"
    elif change == "first byte":
        content[0] ^= 1
    elif change == "end of the first bytes":
        content[(1 << 16) - 1] ^= 1
    elif change == "beginning of the last bytes":
        content[LARGE - (1 << 16)] ^= 1
    elif change == "last byte":
        content[-1] ^= 1
    elif change == "time":
        moment += 1_000_000_000
    recording.write_bytes(content)
    os.utime(recording, ns=(0, moment))


@pytest.mark.parametrize("change", ["size", "first byte", "end of the first bytes", "beginning of the last bytes",
                                    "last byte", "time"])
def test_a_recording_that_changed_is_scored_anew(journal, rng, recording, change):
    store = store_of(journal)
    add(store, recording, opened(1), span(0, rng, end=1.0))
    changed(recording, "nothing")
    assert left(store, recording) is None
    changed(recording, change)
    assert left(store, recording) == set()
    assert found(store, recording).outcome.status == "corrupt"


@pytest.mark.parametrize("size", [1, 1000, (1 << 16) + 1, (1 << 17) - 1])
def test_of_a_short_recording_every_byte_counts(tmp_path, journal, rng, size):
    path = tmp_path / "short.wav"
    path.write_bytes(rng.bytes(size))
    keys, moment = set(), path.stat().st_mtime_ns
    for place in {0, size // 2, size - 1}:
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(0, moment))
        keys.add(store_of(journal).key(path))
    assert len(keys) == len({0, size // 2, size - 1})


def test_another_model_scores_anew(journal, rng, recording):
    add(store_of(journal, model="one"), recording, opened(1), span(0, rng, end=1.0))
    assert left(store_of(journal, model="one"), recording) is None
    assert left(store_of(journal, model="two"), recording) == set()


def test_a_recording_that_is_missing_has_a_key_of_its_own(tmp_path, journal, recording):
    store, missing = store_of(journal), tmp_path / "missing.wav"
    assert store.key(missing) == store.key(missing) != store.key(recording)
    add(store, missing, Failed("corrupt", "cannot be opened"))
    assert found(store, missing).outcome == Outcome("corrupt", "cannot be opened")
    assert store.key(missing) != store_of(journal, model="two").key(missing)


def test_all_that_changes_logits_is_in_the_key(monkeypatch):
    usual = ["sha256", "fingerprint", 22050, 11025, 64, "torch-cpu"]
    keys = {scoring_key(*usual)} | {scoring_key(*usual[:place], "other", *usual[place + 1:])
                                    for place in range(len(usual))}
    assert len(keys) == len(usual) + 1
    assert scoring_key(*usual) in keys
    monkeypatch.setattr(scores_module, "CODE_VERSION", scores_module.CODE_VERSION + 1)
    assert scoring_key(*usual) not in keys
