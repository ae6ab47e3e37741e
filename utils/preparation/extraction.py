"""One recording to log-mel spectrograms: what a worker process does with a file."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from models.audio_frontend import cached_frontend, frontend_fingerprint
from models.efficientnet_config import WAVEFORM_SETTINGS, AugmentationConfig, FrontendConfig
from models.errors import AudioError
from utils.audio.recordings import Outcome, RecordingReader, check_audible
from utils.audio.windows import Part
from utils.preparation.sources import Source
from utils.running.parallel import report_alive
from utils.storage.files import file_sha256, is_whole_array, save_array
from utils.storage.journal import settings_key
from utils.storage.names import folder_name

_ACTIVE_RANGE_DB = 30.0  # a window this far below the recording's loudest holds no sound of interest


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
        Augmented copies per training window; 0 is off.
    balance_classes : bool
        Make copies of the minority classes' training windows up to the largest class.
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

    @property
    def makes_copies(self) -> bool:
        """Whether any augmented copy may be made."""
        return self.balance_classes or self.augmentation_factor > 0

    def are_whole(self, paths: Iterable[str]) -> bool:
        """Whether spectrograms that were made earlier are all there in full; a power cut may have emptied one."""
        return all(is_whole_array(self.output_dir / path, (self.frontend.n_mels, self.frontend.n_frames))
                   for path in paths)

    def extraction_key(self) -> str:
        """Return what a recording's spectrograms depend on, as a hash."""
        return settings_key(frontend_fingerprint(self.frontend), self.segment_overlap_ms, self.segment_selection)

    def augmentation_key(self) -> str:
        """Return what augmented copies depend on, as a hash."""
        of_waveforms = {name: value for name, value in self.augmentation.to_dict().items() if name in WAVEFORM_SETTINGS}
        return settings_key(self.extraction_key(), of_waveforms, self.random_state)


@dataclass(frozen=True)
class LabelledWindow:
    """One window that was kept: its spectrogram, class and place."""

    path: str
    class_name: str
    start_sample: int
    end_sample: int


@dataclass(frozen=True)
class ExtractedRecording:
    """One input file: what became of it, a row of ``files.csv``, and its windows."""

    source_path: str
    outcome: Outcome
    sha256: str = ""
    windows: tuple[LabelledWindow, ...] = ()

    def to_json(self) -> dict:
        """Return plain types for the journal."""
        return {"source_path": self.source_path, **asdict(self.outcome), "sha256": self.sha256,
                "segments": [asdict(window) for window in self.windows]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ExtractedRecording":
        """Rebuild what ``to_json`` gave."""
        outcome = Outcome(**{field.name: values[field.name] for field in fields(Outcome)})
        return cls(values["source_path"], outcome, values["sha256"],
                   tuple(LabelledWindow(**window) for window in values["segments"]))


def extract_recording(settings: PreprocessSettings, source: Source) -> ExtractedRecording:
    """Decode one recording, write the log-mels of its windows, and say what came of it.

    Never raises for a bad file: the reason stands in the result.
    """
    path = source.audio_path(settings.input_dir)
    written: dict[str, LabelledWindow] = {}
    facts: dict[str, Any] = {}
    sha256 = ""
    try:
        with RecordingReader(path, sample_rate=settings.frontend.sample_rate, on_block=report_alive) as reader:
            windows, peak = _write_windows(settings, source, reader, written)
            facts = {"duration_seconds": round(reader.duration_seconds, 6), "sample_rate": reader.native_sample_rate,
                     "channels": reader.channels}
        sha256 = _sha256(path)
        if not written:
            raise AudioError(f"{path} lasts {reader.duration_seconds:.1f} s and none of its labelled times lies"
                             f" within: correct the labels", status="empty")
        check_audible(path, duration_seconds=reader.duration_seconds, peak=peak)
    except AudioError as error:
        _remove(settings.output_dir, written.values())
        return ExtractedRecording(source.source_path, Outcome(error.status, str(error), **facts), sha256)
    return ExtractedRecording(source.source_path, Outcome(reason=reader.damage, **facts), sha256, tuple(windows))


def _write_windows(settings: PreprocessSettings, source: Source, reader: RecordingReader,
                   written: dict[str, LabelledWindow]) -> tuple[list[LabelledWindow], float]:
    """Write every window, noting it in ``written``, then drop what the selection leaves out.

    Return the windows that are left and the highest sample of all.
    """
    frontend, rate = cached_frontend(settings.frontend), settings.frontend.sample_rate
    levels, peak = [], 0.0
    for part, start, samples in reader.windows(
            segment_samples=settings.frontend.segment_samples, hop_samples=settings.hop_samples,
            least_new_samples=settings.frontend.least_new_samples, parts=_parts(source, rate)):
        class_name = source.regions[part].class_name
        start_ms = round(1000 * start / rate)
        path = f"spectrograms/{folder_name(class_name)}/{source.file_stem}_{start_ms}.npy"
        if path in written:
            continue
        log_mel = frontend.log_mel(samples)
        save_array(settings.output_dir / path, log_mel)
        written[path] = LabelledWindow(path, class_name, start, start + len(samples))
        levels.append(float(log_mel.max()))
        peak = max(peak, float(np.abs(samples).max()))
    windows = list(written.values())
    if settings.segment_selection == "active" and windows:
        loudest = max(levels)
        active = [level > loudest - _ACTIVE_RANGE_DB for level in levels]
        _remove(settings.output_dir, [window for window, keep in zip(windows, active, strict=True) if not keep])
        windows = [window for window, keep in zip(windows, active, strict=True) if keep]
    return windows, peak


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise AudioError(f"{path} vanished while it was read: {error.strerror}", status="corrupt") from error


def _parts(source: Source, sample_rate: int) -> list[Part]:
    """Return the labelled parts of a source in samples, each at least one sample long."""
    parts: list[Part] = []
    for region in source.regions:
        first = round(region.start_seconds * sample_rate)
        end = region.end_seconds
        parts.append((first, None if end is None else max(first + 1, round(end * sample_rate))))
    return parts


def _remove(output_dir: Path, windows: Iterable[LabelledWindow]) -> None:
    for window in windows:
        (output_dir / window.path).unlink(missing_ok=True)
