"""Which verdict a measured effect gets: a rule without a side, fixed before anything is measured.

An *effect* is one paired difference per judging seed, and 0 says "no difference": points of error, or the logarithm of
a ratio. The promise: **of papers none of whose claims has an effect, at most 5 % get a ✔ or a ✘.**

- *No effect*: the two methods could be exchanged, so the difference is as often d as -d. Student's t is exact where it
  is normal, and conservative where runs that collapse stretch its tails. It is too bold where values are coarse; there
  the flips of all signs, exact for any symmetric difference, are asked too: p is the larger of t's and of the share of
  the *other* flips that reach as far. (n seeds have 2ⁿ flips. Below 2¹⁻ⁿ t decides alone; with no spread, p is 2¹⁻ⁿ.)
- Holm's steps hold under any dependence: a shared baseline or a claim listed twice costs power, never the promise.
- A run that diverged is not left out: :func:`paired` cuts both methods at the same worst value, which leaves them
  exchangeable.
- No rule sees a collapse that no seed met: one of probability q stays unseen with (1 - q)ⁿ, at q = 0.1 in 59 % of
  cases with 5 seeds, in 12 % with 20. ``benchmarks/verdicts.py`` measures the promise, the power and this limit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

Verdict = Literal[
    "supported", "refuted", "no effect larger than δ", "undecided", "not comparable", "not in the regime", "not run"
]
SYMBOLS: dict[Verdict, str] = dict(zip(get_args(Verdict), "✔✘=?≠◦–", strict=True))
ALPHA, FEWEST_SEEDS, POWER = 0.05, 5, 0.8


def paired(first: Sequence[float], second: Sequence[float], worst: float = math.nan) -> np.ndarray:
    """Return ``second - first``, seed by seed; what is above ``worst`` or not finite counts as ``worst`` in both.

    ``first`` and ``second`` have one value per judging seed, such as a test error in points, in the same order;
    ``worst`` is the error of guessing, or the budget for a time that was not reached. A ValueError if the numbers of
    seeds differ, or a run diverged and ``worst`` is not given.
    """
    both = [np.asarray(values, dtype=float) for values in (first, second)]
    if both[0].shape != both[1].shape:
        raise ValueError(f"{both[0].size} and {both[1].size} values cannot be paired; give both the same seeds.")
    if math.isnan(worst) and not np.isfinite(both).all():
        raise ValueError("A run diverged (not finite) and must not be left out; give worst=, the value of guessing.")
    one, other = (np.fmin(np.where(np.isfinite(values), values, worst), worst) for values in both)
    return other - one


@dataclass(frozen=True)
class Effect:
    """An estimated effect: its standard error, degrees of freedom, and two-sided p against no effect."""

    estimate: float
    stderr: float
    df: float
    p: float

    @classmethod
    def of(cls, samples: Sequence[float] | np.ndarray) -> Effect:
        """Estimate the mean of paired differences, one per judging seed; ValueError unless all are finite."""
        d, n = np.asarray(samples, dtype=float), len(samples)
        if n < 2 or not np.isfinite(d).all():
            raise ValueError(f"An effect needs two or more finite differences, not {d.tolist()}; see paired().")
        mean, stderr = float(d.mean()), float(d.std(ddof=1)) / math.sqrt(n)
        if stderr <= 1e-12 * abs(mean):
            return cls(mean, 0.0, n - 1, 2.0 ** (1 - n) if mean else 1.0)
        p = 2 * float(stdtr(n - 1, -abs(mean) / stderr))
        return cls(mean, stderr, n - 1, max(p, _flips(d)) if p <= ALPHA else p)

    @property
    def interval(self) -> tuple[float, float]:
        """The two-sided 95 % Student interval, not adjusted for other claims."""
        half = float(stdtrit(self.df, 1 - ALPHA / 2)) * self.stderr
        return self.estimate - half, self.estimate + half


@dataclass(frozen=True)
class Hypothesis:
    """A primary claim: δ, the paper's side, and its effect or the reason why there is none to judge."""

    delta: float
    side: Literal[1, -1]
    effect: Effect | None = None
    apart: Literal["", "not comparable", "not in the regime", "not run"] = ""

    def __post_init__(self) -> None:
        if self.side not in (1, -1) or not self.delta > 0:
            raise ValueError(f"side = {self.side} must be 1 or -1, delta = {self.delta} above 0.")


@dataclass(frozen=True)
class Judged:
    """A verdict; whether the effect is also smaller than δ; the least effect that would be seen in 80 % of cases."""

    verdict: Verdict
    smaller: bool = False
    visible: float | None = None


def judge(family: Mapping[str, Hypothesis]) -> dict[str, Judged]:
    """Return the verdicts on all primary claims of one paper and profile, Holm's steps taken among those judged."""
    tested = {name: claim.effect for name, claim in family.items()
              if claim.effect and not claim.apart and claim.effect.df + 1 >= FEWEST_SEEDS}
    decided: set[str] = set()
    for left, name in zip(range(len(tested), 0, -1), sorted(tested, key=lambda name: tested[name].p), strict=True):
        if tested[name].p > ALPHA / left:
            break
        decided.add(name)
    return {name: _judged(claim, name in decided, len(tested)) for name, claim in family.items()}


def _judged(claim: Hypothesis, decided: bool, m: int) -> Judged:
    if claim.apart or claim.effect is None:
        return Judged(claim.apart or "not run")
    effect = claim.effect
    if effect.df + 1 < FEWEST_SEEDS or not (effect.stderr or decided):
        return Judged("undecided")
    low, high = effect.interval
    smaller = effect.stderr > 0 and -claim.delta < low and high < claim.delta
    visible = effect.stderr * float(nctdtrinc(effect.df, 1 - POWER, stdtrit(effect.df, 1 - ALPHA / 2 / m))) or None
    if decided:
        return Judged("supported" if effect.estimate * claim.side > 0 else "refuted", smaller, visible)
    return Judged("no effect larger than δ" if smaller else "undecided", visible=visible)


def _flips(d: np.ndarray) -> float:
    """Return which share of the flips of the signs, but the identity and its mirror image, reaches as far from 0."""
    sums = np.abs(_signs(d.size) @ d)
    return (int(np.count_nonzero(sums >= abs(d.sum()) * (1 - 1e-12))) - (d.size < 16)) / len(sums)


@lru_cache(maxsize=64)
def _signs(n: int) -> np.ndarray:
    """Return all flips of n signs but the mirror images, the first row being none, or 16,384 draws for n above 15."""
    if n > 15:
        return np.random.default_rng(n).choice([-1.0, 1.0], size=(2**14, n))
    return 1.0 - 2.0 * (np.arange(2 ** (n - 1))[:, None] >> np.arange(n) & 1)
