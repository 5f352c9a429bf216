"""The claims of notebook 11: the best cells of Fig. 1's maps, and how far the maps of Fig. 2 come apart."""

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim
from sharpnb.lab.claims import Regime
from sharpnb.lab.verdicts import paired
from studies import alpha_lambda as study

Best = dict[tuple[str, str], np.ndarray]  # rule and schedule -> the test error of its best cell, by seed


def claims(best: Best | None, maps: pd.DataFrame | None, regime: Regime | None, **about: Any) -> list[Claim]:
    """Return the claims of a profile, not run where there are no numbers.

    ``best`` are errors at the best cells, ``regime`` theirs; ``maps`` are from :func:`alpha_lambda.numbers`.
    """
    def gap(better: tuple[str, str], worse: tuple[str, str]) -> Any:
        return None if best is None or {better, worse} - best.keys() else paired(best[better], best[worse], 90.0)

    def apart(decoupled: str, coupled: str) -> Any:
        if maps is None:
            return None
        by_rule = maps.pivot(index="seed", columns="rule", values="separability")
        return by_rule[decoupled] - by_rule[coupled] if {decoupled, coupled} <= set(by_rule) else None

    made = [Claim.from_samples(gap(("adamw", "cosine"), ("adam", "cosine")), id="adamw-fig-1", regime=regime, **about),
            Claim.from_samples(gap(("adamw", "cosine"), ("adamw", "constant")), id="adamw-schedule", regime=regime,
                               **about),
            Claim.from_samples(apart("adamw", "adam"), id="adamw-fig-2", **about)]
    told = [("adamw-fig1-better-constant", "adamw-fig-1", "The same at a constant rate",
             gap(("adamw", "constant"), ("adam", "constant"))),
            ("adamw-adam-schedule", "adamw-schedule", "Adam with L2: a fixed rate minus a cosine",
             gap(("adam", "cosine"), ("adam", "constant"))),
            ("adamw-fig2-separable-sgd", "adamw-fig-2", "The same for SGDW and SGD with L2", apart("sgdw", "sgd"))]
    return made + [Claim.from_samples(samples, id=name, below=below, statement=statement, **about)
                   for name, below, statement, samples in told if samples is not None]


def full(maps: pd.DataFrame | None, table: pd.DataFrame | None, sgd: np.ndarray | None) -> list[Claim]:
    """Return the claims of the full profile's maps; ``sgd`` holds the maps of the baseline."""
    regime = None if sgd is None else Regime(None, float(sgd.min((1, 2)).mean()))
    return claims(None if table is None else study.best_by_schedule(table), maps, regime, profile="full",
                  protocol=f"{study.FULL.label}; each best chosen on the same seeds", record="full/cells")
