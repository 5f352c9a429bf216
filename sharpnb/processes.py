"""Worker processes that start at once."""

from __future__ import annotations

import multiprocessing
import os
from functools import cache
from multiprocessing.context import BaseContext


def worker_context() -> BaseContext:
    """Return how worker processes are started: forked from a server that has imported torch and done nothing else.

    Seconds of imports are paid once and not by each worker, and again where one died; no thread and no state of a GPU
    is copied, as it would be by a fork of this process. Workers are spawned where there is no such server: on Windows,
    and in a process that was forked from one that has a server, which its child cannot use.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods() or _owner() != os.getpid():
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch"])
    return server


@cache
def _owner() -> int:
    """Return the process that asked first."""
    return os.getpid()
