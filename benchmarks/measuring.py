"""How the benchmarks measure: times, paired ratios, the machine in neutral words, pieces kept for a page."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sharpnb import paths

PEERS = {"pytorch-optimizer": "pytorch-optimizer", "pyhessian": "PyHessian", "curvlinops-for-pytorch": "curvlinops",
         "hessian-eigenthings": "eigenthings"}
Job = Callable[[], object]


def seconds(job: Job, repeats: int = 1, device: str = "cpu") -> float:
    """Return the CPU time, on CUDA the wall time to the end of the device's work, of one call."""
    clock = time.perf_counter if device == "cuda" else time.process_time
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeats):
        job()
    if device == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / repeats


def times(jobs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return each job's seconds, all jobs once a round, in shuffled order."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name in random.sample(list(jobs), len(jobs)):
            found[name].append(jobs[name]())
    return found


def ratios(jobs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return each job's time over the first job's, round by round."""
    found = times(jobs, rounds)
    base = next(iter(found.values()))
    return {name: [a / b for a, b in zip(values, base, strict=True)] for name, values in found.items()}


def cell(values: list[float], digits: int = 2) -> str:
    """Write a median with its range."""
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def machine() -> str:
    """Say in neutral words where the numbers are from."""
    versions = [f"{name} {found}" for package, name in PEERS.items() if (found := paths.version(package))]
    return (f"one thread of {os.cpu_count()} cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}), "
            f"PyTorch {torch.__version__.split('+')[0]}, Python {platform.python_version()}, "
            f"{', '.join(versions) or 'no peers'}")


def pieces(arguments: argparse.ArgumentParser, page: Path) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Read the command line with ``--store`` and ``--page``; return it and the pieces that are kept."""
    arguments.add_argument("--store", type=Path, help="JSON file that gathers pieces")
    arguments.add_argument("--page", action="store_true", help=f"write {page.name} from --store, measure nothing")
    given = arguments.parse_args()
    held = given.store and given.store.exists()
    return given, json.loads(given.store.read_text(encoding="utf-8")) if held else {}
