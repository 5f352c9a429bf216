"""What this machine has and lacks for the project, and what to do about it.

Each check yields :class:`Finding` objects. "note" is for what only the full profile misses.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sharpnb import paths

OLDEST_PYTHON = (3, 11)
MEMORY = 2e9  # bytes: two quick notebooks at once stay below 1 GB each
DISK = 1e9  # bytes: records, figures and executed copies of all profiles need a tenth of it; CIFAR-10 a fifth


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        what: the thing looked at.
        state: ``ok``, ``note`` (the quick profile runs without) or ``problem``.
        text: what was found, and what to do.
    """

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


def python() -> Iterator[Finding]:
    """Look at Python's version."""
    found = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info[:2] < OLDEST_PYTHON:
        yield Finding("Python", "problem", f"{found}: 3.11 or newer is needed; make an environment with one")
    else:
        yield Finding("Python", "ok", found)


def packages() -> Iterator[Finding]:
    """Compare what is installed with what the package and its ``notebooks`` extra ask for."""
    from packaging.requirements import Requirement

    asked = [Requirement(line) for line in metadata.requires("sharpnb") or []]
    needed = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": "notebooks"})]
    wrong = []
    for requirement in needed:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} is {version}, wanted is {requirement.specifier}")
    if wrong:
        yield Finding("packages", "problem", f"{'; '.join(wrong)}: pip install -e '.[notebooks]'")
    else:
        yield Finding("packages", "ok", f"{len(needed)} packages, all as asked for")


def accelerator() -> Iterator[Finding]:
    """Look at PyTorch and at the GPU."""
    import torch

    yield Finding("PyTorch", "ok", torch.__version__)
    if not torch.cuda.is_available():
        yield Finding("GPU", "note", "none that PyTorch can use: the quick profile needs none, the full one wants one")
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        yield Finding("GPU", "ok", f"cuda:{number}: {torch.cuda.get_device_name(number)}, "
                                   f"{free / 1e9:.0f} of {total / 1e9:.0f} GB free; several notebooks at once share "
                                   "it best under `nvidia-cuda-mps-control -d`")


def machine() -> Iterator[Finding]:
    """Look at cores, threads, memory and disk."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("cores", "ok", f"{cores}; sharpnb run starts {min(2, cores)} notebooks at once (--jobs)")
    threads = os.environ.get("OMP_NUM_THREADS")
    said = f"OMP_NUM_THREADS={threads}" if threads else "OMP_NUM_THREADS is not set"
    yield Finding("threads", "ok", f"{said}; sharpnb run gives every quick notebook one, which is the fastest")
    memory = psutil.virtual_memory()
    yield _enough("memory", memory.available, memory.total, MEMORY, "close other programs, or run with --jobs 1")
    disk = shutil.disk_usage(paths.root())
    yield _enough("disk", disk.free, disk.total, DISK, f"make room on the disk of {paths.root()}")


def kernel() -> Iterator[Finding]:
    """Look whether the kernel ``python3``, which every notebook asks for, is this Python."""
    if not importlib.util.find_spec("ipykernel"):
        yield Finding("kernel", "problem", "ipykernel is missing: pip install -e '.[notebooks]'")
        return
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    remedy = "python -m ipykernel install --sys-prefix"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield Finding("kernel", "problem", f"there is no kernel python3: {remedy}")
        return
    # A bare "python" is replaced by the Python that starts the kernel.
    bare = {"python", "python3", f"python3.{sys.version_info.minor}"}
    if command in bare or Path(command).resolve() == Path(sys.executable).resolve():
        yield Finding("kernel", "ok", "python3 is this Python")
    else:
        yield Finding("kernel", "problem", f"python3 starts another Python ({command}): {remedy}")


def folders() -> Iterator[Finding]:
    """Look whether the checkout is found and can be written."""
    count = len(list(paths.notebooks().glob("*.ipynb")))
    if not count:
        yield Finding("checkout", "problem", f"no notebooks in {paths.notebooks()}: call this in a checkout, or set "
                                             "SHARPNB_ROOT to one")
        return
    yield Finding("checkout", "ok", f"{count} notebooks in {paths.root()}")
    for folder in (paths.root() / "data" / "runs", paths.root() / "data" / "records", paths.root() / "figures"):
        existing = next(each for each in (folder, *folder.parents) if each.is_dir())
        try:
            with tempfile.TemporaryFile(dir=existing):
                yield Finding("writing", "ok", str(folder))
        except OSError as error:
            yield Finding("writing", "problem", f"{folder}: {error.strerror}; change its owner, or copy the checkout")


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


def _enough(what: str, free: float, total: float, needed: float, remedy: str) -> Finding:
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    return Finding(what, "ok", found) if free >= needed else Finding(
        what, "problem", f"{found}, wanted are {needed / 1e9:.0f}: {remedy}")
