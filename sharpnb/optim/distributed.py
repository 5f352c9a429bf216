"""Averages over the ranks of DistributedDataParallel, for what its own reduction does not cover."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def average(groups: Iterable[dict[str, Any]], maps: Sequence[dict[Tensor, Tensor]], model: Any) -> None:
    """Replace the tensors of each map (by parameter) with their means over the ranks: one all-reduce a dtype.

    A tensor that a rank lacks counts as zero, and one that no rank has stays absent. Every rank reduces all trainable
    parameters in one order, so a parameter unused on one rank hangs nobody.
    """
    params = [p for group in groups for p in group["params"] if p.requires_grad]
    world = dist.get_world_size(model.process_group)
    for place in dict.fromkeys((p.device, p.dtype) for p in params):
        here = [(table, p) for table in maps for p in params if (p.device, p.dtype) == place]
        parts = [table[p].to_dense() if p in table else torch.zeros_like(p) for table, p in here]
        counts = torch.tensor([float(p in table) for table, p in here]).to(*place)
        flat = torch.cat([part.reshape(-1) for part in parts] + [counts])
        dist.all_reduce(flat, group=model.process_group)
        *means, counts = flat.split([part.numel() for part in parts] + [len(parts)])
        absent = [p not in table for table, p in here]
        somewhere = counts.real.tolist() if any(absent) else counts  # a host read only where this rank lacks something
        for (table, p), mean, lacks, count in zip(here, means, absent, somewhere, strict=True):
            if not lacks or count > 0:
                table[p] = mean.view_as(p) / world


def total(number: Tensor | float, model: Any) -> Tensor:
    """Return the sum of a number over the ranks."""
    number = torch.as_tensor(number, device=next(model.parameters()).device).clone()
    dist.all_reduce(number, group=model.process_group)
    return number
