"""The claims of notebook 08 on γ, from its table: the same for the quick and the full profile."""

from __future__ import annotations

import pandas as pd

from sharpnb.lab.claims import Claim, Regime
from studies import wsam_gamma as study
from studies.wsam_gamma import Study


def full(table: pd.DataFrame | None) -> list[Claim]:
    """Return the claims of the full profile's record."""
    return claims(table, study.FULL, "full", record="full/gamma")


def claims(table: pd.DataFrame | None, s: Study, profile: str, record: str = "") -> list[Claim]:
    """Return the claims on Fig. 3; without a table of study ``s`` they are not run."""
    main = (s.nets[0].label, max(s.noises))
    made = [_claim(table, *main, profile, record, id="wsam-fig-3")]
    for number, net in enumerate(s.nets if table is not None else ()):
        for noise in s.noises:
            if (net.label, noise) != main:
                said = f"The same with {noise:.0%} wrong labels, {net.label}"
                made.append(_claim(table, net.label, noise, profile, record, below="wsam-fig-3", statement=said,
                                   id=f"wsam-fig-3-{'ab'[number]}-{100 * noise:.0f}"))
    return made


def _claim(table: pd.DataFrame | None, net: str, noise: float, profile: str, record: str, **about: str) -> Claim:
    protocol = f"decoupled, {net}, {noise:.0%} wrong labels"
    if table is None:
        return Claim(profile=profile, record=record, protocol=protocol, **about)
    part = table[(table["net"] == net) & (table["noise"] == noise) & (table["method"] == "decoupled")]
    sgd = part[part["trial"] == 0.0]
    fits = float(sgd["train_error"].mean()) if "train_error" in sgd else None
    return Claim.from_samples(study.inside_or_outside(part).tolist(), profile=profile, record=record,
                              protocol=protocol, regime=Regime(fits, float(sgd["test_error"].mean())), **about)
