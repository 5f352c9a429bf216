"""The claims of notebook 13, from its rows; those on Fig. 4 are the same for the quick and the full profile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim, Regime
from sharpnb.lab.verdicts import paired
from studies import warm_restarts as study
from studies.decay_runs import Rows
from studies.warm_restarts import Anytime


def fig4(rows: Rows | None, s: Anytime, regime: Regime | None, **about: Any) -> list[Claim]:
    """Return the claims on Fig. 4 and SuppFig. 5; without rows of settings ``s`` they are not run."""
    if rows is None:
        return [Claim(name, **about) for name in ("adamw-fig-4", "adamw-suppfig-5")]
    of, stops = partial(study.at, rows), study.ends(s.t_0, 2, s.steps)

    def mean(difference: Callable[[int], np.ndarray]) -> np.ndarray:
        return np.mean([difference(end) for end in stops[:-1]], axis=0)

    def lead(once: str, again: str) -> np.ndarray:
        return mean(lambda end: paired(of(again, end), of(once, end), 90.0))

    early = s.every * max(1, round(s.steps / 3 / s.every))
    loss = [np.log10(of(method, early, "train_loss")) for method in ("AdamW", "SGDW")]
    told = [("anytime-sgd", "The same for SGDWR and SGDW", lead("SGDW", "SGDWR")),
            ("final", "At the end of the budget", paired(of("AdamWR", s.steps), of("AdamW", s.steps), 90.0)),
            ("spikes", "AdamWR's error jumps up after a restart",
             mean(lambda end: of("AdamWR", end + s.every) - of("AdamWR", end)))]
    return [Claim.from_samples(lead("AdamW", "AdamWR"), id="adamw-fig-4", regime=regime, **about),
            *(Claim.from_samples(samples, id=f"adamw-fig4-{name}", below="adamw-fig-4", statement=statement, **about)
              for name, statement, samples in told),
            Claim.from_samples(paired(*loss, 1.0), id="adamw-suppfig-5", **about)]


def budgets(best: pd.DataFrame, protocol: str) -> list[Claim]:
    """Return the claim on SuppFig. 3, and a detail a further case, from the best decay of each seed and budget."""
    first, *others = best["method"].unique()
    made = [Claim.from_samples(falls(best, first), id="adamw-suppfig-3", protocol=protocol, paper_value=0.5)]
    return made + [Claim.from_samples(falls(best, case), id=f"adamw-supp3-{number}", below="adamw-suppfig-3",
                                      statement=f"The same: {case}") for number, case in enumerate(others)]


def falls(best: pd.DataFrame, case: str) -> list[float]:
    """Return minus the exponent of the budget, one a seed."""
    return [-p for p in study.exponents(best, case)]


def long_adam(fixed: np.ndarray, short: np.ndarray, regime: Regime, protocol: str) -> Claim:
    """Return the claim on SuppFig. 2 from the test errors of long Adam and of short AdamW."""
    return Claim.from_samples(0.5 + paired(short, fixed, 90.0), id="adamw-suppfig-2", regime=regime, protocol=protocol)
