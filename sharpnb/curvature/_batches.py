"""The data of one measurement: batches in a fixed order, each with its weight in the mean."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from sharpnb.trees import moved, tensors

Reduction = Literal["mean", "sum"]


class Batch(NamedTuple):
    """One batch and its share of the data set.

    Attributes:
        index: its number in the order of the data.
        inputs: what the model gets: a tensor, a tuple (``model(*inputs)``) or a mapping (``model(**inputs)``).
        target: second argument of the loss.
        size: number of samples (length of the first tensor in ``inputs``).
        count: number of loss terms; the weight of the batch is ``count / total`` for a mean, 1 for a sum.
    """

    index: int
    inputs: Any
    target: Any
    size: int
    count: float


def forward(model: nn.Module, inputs: Any) -> Any:
    """Call the model on one batch of inputs (tensor, tuple or mapping)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _is_one_batch(data: Any) -> bool:
    """``(x, y)`` or ``[x, y]`` is one batch; a list whose two entries are both pairs is two batches."""
    if not (isinstance(data, tuple | list) and len(data) == 2):
        return False
    return not all(isinstance(entry, tuple | list) and len(entry) == 2 for entry in data)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave the random states of torch (CPU, CUDA), NumPy and Python as they were found."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    devices = torch.cuda.get_rng_state_all() if cuda else None
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


class Batches:
    """Batches in a fixed order.

    Args:
        data: one batch ``(x, y)``, a list of batches, or an iterable of batches such as a ``DataLoader``.
        device: where the batches are moved to.
        reduction: what the loss does within a batch; ``"mean"`` weighs batches by their ``count``.
        count: ``count(x, y)``, the number of loss terms of a batch (tokens, pixels); default the number of samples.
        hold: keep the batches of one pass in memory. ``False`` reads the iterable anew for every product.

    Raises:
        ValueError: if there is no batch, a batch is not a pair, or two passes of a re-read loader differ.
    """

    def __init__(
        self, data: Any, device: torch.device, reduction: Reduction = "mean",
        count: Callable[[Any, Any], float] | None = None, hold: bool = True,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction = {reduction!r}: the loss averages ('mean') or adds ('sum') within a batch.")
        self.device, self.reduction, self._count = device, reduction, count
        self._source: Iterable[Any] = [data] if _is_one_batch(data) else data
        with kept_random_state():
            if isinstance(data, DataLoader):
                _say_what_is_random(data, hold)
            self._held = list(self._read()) if hold else None
            sizes = [(batch.size, batch.count) for batch in self]
        if not sizes:
            raise ValueError("data holds no batch: pass (x, y), a list of (x, y), or a DataLoader with at least one.")
        self.samples = sum(size for size, _ in sizes)
        self.total = float(sum(count for _, count in sizes))

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._held) if self._held is not None else self._read()

    @property
    def held(self) -> list[Batch] | None:
        """The batches when they are kept in memory."""
        return self._held

    def weight(self, batch: Batch) -> float:
        """Return the factor of this batch's loss in the loss of the whole data."""
        return batch.count / self.total if self.reduction == "mean" else 1.0

    def _read(self) -> Iterator[Batch]:
        return (self._prepare(index, raw) for index, raw in enumerate(self._source))

    def _prepare(self, index: int, raw: Any) -> Batch:
        if not (isinstance(raw, tuple | list) and len(raw) == 2):
            what = f"a {type(raw).__name__}" + (f" of {len(raw)} entries" if hasattr(raw, "__len__") else "")
            raise ValueError(f"A batch must be a pair (inputs, target), and this one is {what}. "
                             "Several inputs go into a tuple or a dict: ((x1, x2), y), ({'ids': ids}, y).")
        inputs, target = (moved(part, self.device) for part in raw)
        first = next(tensors(inputs), None)
        if first is None or first.dim() == 0:
            raise ValueError("The inputs of a batch hold no tensor with a batch dimension; its size is unknown.")
        count = float(self._count(inputs, target)) if self._count else float(len(first))
        return Batch(index, inputs, target, len(first), count)


def _say_what_is_random(loader: DataLoader, hold: bool) -> None:
    """Name shuffling and augmentation: an error where products would differ, a warning where only two runs would."""
    sampler: Any = loader.sampler if loader.sampler is not None else loader.batch_sampler
    if isinstance(sampler, BatchSampler):
        sampler = sampler.sampler
    causes = []
    if isinstance(sampler, torch.utils.data.RandomSampler):
        causes.append(("shuffling", "pass shuffle=False", not hold or loader.drop_last))
    elif not isinstance(sampler, SequentialSampler) and not hold:
        causes.append((f"the order of {type(sampler).__name__}", "use a SequentialSampler", _passes_differ(loader)))
    if hasattr(loader.dataset, "__getitem__"):
        once, twice = list(tensors(loader.dataset[0])), list(tensors(loader.dataset[0]))
        same = all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))
        causes.append(("augmentation (the first item read twice differs)", "use the evaluation transform", not same))
    for name, remedy, matters in causes:
        if matters and not hold:
            raise ValueError(f"hold=False reads the data anew for every product, and {name} makes each one different; "
                             f"Lanczos needs one fixed operator. {remedy.capitalize()}, or hold=True.")
        if matters:
            warnings.warn(f"The data is random through {name}. The batches of one pass are held, so all products "
                          f"agree, but the next operator would see others: {remedy}.", stacklevel=5)


def _passes_differ(loader: DataLoader) -> bool:
    first, second = (next(tensors(next(iter(loader)))) for _ in range(2))
    return first.shape != second.shape or not torch.equal(first, second)
