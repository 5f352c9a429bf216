"""Targets that the Fisher matrix draws at each position of an output."""

import numpy as np
import pytest
import torch
from torch import nn

from conftest import assert_close
from sharpnb.curvature import FisherOperator, GGNOperator
from sharpnb.curvature.fisher import draw_class

F = nn.functional
G = torch.Generator().manual_seed(0)
X, S, Y = torch.randn(18, 5, generator=G), torch.randn(18, 7, 5, generator=G), torch.arange(18) % 3


def tagger(last):
    """Classes of every step, on the last axis or on the second."""
    torch.manual_seed(0)
    net = nn.Linear(5, 3).double()
    return net if last else nn.Sequential(net, type("Turned", (nn.Module,), {"forward": lambda _, h: h.mT})())


TAGS = torch.randint(0, 3, (18, 7), generator=G)
IGNORED = TAGS.masked_fill(torch.arange(7) > torch.arange(18)[:, None] % 5, -100)
SUM = {"reduction": "sum"}
FISHER = {
    "samples": (True, F.cross_entropy, Y, {}),
    "classes last, flattened": (True, lambda o, t: F.cross_entropy(o.flatten(0, 1), t), TAGS.flatten(), {"count": 1}),
    "ignore_index": (False, F.cross_entropy, IGNORED, {"count": lambda x, y: (y != -100).sum()}),
    "sum over positions, mean over samples": (False, lambda o, t: F.cross_entropy(o, t, **SUM) / len(o), TAGS, {}),
}


@pytest.mark.parametrize("name", FISHER)
def test_drawn_targets_of_positions_tend_to_gauss_newton(name):
    last, loss, target, options = FISHER[name]
    net, x = tagger(last), (X if name == "samples" else S).double()
    data = (x, target) if "flattened" in name else [(x[:12], target[:12]), (x[12:], target[12:])]
    ggn = GGNOperator(net, loss, data, **options).to_dense()
    few, many = (FisherOperator(net, loss, data, kind="mc", draws=d, **options).to_dense() for d in (1, 300))
    far, near = (float((f - ggn).norm() / ggn.norm()) for f in (few, many))
    assert near < 0.05 < far < 1.5
    again = FisherOperator(net, loss, data, kind="mc", memory=0, **options)  # rebuilt graphs draw what they drew
    assert_close(torch.stack([again @ row for row in few.new_tensor(np.eye(18))]), few)
    torch.testing.assert_close(few, few.T, rtol=1e-9, atol=1e-12)
    assert torch.linalg.eigvalsh(few)[0] > -1e-9


def test_an_axis_of_classes_that_is_not_to_be_seen_is_asked_for():
    net, loss = tagger(True), lambda o, t: F.cross_entropy(o.transpose(1, 2), t)
    data = torch.randn(4, 3, 5).double(), torch.randint(0, 3, (4, 3))
    with pytest.raises(ValueError, match=r"which axis holds the classes.*draw="):
        FisherOperator(net, loss, data, kind="mc") @ torch.ones(18).double()
    drawn = FisherOperator(net, loss, data, kind="mc", draw=lambda o, g: draw_class(o, g, axis=-1))
    assert (drawn @ torch.ones(18).double()).isfinite().all()


@pytest.mark.parametrize("kind", [GGNOperator, FisherOperator])
def test_a_penalty_in_the_loss_is_refused(kind):
    net = tagger(True)
    with pytest.raises(ValueError, match="beside the outputs"):
        kind(net, lambda o, t: F.cross_entropy(o, t) + net.weight.square().sum(), (X.double(), Y)) @ torch.ones(18)
