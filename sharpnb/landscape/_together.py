r"""The forward pass at many points of a plane in one call, through :mod:`sharpnb.many.net`.

On a plane the output of a first linear layer is affine in the coordinates, :math:`A_0 + x A_1 + y A_2`: three products
serve all points, and the layers after it run on their mixtures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharpnb.many.net import BatchedNet, Statistics


class Together:
    """The outputs of a net at P points of a plane; points are rows (1, x, y) of coordinates, (P, 3).

    The model is in evaluation mode, ``vectors`` are origin, u and v, (3, n), in its type and on its device. The
    ``renewed`` BatchNorm layers have statistics of their own at each point, others those of the model (``running``).

    Raises:
        ValueError: if many nets of this architecture are not one program.
    """

    def __init__(self, model: nn.Module, vectors: Tensor, x: Tensor, renewed: Collection[nn.Module]) -> None:
        if any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()):
            raise ValueError("Hooks would not be called.")
        self.before, first, rest = _parted(model)
        sizes = [sum(p.numel() for p in part.parameters()) for part in (first, rest)]
        own, self.vectors = vectors.split(sizes, 1)
        self.first = [_shaped(row, list(first.parameters())) for row in own] if sizes[0] else None
        self.memory = vectors.new_empty(0)  # of the mixtures: taken once, not at each call
        self.net = BatchedNet(rest, self._mixed(self.prepared(x), vectors.new_ones(1, 3)).shape[2:])
        norms: list[Any] = self.net.norms
        if not self.net.by_twins or any(layer.running_mean is None for layer in norms):
            raise ValueError("Many nets of this kind are not one program.")
        self.outputs = model(x).shape[1:]
        self.running: Statistics = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in norms]
        self.renewed = [layer in renewed for layer in norms]
        self.renews = any(self.renewed)

    def prepared(self, x: Tensor) -> Tensor:
        """Return what does not depend on the point: the first layer's three terms (3, B, ...), or the inputs."""
        if self.first is None:
            return x
        x = self.before(x)
        return torch.stack([F.linear(x, *weights) for weights in self.first])

    def __call__(self, prepared: Tensor, coordinates: Tensor, statistics: Statistics) -> Tensor:
        """Return the outputs (P, B, ...), norms by :meth:`statistics` at these points."""
        out = self.net(coordinates @ self.vectors, self._mixed(prepared, coordinates), statistics)
        return out.unflatten(2, self.outputs)

    def statistics(self, batches: Iterable[Tensor], coordinates: Tensor) -> Statistics:
        """Return each norm layer's statistics at the points: its own, or those of one pass over prepared batches."""
        points = len(coordinates)
        fixed = [None if renewed else (mean.repeat(points), variance.repeat(points))
                 for renewed, (mean, variance) in zip(self.renewed, self.running, strict=True)]
        chunks = (self._mixed(batch, coordinates) for batch in batches) if self.renews else ()
        return self.net.statistics(coordinates @ self.vectors, chunks, fixed)

    def _mixed(self, prepared: Tensor, coordinates: Tensor) -> Tensor:
        """Return what enters the net, (P, B, ...): the inputs, or the first layer's outputs at the points."""
        if self.first is None:
            return prepared.expand(len(coordinates), *prepared.shape)
        shape = len(coordinates), *prepared.shape[1:]
        if self.memory.numel() < math.prod(shape):
            self.memory = prepared.new_empty(math.prod(shape))
        memory = self.memory[: math.prod(shape)].view(len(coordinates), -1)
        return torch.mm(coordinates, prepared.flatten(1), out=memory).view(shape)


def _parted(model: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Return what comes before a first linear layer, the layer, and the rest; where none comes first, all is rest."""
    layers = list(model) if type(model) is nn.Sequential else []
    place = next((i for i, layer in enumerate(layers) if type(layer) not in (nn.Flatten, nn.Identity)), len(layers))
    parts = layers[:place], layers[place : place + 1], layers[place + 1 :]
    before, first, rest = (nn.Sequential(*part).eval() for part in parts)
    own, later, every = (sum(p.numel() for p in part.parameters()) for part in (first, rest, model))
    if later and own + later == every and type(first[0]) is nn.Linear:
        return before, first, rest
    return nn.Sequential(), nn.Sequential(), model


def _shaped(row: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    pieces = row.split([p.numel() for p in parameters])
    return [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]
