r"""Notebook 17: its methods and settings, and what is measured on a network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from sharpnb import rules
from sharpnb.averaging import entropy, filter_layers, filter_norms, graft, graft_internal
from sharpnb.lab import models
from sharpnb.lab.data import Data
from sharpnb.lab.training import evaluate
from sharpnb.many.engine import Nets
from studies.signals import TUNING, Signals


@dataclass(frozen=True)
class Method:
    """One way to train ``nets`` networks side by side.

    Attributes:
        nets: how many.
        source: what is grafted after each epoch: ``"none"``, ``"external"`` or ``"internal"``.
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
    "internal": Method(source="internal"),
    "external": Method(source="external"),
    "external, own lr": Method(source="external", different_lr=True),
    "external, l1": Method(source="external", different_lr=True, criterion="l1"),
    "external, plain mean": Method(source="external", different_lr=True, a=0.0),
    "3 nets": Method(3, "external", True),
    "4 nets": Method(4, "external", True),
}


@dataclass(frozen=True, kw_only=True)
class Quick(Signals):
    """The experiment on signals, chosen on single nets alone, at the tuning seeds and on held-out signals.

    Batches of 100 for 40 epochs fit the 1,000 signals (training error 0.0 %, held-out error 52 %, at lr 0.3 and decay
    0.002); batches of 50 for 20 epochs do not (8 %), and 500 signals have a higher error (59 %).
    """

    sizes: tuple[int, ...] = (40, 48, 48, 10)
    norm: bool = True
    steps: int = 400
    batch: int = 100
    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.6)
    decays: tuple[float, ...] = (0.001, 0.002, 0.004)
    methods: tuple[str, ...] = ("baseline", "internal", "external", "external, own lr", "external, l1",
                                "external, plain mean", "3 nets")
    label: str = "MLP 40-48-48-10 with BatchNorm, 1,000 signals of MNIST-1D"

    def net(self, seed: int) -> nn.Module:
        """The net of a seed, in float64."""
        return self.model(seed).double()


@dataclass(frozen=True)
class Settings:
    """Net, data and budget of the full profile. Each network is trained for ``epochs``, whatever the method."""

    data: str
    train_size: int | None
    epochs: int
    batch_size: int = 30
    lr: float = 0.1
    weight_decay: float = 5e-4
    seeds: int = 2
    dtype: torch.dtype = torch.float32
    methods: tuple[str, ...] = ("baseline", "external", "external, own lr", "3 nets", "4 nets")
    label: str = ""

    def net(self, seed: int) -> nn.Module:
        """ResNet-8; a small MLP with BatchNorm, its rows the filters, for the toy."""
        if self.data == "cifar10":
            return models.resnet(8, seed=seed)
        return models.mlp((64, 32, 32, 10), norm=True, seed=seed).to(self.dtype)


QUICK = Quick()
# Cut to the budget. Before: ResNet-32, 200 epochs, 3 seeds.
FULL = Settings("cifar10", None, 5, 128, label="ResNet-8, CIFAR-10, 5 epochs")
TOY = Settings("digits", 300, 3, dtype=torch.float64, label="MLP with BatchNorm, 300 digits")


def initial_lr(base: float, nets: int, net: int) -> float:
    r"""The authors' ``dlr``: :math:`\alpha_i=\frac{\alpha}{2}(1+\cos(\pi(N-i)/N))`, i = 1 … N."""
    return base * (1 + math.cos(math.pi * (nets - net - 1) / nets)) / 2


def threshold(net: nn.Module, share: float = 0.5) -> float:
    """Half of the median norm of all filters: what counts as weak in nets of any size and decay."""
    return share * float(torch.cat(list(filter_norms(net).values())).median())


def filters(net: nn.Module) -> dict[str, float]:
    """What is measured on a finished network's filters: how many are weak, and the entropy summed over the layers.

    A filter counts as weak when its norm is below half of its layer's median.
    """
    relative = torch.cat([norms / norms.median() for norms in filter_norms(net).values()])
    total = sum(entropy(layer.weight) for layer in filter_layers(net).values())  # type: ignore[arg-type]
    return {"entropy": total, "weak": float((relative < 0.5).sum()), "smallest": float(relative.min())}


def row(net: nn.Module, data: Data) -> dict[str, float]:
    """What is measured on a finished network: losses, errors, and its filters."""
    (train_loss, train_error), test_error = evaluate(net, data.train), evaluate(net, data.test)[1]
    return {"test_error": test_error, "train_loss": train_loss, "train_error": train_error, **filters(net)}


def grafted(groups: Sequence[tuple[Method, slice]], models: Sequence[nn.Module], step: int, nets: Nets) -> None:
    """Graft the rows of each group in place; ``models`` lend their layers, as many as the largest group needs."""
    for method, rows in groups if step else ():
        own = models[: method.nets]
        for model, w in zip(own, nets.w[rows], strict=True):
            vector_to_parameters(w, model.parameters())  # the parameters are views of the row
        if method.source == "external":
            graft(own, method.a, method.c, method.criterion)
        elif method.source == "internal":
            for model in own:
                graft_internal(model, threshold(model))


def run(s: Quick, jobs: Sequence[tuple[str, int, dict[str, float]]], held_out: bool = False) -> list[dict[str, Any]]:
    """Train a method's networks for each job of (method, seed, lr and decay); return a row each, means over its nets.

    Networks have weights and order of data of their own, alike in all methods of a seed, and their seed's signals.
    """
    rows: list[dict[str, Any]] = []
    for first in range(0, len(jobs), 14):
        members, groups = [], []
        for name, seed, trial in jobs[first : first + 14]:
            method = METHODS[name]
            groups.append((method, slice(len(members), len(members) + method.nets)))
            members += [(100 * seed + j, s.data(seed, held_out), trial["weight_decay"], initial_lr(
                trial["lr"], method.nets, j) if method.different_lr else trial["lr"]) for j in range(method.nets)]
        seeds, data, decay, lr = zip(*members, strict=True)
        nets = Nets(seeds, data, s.model, batch_size=s.batch)
        told = {"lr": torch.tensor(lr)[:, None].double(), "weight_decay": torch.tensor(decay)[:, None].double()}
        lent = [s.net(j) for j in range(max(method.nets for method, _ in groups))]
        w = nets.fit(lambda w, g, state, told=told, **eta: rules.sgd(w, g(w), state, momentum=0.9, **told, **eta),
                     s.steps, every=s.train_size // s.batch, probe=partial(grafted, groups, lent), progress=False)
        rows += _measured(nets, w, [rows for _, rows in groups], lent[0])
    return [{"method": name, "seed": seed, **trial, **row} for (name, seed, trial), row in zip(jobs, rows, strict=True)]


@torch.no_grad()
def _measured(nets: Nets, w: Tensor, groups: list[slice], net: nn.Module) -> list[dict[str, float]]:
    found, each = nets.evaluate(w), []
    for own in w:
        vector_to_parameters(own, net.parameters())
        each.append(filters(net))
    found |= {name: [row[name] for row in each] for name in each[0]}
    p, y = [torch.empty(0)] * len(w), nets.sets[0].test[1]
    for members, z, _ in nets.logits(w, "test"):
        for k, own in zip(members.tolist(), z, strict=True):
            p[k] = own.softmax(1)
    ensemble = [100 * float((torch.stack(p[rows]).mean(0).argmax(1) != y).double().mean()) for rows in groups]
    return [{**{name: sum(values[rows]) / len(values[rows]) for name, values in found.items()}, "ensemble": error}
            for rows, error in zip(groups, ensemble, strict=True)]


def tuned(s: Quick) -> dict[str, Any]:
    """Tune rate and decay of single nets and of two grafted ones, in equally many trials, as in :class:`Signals`."""
    found = {}
    for name in ("baseline", "external"):
        trials = [{"lr": lr, "weight_decay": decay} for lr, decay in product(s.rates, s.decays)]
        rows = run(s, [(name, seed, trial) for trial in trials for seed in TUNING], held_out=True)
        found[name] = s.chosen({"lr": s.rates, "weight_decay": s.decays}, trials, rows)
    return found
