"""A user's file, as `sharpnb spectrum` meets it: networks, data and losses, right and wrong; and the command on it.

The test modules take its fixtures by ``pytest_plugins``.
"""

import json
import sys

import pytest

from sharpnb.curvature import HessianOperator

MODULE = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
def other(): return net(1)
def data():
    g = torch.Generator().manual_seed(1)
    return torch.randn(40, 4, generator=g), torch.randint(0, 3, (40,), generator=g)
def with_(what, value):
    x, y = data()
    {"x": x, "y": y}[what].view(-1)[3] = value
    return x, y

class Set(Dataset):
    def __len__(self): return 40
    def __getitem__(self, i): return data()[0][i], data()[1][i]
def loader(): return DataLoader(Set(), batch_size=16)
def three(): return 3
def triples(): return [(1, 2, 3)]

# weights
def nan_weight():
    made = net()
    made[2].weight.data[1, 2] = float("nan")
    return made
def on_meta():
    with torch.device("meta"):
        return net()
def lazy(): return nn.Sequential(nn.LazyLinear(3))

# data
def nan_input(): return with_("x", float("nan"))
def wrong_label(): return with_("y", 3)
def empty(): return torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
def integers(): return torch.arange(80).reshape(20, 4), torch.arange(20) % 3
def wide(): return torch.randn(20, 7), torch.arange(20) % 3
def float_target(): return torch.randn(20, 4), torch.randn(20)
class Broken(Dataset):
    def __len__(self): return 20
    def __getitem__(self, i):
        if i == 11: raise KeyError("no such picture")
        return torch.randn(4), i % 3
def shuffled(): return DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True)
def seeded():
    g = torch.Generator().manual_seed(3)
    return DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True, generator=g)
def at_random():
    import os
    g = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
    return DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True, generator=g)

# infinities and whole numbers that are right
class Masked(nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4, sparse=sparse), nn.Linear(4, 3)
        self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))
    def forward(self, ids, more):
        x = self.embed(ids)
        return self.head((x @ x.mT + self.mask + more).softmax(-1) @ x)[:, -1]
def ids():
    more = torch.zeros(5)
    more[0] = float("-inf")
    more = more.repeat(12, 5, 1)
    more[:, 0] = 0
    return [((torch.arange(60).reshape(12, 5) % 7, more), torch.arange(12) % 3)]
def recurrent(): return Recurrent()
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(4, 3), nn.Linear(3, 3)
    def forward(self, x): return self.head(self.rnn(x[None])[0][0])

# networks and losses without a gradient, or without an end
class Detaches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, x): return self.layer(x).detach()
class HalfUsed(Detaches):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(9, 9)
    def forward(self, x): return self.layer(x)
class Overflows(Detaches):
    def forward(self, x): return (self.layer(x) * 1e38).exp()
def hits(out, y): return (out.argmax(1) == y).float().mean()
def constant(out, y): return (out * 0).sum()
def linear(out, y): return out.mean()
def root(out, y): return (out * 0).sum().sqrt()
def kink(out, y): return (out - out.detach()).abs().pow(1.5).mean() + out.mean()
def crashes(out, y): raise TypeError("no")
class Flat(Detaches):
    def forward(self, x): return self.layer(x)
"""


class Stopped(HessianOperator):
    """Stops at one product, in the way asked for."""

    at, how = 12, KeyboardInterrupt

    def __matmul__(self, v):
        if self.products >= type(self).at:
            raise type(self).how("killed")
        return super().__matmul__(v)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder with the user's ``theirs.py``, in which one is."""
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("theirs", None)


@pytest.fixture
def command(monkeypatch, sharpnb):
    """Return a function of ``sharpnb spectrum``'s arguments: status, output, error."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        status, out, err = sharpnb("spectrum", *arguments)
        return status, out, " ".join(err.split())

    return run


@pytest.fixture
def call(folder, command):
    """Return the command on functions of ``theirs.py``, with options by name, short unless they say more."""
    return lambda model="net", data="data", **options: command(*arguments(model, data, **options))


def arguments(model="net", data="data", **options):
    """Return the words of a short measurement."""
    named = {"model": f"theirs.py:{model}", "data": f"theirs.py:{data}", "top": 2, "steps": 8, "probes": 2, "out": "o"}
    return [word for name, value in (named | options).items() for word in (f"--{name.replace('_', '-')}", str(value))]


def result(folder, out="o"):
    """Return what was written."""
    return json.loads((folder / out / "spectrum.json").read_text())
