"""What a word was meant to be."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def near(word: Any, words: Iterable[str]) -> str:
    """Return ``" Did you mean 'seed'?"`` for a near miss, else nothing."""
    found = get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
