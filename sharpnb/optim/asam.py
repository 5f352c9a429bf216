"""ASAM: adaptive SAM (Kwon, Kim, Park & Choi, ICML 2021, arXiv 2102.11600)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sharpnb.optim import foreach
from sharpnb.optim.foreach import Bucket
from sharpnb.optim.protocol import SharpnessAware

ETA = ("eta", lambda eta: eta >= 0, "must not be negative. Use 0.01 with ASAM's ball, 1.0 with Fisher SAM's.")


class ASAM(SharpnessAware):
    r"""Perturb each weight in proportion to its size, so that rescaling two consecutive layers changes nothing.

    .. math::
        \hat\epsilon = \rho\,\frac{T_w^2 g}{\|T_w g\|_2},\qquad
        T_w = |w| + \eta\ \text{(scaled tensors)},\ \ 1\ \text{(the others)}, \qquad
        w_t = \mathrm{base}\big(w_{t-1},\ \nabla L(w_{t-1}+\hat\epsilon)\big)

    that is, the ball :math:`\|T_w^{-1}\epsilon\|_2\le\rho`; ``p=inf`` gives :math:`\rho\,T_w\,\mathrm{sign}(g)`.
    Complex weights are scaled by their modulus. The twin is :func:`sharpnb.rules.asam`; the protocol is that of
    :class:`~sharpnb.optim.protocol.SharpnessAware`.

    What is scaled: tensors with two or more dimensions, as the paper leaves biases unscaled. A group's ``adaptive`` key
    overrides it for all tensors of that group. The authors' code scales what has "weight" in its name, so also the
    scale of norm layers: put these in a group with ``adaptive=True``. The popular class scales everything and has no
    :math:`\eta`: ``adaptive=True, eta=0.0``, which needs another radius (its author uses 2.0).

    Args:
        optimizer, base_optimizer, kwargs: as in the protocol.
        rho: radius, in units of relative change (default 0.5: the paper's for CIFAR-10; 1.0 for CIFAR-100).
        eta: keeps weights near zero movable (default 0.01: the paper's Section 5).
        adaptive: None scales tensors of two or more dimensions, True all, False none.

    Raises:
        ValueError: if an argument is out of range.
    """

    _ranges = (ETA,)

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None = None, rho: float = 0.5,
        eta: float = 0.01, adaptive: bool | None = None, **kwargs: Any,
    ) -> None:
        super().__init__(optimizer, base_optimizer, rho=rho, options={"eta": eta, "adaptive": adaptive}, **kwargs)

    def _kind(self, group: dict[str, Any], p: Tensor) -> bool:
        return is_scaled(group, p)

    def _shape(self, bucket: Bucket) -> list[Tensor] | None:
        return weight_scale(bucket)


def is_scaled(group: dict[str, Any], p: Tensor) -> bool:
    """Return whether a parameter's perturbation is in proportion to its weights."""
    return p.ndim > 1 if group["adaptive"] is None else bool(group["adaptive"])


def weight_scale(bucket: Bucket) -> list[Tensor] | None:
    r"""Return :math:`T_w` for a bucket of scaled tensors, None for the others."""
    if not bucket.kind:
        return None
    if bucket.params[0].is_complex():
        sizes = [p.abs().unsqueeze(-1).repeat_interleave(2, -1) for p in bucket.params]
    else:
        sizes = list(foreach.absolute(bucket.w))
    foreach.add_(sizes, bucket.group["eta"])
    return sizes
