r"""Notebook 14: the window of a plane, and the settings of both experiments."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import nn

from sharpnb.lab import models
from sharpnb.lab.augment import Augment, shift_and_flip
from sharpnb.landscape import Plane
from studies.signals import Signals


@dataclass(frozen=True, kw_only=True)
class Settings(Signals):
    """The experiment on signals; its rate and decays are in the record of the tuning.

    After the share ``start`` of the budget weights are averaged, one each ``every`` steps, an epoch. ``factors`` are
    rates of that phase over SGD's, which SWA tries with SGD's decays. Compared beside, cycles fall from ``fast`` to
    ``slow``, and ``middle`` is about their mean.
    """

    start: float = 0.75
    every: int = 20
    rates: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3)
    decays: tuple[float, ...] = (0.002, 0.004, 0.006, 0.008)
    factors: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 1.0)
    slow: float = 0.05
    middle: float = 0.5
    fast: float = 1.0


QUICK = Settings()


def square(plane: Plane, margin: float) -> tuple[float, float, float, float]:
    """A square window around a plane's points, which may lie on a line; the margin is a share of their extent."""
    x, y = np.array(list(plane.points.values())).T
    half = (0.5 + margin) * max(np.ptp(x), np.ptp(y))
    centre = [(side.min() + side.max()) / 2 for side in (x, y)]
    return centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half


@dataclass(frozen=True)
class Full:
    """The CIFAR-10 experiment, with the paper's rates: lr 0.1, decay 3e-4, averaging from 75 %, at a tenth of the rate.

    Batches are the paper's; it has 150 epochs and three seeds.
    """

    label: str
    data: str
    train_size: int | None
    model: Callable[[int], nn.Module]
    epochs: int
    seeds: int
    augment: Augment
    batch: int = 128

    @property
    def epoch(self) -> int:
        """Updates an epoch."""
        return (self.train_size or 50_000) // self.batch or 1


FULL = Full("ResNet-18 of width 16, CIFAR-10, 12 epochs", "cifar10", None,
            lambda seed: models.resnet18(width=16, seed=seed), 12, 3, shift_and_flip(4, flip=True))
TOY = Full("ResNet-18 of width 4, digits", "digits", 200, lambda seed: models.resnet18(width=4, channels=1, seed=seed),
           12, 2, shift_and_flip(1, flip=False))
