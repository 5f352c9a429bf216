r"""Methods compared fairly: equally many trials each, tuned on held-out data and tuning seeds, judged on other seeds.

A *method* has some *trials* (settings of its hyperparameters); each is trained with every tuning seed, and that of
lowest mean held-out error is the method's. It alone is trained with the judging seeds. A seed draws the images, the
wrong labels, the initial weights and the batches, and is the same for all methods: differences are paired.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.curvature import HessianOperator, top_eigenvalues
from sharpnb.lab import Data, Notebook, load_data, train_many, with_label_noise
from sharpnb.lab.augment import Augment
from sharpnb.lab.claims import Regime
from sharpnb.lab.pieces import Work, described, even
from sharpnb.lab.verdicts import paired
from sharpnb.many.net import BatchedNet, evaluate_many
from studies.common import half_width
from studies.trials import edges as at_ends

TOLD = ("method", "trial", "noise")  # entries of a configuration that say what it is and are none of the training's
MEASURED = ("val_error", "test_error", "train_error", "train_loss")
GUESSING = 90.0  # percent: the error of a constant answer among ten classes
Config = dict[str, Any]
Trials = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """What is trained, and on what: ``model`` is seed -> net, ``noise`` the share of wrong training labels.

    ``validation`` further images, of right labels, are held out for tuning; ``images`` are those of the Hessian's loss;
    ``together`` members are trained as one batched program.
    """

    label: str
    data: str
    train_size: int
    validation: int
    model: Callable[[int], nn.Module]
    steps: int
    batch_size: int
    noise: float = 0.0
    dtype: torch.dtype = torch.float32
    together: int = 40
    augment: Augment | None = None
    images: int = 1000
    bf16: bool = False


@dataclass(frozen=True)
class Method:
    """A method and what is tried of it: its ``fixed`` settings, and those it ``keeps`` of the tuned method ``on``."""

    fixed: Config
    grid: tuple[Config, ...]
    on: str = ""
    keeps: tuple[str, ...] = ()


@dataclass(frozen=True)
class Split:
    """The images of one seed: ``data`` to train and test on, ``held_out`` (images, labels) to tune on."""

    data: Data
    held_out: tuple[Tensor, Tensor]


def splits(s: Setting, seeds: Iterable[int]) -> dict[int, Split]:
    """Return the images of each seed; of the larger data sets a seed moves the wrong labels alone."""
    found, n, whole = {}, s.train_size, None
    for seed in seeds:
        if whole is None or s.data in ("digits", "mnist1d"):
            whole = load_data(s.data, train_size=n + s.validation, seed=seed, dtype=s.dtype)
        data = replace(whole, train_x=whole.train_x[:n], train_y=whole.train_y[:n])
        data = with_label_noise(data, s.noise, seed) if s.noise else data
        found[seed] = Split(data, (whole.train_x[n:], whole.train_y[n:]))
    return found


def run(
    s: Setting, configs: Sequence[Mapping[str, Any]], images: Mapping[int, Split], device: torch.device,
    work: Work | None = None, label: str = "",
) -> tuple[pd.DataFrame, Tensor]:
    """Train every configuration, as :func:`sharpnb.lab.train_many` takes them, with entries of :data:`TOLD` beside.

    In the full profile ``together`` members each are a piece of ``work`` with this ``label``.

    Returns:
        A table with a row a configuration, its entries and :data:`MEASURED` (percent, nats; of training on the labels
        that it was given); and the final weights, (K, n). What left the finite numbers has a constant answer's errors.
    """
    def make(part: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        own = [images[config["seed"]] for config in part]
        bare = [{k: v for k, v in config.items() if k not in TOLD} for config in part]
        many = train_many(bare, [split.data for split in own], s.model, steps=s.steps, batch_size=s.batch_size,
                          augment=s.augment, dtype=s.dtype, bf16=s.bf16, device=str(device), chunk=s.together)
        held_out = _validation_errors(s, many.weights, own, device)
        lost = dict.fromkeys(MEASURED[:3], GUESSING) | {"train_loss": math.nan}
        rows = [{**config, **({"val_error": error} | {name: final[name] for name in MEASURED[1:]}
                              if w.isfinite().all() else lost)}
                for config, w, error, final in zip(part, many.weights, held_out, many.final(), strict=True)]
        return {"rows": rows, "weights": many.weights}

    size = len(configs) if work is None or not work.nb.full else even(len(configs), s.together)[1]
    told = described(s)
    parts = [configs[k : k + size] for k in range(0, len(configs), size)]
    made = [make(part) if work is None else work.do(label, partial(make, part), number=number, setting=told,
                                                    members=described(part)) for number, part in enumerate(parts)]
    return pd.DataFrame([row for piece in made for row in piece["rows"]]), torch.cat([p["weights"] for p in made])


def net_at(s: Setting, w: Tensor, device: torch.device | str = "cpu") -> nn.Module:
    """Return the setting's net with flat weights ``w``."""
    net = s.model(0).to(device, s.dtype)
    nn.utils.vector_to_parameters(w.to(device, s.dtype), net.parameters())
    return net


def _validation_errors(s: Setting, w: Tensor, own: Sequence[Split], device: torch.device) -> list[float]:
    net = BatchedNet(s.model(0).to(device, s.dtype), own[0].held_out[0].shape[1:])
    found = [math.nan] * len(w)
    for split in {id(split): split for split in own}.values():
        rows = [k for k, mine in enumerate(own) if mine is split]
        x, y = (part.to(device) for part in split.held_out)
        for k, error in zip(rows, evaluate_many(net, w[rows].to(device), (x, y))[1], strict=True):
            found[k] = error
    return found


def lambda_max(s: Setting, w: Tensor, data: Data, tol: float = 1e-2, device: torch.device | str = "cpu") -> float:
    """Return the largest Hessian eigenvalue of the training loss at flat weights ``w``."""
    if not w.isfinite().all():
        return float("nan")
    x, y = (part[: s.images].to(device) for part in data.train)
    op = HessianOperator(net_at(s, w, device), F.cross_entropy, (x, y), check=False)  # train_many takes no dropout
    return float(top_eigenvalues(op, 1, tol=tol, verify=False, vectors=False).values[0])


def lambdas(s: Setting, table: pd.DataFrame, weights: Tensor, images: Mapping[int, Split], chosen: Iterable[bool],
            nb: Notebook) -> list[float]:
    """Return :func:`lambda_max` of each ``chosen`` row's net, NaN of the others."""
    where = "cpu" if nb.profile == "quick" else nb.device
    return [lambda_max(s, w, images[seed].data, device=where) if wanted else math.nan
            for w, seed, wanted in zip(weights, table["seed"], chosen, strict=True)]


def tune(
    s: Setting, methods: Mapping[str, Method], seeds: Sequence[int], device: torch.device, work: Work | None = None,
    before: Trials = (),
) -> list[Config]:
    """Train each trial of each method with each tuning seed, in order: a method stands on others, or on some before.

    Returns a row a trial: ``method``, ``noise``, ``config`` (all settings), ``own`` (of its grid), means over seeds.
    """
    images, rows = splits(s, seeds), []
    for name, method in methods.items():
        base = {key: best([*before, *rows], method.on)["config"][key] for key in method.keeps}
        trials = [{**base, **method.fixed, **own} for own in method.grid]
        configs = [{"method": name, "trial": k, **own, "seed": seed} for k, own in enumerate(trials) for seed in seeds]
        means = run(s, configs, images, device, work, name)[0].groupby("trial")[[*MEASURED]].mean().round(5)
        rows += [{"method": name, "noise": s.noise, "config": config, "own": own,
                  **means.loc[k].astype(object).where(means.loc[k].notna(), None)}
                 for k, (config, own) in enumerate(zip(trials, method.grid, strict=True))]
    return rows


def best(trials: Trials, method: str) -> Mapping[str, Any]:
    """Return a method's trial of lowest mean error on held-out images, of equal ones the first."""
    return min((row for row in trials if row["method"] == method), key=lambda row: row["val_error"])


def edges(trials: Trials, method: str) -> str:
    """Return which of a method's own settings are best at an end of their grid, where that has three values or more."""
    chosen, tried = best(trials, method)["own"], [row["own"] for row in trials if row["method"] == method]
    return ", ".join(f"{name} = {chosen[name]:g}" for name in at_ends(chosen, tried, fewest=3))


def tuning(trials: Trials) -> pd.DataFrame:
    """Return the table of what was tried and chosen, by method."""
    return pd.DataFrame.from_dict({name: {
        "trials": sum(row["method"] == name for row in trials),
        "chosen": ", ".join(f"{k} = {v:g}" for k, v in best(trials, name)["own"].items()),
        "best at an end of the grid": edges(trials, name), "held-out %": best(trials, name)["val_error"],
        "training %": best(trials, name)["train_error"]} for name in dict.fromkeys(row["method"] for row in trials)},
        orient="index")


def judge(
    s: Setting, configs: Mapping[Any, Config], seeds: Sequence[int], device: torch.device, work: Work | None = None,
) -> tuple[pd.DataFrame, Tensor, dict[int, Split]]:
    """Train one setting of each method with each judging seed; return table, weights and images."""
    images = splits(replace(s, validation=1), seeds)
    rows = [{"method": name, "noise": s.noise, **config, "seed": seed} for name, config in configs.items()
            for seed in seeds]
    return (*run(s, rows, images, device, work, "judged"), images)


def gap(table: pd.DataFrame, worse: str, better: str) -> np.ndarray:
    """Return, seed by seed, the test error of method ``worse`` minus that of ``better``."""
    at = table.set_index(["method", "seed"])["test_error"]
    return paired(at[better].to_numpy(), at[worse].to_numpy(), GUESSING)


def regime(table: pd.DataFrame, baseline: str = "SGD", twice: str = "") -> Regime:
    """Return what the baseline reached with the judging seeds, and after twice the budget."""
    means = table.groupby("method")[["train_error", "test_error"]].mean().map(float)
    return Regime(*means.loc[baseline], twice=means.loc[twice, "test_error"] if twice else None)


def interval(differences: np.ndarray) -> str:
    """Return mean and half of the 95 % interval."""
    return f"{differences.mean():+.2f} ± {half_width(differences):.2f}"
