r"""Notebook 11: test error over learning rate α and decay λ, and how nearly the two can be tuned apart.

Loshchilov & Hutter, ICLR 2019, Figs 1 and 2. A *map* is the error in percent over (α, λ), ``(A, L)``, both axes powers
of two; the column λ = 0, where there is one, comes first and is left out of every fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.data import load_data
from sharpnb.lab.grid import log2_grid
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from sharpnb.lab.sweeps import sweep
from studies.panel import with_controls

PAIRS = {"sgd": "sgdw", "adam": "adamw"}  # with L2 -> with decoupled decay
TITLES = {"sgd": "SGD (L2)", "sgdw": "SGDW", "adam": "Adam (L2)", "adamw": "AdamW"}
FIG1 = ("constant", "step", "cosine")  # its schedules
KEPT = ["rule", "schedule", "lr", "weight_decay", "seed", "test_error", "train_loss", "reason"]
CLIP = 25.0  # points above the best cell: beyond it a map says only "failed"


@dataclass(frozen=True)
class Regime:
    """What is trained, how, and over which axes.

    Attributes:
        label: in a few words, for tables and claims.
        alphas, lambdas: the axes of each rule.
        data, model: as :func:`sharpnb.lab.sweep` takes them.
        steps, batch_size, seeds: of each cell.
        cell: further settings of each cell.
        options: further arguments of :func:`sharpnb.lab.sweep`.
    """

    label: str
    alphas: dict[str, list[float]]
    lambdas: dict[str, list[float]]
    data: dict[str, Any]
    model: dict[str, Any]
    steps: int
    batch_size: int = 50
    seeds: int = 3
    cell: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def _axes(sgd: list[float], adam: list[float]) -> dict[str, list[float]]:
    return {"sgd": sgd, "sgdw": sgd, "adam": adam, "adamw": adam}


_DIGITS = {"name": "digits", "train_size": 500, "seed": "cell"}
_NET = {"name": "mlp", "sizes": [64, 24, 10]}
_QUICK = {"dtype": "float64", "device": "cpu"}
# Start scale, sizes and steps of the first regime are taken over from a survey made before this notebook, of which it
# was one of several settings; the axes are the powers of two around what trains at all.
LARGE = Regime(
    "large start, 100 steps", _axes(log2_grid(-8, 1), log2_grid(-9, 0)),
    {"sgd": [0.0, *log2_grid(-7, 1)], "sgdw": [0.0, *log2_grid(-10, -2)], "adam": [0.0, *log2_grid(-9, -1)],
     "adamw": [0.0, *log2_grid(-11, -3)]}, _DIGITS, _NET | {"scale": 8.0}, steps=100, options=_QUICK)
PLAIN = Regime(
    "plain start, 30 % wrong labels, 400 steps", _axes(log2_grid(-3, 0), []),
    {"sgd": log2_grid(-9, -3), "sgdw": log2_grid(-10, -4)}, _DIGITS, _NET, steps=400, cell={"label_noise": 0.3},
    options=_QUICK)
NORM = replace(PLAIN, label="BatchNorm, 30 % wrong labels, 300 steps", model=_NET | {"norm": True}, steps=300)
# The paper: 26 2x64d Shake-Shake, 100 epochs of batch 128, α in units of 0.1 and λ of 0.001. Here, cut to
# the budget, a small net and fewer images and epochs.
FULL = Regime(
    "ResNet-8 of width 8, 10,000 images of CIFAR-10, 6 epochs", _axes(log2_grid(-7, 0, 0.1), log2_grid(-7, 0, 0.1)),
    {rule: [0.0, *log2_grid(-5, 2, 0.001)] for rule in TITLES}, {"name": "cifar10", "train_size": 10_000},
    {"name": "resnet", "depth": 8, "width": 8}, steps=6 * 78, batch_size=128, seeds=2, cell={"augment": [4, True]},
    options={"shard_size": 72, "bf16": True})
TOY = replace(
    FULL, label="ResNet-8 of width 2, digits", alphas=_axes([0.025, 0.05, 0.1], [0.01, 0.02, 0.04]), seeds=2,
    lambdas={rule: [0.0, 0.001, 0.002, 0.004] for rule in TITLES}, batch_size=25,
    data={"name": "digits", "train_size": 100}, steps=4,
    model={"name": "resnet", "depth": 8, "width": 2, "channels": 1}, cell={"augment": [1, False]})


def settings(profile: str) -> Regime:
    """Return the regime of the two figures in a profile."""
    return {"quick": LARGE, "full": FULL, "toy": TOY}[profile]


def thinned(regime: Regime) -> Regime:
    """Return the regime with every second of the larger learning rates, for the schedules side by side."""
    return replace(regime, alphas={rule: axis[-7::2] for rule, axis in regime.alphas.items()})


def run(
    regime: Regime, rules: Sequence[str], nb: Notebook, name: str, schedules: Sequence[str] = ("cosine",)
) -> pd.DataFrame:
    """Train every cell and return the table of :func:`sharpnb.lab.sweep`.

    The quick profile trains anew each time; the full one goes on from its finished shards, and a finished record is
    returned instead.
    """
    def make(work: Work) -> dict[str, Any]:
        table = _swept(regime, rules, nb, schedules, work)
        return {"cells": {column: table[column].tolist() for column in KEPT}}

    told = {"regime": regime, "rules": rules, "schedules": schedules}
    found = nb.recorded(name, make, of=told, rtol=2e-2, atol=3.0)
    return pd.DataFrame(found["cells"])


def _swept(
    regime: Regime, rules: Sequence[str], nb: Notebook, schedules: Sequence[str], work: Work
) -> pd.DataFrame:
    if regime.data.get("seed") != "cell":
        nb.uses(load_data(**regime.data))
    grid = [{"rule": rule, "lr": regime.alphas[rule], "weight_decay": regime.lambdas[rule], "schedule": list(schedules),
             "seed": range(regime.seeds), **regime.cell} for rule in rules]
    for part in grid:  # a pair is one value of the cell, not an axis
        if "augment" in part:
            part["augment"] = [part["augment"]]

    def trained(parts: Any) -> pd.DataFrame:
        with TemporaryDirectory() as folder:
            options = {"device": str(nb.device), "folder": None if nb.profile == "full" else Path(folder)}
            return sweep(parts, regime.data, regime.model, steps=regime.steps, batch_size=regime.batch_size,
                         **options | regime.options)

    if not nb.full:
        return trained(grid)
    pieces = []
    for part, schedule, seed in product(grid, schedules, range(regime.seeds)):

        def piece(part: dict[str, Any] = part, schedule: str = schedule, seed: int = seed) -> dict[str, Any]:
            table = trained({**part, "schedule": schedule, "seed": seed})
            if failed := [reason for reason in table["reason"] if reason.startswith("failed twice")]:
                raise RuntimeError(failed[0])  # no piece with holes; the finished shards are kept
            return {"cells": table[KEPT].to_dict("records")}

        pieces += work.do(part["rule"], piece, schedule=schedule, seed=seed)["cells"]
    return pd.DataFrame(pieces)


def maps(table: pd.DataFrame, rule: str, schedule: str = "cosine") -> np.ndarray:
    """Return the maps of a rule, (seeds, A, L), in percent."""
    part = table[(table["rule"] == rule) & (table["schedule"] == schedule)]
    columns = [part[name] for name in ("seed", "lr", "weight_decay")]
    axes = [np.unique(column) for column in columns]
    errors = np.full([len(axis) for axis in axes], np.nan)
    places = [np.searchsorted(axis, column) for axis, column in zip(axes, columns, strict=True)]
    errors[tuple(places)] = part["test_error"]
    return errors


def _adjusted_r2(y: np.ndarray, *factors: np.ndarray) -> float:
    """Adjusted R² of y on one free level for each value of each factor."""
    design = np.concatenate([factor[:, None] == np.unique(factor) for factor in factors], axis=1).astype(float)
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    free = len(y) - np.linalg.matrix_rank(design)
    return 1 - (np.sum((y - fitted) ** 2) / free) / (np.sum((y - y.mean()) ** 2) / (len(y) - 1))


def separability(errors: np.ndarray) -> float:
    r"""How much better a map is a sum over its axes than over a diagonal, (A, L) -> number; no column λ = 0.

    .. math:: S = \bar R^2(e \sim f(\alpha) + g(\lambda)) - \bar R^2(e \sim f(\alpha) + h(\alpha\lambda))

    with free f, g, h, adjusted for their numbers of levels, and e clipped at the best plus 25 points. S > 0: the axes
    can be tuned one after the other; S < 0: what matters beside α is the product.
    """
    rows, columns = np.indices(errors.shape).reshape(2, -1)
    y = np.minimum(errors, errors.min() + CLIP).ravel()
    return _adjusted_r2(y, rows, columns) - _adjusted_r2(y, rows, rows + columns)


def slope(errors: np.ndarray, temperature: float = 2.0) -> float:
    r"""Slope of the valley, :math:`d\log\lambda^*/d\log\alpha`, over the rows that reach it; no column λ = 0.

    :math:`\log\lambda^*` of a row is the mean column under weights :math:`e^{-\text{error}/\text{temperature}}` (2
    points, chosen by us: about the spread between seeds). Rows whose best cell is more than 10 points above the map's
    best say nothing about the valley and are left out.
    """
    reached = errors.min(axis=1) <= errors.min() + 10.0
    weights = np.exp(-(errors - errors.min(axis=1, keepdims=True)) / temperature)
    centre = (weights * np.arange(errors.shape[1])).sum(1) / weights.sum(1)
    return float(np.polyfit(np.flatnonzero(reached), centre[reached], 1)[0]) if reached.sum() > 1 else float("nan")


def numbers(table: pd.DataFrame, regime: Regime, rules: Sequence[str]) -> list[dict[str, Any]]:
    """Return separability and slope of each rule and seed, one row each."""
    rows = []
    for rule in rules:
        first = 1 if regime.lambdas[rule][0] == 0 else 0
        for seed, errors in enumerate(maps(table, rule)):
            inner = errors[:, first:]
            rows.append({"regime": regime.label, "rule": rule, "seed": seed, "separability": separability(inner),
                         "slope": slope(inner), "best": errors.min()})
    return rows


def best_cells(errors: np.ndarray, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of the ``count`` best cells of a map, the best first."""
    return np.unravel_index(np.argsort(errors, axis=None, kind="stable")[:count], errors.shape)


def draw_map(
    ax: Any, errors: np.ndarray, alphas: Sequence[float], lambdas: Sequence[float], *, low: float, high: float
) -> Any:
    """Draw a map with its numbers, the ten best cells circled and the contour of the best basin; return the image."""
    image = ax.imshow(errors, origin="lower", aspect="auto", cmap="cividis_r", vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(errors):
        ax.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=6.5,
                color="white" if value > (low + high) / 2 else "black")
    rows, columns = best_cells(errors)
    ax.plot(columns, rows, "o", ms=13, mfc="none", mec="#d55e00", mew=1.4)
    ax.contour(errors, levels=[errors.min() + 0.2 * (high - low)], colors="#d55e00", linewidths=1.2, linestyles="--")
    decays = [_power(x) for x in lambdas]
    wide = any(len(text) > 5 and "$" not in text for text in decays)
    ax.set_xticks(range(len(lambdas)), decays, fontsize=7, rotation=40 if wide else 0)
    ax.set_yticks(range(len(alphas)), [_power(x) for x in alphas], fontsize=7)
    ax.grid(False)
    return image


def four_maps(table: pd.DataFrame, regime: Regime) -> tuple[Any, pd.DataFrame]:
    """Draw Fig. 2, a map an optimizer on one colour scale; return the figure and its numbers."""
    import matplotlib.pyplot as plt

    found = {rule: maps(table, rule).mean(0) for rule in TITLES}
    low = 5 * np.floor(min(errors.min() for errors in found.values()) / 5)
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 8), sharey="row")
    drawn, image = [], None
    for ax, (rule, errors) in zip(axes.flat, found.items(), strict=True):
        image = draw_map(ax, errors, regime.alphas[rule], regime.lambdas[rule], low=low, high=low + 45)
        ax.set(title=TITLES[rule], xlabel="weight decay $\\lambda$")
        drawn += [(rule, a, d, errors[i, j]) for i, a in enumerate(regime.alphas[rule])
                  for j, d in enumerate(regime.lambdas[rule])]
    for ax in axes[:, 0]:
        ax.set_ylabel("learning rate $\\alpha$")
    figure.colorbar(image, ax=axes, shrink=0.6, extend="both", label=f"test error (%), mean of {regime.seeds} seeds")
    return figure, pd.DataFrame(drawn, columns=["rule", "alpha", "lambda", "test error"])


def six_maps(table: pd.DataFrame, regime: Regime, low: float = 5) -> tuple[Any, pd.DataFrame]:
    """Draw Fig. 1, a map a schedule, Adam above and AdamW below; return the figure and its numbers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(11, 5), sharex="row", sharey=True)
    drawn, image = [], None
    for row, rule in zip(axes, ("adam", "adamw"), strict=True):
        for ax, schedule in zip(row, FIG1, strict=True):
            errors = maps(table, rule, schedule).mean(0)
            image = draw_map(ax, errors, regime.alphas[rule], regime.lambdas[rule], low=low, high=low + 45)
            ax.set_title(f"{TITLES[rule]}, {schedule}")
            drawn += [(rule, schedule, a, d, errors[i, j]) for i, a in enumerate(regime.alphas[rule])
                      for j, d in enumerate(regime.lambdas[rule])]
    figure.supxlabel("weight decay $\\lambda$")
    figure.supylabel("learning rate $\\alpha$")
    figure.colorbar(image, ax=axes, shrink=0.7, extend="both", label=f"test error (%), mean of {regime.seeds} seeds")
    return figure, pd.DataFrame(drawn, columns=["rule", "schedule", "alpha", "lambda", "test error"])


def with_cosine(table: pd.DataFrame, cells: pd.DataFrame, regime: Regime) -> pd.DataFrame:
    """Return Fig. 1's cells: those of the other schedules, and the cosine's, which Fig. 2 has already."""
    mine = cells["rule"].isin(["adam", "adamw"]) & cells["lr"].isin([*regime.alphas["adam"], *regime.alphas["adamw"]])
    return pd.concat([table, cells[mine]])


def best_by_schedule(table: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    """Return for each rule and schedule the best cell's test error, by seed."""
    return {(rule, schedule): maps(table, rule, schedule).min((1, 2))
            for rule in ("adam", "adamw") for schedule in FIG1}


def _power(x: float) -> str:
    exponent = np.log2(x) if x > 0 else np.nan
    return "0" if x == 0 else f"$2^{{{exponent:.0f}}}$" if abs(exponent - round(exponent)) < 1e-9 else f"{x:.2g}"


def panel(regime: Regime) -> Any:
    """An ipywidgets panel: pick a rule and a cell; its seeds are trained on the spot and their curves drawn."""
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    rule = widgets.Dropdown(options=[(TITLES[name], name) for name in regime.lambdas], description="rule")
    sliders = {name: widgets.IntSlider(value=5, max=9, description=name, continuous_update=False)
               for name in ("row", "column")}

    def draw(rule: str, row: int, column: int) -> Any:
        alpha, decay = regime.alphas[rule][row], regime.lambdas[rule][column]
        cell = {"rule": rule, "lr": alpha, "weight_decay": decay, "seed": range(regime.seeds), **regime.cell}
        with TemporaryDirectory() as folder:
            table = sweep(cell, regime.data, regime.model, steps=regime.steps, batch_size=regime.batch_size,
                          evaluate_every=max(1, regime.steps // 10), folder=folder, progress=False, **regime.options)
        figure, ax = plt.subplots(figsize=(5, 3.2))
        for seed, curve in zip(table["seed"], table["curve"], strict=True):
            ax.plot([p["step"] for p in curve], [p["test_error"] for p in curve], ".-", label=f"seed {seed}")
        ax.set(xlabel="step", ylabel="test error (%)", ylim=(0, 100),
               title=f"{TITLES[rule]}, $\\alpha$ = {_power(alpha)}, $\\lambda$ = {_power(decay)}")
        ax.legend()
        return figure

    return with_controls(draw, {"rule": rule, **sliders})
