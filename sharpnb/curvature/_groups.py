"""The loss of groups of samples as a function of flat weights, for many groups at once where that can be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.conv import _ConvNd

from sharpnb.batches import Batches, forward
from sharpnb.counts import Batch, Count, Reduction, counted
from sharpnb.curvature._state import Mode, measuring, unwrapped
from sharpnb.curvature.differences import Differences
from sharpnb.curvature.operators import Loss, check_counts, say_if_sparse, select_parameters
from sharpnb.fallbacks import Quiet
from sharpnb.trees import joined, lengths, mapped, part, tensors

GROUP_BYTES = 2.5e8  # of the gradients of groups evaluated at once
SAME_OUTPUT = 1e-3  # of the largest: a sample's output alone and among others (TF32 included); time steps are far off
_WHOLE = "Put samples first, or use m=None (count= weighs batches; it cuts none)."


@dataclass(frozen=True)
class Group:
    """Groups that are evaluated together.

    Attributes:
        parts: inputs, target and share of the loss: of one group in any number of parts, or of several stacked in one.
        weights: of the groups in the mean over groups.
        single: returns inputs and target of each, if there are several.
    """

    parts: list[tuple[Any, Any, float]]
    weights: list[float]
    single: Callable[[], list[tuple[Any, Any]]] = list

    @property
    def count(self) -> int:
        """How many groups they are."""
        return len(self.weights)

    def one_by_one(self) -> list[Group]:
        """Return them apart."""
        return [Group([(*pair, 1.0)], [weight]) for pair, weight in zip(self.single(), self.weights, strict=True)]


class Network:
    """Losses and gradients at rows of weights ``(k, n)``, row i for group i."""

    def __init__(
        self, model: nn.Module, loss: Loss, data: Any, params: Any, mode: Mode, reduction: Reduction,
        count: Count | None,
    ) -> None:
        self.model, self.loss, self.counts = unwrapped(model), loss, count
        self.mode: Mode = mode
        named = select_parameters(self.model, params)
        self.names, self.params = list(named), list(named.values())
        self._sizes = [p.numel() for p in self.params]
        self.w = torch.cat([p.detach().reshape(-1) for p in self.params])
        self.n, self.dtype, self.device, self._group = len(self.w), self.w.dtype, self.w.device, None
        self._batches = Batches(data, self.device, reduction, count)
        self._quiet = Quiet(self.model)
        self._by_vmap, self._leaves = True, False
        self._differences = Differences(self)
        self._convolves = any(isinstance(module, _ConvNd) for module in self.model.modules())
        say_if_sparse(self.model)
        with measuring(self.model, mode):
            check_counts(self.model, loss, self._batches, mode, self._quiet)

    # ---- groups -----------------------------------------------------------------------------------------------------

    def over_groups(
        self, m: int | None, small: int, measure: Callable[[Group], np.ndarray]
    ) -> Iterator[tuple[np.ndarray, list[float]]]:
        """Yield what ``measure`` finds, one number a group of m samples (``None``: all of the data), and their weights.

        Groups below the size ``small`` are evaluated together.
        """
        for group in self._groups(m, small):
            reason = ""
            if self._by_vmap and group.count > 1:
                try:
                    yield measure(group), group.weights
                    continue
                except Exception as error:  # vmap, and what it calls, refuse in many ways
                    self._by_vmap, reason = False, str(error).splitlines()[0][:100]
            singles = [group] if group.count == 1 else group.one_by_one()
            yield np.concatenate([measure(single) for single in singles]), group.weights
            if reason:
                warnings.warn(f"Groups of samples cannot run at once here ({reason}): they are measured one after the "
                              "other.", stacklevel=3)

    def _groups(self, m: int | None, small: int) -> Iterator[Group]:
        batches = list(self._batches)
        if m is None:
            yield Group([(b.inputs, b.target, self._batches.weight(b)) for b in batches], [1.0])
            return
        inputs, target, samples = self._joined([(b.inputs, b.target) for b in batches])
        self._check_cut(inputs, samples, m)
        together = 1
        if m < small and not (self._convolves and m > 4):
            together = max(1, int(GROUP_BYTES // (6 * self.n * self.w.element_size())))
        first = 0
        while first < samples:
            count = max(1, min(together, (samples - first) // m))
            size = min(m, samples - first)
            last = first + size * count
            single = partial(_cut, (inputs, target), range(first, last, size), samples)
            weights = [float(size)] * count
            if callable(self.counts):
                weights = [counted(self.counts, 0, pair) for pair in single()]
            stacked = [mapped(lambda t, k=count: _stacked(t, k), part(tree, first, last, samples))
                       for tree in (inputs, target)]
            yield Group([(*stacked, 1.0)], weights, single)
            first = last

    def _joined(self, pairs: list[tuple[Any, Any]]) -> tuple[Any, Any, int]:
        """Return all inputs, all targets and the number of samples."""
        inputs, target = (joined(trees) for trees in zip(*pairs, strict=True))
        found = {*lengths(inputs), *lengths(target)}
        if len(found) != 1:
            shapes = [tuple(t.shape) for t in tensors((inputs, target))]
            raise ValueError(f"Groups of m samples are cut along the first axis, and on it tensors of shapes {shapes} "
                             f"disagree. {_WHOLE}")
        return inputs, target, found.pop()

    def _check_cut(self, inputs: Any, samples: int, m: int) -> None:
        """Refuse groups whose samples are not what they are among all others: time steps, say."""
        if m >= samples or self.mode != "eval":
            return
        seen = min(2 * m, samples)
        cuts = [part(inputs, samples - size, samples, samples) for size in (seen, m)]
        within, alone = (list(tensors(self._quiet(lambda x=x: forward(self.model, x)))) for x in cuts)
        for a, b in zip(within, alone, strict=False):
            if not a.dim() or len(a) != seen or not a.is_floating_point():
                continue
            off = float((a[-m:] - b).abs().max()) if a[-m:].shape == b.shape else math.inf
            if off > max(SAME_OUTPUT, 8 * torch.finfo(a.dtype).eps) * float(a.abs().max()):
                raise ValueError(f"The last {m} along the first axis have other outputs alone than among {seen}: that "
                                 f"axis is not the samples', or they see each other. {_WHOLE}")

    # ---- losses and gradients ---------------------------------------------------------------------------------------

    def _pieces(self, w: Tensor) -> list[Tensor]:
        return [c.view(p.shape) for c, p in zip(w.split(self._sizes), self.params, strict=True)]

    def _loss_value(self, batch: Batch) -> Tensor:
        return self.loss(forward(self.model, batch.inputs), batch.target)

    def _loss(self, w: Tensor, inputs: Any, target: Any) -> Tensor:
        weights = dict(zip(self.names, self._pieces(w), strict=True))
        return self.loss(forward(_Called(self.model, weights), inputs), target)

    def value(self, w: Tensor) -> float:
        """Return the loss over all of the data."""
        return sum(float(self._quiet(lambda b=b: self._loss(w, b.inputs, b.target))) * self._batches.weight(b)
                   for b in self._batches)

    def at(self, group: Group, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses ``(k,)``, float64, and gradients ``(k, n)`` of the groups at their rows of weights."""
        if group.count > 1:
            gradients, values = vmap(grad_and_value(self._loss))(rows, *group.parts[0][:2])
            return values.detach().double(), gradients.detach()
        if not self._leaves and not self._differences.reentrant:
            try:
                return self._by_grad(group, rows)
            except RuntimeError as error:
                if "sparse" not in str(error):
                    raise
                self._leaves = True  # sparse gradients exist in whole parameters, not in pieces of one vector
        return self.losses(group, rows), self._differences.gradient_at(group.parts, rows[0] - self.w)[None]

    def _by_grad(self, group: Group, rows: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = torch.zeros(1, dtype=torch.float64, device=rows.device), torch.zeros_like(rows)
        w = rows[0].detach().requires_grad_()
        for inputs, target, share in group.parts:  # autograd itself: two thirds of the function transform's time
            with torch.enable_grad():
                loss = self._loss(w, inputs, target)
            (own,) = torch.autograd.grad(loss, w)
            value += loss.detach().double() * share
            gradient[0].add_(own, alpha=share)
        return value, gradient

    def losses(self, group: Group, rows: Tensor) -> Tensor:
        """Return the losses ``(k,)`` alone, float64."""
        if group.count > 1:
            return self._quiet(lambda: vmap(self._loss)(rows, *group.parts[0][:2])).double()
        parts = [self._quiet(lambda x=x, y=y: self._loss(rows[0], x, y)).double() * share
                 for x, y, share in group.parts]
        return torch.stack(parts).sum().reshape(1)


class _Called:
    """The model with other weights, callable."""

    def __init__(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        self._model, self._weights, self.forward = model, weights, model.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self._model, self._weights, args, kwargs)


def _cut(tree: Any, starts: range, samples: int) -> list[Any]:
    return [part(tree, start, start + starts.step, samples) for start in starts]


def _stacked(t: Tensor, count: int) -> Tensor:
    """Return samples ``(count m, ...)`` as ``(count, m, ...)``, if there are several groups."""
    if count == 1:
        return t
    return t.unflatten(0, (count, -1)) if t.dim() else t.expand(count)
