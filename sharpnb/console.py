"""The terminal as it may be: without Greek letters, with a full disk behind it, or gone (``| head -1``)."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

# What a terminal gets that cannot show the sign.
PLAIN = {
    "λ": "lambda", "ρ": "rho", "γ": "gamma", "α": "alpha", "β": "beta", "σ": "sigma", "η": "eta", "±": "+-", "×": "x",
    "·": "*", "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "≠": "!=", "→": "->", "∞": "inf",
    "✔": "yes", "✘": "no", "◦": "o", "•": "*", "‘": "'", "’": "'", "“": '"', "”": '"', "━": "-", "╸": "-", "╺": "-",
}


def _plainly(error: Any) -> tuple[str, int]:
    """Return what stands for the signs that an encoding has not, and where to go on (an error handler of codecs)."""
    lost = error.object[error.start:error.end]
    letters = (unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode() for sign in lost)
    return "".join(PLAIN.get(sign) or letter or "?" for sign, letter in zip(lost, letters, strict=True)), error.end


codecs.register_error("sharpnb.plain", _plainly)


def prepare() -> None:
    """Let standard output and error show every text, in other signs where they must."""
    for stream in (sys.stdout, sys.stderr):
        getattr(stream, "reconfigure", lambda **_: None)(errors="sharpnb.plain")


class Terminal(Console):
    """A console that is written to as long as it can be, and that stops no work when it cannot.

    Attributes:
        failure: why it can no more be written to; ``None`` also where the reader has gone, as ``head`` does.
    """

    failure: OSError | None = None

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does."""
        try:
            super().print(*objects, **options)
        except OSError as error:
            self._give_up(error)

    def on_broken_pipe(self) -> None:
        """Print no more; rich would end the program here."""
        self._give_up(BrokenPipeError())

    def say(self, text: str) -> None:
        """Print a text as it is, in one line."""
        self.print(Text(text), soft_wrap=True)

    def _give_up(self, error: OSError) -> None:
        self.quiet = True
        self.failure = None if isinstance(error, BrokenPipeError) else error
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:  # no file may be behind it
            os.dup2(nowhere.fileno(), self.file.fileno())  # what Python still holds back for it goes there at the end
