"""The bar of a training, where one can be drawn."""

from __future__ import annotations

import os
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
