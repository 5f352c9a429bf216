"""A long study in pieces: each is kept when it is finished, read back after a kill, and not begun when time runs out.

A piece is a training, a chunk of members, a seed: minutes of work whose result is numbers, texts and a few tensors. It
is written whole under ``data/runs/<profile>/pieces``, under a name made of the settings that it was made with, so that
other settings never find it. (Changed *sources* do: a bug that is mended in minute 20 does not cost the first 20. The
commit of each piece is in its record's provenance. To make all anew delete the folder and the record. Pieces of a
commit whose record is withdrawn are made anew by themselves, see ``lab/withdrawn.py``.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sharpnb import paths
from sharpnb.lab import withdrawn
from sharpnb.lab.records import commit, device_name, plain

if TYPE_CHECKING:
    from sharpnb.lab.budget import Cost
    from sharpnb.lab.notebook import Notebook

DEADLINE = "SHARPNB_DEADLINE"  # seconds since 1970, set by `sharpnb run --budget`
Values = dict[str, Any]


class Paused(Exception):
    """The budget ends before the next piece would; what is finished is kept, and the same command goes on."""


class GpuLost(RuntimeError):
    """The GPU does not answer this process any more; what is finished is kept."""


@dataclass(frozen=True)
class Kind:
    """Pieces of one record that take about as long as each other.

    Attributes:
        name: in a few words, such as ``"SAM"``.
        count: how many there are.
        cost: of one, from which its time is planned; None where nothing is known beforehand.
    """

    name: str
    count: int
    cost: Cost | None = None


class Work:
    """The pieces of one record of a notebook; without settings (the quick profile has none) nothing is kept.

    Attributes:
        log: for each piece so far its kind, which it is, ``seconds``, ``peak_bytes``, ``device``, ``commit``.
    """

    def __init__(self, nb: Notebook, record: str = "", settings: Any = None, kinds: Sequence[Kind] = ()) -> None:
        self.nb, self.record, self.settings = nb, record, settings
        self.kinds = {kind.name: kind for kind in kinds}
        self.log: list[dict[str, Any]] = []

    @property
    def folder(self) -> Path:
        """Where the pieces are kept."""
        return paths.runs(self.nb.profile) / "pieces" / self.nb.name / self.record

    @property
    def progress(self) -> str:
        """How far it has come, for messages."""
        total = sum(kind.count for kind in self.kinds.values())
        return f"{self.nb.name}/{self.record}: {len(self.log)} of {total} pieces are finished"

    def do(self, kind: str, make: Callable[[], Values], **which: Any) -> Values:
        """Return what ``make`` returns, from the folder where it is there.

        Args:
            kind: name of one of the kinds that were announced.
            make: returns numbers, texts, lists and dictionaries; at the first level tensors too, which come back on the
                CPU.
            which: what tells the piece from others of this record, including results of other pieces that it rests on.

        Raises:
            Paused: if the piece is not expected to end before the deadline.
            GpuLost: if the device fails.
            KeyError: for a kind that was not announced.
        """
        if self.settings is None:
            return make()
        if kind not in self.kinds:
            raise KeyError(f"{kind!r} is no kind of piece of {self.record}: {', '.join(self.kinds)} are announced.")
        identity = json.dumps([self.settings, kind, plain(which)], sort_keys=True)
        short = {key: value for key, value in which.items() if isinstance(value, (str, int, float))}
        words = "-".join(re.findall(r"\w+", " ".join([kind, *map(str, short.values())])))[:60]
        file = self.folder / f"{words}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.json"
        done = _read(file)
        if done is None or done[0].get("commit") in withdrawn.void_commits(self.nb.name, self.nb.profile, self.record):
            self._in_time(kind)
            self._keep(file, {"kind": kind, **short}, make)
        found, values = _read(file) or ({}, {})
        self.log.append(found)
        return values

    def _in_time(self, kind: str) -> None:
        deadline = float(os.environ.get(DEADLINE) or "inf")
        cost = self.kinds[kind].cost
        taken = [piece["seconds"] for piece in self.log if piece["kind"] == kind]
        planned = cost.seconds if cost is not None and self.nb.profile == "full" and deadline < float("inf") else 0.0
        expected, left = max(taken, default=planned), deadline - time.time()
        if expected > left:
            raise Paused(f"{self.progress}. The next ({kind}) is expected to take {expected:.0f} s, and "
                         f"{max(0.0, left):.0f} s are left. The same command goes on from here.")

    def _keep(self, file: Path, which: dict[str, Any], make: Callable[[], Values]) -> None:
        on_gpu, begun = self.nb.device.type == "cuda", time.perf_counter()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.nb.device)
        try:
            values = make()
        except RuntimeError as error:
            raise self._explained(error) from error
        about = which | {"seconds": round(time.perf_counter() - begun, 3), "peak_bytes": peak_bytes(self.nb.device),
                         "device": device_name(self.nb.device), "commit": commit(self.nb.name)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        if tensors:  # before the text, whose presence says that the piece is whole
            buffer = io.BytesIO()
            arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
            np.savez_compressed(buffer, **arrays)
            paths.write_whole(file.with_suffix(".npz"), buffer.getvalue())
        rest = plain({name: value for name, value in values.items() if name not in tensors})
        content = {"about": about, "settings": self.settings, "values": rest, "tensors": sorted(tensors)}
        paths.write_whole(file, json.dumps(content, ensure_ascii=False))

    def _explained(self, error: RuntimeError) -> RuntimeError:
        """Return the error in words that say what to do, where it is one of the device."""
        if isinstance(error, torch.OutOfMemoryError):
            error.add_note(f"{self.progress} and kept. Close what else uses the GPU, or make batch_size or chunk of "
                           "the study's settings smaller; the same command goes on.")
        elif "CUDA error" in str(error) or isinstance(error, torch.AcceleratorError):
            return GpuLost(f"The GPU failed ({str(error).splitlines()[0]}). {self.progress} and kept under "
                           f"{self.folder}. This process cannot use the GPU any more: restart the kernel, and the same "
                           "command goes on. If it fails at once again, look at `nvidia-smi`.")
        return error


def _read(file: Path) -> tuple[dict[str, Any], Values] | None:
    """Return what is known about a finished piece and its values, or None where it is not there or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        values = content["values"]
        if content["tensors"]:
            with np.load(file.with_suffix(".npz"), allow_pickle=False) as stored:
                values |= {name: torch.from_numpy(stored[name]) for name in content["tensors"]}
        return content["about"], values
    except (OSError, ValueError, KeyError, EOFError):
        return None


def even(members: int, most: int) -> tuple[int, int]:
    """Return into how many pieces of at most ``most`` members they are cut, and the equal size of all but the last."""
    pieces = -(-members // most)
    return pieces, -(-members // pieces)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory in use: on a GPU by tensors since the last reset, on a CPU by the process in its life."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # kilobytes but for macOS


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
    return _function(settings) if callable(settings) else plain(settings)


def _function(function: Callable[..., Any]) -> str:
    try:
        net = function(0)
    except TypeError:
        net = None
    if not isinstance(net, nn.Module):
        return getattr(function, "__qualname__", type(function).__name__)
    parts = [type(layer).__name__ for layer in net.modules()] + [str(tuple(p.shape)) for p in net.parameters()]
    size = sum(p.numel() for p in net.parameters())
    return f"net of {size} weights, {hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"
