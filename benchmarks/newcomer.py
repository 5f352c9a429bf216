"""How long is the way from a clone to the first figure? ``python benchmarks/newcomer.py`` walks it and takes the time.

A fresh clone in a folder with a blank and an é in its name, ``make`` for the environment, one notebook whose figures
were taken away before. PIP_OPTIONS reaches pip, as in the Makefile. Writes newcomer.json, which the overview shows.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOTEBOOK = "07_wsam_toy"
PYTHON = ".venv/bin/python"


def timed(command: list[str], folder: Path) -> float:
    """Return the seconds that a command takes; its output is shown, its failure raised."""
    started = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    return time.monotonic() - started


def told_by(checkout: Path, code: str) -> str:
    """Return what the new environment's Python prints."""
    return subprocess.run([PYTHON, "-c", code], cwd=checkout, check=True, capture_output=True, text=True).stdout.strip()


def walk(folder: Path) -> dict[str, float | int | str]:
    """Return the seconds of each part of the way."""
    checkout = folder / "sharpnb"
    clone = timed(["git", "clone", "--quiet", HERE.parent.as_uri(), str(checkout)], folder)
    figures = sorted((checkout / "figures" / NOTEBOOK).glob("*.png"))
    for figure in figures:
        figure.unlink()
    install = timed(["make", "--silent", ".venv/ready"], checkout)
    execute = timed([PYTHON, "-m", "sharpnb.cli", "run", NOTEBOOK], checkout)
    if not figures or any(not figure.exists() for figure in figures):
        raise SystemExit(f"{NOTEBOOK} ended well, and not all of its figures are there: {figures}")
    packages = told_by(checkout, "from importlib.metadata import distributions; print(len(list(distributions())))")
    torch = told_by(checkout, "import torch; print(torch.__version__.split('+')[0])")
    cores = f"{os.cpu_count()} cores ({platform.machine()})"
    return {
        "clone": clone, "install": install, "execute": execute, "total": clone + install + execute,
        "packages": int(packages), "notebook": NOTEBOOK,
        "machine": f"{cores}, Python {platform.python_version()}, PyTorch {torch}",
    }


def main() -> None:
    """Walk, print, write."""
    with tempfile.TemporaryDirectory(prefix="newcomer é ") as folder:
        os.environ.update(dict.fromkeys(("UV_CACHE_DIR", "PIP_CACHE_DIR"), f"{folder}/cache"))  # a newcomer's are empty
        found = walk(Path(folder))
    print(json.dumps(found, indent=1, ensure_ascii=False))
    (HERE / "newcomer.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
