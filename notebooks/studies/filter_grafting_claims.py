"""The claims of notebook 17, from its rows and from the record of CIFAR-10."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sharpnb.lab.claims import Claim
from studies.filter_grafting import FULL

_MAIN = {  # id -> better and worse method, item, statement, the paper's number
    "slr": ("external", "baseline", "main table",
            "Two grafted networks, one learning rate, have a lower error than single ones", "+0.5 to +1.1"),
    "dlr": ("external, own lr", "baseline", "main table",
            "Two grafted networks with own learning rates have a lower error than single ones", "+1.1 to +1.8"),
    "dlr-slr": ("external, own lr", "external", "main table", "Own learning rates are better than one", None),
    "three": ("3 nets", "external, own lr", "number of networks", "Three networks are better than two",
              "94.20 → 94.55"),
    "four": ("4 nets", "3 nets", "number of networks", "Four networks are better than three", "94.55 → 95.23"),
}
_SOURCES = {  # of the quick profile
    "internal-noise": ("internal", "noise", "sources", "Internal filters are a better source than noise"),
    "external-internal": ("external", "internal", "sources",
                          "Another network is a better source than internal filters"),
    "entropy-l1": ("external, own lr", "external, l1", "criteria", "Entropy weighs better than the l1 norm"),
    "a-zero": ("external, own lr", "external, plain mean", "A and c", "a = 0.4 is better than the plain mean"),
    "a-one": ("external, own lr", "external, a = 1", "A and c", "a = 0.4 is better than a = 1"),
}


class _Of:
    """Claims on one table, one row a method and seed; not run without it. ``tag`` ends their ids."""

    def __init__(self, rows: list[dict[str, Any]] | None, tag: str = "", **note: Any) -> None:
        self.table = pd.DataFrame(rows).pivot(index="seed", columns="method") if rows else None
        self.tag, self.note = tag, {"paper": "Filter Grafting (CVPR 2020)", "kind": "order",
                                    "why": "seeds decide"} | note

    def claim(self, ident: str, item: str, statement: str, less: Any, more: Any, **fields: Any) -> Claim:
        """Return the claim that ``more``, a column and a method, is above ``less``."""
        samples = None if self.table is None else self.table[more] - self.table[less]
        return Claim.from_samples(samples, id=f"graft-{ident}{self.tag}", item=item, statement=statement,
                                  **self.note | fields)

    def error(self, ident: str, better: str, worse: str, item: str, statement: str, paper: Any = None) -> Claim:
        """Return the claim that one method's error is below another's."""
        return self.claim(ident, item, statement, ("test_error", better), ("test_error", worse), unit="points",
                          paper_value=paper)

    def rest(self, weak: bool) -> list[Claim]:
        """Return the claims on entropy, on weak filters (comparable where ``weak`` ones are there), on the ensemble."""
        own = "external, own lr"
        return [
            self.claim("entropy-up", "total entropy", "Grafting raises the sum of the layers' entropies",
                       ("entropy", "baseline"), ("entropy", own)),
            self.claim("weak-down", "invalid filters", "Grafting lowers the number of weak filters", ("weak", own),
                       ("weak", "baseline"), paper_value="36 → 14 of 1136", comparable=weak),
            self.claim("ensemble", "number of networks", "A grafted network is better than the ensemble of two single "
                       "ones", ("test_error", own), ("ensemble", "baseline"), unit="points")]


def here(rows: list[dict[str, Any]], label: str, profile: str) -> list[Claim]:
    """Return the claims on the rows that a notebook has made."""
    of = _Of(rows, profile=profile, protocol=label)
    claims = [of.error(ident, *said) for ident, said in _MAIN.items()]
    if profile == "quick":
        claims += [of.error(ident, *said) for ident, said in _SOURCES.items()]
        claims += of.rest(any(row["weak"] for row in rows))
    return claims


def full(rows: list[dict[str, Any]] | None) -> list[Claim]:
    """Return the claims on the record of CIFAR-10; not run without it."""
    of = _Of(rows, "-full", profile="full", protocol=f"{FULL.label}; the paper: ResNet-32")
    claims = [of.error(ident, *said) for ident, said in _MAIN.items()]
    claims += of.rest(bool(rows) and pd.DataFrame(rows)["weak"].mean() >= 1)
    own = None if of.table is None else 100 - of.table["test_error", "external, own lr"]
    value = of.note | {"kind": "value", "why": "half a point", "tolerance": 0.5, "unit": "%", "paper_value": 93.94}
    return [*claims, Claim.from_samples(own, id="graft-full", item="main table", statement="CIFAR-10 accuracy of "
                                        "ResNet-32, own learning rates, is 93.94 %", **value)]
