"""What a measurement will take, said before it begins: products counted, and timed on some."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sharpnb.curvature import ModelOperator
from sharpnb.curvature.lanczos import norm, orthogonalize, work_dtype

BRIEF = 0.1  # seconds of a product: below, a block of vectors is timed whole; above, two vectors say enough
APIECE = 5e-4  # seconds a product on top, for small eigenproblems: what was left over on nets of 200 parameters
ROWS, NORMS = 4, 5  # rows of a basis against which a vector is orthogonalised to time it; norms in a step


class Cost(NamedTuple):
    """Products, and the seconds that they take."""

    products: int
    seconds: float

    def __str__(self) -> str:
        return f"about {self.products} products, {duration(self.seconds)}"


def stated(op: ModelOperator, settings: Any, group: int) -> Cost:
    """Return what measuring with ``settings``, ``group`` probes at a time, will take; some products are made and timed.

    The largest k eigenvalues of networks, verified, took 13 to 22 products for k = 1, 21 to 34 for k = 5, 24 to 53 for
    k = 10, and locking outliers some 25 (perceptrons, CNNs and ResNet-8, untrained and trained).
    """

    def seconds(work: Callable[[Any], Any], v: Any) -> float:
        _wait(op)
        start = time.perf_counter()
        work(v)
        _wait(op)
        return time.perf_counter() - start

    def drawn(*shape: int) -> Any:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(op.device, op.dtype)

    singles = (12 + 3 * settings.top if settings.top else 0) + (25 if settings.probes else 0)
    steps = min(settings.steps, op.n)
    probes = settings.probes * steps
    seconds(op.__matmul__, drawn(op.n, 1))  # builds the graphs that are kept
    each = one = seconds(op.__matmul__, drawn(op.n, 1))
    if probes and group > 1 and one < BRIEF:
        each = seconds(op.__matmul__, drawn(op.n, group)) / group
    elif probes and group > 1:
        more = max(seconds(op.__matmul__, drawn(op.n, 2)) - one, one / 10)  # of a second vector: the graph is there
        each = (one + (group - 1) * more) / group
    op.products = 0  # those were not for the measurement
    rows = drawn(ROWS, op.n).to(work_dtype(op))
    pair = seconds(lambda row: orthogonalize(row, [rows]), rows.sum(dim=0)) / ROWS
    step = NORMS * seconds(norm, rows[0]) + APIECE
    pairs = singles**2 // 2 + probes * steps // 2  # of vectors made orthogonal
    return Cost(singles + probes, singles * one + probes * each + pairs * pair + (singles + probes) * step)


def _wait(op: ModelOperator) -> None:
    if op.device.type == "cuda":
        torch.cuda.synchronize(op.device)


def duration(seconds: float) -> str:
    """Return a time as people say it, in two digits."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} seconds"
