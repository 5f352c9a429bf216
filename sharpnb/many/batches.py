"""What each of many members sees: its own split, labels, batch order and augmentation, drawn from its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sharpnb.lab.augment import Augment, each_by_its_own
from sharpnb.lab.data import Data, with_label_noise


class Feed:
    """The batches of K members: :meth:`next_batch` returns (K, B, C, H, W) images and (K, B) labels.

    Members with the same seed and images share one stream: the same order, the same augmentation, drawn as
    :func:`sharpnb.lab.train` draws them. Label noise is drawn from the seed too (``with_label_noise``).

    Attributes:
        parts: each distinct data set with the members that it is evaluated for.
    """

    def __init__(
        self, configs: Sequence[dict[str, Any]], sets: Sequence[Data], batch_size: int, augment: Augment | None,
        device: torch.device, dtype: torch.dtype,
    ) -> None:
        self.augment = augment
        clean: dict[int, Data] = {}
        noisy: dict[tuple[int, float, int], Data] = {}
        members: dict[tuple[int, float, int], list[int]] = {}
        for k, (config, data) in enumerate(zip(configs, sets, strict=True)):
            noise = float(config.get("label_noise", 0.0))
            key = (id(data), noise, config["seed"] if noise else 0)
            here = clean.setdefault(id(data), data.to(device, dtype))
            noisy.setdefault(key, with_label_noise(here, noise, config["seed"]) if noise else here)
            members.setdefault(key, []).append(k)
        self.parts = [(noisy[key], torch.tensor(rows, device=device)) for key, rows in members.items()]

        streams: dict[tuple[int, int], int] = {}
        stream = [streams.setdefault((id(d), c["seed"]), len(streams)) for c, d in zip(configs, sets, strict=True)]
        self.generators = [torch.Generator().manual_seed(seed) for _, seed in streams]
        self.stream = None if stream == list(range(len(configs))) else torch.tensor(stream, device=device)
        labels = {k: part for part, rows in self.parts for k in rows.tolist()}
        self.labels = torch.stack([labels[k].train_y for k in range(len(configs))])  # (K, N)
        self.size = min(batch_size, self.labels.shape[1])

        images = [clean[data].train_x for data, _ in streams]
        distinct = {x.data_ptr(): x for x in images}  # the splits of a large data set share their images
        self.images = torch.cat(list(distinct.values())) if len(distinct) > 1 else images[0]
        first = {pointer: place * len(images[0]) for place, pointer in enumerate(distinct)}
        self.first = torch.tensor([[first[x.data_ptr()]] for x in images], device=device)  # (streams, 1)
        self.order, self.seen = torch.empty(0), self.labels.shape[1]

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """Return the next batch of every member; an epoch's last incomplete one is left out, as in ``batches``."""
        n = self.labels.shape[1]
        if self.seen + self.size > n:
            orders = [torch.randperm(n, generator=generator) for generator in self.generators]
            self.order, self.seen = torch.stack(orders).to(self.labels.device), 0
        index = self.order[:, self.seen : self.seen + self.size]  # (streams, B)
        self.seen += self.size
        # index_select copies whole images and is twice as fast as an index.
        x = self.images.index_select(0, (index + self.first).flatten()).unflatten(0, index.shape)
        x = each_by_its_own(self.augment, x, self.generators) if self.augment else x
        if self.stream is not None:
            x = x.expand(len(self.stream), *x.shape[1:]) if len(x) == 1 else x.index_select(0, self.stream)
            index = index[self.stream]
        return x, self.labels.gather(1, index)
