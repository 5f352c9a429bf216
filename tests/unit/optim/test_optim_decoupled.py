"""SGDW, AdamW and the schedules against NumPy over two restarts, in both conventions and in mid-cycle."""

from __future__ import annotations

import math
from typing import Any

import family
import numpy as np
import pytest
import torch
from torch import nn

from sharpnb.optim import SGDW, AdamW
from sharpnb.optim.schedules import CosineRestarts, normalized_weight_decay

N = 4  # batches an epoch; the periods are 2, 4 and 8 epochs long, so 60 batches cross two restarts


def _eta(batch: int, official: bool) -> tuple[float, int]:
    """Return the multiplier and the period in epochs, with T_cur counted as the text says it."""
    start, period = 0, 2
    while batch >= start + period * N:
        start, period = start + period * N, 2 * period
    t_cur = (batch - start + (1 if official else 0)) / N
    return 0.5 + 0.5 * math.cos(math.pi * t_cur / period), period


def _numpy(kind: str, official: bool, lambda_norm: float, steps: int) -> np.ndarray:
    w, m, v, path = family.START, np.zeros(family.N), np.zeros(family.N), []
    alpha = np.where(family.SECOND, 0.5, 1.0) * (0.05 if kind.startswith("sgdw") else 0.01)
    for t in range(steps):
        eta, period = _eta(t, official)
        decay, g, old = lambda_norm * math.sqrt(1 / (N * period)), family.numpy_gradient(w), w
        if kind == "adamw":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w = w - eta * alpha * (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
        elif kind == "sgdw":
            m = 0.9 * m + eta * alpha * g
            w = w - m
        elif kind == "sgdw nesterov":
            m = 0.9 * m + eta * alpha * g
            w = w - (eta * alpha * g + 0.9 * m)
        else:
            m = 0.9 * m + g
            w = w - eta * alpha * m
        w = w - eta * decay * old
        path.append(w)
    return np.array(path)


def _optimizer(kind: str, params: list[nn.Parameter]) -> Any:
    lr = 0.05 if kind.startswith("sgdw") else 0.01
    groups = family.groups(params, {}, {"lr": 0.5 * lr})
    if kind == "adamw":
        return AdamW(groups, lr=lr)
    return SGDW(groups, lr, momentum=0.9, nesterov=kind.endswith("nesterov"), lr_in_momentum="outside" not in kind)


def _steps(optimizer: Any, schedule: Any, params: list[nn.Parameter], steps: int) -> np.ndarray:
    path = []
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.step(family.closure_for(params))
        schedule.step()
        path.append(family.flat(params).detach().numpy().copy())
    return np.array(path)


@pytest.mark.parametrize("preset", ["paper", "official"])
@pytest.mark.parametrize("kind", ["sgdw", "sgdw nesterov", "sgdw outside", "adamw"])
def test_two_restarts_equal_numpy(kind: str, preset: str) -> None:
    params = family.parameters()
    optimizer = _optimizer(kind, params)
    schedule = CosineRestarts(optimizer, 2, batches_per_epoch=N, lambda_norm=0.1, preset=preset)
    path = _steps(optimizer, schedule, params, 60)
    assert np.abs(path - _numpy(kind, preset == "official", 0.1, 60)).max() < 1e-12
    assert np.abs(path - _numpy(kind, preset != "official", 0.1, 60)).max() > 1e-4  # the presets are not the same


def test_a_parameter_that_missed_steps_has_its_own_bias_correction() -> None:
    late, alone = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    both = AdamW([nn.Parameter(torch.ones(2)), late], lr=0.1)
    for t in range(4):
        both.param_groups[0]["params"][0].grad = torch.ones(2)
        late.grad = torch.ones(3) if t == 3 else None
        both.step()
    alone.grad = torch.ones(3)
    AdamW([alone], lr=0.1).step()
    assert torch.equal(late, alone)


@pytest.mark.parametrize(("build", "message"), [
    (lambda p: SGDW(p, -0.1), "lr = -0.1"), (lambda p: SGDW(p, 0.1, momentum=1.0), "momentum = 1.0"),
    (lambda p: SGDW(p, 0.1, weight_decay=-1), "weight_decay = -1"), (lambda p: AdamW(p, betas=(0.9, 1.0)), "betas"),
    (lambda p: AdamW(p, eps=-1), "eps = -1"), (lambda p: CosineRestarts(SGDW(p, 0.1), 0), "t_0 = 0"),
    (lambda p: CosineRestarts(SGDW(p, 0.1), 2, t_mult=1.5), "t_mult = 1.5"),
    (lambda p: CosineRestarts(SGDW(p, 0.1), 2, eta_min=2.0), "eta_min = 2.0"),
    (lambda p: CosineRestarts(SGDW(p, 0.1), 2, preset="lua"), "preset = 'lua'"),
    (lambda p: normalized_weight_decay(0.1, 0, 10, 1), "batch_size=0"),
])  # fmt: skip
def test_wrong_arguments_are_named(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build([nn.Parameter(torch.ones(2))])


# -- the schedules themselves -----------------------------------------------------------------------------------------


def test_restarts_fall_where_the_paper_has_them() -> None:
    p = nn.Parameter(torch.ones(1))
    optimizer = SGDW([p], 0.1)
    schedule = CosineRestarts(optimizer, 100)  # Supplementary Figure 1: T_0 = 100, T_mult = 2
    assert [t for t in range(1, 1600) if schedule.eta(t) == 1.0] == [100, 300, 700, 1500]
    assert schedule.eta(0) == 1.0 and schedule.eta(200) == pytest.approx(0.5)
    official = CosineRestarts(SGDW([p], 0.1), 100, preset="official")
    assert official.eta(99) == 0.0 and official.eta(0) < 1.0


def test_normalized_decay_is_the_papers_example() -> None:
    assert normalized_weight_decay(0.025, 128, 50_000, 100) == pytest.approx(1.265e-4, rel=1e-3)
    assert normalized_weight_decay(0.025, 128, 50_000, 1800) == pytest.approx(2.98e-5, rel=1e-3)
    ratio = normalized_weight_decay(1, 128, 50_000, 10) / normalized_weight_decay(1, 128, 1_281_167, 10)
    assert ratio == pytest.approx(5.06, abs=0.01)
