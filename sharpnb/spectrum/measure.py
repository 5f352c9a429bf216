"""Measure the spectrum of one network, by steps that survive a kill."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sharpnb.curvature import FisherOperator, GGNOperator, HessianOperator, ModelOperator
from sharpnb.curvature.density import memory_plan, spectral_density
from sharpnb.curvature.eigenvalues import top_eigenvalues
from sharpnb.curvature.lanczos import Ending
from sharpnb.spectrum.cost import stated
from sharpnb.spectrum.preflight import examine, is_constant, refuse_products
from sharpnb.spectrum.results import Spectrum
from sharpnb.trees import fingerprint

OPERATORS: dict[str, type[ModelOperator]] = {"hessian": HessianOperator, "ggn": GGNOperator, "fisher": FisherOperator}


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes:
        operator: one of :data:`OPERATORS`.
        mode: ``"eval"``, ``"batch_stats"`` or ``"as_is"``; see :class:`~sharpnb.curvature.HessianOperator`.
        params: names or patterns of the parameters; empty for all.
        top: how many of the largest eigenvalues to find and verify, 0 for none.
        steps, probes, seed: of :func:`~sharpnb.curvature.spectral_density`; 0 probes leave the density out.
        memory: bytes for the bases; ``None`` as there.
    """

    operator: str = "hessian"
    mode: Any = "eval"
    params: tuple[str, ...] = ()
    top: int = 5
    steps: int = 60
    probes: int = 8
    seed: int = 0
    memory: float | None = None

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise ValueError(f"operator = {self.operator!r}: choose one of {', '.join(OPERATORS)}.")
        if self.top < 0 or self.probes < 0 or self.top + self.probes == 0:
            raise ValueError(f"top = {self.top}, probes = {self.probes}: neither can be negative, and one of them "
                             "must ask for something.")


def measure_spectrum(  # noqa: D417  some in one line
    model: nn.Module, loss: Any, batches: Sequence[Any], settings: Settings, folder: Path, *,
    count: Any = None, origin: dict[str, Any] | None = None, progress: bool = False,
    say: Callable[[str], None] = lambda _: None, checkpoint_every: float = 60.0,
) -> Spectrum:
    """Look at everything (:func:`sharpnb.spectrum.preflight.examine`), measure, and go on from there after a kill.

    The state is saved under ``folder`` while at it. Its name holds a fingerprint of weights, data, names and settings:
    another network never continues it. It stays until :meth:`Spectrum.forget_state`, so that the result can be written
    first.

    Args:
        model, loss, batches, count: as the operators take them.
        settings: what to measure.
        folder: where the state is kept.
        origin: names for the report.
        progress: show bars.
        say: is told the memory before the first product, the cost before the measurement, and what is worth a word.
        checkpoint_every: seconds between saves.

    Raises:
        ValueError: if nothing can be written there; as of ``examine``, the operators and estimators; if a product is
            not finite, or the loss does not depend on the parameters.
    """
    _check_place(folder)
    chosen = list(settings.params) or None
    notes = examine(model, loss, batches, settings.mode, chosen)
    op = OPERATORS[settings.operator](model, loss, list(batches), chosen, settings.mode, count=count)
    samples = op._batches.samples or (round(op._batches.total) if count is not None else None)
    marks = {"weights_fingerprint": fingerprint(model.state_dict()), "data_fingerprint": fingerprint(batches)}
    result = Spectrum(op, settings, origin={**(origin or {}), **marks, "samples": samples, "batches": len(batches)})
    plan = memory_plan(op, settings.steps, max(1, settings.probes), "auto", settings.memory)
    result.memory = f"{plan}; a batch's gradient graph takes {op.graph_bytes() / 1e9:.3g} GB"
    named = _mark(origin, settings, op.names, op.dtype)
    result.mark = _mark(named, marks, *([] if count is None else [[batch.count for batch in op._batches]]))
    result.states = [folder / f"state-{named}-{result.mark}-{part}.state" for part in ("largest", "density")]
    if others := sorted(file.name for file in folder.glob(f"state-{named}-*.state") if file not in result.states):
        notes.append(f"{folder} has a state of the same command with other weights or other data ({', '.join(others)})."
                     " This run cannot resume it and begins anew. Do the functions of model or data draw at random "
                     "without a fixed seed? Delete the file if it is not needed.")
    say(f"{op.n:,} parameters, {result.amount}: {result.memory}.")
    for note in notes:
        say(note)
    result.cost = stated(op, settings, plan.group)
    say(f"It will take {result.cost}.")
    begun = time.perf_counter()
    common: dict[str, Any] = {"seed": settings.seed, "memory": settings.memory, "progress": progress,
                              "checkpoint_every": checkpoint_every}
    if settings.top:
        result.eigenvalues = top_eigenvalues(
            op, min(settings.top, op.n), vectors=False, checkpoint=result.states[0], **common)
    if settings.probes and (result.eigenvalues is None or result.eigenvalues.complete):
        result.density = spectral_density(op, settings.steps, settings.probes, checkpoint=result.states[1], **common)
    result.seconds = time.perf_counter() - begun
    _refuse_nothing(result)
    return result


def _check_place(folder: Path) -> None:
    """Refuse a folder that cannot be written to before hours are spent."""
    place = Path(os.path.abspath(folder))
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise ValueError(f"--out {folder}: {place} is a file and no folder. Choose another.")
    if not os.access(place, os.W_OK):
        raise ValueError(f"--out {folder}: {place} cannot be written to by you. Choose another.")


def _refuse_nothing(result: Spectrum) -> None:
    """Raise where no number is one: a product that is not finite, a loss without a second derivative at all."""
    top, density = result.eigenvalues, result.density
    if any(part is not None and part.ending is Ending.NON_FINITE for part in (top, density)):
        result.forget_state()
        refuse_products(result.op)
    found = [*([] if top is None else [top.values]), *([] if density is None else [density.atoms, density.nodes])]
    if not result.complete or any(values.any() for values in found):
        return
    if is_constant(result.op):
        result.forget_state()
        raise ValueError("The loss is constant: its gradient and every product are exactly 0. It does not depend on "
                         "the parameters: multiplied by 0, rounded, clamped, or of units that are all dead.")
    result.notes.append("Every product was exactly 0: the loss is linear in these parameters, as a ReLU network's with "
                        "a linear loss is between its kinks.")


def _mark(*parts: Any) -> str:
    return hashlib.sha256(" ".join(map(repr, parts)).encode("utf-8", "surrogateescape")).hexdigest()[:16]
