"""A sweep from a TOML file: all of it is looked at before anything is trained; its table is written beside it."""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharpnb import paths, usercode
from sharpnb.datafiles import NAMES
from sharpnb.lab import grid
from sharpnb.lab.data import load_data
from sharpnb.lab.shard import METRICS, builder
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
    steps = told["train"].get("steps")
    cells = grid.axes_of(told["grid"])
    say(f"{sum(map(grid.size, cells)):,} cells ({grid.shape(cells)})" + (f", {steps:,} steps each." if steps else "."))
    given = told["train"] | {"client": scheduler, "jobs": jobs or os.cpu_count() or 1} | options
    table = sweep(told["grid"], *(portable(told[part], path.parent) for part in ("data", "model")), **given)
    paths.write_whole(out, table.drop(columns="curve").to_csv(index=False))
    return table


def _check_place(path: Path, out: Path) -> None:
    """Refuse to write over the file itself, or over anything that is no table of a sweep."""
    if out.is_dir():
        raise ValueError(f"{out} is a folder. Name the file of the table with --out.")
    if out.exists() and out.samefile(path):
        raise ValueError(f"The table would replace {path} itself. Name another file with --out.")
    if not out.exists():
        return
    with out.open(encoding="utf-8", errors="replace") as file:
        header = file.readline().strip().split(",")
    if not ({*METRICS, "reason"} <= set(header)):
        raise ValueError(f"{out} is there, and is no table of a sweep. Move it, or name another file with --out.")


# ---- What is wrong with a file --------------------------------------------------------------------------------------


def _faults(told: dict[str, Any], folder: Path) -> Iterator[str]:
    """Yield one sentence for each fault."""
    for name in set(told) - set(PARTS):
        yield f"[{name}] is no part of a sweep.{near(name, PARTS)} It has [data], [model], [train] and [[grid]]."
    for name in [name for name in PARTS if name not in told]:
        yield f"[{name}] is missing; `sharpnb sweep --example` prints a whole file."
    for part, named in (("data", _data), ("model", builder)):
        if part in told:
            yield from _faults_of_a_function(part, told[part], named, folder)
    if not isinstance(told.get("train", {}), dict):
        yield f"[train] = {told['train']!r}: it is a table of names and values."
        return
    yield from _faults_of_training(told.get("train", {}))
    if "grid" in told:
        try:
            cells = grid.cells_of(told["grid"])
            if "steps" not in told.get("train", {"steps": 1}) and not all("steps" in cell for cell in cells):
                yield "steps is missing: give it under [train], or as an axis of every [[grid]]."
        except ValueError as error:
            yield f"[[grid]]: {error}"


def _data(name: str) -> Callable[..., Any]:
    if ":" in name:
        return usercode.find(name, "data")
    if name not in NAMES:
        raise ValueError(f"There is no data set {name!r}.{near(name, NAMES)} Choose one of {', '.join(NAMES)}, or name "
                         "a function of your own as 'file.py:function'.")
    return load_data


def _faults_of_a_function(part: str, given: Any, named: Callable[[str], Any], folder: Path) -> Iterator[str]:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        yield f"[{part}] needs name = \"…\", a text."
        return
    try:
        function = named(portable(given, folder)["name"])
        takes = inspect.signature(getattr(function, "value", function)).parameters
    except (ValueError, TypeError) as error:  # no such name; something without a signature
        yield f"[{part}]: {error}"
        return
    own = {"seed"} if part == "model" else set()  # given by the sweep
    options = [name for name, taken in takes.items() if taken.kind is not taken.VAR_KEYWORD and name not in own]
    for name in set(given) - {"name"} - set(options):
        if own & {name} or len(options) + len(own & set(takes)) == len(takes):
            yield (f"[{part}]: {given['name']} takes no {name!r} from the file.{near(name, options)} It takes "
                   f"{', '.join(options) or 'nothing'}.")


def _faults_of_training(given: dict[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        allowed = TRAIN.get(name)
        if allowed is None:
            yield f"[train]: there is no {name!r}.{near(name, TRAIN)} It takes {', '.join(TRAIN)}."
        elif isinstance(allowed, tuple) and value not in allowed:
            yield f"[train]: {name} = {value!r}: choose one of {', '.join(allowed)}.{near(value, allowed)}"
        elif isinstance(allowed, int) and (type(value) is not int or value < allowed):
            yield f"[train]: {name} = {value!r}: must be a whole number, {allowed} or more."
        elif isinstance(allowed, type) and not isinstance(value, allowed):
            yield f"[train]: {name} = {value!r}: must be {'true or false' if allowed is bool else 'a text'}."
