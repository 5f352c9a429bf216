"""Any module, any structure of batches, any reduction, any type: product, sharpness, statistics and surface are those of
one plain pass over everything at once, in float64."""

import copy
from collections import UserDict
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader

from sharpnb.averaging import update_bn
from sharpnb.curvature import HessianOperator, sharpness
from sharpnb.landscape import Plane, surface

F = nn.functional
N, T = 11, 4  # samples, and steps of a sequence


class Layers(nn.Module):
    """Inputs to features (B, 6), through the layer that is drawn, to three classes; or classes for each step."""

    def __init__(self, kind, steps):
        super().__init__()
        self.kind, self.steps, self.head = kind, steps, nn.Linear(6, 3)
        self.first = {
            "linear": lambda: nn.Linear(5, 6), "conv": lambda: nn.Conv1d(5, 6, 3, padding=1), "batch norm": lambda: nn.Linear(5, 6),
            "layer norm": lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6)), "group norm": lambda: nn.Sequential(nn.Conv1d(5, 6, 1), nn.GroupNorm(2, 6)),
            "rms norm": lambda: nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6)), "LSTM": lambda: nn.LSTM(5, 6, batch_first=True), "GRU": lambda: nn.GRU(5, 6, batch_first=True),
            "attention": lambda: nn.Sequential(nn.Linear(5, 6), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)), "embedding": lambda: nn.Embedding(9, 6),
            "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 6)),
        }[kind]()
        self.norm = nn.BatchNorm1d(6) if kind in ("batch norm", "conv") else nn.Identity()

    def forward(self, x, scale=1.0, names=None):
        channels = self.kind in ("conv", "group norm")
        h = self.first(x.transpose(1, 2) if channels else x)
        h = h[0] if isinstance(h, tuple) else h
        h = h.transpose(1, 2) if channels else h  # (B, T, 6)
        h = torch.tanh(self.norm(h.transpose(1, 2)).transpose(1, 2)) * scale
        return self.head(h if self.steps else h.mean(1))


KINDS = ["linear", "conv", "batch norm", "layer norm", "group norm", "rms norm", "LSTM", "GRU", "attention", "embedding", "weight norm"]


class Pair(NamedTuple):
    inputs: object
    target: object


STRUCTURES = {
    "pair": lambda x, y: (x, y), "list": lambda x, y: [x, y], "named": Pair, "several inputs": lambda x, y: ((x, torch.ones(1, dtype=torch.float64).to(SCALE[0])[0]), y),
    "dictionary": lambda x, y: ({"x": x, "names": ["n"] * len(x)}, y), "mapping": lambda x, y: (UserDict(x=x, scale=1.0), y),
}
SCALE = [torch.float64]
LOSSES = {  # loss of outputs (B, classes) or (B, T, classes), of classes in y; what the operator is told
    "mean": (lambda o, y: F.cross_entropy(o.flatten(0, -2), y.flatten()), {}),
    "sum": (lambda o, y: F.cross_entropy(o.flatten(0, -2), y.flatten(), reduction="sum"), {"reduction": "sum"}),
    "ignored": (lambda o, y: F.cross_entropy(o.flatten(0, -2), y.flatten(), ignore_index=0), {"count": lambda x, y: (y != 0).sum()}),
    "weighted": (lambda o, y: F.cross_entropy(o.flatten(0, -2), y.flatten(), torch.tensor([1.0, 2, 5], dtype=o.dtype)), {"count": lambda batch: torch.tensor([1.0, 2, 5])[batch[1]].sum()}),
    "one-hot": (lambda o, y: F.mse_loss(o, F.one_hot(y, 3).to(o.dtype)), {}),
}


def plain_slope(net, loss, x, y, w):
    other = copy.deepcopy(net)
    nn.utils.vector_to_parameters(w.detach(), other.parameters())
    loss(other(x), y).backward()
    return torch.cat([p.grad.reshape(-1) for p in other.parameters()])


def plain_product(net, loss, x, y, v, h=1e-6):
    """A difference of gradients: double backward of PyTorch's weight normalisation is wrong."""
    w = nn.utils.parameters_to_vector(net.parameters())
    return (plain_slope(net, loss, x, y, w + h * v) - plain_slope(net, loss, x, y, w - h * v)) / (2 * h)


def plain_rise(net, loss, x, y, rho):
    w = nn.utils.parameters_to_vector(net.parameters()).detach()
    slope = plain_slope(net, loss, x, y, w)
    return plain_loss(net, loss, x, y, w + rho * slope / slope.norm()) - plain_loss(net, loss, x, y, w)


def plain_loss(net, loss, x, y, w):
    other = copy.deepcopy(net)
    nn.utils.vector_to_parameters(w.detach(), other.parameters())
    with torch.no_grad():
        return float(loss(other(x), y))


@st.composite
def problems(draw):
    kind, steps = draw(st.sampled_from(KINDS)), draw(st.booleans())
    g = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(10**6, (), generator=g)))
        net = Layers(kind, steps).to(dtype)
    x = torch.randint(0, 9, (N, T), generator=g) if kind == "embedding" else torch.randn(N, T, 5, generator=g, dtype=torch.float64).to(dtype)
    y = torch.randint(0, 3, (N, T) if steps else (N,), generator=g)
    y[0] = 1  # something is not ignored
    cuts = sorted(draw(st.sets(st.integers(1, N - 1), max_size=3)))
    return net.eval(), x, y, [slice(a, b) for a, b in zip([0, *cuts], [*cuts, N], strict=True)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(), st.sampled_from(sorted(STRUCTURES)), st.sampled_from(sorted(LOSSES)), st.sampled_from(["batches", "loader"]), st.booleans())
@pytest.mark.filterwarnings("ignore:.*jit.*", "ignore:.*enable_nested_tensor.*")
def test_any_network_on_any_batches(problem, structure, name, how, hold):
    net, x, y, cuts = problem
    loss, options = LOSSES[name]
    SCALE[0] = x.dtype if x.is_floating_point() else net.head.weight.dtype
    make = STRUCTURES[structure]
    data = [make(x[s], y[s]) for s in cuts] if len(cuts) > 1 else make(x, y)
    if how == "loader":
        size = max(s.stop - s.start for s in cuts)
        data = DataLoader(list(zip(x, y, strict=True)), size, collate_fn=lambda s: make(*torch.utils.data.default_collate(s)))
    wide = copy.deepcopy(net).double()
    x64 = x.double() if x.is_floating_point() else x
    tol = 1e-4 if net.head.weight.dtype == torch.float32 else 1e-7
    before = copy.deepcopy(net.state_dict())

    op = HessianOperator(net, loss, data, hold=hold or how == "batches", **options)
    v = torch.randn(op.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    truth = plain_product(wide, loss, x64, y, v)
    assert op.method == "auto" and float(((op @ v.to(op.dtype)).double() - truth).norm()) <= tol * float(truth.norm())

    rise = plain_rise(wide, loss, x64, y, 0.1)
    assert sharpness(net, loss, data, 0.1, **options).value == pytest.approx(rise, rel=10 * tol, abs=tol)

    if name != "sum":  # a surface is that of means
        plane = Plane.random(net, seed=1)
        found = surface(net, plane, list(data) if how == "loader" else data, {"loss": loss}, (2, 1), batch_size=4, **options)
        for i, a in enumerate(found.x):
            assert found.values["loss"][0, i] == pytest.approx(plain_loss(wide, loss, x64, y, plane.at(a, found.y[0])), rel=10 * tol, abs=tol)

    if isinstance(net.norm, nn.BatchNorm1d):
        kept = copy.deepcopy(net)
        update_bn(kept, data)
        channels = wide.first(x64.transpose(1, 2)).transpose(1, 2) if net.kind == "conv" else wide.first(x64)
        np.testing.assert_allclose(kept.norm.running_mean.double(), channels.mean((0, 1)).detach(), rtol=10 * tol, atol=10 * tol)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
