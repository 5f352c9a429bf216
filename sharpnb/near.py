"""Short words for messages: what a word was meant to be, what an error said."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def near(word: Any, words: Iterable[str]) -> str:
    """Return ``" Did you mean 'seed'?"`` for a near miss, else nothing."""
    found = get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


def told(error: BaseException, line: int = 0) -> str:
    """Return an error's class and one line of its text, without the full stop."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[line].strip().rstrip('.')}" if lines else type(error).__name__
