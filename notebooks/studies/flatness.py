r"""Notebook 18: which measure of flatness predicts the test error and the gap over a pool of nets, if any.

A measure x and a target y are compared over a set P of *pairs* of nets (all; of one task; those that differ in one
setting alone), by Kendall's rank correlation on these pairs and by the conditional mutual information of Jiang et al.
(ICLR 2020). Intervals and p-values are those of a bootstrap that draws whole methods and whole seeds.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from sharpnb.lab import Data
from studies import flatness_pool
from studies.flatness_pool import AXES, Settings
from studies.m_sharpness import conditions, share

DRAWS, DRAWS_INFORMATION = 2000, 24  # the information's standard error needs few
TASK = ("label_noise", "norm", "seed")  # nets that share these were trained on the same problem

# measure -> (its name in figures, +1 where larger is said to generalise worse, -1 where better)
MEASURES: dict[str, tuple[str, int]] = {
    "lambda_max": ("largest eigenvalue λ₁", 1),
    "ratio_1_5": ("λ₁/λ₅", 1),
    "trace": ("trace of the Hessian", 1),
    "frobenius": ("Frobenius norm (2nd moment)", 1),
    "moment_3": ("3rd spectral moment", 1),
    "sharpness": ("sharpness, first order", 1),
    "sharpness_m64": ("m-sharpness, m = 64", 1),
    "sharpness_m16": ("m-sharpness, m = 16", 1),
    "sharpness_m4": ("m-sharpness, m = 4", 1),
    "sharpness_m1": ("m-sharpness, m = 1", 1),
    "sharpness_worst": ("worst-case sharpness", 1),
    "sharpness_average": ("average sharpness", 1),
    "sharpness_adaptive": ("adaptive, first order", 1),
    "sharpness_adaptive_worst": ("adaptive, worst case", 1),
    "sharpness_adaptive_average": ("adaptive, average", 1),
    "ray_width": ("ray width", -1),
    "ray_width_filter": ("ray width, filter-normalised", -1),
    "weight_norm": ("weight norm", 1),
    "distance": ("distance from the start", 1),
    "margin": ("margin", -1),
    "margin_normalized": ("margin / spectral norms", -1),
    "gradient_norm": ("gradient norm", 1),
    "train_loss": ("training loss (control)", 1),
}
TARGETS = {"test_error": "test error (%)", "gap": "generalisation gap (points)"}
AXIS_NAMES = {"method": "method", "width": "width", "lr_factor": "learning rate", "batch_size": "batch size",
              "weight_decay": "decay", "label_noise": "label noise", "norm": "BatchNorm", "seed": "seed"}

FULL = Settings()
# The pool on other seeds, as far as a minute goes: its star, three methods, the task that the baseline fits.
QUICK = Settings(methods=("SGD", "AdamW", "SAM"), seeds=range(2000, 2020), noises=(0.0,), norms=(False,))
TOY = Settings(methods=("SGD", "SAM", "SWAP", "Filter grafting"), seeds=2, train_size=40, steps=4, lanczos=6, probes=2,
               base=(("width", 6), ("lr_factor", 1.0), ("batch_size", 10), ("weight_decay", 1e-4)),
               changed=(("width", 3),))


Pairs = tuple[np.ndarray, np.ndarray]


def pairs(table: pd.DataFrame) -> dict[str, Pairs]:
    """Return the sets of pairs (i, j) of rows that are compared, by name.

    ``"all"``; ``"same task"``, see :data:`TASK`; ``"same method"``, of one task; and for each axis those that differ in
    it alone.
    """
    codes = {name: pd.factorize(table[name])[0] for name in AXES}
    i, j = np.triu_indices(len(table), 1)
    same = {name: code[i] == code[j] for name, code in codes.items()}
    task = np.logical_and.reduce([same[name] for name in TASK])
    shared = np.sum(list(same.values()), axis=0)
    chosen = {"all": np.ones(len(i), bool), "same task": task, "same method": task & same["method"]}
    chosen |= {name: (shared == len(AXES) - 1) & ~same[name] for name in AXES}
    return {name: (i[mask], j[mask]) for name, mask in chosen.items() if mask.any()}


class Bootstrap:
    r"""Draws whole methods and whole seeds with replacement; net (method a, seed b) counts :math:`u_a v_b` times.

    The two-way bootstrap for crossed factors, whose variance is not too small (Owen, Annals of Applied Statistics 1,
    2007, section 4). What it asks: had other methods been in the pool, and other splits been drawn?
    """

    def __init__(self, table: pd.DataFrame, draws: int = DRAWS, seed: int = 0) -> None:
        method, seeds = pd.factorize(table["method"])[0], pd.factorize(table["seed"])[0]
        self.methods, self.seeds = int(method.max()) + 1, int(seeds.max()) + 1
        self.cluster, self.clusters = method * self.seeds + seeds, self.methods * self.seeds
        random = np.random.default_rng(seed)
        u = random.multinomial(self.methods, np.full(self.methods, 1 / self.methods), draws)
        v = random.multinomial(self.seeds, np.full(self.seeds, 1 / self.seeds), draws)
        self.weights = (u[:, :, None] * v[:, None, :]).reshape(draws, self.clusters).astype(float)

    def sums(self, values: np.ndarray, over: Pairs) -> np.ndarray:
        """Return the sum of ``values``, one a pair, and its draws, (1 + draws,)."""
        key = self.cluster[over[0]] * self.clusters + self.cluster[over[1]]
        grouped = np.bincount(key, values, self.clusters**2).reshape(self.clusters, -1)
        return np.concatenate([[values.sum()], ((self.weights @ grouped) * self.weights).sum(1)])


def tau(x: np.ndarray, y: np.ndarray, over: Pairs, bootstrap: Bootstrap) -> np.ndarray:
    r"""Kendall's rank correlation over a set of pairs P, and its draws, (1 + draws,).

    .. math:: \tau_P = \frac{\sum_P \mathrm{sign}(x_i-x_j)\,\mathrm{sign}(y_i-y_j)}
                            {\sqrt{\#\{P: x_i\ne x_j\}\ \#\{P: y_i\ne y_j\}}}

    Over all pairs it is :func:`sharpnb.curvature.kendall_tau`. Pairs with a missing number do not count.
    """
    finite = np.isfinite(x[over[0]] + y[over[0]] + x[over[1]] + y[over[1]])
    i, j = over[0][finite], over[1][finite]
    a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
    up, left, right = (bootstrap.sums(v, (i, j)) for v in (a * b, np.abs(a), np.abs(b)))
    with np.errstate(invalid="ignore", divide="ignore"):
        return up / np.sqrt(left * right)


def taus(
    table: pd.DataFrame, target: str, measures: Sequence[str] | None = None, draws: int = DRAWS
) -> dict[tuple[str, str], np.ndarray]:
    r"""Return (relation, measure) -> τ and its draws, oriented: positive where the flatter net generalises better.

    Beside the sets of :func:`pairs`, ``"one setting"`` is the mean of τ over the axes (Jiang et al.'s :math:`\Psi`,
    section 4.1), and ``"same task, equal fit"`` the partial correlation given the training loss z (Kendall, Biometrika
    32, 1942):

    .. math:: \tau_{xy\cdot z} = (\tau_{xy}-\tau_{xz}\tau_{yz})\big/\sqrt{(1-\tau_{xz}^2)(1-\tau_{yz}^2)}
    """
    bootstrap, sets = Bootstrap(table, draws), pairs(table)
    y, z = table[target].to_numpy(float), table["train_loss"].to_numpy(float)
    task = sets["same task"]
    of_fit, found = tau(y, z, task, bootstrap), {}
    for name in measures or MEASURES:
        sign = MEASURES.get(name, (name, 1))[1]
        x = sign * table[name].to_numpy(float)
        own = {relation: tau(x, y, over, bootstrap) for relation, over in sets.items()}
        axes = [own[axis] for axis in AXES if axis in own]
        found |= {(relation, name): values for relation, values in own.items()}
        found["one setting", name] = np.mean(axes, axis=0)
        fit = tau(x, z, task, bootstrap)
        with np.errstate(invalid="ignore", divide="ignore"):
            rest = np.sqrt((1 - fit**2) * (1 - of_fit**2))
            partial = np.where(rest > 1e-9, (own["same task"] - fit * of_fit) / rest, np.nan)
        found["same task, equal fit", name] = partial
    return found


def by_seed(table: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """Return τ as :func:`taus` has it, among the nets of each seed by themselves: a row per seed, a column per key."""
    return pd.DataFrame({seed: {(target, *key): values[0] for target in TARGETS for key, values in
                                taus(part.reset_index(drop=True), target, measures, draws=0).items()}
                         for seed, part in table.groupby("seed")}).T


def summary(values: np.ndarray) -> dict[str, float]:
    """Return estimate, standard error, 95 % percentile interval and two-sided p of an estimate and its draws.

    p is twice the smaller share of draws on either side of 0, never below 2 / (draws + 1).
    """
    drawn = values[1:][np.isfinite(values[1:])]
    if not len(drawn) or not np.isfinite(values[0]):
        return dict.fromkeys(("tau", "stderr", "lower", "upper", "p"), float("nan"))
    lower, upper = np.quantile(drawn, [0.025, 0.975])
    side = min((drawn <= 0).sum(), (drawn >= 0).sum()) + 1
    return {"tau": float(values[0]), "stderr": float(drawn.std(ddof=1)), "lower": float(lower), "upper": float(upper),
            "p": min(1.0, 2 * side / (len(drawn) + 1))}


def relate(
    table: pd.DataFrame, measures: Sequence[str] | None = None, targets: Sequence[str] = tuple(TARGETS),
    draws: int = DRAWS,
) -> pd.DataFrame:
    """Return one row a target, relation and measure: τ, interval, p, and p after Holm over the measures of each."""
    rows = []
    for target in targets:
        found = taus(table, target, measures, draws)
        rows += [{"target": target, "relation": relation, "measure": name, **summary(values)}
                 for (relation, name), values in found.items()]
    out = pd.DataFrame(rows)
    out["p_holm"] = out.groupby(["target", "relation"])["p"].transform(holm)
    return out


def holm(p: Any) -> np.ndarray:
    r"""Return p-values that hold for all of a family at once; missing ones stay missing and do not count.

    :math:`\tilde p_{(k)} = \max_{j\le k}\min(1,(K-j+1)\,p_{(j)})` (Holm, Scandinavian Journal of Statistics 6, 1979).
    """
    p = np.asarray(p, dtype=float)
    out, order = np.full(len(p), np.nan), np.argsort(p)[: np.isfinite(p).sum()]
    out[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return out


def information(table: pd.DataFrame, target: str, measures: Sequence[str] | None = None) -> pd.DataFrame:
    r"""Return each measure's conditional mutual information with a target, the mean over the seeds, with an interval.

    That of notebook 04, :func:`studies.m_sharpness.information`, over the pairs of nets of one seed. ``lower`` and
    ``upper`` are 1.96 standard errors away, ``stderr`` that of a bootstrap over methods and seeds with the minimising S
    held (the draws' mean is biased upwards). ``"(none)"`` is the mean of three columns of random numbers, what chance
    earns.
    """
    names = list(measures or MEASURES)
    random = np.random.default_rng(0)
    noise = [f"(none {k})" for k in range(3)]
    columns = {name: table[name].to_numpy(float) for name in names}
    columns |= {name: random.normal(size=len(table)) for name in noise}
    by_seed = [_informations(table, {n: c[rows] for n, c in columns.items()}, target, rows)
               for rows in (np.flatnonzero(table["seed"] == seed) for seed in sorted(set(table["seed"])))]
    v = random.multinomial(len(by_seed), np.full(len(by_seed), 1 / len(by_seed)), DRAWS_INFORMATION) / len(by_seed)
    found = {}
    for name in columns:
        each = np.stack([values[name] for values in by_seed])  # (seeds, 1 + draws)
        found[name] = (each[:, 0].mean(), (v * each[:, 1:].T).sum(1).std(ddof=1))
    chance = np.mean([found.pop(name) for name in noise], axis=0)
    return pd.DataFrame([{"target": target, "measure": name, "information": value, "stderr": error,
                          "lower": max(0.0, value - 1.96 * error), "upper": value + 1.96 * error}
                         for name, (value, error) in {**found, "(none)": chance}.items()])


def _informations(table: pd.DataFrame, columns: dict[str, np.ndarray], target: str, rows: np.ndarray) -> dict[str, Any]:
    """Return measure -> its information over the pairs of some rows and its draws, (1 + draws,)."""
    part, g = table.iloc[rows], table[target].to_numpy(float)[rows]
    i, j = np.nonzero(g[:, None] != g[None, :])
    up, method = (g[i] > g[j]).astype(np.int64), pd.factorize(part["method"])[0]
    labels = conditions([part[axis] for axis in AXES if part[axis].nunique() > 1], i, j)
    u = np.random.default_rng(0).multinomial(k := method.max() + 1, np.full(k, 1 / k), DRAWS_INFORMATION).astype(float)
    weights = (u[:, :, None] * u[:, None, :]).reshape(len(u), -1)  # of the pairs of methods, (draws, k k)
    out = {}
    for name, x in columns.items():
        finite = np.isfinite(x[i] + x[j])
        cell = 2 * (x[i] > x[j]).astype(np.int64) + up
        shares = [share(np.bincount(4 * label[finite] + cell[finite])) for label in labels]
        key = (4 * labels[int(np.nanargmin(shares))] + cell)[finite]
        cells = key.max() + 1
        pairs = np.bincount((method[i] * k + method[j])[finite] * cells + key, minlength=k * k * cells)
        out[name] = np.array([np.nanmin(shares), *share(weights @ pairs.reshape(k * k, cells))])
    return out


def paired(table: pd.DataFrame, column: str, axis: str, a: Any, b: Any, log: bool = False) -> dict[str, float]:
    """Return ``measured``, the value at ``a`` of an axis minus that at ``b``, over nets alike in all else.

    ``log`` takes log10 of both; ``stderr`` is that of a bootstrap over the ``n`` settings and over seeds.
    """
    rest = [name for name in AXES if name not in (axis, "seed")]
    value = table.assign(value=np.log10(table[column]) if log else table[column])
    wide = value.pivot_table(index=rest, columns=[axis, "seed"], values="value")
    difference = (wide[a] - wide[b]).dropna(how="all").to_numpy()  # (settings, seeds)
    random = np.random.default_rng(0)
    u, v = (random.multinomial(n, np.full(n, 1 / n), DRAWS).astype(float) for n in difference.shape)
    there = np.isfinite(difference)
    with np.errstate(invalid="ignore"):  # a draw may hold only pairs that collapsed
        drawn = ((u @ np.where(there, difference, 0.0)) * v).sum(1) / ((u @ there) * v).sum(1)
    return {"measured": float(np.nanmean(difference)), "stderr": float(np.nanstd(drawn, ddof=1)), "n": len(difference)}


def nets(table: pd.DataFrame, s: Settings = FULL) -> Iterator[tuple[nn.Module, Data]]:
    """Train the nets of some rows of a pool again, and yield each with its data, in the order of the rows."""
    pool = [{axis: row[axis] for axis in AXES} for row in table.to_dict("records")]
    weights: list[Tensor] = flatness_pool.train(pool, s)
    for cell, w in zip(pool, weights, strict=True):
        yield flatness_pool.finished(cell, w, s)
