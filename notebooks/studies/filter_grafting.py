r"""Notebook 17: its methods and settings, and what is measured on a network."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from sharpnb.averaging import entropy, filter_layers, filter_norms
from sharpnb.lab import Data, evaluate, models
from studies.signals import Signals


@dataclass(frozen=True)
class Method:
    """One way to train ``nets`` networks side by side; ``a``, ``c``, ``criterion`` are :func:`averaging.graft`'s.

    After each epoch is grafted from the ``source``: ``"none"``, ``"external"`` or ``"internal"``. ``different_lr``:
    initial learning rates are as in the authors' ``dlr``, else one for all.
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
    """The experiment on signals, chosen on single nets alone."""

    sizes: tuple[int, ...] = (40, 48, 48, 10)
    norm: bool = True
    steps: int = 400
    batch: int = 100
    rates: tuple[float, ...] = (0.1, 0.2, 0.3, 0.6)
    decays: tuple[float, ...] = (0.001, 0.002, 0.004, 0.008, 0.016)
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
    """Entropy summed over a network's layers, and how many filters are ``weak``: below half of their layer's median."""
    relative = torch.cat([norms / norms.median() for norms in filter_norms(net).values()])
    total = sum(entropy(layer.weight) for layer in filter_layers(net).values())  # type: ignore[arg-type]
    return {"entropy": total, "weak": float((relative < 0.5).sum()), "smallest": float(relative.min())}


def row(net: nn.Module, data: Data) -> dict[str, float]:
    """What is measured on a finished network: losses, errors, and its filters."""
    (train_loss, train_error), test_error = evaluate(net, data.train), evaluate(net, data.test)[1]
    return {"test_error": test_error, "train_loss": train_loss, "train_error": train_error, **filters(net)}
