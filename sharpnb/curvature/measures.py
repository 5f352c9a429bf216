r"""One network's row of a table of measures, and how well a column orders networks.

Kendall's rank correlation of a measure x and a target y over networks:

.. math:: \tau_b = \frac{\sum_{i<j}\mathrm{sign}(x_i-x_j)\,\mathrm{sign}(y_i-y_j)}
                        {\sqrt{\#\{x_i\ne x_j\}\;\#\{y_i\ne y_j\}}}

(Jiang et al., ICLR 2020, section 4; ties as in Kendall, Biometrika 33, 1945).
"""

from __future__ import annotations

from collections.abc import Iterator
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


def measure(  # noqa: D417  some in one line
    model: nn.Module, loss: Loss, data: Any, rho: float = 0.05, m: int | None = None, *, mode: Mode = "eval",
    steps: int = 60, probes: int = 8, seed: int = 0, reduction: Reduction = "mean", count: Count | None = None,
) -> dict[str, float]:
    """Return one network's row of a table of measures.

    Args:
        model, loss, data, mode, reduction, count: as of :class:`~sharpnb.curvature.hessian.HessianOperator`.
        rho: radius of the sharpness measures; the adaptive ball has ten times it (ASAM's own ratio, 0.5 to 0.05).
        m: samples a group, for m-sharpness; default all of the data.
        steps, probes: of the spectral density.
        seed: of everything random.

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


def kendall_tau(x: Any, y: Any) -> float:
    """Return Kendall's tau-b of two equally long sequences; NaN if either is constant."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    dx, dy = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    pairs = np.sqrt(np.count_nonzero(dx) * np.count_nonzero(dy))
    return float((dx * dy).sum() / pairs) if pairs else float("nan")
