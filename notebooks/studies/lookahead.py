"""Notebook 16: the settings of its small net, and of CIFAR-10."""

from dataclasses import dataclass, field

from torch import nn

from sharpnb.lab import models
from studies.signals import Signals


@dataclass(frozen=True, kw_only=True)
class Settings(Signals):
    """The experiment on signals, at the schedule of the paper's CIFAR runs.

    SGD and Adam try decays, bare and under Lookahead, each with its own four rates. ``cells`` are k and alpha of the
    paper's table, ``spread`` factors on SGD's best rate, over which the training loss is to spread little. So many
    ``cycles`` are looked into, from the share ``looked`` of training on: the paper's epoch 65 of 200.
    """

    decays: tuple[float, ...] = (0.002, 0.004, 0.008)
    adam_decays: tuple[float, ...] = (0.001, 0.003, 0.01)
    rates: dict[str, tuple[float, ...]] = field(default_factory=lambda: {
        "SGD": (0.1, 0.15, 0.2, 0.3), "Lookahead": (0.2, 0.3, 0.4, 0.6), "Adam": (0.01, 0.02, 0.03, 0.06),
        "Lookahead on Adam": (0.02, 0.03, 0.06, 0.1)})
    cells: tuple[tuple[int, float], ...] = ((5, 0.5), (5, 0.8), (10, 0.5), (10, 0.8))
    spread: tuple[float, ...] = (0.5, 1.0, 2.0)
    cycles: int = 20
    looked: float = 0.325


QUICK = Settings()


def schedule(done: float) -> float:
    """The paper's on CIFAR: a fifth of the rate from 30, 60 and 80 % of training on."""
    return 0.2 ** sum(done >= share for share in (0.3, 0.6, 0.8))


@dataclass(frozen=True)
class Full:
    """The CIFAR-10 experiment, with the settings that the paper's authors tuned for ResNet-18.

    The paper's width is 64; it has 200 epochs and three seeds.
    """

    label: str
    data: str
    train_size: int | None
    width: int
    channels: int
    steps: int
    seeds: int

    def model(self, seed: int) -> nn.Module:
        """The net of this experiment."""
        return models.resnet18(width=self.width, channels=self.channels, seed=seed)


FULL = Full("ResNet-18 of width 16, CIFAR-10, 10 epochs", "cifar10", None, 16, 3, 10 * 390, 2)
TOY = Full("ResNet-18 of width 4, digits", "digits", 200, 4, 1, 12, 2)
