"""What this machine has and lacks for the project, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from sharpnb import paths

OLDEST_PYTHON = (3, 11)
MEMORY = 2e9  # bytes: two quick notebooks at once stay below 1 GB each
DISK = 1e9  # bytes: records, figures and executed copies of all profiles need a tenth of it; CIFAR-10 a fifth


class Finding(NamedTuple):
    """What was looked at, ``ok``, ``note`` (only other profiles miss it) or ``problem``, what was found, what to do."""

    what: str
    state: str
    text: str


def examine() -> Iterator[Finding]:
    """Yield the findings of every check; a check that breaks is a problem itself."""
    for check in CHECKS:
        try:
            yield from check()
        except Exception as error:
            yield Finding(check.__name__, "problem", f"could not be looked at ({type(error).__name__}: {error})")


def _found(what: str, found: str, fault: str) -> Finding:
    return Finding(what, "problem" if fault else "ok", fault or found)


def python() -> Iterator[Finding]:
    """Look at Python's version."""
    found = f"{platform.python_version()} ({sys.executable})"
    old = sys.version_info[:2] < OLDEST_PYTHON
    yield _found("Python", found, f"{found}: 3.11 or newer is needed; make an environment with one" if old else "")


def packages() -> Iterator[Finding]:
    """Compare what is installed with what the package and its ``notebooks`` extra ask for."""
    from packaging.requirements import Requirement

    asked = [Requirement(line) for line in metadata.requires("sharpnb") or []]
    needed = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": "notebooks"})]
    wrong = []
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                wrong.append(f"{requirement.name} is {version}, wanted is {requirement.specifier}")
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
    yield _found("packages", f"{len(needed)} packages, all as asked for",
                 f"{'; '.join(wrong)}: pip install -e '.[notebooks]'" if wrong else "")


def accelerator() -> Iterator[Finding]:
    """Look at PyTorch and at the GPU."""
    import torch

    yield Finding("PyTorch", "ok", torch.__version__)
    if not torch.cuda.is_available():
        yield Finding("GPU", "note", "none that PyTorch can use: the quick profile needs none, the full one wants one")
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        yield Finding("GPU", "ok", f"cuda:{number}: {torch.cuda.get_device_name(number)}, "
                                   f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free; several notebooks at once share "
                                   "it best under `nvidia-cuda-mps-control -d`")


def machine() -> Iterator[Finding]:
    """Look at cores, memory and disk."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "ok", f"{cores}; sharpnb run starts {min(2, cores)} notebooks at once, one thread each")
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(paths.root())
    for what, free, total, needed, remedy in (
        ("memory", memory.available, memory.total, MEMORY, "close other programs, or run with --jobs 1"),
        ("disk", disk.free, disk.total, DISK, f"make room on the disk of {paths.root()}")):
        found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        yield _found(what, found, f"{found}, wanted are {needed / 1e9:.0f}: {remedy}" if free < needed else "")


def kernel() -> Iterator[Finding]:
    """Look whether the kernel ``python3``, which every notebook asks for, is this Python."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        command = "none is installed"
    # A bare "python" is replaced by the Python that starts the kernel.
    bare = {"python", "python3", f"python3.{sys.version_info.minor}"}
    own = command in bare or Path(command).resolve() == Path(sys.executable).resolve()
    yield _found("kernel", "python3 is this Python", "" if own else
                 f"python3 is not this Python ({command}): python -m ipykernel install --sys-prefix")


def folders() -> Iterator[Finding]:
    """Look whether the checkout is found and can be written."""
    count = len(list(paths.notebooks().glob("*.ipynb")))
    yield _found("checkout", f"{count} notebooks in {paths.root()}", "" if count else
                 f"no notebooks in {paths.notebooks()}: call this in a checkout, or set SHARPNB_ROOT to one")
    for folder in (paths.root() / "data" / "runs", paths.root() / "data" / "records", paths.root() / "figures"):
        fault = ""
        try:
            with tempfile.TemporaryFile(dir=next(each for each in (folder, *folder.parents) if each.is_dir())):
                pass
        except OSError as error:
            fault = f"{folder}: {error.strerror}; change its owner, or copy the checkout"
        yield _found("writing", str(folder), fault)


def data_sets() -> Iterator[Finding]:
    """Look at the data sets' files; a missing one is downloaded when it is first used."""
    from sharpnb import datafiles
    from sharpnb.lab import data

    for name in data.NAMES:
        state = data.status(name)
        shipped = name in datafiles.PACKAGES
        kind = "ok" if state == "ready" else "problem" if shipped or not state.startswith("missing") else "note"
        yield Finding(name, kind, state + ("; see sharpnb data" if state != "ready" else ""))


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    python, packages, accelerator, machine, kernel, folders, data_sets,
)
