"""The claims of notebook 04, from its tables: the same for every profile."""

import math
from typing import Any

import pandas as pd

from sharpnb.lab import Claim
from sharpnb.lab.claims import Regime
from sharpnb.lab.verdicts import paired
from studies import m_sharpness as study
from studies.m_sharpness import Settings

_RECORDS = {("full", "trained"): "full/trained", ("full", "family"): "full/family",
            ("mid", "trained"): "mid/fashion", ("mid", "family"): "mid/fashion-family"}


def claims(trained: pd.DataFrame | None, family: pd.DataFrame | None, s: Settings, profile: str,
           twice: float | None = None) -> list[Claim]:
    """Return the claims on Fig. 3 middle and right, from two tables of settings ``s``; without one some are not run.

    ``twice`` is SGD's test error after twice the updates. The full profile's correlation stands below the one that is
    judged, on the pool of notebook 18.
    """
    made = [_of_training(trained, s, profile, twice)]
    rise = small = information = regime = None
    if family is not None:
        found = study.predictive(s, family).pivot(index="seed", columns="m")
        first, last = s.measured[0], s.measured[-1]
        rise, information = (found[name][first] - found[name][last] for name in ("tau", "information"))
        small, regime = found["tau"][first], _regime(family) if "test_error" in family else made[0].regime
    size = math.prod(len(axis) for axis in s.family.values())
    note: dict[str, Any] = {"profile": profile, "protocol": f"family of {size} nets, {s.label}",
                            "record": _RECORDS.get((profile, "family"), "")}
    below = {"below": "sam-fig-3-right", **note}
    return [
        *made,
        Claim.from_samples(rise, id="sam-fig3-tau", statement="The same over ResNets on CIFAR-10", **below)
        if profile == "full" else
        Claim.from_samples(rise, id="sam-fig-3-right", paper_value="rises as m falls", regime=regime, **note),
        Claim.from_samples(information, id="sam-fig3-information", unit="share", **below,
                           statement="Conditional mutual information with the gap is higher at the smallest m"),
        Claim.from_samples(small, id="sam-fig3-positive", below="sam-sharpness-gap", **note,
                           statement=f"Sharper nets have the larger gap: τ at m = {s.measured[0]}"),
    ]


def _of_training(trained: pd.DataFrame | None, s: Settings, profile: str, twice: float | None) -> Claim:
    small, *_, batch = s.rhos
    note: dict[str, Any] = {"id": "sam-fig-3-middle", "protocol": f"{s.label}, m = {small} against {batch}",
                            "profile": profile, "record": _RECORDS.get((profile, "trained"), "")}
    if trained is None:
        return Claim(**note)
    found = {m: study.best(trained, m, 0.0, s.rhos[m]) for m in (small, batch)}
    errors = (error for _, error in found.values())
    if profile == "mid":
        ends = any(rho in (s.rhos[m][0], s.rhos[m][-1]) for m, (rho, _) in found.items())
        note["protocol"] += ", tuned on other seeds" + ", an edge of the radii" * ends
    sgd = trained[(trained["rho"] == 0) & (trained["noise"] == 0)]
    return Claim.from_samples(paired(*errors, worst=90.0), regime=_regime(sgd, twice), **note)


def _regime(sgd: pd.DataFrame, twice: float | None = None) -> Regime:
    return Regime(sgd["train_error"].mean() if "train_error" in sgd else None, sgd["test_error"].mean(), twice)
