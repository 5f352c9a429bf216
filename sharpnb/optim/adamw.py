"""AdamW, the paper's form (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from sharpnb.optim import foreach
from sharpnb.optim.decoupled import DecoupledDecay
from sharpnb.optim.foreach import Bucket


class AdamW(DecoupledDecay):
    r"""Adam with decoupled weight decay (Algorithm 2).

    .. math::
        m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t,\qquad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2, \qquad
        w_t = w_{t-1} - \eta_t\Big(\alpha\frac{\hat m_t}{\sqrt{\hat v_t}+\epsilon} + \lambda w_{t-1}\Big)

    :math:`\lambda` = ``weight_decay`` is *not* multiplied by :math:`\alpha` = ``lr``: ``torch.optim.AdamW`` with decay
    wd is the case :math:`\lambda=\alpha\cdot` wd. See :class:`~sharpnb.optim.decoupled.DecoupledDecay` for
    :math:`\eta_t`. The twin is :func:`sharpnb.rules.adamw`. The authors' code adds :math:`\epsilon` before the bias
    correction of v; the paper's form, here, is also PyTorch's.

    Args:
        params: parameters, or groups of them.
        lr: step size :math:`\alpha` (default 1e-3: Algorithm 2).
        betas: decay rates of the two moments (default 0.9, 0.999: Algorithm 2).
        eps: :math:`\epsilon` (default 1e-8: Algorithm 2).
        weight_decay: :math:`\lambda`; :func:`~sharpnb.optim.schedules.normalized_weight_decay` gives it for a budget.
        eta_reference: the learning rate at which :math:`\eta_t=1` (default: ``lr``).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, eta_reference: float | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay,
                                  "eta_reference": eta_reference})

    def _complete(self, group: dict[str, Any]) -> None:
        super()._complete(group)
        if not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas = {group['betas']}: both must lie in [0, 1). (0.9, 0.999) is the paper's.")
        if not group["eps"] >= 0:
            raise ValueError(f"eps = {group['eps']}: must not be negative. 1e-8 is the paper's.")

    def _kind(self, group: dict[str, Any], p: Tensor) -> int:
        return self.state[p].get("step", 0)  # a parameter that missed a step has bias corrections of its own

    def _update(self, bucket: Bucket) -> None:
        (beta1, beta2), lr, t = bucket.group["betas"], foreach.number(bucket.group["lr"]), bucket.kind + 1
        m, v = self._buffers(bucket, "exp_avg"), self._buffers(bucket, "exp_avg_sq")
        foreach.lerp_(m, bucket.g, 1 - beta1)
        foreach.mul_(v, beta2)
        foreach.addcmul_(v, bucket.g, bucket.g, 1 - beta2)
        root = foreach.sqrt(v)
        foreach.div_(root, (1 - beta2**t) ** 0.5)
        foreach.add_(root, bucket.group["eps"])
        self._decay(bucket)
        if isinstance(lr, Tensor):  # on a device, where it is not read
            foreach.descend(bucket.w, foreach.div(m, root), lr / (1 - beta1**t))
        else:
            foreach.addcdiv_(bucket.w, m, root, -lr / (1 - beta1**t))
        for p in bucket.params:
            self.state[p]["step"] = t
