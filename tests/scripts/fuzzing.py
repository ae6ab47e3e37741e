"""Recordings as a damaged card, a broken transfer or a wrong tool leaves them: made from whole ones, by number."""

import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import soundfile

SEED_RATE = 8000
_SOUNDFILE_SEEDS = {  # extension: format and subtypes
    "wav": ("WAV", ("PCM_16", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "MS_ADPCM")), "flac": ("FLAC", ("PCM_16",)),
    "ogg": ("OGG", ("VORBIS", "OPUS")), "mp3": ("MP3", ("MPEG_LAYER_III",)), "aiff": ("AIFF", ("PCM_16", "FLOAT")),
    "au": ("AU", ("PCM_16", "ULAW")), "caf": ("CAF", ("PCM_16", "ALAC_16")), "w64": ("W64", ("PCM_16",)),
    "rf64": ("RF64", ("PCM_16",)),
}
_FFMPEG_SEEDS = {"m4a": "aac", "aac": "aac", "wma": "wmav2", "webm": "libopus", "mka": "flac", "mp4": "alac"}
_HEADER_BYTES = 128
_MOST_MUTATIONS = 3
_EXTREMES = (0, 1, 2, 0x7f, 0xff, 0x7fff, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff)

Mutation = Callable[[bytes, bytes, np.random.Generator], bytes]


def write_seeds(folder: Path, rng: np.random.Generator) -> dict[str, bytes]:
    """Return whole recordings in all formats that can be written here, each of a sound of its own, by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    for extension, (container, subtypes) in _SOUNDFILE_SEEDS.items():
        for subtype in subtypes:
            for n_channels in (1, 2):
                samples = _sound(rng, n_channels)
                soundfile.write(folder / f"{subtype.lower()}_{n_channels}.{extension}", samples, SEED_RATE,
                                format=container, subtype=subtype)
    if shutil.which("ffmpeg"):
        for extension, codec in _FFMPEG_SEEDS.items():
            _write_by_ffmpeg(folder / f"{codec}.{extension}", codec, rng)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.stat().st_size}


def _sound(rng: np.random.Generator, n_channels: int) -> np.ndarray:
    """Return float32 ``(n_samples, n_channels)`` of a chirp with noise, 1.0 to 1.6 s."""
    time = np.arange(round(SEED_RATE * rng.uniform(1.0, 1.6))) / SEED_RATE
    chirp = np.sin(2 * np.pi * (rng.uniform(200, 1500) + rng.uniform(-100, 1200) * time) * time)
    noise = rng.standard_normal((len(time), n_channels))
    return (0.3 * chirp[:, None] * rng.uniform(0.5, 1, n_channels) + 0.02 * noise).astype(np.float32)


def _write_by_ffmpeg(path: Path, codec: str, rng: np.random.Generator) -> None:
    source = path.with_name("source.wav")
    soundfile.write(source, _sound(rng, 1), SEED_RATE)
    # not every build of ffmpeg has every encoder
    subprocess.run(["ffmpeg", "-nostdin", "-loglevel", "quiet", "-y", "-i", source, "-c:a", codec, path], check=False)
    source.unlink()


def fuzzed(seeds: Mapping[str, bytes], *, seed: int, number: int) -> tuple[str, bytes]:
    """Return the name and the content of one damaged recording; the same for the same seeds, seed and number."""
    rng = np.random.default_rng([seed, number])
    names = sorted(seeds)
    name, other = names[rng.integers(len(names))], names[rng.integers(len(names))]
    content = seeds[name]
    for _ in range(rng.integers(1, _MOST_MUTATIONS + 1)):
        mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
        content = mutation(content, seeds[other], rng)
    extension = Path(other if rng.random() < 0.15 else name).suffix  # some lie about their format
    if rng.random() < 0.15:
        extension = extension.upper()
    return f"f{number:05}_{Path(name).stem}{extension}", content


def _place(content: bytes, rng: np.random.Generator) -> int:
    """Return a place in a content, in its header more often than chance."""
    return int(rng.integers(max(1, min(_HEADER_BYTES, len(content)) if rng.random() < 0.6 else len(content))))


def cut(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Leave out the end."""
    return content[:int(rng.integers(len(content) + 1))] if rng.random() < 0.7 else content[:_place(content, rng)]


def flip(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Change 1 to 32 bytes."""
    changed = bytearray(content)
    for _ in range(int(2 ** rng.uniform(0, 5)) if content else 0):
        changed[_place(content, rng)] ^= int(rng.integers(1, 256))
    return bytes(changed)


def splice(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Put the body of another recording behind the head of this one."""
    return content[:_place(content, rng)] + other[int(rng.integers(len(other) + 1)):]


def set_field(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Set two, four or eight bytes, of a length as likely as not, to a number that is too large, too small or odd."""
    n_bytes = int(rng.choice([2, 4, 8]))
    place = _place(content, rng) // 2 * 2
    value = int(rng.choice(_EXTREMES)) if rng.random() < 0.7 else int(rng.integers(2 ** 32))
    written = (value % 2 ** (8 * n_bytes)).to_bytes(n_bytes, "little" if rng.random() < 0.6 else "big")
    return content[:place] + written + content[place + n_bytes:]


def repeat(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Repeat a piece up to nine times."""
    first = _place(content, rng)
    last = first + int(rng.integers(1, 4096))
    return content[:last] + content[first:last] * int(rng.integers(1, 10)) + content[last:]


def zero(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Fill a piece with zeros, as a card does whose blocks were never written."""
    first = _place(content, rng)
    length = min(int(rng.integers(1, 8192)), len(content) - first)
    return content[:first] + bytes(length) + content[first + length:]


def append(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Add noise, or another recording with its header."""
    return content + (rng.bytes(int(rng.integers(1, 8192))) if rng.random() < 0.6 else other)


MUTATIONS: tuple[Mutation, ...] = (cut, flip, flip, splice, set_field, set_field, repeat, zero, append)
