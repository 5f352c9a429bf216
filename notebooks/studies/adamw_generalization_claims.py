"""The claims of notebook 12, from its rows: the same for the quick and the full profile."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sharpnb.lab import Claim
from sharpnb.lab.verdicts import paired
from studies import adamw_generalization as study
from studies.decay_runs import GUESSING, Rows, at_end, regime, tuned


def claims(judged: Rows | None, **about: Any) -> list[Claim]:
    """Return the primary claims on Fig. 3; without rows they are not run. ``about``: profile and protocol."""
    if judged is None:
        return [Claim(name, **about) for name in ("adamw-fig-3", "adamw-wilson")]
    about |= {"regime": regime(judged, "SGD + L2")}
    sgd = paired(at_end(judged, "SGD + L2"), at_end(judged, "Adam + L2"), GUESSING)
    return [Claim.from_samples(gain(judged), id="adamw-fig-3", paper_value="15 %", **about),
            Claim.from_samples(sgd, id="adamw-wilson", **about)]


def gain(judged: Rows) -> np.ndarray:
    """Return log10 of the test error of Adam + L2 over AdamW's, one a seed."""
    adamw, adam = (np.log10(at_end(judged, method)) for method in ("AdamW", "Adam + L2"))
    return paired(adamw, adam, np.log10(GUESSING))


def details(rows: dict[str, Rows], equal: Sequence[float]) -> list[Claim]:
    """Return what stands below Fig. 3's claim: further data sets or starts, and equal training loss."""
    made = [Claim.from_samples(gain(judged), id=f"adamw-fig3-{name.replace(' ', '-')}", below="adamw-fig-3",
                               statement=f"The same: {name}") for name, judged in rows.items()]
    return [*made, Claim.from_samples(equal, id="adamw-fig3-equal-loss", below="adamw-fig-3", unit="points",
                                      statement="At equal training loss AdamW's test error is lower (tuning seeds)")]


def full(rows: Rows | None) -> list[Claim]:
    """Return the claims of the full profile's record."""
    return claims(rows and study.at_best(rows, tuned(rows)), profile="full",
                  protocol=f"{study.REGIMES['full']['CIFAR-10'].world.label}; the paper: 26 2x96d, 1800 epochs; each "
                  "best decay chosen on the same seeds")
