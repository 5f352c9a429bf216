"""Weights that move behind autocast's cache: both passes of a step inside one context, nested ones, a whole
training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import family
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from sharpnb.optim import SAM, SGDW, AdamW

BUILDS: dict[str, Callable[[Any], Any]] = {
    name: (lambda params, build=build: build(torch.optim.SGD(params, lr=0.1), rho=2.0))
    for name, build in family.CLASSES.items()
}
BUILDS |= {"SGDW": lambda params: SGDW(params, 0.5, weight_decay=0.1), "AdamW": lambda params: AdamW(params, lr=0.1)}


def cast(on: bool = True) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


def train(name: str, around: str, steps: int = 3) -> tuple[list[float], Tensor]:
    """Return the losses of all passes, each inside autocast, and the weights; ``around`` says what is around them."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(32, 6), torch.arange(32) % 3
    optimizer, seen = BUILDS[name](net.parameters()), []

    def losses() -> Tensor:
        with cast():
            values = F.cross_entropy(net(x).float(), y, reduction="none")
        seen.append(values.mean().item())
        return values

    def step() -> None:
        if around.startswith("halves"):
            for half in (optimizer.first_step, optimizer.second_step):
                losses().mean().backward()
                half(zero_grad=True)
        elif hasattr(optimizer, "first_step"):
            optimizer.step(family.closure_of(name, losses))
        else:
            losses().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    with cast(around in ("training", "halves")):
        for _ in range(steps):
            off = torch.autocast("cpu", enabled=False) if around == "switched off inside" else nullcontext()
            with cast(around in ("step", "training", "switched off inside")), off:
                step()
    return seen, nn.utils.parameters_to_vector(net.parameters()).detach()


@pytest.mark.parametrize("around", ["step", "training", "halves", "switched off inside"])
@pytest.mark.parametrize("name", BUILDS)
def test_a_pass_sees_the_weights_of_its_moment(name: str, around: str) -> None:
    if around == "halves" and name not in family.TWO_HALVES:
        pytest.skip("not with two halves")
    seen, end = train(name, around)
    plain, there = train(name, "halves, nothing" if around == "halves" else "nothing")
    assert seen == plain and torch.equal(end, there)


@pytest.mark.parametrize("name", ["SAM", "SGDW", "AdamW"])
def test_negative_control_a_cache_that_is_kept_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("protocol", "decoupled"):
        monkeypatch.setattr(f"sharpnb.optim.{module}.forget_casts", lambda: None)
    assert train(name, "training")[0] != train(name, "nothing")[0]


class _Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


@pytest.mark.parametrize("named", [False, True])
def test_inside_parametrize_cached_a_step_is_refused_and_a_pass_is_right(named: bool) -> None:
    """Its cache, too, would give both passes the weights of the first; around a pass alone it is in nobody's way."""
    ends, x = [], torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for inside in (nullcontext, parametrize.cached):
        torch.manual_seed(0)
        parametrize.register_parametrization(net := nn.Linear(4, 4), "weight", _Symmetric())
        optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1), rho=1.0, model=net if named else None)

        def closure(net: nn.Module = net, inside: Any = inside) -> Tensor:
            with inside():
                loss = net(x).square().mean()
            loss.backward()
            return loss

        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"step\(closure\) inside .*cached"), parametrize.cached():
                optimizer.step(closure)
            optimizer.step(closure)
        ends.append(family.vector(net))
    assert torch.equal(*ends)
