"""Notebook 02: what SAM finds. Table 1's augmentations, the live table's nets, how its cells are read, Fig. 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.averaging import update_bn
from sharpnb.curvature import HessianOperator, top_eigenvalues
from sharpnb.lab import models
from sharpnb.lab.augment import Augment, AutoAugment, Cutout, composed, shift_and_flip
from sharpnb.lab.claims import t95
from sharpnb.lab.data import _TORCHVISION, Data, load_data
from sharpnb.lab.figures import COLOURS
from sharpnb.landscape import Plane, surface
from sharpnb.many.engine import Batch, Nets

Entry = dict[str, Any]
Place = tuple[str, str, str]  # data, model, augmentation: a cell of a table
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
    return composed(AutoAugment("svhn" if data == "svhn" else "cifar10", *_TORCHVISION[data][1:]), cut)


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


# -- the live table ---------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Live:
    """How the MLP is trained live, in float64.

    Attributes:
        train, batch_size, steps: images to train on, images an update, updates of the budget E.
        augmentations: of Table 1, a cell each.
        radii: of SAM; 200 held-out images choose, as in the paper.
        seeds: trained side by side.
        lr, momentum, weight_decay: of SGD, and of SAM's base; cosine to 0.
    """

    train: int
    batch_size: int
    steps: int
    augmentations: tuple[str, ...]
    radii: tuple[float, ...] = (0.05, 0.2)
    seeds: int = 6
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4


MLP, MLP300, VALIDATION, TEST = "MLP 64-64-10", "MLP 64-64-10, 300 images", 200, 1000
# The first is the setting of a survey made before this notebook (learning rate, steps, larger radius). In two first
# looks at the second with more images (300 augmented, 600 steps, also radii 0.1 and 0.4) doubling SGD's steps lowered
# every error by far more than SAM did. With fewer images the same minute trains longer.
LIVE = {MLP300: Live(300, 50, 600, (NONE,)), MLP: Live(100, 25, 400, ("Basic", "Cutout", "AA", SMOOTHED))}


def mlp(seed: int) -> nn.Module:
    """Return the net of the live table."""
    return models.mlp((64, 64, 10), seed=seed)


@cache
def split(live: Live, seed: int, name: str = NONE) -> Data:
    """Return the digits of a seed, augmented by ``name``; 200 images that choose and 1,000 others to test."""
    data = load_data("digits", train_size=live.train, seed=seed, dtype=torch.float64)
    data = replace(data, test_x=data.test_x[: VALIDATION + TEST], test_y=data.test_y[: VALIDATION + TEST])
    return data if name == NONE else pooled(data, name, seed=seed)


def smooth(batch: Batch) -> Batch:
    """Return a batch with its labels smoothed."""
    x, y = batch
    return x, (1 - SMOOTHING) * F.one_hot(y, 10).to(x.dtype) + SMOOTHING / 10


def finished(nets: Nets, w: Tensor, members: Sequence[tuple[float, int]], minima: bool, **cell: Any) -> list[Entry]:
    """Return an entry of ``cell`` for each member (radius and seed): its errors and, if asked, its ``minima``."""
    train_error, entries = nets.errors(w, "train").tolist(), []
    wrong = torch.empty(len(w), VALIDATION + TEST, dtype=torch.float64)
    for here, z, y in nets.logits(w, "test"):
        wrong[here] = 100.0 * (z.argmax(2) != y).double()
    for k, (rho, seed) in enumerate(members):
        entry = cell | {"rho": rho, "seed": seed, "validation_error": wrong[k, :VALIDATION].mean().item(),
                        "test_error": wrong[k, VALIDATION:].mean().item(), "train_error": train_error[k]}
        if minima:
            net, part = mlp(0).double(), nets.sets[k].train
            nn.utils.vector_to_parameters(w[k], net.parameters())
            update_bn(net, part)
            entry |= flatness(net.eval(), part, size=25, seed=seed)
        entries.append(entry)
    return entries


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


def cells(entries: Sequence[Entry]) -> dict[Place, pd.DataFrame]:
    """Return the entries of each cell, in the order in which they were made."""
    parts: Any = pd.DataFrame(entries).groupby(["data", "model", "augmentation"], sort=False) if entries else ()
    return dict(iter(parts))


def radius(cell: pd.DataFrame) -> float:
    """Return SAM's radius of least mean error on the held-out images (the tuned one of the full profile)."""
    sam = cell[cell["method"] == "SAM"]
    if "validation_error" not in sam or sam["validation_error"].isna().any():
        return float(sam["rho"].iloc[0])
    return float(sam.groupby("rho", sort=False)["validation_error"].sum().idxmin())


def at(cell: pd.DataFrame, method: str, rho: float | None = None) -> pd.DataFrame:
    """Return a method's entries, a seed each. SAM is at its chosen radius unless ``rho`` names one.

    Method "SGD" is the budget (E or 2E) of the lower mean test error, as the paper reports it.
    """
    if method == "SGD":
        method = min(("SGD, E", "SGD, 2E"), key=lambda budget: errors(cell, budget).mean())
    if rho is None:
        rho = radius(cell) if method == "SAM" else 0.0
    return cell[(cell["rho"] == rho) & cell["method"].str.startswith(method)].sort_values("seed")


def errors(cell: pd.DataFrame, method: str, rho: float | None = None) -> np.ndarray:
    """Return a method's test errors, a seed each; see :func:`at`."""
    return at(cell, method, rho)["test_error"].to_numpy()


def gains(cell: pd.DataFrame, rho: float | None = None, against: str = "SGD") -> np.ndarray:
    """Return SGD's error minus SAM's, seed by seed."""
    return errors(cell, against) - errors(cell, "SAM", rho)


def half_width(values: np.ndarray) -> float:
    """Return the half-width of the two-sided 95 % Student interval of the mean, as the paper's tables give it."""
    return float(t95(len(values)) * np.std(values, ddof=1) / len(values) ** 0.5)


def summary(entries: Sequence[Entry]) -> pd.DataFrame:
    """Return one row a cell: errors of SAM and of SGD at both budgets, and the error reduction, each with half-width.

    The reduction of a seed is its gain over the mean error of SGD, so that the mean of the seeds is the cell's.
    """
    rows = []
    for place, cell in cells(entries).items():
        found = {method: errors(cell, method) for method in ("SAM", "SGD, E", "SGD, 2E")}
        found["reduction"] = 100 * gains(cell) / errors(cell, "SGD").mean()
        row: dict[str, Any] = dict(zip(("data", "model", "augmentation"), place, strict=True), rho=radius(cell))
        rows.append(row | {name: values.mean() for name, values in found.items()}
                    | {f"{name} ±": half_width(values) for name, values in found.items()})
    return pd.DataFrame(rows)


def shown(rows: pd.DataFrame, *about: str) -> pd.DataFrame:
    """Return a summary to print: the columns ``about`` as they are, the others with their intervals."""
    columns = {name: [f"{mean:.1f} ± {half:.1f}" for mean, half in zip(rows[name], rows[f"{name} ±"], strict=True)]
               for name in ("SAM", "SGD, E", "SGD, 2E", "reduction")}
    return rows[list(about)].assign(**columns)


def draw_minima(figure: Any, minima: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Draw Fig. 1, middle and right, and each seed's rise beside it; return the numbers.

    ``minima`` are the entries of each method, a seed each, with surfaces; two seeds have no interval.
    """
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 0.75))
    first = {method: found.iloc[0] for method, found in minima.items()}
    cap = max(float(np.max(entry["values"])) for entry in first.values())
    drawn: list[tuple[Any, ...]] = []
    for k, (method, entry) in enumerate(first.items()):
        ax = figure.add_subplot(grid[k], projection="3d")
        x, values = np.asarray(entry["x"]), np.asarray(entry["values"])
        ax.plot_surface(*np.meshgrid(x, x), values, cmap="viridis", vmin=0, vmax=cap, linewidth=0, rcount=60, ccount=60)
        ax.set(title=f"{method}: training loss (nats)\nrise {entry['rise']:.2f}", zlim=(0, cap),
               xlabel="x (filter norms)", ylabel="y (filter norms)")
        ax.view_init(28, -60)
        drawn += [(method, 0, a, b, values[j, i]) for j, b in enumerate(x) for i, a in enumerate(x)]
    ax = figure.add_subplot(grid[2])
    pairs = np.array([found["rise"] for found in minima.values()])
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
