"""Trials of hyperparameters on seeds of their own: what notebooks 03, 04 and 18 tune with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
from torch import nn

from sharpnb.lab.data import Data
from sharpnb.many.train import train_many

SEEDS = range(100, 106)  # of all tuning; no judging seed is among them
Rows = list[dict[str, Any]]


def trials(settings: Iterable[Mapping[str, Any]], images: Callable[[int], Data], model: Callable[[int], nn.Module],
           seeds: Iterable[int] = SEEDS, **told: Any) -> Rows:
    """Train each setting with each seed on the seed's own split; return settings with their errors, a row each."""
    members = [{**own, "seed": seed} for own in settings for seed in seeds]
    many = train_many(members, [images(member["seed"]) for member in members], model, device="cpu", **told)
    return [member | {name: final[name] for name in ("train_loss", "train_error", "test_error")}
            for member, final in zip(members, many.final(), strict=True)]


def best(rows: Rows, *names: str) -> dict[str, Any]:
    """Return the values of ``names`` at the setting of least mean error on held-out data."""
    found = pd.DataFrame(rows).groupby(list(names))["test_error"].mean().idxmin()
    return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))
