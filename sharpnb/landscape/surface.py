r"""Losses over a plane or along a line, with BatchNorm statistics recomputed at each point when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sharpnb.counts import Count
from sharpnb.landscape._points import Points
from sharpnb.landscape.losses import Losses
from sharpnb.landscape.plane import Plane, Weights, flat
from sharpnb.progress import bar
from sharpnb.resume import Checkpoint
from sharpnb.trees import fingerprint

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Surface:
    """Losses on a grid over a plane.

    Attributes:
        plane: the plane.
        x, y: coordinates, (nx,) and (ny,).
        values: name -> (ny, nx) in float64, raw: NaN and infinity are kept. Names are ``"<set>_<loss>"``, or
            ``"<loss>"`` where the data has no name.
    """

    plane: Plane
    x: np.ndarray
    y: np.ndarray
    values: dict[str, np.ndarray]

    def lowest(self, name: str) -> tuple[float, float]:
        """Return the coordinates of the grid's smallest finite value."""
        finite = np.where(np.isfinite(self.values[name]), self.values[name], np.inf)
        row, column = np.unravel_index(int(finite.argmin()), finite.shape)
        return float(self.x[column]), float(self.y[row])

    def plot(
        self, name: str, ax: Axes | None = None, *, levels: int = 10, cap: float | None = None,
        marks: Mapping[str, Weights | tuple[float, float]] | None = None, label: str | None = None, finest: float = 0.0,
    ) -> Axes:
        """Draw filled contours and return the axes; both have the same unit and scale.

        The levels are spaced geometrically in the height above the minimum, as Garipov et al. draw them: they crowd
        where the solutions lie. Everything above ``cap`` has the last colour.

        Args:
            name: of the values.
            ax: axes to draw on; default new ones (matplotlib is imported here).
            levels: number of levels.
            cap: the highest; default the value that three quarters of the grid stay below.
            marks: label -> weights, projected onto the plane, or coordinates.
            label: of the colour bar; default the name.
            finest: the height of the lowest level above the minimum, where a fiftieth of the height is less than the
                data can resolve: an error on 1,000 images has steps of 0.1 %, and contours of those are noise.

        Raises:
            ValueError: if no value is finite.
        """
        import matplotlib.pyplot as plt
        from matplotlib.colors import BoundaryNorm

        ax = plt.subplots()[1] if ax is None else ax
        values = self.values[name]
        finite = values[np.isfinite(values)]
        if not finite.size:
            raise ValueError(f"{name} has no finite value on this grid: take a smaller window.")
        # Errors come in steps. Without their last digits equal ones are equal, and the rounding of sums draws no lines.
        digits = 9 - int(np.ceil(np.log10(max(float(np.abs(finite).max()), 1e-300))))
        values, finite = np.round(values, digits), np.round(finite, digits)
        low, high = float(finite.min()), float(np.quantile(finite, 0.75)) if cap is None else cap
        high = high if high > low else low + 1e-9 + abs(low) * 1e-9
        lowest = min(max(0.02, finest / (high - low)), 0.5)
        steps = low + (high - low) * np.concatenate([[0], np.geomspace(lowest, 1, levels)])
        shown = np.where(np.isfinite(values), values, 2 * high - low)  # what is not finite has the last colour too
        colours = BoundaryNorm(steps, plt.get_cmap("viridis").N, extend="max")  # each band its own, however thin
        filled = ax.contourf(self.x, self.y, shown, levels=steps, cmap="viridis", norm=colours, extend="max")
        filled.set_rasterized(True)
        ax.contour(self.x, self.y, shown, levels=steps[1:], colors="white", linewidths=0.4)
        bar = ax.figure.colorbar(filled, ax=ax, label=label or name.replace("_", " "), ticks=steps[::2])
        bar.ax.set_yticklabels([f"{step:.3g}" for step in steps[::2]])
        for marker, (text, where) in zip("osD^vP*X", (marks or {}).items(), strict=False):
            x, y = where if isinstance(where, tuple) else self.plane.project(where)[:2]
            ax.plot(float(x), float(y), marker, ms=9, mfc="white", mec="black", mew=1.2, label=text, zorder=5)
        ax.set(xlabel=f"x ({self.plane.unit})", ylabel=f"y ({self.plane.unit})", aspect="equal",
               xlim=(self.x[0], self.x[-1]), ylim=(self.y[0], self.y[-1]))
        ax.grid(False)
        return ax


@dataclass(frozen=True)
class Line:
    """Losses along a line.

    Attributes:
        t: positions, (T,).
        values: name -> (T,); names as in :class:`Surface`.
    """

    t: np.ndarray
    values: dict[str, np.ndarray]


def surface(
    model: nn.Module, plane: Plane, data: Any, losses: Losses = ("loss", "error"), size: int | tuple[int, int] = 41, *,
    window: tuple[float, float, float, float] | None = None, update_bn: Any = None, batch_size: int | None = None,
    count: Count | None = None, checkpoint: str | Path | None = None, checkpoint_every: float = 30.0,
    progress: bool = False,
) -> Surface:
    """Measure losses on a grid over a plane, in evaluation mode; the model is not touched.

    Nets whose weights are in linear layers, convolutions and BatchNorm alone go through :mod:`sharpnb.many.net`, many
    points in one call; where a linear layer comes first, its output is affine in the coordinates and serves all points.
    Other nets, and those of which two points are more than a cache holds, run one forward pass a point, with the
    weights written into a private copy. Everything is computed in the model's type, sums over batches, weighted by
    their size, in float64.

    Args:
        model: the architecture, type and device; its own weights do not matter.
        plane: where.
        data: ``(x, y)``, a list of such batches, a ``DataLoader``, or a dictionary of those, e.g. ``{"train": …,
            "test": …}``; see :mod:`sharpnb.batches`. All are read once and held on the device.
        losses: ``"loss"`` (mean cross-entropy, nats), ``"error"`` (percent), or name -> function of output and target
            that returns the mean over the batch; it may instead take the outputs of P points, (P, B, …), and return
            (P,).
        size: points along x and y (default 41; Li et al. 51, Garipov et al. 21).
        window: x from, x to, y from, y to; default the plane's.
        update_bn: training data for :func:`sharpnb.averaging.update_bn`, run anew at *each* point (Garipov et al.);
            points that go in one call see the same pass over it. Without it a net with BatchNorm keeps the model's own
            statistics, and the surface is not that of the nets one would deploy at these points.
        batch_size: samples a forward pass (default on the CPU 250 for many points in one call and 128 for one; 2,048 on
            the GPU). Batches are cut into such pieces where this does not change the losses.
        count: number of terms that the losses average over in a batch, where these are not its samples or not to be
            seen: a function of a batch, a list of numbers, or one; see :mod:`sharpnb.batches`.
        checkpoint: a file; an interrupted call continues from it. The grid is filled coarse to fine.
        checkpoint_every: seconds between saves.
        progress: show a progress bar (needs tqdm).

    Raises:
        ValueError: if plane and model do not fit, data or losses are empty or unknown, or the checkpoint belongs to
            another surface or is damaged, or a number of loss terms is needed and not to be seen.
    """
    columns, rows = (size, size) if isinstance(size, int) else size
    x0, x1, y0, y1 = window or plane.window
    x, y = np.linspace(x0, x1, columns), np.linspace(y0, y1, rows)
    points = Points(model, plane, data, losses, update_bn, batch_size, count)
    held = [(batch.inputs, batch.target) for batches in points.sets.values() for batch in batches]
    grid = torch.from_numpy(x), torch.from_numpy(y), points.vectors
    key = ("surface", *points.names, points.dtype, fingerprint([grid, held])) if checkpoint else ()
    saved = Checkpoint(checkpoint, key, checkpoint_every)
    found = _fill(points, x, y, saved, progress)
    return Surface(plane, x, y, {name: found[:, :, i] for i, name in enumerate(points.names)})


def line(
    model: nn.Module, start: Weights, direction: Weights, t: Sequence[float] | np.ndarray, data: Any,
    losses: Losses = ("loss", "error"), *, update_bn: Any = None, batch_size: int | None = None,
    count: Count | None = None,
) -> Line:
    r"""Measure losses along :math:`w(t) = w_0 + t\,d`: a ray, or an interpolation with :math:`d = w_1 - w_0`.

    Arguments as for :func:`surface`, which says more.
    """
    origin, d = flat(start), flat(direction)
    plane = Plane(origin, d, torch.zeros_like(d), (float(t[0]), float(t[-1]), 0.0, 0.0))
    points = Points(model, plane, data, losses, update_bn, batch_size, count)
    found = points([(float(each), 0.0) for each in t]).numpy()
    return Line(np.asarray(t, dtype=float), {name: found[:, i] for i, name in enumerate(points.names)})


def _fill(points: Points, x: np.ndarray, y: np.ndarray, saved: Checkpoint, progress: bool) -> np.ndarray:
    """Evaluate the grid coarse to fine, (ny, nx, names)."""
    shape = (len(y), len(x), len(points.names))
    state = saved.load() or {"values": np.full(shape, np.nan), "done": np.zeros(shape[:2], dtype=bool)}
    values, done = state["values"], state["done"]
    todo = sorted(zip(*np.nonzero(~done), strict=True), key=_level)
    try:
        with bar(progress, len(todo), "surface", "point") as shown:
            for first in range(0, len(todo), points.at_once):
                block = todo[first : first + points.at_once]
                rows, columns = zip(*block, strict=True)
                values[rows, columns] = points([(float(x[j]), float(y[i])) for i, j in block]).numpy()
                done[rows, columns] = True
                shown.update(len(block))
                saved.save(lambda: state)
    finally:
        if todo:
            saved.save(lambda: state, force=True)
    return values


def _level(cell: tuple[int, int]) -> int:
    """Every fourth point of both axes first, then every second, then the rest."""
    return next(n for n, stride in enumerate((4, 2, 1)) if not any(i % stride for i in cell))
