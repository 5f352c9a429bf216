r"""Notebook 15: a large batch to start with, independent small-batch workers to end with, and their average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.averaging import swap, update_bn
from sharpnb.lab import models
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.data import Data, load_data
from sharpnb.lab.figures import COLOURS
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from sharpnb.lab.training import batches, evaluate, train
from sharpnb.landscape import Plane, Surface, surface
from sharpnb.many.engine import Nets, losses
from sharpnb.many.train import Many, train_many
from studies.swa import sets, square

SEEDS = 6
FORWARD = 1 / 3  # of an update: a forward pass beside a forward and a backward one, counted and not measured
CHUNK = 250  # images that BatchNorm's statistics are measured on at a time, as in train_many


@dataclass(frozen=True)
class Settings:
    """One experiment: the three trainings and their sizes.

    Attributes:
        data, train_size: which images, and how many to train on.
        net, width, channels: ``"mlp"`` (one hidden layer with BatchNorm) or ``"resnet18"``, and its sizes.
        large, small: images an update; the workers are ``large // small``, so that each has ``small`` at a time in
            every phase.
        lr: peak learning rate of the small batch. The large one's is ``large / small`` times that.
        decay: L2 weight decay.
        epochs: of the small-batch and of the large-batch training.
        tau: training accuracy at which phase 1 stops.
        late_epochs, late_lr: of each worker in phase 2, falling to zero on a line.
        pixels, flip: augmentation.
        label: net, data and budget in a few words, for the claims.
    """

    data: str = "digits"
    train_size: int | None = 800
    net: str = "mlp"
    width: int = 64
    channels: int = 1
    large: int = 160
    small: int = 20
    lr: float = 0.1
    decay: float = 0.0
    epochs: int = 40
    tau: float = 0.92
    late_epochs: int = 10
    late_lr: float = 0.1
    pixels: int = 1
    flip: bool = False
    label: str = "MLP with BatchNorm, digits"

    @property
    def workers(self) -> int:
        """How many machines share the large batch and then work on their own."""
        return self.large // self.small

    @property
    def large_lr(self) -> float:
        """Peak learning rate of the large batch, by linear scaling."""
        return self.lr * self.large / self.small

    def model(self, seed: int) -> nn.Module:
        """The net of this experiment."""
        if self.net == "mlp":
            return models.mlp((64, self.width, 10), norm=True, seed=seed)
        return models.resnet18(width=self.width, channels=self.channels, seed=seed)

    def augment(self) -> Any:
        """The augmentation of every training."""
        return shift_and_flip(self.pixels, flip=self.flip)


# Workers, batch sizes and tau are about those of a survey made before this notebook (large batch 150 until 92 % of the
# training images are right, then 8 workers with batches of 20 on shifted digits).
QUICK = Settings()
# Cut to the budget. Before: width 64, batches of 4096 and 512, 40 epochs, until 98 %, 10 epochs of each worker.
FULL = Settings("cifar10", None, "resnet18", 16, 3, 2048, 256, 0.1, 5e-4, 10, 0.9, 3, 0.1, 4, True,
                "ResNet-18 of width 16, CIFAR-10, 10 epochs")
TOY = Settings("digits", 160, "resnet18", 4, 1, 40, 20, 0.05, 5e-4, 2, 0.9, 1, 0.05, label="ResNet-18, digits")
FULL_SEEDS, TOY_SEEDS = 3, 2


def rising_and_falling(done: float) -> float:
    """From 0 up to 1 on a line over the first fifth of training, and back to 0."""
    return done / 0.2 if done < 0.2 else (1 - done) / 0.8


def falling(done: float) -> float:
    """From 1 to 0 on a line."""
    return 1 - done


def quick_data(nb: Notebook) -> Data:
    """The digits of the quick profile."""
    return nb.uses(load_data(QUICK.data, train_size=QUICK.train_size, dtype=torch.float64))


def updates(data: Data, batch: int) -> int:
    """Updates an epoch."""
    return len(data.train_y) // batch


def statistics(data: Data) -> list[Tensor]:
    """The batches that BatchNorm's statistics are measured on."""
    return list(data.train_x.split(CHUNK))


# -- the trainings, many at once --------------------------------------------------------------------------------------


def baseline(data: Data, batch: int, lr: float, s: Settings = QUICK) -> Many:
    """Train every seed with one batch size, the weights kept and evaluated once an epoch."""
    each = updates(data, batch)
    return train_many([_sgd(s, lr, seed) for seed in range(SEEDS)], data, s.model, steps=s.epochs * each,
                      batch_size=batch, schedule=rising_and_falling, evaluate_every=each,
                      keep=range(0, s.epochs * each + 1, each), **_options(s))


def reached(large: Many, tau: float, s: Settings = QUICK) -> list[int]:
    """For each seed: the epochs after which the large batch first has training accuracy ``tau``, or all of them."""
    errors = np.array([row["train_error"] for row in large.rows]).reshape(s.epochs, SEEDS)
    enough = errors <= 100 * (1 - tau) + 1e-9
    return [int(seed.argmax()) + 1 if seed.any() else s.epochs for seed in enough.T]


def starts(large: Many, epochs: Sequence[int], s: Settings = QUICK) -> Tensor:
    """Each seed's weights after its number of epochs of the large batch, (seeds, n)."""
    each = max(large.kept) // s.epochs
    return torch.stack([large.kept[each * epoch][seed] for seed, epoch in enumerate(epochs)])


def late(
    data: Data, start: Tensor, *, lr: float = QUICK.late_lr, workers: int = QUICK.workers,
    epochs: int = QUICK.late_epochs, schedule: Any = falling, curves: bool = False, s: Settings = QUICK,
) -> Many:
    """Phase 2 of every seed: rows seed by seed, worker by worker; weights kept, with ``curves`` evaluated, each epoch.

    Worker w of seed k draws its batches from the seed ``100 k + w``, as :class:`Worker` does under
    ``swap(..., seed=100 k)``.
    """
    def model(number: int) -> nn.Module:
        net = s.model(0).to(start.dtype)
        nn.utils.vector_to_parameters(start[number // 100].clone(), net.parameters())
        return net

    each = updates(data, s.small)
    configs = [_sgd(s, lr, 100 * seed + worker) for seed in range(len(start)) for worker in range(workers)]
    return train_many(configs, data, model, steps=epochs * each, batch_size=s.small, schedule=schedule,
                      evaluate_every=each if curves else 0, keep=range(0, epochs * each + 1, each), **_options(s))


def sequential(data: Data, start: Tensor, s: Settings = QUICK) -> Tensor:
    """SWA on one machine from the same start: one worker's phase 2 W times over, averaged at the W ends, (seeds, n)."""
    cycle = s.late_epochs * updates(data, s.small)

    def teeth(done: float) -> float:
        return 1 - round(done * s.workers * cycle) % cycle / cycle

    many = late(data, start, workers=1, epochs=s.workers * s.late_epochs, schedule=teeth, s=s)
    ends = range(cycle, (s.workers + 1) * cycle, cycle)
    return torch.stack([many.kept[step] for step in ends]).mean(0)


def _sgd(s: Settings, lr: float, seed: int) -> dict[str, Any]:
    return {"rule": "sgd", "lr": lr, "momentum": 0.9, "seed": seed, "weight_decay": s.decay}


def _options(s: Settings) -> dict[str, Any]:
    together = SEEDS * s.workers  # the whole of phase 2 in one program: measured a sixth faster than in chunks of 32
    return {"augment": s.augment(), "device": "cpu", "dtype": torch.float64, "chunk": together}


# -- what is measured -------------------------------------------------------------------------------------------------


def average(w: Tensor, workers: int = QUICK.workers, of: int | None = None) -> Tensor:
    """The mean of each seed's first ``of`` workers (default all): (seeds * workers, n) -> (seeds, n)."""
    return w.unflatten(0, (-1, workers))[:, :of].mean(1)


def measured(data: Data, w: Tensor, s: Settings = QUICK) -> dict[str, np.ndarray]:
    """Losses (nats) and errors (percent) on training and test images of rows of weights, each (K,).

    BatchNorm's statistics are those of the training images at these very weights, as :func:`sharpnb.averaging.swap`
    leaves them.
    """
    rows, found = Nets([0] * len(w), data, s.model), {}
    for part in ("train", "test"):
        ((_, logits, y),) = rows.logits(w, part, chunk=CHUNK)
        found[f"{part}_loss"] = losses(logits, y.expand(len(w), -1)).numpy()
        found[f"{part}_error"] = 100.0 * (logits.argmax(2) != y).double().mean(1).numpy()
    return found


def critical_path(
    data: Data, *, large: float = 0, small: float = 0, averaged: bool = False, s: Settings = QUICK
) -> float:
    """The time on W workers in updates of ``s.small`` images, one after another: epochs of each phase -> updates.

    In the large-batch phase each worker has a W-th of the batch, so an update takes as long as one of the small batch;
    communication counts nothing. The BatchNorm pass is a forward pass over the training images on one worker.
    """
    bn = FORWARD * len(data.train_y) / s.small if averaged else 0.0
    return large * updates(data, s.large) + small * updates(data, s.small) + bn


def cosines(data: Data, path: Tensor, target: Tensor, seed: int = 0, s: Settings = QUICK) -> dict[str, np.ndarray]:
    r"""Cosine between the descent direction and :math:`w_{SWAP}-\theta` at points of a run, (T, n) -> (T,) each.

    ``"batch"`` is the mean cosine of the gradients of an epoch of small batches, augmented as in training; ``"mean"``
    the cosine of those gradients' mean. All points see the same batches.
    """
    rows = Nets([seed] * len(path), data, s.model, batch_size=s.small, augment=s.augment())
    towards, each, total = target - path, [], torch.zeros_like(path)
    for _ in range(updates(data, s.small)):
        descent = -rows.gradient(rows.draw())(path)
        each.append(F.cosine_similarity(descent, towards, dim=1))
        total += descent
    return {"batch": torch.stack(each).mean(0).numpy(), "mean": F.cosine_similarity(total, towards, dim=1).numpy()}


def plane_surface(
    data: Data, points: Sequence[Tensor], size: int = 21, margin: float = 0.5, s: Settings = QUICK
) -> Surface:
    """Train and test loss and error on the plane through three points, BatchNorm's statistics measured at each."""
    plane = Plane.through(*points)
    return surface(s.model(0).double(), plane, sets(data), size=size, window=square(plane, margin),
                   update_bn=statistics(data))


def flat_share(values: np.ndarray, above: float = 1.0) -> float:
    """Share of a grid that lies within ``above`` of its lowest value."""
    return float((values <= values.min() + above + 1e-9).mean())  # a whole point is a whole number of images


def off_centre(found: Surface, name: str, points: Sequence[Tensor]) -> list[float]:
    """For each point: its distance from the lowest point of the grid, seen in the plane."""
    x, y = found.lowest(name)
    places = [found.plane.project(point) for point in points]
    return [float(((place.x - x) ** 2 + (place.y - y) ** 2) ** 0.5) for place in places]


def convexity(found: Surface, name: str, level: float) -> float:
    """Of the grid's points in the convex hull of the set below ``level``: the share that is below it too (1: convex).

    Raises:
        ValueError: if fewer than three points of the grid are below the level.
    """
    from scipy.spatial import Delaunay

    grid = np.stack(np.meshgrid(found.x, found.y), -1).reshape(-1, 2)
    below = found.values[name].ravel() <= level
    if below.sum() < 3:
        raise ValueError(f"{int(below.sum())} points of the grid are below {level:.4g}: too few for a hull.")
    inside = Delaunay(grid[below]).find_simplex(grid, tol=1e-9) >= 0
    return float(below[inside].mean())


# -- the three phases with sharpnb.averaging.swap ---------------------------------------------------------------------


class LargeBatch:
    """``large`` of :func:`sharpnb.averaging.swap`: an epoch with large batches, then the training accuracy."""

    def __init__(self, data: Data, seed: int, s: Settings = QUICK, bf16: bool = False) -> None:
        self.data, self.s, self.bf16 = data, s, bf16
        self.generator = torch.Generator().manual_seed(seed)
        self.order = batches(len(data.train_y), s.large, self.generator)
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, model: nn.Module, epoch: int) -> float:
        """Train for one epoch and return the share of training images that are right, BatchNorm's statistics fresh."""
        s, data, each = self.s, self.data, updates(self.data, self.s.large)
        if self.optimizer is None:
            self.optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=s.decay)
        model.train()
        for step in range(epoch * each, (epoch + 1) * each):
            self.optimizer.param_groups[0]["lr"] = s.large_lr * rising_and_falling(step / (s.epochs * each))
            index = next(self.order).to(data.train_x.device)
            x = s.augment()(data.train_x[index], self.generator)
            self.optimizer.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
                F.cross_entropy(model(x), data.train_y[index]).backward()
            self.optimizer.step()
        update_bn(model, statistics(data))
        return 1 - evaluate(model, data.train)[1] / 100


@dataclass(frozen=True)
class Worker:
    """``small`` of :func:`sharpnb.averaging.swap`; it can be sent to another process."""

    data: Data
    seed: int = 0
    s: Settings = QUICK
    bf16: bool = False

    def __call__(self, model: nn.Module, worker: int) -> None:
        """Train ``model`` with small batches in the worker's own order."""
        optimizer = torch.optim.SGD(model.parameters(), lr=self.s.late_lr, momentum=0.9, weight_decay=self.s.decay)
        where = next(model.parameters()).device
        train(model, self.data, optimizer, steps=self.s.late_epochs * updates(self.data, self.s.small),
              batch_size=self.s.small, schedule=falling, seed=self.seed + worker, augment=self.s.augment(),
              device=where, bf16=self.bf16, progress=False, graphs=True)


def settings(profile: str) -> Settings:
    """Return the settings of a profile."""
    return {"quick": QUICK, "full": FULL, "toy": TOY}[profile]


def full_rows(nb: Notebook) -> list[dict[str, Any]]:
    """Large batch, small batch and SWAP on CIFAR-10: test errors and the critical path, one row a seed."""
    s, seeds = settings(nb.profile), FULL_SEEDS if nb.profile == "full" else TOY_SEEDS

    def make(work: Work) -> dict[str, Any]:
        data = nb.uses(load_data(s.data, train_size=s.train_size)).to(nb.device, torch.float32)
        one = partial(_full_row, data, s=s, bf16=nb.bf16)
        return {"rows": [work.do("seed", partial(one, seed), seed=seed) for seed in range(seeds)]}

    return nb.recorded("cifar", make, of={**vars(s), "net of": s.model}, rtol=5e-2)["rows"]


def _full_row(data: Data, seed: int, s: Settings, bf16: bool) -> dict[str, Any]:
    where, row = data.train_x.device, {"seed": seed}
    for name, batch, lr in (("large", s.large, s.large_lr), ("small", s.small, s.lr)):
        model = s.model(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=s.decay)
        train(model, data, optimizer, steps=s.epochs * updates(data, batch), batch_size=batch, seed=seed, device=where,
              schedule=rising_and_falling, augment=s.augment(), bf16=bf16, graphs=True)
        row[name] = evaluate(model, data.test)[1]
    model = s.model(seed).to(where)
    done = swap(model, LargeBatch(data, seed, s, bf16), Worker(data, 100 * seed, s, bf16), statistics(data), tau=s.tau,
                max_epochs=s.epochs, workers=s.workers)
    row |= {"after": evaluate(model, data.test)[1], "large_epochs": len(done.accuracies), "reached": done.reached}
    before = []
    for weights in done.workers:
        nn.utils.vector_to_parameters(weights.clone(), model.parameters())
        update_bn(model, statistics(data))
        before.append(evaluate(model, data.test)[1])
    paths = {"large": {"large": s.epochs}, "small": {"small": s.epochs},
             "swap": {"large": row["large_epochs"], "small": s.late_epochs, "averaged": True}}
    times = {f"{name}_updates": critical_path(data, s=s, **phases) for name, phases in paths.items()}
    return row | {"before": float(np.mean(before))} | times


def draw_table1(ax: Any, table: pd.DataFrame) -> None:
    """Draw :func:`full_rows`: each method's test error against its updates on the critical path, a dot a seed."""
    for column, path, label, colour, marker in (
        ("large", "large", "large batch", "grey", "s"), ("before", "swap", "SWAP, mean of the workers", "sam", "o"),
        ("after", "swap", "SWAP, their average", "adam", "D"), ("small", "small", "small batch", "sgd", "^"),
    ):
        x = table[f"{path}_updates"]
        ax.plot(x, table[column], marker, ms=4, alpha=0.5, color=COLOURS[colour])
        ax.plot(x.mean(), table[column].mean(), marker, ms=9, mfc="none", color=COLOURS[colour], label=label)
    ax.set(xlabel="updates on the critical path", ylabel="test error (%)", xlim=(0, None))
    ax.legend(fontsize=8, title=f"open: mean of {len(table)} seeds", title_fontsize=8)
