"""From a file into a model, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from sharpnb.checkpoints.fitting import fit, suits
from sharpnb.checkpoints.states import Ambiguous, find


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
        fitting = {place: state for place, state in found.items() if suits(model, state)}
        if len(fitting) != 1:
            raise Ambiguous(str(path), fitting or found)
        found, others = fitting, [place for place in found if place not in fitting]
        notes = [f"The weights are those in {next(iter(found))!r}; {', '.join(map(repr, others))} fit another network."]
    place, state = next(iter(found.items()))
    try:
        return notes + fit(
            model, state, str(path), allow_missing=allow_missing, allow_unexpected=allow_unexpected)
    except Ambiguous as error:
        choices = {f"{place}.{inner}".lstrip("."): tower for inner, tower in error.choices.items()}
        raise Ambiguous(str(path), choices) from None
