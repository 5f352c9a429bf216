r"""Methods compared fairly: a grid each, tuned on images held out, the same seeds for all, a ranking with its spread.

A *method* has some *trials* (settings of its hyperparameters); each trial is trained with every seed. The trial of
lowest mean validation error is the method's, and its test error is what counts. A seed draws the images, the wrong
labels, the initial weights and the batches, and is the same for all methods: differences are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.curvature import HessianOperator, top_eigenvalues
from sharpnb.lab.augment import Augment
from sharpnb.lab.data import Data, load_data, with_label_noise
from sharpnb.lab.pieces import Work, described, even
from sharpnb.many.net import BatchedNet, evaluate_many
from sharpnb.many.train import train_many

LABELS = ("method", "trial")
TOLD = (*LABELS, "noise")  # entries of a configuration that say what it is and are none of the training's


@dataclass(frozen=True)
class Setting:
    """What is trained, and on what.

    Attributes:
        label: net and data in a few words.
        data: name of the data set.
        train_size: images to train on.
        validation: further images of the training set, held out for tuning; their labels stay right.
        model: seed -> net.
        steps, batch_size: of every training.
        noise: share of wrong training labels.
        dtype: of weights and images.
        together: members trained as one batched program.
        augment: of the training images.
        images: training images of the Hessian's loss.
        bf16: of the gradients, as in :func:`sharpnb.lab.train_many`.
    """

    label: str
    data: str
    train_size: int
    validation: int
    model: Callable[[int], nn.Module]
    steps: int
    batch_size: int
    noise: float = 0.0
    dtype: torch.dtype = torch.float64
    together: int = 32
    augment: Augment | None = None
    images: int = 2000
    bf16: bool = False


@dataclass(frozen=True)
class Split:
    """The images of one seed: ``data`` to train and test on, ``held_out`` (images, labels) to tune on."""

    data: Data
    held_out: tuple[Tensor, Tensor]


def splits(s: Setting, seeds: int) -> list[Split]:
    """Return the images of each seed; of the larger data sets a seed moves the wrong labels alone."""
    found, n = [], s.train_size
    for seed in range(seeds):
        if seed == 0 or s.data == "digits":
            whole = load_data(s.data, train_size=n + s.validation, seed=seed, dtype=s.dtype)
        data = replace(whole, train_x=whole.train_x[:n], train_y=whole.train_y[:n])
        data = with_label_noise(data, s.noise, seed) if s.noise else data
        found.append(Split(data, (whole.train_x[n:], whole.train_y[n:])))
    return found


def of_each(configs: Sequence[Mapping[str, Any]], images: Sequence[Split]) -> list[Split]:
    """Return each configuration's images from those of the seeds, as :func:`run` takes them."""
    return [images[config["seed"]] for config in configs]


def run(
    s: Setting, configs: Sequence[Mapping[str, Any]], images: Sequence[Split], device: torch.device,
    work: Work | None = None, label: str = "",
) -> tuple[pd.DataFrame, Tensor]:
    """Train every configuration and measure it.

    Args:
        s: the setting.
        configs: as :func:`sharpnb.lab.train_many` takes them, with ``method``, ``trial`` and whatever else of
            :data:`TOLD` beside.
        images: of each configuration, from :func:`splits`.
        device: where to.
        work: of the full profile, for which ``together`` members each are a piece.
        label: of those pieces.

    Returns:
        A table with a row a configuration: its own entries, ``val_error`` and ``test_error`` (percent) and
        ``train_loss`` (nats, on the labels that it was trained on); and the final weights, (K, n). A training that left
        the finite numbers has the error of a constant answer there, 100 · (1 - 1/classes).
    """
    def make(part: Sequence[Mapping[str, Any]], own: Sequence[Split]) -> dict[str, Any]:
        bare = [{k: v for k, v in config.items() if k not in TOLD} for config in part]
        many = train_many(bare, [split.data for split in own], s.model, steps=s.steps, batch_size=s.batch_size,
                          augment=s.augment, dtype=s.dtype, bf16=s.bf16, device=str(device), chunk=s.together)
        held_out = _validation_errors(s, many.weights, own, device)
        rows = [{**config, **_measured(w, error, final, own[0].data.classes)}
                for config, w, error, final in zip(part, many.weights, held_out, many.final(), strict=True)]
        return {"rows": rows, "weights": many.weights}

    size = len(configs) if work is None or not work.nb.full else even(len(configs), s.together)[1]
    told = described(s)
    parts = [(configs[k : k + size], images[k : k + size]) for k in range(0, len(configs), size)]
    made = [make(*part) if work is None else work.do(label, partial(make, *part), number=number, setting=told,
                                                     members=described(part[0])) for number, part in enumerate(parts)]
    return pd.DataFrame([row for piece in made for row in piece["rows"]]), torch.cat([p["weights"] for p in made])


def net_at(s: Setting, w: Tensor, device: torch.device | str = "cpu") -> nn.Module:
    """Return the setting's net with flat weights ``w``."""
    net = s.model(0).to(device, s.dtype)
    nn.utils.vector_to_parameters(w.to(device), net.parameters())
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


def _measured(w: Tensor, val_error: float, final: Mapping[str, float], classes: int) -> dict[str, float]:
    if not w.isfinite().all():
        constant = 100.0 * (1 - 1 / classes)
        return {"val_error": constant, "test_error": constant, "train_error": constant, "train_loss": float("nan")}
    return {"val_error": val_error, **{name: final[name] for name in ("test_error", "train_error", "train_loss")}}


def lambda_max(s: Setting, w: Tensor, data: Data, tol: float = 1e-2, device: torch.device | str = "cpu") -> float:
    """Return the largest Hessian eigenvalue of the training loss at flat weights ``w``."""
    if not w.isfinite().all():
        return float("nan")
    x, y = (part[: s.images].to(device) for part in data.train)
    op = HessianOperator(net_at(s, w, device), F.cross_entropy, (x, y), check=False)  # train_many takes no dropout
    return float(top_eigenvalues(op, 1, tol=tol, verify=False, vectors=False).values[0])


def chosen(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each method's trial of lowest mean validation error (of equal ones the first)."""
    means = table.groupby(list(LABELS), sort=False)["val_error"].mean().round(9)
    best = means.groupby("method", sort=False).idxmin()
    return pd.concat([table[(table["method"] == m) & (table["trial"] == trial)] for m, trial in best])


@dataclass(frozen=True)
class Bootstrap:
    """Seeds drawn anew, methods tuned anew on them: what the comparison could have come to.

    Attributes:
        methods: names, (M,).
        errors: mean test error of each method's chosen trial, (draws, M).
    """

    methods: list[str]
    errors: np.ndarray

    def interval(self, share: float = 0.95) -> np.ndarray:
        """Return lower and upper percentile of each method's error, (M, 2)."""
        tail = 100 * (1 - share) / 2
        return np.percentile(self.errors, [tail, 100 - tail], axis=0).T

    def ranks(self) -> np.ndarray:
        """Return the rank of each method in each draw, 1 the lowest error, equal ones sharing theirs: (draws, M)."""
        below = (self.errors[:, None, :] < self.errors[:, :, None]).sum(2)
        equal = (self.errors[:, None, :] == self.errors[:, :, None]).sum(2)
        return below + (equal + 1) / 2

    def better(self, a: str, b: str) -> float:
        """Return the share of draws in which method ``a`` has a lower error than ``b``, ties by halves."""
        x, y = (self.errors[:, self.methods.index(name)] for name in (a, b))
        return float((x < y).mean() + 0.5 * (x == y).mean())


def bootstrap(table: pd.DataFrame, draws: int = 2000, seed: int = 0) -> Bootstrap:
    """Resample the seeds with replacement, tune every method again on the resample, and read its test error.

    So the spread holds both the noise of training and that of choosing the trial. Images are not resampled.
    """
    rng = np.random.default_rng(seed)
    methods = list(dict.fromkeys(table["method"]))
    seeds = sorted(set(table["seed"]))
    share = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=draws) / len(seeds)  # (draws, S)
    errors = []
    for method in methods:
        part = table[table["method"] == method]
        wide = {c: part.pivot(index="trial", columns="seed", values=c)[seeds] for c in ("val_error", "test_error")}
        val, test = (frame.loc[part["trial"].unique()].to_numpy() for frame in wide.values())  # (trials, S), in order
        best = (share @ val.T).round(9).argmin(1)
        errors.append((share * test[best]).sum(1))
    return Bootstrap(methods, np.stack(errors, 1))


def paired(table: pd.DataFrame, a: str, b: str, column: str = "test_error") -> np.ndarray:
    """Return ``column`` of method ``a`` minus that of ``b``, one a seed; both must have one trial left."""
    at = table.set_index(["method", "seed"])[column]
    return (at[a] - at[b]).to_numpy()
