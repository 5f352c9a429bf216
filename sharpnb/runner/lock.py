"""One run at a time in a checkout."""

from __future__ import annotations

import json
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

    The lock is the operating system's: it is free again when the last process that holds the descriptor is gone. Where
    the driver that the file names is gone already, its workers are given ``patience`` seconds to follow.

    Raises:
        RunnerError: if another run holds it, whose process the message names, or the folder cannot be written.
    """
    try:
        import fcntl
    except ModuleNotFoundError:
        raise RunnerError("`sharpnb run` needs Linux or macOS: it holds the checkout by a lock that Windows does not "
                          "have. Use WSL there, or papermill on single notebooks.") from None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = open(file, "a+", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise RunnerError(f"Nothing can be written in {file.parent} ({error.strerror}), where a run keeps its copies. "
                          "Make it writable, or work in a copy of the checkout; `sharpnb list` and `sharpnb run "
                          "--dry-run` only read.") from error
    with lock as handle:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _refuse_if_alive(file, time.monotonic() > deadline)
                time.sleep(0.05)
        handle.seek(0)
        handle.truncate()
        started = datetime.now().strftime("%H:%M:%S")
        json.dump({"pid": os.getpid(), "started": started, "command": " ".join(sys.argv)}, handle)
        handle.flush()
        yield handle.fileno()


def _refuse_if_alive(file: Path, at_any_rate: bool) -> None:
    import psutil

    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
        alive = psutil.Process(int(owner["pid"])).status() != psutil.STATUS_ZOMBIE
    except (ValueError, KeyError, psutil.Error):
        owner, alive = {}, False
    if alive or at_any_rate:
        pid, started, command = (owner.get(name, "?") for name in ("pid", "started", "command"))
        raise RunnerError(f"Another run is at work in this checkout: process {pid}, started {started}: {command}. Wait "
                          f"for it, or stop it with `kill {pid}`; what it has finished is kept.") from None
