"""Two processes train as one: tested on the CPU with gloo."""

import os
import socket

import numpy as np
import torch
from torch import multiprocessing, nn

from models.efficientnet import build_model
from models.efficientnet_config import EfficientNetConfig
from tests.conftest import tiny_config
from utils.storage.spectrograms import ArrayDataset, make_loader
from utils.training.distributed import Processes, join_processes, leave_processes
from utils.training.optimisation import count_steps
from utils.training_utils import TrainingHistory, TrainingTask, fit, train_epoch

N_WINDOWS = 8
ROUNDING = 1e-6  # float32 sums in another order
DEEP_ROUNDING = 1e-4  # the same through the layers of a ResNet18


class Pooled(nn.Module):
    """A network without batch norm, so that a batch's halves average to the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 2)

    def forward(self, log_mel):
        return self.linear(log_mel.mean(dim=3)[:, 0])


def dataset() -> ArrayDataset:
    rng = np.random.default_rng(0)
    return ArrayDataset(rng.normal(size=(N_WINDOWS, 4, 5)).astype(np.float32), np.arange(N_WINDOWS) % 2)


def train(processes: Processes, *, batch_size: int) -> tuple[dict, list[dict], int]:
    """Train two epochs of one full batch each and return weights, history and how often files would be written."""
    config = EfficientNetConfig(optimizer="sgd", learning_rate=0.1, batch_size=batch_size, epochs=2, warmup_epochs=0,
                                mixed_precision=False, use_augmentation=False)
    task = TrainingTask(model=Pooled(), config=config, train=dataset(), val=dataset(), n_classes=2,
                        device=torch.device("cpu"), processes=processes)
    history, written = TrainingHistory(), []
    fit(task, task.optimisation(), history, after_epoch=lambda *outcome: written.append(outcome))
    return task.model.state_dict(), history.rows, len(written)


def fine_tune(processes: Processes, *, batch_size: int) -> tuple[dict, dict]:
    """Train an epoch of the classifier alone and one of all stages; return weights and their average.

    Batch norms are frozen, so that a batch's halves average to the batch.
    """
    config = tiny_config(model_name="resnet18", optimizer="sgd", learning_rate=0.01, batch_size=batch_size, epochs=2,
                         freeze_epochs=1, freeze_batch_norm=True, layer_decay=0.7, l2_to_start=1.0, ema_decay=0.5)
    rng = np.random.default_rng(0)
    windows = ArrayDataset(rng.normal(-40, 10, (N_WINDOWS, 16, 16)).astype(np.float32), np.arange(N_WINDOWS) % 2)
    task = TrainingTask(model=build_model(config, 2), config=config, train=windows, val=windows, n_classes=2,
                        device=torch.device("cpu"), processes=processes)
    optimisation = task.optimisation()
    for epoch in (1, 2):
        train_epoch(task, optimisation, epoch=epoch)
    return task.model.state_dict(), optimisation.kept.state_dict()


def worker(rank: int, port: int, folder) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port))
    processes, _ = join_processes(torch.device("cpu"))
    torch.save(train(processes, batch_size=N_WINDOWS // 2), folder / f"{rank}.pt")
    torch.save(fine_tune(processes, batch_size=N_WINDOWS // 2), folder / f"{rank}_fine_tuned.pt")
    leave_processes()


def test_two_processes_make_the_steps_of_one_with_twice_the_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(worker, args=(port, tmp_path), nprocs=2)
    alone, history, n_written = train(Processes(), batch_size=N_WINDOWS)
    assert n_written == 2
    for rank, expected_writes in ((0, 2), (1, 0)):
        weights, shared_history, n_written = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert n_written == expected_writes
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=ROUNDING)
        for row, expected in zip(shared_history, history, strict=True):
            for name in ("train_loss", "val_loss", "val_macro_f1"):
                assert abs(row[name] - expected[name]) < 10 * ROUNDING
    expected = fine_tune(Processes(), batch_size=N_WINDOWS)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}_fine_tuned.pt", weights_only=True)
        for state, state_alone in zip(found, expected, strict=True):
            for name, value in state_alone.items():
                torch.testing.assert_close(state[name], value, rtol=0, atol=DEEP_ROUNDING)


def test_the_shares_of_an_epoch_cover_every_window_and_are_equally_long():
    shares = [[int(index) for batch in make_loader(dataset(), batch_size=2, shuffle_seed=3, n_workers=0,
                                                   pin_memory=False, rank=rank, n_processes=3)
               for index in batch.indices] for rank in range(3)]
    assert {len(share) for share in shares} == {3}  # 8 windows over 3 processes, one window twice
    assert set().union(*shares) == set(range(N_WINDOWS))


def test_steps_per_epoch_count_a_process_s_own_batches():
    config = EfficientNetConfig(batch_size=10, accumulation_steps=2)
    assert count_steps(100, config) == 5
    assert count_steps(100, config, Processes(0, 2)) == 3  # 50 windows, 5 batches, 2 a step
