"""Twelve channels as sixteen, where that is the faster convolution.

With AVX-512, PyTorch's grouped 3 x 3 convolutions from four or eight channels to twelve have a kernel of their own, and
a slow one: on images of 8 x 8 it takes 2.8 times what sixteen channels take (2.3 with a stride of 2 from 16 x 16). To
fill up other numbers of channels, up to 36, gained at most 1.4, for which the next layer pays.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_READ, _WRITTEN, _FASTER = (4, 8), 12, 16


def widen(layers: Sequence[Any], weights: list[list[Tensor]]) -> None:
    """Let the slow convolutions of a chain write more channels: zeros, which the next layer multiplies by zeros.

    Args:
        layers: of a chain, whose parameters and statistics get the new shapes (their numbers of channels stay).
        weights: theirs, (K, *shape) each; those concerned are replaced.
    """
    for i, layer in enumerate(layers):
        if type(layer) is not nn.Conv2d or layer.out_channels != _WRITTEN or layer.in_channels not in _READ:
            continue
        reader = next((j for j in range(i + 1, len(layers)) if type(layers[j]) in (nn.Conv2d, nn.Linear)), None)
        if reader is None:  # its channels are the outputs
            continue
        for j in range(i, reader):
            weights[j] = [_longer(w, 1) for w in weights[j]]
            for name, statistic in layers[j].named_buffers():
                if name != "num_batches_tracked":
                    setattr(layers[j], name, _longer(statistic, 0))
        weights[reader][0] = _longer(weights[reader][0], 2)
        for j in range(i, reader + 1):
            for p, w in zip(layers[j].parameters(), weights[j], strict=True):
                p.data = w[0]


def _longer(t: Tensor, axis: int) -> Tensor:
    """Append zeros along an axis that runs over channels, or over channels and places."""
    by_channel = t.unflatten(axis, (_WRITTEN, -1))
    shape = list(by_channel.shape)
    shape[axis] = _FASTER - _WRITTEN
    return torch.cat([by_channel, t.new_zeros(shape)], axis).flatten(axis, axis + 1)
