"""Notebook 08: the weight γ of WSAM (Yue et al., KDD 2023) in trained nets; the closed forms are in wsam_theory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from sharpnb.curvature import HessianOperator, sharpness, top_eigenvalues
from sharpnb.lab import Notebook, models, t95
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.figures import COLOURS, MARKERS
from sharpnb.lab.pieces import Work
from sharpnb.lab.verdicts import paired
from studies import comparison
from studies.common import spread
from studies.comparison import Config, Method, Setting, Trials
from studies.trials import grid

# The paper's weights (section 5.1), and beyond.
PAPER_GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.92, 0.94, 0.96)
FORMS = {"decoupled": True, "coupled": False}


@dataclass(frozen=True)
class Study:
    """One profile: net, label noises, the seeds of judging and tuning, what is tried of each."""

    net: Setting
    noises: tuple[float, ...]
    seeds: int | range
    tuning: range
    lrs: tuple[float, ...] = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.25, 0.3, 0.4, 0.6)
    rhos: tuple[float, ...] = (0.002, 0.005, 0.01, 0.02, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 1.0)
    gammas: tuple[float, ...] = (0.0, 0.25, *PAPER_GAMMAS, 0.98)
    coupled: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    weight_decay: float = 0.0
    lambda_seeds: int = 5

    @property
    def told(self) -> dict[str, Any]:
        """What tuning depends on."""
        return {name: getattr(self, name)
                for name in ("net", "noises", "tuning", "lrs", "rhos", "gammas", "weight_decay")}


QUICK = Study(
    Setting("MLP 64-64-10, 300 digits", "digits", 300, 400, lambda seed: models.mlp((64, 64, 10), seed=seed),
            steps=600, batch_size=32),
    (0.2,), seeds=range(2000, 2020), tuning=range(100, 110),
)
# Cut to the budget. Before: ResNet-20 and ResNet-32, 45,000 images, 200 epochs, all of the paper's weights.
FULL = Study(
    Setting("ResNet-8 of width 8, 10,000 images of CIFAR-10, 10 epochs", "cifar10", 10_000, 2000,
            lambda seed: models.resnet(8, width=8, norm=False, seed=seed), steps=10 * 78, batch_size=128,
            augment=shift_and_flip(4, flip=True), bf16=True, together=64),
    (0.0, 0.2), seeds=5, tuning=range(100, 102), weight_decay=5e-4, lambda_seeds=2,
    gammas=(0.0, 0.05, 0.1, 0.25, 0.5, 0.7, 0.8, 0.88, 0.9, 0.92, 0.96))
TOY = replace(FULL, seeds=2, tuning=range(100, 102), lrs=(0.02, 0.05), gammas=(0.0, 0.5, 0.9), coupled=(0.5,),
              rhos=(0.05, 0.1), lambda_seeds=1,
              net=replace(FULL.net, label="ResNet-8, digits", data="digits", train_size=100, validation=100, steps=6,
                          batch_size=32, images=50, augment=shift_and_flip(1, flip=False),
                          model=lambda seed: models.resnet(8, width=2, channels=1, norm=False, seed=seed)))


def tune(study: Study, device: torch.device, work: Work) -> list[Config]:
    """Tune SGD's rate with right labels; then, for each label noise, SAM's radius at that rate, and γ at the radius."""
    sgd = Method({"rule": "sgd", "momentum": 0.9, "weight_decay": study.weight_decay}, grid(lr=study.lrs))
    kept = ("lr", "momentum", "weight_decay")
    noisy = {"SAM": Method({"rule": "sam"}, grid(rho=study.rhos), "SGD", kept),
             "decoupled": Method({"rule": "wsam"}, grid(gamma=study.gammas), "SAM", (*kept, "rho"))}
    rows = comparison.tune(study.net, {"SGD": sgd}, study.tuning, device, work)
    return rows + [row for noise in study.noises for row in comparison.tune(
        replace(study.net, noise=noise), noisy, study.tuning, device, work, before=rows)]


def with_noise(trials: Trials, noise: float) -> list[Mapping[str, Any]]:
    """Return the trials of SAM and WSAM with this share of wrong labels, and those of SGD."""
    return [row for row in trials if row["method"] == "SGD" or row["noise"] == noise]


def sweep(study: Study, trials: Trials, seeds: Sequence[int], nb: Notebook, work: Work) -> pd.DataFrame:
    """Train SAM at its tuned radius, and both forms of WSAM there with each γ, with the judging seeds.

    Return a row a noise, ``method`` (``"SAM"`` or the form), γ and seed, with ``lambda_max`` of the first seeds.
    """
    tables = []
    for noise in study.noises:
        s = replace(study.net, noise=noise)
        sam = comparison.best(with_noise(trials, noise), "SAM")["config"]
        weights = {"decoupled": study.gammas, "coupled": study.coupled}
        rivals = [("SAM", sam), *((form, sam | {"rule": "wsam", "decouple": FORMS[form], "gamma": gamma})
                                  for form, own in weights.items() for gamma in own)]
        images = comparison.splits(replace(s, validation=1), seeds)
        nb.uses(images[seeds[0]].data)
        configs = [{"method": name, "noise": noise, **own, "seed": seed} for name, own in rivals for seed in seeds]
        table, ends = comparison.run(s, configs, images, nb.device, work, "judged")
        chosen = [config["seed"] in seeds[: study.lambda_seeds] for config in configs]
        table["lambda_max"] = comparison.lambdas(s, table, ends, images, chosen, nb)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def inside_or_outside(
    table: pd.DataFrame, trials: Trials, noise: float, low: float = 0.8, high: float = 0.95,
) -> tuple[float, float, np.ndarray]:
    """Return the best γ inside [low, high], the best outside, and the outer's test error minus the inner's, by seed.

    Both are chosen by the held-out error of the tuning seeds; the errors are those of the judging seeds.
    """
    tried = [row for row in with_noise(trials, noise) if row["method"] == "decoupled"]
    parts = [[row for row in tried if (low <= row["own"]["gamma"] <= high) is side] for side in (True, False)]
    inner, outer = (comparison.best(part, "decoupled")["own"]["gamma"] for part in parts)
    own = table[(table["noise"] == noise) & (table["method"] == "decoupled")].set_index(["gamma", "seed"])["test_error"]
    return inner, outer, paired(own[inner].to_numpy(), own[outer].to_numpy(), comparison.GUESSING)


def sharpness_and_lambda(study: Study, nb: Notebook, radii: Sequence[float], seeds: int = 3) -> pd.DataFrame:
    r"""Train SGD and compare :math:`2\tilde L/\rho^2` with the largest eigenvalue, with and without the slope's part.

    Return a row a radius and seed: ``whole`` is :math:`2\tilde L/(\rho^2\lambda_1)` by projected ascent of 20 steps,
    ``curved`` the same of :math:`\tilde L-\rho\|\nabla L\|`, the part that is left at a stationary point.
    """
    s = study.net if nb.full else replace(study.net, dtype=torch.float64)

    def make() -> dict[str, Any]:
        images, rows, where = comparison.splits(s, range(seeds)), [], nb.device if nb.full else "cpu"
        sgd = {"rule": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": study.weight_decay}
        _, weights = comparison.run(s, [sgd | {"seed": seed} for seed in images], images, nb.device)
        for (seed, own), w in zip(images.items(), weights, strict=True):
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
    told = {"net": study.net, "radii": radii, "seeds": seeds}
    found = nb.recorded("sharpness", lambda work: work.do("sharpness", make), of=told)
    return pd.DataFrame(found["rows"])


_ROLES = {"decoupled": "wsam", "coupled": "sam"}


def draw_fig3(table: pd.DataFrame, study: Study) -> tuple[Any, pd.DataFrame]:
    """Draw error and λmax over γ, a row a noise, with 95 % intervals but of two seeds; return figure and data."""
    import matplotlib.pyplot as plt

    columns = ("test_error", "lambda_max")
    figure, axes = plt.subplots(len(study.noises), 2, squeeze=False, figsize=(10, 3.6 * len(study.noises)))
    drawn: list[tuple[Any, ...]] = []
    for row, noise in zip(axes, study.noises, strict=True):
        for ax, column in zip(row, columns, strict=True):
            drawn += _draw_over_gamma(ax, table[table["noise"] == noise], noise, column)
    for ax in axes[-1]:
        ax.set_xlabel("weight $\\gamma$ (grey: the paper's best range)")
    axes[0, 0].legend(fontsize=8, loc="upper left")
    return figure, pd.DataFrame(drawn, columns=["noise", "quantity", "form", "gamma", "mean", "half width"])


def _draw_over_gamma(ax: Any, part: pd.DataFrame, noise: float, column: str) -> list[tuple[Any, ...]]:
    drawn, rho = [], part["rho"].iloc[0]
    forms = part[part["method"].isin(FORMS)].dropna(subset=[column])
    for form, group in forms.groupby("method", sort=False):
        stats, role = spread(group.groupby("gamma")[column]), _ROLES[str(form)]
        half = t95(stats["count"]) * stats["sem"]
        ax.errorbar(stats.index, stats["mean"], stats["half"], fmt=MARKERS[role] + "-", ms=4, lw=1.2, capsize=2,
                    color=COLOURS[role], label=f"WSAM {form}")
        drawn += [(noise, column, form, *row) for row in zip(stats.index, stats["mean"], half, strict=True)]
    ax.axvspan(0.8, 0.95, color=COLOURS["grey"], alpha=0.13, lw=0)
    n = part.dropna(subset=[column])["seed"].nunique()
    if column == "test_error":
        sgd = forms[forms["gamma"] == 0.0][column].mean()
        ax.axhline(part[part["method"] == "SAM"][column].mean(), color=COLOURS["exact"], ls=":", lw=1.2,
                   label="SAM, same ρ")
        ax.axhline(sgd, color=COLOURS["sgd"], ls="--", lw=1.0, label="SGD (γ = 0)")
        low = forms.groupby(["method", "gamma"])[column].mean().min()
        ax.set(ylim=(low - 2, sgd + 8), ylabel="test error (%)")
    else:
        ax.set(yscale="log", ylabel="$\\lambda_{\\max}$ of the training loss")
    ax.set_title(f"{noise:.0%} wrong labels, ρ = {rho:g}, n = {n}", fontsize=10)
    return drawn
