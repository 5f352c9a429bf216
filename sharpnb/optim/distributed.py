"""What ranks of DistributedDataParallel do together beside its own reduction, where each perturbs on its own shard."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_NOTHING = nullcontext()


class Replicas:
    """The ranks of a wrapped model; false where there are none, or where all perturb on the averaged gradient."""

    def __init__(self, model: nn.Module | None, common: bool) -> None:
        self.model = model if isinstance(model, DistributedDataParallel) and not common else None

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

    @property
    def _group(self) -> Any:
        assert self.model is not None
        return self.model.process_group
