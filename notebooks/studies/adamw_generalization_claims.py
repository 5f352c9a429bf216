"""The claims of notebook 12, from its rows: the same for the quick and the full profile."""

from __future__ import annotations

from typing import Any

import numpy as np

from sharpnb.lab.claims import Claim, Regime
from sharpnb.lab.verdicts import paired
from studies import adamw_generalization as study
from studies.decay_runs import Rows


def claims(rows: Rows | None, regime: Regime | None, **about: Any) -> list[Claim]:
    """Return the primary claims on Fig. 3; without rows they are not run.

    ``about`` is what both say: profile and protocol.
    """
    if rows is None:
        return [Claim(name, **about) for name in ("adamw-fig-3", "adamw-wilson")]
    adam, adamw, sgd = (at_best(rows, method) for method in study.ROLES)
    return [Claim.from_samples(paired(np.log10(adamw), np.log10(adam), np.log10(90.0)), id="adamw-fig-3",
                               paper_value="15 %", regime=regime, **about),
            Claim.from_samples(paired(sgd, adam, 90.0), id="adamw-wilson", regime=regime, **about)]


def at_best(rows: Rows, method: str, column: str = "test_error") -> np.ndarray:
    """Return a column at the end of a method's best decay, one value a seed."""
    return study.of(rows, method, column, study.best_decays(rows)[method], max(row["step"] for row in rows))


def full(rows: Rows | None) -> list[Claim]:
    """Return the claims of the full profile's record."""
    r = study.REGIMES["full"]["CIFAR-10"]
    regime = Regime(None, float(at_best(rows, "SGD + L2").mean())) if rows else None
    return claims(rows, regime, profile="full", protocol=f"{r.world.label}; the paper: 26 2x96d, 1800 epochs; each "
                  "best decay chosen on the same seeds")


def detail(name: str, rows: Rows, protocol: str) -> Claim:
    """Return a further regime's relative gain of AdamW, below the primary claim."""
    gain = np.log10(at_best(rows, "Adam + L2") / at_best(rows, "AdamW"))
    return Claim.from_samples(gain, id=f"adamw-fig3-error-{name.replace(' ', '-')}", below="adamw-fig-3",
                              statement=f"The same: {name}", protocol=protocol)
