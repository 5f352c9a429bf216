"""Lookahead against a hand-written loop, its limits, and the state that a resumed run needs."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from lookahead_work import advance, by_hand, flat, net

from sharpnb.averaging import Lookahead

BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


@pytest.mark.parametrize("momentum", ["keep", "reset", "pullback"])
@pytest.mark.parametrize("base", BASES)
def test_it_is_the_loop_written_by_hand(base, momentum):
    model = net()
    advance(model, Lookahead(BASES[base](model.parameters()), k=3, alpha=0.4, momentum=momentum), 20)
    truth = by_hand(BASES[base], 3, 0.4, 20, momentum=momentum)
    torch.testing.assert_close(flat(model), truth, rtol=1e-12, atol=1e-13)
    # the comparison can tell
    assert (flat(model) - by_hand(BASES[base], 3, 0.5, 20, momentum=momentum)).abs().max() > 1e-4


def test_slow_weights_are_the_exponential_average_of_the_end_points():
    # phi_T = alpha * sum_t (1 - alpha)^(T - t) theta_t,k + (1 - alpha)^T phi_0
    model = net()
    start, ends, alpha, k = flat(model), [], 0.3, 5
    lookahead = Lookahead(BASES["sgd"](model.parameters()), k=k, alpha=alpha)
    lookahead.base_optimizer.register_step_post_hook(lambda *_: ends.append(flat(model)))
    advance(model, lookahead, 4 * k)
    ends = ends[k - 1 :: k]
    unrolled = (1 - alpha) ** 4 * start + sum(alpha * (1 - alpha) ** (3 - t) * end for t, end in enumerate(ends))
    torch.testing.assert_close(flat(model), unrolled, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_and_pickles_continue_alike(duplicate):
    model = net()
    optimizer = Lookahead(BASES["sgd"](model.parameters()), k=4)
    advance(model, optimizer, 6)
    other, twin = duplicate((model, optimizer))
    assert twin.param_groups is twin.base_optimizer.param_groups
    advance(model, optimizer, 5)
    advance(other, twin, 5)
    assert torch.equal(flat(other), flat(model))


def test_a_group_added_later_and_a_layer_thawed_later_start_with_their_first_step():
    model = net()
    model[0].requires_grad_(False)
    optimizer = Lookahead(torch.optim.Adam(model[0].parameters(), lr=0.1), k=2, alpha=0.5)
    optimizer.add_param_group({"params": model[2].parameters(), "k": 3})
    frozen = model[0].weight.detach().clone()
    advance(model, optimizer, 3)
    assert torch.equal(model[0].weight, frozen) and "slow" not in optimizer.state[model[0].weight]
    model[0].requires_grad_(True)
    advance(model, optimizer, 1)  # the fourth step: the first group pulls half of its first step back
    torch.testing.assert_close(optimizer.state[model[0].weight]["slow"], model[0].weight.detach())
    assert (model[0].weight - frozen).abs().max().item() == pytest.approx(0.05, rel=1e-3)  # Adam's first step is lr


def test_groups_have_cycles_of_their_own_and_slow_weights_can_be_looked_at():
    model = net()
    groups = [{"params": model[0].parameters(), "k": 2, "alpha": 1.0}, {"params": model[2].parameters()}]
    base = torch.optim.SGD(groups, lr=0.1)
    optimizer, fast = Lookahead(base, k=3, alpha=0.5), []
    start, second = flat(model), model[2].weight.detach().clone()
    base.register_step_post_hook(lambda *_: fast.append([model[i].weight.detach().clone() for i in (0, 2)]))
    advance(model, optimizer, 1)
    here = flat(model)
    with optimizer.slow_weights():
        assert torch.equal(flat(model), start)
        for refused in (optimizer.step, optimizer.state_dict):
            with pytest.raises(RuntimeError, match="inside slow_weights"):
                refused()
    assert torch.equal(flat(model), here) and not torch.equal(here, start)
    advance(model, optimizer, 2)
    assert torch.equal(model[0].weight, fast[2][0])  # alpha = 1 never pulls back
    torch.testing.assert_close(model[2].weight.detach(), (second + fast[2][1]) / 2, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("wrong, said", [
    ({"k": 0}, "k = 0"), ({"alpha": 0.0}, r"alpha = 0.0"), ({"alpha": 1.5}, r"alpha = 1.5"),
    ({"momentum": "drop"}, "'drop'"),
])
def test_settings_out_of_range_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        Lookahead(BASES["sgd"](net().parameters()), **wrong)
    with pytest.raises(TypeError, match="Build the base first"):
        Lookahead(net().parameters())  # pyright: ignore
