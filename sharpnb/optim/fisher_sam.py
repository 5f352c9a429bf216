"""Fisher SAM: the ball in the metric of the model's distributions (Kim, Li, Hu & Hospedales, ICML 2022, 2206.04920)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sharpnb.optim import foreach
from sharpnb.optim.asam import ETA
from sharpnb.optim.foreach import Bucket
from sharpnb.optim.protocol import SharpnessAware


class FisherSAM(SharpnessAware):
    r"""SAM with the ellipsoid :math:`\epsilon^\top F(w)\,\epsilon\le\rho^2` in place of the ball.

    .. math::
        \hat\epsilon = \rho\,\frac{F^{-1}g}{\sqrt{g^\top F^{-1}g}},\qquad
        F^{-1} = \mathrm{diag}\Big(\frac{1}{1+\eta g_i^2}\Big), \qquad
        w_t = \mathrm{base}\big(w_{t-1},\ \nabla L(w_{t-1}+\hat\epsilon)\big)

    F is the diagonal empirical Fisher information, approximated by the squared mini-batch gradient and damped by 1, as
    the paper does; :math:`\eta=0` is SAM. Because of that 1 the direction depends on the scale of the loss. The twin is
    :func:`sharpnb.rules.fisher_sam`; the protocol is that of :class:`~sharpnb.optim.protocol.SharpnessAware`.

    The authors published no code. Of the third-party forms, some normalise by :math:`\|F^{-1}g\|_2`, or tensor by
    tensor: neither is the constrained maximiser.

    Args:
        optimizer, base_optimizer, kwargs: as in the protocol.
        rho: radius (default 0.1: the paper's, which calls it gamma).
        eta: weight of the Fisher information (default 1.0: as re-implementers quote the paper).

    Raises:
        ValueError: if an argument is out of range.
    """

    _ranges = (ETA,)

    def __init__(
        self, optimizer: Optimizer | Iterable[Any], base_optimizer: type[Optimizer] | None = None, rho: float = 0.1,
        eta: float = 1.0, **kwargs: Any,
    ) -> None:
        super().__init__(optimizer, base_optimizer, rho=rho, options={"eta": eta}, **kwargs)

    def _shape(self, bucket: Bucket) -> list[Tensor]:
        return fisher_scale(bucket)


def fisher_scale(bucket: Bucket) -> list[Tensor]:
    r"""Return the diagonal of :math:`F^{-1/2}=(1+\eta g^2)^{-1/2}` for a bucket."""
    f = foreach.mul(bucket.g, bucket.g)
    foreach.mul_(f, bucket.group["eta"])
    foreach.add_(f, 1.0)
    foreach.rsqrt_(f)
    return list(f)
