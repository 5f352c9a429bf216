r"""The Fisher information matrix: empirical, or with targets drawn from the model.

With :math:`s_i = \nabla_f \ell_i`, the gradient of sample i's loss in its output, and :math:`J_i` the output's Jacobian

.. math:: F = \frac1N\sum_i g_i g_i^\top = \frac1N\sum_i J_i^\top s_i s_i^\top J_i

Empirical: the targets are the data's. Monte Carlo: they are drawn from the model's own distribution, and the mean over
draws is the Fisher matrix itself, which for cross-entropy is the Gauss-Newton matrix (Martens, Journal of Machine
Learning Research 21, 2020, sections 5 and 9.2; Kunstner, Hennig & Balles, NeurIPS 2019, on why the empirical one is
another matrix).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sharpnb.counts import Batch
from sharpnb.curvature.ggn import GGNOperator
from sharpnb.trees import lengths, part

Draw = Callable[[Tensor, torch.Generator], Any]


class FisherOperator(GGNOperator):
    r"""The Fisher matrix; other arguments as :class:`~sharpnb.curvature.hessian.HessianOperator` (no ``method``).

    Args:
        kind: ``"empirical"`` (gradients at the data's targets) or ``"mc"`` (at targets drawn from the model).
        draws: targets drawn a sample, for ``"mc"``.
        draw: ``draw(output, generator)``, one target for each sample; default a class for each sample and position from
            the softmax, which fits cross-entropy. The axis of the classes is the one that outputs have and targets have
            not, else the second.
        seed: of the draws, made once: the operator is fixed.

    Empirical, the gradient of one sample is read off the batch's: this needs a loss that is the mean (or with
    ``reduction="sum"`` the sum) of one term a sample, and samples that do not see each other; hence no
    ``mode="batch_stats"``. Drawn by default, each position of a sequence or an image is a term of its own, as its class
    is drawn by itself; positions whose target is no class (``ignore_index``) have none. By how many terms the loss
    divides is read off its gradient, which is :math:`(p - e_y)` over that number.

    Raises:
        ValueError: for an unknown ``kind``, ``draws`` below 1, ``mode="batch_stats"``, outputs in which the axis of
            the classes is not to be seen; by the first product, where a sample has no gradient of its own.
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
        self.kind, self.draws, self.seed, self._draw = kind, draws, seed, draw
        super().__init__(model, loss, data, params, mode, **options)

    def _output_curvature(self, output: Tensor, batch: Batch) -> Any:
        """Return the scores (draws, terms, outputs of a term), the terms' number, and how outputs become such rows."""
        z = output.requires_grad_()
        if self.kind == "mc" and self._draw is None:
            return self._of_positions(z, batch)
        targets = [batch.target] if self.kind == "empirical" else self._drawn(z.detach(), batch, self._draw)
        factor = (batch.size or len(z)) if self._batches.reduction == "mean" else 1
        scores = [factor * torch.autograd.grad(self.loss(z, target), z)[0].flatten(1) for target in targets]
        return torch.stack(scores), factor, None

    def _of_positions(self, z: Tensor, batch: Batch) -> Any:
        axis = _class_axis(z, batch.target)
        p = z.detach().movedim(axis, -1).softmax(-1)
        valid, scores, factor = None, [], 1.0  # which positions of the data's target hold a class, if it has them all
        if _is_classes(batch.target) and batch.target.numel() == p[..., 0].numel():
            valid = ((batch.target >= 0) & (batch.target < p.shape[-1])).view(p.shape[:-1])
        for drawn in self._drawn(z.detach(), batch, partial(draw_class, axis=axis)):
            target = drawn if valid is None else torch.where(valid, drawn, batch.target.view(valid.shape))
            if isinstance(batch.target, Tensor) and batch.target.numel() == target.numel():
                target = target.view(batch.target.shape)
            slope = torch.autograd.grad(self.loss(z, target), z)[0].movedim(axis, -1)
            scores.append(slope.flatten(0, -2))
            if len(scores) == 1:
                factor = self._terms(slope, p - nn.functional.one_hot(drawn, p.shape[-1]), valid)
        return factor * torch.stack(scores), factor, axis

    def _terms(self, slope: Tensor, score: Tensor, valid: Tensor | None) -> float:
        """Return by what the loss divides the score of a term; if that is no one number, how many terms there are."""
        score = score if valid is None else score * valid[..., None]
        ratio = float((score * score).sum() / (score * slope).sum())
        if math.isfinite(ratio) and float((ratio * slope - score).norm()) <= 1e-3 * float(score.norm()):
            return float(round(ratio)) if abs(ratio - round(ratio)) < 1e-3 * ratio else ratio
        terms = score[..., 0].numel() if valid is None else int(valid.sum())
        return float(terms) if self._batches.reduction == "mean" else 1.0

    def _examine_loss(self, batch: Batch, output: Tensor) -> None:
        """Its second derivative is not asked for; but a sample whose gradient is must not see the others."""
        if self.kind == "mc":
            return
        inputs, samples = batch.inputs, batch.size or int(batch.count)
        cut = {*lengths(inputs)} == {samples} and {*lengths(part(inputs, 0, 1, samples))} == {1}
        if not (self._apart(inputs, samples, -(-samples // 2), self.mode) if cut else len(output) == samples):
            raise ValueError("kind = 'empirical': along the first axis there are no samples with outputs of their own. "
                             "They see each other, or it holds time steps or nodes of a graph. Let it hold samples, or "
                             "use kind='mc'.")

    def _drawn(self, output: Tensor, batch: Batch, draw: Any) -> list[Any]:
        # Seeded by the batch's number: a rebuilt graph must draw what it drew before, the next batch something else.
        mixed = np.random.SeedSequence([self.seed, batch.index]).generate_state(1, np.uint32)[0]
        generator = torch.Generator(output.device).manual_seed(int(mixed))
        return [draw(output, generator) for _ in range(self.draws)]

    def _apply_output_curvature(self, made: Any, jv: Tensor, batched: bool) -> Tensor:
        (scores, factor, axis), lead = made, int(batched)
        rows = jv if axis is None else jv.movedim(axis + lead, -1)
        flat = rows.flatten(lead + 1) if axis is None else rows.flatten(lead, -2)
        inner = torch.einsum("dbo,...bo->...db", scores, flat)
        out = (torch.einsum("...db,dbo->...bo", inner, scores) / (len(scores) * factor)).view(rows.shape)
        return out if axis is None else out.movedim(-1, axis + lead)


def draw_class(output: Tensor, generator: torch.Generator, axis: int = 1) -> Tensor:
    """Draw one class for each position from the softmax of an axis of ``output``, ``(batch, classes, ...)``."""
    probabilities = output.softmax(axis).movedim(axis, -1)
    drawn = torch.multinomial(probabilities.reshape(-1, probabilities.shape[-1]), 1, generator=generator)
    return drawn.view(probabilities.shape[:-1])


def _class_axis(output: Tensor, target: Any) -> int:
    """Return the axis that outputs have and targets have not; positions may be flattened in targets."""
    if not _is_classes(target) or output.dim() == 2:
        return 1
    shape = tuple(output.shape)
    fits = [i for i in range(output.dim()) if shape[:i] + shape[i + 1 :] == tuple(target.shape)]
    if not fits and target.dim() == 1 and output.numel() == target.numel() * shape[-1]:
        fits = [output.dim() - 1]
    if len(fits) != 1:
        raise ValueError(f"Outputs of shape {shape} for targets of shape {tuple(target.shape)}: which axis holds the "
                         "classes? Say how to draw: draw=lambda output, generator: "
                         "sharpnb.curvature.fisher.draw_class(output, generator, axis=-1).")
    return fits[0]


def _is_classes(target: Any) -> bool:
    return isinstance(target, Tensor) and not target.is_floating_point()
