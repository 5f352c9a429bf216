"""Gradients that were there before a step: another micro-batch's, which a step of two passes would lose."""

from __future__ import annotations

import operator
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
        self._left: list[Tensor] = []  # what the last step left in .grad
        self._written: list[int] = []  # and how often each was written to
        self._found: dict[Tensor, Tensor] = {}
        self._blank: dict[Tensor, Tensor] = {}

    def leave(self) -> None:
        """Remember the gradients that a step leaves in ``.grad``."""
        self._left = self._now()
        self._written = [g._version for g in self._left]

    def _now(self) -> list[Tensor]:
        return [g for group in self.groups for p in group["params"] if (g := p.grad) is not None]

    def forget(self) -> None:
        """Let go of them: they were cleared."""
        self._left = []

    def look(self) -> None:
        """Before the first pass: take away what is new, and put zeros in its place."""
        now, left, self._found, self._left = self._now(), self._left, {}, []
        if len(now) == len(left) and all(map(operator.is_, now, left)) and [g._version for g in now] == self._written:
            return
        own = dict(zip(map(id, left), self._written, strict=False))
        self._found = {p: g for p, g in foreach.gradients(self.groups).items() if own.get(id(g)) != g._version}
        if any(bool(_dense(g).any()) for g in self._found.values()):
            self._blank = {p: torch.zeros_like(g) for p, g in self._found.items()}
        else:
            self._found = {}

    def place(self) -> None:
        """Put the zeros there, after the gradients were cleared: a closure that clears them itself takes them away."""
        for p, zeros in self._blank.items():
            p.grad = zeros

    def compare(self, who: str) -> None:
        """After the first pass: refuse where the gradients were another batch's; ``.grad`` is then as it was.

        Raises:
            RuntimeError: see above.
        """
        found, blank, self._found, self._blank = self._found, self._blank, {}, {}
        cleared = all(p.grad is not zeros for p, zeros in blank.items())
        if not found or cleared or _alike(found, foreach.gradients(self.groups)):
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
