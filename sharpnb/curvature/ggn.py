r"""The generalised Gauss-Newton matrix.

With outputs :math:`f = f_w(x)` of a batch and its Jacobian J

.. math:: G v = \sum_B c_B\, J^\top \big(\nabla_f^2 L_B\big) J v

(Schraudolph, Neural Computation 14, 2002, section 2). It is the Hessian without the curvature of the network itself,
and positive semi-definite for a loss that is convex in the output. Jv is the derivative of :math:`u \mapsto J^\top u`,
so a graph built once serves every vector here too.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sharpnb.batches import forward
from sharpnb.counts import Batch
from sharpnb.curvature._state import differentiable, widened
from sharpnb.curvature.differences import RIGHT, Differences, compare, refuse_cut_graphs
from sharpnb.curvature.operators import Loss, ModelOperator
from sharpnb.trees import mapped


class GGNOperator(ModelOperator):
    """The generalised Gauss-Newton matrix.

    Arguments as :class:`~sharpnb.curvature.hessian.HessianOperator`, without ``method``. The model must return one
    tensor. A loss without a second derivative in it, or with a wrong one, is differentiated by differences of its first
    one, with a warning. The network must be differentiable twice in its backward pass, as is compared too.

    Raises:
        NotImplementedError: by the first product, if it is not.
    """

    _loss_differences = False  # whether differences of the loss's gradient stand for its second derivative

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
        if self._loss_differences:
            return output, batch
        z = output.requires_grad_()
        value = self.loss(z, batch.target)
        return z, torch.autograd.grad(value, z, create_graph=True)[0]

    def _apply_output_curvature(self, made: Any, jv: Tensor, batched: bool) -> Tensor:
        z, gradient = made
        if self._loss_differences:
            found = [self._by_differences(z, gradient.target, row) for row in (jv if batched else jv[None])]
            return torch.stack(found) if batched else found[0]
        if not gradient.requires_grad:
            return torch.zeros_like(jv)
        return torch.autograd.grad(gradient, z, jv, retain_graph=True, is_grads_batched=batched)[0]

    def _product(self, graph: Any, pieces: list[Tensor], batched: bool) -> Sequence[Tensor | None] | None:
        if graph is None or not graph[2]:
            return None
        curved = self._apply_output_curvature(graph[3], self._pushed(graph, pieces, batched), batched)
        return torch.autograd.grad(graph[0], self.params, curved, retain_graph=True, is_grads_batched=batched,
                                   allow_unused=True)

    def _pushed(self, graph: Any, pieces: list[Tensor], batched: bool = False) -> Tensor:
        """Return J v."""
        _, dummy, linear, _ = graph
        return torch.autograd.grad([g for _, g in linear], dummy, [pieces[i] for i, _ in linear], retain_graph=True,
                                   is_grads_batched=batched)[0]

    # ---- what is missing or wrong -----------------------------------------------------------------------------------

    def _rows(self, rows: Tensor) -> Tensor:
        if not self._examined:
            with differentiable(self.params):
                self._examine()
            self._examined = True
        return super()._rows(rows)

    def _examine(self) -> None:
        """Compare the parts of one product of a few samples with differences.

        Raises:
            NotImplementedError: if it is the network whose part is wrong.
        """
        differences = Differences(self)
        batch, v = differences.few(), differences.direction()
        with self._building():
            graph = GGNOperator._build(self, batch)
        if graph is None:
            return
        refuse_cut_graphs([g for _, g in graph[2]])
        jv = self._pushed(graph, self._pieces(v)) if graph[2] else torch.zeros_like(graph[0])
        off = differences.off_outputs(batch, v, jv)
        if off is not None:
            raise NotImplementedError(
                f"The derivative of the outputs by autograd is {off:.2g} of it away from a difference of outputs: a "
                f"function in the network cannot be differentiated twice. {type(self).__name__} cannot do without; "
                "HessianOperator(..., method='finite_difference') can.")
        self._examine_loss(batch, graph[3], jv)

    def _examine_loss(self, batch: Batch, made: Any, jv: Tensor) -> None:
        exact, z = self._apply_output_curvature(made, jv, False), made[0].detach()
        found = compare([exact], lambda h: [self._by_differences(z, batch.target, jv, h)], (1.0, 3.0, 0.3),
                        RIGHT if z.dtype in (torch.float32, torch.float64) else 0.1)
        if found is not None:
            self._loss_differences = True
            warnings.warn(f"No second derivative of the loss here (by autograd it is {found[1]:.2g} of it away from a "
                          "difference of first ones): central differences of its gradient stand for it.", stacklevel=5)

    def _by_differences(self, z: Tensor, target: Any, u: Tensor, factor: float = 1.0) -> Tensor:
        """Return the product of the loss's Hessian in the outputs with u by differences; in float64 if it can."""
        try:
            return _central(self.loss, widened(z), mapped(widened, target), widened(u), factor).to(u.dtype)
        except Exception:  # whatever a loss says to another type
            return _central(self.loss, z, target, u, factor)


def _central(loss: Loss, z: Tensor, target: Any, u: Tensor, factor: float) -> Tensor:
    size = float(u.norm())
    if not size:
        return torch.zeros_like(u)
    h = factor * torch.finfo(z.dtype).eps ** (1 / 3) * (1 + float(z.norm())) / size
    slopes = []
    for s in (h, -h):
        with torch.enable_grad():
            at = (z + s * u).detach().requires_grad_()
            slopes.append(torch.autograd.grad(loss(at, target).sum(), at)[0])
    return (slopes[0] - slopes[1]) / (2 * h)
