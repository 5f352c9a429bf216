r"""Notebook 13: warm restarts, anytime performance, normalised decay (Loshchilov & Hutter, ICLR 2019, appendix B)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from sharpnb.lab import models
from sharpnb.lab.augment import shift_and_flip
from studies.decay_runs import Tuned, World, configs
from studies.trials import powers


@dataclass(frozen=True)
class Anytime:
    """Fig. 4: five optimizers over one budget of ``steps``, the end of a period; the first has ``t_0``.

    Evaluated each ``every``, which divides t_0. Rates of the two families and the normalised decays of all but Adam are
    one or several; a number of judging ``seeds`` stands for the first ones.
    """

    world: World
    steps: int
    t_0: int
    every: int
    lr_adam: float | tuple[float, ...]
    lr_sgd: float | tuple[float, ...]
    l2: tuple[float, ...]
    lambda_norm: float | tuple[float, ...]
    seeds: int | range


@dataclass(frozen=True)
class Budgets:
    """SuppFig. 3: raw ``decays`` of AdamW, powers of two, at three budgets, each four times the one before."""

    world: World
    steps: tuple[int, int, int]
    lr: float
    decays: tuple[float, ...]
    seeds: int | range


@dataclass(frozen=True)
class LongAdam:
    """SuppFig. 2: standard Adam for long at a fixed rate, against a short AdamW with a cosine.

    AdamW trains the ``small`` world (a smaller net in the paper) for an 18th of the ``steps``, as there; its grid is
    ``short_lrs`` and ``lambda_norm``.
    """

    world: World
    small: World
    steps: int
    lrs: tuple[float, ...]
    l2s: tuple[float, ...]
    short_lrs: tuple[float, ...]
    lambda_norm: tuple[float, ...]
    seeds: int | range


_SIGNALS = World("MLP 40-64-10, 1,000 signals of MNIST-1D", "mnist1d", 1000,
                 lambda seed: models.mlp((40, 64, 10), seed=seed), batch_size=50, dtype=torch.float64)
_FEW = replace(_SIGNALS, label="MLP 40-64-10, 500 signals of MNIST-1D", train_size=500, batch_size=25)
_CIFAR = World("ResNet-8, CIFAR-10, up to 7 epochs", "cifar10", None, lambda seed: models.resnet(8, seed=seed),
               batch_size=128, augment=shift_and_flip(4, flip=True), many=False)
_SMALL_CIFAR = replace(_CIFAR, label="ResNet-8 of width 8, CIFAR-10",
                       model=lambda seed: models.resnet(8, width=8, seed=seed))
_TOY = World("ResNet-8, digits", "digits", 128, lambda seed: models.resnet(8, width=4, channels=1, seed=seed),
             batch_size=32, augment=shift_and_flip(1, flip=False), many=False)
_TINY = replace(_TOY, label="MLP with BatchNorm, digits",
                model=lambda seed: models.mlp((64, 8, 10), norm=True, seed=seed))

_EPOCH = 390  # batches of 128 in CIFAR-10
_JUDGING = range(2000, 2020)
ANYTIME = {
    "quick": Anytime(_SIGNALS, steps=1500, t_0=100, every=100, lr_adam=powers(-5, -1), lr_sgd=powers(-4, 0),
                     l2=powers(-12, -8), lambda_norm=powers(-3, 1), seeds=_JUDGING),
    # Cut to the budget, as the two below. Before: ResNet-20, 75 epochs, T_0 of 5; 32 and 72 epochs.
    "full": Anytime(_CIFAR, steps=7 * _EPOCH, t_0=_EPOCH, every=_EPOCH, lr_adam=1e-3, lr_sgd=0.05, l2=(1e-4,),
                    lambda_norm=0.05, seeds=2),
    "toy": Anytime(_TOY, steps=12, t_0=4, every=4, lr_adam=1e-3, lr_sgd=0.05, l2=(0.0,), lambda_norm=0.05, seeds=2),
}
BUDGETS = {
    "quick": Budgets(_FEW, steps=(150, 600, 2400), lr=2.0**-5, decays=powers(-10, -4), seeds=_JUDGING),
    "full": Budgets(_CIFAR, steps=(_EPOCH // 4, _EPOCH, 4 * _EPOCH), lr=1e-3, decays=powers(-14, -8)[::2], seeds=1),
    "toy": Budgets(_TINY, steps=(2, 4, 8), lr=1e-3, decays=(0.001, 0.01, 0.1), seeds=2),
}
LONG = {
    "quick": LongAdam(_FEW, _FEW, steps=18 * 300, lrs=powers(-8, -4), l2s=powers(-13, -9), short_lrs=powers(-6, -2),
                      lambda_norm=powers(-7, -3), seeds=_JUDGING),
    "full": LongAdam(_CIFAR, _SMALL_CIFAR, steps=6 * _EPOCH, lrs=(1e-4, 1e-3), l2s=(1e-5, 1e-4), short_lrs=(1e-3,),
                     lambda_norm=(0.025, 0.05), seeds=1),
    "toy": LongAdam(_TINY, _TINY, steps=36, lrs=(1e-3, 1e-2), l2s=(1e-4, 1e-3), short_lrs=(1e-3,), lambda_norm=(0.05,),
                    seeds=2),
}


def anytime_grid(s: Anytime, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return Fig. 4's optimizers at each of their rates, decays and seeds: equally many trials in the quick profile."""
    adamw, sgdw = {"rule": "adamw"}, {"rule": "sgdw", "momentum": 0.9}
    once, again = {"schedule": "cosine"}, {"schedule": "restarts", "t_0": s.t_0}
    norm = ("lambda_norm", s.lambda_norm)
    return configs([("Adam", {"rule": "adam"} | once, s.lr_adam, "weight_decay", s.l2),
                    ("AdamW", adamw | once, s.lr_adam, *norm), ("AdamWR", adamw | again, s.lr_adam, *norm),
                    ("SGDW", sgdw | once, s.lr_sgd, *norm), ("SGDWR", sgdw | again, s.lr_sgd, *norm)], seeds)


def long_grids(s: LongAdam, seeds: Sequence[int]) -> dict[str, tuple[World, int, list[dict[str, Any]]]]:
    """Return what each of SuppFig. 2's methods trains, for how long, and its settings."""
    adam, adamw = ("Adam, fixed", {"rule": "adam", "schedule": "constant"}), ("AdamW, 1/18", {"rule": "adamw"})
    return {adam[0]: (s.world, s.steps, configs([(*adam, s.lrs, "weight_decay", s.l2s)], seeds)),
            adamw[0]: (s.small, s.steps // 18, configs([(*adamw, s.short_lrs, "lambda_norm", s.lambda_norm)], seeds))}


def chosen(grid: Sequence[dict[str, Any]], found: dict[str, Tuned], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return each method of a grid at its tuned setting, once a seed."""
    first = {config["method"]: config for config in reversed(grid)}
    return [first[method] | tuned.setting | {"seed": seed} for method, tuned in found.items() for seed in seeds]


def ends(t_0: int, t_mult: int, budget: int) -> list[int]:
    """Return the steps at which the periods of restarts end, up to the budget."""
    found, length = [], t_0
    while sum(found[-1:]) + length <= budget:
        found.append(sum(found[-1:]) + length)
        length *= t_mult
    return found


def optimum(table: pd.DataFrame) -> pd.DataFrame:
    r"""Return :math:`\log_2` of the best decay for each method, seed and budget.

    That is the vertex of the parabola through the lowest point and its neighbours, or that point at the grid's edge.
    """
    curves: Any = table.groupby(["method", "seed", "budget", "weight_decay"], sort=False)["test_error"].mean()
    found = []
    for key, curve in curves.groupby(level=["method", "seed", "budget"], sort=False):
        errors, grid = curve.to_numpy(), np.log2(curve.index.get_level_values("weight_decay").to_numpy())
        k = int(errors.argmin())
        shift = 0.0
        if 0 < k < len(grid) - 1:
            low, mid, high = errors[k - 1 : k + 2]
            shift = 0.5 * (low - high) / (low - 2 * mid + high) if low - 2 * mid + high > 0 else 0.0
        found.append((*key, grid[k] + shift * (grid[1] - grid[0]), k in (0, len(grid) - 1)))
    return pd.DataFrame(found, columns=["method", "seed", "budget", "log2_decay", "edge"])


def exponents(best: pd.DataFrame, method: str) -> list[float]:
    r"""Return for each seed the exponent p of :math:`\lambda^*\propto T^p`, by least squares over the budgets."""
    part = best[best["method"] == method]
    return [float(np.polyfit(np.log2(own["budget"]), own["log2_decay"], 1)[0]) for _, own in part.groupby("seed")]
