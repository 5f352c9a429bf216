"""Each PyTorch scheduler acts on wrapper and base alike, and a run resumes with it (the grid has its rates)."""

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
from schedulers import SCHEDULES, STEPS
from torch import nn
from torch.optim import SGD, Optimizer, lr_scheduler

from sharpnb.averaging import Lookahead
from sharpnb.optim import GSAM, SAM, SGDW, WSAM, AdamW

LRS = (0.1, 0.03)  # of the two groups
# The other relatives share what wraps the base with these, and the grid has all of them.
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGDW": partial(SGDW, lr=0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": partial(AdamW, weight_decay=0.01),
    "Lookahead": lambda groups: Lookahead(SGD(groups, momentum=0.9), k=3),
    "Lookahead AdamW": lambda groups: Lookahead(torch.optim.AdamW(groups), k=3),
    **{cls.__name__: (lambda groups, cls=cls: cls(SGD(groups, momentum=0.9))) for cls in (SAM, GSAM, WSAM)},
}
WRAPPERS = [name for name in OPTIMIZERS if name not in ("SGDW", "AdamW")]


@pytest.fixture(autouse=True)
def without_warnings() -> Iterator[None]:
    """The order of the first steps, and rates above the constructor's: not the subject here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(name: str) -> tuple[list[nn.Parameter], Optimizer]:
    params = family.parameters()
    return params, OPTIMIZERS[name](family.groups(params, {"lr": LRS[0]}, {"lr": LRS[1]}))


def test_the_table_names_every_scheduler_that_pytorch_has():
    named = {name.split()[0] for name in SCHEDULES}
    assert named == {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"}


@pytest.mark.parametrize("name", WRAPPERS)
def test_attached_to_the_base_it_moves_the_wrapper(name: str) -> None:
    for schedule, chosen in SCHEDULES.items():
        optimizer: Any = build(name)[1]
        seen: list[float] = []
        chosen.run(optimizer.base_optimizer, step=lambda o=optimizer, seen=seen: seen.append(o.param_groups[0]["lr"]))
        assert seen == pytest.approx([LRS[0] * chosen.factor(t) for t in range(STEPS)], rel=1e-9, abs=1e-12), schedule


@pytest.mark.parametrize("target", ["wrapper", "base"])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("scheduler", [
    lambda o: lr_scheduler.CosineAnnealingLR(o, 10), lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3), lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
])  # fmt: skip
def test_schedulers_act_on_both_without_warnings(scheduler: Callable[[Any], Any], halves: bool, target: str) -> None:
    params = family.parameters()
    optimizer, closure = WSAM(SGD(params, lr=0.1, momentum=0.9), rho=0.2), family.closure_for(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule, rates = scheduler(optimizer if target == "wrapper" else optimizer.base_optimizer), set()
        for _ in range(5):
            if halves:
                for half in (optimizer.first_step, optimizer.second_step):
                    closure(), half(zero_grad=True)
            else:
                optimizer.step(closure)
            schedule.step(*([1.0] if isinstance(schedule, lr_scheduler.ReduceLROnPlateau) else []))
            rates.add(optimizer.base_optimizer.param_groups[0]["lr"])
    assert len(rates) > 2


@pytest.mark.parametrize("name", ["Lookahead", "SAM", "GSAM", "SGDW", "AdamW"])
def test_a_run_resumed_from_both_checkpoints_goes_on_bit_by_bit(name: str) -> None:
    for schedule, chosen in SCHEDULES.items():

        def go(scheduler: Any, optimizer: Optimizer, params: Any, steps: range, chosen: Any = chosen) -> None:
            for t in steps:
                family.advance(name, optimizer, family.losses_of(params))
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
        assert all(torch.equal(p, q) for p, q in zip(params, again, strict=True)), schedule
