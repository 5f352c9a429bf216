"""Notebook 02: what SAM finds. Table 1's augmentations, the live table and its tuning, how cells are read, Fig. 1."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.curvature import HessianOperator, top_eigenvalues
from sharpnb.lab import Data, Many, Notebook, load_data, models
from sharpnb.lab.augment import Augment, AutoAugment, Cutout, composed, shift_and_flip
from sharpnb.lab.data import _TORCHVISION
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.pieces import Work
from sharpnb.lab.records import chosen_by
from sharpnb.landscape import Plane, surface
from studies.common import half_width
from studies.trials import edges, grid

Entry = dict[str, Any]
Place = tuple[str, str, str]  # data, model, augmentation: a cell of a table


def augmentation(data: str, name: str, size: int) -> Augment:
    """Return one of Table 1's augmentations, each containing the one before it.

    Basic: crops of the image padded by an eighth, and flips where a mirrored image keeps its class. Cutout: a hole of
    half the side. AA: AutoAugment's policy for the data and the hole; on Fashion-MNIST the hole alone, as in the paper.
    The digits have the house numbers' policy at 32 x 32: on 8 x 8 its shears and shifts round to whole pixels.
    """
    basic = shift_and_flip(size // 8, flip=data in ("cifar10", "cifar100", "fashion_mnist"))
    if name == "Basic":
        return basic
    cut = composed(basic, Cutout(size // 2))
    if name == "Cutout" or data == "fashion_mnist":
        return cut
    if data == "digits":
        return composed(AutoAugment("svhn", side=32), cut)
    return composed(AutoAugment("svhn" if data == "svhn" else "cifar10", *_TORCHVISION[data][1:]), cut)


def pooled(data: Data, name: str, copies: int = 8, seed: int = 0) -> Data:
    """Return ``data`` with ``copies`` variants of each image, drawn once: anew costs more than a step of small nets."""
    change, generator = augmentation(data.name, name, data.train_x.shape[-1]), torch.Generator().manual_seed(seed)
    x = torch.cat([change(data.train_x, generator) for _ in range(copies)])
    return replace(data, train_x=x, train_y=data.train_y.repeat(copies))


BUDGETS = ("SGD, E", "SGD, 2E")
HYPER = ("lr", "weight_decay", "rho")
METHODS = {"SGD, E": 1, "SGD, 2E": 2, "SAM": 1}  # that are tuned, and for how many times E they train


@dataclass(frozen=True)
class Live:
    """A cell of the live table: an MLP, SGD with momentum 0.9 and a cosine to 0 in E = ``steps``, all in float64.

    ``lrs`` and ``decays`` are SGD's grid at either budget, ``lrs`` and ``radii`` SAM's, at the decay that SGD chose at
    E. Other images of the ``tuning`` seeds choose.
    """

    data: str
    widths: tuple[int, ...]
    train: int
    batch_size: int
    steps: int
    lrs: tuple[float, ...]
    decays: tuple[float, ...]
    radii: tuple[float, ...]
    chosen_by: str
    tuning: range = range(100, 106)
    seeds: range = range(2000, 2020)

    def net(self, seed: int) -> nn.Module:
        """Return the net of a seed."""
        return models.mlp(self.widths, seed=seed)

    def images(self, seed: int) -> Data:
        """Return the images of a seed, a split of its own."""
        return load_data(self.data, train_size=self.train, seed=seed, dtype=torch.float64)


MLP = "MLP 64-64-10"
LIVE = {MLP: Live(
    "digits", (64, 64, 10), 300, 50, 600, lrs=(0.05, 0.1, 0.2, 0.4, 0.8), decays=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    radii=(0.05, 0.1, 0.2, 0.4, 0.8), chosen_by=chosen_by("02_sam_minima"))}


def tuned(nb: Notebook, live: Live, trained: Callable[..., Many]) -> pd.DataFrame:
    """Return the trials with mean errors over ``live.tuning``, as many of each method, from the committed record.

    ``trained`` trains a net for each member (``lr``, ``weight_decay``, ``rho``, ``seed``), so many times E long.
    """
    def make(_: Work) -> dict[str, Any]:
        rows: list[Entry] = []
        for method, times in METHODS.items():
            decays = (best(pd.DataFrame(rows), "SGD, E")["weight_decay"],) if method == "SAM" else live.decays
            trials = grid(lr=live.lrs, weight_decay=decays, rho=live.radii if method == "SAM" else (0.0,))
            many = trained(live, [trial | {"seed": seed} for trial in trials for seed in live.tuning], times)
            errors = np.array([[row["train_error"], row["test_error"]] for row in many.final()])
            means = errors.reshape(len(trials), -1, 2).mean(1).tolist()
            rows += [{"method": method, **trial, "train_error": train, "held_out": held_out}
                     for trial, (train, held_out) in zip(trials, means, strict=True)]
        return {"trials": rows}

    return pd.DataFrame(nb.recorded(f"tuning-{live.data}", make, of=live, kept=True, rtol=5e-2, atol=0.5)["trials"])


def best(trials: pd.DataFrame, method: str) -> dict[str, Any]:
    """Return the trial of a method with the least held-out error; ``edge`` names what lies at an end of its grid."""
    own = trials[trials["method"] == method]
    found = own.loc[own["held_out"].idxmin()].to_dict()
    at_end = edges({name: found[name] for name in HYPER}, own.to_dict("records"))
    return found | {"edge": ", ".join(at_end) or "no"}


def setting(member: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trial with its seed as :func:`sharpnb.lab.train_many` wants it; the radius 0 is SGD."""
    told = {"rule": "sam" if member["rho"] else "sgd", "momentum": 0.9, "seed": member["seed"]}
    return told | {name: member[name] for name in HYPER if member[name] or name != "rho"}


def finished(live: Live, many: Many, minima: bool, **cell: Any) -> list[Entry]:
    """Return an entry of ``cell`` for each net: its errors and, if asked, its ``minima``."""
    entries = []
    for row, config, w in zip(many.final(), many.configs, many.weights, strict=True):
        seed = config["seed"]
        entry = cell | {"seed": seed, "train_error": row["train_error"], "test_error": row["test_error"]}
        if minima:
            net = live.net(seed).double()
            nn.utils.vector_to_parameters(w, net.parameters())
            entry |= flatness(net.eval(), live.images(seed).train, size=21, seed=seed)
        entries.append(entry)
    return entries


def flatness(model: nn.Module, part: tuple[Tensor, Tensor], *, size: int, seed: int = 0) -> dict[str, Any]:
    """Measure the loss around a net, on the plane of Fig. 1: two random directions of unit filter norms.

    BatchNorm keeps the net's own statistics, and biases and norm layers stay, as in Li et al.'s code. Return
    ``lambda_max`` of the Hessian and ``loss`` at the net; ``rise``, by how much the mean loss within a distance of one
    filter norm is above it; the grid (``x``, ``values``).
    """
    found = surface(model, Plane.random(model, seed), part, ("loss",), size=size)
    values, centre = found.values["loss"], found.values["loss"][size // 2, size // 2]
    near = np.hypot(*np.meshgrid(found.x, found.y)) <= 1
    op = HessianOperator(model, F.cross_entropy, part)
    top = top_eigenvalues(op, 1, tol=1e-2, verify=False, vectors=False)
    return {"lambda_max": float(top.values[0]), "loss": float(centre), "rise": float(values[near].mean() - centre),
            "x": found.x, "values": values}


def cells(entries: Sequence[Entry]) -> dict[Place, pd.DataFrame]:
    """Return the entries of each cell, in the order in which they were made."""
    parts: Any = pd.DataFrame(entries).groupby(["data", "model", "augmentation"], sort=False) if entries else ()
    return dict(iter(parts))


def at(cell: pd.DataFrame, method: str) -> pd.DataFrame:
    """Return a method's entries, a seed each; "SGD" is its better budget, E or 2E.

    Better on the held-out images of the tuning where there was one, else by the mean test error, as in the paper.
    """
    if method == "SGD":
        by = "held_out" if "held_out" in cell else "test_error"
        method = min(BUDGETS, key=lambda budget: cell.loc[cell["method"] == budget, by].mean())
    return cell[cell["method"] == method].sort_values("seed")


def errors(cell: pd.DataFrame, method: str) -> np.ndarray:
    """Return a method's test errors, a seed each; see :func:`at`."""
    return at(cell, method)["test_error"].to_numpy()


def gains(cell: pd.DataFrame, method: str = "SAM", against: str = "SGD") -> np.ndarray:
    """Return SGD's error minus SAM's, seed by seed."""
    return errors(cell, against) - errors(cell, method)


def summary(entries: Sequence[Entry]) -> pd.DataFrame:
    """Return one row a cell: errors of SAM and of SGD at both budgets, and the error reduction, each with half-width.

    The reduction of a seed is its gain over the mean error of SGD, so that the mean of the seeds is the cell's.
    """
    rows = []
    for place, cell in cells(entries).items():
        found = {method: errors(cell, method) for method in METHODS}
        found["reduction"] = 100 * gains(cell) / errors(cell, "SGD").mean()
        row: dict[str, Any] = dict(zip(("data", "model", "augmentation"), place, strict=True))
        rows.append(row | {name: values.mean() for name, values in found.items()}
                    | {f"{name} ±": half_width(values) for name, values in found.items()})
    return pd.DataFrame(rows)


def shown(rows: pd.DataFrame, *about: str) -> pd.DataFrame:
    """Return a summary to print: the columns ``about`` as they are, the others with their intervals."""
    columns = {name: [f"{mean:.1f} ± {half:.1f}" for mean, half in zip(rows[name], rows[f"{name} ±"], strict=True)]
               for name in (*METHODS, "reduction")}
    return rows[list(about)].assign(**columns)


def draw_minima(figure: Any, minima: dict[str, pd.DataFrame], logarithmic: bool = False) -> pd.DataFrame:
    """Draw Fig. 1, middle and right, from each method's entries with surfaces, and each seed's rise; return numbers.

    ``logarithmic``: the height is log10 of the loss, as in the paper.
    """
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 0.75))
    first = {method: found.iloc[0] for method, found in minima.items()}
    seen = [np.log10(entry["values"]) if logarithmic else entry["values"] for entry in first.values()]
    low, cap, named = np.min(seen) if logarithmic else 0, np.max(seen), "log10 of the " * logarithmic + "training loss"
    drawn: list[tuple[Any, ...]] = []
    for k, (method, entry) in enumerate(first.items()):
        ax = figure.add_subplot(grid[k], projection="3d")
        x, values = np.asarray(entry["x"]), np.asarray(seen[k])
        ax.plot_surface(*np.meshgrid(x, x), values, cmap="viridis", vmin=low, vmax=cap, linewidth=0, rcount=60,
                        ccount=60)
        ax.set(title=f"{method}: {named} (nats)\nrise {entry['rise']:.2f}", zlim=(low, cap),
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
