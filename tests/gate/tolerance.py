"""Numbers in stored outputs, compared within a tolerance.

nbval compares text. A cell tagged ``rtol=1e-3``, ``atol=1e-6``
or both has the numbers in its outputs compared as ``|new - stored| <= atol + rtol |stored|``, and all text between them
exactly, up to the width of blanks (a table's columns move with their entries). Without a tag everything is exact.

It rests on one habit of nbval 0.11.0, that both sides of a comparison pass through ``item.sanitize`` first; the pin in
pyproject.toml and ``tests/unit/gate`` hold it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

# A number stands by itself: the 1 of "conv1" or of "00_index" is text.
_NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\w]*_)|(?<!\w)[-+−]?(?:nan|inf)\b")


class Tolerant(str):
    """A text that equals another one when the words are the same and the numbers close."""

    rtol: float
    atol: float

    def __new__(cls, text: str, rtol: float, atol: float) -> Tolerant:
        """Make one; ``rtol`` is relative to this text's number, the stored one."""
        made = super().__new__(cls, text)
        made.rtol, made.atol = rtol, atol
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        (words, numbers), (other_words, other_numbers) = _split(self), _split(other)
        return words == other_words and all(map(self._close, numbers, other_numbers))

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def _close(self, stored: float, new: float) -> bool:
        if not (math.isfinite(stored) and math.isfinite(new)):
            return repr(stored) == repr(new)
        return abs(new - stored) <= self.atol + self.rtol * abs(stored)


def of_tags(tags: Iterable[str]) -> tuple[float, float] | None:
    """Return ``(rtol, atol)`` that the tags state, or None where they state neither.

    Raises:
        ValueError: for a tolerance that is not a positive number; a relative one must also be below 1.
    """
    stated = {}
    for tag in tags:
        name, equals, text = tag.partition("=")
        if name in ("rtol", "atol") and equals:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not 0 < value < (1 if name == "rtol" else math.inf):
                raise ValueError(f"tag {tag!r}: a tolerance is a number above 0 (rtol: below 1), as in rtol=1e-3.")
            stated[name] = value
    return (stated.get("rtol", 0.0), stated.get("atol", 0.0)) if stated else None


def tolerant(sanitize: Callable[[Any], Any], rtol: float, atol: float) -> Callable[[Any], Any]:
    """Wrap nbval's ``item.sanitize`` so that what it returns compares with tolerance."""

    def wrapped(text: Any) -> Any:
        clean = sanitize(text)
        return Tolerant(clean, rtol, atol) if isinstance(clean, str) else clean

    return wrapped


def _split(text: str) -> tuple[str, list[float]]:
    """Return the text with every number replaced by one mark and blanks joined, and the numbers."""
    numbers = [float(match.group().replace("−", "-")) for match in _NUMBER.finditer(text)]
    return re.sub(r"[ \t]+", " ", _NUMBER.sub("#", text)), numbers
