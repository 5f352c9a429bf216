r"""Trace of a symmetric operator from products, with its standard error.

Hutchinson (Communications in Statistics 19, 1990), for random signs z:

.. math:: \mathrm{tr} A = \mathbb{E}\, z^\top A z, \qquad
          \mathrm{Var} = 2\big(\|A\|_F^2 - \textstyle\sum_i A_{ii}^2\big)

Hutch++ (Meyer, Musco, Musco & Woodruff, SOSA 2021, Algorithm 1): with Q an orthonormal basis of AS for random S, the
trace on the range of Q is exact and Hutchinson only sees the rest:

.. math:: \mathrm{tr} A = \mathrm{tr}(Q^\top A Q) + \mathbb{E}\, z^\top (I-QQ^\top)A(I-QQ^\top) z
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sharpnb.curvature.lanczos import dot, products, rademacher_row, work_dtype

BLOCK = 8  # vectors multiplied together


@dataclass(frozen=True)
class TraceEstimate:
    """An estimate of a trace.

    Attributes:
        value: the estimate.
        stderr: its standard error over probes (0 when nothing random is left, NaN with one probe).
        samples: one estimate a probe ``(P,)``; ``value`` is their mean.
        method, products: how, and operator-vector products used.
    """

    value: float
    stderr: float
    samples: np.ndarray
    method: str
    products: int


def trace(
    op: Any, products: int = 30, method: Literal["hutch++", "hutchinson"] = "hutch++", seed: int = 0
) -> TraceEstimate:
    """Estimate the trace.

    Args:
        op: symmetric operator (anything with ``shape``, ``dtype``, ``device`` and ``@``).
        products: operator-vector products to spend. 30 is the least that gives Hutch++ ten probes.
        method: ``"hutch++"`` (default: a trained network's few outliers hold most of its variance) or ``"hutchinson"``.
        seed: of the probes.

    Raises:
        ValueError: if there are too few products for the method, or the method is unknown.
    """
    least = {"hutch++": 6, "hutchinson": 2}
    if products < least.get(method, math.inf):
        raise ValueError(f"method = {method!r}, products = {products}: choose 'hutch++' with at least 6 products or "
                         "'hutchinson' with at least 2, the least that state an error.")
    if method == "hutchinson":
        samples = _quadratic_forms(op, [rademacher_row(op, seed, i) for i in range(products)])
        return _estimate(0.0, samples, method, products)
    third = min(products // 3, op.shape[0])
    sketch = _multiply(op, [rademacher_row(op, seed, products + i) for i in range(third)])
    basis = torch.linalg.qr(torch.stack(sketch).T).Q.T.contiguous()
    on_range = float(_quadratic_forms(op, list(basis)).sum())
    if third == op.shape[0]:
        return _estimate(on_range, np.zeros(2), method, 2 * third)
    probes = [rademacher_row(op, seed, i) for i in range(products - 2 * third)]
    samples = _quadratic_forms(op, [z - basis.T @ (basis @ z) for z in probes])
    return _estimate(on_range, samples, method, products)


def _estimate(exact: float, samples: np.ndarray, method: str, used: int) -> TraceEstimate:
    each = exact + samples
    return TraceEstimate(float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each))), each, method, used)


def _multiply(op: Any, vectors: list[Tensor]) -> list[Tensor]:
    return [w for i in range(0, len(vectors), BLOCK) for w in products(op, vectors[i : i + BLOCK])]


def _quadratic_forms(op: Any, vectors: list[Tensor]) -> np.ndarray:
    return np.array([dot(v.to(work_dtype(op)), w) for v, w in zip(vectors, _multiply(op, vectors), strict=True)])
