"""The claims of notebook 13, from its rows; those on Fig. 4 are the same for the quick and the full profile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim
from studies import warm_restarts as study
from studies.decay_runs import Rows
from studies.warm_restarts import Anytime, Budgets, LongAdam

_PAPER = {"paper": "AdamW (ICLR 2019)", "why": "threshold 0 or 1; seeds decide"}
_POINTS = {"unit": "points"}


def exact(last_restart: float, too_large: float, **note: Any) -> list[Claim]:
    """Return the claims on the schedule and on the normalisation, which are computed."""
    told = {"paper": "AdamW (ICLR 2019)", "kind": "value", "stderr": 0.0, "tolerance": 0.5} | note
    return [
        Claim("adamw-supp1-restarts", item="SuppFig. 1", paper_value=1500.0, measured=float(last_restart),
              statement="With T_0 = 100, T_mult = 2 the fourth restart is at epoch 1500", why="half an epoch", **told),
        Claim("adamw-b1-factor", item="appendix B.1", paper_value=5.0, measured=float(too_large),
              statement="Without normalisation the CIFAR-10 decay is about 5 times too large for ImageNet32x32",
              why="half a unit of the printed digit", **told)]


def budgets(best: pd.DataFrame, s: Budgets, **note: Any) -> list[Claim]:
    """Return the claims on SuppFig. 3, from the best decay of each case, seed and budget."""
    made = []
    for case in best["method"].unique():
        p, key = np.array(study.exponents(best, case)), case.lower().replace(" ", "-").replace(",", "")
        key = key.replace("%", "percent")
        where = {"protocol": f"{'MLP, digits' if 'wrong' in case else s.world.label}; {case}"} | _PAPER | note
        made += [
            Claim.from_samples(-p, id=f"adamw-supp3-falls-{key}", item="SuppFig. 3", kind="trend", statement="The best "
                               "raw decay falls with the budget (minus the exponent of T, above 0)", **where),
            Claim.from_samples(p, id=f"adamw-supp3-exponent-{key}", item="appendix B.1, SuppFig. 3", paper_value=-0.5,
                               tolerance=0.25, statement="The best λ_norm does not depend on the budget: the best raw "
                               "decay goes as T to the -1/2",
                               **where | {"kind": "value", "why": "halfway to the exponents 0 and -1"})]
    return made


def long_adam(rows: Rows, s: LongAdam, **note: Any) -> list[Claim]:
    """Return the claims on SuppFig. 2, and on what a schedule does for Adam."""
    told = {"kind": "order", "protocol": s.world.label} | _PAPER | _POINTS | note
    fixed, cosine, short = (np.array(study.best_cell(rows, name)) for name in
                            ("Adam, fixed", "Adam, cosine", "AdamW, 1/18"))
    alike = [row for row in rows if row.get("weight_decay") == s.l2s[len(s.l2s) // 2]]
    return [
        Claim.from_samples(fixed - short, id="adamw-supp2-long", item="SuppFig. 2", statement="Standard Adam with 18 "
                           "times the updates is no better than AdamW (error difference)", **told),
        Claim.from_samples(np.array(study.best_cell(alike, "Adam, fixed")) - cosine, id="adamw-adam-schedule",
                           item="section 4.1", statement="Adam profits from a schedule (best learning rate, fixed "
                           "minus cosine)", **told)]


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
