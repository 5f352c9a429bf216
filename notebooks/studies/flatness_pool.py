r"""Notebook 18's pool: nets of every method of the package over a grid of settings, and every measure of each.

Around one setting of width, learning rate, batch size and decay each of them is changed by itself (a star), for every
method and seed, with and without wrong labels and BatchNorm: every net has partners that differ in one thing alone.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb import curvature, rules
from sharpnb.averaging import graft
from sharpnb.averaging.batchnorm import update_bn
from sharpnb.lab import Data, Notebook, evaluate, load_data, models, train_many, with_label_noise
from sharpnb.lab.pieces import Work
from sharpnb.landscape import filter_normalized_direction, line, unit_direction
from sharpnb.many.engine import Nets
from studies.trials import SEEDS, Rows, best

Cell = dict[str, Any]
AXES = ("method", "width", "lr_factor", "batch_size", "weight_decay", "label_noise", "norm", "seed")

_SGD, _ADAM, _RHO = {"lr": 0.1, "momentum": 0.9}, {"lr": 0.01}, {"rho": 0.2}
_SWA = {"schedule": "constant", "swa_start": 0.5, "swa_every": 10}
_LOOKAHEAD = {"lookahead_k": 5, "lookahead_alpha": 0.5}
METHODS: dict[str, dict[str, Any]] = {
    "SGD": {"rule": "sgd", **_SGD},
    "SGDW": {"rule": "sgdw", **_SGD},
    "Adam": {"rule": "adam", **_ADAM},
    "AdamW": {"rule": "adamw", **_ADAM},
    "SAM": {"rule": "sam", **_SGD, **_RHO},
    "SAM, m = 10": {"rule": "sam", "m": 10, **_SGD, "rho": 0.1},
    "SAM + AdamW": {"rule": "sam", "base": "adamw", **_ADAM, **_RHO},
    "ASAM": {"rule": "asam", **_SGD, "rho": 1.0},
    "Fisher SAM": {"rule": "fisher_sam", **_SGD, **_RHO},
    "ESAM": {"rule": "esam", "beta": 0.6, "gamma": 0.5, **_SGD, **_RHO},
    "GSAM": {"rule": "gsam", "alpha": 0.1, **_SGD, **_RHO},
    "LookSAM": {"rule": "looksam", **_SGD, **_RHO},
    "WSAM": {"rule": "wsam", "gamma": 0.88, **_SGD, **_RHO},
    "WSAM, coupled": {"rule": "wsam", "gamma": 0.6, "decouple": False, **_SGD, **_RHO},
    "WSAM on ASAM": {"rule": "wsam", "gamma": 0.88, "perturbation": "asam", **_SGD, "rho": 1.0},
    "WSAM on Fisher SAM": {"rule": "wsam", "gamma": 0.88, "perturbation": "fisher", **_SGD, **_RHO},
    "SWA": {"rule": "sgd", **_SGD, **_SWA},
    "SWA + SAM": {"rule": "sam", **_SGD, **_RHO, **_SWA},
    "SWA + AdamW": {"rule": "adamw", **_ADAM, **_SWA},
    "Lookahead": {"rule": "sgd", **_SGD, **_LOOKAHEAD},
    "Lookahead + SAM": {"rule": "sam", **_SGD, **_RHO, **_LOOKAHEAD},
    "Lookahead + AdamW": {"rule": "adamw", **_ADAM, **_LOOKAHEAD},
    "SWAP": {"trainer": "swap", **_SGD},
    "Filter grafting": {"trainer": "graft", **_SGD},
}
WORKERS, LARGE_BATCH = 4, 150  # of SWAP: its independent workers, and the batch of its first quarter
MS = (1, 4, 16, 64)  # images that share a perturbation; "sharpness" is that of all images together
RHO, RAYS, RISE = 0.05, 6, 0.1  # radius of the sharpness measures (SAM's); rays; rise of the loss in nats at their end
_DISTANCES = {"ray_width": np.geomspace(0.2, 60, 12), "ray_width_filter": np.geomspace(0.02, 6, 12)}


@dataclass(frozen=True)
class Settings:
    """A pool: ``base`` is the star's centre, ``changed`` the value that each of its settings takes by itself.

    A seed is that of split, wrong labels, initial weights and batches alike; a number stands for the first ones. Digits
    that are not trained on are the test set. ``lanczos`` and ``probes`` are steps and probes of the Hessian's spectrum.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    base: tuple[tuple[str, float], ...] = (
        ("width", 32), ("lr_factor", 1.0), ("batch_size", 30), ("weight_decay", 1e-4))
    changed: tuple[tuple[str, float], ...] = (
        ("width", 8), ("lr_factor", 0.3), ("batch_size", 150), ("weight_decay", 2e-3))
    noises: tuple[float, ...] = (0.0, 0.2)
    norms: tuple[bool, ...] = (False, True)
    seeds: int | Sequence[int] = 3
    train_size: int = 300
    steps: int = 400
    lanczos: int = 12  # moments of order j need (j + 1) / 2 of them; the largest five are found by deflation
    probes: int = 6


def cells(s: Settings) -> list[Cell]:
    """Return every setting of a pool, in the order of its table."""
    seeds = range(s.seeds) if isinstance(s.seeds, int) else s.seeds
    star = [dict(s.base), *(dict(s.base) | {name: value} for name, value in s.changed)]
    return [{"method": method, **point, "label_noise": noise, "norm": norm, "seed": seed}
            for seed, method, point, noise, norm in product(seeds, s.methods, star, s.noises, s.norms)]


@cache
def split(train_size: int, seed: int, noise: float) -> Data:
    """Load the digits of a seed, a share of the training labels wrong."""
    data = load_data("digits", train_size=train_size, seed=seed, dtype=torch.float64)
    return with_label_noise(data, noise, seed) if noise else data


def net_of(cell: Cell) -> Callable[[int], nn.Module]:
    """Return seed -> untrained net of a cell."""
    return lambda seed: models.mlp((64, int(cell["width"]), 10), norm=bool(cell["norm"]), seed=seed).double()


def train(pool: Sequence[Cell], s: Settings) -> list[Tensor]:
    """Train every cell and return its final (averaged) weights, (n,) each."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for k, cell in enumerate(pool):
        trainer = METHODS[cell["method"]].get("trainer", "rule")
        groups.setdefault((trainer, cell["width"], cell["norm"], cell["batch_size"]), []).append(k)
    found: dict[int, Tensor] = {}
    for (trainer, *_), members in groups.items():
        how = {"rule": _by_rule, "swap": _by_swap, "graft": _by_grafting}[trainer]
        found.update(zip(members, how([pool[k] for k in members], s), strict=True))
    return [found[k] for k in range(len(pool))]


def sets(members: Sequence[Cell], s: Settings) -> list[Data]:
    """Return the data of each cell."""
    return [split(s.train_size, cell["seed"], cell["label_noise"]) for cell in members]


def configs(members: Sequence[Cell]) -> list[dict[str, Any]]:
    """Return the cells as :func:`sharpnb.lab.train_many` takes them."""
    return [{**own, "lr": own["lr"] * cell["lr_factor"], "weight_decay": cell["weight_decay"], "seed": cell["seed"]}
            for cell in members for own in [METHODS[cell["method"]]]]


def _by_rule(members: Sequence[Cell], s: Settings) -> Tensor:
    return train_many(configs(members), sets(members, s), net_of(members[0]), steps=s.steps, dtype=torch.float64,
                      device="cpu", batch_size=int(members[0]["batch_size"]), progress=False).averaged


class _Sgd:
    """SGD on rows; each cell stands for ``copies`` rows, whose learning rates are multiplied by ``factors``."""

    def __init__(self, members: Sequence[Cell], factors: Sequence[float]) -> None:
        lr = [cell["lr_factor"] * _SGD["lr"] * f for cell in members for f in factors]
        decay = [cell["weight_decay"] for cell in members for _ in factors]
        self.lr, self.decay = (torch.tensor(v, dtype=torch.float64)[:, None] for v in (lr, decay))

    def __call__(self, w: Tensor, grad: rules.Gradient, state: rules.State, eta: float) -> Any:
        return rules.sgd(w, grad(w), state, lr=self.lr, momentum=_SGD["momentum"], weight_decay=self.decay, eta=eta)


def _rows(members: Sequence[Cell], s: Settings, copies: int, batch_size: int) -> Nets:
    seeds = [cell["seed"] + 1000 * j for cell in members for j in range(copies)]
    data = [each for each in sets(members, s) for _ in range(copies)]
    return Nets(seeds, data, net_of(members[0]), batch_size=batch_size)


def _by_swap(members: Sequence[Cell], s: Settings) -> Tensor:
    """A quarter of the steps with large batches, the rest by workers on their own, and their average."""
    first = _rows(members, s, 1, min(LARGE_BATCH, s.train_size))
    first.fit(_Sgd(members, [1.0]), max(1, s.steps // 4), schedule="constant", progress=False)
    rows = _rows(members, s, WORKERS, int(members[0]["batch_size"]))
    rows.w = first.w.repeat_interleave(WORKERS, 0)
    rows.fit(_Sgd(members, [1.0] * WORKERS), s.steps - s.steps // 4, progress=False)
    return rows.w.unflatten(0, (len(members), WORKERS)).mean(1)


def _by_grafting(members: Sequence[Cell], s: Settings) -> Tensor:
    """Two nets of different learning rates, grafted after each epoch; the last grafting makes them one."""
    batch_size = int(members[0]["batch_size"])
    rows, sgd = _rows(members, s, 2, batch_size), _Sgd(members, [0.5, 1.0])  # notebook 17's "dlr" for two
    pair, epoch, done = [net_of(members[0])(j) for j in range(2)], max(1, s.train_size // batch_size), 0

    def rule(w: Tensor, grad: rules.Gradient, state: rules.State, eta: float) -> Any:
        nonlocal done
        w, state, done = *sgd(w, grad, state, eta), done + 1
        return (torch.cat([_grafted(pair, two) for two in w.split(2)]) if done % epoch == 0 else w), state

    w = rows.fit(rule, epoch * (s.steps // epoch), progress=False)
    return w[::2]


def _grafted(pair: Sequence[nn.Module], two: Tensor) -> Tensor:
    for net, w in zip(pair, two, strict=True):
        nn.utils.vector_to_parameters(w.clone(), net.parameters())
    graft(pair)
    return torch.stack([nn.utils.parameters_to_vector(net.parameters()).detach() for net in pair])


def finished(cell: Cell, weights: Tensor, s: Settings) -> tuple[nn.Module, Data]:
    """Return a cell's net with its weights, BatchNorm's statistics those of the training images; and its data."""
    net, data = net_of(cell)(cell["seed"]), split(s.train_size, cell["seed"], cell["label_noise"])
    nn.utils.vector_to_parameters(weights.clone(), net.parameters())
    update_bn(net, data.train)
    return net.eval(), data


def outcome(net: nn.Module, data: Data, noise: float) -> dict[str, float]:
    r"""Return losses (nats), errors (percent) and the generalisation gap (points).

    The gap is between the test and the training error *under the distribution that was trained on*: with a share r of
    wrong labels among C classes a test error e is, on labels made wrong in the same way, in expectation

    .. math:: e_r = (1-e)\,r + e\,\Big(1-\frac{r}{C-1}\Big)
    """
    (train_loss, train_error), (test_loss, test_error) = evaluate(net, data.train), evaluate(net, data.test)
    e = test_error / 100
    noisy = 100 * ((1 - e) * noise + e * (1 - noise / (data.classes - 1)))
    return {"train_loss": train_loss, "train_error": train_error, "test_loss": test_loss, "test_error": test_error,
            "gap": noisy - train_error}


def measures(
    net: nn.Module, data: Data, start: Tensor | None = None, *, lanczos: int = 12, probes: int = 6, seed: int = 0
) -> dict[str, float]:
    """Return every measure of one net in evaluation mode on its training images; ``start`` is for ``distance``."""
    found = curvature.measure(net, F.cross_entropy, data.train, RHO, steps=lanczos, probes=probes, seed=seed)
    for m in MS:
        found[f"sharpness_m{m}"] = curvature.sharpness(net, F.cross_entropy, data.train, RHO, m).value
    found["sharpness_adaptive_average"] = curvature.average_sharpness(
        net, F.cross_entropy, data.train, RHO, adaptive=True, seed=seed).value
    w = nn.utils.parameters_to_vector(net.parameters()).detach()
    rays = [filter_normalized_direction(net, 1000 * seed + i) for i in range(RAYS)]
    found["ray_width_filter"] = _width(net, w, rays, _DISTANCES["ray_width_filter"], data)
    if start is not None:
        found["distance"] = float((w - start).norm())
    return found | judged(net, data, seed) | margins(net, data)


def _width(net: nn.Module, w: Tensor, rays: Sequence[Tensor], distances: np.ndarray, data: Data) -> float:
    """Distance at which the mean loss over the rays is RISE above its value at the centre; the last one if never."""
    t = np.concatenate([[0.0], distances])
    loss = np.mean([line(net, w, ray, t, data.train, ("loss",)).values["loss"] for ray in rays], axis=0)
    above = np.nonzero(~(loss - loss[0] < RISE))[0]
    if not len(above) or not np.isfinite(loss[above[0]]):
        return float(t[above[0] if len(above) else -1])
    two = slice(above[0] - 1, above[0] + 1)
    return float(np.interp(RISE, loss[two] - loss[0], t[two]))


@torch.no_grad()
def margins(net: nn.Module, data: Data) -> dict[str, float]:
    r"""Return the tenth percentile of the output margin, and that over :math:`\prod_l\|W_l\|_2`.

    The latter after Bartlett, Foster & Telgarsky, NeurIPS 2017. The margin of an image is the logit of its label less
    the largest other one. BatchNorm is folded into the layer before it, which does not change the function.
    """
    x, y = data.train
    logits = net(x)
    own = logits.gather(1, y[:, None])[:, 0]
    margin = float((own - logits.scatter(1, y[:, None], -math.inf).amax(1)).quantile(0.1))
    product_of_norms, layers = 1.0, list(net.modules())
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if isinstance(layer, nn.Linear):
            w = layer.weight
            if isinstance(after, nn.BatchNorm1d) and after.running_var is not None:
                w = w * (after.weight / (after.running_var + after.eps).sqrt())[:, None]
            product_of_norms *= float(torch.linalg.matrix_norm(w, 2))
    return {"margin": margin, "margin_normalized": margin / product_of_norms}


def judged(net: nn.Module, data: Data, seed: int = 0) -> dict[str, float]:
    """Return those measures of :func:`measures` that the claims of the quick profile want, in a third of the time."""
    w = nn.utils.parameters_to_vector(net.parameters()).detach()
    rays = [unit_direction(len(w), 1000 * seed + i) for i in range(RAYS)]
    sharp = partial(curvature.sharpness, net, F.cross_entropy, data.train, seed=seed)
    return {"sharpness": sharp(RHO).value, "sharpness_worst": sharp(RHO, steps=20).value,
            "sharpness_adaptive_worst": sharp(10 * RHO, adaptive=True, steps=20).value,
            "ray_width": _width(net, w, rays, _DISTANCES["ray_width"], data), "weight_norm": float(w.norm())}


def row(cell: Cell, w: Tensor, s: Settings, whole: bool = True) -> Cell:
    """Return a cell's settings, outcome and measures (none if it diverged; :func:`judged`'s alone unless ``whole``)."""
    net, data = finished(cell, w, s)
    if not whole:
        return {**cell, **outcome(net, data, cell["label_noise"]), **judged(net, data)}
    start = nn.utils.parameters_to_vector(net_of(cell)(cell["seed"]).parameters()).detach()
    found = measures(net, data, start, lanczos=s.lanczos, probes=s.probes) if w.isfinite().all() else {}
    return {**cell, "parameters": len(w), **outcome(net, data, cell["label_noise"]), **found}


def rows_of(pool: Sequence[Cell], s: Settings) -> list[Cell]:
    """Train and measure: one row a cell."""
    return [row(cell, w, s) for cell, w in zip(pool, train(pool, s), strict=True)]


BATCHES = (30, 150)
GRID = {"lr_factor": (1.0, 2.0, 4.0, 8.0, 16.0), "weight_decay": (0.0, 1e-3, 1e-2, 3e-2)}


def at_best(seeds: Sequence[int], s: Settings, nb: Notebook) -> list[Cell]:
    """Return cells of SGD with small and with large batches, each at its best trial of the committed record."""
    def of(batch: int, factor: float, decay: float, seed: int) -> Cell:
        return {"method": "SGD", "width": 32, "lr_factor": factor, "batch_size": batch, "weight_decay": decay,
                "label_noise": 0.0, "norm": False, "seed": seed}

    def make(_: Work) -> dict[str, Rows]:
        pool = [of(*values) for values in product(BATCHES, *GRID.values(), SEEDS)]
        return {"rows": [{**cell, **outcome(*finished(cell, w, s), 0.0)}
                         for cell, w in zip(pool, train(pool, s), strict=True)]}

    rows = nb.recorded("tuning", make, of={"grid": GRID, "steps": s.steps, "train_size": s.train_size}, kept=True,
                       rtol=5e-2, atol=0.5)["rows"]
    found = {batch: best([row for row in rows if row["batch_size"] == batch], *GRID) for batch in BATCHES}
    return [of(batch, *found[batch].values(), seed) for batch in BATCHES for seed in seeds]


def shards(s: Settings, methods: int = 6) -> list[list[Cell]]:
    """Cut a pool into parts that train together: one shape of net, one batch size, some methods."""
    block = {method: k // methods for k, method in enumerate(s.methods)}
    parts: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells(s):
        parts.setdefault((block[cell["method"]], cell["width"], cell["norm"], cell["batch_size"]), []).append(cell)
    return list(parts.values())


def swept(s: Settings, work: Work) -> tuple[list[Cell], float]:
    """Train and measure a pool, each shard a piece; return rows in the order of :func:`cells`, and the CPU seconds."""
    def shard(part: list[Cell]) -> dict[str, Any]:
        start = time.process_time()
        return {"rows": rows_of(part, s), "cpu_seconds": time.process_time() - start}

    made = [work.do("shard", partial(shard, part), number=number) for number, part in enumerate(shards(s))]
    place = {tuple(cell[a] for a in AXES): k for k, cell in enumerate(cells(s))}
    rows = [row for shard in made for row in shard["rows"]]
    return sorted(rows, key=lambda row: place[tuple(row[a] for a in AXES)]), sum(shard["cpu_seconds"] for shard in made)
