"""Every optimizer × every way to step × autocast × every scheduler of PyTorch, against loops written from the equations.

The reference holds one flat vector of weights and knows nothing of the package: its gradient comes from a functional
call of the net, its rates from the scheduler's formula, its rule from the paper. With autocast the gradients of both
sides pass through bfloat16, so the weights agree to rounding there only where the casts see the same weights.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from schedulers import SCHEDULES, STEPS
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sharpnb.optim import ASAM, ESAM, GSAM, SAM, SGDW, WSAM, AdamW, FisherSAM, LookSAM

LR, RHO, DECAY, MOMENTUM = 0.1, 0.3, 0.01, 0.9
CASTS = ("none", "in", "out")
Gradient = Callable[[np.ndarray, int], np.ndarray]  # weights and shard -> gradient


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


_draw = torch.Generator().manual_seed(1)
X, Y = torch.randn(12, 5, generator=_draw), torch.randint(3, (12,), generator=_draw)
SHARDS = {1: [slice(None)], 3: [slice(0, 4), slice(4, 8), slice(8, 12)]}
NET = _net()
NAMES, SHAPES = [name for name, _ in NET.named_parameters()], [p.shape for p in NET.parameters()]
MATRIX = np.concatenate([np.full(math.prod(shape), len(shape) > 1) for shape in SHAPES])
START = nn.utils.parameters_to_vector(NET.parameters()).detach().numpy().astype(np.float64)


def cast(on: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


def losses(net: Callable[[Tensor], Tensor], rows: slice, low: bool) -> Tensor:
    with cast(low):
        return F.cross_entropy(net(X[rows]).float(), Y[rows], reduction="none")


def split(w: np.ndarray) -> dict[str, Tensor]:
    pieces = torch.as_tensor(w, dtype=torch.float32).split([math.prod(shape) for shape in SHAPES])
    return {name: piece.view(shape).requires_grad_() for name, piece, shape in zip(NAMES, pieces, SHAPES, strict=True)}


def gradient(w: np.ndarray, rows: slice, low: bool, kept: Any = None) -> np.ndarray:
    weights = split(w)
    values = losses(lambda x: functional_call(NET, weights, (x,)), rows, low)
    values = values if kept is None else values[kept]
    found = torch.autograd.grad(values.mean(), list(weights.values()))
    return torch.cat([g.flatten() for g in found]).double().numpy()


def values_at(w: np.ndarray, rows: slice, low: bool) -> Tensor:
    with torch.no_grad():
        return losses(lambda x: functional_call(NET, split(w), (x,)), rows, low)


# -- the rules: (u, what goes past the base) from one shard ----------------------------------------------------------


def ball(g: np.ndarray, scale: Any = 1.0) -> np.ndarray:
    return RHO * scale**2 * g / np.linalg.norm(scale * g)


def sam(w, G, s, scale=lambda w, g: 1.0):
    g = G(w)
    return G(w + ball(g, scale(w, g))), None


def gsam(w, G, s):
    g = G(w)
    h = G(w + ball(g))
    return h - 0.4 * (g - h * (g @ h) / (h @ h)), None


def wsam(w, G, s, a=9.0, decouple=True):
    g = G(w)
    h = G(w + ball(g))
    return (g, a * (h - g)) if decouple else ((1 - a) * g + a * h, None)


def looksam(w, G, s, k=3):
    g = G(w)
    if s["t"] % k:
        v = s["v"]
        return g + 0.7 * np.linalg.norm(g) * v / np.linalg.norm(v), None
    h = G(w + ball(g))
    s.setdefault("news", []).append(h - g * (g @ h) / (g @ g))
    return h, None


def esam(w, G, s):
    g = G(w)
    moved = w + ball(g)
    rise = values_at(moved, G.keywords["rows"], G.keywords["low"]) - values_at(w, G.keywords["rows"], G.keywords["low"])
    kept = rise.sort(descending=True, stable=True).indices[: math.ceil(len(rise) / 2)].sort().values
    return G(moved, kept=kept), None


def asam_scale(w, g):
    return np.where(MATRIX, np.abs(w) + 0.01, 1.0)


def fisher_scale(w, g):
    return (1 + g**2) ** -0.5


def plain(w, G, s):
    return G(w), None


def sgd(w, u, s, lr, momentum, share):
    u = u + DECAY * w
    s["b"] = u if "b" not in s else momentum * s["b"] + u
    return w - lr * s["b"]


def sgdw(w, u, s, lr, momentum, share):
    s["b"] = momentum * s.get("b", 0.0) + lr * u
    return w - s["b"] - share * DECAY * w


def adamw(w, u, s, lr, momentum, share):
    s["n"] = s.get("n", 0) + 1
    s["m"] = momentum * s.get("m", 0.0) + (1 - momentum) * u
    s["q"] = 0.999 * s.get("q", 0.0) + 0.001 * u**2
    m, q = s["m"] / (1 - momentum ** s["n"]) if momentum == MOMENTUM else s["m"], s["q"] / (1 - 0.999 ** s["n"])
    return w - lr * m / (np.sqrt(q) + 1e-3) - share * DECAY * w


_sgd = partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
METHODS: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "SAM": (lambda p: SAM(_sgd(p), rho=RHO), sam, sgd),
    "ASAM": (lambda p: ASAM(_sgd(p), rho=RHO), partial(sam, scale=asam_scale), sgd),
    "FisherSAM": (lambda p: FisherSAM(_sgd(p), rho=RHO), partial(sam, scale=fisher_scale), sgd),
    "ESAM": (lambda p: ESAM(_sgd(p), rho=RHO, beta=1.0, gamma=0.5), esam, sgd),
    "GSAM": (lambda p: GSAM(_sgd(p), rho=RHO), gsam, sgd),
    "LookSAM": (lambda p: LookSAM(_sgd(p), rho=RHO, k=3), looksam, sgd),
    "WSAM": (lambda p: WSAM(_sgd(p), rho=RHO), wsam, sgd),
    "WSAM coupled": (lambda p: WSAM(_sgd(p), rho=RHO, gamma=0.6, decouple=False), partial(wsam, a=1.5, decouple=False), sgd),
    "SGDW": (lambda p: SGDW(p, LR, momentum=MOMENTUM, weight_decay=DECAY), plain, sgdw),
    "SAM over SGDW": (lambda p: SAM(SGDW(p, LR, momentum=MOMENTUM, weight_decay=DECAY), rho=RHO), sam, sgdw),
    "AdamW": (lambda p: AdamW(p, LR, eps=1e-3, weight_decay=DECAY), plain, adamw),
}
WAYS = {"plain": ("SGDW", "AdamW"), "closure": tuple(METHODS),
        "two halves": tuple(name for name in METHODS if name not in ("SGDW", "AdamW", "ESAM")),
        "list of closures": tuple(name for name in METHODS if name not in ("SGDW", "AdamW"))}


def schedules(name: str) -> list[str]:
    """The bias correction of Adam takes one beta: schedulers that move it are compared over SGD alone."""
    return [s for s in SCHEDULES if not (name == "AdamW" and SCHEDULES[s].momentum)]


@cache
def reference(name: str, schedule: str, low: bool, shards: int) -> np.ndarray:
    """Return the weights after all steps, by the equations alone."""
    (_, method, base), chosen = METHODS[name], SCHEDULES[schedule]
    w, s, kept = START.copy(), {}, {"t": 0}
    for t in range(STEPS):
        lr, momentum = LR * chosen.factor(t), chosen.momentum(t) if chosen.momentum else MOMENTUM
        outcomes = [method(w, partial(gradient, rows=rows, low=low), kept) for rows in SHARDS[shards]]
        u = np.mean([u for u, _ in outcomes], 0)
        new = base(w, u, s, lr, momentum, chosen.factor(t))
        if outcomes[0][1] is not None:
            new = new - lr * np.mean([past for _, past in outcomes], 0)
        if "news" in kept:
            kept["v"] = np.mean(kept.pop("news"), 0)
        w, kept["t"] = new, kept["t"] + 1
    return w


def ours(name: str, way: str, where: str, schedule: str) -> np.ndarray:
    net, chosen = _net(), SCHEDULES[schedule]
    optimizer = METHODS[name][0](net.parameters())
    scheduler, low = chosen.make(optimizer), where != "none"

    def closure(rows: slice) -> Callable[[], Tensor]:
        def run() -> Tensor:
            found = losses(net, rows, low)
            if name == "ESAM":
                return found
            found.mean().backward()
            return found.mean()

        return run

    whole = closure(slice(None))
    for t in range(STEPS):
        optimizer.zero_grad()
        with cast(where == "out"):
            if way == "plain":
                whole(), optimizer.step()
            elif way == "two halves":
                whole(), optimizer.first_step(zero_grad=True), whole(), optimizer.second_step()
            else:
                optimizer.step(whole if way == "closure" else [closure(rows) for rows in SHARDS[3]])
        chosen.step(scheduler, t)
    return nn.utils.parameters_to_vector(net.parameters()).detach().double().numpy()


@pytest.mark.parametrize("where", CASTS)
@pytest.mark.parametrize(("name", "way"), [(name, way) for way, names in WAYS.items() for name in names])
def test_twenty_steps_are_those_of_the_equations(name: str, way: str, where: str) -> None:
    far, shards = {}, 3 if way == "list of closures" else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rates above the constructor's, the order of first steps
        for schedule in schedules(name):
            want = reference(name, schedule, where != "none", shards)
            far[schedule] = np.abs(ours(name, way, where, schedule) - want).max() / np.abs(want - START).max()
    assert max(far.values()) < (2e-4 if where == "none" else 0.02), far


def test_negative_control_a_missing_part_is_seen() -> None:
    """Without the decay, without momentum, at another radius: farther off than any case may be."""
    want = reference("SAM", "StepLR", False, 1)
    for change in ({"weight_decay": 0.0}, {"momentum": 0.85}):
        net = _net()
        optimizer = SAM(_sgd(net.parameters(), **change), rho=RHO)
        scheduler = SCHEDULES["StepLR"].make(optimizer)
        for t in range(STEPS):
            optimizer.step(lambda net=net: (loss := losses(net, slice(None), False).mean()).backward() or loss)
            SCHEDULES["StepLR"].step(scheduler, t)
        end = nn.utils.parameters_to_vector(net.parameters()).detach().double().numpy()
        assert np.abs(end - want).max() / np.abs(want - START).max() > 1e-3
