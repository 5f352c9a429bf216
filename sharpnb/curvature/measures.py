r"""Many measures of many networks, and whether any of them predicts anything.

A measure predicts a target over K networks as far as it orders them: Kendall's rank correlation

.. math:: \tau_b = \frac{\sum_{i<j}\mathrm{sign}(x_i-x_j)\,\mathrm{sign}(y_i-y_j)}
                        {\sqrt{\#\{x_i\ne x_j\}\;\#\{y_i\ne y_j\}}}

(Jiang et al., ICLR 2020, section 4; ties as in Kendall, Biometrika 33, 1945), with a percentile bootstrap interval over
the networks (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sharpnb.counts import Count, Reduction
from sharpnb.curvature._state import Mode
from sharpnb.curvature.density import spectral_density
from sharpnb.curvature.hessian import HessianOperator
from sharpnb.curvature.operators import Loss
from sharpnb.curvature.sharpness import average_sharpness, sharpness

BOOTSTRAP = 2000  # resamples: the ends of a 95 % interval are then averages over 50


@dataclass(frozen=True)
class RankCorrelation:
    """How well one measure orders networks by a target.

    Attributes:
        measure: its name.
        tau: Kendall's tau-b in [-1, 1]; NaN if the measure or the target is constant.
        lower, upper: 95 % bootstrap interval over the networks.
        n: networks with a finite measure and target.
    """

    measure: str
    tau: float
    lower: float
    upper: float
    n: int


def measure(
    model: nn.Module, loss: Loss, data: Any, rho: float = 0.05, m: int | None = None, *, mode: Mode = "eval",
    steps: int = 60, probes: int = 8, seed: int = 0, reduction: Reduction = "mean", count: Count | None = None,
) -> dict[str, float]:
    """Return one network's row of a table of measures.

    Args:
        model: the network.
        loss: ``loss(output, target)``, one number.
        data: a batch, a list of batches or a ``DataLoader``; see :mod:`sharpnb.batches`.
        rho: radius of the sharpness measures; the adaptive ball has ten times it (ASAM's own ratio, 0.5 to 0.05).
        m: samples a group, for m-sharpness; default all of the data.
        mode: as of :class:`~sharpnb.curvature.hessian.HessianOperator`.
        steps: Lanczos steps a probe of the spectral density.
        probes: its probes.
        seed: of everything random.
        reduction: what the loss does within a batch, as of :class:`~sharpnb.curvature.hessian.HessianOperator`.
        count: loss terms of a batch, as there.

    Returns:
        Spectrum (``lambda_max``, ``lambda_min``, ``ratio_1_5``, ``trace``, ``frobenius``, ``moment_3``), sharpness
        (``sharpness``, ``sharpness_worst`` by 20 steps, ``sharpness_adaptive``, ``sharpness_average``), and the sizes
        ``gradient_norm`` and ``weight_norm``. NaN where a measure does not exist.
    """
    data = list(data) if isinstance(data, Iterator) else data  # it is read several times
    options: dict[str, Any] = {"mode": mode, "reduction": reduction, "count": count}
    op = HessianOperator(model, loss, data, **options)
    spectrum = spectral_density(op, steps, probes, seed=seed)
    options["seed"] = seed
    return {
        "lambda_max": spectrum.lambda_max,
        "lambda_min": spectrum.lambda_min,
        "ratio_1_5": spectrum.ratio(1, 5) if len(spectrum.top) >= 5 else float("nan"),
        "trace": spectrum.trace.value,
        "frobenius": spectrum.frobenius.value,
        "moment_3": float(spectrum.moments(3).value[2]),
        "sharpness": sharpness(model, loss, data, rho, m, **options).value,
        "sharpness_worst": sharpness(model, loss, data, rho, m, steps=20, **options).value,
        "sharpness_adaptive": sharpness(model, loss, data, 10 * rho, m, adaptive=True, **options).value,
        "sharpness_average": average_sharpness(model, loss, data, rho / op.n**0.5, **options).value,
        "gradient_norm": float(op.gradient().double().norm()),
        "weight_norm": float(torch.cat([p.detach().reshape(-1).double() for p in op.params]).norm()),
    }


def predictive_power(
    table: Sequence[Mapping[str, float]] | Mapping[str, Iterable[float]], target: str,
    measures: Sequence[str] | None = None, *, seed: int = 0,
) -> list[RankCorrelation]:
    """Return the rank correlation of each measure with the target, strongest first.

    Args:
        table: one mapping a network, or one column a measure (a pandas data frame is that).
        target: name of the column to predict, such as ``"test_error"``.
        measures: names of the columns; default every other one.
        seed: of the bootstrap.

    Raises:
        ValueError: if a column is missing or columns have different lengths.
    """
    columns = _columns(table)
    for name in (target, *(measures or ())):
        if name not in columns:
            raise ValueError(f"The table has no column {name!r}. It has: {', '.join(columns)}.")
    y = columns[target]
    found = [_correlate(name, columns[name], y, seed) for name in measures or columns if name != target]
    return sorted(found, key=lambda r: -abs(r.tau) if np.isfinite(r.tau) else 1.0)


def kendall_tau(x: Any, y: Any) -> float:
    """Return Kendall's tau-b of two equally long sequences; NaN if either is constant."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    dx, dy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    pairs = np.sqrt(np.count_nonzero(dx) * np.count_nonzero(dy))
    return float((dx * dy).sum() / pairs) if pairs else float("nan")


def _correlate(name: str, x: np.ndarray, y: np.ndarray, seed: int) -> RankCorrelation:
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(x), len(x)) for _ in range(BOOTSTRAP if len(x) else 0))
    taus = np.array([kendall_tau(x[i], y[i]) for i in draws])
    taus = taus[np.isfinite(taus)]
    lower, upper = np.quantile(taus, [0.025, 0.975]) if len(taus) else (float("nan"), float("nan"))
    return RankCorrelation(name, kendall_tau(x, y), float(lower), float(upper), len(x))


def _columns(table: Any) -> dict[str, np.ndarray]:
    if isinstance(table, Mapping) or hasattr(table, "columns"):
        columns = {name: np.asarray(list(table[name]), dtype=float) for name in table}
    else:
        names = dict.fromkeys(name for row in table for name in row)
        columns = {name: np.array([row.get(name, np.nan) for row in table], dtype=float) for name in names}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"Columns have different lengths: {lengths}. Each network needs one value a measure; "
                         "NaN says that there is none.")
    return columns
