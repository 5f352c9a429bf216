"""What stands around a model or a tensor (data parallelism, ``torch.compile``, shards), and in what it is averaged."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
_INSIDE = ("_orig_mod.", "_checkpoint_wrapped_module.")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``DistributedDataParallel``, ``torch.compile``, ``AveragedModel`` and their like.

    A wrapper has no parameter of its own and one child, by the name of ``module`` or ``_orig_mod``.
    """
    while True:
        children = dict(model.named_children())
        if len(children) != 1 or not children.keys() <= {"module", "_orig_mod"}:
            return model
        if next(model.named_parameters(recurse=False), None) is not None:
            return model
        model = next(iter(children.values()))


def plain(named: Mapping[str, T]) -> dict[str, T]:
    """Return tensors under the names that they have without wrappers in the middle of the model; the order stays."""
    names = list(named)
    for part in _INSIDE:
        names = [name.replace(part, "") for name in names]
    return dict(zip(names, named.values(), strict=True))


@torch.no_grad()
def fill(model: nn.Module, weights: Tensor) -> None:
    """Write flat weights into the model in place: an optimizer or DistributedDataParallel over it stays valid."""
    parameters = list(model.parameters())
    for p, piece in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
        p.copy_(piece.view_as(p))


def reshard(model: nn.Module) -> None:
    """Free what FSDP2 has gathered: until then a module shows whole weights, and forgets what is written to them.

    After a forward pass without a backward one (an evaluation) the outermost module stays gathered.

    Raises:
        RuntimeError: for ``FullyShardedDataParallel``, whose flat parameters cannot be averaged by name.
    """
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    modules: Iterable[Any] = model.modules() if fsdp else ()
    for module in modules:
        if isinstance(module, fsdp.FullyShardedDataParallel):
            raise RuntimeError("The model holds a FullyShardedDataParallel, which flattens its parameters. Shard it "
                               "with torch.distributed.fsdp.fully_shard (FSDP2) instead.")
        if isinstance(module, fsdp.FSDPModule):
            fsdp.FSDPModule.reshard(module)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32 for 8 and 16 bits, where the increments of an average vanish (complex64 likewise), else itself."""
    if dtype.is_floating_point and dtype.itemsize < 4:
        return torch.float32
    return torch.complex64 if dtype == torch.complex32 else dtype


def is_number(t: Tensor) -> bool:
    """Return whether the tensor has a mean: floating-point and complex ones have, integers and booleans do not."""
    return t.is_floating_point() or t.is_complex()
