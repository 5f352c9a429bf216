"""The base's step is the base's own: with its hooks, and with what a user put around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sharpnb.optim import SAM


def _hands_double(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for p in optimizer.param_groups[0]["params"]:
        p.grad.mul_(2)


class _Overriding(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        _hands_double(self)
        return super().step(closure)


def _wrapped_on_the_instance(base: Any) -> None:
    plain = base.step
    base.step = lambda *args: (_hands_double(base), plain(*args))[1]


@pytest.mark.parametrize(("base", "prepare"), [
    (_Overriding, lambda base: None), (torch.optim.SGD, _wrapped_on_the_instance),
    (torch.optim.SGD, lambda base: base.register_step_pre_hook(_hands_double))])
def test_whatever_a_user_put_around_the_step_runs(base: Any, prepare: Any) -> None:
    w = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))  # the gradient at w is w, of length 5
    optimizer = SAM([w], base, rho=0.5, lr=0.1)
    prepare(optimizer.base_optimizer)
    optimizer.step(lambda: (loss := (w**2).sum() / 2).backward() or loss)
    assert w.tolist() == pytest.approx([3.0 - 0.2 * 3.3, -4.0 + 0.2 * 4.4], abs=1e-15)
