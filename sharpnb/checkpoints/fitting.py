"""Weights into a model whose names differ by wrappers: matched, loaded by the model's own ``load_state_dict``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sharpnb.checkpoints.names import below, plain, plainly, prefixes, versions_of
from sharpnb.checkpoints.states import EXTRA, Ambiguous, equal, find
from sharpnb.checkpoints.torchfile import matches

# Entries that say nothing about a network's function: AveragedModel's counter, the buffers of thop's profiler, the
# numbers 0, 1, 2, … that older versions of Hugging Face's models stored.
COUNTERS = ("n_averaged", "total_ops", "total_params", "position_ids")
USUAL = ("", "model.", "net.")  # what may stand before all names without a word: Lightning's modules hold a network so


def load(
    model: nn.Module, path: str | Path, key: str | None = None, *, allow_classes: Sequence[str] = (),
    allow_missing: Sequence[str] = (), allow_unexpected: Sequence[str] = (),
) -> list[str]:
    """Load a checkpoint into ``model`` and return what is worth a word.

    Of several state dicts in the file the one is taken that fits the model, and it is said which. Where several fit
    (a model and its average, student and teacher) none is chosen.

    Arguments as of :func:`sharpnb.checkpoints.states.find`, whose ``allow`` is ``allow_classes`` here, and of
    :func:`sharpnb.checkpoints.fit`.

    Raises:
        ValueError: if the file cannot be read, has no state dict, or does not fit.
        Ambiguous: if several fit.
    """
    found, notes = find(path, key, allow_classes), []
    if len(found) > 1:
        fitting = {place: state for place, state in found.items() if _suits(model, state)}
        if len(fitting) != 1:
            raise Ambiguous(str(path), fitting or found)
        found, others = fitting, [place for place in found if place not in fitting]
        notes = [f"The weights are those in {next(iter(found))!r}; {', '.join(map(repr, others))} fit another network."]
    place, state = next(iter(found.items()))
    try:
        return notes + fit(model, state, str(path), allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    except Ambiguous as error:
        choices = {f"{place}.{inner}".lstrip("."): tower for inner, tower in error.choices.items()}
        raise Ambiguous(str(path), choices) from None


def fit(
    model: nn.Module, state: Mapping[str, Any], path: str = "the checkpoint", *, allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> list[str]:
    """Load ``state`` into ``model``, whatever wrappers put into the names, and return what is worth a word.

    Names are compared in the plain form that is left without :data:`~sharpnb.checkpoints.names.WRAPPERS`. What stands
    before all names of the model (``model.``, ``net.``, ``encoder.``) is found by comparing, and what does not begin
    with it is passed over. Then the model's own ``load_state_dict`` is asked, with its hooks that convert older files.

    Args:
        model: the network. Weights on the meta device are replaced by the file's.
        state: name -> tensor, and ``_extra_state`` entries.
        path: what the messages call the file.
        allow_missing: patterns of names of the model that may be missing; they stay as the model was built.
        allow_unexpected: patterns of names that are passed over in the file.

    Returns:
        Sentences: where in the file the weights were, what was passed over, what stayed as it was built.

    Raises:
        ValueError: if names or shapes differ; the message has the first of them, and the option to use.
        Ambiguous: if the file holds the network several times (student and teacher, a model and its average).
    """
    given, prefix, outside, others = _matched(model, state, path)
    allowed = [name for name in given if matches(name, allow_unexpected)]
    for name in allowed:
        del given[name]
    _share_tied(model, given, path)
    meta = any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    try:
        result = model.load_state_dict(given, strict=False, **({"assign": True} if meta else {}))
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not fit the model: {_shapes(model, given) or str(error).strip()}") from error
    missing: list[str] = list(getattr(result, "missing_keys", ()))  # a method of one's own may return nothing
    foreign: list[str] = list(getattr(result, "unexpected_keys", ()))
    kept = [name for name in missing if matches(name, allow_missing)]
    missing = [name for name in missing if name not in kept]
    unexpected = [name for name in foreign if not _is_passed_over(name, given)]
    if missing or unexpected:
        raise ValueError(_unfit(path, missing, unexpected, others))
    return [*([] if prefix in USUAL else [f"The weights are those below {prefix.rstrip('.')!r}."]),
            *(f"{_some(names, what)}." for names, what in (
                (kept, "stay as the model was built"), ([*outside, *foreign, *allowed], "in the file are passed over"))
              if names)]


def _suits(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether ``state`` has every weight of ``model``, in its shape."""
    try:
        given = _matched(model, state, "")[0]
    except Ambiguous:
        return True
    return all(name in given and _fits(tensor, given[name]) for name, tensor in model.named_parameters())


def _matched(
    model: nn.Module, state: Mapping[str, Any], path: str
) -> tuple[OrderedDict[str, Any], str, list[str], list[str]]:
    """Return the state under the model's names, with its modules' versions, by which PyTorch converts it.

    With it what stands before the names in the file and not in the model, the file's names that do not begin so, and
    other beginnings below which the file has the network too.
    """
    own, held = plainly(model.state_dict()), plainly(state)
    lead, best, most = prefixes(own, held)
    known = 2 * most > len(own)  # most of the model's names are there
    prefix = best[0] if len(best) == 1 else ""
    if len(best) > 1 and "" not in best and known:
        short = {name[len(lead):]: mine for name, mine in own.items() if name.startswith(lead)}
        prefix = _only(model, short, held, state, best, path)
    given: OrderedDict[str, Any] = OrderedDict()
    for name in (name for name in held if name.startswith(prefix)):
        mine = lead + name[len(prefix):]
        given[own.get(mine, mine)] = state[held[name]]
    if versions := {plain(name): version for name, version in versions_of(state).items()}:
        theirs = {name: f"{prefix}{plain(name)[len(lead):]}".rstrip(".")
                  for name, _ in model.named_modules() if f"{plain(name)}.".startswith(lead)}
        vars(given)["_metadata"] = OrderedDict(
            (mine, versions[name]) for mine, name in theirs.items() if name in versions)
    outside = [original for name, original in held.items() if not name.startswith(prefix)]
    return given, prefix, outside, [other for other in best if other != prefix] if known else []


def _only(
    model: nn.Module, own: Mapping[str, str], held: Mapping[str, str], state: Mapping[str, Any], best: list[str],
    path: str,
) -> str:
    """Return the one prefix below which the shapes fit too, or the first if the weights are the same below each."""
    mine = model.state_dict()
    fitting = [prefix for prefix in best if all(
        _fits(mine[own[name]], state[held[prefix + name]]) for name in own if prefix + name in held)]
    towers = {prefix.rstrip("."): below(state, prefix.rstrip(".")) for prefix in fitting or best}
    first, *rest = towers.values()
    if not all(equal(first, tower) for tower in rest):
        raise Ambiguous(path, towers)
    return (fitting or best)[0]


def _fits(mine: Any, theirs: Any) -> bool:
    both = isinstance(mine, Tensor) and isinstance(theirs, Tensor) and not is_lazy(mine)
    return not both or mine.shape == theirs.shape


def _share_tied(model: nn.Module, given: dict[str, Any], path: str) -> None:
    """Give tied entries, such as a head that is its embedding, the one tensor that the file has of them."""
    groups: dict[int, list[str]] = {}
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in tensors.items():
        groups.setdefault(id(tensor), []).append(name)
    for names in groups.values():
        there = [name for name in names if isinstance(given.get(name), Tensor)]
        if len(names) < 2 or not there:
            continue
        for name in there[1:]:
            if not torch.equal(given[there[0]], given[name]):
                raise ValueError(f"{path} does not fit the model: {there[0]} and {name} are one tensor in the model, "
                                 "and two that differ in the file. Build the model without tying them.")
        one = nn.Parameter(given[there[0]], requires_grad=tensors[names[0]].requires_grad)
        given.update(dict.fromkeys(names, one))


def _is_passed_over(name: str, given: Mapping[str, Any]) -> bool:
    """Whether an entry that the model has not got says nothing about its function."""
    if name.endswith(EXTRA) or name.rpartition(".")[2] in COUNTERS:
        return True
    value = given[name]  # a matrix that is there twice: a head that the model ties without an entry of its own
    return isinstance(value, Tensor) and value.dim() > 1 and any(
        isinstance(other, Tensor) and key != name and other.shape == value.shape and torch.equal(other, value)
        for key, other in given.items())


def _shapes(model: nn.Module, given: Mapping[str, Any]) -> str:
    own = model.state_dict()
    names = [name for name in own if isinstance(given.get(name), Tensor) and not _fits(own[name], given[name])]
    differ = [f"{name} is {tuple(given[name].shape)} in the file and {tuple(own[name].shape)} in the model"
              for name in names[:3]]
    return (f"{'; '.join(differ)}. Is the number of classes or the width another one? "
            f"{_option('--allow-unexpected', names)} {_option('--allow-missing', names)} leaves them as the model was "
            "built.") if differ else ""


def _unfit(path: str, missing: list[str], unexpected: list[str], others: list[str]) -> str:
    wrong = [(names, fault, f"{_option(option, names)} {effect}.") for names, fault, option, effect in (
        (missing, "are missing in the file", "--allow-missing", "leaves them as the model was built"),
        (unexpected, "are not in the model", "--allow-unexpected", "passes over them")) if names]
    too = [f"The file has the network below {', '.join(map(repr, others))} too: see --key."] if others else []
    told = "; ".join(_some(names, fault) for names, fault, _ in wrong)
    return f"{path} does not fit the model: {told}. {' '.join([*(remedy for _, _, remedy in wrong), *too])}"


def _option(option: str, names: list[str]) -> str:
    """Return an option with patterns of names: a name itself, or what several begin with."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0].partition("_")[0], []).append(name)
    patterns = [group[0] if len(group) == 1 else f"{commonprefix(group)}*"  # noqa: RUF071 (these are no paths)
                for group in groups.values()]
    return " ".join(f"{option} {pattern!r}" for pattern in (patterns if len(patterns) <= 4 else ["*"]))


def _some(names: list[str], what: str) -> str:
    return f"{len(names)} entries {what}: {', '.join(names[:4])}{', …' if len(names) > 4 else ''}"
