"""Lookahead's hyperparameters are its own: beside a base's alpha and k, after another Lookahead, in groups of their
own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lookahead_work import advance, by_hand, flat, net

from sharpnb.averaging import Lookahead
from sharpnb.optim import GSAM, LookSAM

SGD = partial(torch.optim.SGD, lr=0.1)
CROWDED = {  # bases that have an alpha or a k
    "RMSprop": partial(torch.optim.RMSprop, lr=0.02, alpha=0.7),
    "ASGD": partial(torch.optim.ASGD, lr=0.05, alpha=0.6, t0=3.0),
    "LookSAM": lambda params: LookSAM(SGD(params), k=2, alpha=0.7),
    "GSAM": lambda params: GSAM(SGD(params), alpha=0.9),
}


@pytest.mark.parametrize("base", CROWDED)
def test_a_base_with_the_same_names_is_refused_and_the_way_named(base):
    optimizer = CROWDED[base](net().parameters())
    before = [set(group) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=r"alpha.*prefix='lookahead_'"):
        Lookahead(optimizer, k=5, alpha=0.5)
    assert [set(group) for group in optimizer.param_groups] == before  # nothing was left behind


@pytest.mark.parametrize("base", CROWDED)
def test_with_other_names_both_have_their_own_values(base):
    model = net()
    optimizer = Lookahead(CROWDED[base](model.parameters()), k=3, alpha=0.4, prefix="lookahead_")
    group, own = optimizer.param_groups[0], CROWDED[base](net().parameters()).defaults
    assert (group["lookahead_k"], group["lookahead_alpha"], group["alpha"]) == (3, 0.4, own["alpha"])
    advance(model, optimizer, 10)
    torch.testing.assert_close(flat(model), by_hand(CROWDED[base], 3, 0.4, 10), rtol=1e-12, atol=1e-13)
    assert (flat(model) - by_hand(CROWDED[base], 3, own["alpha"], 10)).abs().max() > 1e-4  # the base's alpha would show


def test_a_base_wrapped_again_takes_the_new_values_and_a_new_cycle():
    model = net()
    base = SGD(model.parameters())
    Lookahead(base, k=2, alpha=0.9)
    advance(model, Lookahead(base, k=3, alpha=0.4), 10)
    torch.testing.assert_close(flat(model), by_hand(SGD, 3, 0.4, 10), rtol=1e-12, atol=1e-13)


def test_lookahead_over_lookahead():
    with pytest.raises(ValueError, match=r"over Lookahead.*alpha.*fast_steps.*k.*prefix"):
        Lookahead(Lookahead(SGD(net().parameters())))
    model = net()
    inner = Lookahead(SGD(model.parameters()), k=2, alpha=0.6)
    advance(model, Lookahead(inner, k=6, alpha=0.3, prefix="outer_"), 20)
    torch.testing.assert_close(flat(model), by_hand(SGD, 2, 0.6, 20, outer=(6, 0.3)), rtol=1e-12, atol=1e-13)
