"""Distillation: a network learns to hear what a teacher hears, from recordings without labels.

Teacher and student hear the same window: audio mixed, shifted, resampled, filtered and masked. The student's pooled
features learn the teacher's embedding through a projection that is thrown away, and its tags through another (Hinton
et al. 2015, "Distilling the Knowledge in a Neural Network"; Romero et al. 2015, "FitNets", section 2).
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soxr
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from models.audio_frontend import cached_frontend
from models.efficientnet import SpectrogramClassifier, batch_norm_epsilon, body_weights, classifier_of
from models.efficientnet_config import EfficientNetConfig, FrontendConfig
from models.errors import CheckpointError, ConfigError, ManifestError
from models.sound_variation import draw_variation, vary
from utils.networks.teachers import Teacher, TeacherOutput
from utils.running.devices import autocast, autocast_dtype
from utils.running.parallel import Executor
from utils.running.progress import progress
from utils.storage.checkpoints import Start, load_weights, read_checkpoint, save_start
from utils.storage.config_files import write_config
from utils.storage.files import atomic_path, write_json
from utils.storage.journal import settings_key
from utils.storage.locks import locked
from utils.storage.manifest import CONTENT_DIGITS
from utils.storage.tables import write_table
from utils.training.audio_pool import AudioPool, gather, held_out
from utils.training.data import join_recordings
from utils.training.optimisation import Optimisation, make_optimisation, resolve_batch_norm
from utils.training.starter import begin, known_recordings, stages_of_start

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_STATE_KIND = "nightscan-distillation"
STARTER_NAME, _LAST_NAME = "starter.pth", "distillation_last.pth"
_LONGEST_PIECE = 2.0  # times the window: what a faster playing needs
_TAG_WEIGHT = 0.1  # of the summed cross-entropy to the tags beside the mean squared error of the embedding
_N_HELD_OUT_WINDOWS = 512
_HELD_OUT_EPOCH = 0  # training counts epochs from 1, so no held-out window is one that was learnt
_SMALLEST_DEVIATION = 1e-6
_RAREST_TAG = 1e-4  # no tag begins as less likely
# settings that a distillation does not know
_OF_FINE_TUNING = ("accumulation_steps", "probe_first", "freeze_epochs", "freeze_batch_norm", "layer_decay",
                   "l2_to_start", "ema_decay", "reestimate_batch_norm")


class VariedWindows(Dataset):
    """Windows drawn from a pool, each varied, as waveform and as log-mel.

    What window ``index`` is depends on seed, epoch and index alone.

    Parameters
    ----------
    pool : AudioPool
        What to draw from.
    n_windows : int
        How many there are.
    frontend : FrontendConfig
        The student's, with windows as long as the teacher's.
    key : tuple of int
        Seed and epoch.
    """

    def __init__(self, pool: AudioPool, *, n_windows: int, frontend: FrontendConfig, key: tuple[int, int]) -> None:
        self._pool, self._n_windows, self._frontend, self._key = pool, n_windows, frontend, key

    def __len__(self) -> int:
        return self._n_windows

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a waveform at the pool's rate, float32 ``(n_samples,)``, and its log-mel in dB."""
        rng = np.random.default_rng([*self._key, index])
        pool = self._pool
        n_samples = round(pool.sample_rate * self._frontend.segment_duration_ms / 1000)
        variation = draw_variation(rng)
        longest = round(_LONGEST_PIECE * n_samples)
        pieces = [pool.by_time(n_samples=longest, rng=rng)]
        pieces += [pool.by_recording(n_samples=n_samples, rng=rng) for _ in range(variation.n_mixed)]
        waveform = vary(pieces, variation, n_samples=n_samples, sample_rate=pool.sample_rate, rng=rng)
        return waveform, cached_frontend(self._frontend).log_mel(
            resample(waveform, from_rate=pool.sample_rate, to_rate=self._frontend.sample_rate))


def resample(waveform: np.ndarray, *, from_rate: int, to_rate: int) -> np.ndarray:
    """Return a waveform at another rate, as recordings are resampled; float32."""
    return waveform if from_rate == to_rate else soxr.resample(waveform, from_rate, to_rate)


class _Student(nn.Module):
    """The network that learns, with the projections that are thrown away: one for each output of its teacher.

    They begin at what the teacher says on average, whatever is heard: random ones would first drive the body away from
    what its start knows.
    """

    def __init__(self, network: SpectrogramClassifier, said: TeacherOutput) -> None:
        super().__init__()
        self.network = network
        n_features = classifier_of(network).in_features
        self.to_embedding = None if said.embeddings is None else _zeroed(n_features, said.embeddings.shape[1])
        self.to_tags = None if said.tags is None else _zeroed(n_features, said.tags.shape[1])
        if said.tags is not None and self.to_tags is not None:
            mean = torch.from_numpy(said.tags).double().mean(dim=0)
            with torch.no_grad():
                self.to_tags.bias.copy_(torch.logit(mean, eps=_RAREST_TAG))

    def forward(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network.embed(log_mel).float()
        none = features[:, :0]
        return (none if self.to_embedding is None else self.to_embedding(features),
                none if self.to_tags is None else self.to_tags(features))


def _zeroed(n_inputs: int, n_outputs: int) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, n_inputs, n_outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


@dataclass(frozen=True)
class _Standard:
    """Mean and deviation of the teacher's embedding, float32 ``(n_embedding,)``: the student learns it standardised."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, embeddings: np.ndarray) -> Tensor:
        return (torch.from_numpy(embeddings) - self.mean) / self.deviation


def distil(folder: Path, teacher: Teacher, config: EfficientNetConfig, *, model_dir: Path, device: torch.device,
           n_workers: int, executor: Executor, minutes_each: float, resume: bool) -> dict[str, float]:
    """Teach a network what a teacher hears in a folder of recordings, and write it as a start.

    Parameters
    ----------
    folder : Path
        Recordings at every depth; no labels are needed.
    teacher : Teacher
        From ``load_teacher``.
    config : EfficientNetConfig
        Network, optimisation, front end; its windows are as long as the teacher's.
    model_dir : Path
        Gets ``starter.pth``, ``distillation_last.pth``, ``history.csv``, ``metrics.json``, ``config.json``, and the
        decoded audio; locked meanwhile.
    device : torch.device
        Where the student learns.
    n_workers : int
        Processes that make windows; 0 makes them in this one.
    executor : Executor
        Decodes the recordings.
    minutes_each : float
        Of a longer recording so much is used.
    resume : bool
        Go on from the last finished pass in ``model_dir``.

    Returns
    -------
    dict
        Scores of the last pass on recordings that were held out: ``embedding_r2``, the share of the standardised
        embedding's variance that the student explains, and ``tag_agreement``, the share of windows whose top tag is
        the teacher's; each where the teacher has that output.

    Raises
    ------
    ConfigError
        If the folder holds a run that is not to be resumed, or none where one is, or another process writes it; for a
        setting that means nothing here.
    CheckpointError
        If the run to resume had another teacher, audio or settings.
    ManifestError
        If there is no audio.
    """
    _refuse_fine_tuning(config)
    with locked(model_dir):
        _refuse_another_run(model_dir, resume=resume)
        frontend = config.frontend.replace(segment_duration_ms=round(1000 * teacher.description.window_seconds))
        config = config.replace(frontend=frontend)
        pool, files = gather(folder, model_dir=model_dir, sample_rate=teacher.description.sample_rate,
                             minutes_each=minutes_each, executor=executor)
        run = _Run.start(teacher, config, pool, files, device=device, n_workers=n_workers, model_dir=model_dir,
                         resume=resume)
        write_config(model_dir / "config.json", run.config)
        logger.info("%d windows of %.1f s a pass, %d passes", run.n_windows, teacher.description.window_seconds,
                    run.config.epochs)
        while len(run.history) < run.config.epochs:
            run.learn_once()
            run.save()
        return {name: run.history[-1][name] for name in ("embedding_r2", "tag_agreement") if name in run.history[-1]}


def _refuse_another_run(model_dir: Path, *, resume: bool) -> None:
    found = next(iter(sorted(model_dir.glob("*_last.pth"))), None)
    if found and not resume:
        raise ConfigError(f"{model_dir} holds a run ({found.name}): pass --resume to continue it, or choose another"
                          f" --model_dir")
    if resume and not (model_dir / _LAST_NAME).is_file():
        raise ConfigError(f"{model_dir} holds no distillation that has finished a pass: leave --resume out")


def _refuse_fine_tuning(config: EfficientNetConfig) -> None:
    usual = EfficientNetConfig()
    given = [name for name in _OF_FINE_TUNING if getattr(config, name) != getattr(usual, name)]
    if given:
        raise ConfigError(f"{', '.join(given)} would do nothing in a distillation: leave out what gives it")


@dataclass(kw_only=True)
class _Run:
    """A distillation under way."""

    teacher: Teacher
    config: EfficientNetConfig
    pools: tuple[AudioPool, AudioPool]  # to learn from, held out
    recordings: dict[str, list[str]]  # what the start will tell of them
    stages_before: list[dict]  # distillations that it begins with
    student: _Student
    optimisation: Optimisation
    standard: _Standard | None
    held_out: tuple[Tensor, TeacherOutput]  # log-mels, what the teacher says
    identity: dict[str, Any]
    n_windows: int
    device: torch.device
    n_workers: int
    model_dir: Path
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, teacher: Teacher, config: EfficientNetConfig, pool: AudioPool, files: pd.DataFrame, *,
              device: torch.device, n_workers: int, model_dir: Path, resume: bool) -> "_Run":
        kept = held_out(files)
        if not kept.any():
            raise ManifestError(f"a distillation needs two recordings that can be used, one of them for the score, got"
                                f" {len(kept)}: add recordings")
        pools = pool.part(np.flatnonzero(~kept)), pool.part(np.flatnonzero(kept))
        n_windows = max(config.batch_size, round(pools[0].seconds / teacher.description.window_seconds))
        # the last batch would be smaller, and batch norms dislike a batch of one
        n_windows -= n_windows % config.batch_size
        network, config = begin(config, 2)
        config = resolve_batch_norm(config, steps_per_epoch=n_windows // config.batch_size)
        windows = VariedWindows(pools[1], n_windows=_N_HELD_OUT_WINDOWS, frontend=config.frontend,
                                key=(config.seed, _HELD_OUT_EPOCH))
        waveforms, log_mels = (np.stack(values) for values in zip(*(windows[index] for index in range(len(windows))),
                                                                  strict=True))
        said = _hear(teacher, waveforms, batch_size=config.batch_size)
        student = _Student(network, said).to(device)
        used = files.loc[files["status"] == "ok", "sha256"]
        run = cls(teacher=teacher, config=config, pools=pools, student=student, n_windows=n_windows, device=device,
                  recordings=join_recordings(known_recordings(config), {
                      "heard_contents": [f"audio:{sha256[:CONTENT_DIGITS]}" for sha256 in used[~kept]]}),
                  stages_before=stages_of_start(config), n_workers=n_workers, model_dir=model_dir,
                  standard=_standard(said.embeddings),
                  held_out=(torch.from_numpy(log_mels)[:, None], said),
                  optimisation=make_optimisation(student, config, device=device,
                                                 steps_per_epoch=n_windows // config.batch_size),
                  identity={"teacher": settings_key(teacher.sha256, str(teacher.description)),
                            "audio": settings_key(*files["sha256"], *files["n_samples"]),
                            "config": {**config.to_dict(), "epochs": None}})
        if resume:
            run._load()
        return run

    def learn_once(self) -> None:
        """Learn from one pass over the audio and add a row to the history."""
        started, epoch, config = time.perf_counter(), len(self.history) + 1, self.config
        torch.manual_seed(int(np.random.default_rng([config.seed, epoch]).integers(2**31)))  # stochastic depth
        windows = VariedWindows(self.pools[0], n_windows=self.n_windows, frontend=config.frontend,
                                key=(config.seed, epoch))
        loader = DataLoader(windows, batch_size=config.batch_size, num_workers=self.n_workers)
        dtype = autocast_dtype(self.device, mixed_precision=config.mixed_precision)
        self.student.train()
        total = 0.0
        for waveforms, log_mels in progress(loader, total=len(loader), description=f"pass {epoch}", unit="batch",
                                            leave=False):
            said = self.teacher.hear(waveforms.numpy())
            with autocast(self.device, dtype):
                embeddings, tags = self.student(log_mels[:, None].to(self.device))
            loss = self._loss(embeddings.float(), tags.float(), said)
            self.optimisation.backward(loss)
            self.optimisation.step()
            total += loss.item()
        self.history.append({"epoch": epoch, "loss": total / len(loader), **self._agreement(),
                             "learning_rate": self.optimisation.optimizer.param_groups[0]["lr"],
                             "seconds": round(time.perf_counter() - started, 1)})
        logger.info("pass %d/%d: %s", epoch, config.epochs, ", ".join(
            f"{name} {value:.4g}" for name, value in self.history[-1].items() if name != "epoch"))

    def _loss(self, embeddings: Tensor, tags: Tensor, said: TeacherOutput) -> Tensor:
        loss = torch.zeros((), device=self.device)
        if said.embeddings is not None and self.standard is not None:
            loss = loss + functional.mse_loss(embeddings, self.standard(said.embeddings).to(self.device))
        if said.tags is not None:
            wanted = torch.from_numpy(said.tags).to(self.device)
            entropy = functional.binary_cross_entropy(wanted, wanted)  # so that a perfect student's loss is 0
            per_tag = functional.binary_cross_entropy_with_logits(tags, wanted) - entropy
            loss = loss + _TAG_WEIGHT * per_tag * tags.shape[1]
        return loss

    @torch.inference_mode()
    def _agreement(self) -> dict[str, float]:
        log_mels, said = self.held_out
        self.student.eval()
        answers = [self.student(batch.to(self.device)) for batch in log_mels.split(self.config.batch_size)]
        embeddings, tags = (torch.cat(parts).float().cpu() for parts in zip(*answers, strict=True))
        scores = {}
        if said.embeddings is not None and self.standard is not None:
            wanted = self.standard(said.embeddings)
            scores["embedding_r2"] = 1 - float((embeddings - wanted).square().mean() / wanted.var(dim=0).mean())
        if said.tags is not None:
            scores["tag_agreement"] = float((tags.argmax(dim=1).numpy() == said.tags.argmax(axis=1)).mean())
        return scores

    def save(self) -> None:
        """Write the state to go on from, the history, and the student so far as a start."""
        description, last = self.teacher.description, self.history[-1]
        write_table(self.model_dir / "history.csv", pd.DataFrame(self.history))
        about = {"teacher": description.name, "teacher_source": description.source,
                 "teacher_sha256": self.teacher.sha256,
                 "n_recordings": len(self.pools[0].lengths),
                 "hours": round(self.pools[0].seconds / 3600, 3), "passes": last["epoch"],
                 "windows": last["epoch"] * self.n_windows, "window_seconds": description.window_seconds,
                 **{name: last[name] for name in ("embedding_r2", "tag_agreement") if name in last}}
        write_json(self.model_dir / "metrics.json", {"format_version": FORMAT_VERSION, "split": "held-out recordings",
                                                     **about})
        start = Start(source="distillation", model_name=self.config.model_name,
                      weights=body_weights(self.student.network, model_name=self.config.model_name),
                      trained_on=f"what {description.name} ({description.trained_on}) hears in"
                                 f" {len(self.recordings['heard_contents'])} recordings",
                      licence=description.licence, frontend=self.config.frontend,
                      batch_norm_epsilon=batch_norm_epsilon(self.student),
                      metadata={**about, "stages": [*self.stages_before, about], **self.recordings})
        save_start(self.model_dir / STARTER_NAME, start)
        with atomic_path(self.model_dir / _LAST_NAME) as temporary:  # last: a pass counts once all of it is written
            torch.save({"format_version": FORMAT_VERSION, "kind": _STATE_KIND, "identity": self.identity,
                        "student": self.student.state_dict(), "optimisation": self.optimisation.state_dict(),
                        "history": self.history}, temporary)

    def _load(self) -> None:
        path = self.model_dir / _LAST_NAME
        state = read_checkpoint(path)
        if state.get("kind") != _STATE_KIND or state.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(f"{path} holds no distillation of this version: train anew")
        for name, value in self.identity.items():
            if state["identity"].get(name) != value:
                what = _first_difference(state["identity"]["config"], value) if name == "config" else name
                raise CheckpointError(f"{path} was made with another {what}: a resumed distillation keeps teacher,"
                                      f" audio and settings (only epochs may change); choose another --model_dir")
        load_weights(self.student, state["student"], path)
        self.optimisation.load_state_dict(state["optimisation"])
        self.history = list(state["history"])


def _first_difference(before: Mapping, now: Mapping) -> str:
    return next((name for name in now if before.get(name, now) != now[name]), "config")


def _hear(teacher: Teacher, waveforms: np.ndarray, *, batch_size: int) -> TeacherOutput:
    parts = [teacher.hear(waveforms[first:first + batch_size]) for first in range(0, len(waveforms), batch_size)]
    return TeacherOutput(_joined([part.embeddings for part in parts]), _joined([part.tags for part in parts]))


def _joined(parts: list[np.ndarray | None]) -> np.ndarray | None:
    given = [part for part in parts if part is not None]
    return np.concatenate(given) if given else None


def _standard(embeddings: np.ndarray | None) -> _Standard | None:
    if embeddings is None:
        return None
    values = torch.from_numpy(embeddings)
    return _Standard(values.mean(dim=0), values.std(dim=0).clamp_min(_SMALLEST_DEVIATION))
