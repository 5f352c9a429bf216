"""A drill does one kind of harm again and again, as a seed has it, and counts what came of it.

In the environment: ``SHARPNB_DRILL_SEED`` for other moments and places, ``SHARPNB_DRILL_TIMES`` for so many times the
tries (``make drills``).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

SEED, TIMES = (int(os.environ.get(f"SHARPNB_DRILL_{name}", default)) for name, default in (("SEED", 0), ("TIMES", 1)))


@dataclass
class Drill:
    """What is done, and how often; ``control`` says what happens without the protection."""

    what: str = ""
    tried: int = 0

    def tries(self, what: str, harm: str, number: int) -> Iterator[random.Random]:
        """Yield a source of chance for each try; ``harm`` says to a reader what is done to ``what``."""
        self.what = what
        for _ in range(number * TIMES):
            self.tried += 1
            yield self._luck(self.tried)

    def same(self) -> Iterator[random.Random]:
        """Yield the chances of the tries once more, for the control."""
        return map(self._luck, range(1, self.tried + 1))

    def _luck(self, number: int) -> random.Random:
        return random.Random(f"{SEED} {self.what} {number}")

    def control(self, what: str, lost: int, tried: int | None = None) -> None:
        """Check that the same harm hurts without the protection; a drill that never could is no drill."""
        assert lost, f"{what} was to be hurt in {tried or self.tried} tries and was not: the drill proves nothing"
