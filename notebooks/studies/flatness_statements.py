"""Notebook 18: the papers' statements of the kind "flatter is better", each as one number over the pool."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit

from sharpnb.lab.claims import Claim, t95
from studies import flatness

_SAM, _SWA, _ASAM = "SAM (ICLR 2021)", "SWA (UAI 2018)", "ASAM (ICML 2021)"
_KESKAR, _JIANG, _WSAM = "Keskar et al. (ICLR 2017)", "Jiang et al. (ICLR 2020)", "WSAM (KDD 2023)"
_USED = ("sharpness", "sharpness_m1", "sharpness_worst", "sharpness_adaptive_worst", "ray_width", "weight_norm")
Row = dict[str, Any]

# (id, paper, item, statement, target, relation, measure, and the one whose τ is subtracted)
_TAUS = [
    ("flat-sam-task", _SAM, "sections 1, 2",
     "Of two nets of one task the sharper (first order, all images) has the larger gap: τ above 0",
     "gap", "same task", "sharpness", None),
    ("flat-sam-setting", _SAM, "sections 1, 2", "The same among nets that differ in one setting: mean τ above 0",
     "gap", "one setting", "sharpness", None),
    ("flat-sam-method", _SAM, "sections 1, 2", "The same among nets of one task and one method: τ above 0",
     "gap", "same method", "sharpness", None),
    ("flat-sam-m-tau", _SAM, "Fig. 3 right",
     "m-sharpness with m = 1 orders nets of one task by their gap better than with all images: difference of τ above 0",
     "gap", "same task", "sharpness_m1", "sharpness"),
    ("flat-swa-width", _SWA, "Fig. 4",
     "Of two nets of one task the wider (rays, training loss) has the lower test error: τ above 0",
     "test_error", "same task", "ray_width", None),
    ("flat-keskar-tau", _KESKAR, "section 2",
     "Of two nets that differ in batch size alone the sharper (worst case) has the higher test error: τ above 0",
     "test_error", "batch_size", "sharpness_worst", None),
    ("flat-asam", _ASAM, "section 3",
     "Adaptive sharpness orders nets of one task by their gap better than sharpness (worst case both): difference of τ",
     "gap", "same task", "sharpness_adaptive_worst", "sharpness_worst"),
    ("flat-asam-error", _ASAM, "section 3",
     "Of two nets of one task the one of larger adaptive sharpness (worst case) has the higher test error: τ above 0",
     "test_error", "same task", "sharpness_adaptive_worst", None),
    ("flat-jiang", _JIANG, "Ψ of sharpness and of norms",
     "Worst-case sharpness predicts the gap better than the weights' norm, among nets that differ in one setting: "
     "difference of τ above 0",
     "gap", "one setting", "sharpness_worst", "weight_norm"),
]
# (id, paper, item, statement, column, axis, value said to be higher, lower, log10 of the ratio)
_PAIRED = [
    ("flat-sam-lambda", _SAM, "Fig. 3 left", "SGD's λ₁ is above SAM's: log₁₀ of the ratio above 0",
     "lambda_max", "method", "SGD", "SAM", True),
    ("flat-sam-ratio", _SAM, "Fig. 3 left", "SGD's λ₁/λ₅ is above SAM's: log₁₀ of the ratio above 0",
     "ratio_1_5", "method", "SGD", "SAM", True),
    ("flat-sam-error", _SAM, "Table 1", "SGD's test error is above SAM's",
     "test_error", "method", "SGD", "SAM", False),
    ("flat-swa-wider", _SWA, "Fig. 4", "SWA's average is wider than SGD's end: log₁₀ of the ratio of widths above 0",
     "ray_width", "method", "SWA", "SGD", True),
    ("flat-swa-error", _SWA, "Table 1", "SGD's test error is above SWA's",
     "test_error", "method", "SGD", "SWA", False),
    ("flat-wsam-lambda", _WSAM, "minima found", "SGD's λ₁ is above WSAM's: log₁₀ of the ratio above 0",
     "lambda_max", "method", "SGD", "WSAM", True),
    ("flat-keskar-sharper", _KESKAR, "section 2",
     "Large batches end at sharper points (worst case): log₁₀ of the ratio above 0",
     "sharpness_worst", "batch_size", 150, 30, True),
    ("flat-keskar-worse", _KESKAR, "section 2", "Large batches end at a higher test error",
     "test_error", "batch_size", 150, 30, False),
]
_SAYS = {"flat-sam-lambda": "24.2 and 1.0", "flat-sam-ratio": "11.4 and 2.6", "flat-sam-m-tau": "rises as m falls",
         "flat-sam-m-information": "rises as m falls"}
_OURS = {_KESKAR: ", batches 30 and 150 for equally many updates, not epochs"}


def statements(table: pd.DataFrame, information: pd.DataFrame) -> pd.DataFrame:
    """Return one row a statement: what the paper says as an effect above 0, and that effect with its error.

    Correlations have the error of the bootstrap over methods and seeds (n: methods), paired differences that over
    settings and seeds (n: settings). ``p`` is Student's, two-sided; ``p_holm`` holds for all rows at once, and so do
    ``lower`` and ``upper`` (Bonferroni); ``widened`` is their width over that of an interval for one row alone.

    Args:
        table: the pool.
        information: what :func:`flatness.information` returned for its gaps.
    """
    found, methods = {target: flatness.taus(table, target, _USED) for target in flatness.TARGETS}, table["method"]
    rows: list[Row] = []
    for ident, paper, item, statement, target, relation, measure, less in _TAUS:
        of = {name: values for (among, name), values in found[target].items() if among == relation}
        drawn = of.get(measure, np.full(2, np.nan)) - (of[less] if less else 0.0)
        drawn = drawn[np.isfinite(drawn)]
        if len(drawn) > 2:
            rows.append({"id": ident, "paper": paper, "item": item, "statement": statement, "unit": "τ",
                         "measured": drawn[0], "stderr": drawn[1:].std(ddof=1), "n": methods.nunique()})
    rows.append(_information(information) | {"n": methods.nunique()})
    for ident, paper, item, statement, column, axis, high, low, log in _PAIRED:
        if {high, low} <= set(table[axis]):
            rows.append({"id": ident, "paper": paper, "item": item, "statement": statement,
                         "unit": "decades" if log else "points",
                         **flatness.paired(table, column, axis, high, low, log)})
    return _corrected(pd.DataFrame(rows).query("stderr > 0").reset_index(drop=True))


def _information(table: pd.DataFrame) -> Row:
    of = table.set_index("measure")
    return {"id": "flat-sam-m-information", "paper": _SAM, "item": "Fig. 3 right", "unit": "share",
            "statement": "m-sharpness with m = 1 has more conditional mutual information with the gap than with all "
            "images: difference above 0",
            "measured": float(of["information"]["sharpness_m1"] - of["information"]["sharpness"]),
            "stderr": float(np.hypot(of["stderr"]["sharpness_m1"], of["stderr"]["sharpness"]))}


def _corrected(out: pd.DataFrame) -> pd.DataFrame:
    out["p"] = 2 * stdtr(out["n"] - 1, -(out["measured"] / out["stderr"]).abs())
    out["p_holm"] = flatness.holm(out["p"])
    reach = -stdtrit(out["n"] - 1, 0.025 / len(out))
    out["widened"] = reach / t95(out["n"])
    half = reach * out["stderr"]
    return out.assign(lower=out["measured"] - half, upper=out["measured"] + half)


def claims(found: pd.DataFrame, profile: str) -> list[Claim]:
    """Return the statements as claims, each error widened so that the intervals of all hold at once."""
    out = []
    for row in found.to_dict("records"):
        p = "below 0.001" if row["p_holm"] < 0.001 else f"= {row['p_holm']:.2g}"
        out.append(Claim(
            row["id"], row["paper"], row["item"], row["statement"], "order", _SAYS.get(row["id"]), row["measured"],
            row["stderr"] * row["widened"], int(row["n"]), unit=row["unit"], profile=profile,
            protocol=f"pool of MLPs on digits{_OURS.get(row['paper'], '')}; p after Holm {p}",
            why=f"threshold 0; standard error widened {row['widened']:.2f} times, so that all {len(found)} intervals "
                "hold at once"))
    return out


def of_rescaling(spread: pd.Series, errors: pd.Series, profile: str) -> list[Claim]:
    """Return the claims on one net along a rescaling: each measure's largest over smallest value, its test errors."""
    dinh = {"paper": "Dinh et al. (ICML 2017)", "item": "section 4", "profile": profile, "n": 1, "stderr": 0.0,
            "protocol": "MLP 64-8-10, α from 1/16 to 16"}
    return [
        Claim("flat-dinh-lambda", kind="ratio", measured=float(spread["lambda_max"]), tolerance=10.0, **dinh,
              statement="The same function can be made sharper at will: largest over smallest λ₁ along the rescaling "
              "above 10", why="ten times is the spread between SGD and SAM"),
        Claim("flat-dinh-function", kind="order", measured=float(1 - np.ptp(errors)), why="exact up to rounding",
              statement="… and its test error stays what it is (1 − range of the error in points above 0)", **dinh),
        Claim("flat-asam-invariant", kind="ratio", measured=float(2 - spread["sharpness_adaptive_worst"]),
              tolerance=0.999, why="rounding", statement="Adaptive sharpness does not change under it (2 − largest "
              "over smallest value, above 0.999)", **dinh | {"paper": _ASAM, "item": "section 3"}),
    ]
