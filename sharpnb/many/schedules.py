"""The schedules of many members: what changes from step to step, for each member by its own clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sharpnb.lab.training import _schedule
from sharpnb.optim.schedules import CosineRestarts, normalized_weight_decay

Clock = tuple[Callable[[int], float], Callable[[int], int]]  # step -> eta, and step -> length of the current period


class Clocks:
    """The multiplier eta of each member at each step, and what follows from it: decay and GSAM's radius."""

    def __init__(self, configs: Sequence[dict[str, Any]], steps: int, lambda_norm: Tensor | None) -> None:
        keys = [tuple(config.get(name) for name in ("schedule", "t_0", "t_mult")) for config in configs]
        distinct = list(dict.fromkeys(keys))
        self.clocks = [_clock(schedule, t_0, t_mult, steps) for schedule, t_0, t_mult in distinct]
        self.which = [distinct.index(key) for key in keys]
        self.lambda_norm = lambda_norm

    def at(self, step: int, w: Tensor) -> dict[str, Any]:
        """Return ``eta``, and ``weight_decay`` where it belongs to a budget, as numbers or (K, 1) columns."""
        found: dict[str, Any] = {"eta": self._each([eta(step) for eta, _ in self.clocks], w)}
        if self.lambda_norm is not None:
            per_unit = [normalized_weight_decay(1.0, 1, 1, length(step)) for _, length in self.clocks]
            found["weight_decay"] = self.lambda_norm * self._each(per_unit, w)
        return found

    def _each(self, values: list[float], w: Tensor) -> Any:
        if len(values) == 1:
            return values[0]
        return torch.tensor([values[i] for i in self.which], dtype=w.dtype, device=w.device)[:, None]


def _clock(schedule: Any, t_0: int | None, t_mult: int | None, steps: int) -> Clock:
    if schedule == "restarts":
        nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        restarts = CosineRestarts(nothing, int(t_0 or 1), int(t_mult or 2))
        return restarts.eta, lambda step: restarts.period(step)[1]
    eta = _schedule(schedule)
    return lambda step: eta(step / steps), lambda step: steps
