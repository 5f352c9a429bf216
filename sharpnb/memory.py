"""Freed memory stays with the process: what glibc does with it by default costs a batched CNN a third of its time."""

from __future__ import annotations

import functools

import torch


@functools.cache
def keep_freed_memory() -> None:
    """Let the C library's allocator keep what a step frees, for the next step; results do not change.

    As it starts, glibc gives freed megabytes back to the system and takes them again page by page: measured up to 4,000
    page faults a step, a third of the time of a batched CNN or of a small CNN's Hessian-vector product. It stops when
    it has seen a block of this size freed, the largest that it learns from (mallopt(3), M_MMAP_THRESHOLD). Nothing is
    written to the block; larger blocks still return to the system; with other allocators nothing happens.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)
