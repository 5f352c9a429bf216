"""The data of a measurement, by name: a list of batches in one order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from sharpnb import usercode
from sharpnb.datafiles import NAMES
from sharpnb.trees import mapped


def load_batches(
    spec: str, *, split: str = "train", batch_size: int = 256, limit: int | None = None,
    dtype: torch.dtype | None = None, say: Callable[[str], None] = lambda _: None,
) -> list[tuple[Any, Any]]:
    """Return data as a list of batches in a fixed order.

    Args:
        spec: a data set of :func:`sharpnb.lab.load_data`; ``module:function``, whose result is a pair of tensors
            ``(x, y)``, a list of batches, a ``Dataset`` or a ``DataLoader``; or ``noise:3x224x224``, one batch of
            Gaussian inputs of that shape with labels 0 to 9 drawn at random, which is good for a try and nothing else.
        split: ``"train"`` or ``"test"``, of a named data set.
        batch_size: how tensors and data sets are cut.
        limit: take this many batches from the start.
        dtype: of floating-point inputs and targets.
        say: is told that a loader shuffles.

    Raises:
        ValueError: if there is no such data, it cannot be read, or it is no batch.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"batches = {limit}: at least one is needed.")
    if spec.partition(":")[0] == "noise":
        found: Any = _noise(spec, batch_size)
    elif ":" in spec:
        made = usercode.find(spec, "data")
        found = made() if callable(made.value) and not isinstance(made.value, Dataset) else made.value
    elif spec in NAMES:
        found = _named(spec, split)
    else:
        raise ValueError(f"data {spec!r}: choose {', '.join(NAMES)}, noise:CxHxW, or module:function for your own.")
    if isinstance(found, DataLoader) and shuffles(found):
        say("The loader shuffles without a seed of its own. Its order follows --seed here, so that a run that was "
            "interrupted can resume; shuffle=False is the order of the data.")
    batches = []

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if dtype is not None and t.is_floating_point() else t

    for batch in _read(spec, found, batch_size):
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise ValueError(f"data {spec!r} gives a {type(batch).__name__} as a batch; it must be a pair (inputs, "
                             "target).")
        batches.append(tuple(mapped(cast, part) for part in batch))
        if len(batches) == limit:
            break
    return batches


def load_count(spec: str | None) -> Any:
    """Return how many loss terms batches hold: a number for each, or what ``module:function`` says of ``(x, y)``.

    Raises:
        ValueError: for another text.
    """
    if spec is None:
        return None
    if ":" in spec:
        made = usercode.find(spec, "count")
        return wraps(made.value)(lambda *batch: made(*batch)) if callable(made.value) else made.value
    try:
        return float(spec)
    except ValueError:
        raise ValueError(f"count {spec!r}: give a number, which every batch counts, or file.py:function of (x, y) that "
                         "returns the number of samples, or of terms which the loss averages over.") from None


def seed_everything(seed: int) -> None:
    """Seed what a user's functions draw from: a loader's order, weights that no checkpoint replaces."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def shuffles(loader: DataLoader) -> bool:
    """Whether a loader draws its order from the global random state."""
    sampler = loader.sampler if loader.sampler is not None else getattr(loader.batch_sampler, "sampler", None)
    return isinstance(sampler, RandomSampler) and sampler.generator is None and loader.generator is None


def _named(name: str, split: str) -> tuple[Tensor, Tensor]:
    from sharpnb.lab.data import DataError, load_data

    if split not in ("train", "test"):
        raise ValueError(f"split = {split!r}: choose train or test.")
    try:
        data = load_data(name)
    except DataError as error:
        raise ValueError(str(error)) from error
    return data.train if split == "train" else data.test


def _read(spec: str, found: Any, size: int) -> Iterator[Any]:
    """Yield batches; what goes wrong in a user's data set is a sentence."""
    count = 0
    try:
        for batch in _cut(found, size):
            yield batch
            count += 1
    except Exception as error:  # of a user's data set, of collating its samples, of a worker process
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [""]
        raise ValueError(f"data {spec!r}: batch {count + 1} cannot be read: {type(error).__name__}: {lines[-1]}"
                         ) from error


def _cut(found: Any, size: int) -> Iterable[Any]:
    if isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, Tensor) for part in found):
        x, y = found
        if not x.dim() or not y.dim() or len(x) != len(y):
            raise ValueError(f"x has the shape {tuple(x.shape)} and y {tuple(y.shape)}; the first axes are the samples")
        return zip(x.split(size), y.split(size), strict=True)
    return DataLoader(found, batch_size=size) if isinstance(found, Dataset) else found


def _noise(spec: str, size: int) -> tuple[Tensor, Tensor]:
    try:
        shape = [int(side) for side in (spec.partition(":")[2] or "3x224x224").split("x")]
    except ValueError:
        raise ValueError(f"data {spec!r}: write the shape of one input as in noise:3x224x224.") from None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, *shape, generator=generator), torch.randint(10, (size,), generator=generator)
