"""Warm restarts, and the decay that belongs to a budget (Loshchilov & Hutter, ICLR 2019, arXiv 1711.05101)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


def normalized_weight_decay(lambda_norm: float, batch_size: int, dataset_size: int, epochs: float) -> float:
    r"""Return the decay of a budget (Appendix B.1; the best ``lambda_norm`` hardly depends on the budget).

    .. math:: \lambda = \lambda_{norm}\sqrt{\frac{b}{B\,T}}

    Args:
        lambda_norm: the decay if one batch pass were allowed (the paper finds 0.025 to 0.05).
        batch_size: b.
        dataset_size: B, training samples.
        epochs: T; with restarts, those of the current period.

    Raises:
        ValueError: if a size is not positive, or ``lambda_norm`` is negative.
    """
    if not (batch_size > 0 and dataset_size > 0 and epochs > 0 and lambda_norm >= 0):
        raise ValueError(f"normalized_weight_decay(lambda_norm={lambda_norm}, batch_size={batch_size}, dataset_size="
                         f"{dataset_size}, epochs={epochs}): the sizes must be positive and lambda_norm not negative.")
    return lambda_norm * math.sqrt(batch_size / (dataset_size * epochs))


class CosineRestarts(LRScheduler):
    r"""Cosine annealing with warm restarts, stepped once a batch; with ``lambda_norm``, AdamWR and SGDWR (eq. 14, 15).

    .. math::
        \eta_t = \eta_{min}^{(i)}
            + \tfrac12(\eta_{max}^{(i)}-\eta_{min}^{(i)})\Big(1+\cos\frac{\pi T_{cur}}{T_i}\Big), \qquad
        T_{i+1} = T_i\,T_{mult}, \qquad \lambda = \lambda_{norm}\big/\sqrt{n\,T_i}

    Each group's learning rate is :math:`\eta_t` times its ``initial_lr``; :math:`T_{cur}` counts the epochs since the
    last restart, batch by batch, n batches being an epoch (b/B = 1/n). The state of the optimizer is kept across
    restarts. It works with any optimizer; ``lambda_norm`` sets ``weight_decay``, which means :math:`\lambda` in
    :class:`~sharpnb.optim.SGDW` and :class:`~sharpnb.optim.AdamW` only. A group that was given ``weight_decay=0`` of
    its own keeps it.

    Where the paper and the authors' code differ: their code advances :math:`T_{cur}` *before* each batch, so that the
    first batch has less than the full rate and the last one of a period :math:`\eta_{min}`. ``preset="official"`` is
    that, without the float accumulation that can delay their restart by a batch.

    Args:
        optimizer: what to schedule.
        t_0: epochs of the first period (the paper advises 1 to 10 % of the budget).
        t_mult: factor from one period to the next (default 2: the paper's).
        batches_per_epoch: n; 1 counts t_0 in steps.
        eta_min: lowest multiplier, or one for each period, the last one also for all later ones (default 0: the
            paper's eq. 15).
        lambda_norm: normalised decay, or None to leave ``weight_decay`` alone.
        preset: "paper" or "official".
        last_epoch: index of the last batch, as in every PyTorch scheduler; -1 starts.
        eta_max: largest multiplier, or one for each period (default 1: the paper's eq. 15).

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, optimizer: Optimizer, t_0: int, t_mult: int = 2, *, batches_per_epoch: int = 1,
        eta_min: float | Sequence[float] = 0.0, lambda_norm: float | None = None, preset: str = "paper",
        last_epoch: int = -1, eta_max: float | Sequence[float] = 1.0,
    ) -> None:
        for name, value in (("t_0", t_0), ("t_mult", t_mult), ("batches_per_epoch", batches_per_epoch)):
            if value < 1 or int(value) != value:
                raise ValueError(f"{name} = {value}: must be a whole number, 1 or more.")
        if preset not in ("paper", "official"):
            raise ValueError(f"preset = {preset!r}: must be 'paper' or 'official'.")
        self.t_0, self.t_mult, self.batches_per_epoch = int(t_0), int(t_mult), int(batches_per_epoch)
        self.eta_min, self.eta_max = _each("eta_min", eta_min), _each("eta_max", eta_max)
        for number in range(max(len(self.eta_min), len(self.eta_max))):
            low, high = self._ends(number)
            if not low <= high:
                raise ValueError(f"eta_min = {low} exceeds eta_max = {high} in period {number}.")
        self.lambda_norm, self.preset = lambda_norm, preset
        self._given_none = _without_decay(optimizer)
        super().__init__(optimizer, last_epoch)

    def _ends(self, period: int) -> tuple[float, ...]:
        return tuple(ends[min(period, len(ends) - 1)] for ends in (self.eta_min, self.eta_max))

    def _restart(self, batch: int) -> tuple[int, int, int]:
        """Return (batches since the last restart, batches in the period, number of the period)."""
        length, number = self.t_0 * self.batches_per_epoch, 0
        while batch >= length:
            batch, length, number = batch - length, length * self.t_mult, number + 1
        return batch, length, number

    def period(self, batch: int) -> tuple[int, int]:
        """Return (batches since the last restart, batches in the period) for a batch counted from 0."""
        return self._restart(batch)[:2]

    def eta(self, batch: int) -> float:
        r"""Return :math:`\eta_t` for a batch counted from 0."""
        since, length, number = self._restart(batch)
        since += self.preset == "official"
        low, high = self._ends(number)
        return low + 0.5 * (high - low) * (1 + math.cos(math.pi * since / length))

    def get_lr(self) -> list[Any]:
        """Return the learning rate of each group, and give each group the decay of its period."""
        batch = max(self.last_epoch, 0)
        if self.lambda_norm is not None:
            for number, group in enumerate(self.optimizer.param_groups):
                if group.get("decays", True) and number not in self._given_none:
                    group["weight_decay"] = self.lambda_norm / math.sqrt(self.period(batch)[1])
        return [base * self.eta(batch) for base in self.base_lrs]


def _each(name: str, values: float | Sequence[float]) -> list[float]:
    found = [float(v) for v in (values if isinstance(values, Sequence) else [values])]
    if not found or not all(0 <= v <= 1 for v in found):
        raise ValueError(f"{name} = {values}: multipliers of the learning rate, one or one a period, in [0, 1].")
    return found


def _without_decay(optimizer: Optimizer) -> list[int]:
    """Return the groups that have no decay where others have one; of ours each group knows it itself (``decays``)."""
    decays = [group.get("weight_decay", 0) for group in optimizer.param_groups]
    if not any(decays) and not optimizer.defaults.get("weight_decay"):
        return []
    return [number for number, decay in enumerate(decays) if decay == 0]
