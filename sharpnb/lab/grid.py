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

    A grid is a mapping from names to a value, a list of values, or powers of two as ``{"log2": [-8, 0], "times": 0.1}``
    (as a TOML file can have them); or a list of such mappings, one after the other, for rules with other
    hyperparameters. Names are those of :func:`sharpnb.lab.train_many`'s settings, ``steps`` and ``batch_size``.

    Raises:
        ValueError: for an empty grid or axis, more than :data:`MOST` cells, a cell that appears twice, or one that
            ``train_many`` would refuse.
    """
    given = [grid] if isinstance(grid, Mapping) else grid
    if not isinstance(given, Sequence) or not all(isinstance(part, Mapping) for part in given) or not any(given):
        raise ValueError(f"grid = {grid!r} has no cell: give at least {{'rule': 'sgd', 'lr': [0.1]}}.")
    parts = [{name: _axis(name, values) for name, values in part.items()} for part in given if part]
    parts = [part if "seed" in part else {**part, "seed": [0]} for part in parts]
    if (number := sum(math.prod(map(len, part.values())) for part in parts)) > MOST:
        raise ValueError(f"The grid has {number:,} cells, and one table holds at most {MOST:,}. Give fewer values, or "
                         "cut it into several sweeps.")
    cells = [dict(zip(part, values, strict=True)) for part in parts for values in itertools.product(*part.values())]
    seen: dict[str, int] = {}
    for k, cell in enumerate(cells):
        own = settings.validated({name: value for name, value in cell.items() if name not in PER_CALL}, k)
        for name in PER_CALL:
            whole(name, cell.get(name, 1), f"setting {k}: ")
        first = seen.setdefault(json.dumps({**own, **cell}, sort_keys=True, default=repr), k)
        if first != k:
            raise ValueError(f"cells {first} and {k} of the grid are the same: {cell}. Remove the repeated value.")
    return cells


def whole(name: str, value: Any, where: str = "", least: int = 1) -> None:
    """Raise a ValueError unless a value is a whole number, ``least`` or more."""
    if type(value) is not int or value < least:
        raise ValueError(f"{where}{name} = {value!r}: must be a whole number, {least} or more.")


def _axis(name: str, values: Any) -> Sequence[Any]:
    if isinstance(values, range):
        return values
    try:
        values = plain(values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    match {"times": 1.0, **values} if isinstance(values, dict) else values:
        case {"log2": [int(low), int(high)], "times": int() | float() as times, **rest} if not rest and (
                -1074 <= low <= high <= 1023 and not isinstance(times, bool)):
            return log2_grid(low, high, times)
        case dict():
            raise ValueError(f"{name} = {values}: an axis is a value, a list or {{log2 = [low, high], times = 1.0}}, "
                             "whole numbers from -1074 to 1023, low first.")
    pair = name in _PAIRS and isinstance(values, list) and values and not isinstance(values[0], list | None)
    values = values if isinstance(values, list) and not pair else [values]
    if not values:
        raise ValueError(f"{name} = []: an axis of the grid needs at least one value.")
    if wrong := [value for value in values if isinstance(value, dict | list) and name not in _PAIRS]:
        raise ValueError(f"{name} = {wrong[0]!r}: a value of an axis is a number, a text, true or false.")
    return values
