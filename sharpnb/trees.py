"""Nested tuples, lists and mappings of tensors, as batches come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor of a nested tuple, list or mapping."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping | tuple | list):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from tensors(value)


def moved(tree: Any, device: torch.device) -> Any:
    """Return the tree with its tensors on ``device``; what is no plain tuple, list or mapping stays as it is."""
    if isinstance(tree, Tensor):
        return tree.to(device, non_blocking=True)
    if isinstance(tree, Mapping):
        return {key: moved(value, device) for key, value in tree.items()}
    return type(tree)(moved(value, device) for value in tree) if type(tree) in (tuple, list) else tree
