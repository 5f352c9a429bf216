"""Notebook 04: m-sharpness, to train with (SAM's Fig. 3 middle) and to predict the generalisation gap by (right)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sharpnb import rules
from sharpnb.curvature import kendall_tau
from sharpnb.lab import models
from sharpnb.lab.augment import Augment, shift_and_flip
from sharpnb.lab.claims import t95
from sharpnb.lab.data import Data, load_data, with_label_noise
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work, even
from sharpnb.many.engine import Nets, losses
from sharpnb.many.train import train_many

Row = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What is trained.

    Attributes:
        label: net and data in a few words, for the claims.
        data, train_size: name of the data set; training images, drawn by each seed where the set is split by us.
        model: (width, seed) -> net.
        width: of the net that is trained with m-sharpness.
        steps, lr, momentum, batch_size: of SGD, and of SAM's base.
        noises: shares of wrong training labels.
        rhos: for each m, images that share a perturbation, its radii; the last m is the batch.
        seeds: number of seeds.
        family: values of each hyperparameter in the family of nets whose gap is predicted (with SGD).
        measured: the m's of the measure, at radius ``rho``.
        rho: radius of the measure (default 0.05: SAM's).
        dtype, augment, chunk, bf16: as elsewhere.
    """

    label: str
    data: str
    train_size: int | None
    model: Callable[[int, int], nn.Module]
    width: int
    steps: int
    batch_size: int
    noises: tuple[float, ...]
    rhos: dict[int, tuple[float, ...]]
    seeds: int
    family: dict[str, tuple[float, ...]]
    measured: tuple[int, ...]
    rho: float = 0.05
    lr: float = 0.1
    momentum: float = 0.9
    dtype: torch.dtype = torch.float32
    augment: Augment | None = None
    chunk: int = 32
    bf16: bool = False


# Images, batch and learning rate are taken over from a survey made before this notebook (480 steps). A trial with a
# third of its steps on a narrower net did not come to memorise wrong labels, and SAM had nothing to gain. Each m has
# radii up to its collapse, which comes the sooner the smaller m is.
QUICK = Settings("MLP, digits", "digits", 300, lambda width, seed: models.mlp((64, width, 10), seed=seed), width=24,
                 steps=240, batch_size=64, noises=(0.0, 0.4), seeds=4,
                 rhos={1: (0.05, 0.1), 4: (0.05, 0.1, 0.2), 16: (0.05, 0.1, 0.2, 0.4), 64: (0.05, 0.1, 0.2, 0.4)},
                 family={"width": (8, 16, 48), "batch_size": (16, 64), "lr": (0.03, 0.1), "weight_decay": (0.0, 3e-3)},
                 measured=(1, 4, 16, 64, 256), dtype=torch.float64)
# Cut to the budget. Before: all images, 100 epochs, m = 4 and widths of 32 too, 3 seeds.
FULL = Settings("ResNet-8, 10,000 images of CIFAR-10, 15 epochs", "cifar10", 10_000,
                lambda width, seed: models.resnet(8, width=width, seed=seed), width=16, steps=15 * 39, batch_size=256,
                noises=(0.0,), rhos=dict.fromkeys((16, 64, 256), (0.02, 0.05, 0.1)), seeds=2,
                family={"width": (8, 16), "batch_size": (64, 256), "lr": (0.03, 0.1), "weight_decay": (0.0, 5e-4)},
                measured=(16, 64, 256), augment=shift_and_flip(4, flip=True), chunk=16, bf16=True)
TOY = Settings("CNN, digits", "digits", 64, lambda width, seed: models.cnn(width, seed=seed), width=4, steps=3,
               batch_size=16, noises=(0.0,), rhos={4: (0.05,), 16: (0.05,)}, seeds=2,
               family={"width": (2, 4), "batch_size": (16,), "lr": (0.02, 0.05), "weight_decay": (0.0, 1e-3)},
               measured=(4, 16))


def settings(profile: str) -> Settings:
    """Return the settings of a profile."""
    return {"quick": QUICK, "full": FULL, "toy": TOY}[profile]


@cache
def split(name: str, size: int | None, seed: int, dtype: torch.dtype, noise: float = 0.0) -> Data:
    """Load the data of a seed, with a share of wrong training labels."""
    data = load_data(name, train_size=size, seed=seed if name == "digits" else 0, dtype=dtype)
    return with_label_noise(data, noise, seed)


def trained(s: Settings, nb: Notebook, work: Work | None = None) -> list[Row]:
    """Train for every noise, m, radius and seed (Fig. 3 middle); the batch and its order are the same for every m."""
    grid = [(m, rho) for m, radii in s.rhos.items() for rho in radii] + [(s.batch_size, 0.0)]  # the last is SGD
    rows = [{"noise": noise, "m": m, "rho": rho, "seed": seed}
            for noise, (m, rho), seed in product(s.noises, grid, range(s.seeds))]
    if work is None or not nb.full:
        return _trained(s, nb, rows)
    out: list[Row] = []
    for m in s.rhos:
        own = [row for row in rows if row["m"] == m]
        _, size = even(len(own), s.chunk)
        for k in range(0, len(own), size):
            part = own[k : k + size]
            out += work.do(f"m = {m}", lambda part=part: {"rows": _trained(s, nb, part)}, first=k)["rows"]
    return out


def _trained(s: Settings, nb: Notebook, rows: Sequence[Row]) -> list[Row]:
    sets = [split(s.data, s.train_size, row["seed"], s.dtype, row["noise"]) for row in rows]
    base = {"rule": "sam", "lr": s.lr, "momentum": s.momentum}
    configs = [{**base, "rho": row["rho"], "seed": row["seed"], "m": row["m"]} for row in rows]
    many = train_many(configs, [nb.uses(d) for d in sets], lambda seed: s.model(s.width, seed), steps=s.steps,
                      batch_size=s.batch_size, augment=s.augment, dtype=s.dtype, bf16=s.bf16, device=str(nb.device),
                      chunk=s.chunk)
    return [row | {"test_error": final["test_error"]} for row, final in zip(rows, many.final(), strict=True)]


def m_sharpness(rows: Nets, w: Tensor, rho: float) -> Tensor:
    r"""Return the first-order m-sharpness of each row, m being the batch size of ``rows``, (K,).

    .. math:: S_m = \frac1G\sum_B\big[L_B(w+\hat\epsilon_B)-L_B(w)\big],\qquad \hat\epsilon_B=\rho\,g_B/\|g_B\|

    :func:`sharpnb.curvature.sharpness` measures one model; this measures K at once.
    """
    rises = []
    for batch in rows.in_order():
        eps = rules.sam_perturbation(rows.gradient(batch)(w), rho)
        with torch.no_grad():
            here, there = (losses(rows.forward(at, batch[0]), batch[1]) for at in (w, w + eps))
        rises.append(there - here)
    return torch.stack(rises).mean(0)


def family(s: Settings, nb: Notebook, work: Work | None = None) -> list[Row]:
    """Train the family with SGD and measure it: one row a net, with its gap (points) and its sharpness for each m."""
    work = work or Work(nb)
    return [row for width, batch_size in product(s.family["width"], s.family["batch_size"]) for row in work.do(
        f"width {width}, batch {batch_size}", partial(_of_one_width, s, nb, int(width), int(batch_size)))["rows"]]


def _of_one_width(s: Settings, nb: Notebook, width: int, batch_size: int) -> dict[str, Any]:
    rest = list(product(s.family["lr"], s.family["weight_decay"], range(s.seeds)))
    sets = [nb.uses(split(s.data, s.train_size, seed, s.dtype)) for _, _, seed in rest]
    configs = [{"rule": "sgd", "lr": lr, "weight_decay": decay, "momentum": s.momentum, "seed": seed}
               for lr, decay, seed in rest]
    model = partial(s.model, width)
    many = train_many(configs, sets, model, steps=s.steps, batch_size=batch_size, augment=s.augment, dtype=s.dtype,
                      bf16=s.bf16, device=str(nb.device), chunk=s.chunk)
    seeds, w = [seed for _, _, seed in rest], many.weights.to(nb.device)
    sharp = {m: m_sharpness(Nets(seeds, sets, model, batch_size=m, device=nb.device, dtype=s.dtype), w, s.rho)
             for m in s.measured}
    return {"rows": [{
        "width": width, "batch_size": batch_size, "lr": lr, "weight_decay": decay, "seed": seed,
        "gap": final["test_error"] - final["train_error"], "train_loss": final["train_loss"],
        **{f"sharpness_{m}": sharp[m][k].item() for m in s.measured},
    } for k, (final, (lr, decay, seed)) in enumerate(zip(many.final(), rest, strict=True))]}


def information(measure: Sequence[float], gap: Sequence[float], hyper: Sequence[Sequence[float]]) -> float:
    r"""Conditional mutual information of Jiang et al. (ICLR 2020, section 4.2), normalised, in [0, 1].

    .. math::
        \min_{|S|\le2}\ I(V_\mu;V_g\mid U_S)\,/\,H(V_g\mid U_S)

    over pairs of nets: :math:`V_\mu` and :math:`V_g` are the signs of the differences in measure and in gap, and
    :math:`U_S` the values of the hyperparameters in S for both nets, so that a measure gets nothing for telling what
    they tell. Pairs of equal gap are left out, and sets S that leave nothing uncertain.

    Args:
        measure: one number a net.
        gap: one number a net.
        hyper: for each net its hyperparameters.
    """
    mu, g, u = np.asarray(measure), np.asarray(gap), np.asarray(hyper)
    i, j = np.nonzero(g[:, None] != g[None, :])
    signs = (mu[i] > mu[j]).astype(int), (g[i] > g[j]).astype(int)
    shares = []
    for size in range(3):
        for chosen in combinations(range(u.shape[1]), size):
            keys = np.concatenate([u[i][:, list(chosen)], u[j][:, list(chosen)]], axis=1)
            _, label = np.unique(keys, axis=0, return_inverse=True) if size else (None, np.zeros(len(i), dtype=int))
            shares.append(_conditional(*signs, label.ravel()))
    return float(np.nanmin(shares))


def _conditional(v: np.ndarray, g: np.ndarray, label: np.ndarray) -> float:
    """Return I(v; g | label) / H(g | label) for binary v and g, NaN where there is no uncertainty to share."""
    table = np.zeros((label.max() + 1, 2, 2))
    np.add.at(table, (label, v, g), 1.0)
    p = table / table.sum()

    def entropy(q: np.ndarray) -> float:
        q = q[q > 0]
        return float(-(q * np.log(q)).sum())

    cell, of_label = entropy(p), entropy(p.sum((1, 2)))
    h_g, h_v = entropy(p.sum(1)) - of_label, entropy(p.sum(2)) - of_label
    return (h_v + h_g - (cell - of_label)) / h_g if h_g > 1e-12 else float("nan")


def predictive(s: Settings, rows: Sequence[Row]) -> list[Row]:
    """Return, for each seed and m, Kendall's τ between sharpness and gap over the family, and the information."""
    out = []
    for seed in range(s.seeds):
        nets = [row for row in rows if row["seed"] == seed]
        gap, hyper = [row["gap"] for row in nets], [[row[name] for name in s.family] for row in nets]
        for m in s.measured:
            measure = [row[f"sharpness_{m}"] for row in nets]
            found = {"tau": kendall_tau(measure, gap), "information": information(measure, gap, hyper)}
            out.append({"seed": seed, "m": m} | found)
    return out


def recorded(
    name: str, run: Callable[[Settings, Notebook, Work | None], list[Row]], s: Settings, nb: Notebook
) -> list[Row]:
    """Run and record an experiment; the full profile returns a finished record instead of training again."""
    of = {**vars(s), "net of": partial(s.model, s.width)}
    return nb.recorded(name, lambda work: {"rows": run(s, nb, work)}, of=of, rtol=5e-2, atol=0.5)["rows"]


def best(rows: Sequence[Row], m: int, noise: float, rhos: Sequence[float]) -> tuple[float, list[float]]:
    """Return the radius of least mean error among ``rhos``, and the errors there by seed."""
    def errors(rho: float) -> list[float]:
        found = [r for r in rows if (r["noise"], r["m"], r["rho"]) == (noise, m, rho)]
        return [r["test_error"] for r in sorted(found, key=lambda r: r["seed"])]

    chosen = min(rhos, key=lambda rho: sum(errors(rho)))
    return chosen, errors(chosen)


def against_sgd(rows: Sequence[Row], s: Settings) -> pd.DataFrame:
    """Return each noise's, m's and radius' change of the test error against SGD: mean, sem and 95 % half width."""
    table: Any = pd.DataFrame(rows)
    sgd = table[table["rho"] == 0].set_index(["noise", "seed"])["test_error"]
    paired = table[table["rho"] > 0].copy()
    at = list(zip(paired["noise"], paired["seed"], strict=True))
    paired["change"] = paired["test_error"] - sgd.loc[at].to_numpy()
    summary = paired.groupby(["noise", "m", "rho"])["change"].agg(["mean", "sem"])
    summary["half"] = t95(s.seeds) * summary["sem"]
    return summary


def draw_middle(ax: Any, summary: pd.DataFrame, noise: float, s: Settings) -> None:
    """Draw Fig. 3 middle for one noise from :func:`against_sgd`; from three seeds on with 95 % intervals."""
    import matplotlib.pyplot as plt

    shades = plt.get_cmap("cividis")(np.linspace(0, 0.85, len(s.rhos)))
    ticks = sorted({rho for radii in s.rhos.values() for rho in radii})
    for k, (m, colour, marker) in enumerate(zip(s.rhos, shades, "osv^", strict=False)):
        got = summary.loc[noise, m]
        ax.errorbar(got.index * (1 + 0.03 * (k - 1.5)), got["mean"], got["half"] if s.seeds > 2 else None,
                    fmt=marker + "-", color=colour, capsize=2, lw=1.2, label=f"m = {m}")
    ax.axhline(0, color=COLOURS["sgd"], ls=":", label="SGD")
    ax.set(xscale="log", xlabel="radius $\\rho$", title=f"{noise:.0%} wrong labels" if noise else "clean labels")
    ax.set_xticks(ticks, [f"{rho:g}" for rho in ticks])
    ax.minorticks_off()


def draw_right(axes: Sequence[Any], found: pd.DataFrame) -> None:
    """Draw Fig. 3 right on two axes from :func:`predictive`: τ and the information over m; two seeds as dots."""
    seeds = found["seed"].nunique()
    for ax, column, label, role, style in zip(
        axes, ("tau", "information"), ("Kendall's $\\tau$ with the gap", "conditional mutual information (share)"),
        ("sgd", "sam"), ("o-", "s-"), strict=True,
    ):
        got = found.groupby("m")[column].agg(["mean", "sem"])
        half, said = (t95(seeds) * got["sem"], f"mean, 95 % interval, n = {seeds}") if seeds > 2 else (None, "mean")
        ax.errorbar(range(len(got)), got["mean"], half, fmt=style, color=COLOURS[role], capsize=3, label=said)
        if seeds < 3:
            places = found["m"].map({m: k for k, m in enumerate(got.index)})
            ax.plot(places, found[column], ".", color=COLOURS[role], alpha=0.5, label="the seeds")
        ax.set_xticks(range(len(got)), [str(m) for m in got.index])
        ax.set(xlabel="m (images that share a perturbation)", ylabel=label)
        ax.axhline(0, color="0.4", lw=0.8)
        ax.legend(fontsize=8)
