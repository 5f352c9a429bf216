"""The claims of notebook 13 on Fig. 4, from its rows: the same for the quick and the full profile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sharpnb.lab.claims import Claim
from studies import warm_restarts as study
from studies.decay_runs import Rows
from studies.warm_restarts import Anytime

_PAPER = {"paper": "AdamW (ICLR 2019)", "why": "threshold 0 or 1; seeds decide"}
_POINTS = {"unit": "points"}


def fig4(rows: Rows | None, s: Anytime, tag: str = "", **note: Any) -> list[Claim]:
    """Return the claims on Fig. 4 and SuppFig. 5; without rows of settings ``s`` they are not run.

    ``tag`` ends their ids; ``note`` is what all of them say: profile and protocol.
    """
    made: list[Claim] = []

    def claim(ident: str, item: str, kind: str, statement: str, samples: Callable[[], Any], **more: Any) -> None:
        made.append(Claim.from_samples(samples() if rows else None, id=f"{ident}{tag}", item=item, kind=kind,
                                       statement=statement, **_PAPER | note | more))

    for family, once, again in (("adam", "AdamW", "AdamWR"), ("sgd", "SGDW", "SGDWR")):
        _of_family(rows or [], s, claim, family, once, again)
    of, stops = partial(study.at, rows or []), study.ends(s.t_0, 2, s.steps)
    early = stops[min(1, len(stops) - 1)]

    def over_constant(end: int) -> np.ndarray:
        return np.minimum(of("SGDW, constant", end), of("SGDW, constant / 5", end)) - of("SGDWR", end)

    claim("adamw-fig4-constant", "section 4.5 (SGDR)", "order",
          "SGDWR beats the better of two constant rates at the ends of its periods",
          lambda: np.mean([over_constant(end) for end in stops[:-1]], axis=0), **_POINTS)
    claim("adamw-fig4-15-percent", "Fig. 4", "order", "AdamW's final error is lower than Adam's (relative improvement)",
          lambda: 100 * (1 - of("AdamW", s.steps) / of("Adam", s.steps)), unit="%", paper_value="15 %")
    claim("adamw-supp5-loss", "SuppFig. 5", "order", "Adam variants lower the training loss faster than SGD variants "
          f"(SGDW minus AdamW at update {early})",
          lambda: of("SGDW", early, "train_loss") - of("AdamW", early, "train_loss"), unit="nats")
    return made


def _of_family(rows: Rows, s: Anytime, claim: Callable[..., None], name: str, once: str, again: str) -> None:
    """Compare the restarted method with the one of a single cosine."""
    of, stops = partial(study.at, rows), study.ends(s.t_0, 2, s.steps)

    def mean(difference: Callable[[int], np.ndarray]) -> np.ndarray:
        return np.mean([difference(end) for end in stops[:-1]], axis=0)

    claim(f"adamw-fig4-anytime-{name}", "Fig. 4", "order", f"Before the end {again} is better than {once} at the ends "
          "of its periods (error difference)", lambda: mean(lambda end: of(once, end) - of(again, end)), **_POINTS)
    claim(f"adamw-fig4-speed-{name}", "Fig. 4", "ratio", f"{again} reaches {once}'s final error earlier (factor)",
          lambda: s.steps / study.first_reached(rows, again, of(once, s.steps), stops), tolerance=1.0,
          paper_value="up to 10")
    claim(f"adamw-fig4-spikes-{name}", "Fig. 4", "sign", f"{again}'s error jumps up after a restart",
          lambda: mean(lambda end: of(again, end + s.every) - of(again, end)), **_POINTS)
    claim(f"adamw-fig4-final-{name}", "SuppFig. 5", "order", f"{again} ends slightly better than {once}",
          lambda: of(once, s.steps) - of(again, s.steps), **_POINTS)
