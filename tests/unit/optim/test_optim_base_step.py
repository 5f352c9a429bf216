"""The base's step is the base's own: with its hooks, with what a user put around it, in the gradient mode it wants."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _use_grad_for_differentiable

from sharpnb.optim import SAM


def _stepped(base: type[torch.optim.Optimizer], prepare: Any = None, **kwargs: Any) -> tuple[Tensor, SAM]:
    """Return the weights after one step of SAM over a base, and the optimizer."""
    w = nn.Parameter(torch.tensor([3.0, -4.0], dtype=torch.float64))
    optimizer = SAM([w], base, rho=0.5, lr=0.1, **kwargs)
    if prepare is not None:
        prepare(optimizer.base_optimizer)

    def closure() -> Tensor:
        loss = (w**2).sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return w.detach(), optimizer


PLAIN = torch.tensor([3.0 - 0.1 * 3.3, -4.0 + 0.1 * 4.4], dtype=torch.float64)  # the gradient at w is w, of length 5


def _hands_double(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad.mul_(2)


def _hooked(base: torch.optim.Optimizer) -> None:
    base.register_step_pre_hook(_hands_double)


torch.optim.SGD([nn.Parameter(torch.ones(1))])  # its first instance, which marks the step of the class as wrapped


class _Announced(torch.optim.SGD):
    """Its step bears the marks of PyTorch's wrapped one, for ``functools.wraps`` copies them."""

    @functools.wraps(torch.optim.SGD.step)
    def step(self, closure: Any = None) -> Any:
        _hands_double(self)
        return super().step(closure)


class _Overriding(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        _hands_double(self)
        return super().step(closure)


class _NoGrad(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        _hands_double(self)
        return super().step(closure)


def _wrapped_on_the_instance(base: Any) -> None:
    plain = base.step

    def step(*args: Any) -> Any:
        _hands_double(base)
        return plain(*args)

    base.step = step


@pytest.mark.parametrize(("base", "prepare"), [
    (_Announced, None), (_Overriding, None), (_NoGrad, None), (torch.optim.SGD, _wrapped_on_the_instance),
    (torch.optim.SGD, _hooked)])
def test_whatever_a_user_put_around_the_step_runs(base: Any, prepare: Any) -> None:
    after, _ = _stepped(base, prepare)
    assert torch.allclose(after, PLAIN * 2 - torch.tensor([3.0, -4.0]), rtol=0, atol=1e-15)


def test_a_class_patched_later_runs_as_patched() -> None:
    with mock.patch.object(torch.optim.SGD, "step", autospec=True) as step:
        after, optimizer = _stepped(torch.optim.SGD)
    step.assert_called_once_with(optimizer.base_optimizer)
    assert after.tolist() == [3.0, -4.0]


@pytest.mark.parametrize("differentiable", [False, True])
def test_the_base_sees_the_gradient_mode_that_it_asked_for(differentiable: bool) -> None:
    seen: list[bool] = []

    class Asking(torch.optim.SGD):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.defaults["differentiable"] = differentiable

        @_use_grad_for_differentiable
        def step(self, closure: Any = None) -> None:
            seen.append(torch.is_grad_enabled())

    _stepped(Asking)
    assert seen == [differentiable]
