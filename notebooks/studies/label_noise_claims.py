"""The claims of notebook 05, from its tables: the same for every profile."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sharpnb.lab import Claim
from sharpnb.lab.claims import Regime
from studies import label_noise as study

MAIN = 0.4  # the noise rate of the primary claims
# Which method is to be above which at MAIN, beside those of the primary claims.
_PAIRS = (("Mixup", "SGD"), ("Bootstrap + SAM", "SAM"), ("Bootstrap + Mixup", "Mixup"), ("SAM", "SGD, decay tuned"),
          ("WSAM", "ESAM"), ("WSAM", "GSAM"), ("WSAM", "SGD"))
# Primary claims on right labels: which method is to be above which.
_RIGHT = {"wsam-table-2": ("WSAM", "SAM"), "wsam-table-7": ("WSAM on ASAM", "ASAM"),
          "wsam-table-8": ("WSAM", "WSAM, coupled"), "gsam-main": ("GSAM", "SAM"), "asam-main": ("ASAM", "SAM"),
          "fisher-main": ("Fisher SAM", "SAM"), "esam-accuracy": ("ESAM", "SAM")}


def edge(value: float, grid: Sequence[float]) -> str:
    """Say so where a tuned value is an end of its grid; radius 0, which is SGD, is none of SAM's."""
    own = [one for one in grid if one > 0]
    return f"{value:g}" + (", an edge of its grid" if value in (min(own), max(own)) else "")


def claims(
    table: pd.DataFrame | None, label: str, profile: str, record: str = "", tuned: Mapping[str, str] | None = None
) -> list[Claim]:
    """Return the claims on a table of one row per training, at all hyperparameters or those picked; else not run.

    ``label`` says net and data, ``tuned`` by primary claim what its protocol says of the hyperparameters.
    """
    made: list[Claim] = []

    def claim(samples: np.ndarray | None, ident: str, noise: float = MAIN, **about: str | None) -> None:
        told = f"{label}, {noise:.0%} wrong" + (tuned or {}).get(ident, "")
        regime = None if table is None else _regime(table, noise)
        if samples is not None or "below" not in about:
            made.append(Claim.from_samples(samples, id=ident, protocol=told, profile=profile, record=record,
                                           regime=regime, **about))

    def detail(over: str, under: str, noise: float) -> None:
        short = "".join(part for part in f"{over} {under}".lower().removesuffix("tuned") if part.isalpha())
        ident = f"wsam-noise-{under.lower()}" if over == "WSAM" else f"sam-table4-{short}"
        claim(_lead(table, over, under, noise), f"{ident}-{100 * noise:.0f}", noise,
              below="wsam-table-6" if over == "WSAM" else "sam-table-4", paper_value=_paper(over, under, noise),
              statement=f"{noise:.0%} wrong: {over} has a lower error than {under}")

    claim(_lead(table, "SAM", "SGD", MAIN), "sam-table-4", paper_value=_paper("SAM", "SGD"))
    claim(_smallest(table, MAIN), "sam-table-8", paper_value="31.2 against 6.0")
    claim(_lead(table, "WSAM", "SAM", MAIN), "wsam-table-6")
    if table is not None and "SGD 2E" in {*table[table["noise"] == 0]["method"]}:  # right labels, and SGD for 2E too
        leads = [_lead(table, "SAM", under, 0.0) for under in ("SGD", "SGD 2E")]
        claim(min(leads, key=np.mean), "sam-table-5", 0.0)
    rights = {ident: _lead(table, over, under, 0.0) for ident, (over, under) in _RIGHT.items()}
    rights |= {"sam-table-2": _longer(table, 0.0)}
    inside = _lead(table, "WSAM, γ inside", "WSAM, γ outside", 0.2)
    if inside is not None:
        claim(inside, "wsam-fig-3", 0.2)
    for ident, lead in rights.items():
        if lead is not None:
            claim(lead + (0.5 if ident == "esam-accuracy" else 0.0), ident, 0.0)
    claim(_longer(table, MAIN), "sam-table2-noise-40", below="sam-table-2",
          statement="40% wrong: SAM goes on improving with longer training where SGD does not")
    claim(_lead(table, "SAM", "SGD", MAIN, "best_epoch"), "sam-table4-sam-best-40", below="sam-table-4",
          statement="40% wrong: SAM at its end has a lower error than SGD at the best of its evaluations")
    for over, under in _PAIRS:
        detail(over, under, MAIN)
    for noise in study.NOISES if table is None else sorted({*study.NOISES} & {*table["noise"]}):
        detail("SAM", "Mixup", noise)
        if noise != MAIN:
            detail("SAM", "SGD", noise)
            detail("WSAM", "SAM", noise)
            claim(_smallest(table, noise), f"sam-table8-left-{100 * noise:.0f}", noise, below="sam-table-8",
                  statement=f"{noise:.0%} wrong: the smallest radius of bootstrapped SAM is worse than a tuned one")
    return made


def on_cifar(table: pd.DataFrame, label: str) -> list[Claim]:
    """Return the claims of the mid profile on a table of CIFAR-10: SAM's Tables 1 and 9, and a detail of Table 4."""
    regime = {noise: _regime(table[table["noise"] == noise], noise) for noise in {*table["noise"]}}

    def gain(method: str) -> np.ndarray:  # over SGD for E or 2E, whichever is better
        return min((study.accuracy(table, method, 0.0) - study.accuracy(table, sgd, 0.0) for sgd in ("SGD", "SGD 2E")),
                   key=np.mean)

    made = [] if 0.0 not in regime else [
        ("sam-table-1", 0.0, gain("SAM"), {}), ("sam-table-9", 0.0, gain("SAM, untuned"), {}),
        ("sam-doubling", 0.0, 0.5 - _lead(table, "SGD 2E", "SGD", 0.0), {})]
    for noise, under, name in ((MAIN, "SGD", "4-cifar"), (MAIN, "Mixup", "4-cifar-mixup"),
                               (MAIN, "SGD, decay tuned", "4-cifar-decay"), (0.0, "Mixup", "1-cifar-mixup"),
                               (0.0, "SGD, decay tuned", "1-cifar-decay")):
        if noise in regime and (lead := _lead(table, "SAM", under, noise)) is not None:
            told = {"below": f"sam-table-{name[0]}",
                    "statement": f"CIFAR-10, {noise:.0%} wrong: SAM has a lower error than {under}"}
            made.append((f"sam-table{name}-{100 * noise:.0f}", noise, lead, told))
    return [Claim.from_samples(samples, id=ident, profile="mid", protocol=f"{label}; tuned on other seeds",
                               regime=regime[noise], **about) for ident, noise, samples, about in made]


def of_minima(ends: pd.DataFrame, label: str) -> list[Claim]:
    """Return the claims of the mid profile on the minima of SGD, SAM and WSAM with right labels, a row a net."""
    wide = ends.pivot(index="seed", columns="method", values=["rise", "lambda_max"])
    return [Claim.from_samples(np.log10(wide[column, "SGD"] / wide[column, method]), id=ident, profile="mid",
                               protocol=f"{label}; tuned on other seeds", record="mid/fashion-0-minima", **about)
            for ident, column, method, about in (
                ("sam-fig-1-surface", "rise", "SAM", {}), ("wsam-minima", "lambda_max", "WSAM", {}),
                ("sam-fig-1-lambda", "lambda_max", "SAM", {
                    "below": "sam-fig-1-surface", "statement": "the same of λmax of the Hessian"}))]


def _paper(over: str, under: str, noise: float = MAIN) -> str | None:
    at = study.NOISES.index(noise)
    both = [f"{100 - study.PAPER[method][at]:.1f}" for method in (under, over) if method in study.PAPER]
    return " against ".join(both) if len(both) == 2 else None


def _regime(table: pd.DataFrame, noise: float) -> Regime:
    def error(method: str, column: str = "test_error") -> float:
        return 100.0 - float(study.accuracy(table, method, noise, column).mean())

    twice = error("SGD 2E") if "SGD 2E" in {*table["method"]} else None
    return Regime(error("SGD", "train_error"), error("SGD"), twice)


def _lead(
    table: pd.DataFrame | None, over: str, under: str, noise: float, column: str = "test_error"
) -> np.ndarray | None:
    """Return, per seed, the error of ``under`` (its ``column``) minus that of ``over``; None where one is missing."""
    if table is None or not {over, under} <= {"SGD", *table[table["noise"] == noise]["method"]}:
        return None
    return study.accuracy(table, over, noise) - study.accuracy(table, under, noise, column)


def _longer(table: pd.DataFrame | None, noise: float) -> np.ndarray | None:
    """Return, per seed, what SAM's error falls by from E to 4E minus what SGD's does."""
    before, after = _lead(table, "SAM", "SGD", noise), _lead(table, "SAM 4E", "SGD 4E", noise)
    return None if before is None or after is None else after - before


def _smallest(table: pd.DataFrame | None, noise: float) -> np.ndarray | None:
    """Return, per seed, the error of the bootstrapped SAM at the smallest radius minus that at the tuned one."""
    if table is None:
        return None
    own = table[(table["method"] == "Bootstrap + SAM") & (table["noise"] == noise)]
    if own["value"].nunique() < 2:
        return None
    least = own[own["value"] == own["value"].min()].sort_values("seed")["test_error"].to_numpy()
    return least - (100.0 - study.accuracy(table, "Bootstrap + SAM", noise))
