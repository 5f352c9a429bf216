"""Save the state of an iteration so that a kill at any moment loses little, and continue from it bit for bit."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sharpnb.paths import write_whole


class Checkpoint:
    """A file of arrays, replaced as a whole, ``every`` so many seconds; without a path every method does nothing.

    The key is what the state belongs to; another key in the file is an error, not a wrong continuation.
    """

    def __init__(self, path: str | Path | None, key: tuple[Any, ...], every: float = 60.0) -> None:
        self._path = None if path is None else Path(path)
        self._key, self._every, self._last = repr(key), every, time.monotonic()

    def load(self) -> dict[str, np.ndarray] | None:
        """Return the saved arrays, None if there are none; ValueError for a damaged file or another run's."""
        if self._path is None or not self._path.exists():
            return None
        with self._path.open("rb") as file:
            try:
                arrays = np.load(file, allow_pickle=False)
                state = {name: arrays[name] for name in arrays.files}
                found = str(state.pop("key"))
            except Exception as error:  # an archive's, an array's, a missing key: of whatever the damage has hit
                raise ValueError(f"{self._path} is damaged ({type(error).__name__}: {error}). Delete it to start "
                                 "anew.") from error
        if found != self._key:
            raise ValueError(f"{self._path} is the checkpoint of another run: {found}, and this one is {self._key}. "
                             "Delete the file to start anew, or give this run a file of its own.")
        return state

    def save(self, state: Callable[[], Mapping[str, np.ndarray]], force: bool = False) -> None:
        """Save ``state()`` if it is time."""
        if self._path is None or not (force or time.monotonic() - self._last >= self._every):
            return
        buffer, arrays = io.BytesIO(), dict[str, Any](state())
        np.savez(buffer, key=np.array(self._key), **arrays)
        write_whole(self._path, buffer.getvalue())
        self._last = time.monotonic()
