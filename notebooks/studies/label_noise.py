"""Notebook 05: wrong labels. SGD, Mixup, SAM, its relatives, the bootstrap (SAM's Tables 4, 8; WSAM's Table 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sharpnb.lab import Data, Notebook, load_data, models, with_label_noise
from sharpnb.lab.augment import Augment, shift_and_flip
from sharpnb.lab.records import chosen_by
from sharpnb.many.engine import Nets
from studies.common import Training
from studies.trials import SEEDS, best

NOISES = (0.2, 0.4, 0.6, 0.8)
RANDOM = 0.9  # of ten classes: every label is then as likely as every other
Member = dict[str, Any]  # a training: method, value of its hyperparameter, noise, seed; later its errors too

# Accuracies of the paper's Table 4 in percent, by method and NOISES.
PAPER = {
    "SGD": (84.8, 68.8, 48.2, 26.2), "Mixup": (93.0, 90.0, 83.8, 70.2), "Bootstrap + Mixup": (93.3, 92.0, 87.6, 72.0),
    "SAM": (95.1, 93.4, 90.5, 77.9), "Bootstrap + SAM": (95.4, 94.2, 91.8, 79.9),
}
METHODS = (*PAPER, "ESAM", "GSAM", "WSAM")
CONTROLS = ("SGD 2E", "SGD, decay tuned")  # of the mid profile


@dataclass(frozen=True, kw_only=True)
class Settings(Training):
    """What is trained, and over which ρ of SAM (0 is SGD), γ of WSAM, α of GSAM, and α of Mixup (Appendix C.2).

    They are chosen by ``validation`` clean images beside the training images (the paper's way). Of so many
    ``evaluations`` of each training the best is told too.
    """

    validation: int
    rhos: tuple[float, ...]
    gammas: tuple[float, ...]
    alphas: tuple[float, ...]
    mixes: tuple[float, ...] = (1.0, 8.0, 16.0, 32.0)
    weight_decay: float = 0.0
    augment: Augment | None = None
    chunk: int = 32
    bf16: bool = False
    evaluations: int = 8


QUICK = Settings(label="MLP 64-64-64-10, 200 digits", data="digits", train_size=200, validation=200, steps=300,
                 seeds=range(2000, 2020), model=lambda seed: models.mlp((64, 64, 64, 10), seed=seed), lr=0.2,
                 weight_decay=0.007, dtype=torch.float64,
                 rhos=(0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
                 gammas=(0.5, 0.6, 0.7, 0.8, 0.85, 0.88, 0.9, 0.92, 0.94, 0.95, 0.96, 0.98),
                 alphas=(0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0),
                 mixes=(0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0))
TUNING = SEEDS
DECAYS = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.1)  # of SGD that need not memorise
# Cut to the budget. The paper: ResNet-32, 45,000 images and 5,000 to choose by, 200 epochs, radii from 0 to 0.5.
FULL = Settings(label="ResNet-8, 5,000 images of CIFAR-10, 24 epochs", data="cifar10", train_size=5000, validation=1000,
                model=lambda seed: models.resnet(8, seed=seed), steps=24 * 39, seeds=2, rhos=(0.0, 0.05, 0.1, 0.2),
                gammas=(0.9,), alphas=(0.1,), mixes=(1.0, 8.0), batch_size=128, weight_decay=5e-4,
                augment=shift_and_flip(4, flip=True), bf16=True, evaluations=3)


@dataclass(frozen=True, kw_only=True)
class Mid(Settings):
    """One noise rate of the mid profile: hyperparameters are tuned on seeds and held-out images of their own.

    A seed draws images (averaged over squares of 2 by 2; no tuning seed looks at one of its ``tests``), wrong labels,
    weights and batches. ``decays`` are SGD's hyperparameter. Ranges are extended until the best is inside, to at most
    ``trials``.
    """

    noise: float
    tests: int
    tuning: tuple[int, ...]
    judging: tuple[int, ...]
    decays: tuple[float, ...]
    chosen_by: dict[str, Any]
    trials: int = 8


MID = Mid(label="ResNet-8 of width 8, 1,000 images of Fashion-MNIST at 14x14, 640 steps", data="fashion_mnist",
          model=lambda seed: models.resnet(8, width=8, channels=1, seed=seed), train_size=1000, validation=2000,
          tests=5000, steps=640, seeds=10, tuning=(100, 101, 102, 103), judging=tuple(range(10, 20)), noise=0.4,
          weight_decay=8e-3, rhos=(0.05, 0.1, 0.2, 0.4), decays=(0.008, 0.016, 0.032, 0.064),
          gammas=(0.5, 0.8, 0.9, 0.95), alphas=(0.03, 0.1, 0.3, 1.0), chunk=5,
          chosen_by=chosen_by("05_label_noise/mid"))
_TOY = replace(
    MID, data="digits", train_size=96, validation=32, tests=64, steps=4, seeds=3, tuning=(100,), judging=(10, 11, 12),
    model=lambda seed: models.mlp((16, 8, 10), norm=True, seed=seed), rhos=(0.05, 0.1), mixes=(1.0, 8.0),
    decays=(0.01, 0.1), trials=3, chunk=2, batch_size=32)
MIDS = {"mid": MID, "toy": _TOY}
_CIFAR = replace(MID, label="ResNet-8 of width 8, 2,000 images of CIFAR-10 at 16x16, 1,280 steps", data="cifar10",
                 model=lambda seed: models.resnet(8, width=8, seed=seed), train_size=2000, steps=1280,
                 chosen_by=chosen_by("05_label_noise/cifar"))
OF_CIFAR = {0.0: {"lr": 0.1, "weight_decay": 8e-3}, 0.4: {"lr": 0.4, "weight_decay": 5e-4}}  # see chosen_by


def cells(profile: str) -> dict[str, dict[float, Mid]]:
    """Return the settings of the mid profile by the stem of their records' names and by the share of wrong labels."""
    fashion, cifar = (_TOY, _TOY) if profile == "toy" else (MID, _CIFAR)
    return {"fashion": {noise: replace(fashion, noise=noise) for noise in (0.4, 0.0, 0.2, 0.6, 0.8)},
            "cifar": {noise: replace(cifar, noise=noise, **own) for noise, own in OF_CIFAR.items()}}


TOY = Settings(label="MLP with BatchNorm, digits", data="digits", train_size=96, validation=32, steps=4, seeds=2,
               model=lambda seed: models.mlp((64, 8, 10), norm=True, seed=seed), rhos=(0.0, 0.05), gammas=(0.8,),
               alphas=(0.1,), batch_size=32, lr=0.02, augment=shift_and_flip(1, flip=False), chunk=8)
SETTINGS = {"quick": QUICK, "mid": QUICK, "full": FULL, "toy": TOY}


@cache
def drawn(name: str, size: int, tests: int, seed: int) -> Data:
    """Return training and test images, drawn by a seed from those of a data set, at half their side."""
    whole, generator = load_data(name), torch.Generator().manual_seed(seed)
    train = torch.randperm(len(whole.train_y), generator=generator)[:size]
    test = torch.randperm(len(whole.test_y), generator=generator)[:tests]
    return Data(name, F.avg_pool2d(whole.train_x[train], 2), whole.train_y[train],
                F.avg_pool2d(whole.test_x[test], 2), whole.test_y[test], whole.classes)


@cache
def parts(name: str, size: int, validation: int, seed: int, dtype: torch.dtype, noise: float,
          tests: int = 0) -> tuple[Data, Data]:
    """Return the data with wrong training labels, and with the clean validation images for a test set; see `drawn`."""
    whole = (drawn(name, size + validation, tests, seed) if tests else
             load_data(name, train_size=size + validation, seed=seed, dtype=dtype))
    data = with_label_noise(replace(whole, train_x=whole.train_x[:size], train_y=whole.train_y[:size]), noise, seed)
    return data, replace(data, test_x=whole.train_x[size:], test_y=whole.train_y[size:])


def _parts(s: Settings, member: Member) -> tuple[Data, Data]:
    assert s.train_size is not None
    size = s.train_size // (3 if member["noise"] == RANDOM else 1)  # memorising takes long; a third of the images does
    found = parts(s.data, size, s.validation, member["seed"], s.dtype, member["noise"], getattr(s, "tests", 0))
    return (found[1], found[1]) if member["seed"] in getattr(s, "tuning", ()) else found


def sets(s: Settings, members: Sequence[Member], labels: Tensor | None = None) -> list[Data]:
    """Return the images of each training with their (partly wrong) labels, or with ``labels``, (K, N)."""
    found = [_parts(s, member)[0] for member in members]
    return found if labels is None else [replace(d, train_y=y) for d, y in zip(found, labels, strict=True)]


def nets(s: Settings, nb: Notebook, members: Sequence[Member], part: int = 0) -> Nets:
    """Return nets that are measured on the images of each training; with ``part`` 1 on the clean validation images."""
    return Nets([member["seed"] for member in members], [_parts(s, member)[part] for member in members], s.model,
                batch_size=s.batch_size, device=nb.device, dtype=s.dtype)


def finished(s: Settings, nb: Notebook, members: Sequence[Member], w: Tensor, best: Sequence[float]) -> dict[str, Any]:
    """Return the weights ``w`` and the ``members`` with their errors in percent; ``train_error`` is on their labels."""
    w = w.to(nb.device)
    noisy, clean = nets(s, nb, members), nets(s, nb, members, 1)
    columns = torch.stack((noisy.errors(w, "test"), clean.errors(w, "test"), noisy.errors(w, "train")), 1).tolist()
    losses = noisy.evaluate(w)["train_loss"] if isinstance(s, Mid) else [None] * len(members)
    return {"w": w, "members": [
        {**member, "best_epoch": min(seen, test), "test_error": test, "validation_error": validation,
         "train_error": train} | ({} if loss is None else {"train_loss": loss})
        for member, seen, loss, (test, validation, train) in zip(members, best, losses, columns, strict=True)]}


def picked(table: pd.DataFrame, method: str, noise: float) -> float:
    """Return the hyperparameter of least mean error on the clean validation images; ρ = 0 is SGD and none of SAM's."""
    own = table[(table["method"] == method) & (table["noise"] == noise)]
    if method.endswith("SAM"):
        own = own[own["value"] > 0]
    return float(best(own, "value", error="validation_error")["value"])


def accuracy(table: pd.DataFrame, method: str, noise: float, column: str = "test_error") -> np.ndarray:
    """Return the accuracy, seed by seed, of a method at its picked hyperparameter (SGD is SAM with ρ = 0)."""
    name, value = ("SAM", 0.0) if method == "SGD" else (method, picked(table, method, noise))
    own = table[(table["method"] == name) & (table["noise"] == noise) & (table["value"] == value)]
    return 100.0 - own.sort_values("seed")[column].to_numpy()
