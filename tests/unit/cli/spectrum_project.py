"""A user's file: networks, data and losses, right ones and wrong ones, as `sharpnb spectrum` meets them."""

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

# weights
def nan_weight():
    made = net()
    made[2].weight.data[1, 2] = float("nan")
    return made
def nan_buffer():
    made = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    made[1].running_var[0] = float("nan")
    return made
def on_meta():
    with torch.device("meta"):
        return net()
def lazy(): return nn.Sequential(nn.LazyLinear(3))

# data
def nan_input(): return with_("x", float("nan"))
def wrong_label(): return with_("y", 3)
def negative_label(): return with_("y", -1)
def empty(): return torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)
def second_empty(): return [data(), (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))]
def no_batches(): return []
def integers(): return torch.arange(80).reshape(20, 4), torch.arange(20) % 3
def wide(): return torch.randn(20, 7), torch.arange(20) % 3
def uneven(): return torch.randn(20, 4), torch.arange(19) % 3
def float_target(): return torch.randn(20, 4), torch.randn(20)
def nan_target(): return torch.randn(20, 4), torch.full((20, 3), float("inf"))
class Broken(Dataset):
    def __len__(self): return 20
    def __getitem__(self, i):
        if i == 11: raise KeyError("no such picture")
        return torch.randn(4), i % 3
class Ragged(Dataset):
    def __len__(self): return 20
    def __getitem__(self, i): return torch.randn(4 + i % 2), i % 3
def shuffled(): return DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True)
def seeded(): return DataLoader(TensorDataset(*data()), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3))
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
class NoGrad(Detaches):
    @torch.no_grad()
    def forward(self, x): return self.layer(x)
class Unused(Detaches):
    def forward(self, x): return x[:, :3] + torch.zeros(3, requires_grad=True)
class HalfUsed(Detaches):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(9, 9)
    def forward(self, x): return self.layer(x)
class Overflows(Detaches):
    def forward(self, x): return (self.layer(x) * 1e38).exp()
def hits(out, y): return (out.argmax(1) == y).float().mean()
def detached(out, y): return nn.functional.cross_entropy(out.detach(), y)
def constant(out, y): return (out * 0).sum()
def clamped(out, y): return out.clamp(100, 200).mean()
def linear(out, y): return out.mean()
def logarithm(out, y): return (out - 1e6).log().mean()
def root(out, y): return (out * 0).sum().sqrt()
def kink(out, y): return (out - out.detach()).abs().pow(1.5).mean() + out.mean()
def many(out, y): return out.mean(0)
def number(out, y): return 3.0
def crashes(out, y): raise TypeError("no")
class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
    def forward(self, x): return self.layer(x)
"""
