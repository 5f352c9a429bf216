"""Gradients that were there before a step: another micro-batch's, which a step of two passes would lose."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sharpnb.optim import foreach

_SAME = 1e-3  # a gradient that is made twice from one batch differs by the order of its sums


class EarlierGradients:
    """Finds out whether ``.grad`` held something at the beginning of a step that its closure does not make again.

    Trainers that accumulate gradients (``accumulate_grad_batches`` in Lightning, ``accumulate`` in Accelerate) make the
    backward passes of all micro-batches but the last before the step. The perturbed pass would not see them.

    Not meant are: what the last step left behind, zeros, gradients that the closure clears, and those of the same
    batch, which the popular SAM class wants before ``step(closure)``.
    """

    def __init__(self) -> None:
        self._left: list[tuple[Tensor, int]] = []  # what the last step left in .grad, how often each was written to
        self.found: dict[Tensor, tuple[Tensor, Tensor]] = {}  # what is new, and the zeros in its place

    def leave(self, params: Iterable[Tensor]) -> None:
        """Remember the gradients that a step leaves in ``.grad``."""
        self._left = [(g, g._version) for p in params if (g := p.grad) is not None]

    def forget(self) -> None:
        """Let go of them: they were cleared."""
        self._left = []

    def look(self, params: Iterable[Tensor]) -> None:
        """Before the first pass: take away what is new."""
        own = {id(g): version for g, version in self._left}
        new = [(p, g) for p in params if (g := p.grad) is not None and own.get(id(g)) != g._version]
        found = any(bool(foreach.dense(p, g).any()) for p, g in new)
        self._left, self.found = [], {p: (g.clone(), torch.zeros_like(g)) for p, g in new if found}

    def compare(self, params: Iterable[Tensor], who: str) -> None:
        """After the first pass, where something was ``found``: refuse what is another batch's, ``.grad`` as it was.

        Raises:
            RuntimeError: see above.
        """
        found, self.found = self.found, {}
        before, now = {p: g for p, (g, _) in found.items()}, foreach.gradients(params)
        replaced = all(p.grad is not zeros and not foreach.dense(p, zeros).any() for p, (_, zeros) in found.items())
        if replaced or _alike(before, now):  # DDP may replace what it has added to
            return
        for p, g in before.items():
            p.grad = g
        raise RuntimeError(
            f"{who}.step(closure): gradients were there that the closure does not make, such as those of earlier "
            "micro-batches under gradient accumulation. The perturbed pass would not see them. Give all micro-batches "
            "to one step, step([closure_1, closure_2, ...]), as recipes/lightning_sam.py shows; if they are of no "
            "account, call zero_grad() first.")


def _alike(found: dict[Tensor, Tensor], now: dict[Tensor, Tensor]) -> bool:
    if not found.keys() <= now.keys():
        return False
    before = {p: foreach.dense(p, g) for p, g in found.items()}
    gaps = [g - foreach.dense(p, now[p]) for p, g in before.items()]
    apart, size = (sum(float(torch.linalg.vector_norm(t)) for t in ts) for ts in (gaps, before.values()))
    return apart <= _SAME * size
