"""One recording to log-mel spectrograms: what a worker process does with a file."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from models.audio_frontend import LogMelFrontend, frontend_fingerprint, segment_starts
from models.efficientnet_config import AugmentationConfig, FrontendConfig
from models.errors import AudioError
from utils.audio.recordings import RecordingReader, check_audible
from utils.storage.files import file_sha256, save_array
from utils.storage.journal import settings_key
from utils.storage.names import safe_name
from utils.preparation.sources import Source

_ACTIVE_RANGE_DB = 30.0  # a window this far below the recording's loudest holds no sound of interest
_LEAST_NEW_SECONDS = 0.1  # a window that starts this little after the one before is that one again
_LONGEST_RECORDING_SECONDS = 1e7  # stands for "to the end" among regions with known ends


@dataclass(frozen=True, kw_only=True)
class PreprocessSettings:
    """What a preprocessing run does.

    Parameters
    ----------
    input_dir, output_dir : Path
        Where recordings are, where everything goes.
    frontend : FrontendConfig
        Rate, transform, window length.
    segment_overlap_ms : int
        Overlap of windows, 0 to below the window length.
    segment_selection : str
        ``active`` or ``all``.
    augmentation_factor : int
        Augmented copies per training segment; 0 is off.
    balance_classes : bool
        Make copies of the minority classes' training segments up to the largest class.
    max_balance_ratio : float
        A class grows at most to this many times its size.
    ratios : tuple of float
        Train, val, test.
    random_state : int
        Seed of split and augmentation.
    """

    input_dir: Path
    output_dir: Path
    frontend: FrontendConfig
    segment_overlap_ms: int
    segment_selection: str
    augmentation_factor: int
    balance_classes: bool
    max_balance_ratio: float
    ratios: tuple[float, float, float]
    random_state: int
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    @property
    def hop_samples(self) -> int:
        """Distance between window starts in samples, rounded once here."""
        overlap = round(self.frontend.sample_rate * self.segment_overlap_ms / 1000)
        return self.frontend.segment_samples - overlap

    def extraction_key(self) -> str:
        """Return what a recording's spectrograms depend on, as a hash."""
        return settings_key(frontend_fingerprint(self.frontend), self.segment_overlap_ms, self.segment_selection)

    def augmentation_key(self) -> str:
        """Return what augmented copies depend on, as a hash."""
        return settings_key(self.extraction_key(), self.augmentation.to_dict(), self.random_state)


@dataclass(frozen=True)
class Segment:
    """One window that was kept: its spectrogram, place and class."""

    path: str
    class_name: str
    start_sample: int
    end_sample: int


@dataclass(frozen=True)
class RecordingResult:
    """What became of one input file: a row of ``files.csv`` and its segments."""

    source_path: str
    status: str
    reason: str = ""
    duration_seconds: float | None = None
    sample_rate: int | None = None
    channels: int | None = None
    sha256: str = ""
    segments: tuple[Segment, ...] = ()

    @classmethod
    def from_json(cls, values: dict) -> "RecordingResult":
        """Rebuild a result from what ``dataclasses.asdict`` gave."""
        return cls(**{**values, "segments": tuple(Segment(**segment) for segment in values["segments"])})


def extract_recording(settings: PreprocessSettings, source: Source) -> RecordingResult:
    """Decode one recording, write the log-mels of its windows, and say what came of it.

    Never raises for a bad file: the reason stands in the result.
    """
    path = settings.input_dir / source.source_path
    written: dict[str, Segment] = {}
    facts: dict[str, Any] = {}
    try:
        with RecordingReader(path, sample_rate=settings.frontend.sample_rate) as reader:
            segments, peak = _write_segments(settings, source, reader, written)
            facts = {"duration_seconds": round(reader.duration_seconds, 6), "sample_rate": reader.native_sample_rate,
                     "channels": reader.channels, "sha256": file_sha256(path)}
        if not written:
            raise AudioError(f"{path} lasts {reader.duration_seconds:.1f} s and none of its labelled times lies"
                             f" within: correct the labels", status="empty")
        check_audible(path, duration_seconds=reader.duration_seconds, peak=peak)
    except AudioError as error:
        _remove(settings.output_dir, written.values())
        return RecordingResult(source.source_path, error.status, str(error), **facts)
    return RecordingResult(source.source_path, "ok", **facts, segments=tuple(segments))


@functools.lru_cache(maxsize=2)
def cached_frontend(config: FrontendConfig) -> LogMelFrontend:
    """Return the front end of a config, built once a process."""
    return LogMelFrontend(config)


def _write_segments(settings: PreprocessSettings, source: Source, reader: RecordingReader,
                    written: dict[str, Segment]) -> tuple[list[Segment], float]:
    """Write every window, noting it in ``written``, then drop what the selection leaves out.

    Return the segments that are left and the highest sample of all.
    """
    frontend = cached_frontend(settings.frontend)
    levels, peak = [], 0.0
    previous: tuple[str, float] = ("", -np.inf)
    for class_name, start, samples in _labelled_windows(settings, source, reader):
        if class_name == previous[0] and start - previous[1] < _LEAST_NEW_SECONDS * settings.frontend.sample_rate:
            continue
        previous = (class_name, start)
        start_ms = round(1000 * start / settings.frontend.sample_rate)
        path = f"spectrograms/{safe_name(class_name)}/{source.file_stem}_{start_ms}.npy"
        if path in written:
            continue
        log_mel = frontend.log_mel(samples)
        save_array(settings.output_dir / path, log_mel)
        written[path] = Segment(path, class_name, start, start + len(samples))
        levels.append(float(log_mel.max()))
        peak = max(peak, float(np.abs(samples).max()))
    segments = list(written.values())
    if settings.segment_selection == "active" and segments:
        loudest = max(levels)
        active = [level > loudest - _ACTIVE_RANGE_DB for level in levels]
        _remove(settings.output_dir, [segment for segment, keep in zip(segments, active, strict=True) if not keep])
        segments = [segment for segment, keep in zip(segments, active, strict=True) if keep]
    return segments, peak


def _labelled_windows(settings: PreprocessSettings, source: Source,
                      reader: RecordingReader) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yield class name, first sample and samples of every window of a source, decoding once."""
    rate, length = settings.frontend.sample_rate, settings.frontend.segment_samples
    if len(source.regions) == 1:
        region = source.regions[0]
        for start, samples in reader.segments(segment_samples=length, hop_samples=settings.hop_samples,
                                              start_seconds=region.start_seconds, end_seconds=region.end_seconds):
            yield region.class_name, start, samples
        return
    spans, names = [], []
    for region in source.regions:
        end_seconds = _LONGEST_RECORDING_SECONDS if region.end_seconds is None else region.end_seconds
        first = round(region.start_seconds * rate)
        spans.append((first, max(first + 1, round(end_seconds * rate))))
        names.append(region.class_name)
    for index, samples in reader.intervals(spans):
        for offset in segment_starts(len(samples), segment_samples=length, hop_samples=settings.hop_samples):
            yield names[index], spans[index][0] + offset, samples[offset:offset + length]


def _remove(output_dir: Path, segments: Iterable[Segment]) -> None:
    for segment in segments:
        (output_dir / segment.path).unlink(missing_ok=True)
