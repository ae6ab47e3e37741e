"""What the machine has, asked without loading a library that would use it."""

import ctypes
import os
import platform
import sys

_ENOUGH_CHARACTERS = 4096  # of what Linux tells of the first processor


def may_have_accelerator() -> bool:
    """Whether there is a CUDA device, or Apple's GPU; PyTorch decides whether it can use it."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    n_devices = ctypes.c_int(0)
    return cuda.cuInit(0) == 0 and cuda.cuDeviceGetCount(ctypes.byref(n_devices)) == 0 and n_devices.value > 0


def is_amd() -> bool:
    """Whether the processor says that AMD made it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:
            return "AuthenticAMD" in stream.read(_ENOUGH_CHARACTERS)
    except OSError:  # another system than Linux
        return "AuthenticAMD" in platform.processor()
