r"""BatchNorm statistics of weights that were never trained with: averages, grafts, points of a landscape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sharpnb.batches import each, forward, inputs_of
from sharpnb.counts import Count, counted
from sharpnb.fallbacks import Quiet, eager, kept_modes, steady_tables
from sharpnb.trees import moved

Call = Callable[[nn.Module, Any], Any]
_NO_BATCH = ("data holds no batch: the statistics of BatchNorm need at least one. An exhausted generator reads like "
             "this; pass a list or a DataLoader.")


@torch.no_grad()
def update_bn(model: nn.Module, data: Any, call: Call | None = None, *, count: Count | None = None) -> None:
    r"""Recompute the running statistics of every BatchNorm layer by one pass over ``data``.

    With b the numbers that a layer averages for each channel in a batch (samples times places), N those it has seen
    before, and :math:`\mu_B,\sigma_B^2` the batch's mean and unbiased variance,

    .. math::
        \mu\leftarrow\mu+\frac{b}{N+b}(\mu_B-\mu),\qquad
        \sigma^2\leftarrow\sigma^2+\frac{b}{N+b}(\sigma_B^2-\sigma^2)

    (the SWA authors' ``bn_update``): the average over batches, weighted by their size. The mean is that of all numbers
    that the layer has read, whichever axis the samples lie along.

    How it differs from ``torch.optim.swa_utils.update_bn``, and why: (1) that weighs batches equally, so that a short
    last batch counts as much as a full one; (2) every module's mode and momentum are put back as they were, where that
    sets all of them to the mode of the outermost; (3) a BatchNorm layer that is in evaluation mode inside a model in
    training mode is frozen: it normalises as it did, and its statistics stay; (4) dropout and the like are in
    evaluation mode, as they are when the statistics are used, and the random state is not touched; (5) networks that
    take gradients in their forward pass are run with gradients, embeddings with ``max_norm`` keep their table.

    Args:
        model: with or without BatchNorm layers (without, nothing is done).
        data: an iterable of batches such as a ``DataLoader``, or one batch ``(x, y)``; see
            :func:`sharpnb.batches.each`. A batch is the inputs, or a tuple or list whose first entry they are; inputs
            are what :func:`sharpnb.batches.forward` takes.
        call: ``call(model, batch)`` for batches of another kind.
        count: weights of the batches in place of b: one number, a list, or a function of a batch.

    Raises:
        ValueError: if there is no batch, ``data`` is a bare tensor, or it is not to be seen whether it is one batch.
    """
    layers = unfrozen(model)
    if not layers:
        return
    where, batches = next(b.device for b in layers[0].buffers()), 0
    quiet = Quiet(model)
    with kept_modes(model), steady_tables(model), eager(), _Weighing(model, layers) as weigh:
        for index, raw in enumerate(each(data, pairs=False, count=count)):
            batch = moved(raw, where)
            weigh.by = None if count is None else counted(count, index, batch)
            quiet(lambda: call(model, batch) if call else forward(model, inputs_of(batch)),  # noqa: B023  called here
                  undo=weigh.begin)
            batches += 1
        if not batches:
            raise ValueError(_NO_BATCH)


def unfrozen(model: nn.Module) -> list[Any]:
    """Return the layers whose statistics :func:`update_bn` recomputes."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    return [m for m in layers if m.training or not model.training]


def inputs(data: Any, device: torch.device) -> list[Any]:
    """Return the inputs that :func:`update_bn` gives a model, batch by batch, on a device.

    Raises:
        ValueError: as :func:`update_bn`.
    """
    found = [inputs_of(moved(batch, device)) for batch in each(data, pairs=False)]
    if not found:
        raise ValueError(_NO_BATCH)
    return found


class _Weighing:
    """A pass that averages the statistics of these layers by the size of the batches, or by ``by`` if that is a number.

    Inside it they are in training mode, all other layers in evaluation mode; their momenta are put back, and, where it
    fails, the statistics: half of a pass is none.
    """

    def __init__(self, model: nn.Module, layers: list[Any]) -> None:
        self.model, self.layers = model, layers
        self.by: float | None = None
        self.seen: dict[Any, float] = {}  # what each layer has averaged so far

    def begin(self) -> None:
        """Forget what was averaged."""
        self.seen.clear()
        for layer in self.layers:
            layer.reset_running_stats()

    def hook(self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Set the momentum before a layer runs."""
        x = args[0] if args else kwargs["input"]
        here = x.numel() // max(x.shape[1], 1) if self.by is None else self.by
        self.seen[layer] = self.seen.get(layer, 0) + here
        layer.momentum = here / self.seen[layer] if here else 0.0

    def __enter__(self) -> _Weighing:
        self.momenta = [layer.momentum for layer in self.layers]
        self.kept = [(b, b.clone()) for layer in self.layers for b in layer.buffers(recurse=False)]
        self.handles = [layer.register_forward_pre_hook(self.hook, with_kwargs=True) for layer in self.layers]
        self.model.eval()
        for layer in self.layers:
            layer.training = True
        self.begin()
        return self

    def __exit__(self, failed: Any, *_: Any) -> None:
        for layer, momentum, handle in zip(self.layers, self.momenta, self.handles, strict=True):
            handle.remove()
            layer.momentum = momentum
        if failed:
            for buffer, old in self.kept:
                buffer.copy_(old)
