"""LookSAM: the second gradient every k-th step only (Liu, Mai, Chen, Hsieh & You, CVPR 2022, arXiv 2203.02714)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sharpnb.optim import foreach
from sharpnb.optim.foreach import Bucket
from sharpnb.optim.protocol import SharpnessAware


class LookSAM(SharpnessAware):
    r"""Remember the part of SAM's gradient that is orthogonal to the plain one, and add it in the steps between.

    .. math::
        t\equiv 0\ (k):\quad g_v = \tilde g-\frac{\langle g,\tilde g\rangle}{\|g\|^2}\,g,\quad u=\tilde g; \qquad
        \text{otherwise}:\quad u = g+\alpha\,\frac{\|g\|}{\|g_v\|}\,g_v; \qquad w_t = \mathrm{base}(w_{t-1}, u)

    All norms are global. ``step(closure)`` calls the closure twice when t is a multiple of k (t counts the updates
    made, from 0) and once otherwise; with ``first_step`` and ``second_step`` the rule is the same, but the caller makes
    both passes, and in the steps between the second gradient goes unused. The twin is :func:`sharpnb.rules.looksam`;
    the protocol is that of :class:`~sharpnb.optim.protocol.SharpnessAware`.

    How it differs from the code in circulation (the authors published none): norms over the whole model, not tensor by
    tensor; one backward pass, not a doubled gradient, in the steps between; g_v is in ``state`` and t in the groups, so
    a run resumes in mid-cycle.

    Args:
        optimizer, base_optimizer, kwargs: as in the protocol.
        rho: radius (default 0.05: SAM's).
        k: steps from one second gradient to the next; 1 is SAM (default 5: the paper's).
        alpha: length of the remembered part, in lengths of g (default 0.7: the paper's).

    Raises:
        ValueError: if an argument is out of range.
    """

    keeps_gradient, _remembers = True, "g_v"
    _ranges = (("k", lambda k: k >= 1 and int(k) == k, "must be a whole number, 1 or more. Use k=1 for SAM."),
               ("alpha", lambda alpha: alpha >= 0, "must not be negative. Use 0.7, the paper's."))

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None = None, rho: float = 0.05,
        k: int = 5, alpha: float = 0.7, **kwargs: Any,
    ) -> None:
        super().__init__(optimizer, base_optimizer, rho=rho, options={"k": k, "alpha": alpha, "updates": 0}, **kwargs)

    def _ascends(self) -> bool:
        return self.param_groups[0]["updates"] % self.param_groups[0]["k"] == 0

    def _first_gradients(self) -> dict[Tensor, Tensor]:
        first = super()._first_gradients()
        if not self._ascends():  # what is remembered acts on a parameter without gradient as on one with a zero one
            kept = [p for p in self._params if "g_v" in self.state.get(p, {}) and p.requires_grad]
            first |= {p: torch.zeros_like(p) for p in kept if p not in first}
        return first

    def _combine(self, buckets: list[Bucket]) -> None:
        g = [bucket.g for bucket in buckets]
        if self._ascends():
            along = foreach.projection([bucket.g_adv for bucket in buckets], g, self._ranks)
            for bucket in buckets:
                parallel = foreach.mul(bucket.g, foreach.on(along, bucket.g[0]))
                bucket.after = list(foreach.sub(bucket.g_adv, parallel))
            return
        g_v = [[self._remembered(p) for p in bucket.params] for bucket in buckets]
        here, there = foreach.lengths(g, g_v, ranks=self._ranks).unbind()
        ratio = torch.where(there > 0, here / there, 0)  # a direction of length zero is none
        for bucket, v in zip(buckets, g_v, strict=True):
            part = foreach.mul(v, foreach.on(bucket.group["alpha"] * ratio, v[0]))
            bucket.g_adv = list(foreach.add(bucket.g, part))

    def _remembered(self, p: Tensor) -> Tensor:
        return foreach.dense(p, self.state.get(p, {}).get("g_v"))

    def _past_base(self, after: dict[Tensor, Tensor]) -> None:
        # Only now: many optimizers take an empty state for a parameter that they have not seen.
        ascended = self._ascends()
        for group in self.param_groups:
            for p in group["params"] if ascended else ():
                if p in after:
                    self.state[p]["g_v"] = after[p]
                elif p in self.state:
                    self.state[p].pop("g_v", None)
            group["updates"] += 1
