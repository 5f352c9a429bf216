"""The claims of notebook 13, from its rows; those on Fig. 4 are the same for the quick and the full profile."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim
from sharpnb.lab.verdicts import paired
from studies import warm_restarts as study
from studies.decay_runs import GUESSING, Rows, at, at_end, regime
from studies.warm_restarts import Anytime


def fig4(rows: Rows | None, s: Anytime, **about: Any) -> list[Claim]:
    """Return the claims on Fig. 4 and SuppFig. 5; without rows of settings ``s`` they are not run."""
    if rows is None:
        return [Claim(name, **about) for name in ("adamw-fig-4", "adamw-suppfig-5")]
    of, stops = partial(at, rows), study.ends(s.t_0, 2, s.steps)

    def mean(difference: Callable[[int], np.ndarray]) -> np.ndarray:
        return np.mean([difference(end) for end in stops[:-1]], axis=0)

    def lead(once: str, again: str) -> np.ndarray:
        return mean(lambda end: paired(of(again, end), of(once, end), GUESSING))

    early = s.every * max(1, round(s.steps / 3 / s.every))
    loss = [np.log10(of(method, early, "train_loss")) for method in ("AdamW", "SGDW")]
    told = [("anytime-sgd", "The same for SGDWR and SGDW", lead("SGDW", "SGDWR")),
            ("final", "At the end of the budget", paired(of("AdamWR", s.steps), of("AdamW", s.steps), GUESSING)),
            ("spikes", "AdamWR's error jumps up after a restart",
             mean(lambda end: of("AdamWR", end + s.every) - of("AdamWR", end)))]
    return [Claim.from_samples(lead("AdamW", "AdamWR"), id="adamw-fig-4", regime=regime(rows, "SGDW"), **about),
            *(Claim.from_samples(samples, id=f"adamw-fig4-{name}", below="adamw-fig-4", statement=statement, **about)
              for name, statement, samples in told),
            Claim.from_samples(paired(*loss, 1.0), id="adamw-suppfig-5", **about)]


def budgets(best: pd.DataFrame, protocol: str) -> Claim:
    """Return the claim on SuppFig. 3 from the best decay of each seed and budget."""
    falls, ends = [-p for p in study.exponents(best, "AdamW")], f"{best['edge'].sum()} of {len(best)} bests at an edge"
    return Claim.from_samples(falls, id="adamw-suppfig-3", protocol=f"{protocol}; {ends}", paper_value=0.5)


def long_adam(rows: dict[str, Rows], protocol: str) -> Claim:
    """Return the claim on SuppFig. 2; its premise, that the short AdamW fits its training set, is the regime's."""
    fixed, short = (at_end(rows[method], method) for method in ("Adam, fixed", "AdamW, 1/18"))
    return Claim.from_samples(0.5 + paired(short, fixed, GUESSING), id="adamw-suppfig-2", protocol=protocol,
                              regime=regime(rows["AdamW, 1/18"], "AdamW, 1/18"))
