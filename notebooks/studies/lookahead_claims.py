"""The claims of notebook 16: from its tables, and from the record of CIFAR-10."""

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim
from sharpnb.lab.claims import Regime
from sharpnb.lab.verdicts import paired
from studies.lookahead import FULL, Settings
from studies.signals import protocol

claim = Claim.from_samples


def quick(inside: pd.DataFrame, table: pd.DataFrame, tuned: dict[str, Any], s: Settings) -> list[Claim]:
    """Return the claims on the signals: losses within a cycle, and one row per method, seed and evaluation."""
    def inner(name: str, a: int, b: int) -> np.ndarray:
        wide = inside.pivot(index="seed", columns="place", values=name)
        return np.log10(wide[a] / wide[b]).to_numpy()

    def at(name: str, method: str, step: int = s.steps) -> np.ndarray:
        return table[(table["method"] == method) & (table["step"] == step)][name].to_numpy()

    def spread(method: str) -> np.ndarray:  # a run that diverged, or is worse than guessing, counts as guessing
        losses = [np.fmin(np.nan_to_num(at("train_loss", f"{method}, lr × {factor:g}"), nan=np.inf), np.log(10))
                  for factor in s.spread]
        return np.ptp(losses, axis=0)

    def regime(method: str) -> Regime:
        return Regime(*(float(at(name, method).mean()) for name in ("train_error", "test_error")))

    def gain(first: str, second: str) -> np.ndarray:
        return paired(at("test_error", second), at("test_error", first), worst=90.0)

    told: dict[str, Any] = {"protocol": protocol(tuned, s.label, "tuned on seeds 100-105"), "regime": regime("SGD")}
    early = s.steps // 6
    return [
        claim(inner("test_loss", 5, 6), id="lookahead-fig-1", **told),
        claim(inner("train_loss", 5, 0), id="lookahead-inner-loop", **told),
        claim(inner("train_loss", 5, 6), id="lookahead-inner-restore", below="lookahead-inner-loop",
              statement="The slow step lowers the training loss again", **told),
        claim(np.log10(at("train_loss", "SGD", early) / at("train_loss", "Lookahead", early)),
              id="lookahead-cifar-figure", **told),
        claim(gain("SGD", "Lookahead"), id="lookahead-cifar-table", **told),
        claim(gain("Adam", "Lookahead on Adam"), id="lookahead-adam", **told | {"regime": regime("Adam")}),
        claim(np.log10(spread("SGD") / spread("Lookahead")), id="lookahead-fig-8", **told),
        *(claim(gain(f"SGD, lr × {factor:g}", f"Lookahead, lr × {factor:g}"), id=f"lookahead-{name}-lr", unit="points",
                below="lookahead-fig-8", **told,
                statement=f"At the {name.removesuffix('e')}est rate Lookahead's error is lower")
          for name, factor in (("small", s.spread[0]), ("large", s.spread[-1]))),
        claim(1.0 - gain("worst cell", "best cell"), id="lookahead-k-alpha-table", paper_value="77.94 to 78.27 %",
              **told),
    ]


def full(rows: list[dict[str, Any]] | None, label: str = FULL.label, profile: str = "full") -> list[Claim]:
    """Return the claim on the rows of CIFAR-10, or of the toy; not run without them."""
    told: dict[str, Any] = {"id": "lookahead-cifar-table", "protocol": f"{label}; the paper: 200 epochs",
                            "profile": profile, "paper_value": "95.23 → 95.27 %"}
    if not rows:
        return [claim(None, **told)]
    table: Any = pd.DataFrame(rows)
    last = table[table["step"] == table["step"].max()].pivot(index="seed", columns="rule")
    sgd = last["test_error", "sgd"]
    regime = Regime(float(last["train_error", "sgd"].mean()) if "train_error" in last else None, float(sgd.mean()))
    return [claim(sgd - last["test_error", "lookahead"], regime=regime, record=f"{profile}/cifar", **told)]
