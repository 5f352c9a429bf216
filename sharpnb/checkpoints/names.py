"""Names of weights: what wrappers put in, what stands before all of them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

# Parts of names that wrappers put in, wherever they stand: DataParallel and torch.optim.swa_utils.AveragedModel,
# torch.compile, FSDP, activation checkpointing, Lightning's Fabric.
WRAPPERS = (
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module", "_forward_module",
)


def plain(name: str) -> str:
    """Return a name without the parts that wrappers put in; a wrapper alone is the module inside, ``""``."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def plainly(names: Iterable[str]) -> dict[str, str]:
    """Return plain name -> name; where two names become one, every name stays as it is."""
    names = list(names)
    short = {plain(name): name for name in names}
    return short if len(short) == len(names) else {name: name for name in names}


def is_network(names: Iterable[str]) -> bool:
    """Whether names look like those of a module's parameters."""
    return any("." in name or name in ("weight", "bias") for name in names)


def below(state: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Return the entries whose names begin with ``head.``, without it, and the versions of their modules.

    The names are compared as they are, else in their plain form.
    """
    start = head + "."
    names = {name: name for name in state if isinstance(name, str)}
    if not any(name.startswith(start) for name in names):
        names = plainly(names)
    found = OrderedDict((short[len(start):], state[name]) for short, name in names.items() if short.startswith(start))
    versions = {plain(name): version for name, version in versions_of(state).items()}
    vars(found)["_metadata"] = OrderedDict(
        (name[len(plain(head)):].removeprefix("."), version) for name, version in versions.items()
        if name == plain(head) or name.startswith(f"{plain(head)}."))
    return found


def versions_of(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return module -> what PyTorch notes of its version; a state dict of plain Python has none."""
    versions = getattr(state, "_metadata", None)
    return versions if isinstance(versions, Mapping) else {}


def prefixes(own: Iterable[str], held: Iterable[str]) -> tuple[str, list[str], int]:
    """Return what stands before the names of a model and of a file where the two are the same but for that.

    Returns:
        What stands before most names of the model (such as ``model.``; usually nothing), what can stand before those
        in the file so that most of them meet, and how many do.
    """
    own, held, heads = list(own), list(held), [""]
    while True:
        last = heads[-1]
        deeper = [name[len(last):].partition(".") for name in own if name.startswith(last)]
        parts = Counter(part for part, dot, _ in deeper if dot)
        part, count = parts.most_common(1)[0] if parts else ("", 0)
        if part.isdigit() or 2 * count <= len(own):
            break
        heads.append(f"{last}{part}.")
    found = [(head, *_before({name[len(head):] for name in own if name.startswith(head)}, held)) for head in heads]
    return max(found, key=lambda entry: entry[2])  # the first of the best: the shortest


def _before(own: set[str], held: Iterable[str]) -> tuple[list[str], int]:
    counts: Counter[str] = Counter()
    for name in held:
        parts = name.split(".")
        for k in range(len(parts)):
            if ".".join(parts[k:]) in own:
                counts["".join(f"{part}." for part in parts[:k])] += 1
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == most], most
