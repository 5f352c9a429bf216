"""Checkpoints of other optimizers: the next steps are theirs, or the checkpoint is refused and nothing has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import family
import pytest
import torch
from torch import nn

from sharpnb.averaging import Lookahead
from sharpnb.optim import ASAM, ESAM, GSAM, SAM, SGDW, WSAM, AdamW, LookSAM

T = torch.optim
SCHEDULE: Callable[[Any], Any] = lambda o: T.lr_scheduler.CosineAnnealingLR(o, 30)


def run(optimizer: Any, params: list[nn.Parameter], steps: int, scheduler: Any = None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        family.closure_for(params)()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


# theirs, ours, what ours is built with: the same rule
EXACT: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "AdamW": (lambda p: T.AdamW(p, lr=0.01, weight_decay=0.3), lambda p: AdamW(p, lr=0.01)),
    "AdamW, other betas": (lambda p: T.AdamW(p, lr=0.01, betas=(0.8, 0.9), eps=1e-4), lambda p: AdamW(p, lr=0.01)),
    "AdamW, groups": (lambda p: T.AdamW(family.groups(p, {"weight_decay": 0.0}, {"lr": 0.02}), lr=0.01),
                      lambda p: AdamW(family.groups(p, {}, {"lr": 0.02}), lr=0.01)),
    "Adam without decay": (lambda p: T.Adam(p, lr=0.01), lambda p: AdamW(p, lr=0.01, weight_decay=0.5)),
}


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: SAM(o, rho=0.1)], ids=["bare", "in SAM"])
@pytest.mark.parametrize("done", [0, 5])
@pytest.mark.parametrize("name", EXACT)
def test_a_run_goes_on_as_it_would_have(name: str, done: int, wrap: Any) -> None:
    """Through a schedule: the decay that both make is lr_t times theirs."""
    theirs, ours = EXACT[name]
    params = family.parameters()
    old = theirs(params)
    schedule = SCHEDULE(old)
    run(old, params, done, schedule)
    mine = copy.deepcopy(params)
    new = wrap(ours(mine))
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    again = SCHEDULE(new)
    again.load_state_dict(schedule.state_dict())
    base = getattr(new, "base_optimizer", new)
    for _ in range(5):
        run(old, params, 1, schedule)
        run(base, mine, 1, again)
    assert torch.allclose(family.flat(params), family.flat(mine), rtol=0, atol=1e-13)
    file = new.state_dict()  # and from here on it is one of ours
    third = wrap(ours(copy.deepcopy(mine)))
    third.load_state_dict(file)
    assert third.param_groups[0]["weight_decay"] == new.param_groups[0]["weight_decay"]


FLAGS = ("foreach", "amsgrad", "capturable", "differentiable", "fused", "decoupled_weight_decay", "maximize")


class _WithoutFlags(T.Optimizer):
    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        groups = [{k: v for k, v in group.items() if k not in FLAGS} for group in state["param_groups"]]
        return {**state, "param_groups": groups}


class Stranger(_WithoutFlags, T.AdamW):
    """A third party's AdamW, whose groups do not say what the decay is multiplied by."""


class OldSGD(_WithoutFlags, T.SGD):
    """What PyTorch saved before there were flags, and Apex still does."""


REFUSED: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any], str]] = {
    "Adam with L2": (lambda p: T.Adam(p, weight_decay=0.1), AdamW, "L2 penalty"),
    "amsgrad": (lambda p: T.AdamW(p, amsgrad=True), AdamW, "amsgrad=True"),
    "maximize": (lambda p: T.AdamW(p, maximize=True), AdamW, "maximize=True"),
    "RAdam": (T.RAdam, AdamW, "another optimizer"),
    "NAdam": (T.NAdam, AdamW, "another optimizer"),
    "a stranger": (Stranger, AdamW, "multiplied by"),
    "SGD into AdamW": (lambda p: T.SGD(p, lr=0.1), AdamW, "no betas"),
    "SGD into SGDW": (lambda p: T.SGD(p, lr=0.1, momentum=0.9), lambda p: SGDW(p, lr=0.1), "SGDW does not share"),
    "an old SGD into SGDW": (lambda p: OldSGD(p, lr=0.1, momentum=0.9), lambda p: SGDW(p, lr=0.1), "does not share"),
    "RMSprop": (T.RMSprop, lambda p: SGDW(p, lr=0.1), "another optimizer"),
    "SGD into SAM over Adam": (lambda p: T.SGD(p, lr=0.1), lambda p: SAM(T.Adam(p)), "no betas"),
    "Adam into SAM over SGD": (T.Adam, lambda p: SAM(T.SGD(p, lr=0.1)), "no dampening, momentum"),
    "Adam into SAM over AdamW": (T.Adam, lambda p: SAM(T.AdamW(p)), "decoupled_weight_decay"),
    "Adamax into SAM over Adam": (T.Adamax, lambda p: SAM(T.Adam(p)), "no amsgrad"),
    "Adam into SAM over Adamax": (T.Adam, lambda p: SAM(T.Adamax(p)), "holds amsgrad, decoupled_weight_decay"),
    "ours into SAM over AdamW": (lambda p: AdamW(p, weight_decay=0.1), lambda p: SAM(T.AdamW(p)), "no amsgrad"),
    "SGD into Lookahead over Adam": (lambda p: T.SGD(p, lr=0.1), lambda p: Lookahead(T.Adam(p)), "no betas"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_refused_when_it_is_loaded(name: str) -> None:
    theirs, ours, message = REFUSED[name]
    params = family.parameters()
    old = theirs(params)
    run(old, params, 3)
    new = ours(mine := copy.deepcopy(params))
    base = getattr(new, "base_optimizer", new)
    run(base, mine, 1)
    before = copy.deepcopy(new.state_dict())
    with pytest.raises(ValueError, match=message):
        new.load_state_dict(old.state_dict())
    assert str(new.state_dict()) == str(before)
    run(base, mine, 1)


# -- the popular class ------------------------------------------------------------------------------------------------


class Popular(T.Optimizer):
    """What the popular SAM class keeps: the base has a state of its own, which is in no checkpoint."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, adaptive: bool = False, **kwargs: Any) -> None:
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **kwargs})
        self.base = base(self.param_groups, **kwargs)
        self.param_groups = self.base.param_groups
        self.defaults.update(self.base.defaults)

    def step(self, closure: Any = None) -> None:
        closure()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["old_p"] = p.detach().clone()
        closure()
        self.base.step()


@pytest.mark.parametrize("base", [T.SGD, T.Adam])
@pytest.mark.parametrize("method", [SAM, GSAM, WSAM, LookSAM])
def test_a_checkpoint_of_the_popular_class_begins_the_base_anew(method: Any, base: Any) -> None:
    params = family.parameters()
    old = Popular(params, base, rho=0.3, lr=0.02)
    for _ in range(3):
        old.step(family.closure_for(params))
    mine, fresh = copy.deepcopy(params), copy.deepcopy(params)
    new = method(base(mine, lr=0.5))
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    plain = method(base(fresh, lr=0.02), rho=0.3)
    assert (new.param_groups[0]["rho"], new.param_groups[0]["lr"]) == (0.3, 0.02)
    for _ in range(3):
        new.step(family.closure_for(mine))
        plain.step(family.closure_for(fresh))
    assert torch.equal(family.flat(mine), family.flat(fresh))
    assert all("old_p" not in entry for entry in new.state.values())


def test_its_adaptive_ball_is_asams_with_eta_0_and_no_other() -> None:
    params = family.parameters()
    old = Popular(params, T.SGD, rho=2.0, adaptive=True, lr=0.1)
    old.step(family.closure_for(params))
    for wrong in (SAM(T.SGD(params, lr=0.1)), ASAM(T.SGD(params, lr=0.1)), WSAM(T.SGD(params, lr=0.1))):
        with pytest.raises(ValueError, match=r"adaptive=True.*eta=0.0"):
            wrong.load_state_dict(old.state_dict())
    right = ASAM(T.SGD(params, lr=0.1), adaptive=True, eta=0.0)
    right.load_state_dict(old.state_dict())
    assert right.param_groups[0]["rho"] == 2.0


# -- bases ------------------------------------------------------------------------------------------------------------


class _Own(T.SGD):
    """A user's optimizer whose step insists on its closure."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return super().step(closure)


@pytest.mark.parametrize("base", [T.LBFGS, _Own])
@pytest.mark.parametrize("method", [SAM, ESAM, WSAM])
def test_a_base_that_needs_a_closure_is_refused_when_it_is_wrapped(method: Any, base: Any) -> None:
    params = family.parameters()
    with pytest.raises(TypeError, match=f"{method.__name__} over {base.__name__}: its step needs a closure.*AdamW"):
        method(base(params, lr=0.1))
    with pytest.raises(TypeError, match="needs a closure"):
        method(params, base, lr=0.1)


@pytest.mark.parametrize("base", [
    partial(T.SGD, lr=0.01, momentum=0.9, foreach=False), partial(T.SGD, lr=0.01, fused=True), T.Adam, T.AdamW,
    partial(T.AdamW, lr=0.01, fused=True), T.RMSprop, T.Adagrad, T.RAdam, T.Rprop, T.Adamax])
def test_the_usual_bases_are_taken(base: Any) -> None:
    params = family.parameters()
    optimizer = SAM(base(params), rho=0.05)
    first = optimizer.step(family.closure_for(params))
    again = SAM(base(copy.deepcopy(params)))
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert str(again.state_dict()) == str(optimizer.state_dict())
    for _ in range(20):
        last = optimizer.step(family.closure_for(params))
    assert last < first


# -- hooks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lambda p: SAM(T.SGD(p, lr=0.1)), lambda p: SGDW(p, lr=0.1),
                                   lambda p: WSAM(AdamW(p))])
def test_hooks_around_state_dicts_fire_with_the_optimizer_they_were_given_to(build: Any) -> None:
    optimizer, told = build(family.parameters()), []
    optimizer.register_state_dict_pre_hook(lambda o: told.append(("before", o)))
    optimizer.register_state_dict_post_hook(lambda o, state: {**state, "mine": 1})
    optimizer.register_load_state_dict_pre_hook(lambda o, state: {k: v for k, v in state.items() if k != "mine"})
    handle = optimizer.register_load_state_dict_post_hook(lambda o: told.append(("after", o)))
    state = optimizer.state_dict()
    assert state["mine"] == 1
    if hasattr(optimizer, "base_optimizer"):
        assert "mine" not in optimizer.base_optimizer.state_dict()
    optimizer.load_state_dict(state)
    assert told == [("before", optimizer), ("after", optimizer)]
    handle.remove()
    optimizer.load_state_dict(state)
    assert len(told) == 2
