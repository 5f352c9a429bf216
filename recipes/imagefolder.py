"""Folders of images and published networks, for ``imagenet.py``; torchvision does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sharpnb.checkpoints import torchfile
from sharpnb.lab.data import DataError

AUGMENTS = ("crop", "none")


def folders(root: Path) -> tuple[Any, Any]:
    """Return the images of ``root/train`` and ``root/val`` as torchvision's ``ImageFolder``, without transforms.

    Raises:
        DataError: if a folder, its classes or their images are missing, or the two have different classes.
    """
    from torchvision.datasets import ImageFolder

    try:
        train, val = (ImageFolder(str(root / name)) for name in ("train", "val"))
    except FileNotFoundError as error:
        raise DataError(f"{root} cannot be used: {error}. Expected are images in {root}/train/<class>/ and "
                        f"{root}/val/<class>/, the same classes in both.") from error
    if alone := sorted(set(train.classes) ^ set(val.classes)):
        raise DataError(f"{root}: the classes {', '.join(alone[:5])} are in one of train/ and val/ alone.")
    return train, val


def network(name: str, weights: str, classes: int, new_head: bool, seed: int) -> tuple[nn.Module, Any]:
    """Return a network of torchvision for ``classes`` classes, and the preprocessing of its weights (or None).

    New weights depend on ``seed`` alone, and the global random state stays as it was.

    Args:
        name: as in ``torchvision.models.list_models()``.
        weights: ``"none"``; ``"DEFAULT"`` or another name of published weights; or a file: a state dict, or a
            checkpoint of ``imagenet.py``.
        classes: number of classes of the images.
        new_head: draw the last linear layer anew, which a network with another number of classes needs.
        seed: of everything that is drawn.

    Raises:
        ValueError: for an unknown network or weights, a file that does not fit, or a head that does not.
        DataError: if the published weights are not on this machine and cannot be fetched.
    """
    from torchvision.models import get_model, get_model_weights, list_models

    if name not in list_models():
        raise ValueError(f"model = {name!r} is not in torchvision.models; e.g. efficientnet_b0 … b7, resnet50.")
    published, state, known = None, None, get_model_weights(name)
    if Path(weights).is_file():
        state = torchfile.read(Path(weights))
        state = state.get("model", state)
    elif weights != "none":
        if weights not in known.__members__:
            raise ValueError(f"weights = {weights!r} is neither a file nor published for {name}. Choose none, a file, "
                             f"or one of {', '.join(known.__members__)}.")
        published = known[weights]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = get_model(name, weights=None, num_classes=_classes(state) or 1000)
        _fill(net, name, published.get_state_dict if published else None, state)
        _fit_head(net, name, classes, new_head, drawn=published is None and state is None)
    return net, published.transforms() if published else None


def _fill(net: nn.Module, name: str, fetch: Any, state: dict[str, Any] | None) -> None:
    if fetch is not None:
        try:
            state = fetch(progress=False, check_hash=True)
        except (OSError, RuntimeError) as error:  # no network; or a file with a wrong hash
            raise DataError(
                f"The published weights of {name} are not under {torch.hub.get_dir()}/checkpoints and could not be "
                f"fetched ({error}). Put the file there (TORCH_HOME moves the place), name a file as weights, call "
                "again where a network is, or train from weights='none'."
            ) from error
    if state is not None:
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"The weights do not fit {name}: {str(error).splitlines()[-1].strip()}") from error


def _classes(state: dict[str, Any] | None) -> int | None:
    """Return the number of classes of a stored network: the length of its last bias."""
    return len([t for key, t in state.items() if key.endswith("bias")][-1]) if state else None


def _fit_head(net: nn.Module, name: str, classes: int, new_head: bool, drawn: bool) -> None:
    places = [place for place, module in net.named_modules() if isinstance(module, nn.Linear)]
    if not places:
        raise ValueError(f"model = {name!r} has no linear layer to put a new head in. Choose another network.")
    head = net.get_submodule(places[-1])
    assert isinstance(head, nn.Linear)
    if not new_head and not drawn and head.out_features != classes:
        raise ValueError(f"The weights are of {head.out_features} classes, the images of {classes}, and the head is to "
                         "be kept. Ask for a new head.")
    if new_head or head.out_features != classes:
        parent, _, child = places[-1].rpartition(".")
        setattr(net.get_submodule(parent), child, nn.Linear(head.in_features, classes, bias=head.bias is not None))


def set_transforms(train: Any, val: Any, preset: Any, resolution: int, augment: str) -> None:
    """Give both image folders their transforms, those of the published weights where there are any.

    Evaluation: the shorter side to 8/7 of the resolution (or what the weights say) and the middle cut out. Training:
    a random part of the image, scaled to the resolution, mirrored or not (``"crop"``); or as that (``"none"``).
    """
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        InterpolationMode,
        Normalize,
        RandomHorizontalFlip,
        RandomResizedCrop,
        Resize,
        ToTensor,
    )

    side = resolution or (preset.crop_size[0] if preset else 224)
    short = round(side * (preset.resize_size[0] / preset.crop_size[0] if preset else 8 / 7))
    how = preset.interpolation if preset else InterpolationMode.BILINEAR
    mean, std = (preset.mean, preset.std) if preset else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    tail = [ToTensor(), Normalize(mean, std)]
    val.transform = Compose([Resize(short, interpolation=how), CenterCrop(side), *tail])
    cropped = Compose([RandomResizedCrop(side, interpolation=how), RandomHorizontalFlip(), *tail])
    train.transform = val.transform if augment == "none" else cropped
