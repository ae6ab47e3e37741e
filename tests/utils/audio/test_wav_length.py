import numpy as np
import pytest
import soundfile

from utils.audio import wav_length
from utils.audio.recordings import RecordingReader, load_audio
from utils.audio.wav_length import Behind, find_behind

RATE = 8000
BEGINS = 44  # of the samples in a plain WAV


@pytest.fixture
def samples(rng):
    return rng.uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)


def write(path, samples, **options):
    soundfile.write(path, samples, RATE, **{"subtype": "PCM_16", **options})
    return path


def tell_length(path, n_bytes):
    content = bytearray(path.read_bytes())
    content[BEGINS - 4:BEGINS] = n_bytes.to_bytes(4, "little")
    path.write_bytes(content)
    return path


def add_chunk(path, name, content):
    with open(path, "ab") as stream:
        stream.write(name + len(content).to_bytes(4, "little") + content)


@pytest.mark.parametrize("options", [{}, {"format": "RF64"}, {"format": "FLAC"}, {"format": "AIFF"}])
def test_nothing_lies_behind_a_whole_file(tmp_path, samples, options):
    assert find_behind(write(tmp_path / "a.wav", samples, **options)).n_bytes == 0


def test_chunks_after_the_samples_are_not_behind(tmp_path, samples):
    """Where recorders write GUANO and the like."""
    path = write(tmp_path / "a.wav", samples)
    add_chunk(path, b"guan", b"GUANO|Version: 1.0")
    add_chunk(path, b"LIST", b"INFO" + b"x" * 20_000)
    assert find_behind(path) == Behind()


def test_a_header_that_tells_less_is_told_with_how_much_it_hides(tmp_path, samples):
    path = tell_length(write(tmp_path / "a.wav", samples), RATE)  # half a second
    assert find_behind(path) == Behind(BEGINS, 5 * RATE, False)
    with RecordingReader(path, sample_rate=RATE) as reader:
        assert sum(map(len, reader.blocks())) == RATE // 2
        assert reader.damage.endswith("a.wav holds 40 kB behind what its header tells of, which are not read: copy it"
                                      " from the recorder again")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "ULAW"])
def test_a_length_that_overflowed_costs_nothing(tmp_path, samples, monkeypatch, subtype):
    path = write(tmp_path / "a.wav", samples, subtype=subtype)
    whole, n_bytes = load_audio(path, sample_rate=RATE), path.stat().st_size
    place = path.read_bytes().index(b"data") + 8
    content = bytearray(path.read_bytes())
    content[place - 4:place] = (n_bytes // 4).to_bytes(4, "little")
    path.write_bytes(content)
    monkeypatch.setattr(wav_length, "_MOST_BYTES", n_bytes - 1)  # as if a header could tell no more
    with RecordingReader(path, sample_rate=RATE) as reader:
        assert reader.can_seek and reader.n_samples >= len(whole)
        found = np.concatenate(list(reader.blocks()))
        assert "is longer than a WAV header can tell" in reader.damage
    np.testing.assert_array_equal(found[:len(whole)], whole)
    assert len(found) - len(whole) <= 16  # a chunk that may follow, a few bytes long
    with RecordingReader(path, sample_rate=RATE) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks(start=2 * RATE)))[:RATE], whole[2 * RATE:])
