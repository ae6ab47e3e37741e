import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile

from models.errors import ConfigError, ManifestError
from tests.conftest import TINY_RATE, write_audio
from utils.running.parallel import LocalProcesses, Lost, ThisProcess
from utils.storage.files import file_sha256
from utils.training import audio_pool
from utils.training.audio_pool import AudioPool, gather, held_out

HALF_A_STEP = 0.5 / 32767  # the largest error of rounding to 16 bits...
FLOAT32 = 1e-7  # ...and of a float32 near 1
SHARE = 0.05  # of 4000 draws: six standard errors of any share
N_DRAWS = 4000


def noise(seconds, *, seed=1):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, round(seconds * TINY_RATE)).astype(np.float32)


def write_float(path, samples):
    """Write samples that 16 bits have not touched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, TINY_RATE, subtype="FLOAT")
    return path


def pool_of(folder, model_dir, *, executor=None, minutes_each=10.0, sample_rate=TINY_RATE):
    return gather(folder, model_dir=model_dir, sample_rate=sample_rate, minutes_each=minutes_each,
                  executor=executor or ThisProcess())


def recording(pool, number):
    """Return one recording of a pool whole, as float32."""
    return pool.part(np.array([number])).by_recording(n_samples=10 ** 9, rng=np.random.default_rng(0))


def of_lengths(*lengths):
    """Return a pool whose samples tell in which recording, and where in it, they lie."""
    samples = np.concatenate([1000 * number + np.arange(length) for number, length in enumerate(lengths)])
    ends = np.cumsum(lengths)
    return AudioPool(samples.astype(np.int16), ends - lengths, np.array(lengths), TINY_RATE)


def numbers(piece):
    return np.rint(piece * 32767).astype(int)


@pytest.fixture
def folder(tmp_path):
    """Two good recordings, one below the other's folder."""
    write_float(tmp_path / "audio" / "b.wav", noise(1.0, seed=1))
    write_float(tmp_path / "audio" / "deep" / "a.wav", noise(2.0, seed=2))
    return tmp_path / "audio"


# decoding

def test_every_recording_is_there_as_it_sounds_but_for_sixteen_bits(folder, tmp_path):
    pool, files = pool_of(folder, tmp_path / "model")
    assert files["path"].tolist() == ["b.wav", "deep/a.wav"] and files["status"].tolist() == ["ok", "ok"]
    assert pool.sample_rate == TINY_RATE and pool.seconds == 3.0
    for number, samples in enumerate((noise(1.0, seed=1), noise(2.0, seed=2))):
        found = recording(pool, number)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, samples, rtol=0, atol=HALF_A_STEP + FLOAT32)
    assert files["sha256"].tolist() == [file_sha256(folder / path) for path in files["path"]]
    assert files["duration_seconds"].tolist() == ["1.0", "2.0"]


def test_samples_beyond_full_scale_are_clipped(tmp_path):
    write_float(tmp_path / "audio" / "loud.wav", 3 * noise(1.0))
    pool, _ = pool_of(tmp_path / "audio", tmp_path / "model")
    np.testing.assert_allclose(recording(pool, 0), np.clip(3 * noise(1.0), -1, 1), rtol=0, atol=HALF_A_STEP + FLOAT32)


def test_recordings_are_resampled_to_the_rate_of_the_teacher(folder, tmp_path):
    pool, files = pool_of(folder, tmp_path / "model", sample_rate=2 * TINY_RATE)
    assert pool.lengths.tolist() == [2 * TINY_RATE, 4 * TINY_RATE] and pool.seconds == 3.0
    assert files["duration_seconds"].tolist() == ["1.0", "2.0"]


def test_the_samples_are_mapped_not_loaded(folder, tmp_path):
    pool, _ = pool_of(folder, tmp_path / "model")
    assert isinstance(pool.samples, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        pool.samples[0] = 1


def test_what_cannot_be_used_is_a_row_with_a_reason(folder, tmp_path, caplog):
    (folder / "broken.wav").write_bytes(b"RIFF and nothing that follows from it")
    (folder / "empty.wav").write_bytes(b"")
    shutil.copy(folder / "b.wav", folder / "copy.wav")
    write_float(folder / "nothing.wav", np.zeros(TINY_RATE, dtype=np.float32))
    write_float(folder / "hardly.wav", noise(1.0) * 1e-6)  # below what 16 bits can hold
    with caplog.at_level(logging.WARNING):
        pool, files = pool_of(folder, tmp_path / "model")
    status = dict(zip(files["path"], files["status"], strict=True))
    assert status == {"b.wav": "ok", "broken.wav": "corrupt", "copy.wav": "duplicate", "deep/a.wav": "ok",
                      "empty.wav": "empty", "hardly.wav": "silent", "nothing.wav": "silent"}
    reasons = dict(zip(files["path"], files["reason"], strict=True))
    assert "broken.wav " in reasons["broken.wav"] and "libsndfile" in reasons["broken.wav"]  # and ffmpeg, where it is
    assert "has 0 bytes" in reasons["empty.wav"]
    assert reasons["copy.wav"] == "another recording has the same bytes"
    assert "holds digital silence" in reasons["nothing.wav"] and reasons["b.wav"] == ""
    assert len(pool.lengths) == 2 and pool.seconds == 3.0
    assert "empty: " in caplog.text and "empty.wav has 0 bytes" in caplog.text


def test_a_recording_that_breaks_off_is_used_as_far_as_it_goes(folder, tmp_path):
    path = folder / "cut.flac"
    soundfile.write(path, noise(8.0, seed=5), TINY_RATE)
    path.write_bytes(path.read_bytes()[:-20_000])
    _, files = pool_of(folder, tmp_path / "model")
    row = files.set_index("path").loc["cut.flac"]
    assert row["status"] == "ok" and "breaks off after" in row["reason"]
    assert 0 < int(row["n_samples"]) < 8 * TINY_RATE


@pytest.mark.parametrize("minutes_each", [1.0, 0.5, 0.01])
def test_of_a_long_recording_random_stretches_are_kept(tmp_path, minutes_each):
    """Ninety seconds that tell the time: each sample is the number of its ten seconds."""
    times = np.repeat(np.arange(1, 10), 10 * TINY_RATE) / 32767
    write_float(tmp_path / "audio" / "night.wav", times.astype(np.float32))
    pool, files = pool_of(tmp_path / "audio", tmp_path / "model", minutes_each=minutes_each)
    n_kept = max(1, round(6 * minutes_each))
    assert pool.lengths.tolist() == [n_kept * 10 * TINY_RATE]
    assert files["duration_seconds"].tolist() == ["90.0"]
    kept = numbers(recording(pool, 0)).reshape(n_kept, -1)
    assert (kept == kept[:, :1]).all()  # whole stretches
    assert len(set(kept[:, 0])) == n_kept  # each once


def test_every_stretch_of_a_long_recording_is_as_likely_to_be_kept(tmp_path):
    """Also its last one, which is shorter: forty recordings of 45 seconds, one stretch of each."""
    for number in range(40):
        # the last sample tells recordings apart, so that each draws stretches of its own
        times = np.append(np.repeat(np.arange(1, 6), 9 * TINY_RATE)[:-1], 100 + number) / 32767
        # 16 bits: a file of floats holds the time it was written at, and the draw depends on a file's bytes
        write_audio(tmp_path / "audio" / f"{number}.wav", times)
    pool, _ = pool_of(tmp_path / "audio", tmp_path / "model", minutes_each=0.1)
    assert set(pool.lengths.tolist()) == {10 * TINY_RATE, 5 * TINY_RATE}
    starts = np.bincount([numbers(recording(pool, number))[0] for number in range(40)], minlength=6)
    assert 2 <= starts[1:].min() and starts[1:].max() <= 16  # of 8 expected, with a deviation of 2.5


def test_a_long_recording_keeps_the_same_stretches_each_time(tmp_path):
    write_float(tmp_path / "audio" / "night.wav", noise(60.0))
    first, _ = pool_of(tmp_path / "audio", tmp_path / "one", minutes_each=0.3)
    again, _ = pool_of(tmp_path / "audio", tmp_path / "two", minutes_each=0.3)
    np.testing.assert_array_equal(first.samples, again.samples)


def test_nothing_usable_is_told_and_leaves_the_folder_free_for_another_try(tmp_path):
    (tmp_path / "audio").mkdir()
    with pytest.raises(ManifestError, match="audio holds nothing to distil from: no recording was found"):
        pool_of(tmp_path / "audio", tmp_path / "model")
    (tmp_path / "audio" / "empty.wav").write_bytes(b"")
    with pytest.raises(ManifestError, match="nothing to distil from: .*empty.wav has 0 bytes"):
        pool_of(tmp_path / "audio", tmp_path / "model")
    write_float(tmp_path / "audio" / "good.wav", noise(1.0))
    pool, files = pool_of(tmp_path / "audio", tmp_path / "model")
    assert pool.seconds == 1.0 and files["status"].tolist() == ["empty", "ok"]


def test_recordings_are_decoded_in_processes_of_their_own_too(folder, tmp_path):
    here, files_here = pool_of(folder, tmp_path / "here")
    there, files_there = pool_of(folder, tmp_path / "there", executor=LocalProcesses(1))
    np.testing.assert_array_equal(here.samples, there.samples)
    pd.testing.assert_frame_equal(files_here, files_there)


class Crashing:
    """Loses the first item, as a process that dies does."""

    def stream(self, work, items, *, in_order):
        first, *others = items
        yield first, Lost(False, "the process that read it died (exit code -11)")
        yield from ThisProcess().stream(work, others, in_order=in_order)


def test_a_recording_whose_process_dies_costs_that_recording(folder, tmp_path):
    _, files = pool_of(folder, tmp_path / "model", executor=Crashing())
    assert files["status"].tolist() == ["corrupt", "ok"]
    assert "b.wav could not be read: the process that read it died" in files["reason"][0]


# what is decoded already

class Refusing:
    """Is never asked for anything."""

    def stream(self, work, items, *, in_order):
        raise AssertionError("decoded a second time")


def test_what_is_decoded_is_found_again(folder, tmp_path):
    first, files = pool_of(folder, tmp_path / "model")
    again, files_again = pool_of(folder, tmp_path / "model", executor=Refusing())
    np.testing.assert_array_equal(first.samples, again.samples)
    np.testing.assert_array_equal(first.firsts, again.firsts)
    np.testing.assert_array_equal(first.lengths, again.lengths)
    pd.testing.assert_frame_equal(files, files_again)


def test_the_folder_may_stand_elsewhere_meanwhile(folder, tmp_path):
    pool_of(folder, tmp_path / "model")
    moved = shutil.move(folder, tmp_path / "moved")
    assert pool_of(moved, tmp_path / "model", executor=Refusing())[0].seconds == 3.0


@pytest.mark.parametrize(("changes", "message"), [
    ({"sample_rate": 16000}, "model holds audio that was decoded with sample_rate 8000, not 16000: give the same"),
    ({"minutes_each": 3.0}, r"decoded with minutes_each 10\.0, not 3\.0: give the same, or choose another --model_dir"),
])
def test_audio_that_was_decoded_otherwise_is_not_taken(folder, tmp_path, changes, message):
    pool_of(folder, tmp_path / "model")
    with pytest.raises(ConfigError, match=message):
        pool_of(folder, tmp_path / "model", **changes)


def test_another_folder_is_not_passed_over(folder, tmp_path):
    pool_of(folder, tmp_path / "model")
    write_float(folder / "c.wav", noise(1.0, seed=3))
    with pytest.raises(ConfigError, match="audio holds other recordings than those that were decoded into .*model"):
        pool_of(folder, tmp_path / "model")


def test_decoding_that_was_stopped_leaves_no_half_of_a_pool(folder, tmp_path, monkeypatch):
    def stop(path, table):
        raise KeyboardInterrupt("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(audio_pool, "write_table", stop)
        with pytest.raises(KeyboardInterrupt, match="stopped"):
            pool_of(folder, tmp_path / "model")
    assert pool_of(folder, tmp_path / "model")[0].seconds == 3.0


# drawing

def test_by_time_every_second_is_as_likely_as_any_other(rng):
    pool = of_lengths(100, 300, 600)
    drawn = [numbers(pool.by_time(n_samples=1, rng=rng))[0] for _ in range(N_DRAWS)]
    of_recording = np.bincount([number // 1000 for number in drawn], minlength=3) / N_DRAWS
    assert of_recording == pytest.approx([0.1, 0.3, 0.6], abs=SHARE)
    assert min(drawn) < 10 and max(drawn) > 2590  # its ends too
    assert {numbers(of_lengths(1, 1).by_time(n_samples=1, rng=rng))[0] for _ in range(50)} == {0, 1000}


def test_by_recording_every_recording_is_as_likely_as_any_other(rng):
    pool = of_lengths(1, 300, 700)
    drawn = [numbers(pool.by_recording(n_samples=1, rng=rng))[0] // 1000 for _ in range(N_DRAWS)]
    assert np.bincount(drawn) / N_DRAWS == pytest.approx([1 / 3] * 3, abs=SHARE)


@pytest.mark.parametrize("draw", ["by_time", "by_recording"])
def test_a_piece_lies_within_one_recording(rng, draw):
    pool, firsts = of_lengths(5, 40, 60), set()
    for _ in range(500):
        piece = numbers(getattr(pool, draw)(n_samples=50, rng=rng))
        np.testing.assert_array_equal(piece, piece[0] + np.arange(len(piece)))
        assert len(piece) == {0: 5, 1: 40, 2: 50}[piece[0] // 1000]
        firsts.add(int(piece[0]))
    assert firsts == {0, 1000, *range(2000, 2011)}  # a longer recording at every place


def test_a_part_of_a_pool_knows_its_own_recordings_only(rng):
    part = of_lengths(100, 300, 600).part(np.array([0, 2]))
    assert part.seconds == 700 / TINY_RATE
    drawn = [numbers(part.by_time(n_samples=10, rng=rng))[0] // 1000 for _ in range(N_DRAWS)]
    assert np.bincount(drawn, minlength=3) / N_DRAWS == pytest.approx([1 / 7, 0, 6 / 7], abs=SHARE)


def test_pieces_are_in_minus_one_to_one(rng):
    pool = AudioPool(np.array([-32767, 32767, 0], dtype=np.int16), np.array([0]), np.array([3]), TINY_RATE)
    piece = pool.by_recording(n_samples=3, rng=rng)
    assert piece.tolist() == [-1.0, 1.0, 0.0] and piece.dtype == np.float32


# what is kept for the score

def table(contents, *, status="ok"):
    return pd.DataFrame({"sha256": contents, "status": status})


def contents_of(files):
    return set(files.loc[files["status"] == "ok", "sha256"][held_out(files)])


@pytest.mark.parametrize(("n_recordings", "n_kept"), [(0, 0), (1, 0), (2, 1), (16, 1), (50, 2), (100, 3), (1000, 30)])
def test_three_in_a_hundred_are_held_out_but_at_least_one_and_never_all(n_recordings, n_kept):
    files = table([f"{number:064x}" for number in range(n_recordings)])
    assert held_out(files).dtype == bool and held_out(files).shape == (n_recordings,)
    assert held_out(files).sum() == n_kept


def test_what_is_held_out_depends_on_content_not_on_names_or_order(rng):
    contents = [f"{number:064x}" for number in range(200)]
    kept = contents_of(table(contents))
    assert contents_of(table(list(rng.permutation(contents)))) == kept


def test_recordings_that_cannot_be_used_do_not_count():
    contents = [f"{number:064x}" for number in range(200)]
    files = pd.concat([table(contents), table(["", "ab"], status="corrupt")], ignore_index=True)
    assert len(held_out(files)) == 200
    assert contents_of(files) == contents_of(table(contents))


def test_a_few_more_recordings_take_the_place_of_few_that_were_held_out():
    """Each content has its own place in the order, so what is added pushes out at most as many as it brings."""
    before = contents_of(table([f"{number:064x}" for number in range(1000)]))
    after = contents_of(table([f"{number:064x}" for number in range(1010)]))
    assert len(before) == len(after) == 30
    assert 0 <= len(before - after) <= 3  # of ten that were added 0.3 are expected among the first thirty


def test_a_real_folder_is_split_by_what_it_holds(folder, tmp_path):
    write_audio(folder / "c.wav", noise(1.0, seed=3))
    _, files = pool_of(folder, tmp_path / "model")
    assert held_out(files).sum() == 1
