"""The claims of notebook 15: from its tables, and from the record of CIFAR-10."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from sharpnb.lab.claims import Claim
from studies.swap import FULL

_NET = "MLP with BatchNorm, 800 shifted digits, 8 workers"
_PATH = "updates on the critical path"
_BEFORE, _AFTER = "SWAP, before (mean of workers)", "SWAP, after averaging"
# (id, statement, the paper's number, quick: worse and better method, full: worse and better column)
_GAINS = [
    ("large", "The large batch's error is above the small batch's", "+0.47", "large batch", "small batch", "large",
     "small"),
    ("gain", "Averaging lowers the workers' error", "0.53", _BEFORE, _AFTER, "before", "after"),
    ("over-large", "SWAP's error is below the large batch's", "0.46", "large batch", _AFTER, "large", "after"),
    ("over-small", "SWAP's error is no higher than the small batch's", "-0.01", "small batch", _AFTER, "small",
     "after"),
]
_FASTER = "SWAP takes less time than the small batch (ratio above 1)"
_RATIO = {"kind": "ratio", "tolerance": 1.0, "paper_value": "1.50 in seconds"}


def _claim(samples: Any, ident: str, item: str, statement: str, **more: Any) -> Claim:
    said = {"paper": "SWAP (ICLR 2020)", "kind": "order", "why": "seeds decide", "unit": "points",
            "profile": "quick"} | more
    return Claim.from_samples(samples, id=f"swap-{ident}", item=item, statement=statement, **said)


def quick(table: pd.DataFrame, phase2: pd.DataFrame, geometry: pd.DataFrame, walks: pd.DataFrame,
          ablation: pd.DataFrame) -> list[Claim]:
    """Return the claims on the digits: ends of the runs, errors over phase 2, planes, cosines, and the ablations."""
    err, path = (table.pivot(index="seed", columns="method", values=name) for name in ("test_error", "path"))
    tail = phase2[phase2["step"] > 0].groupby("seed")[["average", "workers", "best worker"]].mean()
    place = walks[walks["kind"] == "mean"].pivot(index="seed", columns="place", values="cosine").to_numpy()
    tau = ablation[ablation["what"] == "tau"].pivot(index="seed", columns="value", values="after")
    order = partial(_claim, protocol=_NET)
    bare, counted = partial(order, unit=""), partial(_claim, unit="", protocol=f"{_NET}; {_PATH}")
    return [
        *(order(err[worse] - err[better], f"tab1-{ident}", "Table 1", statement, paper_value=paper)
          for ident, statement, paper, worse, better, *_ in _GAINS),
        counted(path["small batch"] / path[_AFTER], "tab1-time", "Table 1", _FASTER, **_RATIO),
        _claim(path[_AFTER] / path["large batch"], "tab1-time-large", "Table 1", "SWAP takes 1.27 times the large "
               "batch's time", kind="value", paper_value=1.27, tolerance=0.2, why="–", comparable=False, unit="",
               protocol="critical path without communication against seconds with it"),
        order(tail["workers"] - tail["average"], "fig1-workers", "Fig. 1",
              "Through phase 2 the average's error is below the workers' mean"),
        order(tail["best worker"] - tail["average"], "fig1-best", "Fig. 1",
              "… and below the best worker's (picked by the test error)"),
        order(geometry["flat_train"] - geometry["flat_test"], "fig2-flat", "Fig. 2", "The plane's flat region (within "
              "a point of the lowest error) is larger on training than on test images", unit="of the plane"),
        bare(geometry["LB"] - geometry["SWAP"], "fig2-lb", "Fig. 2", "LB lies further from the lowest test loss than "
             "SWAP"),
        bare(geometry["worker"] - geometry["SWAP"], "fig2-worker", "Fig. 2", "So does the worker"),
        bare(geometry["convexity"], "fig2-convex", "Fig. 2", "The level set through LB is almost convex (share of its "
             "hull above 0.95)", tolerance=0.95),
        bare(place[:, :3].mean(1) - place[:, -3:].mean(1), "fig3-falls", "Fig. 3", "The cosine with the way to the "
             "average falls", kind="trend"),
        bare(0.1 - place[:, -3:].mean(1), "fig3-zero", "Fig. 3", "At the end of phase 2 it is nearly zero (0.1 less "
             "the cosine above 0)"),
        order(err[_AFTER] - err["SWA, one machine"], "tab4-swa", "Table 4", "SWA on one machine from the same start "
              "reaches a lower or similar error"),
        counted(path["SWA, one machine"] / path[_AFTER], "tab4-time", "Table 4", "… and takes several times longer "
                "(ratio above 2)", **_RATIO | {"tolerance": 2.0, "paper_value": "several"}),
        order(tau[1.0] - tau[0.92], "early", "section 3", "Leaving phase 1 early (92 %) is better than leaving it at "
              "its end, four workers"),
    ]


def full(larger: pd.DataFrame | None) -> list[Claim]:
    """Return the claims on the record of CIFAR-10, one row a seed; not run without it."""
    def of(function: Any) -> Any:
        return None if larger is None else function(larger)

    claim = partial(_claim, item="Table 1", profile="full", protocol=f"{FULL.label}; the paper: ResNet-9")
    claims = [claim(of(lambda t, a=a, b=b: t[a] - t[b]), f"tab1-{ident}-full", statement=statement, paper_value=paper)
              for ident, statement, paper, _, _, a, b in _GAINS]
    claims.append(claim(of(lambda t: t["small_updates"] / t["swap_updates"]), "tab1-time-full", statement=_FASTER,
                        **_RATIO | {"unit": "", "protocol": f"{FULL.label}; {_PATH}"}))
    return claims + [
        claim(of(lambda t, name=name: 100 - t[name]), f"tab1-full-{name}", statement=f"{text} has {value} % on "
              "CIFAR-10", kind="value", paper_value=value, tolerance=0.5, why="half a point; another net", unit="%")
        for name, value, text in (("small", 95.24, "The small batch"), ("large", 94.77, "The large batch"),
                                  ("before", 94.70, "SWAP before averaging"), ("after", 95.23, "SWAP"))]


def made(table: pd.DataFrame, label: str, profile: str) -> list[Claim]:
    """Return the claims on rows of the full profile's code that were made here."""
    return [_claim(table[a] - table[b], f"tab1-{ident}", "Table 1", statement, protocol=label, profile=profile)
            for ident, statement, _, _, _, a, b in _GAINS[1:3]]
