r"""Notebook 08: WSAM (Yue et al., KDD 2023) in closed form, and what is proved of it.

Throughout :math:`a=\gamma/(1-\gamma)`, g is the gradient, :math:`\tilde g` the gradient at the perturbed weights.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpnb import rules


def wsam_loss(loss: Any, loss_sam: Any, gamma: float) -> Any:
    r"""The objective :math:`L + a\,(L^{SAM}-L)`."""
    return loss + gamma / (1 - gamma) * (loss_sam - loss)


def heavy_ball(curvature: float, a: float, *, rho: float, lr: float, momentum: float, decouple: bool) -> np.ndarray:
    r"""One WSAM step with heavy-ball momentum on :math:`\frac12\lambda w^2`, as a matrix on (w, m): (2, 2).

    The perturbation is :math:`\rho g`, without the norm, so that the step is linear:
    :math:`\tilde g-g=\rho\lambda^2w`. Coupled, :math:`m\leftarrow\beta m+hw` with
    :math:`h=\lambda+a\rho\lambda^2`; decoupled, :math:`m\leftarrow\beta m+\lambda w`, and w loses
    :math:`\alpha a\rho\lambda^2w` beside.
    """
    sharp = a * rho * curvature**2
    inside, outside = (curvature, lr * sharp) if decouple else (curvature + sharp, 0.0)
    return np.array([[1 - outside - lr * inside, -lr * momentum], [inside, momentum]])


def contraction(matrix: np.ndarray) -> float:
    """Factor a step by which the error shrinks in the end: the spectral radius."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def largest_stable_weight(curvature: float, *, rho: float, lr: float, momentum: float, decouple: bool) -> float:
    r"""The a at which :func:`heavy_ball` stops being stable (Jury's criterion on trace and determinant).

    .. math:: \text{coupled: } \alpha(\lambda + a\rho\lambda^2) < 2(1+\beta), \qquad
              \text{decoupled: } \alpha(\lambda + (1+\beta)\,a\rho\lambda^2) < 2(1+\beta)
    """
    room = 2 * (1 + momentum) / lr - curvature
    return room / (rho * curvature**2 * ((1 + momentum) if decouple else 1.0))


def adam_pull(scale: Tensor, *, gamma: float, rho: float, decouple: bool, steps: int = 1) -> Tensor:
    r"""How far the sharpness term moves Adam when the loss is multiplied by ``scale``, in learning rates, (K,).

    It is :math:`\|w_\gamma-w_0\|/\alpha` on a quadratic in two dimensions, curvatures 1 and 10, from (1, 1) on.
    """
    curvature = torch.tensor([[1.0, 10.0]], dtype=torch.float64)
    start = torch.ones(len(scale), 2, dtype=torch.float64)
    lr, ends = 1e-4, []
    for weight in (0.0, gamma):
        w, state = start, None
        for _ in range(steps):
            w, state = rules.wsam(w, lambda w: scale[:, None] * curvature * w, state, rho=rho, gamma=weight, lr=lr,
                                  decouple=decouple, base=rules.adam)
        ends.append(w)
    return (ends[1] - ends[0]).norm(dim=1) / lr


def angle(u: Tensor, v: Tensor) -> float:
    """Angle between two vectors in degrees."""
    return math.degrees(math.acos(max(-1.0, min(1.0, float(u @ v / (u.norm() * v.norm()))))))


LOOKS = 40  # times, evenly spaced in log T, at which the gradient's norm is looked at


def looks(steps: int) -> np.ndarray:
    """Return the times (1 is the first step) at which :func:`online` looks at the gradient."""
    return np.unique(np.geomspace(1, steps, LOOKS).round().astype(int))


def online(
    gammas: Sequence[float], *, convex: bool, rho: Callable[[int], float], steps: int, seeds: int, lr: float
) -> dict[str, Tensor]:
    r"""WSAM on SGD (Algorithm 3) with :math:`\alpha_t=\alpha/\sqrt t`, for every γ and seed at once.

    Inputs are standard normal in ten dimensions, eight new ones a step. Convex: least squares with noise 0.5 in the
    targets. Not convex: squared loss of :math:`\tanh(x^\top w)` against that of hidden weights, noise 0.2.

    Returns:
        ``regret``: :math:`R(T)/T` against the best fixed point in hindsight, (γ, seeds, steps), convex alone;
        ``gradient``: :math:`\min_{t\le T}\|\nabla L(w_t)\|^2` on 1,000 samples, (γ, seeds, looks).
    """
    generator, count = torch.Generator().manual_seed(0), len(gammas)
    x = torch.randn(seeds, steps, 8, 10, generator=generator, dtype=torch.float64)
    hidden = torch.randn(seeds, 10, 1, generator=generator, dtype=torch.float64) / (1.0 if convex else math.sqrt(10))
    noise = torch.randn(seeds, steps, 8, generator=generator, dtype=torch.float64)
    link = (lambda z: z) if convex else torch.tanh
    y = link((x.flatten(1, 2) @ hidden).view(seeds, steps, 8)) + (0.5 if convex else 0.2) * noise
    x, y = x.repeat(count, 1, 1, 1), y.repeat(count, 1, 1)  # rows: γ slow, seed fast

    def gradient(w: Tensor, x: Tensor, y: Tensor) -> Tensor:  # (K, 10), (K, N, 10), (K, N) -> (K, 10)
        out = link((x @ w[..., None])[..., 0])
        factor = torch.ones_like(out) if convex else 1 - out**2
        return 2 * (((out - y) * factor)[..., None] * x).mean(1)

    gamma = torch.tensor(gammas, dtype=torch.float64).repeat_interleave(seeds)[:, None]
    w, path, state = torch.zeros(count * seeds, 10, dtype=torch.float64), [], None
    for t in range(steps):
        path.append(w)
        w, state = rules.wsam(w, lambda w, t=t: gradient(w, x[:, t], y[:, t]), state, gamma=gamma, rho=rho(t + 1),
                              lr=lr, eta=(t + 1) ** -0.5)
    flat_x, flat_y = x.flatten(1, 2), y.flatten(1, 2)
    norms = [gradient(path[t - 1], flat_x[:, :1000], flat_y[:, :1000]).square().sum(1) for t in looks(steps)]
    found = {"gradient": torch.stack(norms, 1).cummin(1).values.unflatten(0, (count, seeds))}
    if convex:
        best = torch.linalg.lstsq(flat_x, flat_y[..., None]).solution  # (K, 10, 1)
        points = torch.stack(path, 1)[..., None]
        paid, ideal = (((x @ at)[..., 0] - y).square().mean(2) for at in (points, best[:, None]))
        found["regret"] = ((paid - ideal).cumsum(1) / torch.arange(1, steps + 1)).unflatten(0, (count, seeds))
    return found


def slope(times: np.ndarray, values: np.ndarray) -> float:
    """Least-squares slope of log(values) against log(times)."""
    return float(np.polyfit(np.log(times), np.log(values), 1)[0])


def bound(
    gamma: float, *, samples: int, weights: int, dimension: float, norm: float, rho: float, delta: float = 0.05
) -> dict[str, float]:
    r"""The two terms of the generalisation bound; its constants were not held against the printed theorem.

    .. math::
        L_D \le L_S + \underbrace{\tfrac{2|1-2\gamma|}{1-\gamma}\sqrt{C_1/n}}_{\text{loss}}
                + \underbrace{\tfrac{\gamma}{1-\gamma}\sqrt{(C_2+C_3)/(n-1)}}_{\text{sharpness}}

    with :math:`C_1=8d\log(en/d)+2\log(4/\delta)`, :math:`C_2=k\log(1+\frac{\|w\|^2}{\rho^2}(1+\sqrt{\log n/k})^2)`,
    :math:`C_3=4\log(n/\delta)+8\log(6n+3k)`; n samples, k weights, d the VC dimension.
    """
    n, k, d = samples, weights, min(dimension, samples)  # the growth function of n points is that of d = n at most
    loss = 8 * d * math.log(math.e * n / d) + 2 * math.log(4 / delta)
    ball = k * math.log(1 + norm**2 / rho**2 * (1 + math.sqrt(math.log(n) / k)) ** 2)
    rest = 4 * math.log(n / delta) + 8 * math.log(6 * n + 3 * k)
    return {"loss": 2 * abs(1 - 2 * gamma) / (1 - gamma) * math.sqrt(loss / n),
            "sharpness": gamma / (1 - gamma) * math.sqrt((ball + rest) / (n - 1))}
