"""The rules on rows: steps by hand, the defining property of each perturbation, PyTorch's own classes, rows apart."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sharpnb import rules

G = torch.tensor([[3.0, -4.0, 0.0], [0.1, 0.2, -0.2]], dtype=torch.float64)


def bowl(w: Tensor) -> Tensor:
    """The gradient of |w|^2 / 2."""
    return w


def _row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


# -- steps by hand ----------------------------------------------------------------------------------------------------


def test_sgd_by_hand() -> None:
    w, state = rules.sgd(_row(1.0), _row(2.0), lr=0.1, momentum=0.5, weight_decay=0.5)  # m = 2.5
    assert w.item() == pytest.approx(0.75)
    w, state = rules.sgd(w, _row(2.0), state, lr=0.1, momentum=0.5, weight_decay=0.5, eta=0.5)  # m = 1.25 + 2.375
    assert w.item() == pytest.approx(0.75 - 0.05 * 3.625)
    w, _ = rules.sgd(_row(1.0), _row(2.0), lr=0.1, momentum=0.5, nesterov=True)
    assert w.item() == pytest.approx(1 - 0.1 * 3.0)


def test_sgdw_by_hand_and_where_its_two_conventions_part() -> None:
    for inside, second in ((True, 0.5 * 0.2 + 0.5 * 0.2), (False, 0.5 * 0.1 * (0.5 * 2.0 + 2.0))):
        w, state = rules.sgdw(_row(1.0), _row(2.0), lr=0.1, momentum=0.5, weight_decay=0.25, lr_in_momentum=inside)
        assert w.item() == pytest.approx(1 - 0.2 - 0.25)  # the decay is not times lr
        w, _ = rules.sgdw(w, _row(2.0), state, lr=0.1, momentum=0.5, weight_decay=0.25, eta=0.5, lr_in_momentum=inside)
        assert w.item() == pytest.approx(0.55 - second - 0.5 * 0.25 * 0.55)


def test_adam_and_adamw_by_hand() -> None:
    direction = 2.0 / (2.0 + 1e-8)  # the first bias-corrected direction is the sign
    assert rules.adam(_row(1.0), _row(2.0), lr=0.1)[0].item() == pytest.approx(1 - 0.1 * direction, abs=1e-15)
    decayed = rules.adamw(_row(1.0), _row(2.0), lr=0.1, weight_decay=0.3, eta=0.5)[0].item()
    assert decayed == pytest.approx(1 - 0.5 * (0.1 * direction + 0.3), abs=1e-15)
    theirs = rules.adamw_torch(_row(1.0), _row(2.0), lr=0.1, weight_decay=0.3, eta=0.5)[0].item()
    assert theirs == pytest.approx(1 - 0.5 * 0.1 * (direction + 0.3), abs=1e-15)


def test_sam_and_wsam_by_hand() -> None:
    w = _row(3.0, 4.0)  # the gradient is (3, 4), the perturbation rho (0.6, 0.8)
    assert torch.allclose(rules.sam(w, bowl, rho=0.5, lr=0.1)[0], _row(3 - 0.33, 4 - 0.44))
    assert torch.allclose(rules.sam(w, bowl, rho=0.5, p=math.inf, lr=0.1)[0], _row(3 - 0.35, 4 - 0.45))
    assert torch.allclose(rules.sam(w, bowl, rho=0.5, p=1.0, lr=0.1)[0], _row(3 - 0.3, 4 - 0.45))
    coupled = rules.wsam(w, bowl, rho=0.5, gamma=0.75, lr=0.1, decouple=False)[0]  # a = 3
    assert torch.allclose(coupled, _row(3 - 0.1 * (3 + 3 * 0.3), 4 - 0.1 * (4 + 3 * 0.4)))
    momentum: dict[str, Any] = {"rho": 0.5, "gamma": 0.75, "lr": 0.1, "momentum": 0.9}
    first, state = rules.wsam(w, bowl, **momentum)
    assert torch.allclose(first, coupled) and torch.equal(state[0], w)  # the buffer has the plain gradient only


def test_gsam_and_looksam_by_hand() -> None:
    stretched = torch.tensor([[1.0, 4.0]], dtype=torch.float64)
    w = _row(1.0, 1.0)
    g, eps = _row(1.0, 4.0), 0.5 * _row(1.0, 4.0) / math.sqrt(17)
    h = stretched * (w + eps)
    perp = g - (g * h).sum() / (h * h).sum() * h
    step, _ = rules.gsam(w, lambda v: stretched * v, rho=0.5, alpha=2.0, lr=1.0)
    assert torch.allclose(w - step, h - 2 * perp)
    assert (perp * h).sum().abs() < 1e-12 and perp.norm() > 1e-2
    w1, state = rules.looksam(w, lambda v: stretched * v, rho=0.5, k=2, alpha=0.7, lr=1.0)
    assert torch.allclose(w - w1, h)
    g1, g_v = stretched * w1, h - (g * h).sum() / 17 * g
    w2, _ = rules.looksam(w1, lambda v: stretched * v, state, rho=0.5, k=2, alpha=0.7, lr=1.0)
    assert torch.allclose(w1 - w2, g1 + 0.7 * g1.norm() / g_v.norm() * g_v)


def test_gsam_radius_is_linear_in_the_step_size() -> None:
    ends = {"rho": 0.6, "rho_min": 0.2, "lr_max": 1.0, "lr_min": 0.5}
    assert [rules.gsam_rho(lr, **ends) for lr in (1.0, 0.75, 0.5)] == pytest.approx([0.6, 0.4, 0.2])


# -- what defines each perturbation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, 7.0, math.inf])
def test_sam_perturbation_is_the_maximiser_on_the_ball(p: float) -> None:
    draw = torch.Generator().manual_seed(0)
    g = torch.randn(4, 9, generator=draw, dtype=torch.float64)
    rho = torch.tensor([[0.1], [1.0], [2.0], [0.0]], dtype=torch.float64)
    q = math.inf if p == 1 else 1.0 if math.isinf(p) else p / (p - 1)
    eps = rules.sam_perturbation(g, rho, p)
    assert torch.allclose(torch.linalg.vector_norm(eps, p, dim=1, keepdim=True), rho)
    best = rho * torch.linalg.vector_norm(g, q, dim=1, keepdim=True)
    assert torch.allclose((eps * g).sum(1, keepdim=True), best)  # Hoelder with equality
    other = torch.randn(1000, 4, 9, generator=draw, dtype=torch.float64)
    other = rho * other / torch.linalg.vector_norm(other, p, dim=2, keepdim=True)
    assert ((other * g).sum(2, keepdim=True) <= best + 1e-12).all()


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, math.inf])
def test_extreme_rows_neither_overflow_nor_spoil_their_neighbours(p: float) -> None:
    g = torch.tensor([[3e200, -4e200], [3e-200, -4e-200], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [3.0, -4.0]],
                     dtype=torch.float64)
    eps = rules.sam_perturbation(g, 0.5, p)
    assert torch.equal(eps[2:5], torch.zeros(3, 2, dtype=torch.float64))
    assert torch.allclose(eps[[0, 1]], eps[[5, 5]])


def test_equal_largest_entries_share_the_radius_for_p_1() -> None:
    assert torch.equal(rules.sam_perturbation(_row(2.0, -2.0, 1.0), 0.5, 1.0), _row(0.25, -0.25, 0.0))


def test_p_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p = 0\.9.*\[1, inf\].*p=2"):
        rules.sam_perturbation(G, 0.1, 0.9)


def test_asam_and_fisher_lie_on_their_ellipsoids_and_are_the_maximisers() -> None:
    draw = torch.Generator().manual_seed(0)
    w, g = (torch.randn(3, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    scaled = torch.arange(6) < 4
    t = torch.where(scaled, w.abs() + 0.01, 1.0)
    metrics = {
        1 / t: rules.asam_perturbation(w, g, 0.7, scaled=scaled),
        (1 + 2.0 * g**2).sqrt(): rules.fisher_perturbation(w, g, 0.7, eta=2.0),
    }
    for metric, eps in metrics.items():
        assert torch.allclose((metric * eps).norm(dim=1), torch.tensor(0.7, dtype=torch.float64))
        other = torch.randn(1000, 3, 6, generator=draw, dtype=torch.float64)
        other = 0.7 * other / (metric * other).norm(dim=2, keepdim=True)
        assert ((other * g).sum(2) <= (eps * g).sum(1) + 1e-12).all()
    assert torch.allclose(rules.fisher_perturbation(w, g, 0.7, eta=0.0), rules.sam_perturbation(g, 0.7))
    assert torch.allclose(rules.asam_perturbation(w, g, 0.7, scaled=False), rules.ball(w, g, 0.7))


def test_inner_steps_climb_higher_and_stay_on_the_ball() -> None:
    curvature = torch.tensor([[1.0, 30.0]], dtype=torch.float64)
    seen: list[Tensor] = []

    def gradient(w: Tensor) -> Tensor:
        seen.append(w)
        return curvature * w

    w = _row(1.0, 0.05)
    heights = []
    for steps in (1, 2, 4):
        rules.sam(w, gradient, rho=1.0, inner_steps=steps, lr=0.1)
        eps = seen[-1] - w
        assert eps.norm().item() == pytest.approx(1.0)
        heights.append((curvature * (w + eps) ** 2).sum().item() / 2)
    assert heights[0] < heights[1] < heights[2]


def test_esam_keeps_the_samples_that_the_perturbation_hurts() -> None:
    slopes = torch.tensor([1.0, -2.0, 3.0, 3.0, 0.5], dtype=torch.float64)  # losses l_j = slope_j w
    kept: list[list[int]] = []

    def gradient(w: Tensor, rows: Tensor | None) -> Tensor:
        if rows is None:
            return slopes.mean().expand_as(w)
        kept.append(rows[0].tolist())
        return slopes[rows].mean(dim=1, keepdim=True)

    for gamma, expected in ((0.1, [2]), (0.4, [2, 3]), (0.41, [2, 3, 0]), (1.0, [2, 3, 0, 4, 1])):
        w, _ = rules.esam(_row(0.0), gradient, lambda w: w * slopes, rho=1.0, mask=torch.ones(1, 1), beta=1.0,
                          gamma=gamma, lr=1.0)
        assert kept[-1] == expected
        assert w.item() == pytest.approx(-slopes[expected].mean().item())
    rules.esam(_row(0.0), gradient, lambda w: w * slopes, rho=1.0, mask=torch.zeros(1, 1), beta=0.5, gamma=0.4, lr=1.0)
    assert kept[-1] == [0, 1]  # nothing was perturbed: all are equal, the first ones stay


# -- PyTorch's classes, and rows apart --------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "cls", "hyper"), [
    (rules.sgd, torch.optim.SGD, {"lr": 0.1}),
    (rules.sgd, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (rules.sgd, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    (rules.adam, torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}),
    (rules.adamw_torch, torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.1}),
])  # fmt: skip
def test_base_rules_are_pytorchs_under_a_schedule(rule: Any, cls: Any, hyper: dict[str, Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    root = 0.5 * torch.randn(5, 5, generator=draw, dtype=torch.float64)

    def gradient(w: Tensor) -> Tensor:
        return w @ (root @ root.T) + torch.sin(w)

    p = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
    optimizer = cls([p], **hyper)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    w, state = torch.ones(1, 5, dtype=torch.float64), None
    for _ in range(100):
        eta = optimizer.param_groups[0]["lr"] / hyper["lr"]
        p.grad = gradient(p.detach())
        w, state = rule(w, gradient(w), state, eta=eta, **hyper)
        optimizer.step()
        schedule.step()
    assert (p - w[0]).abs().max() < 1e-12


@pytest.mark.parametrize("rule", [
    rules.sam, partial(rules.sam, p=3.0), partial(rules.sam, inner_steps=2), partial(rules.sam, second_order=True),
    rules.asam, rules.fisher_sam, partial(rules.gsam, alpha=0.4), partial(rules.looksam, k=2),
    partial(rules.wsam, gamma=0.8),
])  # fmt: skip
@pytest.mark.parametrize("base", [rules.sgd, rules.sgdw, rules.adam, rules.adamw, rules.adamw_torch])
def test_rows_are_models_that_do_not_know_each_other(rule: Any, base: Any) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(4, 6, generator=draw, dtype=torch.float64)
    values = {"rho": [0.0, 0.1, 0.2, 0.3], "lr": [0.1, 0.05, 0.1, 0.02], "weight_decay": [0.0, 0.1, 0.01, 0.2]}
    columns = {name: torch.tensor(column, dtype=torch.float64)[:, None] for name, column in values.items()}

    def run(w: Tensor, hyper: dict[str, Any]) -> Tensor:
        before, state = w.clone(), None
        kept = w
        for t in range(5):
            w, state = rule(w, torch.sin, state, base=base, eta=1 - 0.1 * t, **hyper)
        assert torch.equal(before, kept)  # nothing in place
        return w

    together = run(start, columns)
    for k in range(4):
        alone = run(start[k : k + 1], {name: column[k].item() for name, column in columns.items()})
        assert torch.allclose(together[k : k + 1], alone, rtol=0, atol=1e-14)
