"""Ways around what PyTorch refuses, for measurements that leave the network as they found it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

_REGISTRIES = frozenset(vars(nn.Module()))  # of every module: parameters, buffers, hooks, its mode


def eager() -> Any:
    """Run compiled parts of a network as they are written, inside the context.

    What was compiled before knows nothing of hooks that came later, and has no second derivative.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def without(*backends: Any) -> Iterator[None]:
    """Switch vendors' kernels off inside: ``torch.backends.cudnn``, ``torch.backends.mkldnn``; nothing else of theirs.

    Some have no second derivative. Their own ``flags()`` would set TF32 and benchmarking too.
    """
    before = [(backend, backend.enabled) for backend in backends]
    try:
        for backend, _ in before:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in before:
            backend.enabled = enabled


@contextmanager
def kept_attributes(model: nn.Module) -> Iterator[None]:
    """Leave the plain attributes of all modules as they were found, and the entries of lists and dictionaries.

    A forward pass writes there: the weight that ``weight_norm`` or a pruned layer computes, tables that a network makes
    for itself the first time, in the type that it then runs in. Parameters, buffers and modes are not touched.
    """
    before = []
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if name not in _REGISTRIES}
        entries = {name: value.copy() for name, value in own.items() if type(value) in (list, dict)}
        before.append((vars(module), own, entries))
    try:
        yield
    finally:
        for now, own, entries in before:
            for name in now.keys() - own.keys() - _REGISTRIES:
                del now[name]
            now.update(own)
            for name, value in entries.items():
                own[name].clear()
                own[name].extend(value) if isinstance(value, list) else own[name].update(value)
