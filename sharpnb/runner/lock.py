"""One run at a time in a checkout."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from sharpnb.runner.catalogue import RunnerError


@contextmanager
def only_one(file: Path, patience: float = 5.0) -> Iterator[int]:
    """Hold the lock ``file`` and yield its descriptor, for the workers to inherit.

    The lock is the operating system's: it is free again when the last process that holds the descriptor is gone. The
    workers of a driver that was killed are given ``patience`` seconds to follow it.

    Raises:
        RunnerError: if another run holds it, whose process the message names, or the folder cannot be written.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        raise RunnerError("`sharpnb run` needs Linux or macOS, or WSL on Windows; papermill on single notebooks does "
                          "not.") from None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(file, "a+", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise RunnerError(f"Nothing can be written in {file.parent} ({error.strerror}), where a run keeps its copies. "
                          "Make it writable, or work in a copy of the checkout.") from error
    with lock:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RunnerError(f"Another run is at work in this checkout: {file.read_text(encoding='utf-8')}. "
                                      "Wait for it, or stop it; what it has finished is kept.") from None
                time.sleep(0.05)
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, started {datetime.now():%H:%M:%S}: {' '.join(sys.argv)}")
        lock.flush()
        yield lock.fileno()
