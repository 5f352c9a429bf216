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
from sharpnb.curvature._state import Mode, measuring
from sharpnb.curvature.operators import Loss, ModelOperator

Method = Literal["auto", "autograd", "finite_difference"]


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
            loss that, over all of them together, is not the mean of theirs by the counts that were assumed. It costs a
            forward pass of each.
        group: process group over which products are summed, each rank holding its shard of the data; ``None`` takes the
            default group if one exists, ``False`` none.
        method: ``"auto"`` uses exact products and falls back to finite differences, with a warning, where a layer has
            no second derivative; the other two force one.

    Attributes:
        shape, dtype, device: as of a matrix.
        products: Hessian-vector products over the whole data so far.
        error: relative error of finite-difference products, measured on the first one (0 when exact).

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
        super().__init__(model, loss, data, params, mode, reduction=reduction, count=count, hold=hold, memory=memory,
                         check=check, group=group)

    def _build(self, batch: Batch) -> Any:
        graph = self._gradient(batch, create_graph=True)
        if not self._seen_through:
            _refuse_cut_graphs([g for _, g in graph])
            self._seen_through = True
        return graph

    def _gradient(self, batch: Batch, create_graph: bool = False) -> list[tuple[int, Tensor]]:
        """Return the gradients that exist, with their positions; with a graph, those that depend on the parameters."""
        with torch.enable_grad():
            value = self._loss_value(batch)
            if not value.requires_grad:
                return []
            grads = torch.autograd.grad(value.sum(), self.params, create_graph=create_graph, allow_unused=True)
        return [(i, g) for i, g in enumerate(grads) if g is not None and (g.requires_grad or not create_graph)]

    def _product(self, graph: Any, pieces: list[Tensor], batched: bool) -> Sequence[Tensor | None] | None:
        if not graph:
            return None
        outputs, directions = [g for _, g in graph], [pieces[i] for i, _ in graph]
        return torch.autograd.grad(
            outputs, self.params, directions, retain_graph=True, is_grads_batched=batched, allow_unused=True,
        )

    def _rows(self, rows: Tensor) -> Tensor:
        if self.method != "finite_difference":
            try:
                return super()._rows(rows)
            except RuntimeError as error:
                if self.method == "autograd" or not _no_second_derivative(error):
                    raise
                reason = str(error).splitlines()[0]
            self.refresh()
            self.method = "finite_difference"
            out = self._difference_rows(rows)
            warnings.warn(f"No second derivative here ({reason}): products are central differences of the gradient, "
                          f"with a relative error of about {self.error:.1e}.", stacklevel=4)
            return out
        return self._difference_rows(rows)

    def gradient(self) -> Tensor:
        """Return the gradient ``(n,)`` of the loss over the whole data."""
        out = torch.zeros(self.n, dtype=self.dtype, device=self.device)
        for batch in self._batches:
            with measuring(self.model, self.mode, self.params):
                found = dict(self._gradient(batch))
                pieces = [found.get(i) for i in range(len(self.params))]
            self._accumulate(out, pieces, self._batches.weight(batch))
        if self._group is not None:
            dist.all_reduce(out, group=self._group)
        return out

    # ---- finite differences -----------------------------------------------------------------------------------------

    def _difference_rows(self, rows: Tensor) -> Tensor:
        r"""Return :math:`(\nabla L(w + hv) - \nabla L(w - hv)) / 2h` for each row.

        The step :math:`h = \epsilon^{1/3}(1 + \|w\|) / \|v\|` balances rounding and truncation (Nocedal & Wright,
        Numerical Optimization, section 8.1). The error stated is the change from h to 2h, measured once.
        """
        if not self.error and bool(rows[0].any()):
            near, far = (self._difference(rows[0], factor) for factor in (1.0, 2.0))
            self.error = float((near - far).norm() / near.norm().clamp_min(torch.finfo(self.dtype).tiny))
        out = torch.stack([self._difference(row) for row in rows])
        self.products += len(rows)
        return out

    def _difference(self, v: Tensor, factor: float = 1.0) -> Tensor:
        norm = float(v.norm())
        if norm == 0:
            return torch.zeros_like(v)
        size = float(sum(p.detach().double().square().sum() for p in self.params)) ** 0.5
        h = factor * torch.finfo(self.dtype).eps ** (1 / 3) * (1 + size) / norm
        kept = [p.detach().clone() for p in self.params]
        pieces = self._pieces(v)
        try:
            with torch.no_grad():
                for p, d in zip(self.params, pieces, strict=True):
                    p.add_(d, alpha=h)
            plus = self.gradient()
            with torch.no_grad():
                for p, d, w in zip(self.params, pieces, kept, strict=True):
                    p.copy_(w).sub_(d, alpha=h)
            return (plus - self.gradient()) / (2 * h)
        finally:
            with torch.no_grad():
                for p, w in zip(self.params, kept, strict=True):
                    p.copy_(w)


def _no_second_derivative(error: RuntimeError) -> bool:
    text = str(error)
    signs = ("not implemented", "double backward")
    return isinstance(error, NotImplementedError) or any(sign in text for sign in signs)


def _refuse_cut_graphs(gradients: list[Tensor]) -> None:
    """Raise where a gradient's graph is cut short.

    Autograd skips the parts of a graph that lead to no parameter, the error that marks a function as differentiable
    once among them, and would return a wrong product without a word.
    """
    seen, stack = set(), [g.grad_fn for g in gradients]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in ("torch::autograd::Error", "torch::autograd::NotImplemented"):
            raise NotImplementedError("a function in the network cannot be differentiated twice")
        stack.extend(parent for parent, _ in node.next_functions)
