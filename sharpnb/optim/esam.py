"""ESAM: efficient SAM (Du et al., ICLR 2022, arXiv 2110.03141)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sharpnb.caches import forget_casts
from sharpnb.optim import foreach
from sharpnb.optim.foreach import Bucket
from sharpnb.optim.protocol import Closure, SharpnessAware


class ESAM(SharpnessAware):
    r"""SAM that perturbs some weights (SWP) and descends on the samples that the perturbation hurts most (SDS).

    .. math::
        \hat\epsilon = \frac{\rho}{\beta}\,\frac{\mu\odot g}{\|g\|_2},\quad \mu_i\sim\mathrm{Bernoulli}(\beta);\qquad
        B^+ = \text{the } \lceil\gamma |B|\rceil \text{ samples of largest } \ell_j(w+\hat\epsilon)-\ell_j(w);\qquad
        w_t = \mathrm{base}\big(w_{t-1},\ \nabla L_{B^+}(w_{t-1}+\hat\epsilon)\big)

    **The closure returns the vector of per-sample losses and does not back-propagate**; the optimizer selects and does,
    and ``step`` returns their mean at w. A closure with a parameter named ``rows`` saves the work of the samples left
    out: it gets None for the whole batch, or the indices (a LongTensor) of the rows to evaluate::

        def closure(rows=None):
            batch, target = (x, y) if rows is None else (x[rows], y[rows])
            return F.cross_entropy(model(batch), target, reduction="none")

    The twin is :func:`sharpnb.rules.esam`; the protocol is that of :class:`~sharpnb.optim.protocol.SharpnessAware`,
    without ``first_step`` and ``second_step``.

    How it differs from the authors' code: (1) single weights are drawn, as the paper says, where theirs draws whole
    tensors; (2) exactly :math:`\lceil\gamma |B|\rceil` samples, never fewer than one, equal ones by their place in the
    batch, where theirs keeps one less and none if all are equal; (3) masks come from a generator of the optimizer's
    own, seeded by ``seed`` and the number of updates, so a run resumes exactly and nobody else's random numbers move.

    Args:
        optimizer, base_optimizer, kwargs: as in the protocol.
        rho: radius (default 0.05: the authors' ResNet-18 runs).
        beta: share of the weights that is perturbed, in (0, 1] (default 0.6: the same).
        gamma: share of the samples that is kept, in (0, 1] (default 0.5: the same).
        seed: of the masks.

    Raises:
        ValueError: if an argument is out of range.
    """

    closure_only = "it selects samples by their losses"
    _ranges = tuple((name, lambda share: 0 < share <= 1, "a share, it must lie in (0, 1]. Both 1 are SAM.")
                    for name in ("beta", "gamma"))

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None = None, rho: float = 0.05,
        beta: float = 0.6, gamma: float = 0.5, seed: int = 0, **kwargs: Any,
    ) -> None:
        options = {"beta": beta, "gamma": gamma, "seed": seed, "updates": 0}
        super().__init__(optimizer, base_optimizer, rho=rho, options=options, **kwargs)

    def _regrouped(self) -> None:
        super()._regrouped()
        if self._ranks is not None:
            raise ValueError("ESAM over DTensors (fully_shard): a rank sees neither the losses of the other ranks nor "
                             "their part of a mask. Use SAM, or ESAM under DistributedDataParallel with model=.")

    def _radius(self, group: dict[str, Any]) -> float:
        return group["rho"] / group["beta"]

    def _direction(self, buckets: list[Bucket]) -> tuple[Sequence[foreach.Tensors], Tensor | float]:
        directions, length = super()._direction(buckets)
        seed = self.param_groups[0]["seed"] * 1_000_003 + self.param_groups[0]["updates"]
        devices = {bucket.w[0].device for bucket in buckets}
        generators = {device: torch.Generator(device).manual_seed(seed) for device in devices}

        def masked(t: Tensor, beta: float) -> Tensor:
            if beta == 1:
                return t
            draws = torch.rand(t.shape, generator=generators[t.device], device=t.device, dtype=torch.float32)
            return t * (draws < beta)

        pairs = zip(buckets, directions, strict=True)
        return [[masked(t, bucket.group["beta"]) for t in d] for bucket, d in pairs], length

    def _evaluate(self, run: Closure, scaler: Any) -> Tensor:
        self._prepare()
        with torch.enable_grad():
            losses = self._losses(run)
            self._backward(losses.mean(), scaler)
        self._at_w = losses.detach()
        return self._at_w.mean()

    def _at_perturbed(self, run: Closure, scaler: Any, first: dict[Tensor, Tensor]) -> None:
        self._prepare()
        by_rows = _takes_rows(run)
        with torch.set_grad_enabled(not by_rows):
            losses = self._losses(run)
        rows = self._select(losses.detach() - self._at_w)
        if by_rows:
            self._prepare()
            forget_casts()  # those of a pass without gradients lead to no gradient
        with torch.enable_grad():
            self._backward((run(rows=rows) if by_rows else losses[rows]).mean(), scaler)

    def _losses(self, run: Closure) -> Tensor:
        losses = run(rows=None) if _takes_rows(run) else run()
        if not (isinstance(losses, Tensor) and losses.ndim == 1):
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"ESAM: the closure returned {shape}; it must return the vector of per-sample losses "
                             "(reduction='none') and leave the backward pass to the optimizer.")
        return losses

    def _select(self, increase: Tensor) -> Tensor:
        """Return the rows of the largest increases, in the order of the batch."""
        share = self.param_groups[0]["gamma"] * len(increase)
        count = max(1, math.ceil(share - 1e-9 * share))  # 0.1 * 30 is 3, not 3.0000000000000004
        return increase.sort(descending=True, stable=True).indices[:count].sort().values

    def _backward(self, loss: Tensor, scaler: Any) -> None:
        (loss if scaler is None else scaler.scale(loss)).backward()
        self._unscale(scaler)

    def _past_base(self, after: dict[Tensor, Tensor]) -> None:
        for group in self.param_groups:
            group["updates"] += 1


def _takes_rows(run: Closure) -> bool:
    return "rows" in inspect.signature(run).parameters
