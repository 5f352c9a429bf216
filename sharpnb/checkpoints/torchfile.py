"""A torch file is read without running any code in it, and only if it is whole.

A pickle names classes and functions and says what to call them with. Weights need tensors and plain values alone, so
that every other name gets a stand-in of ours: an :class:`Inert`, or a mapping where the file fills it as one. NumPy's
arrays and scalars are read as they are, because some people store weights as arrays. Nothing is imported.
"""

from __future__ import annotations

import fnmatch
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module")
_ADVICE = re.compile(r"weights_only|Weights only load failed|file an issue")
_FILLED = re.compile(r"Can only SETITEMS? for .* but got <class '(.+)'>")

# Patterns of names that training scripts store beside the weights.
KNOWN = (
    # Python's own: settings, paths, times, numbers, containers
    "argparse.Namespace", "types.SimpleNamespace", "pathlib.*", "datetime.*", "decimal.Decimal", "fractions.Fraction",
    "uuid.UUID", "collections.*", "re._compile", "zoneinfo.ZoneInfo*", "time.struct_time", "functools.partial",
    "signal.Signals", "http.HTTPStatus", "numbers.*", "string.Template", "array._array_reconstructor", "array.array",
    *(f"builtins.{name}" for name in ("list", "tuple", "dict", "frozenset", "range", "slice", "object", "int", "float",
                                      "long", "bool", "str", "unicode", "bytes", "type", "Ellipsis", "NotImplemented")),
    # PyTorch and its companions: classes named in settings, schedulers, metrics
    "torch.*", "torchvision.*", "torchmetrics.*", "numpy.random.*", "numpy.ma.*", "numpy.ufunc", "numpy.*.ufunc",
    "pytorch_lightning.*", "lightning.*", "lightning_fabric.*", "lightning_utilities.*", "transformers.*",
    "accelerate.*", "timm.*", "peft.*", "deepspeed.*", "apex.*",
    # containers of settings
    "omegaconf.*", "hydra.*", "yacs.*", "easydict.*", "addict.*", "ml_collections.*", "munch.*", "box.*", "attrdict.*",
    "mmengine.*", "mmcv.*", "detectron2.*", "fvcore.*", "wandb.*", "attr.*", "attrs.*", "pandas.*",
)


class Inert(list):
    """Stands for an object and does nothing.

    It is a list because PyTorch's reader appends to lists alone; a list made of its own class is filled in this way.
    """

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        """Forget it."""

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return id(self)  # it may be a key, as what it stands for was


def stand_in(name: str, mapping: bool = False) -> Callable[..., Any]:
    """Return what a file gets for the class or function ``name``."""
    if mapping:  # a class whose instances are plain mappings: the only ones that PyTorch's reader fills
        return type(name, (), {"__module__": "builtins", "__new__": lambda cls, *_: OrderedDict()})
    return type(name, (Inert,), {"__module__": "builtins"})


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns is that name."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@cache
def numpys() -> dict[str, Any]:
    """Return name -> what NumPy's arrays and scalars are made of, under the names of NumPy 1 and 2."""
    made: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype}
    for kind in {type(np.dtype(code)) for code in np.typecodes["All"]}:
        made[f"numpy.dtypes.{kind.__name__}"] = kind
    rebuild, scalar = (thing.__reduce__()[0] for thing in (np.zeros(1), np.float64(0)))
    for folder in ("numpy._core", "numpy.core"):
        made |= {f"{folder}.multiarray._reconstruct": rebuild, f"{folder}.multiarray.scalar": scalar}
    return made


def read(path: Path, allow: Sequence[str] = ()) -> Any:
    """Return what is in a torch file (``weights_only=True``), on the CPU.

    Tensors, NumPy's arrays and plain values are read as they are. Objects of the classes that training scripts store
    (:data:`KNOWN`, and those of the names or patterns ``allow``) are read as inert things; every other is refused.

    PyTorch writes a checksum with each tensor and does not look at it when it reads: a turned bit would go unnoticed.

    Raises:
        OSError: if there is no such file, or it may not be read.
        ValueError: if it is no torch file, is damaged, or needs code to be read.
    """
    with path.open("rb") as file:
        try:
            whole = zipfile.is_zipfile(file)  # files from before PyTorch 1.6 are none, and have no checksums
            if whole:
                _check(file)
        except Exception as error:
            raise _unread(path, error) from error
        named: dict[str, Callable[..., Any]] = dict(numpys())
        missing = _foreign(file) if whole else set()
        while True:
            named |= {name: stand_in(name) for name in _allowed(path, missing - set(named), allow)}
            file.seek(0)
            try:
                with warnings.catch_warnings(), safe_globals([(thing, name) for name, thing in named.items()]):
                    warnings.simplefilter("ignore")  # what matters in them is said below, for a user
                    return torch.load(file, map_location="cpu", weights_only=True)
            except Exception as error:  # a pickle, zip, system, runtime or end-of-file error, as the damage has it
                refused, filled = _REFUSED.search(str(error)), _FILLED.search(str(error))
                name = refused[1] if refused else ""
                missing = {name if "." in name else f"builtins.{name}"} - set(named) if name else set()
                if filled and filled[1] in named:
                    named[filled[1]] = stand_in(filled[1], mapping=True)
                elif not missing:
                    raise _unread(path, error) from error


def _allowed(path: Path, names: set[str], allow: Sequence[str]) -> set[str]:
    if refused := sorted(name for name in names if not matches(name, (*KNOWN, *allow))):
        raise ValueError(
            f"{path} holds objects of classes that are not read: {', '.join(refused[:6])}"
            f"{', …' if len(refused) > 6 else ''}. Only tensors, arrays and plain values are, so that no code in a "
            "file is run. Pass over them: --allow-class " + " --allow-class ".join(map(repr, refused[:3]))
            + " (their code is not run either). Or save model.state_dict() alone.")
    return names


def _foreign(file: IO[bytes]) -> set[str]:
    """Return the classes and functions that a file names and PyTorch does not know, where that can be told."""
    file.seek(0)
    try:
        return set(get_unsafe_globals_in_checkpoint(file))
    except Exception:  # TorchScript, another kind of pickle, damage: told when the file is read
        return set()


def _unread(path: Path, error: Exception) -> ValueError:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if found := _BLOCKED.search(text):
        return ValueError(f"{path} is not read: it would call {found[1]}, which can do anything to this machine. Do "
                          "not load it anywhere. Ask whoever made it for model.state_dict() alone.")
    if "TorchScript" in text:
        return ValueError(f"{path} is not read: it is a TorchScript program, and no code in a file is run. If you "
                          "trust it, call torch.jit.load in a function of your own and name that as the model.")
    if "must be imported to load" in text:
        return ValueError(f"{path} is not read: it holds shards (DTensor) of a run on several devices. Save the whole "
                          "state there: get_model_state_dict(model, options=StateDictOptions(full_state_dict=True)).")
    if "Unsupported operand" in text:
        return ValueError(f"{path} is not read: it is no torch file, is damaged, or was saved in another "
                          "form of pickle. Save model.state_dict() anew, with pickle_protocol=2, PyTorch's default.")
    text = text.rpartition("WeightsUnpickler error:")[2]  # what stands before it is advice to read without weights_only
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _ADVICE.search(line)]
    reason = (lines or [type(error).__name__])[0][:200].rstrip(".")
    return ValueError(f"{path} is not read: {reason}. Only whole torch files of tensors and plain values are; no code "
                      "in a file is run. Save model.state_dict() anew; the state of a run can be deleted.")


def _check(file: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as archive:
        if broken := archive.testzip():
            raise ValueError(f"the checksum of its part {broken} is another. It is damaged, or was saved under "
                             "torch.serialization.set_crc32_options(False)")
