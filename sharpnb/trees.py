"""Nested tuples, lists, mappings and dataclasses of tensors, as batches come."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def tensors(tree: Any) -> Iterator[Tensor]:
    """Yield every tensor of a nested tuple, list, mapping or dataclass."""
    if isinstance(tree, Tensor):
        yield tree
    else:
        for part in _parts(tree):
            yield from tensors(part)


def mapped(function: Callable[[Tensor], Tensor], tree: Any, other: Callable[[Any], Any] = lambda leaf: leaf) -> Any:
    """Return the same structure with ``function`` applied to its tensors, and ``other`` to what holds none.

    Tuples with names, mappings of other classes and dataclasses keep their class where it can be built anew. Of a
    ``PackedSequence`` the lengths stay as they are.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, PackedSequence):
        order = [None if i is None else function(i) for i in (tree.sorted_indices, tree.unsorted_indices)]
        return PackedSequence(function(tree.data), tree.batch_sizes, *order)
    if isinstance(tree, Mapping | tuple | list) or _is_record(tree):
        return _like(tree, [mapped(function, part, other) for part in _parts(tree)])
    return other(tree)


def moved(tree: Any, device: torch.device) -> Any:
    """Return the tree with its tensors on ``device``, and every other object that has a ``to(device)``."""
    return mapped(lambda t: t.to(device, non_blocking=True), tree,
                  lambda leaf: leaf.to(device) if callable(getattr(leaf, "to", None)) else leaf)


def lengths(tree: Any) -> Iterator[int]:
    """Yield the length of the first axis of every tensor that has one; of a ``PackedSequence`` its sequences."""
    if isinstance(tree, Tensor):
        if tree.dim():
            yield tree.shape[0]
    elif isinstance(tree, PackedSequence):
        yield int(tree.batch_sizes[0])
    else:
        for part in _parts(tree):
            yield from lengths(part)


def joined(trees: Sequence[Any]) -> Any:
    """Concatenate equal trees along the first axis; lists without tensors (texts, ids) one after the other.

    Raises:
        ValueError: if they do not fit together.
    """
    first = trees[0]
    if isinstance(first, Tensor) and first.dim():
        if any(not isinstance(t, Tensor) or t.shape[1:] != first.shape[1:] for t in trees):
            raise ValueError(f"Tensors of shapes {[tuple(getattr(t, 'shape', ())) for t in trees[:4]]} cannot be "
                             "joined along the first axis.")
        return torch.cat(list(trees))
    if isinstance(first, PackedSequence):
        raise ValueError("Packed sequences cannot be joined; pack those of several batches as one.")
    if isinstance(first, list) and next(tensors(trees), None) is None:
        return [entry for tree in trees for entry in tree]
    if isinstance(first, Mapping | tuple | list) or _is_record(first):
        columns = [_parts(tree) for tree in trees]
        if len({len(column) for column in columns}) == 1:
            return _like(first, [joined(column) for column in zip(*columns, strict=True)])
    if all(_equal(first, tree) for tree in trees):
        return first
    raise ValueError(f"Entries of class {type(first).__name__} differ and cannot be joined along a first axis.")


def part(tree: Any, first: int, last: int, whole: int) -> Any:
    """Return the entries ``first`` to ``last`` of everything in a tree that is ``whole`` long; the rest is kept."""
    if isinstance(tree, Tensor):
        return tree[first:last] if tree.dim() else tree
    if isinstance(tree, list) and len(tree) == whole and next(tensors(tree), None) is None:
        return tree[first:last]
    if isinstance(tree, Mapping | tuple | list) or _is_record(tree):
        return _like(tree, [part(each, first, last, whole) for each in _parts(tree)])
    return tree


def fingerprint(tree: Any) -> str:
    """Return 16 hexadecimal digits that stand for the tensors of ``tree``: sha256 over shapes and bytes."""
    digest = hashlib.sha256()
    for whole in tensors(tree):
        for tensor in strided(whole):
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def strided(t: Tensor) -> list[Tensor]:
    """Return the tensors that a sparse one is made of, else itself."""
    if t.layout is torch.strided:
        return [t]
    if t.layout is torch.sparse_coo:
        t = t.coalesce()
        return [t.indices(), t.values()]
    rows = t.layout in (torch.sparse_csr, torch.sparse_bsr)
    return [*((t.crow_indices(), t.col_indices()) if rows else (t.ccol_indices(), t.row_indices())), t.values()]


def storages(t: Tensor) -> list[torch.UntypedStorage]:
    """Return where a tensor's numbers lie."""
    return [piece.untyped_storage() for piece in strided(t)]


def _parts(tree: Any) -> list[Any]:
    if isinstance(tree, Mapping):
        return list(tree.values())
    if _is_record(tree):
        return [getattr(tree, field.name) for field in fields(tree) if field.init]
    return list(tree) if isinstance(tree, tuple | list) else []


def _like(tree: Any, parts: list[Any]) -> Any:
    """Return ``parts`` in the class of ``tree``."""
    if _is_record(tree):
        names = [field.name for field in fields(tree) if field.init]
        return replace(tree, **dict(zip(names, parts, strict=True)))
    if isinstance(tree, Mapping):
        entries = dict(zip(tree, parts, strict=True))
        if type(tree) is dict:
            return entries
        made: Any = copy.copy(tree)
        try:
            for key, value in entries.items():
                made[key] = value
        except TypeError:  # a mapping that nothing can be written into
            return entries
        return made
    return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)


def _is_record(tree: Any) -> bool:
    return is_dataclass(tree) and not isinstance(tree, type | Mapping)


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)
