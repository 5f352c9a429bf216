r"""SAM: sharpness-aware minimisation (Foret, Kleiner, Mobahi & Neyshabur, ICLR 2021, arXiv 2010.01412)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sharpnb.caches import forget_casts
from sharpnb.optim import foreach
from sharpnb.optim.protocol import Closure, SharpnessAware


class SAM(SharpnessAware):
    r"""Minimise the largest loss within :math:`\|\epsilon\|_p\le\rho` (Algorithm 1 over any base optimizer).

    .. math::
        \hat\epsilon = \rho\,\mathrm{sign}(g)\,|g|^{q-1} \big/ \big(\|g\|_q^q\big)^{1/p}, \qquad
        w_t = \mathrm{base}\big(w_{t-1},\ \nabla L(w_{t-1} + \hat\epsilon)\big)

    One norm over all tensors of all groups. The twin is :func:`sharpnb.rules.sam`; the protocol is that of
    :class:`~sharpnb.optim.protocol.SharpnessAware`, which documents the remaining arguments.

    ``inner_steps=s`` climbs s times, each by :math:`\rho`, back onto the ball by scaling (the paper's Fig. 7 names no
    step length; with this one s = 1 is Algorithm 1). ``second_order=True`` keeps the term that eq. 3 drops, for p = 2

    .. math::
        \Big(\frac{d\hat\epsilon}{dw}\Big)^{\!\top}\tilde g = Hz,\qquad
        z=\frac{\rho}{\|g\|}\big(\tilde g - \bar g\,\bar g^\top\tilde g\big),\qquad
        Hz \approx \frac{\|z\|}{2h}\Big(\nabla L\big(w+h\tfrac{z}{\|z\|}\big)-\nabla L\big(w-h\tfrac{z}{\|z\|}\big)\Big)

    with :math:`\bar g=g/\|g\|` and :math:`h=\sqrt[3]{\text{machine epsilon}}`: the error of a central difference is
    :math:`O(h^2)` of the third derivative and :math:`O(\text{epsilon}/h)` of the gradient, about 1e-10 of either in
    float64 and 3e-5 in float32.

    How it differs from the authors' JAX code: (1) weight decay belongs to the base and acts at w, not inside the loss
    that is perturbed (for theirs, add the penalty to the closure's loss); (2) clipping is left to the closure.

    Args:
        optimizer, base_optimizer, kwargs: as in the protocol.
        rho: radius (default 0.05: the paper's Section 3).
        p: norm of the ball, in [1, inf] (default 2: Appendix C.5 found it best).
        second_order: keep the second-order term: 4 closure calls a step instead of 2.
        inner_steps: ascent steps s: s + 1 closure calls a step (default 1: the paper's).
        adaptive: only False; here so that code written for the popular class runs. Use :class:`~sharpnb.optim.ASAM`.

    Raises:
        ValueError: if an argument is out of range, or ``second_order`` comes with p other than 2, several inner steps
            or half-precision weights.
    """

    _own = (*SharpnessAware._own, "second_order", "inner_steps", "keeps_gradient", "closure_only")

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None = None, rho: float = 0.05,
        adaptive: bool = False, *, p: float = 2.0, second_order: bool = False, inner_steps: int = 1, **kwargs: Any,
    ) -> None:
        if adaptive:
            raise ValueError("adaptive=True: the adaptive ball is a class of its own here. Use ASAM(..., rho=0.5), or "
                             "ASAM(..., rho=2.0, eta=0.0, adaptive=True) for the popular class's form.")
        if inner_steps < 1 or int(inner_steps) != inner_steps:
            raise ValueError(f"inner_steps = {inner_steps}: must be a whole number, 1 or more. Use 1 for Algorithm 1.")
        if second_order and (p != 2 or inner_steps != 1):
            raise ValueError(f"second_order=True with p = {p} and inner_steps = {inner_steps}: the term is derived for "
                             "p=2 and inner_steps=1. Leave both at their defaults.")
        self.second_order, self.inner_steps = second_order, inner_steps
        self.keeps_gradient = second_order
        if second_order or inner_steps > 1:
            self.closure_only = "second_order and inner_steps evaluate the gradient more than twice"
        super().__init__(optimizer, base_optimizer, rho=rho, p=p, **kwargs)
        dtypes = {w.dtype for group in self.param_groups for w in group["params"]}
        if second_order and dtypes & {torch.float16, torch.bfloat16}:
            raise ValueError(f"second_order=True with weights in {dtypes}: a difference of half-precision gradients "
                             "has no correct digit. Keep the weights in float32 and use autocast.")

    def _at_perturbed(self, run: Closure, scaler: Any, first: dict[Tensor, Tensor]) -> None:
        for _ in range(self.inner_steps - 1):
            self._evaluate(run, scaler)
            if self._backup:
                self._climb_further()
        self._evaluate(run, scaler)
        if self.second_order and self._backup:
            self._add_second_order(run, scaler, first)

    def _climb_further(self) -> None:
        """Take one more ascent step of length rho from where the weights are, and scale it back onto the ball."""
        buckets = self._perturbed(foreach.gradients(self._params))
        directions, length = self._direction(buckets)
        offsets, in_radii = [], []
        for bucket, d, (_, copies) in zip(buckets, directions, self._backup, strict=True):
            rho = bucket.group["rho"]
            offset = foreach.sub(bucket.w, copies)
            foreach.ascend(offset, d, foreach.stride(rho, length, offset))
            offsets.append(offset)
            in_radii += [foreach.div(offset, rho)] if rho > 0 else []
        self._copy_back()
        if in_radii:
            beyond = foreach.norm(in_radii, self.p, self._ranks).clamp(min=1)
            for bucket, offset in zip(buckets, offsets, strict=True):
                foreach.ascend(bucket.w, offset, foreach.stride(1.0, beyond, offset))
        forget_casts()

    def _add_second_order(self, run: Closure, scaler: Any, first: dict[Tensor, Tensor]) -> None:
        """Add Hz to the gradients, by two more evaluations around w."""
        at_eps = foreach.kept_gradients(self._params)
        buckets = self._perturbed(at_eps)
        g = [bucket.g for bucket in self._perturbed(first)]
        z = [foreach.mul(bucket.g, bucket.group["rho"]) for bucket in buckets]
        along = foreach.projection(z, g, self._ranks)
        for x, y in zip(z, g, strict=True):
            foreach.sub_(x, foreach.mul(y, foreach.on(along, y[0])))
        length, size = foreach.lengths(g, z, ranks=self._ranks).unbind()
        h = min(torch.finfo(w.dtype).eps for bucket in buckets for w in bucket.w) ** (1 / 3)
        sides = []
        for sign in (1, -1):
            self._copy_back()
            for bucket, x in zip(buckets, z, strict=True):
                foreach.ascend(bucket.w, foreach.mul(x, sign), foreach.stride(h, size, x))
            forget_casts()
            self._evaluate(run, scaler)
            sides.append(self._perturbed(foreach.kept_gradients(self._params)))
        factor = torch.where(length > 0, size / (2 * h * length), 0)
        for p, grad in at_eps.items():
            p.grad = grad
        for bucket, plus, minus in zip(buckets, *sides, strict=True):
            term = foreach.mul(foreach.sub(plus.g, minus.g), foreach.on(factor, plus.g[0]))
            for p, u in zip(bucket.params, foreach.add(bucket.g, term), strict=True):
                p.grad = foreach.like(u, p)
