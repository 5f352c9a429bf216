"""What notebooks 14, 16 and 17 share: MNIST-1D drawn by each seed, and the tuning of hyperparameters on other seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from sharpnb.lab import Data, Many, load_data, models, train_many
from studies.trials import SEEDS as TUNING
from studies.trials import edges, grid

Trial = dict[str, Any]
Axes = Mapping[str, Sequence[float]]
HELD_OUT = 99  # the seed of the 4,000 signals that tuning looks at


@dataclass(frozen=True, kw_only=True)
class Signals:
    """An MLP on MNIST-1D; each judging seed makes its training signals, weights and batches.

    Chosen on SGD alone. A decay of 0.016 costs the fit (training error 21 %) and lowers the held-out error by 0.3
    points: hence :attr:`FITS`.
    """

    sizes: tuple[int, ...] = (40, 64, 64, 10)
    norm: bool = False
    train_size: int = 1000
    steps: int = 1200
    batch: int = 50
    seeds: range = range(2000, 2020)
    label: str = "MLP 40-64-64-10, 1,000 signals of MNIST-1D"

    FITS = 1.0  # percent: a trial of whatever method with a larger training error is no candidate for its best

    def model(self, seed: int) -> nn.Module:
        """The net of a seed."""
        return models.mlp(self.sizes, norm=self.norm, seed=seed)

    def data(self, seed: int, held_out: bool = False) -> Data:
        """The training signals of a seed, with the test set or, for tuning, with ``held_out`` signals in its place."""
        return _drawn(self.train_size, seed, held_out)

    def train(self, configs: Sequence[Mapping[str, Any]], *, held_out: bool = False, **options: Any) -> Many:
        """Train settings, each with its ``seed``, on their signals."""
        sets = [self.data(config["seed"], held_out) for config in configs]
        options = {"steps": self.steps, "batch_size": self.batch, "device": "cpu", "dtype": torch.float64} | options
        return train_many(configs, sets, self.model, **options)

    def tuned(self, axes: Axes, setting: Callable[[Trial], Mapping[str, Any]], **options: Any) -> dict[str, Any]:
        """Try all values of the axes at the tuning seeds; ``setting`` makes a trial one of :meth:`train`."""
        trials = grid(**axes)
        rows = self.train([{**setting(trial), "seed": seed} for trial in trials for seed in TUNING], held_out=True,
                          **options).final()
        return self.chosen(axes, trials, rows)

    def chosen(self, axes: Axes, trials: Sequence[Trial], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Choose a trial; ``rows`` are what was measured at each tuning seed, seeds varying fastest.

        Return ``best``, of the trials that fit (or come nearest) the one with the lowest mean held-out error (of its
        average, where it has one); ``edge``, what is there the axis's first or last value; ``trials``.
        """
        errors, fits = (np.reshape([row.get(f"average_{name}", row[name]) for row in rows], (len(trials), -1)).mean(1)
                        for name in ("test_error", "train_error"))
        best = trials[int(np.where(fits <= max(self.FITS, fits.min()), errors, np.inf).argmin())]
        return {"best": best, "edge": edges(best, trials, fewest=1),
                "trials": [{**trial, "held_out_error": error, "train_error": fit}
                           for trial, error, fit in zip(trials, errors.tolist(), fits.tolist(), strict=True)]}


def protocol(tuned: Mapping[str, Any], *told: str) -> str:
    """Return what is told, and which of the ``tuned`` methods' settings are best at an end of their grid."""
    return ", ".join([*told, *(f"{method}'s {name} at the grid's edge" for method, found in tuned.items()
                               for name in found.get("edge", ()))])


@cache
def _drawn(size: int, seed: int, held_out: bool) -> Data:
    data = load_data("mnist1d", train_size=size, seed=seed, dtype=torch.float64)
    if not held_out:
        return data
    x, y = load_data("mnist1d", train_size=4000, seed=HELD_OUT, dtype=torch.float64).train
    return replace(data, test_x=x, test_y=y)
