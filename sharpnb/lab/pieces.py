"""A long study in pieces: each is kept when it is finished, and read back after a kill.

A piece is some minutes of work whose result is numbers, texts and a few tensors. It is kept under
``data/runs/<profile>/pieces`` by :mod:`sharpnb.kept`: other settings and other sources never find it. Nor is a piece
found whose commit made a withdrawn record (``lab/withdrawn.py``).
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sharpnb import kept, paths
from sharpnb.devices import device_name
from sharpnb.lab import withdrawn
from sharpnb.lab.records import commit

if TYPE_CHECKING:
    from sharpnb.lab.notebook import Notebook

Values = dict[str, Any]


class Work:
    """The pieces of one record of a notebook; without settings (the quick profile has none) nothing is kept.

    Attributes:
        values: of the record, where it was finished before.
        log: for each piece so far its label, which it is, ``seconds``, ``peak_bytes``, ``device``, ``commit``.
    """

    def __init__(self, nb: Notebook, record: str = "", settings: Any = None) -> None:
        self.nb, self.record, self.settings = nb, record, settings
        self.values: Values | None = None
        self.log: list[dict[str, Any]] = []

    @property
    def folder(self) -> Path:
        """Where the pieces are kept."""
        return paths.runs(self.nb.profile) / "pieces" / self.nb.name / self.record

    def do(self, label: str, make: Callable[[], Values], **which: Any) -> Values:
        """Return what ``make`` returns, from the folder where it is there.

        ``label`` says to a reader what is made, such as ``"SAM"``; ``which`` tells it from others of this record,
        including results of other pieces that it rests on. ``make`` returns what :func:`sharpnb.kept.store` can keep;
        tensors come back on the CPU.
        """
        if self.settings is None:
            return make()
        short = {key: value for key, value in which.items() if isinstance(value, (str, int, float))}
        words = " ".join([label, *map(str, short.values())])
        file = kept.place(self.folder, words, self.settings, label, which, self.nb.sources, torch.__version__)
        found = kept.find(file)
        void = {entry.commit for entry in withdrawn.entries(f"{self.nb.name}/{self.nb.profile}/{self.record}")}
        if found is None or found[1].get("commit") in void:
            self.nb.say(f"Piece {len(self.log) + 1} of {self.record}, {words}, begins; {len(self.log)} are finished.")
            self._keep(file, {"label": label, **short}, make)
            found = kept.find(file)
        if found is None:
            raise OSError(f"{file} was written and cannot be read back: look at the disk, and call again.")
        self.log.append({key: value for key, value in found[1].items() if key != "settings"})
        return found[0]

    def kept(self, make: Callable[..., Values]) -> Callable[..., Values]:
        """Return ``make(label, **which)`` as :meth:`do` calls it; where nothing is kept, ``make`` itself.

        So a function of a notebook is a piece in the full profile, and in the quick one a reader steps right into it.
        """
        if self.settings is None:
            return make
        return lambda label, **which: self.do(label, partial(make, label, **which), **which)

    def _keep(self, file: Path, which: dict[str, Any], make: Callable[[], Values]) -> None:
        device, begun = self.nb.device, time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            values = make()
        except RuntimeError as error:  # of a GPU: it is full or gone
            error.add_note(f"{len(self.log)} finished pieces are kept under {self.folder}: the same command goes on; "
                           "after an error of the GPU restart the kernel before it.")
            raise
        kept.store(file, values, which | {
            "seconds": round(time.perf_counter() - begun, 3), "peak_bytes": peak_bytes(device),
            "device": device_name(device), "commit": commit(self.nb.name), "settings": self.settings})


def even(members: int, most: int) -> tuple[int, int]:
    """Return into how many pieces of at most ``most`` members they are cut, and the equal size of all but the last."""
    pieces = -(-members // most)
    return pieces, -(-members // pieces)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory in use: on a GPU by tensors since the last reset, on a CPU by the process in its life."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # Windows has none

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def described(settings: Any) -> Any:
    """Return settings as JSON has them, the same on every machine, so that a result can say what it was made with.

    A function of a seed is told by the net that it builds (classes of its layers, shapes of its weights), others by
    their names.
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {field.name: described(getattr(settings, field.name)) for field in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {str(key): described(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple, range)):
        return [described(value) for value in settings]
    if isinstance(settings, torch.dtype):
        return str(settings)
    return _function(settings) if callable(settings) else kept.plain(settings)


def _function(function: Callable[..., Any]) -> str:
    net = None
    with suppress(TypeError):
        net = function(0)
    if not isinstance(net, nn.Module):
        return getattr(function, "__qualname__", type(function).__name__)
    parts = [type(layer).__name__ for layer in net.modules()] + [str(tuple(p.shape)) for p in net.parameters()]
    size = sum(p.numel() for p in net.parameters())
    return f"net of {size} weights, {hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"
