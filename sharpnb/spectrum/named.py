"""What the names of a measurement stand for: the network, the loss, the data as a list of batches, their counts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from sharpnb import checkpoints, usercode
from sharpnb.datafiles import NAMES
from sharpnb.devices import pick_device
from sharpnb.near import near, told
from sharpnb.spectrum.preflight import not_on_meta
from sharpnb.trees import mapped

Say = Callable[[str], None]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss,
    "binary_cross_entropy": nn.functional.binary_cross_entropy_with_logits,
}


# ---- Network and loss -----------------------------------------------------------------------------------------------


def load_model(
    spec: str, checkpoint: str | Path | None = None, *, key: str | None = None, weights: str | None = None,
    classes: int | None = None, say: Say = lambda _: None, **allow: Sequence[str],
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
    if ":" not in spec:
        model = _torchvision(spec, weights, classes)
    elif weights is not None or classes is not None:
        raise ValueError("weights and classes belong to torchvision's models; your own function sets its own.")
    else:
        made = usercode.find(spec, "model")
        model = made.value if isinstance(made.value, nn.Module) else made()
        if not isinstance(model, nn.Module):
            raise ValueError(f"model {spec!r} returned a {type(model).__name__}; it must return a torch.nn.Module.")
    for note in () if checkpoint is None else checkpoints.load(model, checkpoint, key, **allow):
        say(note)
    return model


def _torchvision(name: str, weights: str | None, classes: int | None) -> nn.Module:
    from torchvision import models

    known = models.list_models()
    if name not in known:
        raise ValueError(f"model {name!r} is no model of torchvision.{near(name, known)} Name one, or write "
                         "module:function for your own.")
    options = {} if classes is None else {"num_classes": classes}
    try:
        return models.get_model(name, weights=weights, **options)
    except (KeyError, ValueError, TypeError) as error:
        allowed = ", ".join(entry.name for entry in models.get_model_weights(name))
        raise ValueError(f"model {name!r} with weights {weights!r} and {classes or 'its own'} classes: {error}. "
                         f"Weights there are: {allowed}, DEFAULT.") from error


def placed(model: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Return the model on a device, its floating-point weights of one type.

    Raises:
        ValueError: if there is no such device, or the model has weights that were never made.
    """
    not_on_meta(model)
    return model.to(pick_device(device), dtype)


def float_type(name: str) -> torch.dtype:
    """Return ``torch.float32`` or ``torch.float64`` by name, or raise a ValueError."""
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype {name!r}: choose float32 or float64.")
    return getattr(torch, name)


def load_loss(spec: str) -> Callable[[Any, Any], Tensor]:
    """Return a loss: one of :data:`LOSSES`, or ``module:function`` called as ``loss(output, target)``.

    A class of modules, such as ``torch.nn:CrossEntropyLoss``, is called first.

    Raises:
        ValueError: for another name.
    """
    if ":" in spec:
        found = usercode.find(spec, "loss")
        return found() if isinstance(found.value, type) else found.value
    if spec not in LOSSES:
        raise ValueError(f"loss {spec!r}: choose {', '.join(LOSSES)}, or module:function for your own.")
    return LOSSES[spec]


# ---- Data -----------------------------------------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    """Seed what a user's functions draw from: a loader's order, weights that no checkpoint replaces."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def load_batches(
    spec: str, *, split: str = "train", batch_size: int = 256, limit: int | None = None,
    dtype: torch.dtype | None = None, say: Say = lambda _: None,
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
        say: is told that a loader shuffles.

    Raises:
        ValueError: if there is no such data, it cannot be read, or it is no batch.
    """
    found = _data(spec, split, batch_size)
    if isinstance(found, DataLoader) and _shuffles(found):
        say("The loader shuffles without a seed of its own. Its order follows --seed here, so that a run that was "
            "interrupted can resume; shuffle=False is the order of the data.")
    batches: list[Any] = []
    try:
        for batch in islice(_cut(found, batch_size), limit):
            batches.append(batch)
    except Exception as error:  # of a user's data set, of collating its samples, of a worker process
        raise ValueError(f"data {spec!r}: batch {len(batches) + 1} cannot be read: {told(error, -1)}") from error
    if wrong := [batch for batch in batches if not (isinstance(batch, tuple | list) and len(batch) == 2)]:
        raise ValueError(f"data {spec!r} gives a {type(wrong[0]).__name__} as a batch; it must be a pair (inputs, "
                         "target).")

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if dtype is not None and t.is_floating_point() else t

    return [(mapped(cast, inputs), mapped(cast, target)) for inputs, target in batches]


def _data(spec: str, split: str, size: int) -> Any:
    kind, colon, rest = spec.partition(":")
    if kind == "noise":
        try:
            shape = [int(side) for side in (rest or "3x224x224").split("x")]
        except ValueError:
            raise ValueError(f"data {spec!r}: write the shape of one input as in noise:3x224x224.") from None
        generator = torch.Generator().manual_seed(0)
        return torch.randn(size, *shape, generator=generator), torch.randint(10, (size,), generator=generator)
    if colon:
        made = usercode.find(spec, "data")
        return made() if callable(made.value) and not isinstance(made.value, Dataset) else made.value
    if spec not in NAMES:
        raise ValueError(f"data {spec!r}: choose {', '.join(NAMES)}, noise:CxHxW, or module:function for your own.")
    if split not in ("train", "test"):
        raise ValueError(f"split = {split!r}: choose train or test.")
    from sharpnb.lab.data import DataError, load_data

    try:
        data = load_data(spec)
    except DataError as error:
        raise ValueError(str(error)) from error
    return data.train if split == "train" else data.test


def _shuffles(loader: DataLoader) -> bool:
    """Whether a loader draws its order from the global random state."""
    sampler = loader.sampler if loader.sampler is not None else getattr(loader.batch_sampler, "sampler", None)
    return isinstance(sampler, RandomSampler) and sampler.generator is None and loader.generator is None


def _cut(found: Any, size: int) -> Iterable[Any]:
    if isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(part, Tensor) for part in found):
        x, y = found
        if not x.dim() or not y.dim() or len(x) != len(y):
            raise ValueError(f"x has the shape {tuple(x.shape)} and y {tuple(y.shape)}; the first axes are the samples")
        return zip(x.split(size), y.split(size), strict=True)
    return DataLoader(found, batch_size=size) if isinstance(found, Dataset) else found


def load_count(spec: str | None) -> Any:
    """Return how many loss terms batches hold: a number for each, or what ``module:function`` says of ``(x, y)``.

    Raises:
        ValueError: for another text.
    """
    if spec is None:
        return None
    if ":" in spec:
        made = usercode.find(spec, "count")
        return wraps(made.value)(lambda *batch: made(*batch)) if callable(made.value) else made.value
    try:
        return float(spec)
    except ValueError:
        raise ValueError(f"count {spec!r}: give a number, which every batch counts, or file.py:function of (x, y) that "
                         "returns the number of samples, or of terms which the loss averages over.") from None
