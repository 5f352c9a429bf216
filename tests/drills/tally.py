"""A drill does one kind of harm again and again, as a seed has it, and counts what came of it.

In the environment: ``SHARPNB_DRILL_SEED`` for other moments and places, ``SHARPNB_DRILL_TIMES`` for so many times the
tries (``make drills``).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

SEED, TIMES = (int(os.environ.get(f"SHARPNB_DRILL_{name}", default)) for name, default in (("SEED", 0), ("TIMES", 1)))


@dataclass
class Drill:
    """What is done, how often, and what came of it; ``control`` says what happens without the protection."""

    what: str = ""
    harm: str = ""
    tried: int = 0
    survived: int = 0
    kept: int = 0
    controls: list[str] = field(default_factory=list)

    def tries(self, what: str, harm: str, number: int) -> Iterator[random.Random]:
        """Yield a source of chance for each try; the body calls :meth:`stands` and :meth:`whole`, or fails."""
        self.what, self.harm = what, harm
        for _ in range(number * TIMES):
            self.tried += 1
            yield self._luck(self.tried)

    def same(self) -> Iterator[random.Random]:
        """Yield the chances of the tries once more, for the control."""
        return map(self._luck, range(1, self.tried + 1))

    def _luck(self, number: int) -> random.Random:
        return random.Random(f"{SEED} {self.what} {number}")

    def stands(self) -> None:
        """Count a try that was survived: the next call finished, or said what is wrong and what to do."""
        self.survived += 1

    def whole(self) -> None:
        """Count a try that lost nothing: what was done before is there, bit for bit."""
        self.kept += 1

    def control(self, what: str, lost: int, tried: int | None = None) -> None:
        """Note how often the same harm hurts without the protection; a drill that never could is no drill."""
        self.controls.append(f"{what}: {lost} of {tried or self.tried}")
        assert lost, f"{what} was to be hurt in {tried or self.tried} tries and was not: the drill proves nothing"

    def skip(self, reason: str) -> None:
        """Leave the drill out, and say so on the page."""
        self.controls.append(f"left out here: {reason}")
        pytest.skip(reason)
