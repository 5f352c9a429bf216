"""A measurement leaves the model exactly as it found it, whatever happens inside: other modes, other weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from sharpnb.batches import kept_random_state
from sharpnb.caches import refuse_parametrization_cache
from sharpnb.fallbacks import changed, kept_attributes, kept_modes, steady_tables

Mode = Literal["eval", "batch_stats", "as_is"]


def unwrapped(model: Any) -> nn.Module:
    """Return the module inside wrappers that see only ``backward()``, or have no second derivative."""
    while (compiled := hasattr(model, "_orig_mod")) or isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model._orig_mod if compiled else model.module
    return model


def differentiable(params: Iterable[Tensor]) -> Any:
    """Let frozen parameters require a gradient for the moment."""
    return changed((p, "requires_grad", True) for p in params if not p.requires_grad)


def refuse_other_parameters(model: nn.Module, params: Iterable[Tensor]) -> None:
    """Raise a ValueError where parameters are not the model's own any more."""
    if {*map(id, params)} - {*map(id, model.parameters())}:
        raise ValueError("The model has other parameters than those that it was to be measured in (after "
                         "load_state_dict(assign=True), a parametrization, a new layer): make the operator anew.")


@contextmanager
def measuring(model: nn.Module, mode: Mode, params: Iterable[Tensor] = ()) -> Iterator[None]:
    """Put the model into ``mode`` and put everything back: flags, buffers, attributes, ``requires_grad``, random state.

    ``"batch_stats"`` leaves BatchNorm's running averages untouched. Frozen ``params`` are differentiable inside.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode = {mode!r}: choose one of {', '.join(map(repr, get_args(Mode)))}.")
    refuse_parametrization_cache("A measurement")
    with (torch.inference_mode(False), kept_random_state(), differentiable(params), kept_attributes(model),
          kept_modes(model), steady_tables(model), _other_buffers(model, Tensor.clone)):
        if mode != "as_is":
            model.eval()
        if mode == "batch_stats":
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.training, module.track_running_stats = True, False
        yield


@contextmanager
def _other_buffers(model: nn.Module, copy: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put copies in the place of all buffers, so that whatever is written is written to them."""
    before = [(m, dict(m._buffers)) for m in model.modules() if isinstance(m._buffers, dict)]
    scripted = [(b, b.detach().clone()) for m in model.modules() if not isinstance(m._buffers, dict)
                for b in m.buffers(False)]
    try:
        for module, own in before:
            module._buffers.update({name: None if b is None else copy(b.detach()) for name, b in own.items()})
        yield
    finally:
        for module, own in before:
            module._buffers.clear()
            module._buffers.update(own)
        with torch.no_grad():
            for b, value in scripted:  # TorchScript holds them itself
                b.copy_(value)


# ---- Other weights --------------------------------------------------------------------------------------------------

NARROW = (torch.float32, torch.float16, torch.bfloat16)


def widened(t: Tensor) -> Tensor:
    """Return float64 of a smaller type."""
    return t.double() if t.dtype in NARROW else t


@contextmanager
def replaced(model: nn.Module, params: Sequence[Tensor], wide: bool) -> Iterator[list[Tensor]]:
    """Put copies (if ``wide``, in float64) in the place of all parameters and buffers; yield those of ``params``.

    Unlike ``torch.func.functional_call`` it lasts for the backward pass too, as checkpointed networks need it; unlike
    writing into the parameters it is seen by no hook of theirs and by no graph that was built before.
    """
    def copy(t: Tensor) -> Tensor:
        return t.double() if wide and t.dtype in NARROW else t.clone()

    refuse_other_parameters(model, params)
    places = [(module, name, p) for module in model.modules()
              for name, p in module._parameters.items() if p is not None]
    chosen, copies = {id(p) for p in params}, {}
    for _, _, p in places:
        if id(p) not in copies:
            copies[id(p)] = nn.Parameter(copy(p.detach()), requires_grad=p.requires_grad or id(p) in chosen)
    try:
        for module, name, p in places:
            setattr(module, name, copies[id(p)])
        with _other_buffers(model, copy), _Widening() if wide else nullcontext():
            yield [copies[id(p)] for p in params]
    finally:
        for module, name, p in places:
            setattr(module, name, p)


class _Widening(TorchFunctionMode):
    """Make float64 of every smaller type that is asked for by name, and of what comes out smaller."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in (Tensor.float, Tensor.half, Tensor.bfloat16):
            return args[0].double()
        args = tuple(_wider(a) for a in args)
        out = func(*args, **{name: _wider(value) for name, value in (kwargs or {}).items()})
        return widened(out) if isinstance(out, Tensor) and not any(out is a for a in args) else out


def _wider(argument: Any) -> Any:
    return torch.float64 if isinstance(argument, torch.dtype) and argument in NARROW else argument
