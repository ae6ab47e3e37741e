"""One recording to log-mel spectrograms: what a worker process does with a file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.audio_frontend import LogMelFrontend, cached_frontend, frontend_fingerprint
from models.efficientnet_config import WAVEFORM_SETTINGS, AugmentationConfig, FrontendConfig
from models.errors import AudioError
from utils.audio.recorders import RecorderFacts, read_recorder
from utils.audio.recordings import Outcome, RecordingReader, check_audible
from utils.preparation.examination import Examiner, SoundFacts
from utils.preparation.labelling import QUIET, RegionOutcome, WindowLabeller, lost_regions
from utils.preparation.regions import Source
from utils.running.parallel import report_alive
from utils.storage.files import file_sha256, is_whole_array, save_array
from utils.storage.journal import settings_key
from utils.storage.names import folder_name

_CODE_VERSION = 1  # raise it when the same settings give other windows, labels or facts
_ANTIPHASE = -0.9  # correlation of two channels below which mixing them down cancels the sound
_ACTIVE_RANGE_DB = 30.0  # a window this far below the recording's loudest sound holds no sound of interest


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
        ``active`` or ``all``; what somebody marked is never left out.
    min_overlap_seconds : float
        How much of a label a window must hold, see ``utils.preparation.labelling``.
    background_label : str or None
        Class of windows in which nothing is marked; None leaves them out.
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
    group_by, labels_from : str
        What the sources were grouped by, and where their labels come from: sides of the split are kept for equal ones.
    background_dir : Path or None
        Recordings without calls to mix into augmented copies; None takes the training windows of environmental sound.
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
    min_overlap_seconds: float = 0.5
    background_label: str | None = None
    group_by: str = "recording"
    labels_from: str = ""
    background_dir: Path | None = None
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

    def of_windows(self) -> dict:
        """Return what the windows of a recording depend on, for the journal and for telling what changed."""
        return {"code_version": _CODE_VERSION, "fingerprint": frontend_fingerprint(self.frontend),
                **self.frontend.to_dict(), "segment_overlap_ms": self.segment_overlap_ms,
                "segment_selection": self.segment_selection, "min_overlap_seconds": self.min_overlap_seconds,
                "background_label": self.background_label}

    def augmentation_key(self) -> str:
        """Return what augmented copies depend on beside their windows, as a hash."""
        return settings_key(self.of_windows(), {name: value for name, value in self.augmentation.to_dict().items()
                                                if name in WAVEFORM_SETTINGS}, self.random_state)


@dataclass(frozen=True)
class LabelledWindow:
    """One window that was kept: its spectrogram, class and place."""

    path: str
    class_name: str
    start_sample: int
    end_sample: int


@dataclass(frozen=True)
class ExtractedRecording:
    """One input file: what became of it, what it is like, its windows, and what became of its labels."""

    source_path: str
    outcome: Outcome
    sha256: str = ""
    windows: tuple[LabelledWindow, ...] = ()
    regions: tuple[RegionOutcome, ...] = ()
    sound: SoundFacts | None = None
    recorder: RecorderFacts = RecorderFacts()
    declared_seconds: float | None = None
    lost_worker: bool = False  # it was not the recording's fault, perhaps, and it is tried again

    def to_json(self) -> dict:
        """Return plain types for the journal."""
        return {"source_path": self.source_path, **asdict(self.outcome), "sha256": self.sha256,
                "segments": [asdict(window) for window in self.windows],
                "regions": [asdict(region) for region in self.regions],
                "sound": asdict(self.sound) if self.sound else None, "recorder": self.recorder.to_dict(),
                "declared_seconds": self.declared_seconds, "lost_worker": self.lost_worker}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ExtractedRecording":
        """Rebuild what ``to_json`` gave."""
        outcome = Outcome(**{field.name: values[field.name] for field in fields(Outcome)})
        return cls(values["source_path"], outcome, values["sha256"],
                   tuple(LabelledWindow(**window) for window in values["segments"]),
                   tuple(RegionOutcome(**region) for region in values["regions"]),
                   SoundFacts(**values["sound"]) if values["sound"] else None,
                   RecorderFacts.from_dict(values["recorder"]), values["declared_seconds"], values["lost_worker"])

    @classmethod
    def lost(cls, source: Source, outcome: Outcome, **facts: Any) -> "ExtractedRecording":
        """Return what there is to say of a recording that gave nothing."""
        return cls(source.source_path, outcome, regions=tuple(lost_regions(
            source.regions, f"{outcome.status}: see files.csv")), **facts)


def extract_recording(settings: PreprocessSettings, source: Source) -> ExtractedRecording:
    """Decode one recording, write the log-mels of its windows, and say what came of it.

    Never raises for a bad file: the reason stands in the result.
    """
    cutter = _Cutter(settings, source)
    found = _read(source.audio_path(settings.input_dir), settings.frontend.sample_rate, cutter.cut)
    if found["outcome"].status != "ok":
        cutter.remove_all()
        return ExtractedRecording.lost(source, **found)
    windows = cutter.finish()
    reasons = [found["outcome"].reason] if found["outcome"].reason else []
    if not windows:
        reasons.append(f"none of its {len(source.regions)} labels gave a window: see regions.csv" if source.regions
                       else "nothing is marked in it")
    found["outcome"] = replace(found["outcome"], reason="; ".join(reasons))
    return ExtractedRecording(source.source_path, windows=windows, regions=cutter.outcomes(), **found)


def examine_recording(settings: PreprocessSettings, source: Source) -> ExtractedRecording:
    """Decode one recording and say what it is like, without making anything of it."""
    found = _read(source.audio_path(settings.input_dir), None, lambda reader: max(
        (float(np.abs(block).max(initial=0.0)) for block in reader.blocks()), default=0.0))
    return ExtractedRecording(source.source_path, **found)


def _read(path: Path, sample_rate: int | None, use: Callable[[RecordingReader], float]) -> dict[str, Any]:
    """Return what is known of a recording that ``use`` reads to its end, which returns the peak of what it read."""
    facts: dict[str, Any] = {}
    found: dict[str, Any] = {}
    try:
        with RecordingReader(path, sample_rate=sample_rate, on_block=report_alive) as reader:
            facts = {"sample_rate": reader.native_sample_rate, "channels": reader.channels}
            examiner = Examiner(reader.native_sample_rate)
            reader.examine = examiner.add
            if reader.n_samples is not None:
                found["declared_seconds"] = round(reader.n_samples / reader.sample_rate, 6)
            found["recorder"] = read_recorder(path)
            peak = use(reader)
        facts["duration_seconds"] = round(reader.duration_seconds, 6)
        found |= {"sound": examiner.facts(), "sha256": _sha256(path)}
        check_audible(path, duration_seconds=reader.duration_seconds, peak=peak)
    except AudioError as error:
        return {**found, "outcome": Outcome(error.status, _worded(error, path, found.get("sound")), **facts)}
    return {**found, "outcome": Outcome(reason=reader.damage, **facts)}


def _worded(error: AudioError, path: Path, sound: SoundFacts | None) -> str:
    if error.status == "silent" and sound is not None and (sound.channel_correlation or 0.0) < _ANTIPHASE:
        return (f"{path}: its channels cancel each other when they are mixed down (antiphase): turn the polarity of one"
                f" round, or keep one channel")
    return str(error)


class _Cutter:
    """Cuts, labels and writes the windows of one recording."""

    def __init__(self, settings: PreprocessSettings, source: Source) -> None:
        self._settings, self._source = settings, source
        self._frontend: LogMelFrontend = cached_frontend(settings.frontend)
        self._labeller = WindowLabeller(source.regions, sample_rate=settings.frontend.sample_rate,
                                        min_overlap_seconds=settings.min_overlap_seconds,
                                        background=settings.background_label if source.is_annotated else None)
        self._n_samples = 0
        self._written: dict[str, LabelledWindow] = {}
        self._levels: dict[str, float] = {}  # of the windows that are kept only if they hold sound
        self._loudest = -np.inf

    def cut(self, reader: RecordingReader) -> float:
        """Write every window that has a label; return the highest sample of all windows."""
        frontend, peak = self._settings.frontend, 0.0
        for _, start, samples in reader.windows(segment_samples=frontend.segment_samples,
                                                hop_samples=self._settings.hop_samples,
                                                least_new_samples=frontend.least_new_samples):
            self._n_samples = start + len(samples)
            peak = max(peak, float(samples.max()), -float(samples.min()))
            decision = self._labeller.label(start, self._n_samples)
            if decision.class_name:
                self._write(decision.class_name, start, samples, is_marked=decision.is_marked)
        # the end of a recording may add too little for another window
        self._n_samples = max(self._n_samples, round(reader.duration_seconds * reader.sample_rate))
        return peak

    def finish(self) -> tuple[LabelledWindow, ...]:
        """Leave out what holds no sound; return what is left."""
        for path, level in self._levels.items():
            if level <= self._loudest - _ACTIVE_RANGE_DB:
                self._leave_out(path)
        return tuple(self._written.values())

    def outcomes(self) -> tuple[RegionOutcome, ...]:
        """Return what became of each labelled region, once it is certain which windows are left."""
        return tuple(self._labeller.outcomes(self._n_samples))

    def remove_all(self) -> None:
        """Remove what was written."""
        for path in self._written:
            (self._settings.output_dir / path).unlink(missing_ok=True)

    def _write(self, class_name: str, start: int, samples: np.ndarray, *, is_marked: bool) -> None:
        log_mel = self._frontend.log_mel(samples)
        path = self._path(class_name, start)
        if self._settings.segment_selection == "active" and not is_marked:
            peaks = log_mel.max(axis=0)
            self._loudest = max(self._loudest, _lasting_level(peaks, self._settings.frontend))
            level = float(peaks.max())
            if level <= self._loudest - _ACTIVE_RANGE_DB:
                self._labeller.take_back(start, QUIET)
                return
            self._levels[path] = level
        save_array(self._settings.output_dir / path, log_mel)
        self._written[path] = LabelledWindow(path, class_name, start, start + len(samples))

    def _path(self, class_name: str, start: int) -> str:
        start_ms = round(1000 * start / self._settings.frontend.sample_rate)
        stem = f"spectrograms/{folder_name(class_name)}/{self._source.file_stem}_{start_ms}"
        # windows less than a millisecond apart
        return f"{stem}.npy" if f"{stem}.npy" not in self._written else f"{stem}-{start}.npy"

    def _leave_out(self, path: str) -> None:
        self._labeller.take_back(self._written.pop(path).start_sample, QUIET)
        (self._settings.output_dir / path).unlink(missing_ok=True)


def _lasting_level(frame_peaks: np.ndarray, frontend: FrontendConfig) -> float:
    """Return the level that a window reaches for longer than a click lasts in it: a click is not a loud recording."""
    n_frames = min(len(frame_peaks), 2 * (frontend.n_fft // frontend.hop_length) + 1)
    return float(np.partition(frame_peaks, -n_frames)[-n_frames])


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise AudioError(f"{path} cannot be opened: {error.strerror}", status="corrupt") from error
