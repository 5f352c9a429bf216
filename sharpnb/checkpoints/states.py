"""Where in a file the weights are."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sharpnb.checkpoints import files
from sharpnb.checkpoints.names import below, is_network, versions_of
from sharpnb.checkpoints.torchfile import Inert

# Entries of a run's file that may hold tensors and are no network: whole names, and beginnings of names.
BESIDE = ("opt", "opts", "amp", "args", "config", "cfg", "hparams", "metrics", "history", "loops", "scaler")
BESIDE_TOO = ("optim", "lr_sched", "sched", "rng", "random_state", "callback", "hyper_param", "grad_scaler", "loss_sc")
# Entries that a network's tensors are mixed with in a state dict.
EXTRA = "_extra_state"


class Ambiguous(ValueError):
    """A file holds several networks, and none of them is chosen.

    Attributes:
        choices: place in the file -> state dict.
    """

    def __init__(self, path: str, choices: Mapping[str, dict[str, Any]]) -> None:
        self.choices = dict(choices)
        keys = ", ".join(f"--key {place}" for place in choices)
        super().__init__(f"{path} holds {len(choices)} networks, and they differ: choose one by {keys}.")


def find(path: str | Path, key: str | None = None, allow: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Return place -> state dict for those that a checkpoint holds, at every depth; copies of one count once.

    No code in the file is run. The average of :class:`sharpnb.averaging.SWA` counts with its BatchNorm statistics.

    Args:
        path: see :func:`sharpnb.checkpoints.read`.
        key: where to look, as in ``"state.model"``; the last part may be the beginning of names, as in
            ``"state_dict.teacher"``. Default: everywhere.
        allow: names, or patterns, of classes to read as inert things.

    Raises:
        ValueError: if the file cannot be read, or has no state dict there.
    """
    held = files.read(path, allow)
    if key is not None:
        within = _descend(held, key)
        if within is None:
            raise ValueError(f"checkpoint {path} has no entry {key!r}. It has {_entries(held)}.")
        held = within
    found = dict(_states(held, key or ""))
    if any(map(is_network, found.values())):
        found = {place: state for place, state in found.items() if is_network(state)}
    if not found:
        where = "It" if key is None else f"Its entry {key!r}"
        raise ValueError(f"checkpoint {path} holds no state dict{'' if key is None else f' under {key!r}'}: no mapping "
                         f"from names to tensors. {where} has {_entries(held)}; name the entry with --key, or save "
                         "model.state_dict().")
    different: dict[str, dict[str, Any]] = {}
    for place, state in found.items():
        if not any(equal(state, other) for other in different.values()):
            different[place] = state
    return different


def read_state(path: str | Path, key: str | None = None, allow: Sequence[str] = ()) -> dict[str, Any]:
    """Return the one state dict of a checkpoint: arguments and errors as of :func:`find`; several are Ambiguous."""
    found = find(path, key, allow)
    if len(found) > 1:
        raise Ambiguous(str(path), found)
    return next(iter(found.values()))


def equal(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two state dicts have the same tensors under the same names."""
    tensors = [{name: value for name, value in state.items() if isinstance(value, Tensor)} for state in (a, b)]
    return tensors[0].keys() == tensors[1].keys() and all(
        torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


def _numbered(held: Any) -> Any:
    """Return a list as the mapping from its places, everything else as it is."""
    several = isinstance(held, list | tuple) and not isinstance(held, Inert)
    return {str(k): value for k, value in enumerate(held)} if several else held


def _descend(held: Any, key: str) -> Any:
    held = _numbered(held)
    if not isinstance(held, Mapping):
        return None
    if key in held:
        return held[key]
    parts = key.split(".")
    for k in range(len(parts) - 1, 0, -1):
        found = _descend(held.get(".".join(parts[:k])), ".".join(parts[k:]))
        if found is not None:
            return found
    return below(held, key) or None


def _states(held: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each state dict in a tree with its place, the innermost where one stands among the entries of another."""
    state, tree = _as_state(held), _numbered(held)
    inner: list[tuple[str, dict[str, Any]]] = []
    if isinstance(tree, Mapping) and not is_average(tree):
        for name, value in tree.items():
            if isinstance(name, str) and not (name.lower() in BESIDE or name.lower().startswith(BESIDE_TOO)):
                inner += _states(value, f"{place}.{name}".lstrip("."))
    yield from inner or ([(place, state)] if state is not None else [])


def is_average(held: Any) -> bool:
    """Whether ``held`` is the state of :class:`sharpnb.averaging.SWA`."""
    return isinstance(held, Mapping) and {"n", "decay", "average", "statistics"} == set(held)


def _as_state(held: Any) -> dict[str, Any] | None:
    """Return ``held`` as a state dict if it is one in any of the forms that are written."""
    if is_average(held):
        return OrderedDict({**held["average"], **held["statistics"]}) or None
    if not isinstance(held, Mapping) or not all(isinstance(name, str) for name in held):
        return None
    tensors = {name for name, value in held.items() if isinstance(value, Tensor | np.ndarray)}
    mixed = any(name not in tensors and not name.endswith(EXTRA) for name in held)
    if not any(_is_floating(held[name]) for name in tensors) or (mixed and not is_network(tensors)):
        return None  # measurements, a random state, settings
    state = OrderedDict((name, torch.as_tensor(value) if isinstance(value, np.ndarray) else value)
                        for name, value in held.items() if name in tensors or name.endswith(EXTRA))
    vars(state)["_metadata"] = versions_of(held)
    return state


def _is_floating(value: Any) -> bool:
    return value.is_floating_point() or value.is_complex() if isinstance(value, Tensor) else value.dtype.kind in "fc"


def _entries(held: Any) -> str:
    if not isinstance(held, Mapping):
        return f"a {type(held).__name__}"
    shown = ", ".join(f"{k!r} ({type(v).__name__})" for k, v in list(held.items())[:12])
    return (shown or "no entries") + (", …" if len(held) > 12 else "")
