"""The claims of notebook 09 on the family, from its tuned table: the same for the quick and the full profile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim
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
_WSAM: dict[str, Any] = {"paper": "WSAM (KDD 2023)", "why": "threshold 0; seeds decide", "unit": "points"}
_LOWER = "has a lower error than"
# statement, the worse method and the better by the claim, column; id, item, paper and unit of each claim on one noise.
_QUESTIONS: list[tuple[str, tuple[str, str], str, dict[str, str]]] = [
    ("WSAM's minima have a lower loss than SAM's", ("SAM", "WSAM"), "train_loss",
     {"id": "wsam-minima-loss", "item": "minima", "unit": "nats"}),
    ("WSAM's minima have a lower λmax than SGD's", ("SGD", "WSAM"), "lambda_max",
     {"id": "wsam-minima-lambda-tuned", "item": "minima", "unit": ""}),
    (f"SAM {_LOWER} SGD", ("SGD", "SAM"), "test_error",
     {"id": "sam-family-sgd", "item": "Table 1", "paper": "SAM (ICLR 2021)"}),
    (f"SAM {_LOWER} SGD trained twice as long", ("SGD, twice as long", "SAM"), "test_error",
     {"id": "sam-family-double", "item": "Table 1", "paper": "SAM (ICLR 2021)"}),
    (f"GSAM {_LOWER} SAM", ("SAM", "GSAM"), "test_error",
     {"id": "gsam-sam", "item": "main comparison", "paper": "GSAM (ICLR 2022)"}),
    (f"ASAM {_LOWER} SAM", ("SAM", "ASAM"), "test_error",
     {"id": "asam-sam", "item": "main comparison", "paper": "ASAM (ICML 2021)"}),
    (f"Fisher SAM {_LOWER} SAM", ("SAM", "Fisher SAM"), "test_error",
     {"id": "fisher-sam", "item": "main comparison", "paper": "Fisher SAM (ICML 2022)"}),
    ("ESAM keeps or betters SAM's accuracy", ("SAM", "ESAM"), "test_error",
     {"id": "esam-sam", "item": "abstract", "paper": "ESAM (ICLR 2022)"}),
]


def gap(final: pd.DataFrame, noise: float, worse: str, better: str, column: str = "test_error") -> np.ndarray:
    """Return a column of one tuned method less another's, by seed, at the usual length of training."""
    part: Any = final[(final["noise"] == noise) & (final["length"] == 1.0)]
    return comparison.paired(part, worse, better, column)


def quick(final: pd.DataFrame, s: Study, profile: str, esam: float, vit: pd.DataFrame) -> list[Claim]:
    """Return the claims of what is live: the comparisons, a step of ESAM in gradients, the transformer trained on."""
    return [
        *claims(final, s, profile),
        Claim("esam-cost", paper="ESAM (ICLR 2022)", item="abstract", kind="value", paper_value=0.4, measured=esam - 1,
              statement="A step costs 40 % more than SGD's, not 100 %", stderr=0.0, tolerance=0.1, profile=profile,
              why="a quarter of the number, for the paper measures time",
              protocol="counted gradients, the paper's masks on single weights, β = γ = 0.5"),
        *(Claim.from_samples(comparison.paired(vit, rival, "WSAM"), id=f"wsam-tab4-{rival.lower()}", item="Table 4",
                             statement=f"Training on with WSAM ends at a lower error than with {rival} (difference "
                             "above 0)", protocol=f"{s.vit.label}, {s.vit_seeds} seeds, tuned ρ", kind="order",
                             profile=profile, **_WSAM) for rival in ("AdamW", "SAM", "GSAM")),
    ]


def full(final: pd.DataFrame | None) -> list[Claim]:
    """Return the claims of the full profile's record."""
    return claims(final, FULL, "full", "-full", record="full/family")


def claims(final: pd.DataFrame | None, s: Study, profile: str, tag: str = "", record: str = "") -> list[Claim]:
    """Return the claims on the comparisons; without a table of study ``s`` they are not run."""
    made: list[Claim] = []

    def claim(noise: float, statement: str, pair: tuple[str, str], column: str = "test_error", **about: str) -> None:
        made.append(Claim.from_samples(
            None if final is None else gap(final, noise, *pair, column), kind="order",
            statement=f"{statement} (difference above 0)", profile=profile, record=record,
            protocol=f"{s.net.label}, {noise:.0%} wrong labels, {s.trials} trials each",
            **_WSAM | about | {"id": about["id"] + tag}))

    for noise in s.noises:
        key = f"-{noise:.0%}".rstrip("%")
        for rival in ("SGD", "SAM", "ESAM", "GSAM"):
            claim(noise, f"WSAM has a lower test error than {rival}", (rival, "WSAM"),
                  id=f"wsam-tab2-{rival.lower()}{key}", item="Table 6" if noise else "Table 2")
        for (label, pair), short, table in zip(PAIRS.items(), ("decouple", "asam", "fisher"), "877", strict=True):
            claim(noise, f"{label}: the former has the lower error", pair, id=f"wsam-family-{short}{key}",
                  item=f"Table {table}")
        for statement, pair, column, about in _QUESTIONS:
            claim(noise, statement, pair, column, **about | {"id": about["id"] + key})
    claim(s.noises[-1], "Decoupled beats coupled WSAM, Adam as base", ON_ADAM["decoupled against coupled, Adam"],
          id="wsam-tab8-adam", item="Table 8")
    return made
