"""The claims of notebook 05, from its tables: the same for the quick and the full profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sharpnb.lab.claims import Claim
from studies import label_noise as study
from studies.label_noise import Settings

_SAM = {"paper": "SAM (ICLR 2021)", "item": "Table 4", "kind": "order", "unit": "points",
        "why": "threshold 0; seeds decide"}
_WSAM = _SAM | {"paper": "WSAM (KDD 2023)", "item": "label-noise table"}
_PAIRS = (("SAM", "SGD"), ("Mixup", "SGD"), ("SAM", "Mixup"), ("Bootstrap + SAM", "SAM"),
          ("Bootstrap + Mixup", "Mixup"))


def claims(table: Any, s: Settings, profile: str, tag: str = "") -> list[Claim]:
    """Return the claims on the table of settings ``s``; without it they are not run. ``tag`` ends their ids."""
    made: list[Claim] = []

    def claim(samples: Callable[[], Any], ident: str, statement: str, **more: Any) -> None:
        found = samples() if table is not None else None
        made.append(Claim.from_samples(found, id=ident.lower().replace(" + ", "-") + tag, statement=statement,
                                       **more | {"profile": profile}))

    for k, noise in enumerate(study.NOISES):
        _of_noise(table, s, claim, k, noise)
    claim(lambda: 90 - _by_heart(table), "zhang-memorise",
          "SGD fits random labels: its training error is below the 90 % of guessing",
          **_SAM | {"paper": "Zhang et al. (ICLR 2017)", "item": "section 2", "protocol": s.label})
    return made


def _of_noise(table: Any, s: Settings, claim: Callable[..., None], k: int, noise: float) -> None:
    note, short = {"protocol": f"{s.label}, {noise:.0%} wrong"}, f"{100 * noise:.0f}"

    def lead(over: str, under: str) -> np.ndarray:
        return np.subtract(*(study.accuracy(table, method, noise) for method in (over, under)))

    for over, under in _PAIRS:
        claim(lambda over=over, under=under: lead(over, under), f"sam-table4-{over}-{under}-{short}",
              f"{over} is above {under}", paper_value=f"{study.PAPER[over][k]} against {study.PAPER[under][k]}",
              **_SAM | note)
    for under in ("SAM", "ESAM", "GSAM"):
        claim(lambda under=under: lead("WSAM", under), f"wsam-noise-{under}-{short}", f"WSAM is above {under}",
              **_WSAM | note)
    for side, edge in (("left", s.rhos[0]), ("right", s.rhos[-1])):
        claim(lambda edge=edge: _above_inside(table, s, noise, edge), f"sam-table8-{side}-{short}",
              f"Bootstrapped SAM: the error at the {side} end of the range of ρ is above the least inside",
              **_SAM | note | {"item": "Table 8"})


def _above_inside(table: Any, s: Settings, noise: float, edge: float) -> Any:
    """Return, by seed, the bootstrapped SAM's error at an end of the radii less that at the best radius inside."""
    own = table[(table["method"] == "Bootstrap + SAM") & (table["noise"] == noise)]
    curve = own.pivot_table(index="seed", columns="value", values="test_error")
    return curve[edge] - curve[curve[list(s.rhos[1:-1] or s.rhos[-1:])].mean().idxmin()]


def _by_heart(table: Any) -> Any:
    """Return, by seed, SGD's training error on random labels."""
    return table[(table["noise"] == study.RANDOM) & (table["value"] == 0)].groupby("seed")["train_error"].mean()
