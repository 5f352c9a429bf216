"""Pictures of surfaces: contours with levels that crowd at the minimum, reliefs, points and trajectories on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sharpnb.landscape.plane import Weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sharpnb.landscape.surface import Surface

_MARKERS = "osD^vP*X"


def contours(
    surface: Surface, name: str, ax: Axes | None = None, *, levels: int = 10, cap: float | None = None,
    marks: Mapping[str, Weights | tuple[float, float]] | None = None, trajectory: Tensor | None = None,
    label: str | None = None, cmap: str = "viridis", colour_bar: bool = True, finest: float = 0.0,
) -> Axes:
    """Draw a surface as filled contours and return the axes; both axes have the same unit and scale.

    The levels are spaced geometrically in the height above the minimum, as Garipov et al. draw them: they crowd where
    the solutions lie. Everything above ``cap`` has the last colour.

    Args:
        surface: what to draw.
        name: of its values.
        ax: axes to draw on; default new ones.
        levels: number of levels.
        cap: the highest; default the value that three quarters of the grid stay below.
        marks: label -> weights, projected onto the plane, or coordinates.
        trajectory: weights (T, n), drawn as a line through their projections.
        label: of the colour bar; default the name.
        cmap: a matplotlib colour map.
        colour_bar: whether to draw it.
        finest: the height of the lowest level above the minimum, where a fiftieth of the height is less than the data
            can resolve: an error on 1,000 images has steps of 0.1 %, and contours of those are noise.

    Raises:
        ValueError: if no value is finite.
    """
    import matplotlib.pyplot as plt
    from matplotlib.colors import BoundaryNorm

    ax = plt.subplots()[1] if ax is None else ax
    values = surface.values[name]
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise ValueError(f"{name} has no finite value on this grid: take a smaller window.")
    # Errors come in steps. Without their last digits equal ones are equal, and there is no line at the lowest: else the
    # rounding of the sums would draw lines between them.
    digits = 9 - int(np.ceil(np.log10(max(float(np.abs(finite).max()), 1e-300))))
    values, finite = np.round(values, digits), np.round(finite, digits)
    low, high = float(finite.min()), float(np.quantile(finite, 0.75)) if cap is None else cap
    high = high if high > low else low + 1e-9 + abs(low) * 1e-9
    lowest = min(max(0.02, finest / (high - low)), 0.5)
    steps = low + (high - low) * np.concatenate([[0], np.geomspace(lowest, 1, levels)])
    shown = np.where(np.isfinite(values), values, 2 * high - low)  # what is not finite has the last colour too
    colours = BoundaryNorm(steps, plt.get_cmap(cmap).N, extend="max")  # each band its own, however thin in height
    filled = ax.contourf(surface.x, surface.y, shown, levels=steps, cmap=cmap, norm=colours, extend="max")
    filled.set_rasterized(True)
    ax.contour(surface.x, surface.y, shown, levels=steps[1:], colors="white", linewidths=0.4)
    if colour_bar:
        bar = ax.figure.colorbar(filled, ax=ax, label=label or name.replace("_", " "), ticks=steps[::2])
        bar.ax.set_yticklabels([f"{step:.3g}" for step in steps[::2]])
    if trajectory is not None:
        path = surface.plane.project(trajectory)
        ax.plot(path.x, path.y, "-", color="white", lw=1.2, marker=".", ms=3)
    for marker, (text, where) in zip(_MARKERS, (marks or {}).items(), strict=False):
        x, y = where if isinstance(where, tuple) else surface.plane.project(where)[:2]
        ax.plot(float(x), float(y), marker, ms=9, mfc="white", mec="black", mew=1.2, ls="none", label=text, zorder=5)
    ax.set(xlabel=f"x ({surface.plane.unit})", ylabel=f"y ({surface.plane.unit})", aspect="equal")
    ax.set(xlim=(surface.x[0], surface.x[-1]), ylim=(surface.y[0], surface.y[-1]))
    ax.grid(False)
    return ax


def relief(surface: Surface, name: str, ax: Any = None, *, cap: float | None = None, cmap: str = "viridis") -> Any:
    """Draw a surface in three dimensions; return the axes; values above ``cap`` (default the 0.9 quantile) are cut."""
    import matplotlib.pyplot as plt

    ax = plt.figure().add_subplot(projection="3d") if ax is None else ax
    values = surface.values[name]
    high = float(np.quantile(values[np.isfinite(values)], 0.9)) if cap is None else cap
    x, y = np.meshgrid(surface.x, surface.y)
    ax.plot_surface(x, y, np.where(values <= high, values, np.nan), cmap=cmap, rcount=80, ccount=80, linewidth=0)
    ax.set(xlabel=f"x ({surface.plane.unit})", ylabel=f"y ({surface.plane.unit})", zlabel=name.replace("_", " "))
    return ax
