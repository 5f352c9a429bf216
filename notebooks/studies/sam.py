"""Notebook 01: SAM's derivation, and the ablations of its appendix (Figs 4 to 7, Table 11), on rows."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sharpnb import rules
from sharpnb.lab import Notebook, models
from sharpnb.lab.augment import Augment, shift_and_flip
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.pieces import Work
from sharpnb.many.engine import Nets
from sharpnb.rules import Gradient, State
from studies.common import Training, spread
from studies.trials import SEEDS, best, grid, powers, trials

KINDS = ("2-norm", "max-norm", "random")
LIVE = ("2-norm", "second-order", "five steps", "max-norm", "random")  # SAM first
INNER = (1, 2, 3, 5)  # the paper's (Fig. 7, Table 11)


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """What is trained, measured each ``every`` steps, and over which radii.

    ``rhos`` has for each of :data:`KINDS` the radii of Fig. 6, in the quick profile also of the others; ``rho`` is that
    of what is not swept. Of ``noises``, shares of wrong labels, only none is in use.
    """

    rho: float
    rhos: dict[str, tuple[float, ...]]
    every: int
    noises: tuple[float, ...] = (0.0,)
    weight_decay: float = 0.0
    augment: Augment | None = None


TUNING = SEEDS
BASE = {"lr": (0.1, 0.2, 0.4, 0.8), "weight_decay": (0.0, 1e-3, 3e-3, 1e-2)}
QUICK = Settings(label="MLP 64-32-10, 300 digits", data="digits", train_size=300, steps=300, seeds=range(2000, 2020),
                 dtype=torch.float64, model=lambda seed: models.mlp((64, 32, 10), seed=seed), rho=0.1, every=50,
                 rhos={"2-norm": powers(-5, 0), "max-norm": powers(-10, -5), "random": powers(-1, 4),
                       "second-order": powers(-5, 0), "five steps": powers(-5, 0)})
# Cut to the budget. The paper's net and schedule: WRN-40-2, 200 epochs; lr and weight decay are those of its Table 6.
FULL = Settings(label="ResNet-8 of width 8 without BatchNorm, 10,000 images of CIFAR-10, 8 epochs", data="cifar10",
                train_size=10_000, model=lambda seed: models.resnet(8, width=8, norm=False, seed=seed), steps=8 * 39,
                seeds=2, rho=0.05, every=2 * 39, batch_size=256, weight_decay=5e-4,
                augment=shift_and_flip(4, flip=True),
                rhos={"2-norm": powers(-2, 0, 10), "max-norm": powers(-5, -3, 10), "random": powers(-1, 1, 10)})
TOY = Settings(label="CNN, digits", data="digits", train_size=128, model=lambda seed: models.cnn(4, seed=seed), steps=4,
               seeds=2, rho=0.05, rhos=dict.fromkeys(KINDS, (0.01, 0.1)), every=2, lr=0.02, weight_decay=5e-4,
               augment=shift_and_flip(1, flip=False))
SETTINGS = {"quick": QUICK, "full": FULL, "toy": TOY}


def judging(s: Settings) -> range:
    """Return the judging seeds, others than those of the radii."""
    return s.seeds if isinstance(s.seeds, range) else range(1000, 1000 + s.seeds)


def with_best_base(nb: Notebook, s: Settings) -> Settings:
    """Return settings with the rate and decay of :data:`BASE` at which SGD is best on its seeds, a record."""
    def make(_: Work) -> dict[str, Any]:
        rows = trials([{"rule": "sgd", "momentum": s.momentum, **own} for own in grid(**BASE)],
                      lambda seed: nb.uses(s.images(seed)), s.model, s.seeds, steps=s.steps, batch_size=s.batch_size,
                      dtype=s.dtype)
        return {"rows": [{name: row[name] for name in (*BASE, "seed", "train_error", "test_error")} for row in rows]}

    rows = pd.DataFrame(nb.recorded("base", make, of={"settings": s, **BASE}, kept=True, rtol=2e-2, atol=0.5)["rows"])
    nb.say(rows.groupby(list(BASE))[["train_error", "test_error"]].mean().round(2).to_string())
    return replace(s, **best(rows, *BASE))


def nets(s: Settings, nb: Notebook, seeds: Sequence[int], copies: int = 1) -> Nets:
    """Return ``copies`` nets of each seed, the seed varying fastest."""
    sets = [nb.uses(s.images(seed)) for seed in seeds]
    return Nets(list(seeds) * copies, sets * copies, s.model, batch_size=s.batch_size, device=nb.device,
                dtype=s.dtype, augment=s.augment)


def rule_of(kind: str) -> Callable[..., Any]:
    """Return the update rule of a kind of perturbation, its radius and SGD's hyperparameters still to be given."""
    rules_of = {"max-norm": {"p": math.inf}, "second-order": {"second_order": True}, "five steps": {"inner_steps": 5}}
    if kind == "random":
        return partial(random_perturbation, generator=torch.Generator().manual_seed(0))
    return partial(rules.sam, **rules_of.get(kind, {}))


def perturbation(w: Tensor, grad: Gradient, rho: rules.Column, inner_steps: int = 1) -> Tensor:
    """Return the perturbation that :func:`sharpnb.rules.sam` uses: where it asks for its last gradient, minus w."""
    asked: list[Tensor] = []

    def listening(at: Tensor) -> Tensor:
        asked.append(at)
        return grad(at)

    rules.sam(w, listening, rho=rho, inner_steps=inner_steps, lr=0.0)
    return asked[-1] - w


def random_perturbation(
    w: Tensor, grad: Gradient, state: State = None, *, rho: rules.Column, generator: torch.Generator, **hyper: Any
) -> tuple[Tensor, State]:
    r"""The paper's control (Appendix C.5): :math:`\epsilon=\rho z/\|z\|_2` with z standard normal, for the ascent."""
    z = torch.randn(w.shape, generator=generator, dtype=w.dtype).to(w.device)
    return rules.sgd(w, grad(w + rules.sam_perturbation(z, rho)), state, **hyper)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine between each pair of rows, (K, n), (K, n) -> (K,)."""
    return nn.functional.cosine_similarity(a, b, dim=1)


def rises(nets: Nets, rho: rules.Column) -> dict[str, Tensor]:
    """Return by how much the training error of a batch rises, in points, after each number of :data:`INNER` steps."""
    found: dict[str, list[Tensor]] = {f"rise {count}": [] for count in INNER}
    for batch in nets.in_order():
        grad, before = nets.gradient(batch), nets.error(nets.w, batch)
        for count in INNER:
            there = nets.w + perturbation(nets.w, grad, rho, count)
            found[f"rise {count}"].append(nets.error(there, batch) - before)
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


@dataclass(frozen=True)
class Bound:
    r"""The complexity term of the theorem (Appendix A), with every constant, for a loss in [0, 1].

    .. math::
        L_D(w)\le\max_{\|\epsilon\|\le\rho}L_S(w+\epsilon)+\sqrt{\frac{k\log\!\Big(1+\frac{\|w\|^2}{\rho^2}
        \big(1+\sqrt{\tfrac{\log n}{k}}\big)^2\Big)+4\log\frac n\delta+8\log(6n+3k)}{n-1}}

    Attributes:
        k, norm: number of weights and their 2-norm.
        n: number of training images.
        rho: radius.
        delta: probability with which the bound may fail (default 0.05: chosen by us).
    """

    k: int
    n: int
    rho: float
    norm: float
    delta: float = 0.05

    @property
    def sigma(self) -> float:
        r"""The σ for which a Gaussian stays in the ball: :math:`\rho=\sigma\,(\sqrt k+\sqrt{\log n})`."""
        return self.rho / (math.sqrt(self.k) + math.sqrt(math.log(self.n)))

    @property
    def term(self) -> float:
        """The square root above."""
        spread = 1 + (self.norm / self.rho) ** 2 * (1 + math.sqrt(math.log(self.n) / self.k)) ** 2
        rest = 4 * math.log(self.n / self.delta) + 8 * math.log(6 * self.n + 3 * self.k)
        return math.sqrt((self.k * math.log(spread) + rest) / (self.n - 1))

    def kl(self, prior_variance: float) -> float:
        r"""KL divergence of :math:`N(w,\sigma^2I)` from :math:`N(0,\sigma_P^2I)`."""
        v = self.sigma**2
        return 0.5 * ((self.k * v + self.norm**2) / prior_variance - self.k + self.k * math.log(prior_variance / v))

    def declared(self) -> tuple[int, float]:
        r"""Return the j, and its variance, of the grid :math:`c\,e^{(1-j)/k}` next above the best prior variance."""
        best, c = self.sigma**2 + self.norm**2 / self.k, self.rho**2 * (1 + math.exp(4 * self.n / self.k))
        j = math.floor(1 + self.k * math.log(c / best))
        return j, c * math.exp((1 - j) / self.k)


def best_radius(kinds: pd.DataFrame, kind: str, otherwise: float = 0.0) -> float:
    """Return the radius of least mean error of a kind on the seeds of the radii, or another where it was not swept."""
    own = kinds[kinds["kind"] == kind]
    return float(best(own, "rho")["rho"]) if len(own) else otherwise


def by_seed(table: pd.DataFrame, column: str, **where: Any) -> pd.Series:
    """Return the mean of a column, seed by seed, of the rows with these entries."""
    rows = np.logical_and.reduce([table[key] == value for key, value in where.items()])
    return table[rows].groupby("seed")[column].mean()


def draw_kinds(ax: Any, table: pd.DataFrame, judged: pd.DataFrame | None = None) -> None:
    """Draw Fig. 6: test error over the radius, two seeds as dots; large marks are ends of ``judged`` seeds, 95 %."""
    few = table["seed"].nunique() < 3
    for kind, (role, style) in {"2-norm": ("sam", "s-"), "max-norm": ("adam", "v--"), "random": ("sgd", "o-.")}.items():
        own = table[table["kind"] == kind]
        part = spread(own.groupby("rho")["test_error"])
        ax.plot(part.index, part["mean"], style, color=COLOURS[role], ms=4, label=kind)
        if few:
            ax.plot(own["rho"], own["test_error"], ".", color=COLOURS[role], alpha=0.6)
        if judged is not None:
            end = spread(judged[judged["kind"] == kind].groupby("rho")["test_error"])
            ax.errorbar(end.index, end["mean"], end["half"], fmt=style[0], ms=9, mfc="none", capsize=4,
                        color=COLOURS[role])
    for found, line, text in ((table, ":", ""), (judged, "--", ", judging seeds")):
        if found is not None:
            none = found.loc[found["kind"] == "none", "test_error"]
            ax.axhline(none.mean(), color="0.4", ls=line, lw=1, label=f"SGD{text}")
    ax.set(xscale="log", xlabel="radius $\\rho$", ylabel="test error (%)")
    told = f"mean, dots: the {table['seed'].nunique()} seeds" if few else "small: tuning; large: judging, 95 %"
    ax.legend(fontsize=8, title=told, title_fontsize=8, loc="upper left")


def draw_runs(axes: Any, runs: pd.DataFrame) -> None:
    """Draw Fig. 4 (errors), Fig. 5 (the cosine) and Fig. 7 (the rise after some ascent steps), with bands of 95 %."""
    def band(ax: Any, kind: str, column: str, **style: Any) -> None:
        found = spread(runs[(runs["kind"] == kind) & (runs["step"] > 0)].groupby("step")[column])
        ax.plot(found.index, found["mean"], ms=4, **style)
        ax.fill_between(found.index, found["mean"] - found["half"], found["mean"] + found["half"],
                        color=style["color"], alpha=0.15, lw=0)

    for kind, order, colour, marker in (("2-norm", "first", COLOURS["sam"], "s"),
                                        ("second-order", "second", COLOURS["adam"], "v")):
        band(axes[0], kind, "test_error", color=colour, marker=marker, label=f"{order}-order, test error at $w$")
        band(axes[0], kind, "perturbed", color=colour, ls=":",
             label=f"{order}-order, train error at $w+\\hat\\epsilon$")
        band(axes[1], kind, "cosine", color=colour, marker=marker, label=f"on the {order}-order path")
    for count, shade, marker in zip(INNER, (0.0, 0.3, 0.55, 0.8), "osv^", strict=True):
        band(axes[2], "2-norm", f"rise {count}", color=plt.get_cmap("cividis")(shade), marker=marker,
             label=f"{count} ascent step{'s' * (count > 1)}")
    for ax, (title, label) in zip(axes, {
            "Fig. 4": "error (%)", "Fig. 5": "cosine of the two updates", "Fig. 7": "rise of the batch error (points)",
    }.items(), strict=True):
        ax.set(title=title, ylabel=label, xlabel="step")
        ax.legend(fontsize=7)
