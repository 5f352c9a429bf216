"""The claims of notebook 16: from its tables, and from the record of CIFAR-10."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim, Regime
from studies.lookahead import FULL

claim = Claim.from_samples


def quick(inside: pd.DataFrame, table: pd.DataFrame, label: str) -> list[Claim]:
    """Return the claims on the digits: losses within a cycle, and one row per setting, seed and evaluation."""
    steps = table["step"].max()

    def inner(name: str, a: int, b: int) -> np.ndarray:
        wide = inside.pivot(index="seed", columns="place", values=name)
        return np.log10(wide[a] / wide[b]).to_numpy()

    def at(name: str, method: str, step: int = steps, **where: Any) -> np.ndarray:
        own = table.query(" and ".join(f"{key} == {value!r}" for key, value in where.items()))
        return own[(own["method"] == method) & (own["step"] == step)][name].to_numpy()

    def best(name: str, method: str, group: str, step: int = steps) -> np.ndarray:
        rates = table[table["group"] == group]["lr"].unique().tolist()
        return min((at(name, method, step, group=group, lr=lr) for lr in rates), key=np.mean)

    def spread(method: str, group: str) -> Any:
        last = table[(table["step"] == steps) & (table["method"] == method) & (table["group"] == group)]
        of = last.groupby("seed")["train_loss"]
        return of.max() - of.min()

    cells = [at("test_error", "Lookahead", lookahead_k=k, lookahead_alpha=alpha, lr=0.1, momentum=0.9)
             for k in (5, 10) for alpha in (0.5, 0.8)]
    sgd = best("test_error", "bare", "lr")
    told: dict[str, Any] = {"protocol": label, "regime": Regime(
        float(best("train_error", "bare", "lr").mean()), float(sgd.mean()))}
    return [
        claim(inner("test_loss", 5, 6), id="lookahead-fig-1", **told),
        claim(inner("train_loss", 5, 0), id="lookahead-inner-loop", **told),
        claim(inner("train_loss", 5, 6), id="lookahead-inner-restore", below="lookahead-inner-loop",
              statement="The slow step lowers the training loss again", **told),
        claim(np.log10(best("train_loss", "bare", "lr", 100) / best("train_loss", "Lookahead", "lr", 100)),
              id="lookahead-cifar-figure", **told),
        claim(sgd - best("test_error", "Lookahead", "lr"), id="lookahead-cifar-table", **told),
        claim(best("test_error", "bare", "adam") - best("test_error", "Lookahead", "adam"), id="lookahead-adam",
              **told),
        claim(np.log10(spread("bare", "lr") / spread("Lookahead", "lr")), id="lookahead-fig-8", **told),
        *(claim(at("test_error", "bare", group="lr", lr=lr) - at("test_error", "Lookahead", group="lr", lr=lr),
                id=f"lookahead-{name}-lr", below="lookahead-fig-8", unit="points",
                statement=f"At the {name.removesuffix('e')}est rate, {lr:g}, Lookahead's error is lower", **told)
          for name, lr in (("large", 0.3), ("small", 0.03))),
        claim(1.0 - (max(cells, key=np.mean) - min(cells, key=np.mean)), id="lookahead-k-alpha-table",
              paper_value="77.94 to 78.27 %", **told),
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
