"""The losses at points of a plane: the chain's fast way, and one forward pass a point for every other net."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb.averaging.batchnorm import update_bn
from sharpnb.landscape._stacked import Stacked, chain
from sharpnb.landscape.losses import Losses, stacked_losses
from sharpnb.landscape.plane import Plane

# Numbers of the first layer's output that a group of points may have together: about what a core's cache holds, and
# enough to keep a GPU busy.
_GROUP = {"cpu": 2**18, "cuda": 2**26}
_CHUNK = {"cpu": 250, "cuda": 2048}


class Points:
    """The means of the losses over each data set, at any points of a plane.

    The caller's model is never touched: everything happens in a copy in evaluation mode.

    Attributes:
        names: of the columns: ``"<set>_<loss>"``, or ``"<loss>"`` for data without a name.
        at_once: points that one call should be given for speed.
    """

    def __init__(
        self, model: nn.Module, plane: Plane, data: Any, losses: Losses, bn_data: Any = None,
        batch_size: int | None = None,
    ) -> None:
        kinds = {(p.dtype, p.device) for p in model.parameters()}
        count = sum(p.numel() for p in model.parameters())
        if len(kinds) != 1 or count != len(plane.origin):
            raise ValueError(f"The model has {count} weights of {len(kinds)} types or devices, the plane has "
                             f"{len(plane.origin)}. A plane needs one type, one device, and its own architecture.")
        self.dtype, self.device = kinds.pop()
        self.losses = stacked_losses(losses)
        sets = data if isinstance(data, Mapping) else {"": data}
        chunk = batch_size or _CHUNK.get(self.device.type, 250)
        self.sets = {name: list(self._batches(part, chunk)) for name, part in sets.items()}
        if not all(self.sets.values()):
            raise ValueError("data holds no sample: give (x, y), a list of (x, y), or a dictionary of those.")
        self.names = [f"{part}_{loss}".lstrip("_") for part in self.sets for loss in self.losses]
        self.vectors = torch.stack([plane.origin, plane.u, plane.v])  # float64 on the CPU
        layers = chain(model) if bn_data is None else None
        self.stacked = self._stacked(model, layers) if layers else None
        self.at_once = 128 if self.stacked else 1
        if not self.stacked:
            self._private_copy(model, list(bn_data) if isinstance(bn_data, Iterator) else bn_data)

    @torch.inference_mode()
    def __call__(self, xy: Sequence[tuple[float, float]]) -> Tensor:
        """Return the losses at the points, (P, names) in float64 on the CPU."""
        coefficients = torch.tensor([(1.0, x, y) for x, y in xy], dtype=torch.float64)
        means = self._by_groups(self.stacked, coefficients) if self.stacked else self._one_by_one(coefficients)
        return means.double().cpu()

    # -- chains -------------------------------------------------------------------------------------------------------

    def _stacked(self, model: nn.Module, layers: list[nn.Module]) -> Stacked | None:
        layers = list(copy.deepcopy(nn.Sequential(*layers)).eval())
        stacked = Stacked(layers, self.vectors.to(self.device, self.dtype))
        with torch.inference_mode():
            shape = stacked.prepare(next(iter(self.sets.values()))[0][0][:1]).shape
        return stacked if len(shape) in (3, 5) else None

    def _by_groups(self, stacked: Stacked, coefficients: Tensor) -> Tensor:
        coefficients = coefficients.to(self.device, self.dtype)
        sums = torch.zeros(len(coefficients), len(self.names), dtype=torch.float64, device=self.device)
        for first, _, batches, total in self._columns():
            for x, y in batches:
                prepared = stacked.prepare(x)
                group = max(1, _GROUP.get(self.device.type, 2**18) // prepared[0].numel())
                for start in range(0, len(coefficients), group):
                    outputs = stacked(prepared, coefficients[start : start + group])
                    for column, loss in enumerate(self.losses.values(), first):
                        sums[start : start + group, column] += loss(outputs, y) * (len(x) / total)
        return sums

    # -- any net ------------------------------------------------------------------------------------------------------

    def _private_copy(self, model: nn.Module, bn_data: Any) -> None:
        self.model, self.bn_data = copy.deepcopy(model).requires_grad_(False), bn_data
        self.modes = [(m, m.training) for m in self.model.modules()]
        self.flat = self.vectors[0].to(self.device, self.dtype, copy=True)
        start = 0
        for p in self.model.parameters():
            p.data = self.flat[start : start + p.numel()].view_as(p)
            start += p.numel()

    def _one_by_one(self, coefficients: Tensor) -> Tensor:
        return torch.stack([self._one(row) for row in coefficients])

    def _one(self, row: Tensor) -> Tensor:
        self.flat.copy_(row @ self.vectors)
        if self.bn_data is not None:
            for module, training in self.modes:
                module.training = training
            update_bn(self.model, self.bn_data)
        self.model.eval()
        means = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        for first, _, batches, total in self._columns():
            for x, y in batches:
                outputs = self.model(x)[None]
                for column, loss in enumerate(self.losses.values(), first):
                    means[column] += loss(outputs, y)[0] * (len(x) / total)
        return means

    # -- data ---------------------------------------------------------------------------------------------------------

    def _columns(self) -> Iterator[tuple[int, str, list[tuple[Tensor, Tensor]], int]]:
        for i, (name, batches) in enumerate(self.sets.items()):
            yield i * len(self.losses), name, batches, sum(len(x) for x, _ in batches)

    def _batches(self, data: Any, chunk: int) -> Iterator[tuple[Tensor, Tensor]]:
        pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
        for x, y in [data] if pair else data:
            x = x.to(self.device, self.dtype if x.is_floating_point() else None)
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            yield from zip(x.split(chunk), y.to(self.device).split(chunk), strict=True)
