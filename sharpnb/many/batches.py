"""What K members train on: each its own images, labels, batch order and augmentation, drawn from its own seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sharpnb.many.augment import Augment, each_by_its_own

Pair = tuple[Tensor, Tensor]  # images (N, ...) and class numbers (N,)


class DataSet(Protocol):
    """What to train and to test on, held in memory; :class:`sharpnb.lab.Data` is one, :class:`Tensors` another."""

    @property
    def train(self) -> Pair: ...  # noqa: D102
    @property
    def test(self) -> Pair: ...  # noqa: D102
    @property
    def classes(self) -> int: ...  # noqa: D102


class Tensors(NamedTuple):
    """A data set of bare tensors: images (N, ...) and class numbers (N,), twice, and how many classes there are."""

    train: Pair
    test: Pair
    classes: int


def one_each(data: Any, members: int) -> list[Any]:
    """Return a data set for each member; ValueError where there is not one for all, or one of equal size for each."""
    sets = [data] * members if hasattr(data, "train") else list(data)
    if len(sets) != members or len({len(each.train[1]) for each in sets}) > 1:
        raise ValueError(f"{len(sets)} data sets for {members} nets: give one for all, or one each of one size.")
    return sets


def wrong_labels(y: Tensor, rate: float, classes: int, seed: int) -> Tensor:
    """Return labels of which exactly ``round(rate * N)`` are moved to a *different* class, drawn uniformly.

    A ValueError for a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate = {rate}: the share of wrong labels lies in [0, 1].")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(y), generator=generator)[: round(rate * len(y))]
    shift = torch.randint(1, classes, (len(chosen),), generator=generator)
    labels = y.clone()
    labels[chosen] = (labels[chosen] + shift.to(labels.device)) % classes
    return labels


class Batches:
    """The batches of K members, on the device.

    Members with the same seed and images share one stream: the same order and the same augmentation, drawn as
    :func:`sharpnb.lab.train` draws them. There are a data set (from :func:`one_each`) and a seed for each member.

    Attributes:
        own: each member's data set, moved.
        size: images a batch; all of them where there are fewer.
    """

    def __init__(
        self, sets: Sequence[DataSet], seeds: Sequence[int], batch_size: int, augment: Augment | None,
        device: str | torch.device, dtype: torch.dtype,
    ) -> None:
        given = {id(one): Tensors(one.train, one.test, one.classes) for one in sets}
        images = {_memory(x): x.to(device, dtype) for one in given.values() for x, _ in one[:2]}
        labels = {_memory(y): y.to(device) for one in given.values() for _, y in one[:2]}
        moved = {key: Tensors._make([*((images[_memory(x)], labels[_memory(y)]) for x, y in one[:2]), one.classes])
                 for key, one in given.items()}
        self.own = own = [moved[id(one)] for one in sets]
        self.labels = torch.stack([one.train[1] for one in own])  # (K, N)
        self.augment, self.size = augment, min(batch_size, self.labels.shape[1])

        distinct = list({id(one.train[0]): one.train[0] for one in own}.values())
        self.images = torch.cat(distinct) if len(distinct) > 1 else distinct[0]
        first = {id(x): k * self.labels.shape[1] for k, x in enumerate(distinct)}
        keys = [(first[id(one.train[0])], seed) for one, seed in zip(own, seeds, strict=True)]
        streams = list(dict.fromkeys(keys))
        which = [streams.index(key) for key in keys]
        self.stream = None if len(streams) == len(sets) else torch.tensor(which, device=device)
        self.first = torch.tensor([[place] for place, _ in streams], device=device)  # (streams, 1)
        self.generators = [torch.Generator().manual_seed(seed) for _, seed in streams]
        self.order, self.seen = torch.empty(0), self.labels.shape[1]

    def groups(self, *parts: str) -> list[tuple[Tensors, Tensor]]:
        """Return a data set for each that differs in these ``parts``, and the numbers of the members that have them."""
        found: dict[tuple[int, ...], list[int]] = {}
        for k, one in enumerate(self.own):
            found.setdefault(tuple(id(t) for part in parts for t in getattr(one, part)), []).append(k)
        return [(self.own[own[0]], torch.tensor(own, device=self.labels.device)) for own in found.values()]

    def draw(self) -> Pair:
        """Return the next images (K, B, ...) and labels (K, B); an epoch's last incomplete batch is left out."""
        n = self.labels.shape[1]
        if self.seen + self.size > n:
            orders = [torch.randperm(n, generator=generator) for generator in self.generators]
            self.order, self.seen = torch.stack(orders).to(self.labels.device), 0
        index = self.order[:, self.seen : self.seen + self.size]  # (streams, B)
        self.seen += self.size
        return self._at(index, self.augment)

    def in_order(self) -> Iterator[Pair]:
        """Yield the training images once, in their own order, as they are, in whole batches: for measurements."""
        for start in range(0, self.labels.shape[1] - self.size + 1, self.size):
            index = torch.arange(start, start + self.size, device=self.labels.device)
            yield self._at(index.expand(len(self.generators), -1), None)

    def _at(self, index: Tensor, augment: Augment | None) -> Pair:
        # index_select copies whole images and is twice as fast as an index.
        x = self.images.index_select(0, (index + self.first).flatten()).unflatten(0, index.shape)
        x = each_by_its_own(augment, x, self.generators) if augment else x
        if self.stream is not None:
            x = x.expand(len(self.stream), *x.shape[1:]) if len(x) == 1 else x.index_select(0, self.stream)
            index = index[self.stream]
        return x, self.labels.gather(1, index)


def _memory(x: Tensor) -> tuple[Any, ...]:
    """Return what is equal for tensors that are the same numbers in memory: data sets may share their images."""
    return x.data_ptr(), x.shape, x.stride()
