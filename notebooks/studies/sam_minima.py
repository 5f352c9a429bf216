"""Notebook 02: what SAM finds. Small members of Table 1's families, its augmentations, and the surfaces of Fig. 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb import rules
from sharpnb.averaging import update_bn
from sharpnb.curvature import HessianOperator, top_eigenvalues
from sharpnb.lab import models
from sharpnb.lab.augment import Augment, AutoAugment, Cutout, composed, shift_and_flip
from sharpnb.lab.claims import t95
from sharpnb.lab.data import _TORCHVISION, Data, load_data
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.notebook import Notebook
from sharpnb.landscape import Plane, surface
from sharpnb.many.engine import Batch, Nets, Rule
from studies import families
from studies import sam_minima_published as published

Entry = dict[str, Any]
Build = Callable[[int], nn.Module]
_ON_DIGITS = AutoAugment("svhn", side=32)
NONE, SMOOTHED, SMOOTHING = "None", "Basic + smoothing", 0.1  # the paper smooths labels by 0.1 on ImageNet


def augmentation(data: str, name: str, size: int) -> Augment:
    """Return one of Table 1's augmentations, each containing the one before it.

    Basic: crops of the image padded by an eighth, and flips where a mirrored image keeps its class. Cutout: a hole of
    half the side. AA: AutoAugment's policy for the data and the hole; on Fashion-MNIST the hole alone, as in the paper.
    The policy of house numbers serves the digits, worked out at 32 x 32: on 8 x 8 a shear or a shift of the
    policy rounds to whole pixels.
    """
    basic = shift_and_flip(size // 8, flip=data in ("cifar10", "cifar100", "fashion_mnist"))
    if name in ("Basic", SMOOTHED):
        return basic
    cut = composed(basic, Cutout(size // 2))
    if name == "Cutout" or data == "fashion_mnist":
        return cut
    if data == "digits":
        return composed(_ON_DIGITS, cut)
    policy = "svhn" if data == "svhn" else "cifar10"
    return composed(AutoAugment(policy, *_TORCHVISION[data][1:]), cut)


def pooled(data: Data, name: str, copies: int = 8, seed: int = 0) -> Data:
    """Return ``data`` with ``copies`` variants by an augmentation in the place of each training image.

    Drawn once: drawing anew costs more than a step of the small nets.
    """
    change, generator = augmentation(data.name, name, data.train_x.shape[-1]), torch.Generator().manual_seed(seed)
    x = torch.cat([change(data.train_x, generator) for _ in range(copies)])
    return replace(data, train_x=x, train_y=data.train_y.repeat(copies))


def readable(seed: int = 0) -> dict[str, float]:
    """Error in percent of a nearest-neighbour reader on 400 digits, by what was done to those.

    The reader knows 1,000 other digits, each shifted by up to a pixel in every way, and the negatives of all of these,
    so that neither Basic nor the policy's inversions are a riddle to it.
    """
    data = load_data("digits", seed=seed)
    shifted = F.pad(data.train_x, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1).flatten(2, 3)  # (N, 1, 9, 8, 8)
    known = torch.cat([shifted, 1 - shifted], 2).reshape(-1, 64)
    changes: dict[str, Augment] = {
        "unchanged": lambda x, _: x, "Basic": shift_and_flip(1, flip=False), "Cutout": Cutout(4),
        "AutoAugment at 8 x 8": AutoAugment("svhn"), "AutoAugment at 32 x 32": _ON_DIGITS,
    }
    out = {}
    for name, change in changes.items():
        x = change(data.test_x[:400], torch.Generator().manual_seed(seed)).flatten(1)
        nearest = torch.cdist(x, known).argmin(1)
        out[name] = 100.0 * (data.train_y[nearest // 18] != data.test_y[:400]).double().mean().item()
    return out


# -- a live table -----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Live:
    """A small net and how it is trained in the quick profile (SGD of momentum 0.9, weight decay 5e-4, cosine to 0).

    Attributes:
        build: seed -> net.
        train, batch_size, steps: images to train on, images an update, updates of the budget E.
        radii: of SAM; where there are several, 200 held-out images choose, as in the paper.
        seeds: number of seeds, trained side by side.
        dtype: of weights and images.
    """

    build: Build
    train: int
    batch_size: int
    steps: int
    radii: tuple[float, ...]
    seeds: int
    dtype: torch.dtype = torch.float32


LR, VALIDATION, TEST = 0.1, 200, 1000
MLP, MLP300 = "MLP 64-64-10", "MLP 64-64-10, 300 images"


def _conv(build: Build) -> Live:
    # What a minute on one core allows is far from where these nets stop improving: the notebook reads the record of a
    # survey instead (sam_minima_full.survey), and `run` trains them so for whoever asks.
    return Live(build, 50, 10, 100, (0.05,), 3)


def _mlp(seed: int) -> nn.Module:
    return models.mlp((64, 64, 10), seed=seed)


# The first is the setting of a survey made before this notebook (learning rate, steps, larger radius). In two first
# looks at the second with more images (300 augmented, 600 steps, also radii 0.1 and 0.4) doubling SGD's steps lowered
# every error by far more than SAM did. Fewer images make the same minute a longer training.
NETS: dict[str, Live] = {
    MLP300: Live(_mlp, 300, 50, 600, (0.05, 0.2), 6, torch.float64),
    MLP: Live(_mlp, 100, 25, 400, (0.05, 0.2), 6, torch.float64),
    "WRN-10-1": _conv(lambda seed: models.wide_resnet(10, 1, stem=8, channels=1, seed=seed)),
    "Shake-Shake 8 2x8d": _conv(lambda seed: families.shake_shake(8, 8, stem=8, channels=1, seed=seed)),
    "PyramidNet-8": _conv(lambda seed: families.pyramid_net(8, 24, stem=8, channels=1, seed=seed)),
    "PyramidNet-8 + ShakeDrop": _conv(
        lambda seed: families.pyramid_net(8, 24, last_keep=0.5, stem=8, channels=1, seed=seed)),
}
SMALL = tuple(NETS)[2:]  # the families of Table 1
CELLS = [(MLP300, NONE), *((MLP, name) for name in (*published.AUGMENTATIONS, SMOOTHED))]


@cache
def split(live: Live, seed: int, name: str = "") -> Data:
    """Return the digits of a seed, augmented by ``name`` if given; 200 images that choose and 1,000 others to test."""
    data = load_data("digits", train_size=live.train, seed=seed, dtype=live.dtype)
    data = replace(data, test_x=data.test_x[: VALIDATION + TEST], test_y=data.test_y[: VALIDATION + TEST])
    return pooled(data, name, seed=seed) if name not in ("", NONE) else data


def shaken_rule(rows: Nets, rho: float | Tensor, **hyper: Any) -> Rule:
    """SGD (ρ = 0) or SAM on SGD (a radius, or one a row).

    In the ascent pass the shakes use their forward numbers backward too, as in the authors' code.
    """
    def rule(w: Tensor, grad: rules.Gradient, state: rules.State = None, *, eta: float) -> tuple[Tensor, rules.State]:
        ascends = isinstance(rho, Tensor) or rho > 0
        families.set_true_gradient(rows.forward.layers, ascends)
        g = grad(w)
        families.set_true_gradient(rows.forward.layers, False)
        if ascends:
            g = grad(w + rules.sam_perturbation(g, rho))
        return rules.sgd(w, g, state, eta=eta, **hyper)

    return rule


def _smooth(batch: Batch) -> Batch:
    x, y = batch
    return x, (1 - SMOOTHING) * F.one_hot(y, 10).to(x.dtype) + SMOOTHING / 10


def trained(live: Live, name: str, method: str) -> tuple[list[Entry], Tensor]:
    """Train the seeds (and SAM's radii) of a cell side by side; one entry each, and the weights, (K, n)."""
    radii, times = (live.radii, 1) if method == "SAM" else ((0.0,), 2 if method == "SGD, 2E" else 1)
    members = [(rho, seed) for rho in radii for seed in range(live.seeds)]
    rows = Nets([seed for _, seed in members], [split(live, seed, name) for _, seed in members], live.build,
                batch_size=live.batch_size, dtype=live.dtype)
    column = torch.tensor([[rho] for rho, _ in members], dtype=live.dtype)
    rule = shaken_rule(rows, column if method == "SAM" else 0.0, lr=LR, momentum=0.9, weight_decay=5e-4)
    with torch.random.fork_rng(devices=[]):  # the shakes draw from the global state
        torch.manual_seed(0)
        w = rows.fit(rule, times * live.steps, mix=_smooth if name == SMOOTHED else None)
    train_error, entries = rows.errors(w, "train").tolist(), []
    wrong = torch.empty(len(w), VALIDATION + TEST, dtype=torch.float64)
    for here, z, y in rows.logits(w, "test"):
        wrong[here] = 100.0 * (z.argmax(2) != y).double()
    for k, (rho, seed) in enumerate(members):
        entries.append({"augmentation": name, "method": method, "rho": rho, "seed": seed,
                        "validation_error": wrong[k, :VALIDATION].mean().item(),
                        "test_error": wrong[k, VALIDATION:].mean().item(), "train_error": train_error[k]})
    return entries, w


def run(nb: Notebook, nets: dict[str, Live] = NETS, cells: Sequence[tuple[str, str]] = tuple(CELLS)) -> list[Entry]:
    """Train the live table; of the nets of its first cell the minima are measured too (:func:`flatness`)."""
    nb.uses(split(nets[cells[0][0]], 0))
    entries: list[Entry] = []
    for net, name in cells:
        for method in ("SAM", "SGD, E", "SGD, 2E"):
            found, w = trained(nets[net], name, method)
            for entry, row in zip(found, w, strict=True):
                entry |= {"data": "digits", "model": net}
                if (net, name) == tuple(cells[0]):
                    entry |= _at(nets[net], row, entry["seed"])
            entries += found
    return entries


def _at(live: Live, w: Tensor, seed: int) -> dict[str, Any]:
    model, part = live.build(0).to(live.dtype), split(live, seed).train
    nn.utils.vector_to_parameters(w, model.parameters())
    update_bn(model, part)
    return flatness(model.eval(), part, size=25, seed=seed)


def flatness(model: nn.Module, part: tuple[Tensor, Tensor], *, size: int, seed: int = 0) -> dict[str, Any]:
    """Measure the loss around a net, on the plane of Fig. 1: two random directions of unit filter norms.

    BatchNorm keeps the statistics of the net itself, and biases and norm layers stay, as in Li et al.'s code.

    Returns:
        ``lambda_max`` of the Hessian at the net; ``loss`` there; ``rise``, by how much the mean loss within a distance
        of one filter norm is above it; the grid (``x``, ``values``).
    """
    found = surface(model, Plane.random(model, seed), part, ("loss",), size=size)
    values, centre = found.values["loss"], found.values["loss"][size // 2, size // 2]
    near = np.hypot(*np.meshgrid(found.x, found.y)) <= 1
    op = HessianOperator(model, F.cross_entropy, part)
    top = top_eigenvalues(op, 1, tol=1e-2, verify=False, vectors=False)
    return {"lambda_max": float(top.values[0]), "loss": float(centre), "rise": float(values[near].mean() - centre),
            "x": found.x, "values": values}


# -- reading the entries ----------------------------------------------------------------------------------------------


def radius(entries: Sequence[Entry], model: str, name: str) -> float:
    """Return SAM's radius of least mean error on the held-out images (the tuned one of the full profile)."""
    found: dict[float, float] = {}
    for e in entries:
        if (e["model"], e["augmentation"], e["method"]) == (model, name, "SAM"):
            found[e["rho"]] = found.get(e["rho"], 0.0) + e.get("validation_error", 0.0)
    return min(found, key=found.__getitem__)


def at(entries: Sequence[Entry], model: str, name: str, method: str, rho: float | None = None) -> list[Entry]:
    """Return the entries of a cell, a seed each. SAM is at its chosen radius unless ``rho`` names one.

    Method "SGD" is the budget (E or 2E) of the lower mean test error, as the paper reports it.
    """
    if method == "SGD":
        method = min(("SGD, E", "SGD, 2E"), key=lambda m: errors(entries, model, name, m).mean())
    if rho is None:
        rho = radius(entries, model, name) if method == "SAM" else 0.0
    found = [e for e in entries if (e["model"], e["augmentation"]) == (model, name) and e["rho"] == rho]
    return sorted((e for e in found if e["method"].startswith(method)), key=lambda e: e["seed"])


def errors(entries: Sequence[Entry], model: str, name: str, method: str, rho: float | None = None) -> np.ndarray:
    """Return the test errors of a cell, a seed each; see :func:`at`."""
    return np.array([e["test_error"] for e in at(entries, model, name, method, rho)])


def gains(
    entries: Sequence[Entry], model: str, name: str, rho: float | None = None, against: str = "SGD"
) -> np.ndarray:
    """Return SGD's error less SAM's, seed by seed."""
    return errors(entries, model, name, against) - errors(entries, model, name, "SAM", rho)


def half_width(values: np.ndarray) -> float:
    """Return the half-width of the two-sided 95 % Student interval of the mean, as the paper's tables give it."""
    return float(t95(len(values)) * values.std(ddof=1) / len(values) ** 0.5)


def summary(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """Return one row a cell: errors of SAM and of SGD at both budgets, and the error reduction, each with half-width.

    The reduction of a seed is its gain over the mean error of SGD, so that the mean of the seeds is the cell's.
    """
    rows = []
    for data, model, name in dict.fromkeys((e["data"], e["model"], e["augmentation"]) for e in entries):
        mine = [e for e in entries if e["data"] == data]
        row: dict[str, Any] = {"data": data, "model": model, "augmentation": name, "rho": radius(mine, model, name)}
        for method in ("SAM", "SGD, E", "SGD, 2E"):
            found = errors(mine, model, name, method)
            row |= {method: found.mean(), f"{method} ±": half_width(found)}
        reduction = 100 * gains(mine, model, name) / errors(mine, model, name, "SGD").mean()
        rows.append(row | {"reduction": reduction.mean(), "reduction ±": half_width(reduction)})
    return rows


def draw_minima(figure: Any, minima: dict[str, list[Entry]]) -> pd.DataFrame:
    """Draw Fig. 1, middle and right, and each seed's rise beside it; return the numbers.

    ``minima`` are the entries of each method, a seed each, with surfaces; two seeds have no interval.
    """
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 0.75))
    cap = max(float(np.max(found[0]["values"])) for found in minima.values())
    drawn: list[tuple[Any, ...]] = []
    for k, (method, found) in enumerate(minima.items()):
        ax = figure.add_subplot(grid[k], projection="3d")
        x, values = np.asarray(found[0]["x"]), np.asarray(found[0]["values"])
        ax.plot_surface(*np.meshgrid(x, x), values, cmap="viridis", vmin=0, vmax=cap, linewidth=0, rcount=60, ccount=60)
        ax.set(title=f"{method}: training loss (nats)\nrise {found[0]['rise']:.2f}", zlim=(0, cap),
               xlabel="x (filter norms)", ylabel="y (filter norms)")
        ax.view_init(28, -60)
        drawn += [(method, 0, a, b, values[j, i]) for j, b in enumerate(x) for i, a in enumerate(x)]
    ax = figure.add_subplot(grid[2])
    pairs = np.array([[entry["rise"] for entry in found] for found in minima.values()])
    ax.plot([0, 1], pairs, "o-", color="0.6", lw=0.9, ms=4)
    n = pairs.shape[1]
    half, said = ([half_width(row) for row in pairs], f"mean, 95 % interval, n = {n}") if n > 2 else (None, "mean")
    ax.errorbar([0, 1], pairs.mean(1), half, fmt="s", ms=7, capsize=4, color=COLOURS["sam"], label=said)
    ax.set_xticks([0, 1], list(minima))
    ax.set(xlim=(-0.4, 1.4), ylim=(0, None), ylabel="rise within one filter norm (nats)", title="each seed")
    ax.legend(fontsize=8, loc="lower left")
    drawn += [(method, seed, None, None, value) for method, row in zip(minima, pairs, strict=True)
              for seed, value in enumerate(row)]
    return pd.DataFrame(drawn, columns=["method", "seed", "x", "y", "loss or rise"])
