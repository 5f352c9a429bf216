r"""Notebook 16: Lookahead on noisy and on badly conditioned quadratics, and inside the training of a small net."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.averaging import Lookahead
from sharpnb.lab import models
from sharpnb.lab.data import Data, load_data
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from sharpnb.lab.training import shift_and_flip, train
from sharpnb.many.net import BatchedNet
from sharpnb.many.train import Many, train_many

# -- the noisy quadratic model ----------------------------------------------------------------------------------------


def variance(lr: Any, a: Any, sigma2: Any = 1.0, alpha: Any = 1.0, k: int = 1) -> Any:
    r"""Stationary variance of one coordinate under Lookahead on SGD (Proposition 2); ``alpha=1`` is SGD.

    With :math:`r=1-\gamma a`, :math:`V_{SGD}=\gamma^2a^2\sigma^2/(1-r^2)` and

    .. math:: V = \frac{\alpha^2(1-r^{2k})}{\alpha^2(1-r^{2k})+2\alpha(1-\alpha)(1-r^k)}\,V_{SGD}
    """
    r = 1 - lr * a
    sgd = (lr * a) ** 2 * sigma2 / (1 - r**2)
    inner = alpha**2 * (1 - r ** (2 * k))
    return sgd * inner / (inner + 2 * alpha * (1 - alpha) * (1 - r**k))


def simulated(
    lr: float, a: float, alpha: float, k: int, *, runs: int = 20_000, cycles: int = 80, seed: int = 0
) -> Tensor:
    """End points of ``runs`` independent slow weights on one coordinate with unit noise, (runs,), started at 0."""
    generator = torch.Generator().manual_seed(seed)
    slow = torch.zeros(runs, dtype=torch.float64)
    for _ in range(cycles):
        fast = slow.clone()
        for _ in range(k):
            fast -= lr * a * (fast - torch.randn(runs, generator=generator, dtype=torch.float64))
        slow += alpha * (fast - slow)
    return slow


def frontier(budgets: Sequence[float], k: int = 5) -> list[dict[str, float]]:
    """The fastest convergence within a budget of final loss, SGD against Lookahead (Fig. 2).

    100 coordinates with curvatures 1/i and unit noise; 400 learning rates, 100 values of alpha. A budget is a multiple
    of the loss that no optimizer can go below; the rate is one minus the contraction of the slowest coordinate a step.
    """
    a = 1 / torch.arange(1, 101, dtype=torch.float64)
    lr = torch.logspace(-4, 0.25, 400, dtype=torch.float64)[:, None, None]
    alpha = (torch.arange(1, 101, dtype=torch.float64) / 100)[:, None]
    final = 1 + (a * variance(lr, a, 1.0, alpha, k)).sum(-1) / a.sum()  # (400, 100)
    rate = 1 - (1 - alpha + alpha * (1 - lr * a) ** k).abs().amax(-1) ** (1 / k)
    rows = []
    for budget in budgets:
        allowed = torch.where(final <= budget, rate, torch.zeros_like(rate))
        best = int(allowed.argmax())
        rows.append({"budget": budget, "sgd": allowed[:, -1].max().item(), "lookahead": allowed.max().item(),
                     "alpha": (best % 100 + 1) / 100, "lr": lr[best // 100].item()})
    return rows


def momentum_rate(kappa: float, beta: float, alpha: float = 1.0, k: int = 1) -> float:
    """Contraction a step of heavy-ball momentum on a quadratic of condition number kappa, under Lookahead (Fig. 3).

    The learning rate is the best of 300; the momentum buffer is kept at a pull; the rate is the spectral radius of one
    cycle's matrix on (weight, buffer), to the power 1/k, at the worst of 40 curvatures from 1/kappa to 1.
    """
    a = torch.logspace(-torch.log10(torch.tensor(float(kappa))).item(), 0, 40, dtype=torch.float64)
    lr = torch.logspace(-5, 0, 300, dtype=torch.float64)[:, None] * 2 * (1 + beta)
    step = lr * a  # (300, 40)
    cycle = torch.stack([torch.stack([1 - step, torch.full_like(step, beta)], -1),
                         torch.stack([-step, torch.full_like(step, beta)], -1)], -2)
    cycle = torch.linalg.matrix_power(cycle, k)
    cycle[..., 0, :] *= alpha
    cycle[..., 0, 0] += 1 - alpha
    half = (cycle[..., 0, 0] + cycle[..., 1, 1]) / 2
    determinant = cycle[..., 0, 0] * cycle[..., 1, 1] - cycle[..., 0, 1] * cycle[..., 1, 0]
    root = torch.sqrt((half**2 - determinant).to(torch.complex128))
    radius = torch.maximum((half + root).abs(), (half - root).abs()) ** (1 / k)
    return radius.amax(-1).min().item()


# -- a small net ------------------------------------------------------------------------------------------------------

# Taken over from a survey made before this notebook: 500 digits with one-pixel shifts, constant lr 0.1, momentum 0.9.
SEEDS, STEPS, BATCH, LR = 6, 600, 50, 0.1
_COLUMNS = ("seed", "step", "lr", "momentum", "lookahead_k", "lookahead_alpha", "train_loss", "test_loss", "test_error")


def quick_data(nb: Notebook) -> Data:
    """The digits of the quick profile."""
    return nb.uses(load_data("digits", train_size=500, dtype=torch.float64))


def small_net(seed: int) -> nn.Module:
    """The net of the quick profile."""
    return models.mlp((64, 32, 10), seed=seed)


def trained(data: Data, settings: Sequence[dict[str, Any]], seeds: int = SEEDS, **options: Any) -> Many:
    """Train each setting for each seed, at a constant learning rate with shifted images; settings vary slowest."""
    start = {"rule": "sgd", "lr": LR, "momentum": 0.9}
    configs = [{**start, **setting, "seed": seed} for setting in settings for seed in range(seeds)]
    for config in configs:
        if config["rule"] == "adam":
            del config["momentum"]
    options = {"steps": STEPS, "batch_size": BATCH, "schedule": "constant", "device": "cpu", **options}
    return train_many(configs, data, small_net, augment=shift_and_flip(1, flip=False), dtype=torch.float64, **options)


@torch.no_grad()
def losses(weights: Tensor, part: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy of the small net at each row of weights, (K, n) -> (K,)."""
    x, y = part
    net = BatchedNet(small_net(0), x.shape[1:])
    logits = net(weights, x[None].expand(len(weights), *x.shape))
    each = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(weights)), reduction="none")
    return each.view(len(weights), -1).mean(1)


def inner_loop(
    data: Data, k: int = 5, alpha: float = 0.5, cycles: int = 20, lr: float = LR
) -> list[dict[str, Any]]:
    """Losses after each fast step and after the slow one, averaged over the last cycles of a training.

    Returns:
        One row a seed and place in the cycle (0 is the start, 1 … k the fast steps, k + 1 the slow one) with train and
        test loss. The fast weights before a pull follow from the slow ones around it.
    """
    last = range(STEPS - cycles * k, STEPS, k)
    setting = {"lookahead_k": k, "lookahead_alpha": alpha, "lr": lr}
    kept = trained(data, [setting], keep=range(last[0], STEPS + 1)).kept
    rows = []
    for place in range(k + 2):
        total = torch.zeros(2, SEEDS, dtype=torch.float64)
        for start in last:
            w, end = kept[start], kept[start + k]
            w = w + (end - w) / alpha if place == k else kept[start + place] if place < k else end
            total += torch.stack([losses(w, data.train), losses(w, data.test)]) / cycles
        for seed, (train_loss, test_loss) in enumerate(total.T.tolist()):
            rows.append({"seed": seed, "place": place, "train_loss": train_loss, "test_loss": test_loss})
    return rows


def runs(data: Data) -> list[dict[str, Any]]:
    """All trainings of the quick profile: one row a setting, seed and evaluation, with the setting's place and name."""
    pulled = {"lookahead_k": 5, "lookahead_alpha": 0.5}
    bases = [("lr", {"lr": lr}) for lr in (0.03, LR, 0.3)] + [("momentum", {"momentum": beta}) for beta in (0.5, 0.97)]
    bases += [("adam", {"rule": "adam", "lr": lr}) for lr in (0.003, 0.03)]
    settings = [(group, "bare", base) for group, base in bases]
    settings += [(group, "Lookahead", {**base, **pulled}) for group, base in bases]
    others = ((5, 0.8), (10, 0.5), (10, 0.8))
    settings += [("k, alpha", "Lookahead", {"lookahead_k": k, "lookahead_alpha": a}) for k, a in others]
    many = trained(data, [setting for *_, setting in settings], evaluate_every=50)
    rows = []
    for row in many.rows:
        group, method, _ = settings[row["member"] // SEEDS]
        rows.append({"group": group, "method": method, **{name: row.get(name) for name in _COLUMNS}})
    return rows


def column(rows: Sequence[dict[str, Any]], name: str, **where: Any) -> list[float]:
    """One column of the rows that match, in their order."""
    return [row[name] for row in rows if all(row.get(key) == value for key, value in where.items())]


def spread(
    rows: Sequence[dict[str, Any]], method: str, groups: tuple[str, ...], name: str = "train_loss"
) -> list[float]:
    """For each seed: the largest less the smallest final value over the settings of these groups."""
    last = [row for row in rows if row["step"] == STEPS and row["method"] == method and row["group"] in groups]
    by_seed = [column(last, name, seed=seed) for seed in range(SEEDS)]
    return [max(values) - min(values) for values in by_seed]


# -- on CIFAR-10 -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Full:
    """The CIFAR-10 experiment, with the settings that the paper's authors tuned for ResNet-18.

    Attributes:
        label: net, data and budget in a few words, for the claims.
        data, train_size: name of the data set; training images.
        width, channels: of the ResNet-18; the paper's width is 64.
        steps, seeds: of each method; the paper has 200 epochs and three seeds.
    """

    label: str
    data: str
    train_size: int | None
    width: int
    channels: int
    steps: int
    seeds: int

    def model(self, seed: int) -> nn.Module:
        """The net of this experiment."""
        return models.resnet18(width=self.width, channels=self.channels, seed=seed)


FULL = Full("ResNet-18 of width 16, CIFAR-10, 10 epochs", "cifar10", None, 16, 3, 10 * 390, 2)
TOY = Full("ResNet-18 of width 4, digits", "digits", 200, 4, 1, 12, 2)
EVALUATIONS = 10


def settings(profile: str) -> Full:
    """Return the settings of the full profile, or of its toy."""
    return FULL if profile == "full" else TOY


def full_rows(nb: Notebook) -> list[dict[str, Any]]:
    """SGD (lr 0.05) and Lookahead over SGD (lr 0.1, k = 5, alpha = 0.8) with weight decay 1e-3 on a ResNet-18."""
    s = settings(nb.profile)

    def make(work: Work) -> dict[str, Any]:
        data = nb.uses(load_data(s.data, train_size=s.train_size))
        made = [work.do(name, partial(_curve, s, data, name, seed, nb), seed=seed)
                for seed in range(s.seeds) for name in ("sgd", "lookahead")]
        return {"rows": [row for piece in made for row in piece["rows"]]}

    return nb.recorded("cifar", make, of=s, rtol=5e-2)["rows"]


def _curve(s: Full, data: Data, name: str, seed: int, nb: Notebook) -> dict[str, Any]:
    model, lr = s.model(seed).to(nb.device), 0.05 if name == "sgd" else 0.1
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    optimizer = Lookahead(base, k=5, alpha=0.8) if name == "lookahead" else base
    history = train(model, data, optimizer, steps=s.steps, batch_size=128, seed=seed, device=nb.device,
                    schedule=lambda done: 0.2 ** sum(done >= share for share in (0.3, 0.6, 0.8)),
                    augment=shift_and_flip(4 if s.channels == 3 else 1, flip=s.channels == 3),
                    evaluate_every=max(1, s.steps // EVALUATIONS), bf16=nb.bf16, graphs=True)
    return {"rows": [{"rule": name, "seed": seed, **row} for row in history.rows]}
