"""m-sharpness on rows: each shard of a batch is a row of its own until the base's step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sharpnb import rules


def in_shards(rule: Callable[..., Any], shards: int) -> Callable[..., Any]:
    r"""Return an ascent rule that perturbs on each shard by itself and averages what it hands to its base.

    With S shards of m samples and :math:`u_s` what the rule makes of shard s (Foret et al., section 4.1, m-sharpness):

    .. math:: w_t = \mathrm{base}\Big(w_{t-1},\ \frac1S\sum_s u_s\Big)

    Rows k S to k S + S - 1 are member k. What a rule adds past its base (WSAM's decoupled term) or remembers (LookSAM's
    orthogonal part) is averaged too, as in :mod:`sharpnb.optim`.
    """

    def sharded(w: Tensor, grad: Any, *, state: Any, base: rules.Base, **hyper: Any) -> tuple[Tensor, rules.State]:
        members = len(w)

        def base_once(w: Tensor, u: Tensor, state: Any, **hyper: Any) -> tuple[Tensor, rules.State]:
            w, state, hyper = (_map(part, _first) for part in (w, state, hyper))
            return _map(base(w, _mean(u), state, **hyper), _repeat)

        def _first(t: Tensor) -> Tensor:
            return t[::shards]

        def _mean(t: Tensor) -> Tensor:
            parts = t.reshape(members, shards, -1)
            return parts[:, 0] + (parts - parts[:, :1]).mean(1)  # equal rows stay exactly what they are

        def _repeat(t: Tensor) -> Tensor:
            return t.repeat_interleave(shards, 0) if t.ndim == 2 and len(t) == members else t

        w, state, hyper = (_map(part, _repeat) for part in (w, state, hyper))
        return _map(rule(w, grad, state=state, base=base_once, **hyper), _mean)

    return sharded


def _map(value: Any, how: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``how`` to every tensor in nested tuples, dictionaries and partials."""
    if isinstance(value, torch.Tensor):
        return how(value)
    if isinstance(value, tuple):
        return tuple(_map(part, how) for part in value)
    if isinstance(value, functools.partial):  # a perturbation with a column among its options
        return functools.partial(value.func, **_map(value.keywords, how))
    return {key: _map(part, how) for key, part in value.items()} if isinstance(value, dict) else value
