"""Save the state of an iteration so that a kill at any moment loses little, and continue from it bit for bit."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import safe_globals

from sharpnb.paths import write_whole

_ARRAYS = [bytes, np.ndarray, np.dtype, *(type(np.dtype(kind)) for kind in (bool, int, float)),
           *(made.__reduce__()[0] for made in (np.zeros(1), np.float64(0)))]


class Checkpoint:
    """A file replaced as a whole, ``every`` so many seconds; without a path every method does nothing.

    It holds numbers, texts, arrays, tensors, and objects of the classes in ``kinds``; reading it runs no other code.
    The key is what the state belongs to; another key in the file is an error, not a wrong continuation.
    """

    def __init__(self, path: str | Path | None, key: tuple[Any, ...], every: float = 60.0, *kinds: type) -> None:
        self._path = None if path is None else Path(path)
        self._key, self._every, self._last, self._kinds = repr(key), every, time.monotonic(), kinds

    def load(self, device: Any = "cpu") -> Any:
        """Return the saved state, None if there is none; ValueError for a damaged file or another run's."""
        if self._path is None or not self._path.exists():
            return None
        content = self._path.read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError(f"{self._path} is damaged: its content is not that of its digest. Delete it to start "
                             "anew.")
        key, _, state = content[32:].partition(b"\n")
        if key.decode() != self._key:
            raise ValueError(f"{self._path} is the checkpoint of another run: {key.decode()}, and this one is "
                             f"{self._key}. Delete the file to start anew, or give this run a file of its own.")
        try:
            with safe_globals([*_ARRAYS, *self._kinds]):
                return torch.load(io.BytesIO(state), map_location=device, weights_only=True)
        except Exception as error:  # an archive's, or of a class that is none of these
            raise ValueError(f"{self._path} holds what no run saves ({error}). Delete it to start anew.") from error

    def save(self, state: Callable[[], Any], force: bool = False) -> None:
        """Save ``state()`` if it is time."""
        if self._path is None or not (force or time.monotonic() - self._last >= self._every):
            return
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        content = self._key.encode() + b"\n" + buffer.getvalue()
        write_whole(self._path, hashlib.sha256(content).digest() + content)
        self._last = time.monotonic()
