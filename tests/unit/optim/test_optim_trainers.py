"""What fastai does to an optimizer, call by call and write by write, against the same training written out in NumPy.

The calls are those of fastai 2.8 (``OptimWrapper``, ``fit_one_cycle``, ``freeze``), which is not imported. Lightning
and others run in tests/recipes themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import family
import numpy as np
import pytest
import torch
from schedulers import MOMENTUM
from torch import Tensor

from sharpnb.optim import SAM, SGDW, AdamW

LRS, DECAY, RHO = (0.05, 0.02), 0.1, 0.2
BASES: dict[str, Callable[[Any], Any]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=MOMENTUM),
    "SGDW": lambda groups: SGDW(groups, lr=1.0, momentum=MOMENTUM, weight_decay=DECAY),
    "AdamW": lambda groups: AdamW(groups, lr=1.0, weight_decay=DECAY),
}


def _each(values: Any) -> np.ndarray:
    """Give every weight the value of its group."""
    return np.where(family.SECOND, values[1], values[0])


class Hand:
    """The training written out: each step is told its rates, its momentum, its decays, and which weights are
    trained."""

    def __init__(self, base: str, rho: float) -> None:
        self.base, self.rho, self.w = base, rho, family.START.copy()
        self.s: dict[str, Any] = {}

    def step(self, lrs: Any, momentum: float = MOMENTUM, decays: Any = (DECAY, DECAY), live: Any = True) -> None:
        live = np.broadcast_to(live, (family.N,))
        gradient = lambda w: np.where(live, family.numpy_gradient(w), 0)
        g = gradient(self.w)
        if self.rho:
            g = gradient(self.w + self.rho * g / np.linalg.norm(g))
        lr, decay, s = _each(lrs), _each(np.divide(lrs, LRS)) * _each(decays), dict(self.s)
        new = {"SGD": lambda: family.numpy_sgd(self.w, g, s, lr, momentum),
               "SGDW": lambda: family.numpy_sgdw(self.w, g, s, lr, momentum, decay),
               "AdamW": lambda: family.numpy_adam(self.w, g, s, lr, decay=decay, b1=momentum)}[self.base]()
        with np.errstate(all="ignore"):  # a weight that never moved has no bias correction
            self.w = np.where(live, new, self.w)
            self.s = {name: np.where(live, value, self.s.get(name, 0.0)) for name, value in s.items()}


class Run:
    """An optimizer of the package, and its :class:`Hand`."""

    def __init__(self, base: str, rho: float) -> None:
        self.params = family.parameters()
        groups = family.groups(self.params, {"lr": LRS[0]}, {"lr": LRS[1]})
        inner = BASES[base](groups)
        self.optimizer, self.hand = SAM(inner, rho=rho) if rho else inner, Hand(base, rho)

    def loss(self) -> Tensor:
        return family.losses(family.flat(self.params)[None]).mean()

    def back(self) -> None:
        """The backward pass; with SAM also the other half, as its recipes have a trainer do."""
        self.loss().backward()
        if isinstance(self.optimizer, SAM):
            self.optimizer.first_step(zero_grad=True)
            self.loss().backward()

    def gap(self) -> float:
        return float(np.abs(family.flat(self.params).detach().numpy() - self.hand.w).max())


RUNS = [(base, rho) for base in BASES for rho in (0.0, RHO)]
every_run = pytest.mark.parametrize(("base", "rho"), RUNS, ids=[f"{base}{' in SAM' * bool(rho)}" for base, rho in RUNS])


# -- fastai -----------------------------------------------------------------------------------------------------------


def _one_cycle(share: float, low: float, high: float, end: float, peak: float = 0.25) -> float:
    """Return fastai's ``combined_cos``: from low to high, and down to end."""
    at, start, stop = (share / peak, low, high) if share < peak else ((share - peak) / (1 - peak), high, end)
    return start + (1 + math.cos(math.pi * (1 - at))) * (stop - start) / 2


def _fit_one_cycle(run: Run, batches: int, live: Any = True) -> None:
    """Every batch: write rate and momentum into the groups, backward, ``step()``, ``zero_grad()``."""
    for batch in range(batches):
        share = batch / batches
        lrs = [np.float64(_one_cycle(share, lr / 25, lr, lr / 1e5)) for lr in LRS]
        momentum = _one_cycle(share, 0.95, 0.85, 0.95)
        for group, lr in zip(run.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
            if "betas" in group:
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum
        run.back()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.hand.step(lrs, momentum, live=live)


def _freeze_to(run: Run, group: int) -> np.ndarray:
    """Let the groups from this one on be trained; return which weights these are."""
    for number, g in enumerate(run.optimizer.param_groups):
        for p in g["params"]:
            p.requires_grad_(number >= group)
    return family.SECOND | (group == 0)


@every_run
def test_fastai_one_cycle_frozen_and_unfrozen(base: str, rho: float) -> None:
    run = Run(base, rho)
    for first in (1, 0, 1):
        live = _freeze_to(run, first)
        before = run.hand.w.copy()
        _fit_one_cycle(run, 8, live)
        assert run.gap() < 1e-12
        assert np.array_equal(before == run.hand.w, ~live)  # the frozen ones, and no others, stand still


def test_negative_controls_a_radius_or_a_decay_one_percent_off_is_seen() -> None:
    for base, wrong in (("SGD", {"rho": 1.01}), ("SGDW", {"decay": 1.01}), ("AdamW", {"decay": 1.01})):
        run = Run(base, RHO)
        run.hand.rho *= wrong.get("rho", 1)
        for _ in range(4):
            run.back()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.hand.step(LRS, decays=[DECAY * wrong.get("decay", 1)] * 2)
        assert run.gap() > 1e-6


@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscaled before, as for clipping"])
def test_a_scaler_that_calls_a_step_of_two_passes_is_refused(unscaled: bool) -> None:
    run, scaler = Run("SGD", RHO), torch.amp.GradScaler("cpu")
    scaler.scale(run.loss()).backward()
    if unscaled:
        scaler.unscale_(run.optimizer)
    with pytest.raises(RuntimeError, match=r"optimizer.step\(closure, scaler=scaler\)"):
        scaler.step(run.optimizer, lambda: scaler.scale(run.loss()).backward())
    assert run.gap() == 0 and not hasattr(run.optimizer, "found_inf")
