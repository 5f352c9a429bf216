"""A grid of settings as a list of cells, checked before anything runs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sharpnb.kept import plain
from sharpnb.many import settings

Grid = Mapping[str, Any] | Sequence[Mapping[str, Any]]
PER_CALL = ("steps", "batch_size")  # of train_many, not of a member; axes of a grid all the same


def log2_grid(low: int, high: int, times: float = 1.0) -> list[float]:
    r"""Return :math:`\text{times}\cdot 2^{low}` to :math:`\text{times}\cdot 2^{high}`: the AdamW paper's axes."""
    return [times * 2.0**power for power in range(low, high + 1)]


def cells_of(grid: Grid) -> list[dict[str, Any]]:
    """Return the cells of a grid: all combinations of its axes, in order.

    A grid is a mapping from names to a value or a list of values; or a list of such mappings, one after the other, for
    rules with other hyperparameters. Names are those of :func:`sharpnb.lab.train_many`'s settings, ``steps`` and
    ``batch_size``.

    Raises:
        ValueError: for an empty grid or axis, a cell that appears twice, or one that ``train_many`` would refuse.
    """
    cells: list[dict[str, Any]] = []
    for part in [grid] if isinstance(grid, Mapping) else grid:
        axes = {name: _axis(name, values) for name, values in part.items()}
        if not axes:
            continue
        axes.setdefault("seed", [0])
        cells += [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if not cells:
        raise ValueError(f"grid = {grid!r} has no cell: give at least {{'rule': 'sgd', 'lr': [0.1]}}.")
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


def _axis(name: str, values: Any) -> list[Any]:
    values = plain(values)
    if isinstance(values, dict):
        if not {"log2"} <= set(values) <= {"log2", "times"}:
            raise ValueError(f"{name} = {values}: an axis is a value, a list or {{log2 = [low, high]}}.")
        low, high = values["log2"]
        values = log2_grid(low, high, values.get("times", 1.0))
    values = values if isinstance(values, list) and name != "betas" else [values]
    if not values:
        raise ValueError(f"{name} = []: an axis of the grid needs at least one value.")
    return values
