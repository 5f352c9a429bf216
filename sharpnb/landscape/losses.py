r"""What is measured at a point: mean cross-entropy, error, or any function of output and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Losses = Sequence[Literal["loss", "error"]] | Mapping[str, Loss]


def stacked_losses(losses: Losses) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return name -> function of outputs (P, B, …) and target (B, …), giving the mean over the batch, (P,).

    Raises:
        ValueError: for an unknown name, or none.
    """
    if isinstance(losses, Mapping):
        if losses:
            return {name: _one_by_one(loss) for name, loss in losses.items()}
    elif not isinstance(losses, str) and losses and set(losses) <= set(_KNOWN):
        return {name: _KNOWN[name] for name in losses}
    raise ValueError(f"losses = {losses!r}: choose from {', '.join(map(repr, _KNOWN))} in a list, or give a dictionary "
                     "of functions of output and target that return the mean over the batch.")


def _cross_entropy(outputs: Tensor, target: Tensor) -> Tensor:
    # Samples last: a softmax over a short last axis is not vectorised (measured nine times slower).
    log_p = F.log_softmax(outputs.mT.contiguous(), 1)
    return -log_p.gather(1, target.expand(len(outputs), 1, -1))[:, 0].mean(1)


def _error(outputs: Tensor, target: Tensor) -> Tensor:
    """Percent of wrong classes; an output that is not finite is wrong."""
    samples_last = outputs.mT.contiguous()
    right = (samples_last.argmax(1) == target) & samples_last.sum(1).isfinite()
    return 100 * (1 - right.to(outputs.dtype).mean(1))


def _one_by_one(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, target: torch.stack([loss(output, target) for output in outputs])


_KNOWN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"loss": _cross_entropy, "error": _error}
