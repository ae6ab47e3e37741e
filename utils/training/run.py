"""One training run: manifests in, a model folder out."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from models.classes import ClassList
from models.efficientnet import build_model
from models.efficientnet_config import BACKGROUND_CLASS, EfficientNetConfig
from models.errors import CheckpointError, ConfigError
from utils import reports
from utils.storage.checkpoints import RECORDINGS_KNOWN, check_format, load_model, load_weights, read_checkpoint
from utils.storage.config_files import write_config
from utils.storage.locks import locked
from utils.storage.spectrograms import SpectrogramDataset
from utils.storage.tables import read_table, write_table
from utils.training.data import TrainingData, check_shape, join_recordings, with_frontend
from utils.training.distributed import Processes
from utils.training.model_folder import HISTORY_NAME, ModelFolder, write_history
from utils.training.optimisation import Optimisation, count_steps, resolve_batch_norm
from utils.training.probe import embed, fit_probe
from utils.training.starter import begin, known_recordings
from utils.training_utils import TrainingHistory, TrainingTask, fit, predict_logits

logger = logging.getLogger(__name__)

# what may change when a run is resumed: the rest would make it another run
_RESUMABLE = ("epochs", "patience")


def refuse_another_run(model_dir: Path, *, resume_from: Path | None) -> None:
    """Raise ConfigError when a folder holds a run that would be overwritten, not continued."""
    found = sorted(model_dir.glob("*_last.pth"))
    if not found or resume_from is not None and resume_from.resolve().parent == model_dir.resolve():
        return
    history = model_dir / HISTORY_NAME
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
        task, optimisation, history, known = _begin(data, config, device=device, n_workers=n_workers,
                                                    processes=processes, resume_from=resume_from)
        folder = ModelFolder(model_dir, task.config, data, known if processes.is_main else {})
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
        write_history(model_dir, history)  # a run that was killed may lack its last row
        reports.plot_history(model_dir / "history.png", pd.DataFrame(history.rows), best_epoch=history.best_epoch)
        return folder.finish(logits, labels, best.description.calibration,
                             about={"best_epoch": history.best_epoch, "epochs": history.epoch})


def _begin(data: TrainingData, config: EfficientNetConfig, *, device: torch.device, n_workers: int,
           resume_from: Path | None,
           processes: Processes) -> tuple[TrainingTask, Optimisation, TrainingHistory, dict[str, list[str]]]:
    """Return what a run begins with, all new or as a ``_last.pth`` keeps it, and the recordings it will know."""
    train, val, config = _windows(data, config, processes)
    n_classes = len(data.classes)
    if resume_from is None:
        (model, config), saved = begin(config, n_classes), None
        model = model.to(device)
        if config.probe_first:
            fit_probe(model, train, data.train.recording_ids(), n_classes=n_classes, config=config, device=device,
                      n_workers=n_workers)
    else:
        # the checkpoint brings the weights, those of the start are not needed again
        model, saved = build_model(config, n_classes), read_training_state(resume_from, data.classes)
        load_weights(model, saved["weights"], resume_from)
    task = TrainingTask(model=model.to(device), config=config, train=train, val=val, n_classes=n_classes,
                        device=device, n_workers=n_workers, processes=processes,
                        background_label=background_label(data.classes))
    optimisation, history = task.optimisation(), TrainingHistory()
    before = known_recordings(config) if saved is None else {
        name: saved["metadata"][name] for name in RECORDINGS_KNOWN if name in saved["metadata"]}
    if saved is not None:
        optimisation.load_state_dict(saved["training"])
        history = TrainingHistory.from_dict(saved["training"]["loop"])
    return task, optimisation, history, join_recordings(data.learnt_from(), before)


def _windows(data: TrainingData, config: EfficientNetConfig, processes: Processes = Processes()
             ) -> tuple[SpectrogramDataset, SpectrogramDataset, EfficientNetConfig]:
    """Return the windows of train and val, checked, and the config with their front end and batch norm."""
    train, val = SpectrogramDataset(data.train), SpectrogramDataset(data.val)
    config = resolve_batch_norm(with_frontend(config, data.train),
                                steps_per_epoch=count_steps(len(train), config, processes))
    check_shape(train, config, data.train.path)
    check_shape(val, config, data.val.path)
    return train, val, config


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
        train, val, config = _windows(data, config)
        n_classes = len(data.classes)
        model, config = begin(config, n_classes)
        model = model.to(device)
        classifier, strength, table = fit_probe(model, train, data.train.recording_ids(), n_classes=n_classes,
                                                config=config, device=device, n_workers=n_workers)
        logits = classifier.logits(embed(model, val, batch_size=config.batch_size, device=device,
                                         n_workers=n_workers))
        folder = ModelFolder(model_dir, config, data, join_recordings(data.learnt_from(), known_recordings(config)))
        write_table(model_dir / HISTORY_NAME, pd.DataFrame(table))
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
