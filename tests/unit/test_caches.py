"""Autocast's cache of cast weights is dropped wherever weights move: nested, switched off inside, gradients pending."""

import pytest
import torch
from torch import nn

from sharpnb.caches import forget_casts

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def cast(**options):
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


def moved_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    def move():
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(2)

    return net, move


def truth():
    net, move = moved_net()
    move()
    with cast():
        return net(X)


@pytest.mark.parametrize("where", ["one context", "a nested one", "a nested one without autocast"])
def test_the_next_pass_is_made_at_the_moved_weights(where):
    net, move = moved_net()
    with cast():
        before = net(X)
        if where == "one context":
            move()
            assert torch.equal(net(X), before)  # what autocast does by itself: the reason for this module
            forget_casts()
        else:
            with cast(enabled=where == "a nested one"):
                move()
                forget_casts()
        assert torch.equal(net(X), truth())


def test_gradients_that_are_pending_are_those_of_the_pass_that_made_them():
    net, move = moved_net()
    with cast():
        out = net(X).float().square().sum()
        move()
        forget_casts()
        net(X)
        out.backward()
    other, _ = moved_net()
    with cast():
        other(X).float().square().sum().backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
