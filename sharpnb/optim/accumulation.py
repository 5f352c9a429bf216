"""Gradients that were there before a step: another micro-batch's, which a step of two passes would lose."""

from __future__ import annotations

from typing import Any

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

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.groups = groups
        self._left: list[tuple[Tensor, int]] = []  # what the last step left in .grad, how often each was written to
        self.found: dict[Tensor, Tensor] = {}
        self.blank: dict[Tensor, Tensor] = {}

    def leave(self) -> None:
        """Remember the gradients that a step leaves in ``.grad``."""
        self._left = [(g, g._version) for group in self.groups for p in group["params"] if (g := p.grad) is not None]

    def forget(self) -> None:
        """Let go of them: they were cleared."""
        self._left = []

    def look(self) -> None:
        """Before the first pass: take away what is new, and put zeros in its place."""
        left, self._left, self.found, self.blank = self._left, [], {}, {}
        own = {id(g): version for g, version in left}
        new = [(p, g) for group in self.groups for p in group["params"]
               if (g := p.grad) is not None and own.get(id(g)) != g._version]
        if any(bool(_dense(g).any()) for _, g in new):
            self.found, self.blank = dict(new), {p: torch.zeros_like(g) for p, g in new}

    def compare(self, who: str) -> None:
        """After the first pass: refuse where the gradients were another batch's; ``.grad`` is then as it was.

        Raises:
            RuntimeError: see above.
        """
        if not (found := self.found):
            return
        blank, self.found, self.blank = self.blank, {}, {}
        if all(p.grad is not zeros for p, zeros in blank.items()) or _alike(found, foreach.gradients(self.groups)):
            return
        for p, g in found.items():
            p.grad = g
        raise RuntimeError(
            f"{who}.step(closure): gradients were there that the closure does not make, such as those of earlier "
            "micro-batches under gradient accumulation. The perturbed pass would not see them. Give all micro-batches "
            "to one step, step([closure_1, closure_2, ...]), as recipes/lightning_sam.py shows; if they are of no "
            "account, call zero_grad() first.")


def _alike(found: dict[Tensor, Tensor], now: dict[Tensor, Tensor]) -> bool:
    gaps = [_norm(g - now[p]) for p, g in found.items() if p in now]
    return len(gaps) == len(found) and sum(gaps) <= _SAME * sum(_norm(g) for g in found.values())


def _norm(t: Tensor) -> float:
    return float(torch.linalg.vector_norm(_dense(t)))


def _dense(t: Tensor) -> Tensor:
    return foreach.real(t.to_dense() if t.layout is not torch.strided else t)
