"""The claims of notebook 15: from its tables, and from the record of CIFAR-10."""

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim
from sharpnb.lab.claims import Regime
from studies.signals import protocol
from studies.swap import FULL, Quick

claim = Claim.from_samples
_BEFORE, _AFTER = "SWAP, before (mean of workers)", "SWAP, after averaging"


def _main(small: pd.Series, large: pd.Series, before: pd.Series, after: pd.Series, train_error: float | None,
          **told: Any) -> list[Claim]:
    """Return the claims on test errors of one row per seed; the small batch is the baseline, at its best setting."""
    premise = "" if large.mean() > small.mean() else "the large batch is no worse than the small one"
    told["regime"] = Regime(train_error, float(small.mean()))
    return [
        claim(large - after, id="swap-table-1", paper_value="0.46",
              **told | {"regime": Regime(train_error, float(small.mean()), missing=premise)}),
        claim(large - small, id="swap-tab1-large", below="swap-table-1", paper_value="0.47",
              statement="The large batch's error is above the small batch's", **told),
        claim(small - after, id="swap-tab1-over-small", below="swap-table-1", paper_value="-0.01",
              statement="SWAP's error is no higher than the small batch's", **told),
        claim(before - after, id="swap-fig-1", paper_value="0.53", **told)]


def quick(table: pd.DataFrame, phase2: pd.DataFrame, geometry: pd.DataFrame, walks: pd.DataFrame,
          ablation: pd.DataFrame, tuned: dict[str, Any], s: Quick) -> list[Claim]:
    """Return the claims on the quick runs: their ends, errors over phase 2, planes, cosines, and the ablation."""
    error, fit = (table.pivot(index="seed", columns="method", values=name) for name in ("test_error", "train_error"))
    tail = phase2[phase2["step"] > 0].groupby("seed")[["average", "best worker"]].mean()
    place = walks[walks["kind"] == "mean"].pivot(index="seed", columns="place", values="cosine")  # phase 2: 1 to 2
    start, end = (place[[x for x in place.columns if low <= x <= high]].mean(axis=1) for low, high in (
        (1.0, 1.25), (1.75, 2.0)))
    tau = ablation[ablation["what"] == "tau"].pivot(index="seed", columns="value", values="after")
    own = float(fit["small batch"].mean())
    label = protocol(tuned, s.label, "tuned on seeds 100-105")
    told: dict[str, Any] = {"protocol": label, "regime": Regime(own, float(error["small batch"].mean()))}
    return [
        *_main(error["small batch"], error["large batch"], error[_BEFORE], error[_AFTER], own, protocol=label),
        claim(tail["best worker"] - tail["average"], id="swap-fig1-best", below="swap-fig-1", statement="Through phase "
              "2 the average's error is below that of the best worker, picked by the test error", **told),
        claim(np.log10(geometry["LB"] / geometry["SWAP"]), id="swap-fig-2", **told),
        claim(np.log10(geometry["worker"] / geometry["SWAP"]), id="swap-fig2-worker", below="swap-fig-2",
              statement="A worker's point lies further from it than SWAP's too", **told),
        claim(np.log10(geometry["flat_train"] / geometry["flat_test"]), id="swap-fig2-flat", below="swap-fig-2",
              statement="Within a point of the lowest error lies more of the plane on training than on test images",
              **told),
        claim(start - end, id="swap-fig-3", **told),
        claim(error[_AFTER] - error["SWA, one machine"], id="swap-table-4", **told),
        claim(tau[tau.columns[-1]] - tau[tau.columns[-2]], id="swap-section-3", **told),
    ]


def full(larger: pd.DataFrame | None, label: str = FULL.label, profile: str = "full") -> list[Claim]:
    """Return the claims on the record of CIFAR-10 or of the toy, one row per seed; not run without it."""
    told: dict[str, Any] = {"protocol": f"{label}; the paper: ResNet-9", "profile": profile}
    if larger is None:
        return [claim(None, id=name, **told) for name in ("swap-table-1", "swap-fig-1")]
    columns = (larger[name] for name in ("small", "large", "before", "after"))
    return _main(*columns, None, record=f"{profile}/cifar", **told)
