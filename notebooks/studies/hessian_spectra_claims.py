"""The claims of notebook 03, from its rows: the live nets, those with BatchNorm, and the full profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim, mean_stderr
from sharpnb.lab.notebook import Notebook
from studies import hessian_spectra as study

Rows = list[dict[str, Any]]
_SEEDS = {"why": "threshold 0 or 1; seeds decide"}
_RATIO = {"kind": "ratio", "tolerance": 1.0, **_SEEDS}
_ORDER = {"kind": "order", "paper_value": "11.4 against 2.6", **_SEEDS,
          "statement": "λmax/λ5 is higher for SGD than for SAM at the end (difference above 0)"}
_RISE = {"kind": "trend", "paper_value": "12.5 → 24.2", **_SEEDS,
         "statement": "SGD's λmax rises from the middle to the end (log10 of the factor above 0)"}


def _above(time: str) -> str:
    return f"λmax of SGD over λmax of SAM, {time}, is above 1"


def _quotient(rows: Rows, time: str) -> list[float]:
    return study.paired(rows, time, "lambda_1", lambda sgd, sam: sgd / sam)


def _difference(rows: Rows) -> list[float]:
    return study.paired(rows, "end", "ratio", lambda sgd, sam: sgd - sam)


def _rise(rows: Rows) -> list[float]:
    return study.change(rows, "sgd", "lambda_1", "middle", "end")


def claims(
    nb: Notebook, s: study.Settings, rows: Rows, noisy: Rows, bn: pd.DataFrame, later: dict[str, Any]
) -> list[Claim]:
    """Return all claims: on the ``rows`` of right and of ``noisy`` labels, on BatchNorm, on the full profile's records.

    ``later`` are those records by the kind of their labels; ``bn`` is empty outside the quick profile.
    """
    sam = {"paper": "SAM (ICLR 2021)", "item": "Fig. 3 left", "profile": nb.profile}
    wrong = f"{s.label}, 20 % wrong labels"
    made = [Claim.from_samples(_quotient(rows, time), id=f"sam-fig3-lambda-max-{number}", paper_value=value,
                               statement=_above(time), protocol=s.label, **_RATIO, **sam)
            for number, (time, value) in enumerate(zip(study.TIMES, (3.4, 1.4, 24.2), strict=True))]
    made += [
        Claim.from_samples(_difference(rows), id="sam-fig3-ratio", protocol=s.label, **_ORDER, **sam),
        Claim.from_samples(_quotient(noisy, "end"), id="sam-fig3-lambda-max-noisy", paper_value=24.2,
                           statement=_above("end"), protocol=wrong, **_RATIO, **sam),
        Claim.from_samples(_rise(rows), id="sam-fig3-rise", protocol=s.label, **_RISE, **sam),
        Claim.from_samples(_rise(noisy), id="sam-fig3-rise-noisy", protocol=wrong, **_RISE, **sam),
    ]
    made += _of_batchnorm(bn, nb.profile) if len(bn) else []
    if not nb.full:
        for labels, tag in (("right labels", ""), ("20 % wrong labels", "-noisy")):
            made += _of_full(later.get(labels, {}).get("rows"), labels, tag, sam | {"profile": "full"})
    return made


def _of_batchnorm(bn: pd.DataFrame, profile: str) -> list[Claim]:
    note = {"paper": "Ghorbani et al. (ICML 2019)", "item": "abstract", "profile": profile, **_SEEDS,
            "protocol": "deep MLP, digits"}
    wide, made = bn.pivot_table(index=["time", "seed"], columns="net", values=["ratio", "gradient_share"]), []
    for number, time in enumerate(study.TIMES):
        ratio, share = wide.loc[time]["ratio"], wide.loc[time]["gradient_share"]
        made += [
            Claim.from_samples(np.log10(ratio["no BatchNorm"] / ratio["BatchNorm"]), id=f"ghorbani-outliers-{number}",
                               kind="trend", **note, statement=f"Without BatchNorm λmax stands out further, {time} "
                               "(log10 of the quotient of λmax/λ10 above 0)"),
            Claim.from_samples(share["no BatchNorm"] - share["BatchNorm"], id=f"ghorbani-gradient-{number}",
                               kind="order", **note, statement="Without BatchNorm more of the gradient lies in the "
                               f"top ten directions, {time} (difference above 0)"),
        ]
    return made


def _of_full(rows: Rows | None, labels: str, tag: str, scale: dict[str, Any]) -> list[Claim]:
    note = {"protocol": f"{study.FULL.label}, {labels}; the paper: WRN-40-10, 300 epochs",
            "record": f"full/{'noisy' if tag else 'clean'}", **scale}
    asked: dict[str, tuple[Any, dict[str, Any]]] = {
        "order": (lambda rows: np.log10(_quotient(rows, "end")), {
            "statement": "log10 of λmax of SGD over that of SAM at the end is above 0", "kind": "order", **_SEEDS}),
        "ratio": (_difference, _ORDER), "rise": (_rise, _RISE),
    }
    for rule, value in (("sgd", 24.2), ("sam", 1.0)) if not tag else ():  # the paper's nets had right labels
        def at_end(rows: Rows, rule: str = rule) -> list[float]:
            return [row["lambda_1"] for row in rows if (row["rule"], row["time"]) == (rule, "end")]

        asked[rule] = (at_end, {
            "statement": f"λmax of {rule.upper()} at the end is {value}", "kind": "value", "paper_value": value,
            "tolerance": 0.2 * value, "why": "a fifth of the value; the net is narrower than the paper's"})
    made = []
    for name, (samples, against) in asked.items():
        mean, stderr = mean_stderr(samples(rows)) if rows else (None, None)
        made.append(Claim(f"sam-fig3-full-{name}{tag}", measured=mean, stderr=stderr, **against, **note,
                          n=study.FULL.seeds if rows else 1))
    return made
