"""SGDW: SGD with decoupled weight decay (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101)."""

from __future__ import annotations

from typing import Any

from torch.optim.optimizer import ParamsT

from sharpnb.optim import foreach
from sharpnb.optim.decoupled import DecoupledDecay
from sharpnb.optim.foreach import Bucket


class SGDW(DecoupledDecay):
    r"""SGD with momentum whose weight decay is a step of its own (Algorithm 1).

    .. math:: m_t = \beta m_{t-1} + \eta_t\alpha\, g_t, \qquad w_t = w_{t-1} - m_t - \eta_t\lambda w_{t-1}

    :math:`\lambda` = ``weight_decay`` is *not* multiplied by :math:`\alpha` = ``lr``, and acts on the weights before
    the step; :class:`~sharpnb.optim.decoupled.DecoupledDecay` says what :math:`\eta_t` is. The twin is
    :func:`sharpnb.rules.sgdw`.

    How it differs from the authors' code, and other people's: (1) theirs has the learning rate outside the buffer, as
    PyTorch's SGD does: ``lr_in_momentum=False``; the two differ whenever the learning rate changes; (2) timm and
    composer multiply the weights by the decay before or between, with the same result for SGD.

    Args:
        params: parameters, or groups of them.
        lr: step size :math:`\alpha` (the paper's grids are centred at 0.1 without a default; so there is none).
        momentum: :math:`\beta` (default 0).
        weight_decay: :math:`\lambda`; :func:`~sharpnb.optim.schedules.normalized_weight_decay` gives it for a budget.
        nesterov: step by :math:`\eta_t\alpha g_t+\beta m_t`.
        lr_in_momentum: True is the paper, False the authors' code.
        eta_reference: the learning rate at which :math:`\eta_t=1` (default: ``lr``).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, params: ParamsT, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False,
        lr_in_momentum: bool = True, eta_reference: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov,
                                  "lr_in_momentum": lr_in_momentum, "eta_reference": eta_reference})

    def _complete(self, group: dict[str, Any]) -> None:
        super()._complete(group)
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum = {group['momentum']}: must lie in [0, 1). 0.9 is usual.")

    def _update(self, bucket: Bucket) -> None:
        group = bucket.group
        beta, lr = group["momentum"], foreach.number(group["lr"])
        inside, outside = (lr, 1.0) if group["lr_in_momentum"] else (1.0, lr)
        self._decay(bucket)
        if beta == 0:
            foreach.descend(bucket.w, bucket.g, lr)
            return
        m = self._buffers(bucket, "momentum_buffer")
        foreach.mul_(m, beta)
        foreach.descend(m, bucket.g, -inside)
        if group["nesterov"]:
            foreach.descend(bucket.w, bucket.g, lr)
            foreach.descend(bucket.w, m, outside * beta)
        else:
            foreach.descend(bucket.w, m, outside)
