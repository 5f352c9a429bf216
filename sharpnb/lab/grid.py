"""A grid of settings as a list of cells, checked before anything runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sharpnb.kept import plain
from sharpnb.many import settings

Grid = Mapping[str, Any] | Sequence[Mapping[str, Any]]
PER_CALL = ("steps", "batch_size")  # of train_many, not of a member; axes of a grid all the same
MOST = 100_000  # cells in one table
_PAIRS = ("betas", "augment")  # settings whose value is itself a list


def log2_grid(low: int, high: int, times: float = 1.0) -> list[float]:
    r"""Return :math:`\text{times}\cdot 2^{low}` to :math:`\text{times}\cdot 2^{high}`: the AdamW paper's axes."""
    return [times * 2.0**power for power in range(low, high + 1)]


def cells_of(grid: Grid) -> list[dict[str, Any]]:
    """Return the cells of a grid: all combinations of its axes, in order.

    A grid is a mapping from names to a value or a list of values; or a list of such mappings, one after the other, for
    rules with other hyperparameters. Names are those of :func:`sharpnb.lab.train_many`'s settings, ``steps`` and
    ``batch_size``.

    Raises:
        ValueError: for an empty grid or axis, more than :data:`MOST` cells, a cell that appears twice, or one that
            ``train_many`` would refuse.
    """
    parts = axes_of(grid)
    if (number := size(parts)) > MOST:
        raise ValueError(f"The grid has {number:,} cells ({shape(parts)}), and one table holds at most {MOST:,}. Give "
                         "fewer values, or cut it into several sweeps.")
    cells = [dict(zip(axes, values, strict=True)) for axes in parts for values in itertools.product(*axes.values())]
    seen: dict[str, int] = {}
    for k, cell in enumerate(cells):
        own = settings.validated({name: value for name, value in cell.items() if name not in PER_CALL}, k)
        for name in PER_CALL:
            if name in cell and (not isinstance(cell[name], int) or cell[name] < 1):
                raise ValueError(f"setting {k}: {name} = {cell[name]!r}: must be a whole number, 1 or more.")
        first = seen.setdefault(json.dumps({**own, **cell}, sort_keys=True, default=repr), k)
        if first != k:
            raise ValueError(f"cells {first} and {k} of the grid are the same: {cell}. Remove the repeated value.")
    return cells


def axes_of(grid: Grid) -> list[dict[str, Sequence[Any]]]:
    """Return the values of each axis, for each part of a grid; ValueError where one is empty or can be no setting."""
    given = [grid] if isinstance(grid, Mapping) else grid
    if not isinstance(given, Sequence) or not all(isinstance(part, Mapping) for part in given) or not any(given):
        raise ValueError(f"grid = {grid!r} has no cell: give at least {{'rule': 'sgd', 'lr': [0.1]}}.")
    parts = [{name: _axis(name, values) for name, values in part.items()} for part in given if part]
    return [axes if "seed" in axes else {**axes, "seed": [0]} for axes in parts]


def size(parts: Sequence[Mapping[str, Sequence[Any]]]) -> int:
    """Return the number of cells, of which none is made."""
    return sum(math.prod(map(len, axes.values())) for axes in parts)


def shape(parts: Sequence[Mapping[str, Sequence[Any]]]) -> str:
    """Return the lengths of a grid's axes as a text: ``rule 2 × lr 8 × seed 20``."""
    return " + ".join(" × ".join(f"{name} {len(values):,}" for name, values in axes.items() if len(values) > 1)
                      or "1" for axes in parts)


def _axis(name: str, values: Any) -> Sequence[Any]:
    if isinstance(values, range):
        return values
    try:
        values = plain(values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if isinstance(values, dict):
        return _powers(name, values)
    pair = name in _PAIRS and isinstance(values, list) and values and not isinstance(values[0], list | None)
    values = values if isinstance(values, list) and not pair else [values]
    if not values:
        raise ValueError(f"{name} = []: an axis of the grid needs at least one value.")
    if wrong := [value for value in values if isinstance(value, dict | list) and name not in _PAIRS]:
        raise ValueError(f"{name} = {wrong[0]!r}: a value of an axis is a number, a text, true or false.")
    return values


def _powers(name: str, told: dict[str, Any]) -> list[float]:
    match told:
        case {"log2": [int(low), int(high)], **rest} if rest.keys() <= {"times"} and -1074 <= low <= high <= 1023:
            times = rest.get("times", 1.0)
            if isinstance(times, int | float) and not isinstance(times, bool):
                return log2_grid(low, high, times)
    raise ValueError(f"{name} = {told}: an axis is a value, a list or {{log2 = [low, high]}}, whole numbers from -1074 "
                     "to 1023, low first; times is a number.")
