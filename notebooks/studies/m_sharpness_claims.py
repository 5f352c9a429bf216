"""The claims of notebook 04, from its tables: the same for the quick and the full profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sharpnb.lab.claims import Claim
from studies import m_sharpness as study
from studies.m_sharpness import Settings

_SAM = {"paper": "SAM (ICLR 2021)", "kind": "order", "why": "threshold 0; seeds decide"}


def claims(trained: Any, family: Any, s: Settings, profile: str, tag: str = "") -> list[Claim]:
    """Return the claims on Fig. 3 middle and right, from two tables of settings ``s``; without one some are not run."""
    made: list[Claim] = []

    def claim(there: Any, ident: str, statement: str, samples: Callable[[], Any], **more: Any) -> None:
        made.append(Claim.from_samples(samples() if there is not None else None, id=ident + tag, statement=statement,
                                       **_SAM | more | {"profile": profile}))

    for noise in s.noises:
        _of_training(trained, s, claim, noise)
    _of_prediction(family, s, claim)
    return made


def _of_training(trained: Any, s: Settings, claim: Callable[..., None], noise: float) -> None:
    ms = list(s.rhos)
    batch, shared = ms[-1], next(rho for rho in s.rhos[ms[0]] if all(rho in radii for radii in s.rhos.values()))
    label = f"{s.label}, {noise:.0%} wrong labels" if noise else s.label
    note = {"protocol": label, "item": "Fig. 3 middle", "unit": "points"}

    def gain(m: int, radii: Callable[[int], Sequence[float]]) -> Any:
        return np.subtract(*(study.best(trained, each, noise, radii(each))[1] for each in (batch, m)))

    for m in ms[:-1]:
        name, lower = f"{m}-{100 * noise:.0f}", f"m = {m} has a lower error than m = {batch} (difference above 0)"
        claim(trained, f"sam-fig3-m{name}", f"At its best radius {lower}",
              lambda m=m: gain(m, s.rhos.__getitem__), **note)
        claim(trained, f"sam-fig3-same-m{name}", f"At ρ = {shared} {lower}",
              lambda m=m: gain(m, lambda _: [shared]), **note)


def _of_prediction(family: Any, s: Settings, claim: Callable[..., None]) -> None:
    table: Any = None if family is None else study.predictive(s, family)
    small, large, size = s.measured[0], s.measured[-1], math.prod(len(axis) for axis in s.family.values())
    note = {"item": "Fig. 3 right", "protocol": f"family of {size} nets, {s.label}"}

    def rise(column: str) -> Any:
        wide = table.pivot_table(index="seed", columns="m", values=column)
        return wide[small] - wide[large]

    for column, name in (("information", "conditional mutual information with the gap"),
                         ("tau", "rank correlation with the gap")):
        claim(family, f"sam-fig3-{column}",
              f"The {name} is higher at m = {small} than at m = {large} (difference above 0)",
              lambda column=column: rise(column), paper_value="rises as m falls", **note)
    claim(family, "sam-fig3-positive", f"m-sharpness orders nets by their gap: τ is above 0 at m = {small}",
          lambda: table[table["m"] == small]["tau"], **note | {"item": "section 4.1"})
