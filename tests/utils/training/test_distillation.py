import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from models.audio_frontend import LogMelFrontend
from models.calibration import Calibration
from models.classes import ClassList
from models.efficientnet import build_model, classifier_of
from scripts import train_efficientnet
from tests.conftest import TINY_CLASSES, TINY_FRONTEND, TINY_RATE, tiny_config, tiny_sound, write_audio
from utils.storage.checkpoints import read_checkpoint, read_start, save_model
from utils.storage.config_files import read_config
from utils.storage.files import file_sha256
from utils.storage.locks import locked
from utils.storage.manifest import CONTENT_DIGITS
from utils.training import distillation
from utils.training.audio_pool import AudioPool, held_out
from utils.training.distillation import VariedWindows, resample
from utils.training.starter import begin

TEACHERS = Path(__file__).parents[1] / "networks"
N_RECORDINGS, N_SECONDS = 6, 2  # one is held out; ten seconds are learnt from, in two batches of four windows of one
WINDOWS_A_PASS = 8
LARGEST_START_MEGABYTES = 9
LEAST_EXPLAINED = 0.15  # of the variance: 0.31 was found; who learns nothing explains none
FILES = {"starter.pth", "distillation_last.pth", "history.csv", "metrics.json", "config.json", "audio_pool.i16",
         "audio_pool.csv", "audio_pool.json"}
DESCRIPTION = {"format_version": 1, "name": "four filters", "trained_on": "nothing", "licence": "CC0",
               "source": "make_teachers.py", "sample_rate": TINY_RATE, "window_seconds": 1.0,
               "embedding": "embedding", "tags": "tags"}
CONFIG = {"model_name": "efficientnet-b0", "batch_size": 4, "epochs": 2, "mixed_precision": False,
          "initial_weights": "none", "drop_connect_rate": 0.2,
          "frontend": {**TINY_FRONTEND.to_dict(), "segment_duration_ms": 8000}}


@pytest.fixture(scope="module", autouse=True)
def few_held_out_windows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation, "_N_HELD_OUT_WINDOWS", 8)
        yield


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """A folder of short recordings without labels."""
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(5)
    for number in range(N_RECORDINGS):
        sound = tiny_sound(TINY_CLASSES[number % 4], seconds=N_SECONDS, rng=rng)
        write_audio(folder / f"night{number % 2}" / f"{number}.wav", sound)
    return folder


def described(folder, network="tiny_waveform.onnx", **changes):
    """Put a teacher and its description into a folder."""
    folder.mkdir(exist_ok=True)
    path = Path(shutil.copy(TEACHERS / network, folder / "teacher.onnx"))
    path.with_suffix(".json").write_text(json.dumps({**DESCRIPTION, **changes}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return described(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "small.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def distil(audio, teacher, settings):
    """Return what runs the command line; flags come on top."""
    def command(model_dir, *flags, distill_dir=audio, by=teacher):
        return train_efficientnet.main(["--distill_dir", str(distill_dir), "--teacher", str(by), "--model_dir",
                                        str(model_dir), "--config", str(settings), "--device", "cpu", "--quiet",
                                        *map(str, flags)])

    return command


@pytest.fixture(scope="module")
def distilled(distil, tmp_path_factory):
    """The folder of a finished distillation; read-only."""
    model_dir = tmp_path_factory.mktemp("distilled")
    assert distil(model_dir) == 0
    return model_dir


@pytest.fixture
def finished(distilled, tmp_path):
    """A finished distillation, free to be gone on with."""
    return shutil.copytree(distilled, tmp_path / "finished")


def the_error(capsys):
    """Return the one line that says what is wrong."""
    stderr = capsys.readouterr().err
    line, = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    assert "Traceback" not in stderr
    return line


def scores_of(model_dir):
    return json.loads((model_dir / "metrics.json").read_text(encoding="utf-8"))


def contents_of(audio, files):
    """Return the content ids of the recordings that are learnt from, and of those that are held out."""
    ids = np.array([f"audio:{file_sha256(audio / path)[:CONTENT_DIGITS]}" for path in files["path"]])
    kept = held_out(files)
    return sorted(ids[~kept]), sorted(ids[kept])


# what a run leaves

def test_the_folder_holds_the_start_and_what_is_told_of_it(distilled):
    assert {path.name for path in distilled.iterdir() if not path.name.startswith(".")} == FILES
    assert (distilled / "starter.pth").stat().st_size < LARGEST_START_MEGABYTES * 1e6


def test_the_agreement_is_that_of_the_last_pass(distilled):
    history, scores = pd.read_csv(distilled / "history.csv"), scores_of(distilled)
    assert list(history.columns) == ["epoch", "loss", "embedding_r2", "tag_agreement", "learning_rate", "seconds"]
    assert history["epoch"].tolist() == [1, 2]
    assert np.isfinite(history["loss"]).all()
    assert scores["split"] == "held-out recordings" and scores["teacher"] == "four filters"
    assert scores["embedding_r2"] == pytest.approx(history["embedding_r2"].iloc[-1]) and scores["embedding_r2"] <= 1
    assert scores["tag_agreement"] == pytest.approx(history["tag_agreement"].iloc[-1])
    assert 0 <= scores["tag_agreement"] <= 1
    assert (scores["passes"], scores["windows"], scores["n_recordings"]) == (2, 2 * WINDOWS_A_PASS, N_RECORDINGS - 1)
    assert scores["hours"] == round((N_RECORDINGS - 1) * N_SECONDS / 3600, 3)


def test_the_config_that_is_written_is_the_one_that_was_used(distilled):
    config = read_config(distilled / "config.json")
    assert config.frontend == TINY_FRONTEND  # windows as long as the teacher's
    assert (config.epochs, config.batch_size, config.initial_weights) == (2, 4, "none")
    assert config.warmup_epochs == 1  # a distillation's own
    assert config.drop_connect_rate == 0.2  # given
    assert config.batch_norm_momentum is not None


def test_the_start_tells_where_it_comes_from_and_what_it_has_heard(distilled, audio, teacher):
    start = read_start(distilled / "starter.pth")
    learnt, kept = contents_of(audio, pd.read_csv(distilled / "audio_pool.csv", dtype=str))
    assert start.trained_on == "what four filters (nothing) hears in 5 recordings"
    assert (start.licence, start.model_name, start.frontend) == ("CC0", "efficientnet-b0", TINY_FRONTEND)
    assert start.metadata["heard_contents"] == learnt and len(kept) == 1
    assert start.metadata["teacher_sha256"] == file_sha256(teacher)
    assert start.metadata["embedding_r2"] == scores_of(distilled)["embedding_r2"]
    assert start.batch_norm_epsilon == 1e-5  # random weights have PyTorch's


def test_a_second_stage_tells_of_the_first(distil, distilled, tmp_path, rng):
    first = read_start(distilled / "starter.pth")
    stage, = first.metadata["stages"]
    assert {name: first.metadata[name] for name in stage} == stage
    assert (stage["passes"], stage["window_seconds"]) == (2, 1.0)
    for number in range(2):
        write_audio(tmp_path / "audio" / f"{number}.wav", tiny_sound("bird_song", seconds=4, rng=rng))
    model_dir = tmp_path / "second"
    assert distil(model_dir, "--initial_weights", distilled / "starter.pth", "--epochs", 1,
                  distill_dir=tmp_path / "audio") == 0
    second = read_start(model_dir / "starter.pth")
    assert [told["passes"] for told in second.metadata["stages"]] == [2, 1]
    assert second.metadata["stages"][0] == stage
    assert set(first.metadata["heard_contents"]) < set(second.metadata["heard_contents"])
    assert second.trained_on == "what four filters (nothing) hears in 6 recordings"


def test_the_start_is_the_student_in_half_precision(distilled):
    state = read_checkpoint(distilled / "distillation_last.pth")["student"]
    for name, value in read_start(distilled / "starter.pth").weights.items():
        own = state[f"network.backbone.{name}"]
        assert torch.equal(value, own.half().float() if own.is_floating_point() else own)


@pytest.mark.parametrize("model_name", ["efficientnet-b0", "efficientnet-b1"])
def test_networks_begin_with_it_without_a_warning(distilled, model_name, caplog):
    config = tiny_config(model_name=model_name, frontend=TINY_FRONTEND,
                         initial_weights=str(distilled / "starter.pth"))
    with caplog.at_level(logging.WARNING):
        model, _ = begin(config, 5)
    assert caplog.records == []
    weights = read_start(distilled / "starter.pth").weights
    assert torch.equal(model.backbone._conv_stem.weight, weights["_conv_stem.weight"])
    assert classifier_of(model).out_features == 5


def test_training_begins_with_it(distilled, tiny_dataset, tmp_path, capsys):
    code = train_efficientnet.main([
        "--train_csv", str(tiny_dataset.output_dir / "train.csv"), "--val_csv",
        str(tiny_dataset.output_dir / "val.csv"), "--model_dir", str(tmp_path), "--config", "efficientnet_b0_fast",
        "--initial_weights", str(distilled / "starter.pth"), "--epochs", "1", "--device", "cpu",
        "--no_mixed_precision"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert f"efficientnet-b0 begins with {distilled / 'starter.pth'} (what four filters" in said.err
    assert "another front end" not in said.err


# going on

@pytest.fixture(scope="module")
def resumed(distil, tmp_path_factory):
    """A distillation that was interrupted in its second pass, and gone on with; what was said meanwhile."""
    model_dir, learn = tmp_path_factory.mktemp("resumed"), distillation._Run.learn_once

    def learn_but_once(run):
        if run.history:
            raise KeyboardInterrupt
        learn(run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distillation._Run, "learn_once", learn_but_once)
        interrupted = distil(model_dir)
    rows = pd.read_csv(model_dir / "history.csv")
    refused = distil(model_dir)
    assert (interrupted, refused, len(rows)) == (130, 2, 1)
    torch.manual_seed(12345)  # another process, another state of the global generator
    assert distil(model_dir, "--resume") == 0
    return model_dir


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(distilled, resumed):
    columns = ["epoch", "loss", "embedding_r2", "tag_agreement", "learning_rate"]
    pd.testing.assert_frame_equal(pd.read_csv(resumed / "history.csv")[columns],
                                  pd.read_csv(distilled / "history.csv")[columns], check_exact=True)
    one, other = (read_checkpoint(folder / "distillation_last.pth") for folder in (distilled, resumed))
    assert list(one["student"]) == list(other["student"])
    assert [name for name, value in one["student"].items() if not torch.equal(value, other["student"][name])] == []
    starts = [read_start(folder / "starter.pth") for folder in (distilled, resumed)]
    assert all(torch.equal(value, starts[1].weights[name]) for name, value in starts[0].weights.items())
    assert starts[0].metadata == starts[1].metadata
    assert scores_of(distilled) == scores_of(resumed)


def test_a_run_is_not_begun_over_another(distil, finished, capsys):
    before = (finished / "starter.pth").read_bytes()
    assert distil(finished) == 2
    assert "holds a run (distillation_last.pth): pass --resume to continue it" in the_error(capsys)
    assert (finished / "starter.pth").read_bytes() == before


def test_only_the_number_of_passes_may_change(distil, finished, capsys):
    assert distil(finished, "--resume", "--learning_rate", "0.01") == 2
    assert "was made with another learning_rate: a resumed distillation keeps teacher" in the_error(capsys)
    assert distil(finished, "--resume", "--epochs", 3) == 0
    history = pd.read_csv(finished / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3] and scores_of(finished)["passes"] == 3


def test_a_finished_run_has_nothing_to_go_on_with(distil, finished, capsys):
    before = pd.read_csv(finished / "history.csv")
    assert distil(finished, "--resume") == 0
    pd.testing.assert_frame_equal(pd.read_csv(finished / "history.csv"), before, check_exact=True)
    assert f"start: {finished / 'starter.pth'} (use it with --initial_weights)" in capsys.readouterr().out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network of ours that hears the same windows."""
    config = tiny_config(frontend=TINY_FRONTEND, batch_norm_momentum=1.0)
    model = build_model(config, len(TINY_CLASSES))
    with torch.no_grad():
        model(torch.normal(-50.0, 15.0, (4, 1, 32, 32), generator=torch.Generator().manual_seed(1)))
    path = tmp_path_factory.mktemp("checkpoint") / "owls.pth"
    save_model(path, model.state_dict(), config=config, classes=ClassList(TINY_CLASSES), calibration=Calibration(),
               metadata={})
    return path


def test_another_teacher_is_refused_on_the_way(distil, finished, checkpoint, capsys):
    assert distil(finished, "--resume", by=checkpoint) == 2
    assert "distillation_last.pth was made with another teacher" in the_error(capsys)


@pytest.mark.parametrize("change", [{"tags": "embedding"}, {"tag_activation": "softmax"}])
def test_a_teacher_that_is_described_otherwise_is_another_teacher(distil, finished, tmp_path, capsys, change):
    assert distil(finished, "--resume", by=described(tmp_path / "other", **change)) == 2
    assert "distillation_last.pth was made with another teacher" in the_error(capsys)


def test_other_audio_is_refused_on_the_way(distil, finished, audio, tmp_path, capsys):
    more = shutil.copytree(audio, tmp_path / "more")
    write_audio(more / "new.wav", tiny_sound("insect_sound", seconds=1.0, rng=np.random.default_rng(0)))
    assert distil(finished, "--resume", distill_dir=more) == 2
    assert "holds other recordings than those that were decoded" in the_error(capsys)


def test_audio_that_has_changed_under_its_name_is_refused_on_the_way(distil, finished, audio, tmp_path, capsys):
    """The decoded audio is gone, and what is decoded anew is another."""
    changed = shutil.copytree(audio, tmp_path / "changed")
    write_audio(changed / "night0" / "0.wav", tiny_sound("insect_sound", seconds=2.0, rng=np.random.default_rng(0)))
    (finished / "audio_pool.csv").unlink()
    assert distil(finished, "--resume", distill_dir=changed) == 2
    assert "was made with another audio" in the_error(capsys)


def test_there_must_be_something_to_go_on_with(distil, tmp_path, capsys):
    assert distil(tmp_path, "--resume") == 2
    assert "holds no distillation that has finished a pass: leave --resume out" in the_error(capsys)
    assert not (tmp_path / "audio_pool.csv").exists()  # said before the audio is decoded


def test_a_state_that_is_no_distillation_is_refused(distil, finished, checkpoint, capsys):
    shutil.copy(checkpoint, finished / "distillation_last.pth")
    assert distil(finished, "--resume") == 2
    assert "holds no distillation of this version" in the_error(capsys)


def test_a_folder_has_one_writer(distil, tmp_path, capsys):
    with locked(tmp_path):
        assert distil(tmp_path) == 2
    assert "is being written by" in the_error(capsys)


# teachers

def test_a_checkpoint_can_be_the_teacher(distil, checkpoint, tmp_path):
    assert distil(tmp_path, "--epochs", 1, by=checkpoint) == 0
    start, scores = read_start(tmp_path / "starter.pth"), scores_of(tmp_path)
    assert start.trained_on.startswith("what efficientnet-b0 (the classes bird_song, mammal_call")
    assert {"embedding_r2", "tag_agreement"} <= set(scores)


@pytest.mark.parametrize(("missing", "score"), [("tags", "embedding_r2"), ("embedding", "tag_agreement")])
@pytest.mark.filterwarnings("error::UserWarning")
def test_a_teacher_may_have_one_output(distil, tmp_path, capsys, missing, score):
    by = described(tmp_path / "teacher", **{missing: None})
    assert distil(tmp_path / "model", "--epochs", 1, by=by) == 0
    assert set(scores_of(tmp_path / "model")) & {"embedding_r2", "tag_agreement"} == {score}
    assert f"held-out recordings: {score} " in capsys.readouterr().out


def test_a_student_learns_what_its_teacher_hears(distil, tmp_path, rng, monkeypatch):
    """A minute of sounds of every kind, sixty steps; the teacher tells the mean of each mel band."""
    monkeypatch.setattr(distillation, "_N_HELD_OUT_WINDOWS", 32)
    for number in range(10):
        sounds = [tiny_sound(name, seconds=1.5, rng=rng) for name in TINY_CLASSES]
        write_audio(tmp_path / "audio" / f"{number}.wav", np.concatenate(sounds))
    by = described(tmp_path / "teacher", "tiny_log_mel.onnx", input="log_mel", input_name="log_mel", tags=None,
                   frontend={"n_fft": 512, "hop_length": 256, "n_mels": 16, "f_max": 4000.0})
    assert distil(tmp_path / "model", "--epochs", 20, "--batch_size", 16, "--learning_rate", "1e-3",
                  "--initial_weights", "imagenet", by=by, distill_dir=tmp_path / "audio") == 0
    explained = pd.read_csv(tmp_path / "model" / "history.csv")["embedding_r2"]
    assert explained.iloc[-1] > LEAST_EXPLAINED


# what is refused before anything is done

@pytest.mark.parametrize(("flags", "message"), [
    (["--cross_validation"], "--distill_dir goes with none of --train_csv, --val_csv, --cross_validation"),
    (["--resume_from", "a_last.pth"], "--distill_dir goes with none of"),
    (["--train_csv", "train.csv"], "--distill_dir goes with none of --train_csv"),
    (["--resume", "--resume_from", "a_last.pth"], "--resume and --resume_from exclude each other"),
    (["--layer_decay", "0.5"], "layer_decay would do nothing in a distillation: leave out what gives it"),
    (["--ema_decay", "0.9", "--freeze_batch_norm"], "freeze_batch_norm, ema_decay would do nothing"),
    (["--accumulation_steps", "2"], "accumulation_steps would do nothing"),
    (["--l2_to_start", "0.1"], "l2_to_start would do nothing"),
])
def test_flags_that_do_not_go_together(distil, tmp_path, capsys, flags, message):
    assert distil(tmp_path, *flags) == 2
    assert message in the_error(capsys)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_do_not_distil(distil, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert distil(tmp_path) == 2
    assert "and torchrun: leave them out" in the_error(capsys)


@pytest.mark.parametrize(("flags", "message"), [
    (["--distill_dir", "."], "--distill_dir and --teacher belong together: give both or neither"),
    (["--teacher", "teacher.onnx"], "--distill_dir and --teacher belong together: give both or neither"),
    (["--distill_dir", "nowhere", "--teacher", "teacher.onnx"], "--distill_dir nowhere is not a folder"),
    ([], "--train_csv and --val_csv are needed: give the manifests that preprocess_enhanced.py wrote, or"),
    (["--train_csv", "train.csv"], "--train_csv and --val_csv are needed"),
])
def test_a_run_needs_its_material(tmp_path, capsys, flags, message):
    assert train_efficientnet.main(["--model_dir", str(tmp_path), *flags]) == 2
    assert message in the_error(capsys)


def test_minutes_are_above_zero(distil, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        distil(tmp_path, "--distill_minutes", "0")
    assert "--distill_minutes" in capsys.readouterr().err


def test_one_recording_is_too_few(distil, tmp_path, capsys):
    write_audio(tmp_path / "audio" / "a.wav", tiny_sound("bird_song", seconds=2.0, rng=np.random.default_rng(0)))
    assert distil(tmp_path / "model", distill_dir=tmp_path / "audio") == 2
    assert "needs two recordings that can be used, one of them for the score, got 1" in the_error(capsys)


def test_a_folder_without_recordings_is_told(distil, tmp_path, capsys):
    (tmp_path / "audio").mkdir()
    assert distil(tmp_path / "model", distill_dir=tmp_path / "audio") == 2
    assert "holds nothing to distil from: no recording was found" in the_error(capsys)


def test_a_student_that_diverges_leaves_the_last_good_pass(distil, finished, monkeypatch, capsys):
    before = {name: (finished / name).read_bytes() for name in ("starter.pth", "distillation_last.pth")}
    learn = distillation._Run.learn_once

    def diverge(run):
        learn(run)
        with torch.no_grad():
            run.student.network.backbone._conv_head.weight.fill_(float("nan"))

    monkeypatch.setattr(distillation._Run, "learn_once", diverge)
    assert distil(finished, "--resume", "--epochs", 3) == 2
    assert "_conv_head.weight is not finite in half precision: did training diverge?" in the_error(capsys)
    assert {name: (finished / name).read_bytes() for name in before} == before


# windows

def noise_pool(*seconds, rate=TINY_RATE):
    rng, lengths = np.random.default_rng(4), np.array([round(value * rate) for value in seconds])
    samples = rng.integers(-20000, 20000, lengths.sum()).astype(np.int16)
    return AudioPool(samples, np.cumsum(lengths) - lengths, lengths, rate)


def windows_of(pool, *, key=(42, 1), n_windows=12):
    return VariedWindows(pool, n_windows=n_windows, frontend=TINY_FRONTEND, key=key)


def test_teacher_and_student_hear_the_same_window():
    for waveform, log_mel in map(windows_of(noise_pool(3, 0.4, 2)).__getitem__, range(12)):
        assert waveform.shape == (TINY_RATE,) and waveform.dtype == np.float32
        assert log_mel.shape == (TINY_FRONTEND.n_mels, TINY_FRONTEND.n_frames)
        np.testing.assert_array_equal(log_mel, LogMelFrontend(TINY_FRONTEND).log_mel(waveform))


def test_a_window_depends_on_seed_pass_and_number_alone():
    pool = noise_pool(3, 0.4, 2)
    forwards = [windows_of(pool)[number] for number in range(6)]
    again = windows_of(noise_pool(3, 0.4, 2), n_windows=6)
    backwards = [again[number] for number in reversed(range(6))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
    for key in ((42, 2), (43, 1)):
        others = windows_of(pool, key=key)
        assert not any(np.array_equal(others[number][0], forwards[number][0]) for number in range(6))
    assert len({forward[0].tobytes() for forward in forwards}) == 6


def test_windows_are_the_same_from_processes_of_their_own():
    windows = windows_of(noise_pool(3, 0.4, 2), n_windows=4)
    here, there = (torch.cat([batch[0] for batch in DataLoader(windows, batch_size=2, num_workers=n_workers)])
                   for n_workers in (0, 1))
    assert torch.equal(here, there)


def test_the_student_hears_at_its_own_rate():
    waveform, log_mel = windows_of(noise_pool(3, rate=2 * TINY_RATE))[0]
    assert waveform.shape == (2 * TINY_RATE,)
    assert log_mel.shape == (TINY_FRONTEND.n_mels, TINY_FRONTEND.n_frames)


def test_resampling_keeps_the_pitch():
    waveform = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    halved = resample(waveform, from_rate=16000, to_rate=8000)
    assert len(halved) == 8000 and np.argmax(np.abs(np.fft.rfft(halved))) == 1000
    assert resample(waveform, from_rate=16000, to_rate=16000) is waveform
