"""The claims of notebook 10: its propositions, an erratum, and two effects with noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim
from studies import decoupled_decay as study

_PAPER: dict[str, Any] = {"paper": "AdamW (ICLR 2019)"}
_SEEDS = "threshold 0 or 1; seeds decide"


def claims(
    sgd: float, missed: float, penalty: float, printed: float, shrunk: pd.DataFrame, filtered: Sequence[float]
) -> list[Claim]:
    """Return the claims.

    Args:
        sgd: Proposition 1, the norm of the weights that L2 ends at over that of decay's.
        missed: Proposition 2, the share of the decay that the best L2 coefficient misses.
        penalty: Proposition 3, the norm with eq. 2's penalty over that of decay.
        printed: the displacement by the penalty as it is printed over that by decay.
        shrunk: from :func:`decoupled_decay.shrinkage_by_gradient`.
        filtered: the squared error of L2 over the exact filter's, by seed.
    """
    lost = shrunk.pivot_table(index="seed", columns=["rule", "group"], values="shrinkage")
    spread = {name: np.log10(lost[name].max(axis=1) / lost[name].min(axis=1)) for name in ("Adam + L2", "AdamW")}
    exactly = _PAPER | {"kind": "value", "paper_value": 1.0, "stderr": 0.0, "tolerance": 1e-9,
                        "why": "float64 over 100 steps"}
    noisy = _PAPER | {"why": _SEEDS}
    digits = noisy | {"item": "section 2", "protocol": "softmax regression, digits"}
    return [
        Claim("adamw-p1", item="Proposition 1", measured=sgd, protocol="no momentum", **exactly,
              statement="SGD on L2 with λ' = λ/α ends at the weights of decay λ (ratio of norms)"),
        Claim("adamw-p2", item="Proposition 2", kind="sign", measured=missed, stderr=0.0, protocol="M = diag(2, 1/4)",
              statement="Under M ≠ kI no λ' gives the decay (share of it missed by the best λ')", **_PAPER),
        Claim("adamw-p3-proof", item="Proposition 3, appendix", measured=penalty, **exactly,
              statement="Decay λ is the penalty λ'/2 ‖w⊙√s‖² with λ' = λ/α (ratio of norms)"),
        Claim("adamw-p3-printed", item="Proposition 3, eq. 2", measured=printed, protocol="α = 0.001",
              statement="Decay λ is the penalty λ'/(2α) ‖w⊙√s‖² with λ' = λ/α (ratio of displacements)",
              **exactly | {"tolerance": 0.01, "why": "a hundredth; the slip is a factor 1/α"}),
        Claim.from_samples([-x for x in study.rank_correlation(shrunk, "Adam + L2")], id="adamw-l2-gradients",
                           kind="trend", statement="In Adam, L2 shrinks weights of large gradients less (minus the "
                           "rank correlation of shrinkage and gradient)", **digits),
        Claim.from_samples((spread["Adam + L2"] - spread["AdamW"]).tolist(), id="adamw-all-alike", kind="order",
                           statement="AdamW shrinks weights more alike than L2 (log10 of largest over smallest "
                           "shrinkage of the tenths, L2 minus AdamW)", **digits),
        Claim.from_samples(filtered, id="adamw-bayes", item="section 3, eqs 3 and 4", kind="ratio", tolerance=1.0,
                           statement="A filter with one L2 coefficient for all weights tracks worse than one with "
                           "decoupled decay (squared error over it)", protocol="Kalman simulation, λ' the best of 29",
                           **noisy),
    ]
