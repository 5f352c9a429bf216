"""The floating-point operations, bytes and kernels of one gradient, counted without computing it (``meta`` tensors)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Counted:
    """One gradient of the mean loss of a batch: floating-point operations, bytes in and out of kernels, kernels."""

    flops: int
    bytes: int
    kernels: int


class _Traffic(TorchDispatchMode):
    """Counts kernels and the bytes of their arguments and results; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, out)) if isinstance(leaf, torch.Tensor)]
            self.kernels += 1
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def counted(net: nn.Module, image: Sequence[int], batch: int) -> Counted:
    """Count one gradient of ``net`` on ``batch`` images of shape ``image``, in float32."""
    net = net.to("meta", torch.float32)
    x, y = torch.empty(batch, *image, device="meta"), torch.empty(batch, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        F.cross_entropy(net(x), y).backward()
    return Counted(flops.get_total_flops(), traffic.bytes, traffic.kernels)
