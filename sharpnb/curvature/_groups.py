"""The loss of groups of samples as a function of flat weights, for many groups at once where that can be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sharpnb.batches import forward
from sharpnb.counts import Count, Reduction, counted
from sharpnb.curvature._state import Mode
from sharpnb.curvature.hessian import HessianOperator
from sharpnb.curvature.operators import Loss
from sharpnb.trees import joined, lengths, mapped, part, tensors

# Groups evaluated at once: many small ones are bound by dispatch (one vmapped call is then several times faster); large
# groups and convolutions, whose weights differ by group, are faster one by one.
SMALL_GROUP = 64
GROUP_BYTES = 2.5e8  # of the gradients of groups evaluated at once
_WHOLE = "Put samples first, or use m=None (count= weighs batches; it cuts none)."


class Group(NamedTuple):
    """Groups that are evaluated together.

    Attributes:
        parts: inputs, target and share of the loss: of one group in any number of parts, or of several stacked in one.
        weights: of the groups in the mean over groups.
    """

    parts: list[tuple[Any, Any, float]]
    weights: list[float]


class Network:
    """Losses and gradients at rows of weights ``(k, n)``, row i for group i."""

    def __init__(
        self, model: nn.Module, loss: Loss, data: Any, params: Any, mode: Mode, reduction: Reduction,
        count: Count | None,
    ) -> None:
        op = HessianOperator(
            model, loss, data, params, mode, reduction=reduction, count=count, check=False, group=False)
        op.check_deterministic()
        op.check_counts()
        op._differences.refuse_captured()
        self.op, self.model, self.count = op, op.model, count
        self.w = torch.cat([p.detach().reshape(-1) for p in op.params])
        self._holder = _Holder(op.model)
        self._by_vmap = True

    def over_groups(
        self, m: int | None, measure: Callable[[Group], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, list[float]]]:
        """Yield what ``measure`` finds, one number a group of m samples (``None``: of all), and their weights."""
        for group, apart in self._groups(m):
            reason = ""
            if self._by_vmap and len(apart) > 1:
                try:
                    yield measure(group), group.weights
                    continue
                except Exception as error:  # vmap, and what it calls, refuse in many ways
                    self._by_vmap, reason = False, str(error).splitlines()[0][:100]
            yield np.concatenate([measure(each) for each in apart]), group.weights
            if reason:
                warnings.warn(f"Groups of samples cannot run at once here ({reason}): they are measured one after the "
                              "other.", stacklevel=3)

    def _groups(self, m: int | None) -> Iterator[tuple[Group, list[Group]]]:
        """Yield groups together, and each of them alone."""
        batches = list(self.op._batches)
        if m is None:
            whole = Group([(b.inputs, b.target, self.op._batches.weight(b)) for b in batches], [1.0])
            yield whole, [whole]
            return
        data, samples = self._joined([(b.inputs, b.target) for b in batches])
        # In other modes BatchNorm's samples see each other, as they may.
        if m < samples and not self.op._apart(data[0], samples, m, "eval"):
            raise ValueError(f"The last {m} along the first axis have other outputs alone than among others: that "
                             f"axis is not the samples', or they see each other. {_WHOLE}")
        together = 1
        if m < SMALL_GROUP and not (self.op._convolves and m > 4):
            together = max(1, int(GROUP_BYTES // (6 * self.op.n * self.w.element_size())))
        first = 0
        while first < samples:
            count = max(1, min(together, (samples - first) // m))
            size = min(m, samples - first)
            last = first + size * count
            pairs = [part(data, start, start + size, samples) for start in range(first, last, size)]
            weights = [counted(self.count, 0, pair) if callable(self.count) else float(size) for pair in pairs]
            stacked = mapped(lambda t, k=count: _stacked(t, k), part(data, first, last, samples))
            apart = [Group([(*pair, 1.0)], [weight]) for pair, weight in zip(pairs, weights, strict=True)]
            yield Group([(*stacked, 1.0)], weights), apart
            first = last

    def _joined(self, pairs: list[tuple[Any, Any]]) -> tuple[tuple[Any, Any], int]:
        """Return all inputs and targets, and the number of samples."""
        inputs, target = (joined(trees) for trees in zip(*pairs, strict=True))
        found = {*lengths(inputs), *lengths(target)}
        if len(found) != 1:
            shapes = [tuple(t.shape) for t in tensors((inputs, target))]
            raise ValueError(f"Groups of m samples are cut along the first axis, and on it tensors of shapes {shapes} "
                             f"disagree. {_WHOLE}")
        return (inputs, target), found.pop()

    def _at(self, w: Tensor, function: Callable[[], Any]) -> Any:
        """Return what a function returns while the model's weights are ``w``."""
        weights = {f"model.{name}": piece for name, piece in zip(self.op.names, self.op._pieces(w), strict=True)}
        return functional_call(self._holder, weights, (function,))

    def _loss(self, w: Tensor, inputs: Any, target: Any) -> Tensor:
        return self._at(w, lambda: self.op.loss(forward(self.model, inputs), target))

    def value(self, w: Tensor) -> float:
        """Return the loss over all of the data."""
        return sum(float(self.op._quiet(lambda b=b: self._loss(w, b.inputs, b.target))) * self.op._batches.weight(b)
                   for b in self.op._batches)

    def at(self, group: Group, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses ``(k,)``, float64, and gradients ``(k, n)`` of the groups at their rows of weights."""
        if len(rows) > 1:
            gradients, values = vmap(grad_and_value(self._loss))(rows, *group.parts[0][:2])
            return values.detach().double(), gradients.detach()
        loss, gradient = self.op._differences.at(group.parts, rows[0])
        return loss[None], gradient[None]

    def losses(self, group: Group, rows: Tensor) -> Tensor:
        """Return the losses ``(k,)`` alone, float64."""
        if len(rows) > 1:
            return self.op._quiet(lambda: vmap(self._loss)(rows, *group.parts[0][:2])).double()
        parts = [self.op._quiet(lambda x=x, y=y: self._loss(rows[0], x, y)).double() * share
                 for x, y, share in group.parts]
        return torch.stack(parts).sum().reshape(1)


class _Holder(nn.Module):
    """Calls a function, so that the model's weights can be others meanwhile."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _stacked(t: Tensor, count: int) -> Tensor:
    """Return samples ``(count m, ...)`` as ``(count, m, ...)``, if there are several groups."""
    if count == 1:
        return t
    return t.unflatten(0, (count, -1)) if t.dim() else t.expand(count)
