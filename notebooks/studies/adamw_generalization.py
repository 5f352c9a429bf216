r"""Notebook 12: Adam + L2 against AdamW at equal training loss (Loshchilov & Hutter, ICLR 2019, Fig. 3, SuppFig. 4)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from sharpnb.lab import Notebook, models
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.figures import COLOURS, MARKERS
from studies.decay_runs import TUNING, Rows, Tuned, World, band, configs, run, tuned
from studies.trials import powers

ROLES = {"Adam + L2": "adam", "AdamW": "adamw", "SGD + L2": "sgd"}


@dataclass(frozen=True)
class Settings:
    """One comparison: Adam over coefficients ``l2``, AdamW over normalised decays, SGD with momentum beside them.

    Updates are under one cosine, evaluated each ``every``; rates are one or several; a number of judging ``seeds``
    stands for the first ones. The paper has twelve coefficients and seven decays.
    """

    world: World
    steps: int
    every: int
    lr: float | tuple[float, ...]
    lr_sgd: float | tuple[float, ...]
    l2: tuple[float, ...]
    lambda_norm: tuple[float, ...]
    l2_sgd: tuple[float, ...]
    seeds: int | range


def _digits(scale: float) -> World:
    return World(f"MLP 64-24-10, digits{', start x8' if scale > 1 else ''}", "digits", 500,
                 lambda seed: models.mlp((64, 24, 10), seed=seed, scale=scale), batch_size=50, dtype=torch.float64)


_SIGNALS = World("MLP 40-100-100-10, 2,000 signals of MNIST-1D", "mnist1d", 2000,
                 lambda seed: models.mlp((40, 100, 100, 10), seed=seed), batch_size=50, dtype=torch.float64)
_MAIN = Settings(_SIGNALS, steps=1500, every=300, lr=powers(-8, -5), lr_sgd=(0.05, 0.1, 0.2, 0.4),
                 l2=(0.0, *powers(-11, -7)), lambda_norm=(0.0, *powers(-5, -1)), l2_sgd=(0.0, *powers(-11, -7)),
                 seeds=range(2000, 2020))
_SECOND = Settings(_digits(1.0), steps=400, every=80, lr=powers(-6, -2), lr_sgd=(0.1, 0.2, 0.4, 0.8, 1.6),
                   l2=(0.0, *powers(-12, -6)), lambda_norm=(0.0, *powers(-5, 1)), l2_sgd=(0.0, *powers(-11, -5)),
                   seeds=range(2000, 2020))
# The paper: 26 2x96d Shake-Shake, 1800 epochs, twelve coefficients and seven decays.
_CIFAR = Settings(World("ResNet-8, CIFAR-10, 8 epochs", "cifar10", None, lambda seed: models.resnet(8, seed=seed),
                        batch_size=128, augment=shift_and_flip(4, flip=True), many=False),
                  steps=8 * 390, every=4 * 390, lr=1e-3, lr_sgd=0.05, l2=(0.0, 1e-4, 1e-3),
                  lambda_norm=(0.0, 0.025, 0.1), l2_sgd=(5e-4,), seeds=2)
_TOY = Settings(World("ResNet-8, digits", "digits", 128,
                      lambda seed: models.resnet(8, width=4, channels=1, seed=seed),
                      batch_size=32, augment=shift_and_flip(1, flip=False), many=False),
                steps=8, every=4, lr=1e-2, lr_sgd=0.05, l2=(0.0, 1e-3), lambda_norm=(0.0, 0.1), l2_sgd=(5e-4,), seeds=2)
REGIMES = {
    "quick": {"MNIST-1D": _MAIN, "digits": _SECOND, "large start": replace(_SECOND, world=_digits(8.0))},
    "full": {"CIFAR-10": _CIFAR},
    "toy": {"toy": _TOY},
}


def grid(r: Settings, seeds: Any) -> list[dict[str, Any]]:
    """Return each method at each of its rates, coefficients and seeds: equally many trials in the quick profile."""
    return configs([("Adam + L2", {"rule": "adam"}, r.lr, "weight_decay", r.l2),
                    ("AdamW", {"rule": "adamw"}, r.lr, "lambda_norm", r.lambda_norm),
                    ("SGD + L2", {"rule": "sgd", "momentum": 0.9}, r.lr_sgd, "weight_decay", r.l2_sgd)], seeds)


def tried(name: str, r: Settings, nb: Notebook) -> Rows:
    """Return the rows of all trials: a committed record of tuning seeds, in the full profile the whole experiment."""
    if nb.full:
        return nb.recorded(name.replace(" ", "_"), lambda work: {
            "rows": run(r.world, nb, grid(r, nb.seeds(r.seeds)), r.steps, r.every, work, "seed")}, of=r)["rows"]
    return nb.recorded(f"tuning_{name.replace(' ', '_')}", lambda work: {
        "rows": run(replace(r.world, dtype=torch.float32), nb, grid(r, TUNING), r.steps, 0, work, "tuning", True)},
        of={"tuning": r, "seeds": TUNING}, kept=True)["rows"]


def at_best(rows: Rows, found: dict[str, Tuned]) -> Rows:
    """Return the rows of each method's chosen setting."""
    return [row for row in rows if all(row.get(k) == x for k, x in found[row["method"]].setting.items())]


def at_tuned_rate(rows: Rows) -> pd.DataFrame:
    """Return all trials' finished nets at each method's tuned rate, with ``decay``, the coefficient of its kind."""
    table, rates = pd.DataFrame(rows), {method: t.setting["lr"] for method, t in tuned(rows).items()}
    table = table[(table["step"] == table["step"].max()) & (table["lr"] == table["method"].map(rates))]
    return table.assign(decay=table["lambda_norm"].fillna(table["weight_decay"]))


def at_equal_loss(final: pd.DataFrame, points: int = 50) -> list[float]:
    """Return, for each seed, the test error of Adam + L2 minus that of AdamW at equal training loss, on average.

    Each method's finished nets, one a coefficient, are points (training loss, test error), joined by straight lines
    over the logarithm of the loss. They are compared from the larger of both lowest losses to the larger of the two
    losses at which a method's mean error is lowest, beyond which both are regularised too much; NaN in an empty range.
    """
    found = []
    best = {m: own.groupby("decay")["test_error"].mean().idxmin() for m, own in final.groupby("method")}
    for _, own in final.groupby("seed"):
        parts: Any = {m: own[own["method"] == m].sort_values("train_loss") for m in ("Adam + L2", "AdamW")}
        low = max(part["train_loss"].min() for part in parts.values())
        high = max(part.loc[part["decay"] == best[m], "train_loss"].item() for m, part in parts.items())
        high = min(high, *(part["train_loss"].max() for part in parts.values()))
        grid = np.linspace(np.log(low), np.log(high), points) if high > low else np.full(points, np.nan)
        adam, adamw = (np.interp(grid, np.log(p["train_loss"]), p["test_error"]) for p in parts.values())
        found.append(float((adam - adamw).mean()))
    return found


def draw_panels(axes: Any, judged: Rows, final: pd.DataFrame) -> None:
    """Draw Fig. 3 on (2, 2) axes: curves of the judged nets above; below, all decays over decay and training loss."""
    table: Any = pd.DataFrame(judged)
    for method, role in ROLES.items():
        look = {"color": COLOURS[role], "marker": MARKERS[role], "ms": 4}
        curve = table[table["method"] == method]
        for ax, column in zip(axes[0], ("train_loss", "test_error"), strict=True):
            band(ax, curve.pivot(index="step", columns="seed", values=column), method, look)
        own: Any = final[final["method"] == method]
        band(axes[1, 0], own.pivot(index="decay", columns="seed", values="test_error"), method, look)
        means = own.groupby("decay")[["train_loss", "test_error"]].mean()
        axes[1, 1].plot(means["train_loss"], means["test_error"], lw=1, label=method, **look)
        axes[1, 1].scatter(own["train_loss"], own["test_error"], s=5, color=COLOURS[role], alpha=0.35, lw=0)
    axes[1, 0].set_xscale("symlog", linthresh=2.0**-13, base=2)
    axes[1, 0].set_xticks([0, 2.0**-12, 2.0**-9, 2.0**-6, 2.0**-3, 1.0])
    axes[1, 1].set_xscale("log")
    lowest = final.groupby(["method", "decay"])["test_error"].mean().min()
    for ax, x, y in zip(axes.flat, ("update $t$", "update $t$", "$\\lambda'$, or $\\lambda_{norm}$ for AdamW",
                                    "final training loss (nats)"),
                        ("training loss (nats)", "test error (%)", *["final test error (%)"] * 2), strict=True):
        ax.set(xlabel=x, ylabel=y)
    for ax in axes.flat[1:]:
        ax.set_ylim(0.8 * lowest, 1.7 * lowest)  # what is regularised far too much leaves the picture
    axes[0, 0].set_yscale("log")
    for ax, seeds, what in ((axes[0, 0], table["seed"].nunique(), "best setting"),
                            (axes[1, 0], final["seed"].nunique(), "best rate")):
        spread = f"95 %, n = {seeds}" if seeds > 2 else f"dots: the {seeds} seeds"
        ax.legend(title=f"{what} of each; mean, {spread}", fontsize=8, title_fontsize=8)
