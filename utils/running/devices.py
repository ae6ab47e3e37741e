"""Which device computes, and in which number format."""

import contextlib
import os

import torch

from models.errors import ConfigError

DEVICE_CHOICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str) -> torch.device:
    """Return the device of a ``--device`` value: the only place that knows device names.

    Parameters
    ----------
    name : str
        ``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ConfigError
        If the device is not there; it never falls back in silence.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    available = {"cpu": not number, "mps": torch.backends.mps.is_available() and not number,
                 "cuda": not number or number.isdecimal() and int(number) < torch.cuda.device_count()}
    if kind not in available:
        raise ConfigError(f"--device must be one of {', '.join(DEVICE_CHOICES)} or cuda:N, got {name!r}")
    if not available[kind] or kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name} is not available on this machine: use --device cpu or auto")
    return torch.device(name)


def use_deterministic_algorithms() -> None:
    """Let PyTorch use only algorithms that give the same result every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all it was given; a timer stopped before that measures nothing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def autocast_dtype(device: torch.device, *, mixed_precision: bool) -> torch.dtype | None:
    """Return float16 on CUDA, bfloat16 on a CPU that computes it natively, None (float32) elsewhere."""
    if not mixed_precision:
        return None
    if device.type == "cuda":
        return torch.float16
    # PyTorch offers no public question for this; without the instructions bfloat16 is slower than float32
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def autocast(device: torch.device, dtype: torch.dtype | None):
    """Return the context in which a network computes in ``dtype``; None changes nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
