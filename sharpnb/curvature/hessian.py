r"""The Hessian of the loss.

.. math:: H v = \sum_B c_B\, \nabla_w \big\langle \nabla_w L_B(w),\, v \big\rangle

Double backward (Pearlmutter, Neural Computation 6, 1994, with two reverse passes). The graph of :math:`\nabla L_B` is
built once and serves every vector: a product then costs 1.6 to 2 gradients, where rebuilding it costs 3.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sharpnb.counts import Batch, Count, Reduction
from sharpnb.curvature._state import Mode, differentiable
from sharpnb.curvature.differences import Differences, no_second_derivative, refuse_cut_graphs
from sharpnb.curvature.operators import Loss, ModelOperator

Method = Literal["auto", "autograd", "finite_difference"]
_VENDORS = ("cudnn", "mkldnn", "miopen")


class HessianOperator(ModelOperator):
    r"""The Hessian of a loss with respect to chosen parameters.

    Args:
        model: any module. Wrappers of ``torch.compile`` and ``DistributedDataParallel`` are looked through.
        loss: ``loss(output, target)``, one number.
        data: a batch ``(x, y)``, a list of batches, or a ``DataLoader``, which is read once, in its order, and held on
            the parameters' device. Batches weigh by their samples, so a ragged last batch is right; what a batch and
            their number are says :mod:`sharpnb.batches`.
        params: which parameters; see :func:`select_parameters`. Tied ones count once, unused ones give zeros.
        mode: ``"eval"`` (default: the function that is deployed), ``"batch_stats"`` (BatchNorm normalises by each
            batch: another function, with another spectrum) or ``"as_is"``.
        reduction: ``"mean"`` or ``"sum"``: what the loss does within a batch.
        count: loss terms of a batch, when they are not its samples (tokens without padding, weights) or these are not
            to be seen (time first): ``count(x, y)``, one number for all, or a list with one for each batch.
        hold: ``False`` re-reads the loader for every product, for data that memory does not hold.
        memory: bytes for gradient graphs kept between products. A single batch always keeps its graph; of several, as
            many as fit, and the others are rebuilt once per block of vectors. Default 1e9: a laptop's spare gigabyte.
        check: evaluate the first batch twice and refuse a random function; evaluate up to eight batches and refuse a
            loss that, over all of them together, is not the mean of theirs by the counts that were assumed; before the
            first product, compare one of eight samples with a difference of gradients, which finds functions and
            kernels whose second derivative is missing or wrong. It costs a forward pass of each of those batches, and
            about ten gradients of the eight samples (of the first batch, where they cannot be cut), most in float64.
        group: process group over which products are summed, each rank holding its shard of the data; ``None`` takes the
            default group if one exists, ``False`` none.
        method: ``"auto"`` uses exact products (attention by PyTorch's own formula, recurrent layers without cuDNN,
            compiled parts as they are written) and falls back to finite differences, with a warning, where a layer has
            no second derivative or a wrong one; the other two force one.

    Attributes:
        shape, dtype, device: as of a matrix.
        products: Hessian-vector products over the whole data so far.
        error: relative error of finite-difference products, three times what doubling the step changes; the largest of
            the first, second, fourth, eighth … product (0 when exact).

    How it differs from the popular code: (1) the model is left as it was found: mode, buffers, gradients, random state;
    (2) batches are weighted; (3) one graph a batch serves all vectors, over a data set too; (4) a stale graph is seen;
    (5) a layer that cannot be differentiated twice is noticed, where autograd alone can return a wrong product.

    Raises:
        ValueError: for a parameter choice that matches nothing, a random function, a loss that is not one number, a
            number of loss terms that is needed and not to be seen.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, data: Any, params: Any = None, mode: Mode = "eval", *,
        reduction: Reduction = "mean", count: Count | None = None, hold: bool = True,
        memory: float = 1e9, check: bool = True, group: dist.ProcessGroup | Literal[False] | None = None,
        method: Method = "auto",
    ) -> None:
        if method not in ("auto", "autograd", "finite_difference"):
            raise ValueError(f"method = {method!r}: choose 'auto', 'autograd' or 'finite_difference'.")
        self.method: Method = method
        self.error = 0.0
        self._seen_through = False
        self._differences = Differences(self)
        super().__init__(model, loss, data, params, mode, reduction=reduction, count=count, hold=hold, memory=memory,
                         check=check, group=group)

    def _build(self, batch: Batch) -> Any:
        """Return the gradients that depend on the parameters, with their positions."""
        with torch.enable_grad():
            value = self._loss_value(batch)
            if not value.requires_grad:
                return []
            grads = torch.autograd.grad(value.sum(), self.params, create_graph=True, allow_unused=True)
        graph = [(i, g) for i, g in enumerate(grads) if g is not None and g.requires_grad]
        if not self._seen_through:
            refuse_cut_graphs([g for _, g in graph])
            self._seen_through = True
        return graph

    def _product(self, graph: Any, pieces: list[Tensor], batched: bool) -> Sequence[Tensor | None] | None:
        outputs, directions = [g for _, g in graph], [pieces[i] for i, _ in graph]
        return torch.autograd.grad(outputs, self.params, directions, retain_graph=True, is_grads_batched=batched,
                                   allow_unused=True) if graph else None

    def _rows(self, rows: Tensor) -> Tensor:
        if self.method == "finite_difference":
            out = torch.stack([self._differences.product(row) for row in rows])
            self.products, self.error = self.products + len(rows), self._differences.error
            return out
        try:
            if not self._examined:
                self._examine()
            return super()._rows(rows)
        except RuntimeError as error:
            missing = no_second_derivative(error)
            by_vendor = missing and not self._plain and any(name in str(error).lower() for name in _VENDORS)
            if not by_vendor and (self.method == "autograd" or not missing):
                raise
            reason = str(error).splitlines()[0]
        self.refresh()
        if by_vendor:
            self._plain = True
            return self._rows(rows)
        self.method = "finite_difference"
        out = self._rows(rows)
        warnings.warn(f"No second derivative here ({reason}): products are central differences of the gradient, "
                      f"with a relative error of about {self.error:.1e}.", stacklevel=3)
        return out

    def _examine(self) -> None:
        """Compare one product of a few samples with a difference of gradients.

        Raises:
            NotImplementedError: if they disagree, on any process of the group.
        """
        reason = self._differences.disagreement(self._product_of)
        if self._group is not None:
            bad = torch.tensor(float(bool(reason)), device=self.device)
            dist.all_reduce(bad, op=dist.ReduceOp.MAX, group=self._group)
            reason = reason or ("on another process" if bool(bad) else "")
        if reason:
            raise NotImplementedError(reason)
        self._examined = True

    def _product_of(self, batch: Batch, v: Tensor) -> Tensor:
        """Return the exact product of one batch's Hessian with a vector ``(n,)``."""
        out = torch.zeros_like(v)
        with differentiable(self.params):
            with self._building():
                graph = self._build(batch)
            self._accumulate(out, self._product(graph, self._pieces(v), False), 1.0)
        return out

    def gradient(self) -> Tensor:
        """Return the gradient ``(n,)`` of the loss over the whole data."""
        out = self._differences.gradient()
        if self._group is not None:
            dist.all_reduce(out, group=self._group)
        return out
