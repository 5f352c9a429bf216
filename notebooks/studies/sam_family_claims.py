"""The claims of notebook 09 on the family, from its tuned table: the same for the quick and the full profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim, Regime
from studies import comparison
from studies.sam_family import FULL, Study

PAIRS = {
    "decoupled against coupled, SGD": ("WSAM, coupled", "WSAM"),
    "ASAM + WSAM against ASAM": ("ASAM", "ASAM + WSAM"),
    "Fisher SAM + WSAM against Fisher SAM": ("Fisher SAM", "Fisher SAM + WSAM"),
}
ON_ADAM = {
    "decoupled against coupled, Adam": ("Adam + WSAM, coupled", "Adam + WSAM"),
    "WSAM against SAM, Adam": ("Adam + SAM", "Adam + WSAM"),
    "SAM against nothing, Adam": ("Adam", "Adam + SAM"),
}
# primary claim: the worse method and the better by the paper, points that the paper allows the latter
PRIMARY = {
    "wsam-table-2": ("SAM", "WSAM", 0.0), "wsam-table-7": ("ASAM", "ASAM + WSAM", 0.0),
    "wsam-table-8": ("WSAM, coupled", "WSAM", 0.0), "gsam-main": ("SAM", "GSAM", 0.0),
    "asam-main": ("SAM", "ASAM", 0.0), "fisher-main": ("SAM", "Fisher SAM", 0.0),
    "esam-accuracy": ("SAM", "ESAM", 0.5),
}
DETAILS = (("wsam-table-2", "SGD", "WSAM"), ("wsam-table-2", "GSAM", "WSAM"), ("wsam-table-2", "ESAM", "WSAM"),
           ("wsam-table-7", "Fisher SAM", "Fisher SAM + WSAM"))


def gap(final: pd.DataFrame, noise: float, worse: str, better: str, column: str = "test_error") -> np.ndarray:
    """Return a column of one tuned method minus another's, by seed, at the usual length of training."""
    part: Any = final[(final["noise"] == noise) & (final["length"] == 1.0)]
    return comparison.paired(part, worse, better, column)


def quick(final: pd.DataFrame, s: Study, profile: str, vit: pd.DataFrame) -> list[Claim]:
    """Return the claims of what is live: the comparisons, and the transformer trained on."""
    fits = Regime(*vit[vit["method"] == "AdamW"][["train_error", "test_error"]].mean())
    about: dict[str, Any] = {"profile": profile, "protocol": s.vit.label}
    return [
        *claims(final, s, profile),
        Claim.from_samples(comparison.paired(vit, "AdamW", "WSAM").tolist(), id="wsam-table-4", regime=fits, **about),
        *(Claim.from_samples(comparison.paired(vit, rival, "WSAM").tolist(), id=f"wsam-table-4-{rival.lower()}",
                             below="wsam-table-4", statement=f"WSAM, trained on, ends below {rival}", **about)
          for rival in ("SAM", "GSAM")),
    ]


def full(final: pd.DataFrame | None) -> list[Claim]:
    """Return the claims of the full profile's record."""
    return claims(final, FULL, "full", record="full/family")


def claims(final: pd.DataFrame | None, s: Study, profile: str, record: str = "") -> list[Claim]:
    """Return the claims on the comparisons; without a table of study ``s`` they are not run."""
    about: dict[str, Any] = {"profile": profile, "record": record, "protocol": s.net.label}
    if final is None:
        return [Claim(name, **about) for name in (*PRIMARY, "wsam-minima")]
    sgd = final[(final["method"] == "SGD") & (final["noise"] == 0.0) & (final["length"] == 1.0)]
    twice = final[(final["method"] == "SGD, twice as long") & (final["noise"] == 0.0)]["test_error"].mean()
    fits = float(sgd["train_error"].mean()) if "train_error" in sgd else None
    about["regime"] = Regime(fits, float(sgd["test_error"].mean()), float(twice))
    clean = [(*pair, {"id": name}) for name, pair in PRIMARY.items()]
    clean += [(worse, better, 0.0, {"id": f"{name}-{worse.lower().replace(' ', '-')}", "below": name,
                                    "statement": f"{better} has a lower test error than {worse}"})
              for name, worse, better in DETAILS]
    made = [Claim.from_samples((allowed + gap(final, 0.0, worse, better)).tolist(), **own, **about)
            for worse, better, allowed, own in clean]
    ratio = np.log10(final.assign(lambda_max=final["lambda_max"].fillna(1.0))["lambda_max"])
    made.append(Claim.from_samples(gap(final.assign(log=ratio), 0.0, "SGD", "WSAM", "log").tolist(),
                                   id="wsam-minima", **about))
    return made
