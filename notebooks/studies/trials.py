"""Trials of hyperparameters, on seeds of their own (how nets and data were chosen: ``data/chosen_by.toml``)."""

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Any

import pandas as pd
from torch import nn

from sharpnb.lab import Data, train_many

SEEDS = range(100, 106)  # of all tuning; no judging seed is among them
Rows = list[dict[str, Any]]


def grid(**axes: Iterable[Any]) -> tuple[dict[str, Any], ...]:
    """Return a setting for each combination of values, the last name varying fastest."""
    return tuple(dict(zip(axes, taken, strict=True)) for taken in product(*axes.values()))


def powers(first: int, last: int, base: float = 2.0) -> tuple[float, ...]:
    """Return base**first, …, base**last."""
    return tuple(base**k for k in range(first, last + 1))


def trials(settings: Iterable[Mapping[str, Any]], images: Callable[[int], Data], model: Callable[[int], nn.Module],
           seeds: Iterable[int] = SEEDS, **told: Any) -> Rows:
    """Train each setting with each seed on the seed's own split; return settings with their errors, a row each."""
    members = [{**own, "seed": seed} for own in settings for seed in seeds]
    many = train_many(members, [images(member["seed"]) for member in members], model, device="cpu", **told)
    return [member | {name: final[name] for name in ("train_loss", "train_error", "test_error")}
            for member, final in zip(members, many.final(), strict=True)]


def best(rows: Any, *names: str, error: str = "test_error") -> dict[str, Any]:
    """Return the values of ``names`` at the setting of least mean error on held-out data, of equals the first."""
    found = pd.DataFrame(rows).groupby(list(names), sort=False)[error].mean().round(9).idxmin()
    return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=True))


def edges(chosen: Mapping[str, Any], tried: Iterable[Mapping[str, Any]], fewest: int = 2) -> list[str]:
    """Return the names whose chosen value is the first or last of those tried, where there are ``fewest`` or more."""
    values = {name: sorted({own[name] for own in tried}) for name in chosen}
    return [name for name, all_of in values.items()
            if len(all_of) >= fewest and chosen[name] in (all_of[0], all_of[-1])]


def extended(values: Iterable[float], error: Callable[[float], float], most: int) -> tuple[float, dict[float, float]]:
    """Return the value of least error, and each error; values go on past an end that is the best, ``most`` of them."""
    found = {value: error(value) for value in values}
    while True:
        order, least = sorted(found), min(found, key=lambda value: found[value])
        beside = {order[0]: order[1], order[-1]: order[-2]}.get(least)
        if beside is None or len(found) >= most:
            return least, found
        new = float(f"{least * least / beside:.4g}")
        found[new] = error(new)
