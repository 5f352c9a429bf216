"""The claims of notebook 17, from its rows and from the record of CIFAR-10."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.averaging import filter_norms
from sharpnb.lab import Claim
from sharpnb.lab.claims import Regime
from studies.filter_grafting import Quick, Settings
from studies.signals import protocol

_OWN = "external, own lr"
_ERRORS: dict[str, tuple[str, str, str | None, dict[str, str]]] = {  # id -> better, worse method, the paper's number
    "graft-main": ("external", "baseline", "+0.5 to +1.1", {}),
    "graft-number": ("3 nets", _OWN, "94.20 → 94.55 %", {}),
    "graft-sources": ("external", "internal", None, {}),
    "graft-criteria": (_OWN, "external, l1", None, {}),
    "graft-adaptive-weight": (_OWN, "external, plain mean", None, {}),
    "graft-dlr": (_OWN, "baseline", "+1.1 to +1.8", {"below": "graft-main", "statement":
                  "Two grafted nets with learning rates of their own are better than single ones"}),
    "graft-four": ("4 nets", "3 nets", "94.55 → 95.23 %",
                   {"below": "graft-number", "statement": "Four nets are better than three"}),
}
WEAK = 0.02  # the paper's premise: the least share of weak filters that leaves something to fill


def claims(rows: list[dict[str, Any]] | None, s: Settings | Quick, profile: str, tuned: Any = None) -> list[Claim]:
    """Return the claims on rows of one method and seed each, with what was ``tuned``; not run without rows."""
    told: dict[str, Any] = {"protocol": f"{protocol(tuned or {}, s.label)}; the paper: ResNet-32", "profile": profile,
                            "record": f"{profile}/runs"}
    if not rows:
        names = ("graft-main", "graft-number", "graft-invalid", "graft-entropy")
        return [Claim(name, **told | {"record": ""}) for name in names]
    table: Any = pd.DataFrame(rows).pivot(index="seed", columns="method")
    error, there = table["test_error"], set(s.methods)
    fit = float(table["train_error", "baseline"].mean()) if "train_error" in table else None
    told["regime"] = regime = Regime(fit, float(error["baseline"].mean()))

    def claim(samples: Any, ident: str, **more: Any) -> Claim:
        return Claim.from_samples(samples, id=ident, **told | more)

    found = [claim(error[worse] - error[better], ident, paper_value=paper, **more)
             for ident, (better, worse, paper, more) in _ERRORS.items() if {better, worse} <= there]
    found += [claim(table["ensemble", "baseline"] - error["external"], "graft-ensemble", below="graft-main",
                    statement="A grafted net is better than the ensemble of two single ones")]
    share = table["weak"] / sum(map(len, filter_norms(s.net(0)).values()))
    dead = float(share["baseline"].mean())
    premise = "" if dead >= WEAK else f"{100 * dead:.1f} % of the filters of single nets are weak"
    return [*found,
            claim(share["baseline"] - share[_OWN], "graft-invalid", paper_value="36 → 14 of 1136",
                  regime=replace(regime, missing=premise)),
            claim(np.log10(table["entropy", _OWN] / table["entropy", "baseline"]), "graft-entropy")]
