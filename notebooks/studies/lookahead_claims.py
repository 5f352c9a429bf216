"""The claims of notebook 16: from its closed forms and tables, and from the record of CIFAR-10."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim
from studies.lookahead import FULL

_NET = "MLP, 500 digits"


def _claim(samples: Any, ident: str, item: str, statement: str, **more: Any) -> Claim:
    said = {"paper": "Lookahead (NeurIPS 2019)", "kind": "order", "why": "seeds decide", "profile": "quick"} | more
    return Claim.from_samples(samples, id=f"lookahead-{ident}", item=item, statement=statement, **said)


def closed_forms(ratios: list[float], rates: pd.DataFrame, condition: pd.DataFrame) -> list[Claim]:
    """Return the claims on Proposition 2 (variances over SGD's) and Figs 2 and 3 (rates of convergence)."""
    exact = {"paper": "Lookahead (NeurIPS 2019)", "why": "closed form", "n": 1, "stderr": 0.0, "profile": "quick"}
    rate, by = rates.set_index("budget"), condition.set_index("kappa")
    claims = [Claim("lookahead-prop2", item="Prop. 2", kind="order", measured=1 - max(ratios), protocol="closed form",
                    statement="Lookahead's stationary variance is below SGD's (1 − largest factor of 12 settings "
                    "above 0)", **exact)]
    claims += [Claim(f"lookahead-fig2-{i}", item="Fig. 2", kind="ratio", tolerance=1.0, **exact,
                     measured=float(rate["lookahead"][budget] / rate["sgd"][budget]),
                     protocol="a_i = 1/i, 100 coordinates",
                     statement=f"At a final loss within {budget:g} times the unavoidable one Lookahead converges "
                     "faster (ratio of rates above 1)")
               for i, budget in enumerate((1.001, 1.02, 1.2, 3.0))]
    under, over = (by["lookahead"][kappa] / by["momentum"][kappa] for kappa in (100.0, 1e5))
    said = (("Under-damped, κ = 100: Lookahead improves momentum's rate (ratio of rates above 1)", under),
            ("Over-damped, κ = 10⁵: momentum's rate is better (ratio of rates of momentum to Lookahead above 1)",
             1 / over))
    return claims + [Claim(f"lookahead-fig3-{i}", item="Fig. 3", kind="ratio", tolerance=1.0, measured=float(value),
                           protocol="β = 0.99, k = 20, α = 0.5", statement=statement, **exact)
                     for i, (statement, value) in enumerate(said)]


def quick(inside: pd.DataFrame, table: pd.DataFrame) -> list[Claim]:
    """Return the claims on the digits: losses within a cycle, and one row a setting, seed and evaluation."""
    steps = table["step"].max()

    def inner(name: str, a: int, b: int) -> np.ndarray:
        wide = inside.pivot(index="seed", columns="place", values=name)
        return (wide[a] - wide[b]).to_numpy()

    def at(name: str, method: str, step: int = steps, **where: Any) -> np.ndarray:
        own = table.query(" and ".join(f"{key} == {value!r}" for key, value in where.items()))
        return own[(own["method"] == method) & (own["step"] == step)][name].to_numpy()

    def low(method: str, name: str, step: int) -> np.ndarray:
        return np.min([at(name, method, step, group="lr", lr=lr) for lr in (0.03, 0.1, 0.3)], axis=0)

    def spread(method: str, group: str) -> Any:
        last = table[(table["step"] == steps) & (table["method"] == method) & (table["group"] == group)]
        of = last.groupby("seed")["train_loss"]
        return of.max() - of.min()

    def gain(**where: Any) -> np.ndarray:
        return at("test_error", "bare", **where) - at("test_error", "Lookahead", **where)

    net, points = partial(_claim, protocol=_NET), partial(_claim, unit="points")
    cells = [at("test_error", "Lookahead", lookahead_k=k, lookahead_alpha=alpha, lr=0.1, momentum=0.9)
             for k in (5, 10) for alpha in (0.5, 0.8)]
    return [
        net(inner("train_loss", 5, 0), "inner-rise", "inner-loop figure", "The fast steps raise the training loss",
            kind="sign"),
        net(inner("train_loss", 5, 6), "inner-restore", "inner-loop figure", "The slow step lowers it again",
            kind="sign"),
        net(inner("test_loss", 5, 6), "inner-test", "Fig. 1", "The slow step lowers the test loss", kind="sign"),
        _claim(low("bare", "train_loss", 100) - low("Lookahead", "train_loss", 100), "early", "Fig. 5",
               "Early in training Lookahead has the lower training loss, each with its best of three learning rates",
               protocol=f"{_NET}, step 100 of 600"),
        points(low("bare", "test_error", steps) - low("Lookahead", "test_error", steps), "final", "CIFAR table",
               "Lookahead's final error is no higher, each with its best of three learning rates",
               protocol=f"{_NET}, constant lr"),
        *(points(gain(group="adam", lr=lr), f"adam-{lr:g}", "PTB, WMT",
                 f"Over Adam, lr {lr:g}, Lookahead's error is lower", protocol=_NET) for lr in (0.003, 0.03)),
        _claim(spread("bare", "lr") - spread("Lookahead", "lr"), "lr-spread", "Fig. 8a",
               "Over learning rates the training loss spreads less under Lookahead",
               protocol=f"{_NET}, lr 0.03 to 0.3"),
        *(points(gain(group="lr", lr=lr), f"{name}-lr", "Fig. 8a",
                 f"At the {name.removesuffix('e')}est learning rate Lookahead's error is lower",
                 protocol=f"{_NET}, lr {lr}") for name, lr in (("large", 0.3), ("small", 0.03))),
        _claim(spread("bare", "momentum") - spread("Lookahead", "momentum"), "momentum-spread", "Fig. 8b",
               "Over momenta the training loss spreads less under Lookahead", protocol=f"{_NET}, β 0.5 and 0.97"),
        points(1.0 - np.ptp(cells, axis=0), "k-alpha", "k/α table", "Over k in {5, 10} and α in {0.5, 0.8} the error "
               "varies by less than a point (1 − range above 0)", why="the paper's four cells lie within 0.4 points",
               paper_value="77.94 to 78.27 %", protocol=_NET),
    ]


def full(later: dict[str, Any] | None) -> list[Claim]:
    """Return the claims on the record of CIFAR-10; not run without it."""
    def accuracy(rule: str) -> Any:
        table = pd.DataFrame(later["rows"]) if later else None
        return None if table is None else 100 - table[(table["rule"] == rule) & (table["step"] == table["step"].max())][
            "test_error"]

    return [_claim(accuracy(rule), f"cifar-{rule}", "CIFAR-10 table", f"Test accuracy of {rule} is {value} %",
                   kind="value", paper_value=value, tolerance=0.5, why="half a point", unit="%", profile="full",
                   protocol=f"{FULL.label}, no Cutout; the paper: 200 epochs")
            for rule, value in (("sgd", 95.23), ("lookahead", 95.27))]


def made(rows: list[dict[str, Any]], label: str, profile: str) -> list[Claim]:
    """Return the claim on rows of the full profile's code that were made here."""
    table: Any = pd.DataFrame(rows)
    last = table[table["step"] == table["step"].max()].pivot(index="seed", columns="rule", values="test_error")
    return [_claim(last["sgd"] - last["lookahead"], "cifar-order", "CIFAR-10 table", profile=profile, protocol=label,
                   statement="Lookahead's final error is lower than SGD's", unit="points")]
