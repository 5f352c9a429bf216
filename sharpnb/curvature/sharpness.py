r"""Sharpness of a minimum as a rise of the loss: worst case within a ball, and average over a cloud.

For groups :math:`S` of m samples (m-sharpness: Foret et al., ICLR 2021, section 4.1)

.. math::
    S_{\max} = \frac1G\sum_{S}\Big[\max_{\|\delta\oslash c\|_p\le\rho} L_S(w+\delta) - L_S(w)\Big], \qquad
    S_{\mathrm{avg}} = \mathbb{E}_{\delta\sim N(0,\,\rho^2\mathrm{diag}(c^2))}\,L(w+\delta) - L(w)

with c = 1, or c = |w| (adaptive: Kwon et al., ICML 2021; Andriushchenko et al., ICML 2023, section 3). At a minimum
with Hessian H, c = 1 and p = 2 they tend to :math:`\frac12\rho^2\lambda_{\max}` (for one group) and
:math:`\frac12\rho^2\,\mathrm{tr} H`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharpnb.counts import Count, Reduction
from sharpnb.curvature._groups import Group, Network
from sharpnb.curvature._state import Mode, measuring
from sharpnb.curvature.operators import Loss
from sharpnb.rules import sam_perturbation


@dataclass(frozen=True)
class Sharpness:
    """A sharpness.

    Attributes:
        value: mean over groups (weighted by size), or over random perturbations; in the unit of the loss.
        stderr: its standard error over them (NaN with one).
        each: the values ``(G,)`` behind it, one a group, or one a pair of opposite perturbations.
        rho, p, adaptive: what was asked.
        passes: passes over the data, forward and backward or forward alone.
    """

    value: float
    stderr: float
    each: np.ndarray
    rho: float
    p: float
    adaptive: bool
    passes: int


def sharpness(  # noqa: D417  some in one line
    model: nn.Module, loss: Loss, data: Any, rho: float, m: int | None = None, p: float = 2, adaptive: bool = False,
    steps: int = 1, *, params: Any = None, mode: Mode = "eval", seed: int = 0, reduction: Reduction = "mean",
    count: Count | None = None,
) -> Sharpness:
    r"""Worst-case m-sharpness.

    Args:
        model, loss, data, params, mode, reduction, count: as of :class:`~sharpnb.curvature.hessian.HessianOperator`.
            Groups of m samples weigh by ``count`` where it is a function, else by their samples.
        rho: radius. SAM trains with 0.05.
        m: samples that share a perturbation; default all of the data. Groups are consecutive samples, the last one may
            be smaller. They are cut along the first axis, which must be that of the samples (compared, in eval mode).
            Many groups run at once by ``vmap``; where it refuses a network or a loss, one after the other.
        p: norm of the ball, in [1, ∞].
        adaptive: measure the ball relative to :math:`|w|`, which makes the result invariant to a rescaling of ReLU
            layers; a weight of zero is not moved.
        steps: 1 is SAM's own first-order solution, whose rise may be negative where the loss is not locally linear.
            More: projected ascent from there, step sizes falling linearly from 2ρ, the best iterate of each group kept,
            so that the result is never negative (20 is usual).
        seed: of the start where a gradient is exactly zero.

    How it differs from the popular code: (1) any p; (2) a weight of zero does not divide anything; (3) the iterate is
    chosen by its loss, not by its error rate; (4) groups are of size m whatever the batches are.

    Raises:
        ValueError: if rho, m, p or steps is out of range, or a number of loss terms is needed and not to be seen.
    """
    _check_rho(rho)
    if (m is not None and m < 1) or steps < 1:
        raise ValueError(f"m = {m}, steps = {steps}: both must be at least 1 (m=None is all of the data).")
    network = Network(model, loss, data, params, mode, reduction, count)
    with measuring(network.model, mode):
        rises, weights = zip(*network.over_groups(
            m, lambda group: _Ascent(network, group, rho, p, adaptive, seed).rise(steps)), strict=True)
    each, weight = np.concatenate(rises), np.concatenate(weights)
    each = np.where(weight > 0, each, 0.0)  # the loss of a group without terms is not a number
    return _summary(each, weight / weight.sum(), rho, p, adaptive, steps + 1)


def average_sharpness(  # noqa: D417  some in one line
    model: nn.Module, loss: Loss, data: Any, rho: float, p: float = 2, adaptive: bool = False, samples: int = 32, *,
    params: Any = None, mode: Mode = "eval", seed: int = 0, reduction: Reduction = "mean", count: Count | None = None,
) -> Sharpness:
    r"""Average-case sharpness.

    Perturbations come in opposite pairs, so that the gradient's part cancels exactly.

    Args:
        model, loss, data, params, mode, reduction, count: as of :class:`~sharpnb.curvature.hessian.HessianOperator`.
        rho: standard deviation for p = 2; half-width of the uniform cube for p = ∞.
        p: 2 or ∞.
        adaptive: scale each weight's perturbation by its magnitude.
        samples: perturbations, an even number.
        seed: of the perturbations.

    Raises:
        ValueError: if rho, p or samples is out of range, or a number of loss terms is needed and not to be seen.
    """
    _check_rho(rho)
    if p not in (2, math.inf):
        raise ValueError(f"p = {p}: the average is over a Gaussian (p=2) or a cube (p=float('inf')).")
    if samples < 2 or samples % 2:
        raise ValueError(f"samples = {samples}: perturbations come in pairs; choose an even number, at least 2.")
    network = Network(model, loss, data, params, mode, reduction, count)
    generator = torch.Generator().manual_seed(seed)
    scale = rho * (network.w.abs() if adaptive else torch.ones_like(network.w))
    draw, pairs = torch.randn if p == 2 else torch.rand, []
    with measuring(network.model, mode):
        start = network.value(network.w)
        for _ in range(samples // 2):
            noise = draw(len(network.w), generator=generator)
            delta = scale * (noise if p == 2 else 2 * noise - 1).to(scale)
            pairs.append((network.value(network.w + delta) + network.value(network.w - delta)) / 2 - start)
    each = np.array(pairs)
    return _summary(each, np.full(len(each), 1 / len(each)), rho, p, adaptive, samples + 1)


def _check_rho(rho: float) -> None:
    if not 0 < rho < math.inf:
        raise ValueError(f"rho = {rho}: the size of ball or cloud must be positive and finite; SAM trains with 0.05.")


def _summary(each: np.ndarray, weight: np.ndarray, rho: float, p: float, adaptive: bool, passes: int) -> Sharpness:
    mean = float(weight @ each)
    stderr = float(np.sqrt(weight @ (each - mean) ** 2 / (len(each) - 1))) if len(each) > 1 else float("nan")
    return Sharpness(mean, stderr, each, rho, p, adaptive, passes)


class _Ascent:
    r"""The maximisation over the ball, for several groups at once, in the coordinates :math:`u = \delta/c`."""

    def __init__(self, network: Network, group: Group, rho: float, p: float, adaptive: bool, seed: int) -> None:
        self.network, self.group, self.rho, self.p = network, group, rho, p
        self.c = network.w.abs() if adaptive else None
        self.start = network.w.expand(len(group.weights), -1)
        self.generator = torch.Generator().manual_seed(seed)

    def rise(self, steps: int) -> np.ndarray:
        """Return the rise of each group's loss ``(k,)``."""
        base, gradient = self._at(torch.zeros_like(self.start))
        u = sam_perturbation(gradient, self.rho, self.p)
        if steps == 1:
            return (self.network.losses(self.group, self._moved(u)) - base).cpu().numpy()
        still = ~u.any(dim=1)
        if still.any():
            noise = torch.randn(u.shape, generator=self.generator).to(u)
            u[still] = self._into_ball(noise * (2 * self.rho / self._norm(noise)))[still]
        best = torch.zeros_like(base)
        for t in range(1, steps):
            value, gradient = self._at(u)
            best = torch.maximum(best, value - base)
            u = self._into_ball(u + sam_perturbation(gradient, 2 * self.rho * (1 - t / steps), self.p))
        return torch.maximum(best, self.network.losses(self.group, self._moved(u)) - base).cpu().numpy()

    def _at(self, u: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = self.network.at(self.group, self._moved(u))
        values = values.masked_fill(~gradients.isfinite().all(dim=1), math.nan)  # there is no way up that is known
        return values, gradients if self.c is None else self.c * gradients

    def _moved(self, u: Tensor) -> Tensor:
        return self.start + (u if self.c is None else self.c * u)

    def _norm(self, u: Tensor) -> Tensor:
        return torch.linalg.vector_norm(u, ord=self.p, dim=1, keepdim=True)

    def _into_ball(self, u: Tensor) -> Tensor:
        """Return the nearest point of the ball for p = 2 and ∞, the point on the same ray for any other p."""
        if math.isinf(self.p):
            return u.clamp(-self.rho, self.rho)
        return u * (self.rho / self._norm(u).clamp_min(self.rho))
