r"""Notebook 14: where SGD ends and where the average of its iterates lies, on train and on test loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharpnb.averaging import SWA
from sharpnb.lab import models
from sharpnb.lab.augment import Augment
from sharpnb.lab.data import Data, load_data, with_label_noise
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from sharpnb.lab.training import evaluate, shift_and_flip, train
from sharpnb.landscape import Plane, Surface, line, surface, unit_direction
from sharpnb.many.train import Many, train_many

SEEDS, BATCH, LR, START = 6, 25, 0.1, 0.75
FACTORS = (0.05, 0.5, 1.0)  # of the averaging phase's learning rate
EPOCH = 20  # steps: 500 images in batches of 25


@dataclass(frozen=True)
class Regime:
    """A net and its budget: ``hidden`` units, ``budget`` steps of SGD."""

    hidden: int
    budget: int

    def net(self, seed: int) -> nn.Module:
        """The net of this regime."""
        return models.mlp((64, self.hidden, 10), seed=seed)


# Taken over from a survey made before this notebook: 500 digits, one-pixel shifts, 10 % wrong labels, batch 25, lr 0.1,
# 3,000 steps, averaging from three quarters of them on at half the learning rate. MAIN is two thirds of that budget in
# half the net, for time; the survey's own setting is run beside it at one budget.
SURVEY, MAIN = Regime(64, 3000), Regime(32, 2000)


def sgd_schedule(done: float) -> float:
    """The authors' schedule: 1 for half of training, down to 0.01 on a line until 90 %, then constant."""
    return 1.0 if done <= 0.5 else 0.01 if done >= 0.9 else 1 - 0.99 * (done - 0.5) / 0.4


def swa_schedule(factor: float, start: float) -> Callable[[float], float]:
    """The authors' schedule with averaging: the same shape up to ``start``, ending at ``factor`` and staying there."""
    def eta(done: float) -> float:
        t = done / start
        return 1.0 if t <= 0.5 else factor if t >= 0.9 else 1 - (1 - factor) * (t - 0.5) / 0.4

    return eta


def cyclic_schedule(high: float, low: float, start: float, steps: int, cycle: int) -> Callable[[float], float]:
    """From ``start`` on sawteeth from ``high`` to ``low``, ``cycle`` steps long (section 3.2); before it as above."""
    before = swa_schedule(high, start)

    def eta(done: float) -> float:
        if done < start:
            return before(done)
        t = ((round((done - start) * steps)) % cycle + 1) / cycle
        return (1 - t) * high + t * low

    return eta


def quick_data(nb: Notebook, noise: float = 0.1) -> Data:
    """The digits of the quick profile."""
    return nb.uses(with_label_noise(load_data("digits", train_size=500, dtype=torch.float64), noise))


def trained(
    regime: Regime, data: Data, factors: Sequence[float] = FACTORS, cyclic: bool = True, budgets: float = 1.5
) -> tuple[Many, Many]:
    """Train SGD for one budget and the averaging runs for ``budgets`` of them: constant learning rates, then cyclic."""
    options: dict[str, Any] = {"batch_size": BATCH, "device": "cpu", "dtype": torch.float64,
                               "augment": shift_and_flip(1, flip=False)}
    base: dict[str, Any] = {"rule": "sgd", "lr": LR, "momentum": 0.9}
    long, first = round(budgets * regime.budget), START * regime.budget
    sgd = train_many([{**base, "seed": seed} for seed in range(SEEDS)], data, regime.net, steps=regime.budget,
                     schedule=sgd_schedule, keep=(round(first),), **options)
    start = first / long
    settings: list[dict[str, Any]] = [
        {"schedule": swa_schedule(factor, start), "swa_start": start, "swa_every": EPOCH} for factor in factors
    ]
    if cyclic:  # collected at the end of each tooth, where the learning rate is lowest
        settings.append({"schedule": cyclic_schedule(1.0, 0.05, start, long, 5 * EPOCH),
                         "swa_start": start + (5 * EPOCH - 1) / long, "swa_every": 5 * EPOCH})
    configs = [{**base, **setting, "seed": seed} for setting in settings for seed in range(SEEDS)]
    swa = train_many(configs, data, regime.net, steps=long, evaluate_every=regime.budget // 4,
                     keep=(round(first), round(first + long) // 2, regime.budget), **options)
    return sgd, swa


def rows_of(many: Many, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a member and evaluation: the name of its setting, seed, step, losses and errors, single and averaged."""
    columns = ("seed", "step", *(f"{kind}{part}_{what}" for kind in ("", "average_") for part in ("train", "test")
                                 for what in ("loss", "error")))
    return [{"method": names[row["member"] // SEEDS], **{c: row[c] for c in columns if c in row}} for row in many.rows]


def column(rows: Sequence[dict[str, Any]], name: str, **where: Any) -> np.ndarray:
    """One column of the rows that match, in their order."""
    return np.array([row[name] for row in rows if all(row.get(key) == value for key, value in where.items())])


def sets(data: Data) -> dict[str, tuple[Tensor, Tensor]]:
    """Training and test images, as the landscape tools take them."""
    return {"train": data.train, "test": data.test}


def square(plane: Plane, margin: float) -> tuple[float, float, float, float]:
    """A square window around a plane's points, with a margin as a share of their larger extent.

    Square, because the points may lie nearly on a line: a window of their own shape would cut the valley off.
    """
    x, y = np.array(list(plane.points.values())).T
    half = (0.5 + margin) * max(np.ptp(x), np.ptp(y))
    centre = [(side.min() + side.max()) / 2 for side in (x, y)]
    return centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half


def plane_surface(data: Data, points: Sequence[Tensor], size: int = 41, margin: float = 0.8) -> Surface:
    """Train and test loss and error on the plane through three points."""
    plane = Plane.through(*points)
    return surface(MAIN.net(0).double(), plane, sets(data), size=size, window=square(plane, margin))


def along(data: Data, start: Tensor, end: Tensor, t: np.ndarray) -> dict[str, np.ndarray]:
    """Losses on the line from ``start`` (t = 0) to ``end`` (t = 1)."""
    return line(MAIN.net(0).double(), start, end - start, t, sets(data)).values


def rays(
    data: Data, points: dict[str, Tensor], distances: Sequence[float], directions: int = 10
) -> list[dict[str, Any]]:
    """Losses along random rays from each point, averaged over the directions; row k of a point is seed k's."""
    rows = []
    for name, weights in points.items():
        for seed, w in enumerate(weights):
            total: dict[str, np.ndarray] = {}
            for d in range(directions):
                ray = unit_direction(len(w), 1000 + d)
                values = line(MAIN.net(0).double(), w, ray, distances, sets(data)).values
                total = {key: total.get(key, 0) + value / directions for key, value in values.items()}
            rows += [{"point": name, "seed": seed, "distance": distance, **{key: float(total[key][i]) for key in total}}
                     for i, distance in enumerate(distances)]
    return rows


def with_batchnorm(data: Data, seeds: int = 3, steps: int = 400) -> list[dict[str, Any]]:
    """Average the last half of a training of a net with BatchNorm, once an epoch; errors without and with its pass."""
    rows = []
    for seed in range(seeds):
        model = models.mlp((64, 32, 10), norm=True, seed=seed).double()
        optimizer, swa, count = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9), SWA(model), [0]

        def collect(*_: Any, swa: SWA = swa, count: list[int] = count) -> None:
            count[0] += 1
            if count[0] > steps // 2 and count[0] % EPOCH == 0:
                swa.update()

        optimizer.register_step_post_hook(collect)
        train(model, data, optimizer, steps=steps, batch_size=BATCH, schedule="constant", seed=seed, device="cpu",
              augment=shift_and_flip(1, flip=False), progress=False)
        row = {"seed": seed, "last iterate": evaluate(model, data.test)[1]}
        with swa.average_weights():
            row["average, old statistics"] = evaluate(model, data.test)[1]
        swa.update_bn(data.train_x.split(BATCH))
        with swa.average_weights():
            row["average, own statistics"] = evaluate(model, data.test)[1]
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Full:
    """The CIFAR-10 experiment, with the paper's rates: lr 0.1, decay 3e-4, averaging from 75 %, at a tenth of the rate.

    Attributes:
        label: net, data and budget in a few words, for the claims.
        data, train_size: name of the data set; training images.
        model: seed -> net.
        epochs, seeds: of each method; the paper has 150 epochs and three seeds.
        augment: of the training images.
        batch: images an update (128: the paper's).
    """

    label: str
    data: str
    train_size: int | None
    model: Callable[[int], nn.Module]
    epochs: int
    seeds: int
    augment: Augment
    batch: int = 128

    @property
    def epoch(self) -> int:
        """Updates an epoch."""
        return (self.train_size or 50_000) // self.batch or 1


FULL = Full("ResNet-18 of width 16, CIFAR-10, 12 epochs", "cifar10", None,
            lambda seed: models.resnet18(width=16, seed=seed), 12, 3, shift_and_flip(4, flip=True))
TOY = Full("ResNet-18 of width 4, digits", "digits", 200, lambda seed: models.resnet18(width=4, channels=1, seed=seed),
           12, 2, shift_and_flip(1, flip=False))


def settings(profile: str) -> Full:
    """Return the settings of the full profile, or of its toy."""
    return FULL if profile == "full" else TOY


def full_rows(nb: Notebook) -> list[dict[str, Any]]:
    """Train SGD and SWA for every seed: test errors, of SWA those of the last iterate and of the average."""
    s = settings(nb.profile)

    def make(work: Work) -> dict[str, Any]:
        data = nb.uses(load_data(s.data, train_size=s.train_size))
        return {"rows": [work.do(name, partial(_full_row, s, data, name, seed, nb), seed=seed)
                         for seed in range(s.seeds) for name in ("sgd", "swa")]}

    return nb.recorded("cifar", make, of=s, rtol=5e-2)["rows"]


def _full_row(s: Full, data: Data, name: str, seed: int, nb: Notebook) -> dict[str, Any]:
    model, epoch = s.model(seed).to(nb.device), s.epoch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    swa, count = SWA(model), itertools.count(1)

    def collect(*_: Any) -> None:
        step = next(count)
        if step >= START * s.epochs * epoch and step % epoch == 0:
            swa.update()

    optimizer.register_step_post_hook(collect)
    train(model, data, optimizer, steps=s.epochs * epoch, batch_size=s.batch, seed=seed, device=nb.device,
          schedule=sgd_schedule if name == "sgd" else swa_schedule(0.1, START), bf16=nb.bf16,
          augment=s.augment, graphs=True)
    test = tuple(part.to(nb.device) for part in data.test)
    row = {"method": name, "seed": seed, "test_error": evaluate(model, test)[1]}
    if name == "swa":
        swa.update_bn(data.train_x.to(nb.device).split(s.batch))
        with swa.average_weights():
            row["average_test_error"] = evaluate(model, test)[1]
    return row
