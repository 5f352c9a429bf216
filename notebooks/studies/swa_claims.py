"""The claims of notebook 14: from its tables, and from the record of CIFAR-10."""

from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim
from sharpnb.lab.claims import Regime
from studies.signals import protocol
from studies.swa import FULL, Settings

claim = Claim.from_samples


def quick(table: pd.DataFrame, s: Settings, tuned: dict[str, Any], lines: list[dict[str, np.ndarray]],
          rays: pd.DataFrame, bn: pd.DataFrame) -> list[Claim]:
    """Return the claims on the runs, on rays and lines at the ends of SWA and SGD, and on BatchNorm's pass."""
    slow, middle, fast = (f"lr × {factor:g}" for factor in (s.slow, s.middle, s.fast))

    def at(name: str, method: str, budgets: float = 1.0) -> np.ndarray:
        return table[(table["method"] == method) & (table["step"] == round(budgets * s.steps))][name].to_numpy()

    def mean(method: str, budgets: float = 1.0) -> np.ndarray:
        return at("average_test_error", method, budgets)

    base, gain = at("test_error", "SGD"), {name: at("test_error", name) - mean(name) for name in (slow, fast)}
    told: dict[str, Any] = {"regime": Regime(float(at("train_error", "SGD").mean()), float(base.mean())),
                            "protocol": protocol(tuned, s.label, "tuned on seeds 100-105")}
    loss = {name: np.log10(at(f"average_{name}_loss", "SWA") / at(f"{name}_loss", "SGD")) for name in ("train", "test")}
    passed = Regime(*(float(bn[name].mean()) for name in ("train_error", "average, own statistics")))
    return [
        claim(base - mean("SWA"), id="swa-table-1", paper_value="+0.3 to +2.0", **told),
        *(claim(base - mean("SWA", budgets), id=f"swa-tab1-{budgets}", below="swa-table-1", paper_value=paper,
                statement=f"SWA's error after {budgets:g} budgets is below SGD's after one", **told)
          for budgets, paper in ((1.25, "+0.5 to +2.1"), (1.5, "+0.4 to +2.3"))),
        claim(loss["train"], id="swa-fig-1", **told),
        claim(-loss["test"], id="swa-fig1-test", below="swa-fig-1", statement="SWA's test loss is lower", **told),
        claim(at("test_error", middle) - at("test_error", "cyclic"), id="swa-fig-3", **told),
        claim(np.log10(_widths(rays, "SWA") / _widths(rays, "SGD")), id="swa-fig-4", **told),
        *_of_lines(lines, told),
        claim(base - mean(fast), id="swa-fig-6", **told),
        claim(at("test_error", fast) - base, id="swa-fig6-fixed", below="swa-fig-6",
              statement="SGD with a fixed learning rate ends with a higher error than SGD with decay", **told),
        claim(gain[fast], id="swa-last-iterate", below="swa-fig-6",
              statement="The average has a lower error than its last iterate", **told),
        claim(gain[fast] - gain[slow], id="swa-fig-7", **told),
        claim(bn["average, old statistics"] - bn["average, own statistics"], id="swa-batchnorm",
              **told | {"protocol": f"{s.label}, with BatchNorm", "regime": passed}),
    ]


def _widths(rays: pd.DataFrame, point: str, rise: float = 0.1) -> np.ndarray:
    """Return the distance of each seed at which the mean training loss over its rays has risen by ``rise`` nats."""
    wide = rays[rays["point"] == point].pivot(index="seed", columns="distance", values="rise")
    return np.array([np.interp(rise, np.maximum.accumulate(row), wide.columns) for row in wide.to_numpy()])


def _of_lines(lines: list[dict[str, np.ndarray]], told: dict[str, Any]) -> list[Claim]:
    """Of 31 points from t = -1 to 2 the average (t = 0) is number 10, SGD's end (t = 1) number 20."""
    train, test = (np.array([np.linspace(-1, 2, 31)[v[name].argmin()] for v in lines])
                   for name in ("train_loss", "test_loss"))
    beyond = [(v["train_loss"][30] - v["train_loss"][20]) - (v["train_loss"][0] - v["train_loss"][10]) for v in lines]
    return [claim(train - test, id="swa-fig-5", **told),
            claim(beyond, id="swa-fig5-wall", below="swa-fig-5", unit="nats", statement="Beyond SGD's end the "
                  "training loss rises more than beyond the average, a step as long", **told)]


def full(rows: list[dict[str, Any]] | None, label: str = FULL.label, profile: str = "full") -> list[Claim]:
    """Return the claims on the rows of CIFAR-10, or of the toy; not run without them."""
    told: dict[str, Any] = {"protocol": f"{label}; the paper: PreResNet-164, 150 epochs", "profile": profile,
                            "paper_value": "95.28 → 95.56 %"}
    if not rows:
        return [claim(None, id="swa-table-1", **told)]
    table: Any = pd.DataFrame(rows).pivot(index="seed", columns="method")
    sgd, last, mean = (table[column] for column in (("test_error", "sgd"), ("test_error", "swa"),
                                                    ("average_test_error", "swa")))
    told["regime"] = Regime(None, float(sgd.mean()))
    return [claim(sgd - mean, id="swa-table-1", record=f"{profile}/cifar", **told),
            claim(last - mean, id="swa-tab1-full-last", below="swa-table-1", record=f"{profile}/cifar",
                  statement="The average's error is below that of SWA's last iterate", **told | {"paper_value": None})]
