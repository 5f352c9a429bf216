"""The losses at points of a plane: the chain's fast way, and one forward pass a point for every other net."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb.averaging.batchnorm import inputs, unfrozen, update_bn
from sharpnb.batches import Batches, forward
from sharpnb.counts import Batch, Count, check_loss, counted
from sharpnb.fallbacks import Quiet, copied, kept
from sharpnb.landscape._stacked import Moments, Stacked, chain
from sharpnb.landscape.losses import Losses, stacked_losses
from sharpnb.landscape.plane import Plane
from sharpnb.trees import lengths, mapped, part

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

    The caller's model is not touched: everything happens in a copy in evaluation mode. A model that cannot be copied is
    used itself, and put back after each call.

    Attributes:
        names: of the columns: ``"<set>_<loss>"``, or ``"<loss>"`` for data without a name.
        at_once: points that one call should be given for speed.
    """

    def __init__(
        self, model: nn.Module, plane: Plane, data: Any, losses: Losses, bn_data: Any = None,
        batch_size: int | None = None, count: Count | None = None,
    ) -> None:
        kinds = {(p.dtype, p.device) for p in model.parameters()}
        weights = sum(p.numel() for p in model.parameters())
        if len(kinds) != 1 or weights != len(plane.origin):
            raise ValueError(f"The model has {weights} weights of {len(kinds)} types or devices, the plane has "
                             f"{len(plane.origin)}. A plane needs one type, one device, and its own architecture.")
        self.dtype, self.device = kinds.pop()
        self.losses = stacked_losses(losses)
        self.own = dict(losses) if isinstance(losses, Mapping) else {}  # the caller's functions of output and target
        sets = data if isinstance(data, Mapping) else {"": data}
        if not sets:
            raise ValueError("data holds no sample: give (x, y), a list of (x, y), or a dictionary of those.")
        self.count = count
        self.sets = {name: self._batches(own) for name, own in sets.items()}
        self.names = [f"{part}_{loss}".lstrip("_") for part in self.sets for loss in self.losses]
        self.vectors = torch.stack([plane.origin, plane.u, plane.v])  # float64 on the CPU
        self.bn_data = list(bn_data) if isinstance(bn_data, Iterator) else bn_data
        bare = all(isinstance(batch.inputs, Tensor) for batches in self.sets.values() for batch in batches)
        layers = chain(model) if bare else None
        self.stacked = self._stacked(model, layers, plane) if layers else None
        self.at_once = self._points_a_call(self.stacked) if self.stacked else 1
        if not self.stacked:
            self._any_net(model, copied(model))
        samples = batch_size or self._samples()
        self.sets = {name: self._cut(batches, samples) for name, batches in self.sets.items()}

    def __call__(self, xy: Sequence[tuple[float, float]]) -> Tensor:
        """Return the losses at the points, (P, names) in float64 on the CPU."""
        if self.stacked:
            with torch.inference_mode():
                return self._by_groups(self.stacked, xy).double().cpu()
        with self._inside():
            return torch.stack([self._quiet(lambda point=point: self._one(point)) for point in xy]).double().cpu()

    # -- chains -------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _stacked(self, model: nn.Module, layers: list[nn.Module], plane: Plane) -> Stacked | None:
        """Return the fast way if it finds what the model does, for two samples at one point of the plane."""
        of_its_own = [] if self.bn_data is None else [layers.index(layer) for layer in unfrozen(model)]
        try:
            plain, x = copy.deepcopy(nn.Sequential(*layers)).eval(), self._first[:2]
        except Exception:  # whatever an attribute of a layer says to being copied
            return None
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
        return stacked.prepare(self._first[:1])

    @property
    def _first(self) -> Any:
        """The inputs of the first batch."""
        return next(iter(self.sets.values()))[0].inputs

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
        samples = sum(len(batch.inputs) for batches in self.sets.values() for batch in batches)
        return max(16, min(_POINTS, _POINTS * self._limit // (numbers * samples)))

    @property
    def _limit(self) -> int:
        return _AT_ONCE.get(self.device.type, _AT_ONCE["cpu"])

    def _by_groups(self, stacked: Stacked, xy: Sequence[tuple[float, float]]) -> Tensor:
        sums = torch.zeros(len(xy), len(self.names), dtype=torch.float64, device=self.device)
        statistics = self._statistics(stacked, xy)
        for first, batches, total in self._columns():
            for batch in batches:
                prepared = stacked.prepare(batch.inputs)
                for group in self._groups(stacked, [prepared], len(xy)):
                    outputs = stacked(prepared, xy[group], [(mean[group], var[group]) for mean, var in statistics])
                    for column, loss in enumerate(self.losses.values(), first):
                        sums[group, column] += loss(outputs, batch.target) * (batch.count / total)
        return sums

    def _statistics(self, stacked: Stacked, xy: Sequence[tuple[float, float]]) -> list[Moments]:
        """Return the renewed BatchNorm layers' statistics at the points, (P, F) each."""
        if not stacked.renewed:
            return []
        given = inputs(self.bn_data, self.device)
        kept = [] if stacked.images else [stacked.prepare(x) for x in given]  # images are many numbers
        parts = [stacked.statistics(kept or map(stacked.prepare, given), xy[group])
                 for group in self._groups(stacked, kept or given, len(xy))]
        return [(torch.cat(means), torch.cat(variances))
                for means, variances in (zip(*layer, strict=True) for layer in zip(*parts, strict=True))]

    def _groups(self, stacked: Stacked, prepared: Sequence[Tensor], points: int) -> list[slice]:
        """Return which points go together, so that their features fit the cache and those side by side are there."""
        group = max(1, self._limit // max(map(stacked.size_of_a_point, prepared)))
        group += -group % stacked.group
        return [slice(start, start + group) for start in range(0, points, group)]

    # -- any net ------------------------------------------------------------------------------------------------------

    def _any_net(self, model: nn.Module, twin: nn.Module | None) -> None:
        """Prepare a private copy, whose weights are views of one vector; or the model itself, if there can be none."""
        self.model = model if twin is None else twin.requires_grad_(False)
        self._inside = partial(kept, model) if twin is None else nullcontext
        self._quiet = Quiet(self.model, inference=True)
        self.modes = [(m, m.training) for m in self.model.modules()]
        self.flat = self.vectors[0].to(self.device, self.dtype, copy=True)
        if twin is not None:
            for p, own in zip(twin.parameters(), self._pieces(), strict=True):
                p.data = own

    def _pieces(self) -> list[Tensor]:
        sizes = [p.numel() for p in self.model.parameters()]
        return [own.view_as(p) for own, p in zip(self.flat.split(sizes), self.model.parameters(), strict=True)]

    def _put(self, point: tuple[float, float]) -> None:
        self.flat.copy_(self.vectors.new_tensor((1.0, *point)) @ self.vectors)
        if self._inside is not nullcontext:
            with torch.no_grad():
                for p, own in zip(self.model.parameters(), self._pieces(), strict=True):
                    p.copy_(own)

    def _one(self, point: tuple[float, float]) -> Tensor:
        self._put(point)
        if self.bn_data is not None:
            for module, training in self.modes:
                module.training = training
            update_bn(self.model, self.bn_data)
        self.model.eval()
        means = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        for first, batches, total in self._columns():
            for batch in batches:
                outputs = forward(self.model, batch.inputs)
                outputs = outputs[None] if isinstance(outputs, Tensor) else [outputs]
                for column, loss in enumerate(self.losses.values(), first):
                    means[column] += loss(outputs, batch.target)[0] * (batch.count / total)
        return means

    # -- data ---------------------------------------------------------------------------------------------------------

    def _columns(self) -> Iterator[tuple[int, list[Batch], float]]:
        for i, batches in enumerate(self.sets.values()):
            yield i * len(self.losses), batches, sum(batch.count for batch in batches)

    def _batches(self, data: Any) -> list[Batch]:
        def as_the_model(x: Tensor) -> Tensor:
            x = x.to(self.dtype) if x.is_floating_point() else x
            return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

        return [batch._replace(inputs=mapped(as_the_model, batch.inputs))
                for batch in Batches(data, self.device, count=self.count)]

    def _cut(self, batches: list[Batch], samples: int) -> list[Batch]:
        """Cut batches into pieces of so many samples, where the losses over the pieces add up to those of a batch.

        Raises:
            ValueError: if those over the batches do not add up, and their counts were not given.
        """
        pieces = [piece for batch in batches for piece in _split(batch, samples, self.count)]
        if self.count is None:
            try:
                self._check(pieces)
            except ValueError:
                self._check(batches)
                return batches
        return pieces

    def _check(self, batches: list[Batch]) -> None:
        some = batches[:7] + batches[7:][-1:]
        if len(some) > 1 and self.own:
            measured = [(batch, self._output(batch.inputs)) for batch in some]
            for loss in self.own.values():
                check_loss(loss, measured, "mean")

    def _output(self, x: Any) -> Any:
        if self.stacked:
            with torch.inference_mode():
                return self.stacked(self.stacked.prepare(x), [(0.0, 0.0)])[0]
        with self._inside():
            self.model.eval()
            return self._quiet(lambda: forward(self.model, x))


def _split(batch: Batch, samples: int, count: Count | None) -> list[Batch]:
    """Cut a batch along its samples, if it is known where these lie, and what the pieces count."""
    tree, size = (batch.inputs, batch.target), batch.size
    if {*lengths(tree)} != {size} or (count is not None and not callable(count)):
        return [batch]
    pieces = []
    for first in range(0, size, samples):
        x, y = part(tree, first, first + samples, size)
        here = min(samples, size - first)
        share = here * (batch.count / size) if count is None else counted(count, 0, (x, y))
        pieces.append(Batch(batch.index, x, y, here, share))
    return [piece for piece in pieces if piece.count]  # without a term a loss is not a number
