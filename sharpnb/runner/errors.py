"""What the runner refuses, in words for the person at the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RunnerError(RuntimeError):
    """Something that can be foreseen; the message says what was wrong, what is allowed and what to do."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return ``" Did you mean 'seed'?"`` for a near miss, else nothing."""
    match = get_close_matches(word, list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""
