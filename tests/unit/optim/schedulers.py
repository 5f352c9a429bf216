"""Every scheduler of PyTorch: how it is built, how it is stepped, and the rates that it gives a plain SGD.

``SCHEDULES[name].make(optimizer)`` builds it for an optimizer with any number of groups, each with a rate of its own;
``.step(scheduler, t)`` is what a loop calls after its step t = 0, 1, …; ``.factor(t)`` is the learning rate of step t
over the one that the group began with, ``.momentum(t)`` the momentum (or beta 1) of step t.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as L
from torch.optim.swa_utils import SWALR

STEPS = 20
MOMENTUM = 0.9
# What ReduceLROnPlateau is told after each step. With patience 1 the second report in a row without progress halves.
METRIC = [9, 8, 8.5, 8.5, 8.5, 7, 7.5, 7.5, 7.5, 7.5, 6, 5, 4, 4, 4, 4, 4, 4, 3, 2]


@dataclass(frozen=True)
class Schedule:
    make: Callable[[Optimizer], Any]

    def step(self, scheduler: Any, t: int) -> None:
        scheduler.step(*([METRIC[t]] if isinstance(scheduler, L.ReduceLROnPlateau) else []))

    @cached_property
    def plain(self) -> list[tuple[float, float]]:
        """The rate and the momentum of each step of a plain SGD that begins with rate 1."""
        optimizer = SGD([torch.zeros(1)], lr=1.0, momentum=MOMENTUM)
        scheduler, found = self.make(optimizer), []
        for t in range(STEPS):
            found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            self.step(scheduler, t)
        return found

    def factor(self, t: int) -> float:
        return self.plain[t][0]

    def momentum(self, t: int) -> float:
        return self.plain[t][1]

    @property
    def moves_momentum(self) -> bool:
        return len({momentum for _, momentum in self.plain}) > 1


def _times(optimizer: Optimizer, factor: float) -> list[float]:
    return [factor * float(group["lr"]) for group in optimizer.param_groups]


def _cyclic(mode: Any, **options: Any) -> Schedule:
    return Schedule(lambda o: L.CyclicLR(o, _times(o, 0.1), _times(o, 1.0), 3, 5, mode, **options))


def _one(strategy: Any, peak: float = 1.0, **options: Any) -> Schedule:
    return Schedule(lambda o: L.OneCycleLR(o, _times(o, peak), total_steps=25, anneal_strategy=strategy, **options))


SCHEDULES: dict[str, Schedule] = {
    "LambdaLR": Schedule(lambda o: L.LambdaLR(o, lambda t: 1 / (1 + t))),
    "MultiplicativeLR": Schedule(lambda o: L.MultiplicativeLR(o, lambda t: 0.95)),
    "StepLR": Schedule(lambda o: L.StepLR(o, 4, 0.5)),
    "MultiStepLR": Schedule(lambda o: L.MultiStepLR(o, [3, 4, 11], 0.3)),
    "ConstantLR": Schedule(lambda o: L.ConstantLR(o, 0.25, 5)),
    "LinearLR": Schedule(lambda o: L.LinearLR(o, 0.1, 1.0, 8)),
    "ExponentialLR": Schedule(lambda o: L.ExponentialLR(o, 0.8)),
    "CosineAnnealingLR": Schedule(lambda o: L.CosineAnnealingLR(o, 8)),  # 0 at 8, and up again
    "PolynomialLR": Schedule(lambda o: L.PolynomialLR(o, 15, 2.0)),  # ends at 0
    "CosineAnnealingWarmRestarts": Schedule(lambda o: L.CosineAnnealingWarmRestarts(o, 4, 2)),
    "CyclicLR triangular": _cyclic("triangular"), "CyclicLR triangular2": _cyclic("triangular2"),
    "CyclicLR exp_range": _cyclic("exp_range", gamma=0.9),
    "CyclicLR without momentum": _cyclic("triangular", cycle_momentum=False),
    "OneCycleLR cos": _one("cos"), "OneCycleLR linear": _one("linear"),
    "OneCycleLR three_phase": _one("cos", three_phase=True), "OneCycleLR above lr": _one("cos", peak=10.0),
    "ReduceLROnPlateau": Schedule(lambda o: L.ReduceLROnPlateau(o, factor=0.5, patience=1, threshold=0.0)),
    "SequentialLR": Schedule(
        lambda o: L.SequentialLR(o, [L.LinearLR(o, 0.1, 1.0, 5), L.CosineAnnealingLR(o, 20)], [5])),
    "ChainedScheduler": Schedule(
        lambda o: L.ChainedScheduler([L.ConstantLR(o, 0.5, 4), L.ExponentialLR(o, 0.9)], o)),
    "SWALR": Schedule(lambda o: SWALR(o, _times(o, 0.2), anneal_epochs=6)),  # pyright: ignore
}
