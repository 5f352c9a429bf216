"""The claims of notebook 01, from its tables."""

from __future__ import annotations

import pandas as pd

from sharpnb.lab.claims import Claim, Regime
from sharpnb.lab.notebook import Notebook
from studies import sam as study


def claims(
    nb: Notebook, s: study.Settings, tables: dict[str, pd.DataFrame], later: pd.DataFrame | None
) -> list[Claim]:
    """Return all claims.

    Args:
        nb: whose profile they are.
        s: the settings of the live ``tables``: ``"orders"``, ``"kinds"``, ``"inner"``.
        tables: of the experiments.
        later: the full profile's table of kinds, or None until it is run.
    """
    later = tables["kinds"] if nb.full else later
    found = [] if later is None else fig6(later, profile="full", protocol=study.FULL.label)
    if nb.full:
        return found
    orders, kinds, inner = (tables[name] for name in ("orders", "kinds", "inner"))
    end, half = {"noise": 0.0, "step": s.steps}, orders["step"].between(1, s.steps / 2)
    first, second = (study.by_seed(orders, "test_error", order=order, **end) for order in ("first", "second"))
    one, five = ({"inner": count, **end} for count in (1, 5))
    gained = study.by_seed(inner, "test_error", **one) - study.by_seed(inner, "test_error", **five)
    rise = {count: study.by_seed(inner, "sharpness", **at) for count, at in (("1", one), ("5", five))}
    note = {"protocol": s.label, "regime": regime(kinds)}
    return [
        *found,
        Claim.from_samples(second - first, id="sam-fig-4", **note),
        Claim.from_samples(study.by_seed(orders[half], "cosine", noise=0.0) - study.by_seed(orders, "cosine", **end),
                           id="sam-fig-5", **note),
        *fig6(kinds, protocol=s.label),
        Claim.from_samples(rise["5"] - rise["1"], id="sam-fig-7", paper_value="0.17 → 2.26", **note),
        Claim.from_samples(0.5 - gained, id="sam-table-11", paper_value="at least 0.37", **note),
    ]


def regime(kinds: pd.DataFrame) -> Regime:
    """Return what SGD, the radius 0, reached."""
    none = kinds[kinds["kind"] == "none"]
    train_error = float(none["train_error"].mean()) if "train_error" in none else None
    return Regime(train_error, float(none["test_error"].mean()))


def fig6(kinds: pd.DataFrame, profile: str = "quick", **note: str) -> list[Claim]:
    """Return the claim on Fig. 6, and the same of the max-norm below it."""
    error = {kind: study.by_seed(kinds, "test_error", kind=kind, rho=study.best_radius(kinds, kind))
             for kind in study.KINDS}
    return [
        Claim.from_samples(error["random"] - error["2-norm"], id="sam-fig-6", profile=profile, regime=regime(kinds),
                           **note),
        Claim.from_samples(error["max-norm"] - error["2-norm"], id="sam-fig-6-max-norm", below="sam-fig-6",
                           statement="the same against the ball of the max-norm", profile=profile, **note),
    ]
