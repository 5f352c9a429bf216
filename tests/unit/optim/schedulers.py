"""Every scheduler of PyTorch: how it is built, how it is stepped, and the rates that its formula gives, by hand.

``SCHEDULES[name].make(optimizer)`` builds it for an optimizer with any number of groups, each with a rate of its own;
``.step(scheduler, t)`` is what a loop calls after its step t = 0, 1, …; ``.factor(t)`` is the learning rate of step t
over the one that the group began with, ``.momentum(t)`` the momentum (or beta 1) where the scheduler moves that too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.optim import Optimizer
from torch.optim import lr_scheduler as L
from torch.optim.swa_utils import SWALR

STEPS = 20
# What ReduceLROnPlateau is told after each step. With patience 1 the second report in a row without progress halves.
METRIC = [9, 8, 8.5, 8.5, 8.5, 7, 7.5, 7.5, 7.5, 7.5, 6, 5, 4, 4, 4, 4, 4, 4, 3, 2]
PLATEAU = [1, 1, 1, 1, .5, .5, .5, .5, .25, .25, .125, .125, .125, .125, .125, .0625, .0625, .03125, .03125, .03125]
LOW, HIGH = 0.6, 0.9  # between which the cyclic ones move the momentum


@dataclass(frozen=True)
class Schedule:
    make: Callable[[Optimizer], Any]
    factor: Callable[[int], float]
    momentum: Callable[[int], float] | None = None

    def step(self, scheduler: Any, t: int) -> None:
        if isinstance(scheduler, L.ReduceLROnPlateau):
            scheduler.step(METRIC[t])
        else:
            scheduler.step()

    def run(self, optimizer: Optimizer, steps: int = STEPS, step: Callable[[], Any] = lambda: None) -> list[tuple[float,
                                                                                                                  ...]]:
        """Step optimizer and scheduler in turn; return each group's rate in each step."""
        scheduler, rates = self.make(optimizer), []
        for t in range(steps):
            rates.append(tuple(float(group["lr"]) for group in optimizer.param_groups))
            step()
            self.step(scheduler, t)
        return rates


def _times(optimizer: Optimizer, factor: float) -> list[float]:
    return [factor * float(group["lr"]) for group in optimizer.param_groups]


def _cos(t: float) -> float:
    return (1 + math.cos(math.pi * t)) / 2  # from 1 to 0 while t goes from 0 to 1


def _tooth(t: int, up: int = 3, down: int = 5) -> float:
    """How high a triangular wave stands, from 0 to 1 in ``up`` steps and back in ``down``."""
    t %= up + down
    return t / up if t <= up else (up + down - t) / down


def _one_cycle(t: int, ends: list[float], values: list[float], shape: Callable[[float], float]) -> float:
    """Go from value to value, each reached at its end; ``shape`` falls from 1 to 0."""
    start = 0.0
    for phase, end in enumerate(ends):
        if t <= end or phase == len(ends) - 1:
            share = shape((t - start) / (end - start))
            return values[phase] * share + values[phase + 1] * (1 - share)
        start = end
    raise AssertionError


def _cyclic(mode: str, scale: Callable[[int], float], **options: Any) -> Schedule:
    """Between a tenth of the group's rate and all of it, the momentum the other way."""
    height = lambda t: _tooth(t) * scale(t)
    return Schedule(
        lambda o: L.CyclicLR(o, _times(o, 0.1), _times(o, 1.0), 3, 5, mode, base_momentum=LOW, max_momentum=HIGH,
                             **options),
        lambda t: 0.1 + 0.9 * height(t), lambda t: HIGH - (HIGH - LOW) * height(t))


def _one(strategy: str, shape: Callable[[float], float], peak: float = 1.0, three_phase: bool = False) -> Schedule:
    ends = [6.5, 13.0, 24.0] if three_phase else [6.5, 24.0]  # 0.3 * 25 - 1, twice that, 25 - 1
    first, last = 1 / 25, 1 / 25 / 1e4
    lr, momentum = ([first, 1, first, last], [HIGH, LOW, HIGH, HIGH]) if three_phase else ([first, 1, last],
                                                                                           [HIGH, LOW, HIGH])
    return Schedule(
        lambda o: L.OneCycleLR(o, _times(o, peak), total_steps=25, anneal_strategy=strategy, three_phase=three_phase,
                               # pyright: ignore
                               base_momentum=LOW, max_momentum=HIGH),
        lambda t: peak * _one_cycle(t, ends, lr, shape), lambda t: _one_cycle(t, ends, momentum, shape))


def _restarts(t: int) -> float:
    since, length = t, 4
    while since >= length:
        since, length = since - length, 2 * length
    return _cos(since / length)


def _swa(strategy: str, share: Callable[[float], float]) -> Schedule:
    return Schedule(
        lambda o: SWALR(o, _times(o, 0.2), anneal_epochs=6, anneal_strategy=strategy),  # pyright: ignore
        lambda t: 0.2 * share(min(t / 6, 1)) + 1 - share(min(t / 6, 1)))


def _straight(t: float) -> float:
    return 1 - t


SCHEDULES: dict[str, Schedule] = {
    "LambdaLR": Schedule(lambda o: L.LambdaLR(o, lambda t: 1 / (1 + t)), lambda t: 1 / (1 + t)),
    "MultiplicativeLR": Schedule(lambda o: L.MultiplicativeLR(o, lambda t: 0.95), lambda t: 0.95**t),
    "StepLR": Schedule(lambda o: L.StepLR(o, 4, 0.5), lambda t: 0.5 ** (t // 4)),
    "MultiStepLR": Schedule(lambda o: L.MultiStepLR(o, [3, 4, 11], 0.3),
                            lambda t: 0.3 ** ((t >= 3) + (t >= 4) + (t >= 11))),
    "ConstantLR": Schedule(lambda o: L.ConstantLR(o, 0.25, 5), lambda t: 0.25 if t < 5 else 1.0),
    "LinearLR": Schedule(lambda o: L.LinearLR(o, 0.1, 1.0, 8), lambda t: 0.1 + 0.9 * min(t, 8) / 8),
    "ExponentialLR": Schedule(lambda o: L.ExponentialLR(o, 0.8), lambda t: 0.8**t),
    "CosineAnnealingLR": Schedule(lambda o: L.CosineAnnealingLR(o, 8), lambda t: _cos(t / 8)),  # 0 at 8, and up again
    "PolynomialLR": Schedule(lambda o: L.PolynomialLR(o, 15, 2.0), lambda t: (1 - min(t, 15) / 15) ** 2),  # ends at 0
    "CosineAnnealingWarmRestarts": Schedule(lambda o: L.CosineAnnealingWarmRestarts(o, 4, 2), _restarts),
    "CyclicLR triangular": _cyclic("triangular", lambda t: 1.0),
    "CyclicLR triangular2": _cyclic("triangular2", lambda t: 0.5 ** (t // 8)),
    "CyclicLR exp_range": _cyclic("exp_range", lambda t: 0.9**t, gamma=0.9),
    "CyclicLR without momentum": Schedule(
        lambda o: L.CyclicLR(o, _times(o, 0.1), _times(o, 1.0), 3, 5, cycle_momentum=False),
        lambda t: 0.1 + 0.9 * _tooth(t)),
    "OneCycleLR cos": _one("cos", _cos),
    "OneCycleLR linear": _one("linear", _straight),
    "OneCycleLR three_phase": _one("cos", _cos, three_phase=True),
    "OneCycleLR above lr": _one("cos", _cos, peak=10.0),
    "ReduceLROnPlateau": Schedule(
        lambda o: L.ReduceLROnPlateau(o, factor=0.5, patience=1, threshold=0.0), lambda t: PLATEAU[t]),
    "SequentialLR": Schedule(
        lambda o: L.SequentialLR(o, [L.LinearLR(o, 0.1, 1.0, 5), L.CosineAnnealingLR(o, 20)], [5]),
        lambda t: 0.1 + 0.9 * t / 5 if t < 5 else _cos((t - 5) / 20)),
    "ChainedScheduler": Schedule(
        lambda o: L.ChainedScheduler([L.ConstantLR(o, 0.5, 4), L.ExponentialLR(o, 0.9)], o),
        lambda t: (0.5 if t < 4 else 1.0) * 0.9**t),
    "SWALR cos": _swa("cos", lambda t: 1 - _cos(t)),
    "SWALR linear": _swa("linear", lambda t: t),
}
