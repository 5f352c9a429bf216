"""Notebook 15: its settings, what is measured, and two of the phases of sharpnb.averaging.swap."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.averaging import update_bn
from sharpnb.lab import Data, evaluate, models, train
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.training import batches
from sharpnb.many.engine import Nets
from studies.signals import Signals

FORWARD = 1 / 3  # of an update: a forward pass beside a forward and a backward one, counted and not measured
CHUNK = 250  # samples that BatchNorm's statistics are measured on at a time, as in train_many


@dataclass(frozen=True)
class Settings:
    """The full experiment: ``large // small`` workers each have ``small`` images at a time in every phase.

    ``lr`` is the small batch's peak, the large one's ``large / small`` times that; ``tau`` the training accuracy at
    which phase 1 stops; ``late_lr`` falls to zero on a line in phase 2.
    """

    data: str
    train_size: int | None
    net: str
    width: int
    channels: int
    large: int
    small: int
    lr: float
    decay: float
    epochs: int
    tau: float
    late_epochs: int
    late_lr: float
    pixels: int = 1
    flip: bool = False
    label: str = ""

    @property
    def workers(self) -> int:
        """How many machines share the large batch and then work on their own."""
        return self.large // self.small

    @property
    def large_lr(self) -> float:
        """Peak learning rate of the large batch, by linear scaling."""
        return self.lr * self.large / self.small

    def model(self, seed: int) -> nn.Module:
        """The net of this experiment."""
        return models.resnet18(width=self.width, channels=self.channels, seed=seed)

    def augment(self) -> Any:
        """The augmentation of every training."""
        return shift_and_flip(self.pixels, flip=self.flip)


@dataclass(frozen=True, kw_only=True)
class Quick(Signals):
    """The experiment on signals, with the fields of :class:`Settings`; ``batch`` is the small one.

    Each batch size tries its ``rates``, the small one first, with all ``decays``, and SWAP ``taus`` and ``late_rates``,
    as often.
    """

    norm: bool = True
    large: int = 400
    epochs: int = 60
    late_epochs: int = 10
    lr: float = 0.2
    decay: float = 0.004
    large_lr: float = 1.6
    tau: float = 0.9
    late_lr: float = 0.2
    rates: tuple[tuple[float, ...], ...] = ((0.1, 0.2, 0.3, 0.4), (0.8, 1.6, 2.4, 3.2))
    decays: tuple[float, ...] = (0.0, 0.001, 0.002, 0.004, 0.006)
    taus: tuple[float, ...] = (0.7, 0.8, 0.9, 0.95, 0.98)
    late_rates: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    label: str = "MLP 40-64-64-10 with BatchNorm, 1,000 signals of MNIST-1D, 8 workers"

    @property
    def small(self) -> int:
        """Signals an update of the small batch, and of a worker."""
        return self.batch

    @property
    def workers(self) -> int:
        """How many machines share the large batch and then work on their own."""
        return self.large // self.small

    def augment(self) -> None:
        """No augmentation."""


QUICK = Quick()
# Cut to the budget. Before: width 64, batches of 4096 and 512, 40 epochs, until 98 %, 10 epochs of each worker.
FULL = Settings("cifar10", None, "resnet18", 16, 3, 2048, 256, 0.1, 5e-4, 10, 0.9, 3, 0.1, 4, True,
                "ResNet-18 of width 16, CIFAR-10, 10 epochs")
TOY = Settings("digits", 160, "resnet18", 4, 1, 40, 20, 0.05, 5e-4, 2, 0.9, 1, 0.05, label="ResNet-18, digits")
FULL_SEEDS, TOY_SEEDS = 3, 2


def rising_and_falling(done: float) -> float:
    """From 0 up to 1 on a line over the first fifth of training, and back to 0."""
    return done / 0.2 if done < 0.2 else (1 - done) / 0.8


def falling(done: float) -> float:
    """From 1 to 0 on a line."""
    return 1 - done


def updates(data: Data, batch: int) -> int:
    """Updates an epoch."""
    return len(data.train_y) // batch


def statistics(data: Data) -> list[Tensor]:
    """The batches that BatchNorm's statistics are measured on."""
    return list(data.train_x.split(CHUNK))


def measured(sets: Sequence[Data], w: Tensor, s: Quick = QUICK) -> dict[str, np.ndarray]:
    """Losses (nats) and errors (percent) of rows of weights on their sets, each (K,), BatchNorm's statistics fresh."""
    return {name: np.array(values) for name, values in Nets([0] * len(w), sets, s.model).evaluate(w).items()}


def critical_path(
    data: Data, *, large: float = 0, small: float = 0, averaged: bool = False, s: Settings | Quick = QUICK
) -> float:
    """The time on W workers in updates of ``s.small`` images, one after another: epochs of each phase -> updates.

    In the large-batch phase each worker has a W-th of the batch, so an update takes as long as one of the small batch.
    Communication counts nothing; the BatchNorm pass is a forward pass over the training images on one worker.
    """
    bn = FORWARD * len(data.train_y) / s.small if averaged else 0.0
    return large * updates(data, s.large) + small * updates(data, s.small) + bn


class LargeBatch:
    """``large`` of :func:`sharpnb.averaging.swap`: an epoch with large batches, then the training accuracy."""

    def __init__(self, data: Data, seed: int, s: Settings | Quick = QUICK, bf16: bool = False) -> None:
        self.data, self.s, self.bf16 = data, s, bf16
        self.generator = torch.Generator().manual_seed(seed)
        self.order = batches(len(data.train_y), s.large, self.generator)
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, model: nn.Module, epoch: int) -> float:
        """Train for one epoch and return the share of training images that are right, BatchNorm's statistics fresh."""
        s, data, each = self.s, self.data, updates(self.data, self.s.large)
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=s.decay)
        model.train()
        for step in range(epoch * each, (epoch + 1) * each):
            self.optimizer.param_groups[0]["lr"] = s.large_lr * rising_and_falling(step / (s.epochs * each))
            index = next(self.order).to(data.train_x.device)
            x, augment = data.train_x[index], s.augment()
            x = augment(x, self.generator) if augment else x
            self.optimizer.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
                F.cross_entropy(model(x), data.train_y[index]).backward()
            self.optimizer.step()
        update_bn(model, statistics(data))
        return 1 - evaluate(model, data.train)[1] / 100


@dataclass(frozen=True)
class Worker:
    """``small`` of :func:`sharpnb.averaging.swap`; it can be sent to another process."""

    data: Data
    seed: int = 0
    s: Settings | Quick = QUICK
    bf16: bool = False

    def __call__(self, model: nn.Module, worker: int) -> None:
        """Train ``model`` with small batches in the worker's own order."""
        optimizer = torch.optim.SGD(model.parameters(), lr=self.s.late_lr, momentum=0.9, weight_decay=self.s.decay)
        where = next(model.parameters()).device
        train(model, self.data, optimizer, steps=self.s.late_epochs * updates(self.data, self.s.small),
              batch_size=self.s.small, schedule=falling, seed=self.seed + worker, augment=self.s.augment(),
              device=where, bf16=self.bf16, progress=False, graphs=True)
