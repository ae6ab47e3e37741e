"""What a page lets a person see and hear of a recording: a few seconds of it."""

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from models.audio_frontend import LogMelFrontend
from models.efficientnet_config import FrontendConfig
from models.errors import AudioError
from utils.audio.recordings import RecordingReader, check_audible
from utils.pages import Markup, audio_player, element, image
from utils.reports import spectrogram_png
from utils.storage.names import check_inside

EXAMPLE_SECONDS = 6.0
_SEARCHED_SECONDS = 30.0  # among which the loudest are shown
_MOST_PASSED_SECONDS = 600.0  # decoded in vain: some seconds of a processor
_MP3_RATE = 32_000  # Hz: MP3 knows few rates, and this one keeps what grown-ups hear
_MP3_COMPRESSION = 0.6  # of 0..1: 25 kB for six seconds
_LOWEST_RATE, _HIGHEST_RATE = 1000, 256_000  # Hz: what a front end must have, what the highest bats need
_STEP_SECONDS = 0.01  # in which the loudest are looked for
_FRAME_SECONDS = 0.046
_N_COLUMNS, _N_MELS = 320, 64  # of a small picture
EXAMPLES_CSS = """
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); gap: 1rem; }
.examples figure { margin: 0; min-width: 0; } .examples img { width: 100%; border-radius: .3rem; display: block; }
.examples figcaption { font-weight: 400; font-size: .8rem; margin: 0; overflow-wrap: anywhere; }
audio { width: 100%; height: 2.4rem; margin-top: .3rem; display: block; }
@media print { audio { display: none; } }
"""


@dataclass(frozen=True)
class Example:
    """A few seconds of a recording.

    Parameters
    ----------
    start_seconds, seconds : float
        Where they begin, how many there are.
    png, mp3 : bytes
        Their spectrogram up to half the recording's own rate, and their sound.
    """

    start_seconds: float
    seconds: float
    png: bytes
    mp3: bytes


def read_example(input_dir: str | os.PathLike, path: str, *, sample_rate: float, start_seconds: float,
                 end_seconds: float = math.inf, most_seconds: float = EXAMPLE_SECONDS) -> Example:
    """Return the loudest seconds of those that follow a place in a recording.

    No more than half a minute is decoded where the format can be sought in. Where it cannot, the recording is read from
    its beginning, on to a place that has an end only if that lies within ten minutes.

    Parameters
    ----------
    input_dir : path-like
        Folder the path is relative to.
    path : str
        As ``names.name_to_text`` writes it.
    sample_rate : float
        The recording's own, in Hz; NaN where it could not be found out.
    start_seconds : float
        Where to look, such as the start of a label.
    end_seconds : float
        Where looking ends, if half a minute does not end it before.
    most_seconds : float
        How long the example may be.

    Returns
    -------
    Example
        At most ``most_seconds`` long.

    Raises
    ------
    AudioError
        If the recording cannot be read, holds nothing there, or would take long to get there.
    ManifestError
        If the path lies outside the folder.
    """
    file = check_inside(Path(input_dir), path, where="example", through_links=True)
    rate = _MP3_RATE if math.isnan(sample_rate) else min(max(_LOWEST_RATE, round(sample_rate)), _HIGHEST_RATE)
    with RecordingReader(file, sample_rate=rate) as reader:
        exact = math.isfinite(end_seconds)
        if exact and not reader.can_seek and start_seconds > _MOST_PASSED_SECONDS:
            raise AudioError(f"{file} cannot be sought in, and {start_seconds:.0f} s would be decoded to hear what"
                             f" follows, more than {_MOST_PASSED_SECONDS:.0f}: convert it to WAV or FLAC")
        first = round(start_seconds * rate) if exact or reader.can_seek else 0
        searched_seconds = min(max(0.0, end_seconds - first / rate), _SEARCHED_SECONDS)
        samples = np.concatenate([np.zeros(0, dtype=np.float32), *_first_blocks(
            reader.blocks(start=first), n_samples=round(searched_seconds * rate))])
    check_audible(file, duration_seconds=len(samples) / rate, peak=float(np.abs(samples).max(initial=0.0)))
    offset = _loudest_start(samples, rate, seconds=most_seconds)
    shown = samples[offset:offset + round(most_seconds * rate)]
    return Example(start_seconds=(first + offset) / rate, seconds=len(shown) / rate, png=_picture(shown, rate),
                   mp3=_mp3(shown, rate))


def example_figure(name: str, example: Example, *caption: object) -> Markup:
    """Return the picture and the player of an example above a caption; ``name`` is what a screen reader calls it."""
    return element("figure", image(f"Spectrogram of {name}", example.png),
                   audio_player(f"Sound of {name}", example.mp3), element("figcaption", *caption))


def _loudest_start(samples: np.ndarray, rate: int, *, seconds: float) -> int:
    """Return the sample at which the loudest example begins, in steps that keep the search small."""
    step = round(_STEP_SECONDS * rate)
    n_steps, n_shown = len(samples) // step, round(seconds / _STEP_SECONDS)
    power = np.square(samples[:n_steps * step].reshape(n_steps, step)).sum(axis=1, dtype=np.float64)
    until = np.concatenate([[0.0], np.cumsum(power)])
    return 0 if n_steps <= n_shown else step * int(np.argmax(until[n_shown:] - until[:-n_shown]))


def _first_blocks(blocks: Iterator[np.ndarray], *, n_samples: int) -> Iterator[np.ndarray]:
    for block in blocks:
        yield block[:n_samples]
        n_samples -= len(block)
        if n_samples <= 0:
            return


def _picture(samples: np.ndarray, rate: int) -> bytes:
    n_fft = 2 ** int(math.log2(_FRAME_SECONDS * rate))
    frontend = FrontendConfig(
        sample_rate=rate, n_fft=n_fft, hop_length=min(n_fft, math.ceil(len(samples) / _N_COLUMNS)),
        n_mels=min(_N_MELS, n_fft // 4), f_min=0.0, f_max=rate / 2,
        segment_duration_ms=math.ceil(1000 * len(samples) / rate), padding="zeros")
    return spectrogram_png(LogMelFrontend(frontend).log_mel(samples), frontend)


def _mp3(samples: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    audible = np.clip(soxr.resample(samples, rate, _MP3_RATE), -1.0, 1.0)
    soundfile.write(buffer, audible, _MP3_RATE, format="MP3", bitrate_mode="VARIABLE",
                    compression_level=_MP3_COMPRESSION)
    return buffer.getvalue()
