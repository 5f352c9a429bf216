"""The C library's allocator as `sharpnb run` sets it for its kernels, for a process that is running already."""

import ctypes
import os

from sharpnb.runner.surroundings import ALLOCATOR

KEYS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let what a step frees stay for the next one; nothing where the C library has no ``mallopt``."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    for name, limit in ALLOCATOR.items() if mallopt else ():
        mallopt(KEYS[name], int(limit))
