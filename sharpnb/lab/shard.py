"""A shard of a sweep: cells of a grid, what they are trained on and how, as plain values that any machine can run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from sharpnb import datafiles, sources, usercode
from sharpnb.lab import models
from sharpnb.lab.data import Data, load_data
from sharpnb.many.train import train_many
from sharpnb.near import near

METRICS = ("train_loss", "train_error", "test_loss", "test_error")


@dataclass(frozen=True)
class Shard:
    """Cells that are trained together.

    Attributes:
        cells: the settings, as :func:`sharpnb.lab.train_many` takes them.
        data: ``name`` and the other arguments of :func:`sharpnb.lab.load_data`; ``"seed": "cell"`` draws each cell's
            split from the cell's own seed. A name ``"module:function"`` is a function of one's own.
        model: ``name`` of a builder in :mod:`sharpnb.lab.models`, or ``"module:function"``, and its arguments.
        training: the other arguments of :func:`sharpnb.lab.train_many`; ``dtype`` by its name.
    """

    cells: list[dict[str, Any]]
    data: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]

    @property
    def made_with(self) -> dict[str, Any]:
        """All that the result depends on: settings, sources (also functions of one's own), data files, PyTorch."""
        named = [name for name in (self.data["name"], self.model["name"]) if ":" in name]
        own = [usercode.digest(name) or sources.around(name.partition(":")[0]) for name in named]
        files = datafiles.fingerprint(self.data["name"]) if self.data["name"] in datafiles.NAMES else ""
        return {"shard": asdict(self), "code": sources.mark(["import sharpnb.lab.shard"]), "own": own, "files": files,
                "torch": torch.__version__}

    def net(self, seed: int) -> nn.Module:
        """Build the net of a seed."""
        options = dict(self.model)
        return builder(options.pop("name"))(**options, seed=seed)

    def data_of(self, seed: int) -> Data:
        """Load the data of a cell with this seed."""
        options = dict(self.data)
        name = options.pop("name")
        if options.get("seed") == "cell":
            options["seed"] = seed
        return usercode.find(name, "data")(**options) if ":" in name else load_data(name, **options)

    def run(self) -> list[dict[str, Any]]:
        """Train the cells on one thread and return for each its result: the metrics, ``reason``, ``curve``.

        ``reason`` is empty for a cell that ended well, ``curve`` the list of its evaluations.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            loaded = functools.cache(self.data_of)
            sets = [loaded(int(cell.get("seed", 0))) for cell in self.cells]
            options = self.training | {"dtype": getattr(torch, self.training.get("dtype", "float32"))}
            many = train_many(self.cells, sets, self.net, **options, chunk=len(self.cells), progress=False)
        finally:
            torch.set_num_threads(threads)
        curves: list[list[dict[str, float]]] = [[] for _ in self.cells]
        for row in many.rows:
            measured = {name: row[name] for name in row if name == "step" or name.endswith(("_loss", "_error"))}
            curves[row["member"]].append(measured)
        ends = ["" if step is None else f"diverged: the loss is not finite at step {step}" for step in many.diverged]
        return [{**curve[-1], "reason": end, "curve": curve} for curve, end in zip(curves, ends, strict=True)]


def run(shard: Shard) -> list[dict[str, Any]]:
    """Run a shard; a function of the module, so that another process can be sent it by name."""
    return shard.run()


def builder(name: str) -> Callable[..., Any]:
    """Return the function that builds a net: of :mod:`sharpnb.lab.models`, or of one's own.

    Raises:
        ValueError: if there is none.
    """
    if ":" in name:
        return usercode.find(name, "model")
    own = [name for name, made in vars(models).items() if getattr(made, "__module__", "") == models.__name__]
    names = [name for name in own if not name.startswith("_") and not isinstance(getattr(models, name), type)]
    if name not in names:
        raise ValueError(f"name = {name!r}: there is no such model.{near(name, names)} Choose one of "
                         f"{', '.join(names)}, or name one of your own as 'module:function' or 'file.py:function'.")
    return getattr(models, name)
