import socket

import numpy as np
import pytest
import soundfile
import torch

from models.errors import AudioError, CheckpointError, ConfigError
from tests.conftest import TINY_CLASSES, TINY_RATE, tiny_sound, write_audio
from utils.prediction import predictor as inference
from utils.storage.checkpoints import read_checkpoint
from utils.storage.config_files import write_config
from utils.prediction.predictor import EfficientNetPredictor, PredictionSettings

FILE_KEYS = {"file_path", "predicted_class", "confidence", "above_threshold", "top_class", "top_confidence",
             "duration_seconds", "n_segments", "processing_time"}
SEGMENT_KEYS = FILE_KEYS | {"segment_start_ms", "segment_end_ms", "segment_index"}
BATCH_TOLERANCE = 1e-5  # convolutions of another batch size add float32 in another order
PRINTED = 1e-6  # probabilities are rounded to six decimals


def predictor_of(path, *, batch_size=4, config_path=None, n_workers=2, **settings):
    return EfficientNetPredictor(path, config_path, device="cpu", batch_size=batch_size, n_workers=n_workers,
                                 settings=PredictionSettings(**settings))


def save_biased(source, target, *, winner, logit):
    """Write a copy of a checkpoint whose network always gives one output, the logit chosen, whatever it hears."""
    content = read_checkpoint(source)
    content["weights"]["backbone._fc.weight"].zero_()
    content["weights"]["backbone._fc.bias"].zero_()
    content["weights"]["backbone._fc.bias"][winner] = logit
    content["calibration"]["temperature"] = 1.0
    torch.save(content, target)
    return target


def softmax_of_one(logit, n_classes=4):
    return float(np.exp(logit) / (np.exp(logit) + n_classes - 1))


def records_of(predictor, path):
    outcome, = predictor.predict_files([path])
    assert outcome.error is None
    return outcome.records


@pytest.fixture
def recording(tmp_path, rng):
    """2.6 s: two whole windows and a last one that is moved back."""
    return write_audio(tmp_path / "clip.wav", tiny_sound("bird_song", seconds=2.6, rng=rng))


# one front end

def test_prediction_sees_the_very_spectrograms_of_preprocessing(tiny_dataset, tiny_model, monkeypatch):
    predictor = predictor_of(tiny_model.best)
    seen, usual = [], predictor.probabilities
    monkeypatch.setattr(predictor, "probabilities", lambda log_mels: (seen.append(log_mels.copy()), usual(log_mels))[1])
    result = next(result for result in tiny_dataset.results if len(result.segments) == 3)
    predictor.predict_single(tiny_dataset.audio_dir / result.source_path)
    stored = np.stack([np.load(tiny_dataset.output_dir / segment.path) for segment in result.segments])
    np.testing.assert_array_equal(np.concatenate(seen), stored)


def test_parts_of_a_recording_give_what_its_spectrograms_give(tiny_dataset, tiny_model):
    predictor = predictor_of(tiny_model.best)
    result = next(result for result in tiny_dataset.results if len(result.segments) == 3)
    spans = [(s.start_sample / TINY_RATE, s.end_sample / TINY_RATE) for s in result.segments]
    stored = np.stack([np.load(tiny_dataset.output_dir / segment.path) for segment in result.segments])
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
    (5000, 0, [(0, 2600)]),
])
def test_segments_of_another_length(recording, tiny_model, duration, overlap, expected):
    predictor = predictor_of(tiny_model.best, segment_mode=True, segment_duration_ms=duration,
                             segment_overlap_ms=overlap)
    records = records_of(predictor, recording)
    assert [(r["segment_start_ms"], r["segment_end_ms"]) for r in records] == expected


def test_a_recording_shorter_than_a_window_is_one_segment(tmp_path, tiny_model, rng):
    path = write_audio(tmp_path / "short.wav", tiny_sound("bird_song", seconds=0.3, rng=rng))
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
    single = predictor_of(tiny_model.best, batch_size=1, n_workers=1, return_all_scores=True)
    assert [record["file_path"] for record in together] == list(map(str, paths))
    for record, path in zip(together, paths, strict=True):
        alone = single.predict_single(path)
        for name in TINY_CLASSES:
            assert record["all_scores"][name] == pytest.approx(alone["all_scores"][name], abs=BATCH_TOLERANCE)
        assert (record["n_segments"], record["duration_seconds"]) == (alone["n_segments"], alone["duration_seconds"])


def test_calibration_divides_the_logits(recording, tiny_model, tmp_path):
    content = read_checkpoint(save_biased(tiny_model.best, tmp_path / "m.pth", winner=1, logit=8.0))
    content["calibration"]["temperature"] = 4.0
    torch.save(content, tmp_path / "m.pth")
    record = predictor_of(tmp_path / "m.pth").predict_single(recording)
    assert record["top_confidence"] == pytest.approx(softmax_of_one(2.0), abs=PRINTED)


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
    assert predictor.thresholds() == {"bird_song": 0.5, "mammal_call": 0.9, "insect_sound": 0.5, "amphibian_call": 0.5}


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


def test_bad_files_are_errors_beside_the_results(tmp_path, rng, tiny_model):
    statuses = bad_files(tmp_path, rng)
    paths = [tmp_path / f"{name}.wav" for name in statuses]
    for number in range(len(paths)):
        paths.insert(2 * number + 1, write_audio(tmp_path / f"good{number}.wav",
                                                 tiny_sound("bird_song", seconds=1.5, rng=rng)))
    answers = predictor_of(tiny_model.best, batch_size=3).predict_batch(paths)
    assert [answer["file_path"] for answer in answers] == list(map(str, paths))
    assert [answer["status"] for answer in answers[::2]] == list(statuses.values())
    for answer, path in zip(answers[::2], paths[::2], strict=True):
        assert set(answer) == {"file_path", "status", "error"} and path.name in answer["error"]
    assert all(set(answer) == FILE_KEYS for answer in answers[1::2])


@pytest.mark.parametrize("name, reason", [("corrupt", "corrupt.wav"), ("empty", "0 bytes"), ("silent", "silence"),
                                          ("short", r"at least 0\.05 s"), ("missing", "cannot be opened")])
def test_a_single_bad_file_raises(tmp_path, rng, tiny_model, name, reason):
    bad_files(tmp_path, rng)
    with pytest.raises(AudioError, match=reason):
        predictor_of(tiny_model.best).predict_single(tmp_path / f"{name}.wav")


def test_a_bug_is_no_bad_file(recording, tiny_model, monkeypatch):
    predictor = predictor_of(tiny_model.best)

    def fail(samples):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(predictor._frontend, "log_mel", fail)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        predictor.predict_batch([recording])


# settings and models that do not fit

@pytest.mark.parametrize("settings", [{"segment_overlap_ms": 1000}, {"segment_overlap_ms": -1},
                                      {"segment_duration_ms": 300, "segment_overlap_ms": 300}])
def test_an_impossible_overlap_is_refused(tiny_model, settings):
    with pytest.raises(ConfigError, match=r"segment_overlap must be in 0\.\."):
        predictor_of(tiny_model.best, **settings)


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pth does not exist"):
        EfficientNetPredictor(tmp_path / "gone.pth")


# memory and network

def test_a_long_recording_is_not_read_ahead_without_bound(tmp_path, tiny_model, monkeypatch, rng):
    """The reader must wait for the network: at no time may it be more than the queue and a batch ahead."""
    path = write_audio(tmp_path / "long.wav", np.tile(tiny_sound("bird_song", seconds=1, rng=rng), 200))
    predictor = predictor_of(tiny_model.best, batch_size=2)
    read, consumed, ahead, usual = [], [], [], predictor._windows

    def counted(progress):
        for window in usual(progress):
            read.append(1)
            yield window

    def probabilities(log_mels):
        consumed.extend([1] * len(log_mels))
        ahead.append(len(read) - len(consumed))
        return np.full((len(log_mels), 4), 0.25)

    monkeypatch.setattr(predictor, "_windows", counted)
    monkeypatch.setattr(predictor, "probabilities", probabilities)
    monkeypatch.setattr(inference, "_QUEUED_WINDOWS", 5)
    assert predictor.predict_single(path)["n_segments"] == 200
    assert len(read) == len(consumed) == 200
    # the queue, one window in the reader's hand, and a batch's worth on the way
    assert max(ahead) <= 5 + 1 + 2


def test_a_list_of_files_is_taken_as_it_is_needed(tmp_path, rng, tiny_model):
    path = write_audio(tmp_path / "a.wav", tiny_sound("bird_song", seconds=1, rng=rng))
    taken = []

    def endless():
        while True:
            taken.append(path)
            yield path

    outcomes = predictor_of(tiny_model.best, batch_size=2, n_workers=2).predict_files(endless())
    for _ in range(3):
        assert next(outcomes).error is None
    outcomes.close()
    assert len(taken) < 3 + 2 + 4  # finished, being read, and waiting for their batch


def test_prediction_opens_no_connection(recording, tiny_model, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    assert predictor_of(tiny_model.best).predict_single(recording)["n_segments"] == 3
