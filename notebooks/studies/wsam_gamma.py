"""Notebook 08: the weight γ of WSAM (Yue et al., KDD 2023) in trained nets; the closed forms are in wsam_theory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpnb.curvature import HessianOperator, sharpness, top_eigenvalues
from sharpnb.lab import models
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.claims import t95
from sharpnb.lab.figures import COLOURS, MARKERS
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from studies import comparison
from studies.comparison import Setting, Split

# The paper's search ranges (section 5.1): rho on SAM, then gamma at that rho.
PAPER_RHOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
PAPER_GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.92, 0.94, 0.96)
GAMMAS = (0.0, 0.25, *PAPER_GAMMAS, 0.98)
# SAM's further radii in the comparison at equal budgets: as many as WSAM's weights in the paper's range.
MORE_RHOS = (0.03, 0.07, 0.12, 0.14, 0.16, 0.18, 0.23, 0.26, 0.3, 0.34, 0.38, 0.44)
FORMS = {"decoupled": True, "coupled": False}


@dataclass(frozen=True)
class Study:
    """The nets, label noises and seeds of one profile, SGD's own settings, and WSAM's ``weights`` against SAM."""

    nets: tuple[Setting, ...]
    noises: tuple[float, ...]
    seeds: int
    lr: float
    gammas: tuple[float, ...] = GAMMAS
    rhos: tuple[float, ...] = PAPER_RHOS
    more: tuple[float, ...] = MORE_RHOS
    weight_decay: float = 0.0
    lambda_seeds: int = 3
    weights: tuple[float, ...] = PAPER_GAMMAS


def _mlp(*sizes: int) -> Setting:
    return Setting(f"MLP {'-'.join(map(str, sizes))}", "digits", 300, 400, lambda seed: models.mlp(sizes, seed=seed),
                   steps=240, batch_size=32)


def _resnet(depth: int) -> Setting:
    return Setting(f"ResNet-{depth} of width 8, 10,000 images of CIFAR-10, 10 epochs", "cifar10", 10_000, 2000,
                   lambda seed: models.resnet(depth, width=8, norm=False, seed=seed), steps=10 * 78, batch_size=128,
                   dtype=torch.float32, augment=shift_and_flip(4, flip=True), images=1000, bf16=True, together=64)


# lr = 0.1, momentum 0.9 and 300 images are taken over from the survey made before this notebook; nothing was tuned but
# what the notebook tunes in the open.
QUICK = Study((_mlp(64, 24, 10), _mlp(64, 24, 24, 10)), (0.0, 0.2), seeds=5, lr=0.1)
# Cut to the budget. Before: ResNet-20 and ResNet-32, 45,000 images, 200 epochs, 5 seeds, all of the paper's radii and
# weights. SAM has as many further radii as WSAM has weights in the paper's range.
# The grids began at ρ = 0.03 and γ = 0.5. Nets that underfit want the weakest perturbation that they are offered, and
# the comparison said who was offered it (data/withdrawn.toml). Both now go on to perturbations that are as good as
# none, and SAM beyond where it collapses, so that the best point of each can be inside; as many radii as weights.
FULL = Study((_resnet(8),), (0.0, 0.2), seeds=3, lr=0.1, weight_decay=5e-4, lambda_seeds=2,
             rhos=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
             more=(0.001, 0.0035, 0.007, 0.014, 0.03, 0.07, 0.14, 0.26, 0.36, 0.7),
             gammas=(0.0, 0.05, 0.1, 0.25, 0.5, 0.7, 0.8, 0.88, 0.9, 0.92, 0.96),
             weights=(0.05, 0.1, 0.25, 0.5, 0.7, 0.8, 0.88, 0.9, 0.92, 0.96))
_TOY = replace(_resnet(8), label="ResNet-8, digits", data="digits", train_size=100, validation=100, steps=6,
               batch_size=32, images=50, augment=shift_and_flip(1, flip=False),
               model=lambda seed: models.resnet(8, width=2, channels=1, norm=False, seed=seed))
TOY = replace(FULL, nets=(_TOY, replace(_TOY, label="ResNet-8 again")), seeds=2, lr=0.02, gammas=(0.0, 0.5, 0.9),
              weights=(0.5, 0.9), rhos=(0.05, 0.1), more=(0.2, 0.3), lambda_seeds=1)


def configs(study: Study, method: str, trials: Iterable[tuple[float, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the settings of a method, one a trial and seed, on SGD with momentum; a trial is its name and its own."""
    base = {"lr": study.lr, "momentum": 0.9, "weight_decay": study.weight_decay}
    return [{"method": method, "trial": value, **base, **own, "seed": seed}
            for value, own in trials for seed in range(study.seeds)]


def lambdas(
    study: Study, s: Setting, nb: Notebook, work: Work, configs: Sequence[Mapping[str, Any]], images: Sequence[Split],
    weights: Tensor,
) -> list[float]:
    """Return λmax of the nets of the first few seeds, NaN of the others: a piece of the full profile."""
    where = "cpu" if nb.profile == "quick" else nb.device

    def make() -> dict[str, Any]:
        return {"values": [comparison.lambda_max(s, w, images[c["seed"]].data, device=where)
                           if c["seed"] < study.lambda_seeds else float("nan")
                           for w, c in zip(weights, configs, strict=True)]}

    mark = hashlib.sha256(weights.numpy().tobytes()).hexdigest()[:16]
    return work.do("lambda_max", make, noise=s.noise, weights=mark)["values"]


COLUMNS = ["net", "noise", "method", "trial", "rho", "seed", "val_error", "test_error", "train_error", "train_loss",
           "lambda_max"]


def rivals(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return the first net's trials as rivals of one budget: SAM's further ρ against WSAM's γ.

    "SAM, ρ tuned" has the paper's radii and as many more as WSAM has weights; each WSAM has the study's ``weights``.
    """
    first = table[table["net"] == study.nets[0].label]
    sam = first[first["method"] == "SAM"]
    parts = [
        first[(first["method"] == "decoupled") & (first["trial"] == 0.0)].assign(method="SGD"),
        sam[sam["trial"].isin(study.rhos)].assign(method="SAM, paper's ρ"),
        sam.assign(method="SAM, ρ tuned"),
        *(first[(first["method"] == form) & first["trial"].isin(study.weights)].assign(method=f"WSAM {form}")
          for form in FORMS),
    ]
    return pd.concat(parts)


def inside_or_outside(part: pd.DataFrame, low: float = 0.8, high: float = 0.95) -> np.ndarray:
    """Return, seed by seed, the test error of the best weight outside [low, high] minus that of the best inside.

    Each of the two is the one of lowest mean validation error; ``part`` has one net, noise and form.
    """
    inside = part["trial"].between(low, high)
    named = part.assign(method=np.where(inside, "inside", "outside"))
    return comparison.paired(comparison.chosen(named), "outside", "inside")


def worst_inside(part: pd.DataFrame, low: float = 0.8, high: float = 0.95) -> np.ndarray:
    """Return, seed by seed, the test error at γ = 0 minus that of the worst weight in [low, high] (by its mean)."""
    errors = part.pivot(index="trial", columns="seed", values="test_error")
    candidates = errors[(errors.index >= low) & (errors.index <= high)]
    return (errors.loc[0.0] - candidates.loc[candidates.mean(axis=1).round(9).idxmax()]).to_numpy()


def sharpness_and_lambda(study: Study, nb: Notebook, radii: Sequence[float], seeds: int = 3) -> pd.DataFrame:
    r"""Train SGD and compare :math:`2\tilde L/\rho^2` with the largest eigenvalue, with and without the slope's part.

    Returns:
        A row a radius and seed: ``whole`` is :math:`2\tilde L/(\rho^2\lambda_1)` by projected ascent of 20 steps,
        ``curved`` the same of :math:`\tilde L-\rho\|\nabla L\|`, the part that is left at a stationary point.
    """
    s, seeds = study.nets[0], min(seeds, study.seeds)

    def make() -> dict[str, Any]:
        images, rows, where = comparison.splits(s, seeds), [], nb.device if nb.full else "cpu"
        plain = [c for c in configs(study, "SGD", [(0.0, {"rule": "sgd"})]) if c["seed"] < seeds]
        _, weights = comparison.run(s, plain, images, nb.device)
        for seed, (w, own) in enumerate(zip(weights, images, strict=True)):
            net, data = comparison.net_at(s, w, where), tuple(part[: s.images].to(where) for part in own.data.train)
            op = HessianOperator(net, F.cross_entropy, data)
            top, slope_at_w = float(top_eigenvalues(op, 1, tol=1e-4).values[0]), float(op.gradient().norm())
            for rho in radii:
                rise = sharpness(net, F.cross_entropy, data, rho, steps=20).value
                rows.append({"rho": rho, "seed": seed, "lambda_1": top, "whole": 2 * rise / (rho**2 * top),
                             "curved": 2 * (rise - rho * slope_at_w) / (rho**2 * top)})
        return {"rows": rows}

    if not nb.full:
        return pd.DataFrame(make()["rows"])
    told = {"study": study, "radii": radii, "seeds": seeds}
    found = nb.recorded("sharpness", lambda work: work.do("sharpness", make), of=told)
    return pd.DataFrame(found["rows"])


_ROLES = {"decoupled": "wsam", "coupled": "sam"}


def tuned_radius(table: pd.DataFrame) -> pd.Series:
    """Return the radius that SAM's tuning left, by net and noise."""
    return table[table["method"] == "decoupled"].groupby(["net", "noise"], sort=False)["rho"].first()


def draw_fig3(table: pd.DataFrame, study: Study) -> tuple[Any, pd.DataFrame]:
    """Draw error over γ for each net, and λmax for the first; a row a noise. Return the figure and its numbers.

    Bars are 95 % intervals; means of two seeds have none.
    """
    import matplotlib.pyplot as plt

    names = [net.label for net in study.nets]
    panels = [*((name, "test_error") for name in names), (names[0], "lambda_max")]
    figure, axes = plt.subplots(len(study.noises), len(panels), squeeze=False, sharex=True,
                                figsize=(4 * len(panels), 3.1 * len(study.noises)))
    drawn: list[tuple[Any, ...]] = []
    for row, noise in zip(axes, study.noises, strict=True):
        for ax, (name, column) in zip(row, panels, strict=True):
            part = table[(table["net"] == name) & (table["noise"] == noise)]
            drawn += _draw_over_gamma(ax, part, name, noise, column)
    for ax in axes[-1]:
        ax.set_xlabel("weight $\\gamma$ (grey: the paper's best range)")
    axes[0, 0].legend(fontsize=7, loc="upper left")
    return figure, pd.DataFrame(
        drawn, columns=["net", "noise", "quantity", "form", "gamma", "mean", "half width"])


def _draw_over_gamma(ax: Any, part: pd.DataFrame, name: str, noise: float, column: str) -> list[tuple[Any, ...]]:
    drawn, rho = [], tuned_radius(part).iloc[0]
    forms = part[part["method"].isin(FORMS)].dropna(subset=[column])
    for form, group in forms.groupby("method", sort=False):
        stats = group.groupby("trial")[column].agg(["mean", "sem", "count"])
        half = t95(stats["count"]) * stats["sem"]
        role = _ROLES[str(form)]
        ax.errorbar(stats.index, stats["mean"], half.where(stats["count"] > 2), fmt=MARKERS[role] + "-", ms=4, lw=1.2,
                    capsize=2, color=COLOURS[role], label=f"WSAM {form}, n = {int(stats['count'].max())}")
        drawn += [(name, noise, column, form, *row) for row in zip(stats.index, stats["mean"], half, strict=True)]
    ax.axvspan(0.8, 0.95, color=COLOURS["grey"], alpha=0.13, lw=0)
    if column == "test_error":
        sam = part[(part["method"] == "SAM") & (part["trial"] == rho)]
        ax.axhline(sam["test_error"].mean(), color=COLOURS["exact"], ls=":", lw=1.2, label="SAM, same ρ")
        low = forms.groupby(["method", "trial"])[column].mean().min()
        ax.set(ylim=(low - 1.5, low + 8), ylabel="test error (%)")
    else:
        ax.set(yscale="log", ylabel="$\\lambda_{\\max}$ of the training loss")
    ax.set_title(f"{name}, {noise:.0%} wrong labels, ρ = {rho:g}", fontsize=9)
    return drawn
