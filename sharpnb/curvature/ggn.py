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
from torch import Tensor, nn

from sharpnb.batches import forward
from sharpnb.counts import Batch
from sharpnb.curvature._state import differentiable
from sharpnb.curvature.differences import RIGHT, SURE, Differences, held, refuse_cut_graphs
from sharpnb.curvature.hessian import HessianOperator
from sharpnb.curvature.operators import ModelOperator


class GGNOperator(ModelOperator):
    """The generalised Gauss-Newton matrix.

    Arguments as :class:`~sharpnb.curvature.hessian.HessianOperator`, without ``method``. The model must return one
    tensor. A loss without a second derivative in it, or with a wrong one, is differentiated by differences of its first
    one, with a warning. The network must be differentiable twice in its backward pass, as is compared too.

    Raises:
        NotImplementedError: by the first product, if it is not.
        ValueError: by the first product, if the loss depends on the parameters beside the outputs, as a penalty does.
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
            return self._loss_operator(output, batch, "finite_difference")
        z = output.requires_grad_()
        value = self.loss(z, batch.target)
        return z, torch.autograd.grad(value, z, create_graph=True)[0]

    def _apply_output_curvature(self, made: Any, jv: Tensor, batched: bool) -> Tensor:
        if isinstance(made, HessianOperator):
            return (made @ jv.reshape(-1, made.n).T).T.view_as(jv)
        z, gradient = made
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
        r"""Compare :math:`u\cdot J_pJ_p^\top u` with :math:`|J_p^\top u|^2` of each parameter p, on a few samples.

        Raises:
            NotImplementedError: if they differ, so that it is the network whose part is wrong.
        """
        differences = Differences(self)
        batch = differences.few()
        if differences.reentrant:
            raise NotImplementedError(f"A reentrant checkpoint hides its parameters from {type(self).__name__}: build "
                                      "the network with use_reentrant=False. HessianOperator can do with it.")
        with self._building():
            graph = GGNOperator._build(self, batch)
        if graph is None:
            return
        output, dummy, linear, _ = graph
        refuse_cut_graphs([g for _, g in linear])
        with torch.enable_grad():
            if held(self.loss(output.detach(), batch.target), self.params):
                raise ValueError("The loss depends on the parameters beside the outputs, as a penalty does: "
                                 f"{type(self).__name__} has no such part. Take it out of the loss (c/2 |w|^2 adds c "
                                 "to every eigenvalue), or use HessianOperator.")
        u = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
        back = torch.autograd.grad(output, self.params, u, retain_graph=True, allow_unused=True)
        squares, forth = [0.0 if b is None else float(b.double().square().sum()) for b in back], dict(linear)
        for i, (b, square) in enumerate(zip(back, squares, strict=True)):
            there = None
            if i in forth:
                there = torch.autograd.grad(forth[i], dummy, b, retain_graph=True, allow_unused=True)[0]
            off = abs((0.0 if there is None else float((u.double() * there.double()).sum())) - square)
            if off > SURE * square + RIGHT * sum(squares):
                raise NotImplementedError(
                    f"The derivative of the outputs in {self.names[i]} by autograd is {off / square:.2g} of it away "
                    "from its transpose: a function in the network cannot be differentiated twice. "
                    f"{type(self).__name__} cannot do without; HessianOperator(..., method='finite_difference') can.")
        self._examine_loss(batch, output)

    def _examine_loss(self, batch: Batch, output: Tensor) -> None:
        try:
            self._loss_operator(output, batch, "autograd")._examine()
        except RuntimeError as error:
            self._loss_differences = True
            warnings.warn(f"No second derivative of the loss here ({error}): central differences of its gradient "
                          "stand for it.", stacklevel=5)

    @torch.inference_mode(False)
    def _loss_operator(self, output: Tensor, batch: Batch, method: Any) -> HessianOperator:
        """Return the Hessian of the loss in the outputs."""
        net, data = _Free(output), (output.new_zeros(0), batch.target)
        return HessianOperator(net, self.loss, data, method=method, check=False, group=False)


class _Free(nn.Module):
    """A network whose outputs are its parameters."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs.detach().clone())

    def forward(self, _: Tensor) -> Tensor:
        return self.outputs
