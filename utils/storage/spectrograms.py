"""Spectrograms as tensors: datasets and loaders."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from models.errors import ManifestError
from utils.storage.manifest import Manifest


class Batch(NamedTuple):
    """Some windows.

    Attributes
    ----------
    log_mel : torch.Tensor
        float32 ``(B, 1, n_mels, n_frames)`` in dB.
    labels : torch.Tensor
        int64 ``(B,)``.
    indices : torch.Tensor
        int64 ``(B,)``, row of each window in its dataset: the key of its augmentation.
    """

    log_mel: Tensor
    labels: Tensor
    indices: Tensor


class SpectrogramDataset(Dataset):
    """The spectrograms of a manifest, read when asked for.

    Parameters
    ----------
    manifest : Manifest
        Rows; read-only.
    rows : sequence of int, optional
        Which rows to use; all when None.
    """

    def __init__(self, manifest: Manifest, rows: Sequence[int] | np.ndarray | None = None) -> None:
        chosen = np.arange(len(manifest.rows)) if rows is None else np.asarray(rows)
        self._paths = [manifest.spectrogram_path(int(index)) for index in chosen]
        self.labels = manifest.labels()[chosen]
        self.shape = self._read(0).shape

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """Return float32 ``(1, n_mels, n_frames)``, the label and the index. Raises ManifestError."""
        log_mel = self._read(index)
        if log_mel.shape != self.shape:
            raise ManifestError(f"{self._paths[index]} has shape {log_mel.shape}, the first spectrogram has"
                                f" {self.shape}: run preprocess_enhanced.py again")
        return torch.from_numpy(log_mel)[None], int(self.labels[index]), index

    def _read(self, index: int) -> np.ndarray:
        path = self._paths[index]
        try:
            log_mel = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ManifestError(f"{path} cannot be read as a spectrogram ({error}): run preprocess_enhanced.py"
                                f" again") from error
        if log_mel.ndim != 2 or not np.issubdtype(log_mel.dtype, np.floating) or not np.isfinite(log_mel).all():
            raise ManifestError(f"{path} must hold finite float (n_mels, n_frames), got {log_mel.dtype}"
                                f" {log_mel.shape}: run preprocess_enhanced.py again")
        return log_mel.astype(np.float32, copy=False)


class ArrayDataset(Dataset):
    """Spectrograms that are already in memory.

    Parameters
    ----------
    spectrograms : sequence of numpy.ndarray
        ``(n_mels, n_frames)`` each, in dB, of one shape.
    labels : array of int, (n_windows,)
        Classes.
    """

    def __init__(self, spectrograms: Sequence[np.ndarray] | np.ndarray, labels: np.ndarray) -> None:
        self._spectrograms = spectrograms
        self.labels = np.asarray(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """Return float32 ``(1, n_mels, n_frames)``, the label and the index."""
        log_mel = np.ascontiguousarray(self._spectrograms[index], dtype=np.float32)
        return torch.from_numpy(log_mel)[None], int(self.labels[index]), index


def make_loader(dataset: Dataset, *, batch_size: int, shuffle_seed: int | None, n_workers: int,
                pin_memory: bool, rank: int = 0, n_processes: int = 1) -> DataLoader:
    """Return a loader of ``Batch``.

    Parameters
    ----------
    dataset : Dataset
        Gives ``(log_mel, label, index)``.
    batch_size : int
        Windows in a batch; the last may hold fewer.
    shuffle_seed : int or None
        Seed of the order; None keeps the dataset's.
    n_workers : int
        Loading processes; 0 loads in this one.
    pin_memory : bool
        For a GPU.
    rank, n_processes : int
        Number of this process among those that train together; of several, each gets its share of a shuffled
        order, all the same number of windows.
    """
    if shuffle_seed is not None and n_processes > 1:
        sampler: DistributedSampler = DistributedSampler(dataset, num_replicas=n_processes, rank=rank,
                                                         seed=shuffle_seed)
        return DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=n_workers,
                          pin_memory=pin_memory, collate_fn=_collate)
    generator = None
    if shuffle_seed is not None:
        generator = torch.Generator()
        generator.manual_seed(shuffle_seed)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle_seed is not None, generator=generator,
                      num_workers=n_workers, pin_memory=pin_memory, collate_fn=_collate)


def _collate(items: list[tuple[Tensor, int, int]]) -> Batch:
    log_mels, labels, indices = zip(*items, strict=True)
    return Batch(torch.stack(log_mels), torch.tensor(labels), torch.tensor(indices))
