"""The picture of a spectrum: the bulk as a density with its error band, outliers as stems, both on one log axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sharpnb.curvature.spectrum import SpectralDensity


def plot_spectrum(
    result: SpectralDensity, ax: Axes | None = None, *, points: int = 2000, color: str = "C0", label: str | None = None
) -> Axes:
    """Draw a spectral density and return its axes.

    A stem is as high as the atom's kernel in :meth:`SpectralDensity.density`, so that bulk and outliers share a unit:
    the share of all eigenvalues per unit of eigenvalue. The axis ends a decade below one eigenvalue.

    Args:
        result: what to draw.
        ax: axes to draw on; default new ones.
        points: of the curve.
        color: of curve and stems.
        label: for the legend; the default states probes, steps and products.
    """
    if ax is None:
        from matplotlib import pyplot as plt

        _, ax = plt.subplots()
    one = 1 / (result.n * np.sqrt(2 * np.pi) * result.width)
    grid = result.grid(points)
    bulk = result.density_band(grid, atoms=False)
    shown = bulk.value > 0.1 * one
    label = label or f"{result.probes} probes, {result.steps} steps, {result.products} products"
    style: dict[str, Any] = {"color": color}
    ax.plot(grid, np.where(shown, bulk.value, np.nan), label=label, **style)
    band = 2 * np.nan_to_num(bulk.stderr)
    low, high = np.maximum(bulk.value - band, 0.1 * one), bulk.value + band
    ax.fill_between(grid, low, high, where=shown, alpha=0.25, lw=0, **style)
    if len(result.atoms):
        ax.vlines(result.atoms, 0.1 * one, one, lw=1, **style)
        ax.plot(result.atoms, np.full(len(result.atoms), one), "o", ms=4, **style)
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.1 * one)
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density")
    ax.legend()
    return ax
