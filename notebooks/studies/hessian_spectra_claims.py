"""The claims of notebook 03, from its rows: the live nets, those with BatchNorm, and the full profile."""

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim
from studies import hessian_spectra as study

Rows = list[dict[str, Any]]
_FLAT = "sam-fig-3-left"


def claims(s: study.Settings, rows: Rows, noisy: Rows, bn: pd.DataFrame, later: dict[str, Any],
           profile: str, mid: dict[str, Any] | None = None) -> list[Claim]:
    """Return all claims: on ``rows`` of right and of ``noisy`` labels, on BatchNorm (``bn``), on the long records.

    ``later`` are the full ones by the kind of their labels, ``mid`` is the mid one; ``bn`` is empty outside quick.
    """
    widened = f"{s.label}; SGD's rates were widened after a first look at the judging seeds"
    made = _of_spectra(rows, noisy, protocol=widened, profile=profile)
    if len(bn):
        wide = bn[bn["time"] == "end"].pivot_table(index="seed", columns="net", values=["ratio", "gradient_share"])
        ratio, share = (wide[name]["no BatchNorm"] for name in ("ratio", "gradient_share"))
        note = {"protocol": "MLP of four layers, digits; measured as it is trained", "profile": profile}
        made += [Claim.from_samples(np.log10(ratio / wide["ratio"]["BatchNorm"]), id="ghorbani-outliers", **note),
                 Claim.from_samples(share - wide["gradient_share"]["BatchNorm"], id="ghorbani-gradient", **note)]
    if profile != "full":
        clean, wrong = (later.get(labels, {}).get("rows") for labels in ("right labels", "20 % wrong labels"))
        note = {"protocol": f"{study.FULL.label}, at unequal training losses", "record": "full/clean"}
        made += _of_spectra(clean, wrong, profile="full", **note)
    if mid:
        note = {"protocol": f"{study.MID.label}; ρ = {mid['tuned']:g}, tuned on other seeds", "record": "mid/fashion"}
        made += [claim for claim in _of_spectra(mid["rows"], None, profile="mid", **note) if claim.samples]
    return made


def _of_spectra(rows: Rows | None, noisy: Rows | None, **note: Any) -> list[Claim]:
    def decades(rows: Rows | None, column: str, above: tuple[str, str], below: tuple[str, str]) -> Any:
        if rows is None:
            return None
        at = pd.DataFrame(rows).pivot(index="seed", columns=["rule", "time"], values=column)
        return np.log10(at[above] / at[below])

    def against(rows: Rows | None, column: str) -> Any:
        return decades(rows, column, ("sgd", "end"), ("sam", "end"))

    def detail(name: str, samples: Any, statement: str, value: str | None = None) -> Claim:
        return Claim.from_samples(samples, id=f"sam-fig3-{name}", below=_FLAT, statement=statement, paper_value=value,
                                  **note)

    made = [
        Claim.from_samples(against(rows, "lambda_1"), id=_FLAT, paper_value="×24.2", **note),
        detail("lambda-max-noisy", against(noisy, "lambda_1"), "The same with 20 % wrong labels"),
        detail("ratio", against(rows, "ratio"), "SGD's λmax/λ5 is larger than SAM's at the end", "11.4 against 2.6"),
        detail("rise", decades(rows, "lambda_1", ("sgd", "end"), ("sgd", "middle")),
               "SGD's λmax rises from the middle to the end", "12.5 → 24.2"),
    ]
    if rows and "equal loss" in {row["time"] for row in rows}:
        equal = decades(rows, "lambda_1", ("sgd", "equal loss"), ("sam", "equal loss")).dropna()  # who came there
        made += [detail("equal-loss", equal, "SGD's λmax is larger than SAM's at the same training loss")]
    return made
