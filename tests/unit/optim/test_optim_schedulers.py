"""Each PyTorch scheduler gives every optimizer of the package the rates of the scheduler's own formula."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import family
import pytest
import torch
from schedulers import SCHEDULES, STEPS, group_momentum, rate
from torch import nn
from torch.optim import SGD, Optimizer, lr_scheduler

from sharpnb.averaging import Lookahead
from sharpnb.optim import SGDW, AdamW

LRS = (0.1, 0.03)  # of the two groups
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": partial(SGD, momentum=0.9), "SGDW": partial(SGDW, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": partial(AdamW, weight_decay=0.01),
    "Lookahead": lambda groups: Lookahead(SGD(groups, momentum=0.9), k=3),
    "Lookahead AdamW": lambda groups: Lookahead(torch.optim.AdamW(groups), k=3),
    **{name: (lambda groups, build=build: build(SGD(groups, momentum=0.9))) for name, build in family.CLASSES.items()},
}


@pytest.fixture(autouse=True)
def without_warnings() -> Iterator[None]:
    """The order of the first steps, and rates above the constructor's: not the subject here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(name: str, tensor: bool = False) -> tuple[list[nn.Parameter], Optimizer]:
    params = family.parameters()
    return params, OPTIMIZERS[name](family.groups(params, {"lr": rate(LRS[0], tensor)}, {"lr": rate(LRS[1], tensor)}))


def step(name: str, optimizer: Optimizer, params: list[nn.Parameter]) -> None:
    if hasattr(optimizer, "first_step"):
        losses = lambda: family.losses(family.flat(params)[None])[0]
        optimizer.step(family.closure_of(name, losses))
    else:
        optimizer.zero_grad()
        family.closure_for(params)()
        optimizer.step()


def test_the_table_names_every_scheduler_that_pytorch_has():
    named = {name.split()[0] for name in SCHEDULES}
    assert named == {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"}


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rates_and_momenta_are_those_of_the_formula(name: str, schedule: str, tensor: bool) -> None:
    """Attached to the wrapper, while it steps; "SGD", PyTorch's own, shows that the formulas are right."""
    (params, optimizer), chosen, momenta = build(name, tensor), SCHEDULES[schedule], []

    def observed() -> None:
        momenta.append(group_momentum(optimizer.param_groups[1]))
        step(name, optimizer, params)

    rates = chosen.run(optimizer, step=observed)
    for group, lr in enumerate(LRS):
        assert [row[group] for row in rates] == pytest.approx([lr * chosen.factor(t) for t in range(STEPS)], rel=1e-9, abs=1e-12)
    still = [0.9] * STEPS
    assert momenta == pytest.approx(still if chosen.momentum is None else [chosen.momentum(t) for t in range(STEPS)], abs=1e-12)
    assert all(torch.isfinite(p).all() for p in params)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("SGD", "SGDW", "AdamW")])
def test_attached_to_the_base_it_moves_the_wrapper(name: str, schedule: str) -> None:
    (_, optimizer), chosen = build(name), SCHEDULES[schedule]
    base: Any = optimizer.base_optimizer  # pyright: ignore
    seen: list[float] = []
    chosen.run(base, step=lambda: seen.append(optimizer.param_groups[0]["lr"]))
    assert seen == pytest.approx([LRS[0] * chosen.factor(t) for t in range(STEPS)], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["Lookahead", "SAM", "GSAM", "SGDW", "AdamW"])
def test_a_run_resumed_from_both_checkpoints_goes_on_bit_by_bit(name: str, schedule: str) -> None:
    chosen = SCHEDULES[schedule]

    def go(scheduler: Any, optimizer: Optimizer, params: list[nn.Parameter], steps: range) -> None:
        for t in steps:
            step(name, optimizer, params)
            chosen.step(scheduler, t)

    params, optimizer = build(name)
    scheduler = chosen.make(optimizer)
    go(scheduler, optimizer, params, range(8))
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), [p.detach() for p in params]], file)
    file.seek(0)
    saved, at = torch.load(file, weights_only=True)
    kept = copy.deepcopy(scheduler.state_dict())
    go(scheduler, optimizer, params, range(8, STEPS))

    again, second = build(name)
    resumed = chosen.make(second)
    with torch.no_grad():
        for p, w in zip(again, at, strict=True):
            p.copy_(w)
    second.load_state_dict(saved)
    resumed.load_state_dict(kept)
    go(resumed, second, again, range(8, STEPS))
    assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True))
