"""What a measurement will take, said before it begins: products counted, and timed on some."""

from __future__ import annotations

import time
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

    The largest k eigenvalues of networks, verified, took between 13 and 22 products for k = 1, 21 and 34 for k = 5, 24
    and 53 for k = 10, and locking outliers some 25 (perceptrons, CNNs and ResNet-8, untrained and trained). The probes'
    number is known.
    """
    singles = (12 + 3 * settings.top if settings.top else 0) + (25 if settings.probes else 0)
    probes = settings.probes * min(settings.steps, op.n)
    one = _seconds(op, 1, warm=True)
    each = one
    if probes and group > 1 and one < BRIEF:
        each = _seconds(op, group) / group
    elif probes and group > 1:
        more = max(_seconds(op, 2) - one, one / 10)  # a second vector, of which the graph is there
        each = (one + (group - 1) * more) / group
    op.products = 0  # those were not for the measurement
    pairs = singles**2 // 2 + probes * min(settings.steps, op.n) // 2  # of vectors made orthogonal
    pair, step = _seconds_of_vectors(op)
    seconds = singles * one + probes * each + pairs * pair + (singles + probes) * (step + APIECE)
    return Cost(singles + probes, seconds)


def _seconds(op: ModelOperator, vectors: int, warm: bool = False) -> float:
    v = torch.randn(op.n, vectors, generator=torch.Generator().manual_seed(0)).to(op.device, op.dtype)
    if warm:
        _ = op @ v  # builds the graphs that are kept
    _wait(op)
    start = time.perf_counter()
    _ = op @ v
    _wait(op)
    return time.perf_counter() - start


def _seconds_of_vectors(op: ModelOperator) -> tuple[float, float]:
    """Return the seconds of orthogonalising against one row, and of the rest of a step."""
    rows = torch.randn(ROWS, op.n, generator=torch.Generator().manual_seed(0)).to(op.device, work_dtype(op))
    row = rows.sum(dim=0)
    _wait(op)
    start = time.perf_counter()
    orthogonalize(row, [rows])
    _wait(op)
    middle = time.perf_counter()
    norm(row)
    return (middle - start) / ROWS, NORMS * (time.perf_counter() - middle)


def _wait(op: ModelOperator) -> None:
    if op.device.type == "cuda":
        torch.cuda.synchronize(op.device)


def duration(seconds: float) -> str:
    """Return a time as people say it, in two digits."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.2g} {unit}"
    return f"{seconds:.2g} seconds"
