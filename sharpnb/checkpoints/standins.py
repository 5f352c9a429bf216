"""What else is in a training run's file: objects beside the weights, read as inert things of the same name.

A pickle names classes and functions and says what to call them with. Weights need tensors and plain values alone, so
that every other name gets a stand-in of ours: an :class:`Inert`, or a mapping where the file fills it as one.
NumPy's arrays and scalars are read as they are, because some people store weights as arrays. Nothing is imported, and
no code that a file names is run.
"""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import numpy as np

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
