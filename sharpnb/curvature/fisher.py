r"""The Fisher information matrix: empirical, or with targets drawn from the model.

With :math:`s_i = \nabla_f \ell_i`, the gradient of sample i's loss in its output, and :math:`J_i` the output's Jacobian

.. math:: F = \frac1N\sum_i g_i g_i^\top = \frac1N\sum_i J_i^\top s_i s_i^\top J_i

Empirical: the targets are the data's. Monte Carlo: they are drawn from the model's own distribution, and the mean over
draws is the Fisher matrix itself, which for cross-entropy is the Gauss-Newton matrix (Martens, Journal of Machine
Learning Research 21, 2020, sections 5 and 9.2; Kunstner, Hennig & Balles, NeurIPS 2019, on why the empirical one is
another matrix).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sharpnb.counts import Batch
from sharpnb.curvature.ggn import GGNOperator

Draw = Callable[[Tensor, torch.Generator], Any]


class FisherOperator(GGNOperator):
    r"""The Fisher matrix; other arguments as :class:`~sharpnb.curvature.hessian.HessianOperator` (no ``method``).

    Args:
        kind: ``"empirical"`` (gradients at the data's targets) or ``"mc"`` (at targets drawn from the model).
        draws: targets drawn a sample, for ``"mc"``.
        draw: ``draw(output, generator)``, one target for each sample; default a class from the softmax of outputs
            ``(batch, classes)``, which fits cross-entropy.
        seed: of the draws, made once: the operator is fixed.

    The gradient of one sample is read off the batch's: this needs a loss that is the mean (or with ``reduction="sum"``
    the sum) of one term a sample, and samples that do not see each other; hence no ``mode="batch_stats"``.

    Raises:
        ValueError: for an unknown ``kind``, ``draws`` below 1, ``mode="batch_stats"``, or outputs of another shape than
            ``(batch, classes)`` where classes are to be drawn.
    """

    def __init__(
        self, model: torch.nn.Module, loss: Any, data: Any, params: Any = None, mode: Any = "eval", *,
        kind: Literal["empirical", "mc"] = "empirical", draws: int = 1, draw: Draw | None = None, seed: int = 0,
        **options: Any,
    ) -> None:
        if kind not in ("empirical", "mc") or draws < 1:
            raise ValueError(f"kind = {kind!r}, draws = {draws}: choose 'empirical' or 'mc', and at least one draw.")
        if mode == "batch_stats":
            raise ValueError("mode = 'batch_stats': BatchNorm then mixes the samples of a batch, and a sample has no "
                             "gradient of its own. Use mode='eval'.")
        self.kind, self.draws, self.seed, self._draw = kind, draws, seed, draw or draw_class
        super().__init__(model, loss, data, params, mode, **options)

    def _output_curvature(self, output: Tensor, batch: Batch) -> Any:
        """Return the scores (draws, samples, outputs of a sample), and the samples' number."""
        z = output.requires_grad_()
        targets = [batch.target] if self.kind == "empirical" else self._drawn(z.detach(), batch)
        samples = (batch.size or len(z)) if self._batches.reduction == "mean" else 1
        scores = [samples * torch.autograd.grad(self.loss(z, target), z)[0].flatten(1) for target in targets]
        return torch.stack(scores), samples

    def _examine_loss(self, batch: Batch, output: Tensor) -> None:
        """The loss is differentiated once here: nothing can be missing."""

    def _drawn(self, output: Tensor, batch: Batch) -> list[Any]:
        # Seeded by the batch's number: a rebuilt graph must draw what it drew before, the next batch something else.
        mixed = np.random.SeedSequence([self.seed, batch.index]).generate_state(1, np.uint32)[0]
        generator = torch.Generator(output.device).manual_seed(int(mixed))
        return [self._draw(output, generator) for _ in range(self.draws)]

    def _apply_output_curvature(self, made: Any, jv: Tensor, batched: bool) -> Tensor:
        scores, samples = made
        inner = torch.einsum("dbo,...bo->...db", scores, jv.flatten(1 + batched))
        return (torch.einsum("...db,dbo->...bo", inner, scores) / (len(scores) * samples)).view(jv.shape)


def draw_class(output: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one class for each sample from the softmax of outputs ``(batch, classes)``."""
    if output.dim() != 2:
        raise ValueError(f"Outputs of shape {tuple(output.shape)}: classes are drawn for outputs (batch, classes) "
                         "alone. Say how to draw: draw=lambda output, generator: …, one target for each sample.")
    return torch.multinomial(output.softmax(1), 1, generator=generator)[:, 0]
