"""What was measured: shown, and written down as CSV and JSON with where it comes from, and a figure."""

from __future__ import annotations

import json
import math
import os
import platform
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sharpnb import __version__, paths
from sharpnb.curvature import Eigenvalues, HessianOperator, ModelOperator, SpectralDensity
from sharpnb.devices import device_name
from sharpnb.spectrum.cost import Cost, duration

FILE = "spectrum.json"  # written last: where it is, the others are


@dataclass
class Spectrum:
    """What was measured.

    Attributes:
        op: the operator.
        settings: what was asked for, as :class:`sharpnb.spectrum.Settings`.
        eigenvalues: the largest ones, verified, or ``None``.
        density: the whole spectrum, or ``None`` (not asked for, or interrupted before).
        origin: names of model, checkpoint, data and loss, and fingerprints of weights and data.
        memory: what was stated before the first product.
        cost: what was stated before the measurement; ``seconds`` are what it took, since the last kill.
        started: ``time.time()`` then.
        mark: stands for names, settings, weights and data.
        states: the files from which a run that was killed goes on.
        notes: sentences that belong to the result.
    """

    op: ModelOperator
    settings: Any
    eigenvalues: Eigenvalues | None = None
    density: SpectralDensity | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    memory: str = ""
    cost: Cost | None = None
    seconds: float = 0.0
    started: float = field(default_factory=time.time)
    mark: str = ""
    states: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether everything asked for ran to its own end."""
        s = self.settings
        return all(part is not None and part.complete
                   for part, wanted in ((self.eigenvalues, s.top), (self.density, s.probes)) if wanted)

    @property
    def amount(self) -> str:
        """How much data: samples, where their number is known, and batches."""
        samples = self.origin.get("samples")
        return f"{f'{samples:,} samples in ' if samples else ''}{self.origin.get('batches', 0)} batches"

    @property
    def products(self) -> int:
        """Operator-vector products used."""
        return sum(part.products for part in (self.eigenvalues, self.density) if part is not None)

    def forget_state(self) -> None:
        """Remove the files from which a killed run would go on."""
        for state in self.states:
            state.unlink(missing_ok=True)

    def rows(self) -> list[tuple[str, str]]:
        """Return what a terminal shows: names and texts."""
        s, op, top, density = self.settings, self.op, self.eigenvalues, self.density
        rows = [("operator", f"{s.operator} of {op.n:,} parameters, mode {op.mode}, {op.dtype}, {op.device}"),
                ("data", f"{self.origin.get('data', '')}: {self.amount}")]
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
        said = f", said: {self.cost}" if self.cost else ""
        rows.append(("products", f"{self.products}, {duration(self.seconds)}{said}"))
        return [*rows, ("memory", self.memory), *(("note", n) for n in self.notes)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python; what is not a finite number is ``None``."""
        s, top = self.settings, self.eigenvalues
        versions = {name: found for name in ("torch", "numpy", "matplotlib") if (found := paths.version(name))}
        return _finite({
            "origin": self.origin, "n": self.op.n, "products": self.products, "complete": self.complete,
            "memory": self.memory, "cost": {"seconds": self.seconds, "said": self.cost and self.cost._asdict()},
            "notes": self.notes, "mark": self.mark,
            "largest": None if top is None else {
                "values": top.values.tolist(), "residuals": top.residuals.tolist(), "verified": top.verified,
                "products": top.products, "ending": top.ending.name.lower()},
            "density": None if self.density is None else self.density.to_dict(),
            "provenance": {
                "sharpnb": __version__, "python": platform.python_version(), "versions": versions,
                "parameters": {**vars(s), "params": list(s.params), "dtype": str(self.op.dtype)},
                "data": {str(self.origin.get("data")): str(self.origin.get("data_fingerprint"))},
                "device": device_name(self.op.device), "threads": torch.get_num_threads(),
                "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
                "seconds": round(time.time() - self.started, 1)},
        })

    def write(self, folder: Path) -> list[Path]:
        """Write ``eigenvalues.csv``, with a density ``density.csv``, ``.png`` and ``.svg``, and ``spectrum.json``.

        A complete result is replaced by the complete result of the same measurement alone: of any other, or of one that
        was interrupted, the files go to ``folder-2``, ``folder-3``, … A figure that cannot be drawn is a note.

        Returns:
            The files, each written whole or not at all, ``spectrum.json`` the last.
        """
        number, whole = 1, Path(os.path.abspath(folder))
        while (old := _old(folder / FILE)).get("complete") and not (self.complete and old.get("mark") == self.mark):
            number += 1
            folder = whole.with_name(f"{whole.name}-{number}")
        top, density = self.eigenvalues, self.density
        found = [*([] if top is None else _rows(top.values, top.residuals, "largest")),
                 *([] if density is None else _rows(density.atoms, density.atom_residuals, "locked"))]
        files: dict[str, str | bytes] = {"eigenvalues.csv": "\n".join(["eigenvalue,residual,source", *found, ""])}
        if density is not None and density.probes:
            files |= _drawn(density, str(self.origin.get("model", "")), self.notes)
        files[FILE] = json.dumps({**self.to_dict(), "files": [*files, FILE]}, indent=1, allow_nan=False) + "\n"
        for name in {str(name) for name in old.get("files") or ()} - set(files):
            if Path(name).name == name:
                (folder / name).unlink(missing_ok=True)
        for name, content in files.items():
            paths.write_whole(folder / name, content)
        return [folder / name for name in files]


def _rows(values: Iterable[float], residuals: Iterable[float], source: str) -> list[str]:
    return [f"{v:.10g},{r:.3g},{source}" for v, r in zip(values, residuals, strict=True)]


def _old(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # none, or damaged: no result that could be lost
    return held if isinstance(held, dict) else {}


def _drawn(density: SpectralDensity, title: str, notes: list[str]) -> dict[str, str | bytes]:
    """Return the plotted numbers and the pictures by file name; without matplotlib the numbers and a note."""
    grid = density.grid()
    band = density.density_band(grid)
    columns = zip(grid, band.value, np.broadcast_to(band.stderr, grid.shape), strict=True)
    lines = ["eigenvalue,density,stderr", *(",".join(f"{value:.8g}" for value in row) for row in columns)]
    files: dict[str, str | bytes] = {"density.csv": "\n".join(lines) + "\n"}
    try:
        files |= _pictures(density, title)
    except Exception as error:  # after hours of measuring, no library's trouble may cost the numbers
        notes.append(f"The figure was not drawn ({type(error).__name__}: {error}). It needs matplotlib; its numbers "
                     "are in density.csv.")
    return files


def _pictures(density: SpectralDensity, title: str) -> dict[str, str | bytes]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from sharpnb.lab.figures import render, use_style

    alt = (f"Density of {density.n} eigenvalues from {density.lambda_min:.3g} to {density.lambda_max:.3g}: a curve "
           f"with its error band for the bulk, {len(density.atoms)} stems for the outliers, on a log axis.")
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # signs that the font has not
        use_style()
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.subplots()
        density.plot(axes, color="#0173b2")
        axes.set_title(title.encode("utf-8", "replace").decode(), parse_math=False)
        return {f"density.{kind}": render(figure, kind, alt) for kind in ("png", "svg")}


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree
