"""The claims of notebook 01, from its tables."""

import pandas as pd

from sharpnb.lab import Claim, Notebook
from sharpnb.lab.claims import Regime
from studies import sam as study


def claims(nb: Notebook, s: study.Settings, runs: pd.DataFrame, kinds: pd.DataFrame | None) -> list[Claim]:
    """Return all claims on judged ``runs`` of settings ``s``, and on the full table of radii once it is run."""
    found = []
    if kinds is not None:
        error = {kind: study.by_seed(kinds, "test_error", kind=kind, rho=study.best_radius(kinds, kind))
                 for kind in ("2-norm", "random", "none")}
        found = [Claim.from_samples(error["random"] - error["2-norm"], id="sam-fig-6", profile="full",
                                    protocol=study.FULL.label, regime=Regime(None, float(error["none"].mean())))]
    if nb.full:
        return found
    end, half = runs[runs["step"] == s.steps], runs[runs["step"].between(1, s.steps / 2)]
    cosine = half.groupby("seed")["cosine"].mean() - end.groupby("seed")["cosine"].mean()
    error = {kind: study.by_seed(end, "test_error", kind=kind) for kind in ("none", *study.LIVE)}
    none, sam = (end[end["kind"] == kind].set_index("seed") for kind in ("none", "2-norm"))
    note = {"protocol": f"{s.label}, of a survey of SAM", "regime": Regime(*none[["train_error", "test_error"]].mean())}
    gained = {kind: worse - error["2-norm"] for kind, worse in error.items()}
    return [
        *found,
        Claim.from_samples(gained["second-order"], id="sam-fig-4", **note),
        Claim.from_samples(cosine, id="sam-fig-5", **note),
        Claim.from_samples(gained["random"], id="sam-fig-6", **note),
        Claim.from_samples(gained["max-norm"], id="sam-fig-6-max-norm", below="sam-fig-6",
                           statement="the same against the ball of the max-norm"),
        Claim.from_samples(gained["none"], id="sam-fig-6-none", below="sam-fig-6",
                           statement="the same against no perturbation, SGD"),
        Claim.from_samples(sam["rise 5"] - sam["rise 1"], id="sam-fig-7", paper_value="0.17 → 2.26", **note),
        Claim.from_samples(0.5 + gained["five steps"], id="sam-table-11", paper_value="at least 0.37", **note),
    ]
