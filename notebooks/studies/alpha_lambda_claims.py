"""The claims of notebook 11, from the numbers of its maps."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sharpnb.lab.claims import Claim
from studies import alpha_lambda as study
from studies.alpha_lambda import Regime

_FIG2: dict[str, Any] = {"paper": "AdamW (ICLR 2019)", "item": "Fig. 2", "why": "threshold 0; seeds decide"}
_FIG1 = _FIG2 | {"item": "Fig. 1", "kind": "order", "unit": "points"}
_SGD = "α and λ are more separable for SGDW than for SGD with L2 (difference of S above 0)"
_ADAM = "α and λ are more separable for AdamW than for Adam with L2 (difference of S above 0)"
_WORSE = "Adam with L2 is worse than SGD with L2, each at its best cell (difference of errors above 0)"
_SCHEDULES = {
    **{f"adamw-fig1-better-{schedule}": (
        f"AdamW's best cell is better than Adam's, {schedule} schedule (difference of errors above 0)",
        ("adam", schedule), ("adamw", schedule)) for schedule in study.FIG1},
    "adamw-fig1-cosine": ("AdamW: the cosine is better than a fixed rate, each at its best cell (difference above 0)",
                          ("adamw", "constant"), ("adamw", "cosine")),
}


def _gap(numbers: pd.DataFrame | None, a: str, b: str, column: str) -> Any:
    """Return a column of rule ``a`` minus that of ``b``, by seed."""
    if numbers is None:
        return None
    by_rule = numbers.pivot(index="seed", columns="rule", values=column)
    return (by_rule[a] - by_rule[b]).tolist()


def _of_schedules(table: pd.DataFrame | None, tag: str, **about: Any) -> list[Claim]:
    best: Any = study.best_by_schedule(table) if table is not None else None
    return [Claim.from_samples(best and best[a] - best[b], id=key + tag, statement=statement, **_FIG1 | about)
            for key, (statement, a, b) in _SCHEDULES.items()]


def quick(
    numbers: pd.DataFrame, regime: Regime, table: pd.DataFrame, scheduled: pd.DataFrame, profile: str
) -> list[Claim]:
    """Return the claims of the live maps: numbers of all regimes, and the tables of Fig. 2 and of Fig. 1."""
    parts: dict[Any, pd.DataFrame] = dict(iter(numbers.groupby("regime", sort=False)))
    made = [Claim.from_samples(_gap(part, "sgdw", "sgd", "separability"), id=f"adamw-fig2-separable-sgd-{number}",
                               kind="order", protocol=label, statement=_SGD, profile=profile, **_FIG2)
            for number, (label, part) in enumerate(parts.items())]
    own, adam = parts[regime.label], study.maps(table, "adam")
    questions: list[tuple[str, str, str, str, Any]] = [
        ("diagonal", "sign", "", "SGD's basin with L2 lies on a falling diagonal (minus the slope above 0)",
         (-own.loc[own["rule"] == "sgd", "slope"]).tolist()),
        ("separable-adam", "order", "", _ADAM, _gap(own, "adamw", "adam", "separability")),
        ("adam-worse", "order", "points", _WORSE, _gap(own, "adam", "sgd", "best")),
        ("l2-useless", "value", "points", "L2 hardly helps Adam: the best error without it less the best with it",
         adam[:, :, 0].min(1) - adam.min((1, 2)))]
    about: dict[str, Any] = {"protocol": regime.label, "profile": profile}
    useless = {"value": {"paper_value": "about 0", "comparable": False}}
    made += [Claim.from_samples(samples, id=f"adamw-fig2-{key}", kind=kind, unit=unit, statement=statement,
                                **_FIG2 | about | useless.get(kind, {}))
             for key, kind, unit, statement, samples in questions]
    return made + _of_schedules(scheduled, "", **about)


def full(numbers: pd.DataFrame | None, scheduled: pd.DataFrame | None) -> list[Claim]:
    """Return the claims of the full profile's maps, not run where there are none."""
    about = {"protocol": study.FULL.label, "profile": "full"}
    questions = {"separable-sgd": (_SGD, "sgdw", "sgd", "separability"),
                 "separable-adam": (_ADAM, "adamw", "adam", "separability"),
                 "adam-worse": (_WORSE, "adam", "sgd", "best")}
    return [Claim.from_samples(_gap(numbers, *which), id=f"adamw-fig2-{key}-full", kind="order", statement=statement,
                               record="full/cells", **_FIG2 | about)
            for key, (statement, *which) in questions.items()] + _of_schedules(scheduled, "-full", **about)
