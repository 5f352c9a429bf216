"""Files of weights by their kind: PyTorch's, safetensors, one file or several with an index, or the folder of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sharpnb.checkpoints import torchfile

# What a folder is looked through for, in this order: the names that Hugging Face's libraries write.
IN_FOLDERS = (
    "model.safetensors.index.json", "model.safetensors", "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json", "pytorch_model.bin",
)


def read(path: str | Path, allow: Sequence[str] = ()) -> Any:
    """Return what is in a checkpoint, on the CPU; no code in it is run.

    Args:
        path: a torch file, a safetensors file, the index of a checkpoint in several files (``….index.json``), or a
            folder that holds one of :data:`IN_FOLDERS`.
        allow: names, or patterns, of classes to read as inert things; see :func:`sharpnb.checkpoints.torchfile.read`.

    Raises:
        ValueError: if there is no such file, if it is damaged or needs code to be read, or if safetensors is missing.
    """
    path = Path(path)
    if path.is_dir():
        path = _of_folder(path)
    try:
        if path.suffix == ".safetensors":
            return _safetensors(path)
        return _shards(path, allow) if path.suffix == ".json" else torchfile.read(path, allow)
    except FileNotFoundError as error:
        raise ValueError(f"checkpoint {path}: there is no such file.") from error
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror or error}.") from error


def _of_folder(folder: Path) -> Path:
    if found := next((folder / name for name in IN_FOLDERS if (folder / name).is_file()), None):
        return found
    if (folder / ".metadata").is_file():
        raise ValueError(f"checkpoint {folder} is one of torch.distributed.checkpoint. Make one file of it: python -m "
                         f"torch.distributed.checkpoint.format_utils dcp_to_torch {folder} whole.pt")
    raise ValueError(f"checkpoint {folder} is a folder without any of {', '.join(IN_FOLDERS)}. Name the file itself.")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ValueError(f"checkpoint {path} needs the package safetensors: pip install 'sharpnb[safetensors]'"
                         ) from error
    try:
        return load_file(path)
    except (SafetensorError, KeyError, ValueError) as error:  # a header that is none, or a type that PyTorch has not
        raise ValueError(f"{path} is not read: {error}. It is no whole safetensors file; copy or save it anew."
                         ) from error


def _shards(index: Path, allow: Sequence[str]) -> dict[str, Tensor]:
    """Return the tensors of the files that an index names, each from the file that it is said to be in."""
    try:
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in where.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of a checkpoint in several files: it must hold a \"weight_map\" from "
                         "names to files.") from error
    state: dict[str, Tensor] = {}
    for file in dict.fromkeys(names.values()):
        if Path(file).name != file:
            raise ValueError(f"{index} names {file!r}: the files of a checkpoint lie beside its index.")
        held = read(index.parent / file, allow)
        for name in (name for name, place in names.items() if place == file):
            if name not in held:
                raise ValueError(f"checkpoint {index} says that {name} is in {file}, and it is not. Index and files "
                                 "are of different checkpoints, or one is damaged.")
            state[name] = held[name]
    return state
