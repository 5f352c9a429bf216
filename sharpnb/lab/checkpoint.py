"""A user's own network and data, named on a command line: ``module:function``, a torch file, torchvision by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sharpnb import checkpoints, usercode
from sharpnb.checkpoints import fit as fit  # tests of one's own meet them here
from sharpnb.checkpoints import read_state as read_state
from sharpnb.lab.data import NAMES, Data, load_data
from sharpnb.trees import tensors

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss,
    "binary_cross_entropy": nn.functional.binary_cross_entropy_with_logits,
}


# ---------------------------------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------------------------------


def load_model(
    spec: str, checkpoint: str | Path | None = None, *, key: str | None = None, weights: str | None = None,
    classes: int | None = None, say: Callable[[str], None] = lambda _: None, **allow: Sequence[str],
) -> nn.Module:
    """Return a network.

    Args:
        spec: ``module:function`` of a function without arguments (or a module object), or a torchvision model's name.
        checkpoint: file or folder with the weights; see :func:`sharpnb.checkpoints.load`.
        key: where the state dict is in the file, if there are several.
        weights: torchvision's pretrained weights, such as ``"DEFAULT"``.
        classes: number of outputs of a torchvision model, where it is not ImageNet's.
        say: is told where in the file the weights were, what was passed over, what stayed as it was built.
        allow: patterns ``allow_classes``, ``allow_missing``, ``allow_unexpected`` of the same function.

    Raises:
        ValueError: if the model cannot be made, or the file does not fit it; the message says how they differ.
    """
    if ":" in spec:
        if weights is not None or classes is not None:
            raise ValueError("weights and classes belong to torchvision's models; your own function sets its own.")
        made = usercode.find(spec, "model")
        model = made.value if isinstance(made.value, nn.Module) else made()
        if not isinstance(model, nn.Module):
            raise ValueError(f"model {spec!r} returned a {type(model).__name__}; it must return a torch.nn.Module.")
    else:
        model = _torchvision(spec, weights, classes)
    if checkpoint is not None:
        for note in checkpoints.load(model, checkpoint, key, **allow):
            say(note)
    return model


def _torchvision(name: str, weights: str | None, classes: int | None) -> nn.Module:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        near = get_close_matches(name, known, n=3)
        raise ValueError(f"model {name!r} is no model of torchvision" + (f" (near: {', '.join(near)})" if near else "")
                         + ". Name one, or write module:function for your own.")
    options = {} if classes is None else {"num_classes": classes}
    try:
        return models.get_model(name, weights=weights, **options)
    except (KeyError, ValueError, TypeError) as error:
        allowed = ", ".join(entry.name for entry in models.get_model_weights(name))
        raise ValueError(f"model {name!r} with weights {weights!r} and {classes or 'its own'} classes: {error}. "
                         f"Weights there are: {allowed}, DEFAULT.") from error


# ---------------------------------------------------------------------------------------------------------------------
# Data and loss
# ---------------------------------------------------------------------------------------------------------------------


def load_batches(
    spec: str, *, split: str = "train", batch_size: int = 256, limit: int | None = None,
    dtype: torch.dtype | None = None,
) -> list[tuple[Any, Any]]:
    """Return data as a list of batches in a fixed order.

    Args:
        spec: a data set of :func:`sharpnb.lab.load_data`; ``module:function``, whose result is a pair of tensors
            ``(x, y)``, a list of batches, a ``Dataset`` or a ``DataLoader``; or ``noise:3x224x224``, one batch of
            Gaussian inputs of that shape with labels 0 to 9 drawn at random, which is good for a try and nothing else.
        split: ``"train"`` or ``"test"``, of a named data set.
        batch_size: how tensors and data sets are cut.
        limit: take this many batches from the start.
        dtype: of floating-point inputs and targets.

    Raises:
        ValueError: if there is no such data, or it is no batch.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"batches = {limit}: at least one is needed.")
    if spec.partition(":")[0] == "noise":
        found: Any = _noise(spec, batch_size)
    elif ":" in spec:
        made = usercode.find(spec, "data")
        found = made() if callable(made.value) and not isinstance(made.value, Dataset) else made.value
    elif spec in NAMES:
        found = load_data(spec)
    else:
        raise ValueError(f"data {spec!r}: choose {', '.join(NAMES)}, noise:CxHxW, or module:function for your own.")
    batches = []
    for batch in _cut(found, split, batch_size):
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise ValueError(f"data {spec!r} gives a {type(batch).__name__} as a batch; it must be a pair (inputs, "
                             "target).")
        batches.append(tuple(_as(part, dtype) for part in batch))
        if len(batches) == limit:
            break
    return batches


def _cut(found: Any, split: str, size: int) -> Iterable[Any]:
    if isinstance(found, Data):
        if split not in ("train", "test"):
            raise ValueError(f"split = {split!r}: choose train or test.")
        found = found.train if split == "train" else found.test
    if isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, Tensor) for part in found):
        return zip(found[0].split(size), found[1].split(size), strict=True)
    return DataLoader(found, batch_size=size) if isinstance(found, Dataset) else found


def _noise(spec: str, size: int) -> tuple[Tensor, Tensor]:
    try:
        shape = [int(side) for side in (spec.partition(":")[2] or "3x224x224").split("x")]
    except ValueError:
        raise ValueError(f"data {spec!r}: write the shape of one input as in noise:3x224x224.") from None
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, *shape, generator=generator), torch.randint(10, (size,), generator=generator)


def _as(tree: Any, dtype: torch.dtype | None) -> Any:
    if isinstance(tree, Tensor):
        return tree.to(dtype) if dtype is not None and tree.is_floating_point() else tree
    if isinstance(tree, Mapping):
        return {name: _as(value, dtype) for name, value in tree.items()}
    return tuple(_as(value, dtype) for value in tree) if isinstance(tree, tuple | list) else tree


def load_loss(spec: str) -> Callable[[Any, Any], Tensor]:
    """Return a loss: one of :data:`LOSSES`, or ``module:function`` called as ``loss(output, target)``.

    Raises:
        ValueError: for another name.
    """
    if ":" in spec:
        return usercode.find(spec, "loss").value
    if spec not in LOSSES:
        raise ValueError(f"loss {spec!r}: choose {', '.join(LOSSES)}, or module:function for your own.")
    return LOSSES[spec]


def float_type(name: str) -> torch.dtype:
    """Return ``torch.float32`` or ``torch.float64`` by name.

    Raises:
        ValueError: for another name.
    """
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype {name!r}: choose float32 or float64.")
    return getattr(torch, name)


def fingerprint(tree: Any) -> str:
    """Return 16 hexadecimal digits that stand for the tensors of ``tree``: sha256 over shapes and bytes."""
    digest = hashlib.sha256()
    for tensor in tensors(tree):
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
