"""GSAM: surrogate-gap guided SAM (Zhuang et al., ICLR 2022, arXiv 2203.08065)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sharpnb.optim import foreach
from sharpnb.optim.foreach import Bucket
from sharpnb.optim.protocol import SharpnessAware


class GSAM(SharpnessAware):
    r"""Follow the perturbed gradient, less the part of the gradient at w that it cannot see.

    .. math::
        g_\perp = g - c\,\tilde g,\quad c=\frac{\langle g,\tilde g\rangle}{\|\tilde g\|^2},\qquad
        w_t = \mathrm{base}\big(w_{t-1},\ \tilde g-\alpha g_\perp\big),\qquad
        \rho_t = \rho_{min} + (\rho-\rho_{min})\,\frac{lr_t-lr_{min}}{lr_{max}-lr_{min}}

    Moving along :math:`+g_\perp` shrinks the gap :math:`L(w+\hat\epsilon)-L(w)` and leaves the perturbed loss as it is,
    to first order. The twins are :func:`sharpnb.rules.gsam` and :func:`sharpnb.rules.gsam_rho`; the protocol is that of
    :class:`~sharpnb.optim.protocol.SharpnessAware`.

    How it differs from the authors' PyTorch code: (1) the decomposition in closed form,
    :math:`(1+\alpha c)\tilde g-\alpha g`, with no constants in its denominators; (2) the radius follows the learning
    rate of each group by itself, nothing needs to be called; (3) a parameter without a gradient never moves.

    Args:
        optimizer, base_optimizer, kwargs: as in the protocol.
        rho: radius, the largest if there is a schedule (default 0.05: SAM's).
        alpha: weight of the orthogonal part (default 0.4: the paper's for ViT-S/32).
        rho_min: radius at ``lr_min``; None keeps the radius constant.
        lr_max: learning rate that belongs to ``rho`` (default: the group's ``lr`` at construction, or the base's own
            where a scheduler is attached already). A rate above it has the radius ``rho``, and warns once.
        lr_min: learning rate that belongs to ``rho_min``.

    Raises:
        ValueError: if an argument is out of range.
    """

    keeps_gradient = True
    _ranges = (("alpha", lambda alpha: alpha >= 0, "must not be negative. Use alpha=0 for SAM."),)
    _warned = False  # of a rate outside its range

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None = None, rho: float = 0.05,
        alpha: float = 0.4, rho_min: float | None = None, lr_max: float | None = None, lr_min: float = 0.0,
        **kwargs: Any,
    ) -> None:
        options = {"alpha": alpha, "rho_min": rho_min, "lr_max": lr_max, "lr_min": lr_min}
        super().__init__(optimizer, base_optimizer, rho=rho, options=options, **kwargs)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        if group["lr_max"] is None:
            own = self.defaults["lr"]
            if own is group.get("lr") and isinstance(own, Tensor):  # a scheduler that is there writes into it
                own = group.get("initial_lr", own)
            group["lr_max"] = float(own if "initial_lr" in group else group.get("lr", own))
        if group["rho_min"] is not None and not 0 <= group["rho_min"] <= group["rho"]:
            raise ValueError(f"rho_min = {group['rho_min']}: must lie in [0, rho] = [0, {group['rho']}]. Use None for "
                             "a constant radius.")
        if not group["lr_min"] <= group["lr_max"]:
            raise ValueError(f"lr_min = {group['lr_min']}: must not exceed lr_max = {group['lr_max']}.")

    def _radius(self, group: dict[str, Any]) -> Any:
        if group["rho_min"] is None or group["lr_max"] == group["lr_min"]:
            return group["rho"]
        share = (foreach.number(group["lr"]) - group["lr_min"]) / (group["lr_max"] - group["lr_min"])
        if isinstance(share, Tensor):
            share = share.clamp(0, 1)
        elif not -1e-6 <= share <= 1 + 1e-6:
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"GSAM: lr = {float(group['lr']):.4g} lies outside [lr_min, lr_max] = [{group['lr_min']:.4g}, "
                    f"{group['lr_max']:.4g}]: the radius stays in [rho_min, rho]. Give the schedule's largest rate as "
                    "lr_max.", RuntimeWarning, stacklevel=2)
            share = min(max(share, 0.0), 1.0)
        return group["rho_min"] + (group["rho"] - group["rho_min"]) * share

    def _combine(self, buckets: list[Bucket]) -> None:
        c = foreach.projection([bucket.g for bucket in buckets], [bucket.g_adv for bucket in buckets], self._ranks)
        for bucket in buckets:
            alpha = bucket.group["alpha"]
            u = foreach.mul(bucket.g_adv, foreach.on(1 + alpha * c, bucket.g[0]))
            foreach.add_(u, bucket.g, alpha=-alpha)
            bucket.g_adv = list(u)
