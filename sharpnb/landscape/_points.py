"""The losses at points of a plane: many points in one call, or, where that cannot be had, one forward pass a point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb.averaging.batchnorm import inputs, unfrozen, update_bn
from sharpnb.averaging.wrapped import fill
from sharpnb.batches import Batches, forward, separable
from sharpnb.caches import refuse_parametrization_cache
from sharpnb.counts import Batch, Count, check_loss, counted
from sharpnb.curvature.differences import held
from sharpnb.fallbacks import Quiet, copied, kept
from sharpnb.landscape._together import Together
from sharpnb.landscape.losses import Losses, stacked_losses
from sharpnb.landscape.plane import Plane
from sharpnb.trees import lengths, mapped, part, tensors

# Samples in a forward pass of many points and of one. Bytes that a layer's output may take for all points of a call:
# about what a core's cache holds, and enough to keep a GPU busy.
_SAMPLES = {"cpu": (250, 128), "cuda": (2048, 2048)}
_BYTES = {"cpu": 2**21, "cuda": 2**28}
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
        refuse_parametrization_cache("A surface")
        kinds = {(p.dtype, p.device) for p in model.parameters()}
        weights = sum(p.numel() for p in model.parameters())
        if len(kinds) != 1 or weights != len(plane.origin):
            raise ValueError(f"The model has {weights} weights of {len(kinds)} types or devices, the plane has "
                             f"{len(plane.origin)}. A plane needs one type, one device, and its own architecture.")
        self.dtype, self.device = kinds.pop()
        self.losses, self.count = stacked_losses(losses), count
        self.own = dict(losses) if isinstance(losses, Mapping) else {}  # the caller's functions of output and target
        sets = data if isinstance(data, Mapping) else {"": data}
        if not sets:
            raise ValueError("data holds no sample: give (x, y), a list of (x, y), or a dictionary of those.")
        self.sets = {name: self._batches(own) for name, own in sets.items()}
        self.names = [f"{part}_{loss}".lstrip("_") for part in self.sets for loss in self.losses]
        self.vectors = torch.stack([plane.origin, plane.u, plane.v])  # float64 on the CPU
        self.bn_data = list(bn_data) if isinstance(bn_data, Iterator) else bn_data
        many, one = _SAMPLES.get(self.device.type, _SAMPLES["cpu"])
        twin = copied(model)
        self.model = model if twin is None else twin.requires_grad_(False)
        self._inside = kept if twin is None else nullcontext  # of the model itself, if there can be no private copy
        self._quiet = Quiet(self.model, inference=True)
        self.modes = [(m, m.training) for m in self.model.modules()]
        self.together = None if twin is None else self._fast_way(plane)
        self.at_once = self._points_a_call(batch_size or many) if self.together else 1
        if self.at_once < 2:  # one after another, by the model itself
            self.together, self.at_once = None, 1
        samples = batch_size or (many if self.together else one)
        self.sets = {name: self._cut(batches, samples, model) for name, batches in self.sets.items()}
        self.totals = [sum(batch.count for batch in batches) for batches in self.sets.values()]
        if self.together:
            self.prepared = [[self.together.prepared(b.inputs) for b in batches] for batches in self.sets.values()]

    def __call__(self, xy: Sequence[tuple[float, float]]) -> Tensor:
        """Return the losses at the points, (P, names) in float64 on the CPU."""
        if self.together:
            calls = [xy[k : k + self.at_once] for k in range(0, len(xy), self.at_once)]
            with torch.inference_mode():
                return torch.cat([self._many(self.together, call) for call in calls]).double().cpu()
        with self._inside(self.model):
            return torch.stack([self._quiet(lambda point=point: self._one(point)) for point in xy]).double().cpu()

    @torch.inference_mode()
    def _fast_way(self, plane: Plane) -> Together | None:
        """Return the net for many points, if there is one, and if it finds what the model does for two samples."""
        renewed = [] if self.bn_data is None else unfrozen(self.model)
        self.model.eval()
        read = inputs(self.bn_data, self.device) if renewed else []
        batches = [batch.inputs for own in self.sets.values() for batch in own]
        if not all(isinstance(x, Tensor) for x in (*batches, *read)):
            return None
        x, point = batches[0][:2], (plane.window[1] / 2, plane.window[3] / 2)
        self._move_to(point)
        try:
            truth = forward(self.model, x)
            together = Together(self.model, self.vectors.to(self.device, self.dtype), x, renewed)
            found = together(together.prepared(x), self._rows([point]), together.running)[0]
        except (ValueError, RuntimeError, TypeError, AttributeError):
            return None  # no program for many nets of this kind
        finally:
            self._move_to((0.0, 0.0))
        largest = truth.abs().max()
        close = found.shape == truth.shape and (found - truth).abs().max() <= _ROUNDING * largest
        return together if close or not largest.isfinite() else None

    def _points_a_call(self, samples: int) -> int:
        """Return how many points go together, by the largest output of a layer, and by the weights."""
        batches = [batch for own in self.sets.values() for batch in own]
        sizes, samples = [self.vectors.shape[1]], min(samples, max(batch.size for batch in batches))
        hooks = [m.register_forward_hook(lambda _, __, out: sizes.append(samples * out.numel()))
                 for m in self.model.modules()]
        with torch.inference_mode():
            forward(self.model, batches[0].inputs[:1])
        for hook in hooks:
            hook.remove()
        return _BYTES.get(self.device.type, _BYTES["cpu"]) // (max(sizes) * self.dtype.itemsize)

    def _rows(self, xy: Sequence[tuple[float, float]]) -> Tensor:
        return self.vectors.new_tensor([(1.0, x, y) for x, y in xy]).to(self.device, self.dtype)

    def _many(self, together: Together, xy: Sequence[tuple[float, float]]) -> Tensor:
        coordinates = self._rows(xy)
        renewed_by = map(together.prepared, inputs(self.bn_data, self.device)) if together.renews else ()
        statistics = together.statistics(renewed_by, coordinates)
        means = torch.zeros(len(xy), len(self.names), dtype=torch.float64, device=self.device)
        for i, (batches, prepared) in enumerate(zip(self.sets.values(), self.prepared, strict=True)):
            for batch, x in zip(batches, prepared, strict=True):
                self._add(means, i, batch, together(x, coordinates, statistics))
        return means

    def _move_to(self, point: tuple[float, float]) -> None:
        fill(self.model, (self.vectors.new_tensor((1.0, *point)) @ self.vectors).to(self.device, self.dtype))

    def _one(self, point: tuple[float, float]) -> Tensor:
        self._move_to(point)
        if self.bn_data is not None:
            for module, training in self.modes:
                module.training = training
            update_bn(self.model, self.bn_data)
        self.model.eval()
        means = torch.zeros(1, len(self.names), dtype=torch.float64, device=self.device)
        for i, batches in enumerate(self.sets.values()):
            for batch in batches:
                outputs = forward(self.model, batch.inputs)
                self._add(means, i, batch, outputs[None] if isinstance(outputs, Tensor) else [outputs])
        return means[0]

    def _add(self, means: Tensor, number: int, batch: Batch, outputs: Any) -> None:
        """Add the losses over a batch of the data set of a ``number`` to the means, (P, names)."""
        for column, loss in enumerate(self.losses.values(), number * len(self.losses)):
            means[:, column] += loss(outputs, batch.target) * (batch.count / self.totals[number])

    def _batches(self, data: Any) -> list[Batch]:
        def as_the_model(x: Tensor) -> Tensor:
            x = x.to(self.dtype) if x.is_floating_point() else x
            return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x

        return [batch._replace(inputs=mapped(as_the_model, batch.inputs))
                for batch in Batches(data, self.device, count=self.count)]

    def _cut(self, batches: list[Batch], samples: int, model: nn.Module) -> list[Batch]:
        """Cut batches into pieces of so many samples, where the losses over the pieces add up to those of a batch.

        Raises:
            ValueError: if those over the batches do not add up, and their counts were not given.
        """
        cut = [_split(batch, samples, self.count) for batch in batches]
        pieces = [piece for own in cut for piece in own]
        with self._inside(self.model):
            self.model.eval()
            self._refuse_captured(model, batches[0])
            if any(len(own) > 1 and not separable(self._run, batch.inputs, batch.size, samples)
                   for batch, own in zip(batches, cut, strict=True)):
                return batches
        if self.count is None:
            try:
                self._check(pieces)
            except ValueError:
                self._check(batches)
                return batches
        return pieces

    def _refuse_captured(self, model: nn.Module, batch: Batch) -> None:
        """Raise where a loss uses the caller's model, which stays where it is; not where that one itself is moved."""
        output = mapped(Tensor.clone, self._run(batch.inputs))
        values = []
        for loss in () if self.model is model else self.own.values():
            with suppress(IndexError, RuntimeError), torch.enable_grad():  # it may take outputs of several points only
                values.append(loss(output, batch.target))
        if any(held(value, model.parameters()) for value in values):
            raise ValueError("A loss uses the parameters of the model: that is a function of output and target no "
                             "more, and the points are points of a copy. Add what depends on weights afterwards.")

    def _run(self, x: Any) -> Any:
        return self._quiet(lambda: forward(self.model, x))

    def _check(self, batches: list[Batch]) -> None:
        some = batches[:7] + batches[7:][-1:]
        if len(some) < 2 or not self.own:
            return
        with self._inside(self.model):
            self.model.eval()
            measured = [(b, self._run(b.inputs)) for b in some]
        for loss in self.own.values():
            check_loss(loss, measured, "mean")


def _split(batch: Batch, samples: int, count: Count | None) -> list[Batch]:
    """Cut a batch along its samples, if it is known where these lie, and what the pieces count."""
    tree, size = (batch.inputs, batch.target), batch.size
    sparse = any(t.layout is not torch.strided for t in tensors(tree))
    if sparse or {*lengths(tree)} != {size} or (count is not None and not callable(count)):
        return [batch]
    pieces = []
    for first in range(0, size, samples):
        (x, y), here = part(tree, first, first + samples, size), min(samples, size - first)
        share = here * (batch.count / size) if count is None else counted(count, 0, (x, y))
        pieces.append(Batch(batch.index, x, y, here, share))
    return [piece for piece in pieces if piece.count]  # without a term a loss is not a number
