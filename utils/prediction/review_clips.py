"""What the review page shows of a detection: a few seconds of it, small enough that a page holds thousands."""

import base64
import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from models.audio_frontend import LogMelFrontend, cached_frontend, hertz_to_mel
from models.efficientnet_config import FrontendConfig
from models.errors import AudioError
from utils.prediction.clips import read_parts

_SEARCHED_SECONDS = 30.0  # of a long detection: among these lie the seconds that are shown
_LEAST_SECONDS = 3.0  # an ear needs some: a shorter detection is shown with what surrounds it
_SLOWED_FROM, _SLOWED = 96_000, 10  # Hz, times: what only bats hear is played as their detectors do
_MP3_RATE = 22_050  # Hz
_PEAK, _MOST_GAIN = 0.7, 100.0  # of full scale; 40 dB
_FRAME_SECONDS = 0.046
_TICKS_HERTZ = (50, 100, 200, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000, 128_000)
_LEAST_TICK_GAP = 0.09  # of the height
_PALETTE = bytes.fromhex("0000040b092420114b3b0f7057157e721f818c2981a8327dc43c75de4968f1605dfa7f5efe9f6dfebf84fddea0"
                         "fcfdbf")  # 16 colours of matplotlib's magma
_N_COLOURS = len(_PALETTE) // 3


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """How much of a detection is shown, and how finely.

    Parameters
    ----------
    seconds : float
        How long a clip is at most.
    mp3_compression : float
        0..1, as libsndfile takes it.
    n_columns, n_mels : int
        Pixels of a picture that is as long.
    """

    seconds: float
    mp3_compression: float
    n_columns: int
    n_mels: int


FINE = ClipSize(seconds=8.0, mp3_compression=0.75, n_columns=480, n_mels=128)  # 48 kbit/s: 85 kB in a page
SMALL = ClipSize(seconds=4.0, mp3_compression=0.85, n_columns=256, n_mels=64)  # 32 kbit/s: 29 kB in a page


class ClipJob(NamedTuple):
    """Clips of one recording: its path, their numbers, and the seconds between which each detection lies."""

    path: str
    numbers: Sequence[int]
    spans: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class ClipMaker:
    """The work of a process that makes clips.

    Parameters
    ----------
    size : ClipSize
        How much is shown.
    sample_rate : int
        That the network hears, in Hz.
    low_hertz, high_hertz : float
        What it hears of that.
    """

    size: ClipSize
    sample_rate: int
    low_hertz: float
    high_hertz: float

    @property
    def slowed(self) -> int:
        """How many times slower sounds are played."""
        return _SLOWED if self.sample_rate > _SLOWED_FROM else 1

    @property
    def seconds(self) -> float:
        """How long a clip is at most."""
        return self.size.seconds / self.slowed

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Where round frequencies lie in a picture, 0 at its bottom and 1 at its top, and how they are called."""
        mel_scale = FrontendConfig().mel_scale
        low, high = (hertz_to_mel(hertz, mel_scale=mel_scale) for hertz in (self.low_hertz, self.high_hertz))
        ticks: list[tuple[float, str]] = []
        for hertz in _TICKS_HERTZ:
            place = (hertz_to_mel(hertz, mel_scale=mel_scale) - low) / (high - low)
            if (ticks[-1][0] if ticks else 0.0) + _LEAST_TICK_GAP <= place < 1:
                ticks.append((round(place, 4), f"{hertz / 1000:g}"))
        return ticks

    def __call__(self, job: ClipJob) -> Iterator[tuple[int, dict]]:
        """Yield the number of each clip and what the page holds of it.

        That is ``start`` and ``seconds``, ``picture`` (PNG) and ``sound`` (MP3) as data URLs; or a ``problem``.
        """
        missing = dict.fromkeys(job.numbers, "the recording ends before it")
        try:
            starts, spans = zip(*map(self._searched, job.spans), strict=True)
            for index, samples, rate in read_parts(job.path, spans, sample_rate=self.sample_rate):
                del missing[job.numbers[index]]
                yield job.numbers[index], self._clip(samples, rate, start_seconds=starts[index])
        except AudioError as error:
            missing = dict.fromkeys(missing, str(error))
        for number, problem in missing.items():
            yield number, {"problem": problem}

    def _searched(self, span: tuple[float, float]) -> tuple[float, tuple[float, float]]:
        """Return where the search in a detection begins, and between which seconds it is."""
        start, end = span
        room = max(0.0, _LEAST_SECONDS / self.slowed - (end - start)) / 2
        start, end = max(0.0, start - room), end + room
        return start, (start, min(end, start + _SEARCHED_SECONDS))

    def _clip(self, samples: np.ndarray, rate: int, *, start_seconds: float) -> dict:
        frontend = self._frontend(len(samples))
        log_mel, hop = frontend.log_mel(samples), frontend.config.hop_length
        n_shown = round(self.seconds * rate)
        first = _liveliest(log_mel, n_columns=n_shown // hop) if len(samples) > n_shown else 0
        shown = samples[first * hop:first * hop + n_shown]
        return {"start": round(start_seconds + first * hop / rate, 3), "seconds": round(len(shown) / rate, 3),
                "picture": _data_url("image/png", picture(log_mel[:, first:first + math.ceil(len(shown) / hop)])),
                "sound": _data_url("audio/mpeg", self._mp3(shown))}

    def _frontend(self, n_samples: int) -> LogMelFrontend:
        n_fft = 2 ** int(math.log2(_FRAME_SECONDS * self.sample_rate))
        return cached_frontend(FrontendConfig(
            sample_rate=self.sample_rate, n_fft=n_fft, n_mels=min(self.size.n_mels, n_fft // 4),
            hop_length=min(n_fft, math.ceil(self.seconds * self.sample_rate / self.size.n_columns)),
            f_min=self.low_hertz, f_max=self.high_hertz, padding="zeros",
            segment_duration_ms=math.ceil(1000 * max(n_samples, n_fft) / self.sample_rate)))

    def _mp3(self, samples: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        audible = soxr.resample(samples, self.sample_rate / self.slowed, _MP3_RATE)
        gain = min(_MOST_GAIN, _PEAK / max(1e-9, float(np.abs(audible).max(initial=0.0))))
        soundfile.write(buffer, gain * audible, _MP3_RATE, format="MP3", bitrate_mode="CONSTANT",
                        compression_level=self.size.mp3_compression)
        return buffer.getvalue()


def _liveliest(log_mel: np.ndarray, *, n_columns: int) -> int:
    """Return the column at which most sound begins that is not there all the time: calls, not wind or a river."""
    above = np.maximum(log_mel - np.median(log_mel, axis=1, keepdims=True), 0.0).sum(axis=0, dtype=np.float64)
    until = np.concatenate([[0.0], np.cumsum(above)])
    return int(np.argmax(until[n_columns:] - until[:-n_columns])) if 0 < n_columns < len(above) else 0


def picture(log_mel: np.ndarray) -> bytes:
    """Draw a spectrogram and nothing around it: what is below its median is black.

    Parameters
    ----------
    log_mel : np.ndarray, float32, shape (n_mels, n_frames), dB
        What to draw.

    Returns
    -------
    bytes
        A PNG of ``n_frames`` by ``n_mels`` pixels in 16 colours, low frequencies at the bottom.
    """
    floor, top = float(np.median(log_mel)), float(log_mel.max())
    shares = np.clip((log_mel[::-1] - floor) / max(top - floor, 1e-6), 0.0, 1.0)
    colours = np.minimum(shares * _N_COLOURS, _N_COLOURS - 1).astype(np.uint8)
    height, width = colours.shape
    pairs = np.pad(colours, ((0, 0), (0, width % 2)))
    lines = np.pad(pairs[:, ::2] << 4 | pairs[:, 1::2], ((0, 0), (1, 0)))  # each begins with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)  # 4 bits a pixel, a palette
    chunks = [_chunk(b"IHDR", header), _chunk(b"PLTE", _PALETTE), _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
              _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
