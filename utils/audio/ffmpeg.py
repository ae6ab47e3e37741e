"""Formats that libsndfile cannot read, decoded by ffmpeg in a process of its own, through a pipe.

ffmpeg is told the container, never left to guess it: a file that is called a recording might else be read as a
playlist that names other files. Its output is Sun AU: six big-endian numbers, then samples; no length is needed.
"""

import os
import queue
import shutil
import struct
import subprocess
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from models.errors import AudioError

# ffmpeg's name of the container by extension
FORMATS = {
    ".wav": "wav", ".wave": "wav", ".flac": "flac", ".ogg": "ogg", ".oga": "ogg", ".opus": "ogg", ".mp3": "mp3",
    ".mpga": "mp3", ".aif": "aiff", ".aiff": "aiff", ".aifc": "aiff", ".au": "au", ".snd": "au", ".caf": "caf",
    ".w64": "w64", ".rf64": "wav", ".m4a": "mov", ".mp4": "mov", ".aac": "aac", ".wma": "asf", ".3gp": "mov",
    ".amr": "amr", ".webm": "matroska", ".mka": "matroska",
}
FFMPEG_ONLY = frozenset({".m4a", ".mp4", ".aac", ".wma", ".3gp", ".amr", ".webm", ".mka"})
SILENCE_SECONDS = 60.0  # ffmpeg is taken to hang when it gives nothing for so long
LONGEST_SECONDS = 30 * 24 * 3600  # ends a file that pretends to have no end
_HEADER = struct.Struct(">4s5I")
_FLOAT32_ENCODING = 6
_WAV_HEAD_BYTES = 1 << 16
_WAV_FORMAT = struct.Struct("<8x2H8x2H")  # chunk "fmt ": codec, channels, bytes of a frame, bits of a sample
_PCM = 1
_WAITING_BLOCKS = 8
_GOODBYE_SECONDS = 1.0
_READ_BYTES = 1 << 18
_MOST_TOLD = 200  # characters of what ffmpeg says


class FfmpegStream:
    """Decodes one file while it is read; memory does not grow with the file.

    Parameters
    ----------
    path : Path
        The recording.
    refused : str
        Why libsndfile does not read it, for the message.
    silence_seconds : float
        ffmpeg is stopped when it gives nothing for so long.

    Attributes
    ----------
    sample_rate, channels : int
        Of the recording.
    can_seek, n_frames : bool, int or None
        False and None: see ``utils.audio.streams.Stream``.

    Raises
    ------
    AudioError
        Worded to follow the file's name: ``unsupported`` where ffmpeg would be needed and is not there, ``corrupt``
        where it finds no sound, ``timeout`` where it hangs.
    """

    def __init__(self, path: Path, *, refused: str, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._path, self._refused, self._silence_seconds = path, refused.rstrip("."), silence_seconds
        self._process = subprocess.Popen(
            self._command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._blocks: queue.Queue[bytes] = queue.Queue(_WAITING_BLOCKS)
        self._said = self._rest = b""  # what ffmpeg told; what came after the header with it
        self.can_seek, self.warning = False, ""  # its pipe only goes on
        self.n_frames: int | None = None
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True)
                         for target in (self._read_sound, self._read_words)]
        for thread in self._threads:
            thread.start()
        try:
            self.sample_rate, self.channels = self._header()
        except AudioError:
            self.close()
            raise

    def seek(self, frame: int) -> None:
        """Raise: what ffmpeg gives only goes on."""
        raise NotImplementedError("ffmpeg's output cannot be sought in: check can_seek")

    def blocks(self, n_frames: int) -> Iterator[np.ndarray]:
        """Yield float32 ``(n, channels)`` in order, ``n`` at most ``n_frames``.

        Raises
        ------
        AudioError
            ``timeout`` where ffmpeg hangs, ``corrupt`` where it fails after some sound.
        """
        frame_bytes = 4 * self.channels
        held, data = b"", self._rest or self._take()  # all of a short file may have come with the header
        while data:
            held += data
            whole = len(held) - len(held) % frame_bytes
            samples = np.frombuffer(held[:whole], dtype=">f4").astype(np.float32).reshape(-1, self.channels)
            held = held[whole:]
            for first in range(0, len(samples), n_frames):
                yield samples[first:first + n_frames]
            data = self._take()
        if self._process.wait() != 0:
            raise AudioError(f"cannot be decoded further: {self._words()}", status="corrupt")

    def close(self) -> None:
        """Stop ffmpeg and its threads."""
        self._closed.set()
        self._process.kill()
        self._process.wait()
        for thread, pipe in zip(self._threads, (self._process.stdout, self._process.stderr), strict=True):
            assert pipe is not None
            thread.join(_GOODBYE_SECONDS)
            if not thread.is_alive():  # where ffmpeg is a script, a program that it started may hold the pipe
                pipe.close()

    def _command(self) -> list[str]:
        extension = self._path.suffix.lower()
        if extension not in FORMATS:
            raise AudioError(f"is not readable by libsndfile ({self._refused}), and its extension {extension!r} does"
                             f" not tell its format: name it after its format, or convert it to WAV",
                             status="unsupported")
        if FORMATS[extension] == "wav":
            _check_wav_header(self._path)
        program = _program()
        if program is None:
            raise AudioError(f"is not readable by libsndfile ({self._refused}) and ffmpeg is not installed: install"
                             f" ffmpeg or convert the file to WAV",
                             status="unsupported" if extension in FFMPEG_ONLY else "corrupt")
        return [program, "-nostdin", "-hide_banner", "-loglevel", "error", "-protocol_whitelist", "file,pipe",
                "-f", FORMATS[extension], "-i", f"file:{self._path}", "-map", "0:a:0", "-t", str(LONGEST_SECONDS),
                "-c:a", "pcm_f32be", "-f", "au", "pipe:1"]

    def _header(self) -> tuple[int, int]:
        while len(self._rest) < _HEADER.size and (data := self._take()):
            self._rest += data
        if len(self._rest) >= _HEADER.size:
            magic, offset, _, encoding, sample_rate, channels = _HEADER.unpack_from(self._rest)
            if magic == b".snd" and encoding == _FLOAT32_ENCODING and sample_rate > 0 and channels > 0:
                while len(self._rest) < offset and (data := self._take()):
                    self._rest += data
                self._rest = self._rest[offset:]
                return sample_rate, channels
        raise AudioError(f"holds no audio that libsndfile or ffmpeg can decode ({self._refused}; {self._words()})",
                         status="corrupt")

    def _take(self) -> bytes:
        try:
            return self._blocks.get(timeout=self._silence_seconds)
        except queue.Empty as error:
            raise AudioError(f"made ffmpeg hang, which gave nothing for {self._silence_seconds:g} s and was stopped:"
                             f" convert the file to WAV, or leave it out", status="timeout") from error

    def _words(self) -> str:
        self._threads[1].join(self._silence_seconds)
        words = self._said.decode(errors="replace").replace(f"file:{self._path}: ", "").strip().splitlines()
        return words[-1][:_MOST_TOLD] if words else "ffmpeg gave no reason"

    def _read_sound(self) -> None:
        assert self._process.stdout is not None
        while not self._closed.is_set():
            data = os.read(self._process.stdout.fileno(), _READ_BYTES)
            while not self._closed.is_set():
                try:
                    self._blocks.put(data, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if not data:
                return

    def _read_words(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:  # read on, or ffmpeg would wait for room
            self._said = (self._said + line)[-4 * _MOST_TOLD:]


def _check_wav_header(path: Path) -> None:
    """Refuse a header whose frames have no room for their samples: ffmpeg would make noise of it."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(_WAV_HEAD_BYTES)
    except OSError as error:
        raise AudioError(f"cannot be opened: {error.strerror}", status="corrupt") from error
    place = head.find(b"fmt ")
    if not head.startswith((b"RIFF", b"RF64")) or place < 0 or len(head) < place + _WAV_FORMAT.size:
        return
    codec, channels, frame_bytes, bits = _WAV_FORMAT.unpack_from(head, place)
    if codec == _PCM and 8 * frame_bytes < channels * bits:
        raise AudioError(f"says that {channels} x {bits} bits are {frame_bytes} bytes: its header is damaged, copy it"
                         f" from the recorder again", status="corrupt")


def _program() -> str | None:
    """Return the path of ffmpeg, or of what pydub's user has set in its place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydub warns where ffmpeg is absent; AudioError says it when it matters
        from pydub import AudioSegment
    return shutil.which(AudioSegment.converter)
