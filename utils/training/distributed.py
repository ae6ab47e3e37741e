"""Training on several processes, as ``torchrun`` starts them: one model, each process its share of every batch.

The main process validates, decides and writes; the others follow. Started without ``torchrun`` there is one
process and nothing here does anything.
"""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Parameters
    ----------
    rank : int
        Number of this process, 0 is the main one.
    n_processes : int
        How many there are.
    """

    rank: int = 0
    n_processes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process validates and writes."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, partly_frozen: bool = False) -> nn.Module:
        """Return the module to train: one whose gradients are averaged over the processes.

        Of a ``partly_frozen`` one some parameters have no gradient in some epochs, and none is waited for.
        """
        if self.n_processes == 1:
            return model
        return DistributedDataParallel(model, find_unused_parameters=partly_frozen)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.n_processes > 1:
            distributed.all_reduce(value)
        return value

    def from_main(self, scores: dict[str, float], names: tuple[str, ...], device: torch.device) -> dict[str, float]:
        """Return the main process's scores everywhere; the others may pass an empty dict."""
        if self.n_processes == 1:
            return scores
        # MPS and some GPUs have no float64; float32 keeps more digits than any decision needs
        values = torch.tensor([scores.get(name, 0.0) for name in names], dtype=torch.float32, device=device)
        distributed.broadcast(values, src=0)
        return dict(zip(names, values.tolist(), strict=True))


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the module that ``Processes.wrap`` was given."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def n_processes_wanted() -> int:
    """Return how many processes ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_processes(device: torch.device) -> tuple[Processes, torch.device]:
    """Join the processes that ``torchrun`` started.

    Parameters
    ----------
    device : torch.device
        What ``--device`` asked for.

    Returns
    -------
    processes : Processes
        This process's place.
    device : torch.device
        Its own GPU on a machine with GPUs, else ``device``.
    """
    if n_processes_wanted() == 1:
        return Processes(), device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(distributed.get_rank(), distributed.get_world_size()), device


def leave_processes() -> None:
    """Wait for the others and close what ``join_processes`` opened."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
