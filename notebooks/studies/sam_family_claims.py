"""The claims of notebook 09 on the family, from its judged table: the same for the quick and the full profile."""

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim
from studies import comparison
from studies.comparison import Trials
from studies.sam_family import COUPLED, TWICE, Study, of_noise

# primary claim: the worse method and the better by the paper, and the points that the paper allows the latter
PRIMARY = {
    "wsam-table-2": ("SAM", "WSAM", 0.0), "wsam-table-7": ("ASAM", "ASAM + WSAM", 0.0),
    "wsam-table-8": (COUPLED, "WSAM", 0.0), "gsam-main": ("SAM", "GSAM", 0.0), "asam-main": ("SAM", "ASAM", 0.0),
    "fisher-main": ("SAM", "Fisher SAM", 0.0), "esam-accuracy": ("SAM", "ESAM", 0.5),
}
DETAILS = (("wsam-table-2", "SGD", "WSAM"), ("wsam-table-2", "ESAM", "WSAM"), ("wsam-table-2", "GSAM", "WSAM"),
           ("wsam-table-7", "Fisher SAM", "Fisher SAM + WSAM"))


def claims(table: pd.DataFrame | None, trials: Trials, s: Study, profile: str, record: str = "") -> list[Claim]:
    """Return the claims on the comparisons with right labels; without a table of study ``s`` they are not run."""
    about: dict[str, Any] = {"profile": profile, "record": record}
    if table is None:
        return [Claim(name, protocol=s.net.label, **about) for name in (*PRIMARY, "wsam-minima")]
    part, own = table[table["noise"] == 0.0], of_noise(trials, 0.0)
    about["regime"] = comparison.regime(part, twice=TWICE)
    made = [Claim.from_samples(allowed + comparison.gap(part, worse, better), id=name,
                               protocol=protocol(s, own, worse, better), **about)
            for name, (worse, better, allowed) in PRIMARY.items()]
    made += [Claim.from_samples(comparison.gap(part, worse, better), id=f"{name}-{worse.split()[0].lower()}",
                                below=name, statement=f"{better} has a lower test error than {worse}",
                                protocol=protocol(s, own, worse, better), **about) for name, worse, better in DETAILS]
    lambdas = part.pivot(index="seed", columns="method", values="lambda_max").astype(float)
    made.append(Claim.from_samples(np.log10(lambdas["SGD"] / lambdas["WSAM"]), id="wsam-minima",
                                   protocol=protocol(s, own, "SGD", "WSAM"), **about))
    return made


def of_vit(table: pd.DataFrame, trials: Trials, s: Study, profile: str) -> list[Claim]:
    """Return the claims on the transformer that is trained on."""
    about: dict[str, Any] = {"profile": profile, "regime": comparison.regime(table, "AdamW")}
    told = {rival: {"id": f"wsam-table-4-{rival.lower()}", "below": "wsam-table-4",
                    "statement": f"Training on with WSAM ends at a lower test error than with {rival}"}
            for rival in ("SAM", "GSAM")}
    return [Claim.from_samples(comparison.gap(table, rival, "WSAM"), **own, **about,
                               protocol=protocol(s, trials, rival, "WSAM", "vit"))
            for rival, own in ({"AdamW": {"id": "wsam-table-4"}} | told).items()]


def protocol(s: Study, trials: Trials, worse: str, better: str, part: str = "net") -> str:
    """Say what was trained and tuned, and which settings are best at an end of their grid."""
    tuned = [name for name in dict.fromkeys((worse, "SAM", better)) if any(row["method"] == name for row in trials)]
    edge = "; ".join(f"{name} at the edge: {found}" for name in tuned if (found := comparison.edges(trials, name)))
    return f"{getattr(s, part).label}; {s.trials} trials each" + (f"; {edge}" if edge else "")
