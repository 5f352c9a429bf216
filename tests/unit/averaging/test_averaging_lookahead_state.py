"""Lookahead's checkpoints: edited, hooked, by torch.distributed.checkpoint, refused."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lookahead_work import advance, flat, net
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer

from sharpnb.averaging import Lookahead
from sharpnb.optim import SAM

Build = Callable[[Any], Lookahead]
OPTIMIZERS: dict[str, Build] = {
    "SGD": lambda p: Lookahead(torch.optim.SGD(p, lr=0.1), k=4),
    "momentum": lambda p: Lookahead(torch.optim.SGD(p, lr=0.05, momentum=0.9), k=4, momentum="reset"),
    "Adam": lambda p: Lookahead(torch.optim.Adam(p, lr=0.02), k=4, alpha=0.3),
    "Adam pullback": lambda p: Lookahead(torch.optim.Adam(p, lr=0.02), k=4, momentum="pullback"),
    "RMSprop": lambda p: Lookahead(torch.optim.RMSprop(p, lr=0.01), k=4, prefix="lookahead_"),
    "SAM": lambda p: Lookahead(SAM(torch.optim.SGD(p, lr=0.05, momentum=0.9)), k=4),
    "two": lambda p: Lookahead(Lookahead(torch.optim.Adam(p, lr=0.02), k=2), k=4, prefix="outer_"),
}


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(build: Build, saved: Callable[[nn.Module, Lookahead], Any],
            load: Callable[[nn.Module, Lookahead, Any], None]) -> None:
    """Train 17 steps; the same with a new model and optimizer after 6, in the middle of a cycle: the same bits."""
    straight = net()
    optimizer = build(straight.parameters())
    advance(straight, optimizer, 6)
    weights, state = copy.deepcopy(straight.state_dict()), saved(straight, optimizer)
    advance(straight, optimizer, 11)
    other = net()
    other.load_state_dict(weights)
    again = build(other.parameters())
    load(other, again, state)
    advance(other, again, 11)
    assert torch.equal(flat(other), flat(straight))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_resumes_bit_by_bit(name: str) -> None:
    resumed(OPTIMIZERS[name], lambda _, o: through_a_file(o.state_dict()), lambda _, o, state: o.load_state_dict(state))


def test_a_checkpoint_of_another_form_is_refused_and_never_begins_a_cycle_in_silence() -> None:
    model = net()
    optimizer = Lookahead(torch.optim.SGD(model.parameters(), lr=0.1), k=4)
    advance(model, optimizer, 3)
    state = optimizer.state_dict()
    other = Lookahead(torch.optim.SGD(net().parameters(), lr=0.1), k=4, prefix="lookahead_")
    for name, wrong in ((other, state), (optimizer, {**state, "base": {}}), (optimizer, other.state_dict())):
        with pytest.raises(ValueError, match=r"another form.*prefix="):
            name.load_state_dict(wrong)
    assert optimizer.param_groups[0]["fast_steps"] == 3


DISTRIBUTED = {
    "plain": StateDictOptions(), "flat": StateDictOptions(flatten_optimizer_state_dict=True),
    "full": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


@pytest.mark.parametrize("options", DISTRIBUTED)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "SAM"])  # SAM takes no step without a closure
def test_the_state_of_torch_distributed_checkpoint_resumes_bit_by_bit(name: str, options: str) -> None:
    chosen = DISTRIBUTED[options]
    resumed(
        OPTIMIZERS[name], lambda model, o: copy.deepcopy(get_optimizer_state_dict(model, o, options=chosen)),
        lambda model, o, state: set_optimizer_state_dict(model, o, state, options=chosen))


def test_the_bare_bases_checkpoint_begins_a_new_cycle_and_keeps_each_groups_own_values() -> None:
    def build(model: nn.Module) -> tuple[Optimizer, list[dict[str, Any]]]:
        groups = [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}]
        return torch.optim.Adam(groups, lr=0.02), groups

    model = net()
    base, _ = build(model)
    advance(model, base, 5)
    state, other = through_a_file(base.state_dict()), copy.deepcopy(model)
    advance(other, optimizer := Lookahead(build(other)[0], k=3), 2)  # has begun a cycle of its own already
    optimizer.param_groups[1] |= {"k": 2, "alpha": 0.9}
    other.load_state_dict(model.state_dict())
    optimizer.load_state_dict(state)
    there = [(group["k"], group["alpha"], group["fast_steps"]) for group in optimizer.param_groups]
    assert there == [(3, 0.5, 0), (2, 0.9, 0)]
    fresh = Lookahead(base, k=3)
    fresh.param_groups[1] |= {"k": 2, "alpha": 0.9}
    advance(model, fresh, 7), advance(other, optimizer, 7)
    assert torch.equal(flat(model), flat(other))


@pytest.mark.parametrize("foreign, whose", [
    ({"state": {}, "slow_state": {}, "param_groups": []}, "lookahead_pytorch"),
    ({"state": {0: {"exp_avg": torch.ones(1), "lookahead_slow_buff": torch.ones(1)}}, "param_groups": []}, "timm"),
    ({"lookahead_state": {}, "base_optimizer": {}}, "pytorch_optimizer"),
    ({"state": {}, "optimizer": None, "la_alpha": 0.5, "la_step": 3, "total_la_steps": 5}, "the paper's code"),
])
def test_the_checkpoint_of_another_lookahead_is_refused_and_nothing_loaded(foreign: dict[str, Any], whose: str) -> None:
    model = net()
    optimizer = OPTIMIZERS["Adam"](model.parameters())
    advance(model, optimizer, 3)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=whose):
        optimizer.load_state_dict(foreign)
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    pairs = [(t, after["state"][i][name]) for i, state in before["state"].items() for name, t in state.items()]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_parameter_without_a_gradient_at_first_is_begun_by_the_base_when_it_has_one() -> None:
    """Adam begins where a parameter's state is empty: what is Lookahead's must not stand in it then."""
    models = [net(), net()]
    for model, optimizer in zip(models, (Lookahead(torch.optim.Adam(models[0].parameters()), alpha=1.0),
                                         torch.optim.Adam(models[1].parameters())), strict=True):
        for step in range(6):
            advance(model, StepWithout(optimizer, model[0].weight if step < 3 else None), 1)
    assert torch.equal(flat(models[0]), flat(models[1]))


class StepWithout:
    """An optimizer that steps while one parameter has no gradient."""

    def __init__(self, optimizer: Optimizer, without: nn.Parameter | None) -> None:
        self.optimizer, self.without = optimizer, without
        self.zero_grad = optimizer.zero_grad

    def step(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        if self.without is not None:
            self.without.grad = None
        self.optimizer.step()
        return loss


def test_a_step_that_fails_loses_nothing_and_within_a_step_there_is_no_checkpoint() -> None:
    model = net()
    optimizer = OPTIMIZERS["Adam pullback"](model.parameters())
    advance(model, optimizer, 6)
    before = copy.deepcopy(optimizer.state_dict())

    def broken() -> None:
        for refused in (optimizer.state_dict, partial(optimizer.load_state_dict, before),
                        lambda: copy.deepcopy(optimizer)):
            with pytest.raises(RuntimeError, match="in the middle of a step"):
                refused()
        raise KeyError("the loader")

    with pytest.raises(KeyError):
        optimizer.step(broken)
    after = optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"] and before["state"].keys() == after["state"].keys()
    pairs = [(t, after["state"][i][name]) for i, state in before["state"].items() for name, t in state.items()]
    assert all(torch.equal(a, b) for a, b in pairs)
