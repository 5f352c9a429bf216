"""Lookahead and stochastic weight averaging on top of any rule, row by row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Averages:
    r"""The slow weights of Lookahead and the running average of SWA, of K members at once.

    .. math::
        \text{every k steps:}\quad \phi \leftarrow \phi + \alpha(w-\phi),\ \ w\leftarrow\phi; \qquad
        \text{from a step on, every c steps:}\quad \bar w \leftarrow \bar w + (w-\bar w)/(\text{number}+1)

    Lookahead (Zhang et al., NeurIPS 2019, Algorithm 1) keeps the base's state at each synchronisation. SWA (Izmailov et
    al., UAI 2018, eq. in Algorithm 1) averages what is there after it, so both can act at once.
    """

    def __init__(
        self, w: Tensor, steps: int, k: Tensor | None, alpha: Tensor | float, start: Tensor | None,
        every: Tensor | float,
    ) -> None:
        self.k, self.alpha, self.every = k, alpha, every
        # 0.1 * 30 is 3, not 3.0000000000000004.
        self.first = None if start is None else (start * steps - 1e-9).ceil()
        self.slow, self.mean, self.count = w, w, torch.zeros_like(w[:, :1])

    @classmethod
    def of(cls, hyper: dict[str, Any], w: Tensor, steps: int) -> Averages | None:
        """Take the averages' settings out of ``hyper``; None where there are none."""
        k, alpha = hyper.pop("lookahead_k", None), hyper.pop("lookahead_alpha", 0.5)
        start, every = hyper.pop("swa_start", None), hyper.pop("swa_every", 1.0)
        return None if k is None and start is None else cls(w, steps, k, alpha, start, every)

    @property
    def best(self) -> Tensor:
        """SWA's average where it is asked for, else the slow weights."""
        return self.slow if self.first is None else self.mean

    def after(self, step: int, w: Tensor) -> Tensor:
        """Return the weights to go on from after the update of ``step`` (counted from 0)."""
        if self.k is not None:
            due = (step + 1) % self.k == 0
            self.slow = torch.where(due, self.slow + self.alpha * (w - self.slow), self.slow)
            w = torch.where(due, self.slow, w)
        if self.first is not None:
            begun = step + 1 > self.first
            due = begun & ((step - self.first) % self.every == 0)
            self.count = self.count + due
            mean = self.mean + (w - self.mean) / self.count.clamp(min=1)
            self.mean = torch.where(due, mean, torch.where(begun, self.mean, w))
        return w
