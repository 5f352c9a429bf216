"""Learning-rate schedules: of one training, and of many members, each by its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpnb.optim.schedules import CosineRestarts, normalized_weight_decay

Schedule = Callable[[float], float]

# A schedule maps the share of training that is done, in [0, 1), to the multiplier eta_t.
SCHEDULES: dict[str, Schedule] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "step": lambda done: 0.1 ** ((done >= 0.5) + (done >= 0.75)),
}


def schedule_of(schedule: str | Schedule) -> Schedule:
    """Return the schedule of this name, or the function itself; ValueError for an unknown name."""
    if callable(schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule = {schedule!r}: choose {', '.join(SCHEDULES)} or a function of the share done.")
    return SCHEDULES[schedule]


class Schedules:
    """The multiplier eta of each member at each step, and the weight decay that belongs to a budget.

    Members have a ``schedule``, and for restarts ``t_0`` and ``t_mult``; one member alone is everybody.
    """

    def __init__(self, configs: Sequence[dict[str, Any]], steps: int, lambda_norm: Tensor | None = None) -> None:
        keys = [(config["schedule"], config.get("t_0"), config.get("t_mult")) for config in configs]
        distinct = list(dict.fromkeys(keys))
        self.distinct = [_eta_and_period(*key, steps) for key in distinct]
        self.which, self.lambda_norm = [distinct.index(key) for key in keys], lambda_norm

    def at(self, step: int, w: Tensor) -> dict[str, Any]:
        """Return ``eta``, and ``weight_decay`` where it belongs to a budget, as numbers or (K, 1) columns."""
        found: dict[str, Any] = {"eta": self._each([eta(step) for eta, _ in self.distinct], w)}
        if self.lambda_norm is not None:
            per_unit = [normalized_weight_decay(1.0, 1, 1, period(step)) for _, period in self.distinct]
            found["weight_decay"] = self.lambda_norm * self._each(per_unit, w)
        return found

    def _each(self, values: list[float], w: Tensor) -> Any:
        if len(values) == 1:
            return values[0]
        return torch.tensor([values[i] for i in self.which], dtype=w.dtype, device=w.device)[:, None]


def _eta_and_period(
    schedule: Any, t_0: int | None, t_mult: int | None, steps: int
) -> tuple[Callable[[int], float], Callable[[int], int]]:
    """Return two functions of the step: eta, and the length of the period that it lies in."""
    if schedule == "restarts":
        nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        restarts = CosineRestarts(nothing, int(t_0 or 1), int(t_mult or 2))
        return restarts.eta, lambda step: restarts.period(step)[1]
    eta = schedule_of(schedule)
    return lambda step: eta(step / steps), lambda step: steps
