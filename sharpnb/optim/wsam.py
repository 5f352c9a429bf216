r"""WSAM: sharpness as a regulariser of its own weight (Yue, Jiang, Ye, Gao, Liu & Zhang, KDD 2023)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sharpnb.optim import foreach
from sharpnb.optim.asam import ETA, is_scaled, weight_scale
from sharpnb.optim.fisher_sam import fisher_scale
from sharpnb.optim.foreach import Bucket
from sharpnb.optim.protocol import SharpnessAware


class WSAM(SharpnessAware):
    r"""Minimise :math:`L+\frac{\gamma}{1-\gamma}\big(L^{SAM}-L\big)` (Algorithm 2; coupled: Algorithm 4).

    With :math:`a=\gamma/(1-\gamma)`:

    .. math::
        \text{decoupled:}\quad w_t = \mathrm{base}(w_{t-1}, g) - \eta_t\alpha\,a\,(\tilde g-g), \qquad
        \text{coupled:}\quad w_t = \mathrm{base}\big(w_{t-1},\ a\,\tilde g+(1-a)\,g\big)

    Decoupled, the sharpness term passes by momentum, preconditioner and weight decay; :math:`\eta_t\alpha` is the
    group's learning rate after the base's step. Coupled with :math:`\gamma=1/2` is SAM. The twin is
    :func:`sharpnb.rules.wsam`; the protocol is that of :class:`~sharpnb.optim.protocol.SharpnessAware`.

    How it differs from the authors' code: (1) gradients are cleared before each pass, where theirs counts the first one
    twice with the closure of their README; (2) nothing is added to the denominator; (3) no clipping inside: clip in the
    closure, where it acts on both gradients as theirs does; (4) everything transient stays out of the checkpoint.

    Args:
        optimizer, base_optimizer, kwargs: as in the protocol.
        rho: radius (default 0.05: the authors' code).
        gamma: weight of the sharpness, in [0, 1) (default 0.9: the authors' code; the paper finds 0.8 to 0.95 best).
        decouple: apply the sharpness term past the base (default), or feed it through the base.
        perturbation: "sam", "asam" or "fisher": whose ball (the paper combines WSAM with either relative).
        eta: :math:`\eta` of :class:`ASAM` (default 0.01) or :class:`FisherSAM` (default 1.0).
        adaptive: with "asam", what is scaled, as in :class:`ASAM`. With the default perturbation True is the authors'
            ``adaptive=True``: the ball of "asam" for all tensors, with :math:`\eta=0`.

    Raises:
        ValueError: if an argument is out of range.
    """

    keeps_gradient = True
    _ranges = (ETA, ("gamma", lambda gamma: 0 <= gamma < 1, "the weight must lie in [0, 1). Use 0.9, the authors'."))
    _own = (*SharpnessAware._own, "decouple", "perturbation")

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None = None, rho: float = 0.05,
        gamma: float = 0.9, decouple: bool = True, perturbation: str = "sam", eta: float | None = None,
        adaptive: bool | None = None, **kwargs: Any,
    ) -> None:
        if adaptive and perturbation == "sam":  # as the authors' code spells it
            perturbation, eta = "asam", 0.0 if eta is None else eta
        if perturbation not in ("sam", "asam", "fisher"):
            raise ValueError(f"perturbation = {perturbation!r}: must be 'sam', 'asam' or 'fisher'.")
        self.decouple, self.perturbation = decouple, perturbation
        options: dict[str, Any] = {"gamma": gamma}
        if perturbation != "sam":
            default = 0.01 if perturbation == "asam" else 1.0
            options |= {"eta": default if eta is None else eta, "adaptive": adaptive}
        super().__init__(optimizer, base_optimizer, rho=rho, options=options, **kwargs)

    def _kind(self, group: dict[str, Any], p: Tensor) -> bool:
        return self.perturbation == "asam" and is_scaled(group, p)

    def _shape(self, bucket: Bucket) -> list[Tensor] | None:
        return fisher_scale(bucket) if self.perturbation == "fisher" else weight_scale(bucket)

    def _combine(self, buckets: list[Bucket]) -> None:
        for bucket in buckets:
            if self.decouple:
                bucket.after, bucket.g_adv = list(foreach.sub(bucket.g_adv, bucket.g)), bucket.g
            else:
                bucket.g_adv = list(foreach.lerp(bucket.g, bucket.g_adv, _weight(bucket.group)))

    def _past_base(self, after: dict[Tensor, Tensor]) -> None:
        for bucket in foreach.buckets(self.param_groups, after):
            foreach.descend(bucket.w, bucket.g, foreach.number(bucket.group["lr"]) * _weight(bucket.group))


def _weight(group: dict[str, Any]) -> float:
    r"""Return :math:`a=\gamma/(1-\gamma)`."""
    return group["gamma"] / (1 - group["gamma"])
