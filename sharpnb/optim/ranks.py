"""What ranks do together: each perturbs on its own shard of a batch (DDP), or holds a part of the weights (FSDP2)."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_NOTHING = nullcontext()


class Replicas:
    """The ranks of a wrapped model; false where there are none."""

    def __init__(self, model: nn.Module | None) -> None:
        self.model = model if isinstance(model, DistributedDataParallel) else None
        self._group: Any = self.model and self.model.process_group

    def __bool__(self) -> bool:
        return self.model is not None

    def no_sync(self) -> AbstractContextManager[Any]:
        """Return the context in which a backward pass leaves the rank's own gradient."""
        return self.model.no_sync() if self.model is not None else _NOTHING

    def average(self, params: Iterable[Tensor], maps: Sequence[dict[Tensor, Tensor]]) -> None:
        """Replace the tensors of each map (by parameter) with their means over the ranks: one all-reduce a dtype.

        A tensor that a rank lacks counts as zero, and one that no rank has stays absent. Every rank reduces all
        trainable parameters in one order, so a parameter unused on one rank hangs nobody.
        """
        params = [p for p in params if p.requires_grad]
        for place in dict.fromkeys((p.device, p.dtype) for p in params):
            here = [(table, p) for table in maps for p in params if (p.device, p.dtype) == place]
            parts = [table[p].to_dense() if p in table else torch.zeros_like(p) for table, p in here]
            counts = torch.tensor([float(p in table) for table, p in here]).to(*place)
            flat = self.total(torch.cat([part.reshape(-1) for part in parts] + [counts]))
            *means, counts = flat.split([part.numel() for part in parts] + [len(parts)])
            absent = [p not in table for table, p in here]
            somewhere = counts.real.tolist() if any(absent) else counts  # a host read only where this rank lacks one
            for (table, p), mean, lacks, count in zip(here, means, absent, somewhere, strict=True):
                if not lacks or count > 0:
                    table[p] = mean.view_as(p) / dist.get_world_size(self._group)

    def total(self, number: Tensor | float) -> Tensor:
        """Return the sum over the ranks."""
        assert self.model is not None
        number = torch.as_tensor(number, device=next(self.model.parameters()).device).clone()
        dist.all_reduce(number, group=self._group)
        return number


class Ranks:
    """The ranks that hold the parts of weights, split along ``dims`` of a mesh, and what they find out together."""

    def __init__(self, mesh: Any, dims: tuple[int, ...]) -> None:
        self.device = torch.device(mesh.device_type)
        self.groups = [mesh.get_group(dim) for dim in dims]

    def total(self, number: Tensor | float) -> Tensor:
        """Return the sum over the parts."""
        return self._reduced(torch.as_tensor(number, device=self.device), dist.ReduceOp.SUM)

    def largest(self, number: Tensor) -> Tensor:
        """Return the largest number of any part; NaN and infinity stay what they are."""
        bad = self._reduced((~number.isfinite()).to(number.dtype), dist.ReduceOp.SUM)
        most = self._reduced(torch.nan_to_num(number, posinf=0.0), dist.ReduceOp.MAX)
        return torch.where(bad > 0, torch.full_like(most, torch.nan), most)

    def _reduced(self, number: Tensor, how: Any) -> Tensor:
        number = number.clone()
        for group in self.groups:
            dist.all_reduce(number, how, group)
        return number


def ranks_of(groups: Iterable[dict[str, Any]], who: str) -> Ranks | None:
    """Return the ranks over which all parameters are spread, or None where no parameter is a DTensor.

    Raises:
        ValueError: inside ZeroRedundancyOptimizer; for parameters of the first FSDP, for DTensors beside plain tensors,
            and for DTensors that are not spread alike: their norms would be counted too often or too rarely.
    """
    if dist.is_available() and dist.is_initialized() and any(
            type(made.frame.f_locals.get("self")).__name__ == "ZeroRedundancyOptimizer" for made in inspect.stack(0)):
        raise ValueError(f"{who} inside ZeroRedundancyOptimizer: each rank perturbs its part of the weights by that "
                         f"part's norm. Put it around: {who}(ZeroRedundancyOptimizer(...)), or use fully_shard.")
    params = [p for group in groups for p in group["params"]]
    if any(getattr(p, "_fsdp_flattened", False) for p in params):
        raise ValueError(f"{who}: the parameters belong to FullyShardedDataParallel (FSDP1), whose flat shards show no "
                         "optimizer the norm of the whole gradient. Use torch.distributed.fsdp.fully_shard (FSDP2).")
    spread_out = [p for p in params if is_sharded(p)]
    if not spread_out:
        return None
    kinds = {_kind(p) for p in spread_out}
    if len(kinds) > 1 or len(spread_out) < len(params):
        raise ValueError(f"{who}: {len(spread_out)} of {len(params)} parameters are DTensors, spread in {len(kinds)} "
                         "ways. One norm over all weights needs all of them sharded alike. Use fully_shard on the "
                         "whole model, without ignored_params and without tensor parallelism.")
    mesh, split = next(iter(kinds))
    return Ranks(mesh, tuple(dim for dim, here in enumerate(split) if here))


def is_sharded(t: Tensor) -> TypeGuard[Any]:
    """Return whether this process holds a part of the tensor only: whether it is a DTensor."""
    return hasattr(t, "placements") and hasattr(t, "to_local")  # without the import, which takes longer than our own


def _kind(p: Any) -> tuple[Any, tuple[bool, ...]]:
    """Return a parameter's mesh, and along which of its dimensions it is split."""
    return p.device_mesh, tuple(not place.is_replicate() for place in p.placements)


def local(t: Tensor, p: Any = None) -> Tensor:
    """Return the rank's own part of a DTensor that belongs to parameter p, laid out as p is; others as they are."""
    if not is_sharded(t):
        return t
    return (t if p is None or t.placements == p.placements else t.redistribute(placements=p.placements)).to_local()


def spread(t: Tensor, p: Tensor) -> Tensor:
    """Return the DTensor whose part on this rank is t, laid out as parameter p is; t itself where p is none."""
    if not is_sharded(p):
        return t
    return type(p).from_local(t, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
