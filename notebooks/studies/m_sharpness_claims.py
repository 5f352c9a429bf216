"""The claims of notebook 04, from its tables: the same for the quick and the full profile."""

from __future__ import annotations

import math

import pandas as pd

from sharpnb.lab.claims import Claim, Regime
from sharpnb.lab.verdicts import paired
from studies import m_sharpness as study
from studies.m_sharpness import Settings


def claims(trained: pd.DataFrame | None, family: pd.DataFrame | None, s: Settings, profile: str) -> list[Claim]:
    """Return the claims on Fig. 3 middle and right, from two tables of settings ``s``; without one some are not run."""
    return _of_training(trained, s, profile) + _of_prediction(trained, family, s, profile)


def _regime(trained: pd.DataFrame, noise: float) -> Regime:
    sgd = trained[(trained["rho"] == 0) & (trained["noise"] == noise)]
    return Regime(sgd["train_error"].mean() if "train_error" in sgd else None, sgd["test_error"].mean())


def _of_training(trained: pd.DataFrame | None, s: Settings, profile: str) -> list[Claim]:
    ms, made = list(s.rhos), []
    for noise in s.noises:
        gain, regime = None, None
        if trained is not None:
            at_best = [study.best(trained, m, noise, s.rhos[m])[1] for m in (ms[0], ms[-1])]
            gain, regime = paired(*at_best, worst=90.0), _regime(trained, noise)
        detail = {"id": "sam-fig3-m1-40", "below": "sam-fig-3-middle",
                  "statement": f"The same with {noise:.0%} wrong labels"}
        made += [Claim.from_samples(gain, profile=profile, regime=regime, record="full/trained" * (profile == "full"),
                                    protocol=f"{s.label}, m = {ms[0]} against {ms[-1]}",
                                    **(detail if noise else {"id": "sam-fig-3-middle"}))]
    return made


def _of_prediction(
    trained: pd.DataFrame | None, family: pd.DataFrame | None, s: Settings, profile: str
) -> list[Claim]:
    rise = small = information = regime = None
    if family is not None and trained is not None:
        found = study.predictive(s, family).pivot(index="seed", columns="m")
        first, last = s.measured[0], s.measured[-1]
        rise, information = (found[name][first] - found[name][last] for name in ("tau", "information"))
        small, regime = found["tau"][first], _regime(trained, 0.0)
    size = math.prod(len(axis) for axis in s.family.values())
    note = {"profile": profile, "protocol": f"family of {size} nets, {s.label}", "regime": regime,
            "record": "full/family" * (profile == "full")}
    judged = {"id": "sam-fig-3-right"} if profile != "full" else {  # the full profile's is judged on notebook 18's pool
        "id": "sam-fig3-tau", "below": "sam-fig-3-right", "statement": "The same over ResNets on CIFAR-10"}
    return [
        Claim.from_samples(rise, paper_value="rises as m falls", **judged, **note),
        Claim.from_samples(information, id="sam-fig3-information", below="sam-fig-3-right", unit="share",
                           statement="Conditional mutual information with the gap is higher at the smallest m", **note),
        Claim.from_samples(small, id="sam-fig3-positive", below="sam-sharpness-gap",
                           statement=f"Sharper nets have the larger gap: τ at m = {s.measured[0]}", **note),
    ]
