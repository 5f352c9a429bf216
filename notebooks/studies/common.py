"""What notebooks share: what trainings are told, their images, the spread over seeds, controls beside a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch import nn

from sharpnb.lab.claims import t95
from sharpnb.lab.data import Data, load_data, with_label_noise


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained.

    Attributes:
        label: net and data in a few words, for the claims.
        data, train_size: name of the data set; training images, drawn by each seed where the set is split by us.
        model: seed -> net (of notebook 04: width and seed -> net).
        steps, batch_size, lr, momentum: of SGD, and of SAM's base.
        seeds: of the judging; a number stands for the first ones.
        dtype: of weights and images.
    """

    label: str
    data: str
    train_size: int | None
    model: Callable[..., nn.Module]
    steps: int
    seeds: int | range
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    dtype: torch.dtype = torch.float32

    @property
    def base(self) -> dict[str, float]:
        """The hyperparameters of SGD."""
        return {"lr": self.lr, "momentum": self.momentum, "weight_decay": getattr(self, "weight_decay", 0.0)}

    def images(self, seed: int, noise: float = 0.0) -> Data:
        """Load the images of a seed, with a share of wrong training labels."""
        return _images(self.data, self.train_size, seed, self.dtype, noise)


@cache
def _images(name: str, size: int | None, seed: int, dtype: torch.dtype, noise: float) -> Data:
    data = load_data(name, train_size=size, seed=seed if name in ("digits", "mnist1d") else 0, dtype=dtype)
    return with_label_noise(data, noise, seed)


def spread(groups: Any) -> pd.DataFrame:
    """Return mean and standard error of each group of a column, their number, and half of the 95 % interval.

    Two seeds have no interval that fits a picture: their half is not a number, which no figure draws.
    """
    found = groups.agg(["mean", "sem", "count"])
    found["half"] = (t95(found["count"]) * found["sem"]).where(found["count"] > 2)
    return found


def with_controls(draw: Callable[..., Any], controls: Mapping[str, Any]) -> Any:
    """Return an ipywidgets panel: ``draw(name=value, …)`` makes the picture, now and whenever a control has moved.

    The picture is an image and not an output area, as ``ipywidgets.interactive_output`` would have it: what executes
    notebooks without a browser answers an output area's messages through the very socket on which it awaits the end of
    the cell, and now and then waits for ever (nbclient's issue 312).
    """
    import ipywidgets as widgets
    import matplotlib.pyplot as plt

    picture = widgets.Image(format="png")

    def redraw(_change: Any = None) -> None:
        figure, content = draw(**{name: control.value for name, control in controls.items()}), io.BytesIO()
        figure.savefig(content, format="png", dpi="figure", bbox_inches="tight")
        plt.close(figure)
        picture.value = content.getvalue()

    redraw()
    for control in controls.values():
        control.observe(redraw, "value")
    column = widgets.VBox(list(controls.values()), layout={"flex": "0 0 auto"})  # else the numbers are cut off
    return widgets.HBox([column, picture])
