"""What notebooks share: what trainings are told, their images, the spread over seeds, controls beside a picture."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sharpnb.lab import Data, load_data, t95, with_label_noise


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained: ``label`` says net and data, for the claims.

    ``model`` is seed -> net (of notebook 04: width and seed -> net); ``steps`` to ``momentum`` are SGD's, and those of
    SAM's base; a number of judging ``seeds`` stands for the first ones.
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


def half_width(values: np.ndarray) -> float:
    """Return the half-width of the two-sided 95 % Student interval of the mean."""
    return float(t95(len(values)) * np.std(values, ddof=1) / len(values) ** 0.5)


def spread(groups: Any) -> pd.DataFrame:
    """Return mean, standard error and number of each group, and half of the 95 % interval (of two seeds NaN)."""
    found = groups.agg(["mean", "sem", "count"])
    found["half"] = (t95(found["count"]) * found["sem"]).where(found["count"] > 2)
    return found


def with_controls(draw: Callable[..., Any], controls: Mapping[str, Any]) -> Any:
    """Return an ipywidgets panel: ``draw(name=value, …)`` makes the picture, now and whenever a control has moved.

    It is an image and no output area, as of ``ipywidgets.interactive_output``: a kernel without a browser answers an
    output area's messages through the socket on which it awaits the end of the cell, and now and then waits for ever
    (nbclient's issue 312).
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
