"""Notebook 03: Hessian spectra along training, of SGD and of SAM, and of nets with and without BatchNorm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.curvature import HessianOperator, SpectralDensity, spectral_density, top_eigenvalues
from sharpnb.lab import models
from sharpnb.lab.claims import t95
from sharpnb.lab.data import Data, load_data, with_label_noise
from sharpnb.lab.figures import COLOURS, MARKERS
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from sharpnb.lab.training import shift_and_flip, train
from sharpnb.many.train import train_many
from sharpnb.optim import SAM

TIMES = ("epoch 1", "middle", "end")  # the paper's panels: epochs 1, 50 and 300 of 300
RULES = ("sgd", "sam")
TOP = 5  # the paper's ratio is that of the largest to the fifth eigenvalue


@dataclass(frozen=True)
class Settings:
    """One experiment: what is trained, how long, how often, and on how many images its Hessian is measured.

    Attributes:
        label: net and data in a few words, for the claims.
        data: name of the data set.
        train_size: training images.
        model: seed -> net, without BatchNorm as in the paper (section 4.2).
        steps: updates; the middle is at a sixth of them, as epoch 50 of 300.
        batch_size, lr, momentum, weight_decay: of SGD, and of SAM's base.
        rho: SAM's radius.
        seeds: number of seeds.
        many: train all members as one batched program (small nets) or one after another (large ones).
        dtype: of weights and images.
        hessian_images: training images of the Hessian's loss.
    """

    label: str
    data: str
    train_size: int | None
    model: Callable[[int], nn.Module]
    steps: int
    batch_size: int
    lr: float
    rho: float
    seeds: int
    many: bool
    momentum: float = 0.9
    weight_decay: float = 0.0
    dtype: torch.dtype = torch.float32
    hessian_images: int = 10_000


# lr = 0.1 and rho = 0.2 are taken over from a survey made before this notebook (a wider MLP, 300 digits, rho from 0.1
# to 0.5: test error below SGD's at each of them, collapse from rho = 1 on); nothing was tuned here.
QUICK = Settings("MLP, digits", "digits", 500, lambda seed: models.mlp((64, 24, 10), seed=seed), steps=600,
                 batch_size=64, lr=0.1, rho=0.2, seeds=8, many=True, dtype=torch.float64)
# The paper's net is WRN-40-10, 300 epochs of batch 256, rho = 0.05: `replace(FULL, steps=300 * 195)` is that schedule.
FULL = Settings("WRN-16-2, CIFAR-10, 10 epochs", "cifar10", None,
                lambda seed: models.wide_resnet(16, 2, norm=False, seed=seed), steps=10 * 195, batch_size=256, lr=0.1,
                rho=0.05, seeds=2, many=False, weight_decay=5e-4, hessian_images=1000)
TOY = Settings("WRN-10-1, digits", "digits", 200,
               lambda seed: models.wide_resnet(10, 1, channels=1, norm=False, seed=seed), steps=12, batch_size=64,
               lr=0.02, rho=0.05, seeds=2, many=False, weight_decay=5e-4, hessian_images=64)


def settings(profile: str) -> Settings:
    """Return the settings of a profile."""
    return {"quick": QUICK, "full": FULL, "toy": TOY}[profile]


def times(s: Settings) -> dict[int, str]:
    """Map the steps at which the Hessian is measured to their names."""
    images = s.train_size or 50_000
    return {max(1, images // s.batch_size): TIMES[0], s.steps // 6: TIMES[1], s.steps: TIMES[2]}


def data_of(s: Settings, noise: float = 0.0) -> Data:
    """Load the experiment's data, with a share of wrong training labels where asked for."""
    data = load_data(s.data, train_size=s.train_size, dtype=s.dtype)
    return with_label_noise(data, noise) if noise else data


def operator(
    model: nn.Module, data: Data, s: Settings, weights: Tensor | None = None, mode: Any = "eval"
) -> HessianOperator:
    """Return the Hessian of the mean cross-entropy over the training images, at ``weights`` (flat) if given."""
    if weights is not None:
        nn.utils.vector_to_parameters(weights.to(next(model.parameters()).device), model.parameters())
    device = next(model.parameters()).device
    x, y = (part[: s.hessian_images].to(device) for part in data.train)
    chunks = list(zip(x.split(1000), y.split(1000), strict=True))
    return HessianOperator(model, F.cross_entropy, chunks[0] if len(chunks) == 1 else chunks, mode=mode)


def run(
    s: Settings, nb: Notebook, noise: float = 0.0, work: Work | None = None
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], Tensor]]:
    """Train SGD and SAM for every seed and measure λ1 … λ5 at the three times.

    Returns:
        One row a rule, seed and time: the eigenvalues, their ratio, and loss and error of the finished net; and the
        weights of seed 0 at each (rule, step).
    """
    data, rows, kept = nb.uses(data_of(s, noise)), [], {}
    work = work or Work(nb)
    if s.many:
        made = [_measured(s, nb, data, *one) for one in _together(s, data, nb)]
    else:
        made = [work.do(rule, partial(_alone, s, data, nb, rule, seed), seed=seed)
                for seed in range(s.seeds) for rule in RULES]
    for piece in made:
        rows += piece["rows"]
        first = piece["rows"][0]
        if first["seed"] == 0:
            kept |= {(first["rule"], row["step"]): w for row, w in zip(piece["rows"], piece["weights"], strict=True)}
    return rows, kept


def _base(s: Settings) -> dict[str, float]:
    return {"lr": s.lr, "momentum": s.momentum, "weight_decay": s.weight_decay}


def _together(
    s: Settings, data: Data, nb: Notebook
) -> Iterator[tuple[str, int, dict[int, Tensor], dict[str, float]]]:
    """Yield rule, seed, weights at the three times and the last row of the learning curve, trained as one program."""
    keep = tuple(times(s))
    configs = [{"rule": "sgd", "seed": seed, **_base(s)} for seed in range(s.seeds)]
    configs += [{"rule": "sam", "seed": seed, "rho": s.rho, **_base(s)} for seed in range(s.seeds)]
    many = train_many(configs, data, s.model, steps=s.steps, batch_size=s.batch_size, keep=keep, dtype=s.dtype,
                      device=str(nb.device))
    for k, (config, final) in enumerate(zip(configs, many.final(), strict=True)):
        yield config["rule"], config["seed"], {step: many.kept[step][k] for step in keep}, final


def _alone(s: Settings, data: Data, nb: Notebook, rule: str, seed: int) -> dict[str, Any]:
    """Train one net by itself and measure it: a piece of the full profile."""
    augment = shift_and_flip(4 if s.data == "cifar10" else 1, flip=s.data == "cifar10")
    model = s.model(seed).to(nb.device, s.dtype)
    optimizer, on_gpu = torch.optim.SGD(model.parameters(), **_base(s)), nb.device.type == "cuda"
    if rule == "sam":
        optimizer = SAM(optimizer, rho=s.rho, model=model, skip_nonfinite=not on_gpu)  # does not wait for the host
    history = train(model, data, optimizer, steps=s.steps, batch_size=s.batch_size, seed=seed, augment=augment,
                    device=nb.device, keep=tuple(times(s)), bf16=nb.bf16, graphs=True)
    return _measured(s, nb, data, rule, seed, history.weights, history.rows[-1])


def _measured(
    s: Settings, nb: Notebook, data: Data, rule: str, seed: int, weights: dict[int, Tensor], final: dict[str, float]
) -> dict[str, Any]:
    """Return the ``rows`` of one net, and its ``weights`` at the three times, (3, n)."""
    model, rows = s.model(seed).to(nb.device, s.dtype), []
    for step, name in times(s).items():
        values = top_eigenvalues(operator(model, data, s, weights[step]), TOP).values.tolist()
        rows.append({"rule": rule, "seed": seed, "time": name, "step": step, "ratio": values[0] / values[-1],
                     **{f"lambda_{i + 1}": value for i, value in enumerate(values)},
                     "train_loss": final["train_loss"], "test_error": final["test_error"]})
    return {"rows": rows, "weights": torch.stack([weights[step] for step in times(s)])}


def rows_of(
    s: Settings, nb: Notebook, name: str, noise: float = 0.0
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], Tensor]]:
    """Run and record an experiment; the full profile returns a finished record instead of training again."""
    kept: dict[tuple[str, int], Tensor] = {}

    def make(work: Work) -> dict[str, Any]:
        rows, weights = run(s, nb, noise, work)
        kept.update(weights)
        return {"rows": rows}

    return nb.recorded(name, make, of={**vars(s), "noise": noise}, rtol=2e-2)["rows"], kept


def paired(rows: list[dict[str, Any]], time: str, column: str, how: Callable[[float, float], float]) -> list[float]:
    """Return how(SGD's value, SAM's value) for each seed at one time."""
    at = {(row["rule"], row["seed"]): row[column] for row in rows if row["time"] == time}
    return [how(at["sgd", seed], at["sam", seed]) for seed in sorted({seed for _, seed in at})]


def change(rows: list[dict[str, Any]], rule: str, column: str, first: str, last: str) -> list[float]:
    """Return log10(value at ``last`` / value at ``first``) for each seed of one rule."""
    at = {(row["time"], row["seed"]): row[column] for row in rows if row["rule"] == rule}
    return [float(np.log10(at[last, seed] / at[first, seed])) for seed in sorted({seed for _, seed in at})]


def draw_over_training(ax: Any, table: pd.DataFrame, column: str) -> None:
    """Draw a column at the three times for both rules: mean, each seed as a dot, and from three on a 95 % interval."""
    for offset, rule in ((-0.08, "sgd"), (0.08, "sam")):
        own = table[table["rule"] == rule]
        part = own.groupby("time", sort=False)[column].agg(["mean", "sem", "count"]).loc[list(TIMES)]
        half = (t95(part["count"]) * part["sem"]).where(part["count"] > 2)
        ax.errorbar(np.arange(3) + offset, part["mean"], half, fmt=MARKERS[rule] + "-", color=COLOURS[rule], capsize=3,
                    ms=6, label=rule.upper())
        ax.plot(own["time"].map(TIMES.index) + 2.2 * offset, own[column], ".", color=COLOURS[rule], ms=3, alpha=0.6)
    ax.set_xticks(range(3), TIMES)


@dataclass(frozen=True)
class Both:
    """A spectrum twice: by quadrature and exactly."""

    estimated: SpectralDensity
    exact: np.ndarray


def quadrature_and_dense(s: Settings, data: Data, weights: Tensor, seed: int = 0) -> Both:
    """Return the quadrature's spectrum of one net beside the eigenvalues of its dense Hessian, (n,), ascending."""
    op = operator(s.model(0).to(s.dtype), data, s, weights)
    return Both(spectral_density(op, seed=seed), torch.linalg.eigvalsh(op.to_dense()).numpy())


def batchnorm(nb: Notebook, seeds: int = 4, steps: int = 400, top: int = 10) -> list[dict[str, Any]]:
    """Train a deep MLP with and without BatchNorm and measure what Ghorbani et al. (ICML 2019) state.

    Returns:
        One row a net, seed and time: the ten largest eigenvalues (as many as there are classes), their ratio
        λ1/λ10, and the share of the squared gradient that lies in their eigenspace. The net with BatchNorm is measured
        as it is trained, with the statistics of the batch, which is here the whole training set.
    """
    data = nb.uses(load_data("digits", train_size=500, dtype=torch.float64))
    measured = {500 // 64: TIMES[0], steps // 6: TIMES[1], steps: TIMES[2]}
    rows = []
    for norm in (False, True):
        for seed in range(seeds):
            model = models.mlp((64, 24, 24, 24, 10), norm=norm, seed=seed).double()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            history = train(model, data, optimizer, steps=steps, seed=seed, device="cpu", keep=tuple(measured))
            for step, name in measured.items():
                op = operator(model, data, QUICK, history.weights[step], "batch_stats" if norm else "eval")
                found, g = top_eigenvalues(op, top, tol=1e-3), op.gradient()
                share = (found.vectors.T @ g).square().sum() / g.square().sum()
                rows.append({"net": "BatchNorm" if norm else "no BatchNorm", "seed": seed, "time": name, "step": step,
                             "lambda_1": found.values[0], "ratio": found.values[0] / found.values[-1],
                             "gradient_share": share.item(), "values": found.values.tolist()})
    return rows
