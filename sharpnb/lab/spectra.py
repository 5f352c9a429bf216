"""Measure the spectrum of one network and write it down: numbers as CSV and JSON with provenance, and a figure."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sharpnb import paths
from sharpnb.curvature import (
    Eigenvalues,
    FisherOperator,
    GGNOperator,
    HessianOperator,
    ModelOperator,
    SpectralDensity,
    memory_plan,
    spectral_density,
    top_eigenvalues,
)
from sharpnb.lab import figures
from sharpnb.lab.checkpoint import fingerprint
from sharpnb.lab.records import provenance
from sharpnb.trees import tensors

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


@dataclass
class Spectrum:
    """What was measured.

    Attributes:
        op: the operator.
        settings: as given.
        eigenvalues: the largest ones, verified, or ``None``.
        density: the whole spectrum, or ``None`` (not asked for, or interrupted before).
        origin: names of model, checkpoint, data and loss, and fingerprints of weights and data.
        memory: what was stated before the first product.
        started: ``time.time()`` then.
    """

    op: ModelOperator
    settings: Settings
    eigenvalues: Eigenvalues | None = None
    density: SpectralDensity | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    memory: str = ""
    started: float = field(default_factory=time.time)

    @property
    def complete(self) -> bool:
        """Whether everything asked for ran to its own end."""
        s = self.settings
        return all(part is not None and part.complete
                   for part, wanted in ((self.eigenvalues, s.top), (self.density, s.probes)) if wanted)

    @property
    def products(self) -> int:
        """Operator-vector products used."""
        return sum(part.products for part in (self.eigenvalues, self.density) if part is not None)

    def rows(self) -> list[tuple[str, str]]:
        """Return what a terminal shows: names and texts."""
        s, op, top, density = self.settings, self.op, self.eigenvalues, self.density
        rows = [("operator", f"{s.operator} of {op.n:,} parameters, mode {op.mode}, {op.dtype}, {op.device}"),
                ("data", f"{self.origin.get('data', '')}: {self.origin.get('samples', 0):,} samples in "
                         f"{self.origin.get('batches', 0)} batches")]
        if top is not None and len(top.values):
            rows.append((f"largest {len(top.values)}", ", ".join(f"{value:.5g}" for value in top.values)))
            if len(top.values) > 1 and top.values[-1]:
                rows.append((f"ratio of 1st to {len(top.values)}th", f"{top.values[0] / top.values[-1]:.4g}"))
            rows.append(("they", f"{top.ending.value}, {'verified' if top.verified else 'not verified'} against missed "
                                 f"copies, largest residual {top.residuals.max():.1e}"))
        if density is not None and (density.probes or len(density.atoms)):
            trace, norm, negative = density.trace, density.frobenius, density.negative_share()
            rows += [
                ("λmax, λmin", f"{density.lambda_max:.5g}, {density.lambda_min:.5g}"),
                ("trace", f"{trace.value:.5g} ± {trace.stderr:.2g}"),
                ("Frobenius norm", f"{norm.value:.5g} ± {norm.stderr:.2g}"),
                ("share below -1 % of max |λ|", f"{negative.value:.3%} ± {negative.stderr:.2%}, certainly within "
                                                f"[{negative.lower:.3%}, {negative.upper:.3%}] for these probes"),
                ("outliers locked", f"{len(density.atoms)}, by {density.probes} probes of {density.steps} steps"),
                ("density", density.ending.value)]
        if isinstance(op, HessianOperator) and op.error:
            rows.append(("products", f"finite differences, relative error about {op.error:.1e}"))
        return [*rows, ("products", str(self.products)), ("memory", self.memory)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python; what is not a finite number is ``None``."""
        s, top = self.settings, self.eigenvalues
        parameters = {**vars(s), "params": list(s.params), "dtype": str(self.op.dtype)}
        data = {str(self.origin.get("data")): str(self.origin.get("data_fingerprint"))}
        return _finite({
            "origin": self.origin, "n": self.op.n, "products": self.products, "complete": self.complete,
            "memory": self.memory,
            "largest": None if top is None else {
                "values": top.values.tolist(), "residuals": top.residuals.tolist(), "verified": top.verified,
                "products": top.products, "ending": top.ending.name.lower()},
            "density": None if self.density is None else self.density.to_dict(),
            "provenance": provenance("", parameters, self.op.device, data, self.started),
        })

    def write(self, folder: Path) -> list[Path]:
        """Write ``spectrum.json``, ``eigenvalues.csv``, and with a density ``density.csv``, ``.png`` and ``.svg``."""
        written = [folder / "spectrum.json", folder / "eigenvalues.csv"]
        paths.write_whole(written[0], json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        lines = ["eigenvalue,residual,source"]
        if self.eigenvalues is not None:
            lines += [f"{v:.10g},{r:.3g},largest" for v, r in zip(
                self.eigenvalues.values, self.eigenvalues.residuals, strict=True)]
        if self.density is not None:
            lines += [f"{v:.10g},{r:.3g},locked" for v, r in zip(
                self.density.atoms, self.density.atom_residuals, strict=True)]
        paths.write_whole(written[1], "\n".join(lines) + "\n")
        if self.density is not None and self.density.probes:
            png = _figure(self.density, str(self.origin.get("model", "")), folder)
            written += [png.with_suffix(ending) for ending in (".csv", ".png", ".svg")]
        return written


def _figure(density: SpectralDensity, name: str, folder: Path) -> Path:
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    grid = density.grid()
    band = density.density_band(grid)
    with mpl.rc_context():
        figures.use_style()
        figure, ax = plt.subplots(figsize=(6.4, 3.6))
        density.plot(ax, color=figures.COLOURS["sgd"])
        ax.set_title(name)
        alt = (f"Density of {density.n} eigenvalues from {density.lambda_min:.3g} to {density.lambda_max:.3g}: "
               f"a curve with its error band for the bulk, {len(density.atoms)} stems for the outliers, on a log axis.")
        return figures.save(figure, folder, "density", alt=alt, data={
            "eigenvalue": grid, "density": band.value, "stderr": np.broadcast_to(band.stderr, grid.shape)})


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def measure_spectrum(
    model: nn.Module, loss: Any, batches: Sequence[Any], settings: Settings, folder: Path, *,
    origin: dict[str, Any] | None = None, progress: bool = False, say: Callable[[str], None] = lambda _: None,
    checkpoint_every: float = 60.0,
) -> Spectrum:
    """Measure; save the state under ``folder`` while at it, and go on from there after a kill.

    The state's name holds a fingerprint of weights, data, names and settings: another network never continues it. It is
    removed when all is done.

    Args:
        model: the network.
        loss: ``loss(output, target)``.
        batches: list of batches ``(inputs, target)``.
        settings: what to measure.
        folder: where the state is kept.
        origin: names for the report.
        progress: show bars.
        say: is told the memory before the first product.
        checkpoint_every: seconds between saves.

    Raises:
        ValueError: as of the operators and estimators.
    """
    chosen = list(settings.params) or None
    op = OPERATORS[settings.operator](model, loss, list(batches), chosen, settings.mode)
    marks = {"weights_fingerprint": fingerprint(model.state_dict()), "data_fingerprint": fingerprint(batches)}
    samples = sum(len(next(tensors(inputs))) for inputs, _ in batches)
    result = Spectrum(op, settings, origin={**(origin or {}), **marks, "samples": samples, "batches": len(batches)})
    plan = memory_plan(op, settings.steps, max(1, settings.probes), "auto", settings.memory)
    result.memory = f"{plan}; a batch's gradient graph takes {op.graph_bytes() / 1e9:.3g} GB"
    say(f"{op.n:,} parameters, {samples:,} samples in {len(batches)} batches: {result.memory}.")
    mark = hashlib.sha256(f"{result.origin} {settings} {op.names} {op.dtype}".encode()).hexdigest()[:16]
    states = [folder / f"state-{mark}-{part}.npz" for part in ("largest", "density")]
    common: dict[str, Any] = {"seed": settings.seed, "memory": settings.memory, "progress": progress,
                              "checkpoint_every": checkpoint_every}
    if settings.top:
        result.eigenvalues = top_eigenvalues(
            op, min(settings.top, op.n), vectors=False, checkpoint=states[0], **common)
    if settings.probes and (result.eigenvalues is None or result.eigenvalues.complete):
        result.density = spectral_density(op, settings.steps, settings.probes, checkpoint=states[1], **common)
    if result.complete:
        for state in states:
            state.unlink(missing_ok=True)
    return result
