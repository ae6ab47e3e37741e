"""Recordings from disk: found, decoded, mixed down, resampled, cut into windows, one block at a time.

Memory does not grow with the recording. Both preprocessing and prediction read through
``RecordingReader``, so they see the same samples.
"""

import os
import re
import shutil
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from models.errors import AudioError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydub warns on import when ffmpeg is absent; AudioError says it when it matters
    from pydub import AudioSegment
    from pydub.exceptions import CouldntDecodeError

SHORTEST_RECORDING_SECONDS = 0.05
_SILENT_PEAK = 2.0 ** -15  # one step of 16-bit audio: a recording that never exceeds it is silent
_BLOCK_FRAMES = 1 << 18  # 12 s at 22.05 kHz: small enough for memory, large enough that Python is not felt

# ffmpeg's name of the container by extension: it is told, not left to guess, what it opens
_FFMPEG_FORMATS = {
    ".wav": "wav", ".wave": "wav", ".flac": "flac", ".ogg": "ogg", ".oga": "ogg", ".opus": "ogg", ".mp3": "mp3",
    ".mpga": "mp3", ".aif": "aiff", ".aiff": "aiff", ".aifc": "aiff", ".au": "au", ".snd": "au", ".caf": "caf",
    ".w64": "w64", ".rf64": "wav", ".m4a": "mp4", ".mp4": "mp4", ".aac": "aac", ".wma": "asf", ".3gp": "mp4",
    ".amr": "amr", ".webm": "matroska", ".mka": "matroska",
}
AUDIO_EXTENSIONS = frozenset(_FFMPEG_FORMATS)
_FFMPEG_ONLY = frozenset({".m4a", ".mp4", ".aac", ".wma", ".3gp", ".amr", ".webm", ".mka"})


def find_recordings(folder: str | os.PathLike[str]) -> list[Path]:
    """Return every audio file below a folder, sorted, whatever the letter case of its extension.

    Hidden files and folders (names that begin with a dot, such as macOS's ``._clip.wav``) are passed over.
    """
    found = []
    for parent, folders, names in os.walk(os.fspath(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, name) for name in names
                  if not name.startswith(".") and Path(name).suffix.lower() in AUDIO_EXTENSIONS]
    return sorted(found)


class RecordingReader:
    """Reads one recording as mono float32 at a chosen rate.

    Parameters
    ----------
    path : path-like
        The recording.
    sample_rate : int
        Rate of the samples it yields, in Hz.

    Attributes
    ----------
    native_sample_rate, channels : int
        As stored in the file.
    duration_seconds : float
        Of what has been decoded so far.

    Raises
    ------
    AudioError
        ``empty``, ``corrupt`` or ``unsupported``, with the reason.
    """

    def __init__(self, path: str | os.PathLike, *, sample_rate: int) -> None:
        self.path = Path(path)
        self.sample_rate = sample_rate
        self._frames_read = 0
        self._sound: sf.SoundFile | None = None
        self._decoded: np.ndarray | None = None
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise AudioError(f"{self.path} cannot be opened: {error.strerror}", status="corrupt") from error
        if size == 0:
            raise AudioError(f"{self.path} has 0 bytes: copy it from the recorder again, or leave it out",
                             status="empty")
        try:
            self._sound = sf.SoundFile(self.path)
            self.native_sample_rate, self.channels = self._sound.samplerate, self._sound.channels
        except sf.LibsndfileError as error:
            self._decoded, self.native_sample_rate = _decode_with_ffmpeg(self.path, error)
            self.channels = self._decoded.shape[1]

    def __enter__(self) -> "RecordingReader":
        return self

    def __exit__(self, *exception) -> None:
        if self._sound is not None:
            self._sound.close()

    @property
    def duration_seconds(self) -> float:
        """Seconds decoded so far; the recording's length once ``blocks`` is exhausted."""
        return self._frames_read / self.native_sample_rate

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the recording in order.

        Yields
        ------
        numpy.ndarray
            float32 ``(n,)`` in [-1, 1] at ``sample_rate``; the mean of the channels.

        Raises
        ------
        AudioError
            ``corrupt`` when the data break off with an error or hold NaN, ``empty`` when there are no samples.
        """
        resampler = None
        if self.native_sample_rate != self.sample_rate:
            resampler = soxr.ResampleStream(self.native_sample_rate, self.sample_rate, 1, dtype="float32")
        for block in self._native_blocks():
            mono = block.mean(axis=1)
            if not np.isfinite(mono).all():
                raise AudioError(f"{self.path} holds samples that are not numbers (NaN or infinity)", status="corrupt")
            yield mono if resampler is None else resampler.resample_chunk(mono)
        if self._frames_read == 0:
            raise AudioError(f"{self.path} holds a header but no samples: copy it from the recorder again, or leave"
                             f" it out", status="empty")
        if resampler is not None:
            yield resampler.resample_chunk(np.empty(0, dtype=np.float32), last=True)

    def segments(self, *, segment_samples: int, hop_samples: int, start_seconds: float = 0.0,
                 end_seconds: float | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Yield windows over the recording, or over a part of it, as ``segment_starts`` places them.

        Parameters
        ----------
        segment_samples, hop_samples : int
            Window length and distance, in samples at ``sample_rate``.
        start_seconds : float
            Where the part begins.
        end_seconds : float, optional
            Where it ends; the end of the recording when None.

        Yields
        ------
        start : int
            First sample of the window, counted from the start of the recording.
        segment : numpy.ndarray
            float32 ``(segment_samples,)``, or fewer samples when the part itself is shorter.
        """
        first = round(start_seconds * self.sample_rate)
        end = None if end_seconds is None else round(end_seconds * self.sample_rate)
        yield from _windows(_cut(self.blocks(), first, end), segment_samples, hop_samples, offset=first)

    def intervals(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield chosen parts of the recording in one pass.

        Parameters
        ----------
        spans : sequence of (int, int)
            First sample and the one after the last, at ``sample_rate``, each at least one sample long.

        Yields
        ------
        index : int
            Position in ``spans``; the order is that of their starts.
        samples : numpy.ndarray
            float32, cut off where the recording ends; a span wholly after the end is not yielded.
        """
        waiting = deque(sorted(range(len(spans)), key=lambda index: spans[index]))
        held: np.ndarray = np.empty(0, dtype=np.float32)
        held_start = 0
        for block in self.blocks():
            held = np.concatenate([held, block])
            while waiting and spans[waiting[0]][1] <= held_start + len(held):
                low, high = spans[waiting[0]]
                yield waiting.popleft(), held[low - held_start:high - held_start].copy()
            if not waiting:
                return
            drop = min(max(spans[waiting[0]][0] - held_start, 0), len(held))
            held, held_start = held[drop:], held_start + drop
        for index in waiting:
            low, high = spans[index]
            if low < held_start + len(held):
                yield index, held[low - held_start:high - held_start].copy()

    def _native_blocks(self) -> Iterator[np.ndarray]:
        source = self._sound_blocks() if self._sound is not None else self._decoded_blocks()
        for block in source:
            self._frames_read += len(block)
            yield block

    def _sound_blocks(self) -> Iterator[np.ndarray]:
        assert self._sound is not None
        try:
            while len(block := self._sound.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
                yield block
        except sf.LibsndfileError as error:
            raise AudioError(f"{self.path} breaks off after {self.duration_seconds:.1f} s ({error.error_string}):"
                             f" copy it from the recorder again, or cut it there", status="corrupt") from error

    def _decoded_blocks(self) -> Iterator[np.ndarray]:
        assert self._decoded is not None
        for first in range(0, len(self._decoded), _BLOCK_FRAMES):
            yield self._decoded[first:first + _BLOCK_FRAMES]


def check_audible(path: str | os.PathLike, *, duration_seconds: float, peak: float) -> None:
    """Raise AudioError for a recording that holds nothing to learn from or to classify.

    Parameters
    ----------
    path : path-like
        For the message.
    duration_seconds : float
        Its length.
    peak : float
        Its highest absolute sample, 0..1.

    Raises
    ------
    AudioError
        ``too_short`` or ``silent``.
    """
    if duration_seconds < SHORTEST_RECORDING_SECONDS:
        raise AudioError(f"{path} lasts {duration_seconds:.4f} s, at least {SHORTEST_RECORDING_SECONDS} s are needed:"
                         f" leave it out", status="too_short")
    if peak <= _SILENT_PEAK:
        raise AudioError(f"{path} never exceeds one 16-bit step: digital silence, check the recorder's microphone",
                         status="silent")


def load_audio(path: str | os.PathLike, *, sample_rate: int) -> np.ndarray:
    """Read a whole recording; float32 ``(n_samples,)`` mono at ``sample_rate``. Raises AudioError."""
    with RecordingReader(path, sample_rate=sample_rate) as reader:
        return np.concatenate(list(reader.blocks()))


def _cut(blocks: Iterator[np.ndarray], first: int, end: int | None) -> Iterator[np.ndarray]:
    position = 0
    for block in blocks:
        low, high = max(first - position, 0), len(block) if end is None else min(end - position, len(block))
        position += len(block)
        if high > low:
            yield block[low:high]


def _windows(blocks: Iterator[np.ndarray], segment_samples: int, hop_samples: int,
             *, offset: int) -> Iterator[tuple[int, np.ndarray]]:
    held: np.ndarray = np.empty(0, dtype=np.float32)  # always keeps the last segment_samples, for the last window
    held_start = next_start = 0
    for block in blocks:
        held = np.concatenate([held, block])
        # strictly more: a window that ends exactly with the recording is the last window, emitted below
        while held_start + len(held) > next_start + segment_samples:
            low = next_start - held_start
            yield offset + next_start, held[low:low + segment_samples].copy()
            next_start += hop_samples
        drop = min(next_start - held_start, len(held) - segment_samples)
        if drop > 0:
            held, held_start = held[drop:], held_start + drop
    if len(held):
        yield offset + held_start + max(0, len(held) - segment_samples), held[-segment_samples:].copy()


def _decode_with_ffmpeg(path: Path, libsndfile_error: sf.LibsndfileError) -> tuple[np.ndarray, int]:
    """Return float32 ``(n_frames, n_channels)`` and the rate of a file that libsndfile refuses."""
    extension = path.suffix.lower()
    if shutil.which("ffmpeg") is None:
        reason = (f"{path} is not readable by libsndfile ({libsndfile_error.error_string.rstrip('.')}) and ffmpeg is"
                  f" not installed: install ffmpeg or convert the file to WAV")
        raise AudioError(reason, status="unsupported" if extension in _FFMPEG_ONLY else "corrupt")
    try:
        audio = AudioSegment.from_file(path, format=_FFMPEG_FORMATS.get(extension))
    # pydub indexes into ffprobe's answer without looking, so a file without audio shows as IndexError or KeyError
    except (CouldntDecodeError, OSError, IndexError, KeyError, ValueError) as error:
        raise AudioError(f"{path} holds no audio that libsndfile or ffmpeg can decode"
                         f" ({libsndfile_error.error_string.rstrip('.')})", status="corrupt") from error
    scale = float(1 << (8 * audio.sample_width - 1))
    samples = np.array(audio.get_array_of_samples(), dtype=np.float32) / scale
    return samples.reshape(-1, audio.channels), audio.frame_rate


_GUANO_TIMESTAMP = re.compile(rb"Timestamp:\s*(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?)(Z|[+-]\d\d:?\d\d)")
_AUDIOMOTH_COMMENT = re.compile(
    rb"Recorded at (\d\d:\d\d:\d\d)(?:\.\d+)? (\d\d/\d\d/\d{4}) \(UTC([+-]\d{1,2})?(?::(\d\d))?\)")
_HEADER_BYTES = 1 << 16  # GUANO may also stand at the end of the file


def read_recorded_at(path: str | os.PathLike) -> datetime | None:
    """Return when a recorder says it began, or None when it does not tell the offset from UTC.

    Reads GUANO's ``Timestamp`` (GUANO specification 1.0) and AudioMoth's comment ("Recorded at 03:13:00
    03/05/2025 (UTC+2)"); a time in the file name alone has no offset and is not used.
    """
    with open(path, "rb") as stream:
        head = stream.read(_HEADER_BYTES)
        if not head.startswith((b"RIFF", b"RF64")):
            return None
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _HEADER_BYTES))
        text = head + stream.read()
    if guano := _GUANO_TIMESTAMP.search(text):
        moment = guano[1].decode().replace(" ", "T")
        return _parse("%Y-%m-%dT%H:%M:%S%z", moment[:19] + guano[2].decode())
    if comment := _AUDIOMOTH_COMMENT.search(text):
        hours, minutes = int(comment[3] or 0), int(comment[4] or 0)
        naive = _parse("%d/%m/%Y %H:%M:%S", f"{comment[2].decode()} {comment[1].decode()}")
        offset = timedelta(hours=hours, minutes=minutes if hours >= 0 else -minutes)
        return naive.replace(tzinfo=timezone(offset)) if naive and abs(offset) < timedelta(days=1) else None
    return None


def _parse(pattern: str, text: str) -> datetime | None:
    try:
        return datetime.strptime(text, pattern)
    except ValueError:  # a damaged date is the same as none
        return None
