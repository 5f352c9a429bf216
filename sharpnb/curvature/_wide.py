"""A network with other weights in its parameters' place, in float64 if need be, and everything put back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NARROW = (torch.float32, torch.float16, torch.bfloat16)
_CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


@contextmanager
def replaced(model: nn.Module, params: Sequence[Tensor], wide: bool) -> Iterator[list[Tensor]]:
    """Put copies in the place of all parameters and buffers; yield those of ``params``, which require a gradient.

    If ``wide``, everything is float64, with what the network makes itself.

    Unlike ``torch.func.functional_call`` it lasts for the backward pass too, as checkpointed networks need it; unlike
    writing into the parameters it is seen by no hook of theirs and by no graph that was built before.
    """
    places = [(module, name, p) for module in model.modules()
              for name, p in module._parameters.items() if p is not None]
    buffers = [(module, dict(module._buffers)) for module in model.modules() if module._buffers]
    chosen = {id(p) for p in params}
    copies: dict[int, nn.Parameter] = {}
    for _, _, p in places:
        if id(p) not in copies:
            copies[id(p)] = nn.Parameter(_copy(p.detach(), wide), requires_grad=p.requires_grad or id(p) in chosen)
    try:
        with ExitStack() as stack:
            for module, name, p in places:
                setattr(module, name, copies[id(p)])
            for module, own in buffers:
                copied = {name: None if b is None else _copy(b.detach(), wide) for name, b in own.items()}
                module._buffers.update(copied)
            if wide:
                stack.enter_context(_Widening())
            yield [copies[id(p)] for p in params]
    finally:
        for module, name, p in places:
            setattr(module, name, p)
        for module, own in buffers:
            module._buffers.update(own)


def _copy(t: Tensor, wide: bool) -> Tensor:
    return t.double() if wide and t.dtype in NARROW else t.clone()


class _Widening(TorchFunctionMode):
    """Make float64 of every smaller type that is asked for by name, and of what comes out smaller."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in _CASTS:
            return args[0].double()
        args = tuple(_wider(a) for a in args)
        out = func(*args, **{name: _wider(value) for name, value in (kwargs or {}).items()})
        if isinstance(out, Tensor) and out.dtype in NARROW and not any(out is a for a in args):
            return out.double()
        return out


def _wider(argument: Any) -> Any:
    return torch.float64 if isinstance(argument, torch.dtype) and argument in NARROW else argument
