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

OURS: dict[str, dict[str, Callable[..., Any]]] = {
    "model": {build.__name__: build for build in (
        models.mlp, models.cnn, models.resnet, models.resnet18, models.wide_resnet)},
    "data": {name: functools.partial(load_data, name) for name in datafiles.NAMES},
}


@dataclass(frozen=True)
class Shard:
    """Cells that are trained together; ``data``, ``model`` and ``training`` as :func:`sharpnb.lab.sweep` has them."""

    cells: list[dict[str, Any]]
    data: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]

    @property
    def made_with(self) -> dict[str, Any]:
        """All that the result depends on: settings, sources (also functions of one's own), data files, PyTorch."""
        own = [usercode.digest(name) for name in (self.data["name"], self.model["name"]) if ":" in name]
        files = datafiles.fingerprint(self.data["name"]) if self.data["name"] in datafiles.NAMES else ""
        return {"shard": asdict(self), "code": sources.mark(["import sharpnb.lab.shard"]), "own": own, "files": files,
                "torch": torch.__version__}

    def net(self, seed: int) -> nn.Module:
        """Build the net of a seed."""
        options = {**self.model}
        return named(options.pop("name"), "model")(**options, seed=seed)

    def data_of(self, seed: int) -> Data:
        """Load the data of a cell with this seed."""
        options = {**self.data}
        options |= {"seed": seed} if options.get("seed") == "cell" else {}
        return named(options.pop("name"), "data")(**options)

    def run(self) -> list[dict[str, Any]]:
        """Train the cells on one thread; return each one's metrics, ``reason`` (empty if it went well) and curve."""
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


def named(name: str, what: str) -> Callable[..., Any]:
    """Return what builds a ``"model"`` or loads ``"data"``, ours or one of one's own; ValueError if nothing does."""
    if ":" in name:
        return usercode.find(name, what)
    if name not in OURS[what]:
        raise ValueError(f"name = {name!r}: there is no such {what}.{near(name, OURS[what])} Choose one of "
                         f"{', '.join(OURS[what])}, or name one of your own as 'module:function' or "
                         "'file.py:function'.")
    return OURS[what][name]
