"""Notebook 09: SGD, Adam, SAM and its relatives at equal tuning budgets; what each costs; a transformer trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb import optim
from sharpnb.lab import models
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.figures import COLOURS, MARKERS
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from studies import comparison
from studies.comparison import Setting, Split
from studies.tiny_vit import tiny_vit

Config = dict[str, Any]
COLLAPSED = 30.0  # percent: a training near the edge of stability is chaos, and so are the digits of its error
TRIALS = 6  # of every method, as many as the paper's radii for SAM
RADII = (0.1, 0.2)  # the two of these where SAM's optimum lay in notebook 08, for methods with a second hyperparameter


def _grid(**values: Sequence[Any]) -> list[Config]:
    return [dict(zip(values, chosen, strict=True)) for chosen in product(*values.values())]


# The paper's learning rates and decays for SGD; Adam's rates are ours.
_SGD = {"rule": "sgd", "momentum": 0.9}
_SGD_GRID = _grid(lr=(0.05, 0.1), weight_decay=(1e-4, 5e-4, 1e-3))
VANILLA: dict[str, tuple[Config, list[Config]]] = {
    "SGD": (_SGD, _SGD_GRID),
    "SGD, twice as long": (_SGD, _SGD_GRID),
    "Adam": ({"rule": "adam"}, _grid(lr=(3e-3, 1e-2, 3e-2), weight_decay=(1e-4, 1e-3))),
}
# Six values from the paper's ranges for each (section 5.1 and Table 7); SAM's are the six. ESAM searches its two shares
# together, coupled WSAM starts where SAM is, Fisher SAM's radii begin below the paper's 0.1, where its larger ones
# only collapse; LookSAM is not in the paper.
GRIDS: dict[str, tuple[Config, list[Config]]] = {
    "SAM": ({"rule": "sam"}, _grid(rho=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5))),
    "ESAM": ({"rule": "esam"}, [{"rho": r, "beta": share, "gamma": share} for r in RADII for share in (0.4, 0.5, 0.6)]),
    "LookSAM": ({"rule": "looksam", "alpha": 0.7}, _grid(rho=RADII, k=(2, 5, 10))),
    "GSAM": ({"rule": "gsam"}, _grid(rho=RADII, alpha=(0.02, 0.1, 0.3))),
    "WSAM": ({"rule": "wsam"}, _grid(rho=RADII, gamma=(0.8, 0.88, 0.92))),
    "WSAM, coupled": ({"rule": "wsam", "decouple": False}, _grid(rho=RADII, gamma=(0.5, 0.6, 0.7))),
    "ASAM": ({"rule": "asam"}, _grid(rho=(0.1, 0.5, 1.0, 1.5, 2.0, 3.0))),
    "ASAM + WSAM": ({"rule": "wsam", "perturbation": "asam"}, _grid(rho=(0.5, 1.0), gamma=(0.8, 0.88, 0.92))),
    "Fisher SAM": ({"rule": "fisher_sam"}, _grid(rho=(0.01, 0.05, 0.1, 0.2, 0.5, 1.0))),
    "Fisher SAM + WSAM": ({"rule": "wsam", "perturbation": "fisher"}, _grid(rho=RADII, gamma=(0.8, 0.88, 0.92))),
}
# The full profile's net underfits, and then the weakest perturbation wins. Its grids were the first three of each six:
# SAM had a radius of 0.01, most others none below 0.1 (data/withdrawn.toml). These nine of each go from a perturbation
# that is as good as none to one that is too strong, so that the best point can be inside.
_WIDE, _WIDE_SGD = (0.005, 0.02, 0.1), _grid(lr=(0.05, 0.1, 0.2), weight_decay=(1e-4, 5e-4, 1e-3))
_NINE, _WEIGHTS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0), (0.5, 0.8, 0.92)
WIDE: dict[str, list[Config]] = {
    "SGD": _WIDE_SGD, "SGD, twice as long": _WIDE_SGD,
    "Adam": _grid(lr=(1e-3, 3e-3, 1e-2), weight_decay=(1e-5, 1e-4, 1e-3)),
    "SAM": _grid(rho=_NINE),
    "ESAM": [{"rho": r, "beta": share, "gamma": share} for r in _WIDE for share in (0.4, 0.5, 0.6)],
    "LookSAM": _grid(rho=_WIDE, k=(2, 5, 10)), "GSAM": _grid(rho=_WIDE, alpha=(0.02, 0.1, 0.3)),
    "WSAM": _grid(rho=_WIDE, gamma=_WEIGHTS), "WSAM, coupled": _grid(rho=_WIDE, gamma=(0.1, 0.3, 0.5)),
    "ASAM": _grid(rho=(0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0)),
    "ASAM + WSAM": _grid(rho=(0.05, 0.2, 1.0), gamma=_WEIGHTS), "Fisher SAM": _grid(rho=_NINE),
    "Fisher SAM + WSAM": _grid(rho=_WIDE, gamma=_WEIGHTS),
}
FOLLOWED = ("SGD", "Adam", "SAM", "ESAM", "LookSAM", "WSAM", "ASAM")  # also for half and for twice the steps
LENGTHS = (0.5, 2.0)
ON_ADAM = {f"Adam + {name}": GRIDS[name] for name in ("SAM", "WSAM", "WSAM, coupled")}


def methods_of(study: Study, of: Mapping[str, tuple[Config, list[Config]]]) -> dict[str, tuple[Config, list[Config]]]:
    """Return of each method what is fixed and its trials, with the study's grids."""
    wide = {name: WIDE[name.removeprefix("Adam + ")] if study.wide else grid for name, (_, grid) in of.items()}
    return {name: (fixed, wide[name][: study.trials]) for name, (fixed, _) in of.items()}


@dataclass(frozen=True)
class Study:
    """One profile: net, label noises, seeds, trials, of which grids, and the transformer's continued training."""

    net: Setting
    noises: tuple[float, ...]
    seeds: int
    vit: Setting
    pretraining: int
    lr: float
    weight_decay: float
    vit_seeds: int = 3
    trials: int = TRIALS
    wide: bool = False


QUICK = Study(
    Setting("MLP 64-16-10", "digits", 200, 400, lambda seed: models.mlp((64, 16, 10), seed=seed), steps=300,
            batch_size=32, together=64),
    (0.0, 0.2), seeds=5,
    vit=Setting("tiny ViT", "digits", 300, 400, lambda seed: tiny_vit(patch=4, seed=seed), steps=40, batch_size=32),
    pretraining=240, lr=1e-3, weight_decay=0.05,
)
_EPOCH = 78  # updates of 10,000 images in batches of 128
# Cut to the budget. Before: ResNet-20, 45,000 images, 200 epochs, 5 seeds; a ViT of 6 blocks of width 96.
FULL = Study(
    Setting("ResNet-8 of width 8, 10,000 images of CIFAR-10, 10 epochs", "cifar10", 10_000, 2000,
            lambda seed: models.resnet(8, width=8, norm=False, seed=seed), steps=10 * _EPOCH, batch_size=128,
            dtype=torch.float32, augment=shift_and_flip(4, flip=True), images=1000, bf16=True, together=64),
    (0.0, 0.2), seeds=2, trials=9, wide=True,
    vit=Setting("small ViT, 10,000 images of CIFAR-10", "cifar10", 10_000, 2000,
                lambda seed: tiny_vit(size=32, patch=8, channels=3, width=48, depth=3, heads=3, seed=seed),
                steps=2 * _EPOCH, batch_size=128, dtype=torch.float32, augment=shift_and_flip(4, flip=True)),
    pretraining=20 * _EPOCH, lr=1e-4, weight_decay=0.05, vit_seeds=2,
)
_TOY = Setting("CNN, digits", "digits", 64, 64, lambda seed: models.cnn(2, seed=seed), steps=4, batch_size=32,
               images=64, augment=shift_and_flip(1, flip=False))
TOY = replace(FULL, net=_TOY, seeds=2, trials=2, pretraining=4, lr=1e-3, vit_seeds=2,
              vit=replace(QUICK.vit, train_size=64, validation=64, steps=2, images=64))


def base_of(table: pd.DataFrame) -> dict[float, Config]:
    """Return the learning rate and decay of the chosen trial, by noise: those of all that stands on this method."""
    return {noise: {key: float(part[key].iloc[0]) for key in ("lr", "weight_decay")}
            for noise, part in _chosen(table).groupby("noise", sort=False)}


def ends(
    study: Study, nb: Notebook, work: Work, images: Mapping[float, Sequence[Split]], table: pd.DataFrame,
    weights: Tensor,
) -> list[pd.DataFrame]:
    """Return all trials and the chosen ones of a table (a row of ``weights`` a row), measured and followed.

    The chosen ones have ``lambda_max``, and ``length`` 1; with wrong labels also :data:`FOLLOWED` for half and twice
    the steps. In the quick profile the errors of trials above :data:`COLLAPSED` are that.
    """
    s, table = study.net, table.sort_values("noise", kind="stable")
    final, where = _chosen(table), "cpu" if nb.profile == "quick" else nb.device
    found = [comparison.lambda_max(s, weights[i], images[row["noise"]][int(row["seed"])].data, device=where)
             for i, row in final.iterrows()]
    final = final.assign(lambda_max=found, length=1.0)
    again = [_as_config(row) for _, row in final.iterrows() if row["method"] in FOLLOWED and row["noise"]]
    own = [images[config["noise"]][config["seed"]] for config in again]
    longer = [comparison.run(replace(s, steps=max(1, int(f * s.steps))), again, own, nb.device, work, f"length {f}")[0]
              .assign(length=f) for f in LENGTHS if again]
    trials = table[["noise", "method", "trial", "seed", "val_error", "test_error"]].reset_index(drop=True)
    if not nb.full:
        trials[["val_error", "test_error"]] = trials[["val_error", "test_error"]].clip(upper=COLLAPSED)
    chosen = pd.concat([final, *longer]).sort_values("noise", kind="stable").reset_index(drop=True)
    return [trials, chosen]


def _chosen(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([comparison.chosen(part) for _, part in table.groupby("noise", sort=False)])


def _as_config(row: pd.Series) -> Config:
    measured = ("val_error", "test_error", "train_error", "train_loss", "lambda_max", "length")
    config = {str(k): v for k, v in row.items() if k not in measured and not (isinstance(v, float) and math.isnan(v))}
    return config | {key: int(config[key]) for key in ("seed", "trial", "k") if key in config}


def recorded(nb: Notebook, name: str, make: Callable[[Work], list[pd.DataFrame]], study: Study) -> list[pd.DataFrame]:
    """Make and record tables; a finished record of the full profile is read instead."""
    made: list[pd.DataFrame] = []

    def values(work: Work) -> dict[str, Any]:
        made.extend(make(work))
        return {"tables": [table.astype(object).where(table.notna(), None).to_dict("list") for table in made]}

    found = nb.recorded(name, values, of=study, rtol=5e-2, atol=3.0)
    return made or [pd.DataFrame(table) for table in found["tables"]]


# ---- Cost -----------------------------------------------------------------------------------------------------------


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
    """Counts the images that pass forward and backward through a net while it is trained by an optimizer class.

    Attributes:
        forward, backward: images so far.
    """

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

        def closure(rows: Tensor | None = None) -> Tensor:
            x, y = (self.x, self.y) if rows is None else (self.x[rows], self.y[rows])
            if self.by_sample:
                return F.cross_entropy(self.model(x), y, reduction="none")
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            return loss

        def plain() -> Tensor:
            return closure()

        self.optimizer.step(closure if self.by_sample else plain)  # type: ignore[arg-type]


def cost(config: Mapping[str, Any], net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return gradients a step, counted: a forward pass is a third of a gradient, a backward pass two thirds.

    Averaged over 20 steps, a multiple of every period of LookSAM's grid. (The usual count of floating-point operations:
    a backward pass costs about two forward ones.)
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


# ---- A transformer trained on ---------------------------------------------------------------------------------------

VIT_RADII = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 5.5)  # the paper's grid and its radius for DeiT-Base
VIT_ALPHAS = (0.01, 0.02, 0.03, 0.1, 0.2, 0.3)
VIT_GAMMAS = tuple(round(0.8 + 0.02 * i, 2) for i in range(10))


def trained_on(study: Study, nb: Notebook) -> pd.DataFrame:
    """Return the table of :func:`train_on`, recorded."""
    return recorded(nb, "vit", lambda work: [train_on(study, nb, work)], study)[0]


def train_on(study: Study, nb: Notebook, work: Work | None = None) -> pd.DataFrame:
    """Train a ViT with AdamW, then go on from there with AdamW, SAM, GSAM and WSAM on it (the paper's Table 4).

    Returns:
        A row a method, trial and seed; ``"start"`` is the net that all go on from. GSAM and WSAM take SAM's tuned
        radius.
    """
    s, seeds = study.vit, range(study.vit_seeds)
    images = comparison.splits(s, study.vit_seeds)
    nb.uses(images[0].data)
    adamw = {"weight_decay": study.weight_decay}
    vanilla = {"rule": "adamw_torch", **adamw}
    first = [{"method": "start", "trial": 0.0, **vanilla, "lr": 10 * study.lr, "seed": seed} for seed in seeds]
    start, weights = comparison.run(replace(s, steps=study.pretraining), first, images, nb.device, work, "start")
    going_on = replace(s, model=lambda seed: comparison.net_at(s, weights[seed]))

    def go(method: str, fixed: Config, name: str, values: Sequence[float]) -> pd.DataFrame:
        configs = [{"method": method, "trial": value, **fixed, **({name: value} if name else {}), "lr": study.lr,
                    **adamw, "seed": seed} for value in values for seed in seeds]
        own = comparison.of_each(configs, images)
        return comparison.run(going_on, configs, own, nb.device, work, f"on with {method}")[0]

    on = {"base": "adamw_torch"}
    sam = go("SAM", {"rule": "sam", **on}, "rho", VIT_RADII)
    rho = {"rho": float(comparison.chosen(sam)["trial"].iloc[0]), **on}
    going = [go("AdamW", {"rule": "adamw_torch"}, "", (0.0,)), sam,
             go("GSAM", {"rule": "gsam", **rho}, "alpha", VIT_ALPHAS),
             go("WSAM", {"rule": "wsam", **rho}, "gamma", VIT_GAMMAS)]
    columns = ["method", "trial", "rho", "seed", "val_error", "test_error", "train_error", "train_loss"]
    return pd.concat([start, *going], ignore_index=True)[columns]


def draw_errors(ax: Any, final: pd.DataFrame, noise: float) -> None:
    """Draw the tuned methods' test error for one noise, the best on top: the mean large, the seeds small."""
    done = final[(final["noise"] == noise) & (final["length"] == 1.0)]
    means = done.groupby("method")["test_error"].mean().sort_values()
    for height, method in enumerate(means.index):
        kind = "wsam" if "WSAM" in str(method) else "sam"
        role = "sgd" if str(method).startswith("SGD") else "adam" if method == "Adam" else kind
        ax.plot(means[method], height, MARKERS[role], color=COLOURS[role], ms=7)
        seeds = done[done["method"] == method]["test_error"]
        ax.plot(seeds, [height] * len(seeds), "|", color=COLOURS[role], ms=8)
    ax.set_yticks(range(len(means)), means.index)
    ax.invert_yaxis()
    ax.set(xlabel="test error (%)", title=f"{noise:.0%} wrong labels, n = {done['seed'].nunique()}")
