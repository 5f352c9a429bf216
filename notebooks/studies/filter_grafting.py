r"""Notebook 17: networks trained side by side that lend each other their filters, and what fills an invalid one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sharpnb.averaging import entropy, filter_layers, filter_norms, graft, graft_internal, graft_noise
from sharpnb.lab import models
from sharpnb.lab.claims import t95
from sharpnb.lab.data import Data, load_data
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from sharpnb.lab.training import evaluate, shift_and_flip, train


@dataclass(frozen=True)
class Method:
    """One way to train ``nets`` networks side by side.

    Attributes:
        nets: how many.
        source: what is grafted after each epoch: ``"none"``, ``"external"``, ``"noise"`` or ``"internal"``.
        different_lr: initial learning rates as in the authors' ``dlr``, else one for all.
        a, c, criterion: of :func:`sharpnb.averaging.graft`.
    """

    nets: int = 2
    source: str = "none"
    different_lr: bool = False
    a: float = 0.4
    c: float = 500.0
    criterion: str = "entropy"


METHODS = {
    "baseline": Method(),
    "noise": Method(source="noise"),
    "internal": Method(source="internal"),
    "external": Method(source="external"),
    "external, own lr": Method(source="external", different_lr=True),
    "external, l1": Method(source="external", different_lr=True, criterion="l1"),
    "external, plain mean": Method(source="external", different_lr=True, a=0.0),
    "external, a = 1": Method(source="external", different_lr=True, a=1.0),
    "3 nets": Method(3, "external", True),
    "4 nets": Method(4, "external", True),
}


@dataclass(frozen=True)
class Settings:
    """Net, data and budget. Each network is trained for ``epochs``, whatever the method."""

    data: str = "digits"
    train_size: int | None = 300
    epochs: int = 25
    batch_size: int = 30
    lr: float = 0.1
    weight_decay: float = 5e-4  # the paper's; without it no filter dies
    seeds: int = 3
    dtype: torch.dtype = torch.float64
    methods: tuple[str, ...] = tuple(METHODS)
    label: str = "MLP with BatchNorm, 300 digits"

    def net(self, seed: int) -> nn.Module:
        """A small MLP with BatchNorm, its rows the filters; ResNet-8 at full scale."""
        if self.data == "cifar10":
            return models.resnet(8, seed=seed)
        return models.mlp((64, 32, 32, 10), norm=True, seed=seed).to(self.dtype)


QUICK = Settings()
# Cut to the budget. Before: ResNet-32, 200 epochs, 3 seeds.
FULL = Settings("cifar10", None, 5, 128, dtype=torch.float32, seeds=2, label="ResNet-8, CIFAR-10, 5 epochs",
                methods=("baseline", "external", "external, own lr", "3 nets", "4 nets"))
TOY = Settings(epochs=3, seeds=2, methods=FULL.methods)


def initial_lr(base: float, nets: int, net: int) -> float:
    r"""The authors' ``dlr``: :math:`\alpha_i=\frac{\alpha}{2}(1+\cos(\pi(N-i)/N))`, i = 1 … N."""
    return base * (1 + math.cos(math.pi * (nets - net - 1) / nets)) / 2


def trained(
    s: Settings, data: Data, method: Method, seed: int, device: Any = "cpu", bf16: bool = False
) -> list[nn.Module]:
    """Train the networks epoch by epoch and graft after each; each has weights, data order and optimizer of its own."""
    nets = [s.net(100 * seed + j).to(device) for j in range(method.nets)]
    lrs = [initial_lr(s.lr, method.nets, j) if method.different_lr else s.lr for j in range(method.nets)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=s.weight_decay)
                  for net, lr in zip(nets, lrs, strict=True)]
    noise = torch.Generator().manual_seed(seed)
    for epoch in range(s.epochs):
        eta = 0.5 * (1 + math.cos(math.pi * epoch / s.epochs))
        for j, (net, optimizer) in enumerate(zip(nets, optimizers, strict=True)):
            train(net, data, optimizer, steps=len(data.train_y) // s.batch_size, batch_size=s.batch_size,
                  schedule=lambda done, eta=eta: eta, seed=(seed * 100 + j) * 1000 + epoch, device=device,
                  bf16=bf16, graphs=True,
                  augment=shift_and_flip(4 if s.data == "cifar10" else 1, flip=s.data == "cifar10"), progress=False)
        if method.source == "external":
            graft(nets, method.a, method.c, method.criterion)  # type: ignore[arg-type]
        for net in nets if method.source in ("noise", "internal") else ():
            if method.source == "noise":
                graft_noise(net, threshold(net), 0.5 ** (epoch + 1), noise)  # the paper's a^t, with a = 1/2
            else:
                graft_internal(net, threshold(net))
    return nets


def threshold(net: nn.Module, share: float = 0.5) -> float:
    """Half of the median norm of all filters: what counts as weak in nets of any size and decay."""
    return share * float(torch.cat(list(filter_norms(net).values())).median())


def row(net: nn.Module, data: Data) -> dict[str, float]:
    """What is measured on a finished network: loss and error, weak filters, entropy summed over the layers.

    A filter counts as weak when its norm is below half of its layer's median.
    """
    relative = torch.cat([norms / norms.median() for norms in filter_norms(net).values()])
    total = sum(entropy(layer.weight) for layer in filter_layers(net).values())  # type: ignore[arg-type]
    return {"test_error": evaluate(net, data.test)[1], "train_loss": evaluate(net, data.train)[0], "entropy": total,
            "weak": float((relative < 0.5).sum()), "smallest": float(relative.min())}


def ensemble_error(nets: Sequence[nn.Module], data: Data) -> float:
    """Test error of the mean of the networks' probabilities, in percent."""
    with torch.no_grad():
        p = sum(net.eval()(data.test_x).softmax(1) for net in nets)
    return 100 * float((p.argmax(1) != data.test_y).double().mean())  # type: ignore[union-attr]


def rows_of(s: Settings, nb: Notebook) -> tuple[list[dict[str, Any]], dict[str, list[nn.Module]]]:
    """Run every method for every seed: one row a method and seed (means over its nets), and the nets of seed 0."""
    kept: dict[str, list[nn.Module]] = {}

    def make(work: Work) -> dict[str, Any]:
        data = nb.uses(load_data(s.data, train_size=s.train_size, dtype=s.dtype)).to(nb.device)

        def one(name: str, seed: int) -> dict[str, Any]:
            nets = trained(s, data, METHODS[name], seed, nb.device, nb.bf16)
            each = [row(net, data) for net in nets]
            if not seed:
                kept[name] = nets
            return {"method": name, "seed": seed, "nets": len(nets), "ensemble": ensemble_error(nets, data),
                    **{key: float(np.mean([r[key] for r in each])) for key in each[0]}}

        return {"rows": [work.do(name, partial(one, name, seed), seed=seed)
                         for seed in range(s.seeds) for name in s.methods]}

    found = nb.recorded("runs", make, of={**vars(s), "net of": s.net}, rtol=5e-2, atol=0.5)
    return found["rows"], kept


def column(rows: Sequence[dict[str, Any]], name: str, method: str) -> np.ndarray:
    """One column of a method, by seed."""
    return np.array([r[name] for r in rows if r["method"] == method])


def draw_errors(ax: Any, table: pd.DataFrame) -> None:
    """Draw each method's test error: mean, from three seeds on its 95 % interval, and the ensemble's."""
    names, seeds = list(dict.fromkeys(table["method"])), table["seed"].nunique()
    for y, name in enumerate(names):
        part = table[table["method"] == name]
        half = t95(len(part)) * part["test_error"].sem() if seeds > 2 else None
        ax.errorbar(part["test_error"].mean(), y, xerr=half, fmt="o", capsize=3,
                    color=COLOURS["sgd" if name == "baseline" else "sam"], label="a single network" if not y else None)
        ax.plot(part["ensemble"].mean(), y, "x", color=COLOURS["exact"], label="their ensemble" if not y else None)
        if seeds < 3:
            ax.plot(part["test_error"], [y + 0.2] * len(part), ".", ms=4, color="0.4", label="" if y else "the seeds")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.set(xlabel="test error (%)")
    title = f"mean, 95 % interval, n = {seeds}" if seeds > 2 else f"mean, n = {seeds}"
    ax.legend(fontsize=8, title=title, title_fontsize=8)
