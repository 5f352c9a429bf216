"""The claims of notebook 01 on Fig. 6, from its rows: the same for the quick and the full profile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sharpnb.lab.claims import Claim
from studies import sam as study

_PAIRS = {"l2-linf": ("max-norm", "2-norm", "the 2-norm ball beats the max-norm ball"),
          "linf-random": ("random", "max-norm", "the max-norm ball beats a random direction"),
          "l2-random": ("random", "2-norm", "the 2-norm ball beats a random direction")}


def fig6(rows: Sequence[dict[str, Any]] | None, grid: float, tag: str = "", **note: Any) -> list[Claim]:
    """Return the claims on Fig. 6; without rows they are not run.

    ``grid`` is the factor between two radii, ``tag`` ends the ids, ``note`` is what all of the claims say. Best radii
    at the edge of their grids say nothing of each other: their ratio is then not comparable.
    """
    best = {kind: study.best_radius(rows, kind) for kind in study.KINDS} if rows else {}
    error = {kind: np.array(study.errors_at(rows or [], kind=kind, rho=rho)) for kind, rho in best.items()}
    made = [Claim.from_samples(error[worse] - error[better] if rows else None, id=f"sam-fig6-{ident}{tag}",
                               item="Fig. 6", kind="order", unit="points",
                               statement=f"At its best radius {text} (difference above 0)", **note)
            for ident, (worse, better, text) in _PAIRS.items()]
    ratio: dict[str, Any] = {}
    if rows:
        tried = {kind: {row["rho"] for row in rows if row["kind"] == kind} for kind in best}
        inside = all(min(tried[kind]) < best[kind] < max(tried[kind]) for kind in ("2-norm", "max-norm"))
        ratio = {"measured": best["2-norm"] / best["max-norm"], "stderr": 0.0, "comparable": inside}
    return [*made, Claim(f"sam-fig6-scale{tag}", item="Fig. 6", kind="ratio", tolerance=1.0,
                         statement="The best radius of the max-norm is smaller than that of the 2-norm (ratio above 1)",
                         **note | {"why": f"threshold 1; one grid point is a factor of {grid:g}"} | ratio)]
