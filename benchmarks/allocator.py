"""The C library's allocator as `sharpnb run` sets it for its kernels, for a process that is running already."""

from __future__ import annotations

import ctypes
import functools
import os

# mallopt(3): the keys, and the values at which glibc's own adaptation ends: it learns from freed blocks up to 32 MB.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 2**25
KEPT_AT_MOST = 2 * LARGEST_BLOCK


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library's allocator keep what a step frees, for the next step; results do not change.

    As it starts, glibc gives freed megabytes back to the system and takes them again page by page: measured up to 4,000
    page faults a step, a third of the time of a batched CNN or of a small CNN's Hessian-vector product. Blocks above
    32 MB, and all but the last 64 MB, still return to the system. glibc comes to these two limits by itself once it has
    seen a block of 32 MB freed, unless a ``MALLOC_*`` variable of the environment forbids that it learns; so they are
    set outright. Other C libraries have no ``mallopt``, or heed it as they please: then nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT_AT_MOST)
