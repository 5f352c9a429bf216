"""A sweep from a TOML file; its table is written beside it."""

from __future__ import annotations

import inspect
import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpnb import paths
from sharpnb.lab.sweeps import portable, sweep
from sharpnb.lab.training import METRICS
from sharpnb.near import near

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE = Path(__file__).with_name("sweep_example.toml")
_PARTS = {"data": dict, "model": dict, "train": dict, "grid": (dict, list)}
_TRAIN = inspect.signature(sweep).parameters.keys() - {"grid", "data", "model", "client", "jobs", "progress"}


def sweep_file(path: Path, out: Path, scheduler: str | None = None, jobs: int | None = None) -> pd.DataFrame:
    """Run the sweep that a TOML file describes and write its table (without the curves) to ``out``.

    The file has ``[data]``, ``[model]``, ``[train]`` (the other arguments of :func:`~sharpnb.lab.sweeps.sweep`) and one
    or several ``[[grid]]``; :data:`EXAMPLE` is one. ``"file.py:function"`` and ``"module:function"`` are looked for
    beside the file, then in the working folder. A former table of a sweep is replaced.

    Raises:
        ValueError: if the file is missing or is no such TOML; if ``out`` is there and holds anything but the table of a
            sweep; and as ``sweep``.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # of the disk; no UTF-8, no TOML
        raise ValueError(f"{path}: {error}. `sharpnb sweep --example` prints a file to begin with.") from error
    if out.is_dir() or (out.exists() and not _is_table(out)):
        raise ValueError(f"{out} is there, and is no table of a sweep. Name another file with --out.")
    try:
        return _swept(told, path.parent, out, {"client": scheduler, "jobs": jobs or os.cpu_count() or 1})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _swept(told: dict[str, Any], folder: Path, out: Path, options: dict[str, Any]) -> pd.DataFrame:
    for name in told.keys() | _PARTS.keys():
        if name not in _PARTS or not isinstance(told.get(name), _PARTS[name]):
            raise ValueError(f"[{name}] is missing, or no part of a sweep.{near(name, _PARTS)} It has [data], [model], "
                             "[train] and [[grid]]; `sharpnb sweep --example` prints a whole file.")
    for name in told["train"].keys() - _TRAIN:
        raise ValueError(f"[train]: there is no {name!r} to set.{near(name, _TRAIN)} It takes {', '.join(_TRAIN)}.")
    data, model = (portable(told[part], folder) for part in ("data", "model"))
    table = sweep(told["grid"], data, model, **told["train"], **options)
    paths.write_whole(out, table.drop(columns="curve").to_csv(index=False))
    return table


def _is_table(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return {*METRICS, "reason"} <= {*lines.readline().strip().split(",")}
