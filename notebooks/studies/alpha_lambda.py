r"""Notebook 11: test error over learning rate α and decay λ, and how nearly the two can be tuned apart.

Loshchilov & Hutter, ICLR 2019, Figs 1 and 2. A *map* is the error in percent over (α, λ), ``(A, L)``, both axes powers
of two; the column λ = 0, where there is one, comes first and is left out of every fit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sharpnb.lab import Data, Many, Notebook, load_data, log2_grid, models, train_many
from sharpnb.lab.figures import heatmap
from sharpnb.lab.pieces import Work
from studies.common import with_controls
from studies.decay_runs import TUNING, Tuned, held_out, tuned

TITLES = {"sgd": "SGD (L2)", "sgdw": "SGDW", "adam": "Adam (L2)", "adamw": "AdamW"}
FIG1 = ("constant", "step", "cosine")  # its schedules
KEPT = ["rule", "schedule", "lr", "weight_decay", "seed", "test_error", "train_loss", "reason"]
CLIP = 25.0  # points above the best cell: beyond it a map says only "failed"
Cell = dict[str, Any]


@dataclass(frozen=True)
class Regime:
    """What is trained, how, and over which axes of each rule; ``cell`` are further settings of each cell.

    ``data`` and ``model`` are ``name`` and arguments for :func:`sharpnb.lab.load_data` and a builder in
    :mod:`sharpnb.lab.models`; ``"seed": "cell"``: each seed has its own draw; ``"held_out"``: see :mod:`decay_runs`. A
    number of seeds stands for the first ones. ``options`` are of :func:`precision`.
    """

    label: str
    alphas: dict[str, list[float]]
    lambdas: dict[str, list[float]]
    data: dict[str, Any]
    model: dict[str, Any]
    steps: int
    batch_size: int = 50
    seeds: int | range = 3
    cell: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def _axes(sgd: list[float], adam: list[float]) -> dict[str, list[float]]:
    return {"sgd": sgd, "sgdw": sgd, "adam": adam, "adamw": adam}


_DIGITS = {"name": "digits", "train_size": 500, "seed": "cell"}
_NET = {"name": "mlp", "sizes": [64, 24, 10]}
_QUICK = {"dtype": "float64", "device": "cpu"}
JUDGING = range(2000, 2020)
SIGNALS = Regime(
    "MLP 40-64-10, 1,000 signals of MNIST-1D, 800 steps", _axes(log2_grid(-1, 4), log2_grid(-8, -2)),
    {"sgd": [0.0, *log2_grid(-10, -4)], "sgdw": [0.0, *log2_grid(-10, -4)], "adam": [0.0, *log2_grid(-12, -6)],
     "adamw": [0.0, *log2_grid(-10, -4)]}, {"name": "mnist1d", "train_size": 1000, "seed": "cell", "held_out": True},
    {"name": "mlp", "sizes": [40, 64, 10]}, steps=800, seeds=TUNING, options={"dtype": "float32", "device": "cpu"})
# The regimes of another kind.
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


def thinned(regime: Regime) -> Regime:
    """Return the regime with every second of the larger learning rates, for the schedules side by side."""
    return replace(regime, alphas={rule: axis[-7::2] for rule, axis in regime.alphas.items()})


def judging(regime: Regime, seeds: Sequence[int], dtype: str = "float64") -> Regime:
    """Return the regime on judging seeds and their test set."""
    data = {key: value for key, value in regime.data.items() if key != "held_out"}
    return replace(regime, data=data, seeds=range(seeds[0], seeds[-1] + 1), options=regime.options | {"dtype": dtype})


def seeds_of(regime: Regime) -> range:
    """Return the seeds of each cell."""
    return range(regime.seeds) if isinstance(regime.seeds, int) else regime.seeds


def images(regime: Regime, cells: Sequence[Cell], nb: Notebook) -> list[Data]:
    """Return each cell's data set, noted for the provenance."""
    options: dict[str, Any] = dict(regime.data)
    own, tuning = options.pop("seed", None) == "cell", options.pop("held_out", False)
    seeds = [cell["seed"] if own else 0 for cell in cells]
    sets = {seed: nb.uses(load_data(**options, seed=seed)) for seed in dict.fromkeys(seeds)}
    sets = {seed: held_out(data, seed) for seed, data in sets.items()} if tuning else sets
    return [sets[seed] for seed in seeds]


def net(regime: Regime) -> Callable[[int], nn.Module]:
    """Return the function seed -> net."""
    options = dict(regime.model)
    builder = getattr(models, options.pop("name"))
    return lambda seed: builder(**options, seed=seed)


def precision(regime: Regime, nb: Notebook) -> dict[str, Any]:
    """Return type, device and cells of one program, as :func:`sharpnb.lab.train_many` takes them."""
    told = {"dtype": "float32", "device": str(nb.device), "bf16": False, "shard_size": 32} | regime.options
    return {"dtype": getattr(torch, told["dtype"]), "device": told["device"], "bf16": told["bf16"],
            "chunk": told["shard_size"]}


def trained(regime: Regime, cells: Sequence[Cell], nb: Notebook, **options: Any) -> Many:
    """Train cells as notebook 11 trains its first ones."""
    return train_many(cells, images(regime, cells, nb), net(regime), steps=regime.steps, batch_size=regime.batch_size,
                      **precision(regime, nb), **options)


def recorded(nb: Notebook, name: str, regime: Regime, cells: Sequence[Cell]) -> pd.DataFrame:
    """Return the final errors, a committed record: a row a cell, with the ``reason`` where the loss was not finite.

    A rule, schedule and seed are trained as one piece.
    """
    def tabled(part: Sequence[Cell]) -> dict[str, Any]:
        many = trained(regime, part, nb)
        bad = [f"diverged: the loss is not finite at step {step}" if step else "" for step in many.diverged]
        return pd.DataFrame(many.final()).assign(reason=bad)[KEPT].to_dict("list")

    def make(work: Work) -> dict[str, Any]:
        parts: dict[Any, list[Cell]] = {}
        for cell in cells:
            parts.setdefault((cell["rule"], cell["schedule"], cell["seed"]), []).append(cell)
        made = [work.do(rule, partial(tabled, part), schedule=schedule, seed=seed)
                for (rule, schedule, seed), part in parts.items()]
        return {"cells": pd.concat(map(pd.DataFrame, made)).to_dict("list")}

    told = {"regime": regime} | {f"{axis}s": list(dict.fromkeys(cell[axis] for cell in cells))
                                 for axis in ("rule", "schedule")}
    return pd.DataFrame(nb.recorded(name, make, of=told, rtol=2e-2, atol=3.0, kept=True)["cells"])


def best_cell(table: pd.DataFrame, rule: str, schedule: str) -> Tuned:
    """Return the best cell of the maps of a rule and schedule."""
    part = table[(table["rule"] == rule) & (table["schedule"] == schedule)]
    return tuned(part.assign(method=rule).to_dict("records"))[rule]


def full_table(nb: Notebook, name: str, regime: Regime, rules: Sequence[str], schedules: Any) -> pd.DataFrame | None:
    """Return a committed table of the full profile, or None where there is none of these settings."""
    found = nb.full_record(name, of={"regime": regime, "rules": list(rules), "schedules": schedules})
    return pd.DataFrame(found["cells"]) if found else None


def maps(table: pd.DataFrame, rule: str, schedule: str = "cosine") -> np.ndarray:
    """Return the maps of a rule, (seeds, A, L), in percent."""
    part: Any = table[(table["rule"] == rule) & (table["schedule"] == schedule)]
    wide = part.pivot(index=["seed", "lr"], columns="weight_decay", values="test_error")
    return wide.to_numpy().reshape(part["seed"].nunique(), -1, wide.shape[1])


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
    points, chosen by us: about the spread between seeds). Rows whose best cell is over 10 points above the map's best
    say nothing about the valley.
    """
    reached = errors.min(axis=1) <= errors.min() + 10.0
    weights = np.exp(-(errors - errors.min(axis=1, keepdims=True)) / temperature)
    centre = (weights * np.arange(errors.shape[1])).sum(1) / weights.sum(1)
    return float(np.polyfit(np.flatnonzero(reached), centre[reached], 1)[0]) if reached.sum() > 1 else float("nan")


def numbers(table: pd.DataFrame, regime: Regime, rules: Sequence[str]) -> pd.DataFrame:
    """Return separability and slope of each rule and seed, one row each."""
    inner = {rule: slice(1 if regime.lambdas[rule][0] == 0 else 0, None) for rule in rules}
    return pd.DataFrame([{"regime": regime.label, "rule": rule, "seed": seed, "best": errors.min(),
                          "separability": separability(errors[:, inner[rule]]), "slope": slope(errors[:, inner[rule]])}
                         for rule in rules for seed, errors in enumerate(maps(table, rule))],
                        columns=["regime", "rule", "seed", "separability", "slope", "best"])


def draw_map(ax: Any, errors: np.ndarray, alphas: Sequence[float], lambdas: Sequence[float], low: float) -> Any:
    """Draw a map with its numbers, the ten best cells circled and the contour of the best basin; return the image."""
    decays = [_power(x) for x in lambdas]
    image = heatmap(ax, errors, [[f"{value:.0f}" for value in row] for row in errors], columns=decays, upwards=True,
                    rows=[_power(x) for x in alphas], size=6.5, cmap="cividis_r", vmin=low, vmax=low + 45)
    rows, columns = np.unravel_index(np.argsort(errors, axis=None, kind="stable")[:10], errors.shape)
    ax.plot(columns + 0.5, rows + 0.5, "o", ms=13, mfc="none", mec="#d55e00", mew=1.4)
    grid = np.arange(errors.shape[1]) + 0.5, np.arange(errors.shape[0]) + 0.5
    ax.contour(*grid, errors, levels=[errors.min() + 9.0], colors="#d55e00", linewidths=1.2, linestyles="--")
    ax.tick_params(labelsize=7)
    ax.tick_params(axis="x", labelrotation=40 * any(len(text) > 5 and "$" not in text for text in decays))
    return image


def draw_maps(
    table: pd.DataFrame, regime: Regime, shown: Sequence[Sequence[tuple[str, str]]], size: tuple[float, float]
) -> tuple[Any, pd.DataFrame]:
    """Draw mean maps on one colour scale, ``shown`` as rows of (rule, schedule); return the figure and its numbers."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(shown), len(shown[0]), figsize=size, sharey="row", squeeze=False)
    found = {pair: maps(table, *pair).mean(0) for row in shown for pair in row}
    low = 5 * np.floor(min(errors.min() for errors in found.values()) / 5)
    drawn: list[Any] = []
    image: Any = None
    for ax, ((rule, schedule), errors) in zip(axes.flat, found.items(), strict=True):
        alphas, lambdas = regime.alphas[rule], regime.lambdas[rule]
        image = draw_map(ax, errors, alphas, lambdas, low)
        ax.set_title(TITLES[rule] + (f", {schedule}" if shown[0][0][1] != shown[0][-1][1] else ""))
        drawn += [(rule, schedule, *at, error) for at, error in zip(product(alphas, lambdas), errors.flat, strict=True)]
    figure.supxlabel("weight decay $\\lambda$")
    figure.supylabel("learning rate $\\alpha$")
    of_seeds = f"test error (%), mean of {len(seeds_of(regime))} seeds"
    figure.colorbar(image, ax=axes, shrink=0.65, extend="both", label=of_seeds)
    return figure, pd.DataFrame(drawn, columns=["rule", "schedule", "alpha", "lambda", "test error"])


def four_maps(table: pd.DataFrame, regime: Regime) -> tuple[Any, pd.DataFrame]:
    """Draw Fig. 2, a map an optimizer; return the figure and its numbers."""
    shown = [[("sgd", "cosine"), ("sgdw", "cosine")], [("adam", "cosine"), ("adamw", "cosine")]]
    figure, drawn = draw_maps(table, regime, shown, (9.5, 8))
    return figure, drawn[["rule", "alpha", "lambda", "test error"]]


def six_maps(table: pd.DataFrame, regime: Regime) -> tuple[Any, pd.DataFrame]:
    """Draw Fig. 1, a map a schedule, Adam above and AdamW below; return the figure and its numbers."""
    return draw_maps(table, regime, [[(rule, schedule) for schedule in FIG1] for rule in ("adam", "adamw")], (11, 5))


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


def panel(regime: Regime, nb: Notebook) -> Any:
    """An ipywidgets panel: pick a rule and a cell; its seeds are trained on the spot and their curves drawn."""
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    rule = widgets.Dropdown(options=[(TITLES[name], name) for name in regime.lambdas], description="rule")
    sliders = {name: widgets.IntSlider(value=3, max=5, description=name, continuous_update=False)
               for name in ("row", "column")}

    def draw(rule: str, row: int, column: int) -> Any:
        alpha, decay = regime.alphas[rule][row], regime.lambdas[rule][column]
        cells = [{"rule": rule, "lr": alpha, "weight_decay": decay, "seed": seed, **regime.cell}
                 for seed in seeds_of(regime)[:3]]
        rows = trained(regime, cells, nb, evaluate_every=max(1, regime.steps // 10), progress=False).rows
        figure, ax = plt.subplots(figsize=(5, 3.2))
        for seed, curve in pd.DataFrame(rows).groupby("seed"):
            ax.plot(curve["step"], curve["test_error"], ".-", label=f"seed {seed}")
        ax.set(xlabel="step", ylabel="test error (%)", ylim=(0, 100),
               title=f"{TITLES[rule]}, $\\alpha$ = {_power(alpha)}, $\\lambda$ = {_power(decay)}")
        ax.legend()
        return figure

    return with_controls(draw, {"rule": rule, **sliders})
