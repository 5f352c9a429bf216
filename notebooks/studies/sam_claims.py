"""The claims of notebook 01, from its tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim
from sharpnb.lab.notebook import Notebook
from studies import sam as study

_FIRST = "The first-order form ends with a lower test error than the second-order form"
_MORE = "More ascent steps improve the test error by less than"
_PAIRS = {"l2-linf": ("max-norm", "2-norm", "the 2-norm ball beats the max-norm ball"),
          "linf-random": ("random", "max-norm", "the max-norm ball beats a random direction"),
          "l2-random": ("random", "2-norm", "the 2-norm ball beats a random direction")}


def claims(
    nb: Notebook, s: study.Settings, tables: dict[str, pd.DataFrame], gradients: float, bounds: Sequence[float],
    test_error: float, later: pd.DataFrame | None,
) -> list[Claim]:
    """Return all claims.

    Args:
        nb: whose profile they are.
        s: the settings of the live ``tables``: ``"orders"``, ``"kinds"``, ``"inner"``.
        tables: of the experiments.
        gradients: counted for a step of SAM.
        bounds: of the theorem, a radius each, for a net of this ``test_error``, both as shares.
        test_error: see there.
        later: the full profile's table of kinds, or None until it is run.
    """
    sam = {"paper": "SAM (ICLR 2021)", "protocol": s.label, "profile": nb.profile, "why": "threshold 0; seeds decide"}
    made = [claim for noise in s.noises for claim in _of_noise(tables["orders"], tables["inner"], noise, sam)]
    made += fig6(tables["kinds"], 2, **sam)
    made += [
        Claim("sam-cost", item="section 2", kind="value", paper_value=2, tolerance=0.5, measured=gradients, stderr=0.0,
              statement="A step costs two gradients", **sam | {"protocol": "counted", "why": "half a gradient"}),
        Claim("sam-theorem", item="Appendix A", kind="sign", measured=min(bounds) - test_error, stderr=0.0,
              statement="The bound lies above the test error (smallest difference over ρ above 0)", **sam | {
                  "protocol": "error instead of loss; every value of the bound is above 1, so it cannot fail",
                  "comparable": False}),
    ]
    if nb.full:
        return made
    full = sam | {"profile": "full", "protocol": study.FULL.label, "kind": "order"}
    others = {"orders": ("fig4", "Fig. 4", _FIRST), "inner": ("table11", "Table 11", f"{_MORE} 0.15 points")}
    made += fig6(later, 10, "-full", **{key: value for key, value in full.items() if key != "kind"})
    return made + [Claim(f"sam-full-{name}", item=item, statement=text, **full)
                   for record, (name, item, text) in others.items() if nb.full_record(record, of=study.FULL) is None]


def _of_noise(orders: pd.DataFrame, inner: pd.DataFrame, noise: float, sam: dict[str, Any]) -> list[Claim]:
    """Return the claims on Figs 4 and 5 and Table 11 at one share of wrong labels."""
    tag, end = "noisy" if noise else "clean", {"noise": noise, "step": orders["step"].max()}
    note = sam | {"protocol": f"{sam['protocol']}, {f'{noise:.0%} wrong' if noise else 'clean'} labels"}
    first, second = (study.by_seed(orders, "test_error", order=order, **end) for order in ("first", "second"))
    half = (orders["step"] > 0) & (orders["step"] <= orders["step"].max() / 2)
    early = study.by_seed(orders[half], "cosine", noise=noise)
    at_end = {"noise": noise, "step": inner["step"].max()}
    one, *more = (study.by_seed(inner, "test_error", inner=count, **at_end) for count in study.INNER)
    low, high = (study.by_seed(inner, "sharpness", inner=count, **at_end) for count in (1, 5))
    gain = max((one - other for other in more), key=np.mean)
    return [
        Claim.from_samples(second - first, id=f"sam-fig4-{tag}", item="Fig. 4", kind="order", unit="points", **note,
                           statement=f"{_FIRST} (difference above 0)"),
        Claim.from_samples(early - study.by_seed(orders, "cosine", **end), id=f"sam-fig5-{tag}", item="Fig. 5",
                           kind="trend", **note, statement="The cosine of the two updates is lower at the end than in "
                           "the first half (difference above 0)"),
        Claim.from_samples(early, id=f"sam-fig5-early-{tag}", item="Fig. 5", kind="value", paper_value=1.0,
                           tolerance=0.05, statement="The cosine of the two updates is near 1 in the first half",
                           **note | {"why": "read off a curve, to about 0.05"}),
        Claim.from_samples(high - low, id=f"sam-table11-sharpness-{tag}", item="Table 11", kind="order", unit="points",
                           paper_value="0.17 → 2.26 (CIFAR-10)", **note,
                           statement="Five ascent steps find a larger rise than one at the end (difference above 0)"),
        Claim.from_samples(0.15 - gain, id=f"sam-table11-error-{tag}", item="Table 11", kind="sign", unit="points",
                           paper_value="at most 0.13", statement=f"{_MORE} 0.15 points (0.15 minus the largest gain)",
                           **note | {"why": "the largest gain in the table, rounded up"}),
    ]


def fig6(kinds: pd.DataFrame | None, grid: float, tag: str = "", **note: Any) -> list[Claim]:
    """Return the claims on Fig. 6; without a table they are not run.

    ``grid`` is the factor between two radii, ``tag`` ends the ids, ``note`` is what all of the claims say. Best radii
    at the edge of their grids say nothing of each other: their ratio is then not comparable.
    """
    best = {kind: study.best_radius(kinds, kind) for kind in study.KINDS} if kinds is not None else {}
    error = {kind: study.by_seed(kinds, "test_error", kind=kind, rho=rho) for kind, rho in best.items()}
    made = [Claim.from_samples(error[worse] - error[better] if best else None, id=f"sam-fig6-{ident}{tag}",
                               item="Fig. 6", kind="order", unit="points",
                               statement=f"At its best radius {text} (difference above 0)", **note)
            for ident, (worse, better, text) in _PAIRS.items()]
    ratio: dict[str, Any] = {}
    if kinds is not None:
        tried = {kind: set(kinds.loc[kinds["kind"] == kind, "rho"]) for kind in best}
        inside = all(min(tried[kind]) < best[kind] < max(tried[kind]) for kind in ("2-norm", "max-norm"))
        ratio = {"measured": best["2-norm"] / best["max-norm"], "stderr": 0.0, "comparable": inside}
    return [*made, Claim(f"sam-fig6-scale{tag}", item="Fig. 6", kind="ratio", tolerance=1.0,
                         statement="The best radius of the max-norm is smaller than that of the 2-norm (ratio above 1)",
                         **note | {"why": f"threshold 1; one grid point is a factor of {grid:g}"} | ratio)]
