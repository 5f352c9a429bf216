"""Progress bars, by tqdm."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any


def training_bar(steps: int, wanted: bool | None) -> Any:
    """Return ``range(steps)``, behind a bar where tqdm is installed and nobody said no.

    Args:
        steps: how many.
        wanted: True or False; None shows the bar unless the environment has ``TQDM_DISABLE=1``, as batch runs do.
    """
    if wanted is False:
        return range(steps)
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return range(steps)
    # tqdm itself heeds the variable in a terminal but not in a notebook.
    hidden = os.environ.get("TQDM_DISABLE") == "1" if wanted is None else False
    return tqdm(range(steps), desc="training", leave=False, disable=hidden)


def bar(wanted: bool, total: int, label: str, unit: str, done: int = 0) -> Any:
    """Return a bar of tqdm's that was asked for, or something that takes its calls and shows nothing.

    Args:
        wanted: whether to show it.
        total: how many units are expected.
        label: on its left.
        unit: what is counted.
        done: units made before, in a run that goes on.

    Raises:
        ImportError: if tqdm is missing.
    """
    if not wanted:
        return _Hidden()
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False.") from error
    return tqdm(total=total, desc=label, unit=unit, initial=done)


class _Hidden(nullcontext):
    total = 0

    def __enter__(self) -> Any:
        return self

    def update(self, made: int) -> None:
        """Do nothing."""
