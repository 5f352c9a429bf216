"""A measurement leaves the model exactly as it found it, whatever happens inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sharpnb.batches import kept_random_state
from sharpnb.fallbacks import kept_attributes, kept_modes, steady_tables

Mode = Literal["eval", "batch_stats", "as_is"]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``DistributedDataParallel``, ``DataParallel`` or ``torch.compile``.

    Their wrappers see only ``backward()``, or have no second derivative.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


@contextmanager
def differentiable(params: Iterable[Tensor]) -> Iterator[None]:
    """Let frozen parameters require a gradient for the moment."""
    frozen = [p for p in params if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_(True)
        yield
    finally:
        for p in frozen:
            p.requires_grad_(False)


@contextmanager
def measuring(model: nn.Module, mode: Mode, params: Iterable[Tensor] = ()) -> Iterator[None]:
    """Put the model into ``mode`` and put everything back: flags, buffers, attributes, ``requires_grad``, random state.

    Modes: ``"eval"`` is ``model.eval()``. ``"batch_stats"`` is the same with BatchNorm normalising by the statistics of
    each batch, its running averages untouched. ``"as_is"`` leaves every layer in the mode it is in. ``params`` are
    differentiable inside: frozen ones are thawed for the moment.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode = {mode!r}: choose one of {', '.join(map(repr, get_args(Mode)))}.")
    modules = list(model.modules())
    slots = [(module, dict(module._buffers)) for module in modules if module._buffers]
    tracking = [(module, module.track_running_stats) for module in modules if isinstance(module, _BatchNorm)]
    with (kept_random_state(), differentiable(params), kept_attributes(model), kept_modes(model),
          steady_tables(model)):
        try:
            for module, buffers in slots:  # whatever is written is written to copies
                module._buffers.update({name: None if b is None else b.detach().clone() for name, b in buffers.items()})
            if mode != "as_is":
                model.eval()
            if mode == "batch_stats":
                for module, _ in tracking:
                    module.training, module.track_running_stats = True, False
            yield
        finally:
            for module, flag in tracking:
                module.track_running_stats = flag
            for module, buffers in slots:
                module._buffers.clear()
                module._buffers.update(buffers)
