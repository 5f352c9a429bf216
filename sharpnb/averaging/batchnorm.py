r"""BatchNorm statistics of weights that were never trained with: averages, grafts, points of a landscape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sharpnb.trees import moved

Call = Callable[[nn.Module, Any], Any]
_NO_BATCH = ("data holds no batch: the statistics of BatchNorm need at least one. An exhausted generator reads like "
             "this; pass a list or a DataLoader.")


@torch.no_grad()
def update_bn(model: nn.Module, data: Any, call: Call | None = None) -> None:
    r"""Recompute the running statistics of every BatchNorm layer by one pass over ``data``.

    With N the samples seen before a batch of b, and :math:`\mu_B,\sigma_B^2` its mean and unbiased variance,

    .. math::
        \mu\leftarrow\mu+\frac{b}{N+b}(\mu_B-\mu),\qquad
        \sigma^2\leftarrow\sigma^2+\frac{b}{N+b}(\sigma_B^2-\sigma^2)

    (the SWA authors' ``bn_update``): the average over batches, weighted by their size.

    How it differs from ``torch.optim.swa_utils.update_bn``, and why: (1) that weighs batches equally, so that a short
    last batch counts as much as a full one; (2) every module's mode and momentum are put back as they were, where that
    sets all of them to the mode of the outermost; (3) a BatchNorm layer that is in evaluation mode inside a model in
    training mode is frozen: it normalises as it did, and its statistics stay; (4) dropout and the like are in
    evaluation mode, as they are when the statistics are used, and the random state is not touched.

    Args:
        model: with or without BatchNorm layers (without, nothing is done).
        data: an iterable of batches such as a ``DataLoader``, or one pair of images and integer labels ``(x, y)``. A
            batch is the input tensor, or a tuple or list whose first entry it is.
        call: ``call(model, batch)`` for batches of another kind (several inputs, dictionaries).

    Raises:
        ValueError: if there is no batch, or ``data`` is a bare tensor.
    """
    layers = unfrozen(model)
    if not layers:
        return
    where, seen = next(b.device for b in layers[0].buffers()), 0
    with _statistics_mode(model, layers):
        for layer in layers:
            layer.reset_running_stats()
        for batch in _batches(data):
            batch = moved(batch, where)
            size = _size(batch)
            for layer in layers:
                layer.momentum = size / (seen + size)
            call(model, batch) if call else model(_input(batch))
            seen += size
        if not seen:
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
    found = [_input(moved(batch, device)) for batch in _batches(data)]
    if not found:
        raise ValueError(_NO_BATCH)
    return found


@contextmanager
def _statistics_mode(model: nn.Module, layers: list[Any]) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    kept = [[None if b is None else b.clone() for b in layer._buffers.values()] for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.training = True
        yield
    except BaseException:  # half of a pass is no statistic: put the old ones back
        for layer, buffers in zip(layers, kept, strict=True):
            for new, old in zip(layer._buffers.values(), buffers, strict=True):
                if new is not None:
                    new.copy_(old)
        raise
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def _batches(data: Any) -> Iterable[Any]:
    """Images with integer labels are one batch; everything else is an iterable of batches (``x.split(100)`` is one)."""
    if isinstance(data, Tensor):
        raise ValueError(f"data is a tensor of shape {tuple(data.shape)}. One batch is [x], many are x.split(100).")
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        x, y = data
        return [data] if x.is_floating_point() and not y.is_floating_point() else data
    return data


def _input(batch: Any) -> Any:
    return batch[0] if isinstance(batch, tuple | list) else batch


def _size(tree: Any) -> int:
    if isinstance(tree, Tensor):
        return len(tree)
    parts = tree.values() if isinstance(tree, Mapping) else tree
    return next(_size(part) for part in parts)
