r"""Notebook 06: the paper's Tables 2, 3 and 10, the quick experiment's summaries beside them, and what was not run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sharpnb.lab.claims import Claim, mean_stderr, t95

if TYPE_CHECKING:
    from studies.finetuning import Settings

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
# Top-1 errors after 100, 200 and 400 epochs, with SAM and without.
TABLE2 = {
    "ResNet-50": ((22.5, 21.4, 20.9), (22.9, 22.3, 22.3)),
    "ResNet-101": ((20.2, 19.4, 19.0), (21.2, 20.9, 22.3)),
    "ResNet-152": ((19.2, 18.5, 18.4), (20.4, 20.3, 20.9)),
}


def reduction(base: Any, other: Any) -> Any:
    r"""Relative error reduction in percent, :math:`100\,(e_{base}-e)/e_{base}`: the axis of the paper's Fig. 1."""
    return 100 * (base - other) / base


# -- the quick experiment ---------------------------------------------------------------------------------------------


def best(rows: Sequence[dict[str, Any]], key: str) -> float:
    """Return the value of ``key`` with the least mean validation error; of equal ones the first."""
    found: dict[float, float] = {}
    for row in rows:
        found[row[key]] = round(found.get(row[key], 0.0) + row["validation_error"], 9)
    return min(found, key=found.__getitem__)


def errors(
    rows: Sequence[dict[str, Any]], start: str, labels: int, method: str, rho: float | None = None
) -> np.ndarray:
    """Return the test errors, a seed each, of a method; SAM at its chosen radius unless ``rho`` names one."""
    mine = [r for r in rows if (r["start"], r["labels"], r["method"]) == (start, labels, method)]
    mine = [r for r in mine if r.get("chosen", True)]
    if method == "SAM":
        radius = best(mine, "rho") if rho is None else rho
        mine = [r for r in mine if r["rho"] == radius]
    return np.array([r["test_error"] for r in sorted(mine, key=lambda r: r["seed"])])


def summary(rows: Sequence[dict[str, Any]], s: Settings) -> pd.DataFrame:
    """Return a row a start, method and number of labels: ``mean``, ``half``, and ``text``, "mean ± standard error".

    ``half`` is the half-width of the 95 % interval once each seed's mean over all starts and methods is taken out:
    the classes of a seed make its task harder or easier for all of them alike.
    """
    out = []
    for labels in s.labels:
        kinds = list(dict.fromkeys((r["start"], r["method"]) for r in rows))
        found = np.array([errors(rows, start, labels, method) for start, method in kinds])  # (kinds, seeds)
        centred = found - found.mean(0)
        for (start, method), own, level in zip(kinds, found, centred, strict=True):
            mean, _, stderr = _interval(own)
            out.append({"start": start, "method": method, "labels": labels, "mean": mean, "half": _interval(level)[1],
                        "text": f"{mean:.1f} ± {stderr:.1f}"})
    return pd.DataFrame(out).set_index(["start", "method", "labels"]).sort_index()


def gains(rows: Sequence[dict[str, Any]], s: Settings, start: str = "SGD") -> pd.DataFrame:
    """Return the error of SGD less that of SAM at each radius, paired by seed."""
    out = []
    for labels in s.labels:
        for rho in s.rhos:
            paired = errors(rows, start, labels, "SGD") - errors(rows, start, labels, "SAM", rho)
            mean, half, _ = _interval(paired)
            out.append({"labels": labels, "rho": rho, "mean": mean, "half": half})
    return pd.DataFrame(out)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    mean, stderr = mean_stderr(values)
    return mean, float(t95(len(values))) * stderr, stderr


def places(s: Settings) -> dict[int, str]:
    """Return the name of our row for each number of labels."""
    return {labels: f"digits, {labels} a class" for labels in s.labels}


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


def own_reductions(rows: Sequence[dict[str, Any]], s: Settings, start: str = "SGD") -> pd.DataFrame:
    """Return ours: the mean paired difference over the mean error of SGD, in percent."""
    out = []
    for labels, where in places(s).items():
        sgd = errors(rows, start, labels, "SGD")
        for net, rho in (("ours", None), ("ours, rho = 0.05", 0.05)):
            mean, half, _ = _interval(sgd - errors(rows, start, labels, "SAM", rho))
            scale = 100 / sgd.mean()
            out.append({"where": where, "net": net, "reduction": scale * mean, "half": scale * half})
    return pd.DataFrame(out)


def own_table(rows: Sequence[dict[str, Any]], s: Settings, start: str = "SGD") -> pd.DataFrame:
    """Return our rows in the columns of Tables 3 and 10: mean test errors in percent."""
    columns = {"best rho": ("SAM", None), "rho = 0.05": ("SAM", 0.05), "SGD": ("SGD", None),
               "SGD, twice": ("SGD, twice", None)}
    found = {name: [errors(rows, start, labels, *column).mean() for labels in s.labels]
             for name, column in columns.items()}
    return pd.DataFrame(found, index=list(places(s).values()))


# -- what was not run -------------------------------------------------------------------------------------------------


def not_run() -> list[Claim]:
    """Return the rows of Tables 2, 3 and 10 that no machine of ours could reach, each with the reason."""
    base: dict[str, Any] = {"paper": "SAM (ICLR 2021)", "kind": "order", "profile": "full"}
    no_data = "needs the images and published weights, which could not be fetched here; the command is in section 6"
    claims = []
    for k, (where, row) in enumerate(TABLE3.items()):
        texts = [f"{sam[0]:.2f} against {sgd[0]:.2f}" for sam, sgd in (row[:2], row[2:])]
        claims.append(Claim(f"sam-table3-b7-{k}", item="Table 3", statement=f"{where}, b7: lower error with SAM",
                            paper_value=texts[0], protocol=no_data, **base))
        claims.append(Claim(f"sam-table3-l2-{k}", item="Table 3", statement=f"{where}, L2: lower error with SAM",
                            paper_value=texts[1], protocol="torchvision has no EfficientNet-L2", **base))
    claims.append(Claim("sam-table10-b7", item="Table 10", statement="b7: ρ = 0.05 has a lower error than SGD",
                        paper_value="8 of 8 data sets", protocol=no_data, **base))
    imagenet = "needs ImageNet and weeks of GPU time; the command is in section 6"
    for k, (net, (sam_errors, sgd_errors)) in enumerate(TABLE2.items()):
        both = [f"{a} against {b}" for a, b in zip(sam_errors, sgd_errors, strict=True)]
        claims.append(Claim(f"sam-table2-{k}", item="Table 2", paper_value="; ".join(both), protocol=imagenet,
                            statement=f"{net}: lower error with SAM after 100, 200 and 400 epochs", **base))
    longest = "; ".join(f"{sam[2]} against {sgd[2]}" for sam, sgd in TABLE2.values())
    claims.append(Claim("sam-table2-longer", item="Table 2", paper_value=f"400 epochs: {longest}", protocol=imagenet,
                        statement="With SAM the error falls from 100 to 200 to 400 epochs; without, 400 epochs are no "
                        "better than 200", **(base | {"kind": "trend"})))
    return claims
