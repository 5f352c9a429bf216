"""Progress bars, by tqdm."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any


def training_bar(steps: int, wanted: bool | None) -> Any:
    """Return ``range(steps)``, behind a bar where tqdm is installed; None shows it unless ``TQDM_DISABLE=1``."""
    tqdm = _tqdm(wanted)
    return range(steps) if tqdm is None else tqdm(range(steps), desc="training", leave=False, disable=False)


def bar(wanted: bool | None, total: int, label: str, unit: str, done: int = 0) -> Any:
    """Return a bar of tqdm's for ``total`` units, ``done`` of which were made before, with a ``label`` on its left.

    Where it is not wanted (``None`` as in :func:`training_bar`) it shows nothing; ImportError where tqdm is missing.
    """
    tqdm = _tqdm(wanted)
    if wanted and tqdm is None:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass progress=False.")
    return _Hidden() if tqdm is None else tqdm(total=total, desc=label, unit=unit, initial=done)


def _tqdm(wanted: bool | None) -> Any:
    """Return the class of the bar that is to be shown, if one is; tqdm heeds the variable in a terminal alone."""
    if wanted is False or (wanted is None and os.environ.get("TQDM_DISABLE") == "1"):
        return None
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm


class _Hidden(nullcontext):
    total = 0

    def __enter__(self) -> Any:
        return self

    def update(self, made: int) -> None:
        """Do nothing."""
