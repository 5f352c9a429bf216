"""What a paper states, what was measured, and the verdict that follows by rule and not by taste."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sharpnb.lab.records import first_difference

Kind = Literal["value", "order", "sign", "ratio", "trend"]
Verdict = Literal[
    "reproduced", "consistent within uncertainty", "contradicted", "inconclusive", "not comparable", "not run"
]
SYMBOLS: dict[str, str] = {
    "reproduced": "✔", "consistent within uncertainty": "≈", "contradicted": "✘", "inconclusive": "?",
    "not comparable": "≠", "not run": "–",
}
_ORDER: list[Verdict] = ["reproduced", "consistent within uncertainty", "inconclusive", "contradicted"]


@dataclass(frozen=True)
class Claim:
    r"""One statement of a paper against one measurement.

    With h the half-width of the two-sided 95 % Student interval over the n seeds (0 where ``stderr`` is 0). One run
    whose spread is unknown is *inconclusive*. Else:

    * ``value``: |measured - paper_value| > tolerance + h is *contradicted*. Of the others, h > tolerance is
      *inconclusive*: an interval wider than the tolerance would meet many numbers. |measured - paper_value| ≤ tolerance
      is *reproduced*, the rest *consistent within uncertainty*;
    * ``order``, ``sign``, ``ratio``, ``trend``: ``measured`` is an effect that the paper states to be greater than
      ``tolerance`` (0, or 1 for a ratio). measured - h > tolerance is *reproduced*, measured + h < tolerance
      *contradicted*; between them the claim is *consistent within uncertainty* when the estimate is on the paper's
      side, else *inconclusive*.

    Attributes:
        id: short and stable, e.g. ``"sam-fig3-lambda-max"``.
        paper: e.g. ``"SAM (ICLR 2021)"``.
        item: figure, table or section.
        statement: one sentence, what the paper says.
        kind: as above.
        paper_value: the paper's number as it reads there, or None.
        measured: the mean, or None where it was not run.
        stderr: standard error of the mean; 0 for a deterministic computation; None where one run tells no spread.
        n: number of seeds.
        tolerance: as above.
        why: where the tolerance comes from.
        protocol: how our protocol differs from the paper's.
        comparable: False where the paper's number and ours cannot be set side by side; the verdict says so.
        unit: of measured, for the table.
        profile: the profile that the measurement rests on.
        withdrawn: why the record that it rested on counts no longer (see :mod:`sharpnb.lab.withdrawn`), or nothing.
        record: what it rests on below ``data/records/<notebook>``, such as ``full/clean``, or a folder of records;
            empty for all records of ``profile``.
    """

    id: str
    paper: str
    item: str
    statement: str
    kind: Kind
    paper_value: float | str | None = None
    measured: float | None = None
    stderr: float | None = None
    n: int = 1
    tolerance: float = 0.0
    why: str = ""
    protocol: str = ""
    comparable: bool = True
    unit: str = ""
    profile: str = "quick"
    withdrawn: str = ""
    record: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("value", "order", "sign", "ratio", "trend"):
            raise ValueError(f"claim {self.id}: kind = {self.kind!r}; choose value, order, sign, ratio or trend.")
        if self.kind == "value" and self.comparable and not isinstance(self.paper_value, (int, float)):
            raise ValueError(f"claim {self.id}: kind 'value' needs the paper's number, not {self.paper_value!r}.")
        if self.kind == "value" and self.comparable and not 0 < self.tolerance < abs(float(self.paper_value or 0)):
            raise ValueError(f"claim {self.id}: tolerance = {self.tolerance} must lie between 0 and "
                             f"|{self.paper_value}|, or a measurement of zero would pass.")

    @classmethod
    def from_samples(cls, samples: Sequence[float] | None, **fields: Any) -> Claim:
        """Make a claim whose measurement is the mean of ``samples``, one a seed, with its standard error.

        None stands for samples of a run that has not been made: the claim is then "not run".
        """
        if samples is None:
            return cls(**fields)
        values = np.asarray(samples, dtype=float)
        stderr = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
        return cls(measured=float(values.mean()), stderr=stderr, n=len(values), **fields)

    @property
    def half_width(self) -> float:
        """Half of the two-sided 95 % Student interval of the mean; infinite where the spread is unknown."""
        if self.stderr == 0:
            return 0.0
        if self.stderr is None or self.n < 2:
            return math.inf
        return float(t95(self.n)) * self.stderr

    @property
    def verdict(self) -> Verdict:
        """The verdict, by the rule of the class; "not run" where nothing was measured or it was withdrawn."""
        if self.measured is None or self.withdrawn:
            return "not run"
        if not self.comparable:
            return "not comparable"
        h = self.half_width
        if not math.isfinite(self.measured) or not math.isfinite(h):
            return "inconclusive"
        if self.kind == "value":
            off = abs(self.measured - float(self.paper_value or 0))  # a number here
            if off > self.tolerance + h:
                return "contradicted"
            if h > self.tolerance:
                return "inconclusive"
            return "reproduced" if off <= self.tolerance else "consistent within uncertainty"
        if self.measured - h > self.tolerance:
            return "reproduced"
        if self.measured + h < self.tolerance:
            return "contradicted"
        return "consistent within uncertainty" if self.measured > self.tolerance else "inconclusive"

    def as_dict(self) -> dict[str, Any]:
        """Return the claim as the scoreboard reads it."""
        names = ("id", "paper", "item", "statement", "kind", "paper_value", "measured", "stderr", "n", "tolerance",
                 "why", "protocol", "unit", "profile")
        why = {"withdrawn": self.withdrawn} if self.withdrawn else {}
        told = {"record": self.record} if self.record else {}
        return {name: getattr(self, name) for name in names} | told | {"verdict": self.verdict} | why

    def without(self, why: str) -> Claim:
        """Return the claim without its measurement, withdrawn for a reason; unchanged without one."""
        return replace(self, measured=None, stderr=None, n=1, withdrawn=why) if why else self


def settled(claim: Claim, committed: Mapping[str, Any] | None, rtol: float, atol: float) -> Verdict:
    """Return the verdict on a claim; on its edge, that on the committed numbers with which its own agree.

    A verdict is a threshold, and falls differently on two processors though both measured the same within
    rtol·|committed| + atol. That is its edge if the two verdicts are neighbours in the order reproduced, consistent,
    inconclusive, contradicted, or if a value claim is inconclusive in one of them, because its interval is about as
    wide as its tolerance; any other change of a verdict stands.

    Args:
        claim: as just measured.
        committed: what :meth:`Claim.as_dict` gave of it when it was committed, or None.
        rtol: relative tolerance of its numbers.
        atol: absolute tolerance.
    """
    fresh = {name: getattr(claim, name) for name in ("measured", "stderr", "n")}
    old = {name: committed.get(name) for name in fresh} if committed else {}
    if first_difference(old, fresh, rtol, atol):
        return claim.verdict
    before: Verdict = replace(claim, **old).verdict  # type: ignore[arg-type]
    pair = {before, claim.verdict}
    edge = pair <= {*_ORDER} and (abs(_ORDER.index(before) - _ORDER.index(claim.verdict)) == 1
                                  or (claim.kind == "value" and "inconclusive" in pair))
    return before if edge else claim.verdict


def t95(n: Any) -> Any:
    """Return how many standard errors the two-sided 95 % Student interval of a mean of ``n`` values reaches.

    Array-like as ``n``. Not by ``scipy.stats``, which takes longer to import than many a notebook's figure to make.
    """
    from scipy.special import stdtrit

    return stdtrit(np.subtract(n, 1), 0.975)


def mean_stderr(samples: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error of samples, one a seed."""
    values = np.asarray(samples, dtype=float)
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def in_words(verdict: str, withdrawn: str = "") -> str:
    """Return a verdict as tables show it: its sign, its name, and why it was withdrawn where it was."""
    return f"{SYMBOLS.get(verdict, '')} {verdict}" + (f" (withdrawn: {withdrawn})" if withdrawn else "")


def as_markdown(claims: Sequence[Claim], verdicts: Mapping[str, Verdict] | None = None) -> str:
    """Return the table that a notebook shows: verdict, statement, the paper's number, ours with its uncertainty.

    ``verdicts`` (by id) stand in the place of the claims' own.
    """
    lines = ["| verdict | claim | paper | measured | rests on |", "|:--|:--|--:|--:|:--|"]
    for c in claims:
        paper = "–" if c.paper_value is None else f"{c.paper_value}"
        verdict = verdicts[c.id] if verdicts else c.verdict
        spread = f" ± {c.stderr:.2g} (n = {c.n})" if c.stderr else ""
        measured = "–" if c.measured is None else f"{c.measured:.3g}{spread}{' ' + c.unit if c.unit else ''}"
        lines.append(
            f"| {in_words(verdict, c.withdrawn)} | {c.statement} ({c.paper}, {c.item}) | {paper} | {measured} | "
            f"{c.profile}{'; ' + c.protocol if c.protocol else ''} |"
        )
    return "\n".join(lines)
