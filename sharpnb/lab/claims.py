"""What was measured for or against a statement of a paper: one effect per judging seed, and the regime it was seen in.

Which statements are judged is fixed in ``site/primary.toml``; :mod:`sharpnb.lab.board` puts claims and statements
together, and :mod:`sharpnb.lab.verdicts` judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

from sharpnb.lab.verdicts import Effect


@dataclass(frozen=True)
class Regime:
    """What the baseline reached at its best setting: a claim about generalisation is judged only where it fits.

    Attributes:
        train_error: percent, on the labels that it was given, wrong ones too; None where it was not recorded.
        test_error: percent.
        twice: test error of the baseline after twice the budget, in percent; None where it was not trained.
        missing: a further premise of the paper that does not hold here, named before anything was measured; or empty.
    """

    train_error: float | None
    test_error: float
    twice: float | None = None
    missing: str = ""

    FITS, GAP = 2.0, 0.5  # percent, and points between training and test error; no fields: they have no annotation

    @property
    def fault(self) -> str:
        """Why nothing about generalisation can be judged here, or nothing."""
        if self.train_error is None:
            return "the baseline's training error was not recorded"
        if not self.train_error <= self.FITS:
            return f"the baseline's training error is {self.train_error:.1f} %"
        if not self.test_error - self.train_error >= self.GAP:
            return f"the baseline's gap is {self.test_error - self.train_error:.1f} points"
        return self.missing


@dataclass(frozen=True)
class Claim:
    """One measured effect: of a primary claim, or of a detail that is told below one and gets no verdict.

    Attributes:
        id: of a primary claim in ``site/primary.toml``, or a short and stable name of a detail.
        samples: one paired effect per judging seed, in the unit of the primary claim, above 0 where the paper is right;
            None where it was not run.
        effect: in the place of samples, where the effect is no mean over seeds.
        below: of a detail, the id of its primary claim.
        statement: of a detail, one sentence, what the paper says.
        unit: of a detail, where it is not that of its primary claim.
        paper_value: the paper's number as it reads there, or None.
        protocol: network, data, and how they differ from the paper's.
        profile: that the measurement rests on.
        regime: of a claim about generalisation.
        apart: why the paper's number and ours cannot be set side by side, or empty.
        record: what it rests on below ``data/records/<notebook>``, such as ``full/clean``, or a folder of records;
            empty for all records of ``profile``.
        withdrawn: why the record that it rested on counts no longer (see :mod:`sharpnb.lab.withdrawn`), or empty.
    """

    id: str
    samples: tuple[float, ...] | None = None
    effect: Effect | None = None
    below: str = ""
    statement: str = ""
    unit: str = ""
    paper_value: float | str | None = None
    protocol: str = ""
    profile: str = "quick"
    regime: Regime | None = None
    apart: str = ""
    record: str = ""
    withdrawn: str = ""

    @classmethod
    def from_samples(cls, samples: Sequence[float] | None, **fields: Any) -> Claim:
        """Make a claim of one paired effect per judging seed; None stands for a run that has not been made."""
        return cls(samples=None if samples is None else tuple(map(float, samples)), **fields)

    @property
    def estimated(self) -> Effect | None:
        """The effect with its interval; None where it was not run, is withdrawn, or has fewer than two seeds."""
        if self.withdrawn or self.effect:
            return None if self.withdrawn else self.effect
        return Effect.of(self.samples) if self.samples and len(self.samples) > 1 else None

    @property
    def seeds(self) -> int:
        """The number of judging seeds."""
        return len(self.samples) if self.samples else round(self.effect.df + 1) if self.effect else 0

    def as_dict(self) -> dict[str, Any]:
        """Return what differs from the defaults, as ``claims.json`` keeps it."""
        return {f.name: asdict(value) if f.name in ("effect", "regime") else value
                for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Claim:
        """Return the claim of a row of ``claims.json``."""
        made = {"effect": lambda told: Effect(**told), "regime": lambda told: Regime(**told), "samples": tuple}
        return cls(**{name: made[name](value) if name in made else value for name, value in row.items()})

    def without(self, why: str) -> Claim:
        """Return the claim without its measurement, withdrawn for a reason; unchanged without one."""
        return replace(self, samples=None, effect=None, withdrawn=why) if why else self


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
