"""The claims of notebook 08 on γ, from its table: the same for the quick and the full profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim
from studies import comparison
from studies import wsam_gamma as study
from studies.wsam_gamma import Study

_PAPER: dict[str, Any] = {"paper": "WSAM (KDD 2023)", "why": "threshold 0; seeds decide"}


def quick(table: pd.DataFrame, s: Study, profile: str, angles: np.ndarray, slopes: Any, falls: Any) -> list[Claim]:
    """Return the claims of what is live: angles over γ and nets, the table, slopes of regret and of the gradient."""
    about = _PAPER | {"profile": profile, "kind": "trend"}
    return [
        Claim.from_samples(np.diff(angles, axis=0).min(0).tolist(), id="wsam-fig1-turn", item="Fig. 1", unit="degrees",
                           statement="The update turns away from the gradient as γ grows (smallest step of the angle "
                           "above 0)", protocol="MLP, digits, n nets", **about),
        *claims(table, s, profile),
        *(Claim.from_samples([-0.5 - v for v in slopes["ρ ∝ 1/√t", g]], id=f"wsam-regret-{g}",
                             item="convergence theorem, convex", protocol="least squares, T = 100 … 1000",
                             statement=f"R(T)/T falls at least like T^(-1/2) at γ = {g} (-1/2 minus the slope above 0)",
                             **about) for g in (0.5, 0.9)),
        *(Claim.from_samples([-0.5 - v for v in falls["ρ ∝ 1/√t", g]], id=f"wsam-gradient-{g}",
                             item="convergence theorem, not convex",
                             protocol="hidden tanh, T = 10 … 1000; a finite slope cannot refute the bound",
                             statement=f"min ‖∇L‖² falls about like T^(-1/2) or faster at γ = {g} (-1/2 minus the "
                             "slope above 0)", **about) for g in (0.5, 0.9)),
    ]


def full(table: pd.DataFrame | None) -> list[Claim]:
    """Return the claims of the full profile's record."""
    return claims(table, study.FULL, "full", "-full", record="full/gamma")


def claims(table: pd.DataFrame | None, s: Study, profile: str, tag: str = "", record: str = "") -> list[Claim]:
    """Return the claims on Fig. 3, Tables 2 and 8 and the minima; without a table of study ``s`` they are not run."""
    made: list[Claim] = []

    def claim(
        ident: str, item: str, statement: str, protocol: str, samples: Callable[[], Any], kind: str = "order",
        unit: str = "points",
    ) -> None:
        made.append(Claim.from_samples(samples() if table is not None else None, id=ident + tag, item=item, kind=kind,
                                       unit=unit, statement=statement, protocol=protocol, profile=profile,
                                       record=record, **_PAPER))

    for number, net in enumerate(s.nets):
        for noise in s.noises:
            _of_range(table, claim, net.label, noise, f"{'ab'[number]}-{_percent(noise)}")
    for noise in s.noises:
        _of_rivals(table, s, claim, noise)
    return made


def _percent(noise: float) -> str:
    return f"{noise:.0%}".rstrip("%")


def _decoupled(table: Any, net: str, noise: float) -> Any:
    return table[(table["net"] == net) & (table["noise"] == noise) & (table["method"] == "decoupled")]


def _of_range(table: Any, claim: Callable[..., None], net: str, noise: float, key: str) -> None:
    where = f"decoupled, {net}, {noise:.0%} wrong labels"
    claim(f"wsam-fig3-range-{key}", "Fig. 3",
          "The best γ lies in 0.8 … 0.95 (best outside minus best inside, test error, above 0)", where,
          lambda: study.inside_or_outside(_decoupled(table, net, noise)))
    claim(f"wsam-fig3-flat-{key}", "Fig. 3", "Results do not depend on the exact γ: even the worst in 0.8 … 0.95 beats "
          "γ = 0 (difference above 0)", where, lambda: study.worst_inside(_decoupled(table, net, noise)))


def _of_rivals(table: Any, s: Study, claim: Callable[..., None], noise: float) -> None:
    first, key = s.nets[0].label, _percent(noise)
    where = f"{first}, {noise:.0%} wrong labels"
    trials = len(s.rhos) + len(s.weights)
    as_paper = ", as in the paper" if s.rhos == study.PAPER_RHOS else ""

    def gap(worse: str, better: str) -> np.ndarray:
        tuned = comparison.chosen(study.rivals(table[table["noise"] == noise], s))
        return comparison.paired(tuned, worse, better)

    def flatter() -> np.ndarray:
        eigen = _decoupled(table, first, noise).pivot(index="trial", columns="seed", values="lambda_max")
        eigen = eigen.dropna(axis=1)
        return np.log10(eigen.loc[0.0] / eigen.loc[0.9]).to_numpy()

    for rival, name, say in (("SAM, paper's ρ", "paper", f"{len(s.rhos)} trials of SAM, {trials} of WSAM{as_paper}"),
                             ("SAM, ρ tuned", "equal", f"{trials} trials each")):
        claim(f"wsam-tab2-sam-{name}-{key}", "Table 2", "Tuned WSAM has a lower error than tuned SAM (difference above "
              "0)", f"{where}; {say}", lambda rival=rival: gap(rival, "WSAM decoupled"))
    claim(f"wsam-tab8-decouple-{key}", "Table 8", "Decoupled WSAM has a lower error than coupled (difference above 0)",
          f"{where}; γ tuned for each", lambda: gap("WSAM coupled", "WSAM decoupled"))
    claim(f"wsam-minima-lambda-{key}", "section 5, minima",
          "λmax is lower for WSAM (γ = 0.9) than for SGD (log10 of the quotient above 0)", where, flatter, "trend",
          "decades")
