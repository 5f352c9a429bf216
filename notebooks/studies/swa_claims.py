"""The claims of notebook 14: from its tables, and from the record of CIFAR-10."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim
from studies.swa import FULL, Settings

_NET = "MLP 64-32-10, 500 shifted digits, 10 % wrong labels"


def _claim(samples: Any, ident: str, item: str, statement: str, **more: Any) -> Claim:
    said = {"paper": "SWA (UAI 2018)", "kind": "order", "why": "seeds decide", "profile": "quick"} | more
    return Claim.from_samples(samples, id=f"swa-{ident}", item=item, statement=statement, **said)


def quick(table: pd.DataFrame, small: pd.DataFrame, s: Settings, survey: Settings, rays: pd.DataFrame,
          lines: list[dict[str, np.ndarray]], bn: pd.DataFrame) -> list[Claim]:
    """Return the claims on the digits: tables of the runs at ``s`` and at ``survey``, rays, lines, BatchNorm's pass."""
    slow, main, fast, cyclic = (name for name in table["method"].unique() if name != "SGD")

    def at(name: str, method: str, budgets: float = 1.0, of: pd.DataFrame = table, s: Settings = s) -> np.ndarray:
        return of[(of["method"] == method) & (of["step"] == round(budgets * s.budget))][name].to_numpy()

    def averaged(method: str, budgets: float = 1.0) -> np.ndarray:  # how much lower the average's error is
        return at("test_error", method, budgets) - at("average_test_error", method, budgets)

    base, mean = at("test_error", "SGD"), partial(at, "average_test_error", main)
    points = partial(_claim, unit="points", protocol=_NET)
    claims = [points(base - mean(budgets), f"tab1-{budgets}", "Table 1", paper_value=paper,
                     statement=f"SWA's error after {budgets:g} budgets is below SGD's after one")
              for budgets, paper in ((1.0, "+0.3 to +2.0"), (1.25, "+0.3 to +2.1"), (1.5, "+0.4 to +2.3"))]
    claims += [
        points(mean() - mean(1.5), "tab1-grows", "Table 1", "The gain grows from 1 to 1.5 budgets", kind="trend"),
        points(at("test_error", "SGD", of=small, s=survey) - mean(of=small, s=survey), "tab1-survey", "Table 1",
               "SWA's error after 1 budget is below SGD's", protocol="MLP 64-64-10, the survey's setting"),
        points(averaged(main), "last-iterate", "Fig. 6", "The average is better than its last iterate"),
        points(at("test_error", fast) - base, "fig6-fixed", "Fig. 6",
               "SGD with a fixed learning rate is worse than SGD with decay"),
        points(base - at("average_test_error", fast), "fig6-average", "Fig. 6",
               "… but the average of its points is better"),
        points(averaged(main) - averaged(slow), "fig7-small-lr", "Fig. 7",
               "A small learning rate gains less by averaging"),
        points(at("test_error", main, 1.5) - at("test_error", cyclic, 1.5), "fig3-proposals", "Fig. 3",
               "Cyclic proposals are individually better than those of a constant learning rate"),
    ]
    loss = at("train_loss", "SGD") * -1 + at("average_train_loss", main)
    return claims + _of_the_line(lines, loss) + _of_rays(rays) + _of_minima(lines) + [
        points(bn["average, old statistics"] - bn["average, own statistics"], "bn", "section 3.2",
               "Without its BatchNorm pass the average is worse", protocol="MLP with BatchNorm, 400 steps")]


def _of_the_line(lines: list[dict[str, np.ndarray]], at_one_budget: np.ndarray) -> list[Claim]:
    """Of 31 points from t = -1 to 2 the average is number 10, SGD's end number 20."""
    higher = "SWA's training loss is higher than SGD's"
    return [
        _claim([v["train_loss"][10] - v["train_loss"][20] for v in lines], "fig1-train", "Fig. 1", higher,
               protocol=f"{_NET}, 1.5 budgets of SWA"),
        _claim(at_one_budget, "fig1-train-1", "Fig. 1", higher, protocol=f"{_NET}, 1 budget each"),
        _claim([v["test_loss"][20] - v["test_loss"][10] for v in lines], "fig1-test", "Fig. 1",
               "SWA's test loss is lower than SGD's", protocol=_NET)]


def _of_rays(rays: pd.DataFrame) -> list[Claim]:
    claims = []
    for name, text in (("train_loss", "training loss"), ("test_loss", "test loss")):
        rise = rays.pivot(index=["point", "seed"], columns="distance", values=name)
        rise = rise.sub(rise[0.0], axis=0)
        claims += [_claim(rise.loc["SGD"][far] - rise.loc["SWA"][far], f"fig4-{name}-{far:g}", "Fig. 4",
                          f"Along random rays the {text} rises faster from SGD than from SWA, distance {far:g}",
                          protocol=_NET) for far in (4.0, 10.0)]
    return claims


def _of_minima(lines: list[dict[str, np.ndarray]]) -> list[Claim]:
    t = np.linspace(-1, 2, 31)
    lowest = {name: np.array([t[v[name].argmin()] for v in lines]) for name in ("train_loss", "test_loss")}
    beyond = [(v["train_loss"][30] - v["train_loss"][20]) - (v["train_loss"][0] - v["train_loss"][10]) for v in lines]
    return [
        _claim(lowest["train_loss"] - lowest["test_loss"], "fig5-shift", "Fig. 5", "On the line the training minimum "
               "is nearer SGD than the test minimum (difference in t above 0)", protocol=_NET),
        _claim(beyond, "fig5-wall", "Fig. 5", "SGD is at the steep edge: beyond it the training loss rises more than "
               "beyond SWA", protocol=_NET)]


def full(later: dict[str, Any] | None) -> list[Claim]:
    """Return the claims on the record of CIFAR-10; not run without it."""
    rows = pd.DataFrame(later["rows"]).set_index("seed") if later else None

    def of(method: str, column: str) -> Any:
        return rows[rows["method"] == method][column] if rows is not None else None

    sgd, last, mean = of("sgd", "test_error"), of("swa", "test_error"), of("swa", "average_test_error")
    claims = [_claim(100 - error if later else None, f"tab1-full-{method}", "Table 1, PreResNet-164",
                     f"CIFAR-10 accuracy of {method} is {paper} %", kind="value", paper_value=paper, tolerance=0.5,
                     why="half a point; another net", unit="%", profile="full",
                     protocol=f"{FULL.label}; the paper: PreResNet-164, 150 epochs")
              for method, error, paper in (("sgd", sgd, 95.28), ("swa", mean, 95.56))]
    return claims + [_claim(worse - mean if later else None, f"tab1-full-{key}", "Table 1", statement, unit="points",
                            profile="full", protocol=FULL.label)
                     for key, statement, worse in (
                         ("order", "SWA's error is below SGD's at one budget", sgd),
                         ("last", "The average's error is below that of SWA's last iterate", last))]


def made(rows: list[dict[str, Any]], label: str, profile: str) -> list[Claim]:
    """Return the claim on rows of the full profile's code that were made here."""
    table: Any = pd.DataFrame(rows).pivot(index="seed", columns="method")
    return [_claim(table["test_error", "sgd"] - table["average_test_error", "swa"], "tab1-order", "Table 1",
                   "SWA's error is below SGD's at one budget", unit="points", protocol=label, profile=profile)]
