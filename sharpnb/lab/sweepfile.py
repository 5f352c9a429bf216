"""A sweep from a TOML file: all of it is looked at before anything is trained; its table is written beside it."""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpnb import paths
from sharpnb.lab import grid
from sharpnb.lab.shard import named
from sharpnb.lab.sweeps import portable, sweep
from sharpnb.lab.training import METRICS
from sharpnb.many.schedules import SCHEDULES
from sharpnb.near import near

if TYPE_CHECKING:
    import pandas as pd

EXAMPLE = Path(__file__).with_name("sweep_example.toml")
PARTS = ("data", "model", "train", "grid")
TRAIN: dict[str, Any] = {  # what [train] may hold: names to choose from, the lowest whole number, or a type
    "steps": 1, "batch_size": 1, "schedule": tuple(SCHEDULES), "evaluate_every": 0, "dtype": ("float32", "float64"),
    "bf16": bool, "device": str, "shard_size": 1, "folder": str,
}


def sweep_file(
    path: str | Path, scheduler: str | None = None, jobs: int | None = None, *, out: str | Path | None = None,
    say: Callable[[str], None] = lambda _: None, **options: Any,
) -> pd.DataFrame:
    """Run the sweep that a TOML file describes and write its table (without the curves).

    The file has ``[data]``, ``[model]``, ``[train]`` (the other arguments of :func:`~sharpnb.lab.sweeps.sweep`) and one
    or several ``[[grid]]``; an axis is a value, a list, or ``{log2 = [-8, 0], times = 0.1}``. :data:`EXAMPLE` is one.
    ``"file.py:function"`` and ``"module:function"`` are looked for beside the file, then in the working folder.

    Args:
        path: the file.
        scheduler: address of a Dask scheduler; None runs here.
        jobs: processes here (default: one for each processor).
        out: the table; default the file's own name with ``.csv``. A former table of a sweep is replaced there.
        say: is told the number of cells before they are made.
        options: further arguments of ``sweep``.

    Raises:
        ValueError: if the file is missing or is no TOML; for what is wrong in it, one line for each fault; if ``out``
            is the file itself, a folder, or holds anything but the table of a sweep; and as ``sweep``.
    """
    path = Path(path)
    out = path.with_suffix(".csv") if out is None else Path(out)
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:  # of the disk; no UTF-8, no TOML
        raise ValueError(f"{path}: {error}. Give a TOML file with [data], [model], [train] and [[grid]]; "
                         "`sharpnb sweep --example` prints one.") from error
    if out.is_dir() or (out.exists() and (out.samefile(path) or not _is_table(out))):
        raise ValueError(f"{out} is there, and is no table of a sweep. Name another file with --out.")
    if faults := list(_faults(told, path.parent)):
        raise ValueError("\n".join(f"{path}: {fault}" for fault in faults))
    steps, cells = told["train"].get("steps"), grid.axes_of(told["grid"])
    say(f"{grid.size(cells):,} cells ({grid.shape(cells)})" + (f", {steps:,} steps each." if steps else "."))
    given = told["train"] | {"client": scheduler, "jobs": jobs or os.cpu_count() or 1} | options
    table = sweep(told["grid"], *(portable(told[part], path.parent) for part in ("data", "model")), **given)
    paths.write_whole(out, table.drop(columns="curve").to_csv(index=False))
    return table


def _is_table(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as lines:
        return {*METRICS, "reason"} <= {*lines.readline().strip().split(",")}


def _faults(told: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield one sentence for each fault of a file."""
    for name in told.keys() - {*PARTS}:
        yield f"[{name}] is no part of a sweep.{near(name, PARTS)} It has [data], [model], [train] and [[grid]]."
    for name in [name for name in PARTS if name not in told]:
        yield f"[{name}] is missing; `sharpnb sweep --example` prints a whole file."
    for part in [part for part in PARTS[:3] if part in told]:
        try:
            takes = TRAIN if part == "train" else _options(part, told[part], folder)
            faults = [_fault(name, value, takes) for name, value in told[part].items()]
            yield from (f"[{part}]: {fault}" for fault in faults if fault)
        except (ValueError, TypeError, AttributeError) as error:  # no such function; one without a signature; no table
            yield f"[{part}]: {error}"
    try:
        everywhere = all("steps" in cell for cell in grid.cells_of(told["grid"])) if "grid" in told else True
    except ValueError as error:
        yield f"[[grid]]: {error}"
    else:
        if not everywhere and "steps" not in told.get("train", {"steps": 1}):
            yield "steps is missing: give it under [train], or as an axis of every [[grid]]."


def _options(part: str, given: Any, folder: Path) -> dict[str, Any]:
    """Return what may be given for a data set or a model, each of any type."""
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError("it needs name = \"…\", a text.")
    function = named(portable(given, folder)["name"], part)
    takes = inspect.signature(getattr(function, "value", function)).parameters
    names = {name for name, taken in takes.items() if taken.kind is not taken.VAR_KEYWORD}
    more = given.keys() if len(names) < len(takes) else {"name"}
    return dict.fromkeys([*names, *more], object) | ({"seed": None} if part == "model" else {})  # the sweep gives it


def _fault(name: str, value: Any, takes: dict[str, Any]) -> str:
    """Return what is wrong with a setting, or nothing."""
    allowed = takes.get(name)
    if allowed is None:
        names = [known for known in takes if takes[known] is not None and known != "name"]
        return f"there is no {name!r} to set.{near(name, names)} It takes {', '.join(names) or 'nothing'}."
    if isinstance(allowed, tuple):
        fault = "" if value in allowed else f"choose one of {', '.join(allowed)}.{near(value, allowed)}"
    elif isinstance(allowed, int):
        fault = "" if type(value) is int and value >= allowed else f"must be a whole number, {allowed} or more."
    else:
        fault = "" if isinstance(value, allowed) else f"must be {'true or false' if allowed is bool else 'a text'}."
    return fault and f"{name} = {value!r}: {fault}"
