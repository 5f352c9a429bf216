"""What this machine has and lacks for the notebooks, and what to do about it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from sharpnb import paths

MEMORY, DISK = 2e9, 1e9  # bytes: two quick notebooks at once stay below 1 GB each; all profiles write a tenth of a GB


def examine() -> Iterator[tuple[str, str, str]]:
    """Yield what was looked at, what was found, and what to do about it where it is a problem, else nothing."""
    found, remedy = packages()
    yield "packages", found, remedy
    import psutil
    import torch

    cards = [f"{torch.cuda.get_device_name(k)} ({torch.cuda.mem_get_info(k)[0] / 1e9:.0f} GB free)"
             for k in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
    yield "GPU", ", ".join(cards) or "none that PyTorch can use: the full profile alone wants one", ""
    for what, free, needed, remedy in (
            ("memory", psutil.virtual_memory().available, MEMORY, "close other programs, or run with --jobs 1"),
            ("disk", shutil.disk_usage(paths.root()).free, DISK, f"make room on the disk of {paths.root()}")):
        yield what, f"{free / 1e9:.1f} GB free, wanted are {needed / 1e9:.0f}", remedy if free < needed else ""
    command = kernel()
    own = Path(command).resolve() == Path(sys.executable).resolve() or command in ("python", Path(sys.executable).name)
    yield "kernel python3", command, "" if own else "this Python is meant: python -m ipykernel install --sys-prefix"


def packages() -> tuple[str, str]:
    """Compare what is installed with what the package and its ``notebooks`` extra ask for."""
    from packaging.requirements import Requirement

    asked = [Requirement(line) for line in metadata.requires("sharpnb") or []]
    needed = [each for each in asked if each.marker is None or each.marker.evaluate({"extra": "notebooks"})]
    there = {each: paths.version(each.name) for each in needed}
    wrong = [f"{each} is wanted, {found or 'none'} is there" for each, found in there.items()
             if not found or not each.specifier.contains(found, prereleases=True)]
    return "; ".join(wrong) or f"{len(needed)}, all as asked for", "pip install -e '.[notebooks]'" if wrong else ""


def kernel() -> str:
    """Return the command behind ``python3``, the kernel of every notebook; jupyter itself replaces a bare "python"."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        return KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return "none is installed"
