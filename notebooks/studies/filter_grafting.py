r"""Notebook 17: its methods and settings, and what is measured on a network."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from sharpnb.averaging import entropy, filter_layers, filter_norms
from sharpnb.lab import models
from sharpnb.lab.data import Data
from sharpnb.lab.training import evaluate


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


def threshold(net: nn.Module, share: float = 0.5) -> float:
    """Half of the median norm of all filters: what counts as weak in nets of any size and decay."""
    return share * float(torch.cat(list(filter_norms(net).values())).median())


def row(net: nn.Module, data: Data) -> dict[str, float]:
    """What is measured on a finished network: loss and error, weak filters, entropy summed over the layers.

    A filter counts as weak when its norm is below half of its layer's median.
    """
    relative = torch.cat([norms / norms.median() for norms in filter_norms(net).values()])
    total = sum(entropy(layer.weight) for layer in filter_layers(net).values())  # type: ignore[arg-type]
    (train_loss, train_error), test_error = evaluate(net, data.train), evaluate(net, data.test)[1]
    return {"test_error": test_error, "train_loss": train_loss, "train_error": train_error, "entropy": total,
            "weak": float((relative < 0.5).sum()), "smallest": float(relative.min())}
