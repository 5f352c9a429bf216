"""What is put around a rule on rows: shards of a batch (m-sharpness), Lookahead, stochastic weight averaging."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sharpnb import rules
from sharpnb.trees import mapped


def in_shards(rule: Callable[..., Any], shards: int) -> Callable[..., Any]:
    r"""Return an ascent rule that perturbs on each shard by itself and averages what it hands to its base.

    With S shards of m samples and :math:`u_s` what the rule makes of shard s (Foret et al., section 4.1, m-sharpness):

    .. math:: w_t = \mathrm{base}\Big(w_{t-1},\ \frac1S\sum_s u_s\Big)

    Weights and state have a row a member. Inside, rows k S to k S + S - 1 are member k, and so are the hyperparameters'
    columns. What a rule adds past its base (WSAM's decoupled term) or remembers (LookSAM's orthogonal part) is averaged
    too, as in :mod:`sharpnb.optim`.
    """

    def mean(t: Tensor) -> Tensor:
        parts = t.unflatten(0, (-1, shards))
        return parts[:, 0] + (parts - parts[:, :1]).mean(1)  # equal rows stay exactly what they are

    def repeat(t: Tensor) -> Tensor:
        return t.repeat_interleave(shards, 0)

    def sharded(w: Tensor, grad: Any, *, state: Any, base: rules.Base, **hyper: Any) -> tuple[Tensor, rules.State]:
        made: list[Any] = []  # what the base makes of each member, and its repetition

        def base_once(w: Tensor, u: Tensor, state: Any, **hyper: Any) -> tuple[Tensor, rules.State]:
            w, state, hyper = mapped(lambda t: t[::shards], (w, state, hyper))
            made[:] = (own := base(w, mean(u), state, **hyper)), mapped(repeat, own)
            return made[1]

        w, state = mapped(repeat, (w, state))
        found = rule(w, grad, state=state, base=base_once, **hyper)
        return made[0] if found is made[1] else mapped(mean, found)

    return sharded


class Averages:
    r"""The slow weights of Lookahead and the running average of SWA, of K members at once.

    .. math::
        \text{every k steps:}\quad \phi \leftarrow \phi + \alpha(w-\phi),\ \ w\leftarrow\phi; \qquad
        \text{from a step on, every c steps:}\quad \bar w \leftarrow \bar w + (w-\bar w)/(\text{number}+1)

    Lookahead (Zhang et al., NeurIPS 2019, Algorithm 1) keeps the base's state at each synchronisation. SWA (Izmailov et
    al., UAI 2018, eq. in Algorithm 1) averages what is there after it, so both can act at once.
    """

    def __init__(self, hyper: dict[str, Any], w: Tensor, steps: int) -> None:
        self.k, self.alpha = hyper.get("lookahead_k"), hyper.get("lookahead_alpha", 0.5)
        start, self.every = hyper.get("swa_start"), hyper.get("swa_every", 1.0)
        # 0.1 * 30 is 3, not 3.0000000000000004.
        self.first = None if start is None else (start * steps - 1e-9).ceil()
        self.slow, self.mean, self.count = w, w, torch.zeros_like(w[:, :1])

    def best(self, w: Tensor) -> Tensor:
        """Return SWA's average where it is asked for, else the slow weights, else the weights ``w``."""
        return self.mean if self.first is not None else w if self.k is None else self.slow

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
