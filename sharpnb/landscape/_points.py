"""The losses at points of a plane: the chain's fast way, and one forward pass a point for every other net."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb.averaging.batchnorm import inputs, unfrozen, update_bn
from sharpnb.landscape._stacked import Moments, Stacked, chain
from sharpnb.landscape.losses import Losses, stacked_losses
from sharpnb.landscape.plane import Plane

# Numbers that a group of points, or a layer's output, may hold at a time: about what a core's cache takes, and enough
# to keep a GPU busy. Samples a forward pass at least and, for small nets, at most; of images a CPU takes fewer.
_AT_ONCE = {"cpu": 2**19, "cuda": 2**26}
_SAMPLES = {"cpu": (250, 1000), "cuda": (2048, 2048)}
_IMAGES = 16
_POINTS = 512  # a call at most
_WINDOWED = 3 * 2**16  # numbers in the images that convolutions as matrix products read: more, and caches overflow
_ROUNDING = 0.05  # of the largest output: of 23 nets, five times each, bfloat16 left 0.02 at most


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
        self.sets = {name: list(self._batches(part)) for name, part in sets.items()}
        if not all(self.sets.values()):
            raise ValueError("data holds no sample: give (x, y), a list of (x, y), or a dictionary of those.")
        self.names = [f"{part}_{loss}".lstrip("_") for part in self.sets for loss in self.losses]
        self.vectors = torch.stack([plane.origin, plane.u, plane.v])  # float64 on the CPU
        self.bn_data = list(bn_data) if isinstance(bn_data, Iterator) else bn_data
        layers = chain(model)
        self.stacked = self._stacked(model, layers, plane) if layers else None
        self.at_once = self._points_a_call(self.stacked) if self.stacked else 1
        self.sets = {name: _split(batches, batch_size or self._samples()) for name, batches in self.sets.items()}
        if not self.stacked:
            self._private_copy(model)

    @torch.inference_mode()
    def __call__(self, xy: Sequence[tuple[float, float]]) -> Tensor:
        """Return the losses at the points, (P, names) in float64 on the CPU."""
        means = self._by_groups(self.stacked, xy) if self.stacked else torch.stack([self._one(point) for point in xy])
        return means.double().cpu()

    # -- chains -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _stacked(self, model: nn.Module, layers: list[nn.Module], plane: Plane) -> Stacked | None:
        """Return the fast way if it finds what the model does, for two samples at one point of the plane."""
        of_its_own = [] if self.bn_data is None else [layers.index(layer) for layer in unfrozen(model)]
        plain, x = copy.deepcopy(nn.Sequential(*layers)).eval(), next(iter(self.sets.values()))[0][0][:2]
        vectors, point = self.vectors.to(self.device, self.dtype), (plane.window[1] / 2, plane.window[3] / 2)
        weights = vectors.new_tensor((1.0, *point)) @ vectors
        nn.utils.vector_to_parameters(weights, plain.parameters())
        truth = plain(x)
        weights.zero_()  # the parameters' memory: the fast way must not read it
        stacked = Stacked(list(plain), vectors, renewed := [plain[i] for i in of_its_own])
        prepared = stacked.prepare(x)
        if prepared.dim() != (5 if stacked.images else 3):
            return None
        found = stacked(prepared, [point], [(layer.running_mean[None], layer.running_var[None]) for layer in renewed])
        largest = truth.abs().max()
        return stacked if (found[0] - truth).abs().max() <= _ROUNDING * largest or not largest.isfinite() else None

    @torch.inference_mode()
    def _first_outputs(self, stacked: Stacked) -> Tensor:
        return stacked.prepare(next(iter(self.sets.values()))[0][0][:1])

    def _samples(self) -> int:
        """Return how many samples a forward pass takes for speed."""
        least, most = _SAMPLES.get(self.device.type, _SAMPLES["cpu"])
        if self.stacked is None:
            return least
        numbers = self._first_outputs(self.stacked)[0].numel()
        if self.stacked.images and self.device.type == "cpu":
            least = _IMAGES
        return max(least, min(most, (_WINDOWED if self.stacked.windowed else self._limit) // numbers))

    def _points_a_call(self, stacked: Stacked) -> int:
        """Return how many points share the first layer: many, but so few that one call takes no more than seconds."""
        numbers = self._first_outputs(stacked)[0].numel() // stacked.group
        samples = sum(len(x) for batches in self.sets.values() for x, _ in batches)
        return max(16, min(_POINTS, _POINTS * self._limit // (numbers * samples)))

    @property
    def _limit(self) -> int:
        return _AT_ONCE.get(self.device.type, _AT_ONCE["cpu"])

    def _by_groups(self, stacked: Stacked, xy: Sequence[tuple[float, float]]) -> Tensor:
        sums = torch.zeros(len(xy), len(self.names), dtype=torch.float64, device=self.device)
        statistics = self._statistics(stacked, xy)
        for first, _, batches, total in self._columns():
            for x, y in batches:
                prepared = stacked.prepare(x)
                for part in self._groups(stacked, [prepared], len(xy)):
                    outputs = stacked(prepared, xy[part], [(mean[part], var[part]) for mean, var in statistics])
                    for column, loss in enumerate(self.losses.values(), first):
                        sums[part, column] += loss(outputs, y) * (len(x) / total)
        return sums

    def _statistics(self, stacked: Stacked, xy: Sequence[tuple[float, float]]) -> list[Moments]:
        """Return the renewed BatchNorm layers' statistics at the points, (P, F) each."""
        if not stacked.renewed:
            return []
        given = inputs(self.bn_data, self.device)
        kept = [] if stacked.images else [stacked.prepare(x) for x in given]  # images are many numbers
        parts = [stacked.statistics(kept or map(stacked.prepare, given), xy[part])
                 for part in self._groups(stacked, kept or given, len(xy))]
        return [(torch.cat(means), torch.cat(variances))
                for means, variances in (zip(*layer, strict=True) for layer in zip(*parts, strict=True))]

    def _groups(self, stacked: Stacked, prepared: Sequence[Tensor], points: int) -> list[slice]:
        """Return which points go together, so that their features fit the cache and those side by side are there."""
        group = max(1, self._limit // max(map(stacked.size_of_a_point, prepared)))
        group += -group % stacked.group
        return [slice(start, start + group) for start in range(0, points, group)]

    # -- any net ------------------------------------------------------------------------------------------------------

    def _private_copy(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.modes = [(m, m.training) for m in self.model.modules()]
        self.flat = self.vectors[0].to(self.device, self.dtype, copy=True)
        start = 0
        for p in self.model.parameters():
            p.data = self.flat[start : start + p.numel()].view_as(p)
            start += p.numel()

    def _one(self, point: tuple[float, float]) -> Tensor:
        self.flat.copy_(self.vectors.new_tensor((1.0, *point)) @ self.vectors)
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

    def _batches(self, data: Any) -> Iterator[tuple[Tensor, Tensor]]:
        pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
        for x, y in [data] if pair else data:
            x = x.to(self.device, self.dtype if x.is_floating_point() else None)
            if x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            yield x, y.to(self.device)


def _split(batches: list[tuple[Tensor, Tensor]], samples: int) -> list[tuple[Tensor, Tensor]]:
    return [part for x, y in batches for part in zip(x.split(samples), y.split(samples), strict=True)]
