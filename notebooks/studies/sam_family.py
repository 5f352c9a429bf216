"""Notebook 09: SGD, Adam, SAM and its relatives at equal tuning budgets; what each costs; a transformer trained on."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb import optim
from sharpnb.lab import Notebook, models
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.figures import COLOURS, MARKERS
from sharpnb.lab.pieces import Work
from studies import comparison
from studies.common import half_width
from studies.comparison import Config, Method, Setting, Trials
from studies.families import tiny_vit
from studies.trials import grid

# Twelve trials of each. The learning rate and decay of SGD are kept by all that stands on it. As in the WSAM paper, its
# γ and GSAM's α are tuned at the radius of the tuned SAM (or ASAM, or Fisher SAM). ESAM, which collapses there, tunes
# its own radius, and its share of samples, which above 0.6 would save nothing. The ranges hold the papers', and go on
# until the best point is inside.
_RADII = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0)
_GAMMAS = (0.1, 0.3, 0.4, 0.6, 0.7, 0.8, 0.84, 0.88, 0.9, 0.92, 0.94, 0.96)  # not 1/2, where the coupled form is SAM
_BASE = ("lr", "weight_decay", "momentum")
_ON_SAM: dict[str, Any] = {"on": "SAM", "keeps": (*_BASE, "rho")}
METHODS = {
    "SGD": Method({"rule": "sgd", "momentum": 0.9}, grid(lr=(0.4, 0.6, 0.8), weight_decay=(2e-4, 5e-4, 1e-3, 2e-3))),
    "SAM": Method({"rule": "sam"}, grid(rho=_RADII), "SGD", _BASE),
    "ESAM": Method({"rule": "esam", "beta": 0.5}, grid(rho=(0.02, 0.05, 0.1, 0.2), gamma=(0.4, 0.5, 0.6)), "SGD",
                   _BASE),
    "GSAM": Method({"rule": "gsam"}, grid(alpha=(0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5)),
                   **_ON_SAM),
    "WSAM": Method({"rule": "wsam"}, grid(gamma=_GAMMAS), **_ON_SAM),
    "ASAM": Method({"rule": "asam"}, grid(rho=(0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0, 5.0)), "SGD",
                   _BASE),
    "ASAM + WSAM": Method({"rule": "wsam", "perturbation": "asam"}, grid(gamma=_GAMMAS), "ASAM", (*_BASE, "rho")),
    "Fisher SAM": Method({"rule": "fisher_sam"}, grid(rho=_RADII), "SGD", _BASE),
    "Fisher SAM + WSAM": Method({"rule": "wsam", "perturbation": "fisher"}, grid(gamma=_GAMMAS), "Fisher SAM",
                                (*_BASE, "rho")),
}
TWICE = "SGD, twice as long"  # with SGD's trials
COUPLED = "WSAM, coupled"  # through the momentum, at the γ of the decoupled form
FLAT = ("SGD", "SAM", "WSAM")  # whose largest eigenvalue is measured

_ADAMW: dict[str, Any] = {"base": "adamw_torch"}
_RATE = ("lr", "weight_decay")
TRAINED_ON = {
    "AdamW": Method({"rule": "adamw_torch"}, grid(lr=(1e-3, 3e-3, 1e-2), weight_decay=(0.05, 0.3, 1.0, 3.0))),
    # 5.5 is the paper's radius for DeiT-Base
    "SAM": Method({"rule": "sam", **_ADAMW}, grid(rho=(*_RADII[:-1], 5.5)), "AdamW", _RATE),
    "GSAM": Method({"rule": "gsam", **_ADAMW}, METHODS["GSAM"].grid, "SAM", (*_RATE, "rho")),
    "WSAM": Method({"rule": "wsam", **_ADAMW}, grid(gamma=_GAMMAS), "SAM", (*_RATE, "rho")),
}


@dataclass(frozen=True)
class Study:
    """One profile: net, label noises, the seeds of judging and tuning, and the transformer's training before."""

    net: Setting
    noises: tuple[float, ...]
    seeds: int | range
    tuning: range
    vit: Setting
    pretraining: int
    lr: float
    weight_decay: float
    sgd: tuple[Config, ...] = METHODS["SGD"].grid
    trials: int = 12

    def methods(self, of: Mapping[str, Method] = METHODS) -> dict[str, Method]:
        """Return the methods with the first trials of each grid, SGD's being the study's own."""
        grids = {name: self.sgd if name == "SGD" else method.grid for name, method in of.items()}
        return {name: replace(method, grid=grids[name][: self.trials]) for name, method in of.items()}

    @property
    def told(self) -> dict[str, Any]:
        """What tuning depends on."""
        return {"net": self.net, "noises": self.noises, "tuning": self.tuning, "methods": self.methods()}

    @property
    def told_of_vit(self) -> dict[str, Any]:
        """What tuning the transformer's further training depends on."""
        return {"vit": self.vit, "before": (self.pretraining, self.lr, self.weight_decay), "tuning": self.tuning,
                "methods": self.methods(TRAINED_ON)}


QUICK = Study(
    Setting("MLP 40-150-10, 2,000 signals of MNIST-1D", "mnist1d", 2000, 1000,
            lambda seed: models.mlp((40, 150, 10), seed=seed), steps=640, batch_size=100),
    (0.0,), seeds=range(2000, 2020), tuning=range(100, 110),
    vit=Setting("tiny ViT, 300 digits", "digits", 300, 400, lambda seed: tiny_vit(patch=4, seed=seed), steps=40,
                batch_size=32),
    pretraining=240, lr=1e-2, weight_decay=0.05,
)
_EPOCH = 78  # updates of 10,000 images in batches of 128
# Cut to the budget. Before: ResNet-20, 45,000 images, 200 epochs, 5 seeds; a ViT of 6 blocks of width 96.
FULL = Study(
    Setting("ResNet-8 of width 8, 10,000 images of CIFAR-10, 10 epochs", "cifar10", 10_000, 2000,
            lambda seed: models.resnet(8, width=8, norm=False, seed=seed), steps=10 * _EPOCH, batch_size=128,
            augment=shift_and_flip(4, flip=True), bf16=True, together=64),
    (0.0, 0.2), seeds=5, tuning=range(100, 102),
    vit=Setting("small ViT, 10,000 images of CIFAR-10", "cifar10", 10_000, 2000,
                lambda seed: tiny_vit(size=32, patch=8, channels=3, width=48, depth=3, heads=3, seed=seed),
                steps=2 * _EPOCH, batch_size=128, augment=shift_and_flip(4, flip=True)),
    pretraining=20 * _EPOCH, lr=1e-3, weight_decay=0.05,
    sgd=grid(lr=(0.05, 0.1, 0.2, 0.4), weight_decay=(1e-4, 5e-4, 1e-3)),
)
_TOY = Setting("CNN, digits", "digits", 64, 64, lambda seed: models.cnn(2, seed=seed), steps=4, batch_size=32,
               images=64, augment=shift_and_flip(1, flip=False))
TOY = replace(FULL, net=_TOY, seeds=2, tuning=range(100, 102), trials=2, pretraining=4,
              vit=replace(QUICK.vit, train_size=64, validation=64, steps=2, images=64))


def of_noise(trials: Trials, noise: float) -> list[Mapping[str, Any]]:
    """Return the trials with this share of wrong labels."""
    return [row for row in trials if row["noise"] == noise]


def tune(study: Study, device: torch.device, work: Work) -> list[Config]:
    """Tune every method with the tuning seeds, for each label noise by itself; SGD also for twice the steps."""
    rows, methods = [], study.methods()
    for noise in study.noises:
        s = replace(study.net, noise=noise)
        rows += comparison.tune(s, methods, study.tuning, device, work)
        rows += comparison.tune(replace(s, steps=2 * s.steps), {TWICE: methods["SGD"]}, study.tuning, device, work)
    return rows


def judge(study: Study, trials: Trials, seeds: Sequence[int], nb: Notebook, work: Work) -> pd.DataFrame:
    """Train tuned methods, and WSAM coupled at the same γ: a row a noise, method and seed, λmax of :data:`FLAT`."""
    tables = []
    for noise in study.noises:
        s, own = replace(study.net, noise=noise), of_noise(trials, noise)
        configs = {name: comparison.best(own, name)["config"] for name in study.methods()}
        configs[COUPLED] = configs["WSAM"] | {"decouple": False}
        table, weights, images = comparison.judge(s, configs, seeds, nb.device, work)
        nb.uses(images[seeds[0]].data)
        table["lambda_max"] = comparison.lambdas(s, table, weights, images, table["method"].isin(FLAT), nb)
        longer = {TWICE: comparison.best(own, TWICE)["config"]}
        tables += [table, comparison.judge(replace(s, steps=2 * s.steps), longer, seeds, nb.device, work)[0]]
    return pd.concat(tables, ignore_index=True)


def recorded(nb: Notebook, name: str, make: Callable[[Work], pd.DataFrame], of: Any) -> pd.DataFrame:
    """Make and record a table; a finished record of the full profile is read instead."""
    def values(work: Work) -> dict[str, Any]:
        table = make(work)
        return table.astype(object).where(table.notna(), None).to_dict("list")

    return pd.DataFrame(nb.recorded(name, values, of=of, rtol=5e-2, atol=3.0))


def optimizer_of(config: Mapping[str, Any], net: nn.Module) -> torch.optim.Optimizer:
    """Return the :mod:`sharpnb.optim` class of a configuration, on SGD with momentum or on Adam."""
    decay = {"lr": config["lr"], "weight_decay": config["weight_decay"]}
    if "adam" in (config["rule"], config.get("base")):
        base: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), **decay)
    else:
        base = torch.optim.SGD(net.parameters(), momentum=0.9, **decay)
    own = {k: config[k] for k in ("rho", "gamma", "beta", "alpha", "k", "decouple", "perturbation") if k in config}
    kinds = {"sam": optim.SAM, "esam": optim.ESAM, "looksam": optim.LookSAM, "gsam": optim.GSAM, "wsam": optim.WSAM,
             "asam": optim.ASAM, "fisher_sam": optim.FisherSAM}
    return kinds[config["rule"]](base, **own) if config["rule"] in kinds else base


class Meter:
    """Counts the images that pass ``forward`` and ``backward`` while an optimizer class trains a net."""

    def __init__(self, config: Mapping[str, Any], model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.forward = self.backward = 0
        self.model, self.x, self.y = model, x, y
        self.optimizer, self.by_sample = optimizer_of(config, model), config["rule"] == "esam"
        model.register_forward_hook(self._passed)

    def _passed(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.forward += len(output)
        if output.requires_grad:
            output.register_hook(self._returned)

    def _returned(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    def step(self) -> None:
        """Make one update."""
        def losses(rows: Tensor | None = None) -> Tensor:
            x, y = (self.x, self.y) if rows is None else (self.x[rows], self.y[rows])
            return F.cross_entropy(self.model(x), y, reduction="none" if self.by_sample else "mean")

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = losses()
            loss.backward()
            return loss

        self.optimizer.step(losses if self.by_sample else closure)  # type: ignore[arg-type]


def cost(config: Mapping[str, Any], net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return gradients a step, counted: a forward pass is a third of a gradient, a backward pass two thirds.

    Averaged over 20 steps, a multiple of every period of LookSAM's grid.
    """
    meter, steps = Meter(config, net, x, y), 20
    for _ in range(steps):
        meter.step()
    return (meter.forward + 2 * meter.backward) / (3 * len(x) * steps)


def step_times(
    configs: Mapping[str, Config], net: Callable[[], nn.Module], x: Tensor, y: Tensor, rounds: int = 15
) -> dict[str, float]:
    """Return the time of a step over that of the first configuration: median of rounds of ten steps, in turns."""
    meters = {name: Meter(config, net(), x, y) for name, config in configs.items()}
    taken: dict[str, list[float]] = {name: [] for name in meters}
    for _ in range(rounds):
        for name, meter in meters.items():
            start = time.perf_counter()
            for _ in range(10):
                meter.step()
            taken[name].append(time.perf_counter() - start)
    first = np.array(next(iter(taken.values())))
    return {name: float(np.median(np.array(values) / first)) for name, values in taken.items()}


def finished(study: Study, seeds: Sequence[int], device: torch.device, work: Work) -> tuple[pd.DataFrame, Setting]:
    """Train a ViT a seed with AdamW; return what it came to, and the setting that goes on from there."""
    s, own = study.vit, {"rule": "adamw_torch", "lr": study.lr, "weight_decay": study.weight_decay}
    table, weights, _ = comparison.judge(replace(s, steps=study.pretraining), {"start": own}, seeds, device, work)
    start = dict(zip(seeds, weights, strict=True))
    return table, replace(s, model=lambda seed: comparison.net_at(s, start.get(seed, weights[0])))


def tune_vit(study: Study, device: torch.device, work: Work) -> list[Config]:
    """Tune what goes on from finished nets: AdamW's rate and decay, then SAM's radius, then α and γ at that radius."""
    going_on = finished(study, study.tuning, device, work)[1]
    return comparison.tune(going_on, study.methods(TRAINED_ON), study.tuning, device, work)


def judge_vit(study: Study, trials: Trials, seeds: Sequence[int], nb: Notebook, work: Work) -> pd.DataFrame:
    """Go on from nets of the judging seeds with each tuned method; ``"start"`` is where all go on from."""
    start, going_on = finished(study, seeds, nb.device, work)
    configs = {name: comparison.best(trials, name)["config"] for name in TRAINED_ON}
    table, _, images = comparison.judge(going_on, configs, seeds, nb.device, work)
    nb.uses(images[seeds[0]].data)
    return pd.concat([start, table], ignore_index=True)


def role_of(method: str) -> str:
    """Return the role that a method's colour and marker have."""
    kind = "wsam" if "WSAM" in method else "sam"
    return "sgd" if method.startswith("SGD") else "adam" if method == "Adam" else kind


def draw_ranking(study: Study, table: pd.DataFrame) -> tuple[Any, pd.DataFrame]:
    """Draw each method's test error, the best on top, and what it gains on SAM, with 95 %; return figure and data."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(len(study.noises), 2, figsize=(10, 4 * len(study.noises)), squeeze=False)
    drawn = []
    for row, noise in zip(axes, study.noises, strict=True):
        part = table[table["noise"] == noise]
        errors = part.groupby("method")["test_error"].mean().sort_values()
        n = part["seed"].nunique()
        for height, method in enumerate(map(str, errors.index)):
            values = part[part["method"] == method]["test_error"].to_numpy(), comparison.gap(part, "SAM", method)
            for ax, own in zip(row, values, strict=True):
                half, role = half_width(own), role_of(method)
                ax.errorbar(own.mean(), height, xerr=half, fmt=MARKERS[role], color=COLOURS[role], ms=6, capsize=2)
                drawn.append((noise, method, own.mean(), half))
        row[0].set_yticks(range(len(errors)), errors.index)
        row[1].set_yticks(range(len(errors)), [])
        row[1].axvline(0, color=COLOURS["grey"], lw=1)
        row[0].set(xlabel="test error (%)", title=f"{noise:.0%} wrong labels, n = {n}")
        row[1].set(xlabel="points gained on SAM, paired by seed", title="right of the line: better than SAM")
        for ax in row:
            ax.invert_yaxis()
    return figure, pd.DataFrame(drawn, columns=["noise", "method", "mean", "half width"])
