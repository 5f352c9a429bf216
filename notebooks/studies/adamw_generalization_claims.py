"""The claims of notebook 12, from its rows: the same for the quick and the full profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sharpnb.lab.claims import Claim
from studies import adamw_generalization as study
from studies.adamw_generalization import Regime
from studies.decay_runs import Rows

_PAPER = {"paper": "AdamW (ICLR 2019)", "why": "threshold 0; seeds decide"}


def live(rows: dict[str, Rows], regimes: dict[str, Regime], profile: str) -> list[Claim]:
    """Return the claims on every live regime."""
    return [claim for name, r in regimes.items() for claim in claims(
        name.lower().replace(" ", "-"), rows[name], r, profile=profile, protocol=f"{r.world.label} ({name})")]


def full(rows: Rows | None) -> list[Claim]:
    """Return the claims of the full profile's record."""
    r = study.REGIMES["full"]["CIFAR-10"]
    protocol = f"{r.world.label}; the paper: 26 2x96d, 1800 epochs"
    return claims("full", rows, r, profile="full", protocol=protocol)


def claims(key: str, rows: Rows | None, r: Regime, **note: Any) -> list[Claim]:
    """Return the claims on one regime, whose ids end in ``key``; without rows they are not run.

    ``note`` is what all of them say: profile and protocol.
    """
    decay = study.best_decays(rows) if rows else {}
    middle = r.every * round(r.steps / r.every / 2)

    def at(method: str, column: str = "test_error", step: int = r.steps) -> np.ndarray:
        return study.of(rows or [], method, column, decay[method], step)

    def lead(step: int) -> np.ndarray:
        return at("Adam + L2", step=step) - at("AdamW", step=step)

    def distance(method: str) -> np.ndarray:
        return np.abs(at(method) - at("SGD + L2"))

    questions: list[tuple[str, str, str, str, str, Callable[[], Any]]] = [
        ("adamw-fig3-error", "Fig. 3", "order", "%",
         "AdamW's best test error is lower than that of Adam + L2 (relative improvement)",
         lambda: 100 * (1 - at("AdamW") / at("Adam + L2"))),
        ("adamw-fig3-loss", "Fig. 3", "order", "nats",
         "At its best decay AdamW ends with a lower training loss (difference)",
         lambda: at("Adam + L2", "train_loss") - at("AdamW", "train_loss")),
        ("adamw-fig3-equal-loss", "Fig. 3 bottom right", "order", "points",
         "At equal training loss AdamW's test error is lower (difference)", lambda: study.at_equal_loss(rows or [])),
        ("adamw-fig3-second-half", "Fig. 3 top", "trend", "points",
         "The curves part in the second half: AdamW's lead at the end is larger than at half time (difference)",
         lambda: lead(r.steps) - lead(middle)),
        ("adamw-sgd-gap", "section 1 (Wilson et al.)", "order", "points",
         "Adam + L2 generalises worse than SGD with momentum (error difference)",
         lambda: at("Adam + L2") - at("SGD + L2")),
        ("adamw-sgd-closed", "Fig. 2, section 4.3", "order", "points",
         "AdamW is nearer to SGD than Adam + L2 is (difference of the distances)",
         lambda: distance("Adam + L2") - distance("AdamW")),
    ]
    return [Claim.from_samples(samples() if rows else None, id=f"{ident}-{key}", item=item, kind=kind, unit=unit,
                               statement=statement, paper_value="15 %" if ident == "adamw-fig3-error" else None,
                               **_PAPER | note)
            for ident, item, kind, unit, statement, samples in questions]
