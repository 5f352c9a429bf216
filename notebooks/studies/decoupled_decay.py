r"""Notebook 10: decoupled weight decay against L2 (Loshchilov & Hutter, ICLR 2019), where both can be computed.

Rows are weights as in :mod:`sharpnb.rules`; everything is float64.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpnb import optim, rules
from sharpnb.lab import load_data
from sharpnb.lab.training import batches

Rule = Callable[[Tensor, Tensor, Any], tuple[Tensor, Any]]


class Regression:
    r"""Softmax regression on handwritten digits, 640 weights, without bias.

    .. math::
        L(W) = -\frac1B\sum_b\log\mathrm{softmax}(Wx_b)_{y_b},\qquad \nabla L = \frac1B\sum_b (p_b-e_{y_b})x_b^\top
    """

    n = 640

    def __init__(self, images: int = 300, batch_size: int = 32, seed: int = 0) -> None:
        self.data = load_data("digits", train_size=images, seed=seed, dtype=torch.float64)
        self.x, self.y = self.data.train_x.flatten(1), F.one_hot(self.data.train_y, 10).double()
        self.batch_size = batch_size

    def gradient(self, w: Tensor, rows: Tensor) -> Tensor:
        """Gradient over the images ``rows``, for each row of ``w``: (K, 640) -> (K, 640)."""
        x, y = self.x[rows], self.y[rows]
        p = (x @ w.view(-1, 10, 64).mT).softmax(-1)  # (K, B, 10)
        return ((p - y).mT @ x / len(x)).flatten(1)

    def start(self, seed: int, scale: float = 0.3) -> Tensor:
        """Random weights, (1, 640), large enough for a decay to be seen."""
        return scale * torch.randn(1, self.n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def path(self, rule: Rule, steps: int, seed: int = 0) -> Tensor:
        """Apply a rule to the mini-batches that ``seed`` draws: (steps + 1, 640)."""
        order, w, state = self.order(seed), self.start(seed), None
        points = [w]
        for _ in range(steps):
            w, state = rule(w, self.gradient(w, next(order)), state)
            points.append(w)
        return torch.cat(points)

    def order(self, seed: int) -> Iterator[Tensor]:
        """Yield the rows of the mini-batches that ``seed`` draws."""
        return batches(len(self.x), self.batch_size, torch.Generator().manual_seed(seed))

    def root_mean_square_gradient(self, w: Tensor, seed: int = 0) -> Tensor:
        r"""Root mean square of 50 mini-batch gradients at ``w``, weight by weight, (1, 640): Adam's :math:`\sqrt v`."""
        order = self.order(seed)
        return torch.stack([self.gradient(w, next(order)).square() for _ in range(50)]).mean(0).sqrt()


def shrinkage_by_gradient(
    tasks: Mapping[int, Regression], plain: Rule, decayed: Mapping[str, Rule], *, steps: int, groups: int = 10
) -> pd.DataFrame:
    r"""How much rules with a decay shrink weights of small and of large gradients (paper, section 2 end).

    Each is compared with the plain rule on the same batches: the shrinkage of a group of weights is
    :math:`1-\langle w,w_{plain}\rangle/\|w_{plain}\|^2` over the group, the groups being tenths of the weights by their
    root mean square gradient at the start. Weights that never see a gradient (pixels always 0) are left out.
    ``tasks`` are by seed.
    """
    rows = []
    for seed, task in tasks.items():
        size = task.root_mean_square_gradient(task.start(seed), seed)[0]
        ends = {name: task.path(rule, steps, seed)[-1] for name, rule in {"": plain, **decayed}.items()}
        parts = size.argsort()[int((size == 0).sum()) :].tensor_split(groups)
        for name, (group, part) in product(decayed, enumerate(parts)):
            free = ends[""][part]
            rows.append({"rule": name, "seed": seed, "group": group, "gradient": size[part].mean().item(),
                         "shrinkage": (1 - (ends[name][part] @ free) / (free @ free)).item()})
    return pd.DataFrame(rows)


def decay_rates(
    scales: Tensor, *, lr: float = 1e-4, l2: float = 0.1, decay: float = 1e-5, steps: int = 1000, pairs: int = 16,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Rate at which weights of 1 shrink under gradients that are pure noise of size s: scales (n,) -> rates (n,).

    The rate is :math:`-\log(\bar w_T)/T` of the mean over rows. Rows come in pairs with opposite noise, which cancels
    the random walk of the weights and leaves the decay.
    """
    methods = {
        "Adam + L2": lambda w, g, s: rules.adam(w, g, s, lr=lr, weight_decay=l2),
        "AdamW": lambda w, g, s: rules.adamw(w, g, s, lr=lr, weight_decay=decay),
    }
    found = {}
    for name, rule in methods.items():
        generator = torch.Generator().manual_seed(seed)
        w, state = torch.ones(2 * pairs, len(scales), dtype=torch.float64), None
        for _ in range(steps):
            noise = scales * torch.randn(pairs, len(scales), dtype=torch.float64, generator=generator)
            w, state = rule(w, torch.cat([noise, -noise]), state)
        found[name] = -w.mean(0).log() / steps
    return found


@dataclass(frozen=True)
class Quadratic:
    r""":math:`f(\theta)=\frac12(\theta-c)^\top H(\theta-c)`, H (2, 2), under the fixed preconditioner M = diag(1/s)."""

    h: Tensor
    c: Tensor
    s: Tensor

    def end_of_decay(self, decay: float, lr: float) -> Tensor:
        r"""Fixed point of :math:`\theta\leftarrow(1-\lambda)\theta-\alpha M\nabla f`."""
        return torch.linalg.solve(self.h + decay / lr * torch.diag(self.s), self.h @ self.c)

    def end_of_l2(self, l2: float) -> Tensor:
        r"""Fixed point of :math:`\theta\leftarrow\theta-\alpha M(\nabla f+\lambda'\theta)`: M has no say in it."""
        return torch.linalg.solve(self.h + l2 * torch.eye(2, dtype=self.h.dtype), self.h @ self.c)

    def descend(self, lr: float, *, decay: float = 0.0, l2: float = 0.0, steps: int = 20_000) -> Tensor:
        """Iterate either update from the minimiser of f and return where it comes to rest."""
        w = self.c.clone()
        for _ in range(steps):
            w = w - lr * (self.h @ (w - self.c) + l2 * w) / self.s - decay * w
        return w


def quadratic() -> Quadratic:
    """The example of the notebook: weight 2 has seen gradients eight times larger than weight 1."""
    return Quadratic(*(torch.tensor(values, dtype=torch.float64)
                       for values in ([[1.0, 0.3], [0.3, 2.0]], [2.0, 1.5], [0.5, 4.0])))


@dataclass(frozen=True)
class Drift:
    r"""Weights that drift, :math:`\theta_{t+1}=(1-a)\theta_t+N(0,q)`, and are seen as :math:`y_t=\theta_t+N(0,r)`.

    A = a I in eq. 4; ``r``, (D,), is each coordinate's.
    """

    a: float
    q: float
    r: Tensor

    def simulate(self, steps: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return truth and observations, each (seeds, steps, D), the truth from its stationary law."""
        noise = torch.stack([torch.randn(2, steps + 1, len(self.r), dtype=torch.float64,
                                         generator=torch.Generator().manual_seed(seed)) for seed in seeds], 2)
        theta, truth = (self.q / (1 - (1 - self.a) ** 2)) ** 0.5 * noise[0, 0], []
        for drift in noise[0, 1:]:
            theta = (1 - self.a) * theta + self.q**0.5 * drift
            truth.append(theta)
        seen = torch.stack(truth) + self.r.sqrt() * noise[1, 1:]
        return torch.stack(truth, 1), seen.transpose(0, 1)

    def filter(self, y: Tensor, *, l2: float | Tensor | None = None) -> tuple[Tensor, Tensor]:
        r"""Return posterior means, (seeds, steps, D), and variances, (steps, D).

        Eq. 3, :math:`\mu_{post}=\mu_{prior}+\Sigma_{post}\,g`, g the gradient of the log-likelihood, after the
        prediction :math:`\mu_{prior}=(1-a)\mu` of eq. 4. With ``l2`` the prediction does not shrink and the likelihood
        is regularised instead: :math:`\mu_{post}=\mu+\Sigma_{post}\,(g-\lambda'\mu)`, one coefficient for all
        coordinates or (D,).
        """
        mu = torch.zeros_like(y[:, 0])
        variance = torch.full_like(self.r, self.q / (1 - (1 - self.a) ** 2))
        means, variances = [], []
        for observed in y.unbind(1):
            variance = 1 / (1 / ((1 - self.a) ** 2 * variance + self.q) + 1 / self.r)
            mu = (1 - self.a) * mu if l2 is None else mu
            g = (observed - mu) / self.r - (0.0 if l2 is None else l2) * mu
            mu = mu + variance * g
            means.append(mu)
            variances.append(variance)
        return torch.stack(means, 1), torch.stack(variances)

    def posterior(self, y: Tensor, coordinate: int) -> tuple[float, float]:
        """Mean and variance of the last state of one coordinate by the dense joint Gaussian: y is (steps,)."""
        times = torch.arange(len(y), dtype=torch.float64)
        prior = self.q / (1 - (1 - self.a) ** 2) * (1 - self.a) ** (times[:, None] - times).abs()
        seen = prior + self.r[coordinate] * torch.eye(len(y), dtype=torch.float64)
        gain = torch.linalg.solve(seen, prior[:, -1])
        return float(gain @ y), float(prior[-1, -1] - gain @ prior[:, -1])


CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "torch.optim.SGD": torch.optim.SGD, "torch.optim.Adam": torch.optim.Adam, "torch.optim.AdamW": torch.optim.AdamW,
    "sharpnb.optim.SGDW": optim.SGDW, "sharpnb.optim.AdamW": optim.AdamW,
}


def one_step(name: str, gradient: float, *, weight: float = 1.0, **options: Any) -> float:
    """Make one step of a class of :data:`CLASSES` on a single weight and return the weight after it."""
    w = torch.nn.Parameter(torch.tensor([weight], dtype=torch.float64))
    w.grad = torch.tensor([gradient], dtype=torch.float64)
    CLASSES[name]([w], **options).step()
    return w.item()


def class_path(
    task: Regression, name: str, steps: int, *, etas: Sequence[float] | None = None, **options: Any
) -> Tensor:
    """Run a class of :data:`CLASSES` on the batches of ``task.path``, its lr times ``etas``: (steps + 1, 640)."""
    w, factors = torch.nn.Parameter(task.start(0)), iter(etas or [1.0] * steps)
    optimizer = CLASSES[name]([w], **options)

    def rule(_: Tensor, gradient: Tensor, state: Any) -> tuple[Tensor, Any]:
        w.grad, optimizer.param_groups[0]["lr"] = gradient, options["lr"] * next(factors)
        optimizer.step()
        return w.detach().clone(), state

    return task.path(rule, steps)


def rule_path(
    task: Regression, rule: Callable[..., Any], steps: int, *, etas: Sequence[float] | None = None, **options: Any
) -> Tensor:
    """Run a rule of :mod:`sharpnb.rules` on the same batches, its eta taken from ``etas``: (steps + 1, 640)."""
    factors = iter(etas or [1.0] * steps)
    return task.path(lambda w, g, state: rule(w, g, state, eta=next(factors), **options), steps)
