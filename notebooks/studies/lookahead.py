"""Notebook 16: the settings of its small net, and of CIFAR-10."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sharpnb.lab import models


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
