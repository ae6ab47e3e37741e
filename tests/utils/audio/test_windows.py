import tracemalloc

import numpy as np
import pytest

from models.audio_frontend import segment_starts
from tests.utils.audio.sounds import count_up, write
from utils.audio import recordings as audio_io
from utils.audio.recordings import RecordingReader

FEW_BYTES = 1 << 20  # a window, some blocks of 4096 samples and Python's own: a fourteenth of the hour that is read


def cut(path, **settings):
    with RecordingReader(path, sample_rate=1000) as reader:
        return list(reader.windows(**settings))


@pytest.mark.parametrize("block_values", [1, 4, 7, 10, 1000])
def test_windows_stand_where_segment_starts_says(tmp_path, monkeypatch, block_values):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", block_values)
    for n_samples in (1, 9, 10, 11, 20, 25, 31):
        path = count_up(tmp_path / f"{n_samples}.wav", n_samples)
        for hop_samples, least_new_samples in ((1, 1), (3, 1), (3, 2), (5, 4), (10, 1), (10, 3), (3, 10)):
            settings = {"segment_samples": 10, "hop_samples": hop_samples, "least_new_samples": least_new_samples}
            windows = cut(path, **settings)
            assert [start for _, start, _ in windows] == segment_starts(n_samples, **settings), (n_samples, settings)
            for part, start, samples in windows:
                assert part == 0
                assert samples.tolist() == list(range(start, min(start + 10, n_samples))), (n_samples, settings)


@pytest.mark.parametrize("block_values", [1, 7, 1000])
def test_many_overlapping_parts_are_cut_at_once(tmp_path, monkeypatch, rng, block_values):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", block_values)
    path = count_up(tmp_path / "clip.wav", 200)
    for _ in range(5):
        firsts = rng.integers(0, 230, size=25)
        parts = [(int(first), int(first + length)) for first, length in zip(firsts, rng.integers(1, 80, size=25))]
        parts += [(0, None), (int(firsts[0]), None), (30, 30)]
        settings = {"segment_samples": 10, "hop_samples": int(rng.integers(1, 11)),
                    "least_new_samples": int(rng.integers(1, 6))}
        found = [(part, start, samples.tolist()) for part, start, samples in cut(path, parts=parts, **settings)]
        expected = []
        for part, (first, end) in enumerate(parts):
            high = 200 if end is None else min(end, 200)
            starts = segment_starts(high - first, **settings) if first < high else []
            expected += [(part, first + start, list(range(first + start, min(first + start + 10, high))))
                         for start in starts]
        assert sorted(found, key=lambda window: window[0]) == expected, (parts, settings)


@pytest.mark.parametrize(("n_samples", "expected"), [(20, [0, 10]), (22, [0, 10]), (23, [0, 10, 13])])
def test_a_last_window_that_adds_too_little_is_left_out(tmp_path, n_samples, expected):
    windows = cut(count_up(tmp_path / "clip.wav", n_samples), segment_samples=10, hop_samples=10, least_new_samples=3)
    assert [start for _, start, _ in windows] == expected


def test_windows_on_the_grid_stay_however_little_they_add(tmp_path):
    path = count_up(tmp_path / "clip.wav", 3000)
    windows = cut(path, segment_samples=1000, hop_samples=50, least_new_samples=100)
    assert [start for _, start, _ in windows] == list(range(0, 2001, 50))
    assert len(windows) == 41


def test_a_part_after_the_end_has_no_windows(tmp_path):
    path = count_up(tmp_path / "clip.wav", 40)
    assert cut(path, segment_samples=10, hop_samples=10, least_new_samples=1, parts=[(40, None), (50, 60)]) == []


def test_windows_are_the_callers_to_change(tmp_path):
    path = count_up(tmp_path / "clip.wav", 40)
    with RecordingReader(path, sample_rate=1000) as reader:
        firsts = []
        for _, _, samples in reader.windows(segment_samples=10, hop_samples=5, least_new_samples=1):
            firsts.append(samples[0])
            samples[:] = -1
    assert firsts == [0, 5, 10, 15, 20, 25, 30]


def test_an_hour_beside_a_second_costs_little(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_io, "_BLOCK_VALUES", 4096)
    path = write(tmp_path / "hour.wav", np.zeros(3_600_000, dtype=np.float32), sample_rate=1000)
    in_windows = joined = 0

    def concatenate(pieces, original=np.concatenate):
        nonlocal joined
        joined += sum(map(len, pieces))
        return original(pieces)

    monkeypatch.setattr(np, "concatenate", concatenate)
    with RecordingReader(path, sample_rate=1000) as reader:
        tracemalloc.start()
        for _, _, samples in reader.windows(segment_samples=8000, hop_samples=8000, least_new_samples=100,
                                            parts=[(0, None), (5000, 6000), (6000, 3_599_000)]):
            in_windows += len(samples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert reader.duration_seconds == 3600.0
    assert in_windows >= 2 * 3_590_000
    assert joined <= in_windows  # a sample is copied once for each window that holds it
    assert peak < FEW_BYTES
