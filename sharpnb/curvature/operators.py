r"""What the curvature operators share: a symmetric matrix known only by its products.

For a network :math:`f_w`, a loss and batches :math:`B` with weights :math:`c_B` (their share of the loss terms)

.. math:: A v = \sum_B c_B\, A_B v, \qquad w \in \mathbb{R}^n

Subclasses say how one batch is differentiated (:meth:`ModelOperator._build`) and what a product with that graph is
(:meth:`ModelOperator._product`). Shapes: a vector is ``(n,)``, a block of K vectors ``(n, K)`` as in a matrix product;
inside, a block is K contiguous rows ``(K, n)``.
"""

from __future__ import annotations

import fnmatch
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd

from sharpnb.batches import Batches, forward, separable
from sharpnb.counts import Batch, Count, Reduction, check_loss
from sharpnb.curvature._state import Mode, differentiable, measuring, refuse_other_parameters, unwrapped
from sharpnb.fallbacks import Quiet, WrittenOut, changed, eager, has_sparse_gradients
from sharpnb.trees import storages, tensors

Loss = Callable[[Any, Any], Tensor]

# Below this size a product is bound by dispatch, and one vectorised backward pass for a whole block is twice as fast;
# above it, and for convolutions at any size, it is slower than a loop (measured on one CPU thread).
BATCHED_BELOW = 10_000
SAME_LOSS = 1e-4  # a fixed network reproduces its loss to rounding (GPU kernels may add in any order)


class ModelOperator(ABC):
    """A symmetric operator of a network on fixed data; see :class:`HessianOperator` for the arguments."""

    def __init__(
        self, model: nn.Module, loss: Loss, data: Any, params: Any = None, mode: Mode = "eval", *,
        reduction: Reduction = "mean", count: Count | None = None, hold: bool = True,
        memory: float = 1e9, check: bool = True, group: dist.ProcessGroup | Literal[False] | None = None,
    ) -> None:
        self.model, self.loss, self.memory = unwrapped(model), loss, memory
        self.mode: Mode = mode
        named = select_parameters(self.model, params)
        self.names, self.params = list(named), list(named.values())
        self.dtype = torch.float32
        for p in self.params:
            if not p.dtype.is_floating_point:
                raise ValueError(f"A parameter has dtype {p.dtype}: only real floating-point ones have a curvature.")
            self.dtype = torch.promote_types(self.dtype, p.dtype)
        self.device = self.params[0].device
        self._sizes = [p.numel() for p in self.params]
        self.n = sum(self._sizes)
        self.shape = (self.n, self.n)
        self.products = 0
        self._convolves = any(isinstance(module, _ConvNd) for module in self.model.modules())
        self._batched = self.n < BATCHED_BELOW and not self._convolves
        self._examined = not check  # whether second derivatives were compared with differences, or need not be
        self._plain = False  # whether vendors' kernels are left out: some have no second derivative
        self._graphs: dict[int, Any] = {}
        self._graphs_of: tuple[Any, ...] = ()
        together = group is not False and dist.is_available() and dist.is_initialized()
        self._group = (group or dist.group.WORLD) if together else None
        self._quiet = Quiet(self.model)
        self._batches = Batches(data, self.device, reduction, count, hold, alone=self._group is None)
        if self._group is not None and reduction == "mean":
            total = torch.tensor(self._batches.total, dtype=torch.float64, device=self.device)
            dist.all_reduce(total, group=self._group)
            self._batches.total = float(total)
        if has_sparse_gradients(self.model):
            warnings.warn("An embedding has sparse=True, and sparse gradients have no second derivative: they are "
                          "dense here, which takes the memory of the table.", stacklevel=4)
        if check:
            self.check_deterministic()
            self.check_counts()

    @abstractmethod
    def _build(self, batch: Batch) -> Any:
        """Return the graph of one batch, to be used by any number of products."""

    @abstractmethod
    def _product(self, graph: Any, pieces: list[Tensor], batched: bool) -> Sequence[Tensor | None] | None:
        """Return the product by parameter, ``None`` for zero; ``batched``, of K vectors, K being the first axis."""

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with a vector ``(n,)`` or a block of vectors ``(n, K)``, in the same shape and dtype.

        Raises:
            ValueError: if the shape does not fit.
        """
        if v.dim() not in (1, 2) or v.shape[0] != self.n:
            raise ValueError(f"Cannot multiply {tuple(self.shape)} by {tuple(v.shape)}: pass a vector ({self.n},) "
                             f"or a block of vectors ({self.n}, K).")
        rows = v.detach().T if v.dim() == 2 else v.detach()[None]
        out = self._rows(rows.to(self.device, self.dtype).contiguous()).to(v.device, v.dtype)
        return out.T if v.dim() == 2 else out[0]

    def _rows(self, rows: Tensor) -> Tensor:
        """Return the products with K rows; each batch's graph serves all of them."""
        try:
            out = self._summed(rows)
        except RuntimeError:
            if not self._batched:
                raise
            self._batched = False  # a layer without a batching rule: one vector after the other
            out = self._summed(rows)
        if self._group is not None:
            dist.all_reduce(out, group=self._group)
        self.products += len(rows)
        return out

    def _summed(self, rows: Tensor) -> Tensor:
        out = torch.zeros_like(rows)
        with differentiable(self.params):
            for batch, graph in self._graphs_of_batches():
                weight = self._batches.weight(batch)
                if self._batched and len(rows) > 1:
                    self._accumulate(out, self._product(graph, self._pieces(rows), True), weight)
                else:
                    for row, total in zip(rows, out, strict=True):
                        self._accumulate(total, self._product(graph, self._pieces(row), False), weight)
        return out

    def _pieces(self, rows: Tensor) -> list[Tensor]:
        """Cut ``(n,)`` or ``(K, n)`` into views in the shapes of the parameters."""
        cut = rows.split(self._sizes, dim=-1)
        return [c.view((*rows.shape[:-1], *p.shape)).to(p) for c, p in zip(cut, self.params, strict=True)]

    def _accumulate(self, out: Tensor, pieces: Sequence[Tensor | None] | None, weight: float) -> None:
        if pieces is not None:
            lead = out.shape[:-1]
            flat = [out.new_zeros(*lead, size) if h is None else h.detach().reshape(*lead, size).to(out)
                    for h, size in zip(pieces, self._sizes, strict=True)]
            out.add_(torch.cat(flat, dim=-1), alpha=weight)

    def _graphs_of_batches(self) -> Iterator[tuple[Batch, Any]]:
        """Yield each batch with its graph, kept where memory allows and nothing has changed, else built now."""
        refuse_other_parameters(self.model, self.params)
        versions = (*((t.data_ptr() if t.layout is torch.strided else 0, t._version)
                      for t in (*self.params, *self.model.buffers())), *(m.training for m in self.model.modules()))
        if versions != self._graphs_of:
            self._graphs, self._graphs_of = {}, versions
        room = None  # how many batches may keep their graph: all if there is one, else what ``memory`` bytes hold
        for batch in self._batches:
            graph = self._graphs.get(batch.index)
            if graph is None:
                if room is None:
                    held = len(self._batches.held or ())
                    room = int(self.memory // max(self.graph_bytes(), 1)) if held > 1 else held
                with self._building():
                    graph = self._build(batch)
                if batch.index < room:
                    self._graphs[batch.index] = graph
            yield batch, graph
            del graph

    def graph_bytes(self) -> int:
        """Return the bytes that autograd saves for the graph of the first batch (one graph is built and dropped)."""
        saved: dict[int, int] = {}

        def note(t: Tensor) -> Tensor:
            saved.update((piece.data_ptr(), piece.nbytes()) for piece in storages(t))
            return t

        batch = next(iter(self._batches))
        held = (*self.params, *self.model.buffers(), *tensors((batch.inputs, batch.target)))
        own = {piece.data_ptr() for t in held for piece in storages(t)}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), self._building():
            self._build(batch)
        return sum(size for pointer, size in saved.items() if pointer not in own)

    @contextmanager
    def _building(self) -> Iterator[None]:
        """Build graphs inside: in mode, from kernels that have a second derivative, of code as it is written."""
        recurrent = any(isinstance(module, nn.RNNBase) for module in self.model.modules())
        vendors = [torch.backends.cudnn] * (self._plain or recurrent) + [torch.backends.mkldnn] * self._plain
        with (measuring(self.model, self.mode, self.params), sdpa_kernel(SDPBackend.MATH), eager(), WrittenOut(),
              changed((vendor, "enabled", False) for vendor in vendors)):
            yield

    def refresh(self) -> None:
        """Forget the cached graphs: after an edit through ``.data``, which leaves no trace that could be seen."""
        self._graphs, self._graphs_of = {}, ()

    def check_deterministic(self) -> None:
        """Evaluate the loss of the first batch twice, and refuse a random one; name the layers that draw numbers."""
        batch = next(iter(self._batches))
        with measuring(self.model, self.mode):
            once, twice = (self._quiet(lambda: self._loss_value(batch).double()) for _ in range(2))
            culprits = [name or type(module).__name__ for name, module in self.model.named_modules()
                        if "drop" in type(module).__name__.lower() and module.training]
        if torch.equal(once, twice) or not bool(once.isfinite() and twice.isfinite()):
            return
        if float((once - twice).abs()) > SAME_LOSS * float(once.abs()):
            cause = (f"dropout is active in {', '.join(culprits)}" if culprits
                     else "the forward pass or the loss draws random numbers in a place that is no Dropout layer")
            raise ValueError(f"Two passes over the same batch gave the losses {float(once):.9g} and {float(twice):.9g}"
                             f": {cause}. A spectrum needs one fixed operator: use mode='eval' or 'batch_stats', "
                             "or fix the randomness.")

    def check_counts(self) -> None:
        """Compare the loss of some batches together with what their own give, if their counts were not said."""
        some = self._batches.some()
        if len(some) < 2 or self._batches.sure:
            return
        with measuring(self.model, self.mode):
            measured = [(batch, self._outputs(batch.inputs)) for batch in some]
            run = self._outputs if self.mode == "eval" else None  # else a batch has statistics of its own
            with torch.no_grad():
                check_loss(self.loss, measured, self._batches.reduction, run)

    def _outputs(self, inputs: Any) -> Any:
        return self._quiet(lambda: forward(self.model, inputs))

    def _apart(self, inputs: Any, samples: int, m: int, mode: Mode) -> bool:
        """Whether m samples have the same outputs alone as among others: see :func:`sharpnb.batches.separable`."""
        with measuring(self.model, mode):
            return separable(self._outputs, inputs, samples, m)

    def _loss_value(self, batch: Batch) -> Tensor:
        value = self.loss(forward(self.model, batch.inputs), batch.target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss(output, target) must return one number, the batch's mean; it returned {got}.")
        return value

    def to_dense(self, limit: int = 5000, block: int = 64) -> Tensor:
        """Return the matrix ``(n, n)``, for small networks and tests.

        Raises:
            ValueError: if n is above ``limit``.
        """
        if self.n > limit:
            size = self.n**2 * self.dtype.itemsize / 1e9
            raise ValueError(f"A dense matrix of order {self.n} takes {size:.1f} GB and {self.n} products; the limit "
                             f"is {limit}. Raise limit=, or choose fewer params.")
        rows = torch.eye(self.n, dtype=self.dtype, device=self.device)
        return torch.cat([self._rows(part) for part in rows.split(block)]).T

    def __repr__(self) -> str:
        return (f"{type(self).__name__}(n={self.n}, dtype={self.dtype}, device={self.device}, mode={self.mode!r}, "
                f"samples={self._batches.samples})")


def select_parameters(model: nn.Module, params: Any = None) -> dict[str, nn.Parameter]:
    """Return the chosen parameters by name, in the model's order, tied ones once.

    Args:
        model: the network.
        params: ``None`` for all that require a gradient, else one or a list of: a name, a pattern (``"layer1.*"``),
            the name of a module (``"layer1"``), a parameter, a module.

    Raises:
        ValueError: if an entry matches nothing, or nothing is left.
    """
    everything = dict(model.named_parameters())
    if params is None:
        chosen = {name: p for name, p in everything.items() if p.requires_grad}
        if not chosen:
            raise ValueError("The model has no parameter that requires a gradient. Unfreeze or name some.")
        return chosen
    wanted: set[str] = set()
    for entry in [params] if isinstance(params, str | Tensor | nn.Module) else list(params):
        if isinstance(entry, str):
            found = {name for name in everything if fnmatch.fnmatchcase(name, entry) or name.startswith(entry + ".")}
        else:
            own = {id(p) for p in (entry.parameters() if isinstance(entry, nn.Module) else [entry])}
            found = {name for name, p in everything.items() if id(p) in own}
        if not found:
            what = repr(entry) if isinstance(entry, str) else f"the {type(entry).__name__} given"
            raise ValueError(f"params: {what} matches no parameter of the model. It has: {', '.join(everything)}.")
        wanted |= found
    if not wanted:
        raise ValueError("params is empty. Pass None for all parameters that require a gradient.")
    return {name: p for name, p in everything.items() if name in wanted}
