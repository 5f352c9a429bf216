"""Notebook 18: the papers' statements of the kind "flatter is better", each as one number per seed over a pool."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sharpnb.lab import Claim
from sharpnb.lab.claims import Regime
from studies import flatness

# claim -> target, kind of pairs, measure, and the one whose τ is subtracted
_TAUS = {
    "sam-sharpness-gap": ("gap", "same task", "sharpness", None),
    "sam-fig-3-right": ("gap", "same task", "sharpness_m1", "sharpness"),
    "swa-width": ("test_error", "same task", "ray_width", None),
    "asam-predicts": ("gap", "same task", "sharpness_adaptive_worst", "sharpness_worst"),
    "jiang-sharpness": ("gap", "one setting", "sharpness_worst", "weight_norm"),
}
# claim -> column, axis, the value that the paper says is higher, the lower one, whether as log10 of the ratio
_PAIRED = {
    "swa-fig-4": ("ray_width", "method", "SWA", "SGD", True),
    "keskar-sharper": ("sharpness_worst", "batch_size", 150, 30, True),
    "keskar-worse": ("test_error", "batch_size", 150, 30, False),
    "flat-sam-lambda": ("lambda_max", "method", "SGD", "SAM", True),
    "flat-wsam-lambda": ("lambda_max", "method", "SGD", "WSAM", True),
    "flat-sam-error": ("test_error", "method", "SGD", "SAM", False),
    "flat-swa-error": ("test_error", "method", "SGD", "SWA", False),
}
_BELOW = {"flat-sam-lambda": "sam-fig-3-left", "flat-wsam-lambda": "wsam-minima", "flat-sam-error": "sam-table-1",
          "flat-swa-error": "swa-table-1"}

_APART = {"keskar-sharper": "the two sizes of batch end at unequal training losses, and sharpness follows the loss"}


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Return the effect of each claim that a pool's methods and settings allow, a row per seed and a column per claim.

    A correlation is that among the nets of the seed, a difference the mean over its settings.
    """
    used = [name for name in flatness.MEASURES if name in table]
    tau, found = flatness.by_seed(table, used), {}
    for name, (target, among, measure, less) in _TAUS.items():
        if {measure, less or measure} <= {*used}:
            found[name] = tau[target, among, measure] - (tau[target, among, less] if less else 0.0)
    for name, (column, axis, high, low, log) in _PAIRED.items():
        if column in table and {high, low} <= {*table[axis]}:
            found[name] = pd.Series({seed: flatness.paired(part, column, axis, high, low, log)["measured"]
                                     for seed, part in table.groupby("seed")})
    return pd.DataFrame(found)


def claims(table: pd.DataFrame, profile: str, names: Sequence[str] = (), protocol: str = "untuned") -> list[Claim]:
    """Return the claims on the nets of right labels, whose baseline fits them, and below each the same on wrong ones.

    ``names`` are those of the claims, default all that the pool allows; ``protocol`` says how settings were chosen.
    """
    right, wrong = (table[(table["label_noise"] > 0) == noisy] for noisy in (False, True))
    sgd = right[(right["method"] == "SGD") & (right["width"] == right["width"].max())]
    regime = Regime(sgd["train_error"].mean(), sgd["test_error"].mean())
    note: dict[str, Any] = {"profile": profile, "protocol": f"MLPs on digits, {protocol}, equal numbers of updates"}
    made, noisy = [], effects(wrong) if len(wrong) else pd.DataFrame()
    for name, samples in effects(right).items():
        if names and name not in names:
            continue
        below = _BELOW.get(str(name))
        told = {"below": below, "statement": "The same over a pool of small nets, no method tuned"} if below else {}
        made.append(Claim.from_samples(samples, id=str(name), regime=regime,
                                       apart=_APART.get(str(name), ""), **told, **note))
        if name in noisy and not below:
            made.append(Claim.from_samples(noisy[name], id=f"{name}-noisy", below=str(name),
                                           statement="The same with 20 % wrong labels", **note))
    return made
