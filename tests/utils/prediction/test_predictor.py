import io
import itertools
import json
import multiprocessing
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from models.errors import AudioError, ConfigError
from tests.conftest import PROJECT, TINY_CLASSES, TINY_RATE, tiny_sound, write_audio
from tests.utils.prediction.conftest import (FILE_KEYS, PRINTED, SEGMENT_KEYS, SilentBackend, broken_flac,
                                             predictor_of, records_of, silent_predictor, without)
from utils.networks.backends import NetworkOutput
from utils.prediction import predictor as inference
from utils.prediction import spans as reading
from utils.prediction.predictor import SCORE_TOLERANCE, EfficientNetPredictor
from utils.prediction.spans import WindowRead, read_spans
from utils.running.parallel import LocalProcesses, ThisProcess
from utils.storage.checkpoints import read_checkpoint
from utils.storage.config_files import write_config

BATCH_TOLERANCE = 1e-5  # convolutions of another batch size add float32 in another order
WAITING = 20  # a consumer waits so many times as long as all the work takes
GENEROUS = 5  # how many times as long the same work may take on a busy machine; far below WAITING
LONGEST_SECONDS = 120  # a script that has not ended then hangs; it takes a few
# what workers may have been given, and what waits for its batch
MOST_TAKEN = {"this process": 3 + 2, "two workers": 3 + 2 * 8 + 2}
EXECUTORS = {"this process": ThisProcess(), "two workers": LocalProcesses(2)}

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
on_every_executor = pytest.mark.parametrize("where", EXECUTORS)


class Sparing:
    """An executor that fails when it is asked for more than a number of parts."""

    def __init__(self, most_parts):
        self.most_parts = most_parts

    def stream(self, work, items, *, in_order):
        for number, part in enumerate(ThisProcess().stream(work, items, in_order=in_order)):
            assert number < self.most_parts, "more was read than the answer needs"
            yield part


class Counting(SilentBackend):
    """A network that counts the windows of each of its passes."""

    def __init__(self, description):
        super().__init__(description)
        self.passes = []

    def run(self, log_mels, *, with_embeddings=False):
        self.passes.append(len(log_mels))
        return super().run(log_mels, with_embeddings=with_embeddings)


def save_biased(source, target, *, winner, logit):
    """Write a copy of a checkpoint whose network always gives one output, the logit chosen, whatever it hears."""
    content = read_checkpoint(source)
    content["weights"]["backbone._fc.weight"].zero_()
    content["weights"]["backbone._fc.bias"].zero_()
    content["weights"]["backbone._fc.bias"][winner] = logit
    content["calibration"] = {"temperature": 1.0}
    torch.save(content, target)
    return target


def softmax_of_one(logit, n_classes=4):
    return float(np.exp(logit) / (np.exp(logit) + n_classes - 1))


def write_seconds(folder, rng, *seconds):
    """Write recordings that are called by their number."""
    return [write_audio(folder / f"{number}.wav", tiny_sound("bird_song", seconds=length, rng=rng))
            for number, length in enumerate(seconds)]


@pytest.fixture(scope="module")
def converted(tiny_model, tmp_path_factory):
    """The model as each library reads it; what is converted stands in a folder of its own."""
    folder = tmp_path_factory.mktemp("converted")
    path = Path(shutil.copy(tiny_model.best, folder / "owls.pth"))
    heard = np.random.default_rng(1).uniform(-0.5, 0.5, 2 * TINY_RATE)
    for library in ("onnx", "openvino"):
        predictor_of(path, backend=library).predict_samples(heard, sample_rate=TINY_RATE)
    assert len(list(folder.glob("owls.*.onnx"))) == 2
    return dict.fromkeys(("torch", "onnx", "openvino"), path)


# one front end

def test_prediction_sees_the_very_spectrograms_of_preprocessing(tiny_dataset, tiny_model, monkeypatch):
    predictor = predictor_of(tiny_model.best)
    seen, usual = [], predictor.backend.run
    monkeypatch.setattr(predictor.backend, "run",
                        lambda log_mels, **_: (seen.append(log_mels.copy()), usual(log_mels))[1])
    result = next(result for result in tiny_dataset.results if len(result.windows) == 3)
    predictor.predict_single(tiny_dataset.audio_dir / result.source_path)
    stored = np.stack([np.load(tiny_dataset.output_dir / window.path) for window in result.windows])
    np.testing.assert_array_equal(np.concatenate(seen), stored)


def test_parts_of_a_recording_give_what_its_spectrograms_give(tiny_dataset, tiny_model):
    predictor = predictor_of(tiny_model.best)
    result = next(result for result in tiny_dataset.results if len(result.windows) == 3)
    spans = [(w.start_sample / TINY_RATE, w.end_sample / TINY_RATE) for w in result.windows]
    stored = np.stack([np.load(tiny_dataset.output_dir / window.path) for window in result.windows])
    from_audio = predictor.span_probabilities(tiny_dataset.audio_dir / result.source_path, spans[::-1])[::-1]
    np.testing.assert_allclose(from_audio, predictor.probabilities(stored), rtol=0, atol=BATCH_TOLERANCE)


def test_a_part_after_the_end_is_an_error(recording, tiny_model):
    with pytest.raises(AudioError, match=r"clip\.wav ends before a labelled part"):
        predictor_of(tiny_model.best).span_probabilities(recording, [(0, 1), (5, 6)])


# records

def test_a_file_record_has_the_keys_of_the_contract(recording, tiny_model):
    record = predictor_of(tiny_model.best).predict_single(recording)
    assert set(record) == FILE_KEYS
    assert record["file_path"] == str(recording)
    assert (record["duration_seconds"], record["n_segments"]) == (2.6, 3)
    assert record["processing_time"] > 0


def test_scores_and_ranks_are_added_when_asked_for(recording, tiny_model):
    record = predictor_of(tiny_model.best, return_all_scores=True, top_k=2).predict_single(recording)
    assert set(record) == FILE_KEYS | {"all_scores", "top_k"}
    assert tuple(record["all_scores"]) == TINY_CLASSES
    assert sum(record["all_scores"].values()) == pytest.approx(1, abs=4 * PRINTED)
    ranked = sorted(record["all_scores"], key=record["all_scores"].get, reverse=True)
    assert [entry["class"] for entry in record["top_k"]] == ranked[:2]
    assert record["top_class"] == ranked[0] and record["top_confidence"] == record["all_scores"][ranked[0]]


@pytest.mark.parametrize("winner, name", enumerate(TINY_CLASSES))
def test_each_output_keeps_its_class_name(recording, tiny_model, tmp_path, winner, name):
    path = save_biased(tiny_model.best, tmp_path / "biased.pth", winner=winner, logit=8.0)
    record = predictor_of(path).predict_single(recording)
    assert record["predicted_class"] == record["top_class"] == name
    assert record["confidence"] == pytest.approx(softmax_of_one(8.0), abs=PRINTED)
    assert record["above_threshold"] is True


def test_segments_cover_the_recording_to_its_last_sample(recording, tiny_model):
    records = records_of(predictor_of(tiny_model.best, segment_mode=True), recording)
    assert all(set(record) == SEGMENT_KEYS for record in records)
    assert [(r["segment_start_ms"], r["segment_end_ms"]) for r in records] == [(0, 1000), (1000, 2000), (1600, 2600)]
    assert [r["segment_index"] for r in records] == [0, 1, 2]
    assert {r["n_segments"] for r in records} == {3}


@pytest.mark.parametrize("duration, overlap, expected", [
    (500, 0, [(0, 500), (500, 1000), (1000, 1500), (1500, 2000), (2000, 2500), (2100, 2600)]),
    (1000, 500, [(0, 1000), (500, 1500), (1000, 2000), (1500, 2500), (1600, 2600)]),
    (2000, 0, [(0, 2000), (600, 2600)]),
    (2550, 0, [(0, 2550)]),
    (5000, 0, [(0, 2600)]),
])
def test_segments_of_another_length(recording, tiny_model, duration, overlap, expected):
    predictor = predictor_of(tiny_model.best, segment_mode=True, segment_duration_ms=duration,
                             segment_overlap_ms=overlap)
    records = records_of(predictor, recording)
    assert [(r["segment_start_ms"], r["segment_end_ms"]) for r in records] == expected


@pytest.mark.parametrize(("seconds", "n_segments"), [(2.05, 2), (2.2, 3)])
def test_the_end_counts_once(tmp_path, tiny_model, rng, seconds, n_segments):
    """What is too short to add anything is left out, as in preprocessing."""
    path, = write_seconds(tmp_path, rng, seconds)
    record = predictor_of(tiny_model.best).predict_single(path)
    assert (record["n_segments"], record["duration_seconds"]) == (n_segments, seconds)


def test_a_recording_shorter_than_a_window_is_one_segment(tmp_path, tiny_model, rng):
    path, = write_seconds(tmp_path, rng, 0.3)
    record, = records_of(predictor_of(tiny_model.best, segment_mode=True), path)
    assert (record["segment_start_ms"], record["segment_end_ms"], record["duration_seconds"]) == (0, 300, 0.3)


def test_a_file_is_the_mean_of_its_windows(recording, tiny_model):
    whole = predictor_of(tiny_model.best, return_all_scores=True).predict_single(recording)
    parts = records_of(predictor_of(tiny_model.best, return_all_scores=True, segment_mode=True), recording)
    for name in TINY_CLASSES:
        mean = np.mean([part["all_scores"][name] for part in parts])
        assert whole["all_scores"][name] == pytest.approx(mean, abs=2 * PRINTED)


def test_a_long_segment_is_the_mean_of_its_windows(recording, tiny_model):
    long = records_of(predictor_of(tiny_model.best, return_all_scores=True, segment_mode=True,
                                   segment_duration_ms=2600), recording)
    windows = records_of(predictor_of(tiny_model.best, return_all_scores=True, segment_mode=True), recording)
    assert len(long) == 1
    for name in TINY_CLASSES:
        mean = np.mean([window["all_scores"][name] for window in windows])
        assert long[0]["all_scores"][name] == pytest.approx(mean, abs=2 * PRINTED)


def test_batches_change_nothing(tiny_dataset, tiny_model):
    paths = [tiny_dataset.audio_dir / result.source_path for result in tiny_dataset.results[::4]]
    together = predictor_of(tiny_model.best, batch_size=7, return_all_scores=True).predict_batch(paths)
    single = predictor_of(tiny_model.best, batch_size=1, return_all_scores=True)
    assert [record["file_path"] for record in together] == list(map(str, paths))
    for record, path in zip(together, paths, strict=True):
        alone = single.predict_single(path)
        for name in TINY_CLASSES:
            assert record["all_scores"][name] == pytest.approx(alone["all_scores"][name], abs=BATCH_TOLERANCE)
        assert (record["n_segments"], record["duration_seconds"]) == (alone["n_segments"], alone["duration_seconds"])


def test_a_broken_end_is_told_beside_what_came_before(tmp_path, tiny_model, rng):
    record = predictor_of(tiny_model.best).predict_single(broken_flac(tmp_path / "broken.flac", rng))
    assert "broken.flac breaks off after" in record["damage"]
    assert record["n_segments"] == int(record["duration_seconds"]) + 1 > 20
    assert record["predicted_class"] in (*TINY_CLASSES, "unknown_species")


@pytest.mark.parametrize(("library", "where"), [*(("torch", where) for where in EXECUTORS), ("onnx", "two workers")])
def test_a_broken_end_costs_nothing_before_it_wherever_spans_are_read(tmp_path, converted, rng, library, where):
    """The header promises a second span, which lies behind the break; another worker may look for it first."""
    path = broken_flac(tmp_path / "broken.flac", rng)
    predictor = predictor_of(converted[library], backend=library, segment_mode=True, executor=EXECUTORS[where])
    for paths in ([path], [path, path]):
        for predicted in predictor.predict_files(paths):
            assert predicted.outcome.status == "ok" and "broken.flac breaks off after" in predicted.outcome.reason
            starts = [record["segment_start_ms"] for record in predicted.records]
            assert starts[:-1] == list(range(0, 1000 * len(starts[:-1]), 1000)) and len(starts) > 20
            assert predicted.records[-1]["segment_end_ms"] == round(1000 * predicted.outcome.duration_seconds)
            assert {record["damage"] for record in predicted.records} == {predicted.outcome.reason}


def test_spans_may_come_in_any_order(tmp_path, tiny_model, rng):
    """Workers need not be equally quick; what lies behind a break is known to be bad before the rest is scored."""
    paths = [*write_seconds(tmp_path, rng, 200, 1), broken_flac(tmp_path / "broken.flac", rng), tmp_path / "gone.wav"]
    expected = list(silent_predictor(tiny_model.best).predict_files(paths))
    predictor = silent_predictor(tiny_model.best)
    usual = predictor.score

    def backwards(jobs, **named):
        parts = [list(parts) for _, parts in itertools.groupby(usual(jobs, **named), key=lambda pair: pair[0].index)]
        for first, *others in parts[::-1]:
            yield from (first, *others[::-1])

    predictor.score = backwards
    for found, other in zip(predictor.predict_files(paths), expected, strict=True):
        assert (found.file_path, found.outcome) == (other.file_path, other.outcome)
        assert list(map(without, found.records)) == list(map(without, other.records))
    assert [one.outcome.status for one in expected] == ["ok", "ok", "ok", "corrupt"]


# ways to ask

@pytest.mark.parametrize(("rate", "channels"), [(TINY_RATE, 1), (TINY_RATE, 2), (11025, 1), (44100, 2)])
def test_samples_get_the_answer_of_the_same_samples_in_a_file(tmp_path, tiny_model, rng, rate, channels):
    samples = rng.uniform(-0.5, 0.5, (round(2.6 * rate), channels)).astype(np.float32)
    soundfile.write(tmp_path / "clip.wav", samples, rate, subtype="FLOAT")
    predictor = predictor_of(tiny_model.best, return_all_scores=True)
    of_file = predictor.predict_single(tmp_path / "clip.wav")
    given = samples if channels > 1 else samples[:, 0]
    of_samples = predictor.predict_samples(given, sample_rate=rate, name="heard just now")
    assert of_samples["file_path"] == "heard just now"
    assert without(of_samples, "file_path") == without(of_file, "file_path")


def test_samples_may_be_of_any_floating_type(tiny_model, rng):
    samples = tiny_sound("bird_song", seconds=1.5, rng=rng)
    predictor = predictor_of(tiny_model.best)
    answers = [predictor.predict_samples(samples.astype(kind), sample_rate=TINY_RATE) for kind in ("f4", "f8")]
    assert without(answers[0]) == without(answers[1])


@pytest.mark.parametrize("samples", [np.ones(8000, dtype=np.int16), np.ones((2, 3, 4)), np.float32(1)])
def test_samples_of_another_form_are_refused(tiny_model, samples):
    with pytest.raises(ConfigError, match=r"samples must be floating point \(n_samples,\) or .*divide integers"):
        predictor_of(tiny_model.best).predict_samples(samples, sample_rate=TINY_RATE)


@pytest.mark.parametrize(("samples", "reason"), [
    (np.zeros(8000), "^samples never exceeds one 16-bit step"), (np.full(8000, np.nan), "not numbers"),
    (np.ones(100), "samples lasts"), (np.zeros(0), "no samples"), (np.zeros((0, 2)), "no samples"),
])
def test_samples_that_hold_nothing_raise(tiny_model, samples, reason):
    with pytest.raises(AudioError, match=reason):
        predictor_of(tiny_model.best).predict_samples(samples, sample_rate=TINY_RATE)


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("kind", ["in memory", "open file"])
def test_a_file_object_gets_the_answer_of_its_path_and_stays_open(tmp_path, tiny_model, rng, ending, kind):
    """As often as it is asked, wherever it stands: it is read from its beginning, in spans where it can be."""
    path = tmp_path / f"clip.{ending}"
    soundfile.write(path, rng.uniform(-0.5, 0.5, round(66.4 * 11025)), 11025)
    predictor = predictor_of(tiny_model.best, batch_size=16, return_all_scores=True)
    in_segments = predictor_of(tiny_model.best, batch_size=16, return_all_scores=True, segment_mode=True)
    of_path, segments = predictor.predict_single(path), in_segments.predict_segments(path)
    assert of_path["n_segments"] == len(segments) == 67
    with io.BytesIO(path.read_bytes()) if kind == "in memory" else open(path, "rb") as stream:
        assert without(predictor.predict_single(stream), "file_path") == without(of_path, "file_path")
        stream.seek(100)
        assert [without(record, "file_path") for record in in_segments.predict_segments(stream)] == [
            without(record, "file_path") for record in segments]
        record, = predictor.predict_batch([stream])
        assert without(record, "file_path") == without(of_path, "file_path")
        assert record["file_path"] == ("file object" if kind == "in memory" else str(path))
        assert not stream.closed and stream.seek(0) == 0 and stream.read(3) == path.read_bytes()[:3]


@on_every_executor
def test_paths_and_file_objects_may_be_mixed(tmp_path, tiny_model, rng, where):
    paths = write_seconds(tmp_path, rng, 1, 66.4, 2.6, 0.5, 2.3, 1, 3)
    (tmp_path / "bad.wav").write_bytes(b"no recording")
    paths.insert(2, tmp_path / "bad.wav")
    alone = [predictor_of(tiny_model.best, return_all_scores=True).predict_batch([path])[0] for path in paths]
    streams = {number: io.BytesIO(paths[number].read_bytes()) for number in (1, 2, 4)}
    predictor = predictor_of(tiny_model.best, executor=EXECUTORS[where], return_all_scores=True)
    with open(paths[7], "rb") as streams[7]:
        given = [str(path) if number == 0 else streams.get(number, path) for number, path in enumerate(paths)]
        together = predictor.predict_batch(given)
        assert not any(stream.closed for stream in streams.values())
    assert [record["file_path"] for record in together] == [
        "file object" if number in (1, 2, 4) else str(path) for number, path in enumerate(paths)]
    assert together[2]["status"] == "unsupported" and set(together[2]) == {"file_path", "status", "error"}
    for number in (0, 1, 3, 4, 5, 6, 7):
        assert together[number]["n_segments"] == alone[number]["n_segments"]
        for name in TINY_CLASSES:
            assert together[number]["all_scores"][name] == pytest.approx(alone[number]["all_scores"][name],
                                                                         abs=BATCH_TOLERANCE)
    assert multiprocessing.active_children() == []


def test_a_file_object_that_is_no_recording_raises_and_stays_open(tiny_model):
    predictor = predictor_of(tiny_model.best)
    for content in (b"", b"no recording" * 100):
        stream = io.BytesIO(content)
        with pytest.raises(AudioError, match="^file object is not readable by libsndfile .*save it first"):
            predictor.predict_single(stream)
        assert not stream.closed


@pytest.mark.parametrize("given", [np.zeros(8000), 7, None])
def test_what_is_neither_path_nor_file_object_is_refused(tiny_model, given):
    predictor = predictor_of(tiny_model.best)
    for ask in (predictor.predict_single, predictor.predict_segments, lambda one: predictor.predict_batch([one])):
        with pytest.raises(ConfigError, match="must be a path or a binary file object.*samples go to predict_samples"):
            ask(given)


def test_segments_of_one_file_are_those_of_segment_mode(recording, tiny_model):
    asked = predictor_of(tiny_model.best, return_all_scores=True).predict_segments(recording)
    of_mode = records_of(predictor_of(tiny_model.best, return_all_scores=True, segment_mode=True), recording)
    assert len(asked) == 3
    assert list(map(without, asked)) == list(map(without, of_mode))


def test_one_record_cannot_be_asked_for_where_there_are_several(recording, tiny_model):
    predictor = predictor_of(tiny_model.best, segment_mode=True)
    for ask in (lambda: predictor.predict_single(recording), lambda: predictor.predict_batch([recording]),
                lambda: predictor.predict_samples(np.ones(8000), sample_rate=TINY_RATE)):
        with pytest.raises(ConfigError, match="use predict_segments, or settings without segment_mode"):
            ask()


@pytest.mark.parametrize("library", ["torch", "onnx", "openvino"])
def test_threads_may_share_a_predictor(tiny_dataset, tiny_model, converted, tmp_path, rng, library):
    """They ask for other recordings at the same time, in other ways; a long one is read in spans."""
    predictor = predictor_of(converted[library], backend=library, return_all_scores=True)
    paths = [tiny_dataset.audio_dir / result.source_path for result in tiny_dataset.results[::3]]
    long, = write_seconds(tmp_path, rng, 66.4)
    asked = [long, *paths, *(path.read_bytes() for path in paths), *paths, long.read_bytes()]

    def ask(given):
        if isinstance(given, Path):
            return without(predictor.predict_single(given), "file_path")
        return without(predictor.predict_single(io.BytesIO(given)), "file_path")

    alone = list(map(ask, asked))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, asked)) == alone


def test_segments_of_a_class_are_joined_where_the_settings_say(recording, tiny_model, tmp_path):
    path = save_biased(tiny_model.best, tmp_path / "biased.pth", winner=0, logit=8.0)
    predictor = predictor_of(path, segment_mode=True, segment_duration_ms=500, segment_overlap_ms=0,
                             merge_gap_seconds=0.0)
    record, = records_of(predictor, recording)
    assert set(record) == SEGMENT_KEYS
    assert (record["segment_start_ms"], record["segment_end_ms"], record["segment_index"]) == (0, 2600, 0)
    assert record["n_segments"] == 6 and record["confidence"] == pytest.approx(softmax_of_one(8.0), abs=PRINTED)
    assert list(map(without, predictor.predict_segments(recording))) == [without(record)]
    with pytest.raises(ConfigError, match="merge_gap joins segments: ask for them with segment_mode"):
        predictor_of(path, merge_gap_seconds=0.0)


# thresholds

@pytest.fixture
def lukewarm(tiny_model, tmp_path):
    """A model that gives mammal_call 0.711 whatever it hears: below its threshold of 0.75."""
    return save_biased(tiny_model.best, tmp_path / "lukewarm.pth", winner=1, logit=2.0)


def test_below_the_threshold_the_class_is_rejected_but_kept_in_view(recording, lukewarm):
    record = predictor_of(lukewarm).predict_single(recording)
    assert (record["predicted_class"], record["above_threshold"]) == ("unknown_species", False)
    assert (record["top_class"], record["confidence"]) == ("mammal_call", 0.0)
    assert record["top_confidence"] == pytest.approx(softmax_of_one(2.0), abs=PRINTED)


@pytest.mark.parametrize("settings, expected", [
    ({"use_thresholds": False}, "mammal_call"),
    ({"min_confidence": 0.7}, "mammal_call"),
    ({"min_confidence": 0.72}, "unknown_species"),
    ({"min_confidence": 0.0}, "mammal_call"),
])
def test_thresholds_can_be_replaced(recording, lukewarm, settings, expected):
    assert predictor_of(lukewarm, **settings).predict_single(recording)["predicted_class"] == expected


def test_a_config_replaces_thresholds_and_reject_class_but_never_the_front_end(recording, lukewarm, tmp_path,
                                                                               tiny_model):
    changed = tiny_model.config.replace(thresholds={"mammal_call": 0.9}, reject_class="noise")
    write_config(tmp_path / "config.json", changed)  # its front end is the default, not the model's
    predictor = predictor_of(lukewarm, config_path=tmp_path / "config.json")
    record = predictor.predict_single(recording)
    assert (record["predicted_class"], record["n_segments"]) == ("noise", 3)
    assert predictor.thresholds() == {**lukewarm_thresholds(lukewarm), "mammal_call": 0.9}


def lukewarm_thresholds(path):
    return dict(read_checkpoint(path)["thresholds"])


@pytest.fixture
def particular(lukewarm):
    """A model whose rules are not the usual ones: mammal_call must reach 0.72, which it does not."""
    content = read_checkpoint(lukewarm)
    content["thresholds"] = {"bird_song": 0.11, "mammal_call": 0.72, "insect_sound": 0.13, "amphibian_call": 0.14}
    content["reject_class"] = "nobody"
    torch.save(content, lukewarm)
    return lukewarm


@pytest.mark.parametrize(("given", "thresholds", "predicted"), [
    ({}, {}, "nobody"),
    ({"batch_size": 4, "learning_rate": 0.1}, {}, "nobody"),
    ({"preset": "efficientnet_b0_fast"}, {}, "nobody"),
    ({"thresholds": {"bird_song": 0.9}}, {"bird_song": 0.9}, "nobody"),
    ({"thresholds": {"mammal_call": 0.7}}, {"mammal_call": 0.7}, "mammal_call"),
    ({"thresholds": {"unknown_species": 0.9, "mammal_call": 0.73}}, {"mammal_call": 0.73}, "nobody"),
    ({"thresholds": {}}, {}, "nobody"),
    ({"reject_class": "noise"}, {}, "noise"),
    ({"preset": "efficientnet_b0_fast", "reject_class": "noise"}, {}, "noise"),
])
def test_a_config_replaces_only_what_its_file_names(recording, particular, tmp_path, given, thresholds, predicted):
    own = lukewarm_thresholds(particular)
    (tmp_path / "config.json").write_text(json.dumps(given), encoding="utf-8")
    predictor = predictor_of(particular, config_path=tmp_path / "config.json")
    assert predictor.thresholds() == {**own, **thresholds}
    assert predictor.predict_single(recording)["predicted_class"] == predicted


def test_a_preset_by_name_replaces_nothing(recording, particular):
    predictor = predictor_of(particular, config_path="efficientnet_b0_fast")
    assert predictor.thresholds() == lukewarm_thresholds(particular)
    assert predictor.predict_single(recording)["predicted_class"] == "nobody"


@pytest.mark.parametrize("name", ["owl", "mammal_calls", "Mammal_call", ""])
def test_a_threshold_for_no_class_of_the_model_is_refused(particular, tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps({"thresholds": {"bird_song": 0.5, name: 0.9}}), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"thresholds\['{name}'\] is for no class of the model \(.*config\.json\):"
                                          r" its classes are bird_song, mammal_call, insect_sound, amphibian_call$"):
        predictor_of(particular, config_path=tmp_path / "config.json")


def test_a_reject_class_that_the_model_knows_keeps_its_own_probability(recording, lukewarm, tmp_path, tiny_model):
    write_config(tmp_path / "config.json", tiny_model.config.replace(reject_class="insect_sound"))
    record = predictor_of(lukewarm, config_path=tmp_path / "config.json").predict_single(recording)
    assert record["predicted_class"] == "insect_sound"
    assert record["confidence"] == pytest.approx((1 - softmax_of_one(2.0)) / 3, abs=PRINTED)


# bad files

def bad_files(folder, rng):
    (folder / "corrupt.wav").write_bytes(b"RIFF no recording" * 30)
    (folder / "empty.wav").write_bytes(b"")
    write_audio(folder / "silent.wav", np.zeros(3 * TINY_RATE, dtype=np.float32))
    write_audio(folder / "short.wav", tiny_sound("bird_song", seconds=0.02, rng=rng))
    broken = tiny_sound("bird_song", seconds=2, rng=rng)
    broken[-5] = np.nan
    soundfile.write(folder / "nan.wav", broken, TINY_RATE, subtype="FLOAT")
    return {"corrupt": "corrupt", "empty": "empty", "silent": "silent", "short": "too_short", "nan": "corrupt"}


@on_every_executor
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_files_are_errors_beside_the_results(tmp_path, rng, tiny_model, where, batch_size):
    statuses = bad_files(tmp_path, rng)
    paths = [tmp_path / f"{name}.wav" for name in statuses]
    for number in range(len(paths)):
        paths.insert(2 * number + 1, write_audio(tmp_path / f"good{number}.wav",
                                                 tiny_sound("bird_song", seconds=1.5, rng=rng)))
    predictor = predictor_of(tiny_model.best, batch_size=batch_size, executor=EXECUTORS[where])
    answers = predictor.predict_batch(paths)
    assert [answer["file_path"] for answer in answers] == list(map(str, paths))
    assert [answer["status"] for answer in answers[::2]] == list(statuses.values())
    for answer, path in zip(answers[::2], paths[::2], strict=True):
        assert set(answer) == {"file_path", "status", "error"} and path.name in answer["error"]
    assert all(set(answer) == FILE_KEYS and answer["n_segments"] == 2 for answer in answers[1::2])


@pytest.mark.parametrize("name, reason", [("corrupt", "corrupt.wav"), ("empty", "0 bytes"), ("silent", "silence"),
                                          ("short", r"at least 0\.05 s"), ("missing", "cannot be opened")])
def test_a_single_bad_file_raises(tmp_path, rng, tiny_model, name, reason):
    bad_files(tmp_path, rng)
    predictor = predictor_of(tiny_model.best)
    for ask in (predictor.predict_single, predictor.predict_segments):
        with pytest.raises(AudioError, match=reason):
            ask(tmp_path / f"{name}.wav")


@on_every_executor
def test_a_bug_is_no_bad_file(recording, tiny_model, monkeypatch, where):
    monkeypatch.setattr(inference, "read_spans", divide_by_nothing)
    with pytest.raises(ZeroDivisionError, match="division"):
        predictor_of(tiny_model.best, executor=EXECUTORS[where]).predict_batch([recording])


def divide_by_nothing(plan, job):
    yield 1 // 0


class NoNumbers(SilentBackend):
    """A network that breaks down over the third window it hears."""

    def run(self, log_mels, *, with_embeddings=False):
        logits = super().run(log_mels).logits
        self.n_heard = getattr(self, "n_heard", 0) + len(logits)
        if self.n_heard - len(logits) < 3 <= self.n_heard:
            logits[2 - self.n_heard, 1] = np.nan
        return NetworkOutput(logits)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_recording_that_the_network_gives_no_numbers_for_costs_itself(tmp_path, rng, tiny_model, batch_size):
    paths = write_seconds(tmp_path, rng, 1, 3, 1)
    predictor = predictor_of(tiny_model.best, batch_size=batch_size)
    predictor.backend = NoNumbers(predictor.model)
    before, bad, after = predictor.predict_batch(paths)
    assert (before["n_segments"], after["n_segments"]) == (1, 1)
    assert bad["status"] == "corrupt" and "1.wav: the network's numbers for it are not finite" in bad["error"]


def test_windows_of_a_recording_that_fails_do_not_reach_the_network(tmp_path, rng, tiny_model):
    """Ten seconds are read in three blocks, so that windows wait for their batch when the last block is found bad."""
    good, = write_seconds(tmp_path, rng, 2)
    samples = tiny_sound("bird_song", seconds=10, rng=rng)
    samples[-1] = np.nan
    soundfile.write(tmp_path / "bad.wav", samples, TINY_RATE, subtype="FLOAT")
    predictor = predictor_of(tiny_model.best, batch_size=16)
    predictor.backend = Counting(predictor.model)
    answers = predictor.predict_batch([good, tmp_path / "bad.wav", good])
    assert [answer.get("status", "ok") for answer in answers] == ["ok", "corrupt", "ok"]
    assert predictor.backend.passes == [4]


# settings and models that do not fit

@pytest.mark.parametrize("settings", [{"segment_overlap_ms": 1000}, {"segment_overlap_ms": -1},
                                      {"segment_duration_ms": 300, "segment_overlap_ms": 300}])
def test_an_impossible_overlap_is_refused(tiny_model, settings):
    with pytest.raises(ConfigError, match=r"segment_overlap must be in 0\.\."):
        predictor_of(tiny_model.best, **settings)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--model_path .*gone\.pth does not exist: give the \.pth that"):
        EfficientNetPredictor(tmp_path / "gone.pth")


# when a file is done

@pytest.mark.parametrize(("batch_size", "most_parts"), [
    (2, 4),  # the batch is full with the first recording: it is opened, its two windows, its end
    (3, 7),  # the first window of the second recording fills it
])
def test_a_file_is_yielded_as_soon_as_its_last_window_is_scored(tmp_path, rng, tiny_model, batch_size, most_parts):
    paths = write_seconds(tmp_path, rng, 2, 60)
    predictor = silent_predictor(tiny_model.best, batch_size=batch_size, executor=Sparing(most_parts))
    first = next(predictor.predict_files(paths))
    assert (first.file_path, first.records[0]["n_segments"]) == (str(paths[0]), 2)


@pytest.mark.parametrize(("name", "status", "most_parts"), [
    ("gone.wav", "corrupt", 1),
    ("nan.wav", "corrupt", 3),  # its first block holds a window
    ("silent.wav", "silent", 8),  # its three windows wait for a batch of four like any others
])
def test_a_bad_file_is_yielded_as_soon_as_it_is_known_to_be_bad(tmp_path, rng, tiny_model, name, status, most_parts):
    bad_files(tmp_path, rng)
    long, = write_seconds(tmp_path, rng, 60)
    predictor = silent_predictor(tiny_model.best, executor=Sparing(most_parts))
    assert next(predictor.predict_files([tmp_path / name, long])).outcome.status == status


def test_files_keep_their_order_whatever_fills_the_batches(tmp_path, rng, tiny_model):
    paths = write_seconds(tmp_path, rng, 1, 5, 0.02, 2, 0.5, 1)
    for batch_size in range(1, 8):
        predicted = list(silent_predictor(tiny_model.best, batch_size=batch_size).predict_files(paths))
        assert [p.file_path for p in predicted] == list(map(str, paths))
        assert [p.records[0]["n_segments"] if p.records else p.outcome.status for p in predicted] == [
            1, 5, "too_short", 2, 1, 1]


@on_every_executor
def test_the_time_of_work_has_no_waiting_in_it(tmp_path, rng, tiny_model, where):
    """Neither while the consumer is busy, nor while a worker has no room for what it has read."""
    paths = write_seconds(tmp_path, rng, 1, 300, 1)

    def time_told(pause):
        told = 0.0
        for predicted in silent_predictor(tiny_model.best, executor=EXECUTORS[where]).predict_files(paths):
            told += predicted.records[0]["processing_time"]
            time.sleep(pause)
        return told

    work = max(time_told(0.0) for _ in range(2))
    # a busy machine may take long for once; a clock that counts waiting does so every time
    assert any(time_told(WAITING * work / len(paths)) < GENEROUS * work for _ in range(3))


# memory, processes and network

def test_no_more_than_a_batch_is_read_ahead_in_this_process(tmp_path, rng, tiny_model, monkeypatch):
    path, = write_seconds(tmp_path, rng, 200)
    predictor = silent_predictor(tiny_model.best, batch_size=2)
    read, ahead, usual = [], [], predictor.backend.run

    def counted(plan, job):
        for part in read_spans(plan, job):
            read.extend([part] if isinstance(part, WindowRead) else [])
            yield part

    def scored(log_mels, **_):
        ahead.append(len(read))
        read.clear()
        return usual(log_mels)

    monkeypatch.setattr(inference, "read_spans", counted)
    monkeypatch.setattr(predictor.backend, "run", scored)
    assert predictor.predict_single(path)["n_segments"] == 200
    assert ahead == [2] * 100


@on_every_executor
def test_a_list_of_files_is_taken_as_it_is_needed(tmp_path, rng, tiny_model, where):
    path, = write_seconds(tmp_path, rng, 1)
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield path

    predicted = predictor_of(tiny_model.best, batch_size=2, executor=EXECUTORS[where]).predict_files(endless())
    for _ in range(3):
        assert next(predicted).outcome.status == "ok"
    predicted.close()
    assert len(taken) <= MOST_TAKEN[where]
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("library", ["onnx", "openvino"])
@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_with_networks_of_their_own_change_nothing(tiny_dataset, converted, tmp_path, rng, monkeypatch, library,
                                                           n_workers):
    """They read long recordings together, in whatever way those can be read."""
    monkeypatch.setattr(reading, "_SHARED_BYTES", 1)
    paths = [tiny_dataset.audio_dir / result.source_path for result in tiny_dataset.results[::3]]
    paths[2:2] = [*write_seconds(tmp_path, rng, 66.4), tmp_path / "gone.wav", write_audio(
        tmp_path / "long.ogg", tiny_sound("amphibian_call", seconds=70, rng=rng))]
    usual = predictor_of(converted["torch"], return_all_scores=True).predict_batch(paths)
    here = predictor_of(converted[library], backend=library, return_all_scores=True).predict_batch(paths)
    predictor = predictor_of(converted[library], backend=library, executor=LocalProcesses(n_workers),
                             return_all_scores=True)
    there = predictor.predict_batch(paths)
    assert "backend" not in vars(predictor)  # it has loaded none itself
    assert predictor.backend_name == f"{library}-cpu"
    for record, others in zip(there, zip(usual, here, strict=True), strict=True):
        for other in others:
            assert set(record) == set(other)
            told = ("file_path", "n_segments", "duration_seconds", "top_class", "status", "error")
            assert [record.get(name) for name in told] == [other.get(name) for name in told]
            for name, score in record.get("all_scores", {}).items():
                assert score == pytest.approx(other["all_scores"][name], abs=SCORE_TOLERANCE)


@pytest.mark.parametrize("method", [method for method in ("fork", "spawn")
                                    if method in multiprocessing.get_all_start_methods()])
@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_change_nothing(tiny_dataset, tiny_model, method, n_workers):
    paths = [tiny_dataset.audio_dir / result.source_path for result in tiny_dataset.results[::3]]
    here = predictor_of(tiny_model.best, return_all_scores=True).predict_batch(paths)
    usual = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        there = predictor_of(tiny_model.best, executor=LocalProcesses(n_workers),
                             return_all_scores=True).predict_batch(paths)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert list(map(without, here)) == list(map(without, there))


ENDS_EARLY = """
import multiprocessing, sys
sys.path.insert(0, {project!r})
from pathlib import Path
from utils.prediction.predictor import EfficientNetPredictor
from utils.running.parallel import LocalProcesses, ThisProcess
predictor = EfficientNetPredictor(sys.argv[1], device="cpu", backend="torch", executor={executor})
predicted = predictor.predict_files(map(Path, sys.argv[2:]))
print(next(predicted).outcome.status, *(child.pid for child in multiprocessing.active_children()))
"""


@pytest.mark.parametrize(("executor", "n_children"), [("ThisProcess()", 0), ("LocalProcesses(2)", 2)])
def test_a_script_that_takes_one_answer_ends_and_leaves_nobody_behind(tmp_path, rng, tiny_model, executor, n_children):
    paths = write_seconds(tmp_path, rng, 1, 300, 300)  # the others are being read when it ends
    done = subprocess.run([sys.executable, "-c", ENDS_EARLY.format(project=str(PROJECT), executor=executor),
                           tiny_model.best, *paths], capture_output=True, text=True, timeout=LONGEST_SECONDS)
    assert (done.returncode, done.stderr) == (0, "")
    status, *children = done.stdout.split()
    assert status == "ok" and len(children) == n_children
    # without /proc the end of the run tells it: it waits for whoever holds its output open
    assert [child for child in children if Path("/proc", child).exists()] == []


@pytest.mark.parametrize("library", ["torch", "onnx", "openvino"])
def test_prediction_opens_no_connection(recording, converted, monkeypatch, library):
    def refuse(*arguments, **named):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert predictor_of(converted[library], backend=library).predict_single(recording)["n_segments"] == 3
