"""One training run: manifests in, a model folder out."""

import contextlib
import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from models import calibration
from models.calibration import Calibration, cross_fitted_probabilities
from models.classes import ClassList, DecisionRules
from models.efficientnet import build_model
from models.efficientnet_config import BACKGROUND_CLASS, RESNET_NAME, EfficientNetConfig
from models.errors import CheckpointError, ConfigError, ManifestError
from models.thresholds import NEVER, thresholds_for_precision
from utils import metrics, reports
from utils.storage.checkpoints import check_format, load_model, load_weights, read_checkpoint, save_model
from utils.storage.config_files import write_config
from utils.storage.files import write_json
from utils.storage.locks import locked
from utils.storage.manifest import Manifest, check_no_shared_recording, read_manifest, recording_contents
from utils.storage.names import recording_hash
from utils.storage.spectrograms import SpectrogramDataset
from utils.storage.splits import grouped_folds
from utils.storage.tables import read_table, write_table
from utils.training.distributed import Processes
from utils.training.optimisation import Optimisation, count_steps, resolve_batch_norm
from utils.training.probe import choose_strength, embed, fit_linear
from utils.training.starter import begin
from utils.training_utils import TrainingHistory, TrainingTask, fit, predict_logits

logger = logging.getLogger(__name__)

_LISTED_RECORDINGS = 3  # how many shared recordings an error names
_HISTORY_NAME = "history.csv"
_MOST_CALIBRATION_FOLDS = 5
_LEAST_RECORDINGS_PER_CLASS = 2  # on average; with fewer, a fold's classes are unknown to the others
# what may change when a run is resumed: the rest would make it another run
_RESUMABLE = ("epochs", "patience")


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Checked manifests of one run.

    Parameters
    ----------
    train, val : Manifest
        Same front end and classes.
    shared_recordings : list of str
        Recordings on both sides; not empty only when leakage was allowed.
    """

    train: Manifest
    val: Manifest
    shared_recordings: list[str]

    @property
    def classes(self) -> ClassList:
        """Class order."""
        return self.train.classes

    def learnt_from(self) -> dict[str, list[str]]:
        """Return what the run's checkpoints tell of its recordings."""
        sides = (self.train, self.val)
        return describe_recordings([name for side in sides for name in side.recording_ids()],
                                   contents_of_recordings(sides))


def read_training_data(train_csv: Path, val_csv: Path, *, allow_leakage: bool) -> TrainingData:
    """Read and check the manifests of a training run.

    Raises
    ------
    ManifestError
        If front ends or classes differ, a recording is on both sides, or there is only one class.
    """
    train = read_manifest(train_csv)
    val = read_manifest(val_csv, class_names=train.classes.names)
    if train.frontend != val.frontend:
        raise ManifestError(f"{train_csv} and {val_csv} were made by different front ends: {_difference(train, val)};"
                            f" preprocess both with the same settings")
    if train.classes != val.classes:
        raise ManifestError(f"{train_csv} has the classes {', '.join(train.classes.names)}, {val_csv} has"
                            f" {', '.join(val.classes.names)}: preprocess both together")
    n_present = len(set(train.labels()))
    if n_present < 2:
        raise ManifestError(f"{train_csv} holds only one class: a classifier needs at least two")
    shared = check_no_shared_recording(train, val)
    if shared and not allow_leakage:
        listed = ", ".join(shared[:_LISTED_RECORDINGS])
        raise ManifestError(f"{train_csv} and {val_csv} share {len(shared)} recordings ({listed}): validation would"
                            f" be on what was learnt; split by recording, or pass --allow_leakage")
    return TrainingData(train=train, val=val, shared_recordings=shared)


def _difference(train: Manifest, val: Manifest) -> str:
    first = train.frontend.to_dict() if train.frontend else {}
    second = val.frontend.to_dict() if val.frontend else {}
    names = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    return ", ".join(f"{name} {first.get(name)} and {second.get(name)}" for name in names)


def contents_of_recordings(manifests: Iterable[Manifest]) -> dict[str, frozenset[str]]:
    """Return the content ids of every recording of some manifests; of a recording in several, all its ids."""
    contents: dict[str, frozenset[str]] = {}
    for manifest in manifests:
        for recording_id, found in recording_contents(manifest).items():
            contents[recording_id] = contents.get(recording_id, frozenset()) | found
    return contents


def describe_recordings(recording_ids: Iterable[str], contents: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    """Return what a checkpoint tells of the recordings it learnt from, by which evaluation knows them again.

    Parameters
    ----------
    recording_ids : iterable of str
        Each may occur several times.
    contents : mapping of str to frozenset of str
        From ``contents_of_recordings``.

    Returns
    -------
    dict
        ``recordings``, hashes of the ids, and ``recording_contents``, content ids; both sorted.
    """
    names = set(map(str, recording_ids))  # NumPy's text is no plain type, and checkpoints hold nothing else
    return {"recordings": sorted(set(map(recording_hash, names))),
            "recording_contents": sorted(set().union(*(contents.get(name, ()) for name in names)))}


def with_frontend(config: EfficientNetConfig, manifest: Manifest) -> EfficientNetConfig:
    """Return the config with the front end that made the spectrograms."""
    if manifest.frontend is None:
        logger.warning("%s has no dataset.json beside it: its spectrograms are taken to be made by the front end of"
                       " the config", manifest.path)
        return config
    return config.replace(frontend=manifest.frontend)


def check_shape(dataset: SpectrogramDataset, config: EfficientNetConfig, path: Path) -> None:
    """Raise ManifestError when the spectrograms are not what the front end makes."""
    expected = (config.frontend.n_mels, config.frontend.n_frames)
    if dataset.shape != expected:
        raise ManifestError(f"the spectrograms of {path} have shape {dataset.shape}, the front end makes {expected}:"
                            f" run preprocess_enhanced.py again or correct the config's frontend")


@dataclass(frozen=True)
class ModelFolder:
    """Where a run's files stand, and how they are written.

    Parameters
    ----------
    path : Path
        The ``model_dir``.
    config : EfficientNetConfig
        Resolved config of the run.
    data : TrainingData
        What it learns.
    learnt_from : mapping
        From ``data.learnt_from()``; empty where nothing is written.
    """

    path: Path
    config: EfficientNetConfig
    data: TrainingData
    learnt_from: Mapping[str, list[str]]

    @property
    def best(self) -> Path:
        """The checkpoint to deploy."""
        return checkpoint_path(self.path, self.config.model_name, "best")

    @property
    def last(self) -> Path:
        """The checkpoint to resume."""
        return checkpoint_path(self.path, self.config.model_name, "last")

    def save_epoch(self, model: torch.nn.Module, optimisation: Optimisation, history: TrainingHistory,
                   logits: np.ndarray, labels: np.ndarray) -> None:
        """Write ``_last.pth``, ``history.csv`` and, after the best epoch so far, ``_best.pth``."""
        about = {"epoch": history.epoch, "best_epoch": history.best_epoch, "validation": history.rows[-1]}
        if history.is_best:
            self.save_best(optimisation.kept, logits, labels, about=about)
        self._save(self.last, model, Calibration(), about=about, config=self.config,
                   training={**optimisation.state_dict(), "loop": history.to_dict()})
        write_history(self.path, history)

    def save_best(self, model: torch.nn.Module, logits: np.ndarray, labels: np.ndarray, *, about: Mapping
                  ) -> Calibration:
        """Write ``_best.pth``, calibrated on its validation logits; return the calibration."""
        fitted = calibration.fit(logits, labels, recording_ids=self.data.val.recording_ids())
        self._save(self.best, model, fitted, about=about, config=self._with_thresholds(logits, labels))
        return fitted

    def finish(self, logits: np.ndarray, labels: np.ndarray, calibrated: Calibration, *, about: Mapping) -> dict:
        """Write the scores and pictures of the best model, and its thresholds into the config; return the scores."""
        names = self.data.classes.names
        config = self.config.replace(thresholds=read_checkpoint(self.best)["config"]["thresholds"])
        write_config(self.path / "config.json", config)
        self._tell_silent_classes(config)
        probabilities, fitted_on = self._scored_probabilities(logits, labels)
        segments = metrics.ScoredSegments(probabilities, labels, names)
        scores = metrics.evaluate_segments(segments)
        write_json(self.path / "metrics.json", {
            "format_version": 1, "split": "validation", **about,
            **calibrated.to_dict(), "calibration_scores": fitted_on, "allowed_leakage": self.data.shared_recordings,
            "environment": {"torch": str(torch.__version__), "python": platform.python_version()}, **scores,
            "answered": metrics.answered_scores(segments, DecisionRules.of_config(config, self.data.classes))})
        title = f"{self.config.model_name}, validation"
        reports.plot_confusion_matrix(self.path / "confusion_matrix.png", np.array(scores["confusion_matrix"]),
                                      class_names=names, title=title)
        reports.plot_roc_curves(self.path / "roc_curves.png", probabilities, labels, class_names=names)
        reports.plot_precision_recall_curves(self.path / "precision_recall_curves.png", probabilities, labels,
                                             class_names=names)
        reports.plot_reliability(self.path / "reliability.png", probabilities, labels,
                                 title=f"{title}, calibration {fitted_on.replace('_', '-')}")
        return scores

    def _scored_probabilities(self, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, str]:
        """Return validation probabilities to be scored, and whether they are ``cross_fitted`` or ``in_sample``.

        The calibration that is deployed is fitted on all of validation: scores of its own probabilities there would
        be too good. Each fold of recordings is therefore calibrated by the others, where there are enough of them.
        """
        recording_ids = self.data.val.recording_ids()
        n_recordings, counts = len(set(recording_ids)), np.bincount(labels)
        if n_recordings < _LEAST_RECORDINGS_PER_CLASS * np.count_nonzero(counts):
            fitted = calibration.fit(logits, labels, recording_ids=recording_ids)
            return fitted.probabilities(logits), "in_sample"
        folds = grouped_folds(labels, recording_ids, random_state=self.config.seed,
                              n_folds=min(_MOST_CALIBRATION_FOLDS, n_recordings, int(counts.max())))
        return cross_fitted_probabilities(logits, labels, folds, recording_ids=recording_ids), "cross_fitted"

    def _with_thresholds(self, logits: np.ndarray, labels: np.ndarray) -> EfficientNetConfig:
        """Return the config with the thresholds that its ``target_precision`` asks for."""
        if self.config.target_precision is None:
            return self.config
        found = thresholds_for_precision(self._scored_probabilities(logits, labels)[0], labels,
                                         class_names=self.data.classes.names,
                                         target_precision=self.config.target_precision,
                                         recording_ids=self.data.val.recording_ids())
        found.pop(self.config.reject_class, None)  # to say "unknown" promises nothing
        return self.config.replace(thresholds={**self.config.thresholds, **found})

    def _tell_silent_classes(self, config: EfficientNetConfig) -> None:
        silent = [name for name in self.data.classes.names if config.threshold(name) >= NEVER]
        if config.target_precision is not None and silent:
            logger.warning("%s will never be reported: on validation no threshold gives a precision that is surely %g;"
                           " add validation recordings, or lower --target_precision", ", ".join(silent),
                           config.target_precision)

    def _save(self, path: Path, model: torch.nn.Module, calibrated: Calibration, *, about: Mapping,
              config: EfficientNetConfig, training: Mapping | None = None) -> None:
        metadata = {**about, "allowed_leakage": list(self.data.shared_recordings), "torch": str(torch.__version__),
                    **self.learnt_from}
        save_model(path, model.state_dict(), config=config, classes=self.data.classes, calibration=calibrated,
                   metadata=metadata, training=training)


def checkpoint_path(model_dir: Path, model_name: str, kind: str) -> Path:
    """Return ``efficientnet_<kind>.pth`` or ``resnet18_<kind>.pth`` in a model folder."""
    stem = RESNET_NAME if model_name == RESNET_NAME else "efficientnet"
    return model_dir / f"{stem}_{kind}.pth"


def write_history(folder: Path, history: TrainingHistory) -> None:
    """Write ``history.csv``, a row an epoch."""
    write_table(folder / _HISTORY_NAME, pd.DataFrame(history.rows))


def refuse_another_run(model_dir: Path, *, resume_from: Path | None) -> None:
    """Raise ConfigError when a folder holds a run that would be overwritten, not continued."""
    found = sorted(model_dir.glob("*_last.pth"))
    if not found or resume_from is not None and resume_from.resolve().parent == model_dir.resolve():
        return
    history = model_dir / _HISTORY_NAME
    length = f" of {len(read_table(history))} epochs" if history.is_file() else ""
    raise ConfigError(f"{model_dir} holds a run{length} ({found[0].name}): pass --resume to continue it, or choose"
                      f" another --model_dir")


def train_model(data: TrainingData, config: EfficientNetConfig, *, model_dir: Path, device: torch.device,
                n_workers: int, resume_from: Path | None = None,
                processes: Processes = Processes()) -> dict:
    """Train one model and write its folder.

    Parameters
    ----------
    data : TrainingData
        From ``read_training_data``.
    config : EfficientNetConfig
        The experiment; on resume, that of ``resume_config``.
    model_dir : Path
        Where everything goes; locked meanwhile.
    device : torch.device
        From ``resolve_device``.
    n_workers : int
        Loading processes.
    resume_from : Path, optional
        A ``_last.pth`` to go on from; of the runs in ``model_dir`` only its own may be written over.
    processes : Processes
        Training processes that share the work.

    Returns
    -------
    dict
        Validation scores of the best epoch; empty but on the main process.

    Raises
    ------
    ConfigError
        If the folder holds a run that is not the one to resume, or another process writes it.
    ManifestError
        If a spectrogram is not what the front end makes.
    CheckpointError
        If the state to resume does not fit.
    """
    with locked(model_dir) if processes.is_main else contextlib.nullcontext():
        if processes.is_main:
            refuse_another_run(model_dir, resume_from=resume_from)
        task, optimisation, history = _begin(data, config, device=device, n_workers=n_workers, processes=processes,
                                             resume_from=resume_from)
        folder = ModelFolder(model_dir, task.config, data, data.learnt_from() if processes.is_main else {})
        if processes.is_main:
            write_config(model_dir / "config.json", task.config)
        logger.info("training %s on %s: %d windows, %d steps an epoch", task.config.model_name, device,
                    len(task.train), task.steps_per_epoch)
        fit(task, optimisation, history,
            after_epoch=lambda *outcome: folder.save_epoch(task.model, optimisation, *outcome))
        if not processes.is_main:
            return {}
        best = load_model(folder.best)
        logits, labels = predict_logits(best.network.to(device), task.val, config=task.config, device=device,
                                        n_workers=n_workers)
        reports.plot_history(model_dir / "history.png", pd.DataFrame(history.rows), best_epoch=history.best_epoch)
        return folder.finish(logits, labels, best.description.calibration,
                             about={"best_epoch": history.best_epoch, "epochs": history.epoch})


def _begin(data: TrainingData, config: EfficientNetConfig, *, device: torch.device, n_workers: int,
           resume_from: Path | None,
           processes: Processes) -> tuple[TrainingTask, Optimisation, TrainingHistory]:
    """Return what a run begins with: all new, or as a ``_last.pth`` keeps it."""
    train, val, n_classes = SpectrogramDataset(data.train), SpectrogramDataset(data.val), len(data.classes)
    config = resolve_batch_norm(with_frontend(config, data.train),
                                steps_per_epoch=count_steps(len(train), config, processes))
    check_shape(train, config, data.train.path)
    check_shape(val, config, data.val.path)
    if resume_from is None:
        (model, config), saved = begin(config, n_classes), None
    else:
        # the checkpoint brings the weights, those of the start are not needed again
        model, saved = build_model(config, n_classes), read_training_state(resume_from, data.classes)
        load_weights(model, saved["weights"], resume_from)
    task = TrainingTask(model=model.to(device), config=config, train=train, val=val, n_classes=n_classes,
                        device=device, n_workers=n_workers, processes=processes,
                        background_label=background_label(data.classes))
    optimisation, history = task.optimisation(), TrainingHistory()
    if saved is not None:
        optimisation.load_state_dict(saved["training"])
        history = TrainingHistory.from_dict(saved["training"]["loop"])
    return task, optimisation, history


def background_label(classes: ClassList) -> int | None:
    """Return the label of the class that ``use_background_mix`` mixes in; None where there is no such class."""
    return classes.index(BACKGROUND_CLASS) if BACKGROUND_CLASS in classes.names else None


def probe_model(data: TrainingData, config: EfficientNetConfig, *, model_dir: Path, device: torch.device,
                n_workers: int) -> dict:
    """Fit a linear classifier on what a start hears and write its folder: a model in seconds after one pass.

    Parameters
    ----------
    data : TrainingData
        From ``read_training_data``.
    config : EfficientNetConfig
        ``initial_weights`` says what hears.
    model_dir : Path
        Where everything goes; locked meanwhile.
    device : torch.device
        From ``resolve_device``.
    n_workers : int
        Loading processes.

    Returns
    -------
    dict
        Validation scores.

    Raises
    ------
    ConfigError
        If the folder holds a model, or another process writes it.
    ManifestError
        If a spectrogram is not what the front end makes, or there are fewer than two recordings.
    """
    with locked(model_dir):
        found = next(iter(sorted(model_dir.glob("*.pth"))), None)
        if found:
            raise ConfigError(f"{model_dir} holds a model ({found.name}): choose another --model_dir")
        train, val = SpectrogramDataset(data.train), SpectrogramDataset(data.val)
        config = resolve_batch_norm(with_frontend(config, data.train), steps_per_epoch=count_steps(len(train), config))
        check_shape(train, config, data.train.path)
        check_shape(val, config, data.val.path)
        n_classes = len(data.classes)
        model, config = begin(config, n_classes)
        model = model.to(device)
        embeddings, val_embeddings = (embed(model, dataset, batch_size=config.batch_size, device=device,
                                            n_workers=n_workers) for dataset in (train, val))
        strength, table = choose_strength(embeddings, train.labels, data.train.recording_ids(), n_classes=n_classes,
                                          random_state=config.seed)
        classifier = fit_linear(embeddings, train.labels, n_classes=n_classes, strength=strength)
        classifier.put_into(model)
        logits = classifier.logits(val_embeddings)
        folder = ModelFolder(model_dir, config, data, data.learnt_from())
        write_table(model_dir / _HISTORY_NAME, pd.DataFrame(table))
        fitted = folder.save_best(model, logits, val.labels, about={"linear_probe_strength": strength})
        return folder.finish(logits, val.labels, fitted, about={"linear_probe_strength": strength})


def read_training_state(path: Path, classes: ClassList) -> dict:
    """Return the content of a ``_last.pth``.

    Raises
    ------
    CheckpointError
        If it holds no training state, or other classes.
    """
    content = read_checkpoint(path)
    check_format(path, content)
    if "training" not in content:
        raise CheckpointError(f"{path} holds no training state to resume: give a *_last.pth")
    if tuple(content.get("class_names", ())) != classes.names:
        raise CheckpointError(f"{path} was trained on the classes {', '.join(content.get('class_names', ()))}, the"
                              f" manifests have {', '.join(classes.names)}")
    return content


def resume_config(path: Path, asked: EfficientNetConfig | None, given: Sequence[str]) -> EfficientNetConfig:
    """Return the config to resume with: the checkpoint's, with what may change taken from the flags.

    Parameters
    ----------
    path : Path
        A ``_last.pth``.
    asked : EfficientNetConfig or None
        Config with the flags applied, when flags were given.
    given : sequence of str
        Names of the settings given as flags.

    Raises
    ------
    ConfigError
        If a flag would change the run.
    """
    content = read_checkpoint(path)
    check_format(path, content)
    saved = EfficientNetConfig.from_dict(content["config"])
    if asked is None:
        return saved
    for name in given:
        value = getattr(asked, name, None) if hasattr(asked, name) else getattr(asked.augmentation, name)
        before = getattr(saved, name, None) if hasattr(saved, name) else getattr(saved.augmentation, name)
        if name not in _RESUMABLE and value != before:
            raise ConfigError(f"--{name} {value} differs from {before} in {path}: a resumed run keeps its settings"
                              f" (only {', '.join(_RESUMABLE)} may change); leave it out or train anew")
    return saved.replace(**{name: getattr(asked, name) for name in given if name in _RESUMABLE})
