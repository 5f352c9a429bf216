"""Autocast's cache of cast weights is dropped where weights move, and gradients that are pending stay what they are.

Steps and averages under autocast, nested and switched off inside, are tested where they are.
"""

import copy

import torch
from torch import nn

from sharpnb.caches import forget_casts

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))


def cast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def test_the_next_pass_sees_moved_weights_and_pending_gradients_are_those_of_their_pass():
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    other = copy.deepcopy(net)
    with cast():
        before = net(X)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(2)
        assert torch.equal(net(X), before)  # what autocast does by itself: the reason for this module
        forget_casts()
        assert not torch.equal(net(X), before)
        before.float().square().sum().backward()
        other(X).float().square().sum().backward()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
