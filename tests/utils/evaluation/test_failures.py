import json
import re

import numpy as np
import pandas as pd
import pytest
import soundfile

from models.errors import AudioError, ConfigError
from tests.conftest import TINY_CLASSES
from utils.audio.recordings import RecordingReader
from utils.evaluation.facts import facts_of_rows
from utils.evaluation.failure_examples import MOST_SHOWN_SECONDS, FailureExample, failure_examples
from utils.evaluation.failures import confident_classes, find_failures, likely_label_errors
from utils.evaluation.failures_page import failures_part
from utils.examples import Example, read_example
from utils.metrics import ScoredSegments
from utils.storage.manifest import read_manifest

ROUNDING = 1e-12  # float64 means in another order
STEP_SECONDS = 0.01  # in which the loudest place of an example is searched
NAMES = ("bird", "frog", "cow")
HOSTILE = "<script>alert(1)</script>"


def rows_of(recordings, *, sources=None, starts=None):
    n = len(recordings)
    starts = [str(place) for place in range(n)] if starts is None else starts
    return pd.DataFrame({"recording_id": recordings, "source_path": sources or [f"{name}.wav" for name in recordings],
                         "start_seconds": starts, "end_seconds": [str(float(place) + 1) if place else "" for place
                                                                  in starts]})


def scored(probabilities, labels):
    return ScoredSegments(np.array(probabilities), np.array(labels), NAMES)


@pytest.fixture
def six():
    """Recordings a and b have two wrong segments each, c has one right, d one wrong."""
    segments = scored([[0.1, 0.8, 0.1], [0.0, 0.9, 0.1], [0.2, 0.1, 0.7], [0.3, 0.6, 0.1], [0.9, 0.05, 0.05],
                       [0.7, 0.2, 0.1]], [0, 0, 0, 0, 0, 1])
    return segments, rows_of(list("aabbcd"))


def test_the_most_confident_mistake_of_each_recording_is_told(six):
    found = find_failures(*six)
    assert [(mistake.row, mistake.true_class, mistake.told_class, mistake.confidence, mistake.true_probability)
            for mistake in found.mistakes] == [(1, "bird", "frog", 0.9, 0.0), (2, "bird", "cow", 0.7, 0.2),
                                               (5, "frog", "bird", 0.7, 0.2)]
    assert (found.n_segments, found.n_recordings, found.n_wrong_segments, found.n_wrong_recordings) == (6, 4, 5, 3)
    first = found.mistakes[0]
    assert (first.recording_id, first.source_path, first.start_seconds, first.end_seconds) == ("a", "a.wav", 1.0, 2.0)


def test_pairs_count_recordings_before_segments(six):
    found = [(pair.true_class, pair.told_class, pair.n_recordings, pair.n_segments, pair.share)
             for pair in find_failures(*six).confused_pairs]
    # bird is in the recordings a, b and c: told frog in a (twice) and b
    assert found == [("bird", "frog", 2, 3, 2 / 3), ("bird", "cow", 1, 1, 1 / 3), ("frog", "bird", 1, 1, 1.0)]


def test_one_recording_of_many_segments_does_not_lead_the_pairs():
    told = [1, 1, 1, 2, 2]
    pairs = find_failures(scored(np.eye(3)[told], [0] * 5), rows_of(list("aaabc"))).confused_pairs
    assert [(pair.told_class, pair.n_recordings, pair.n_segments) for pair in pairs] == [("cow", 2, 2), ("frog", 1, 3)]


def test_lists_are_cut_and_their_counts_are_not(six):
    found = find_failures(*six, most=1)
    assert len(found.mistakes) == len(found.confused_pairs) == 1
    assert (found.n_wrong_recordings, found.n_confused_pairs) == (3, 3)


def test_rows_are_numbered_as_in_the_manifest(six):
    segments, rows = six
    assert find_failures(segments, rows.set_axis(range(10, 16))).mistakes[0].row == 11


def test_a_place_that_the_manifest_does_not_tell_is_none(six):
    segments, rows = six
    strange = rows.assign(start_seconds="", end_seconds=["inf", "nan", "-1", "", "x", "1"])
    places = {(place.start_seconds, place.end_seconds) for place in find_failures(segments, strange).mistakes}
    assert places == {(None, None), (None, 1.0)}


def test_failures_are_plain_json(six):
    found = find_failures(*six)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["mistakes"][0]["told_class"] == "frog"


def test_no_failures_are_no_error():
    found = find_failures(scored(np.eye(3), [0, 1, 2]), rows_of(list("abc")))
    assert (found.mistakes, found.confused_pairs, found.label_errors, found.n_wrong_segments) == ([], [], [], 0)


def test_rows_and_segments_must_be_as_many(six):
    with pytest.raises(ConfigError, match=r"one entry per segment \(6\), got 5"):
        find_failures(six[0], six[1][:5])


def test_the_confident_joint_is_that_of_the_paper():
    # thresholds: bird mean(0.9, 0.5, 0.1) = 0.5; frog mean(0.8, 0.3) = 0.55; cow has no examples
    probabilities = np.array([[0.9, 0.1, 0.0],  # bird reached
                              [0.5, 0.4, 0.1],  # bird reached, just
                              [0.1, 0.6, 0.3],  # frog reached: off the diagonal
                              [0.2, 0.8, 0.0],  # frog reached
                              [0.3, 0.3, 0.4]])  # cow is most probable, but has no threshold; nothing is reached
    assert confident_classes(probabilities, np.array([0, 0, 0, 1, 1])).tolist() == [0, 0, 1, 1, -1]


def test_of_two_classes_that_are_reached_the_more_probable_counts():
    # thresholds 0.45 and 0.4: the first example reaches both
    probabilities = np.array([[0.45, 0.55], [0.45, 0.55], [0.75, 0.25]])
    assert confident_classes(probabilities, np.array([0, 0, 1]))[0] == 1
    assert confident_classes(probabilities[:, ::-1], np.array([0, 0, 1]))[2] == 1


def test_a_label_that_is_wrong_is_found_and_names_its_clearest_segment():
    labels = np.array([0] * 6 + [1] * 6)
    probabilities = np.where(labels[:, None] == [0, 1, 2], 0.8, 0.1)
    probabilities[4], probabilities[5] = [0.2, 0.7, 0.1], [0.05, 0.9, 0.05]  # two segments of one file
    recordings = [f"r{place}" for place in range(12)]
    recordings[5] = recordings[4]
    error, = likely_label_errors(ScoredSegments(probabilities, labels, NAMES), rows_of(recordings))
    assert (error.label, error.suggested_class, error.n_segments, error.row) == ("bird", "frog", 2, 5)
    assert error.label_probability == pytest.approx(0.125, abs=ROUNDING)
    assert error.suggested_probability == pytest.approx(0.8, abs=ROUNDING)


def test_files_of_one_group_have_labels_of_their_own():
    probabilities = [[0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.1, 0.9, 0.0], [0.9, 0.1, 0.0]]
    rows = rows_of(["site"] * 4, sources=["a.wav", "b.wav", "c.wav", "d.wav"])
    errors = likely_label_errors(scored(probabilities, [0, 0, 1, 0]), rows)
    assert [error.source_path for error in errors] == ["b.wav"]


def test_the_largest_margin_comes_first():
    probabilities = [[0.9, 0.1, 0.0]] * 8 + [[0.3, 0.7, 0.0], [0.1, 0.9, 0.0]] + [[0.4, 0.6, 0.0]] * 8
    errors = likely_label_errors(scored(probabilities, [0] * 10 + [1] * 8), rows_of([f"r{k}" for k in range(18)]))
    assert [error.row for error in errors] == [9, 8]


def test_a_label_that_is_more_probable_is_not_doubted():
    # frog is unsure of its own files (threshold 0.2), bird is sure (0.73): the second file reaches frog alone
    probabilities = [[0.9, 0.1, 0.0], [0.7, 0.3, 0.0], [0.1, 0.2, 0.7], [0.6, 0.2, 0.2]]
    segments = scored(probabilities, [0, 0, 1, 2])
    assert confident_classes(segments.probabilities, segments.labels)[1] == 1
    assert 1 not in {error.row for error in likely_label_errors(segments, rows_of(list("abcd")))}


@pytest.fixture
def tiny_failures(tiny_dataset):
    """Every segment of the tiny test set is taken for the next class."""
    manifest = read_manifest(tiny_dataset.output_dir / "test.csv")
    labels, n_classes = manifest.labels(), len(TINY_CLASSES)
    probabilities = 0.7 * np.eye(n_classes)[(labels + 1) % n_classes] + 0.3 / n_classes
    return manifest, find_failures(ScoredSegments(probabilities, labels, manifest.classes.names), manifest.rows)


def test_examples_are_the_segments_themselves(tiny_failures, tiny_dataset):
    manifest, failures = tiny_failures
    facts = facts_of_rows(manifest)
    for audio_dir in (manifest.input_dir, tiny_dataset.audio_dir):
        found = failure_examples(failures, facts, audio_dir, most=3)
        assert [each.reason for each in found] == [""] * len(found)
    places = {place.row: place for place in (*failures.mistakes, *failures.label_errors)}
    assert [each.row for each in found][:3] == [mistake.row for mistake in failures.mistakes[:3]]
    for each in found:
        place = places[each.row]
        assert each.example.png.startswith(b"\x89PNG") and each.example.mp3
        assert each.example.start_seconds == pytest.approx(place.start_seconds, abs=STEP_SECONDS)
        assert each.example.seconds <= place.end_seconds - place.start_seconds + STEP_SECONDS
    assert failure_examples(failures, facts, tiny_dataset.audio_dir, most=0) == []


@pytest.mark.parametrize(("source_path", "reason"), [
    ("missing.wav", "not there"), ("", "does not tell its file"), ("bird_song", "not there"), ("x" * 300, "too long"),
    ("../../outside.wav", "outside"), ("notes.wav", "notes.wav")])
def test_what_cannot_be_shown_is_told_and_never_raised(tiny_failures, tmp_path, source_path, reason):
    manifest, failures = tiny_failures
    folder = tmp_path / "a" / "b"
    (folder / "bird_song").mkdir(parents=True)
    for path in (folder / "notes.wav", tmp_path / "outside.wav"):
        path.write_text("no sound at all")
    mistake = type(failures.mistakes[0])(**{**vars(failures.mistakes[0]), "source_path": source_path})
    strange = type(failures)(**{**vars(failures), "mistakes": [mistake], "label_errors": []})
    found, = failure_examples(strange, facts_of_rows(manifest), folder, most=3)
    assert found.example is None
    assert reason in found.reason


def test_without_a_folder_nothing_is_shown(tiny_failures):
    manifest, failures = tiny_failures
    assert {each.reason for each in failure_examples(failures, facts_of_rows(manifest), None, most=2)} == {
        "the manifest does not tell where its recordings are"}


def test_a_place_is_found_where_a_format_cannot_be_sought_in_but_not_at_any_price(tmp_path, monkeypatch):
    rate, seconds = 1000, 700
    click = np.zeros(seconds * rate, dtype=np.float32)
    click[300 * rate:301 * rate] = click[650 * rate:651 * rate] = 0.5
    soundfile.write(tmp_path / "night.wav", click, rate)

    def unseekable(*arguments, **named):
        reader = RecordingReader(*arguments, **named)
        reader.can_seek = False
        return reader

    monkeypatch.setattr("utils.examples.RecordingReader", unseekable)
    example = read_example(tmp_path, "night.wav", sample_rate=rate, start_seconds=300.0, end_seconds=301.0)
    assert (example.start_seconds, example.seconds) == (300.0, 1.0)
    with pytest.raises(AudioError, match="night.wav cannot be sought in, and 650 s would be decoded"):
        read_example(tmp_path, "night.wav", sample_rate=rate, start_seconds=650.0, end_seconds=651.0)


@pytest.mark.data
def test_real_mistakes_can_be_seen_and_heard(real_data):
    folder = real_data / "wildlife" / "bird_song"
    path = sorted(folder.glob("esc50__*.ogg"))[0]  # five seconds each
    example = read_example(folder, path.name, sample_rate=44_100.0, start_seconds=0.2, end_seconds=0.7,
                           most_seconds=MOST_SHOWN_SECONDS)
    assert example.start_seconds == pytest.approx(0.2, abs=STEP_SECONDS)
    assert example.seconds == pytest.approx(0.5, abs=STEP_SECONDS)


def test_the_page_escapes_what_strangers_wrote():
    segments = ScoredSegments(np.array([[0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]), np.array([0, 1, 0]), (HOSTILE, "frog"))
    failures = find_failures(segments, rows_of([HOSTILE, "b", "c"]))
    examples = [FailureExample(row=0, reason=HOSTILE)]
    for found in (examples, [FailureExample(row=0, example=Example(0.0, 1.0, b"png", b"mp3"))]):
        page = failures_part(HOSTILE, failures, found)
        assert HOSTILE not in page
        assert "&lt;script&gt;" in page


def test_the_page_shows_each_example_once_in_each_list_and_tells_why_one_is_missing(six):
    failures = find_failures(*six)
    page = failures_part("B1", failures, [FailureExample(row=1, example=Example(1.0, 1.0, b"png", b"mp3")),
                                          FailureExample(row=2, reason="the recording is not there")])
    mistakes = page.partition("most confused pairs")[0]
    assert mistakes.count("<audio controls") == mistakes.count("<img alt=") == 1
    assert 'aria-label="Sound of a.wav, 1.0 to 2.0 s"' in mistakes
    assert "Not shown: the recording is not there" in mistakes
    assert "5 of 6 segments are wrong, in 3 of 4 recordings." in mistakes


def test_the_page_tells_what_is_left_out(six):
    text = re.sub("<[^>]+>", "", failures_part("B1", find_failures(*six, most=2), []))
    assert "The first 2 of 3 pairs that occur." in text
    assert "Pictures and sounds (" not in text


def test_a_model_without_failures_has_a_page_too():
    page = failures_part("B1", find_failures(scored(np.eye(3), [0, 1, 2]), rows_of(list("abc"))), [])
    assert "Every segment is right." in page
    assert "No label looks wrong." in page
