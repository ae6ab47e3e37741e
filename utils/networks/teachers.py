"""Teachers: networks whose embeddings and tags a student learns to reproduce.

A teacher is an ONNX file with a description beside it (``perch.onnx`` and ``perch.json``), or a ``.pth`` of this
project. It is handed waveforms and keeps its front end to itself.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import special

from models.audio_frontend import LogMelFrontend
from models.efficientnet_config import FrontendConfig
from models.errors import CheckpointError, ConfigError
from utils.networks.conversions import onnx_errors
from utils.networks.torch_backend import TorchBackend
from utils.running.devices import resolve_device
from utils.storage.checkpoints import load_model
from utils.storage.files import file_sha256, read_json

FORMAT_VERSION = 1
_ACTIVATIONS = {"sigmoid": special.expit, "softmax": lambda logits: special.softmax(logits, axis=-1),
                "none": lambda probabilities: probabilities}
_PROBABILITY_ROUNDING = 1e-3  # beyond 0..1 that is rounding in half precision, not another activation
# what JSON may hold for a field, by its type
_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)), str | None: ("text or null", (str, type(None))), int: ("a whole number", (int,)),
    float: ("a number", (int, float)), Mapping | None: ("an object or null", (Mapping, type(None)))}


@dataclass(frozen=True)
class TeacherOutput:
    """What a teacher says of some windows.

    Parameters
    ----------
    embeddings : numpy.ndarray or None
        float32 ``(n_windows, n_features)``.
    tags : numpy.ndarray or None
        float32 ``(n_windows, n_tags)``, probabilities 0..1.
    """

    embeddings: np.ndarray | None
    tags: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class TeacherDescription:
    """What must be known of a teacher, as the JSON file beside an ``.onnx`` says it.

    Parameters
    ----------
    name, trained_on, licence, source : str
        Where it comes from and what may be done with what it teaches; they travel with the student.
    sample_rate : int
        Of the waveforms it hears, in Hz; a log-mel is made at it too.
    window_seconds : float
        Length of what it hears at once.
    input : str
        ``waveform``, ``(n_windows, n_samples)`` in [-1, 1], or ``log_mel``, ``(n_windows, 1, n_mels, n_frames)`` in dB.
    input_name : str
        Of the ONNX graph.
    frontend : mapping or None
        Settings of the log-mel, as in ``config.json``, where ``input`` is ``log_mel``; rate and length are those above.
    embedding, tags : str or None
        Names of outputs, at least one.
    tag_activation : str
        What makes probabilities of the output ``tags``: ``sigmoid``, ``softmax`` or ``none``.
    """

    name: str
    trained_on: str
    licence: str
    source: str
    sample_rate: int
    window_seconds: float
    input: str = "waveform"
    input_name: str = "waveform"
    frontend: Mapping | None = None
    embedding: str | None = None
    tags: str | None = None
    tag_activation: str = "sigmoid"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, (words, kinds) = getattr(self, field.name), _KINDS[field.type]
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise ConfigError(f"{field.name} must be {words}, got {value!r}")
        if self.input not in ("waveform", "log_mel"):
            raise ConfigError(f"input must be waveform or log_mel, got {self.input!r}")
        if self.tag_activation not in _ACTIVATIONS:
            raise ConfigError(f"tag_activation must be one of {', '.join(_ACTIVATIONS)}, got {self.tag_activation!r}")
        if not self.embedding and not self.tags:
            raise ConfigError("embedding or tags must name an output: a teacher without either teaches nothing")
        if (self.input == "log_mel") != (self.frontend is not None):
            raise ConfigError("frontend must be given where input is log_mel, and only there")
        for name in ("sample_rate", "window_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)!r}")
        self.log_mel_config()

    @property
    def n_samples(self) -> int:
        """Samples it hears at once."""
        return round(self.sample_rate * self.window_seconds)

    def log_mel_config(self) -> FrontendConfig | None:
        """Return the front end of a log-mel input, None for waveforms; ConfigError where its settings are wrong."""
        if self.frontend is None:
            return None
        own = {"sample_rate": self.sample_rate, "segment_duration_ms": round(1000 * self.window_seconds)}
        for name, value in own.items():
            if self.frontend.get(name, value) != value:
                raise ConfigError(f"{name} of frontend is {self.frontend[name]!r}, but sample_rate and window_seconds"
                                  f" make it {value}: leave it out of frontend, or correct them")
        return FrontendConfig.from_dict({**self.frontend, **own})


class Teacher(Protocol):
    """Something that knows sounds.

    Attributes
    ----------
    description : TeacherDescription
        Rate, window, origin, licence.
    sha256 : str
        Of its file.
    """

    description: TeacherDescription
    sha256: str

    def hear(self, waveforms: np.ndarray) -> TeacherOutput:
        """Say what is in waveforms, float32 ``(n_windows, n_samples)`` at the teacher's rate."""


def load_teacher(path: str | os.PathLike, *, device: str = "auto", n_threads: int = 0) -> Teacher:
    """Read a teacher.

    Parameters
    ----------
    path : path-like
        An ``.onnx`` with its description beside it, or a ``.pth`` of this project.
    device : str
        As ``--device``.
    n_threads : int
        Processor threads of an ONNX teacher; 0 leaves it to ONNX Runtime.

    Raises
    ------
    CheckpointError
        If the file is no such network.
    ConfigError
        If its description does not fit it.
    """
    if Path(path).suffix.lower() == ".onnx":
        return OnnxTeacher(Path(path), device=device, n_threads=n_threads)
    return CheckpointTeacher(Path(path), device=device)


def read_description(path: Path) -> TeacherDescription:
    """Read the description of a teacher; ConfigError where it is missing or wrong."""
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: a teacher needs a description beside it; the README shows one")
    values = read_json(path)
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path} has format_version {version!r}, this NightScan reads {FORMAT_VERSION}")
    known = {field.name: field for field in dataclasses.fields(TeacherDescription)}
    unknown = sorted(set(values) - set(known))
    missing = sorted(name for name, field in known.items()
                     if field.default is dataclasses.MISSING and name not in values)
    if unknown or missing:
        problem = f"unknown key {unknown[0]!r}" if unknown else f"the key {missing[0]!r} is missing"
        raise ConfigError(f"{path}: {problem}: the keys are {', '.join(known)}")
    try:
        return TeacherDescription(**values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


class OnnxTeacher:
    """A teacher in ONNX Runtime.

    Parameters
    ----------
    path : Path
        The ``.onnx``; its description is the ``.json`` of the same name.
    device : str
        As ``--device``; CUDA is used where ONNX Runtime has it.
    n_threads : int
        Processor threads; 0 leaves it to ONNX Runtime.
    """

    def __init__(self, path: Path, *, device: str = "auto", n_threads: int = 0) -> None:
        import onnxruntime  # late: only distillation needs it
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist: give the .onnx of a teacher")
        self.description = read_description(path.with_suffix(".json"))
        self.sha256 = file_sha256(path)
        self._path = path
        self._errors = onnx_errors()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        wanted = ["CPUExecutionProvider"]
        if resolve_device(device).type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            wanted.insert(0, "CUDAExecutionProvider")
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=wanted)
        except self._errors as error:
            raise CheckpointError(f"{path} is no network that ONNX Runtime reads: {_first_line(error)}") from error
        given = {"input": {node.name for node in self._session.get_inputs()},
                 "output": {node.name for node in self._session.get_outputs()}}
        for kind, name in (("input", self.description.input_name), ("output", self.description.embedding),
                           ("output", self.description.tags)):
            if name and name not in given[kind]:
                raise ConfigError(f"{path.with_suffix('.json')}: {path.name} has no {kind} {name!r}: it has"
                                  f" {', '.join(sorted(given[kind]))}")
        frontend = self.description.log_mel_config()
        self._frontend = LogMelFrontend(frontend) if frontend is not None else None

    def hear(self, waveforms: np.ndarray) -> TeacherOutput:
        """Say what is in waveforms, float32 ``(n_windows, n_samples)`` at the teacher's rate.

        Raises
        ------
        ConfigError
            If the network does not take them, or what it gives is not what its description says.
        """
        description = self.description
        inputs = np.asarray(waveforms, dtype=np.float32)
        if self._frontend is not None:
            inputs = np.stack([self._frontend.log_mel(waveform) for waveform in waveforms])[:, None]
        names = [name for name in (description.embedding, description.tags) if name]
        try:
            found = dict(zip(names, self._session.run(names, {description.input_name: inputs}), strict=True))
        except self._errors as error:
            raise ConfigError(f"{self._path} does not take an input of shape {inputs.shape} ({_first_line(error)}):"
                              f" correct {self._path.with_suffix('.json').name}; the first axis must be"
                              f" free") from error
        rows = {name: self._rows(name, value, len(waveforms)) for name, value in found.items()}
        return TeacherOutput(rows[description.embedding] if description.embedding else None,
                             self._probabilities(rows[description.tags]) if description.tags else None)

    def _rows(self, name: str, value: Any, n_windows: int) -> np.ndarray:
        values = np.asarray(value, dtype=np.float32)
        # some graphs drop the first axis of a single window, others keep axes of length 1
        if n_windows > 1 and values.shape[:1] != (n_windows,):
            raise ConfigError(f"{self._path}: the output {name!r} has shape {values.shape} for {n_windows} windows: the"
                              f" first axis must be theirs")
        if not np.isfinite(values).all():
            raise ConfigError(f"{self._path}: the output {name!r} holds values that are not finite: a teacher must bear"
                              f" every sound, silence too")
        return values.reshape(n_windows, -1)

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        description = self.description
        tags = _ACTIVATIONS[description.tag_activation](outputs).astype(np.float32)
        low, high = float(tags.min()), float(tags.max())
        if not -_PROBABILITY_ROUNDING <= low <= high <= 1 + _PROBABILITY_ROUNDING:
            raise ConfigError(f"{self._path}: with tag_activation {description.tag_activation} the output"
                              f" {description.tags!r} lies in {low:g}..{high:g}, but probabilities lie in 0..1: give"
                              f" another tag_activation in {self._path.with_suffix('.json').name}")
        return np.clip(tags, 0, 1)


class CheckpointTeacher:
    """A network of this project as teacher: it teaches its pooled features and its classes.

    Parameters
    ----------
    path : Path
        A ``.pth`` that ``train_efficientnet.py`` wrote.
    device : str
        As ``--device``.
    """

    def __init__(self, path: Path, *, device: str = "auto") -> None:
        self._backend = TorchBackend(load_model(path), resolve_device(device), precision="float32")
        model = self._backend.description
        self.sha256 = model.sha256
        self._frontend = LogMelFrontend(model.frontend)
        self.description = TeacherDescription(
            name=model.model_name, trained_on=f"the classes {', '.join(model.classes.names)}",
            licence="that of its recordings", source=path.name, sample_rate=model.frontend.sample_rate,
            window_seconds=model.frontend.segment_duration_ms / 1000, embedding="embeddings", tags="logits",
            tag_activation="softmax")

    def hear(self, waveforms: np.ndarray) -> TeacherOutput:
        """Say what is in waveforms, float32 ``(n_windows, n_samples)`` at the teacher's rate."""
        output = self._backend.run(np.stack([self._frontend.log_mel(waveform) for waveform in waveforms]),
                                   with_embeddings=True)
        return TeacherOutput(output.embeddings, self._backend.description.calibration.probabilities(
            output.logits).astype(np.float32))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
