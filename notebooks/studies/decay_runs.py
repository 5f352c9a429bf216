"""Trainings of the AdamW paper's notebooks: one list of settings, at once on small nets or one by one on large ones."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sharpnb.lab import Data, Notebook, load_data, t95, train, train_many, with_label_noise
from sharpnb.lab.augment import Augment
from sharpnb.lab.claims import Regime
from sharpnb.lab.pieces import Work
from sharpnb.many.schedules import Schedule, schedule_of
from sharpnb.optim import SGDW, AdamW
from sharpnb.optim.schedules import CosineRestarts, normalized_weight_decay
from studies.trials import Rows, best, edges

Config = Mapping[str, Any]

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD, "sgdw": SGDW, "adam": torch.optim.Adam, "adamw": AdamW,
}
_OPTIONS = ("lr", "momentum", "weight_decay")
MEASURES = ("train_loss", "train_error", "test_error")
AXES = ("lr", "weight_decay", "lambda_norm")  # what is tuned
_KEPT = ("method", "seed", *AXES)  # what tells rows apart; records stay small
TUNING = range(100, 103)  # the seeds of all tuning; no judging seed is among them
GUESSING = 90.0  # percent; as much as a diverged run counts


@dataclass(frozen=True)
class World:
    """What is trained, and on what: ``model`` is seed -> net, ``label_noise`` the share of wrong training labels.

    ``many``: train all settings as batched programs (small nets) or one after another (large ones).
    """

    label: str
    data: str
    train_size: int | None
    model: Callable[[int], nn.Module]
    batch_size: int
    label_noise: float = 0.0
    augment: Augment | None = None
    dtype: torch.dtype = torch.float32
    many: bool = True

    def images(self, seed: int) -> Data:
        """Return the clean data of a seed."""
        return load_data(self.data, train_size=self.train_size, seed=seed, dtype=self.dtype)


def held_out(data: Data, seed: int) -> Data:
    """Return data to tune on: other signals of ``mnist1d`` for a test set; digits have no more images than they are."""
    if data.name != "mnist1d":
        return data
    other = load_data("mnist1d", train_size=4000, seed=10_000 + seed, dtype=data.train_x.dtype)
    return replace(data, test_x=other.train_x, test_y=other.train_y)


def images(world: World, nb: Notebook, configs: Sequence[Config], tuning: bool = False) -> list[Data]:
    """Return each setting's clean data, noted for the provenance; for ``tuning`` see :func:`held_out`."""
    own = world.data in ("digits", "mnist1d")
    first = min(config["seed"] for config in configs)
    seeds = [config["seed"] if own else first for config in configs]
    sets = {seed: nb.uses(world.images(seed)) for seed in sorted(set(seeds))}
    sets = {seed: held_out(data, seed) for seed, data in sets.items()} if tuning else sets
    return [sets[seed] for seed in seeds]


def bare(world: World, configs: Sequence[Config]) -> list[dict[str, Any]]:
    """Return settings as :func:`sharpnb.lab.train_many` takes them, without ``method``, with the wrong labels."""
    noise = {"label_noise": world.label_noise}
    return [noise | {k: v for k, v in config.items() if k != "method"} for config in configs]


def rows_of(pairs: Iterable[tuple[Config, Mapping[str, Any]]]) -> Rows:
    """Return a row an evaluation: ``method``, ``seed``, ``step``, the setting's rate and decay, :data:`MEASURES`."""
    return [{**{name: config[name] for name in _KEPT if name in config}, "step": int(row["step"]),
             **{name: row[name] for name in MEASURES}} for config, row in pairs]


def run(
    world: World, nb: Notebook, configs: Sequence[Config], steps: int, every: int = 0, work: Work | None = None,
    label: str = "", tuning: bool = False,
) -> Rows:
    """Train every setting for so many steps, evaluate each so many (0: at the end alone), and return :func:`rows_of`.

    Settings are as :func:`sharpnb.lab.train_many` takes them, of the rules sgd, sgdw, adam and adamw, with ``method``
    beside, a name for the tables. For ``work`` that is kept those of one seed are a piece with this ``label``.
    ``tuning`` is on data that is :func:`held_out`.
    """
    if work and work.settings is not None:
        seeds = sorted({config["seed"] for config in configs})
        parts = [[config for config in configs if config["seed"] == seed] for seed in seeds]
        return [row for seed, part in zip(seeds, parts, strict=True) for row in work.do(
            label, lambda part=part: {"rows": run(world, nb, part, steps, every, tuning=tuning)}, seed=seed,
            steps=steps, members=[dict(config) for config in part])["rows"]]
    data, same = images(world, nb, configs, tuning), {"steps": steps, "batch_size": world.batch_size,
                                                      "augment": world.augment, "evaluate_every": every}
    if world.many:
        many = train_many(bare(world, configs), data, world.model, dtype=world.dtype, device=str(nb.device), **same)
        return rows_of((configs[row["member"]], row) for row in many.rows)
    found = []
    for config, own in zip(configs, data, strict=True):  # with the classes of torch.optim and sharpnb.optim
        seed = config["seed"]
        own = with_label_noise(own, world.label_noise, seed) if world.label_noise else own
        model = world.model(seed).to(nb.device, world.dtype)
        optimizer, eta = optimizer_of(model, config, steps)
        history = train(model, own, optimizer, schedule=eta, seed=seed, device=nb.device, bf16=nb.bf16, graphs=True,
                        **same)
        found += [(config, row) for row in history.rows]
    return rows_of(found)


def optimizer_of(model: nn.Module, config: Config, steps: int) -> tuple[torch.optim.Optimizer, Schedule]:
    r"""Return a setting's optimizer over the model's parameters, and its schedule for :func:`sharpnb.lab.train`.

    With ``lambda_norm`` the decay is renewed before each step, :math:`\lambda_{norm}/\sqrt{T}` with T the steps in all,
    or in the current period of restarts.
    """
    options = {name: config[name] for name in _OPTIONS if name in config}
    optimizer = _CLASSES[config["rule"]](model.parameters(), **options)
    eta, period = schedule_of(config.get("schedule", "cosine")) if config.get("schedule") != "restarts" else None, None
    if eta is None:
        restarts = CosineRestarts(torch.optim.SGD([torch.zeros(1)], lr=1.0), config["t_0"], config.get("t_mult", 2))
        eta, period = (lambda done: restarts.eta(round(done * steps))), lambda step: restarts.period(step)[1]
    if "lambda_norm" in config:
        count = itertools.count()

        def renew(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            length = steps if period is None else period(next(count))
            for group in optimizer.param_groups:
                group["weight_decay"] = normalized_weight_decay(config["lambda_norm"], 1, 1, length)

        optimizer.register_step_pre_hook(renew)
    return optimizer, eta


@dataclass(frozen=True)
class Tuned:
    """What a method's tuning has chosen: its values of :data:`AXES` with the lowest mean test error, that in percent.

    Of so many ``trials``; ``edge`` names the axes at whose end the values lie, where no decay at all is no end.
    """

    setting: dict[str, float]
    error: float
    trials: int
    edge: tuple[str, ...]


def tuned(rows: Rows) -> dict[str, Tuned]:
    """Return what each method's rows choose, a diverged run counting as one that guesses."""
    found, table = {}, pd.DataFrame(rows)
    final: Any = table if "step" not in table else table[table["step"] == table["step"].max()]
    for method, own in final.groupby("method", sort=False):
        axes = [name for name in AXES if name in own and own[name].notna().all()]
        own = own.assign(test_error=own["test_error"].fillna(GUESSING).clip(upper=GUESSING))
        errors, setting = own.groupby(axes)["test_error"].mean(), best(own, *axes)
        edge = tuple(name for name in edges(setting, own[axes].to_dict("records")) if setting[name])
        found[method] = Tuned({name: float(x) for name, x in setting.items()}, float(errors.min()), len(errors), edge)
    return found


def configs(methods: Iterable[tuple[str, Config, Any, str, Any]], seeds: Iterable[int]) -> Rows:
    """Return each method at each of its rates, decays of its kind (one or several of either), and seeds."""
    return [{"method": name, **how, "lr": lr, kind: decay, "seed": seed} for name, how, lrs, kind, decays in methods
            for lr in np.atleast_1d(lrs).tolist() for decay in np.atleast_1d(decays).tolist() for seed in seeds]


def choices(found: Mapping[str, Tuned]) -> str:
    """Return what was chosen as a table to print."""
    table = pd.DataFrame({method: {**t.setting, "error": round(t.error, 2), "trials": t.trials,
                                   "edge": " ".join(t.edge)} for method, t in found.items()}).T
    return table.reindex(columns=[*(name for name in AXES if name in table), "error", "trials", "edge"]).to_string()


def at(rows: Rows, method: str, step: int, column: str = "test_error") -> np.ndarray:
    """Return a method's values at a step, one a seed, in the order of the seeds."""
    found = {row["seed"]: row[column] for row in rows if row["method"] == method and row["step"] == step}
    return np.array([found[seed] for seed in sorted(found)])


def at_end(rows: Rows, method: str, column: str = "test_error") -> np.ndarray:
    """Return :func:`at` the last step of all."""
    return at(rows, method, max(row["step"] for row in rows), column)


def regime(rows: Rows, baseline: str, twice: float | None = None) -> Regime:
    """Return what the baseline reaches; its training error is not known of older records."""
    known = all("train_error" in row for row in rows)
    return Regime(float(at_end(rows, baseline, "train_error").mean()) if known else None,
                  float(at_end(rows, baseline).mean()), twice)


def band(ax: Any, each: pd.DataFrame, label: str, look: dict[str, Any]) -> None:
    """Draw the mean over the columns, one a seed, with its 95 % Student interval; two seeds as dots instead."""
    n, mean = each.shape[1], each.mean(axis=1)
    ax.plot(each.index, mean, label=label, **look)
    if n < 3:
        ax.plot(each.index, each, ".", color=look["color"], ms=4, alpha=0.6)
        return
    half = t95(n) * each.std(axis=1, ddof=1) / np.sqrt(n)
    ax.fill_between(each.index, mean - half, mean + half, color=look["color"], alpha=0.2, lw=0)
