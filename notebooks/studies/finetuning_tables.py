r"""Notebook 06: the paper's Tables 3 and 10, the quick experiment's summaries beside them, and its claims."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from sharpnb.lab import Claim, mean_stderr, t95
from sharpnb.lab.claims import Regime
from studies import finetuning as study
from studies.finetuning import Settings

METHODS = ("scratch", "SGD", "SGD, twice", "SAM", "SAM, 0.05")
# Top-1 errors in percent, each with the half-width of its 95 % interval (None where the paper gives none):
# EfficientNet-b7 with SAM, without; EfficientNet-L2 with SAM, without.
TABLE3: dict[str, tuple[tuple[float, float | None], ...]] = {
    "FGVC Aircraft": ((6.80, 0.06), (8.15, 0.08), (4.82, 0.08), (5.80, 0.1)),
    "Flowers": ((0.63, 0.02), (1.16, 0.05), (0.35, 0.01), (0.40, 0.02)),
    "Oxford-IIIT Pets": ((3.97, 0.04), (4.24, 0.09), (2.90, 0.04), (3.08, 0.04)),
    "Stanford Cars": ((5.18, 0.02), (5.94, 0.06), (4.04, 0.03), (4.93, 0.04)),
    "CIFAR-10": ((0.88, 0.02), (0.95, 0.03), (0.30, 0.01), (0.34, 0.02)),
    "CIFAR-100": ((7.44, 0.06), (7.68, 0.06), (3.92, 0.06), (4.07, 0.08)),
    "Birdsnap": ((13.64, 0.15), (14.30, 0.18), (9.93, 0.15), (10.31, 0.15)),
    "Food101": ((7.02, 0.02), (7.17, 0.03), (3.82, 0.01), (3.97, 0.03)),
    "ImageNet": ((15.14, 0.03), (15.3, None), (11.39, 0.02), (11.8, None)),
}
# EfficientNet-b7: best rho, rho = 0.05, without SAM.
TABLE10 = {
    "FGVC Aircraft": (6.80, 7.06, 8.15), "Flowers": (0.63, 0.81, 1.16), "Oxford-IIIT Pets": (3.97, 4.15, 4.24),
    "Stanford Cars": (5.18, 5.57, 5.94), "CIFAR-10": (0.88, 0.88, 0.95), "CIFAR-100": (7.44, 7.56, 7.68),
    "Birdsnap": (13.64, 13.64, 14.30), "Food101": (7.02, 7.06, 7.17),
}


def reduction(base: Any, other: Any) -> Any:
    r"""Relative error reduction in percent, :math:`100\,(e_{base}-e)/e_{base}`: the axis of the paper's Fig. 1."""
    return 100 * (base - other) / base


def errors(table: pd.DataFrame, labels: int, method: str, column: str = "test_error") -> np.ndarray:
    """Return what :func:`finetuning.judged` measured of a method, per seed."""
    return table[(table["labels"] == labels) & (table["method"] == method)].sort_values("seed")[column].to_numpy()


def gain(table: pd.DataFrame, labels: Sequence[int], over: str, method: str) -> np.ndarray:
    """Return the error of ``over`` minus that of ``method``, per seed, as a mean over numbers of labels."""
    return np.mean([errors(table, n, over) - errors(table, n, method) for n in labels], axis=0)


def summary(table: pd.DataFrame, s: Settings) -> pd.DataFrame:
    """Return a row per method and number of labels: ``mean``, ``half``, and ``text``, "mean ± standard error".

    ``half`` is the half-width of the 95 % interval once each seed's mean over all methods is taken out: the classes
    of a seed make its task harder or easier for all of them alike.
    """
    out = []
    for labels in s.labels:
        found = np.array([errors(table, labels, method) for method in METHODS])  # (methods, seeds)
        for method, own, level in zip(METHODS, found, found - found.mean(0), strict=True):
            mean, _, stderr = _interval(own)
            out.append({"method": method, "labels": labels, "mean": mean, "half": _interval(level)[1],
                        "text": f"{mean:.1f} ± {stderr:.1f}"})
    return pd.DataFrame(out).set_index(["method", "labels"])


def radii(rows: Any, labels: int) -> pd.DataFrame:
    """Return, for each radius, the test error of SGD minus that of SAM on the tuning seeds: ``mean``, ``half``."""
    table, sgd = _pretrained(rows, labels)
    gained = {rho: _interval((sgd["test_error"] - own["test_error"]).to_numpy())
              for rho, own in table[table["rule"] == "sam"].groupby("rho")}
    return pd.DataFrame([{"rho": rho, "mean": mean, "half": half, "labels": labels}
                         for rho, (mean, half, _) in gained.items()])


def _pretrained(rows: Any, labels: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tuning's rows by seed from the pretrained net, and of them those of SGD's best trial."""
    table, best = pd.DataFrame(rows).set_index("seed"), study.picked(rows, labels)["pretrained"]
    table = table[(table["labels"] == labels) & (table["start"] == "pretrained")]
    return table, table[(table[list(best)] == pd.Series(best)).all(axis=1)]


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    mean, stderr = mean_stderr(values)
    return mean, float(t95(len(values))) * stderr, stderr


def paper_reductions() -> pd.DataFrame:
    """Return the relative reductions of Tables 3 and 10 in percent, with 95 % half-widths where the paper has them."""
    out = []
    for where, row in TABLE3.items():
        for net, sam, sgd in (("b7", *row[:2]), ("L2", *row[2:])):
            half = None if sgd[1] is None or sam[1] is None else 100 * math.hypot(sam[1], sgd[1]) / sgd[0]
            out.append({"where": where, "net": net, "reduction": reduction(sgd[0], sam[0]), "half": half})
        if where in TABLE10:
            _, untuned, plain = TABLE10[where]
            out.append({"where": where, "net": "b7, rho = 0.05", "reduction": reduction(plain, untuned), "half": None})
    return pd.DataFrame(out)


def own_reductions(table: pd.DataFrame, s: Settings) -> pd.DataFrame:
    """Return ours: the mean paired difference over the mean error of SGD, in percent."""
    out = []
    for labels in s.labels:
        for net, method in (("ours", "SAM"), ("ours, rho = 0.05", "SAM, 0.05")):
            mean, half, _ = _interval(gain(table, (labels,), "SGD", method))
            scale = 100 / errors(table, labels, "SGD").mean()
            out.append({"where": f"here, {labels} labels", "net": net, "reduction": scale * mean, "half": scale * half})
    return pd.DataFrame(out)


def fitted(rows: Any, s: Settings) -> list[int]:
    """Return the numbers of labels that SGD fits at its best trial on the tuning seeds."""
    return [labels for labels in s.labels if _pretrained(rows, labels)[1]["train_error"].mean() <= Regime.FITS]


def claims(table: pd.DataFrame, rows: Any, s: Settings) -> list[Claim]:
    """Return the claims on Tables 3 and 10, from the judged ``table`` and the tuning's ``rows``."""
    labels = fitted(rows, s) or list(s.labels)

    def level(method: str, column: str = "test_error") -> float:
        return float(np.mean([errors(table, n, method, column).mean() for n in labels]))

    regime = Regime(level("SGD", "train_error"), level("SGD"), level("SGD, twice"),
                    "" if level("scratch") > level("SGD") else "the pretrained net is not better than one from scratch")
    radius = {n: study.picked(rows, n)["SAM"]["rho"] for n in s.labels}
    edge = ", an edge of its grid for some" if set(radius.values()) & {s.rhos[0], s.rhos[-1]} else ""
    net = f"MLP, MNIST-1D, {s.source} to {10 - s.source} classes"
    mean = f"{net}, mean of {', '.join(map(str, labels))} labels per class"
    made = []
    for ident, short, method, paper, what in (
        ("sam-table-3", "sam-table3", "SAM", "18 of 18 comparisons", "SAM"),
        ("sam-table-10", "sam-table10", "SAM, 0.05", "8 of 8 data sets", "SAM at 0.05"),
    ):
        told = f"; ρ = {', '.join(f'{rho:g}' for rho in radius.values())}{edge}" if method == "SAM" else ""
        made.append(Claim.from_samples(gain(table, labels, "SGD", method), id=ident, paper_value=paper, regime=regime,
                                       protocol=mean + told))
        made += [Claim.from_samples(gain(table, (n,), "SGD", method), id=f"{short}-quick-{n}", below=ident,
                                    statement=f"{what} has a lower error than SGD, {n} labels per class", protocol=net)
                 for n in s.labels]
        made.append(Claim.from_samples(gain(table, labels, "SGD, twice", method), id=f"{short}-twice", below=ident,
                                       statement=f"{what} has a lower error than SGD with twice the steps",
                                       protocol=mean))
    made.append(Claim.from_samples(
        gain(table, labels, "SAM, 0.05", "SAM"), id="sam-table10-tuned", below="sam-table-10", protocol=mean,
        statement="A tuned radius has a lower error than 0.05", paper_value="6 of 8, 2 equal"))
    return made
