r"""Hessian products as differences of gradients: to check exact ones, and where there are none.

.. math:: H v = \frac{\nabla L(w + hv) - \nabla L(w - hv)}{2h} + O(h^2)

In float64, where the network takes it, with :math:`h\|v\| = 10^{-7}\|w\|`: rounding is then about 1e-8 of the gradient,
and so short a step crosses hardly any kink of a ReLU (a thousandth of the weights' size crosses so many that nothing of
the product is left). Networks with code of their own type only are stepped in that type, with :math:`h\|v\| =
\epsilon^{1/3}(1+\|w\|)` (Nocedal & Wright, Numerical Optimization, section 8.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from itertools import combinations, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sharpnb.counts import Batch
from sharpnb.curvature._state import measuring, replaced, widened
from sharpnb.fallbacks import eager, steady_padding
from sharpnb.trees import lengths, mapped, part

FEW = 8  # samples that a check looks at
WIDE_STEP = 1e-7
# Of the truth: a product that is off by less is right, one that is off by more is wrong if differences say it twice.
RIGHT, SURE = 1e-3, 0.1


class Differences:
    """Differences of the gradients of an operator's loss.

    Attributes:
        error: relative error of products, three times the change from h to 2h: the largest of the first, second,
            fourth, eighth … product.
    """

    def __init__(self, op: Any) -> None:
        self.op, self.error = op, 0.0
        self._made = 0
        self._wide: bool | None = None  # whether the network runs in float64

    def product(self, v: Tensor) -> Tensor:
        """Return the product with a vector ``(n,)`` over all of the data."""
        op, size = self.op, float(torch.linalg.vector_norm(v, dtype=torch.float64))
        if not size:
            return torch.zeros_like(v)
        if self._wide is None:
            self._try_float64(self.few())
        w = float(sum(p.detach().double().square().sum() for p in op.params)) ** 0.5
        h = (WIDE_STEP * _size(w) if self._wide else torch.finfo(op.dtype).eps ** (1 / 3) * (1 + w)) / size
        near = self._summed(v, h)
        self._made += 1
        if self._made & (self._made - 1) == 0:
            off = torch.linalg.vector_norm(near - self._summed(v, 2 * h)) / torch.linalg.vector_norm(near)
            self.error = max(self.error, 3 * float(off) + 4 * torch.finfo(op.dtype).eps)
        return near.to(op.dtype)

    def gradient(self) -> Tensor:
        """Return the gradient ``(n,)`` over this process's data."""
        return self._gradients(self._weighted())[0][0].to(self.op.dtype)

    def at(self, parts: Any, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss ``()``, float64, and gradient ``(n,)`` at w of parts of the data: inputs, target, share."""
        batches = ((Batch(0, inputs, target, 0, share), share) for inputs, target, share in parts)
        (gradient,), (loss,) = self._gradients(batches, w, (None,))
        return loss, gradient.to(self.op.dtype)

    def _weighted(self) -> Iterator[tuple[Batch, float]]:
        return ((batch, self.op._batches.weight(batch)) for batch in self.op._batches)

    def _summed(self, v: Tensor, h: float) -> Tensor:
        out = self._difference(self._weighted(), v, h)
        if self.op._group is not None:
            dist.all_reduce(out, group=self.op._group)
        return out

    def _difference(self, batches: Any, v: Tensor, h: float) -> Tensor:
        (plus, minus), _ = self._gradients(batches, v, (h, -h), bool(self._wide))
        return (plus - minus) / (2 * h)

    def _gradients(
        self, batches: Any, v: Tensor | None = None, steps: Sequence[float | None] = (None,), wide: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return gradients ``(k, n)`` and losses ``(k,)`` over weighted batches, at w + h v or (None) at v."""
        op, reentrant = self.op, self.reentrant
        self.refuse_captured()
        with self._copies(wide, steps[0] is not None) as (leaves, move):
            out = torch.zeros(len(steps), op.n, dtype=torch.float64 if wide else op.dtype, device=op.device)
            losses = torch.zeros(len(steps), dtype=torch.float64, device=op.device)
            for batch, weight in batches:
                if wide:
                    batch = _widened(batch)
                for i, (row, h) in enumerate(zip(out, steps, strict=True)):
                    if v is not None:
                        move(v, h)
                    value, slopes = self._gradient(batch, leaves, reentrant)
                    losses[i] += value.detach().double() * weight
                    found = [torch.zeros_like(leaf) if g is None else g.to_dense()
                             for leaf, g in zip(leaves, slopes, strict=True)]
                    row.add_(torch.cat([g.reshape(-1).to(row) for g in found]), alpha=weight)
        return out, losses

    @contextmanager
    def _copies(self, wide: bool, steps: bool = False) -> Iterator[tuple[list[Tensor], Callable[..., None]]]:
        """Yield copies of the parameters, in their place, and what moves them to w + h v, to v for None."""
        op = self.op
        with (measuring(op.model, op.mode), steady_padding(op.model) if steps else nullcontext(), eager(),
              replaced(op.model, op.params, wide) as leaves):
            start = [leaf.detach().clone() for leaf in leaves]

            @torch.no_grad()
            def move(v: Tensor, h: float | None) -> None:
                for leaf, w, d in zip(leaves, start, op._pieces(v), strict=True):
                    leaf.copy_(d) if h is None else leaf.copy_(w).add_(d.to(leaf), alpha=h)

            yield leaves, move

    @torch.enable_grad()
    def _gradient(self, batch: Batch, leaves: Sequence[Tensor], backward: bool) -> tuple[Tensor, Any]:
        """Return a batch's loss and gradients in copies of the parameters; ``backward`` is through checkpoints."""
        if backward:  # a reentrant checkpoint has no gradient where none of its inputs has one
            inputs = mapped(lambda t: t.detach().requires_grad_(t.is_floating_point()), batch.inputs)
            batch = batch._replace(inputs=inputs)
        value = self.op._loss_value(batch).sum()
        if not value.requires_grad:
            return value, [None] * len(leaves)
        if not backward:
            return value, torch.autograd.grad(value, leaves, allow_unused=True)
        for leaf in leaves:
            leaf.grad = None
        value.backward()
        return value, [leaf.grad for leaf in leaves]

    @cached_property
    def reentrant(self) -> bool:
        """Whether ``torch.autograd.grad`` misses parameters behind a reentrant checkpoint, or refuses them."""
        batch = self.few()
        with self._copies(False) as (leaves, _):
            with torch.enable_grad():
                value = self.op._loss_value(batch).sum()
            self.captured = held(value, self.op.params)
            try:
                found = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else [None]
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
                return True
            if self.captured or all(g is not None for g in found):
                return False
            _, there = self._gradient(batch, leaves, backward=True)
        return any(a is None and b is not None and bool(b.any()) for a, b in zip_longest(found, there))

    def refuse_captured(self) -> None:
        """Raise where loss or network hold parameters, so that they would stay when the model's are moved."""
        if not self.reentrant and self.captured:
            raise ValueError("The loss or the network holds parameters in a variable of its own, which stay where they "
                             "are when the model's are moved. Read them when it is called: model.parameters().")

    def disagreement(self, exact: Callable[[Batch, Tensor], Tensor]) -> str:
        """Compare a product of a few samples' Hessian with a vector ``(n,)``; say what is wrong, or nothing."""
        op, batch, v = self.op, self.few(), self.direction()
        if self.reentrant:
            return "a reentrant checkpoint hides its parameters from torch.autograd.grad"
        if self.captured:
            return ""
        product = exact(batch, v).double()
        self._try_float64(batch)

        def differ(h: float) -> Sequence[Tensor]:
            return self._difference([(batch, 1.0)], v, h).double().split(op._sizes)

        found = compare(product.split(op._sizes), differ, self._steps(), self._right)
        return "" if found is None else (f"the product by autograd is {found[1]:.2g} of it away from a difference of "
                                         f"gradients, in {op.names[found[0]]}")

    def direction(self) -> Tensor:
        """Return the Gaussian vector ``(n,)`` that checks look along."""
        return torch.randn(self.op.n, generator=torch.Generator().manual_seed(0)).to(self.op.device, self.op.dtype)

    def _steps(self) -> list[float]:
        square = torch.cat([p.detach().reshape(-1).double() for p in self.op.params]).square().mean()
        size = _size(float(square.sqrt()))
        return [f * size for f in ((WIDE_STEP, 1e-6, 1e-8) if self._wide else (1e-3, 3e-4, 3e-3))]

    def few(self) -> Batch:
        """Return the first batch, cut to a few samples where their axis is known and the network takes them."""
        batch = next(iter(self.op._batches))
        if batch.size <= FEW or {*lengths((batch.inputs, batch.target))} != {batch.size}:
            return batch
        try:
            inputs, target = part((batch.inputs, batch.target), 0, FEW, batch.size)
            few = batch._replace(inputs=inputs, target=target, size=FEW)
            with measuring(self.op.model, self.op.mode):
                fine = bool(self.op._quiet(lambda: self.op._loss_value(few)).isfinite().all())
        except Exception:  # whatever a network says to fewer samples than it was given
            return batch
        return few if fine else batch

    def _try_float64(self, batch: Batch) -> None:
        """See whether the network runs in float64 and its gradient is the same there; set what counts as right."""
        plain = self._gradients([(batch, 1.0)])[0][0].double()
        try:
            wide = self._gradients([(batch, 1.0)], wide=True)[0][0]
        except Exception:  # whatever a network says to another type
            self._wide, self._right = False, SURE
            return
        off = _off(plain, wide) / float(wide.norm()) if bool(wide.any()) else float(plain.norm() > 0)
        # As exact as the gradient is in the network's own type.
        self._wide, self._right = off < 0.5, min(max(RIGHT, 30 * off), 0.5)


def compare(
    exact: Sequence[Tensor], differ: Callable[[float], Sequence[Tensor]], steps: Sequence[float], right: float
) -> tuple[int, float] | None:
    """Return which part of something exact is wrong, and by how much of it; ``None`` if nothing is known to be.

    A part is right if it agrees, to the relative error ``right``, with what ``differ`` gives for any of three steps. It
    is wrong if two steps agree with each other and not with it: differences over kinks agree with nothing.
    """
    if not all(bool(part.isfinite().all()) for part in exact):
        return None
    seen: list[Sequence[Tensor]] = []
    wrong = list(range(len(exact)))
    for h in steps:
        seen.append(differ(h))
        total = float(torch.stack([part.norm() for part in seen[-1]]).norm())
        wrong = [i for i in wrong if _off(exact[i], seen[-1][i]) > right * (float(seen[-1][i].norm()) + 0.1 * total)]
        if not wrong:
            return None
    for i in wrong:
        for a, b in combinations((parts[i] for parts in seen), 2):
            apart, off, size = _off(a, b), _off(exact[i], a), float(a.norm())
            if apart <= SURE * size and off > 3 * max(apart, right * size):
                return i, off / size if size else math.inf
    return None


def _off(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm())


def _size(w: float) -> float:
    """Return what steps are measured by: the size of weights, or 1 where that is nothing, and rounding everything."""
    return w if w > 1e-6 else 1.0


def _widened(batch: Batch) -> Batch:
    inputs, target = mapped(widened, (batch.inputs, batch.target))
    return batch._replace(inputs=inputs, target=target)


def no_second_derivative(error: RuntimeError) -> bool:
    """Whether an error says that something cannot be differentiated twice."""
    signs = ("not implemented", "double backward", "use_reentrant")
    return isinstance(error, NotImplementedError) or any(sign in str(error) for sign in signs)


def refuse_cut_graphs(gradients: list[Tensor]) -> None:
    """Raise where a gradient's graph is cut short.

    Autograd skips the parts of a graph that lead to no parameter, the error that marks a function as differentiable
    once among them, and would return a wrong product without a word.
    """
    ends = ("torch::autograd::Error", "torch::autograd::NotImplemented")
    if any(node.name() in ends for node in _nodes(gradients)):
        raise NotImplementedError("a function in the network cannot be differentiated twice")


def held(value: Any, params: Iterable[Tensor]) -> bool:
    """Whether a number was computed from one of these parameters, and not from a copy in its place."""
    own = {*map(id, params)}
    return isinstance(value, Tensor) and any(id(getattr(n, "variable", None)) in own for n in _nodes([value]))


def _nodes(outputs: Sequence[Tensor]) -> Iterator[Any]:
    seen, stack = set(), [t.grad_fn for t in outputs]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack.extend(parent for parent, _ in node.next_functions)
