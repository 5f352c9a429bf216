r"""The generalised Gauss-Newton matrix.

With outputs :math:`f = f_w(x)` of a batch and its Jacobian J

.. math:: G v = \sum_B c_B\, J^\top \big(\nabla_f^2 L_B\big) J v

(Schraudolph, Neural Computation 14, 2002, section 2). It is the Hessian without the curvature of the network itself,
and positive semi-definite for a loss that is convex in the output. Jv is the derivative of :math:`u \mapsto J^\top u`,
so a graph built once serves every vector here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sharpnb.batches import forward
from sharpnb.counts import Batch
from sharpnb.curvature.operators import ModelOperator


class GGNOperator(ModelOperator):
    """The generalised Gauss-Newton matrix.

    Arguments as :class:`~sharpnb.curvature.hessian.HessianOperator`, without ``method``. The model must return one
    tensor, and the loss be twice differentiable in it.
    """

    def _build(self, batch: Batch) -> Any:
        with torch.enable_grad():
            output = forward(self.model, batch.inputs)
            if not isinstance(output, Tensor):
                raise ValueError(f"{type(self).__name__} needs a model that returns one tensor; it returned a "
                                 f"{type(output).__name__}. Wrap it in a module that returns the logits.")
            if not output.requires_grad:
                return None
            dummy = torch.zeros_like(output, requires_grad=True)
            pulled = torch.autograd.grad(output, self.params, dummy, create_graph=True, allow_unused=True)
            linear = [(i, g) for i, g in enumerate(pulled) if g is not None and g.requires_grad]
            return output, dummy, linear, self._output_curvature(output.detach(), batch)

    def _output_curvature(self, output: Tensor, batch: Batch) -> Any:
        """Return what :meth:`_apply_output_curvature` needs: here the gradient in the output, with its graph."""
        z = output.requires_grad_()
        value = self.loss(z, batch.target)
        return z, torch.autograd.grad(value, z, create_graph=True)[0]

    def _apply_output_curvature(self, made: Any, jv: Tensor, batched: bool) -> Tensor:
        z, gradient = made
        if not gradient.requires_grad:
            return torch.zeros_like(jv)
        return torch.autograd.grad(gradient, z, jv, retain_graph=True, is_grads_batched=batched)[0]

    def _product(self, graph: Any, pieces: list[Tensor], batched: bool) -> Sequence[Tensor | None] | None:
        if graph is None or not graph[2]:
            return None
        output, dummy, linear, made = graph
        directions = [pieces[i] for i, _ in linear]
        how: dict[str, Any] = {"retain_graph": True, "is_grads_batched": batched}
        jv = torch.autograd.grad([g for _, g in linear], dummy, directions, **how)[0]
        curved = self._apply_output_curvature(made, jv, batched)
        return torch.autograd.grad(output, self.params, curved, allow_unused=True, **how)
