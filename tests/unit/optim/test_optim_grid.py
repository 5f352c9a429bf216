"""Every optimizer × every way to step × autocast × every scheduler of PyTorch, against loops written from the
equations.

The reference holds the weights of all schedulers as rows and knows nothing of the package: its gradient comes from a
net written out for rows, its rates from a plain SGD, its rule from the paper. With autocast the gradients
of both sides pass through bfloat16, so the weights agree to rounding there only where the casts see the same weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import family
import numpy as np
import pytest
import torch
from schedulers import MOMENTUM, SCHEDULES, STEPS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

from sharpnb.optim import ASAM, ESAM, GSAM, SAM, SGDW, WSAM, AdamW, FisherSAM, LookSAM

LR, RHO, DECAY = 0.1, 0.3, 0.01
SHAPES, SIZES = [(3, 5), (3,)], [15, 3]  # a layer and a scale of its outputs
MATRIX = np.repeat([True, False], SIZES)
_draw = torch.Generator().manual_seed(1)
START = (torch.randn(sum(SIZES), generator=_draw)).double().numpy()
X, Y = torch.randn(12, 5, generator=_draw), torch.randint(3, (12,), generator=_draw)
SHARDS = {1: [slice(None)], 2: [slice(0, 6), slice(6, 12)]}


def cast(on: bool) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16) if on else nullcontext()


def kind(low: bool) -> torch.dtype:
    return torch.float32 if low else torch.float64


# -- the reference ----------------------------------------------------------------------------------------------------


class Gradient:
    """The gradients of one shard's loss at rows of weights, (S, n); ``values`` are its per-sample losses, (S, B)."""

    def __init__(self, rows: slice, low: bool) -> None:
        self.x, self.y, self.low, self.dtype = X[rows].to(kind(low)), Y[rows], low, kind(low)

    def values(self, w: Tensor) -> Tensor:
        layer, scale = w.split(SIZES, 1)
        with cast(self.low):
            scores = torch.matmul(self.x, layer.unflatten(1, SHAPES[0]).mT) * scale[:, None]
        return F.cross_entropy(scores.mT, self.y.expand(len(w), -1), reduction="none")

    def __call__(self, w: np.ndarray, kept: Tensor | None = None) -> np.ndarray:
        leaf = torch.tensor(w, dtype=self.dtype).requires_grad_()
        values = self.values(leaf)
        values = values if kept is None else values.gather(1, kept)
        return torch.autograd.grad(values.mean(1).sum(), leaf)[0].double().numpy()


def numpy_esam(w: np.ndarray, G: Gradient, s: Any, rho: float) -> tuple[np.ndarray, float]:
    """With every weight perturbed, and the worse half of the samples."""
    moved = w + family.p_ball(G(w), rho)
    rise = G.values(torch.as_tensor(moved).to(G.dtype)) - G.values(torch.as_tensor(w).to(G.dtype))
    return G(moved, rise.sort(descending=True, stable=True).indices[:, : rise.shape[1] // 2].sort().values), 0.0


def sgd(w, u, s, lr, momentum, share):
    return family.numpy_sgd(w, u, s, lr, momentum, DECAY)


def sgdw(w, u, s, lr, momentum, share):
    return family.numpy_sgdw(w, u, s, lr, momentum, share * DECAY)


def adamw(w, u, s, lr, momentum, share):
    return family.numpy_adam(w, u, s, lr, decay=share * DECAY, eps=1e-3)


_sgd = partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
_sgdw = partial(SGDW, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
METHODS: dict[str, tuple[Callable[[Any], Any], Any, Any]] = {
    "SAM": (lambda p: SAM(_sgd(p), rho=RHO), family.numpy_sam, sgd),
    "ASAM": (lambda p: ASAM(_sgd(p), rho=RHO),
             partial(family.numpy_in, ball=partial(family.asam_ball, matrix=MATRIX)), sgd),
    "FisherSAM": (lambda p: FisherSAM(_sgd(p), rho=RHO), partial(family.numpy_in, ball=family.fisher_ball), sgd),
    "ESAM": (lambda p: ESAM(_sgd(p), rho=RHO, beta=1.0, gamma=0.5), numpy_esam, sgd),
    "GSAM": (lambda p: GSAM(_sgd(p), rho=RHO), family.numpy_gsam, sgd),
    "LookSAM": (lambda p: LookSAM(_sgd(p), rho=RHO, k=3), family.numpy_looksam, sgd),
    "WSAM": (lambda p: WSAM(_sgd(p), rho=RHO), partial(family.numpy_wsam, gamma=0.9), sgd),
    "WSAM coupled": (lambda p: WSAM(_sgd(p), rho=RHO, gamma=0.6, decouple=False),
                     partial(family.numpy_wsam, gamma=0.6, decouple=False), sgd),
    "SGDW": (_sgdw, family.numpy_plain, sgdw),
    "SAM over SGDW": (lambda p: SAM(_sgdw(p), rho=RHO), family.numpy_sam, sgdw),
    "AdamW": (lambda p: AdamW(p, LR, eps=1e-3, weight_decay=DECAY), family.numpy_plain, adamw),
}
WAYS = {"plain": ("SGDW", "AdamW"), "closure": tuple(METHODS),
        "two halves": tuple(name for name in METHODS if name not in ("SGDW", "AdamW", "ESAM")),
        "list of closures": tuple(name for name in METHODS if name not in ("SGDW", "AdamW"))}


def schedules(name: str) -> list[str]:
    """The bias correction of Adam takes one beta: schedulers that move it are compared over SGD alone."""
    return [s for s in SCHEDULES if not (name == "AdamW" and SCHEDULES[s].moves_momentum)]


@cache
def reference(name: str, low: bool, shards: int) -> dict[str, np.ndarray]:
    """Return the weights after all steps under each schedule, by the equations alone."""
    (_, method, base), chosen = METHODS[name], [SCHEDULES[s] for s in schedules(name)]
    w, own, inner = np.tile(START, (len(chosen), 1)), {"t": 0}, {}
    gradients = [Gradient(rows, low) for rows in SHARDS[shards]]
    for t in range(STEPS):
        share = np.array([[c.factor(t)] for c in chosen])
        momentum = np.array([[c.momentum(t)] for c in chosen])
        step = partial(base, momentum=momentum, share=share)
        w = family.numpy_step(method, step, w, gradients, own, inner, RHO, LR * share)
    return dict(zip(schedules(name), w, strict=True))


# -- the package ------------------------------------------------------------------------------------------------------


def parameters(low: bool) -> list[nn.Parameter]:
    pieces = torch.as_tensor(START).to(kind(low)).split(SIZES)
    return [nn.Parameter(piece.view(shape).clone()) for piece, shape in zip(pieces, SHAPES, strict=True)]


def losses(params: list[nn.Parameter], rows: slice, low: bool) -> Tensor:
    with cast(low):
        scores = F.linear(X[rows].to(params[0]), params[0]) * params[1]
    return F.cross_entropy(scores, Y[rows], reduction="none")


def ours(optimizer: Any, params: list[nn.Parameter], way: str, where: str, schedule: str) -> np.ndarray:
    chosen = SCHEDULES[schedule]
    scheduler, low = chosen.make(optimizer), where != "none"
    name = "ESAM" if isinstance(optimizer, ESAM) else ""
    whole, *shards = (family.closure_of(name, partial(losses, params, rows, low)) for rows in SHARDS[1] + SHARDS[2])
    for t in range(STEPS):
        optimizer.zero_grad()
        with cast(where == "out"):
            if way == "plain":
                whole(), optimizer.step()
            elif way == "two halves":
                whole(), optimizer.first_step(zero_grad=True), whole(), optimizer.second_step()
            else:
                optimizer.step(whole if way == "closure" else shards)
        chosen.step(scheduler, t)
    return torch.cat([p.detach().flatten() for p in params]).double().numpy()


def off(end: np.ndarray, want: np.ndarray) -> float:
    return float(np.abs(end - want).max() / np.abs(want - START).max())


@pytest.mark.parametrize("where", ["none", "in", "out"])
@pytest.mark.parametrize(("name", "way"), [(name, way) for way, names in WAYS.items() for name in names])
def test_twenty_steps_are_those_of_the_equations(name: str, way: str, where: str) -> None:
    far = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rates above the constructor's, the order of first steps
        for schedule, want in reference(name, where != "none", 2 if way == "list of closures" else 1).items():
            optimizer = METHODS[name][0](params := parameters(where != "none"))
            far[schedule] = off(ours(optimizer, params, way, where, schedule), want)
    assert max(far.values()) < (1e-8 if where == "none" else 0.02), far


def test_the_table_names_every_scheduler_that_pytorch_has() -> None:
    named = {name.split()[0] for name in SCHEDULES}
    assert named == {*lr_scheduler.__all__, "SWALR"} - {"LRScheduler"}


@pytest.mark.parametrize("change", [{"weight_decay": 0.0}, {"momentum": 0.85}])
def test_negative_control_a_missing_part_is_seen(change: dict[str, float]) -> None:
    """Without the decay, with another momentum: farther off than any case may be."""
    optimizer = SAM(_sgd(params := parameters(False), **change), rho=RHO)
    assert off(ours(optimizer, params, "closure", "none", "StepLR"), reference("SAM", False, 1)["StepLR"]) > 1e-3
