"""Ways to do harm: a kill at a random moment, a disk that is full after some bytes, a damaged file, a malicious one.

``SHARPNB_DRILL_SEED`` draws other moments and places, ``SHARPNB_DRILL_TIMES`` has so many times the tries.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch

torch.set_num_threads(1)  # also without make: threads of OpenMP do not live on in the processes that the drills fork
FORK = multiprocessing.get_context("fork")  # a child need not import torch again
SEED, TIMES = (int(os.environ.get(f"SHARPNB_DRILL_{name}", default)) for name, default in (("SEED", 0), ("TIMES", 1)))


def chances(what: str, number: int) -> list[random.Random]:
    """Return a source of chance for each try; the control, without the protection, takes the same ones."""
    return [random.Random(f"{SEED} {what} {k}") for k in range(1, number * TIMES + 1)]


def seconds_of(job: Callable[[], object]) -> float:
    """Return how long ``job`` takes in a process of its own."""
    started, child = time.monotonic(), FORK.Process(target=job)
    child.start()
    child.join()
    assert child.exitcode == 0
    return time.monotonic() - started


def killed(job: Callable[[], object], luck: random.Random, seconds: float) -> bool:
    """Run ``job`` in a process of its own and kill it outright within ``seconds``; False if it had ended before."""
    begun = FORK.Event()
    child = FORK.Process(target=lambda: (begun.set(), job()))
    child.start()
    assert begun.wait(60)
    time.sleep(luck.uniform(0, seconds))
    child.kill()
    child.join()
    assert child.exitcode in (0, -signal.SIGKILL)
    return child.exitcode != 0


def with_quota(job: Callable[[], object], limit: int) -> list[str]:
    """Run ``job`` in a process that can write ``limit`` bytes to a file; return the error's words, none at a good end.

    The system then refuses a write in its midst, as on a full disk, and needs no rights for it.
    """
    receive, send = FORK.Pipe(duplex=False)

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            job()
            send.send([])
        except OSError as error:
            send.send([str(error), *getattr(error, "__notes__", [])])

    child = FORK.Process(target=limited)
    child.start()
    said = receive.recv()
    child.join()
    return said


def plain_write(path: Path, content: str | bytes) -> None:
    """Do what ``paths.write_whole`` is there to avoid: write into the file itself, piece by piece."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb", buffering=0) as file:
        for start in range(0, len(data), 256):
            file.write(data[start : start + 256])


def damaged(content: bytes, luck: random.Random, flips: bool = True) -> bytes:
    """Return ``content`` cut short, or with a stretch overwritten, or (``flips``) with a bit turned."""
    start = luck.randrange(len(content))
    end = luck.randint(start + 1, len(content))
    kinds = [content[:start], *(content[:start] + fill * (end - start) + content[end:] for fill in (b"\0", b"\xff"))]
    if flips:
        kinds.append(content[:start] + bytes([content[start] ^ 1 << luck.randrange(8)]) + content[start + 1 :])
    return luck.choice(kinds)


class Canary:
    """An object whose unpickling makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.file), "w")


def without_override() -> None:
    """Bind even root to the rights of files, in what is started after this; OSError where that cannot be done."""
    if os.geteuid() == 0:
        import ctypes

        for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, taken from what an exec may have again
            if ctypes.CDLL(None).prctl(24, right, 0, 0, 0):  # PR_CAPBSET_DROP
                raise OSError("root cannot lay down its rights here")
