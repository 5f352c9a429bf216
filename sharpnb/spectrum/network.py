"""The network and the loss of a measurement, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sharpnb import checkpoints, usercode
from sharpnb.devices import pick_device
from sharpnb.near import near
from sharpnb.spectrum.preflight import not_on_meta

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": nn.functional.cross_entropy, "mse": nn.functional.mse_loss,
    "binary_cross_entropy": nn.functional.binary_cross_entropy_with_logits,
}


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
        raise ValueError(f"model {name!r} is no model of torchvision.{near(name, known)} Name one, or write "
                         "module:function for your own.")
    options = {} if classes is None else {"num_classes": classes}
    try:
        return models.get_model(name, weights=weights, **options)
    except (KeyError, ValueError, TypeError) as error:
        allowed = ", ".join(entry.name for entry in models.get_model_weights(name))
        raise ValueError(f"model {name!r} with weights {weights!r} and {classes or 'its own'} classes: {error}. "
                         f"Weights there are: {allowed}, DEFAULT.") from error


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


def placed(model: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Return the model on a device, its floating-point weights of one type.

    Raises:
        ValueError: if there is no such device, or the model has weights that were never made.
    """
    not_on_meta(model)
    return model.to(pick_device(device), dtype)


def float_type(name: str) -> torch.dtype:
    """Return ``torch.float32`` or ``torch.float64`` by name.

    Raises:
        ValueError: for another name.
    """
    if name not in ("float32", "float64"):
        raise ValueError(f"dtype {name!r}: choose float32 or float64.")
    return getattr(torch, name)
