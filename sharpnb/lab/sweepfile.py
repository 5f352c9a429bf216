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
from sharpnb.lab.shard import METRICS, builder, loader
from sharpnb.lab.sweeps import portable, sweep
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
    _check_place(path, out)
    if faults := list(_faults(told, path.parent)):
        raise ValueError("\n".join(f"{path}: {fault}" for fault in faults))
    steps, cells = told["train"].get("steps"), grid.axes_of(told["grid"])
    say(f"{grid.size(cells):,} cells ({grid.shape(cells)})" + (f", {steps:,} steps each." if steps else "."))
    given = told["train"] | {"client": scheduler, "jobs": jobs or os.cpu_count() or 1} | options
    table = sweep(told["grid"], *(portable(told[part], path.parent) for part in ("data", "model")), **given)
    paths.write_whole(out, table.drop(columns="curve").to_csv(index=False))
    return table


def _check_place(path: Path, out: Path) -> None:
    """Refuse to write over the file itself, or over anything that is no table of a sweep."""
    fault = ""
    if out.is_dir():
        fault = f"{out} is a folder"
    elif out.exists() and out.samefile(path):
        fault = f"The table would replace {path} itself"
    elif out.exists():
        with out.open(encoding="utf-8", errors="replace") as file:
            if not {*METRICS, "reason"} <= {*file.readline().strip().split(",")}:
                fault = f"{out} is there, and is no table of a sweep"
    if fault:
        raise ValueError(f"{fault}. Name another file with --out.")


# ---- What is wrong with a file --------------------------------------------------------------------------------------


def _faults(told: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield one sentence for each fault."""
    for name in set(told) - set(PARTS):
        yield f"[{name}] is no part of a sweep.{near(name, PARTS)} It has [data], [model], [train] and [[grid]]."
    for name in [name for name in PARTS if name not in told]:
        yield f"[{name}] is missing; `sharpnb sweep --example` prints a whole file."
    for part, named in (("data", loader), ("model", builder)):
        if part in told:
            yield from (f"[{part}]{fault}" for fault in _of_a_function(part, told[part], named, folder))
    training = told.get("train", {"steps": 1})
    if not isinstance(training, dict):
        yield f"[train] = {training!r}: it is a table of names and values."
        return
    yield from (f"[train]: {fault}" for name, value in training.items() if (fault := _of_training(name, value)))
    if "grid" in told:
        try:
            cells = grid.cells_of(told["grid"])
            if "steps" not in training and not all("steps" in cell for cell in cells):
                yield "steps is missing: give it under [train], or as an axis of every [[grid]]."
        except ValueError as error:
            yield f"[[grid]]: {error}"


def _of_a_function(part: str, given: Any, named: Callable[[str], Any], folder: Path) -> Iterator[str]:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        yield " needs name = \"…\", a text."
        return
    try:
        function = named(portable(given, folder)["name"])
        takes = inspect.signature(getattr(function, "value", function)).parameters
    except (ValueError, TypeError) as error:  # no such name; something without a signature
        yield f": {error}"
        return
    own = {"seed"} if part == "model" else set()  # given by the sweep
    options = [name for name, taken in takes.items() if taken.kind is not taken.VAR_KEYWORD and name not in own]
    open_ended = any(taken.kind is taken.VAR_KEYWORD for taken in takes.values())
    for name in set(given) - {"name"} - set(options):
        if name in own or not open_ended:
            yield (f": {given['name']} takes no {name!r} from the file.{near(name, options)} It takes "
                   f"{', '.join(options) or 'nothing'}.")


def _of_training(name: str, value: Any) -> str:
    """Return what is wrong with a value of ``[train]``, or nothing."""
    allowed = TRAIN.get(name)
    if allowed is None:
        return f"there is no {name!r}.{near(name, TRAIN)} It takes {', '.join(TRAIN)}."
    if isinstance(allowed, tuple):
        fault = "" if value in allowed else f"choose one of {', '.join(allowed)}.{near(value, allowed)}"
    elif isinstance(allowed, int):
        fault = "" if type(value) is int and value >= allowed else f"must be a whole number, {allowed} or more."
    else:
        fault = "" if isinstance(value, allowed) else f"must be {'true or false' if allowed is bool else 'a text'}."
    return fault and f"{name} = {value!r}: {fault}"
