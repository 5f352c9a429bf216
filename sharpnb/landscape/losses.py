r"""What is measured at a point: mean cross-entropy, error, or any function of output and target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
Losses = Sequence[Literal["loss", "error"]] | Mapping[str, Loss]


def stacked_losses(losses: Losses) -> dict[str, Callable[[Any, Any], Tensor]]:
    """Return name -> function of outputs (P, B, …), or a list of P, and target (B, …): the batch's means (P,)."""
    if isinstance(losses, Mapping):
        if losses:
            return {name: _one_by_one(loss) for name, loss in losses.items()}
    elif not isinstance(losses, str) and losses and set(losses) <= set(_KNOWN):
        return {name: _KNOWN[name] for name in losses}
    raise ValueError(f"losses = {losses!r}: choose from {', '.join(map(repr, _KNOWN))} in a list, or give a dictionary "
                     "of functions of output and target that return the mean over the batch.")


def _cross_entropy(outputs: Any, target: Tensor) -> Tensor:
    # Samples last: a softmax over a short last axis is not vectorised (measured nine times slower).
    log_p = F.log_softmax(_logits(outputs, target).mT.contiguous(), 1)
    return -log_p.gather(1, target.expand(len(outputs), 1, -1))[:, 0].mean(1)


def _error(outputs: Any, target: Tensor) -> Tensor:
    """Percent of wrong classes; an output that is not finite is wrong."""
    samples_last = _logits(outputs, target).mT.contiguous()
    right = (samples_last.argmax(1) == target) & samples_last.sum(1).isfinite()
    return 100 * (1 - right.to(samples_last.dtype).mean(1))


def _logits(outputs: Any, target: Any) -> Tensor:
    if not isinstance(outputs, Tensor):
        found = f"a {type(outputs[0]).__name__}"
    elif outputs.dim() == 3 and not target.is_floating_point() and (
            outputs.shape[2] > 1 and target.shape == outputs.shape[1:2]):
        return outputs
    else:
        found = f"outputs of shape {tuple(outputs.shape[1:])} for targets {target.dtype}, {tuple(target.shape)}"
    raise ValueError(f"The losses 'loss' and 'error' take one tensor of logits, and the model returns {found}. "
                     f"Logits are (B, classes), labels (B,). Give losses={{\"name\": function of output and target}}.")


def _one_by_one(loss: Loss) -> Callable[[Any, Any], Tensor]:
    """A loss of one point's output, or, where that is refused, of all points' outputs (P, B, …) at once."""
    def of_each(outputs: Any, target: Any) -> Tensor:
        try:
            values = [loss(output, target) for output in outputs]  # tensors of one number, or Python's numbers
            kinds = (None if isinstance(value, Tensor) else torch.float64 for value in values)
            return torch.stack([torch.as_tensor(v, dtype=k).reshape(()) for v, k in zip(values, kinds, strict=True)])
        except (IndexError, RuntimeError):
            together = loss(outputs, target) if isinstance(outputs, Tensor) else None
            if together is None or together.shape != (len(outputs),):
                raise
            return together

    return of_each


_KNOWN: dict[str, Callable[[Any, Any], Tensor]] = {"loss": _cross_entropy, "error": _error}
