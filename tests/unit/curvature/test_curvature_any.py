"""Any module, any structure of batches, any reduction, any type: product, sharpness, statistics and surface are those
of one plain pass over everything at once, in float64."""

import copy
from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, default_collate

from sharpnb.averaging import update_bn
from sharpnb.curvature import HessianOperator, sharpness
from sharpnb.landscape import Plane, surface

F = nn.functional
N, T = 11, 4  # samples, and steps of a sequence
FIRST = {
    "linear": lambda: nn.Linear(5, 6), "batch norm": lambda: nn.Linear(5, 6), "embedding": lambda: nn.Embedding(9, 6),
    "conv": lambda: nn.Conv1d(5, 6, 3, padding=1),
    "layer norm": lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6)),
    "group norm": lambda: nn.Sequential(nn.Conv1d(5, 6, 1), nn.GroupNorm(2, 6)),
    "rms norm": lambda: nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6)),
    "LSTM": lambda: nn.LSTM(5, 6, batch_first=True), "GRU": lambda: nn.GRU(5, 6, batch_first=True),
    "attention": lambda: nn.Sequential(nn.Linear(5, 6), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)),
}


class Layers(nn.Module):
    """Inputs to features (B, 6), through the layer that is drawn, to three classes; or classes for each step."""

    def __init__(self, kind, steps):
        super().__init__()
        self.kind, self.steps, self.first, self.head = kind, steps, FIRST[kind](), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6) if kind in ("batch norm", "conv") else nn.Identity()

    def forward(self, x, scale=1.0, names=None):
        channels = self.kind in ("conv", "group norm")
        h = self.first(x.transpose(1, 2) if channels else x)
        h = h[0] if isinstance(h, tuple) else h
        h = h if channels else h.transpose(1, 2)  # (B, 6, T)
        h = torch.tanh(self.norm(h)).transpose(1, 2) * scale
        return self.head(h if self.steps else h.mean(1))


class Pair(NamedTuple):
    inputs: object
    target: object


STRUCTURES = {
    "pair": lambda x, y: (x, y), "list": lambda x, y: [x, y], "named": Pair,
    "several inputs": lambda x, y: ((x, 1.0, ["n"] * len(x)), y),
    "dictionary": lambda x, y: ({"x": x, "names": ["n"] * len(x)}, y),
    "mapping": lambda x, y: (UserDict(x=x, scale=1.0), y),
}
CLASS = torch.tensor([1.0, 2, 5])
LOSSES = {  # of outputs (B, classes) or (B, T, classes) and of classes in y; what the operator is told
    "mean": ({}, {}), "sum": ({"reduction": "sum"}, {"reduction": "sum"}),
    "ignored": ({"ignore_index": 0}, {"count": lambda x, y: (y != 0).sum()}),
    "weighted": ({"weight": CLASS}, {"count": lambda batch: CLASS[batch[1]].sum()}),
}


def plain_loss(net, loss, x, y, w, slope=False):
    other = copy.deepcopy(net)
    nn.utils.vector_to_parameters(w.detach(), other.parameters())
    value = loss(other(x), y)
    found = nn.utils.parameters_to_vector(torch.autograd.grad(value, list(other.parameters())))
    return found if slope else float(value.detach())


@st.composite
def problems(draw):
    kind, steps = draw(st.sampled_from(sorted(FIRST))), draw(st.booleans())
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(10**6, (), generator=g)))
        net = Layers(kind, steps).to(dtype)
    x = torch.randint(0, 9, (N, T), generator=g) if kind == "embedding" else torch.randn(N, T, 5, generator=g).to(dtype)
    y = torch.randint(0, 3, (N, T) if steps else (N,), generator=g)
    y[0] = 1  # something is not ignored
    cuts = sorted(draw(st.sets(st.integers(1, N - 1), max_size=3)))
    return net.eval(), x, y, [slice(a, b) for a, b in zip([0, *cuts], [*cuts, N], strict=True)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.sampled_from(sorted(STRUCTURES)), st.sampled_from(sorted(LOSSES)), st.booleans(), st.booleans())
@pytest.mark.filterwarnings("ignore:.*jit.*", "ignore:.*enable_nested_tensor.*")
def test_any_network_on_any_batches(problem, structure, name, loader, hold):
    net, x, y, cuts = problem
    (how, options), make = LOSSES[name], STRUCTURES[structure]

    def loss(o, y):
        typed = {key: v.to(o) if isinstance(v, torch.Tensor) else v for key, v in how.items()}
        return F.cross_entropy(o.flatten(0, -2), y.flatten(), **typed)

    data = [make(x[s], y[s]) for s in cuts] if len(cuts) > 1 else make(x, y)
    if loader:
        data = DataLoader(list(zip(x, y, strict=True)), max(s.stop - s.start for s in cuts),
                          collate_fn=lambda samples: make(*default_collate(samples)))
    wide, x64 = copy.deepcopy(net).double(), x.double() if x.is_floating_point() else x
    tol, before = 1e-4 if net.head.weight.dtype == torch.float32 else 1e-7, copy.deepcopy(net.state_dict())

    op = HessianOperator(net, loss, data, hold=hold or not loader, **options)
    v = torch.randn(op.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    w, h = nn.utils.parameters_to_vector(wide.parameters()).detach(), 1e-6
    # Differences of gradients: double backward of PyTorch's weight normalisation is wrong.
    plus, minus = (plain_loss(wide, loss, x64, y, w + s * v, True) for s in (h, -h))
    truth = (plus - minus) / (2 * h)
    assert op.method == "auto" and float(((op @ v.to(op.dtype)).double() - truth).norm()) <= tol * float(truth.norm())

    slope = plain_loss(wide, loss, x64, y, w, True)
    rise = plain_loss(wide, loss, x64, y, w + 0.1 * slope / slope.norm()) - plain_loss(wide, loss, x64, y, w)
    assert sharpness(net, loss, data, 0.1, **options).value == pytest.approx(rise, rel=10 * tol, abs=tol)

    if name != "sum":  # a surface is that of means
        plane = Plane.random(net, seed=1)
        batches = list(data) if loader else data
        found = surface(net, plane, batches, {"loss": loss}, (2, 1), batch_size=4, **options)
        for i, a in enumerate(found.x):
            there = plain_loss(wide, loss, x64, y, plane.at(a, found.y[0]))
            assert found.values["loss"][0, i] == pytest.approx(there, rel=10 * tol, abs=tol)

    if isinstance(net.norm, nn.BatchNorm1d):
        kept = copy.deepcopy(net)
        update_bn(kept, data)
        channels = wide.first(x64.transpose(1, 2)).transpose(1, 2) if net.kind == "conv" else wide.first(x64)
        mean = channels.mean((0, 1)).detach()
        np.testing.assert_allclose(kept.norm.running_mean.double(), mean, rtol=10 * tol, atol=10 * tol)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
