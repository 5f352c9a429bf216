r"""Notebook 16: the settings of its small net, and Lookahead on CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sharpnb.averaging import Lookahead
from sharpnb.lab import models
from sharpnb.lab.augment import shift_and_flip
from sharpnb.lab.data import Data, load_data
from sharpnb.lab.notebook import Notebook
from sharpnb.lab.pieces import Work
from sharpnb.lab.training import train


@dataclass(frozen=True)
class Settings:
    """The digits' experiment: an MLP with one hidden layer, shifted images, a constant learning rate.

    Taken over from a survey made before this notebook: 500 digits with one-pixel shifts, lr 0.1, momentum 0.9.
    """

    hidden: int = 32
    train_size: int = 500
    steps: int = 600
    batch: int = 50
    lr: float = 0.1
    momentum: float = 0.9
    seeds: int = 6


QUICK = Settings()


@dataclass(frozen=True)
class Full:
    """The CIFAR-10 experiment, with the settings that the paper's authors tuned for ResNet-18.

    Attributes:
        label: net, data and budget in a few words, for the claims.
        data, train_size: name of the data set; training images.
        width, channels: of the ResNet-18; the paper's width is 64.
        steps, seeds: of each method; the paper has 200 epochs and three seeds.
    """

    label: str
    data: str
    train_size: int | None
    width: int
    channels: int
    steps: int
    seeds: int

    def model(self, seed: int) -> nn.Module:
        """The net of this experiment."""
        return models.resnet18(width=self.width, channels=self.channels, seed=seed)


FULL = Full("ResNet-18 of width 16, CIFAR-10, 10 epochs", "cifar10", None, 16, 3, 10 * 390, 2)
TOY = Full("ResNet-18 of width 4, digits", "digits", 200, 4, 1, 12, 2)
EVALUATIONS = 10


def full_rows(s: Full, nb: Notebook) -> list[dict[str, Any]]:
    """SGD (lr 0.05) and Lookahead over SGD (lr 0.1, k = 5, alpha = 0.8) with weight decay 1e-3 on a ResNet-18."""
    def make(work: Work) -> dict[str, Any]:
        data = nb.uses(load_data(s.data, train_size=s.train_size))
        made = [work.do(name, partial(_curve, s, data, name, seed, nb), seed=seed)
                for seed in range(s.seeds) for name in ("sgd", "lookahead")]
        return {"rows": [row for piece in made for row in piece["rows"]]}

    return nb.recorded("cifar", make, of=s, rtol=5e-2)["rows"]


def _curve(s: Full, data: Data, name: str, seed: int, nb: Notebook) -> dict[str, Any]:
    model, lr = s.model(seed).to(nb.device), 0.05 if name == "sgd" else 0.1
    base = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    optimizer = Lookahead(base, k=5, alpha=0.8) if name == "lookahead" else base
    history = train(model, data, optimizer, steps=s.steps, batch_size=128, seed=seed, device=nb.device,
                    schedule=lambda done: 0.2 ** sum(done >= share for share in (0.3, 0.6, 0.8)),
                    augment=shift_and_flip(4 if s.channels == 3 else 1, flip=s.channels == 3),
                    evaluate_every=max(1, s.steps // EVALUATIONS), bf16=nb.bf16, graphs=True)
    return {"rows": [{"rule": name, "seed": seed, **row} for row in history.rows]}
