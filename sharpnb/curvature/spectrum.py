r"""The result of a spectral density estimate: exact atoms, and quadrature for the rest.

The spectrum of a symmetric matrix of order n is the measure :math:`\mu = \frac1n\sum_i \delta_{\lambda_i}`. Its
estimate from r locked eigenvalues (atoms) and P probes, nodes :math:`\theta` and weights :math:`\omega` (of sum 1), is

.. math:: \hat\mu = \frac1n\sum_{i\le r}\delta_{\lambda_i}
          + \frac{n-r}{n}\,\frac1P\sum_{p=1}^{P}\sum_k \omega_{pk}\,\delta_{\theta_{pk}}

(Ubaru, Chen & Saad, SIAM Journal on Matrix Analysis and Applications 38, 2017, for the quadrature; Bhattacharjee,
Jayaram, Musco, Musco & Ray, "Improved spectral density estimation via explicit and implicit deflation", for the atoms).
Standard errors are over probes; they are 0 when the atoms are everything and NaN for a single probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sharpnb.curvature.lanczos import Ended, Ending, LanczosResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Kernel width as a share of the range: twenty widths fit between eigenvalues a tenth of the range apart.
WIDTH = 0.005


class Estimate(NamedTuple):
    """A value and its standard error over probes (floats, or arrays of one shape)."""

    value: Any
    stderr: Any


class Bracket(NamedTuple):
    """A share of the spectrum.

    Attributes:
        value: the estimate.
        lower, upper: what the quadrature guarantees for these probes, whatever the spectrum (Chebyshev, Markov and
            Stieltjes): far apart means that no number of probes settles it, only more steps.
        stderr: standard error over probes.
    """

    value: Any
    lower: Any
    upper: Any
    stderr: Any


@dataclass(frozen=True, repr=False)
class SpectralDensity(Ended):
    """The spectrum of an operator, estimated.

    Attributes:
        n: order of the operator.
        atoms: locked eigenvalues, largest first ``(r,)``; each has weight 1/n.
        atom_residuals: bounds on their residual norms ``(r,)``.
        runs: one Lanczos run a probe (bases dropped), on the complement of the locked vectors.
        steps, seed: of the probes, as asked for.
        products: operator-vector products used, deflation included.
        ending: how it ended. ``CONVERGED``: half the steps give the same distribution to within one kernel width
            (Wasserstein-1); ``BREAKDOWN``: the quadrature of every probe is exact.
        bytes: memory of the probes' bases. The locked vectors come on top; the first phase's basis is gone by then.
    """

    n: int
    atoms: np.ndarray
    atom_residuals: np.ndarray
    runs: tuple[LanczosResult, ...]
    steps: int
    seed: int
    products: int
    ending: Ending
    bytes: int

    def __repr__(self) -> str:
        return f"SpectralDensity({self.summary()})"

    @property
    def probes(self) -> int:
        """Number of probes used."""
        return len(self.runs)

    @property
    def nodes(self) -> np.ndarray:
        """Quadrature nodes of all probes ``(N,)``."""
        return np.concatenate([np.zeros(0), *(run.values for run in self.runs)])

    @property
    def weights(self) -> np.ndarray:
        """Weights of the nodes ``(N,)``: they add to the share of the spectrum that is not atoms, (n - r)/n."""
        return np.concatenate([np.zeros(0), *(run.weights for run in self.runs)]) * self._bulk / max(self.probes, 1)

    @property
    def _bulk(self) -> float:
        return (self.n - len(self.atoms)) / self.n

    def _over_probes(self, of_run: Sequence[Any], exact: Any) -> Estimate:
        """Return ``exact`` plus the bulk's share of the mean over probes, with its standard error."""
        if not self.probes:
            lost = np.zeros_like(exact, dtype=float) + (np.nan if self._bulk > 0 else 0.0)
            return Estimate(exact + lost, lost)
        each = self._bulk * np.asarray(of_run, dtype=float)
        spread = each.std(axis=0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else np.full(each.shape[1:], np.nan)
        return Estimate(exact + each.mean(axis=0), spread)

    @cached_property
    def lambda_max(self) -> float:
        """Largest eigenvalue (a lower bound within its residual)."""
        return float(max(np.concatenate([self.atoms, self.nodes]), default=np.nan))

    @cached_property
    def lambda_min(self) -> float:
        """Smallest eigenvalue (an upper bound within its residual)."""
        return float(min(np.concatenate([self.atoms, self.nodes]), default=np.nan))

    @property
    def scale(self) -> float:
        """Largest magnitude in the spectrum."""
        return max(abs(self.lambda_max), abs(self.lambda_min))

    def moments(self, k: int) -> Estimate:
        r"""Return the first k moments :math:`\frac1n\mathrm{tr}\,A^j`, j = 1..k, as arrays ``(k,)``.

        For each probe they are exact up to j = 2 steps - 1.
        """
        powers = np.arange(1, k + 1)[:, None]
        each = [(run.values**powers) @ run.weights for run in self.runs]
        return Estimate(*map(np.asarray, self._over_probes(each, (self.atoms**powers).sum(axis=1) / self.n)))

    @property
    def trace(self) -> Estimate:
        r"""Trace: :math:`\sum_i\lambda_i + (n-r)\,\overline{\alpha_1}`."""
        value, stderr = self.moments(1)
        return Estimate(float(self.n * value[0]), float(self.n * stderr[0]))

    @property
    def frobenius(self) -> Estimate:
        r"""Frobenius norm :math:`\sqrt{\mathrm{tr} A^2}`; its error is that of the square over twice the norm."""
        square = self._over_probes([run.values**2 @ run.weights for run in self.runs], (self.atoms**2).sum() / self.n)
        value = float(np.sqrt(self.n * square.value))
        return Estimate(value, float(self.n * square.stderr / (2 * value)) if value else 0.0)

    def ratio(self, i: int, j: int) -> float:
        r"""Return :math:`\lambda_i/\lambda_j`, counted from the largest (``ratio(1, 5)`` is SAM's measure of a bulk).

        Raises:
            ValueError: if fewer than j eigenvalues from the top were locked: a probe does not know their number.
        """
        top, need = self.top, max(i, j)
        if min(i, j) < 1 or need > len(top):
            raise ValueError(f"ratio({i}, {j}) needs the {need} largest eigenvalues, and {len(top)} from the top are "
                             f"locked. Use spectral_density(..., deflate={need + 5}) or top_eigenvalues(op, {need}).")
        return float(top[i - 1] / top[j - 1]) if top[j - 1] else float("nan")

    @property
    def top(self) -> np.ndarray:
        """Locked eigenvalues above everything that the probes see: the largest of the spectrum, in order."""
        edge = max(self.nodes, default=-np.inf)
        return self.atoms[self.atoms >= edge]

    def cdf(self, x: Any) -> Bracket:
        """Return the share of eigenvalues at or below ``x`` (any shape), with the quadrature's bracket."""
        x = np.asarray(x, dtype=float)
        exact = (self.atoms <= x[..., None]).sum(axis=-1) / self.n
        cuts = [_cut(run, x) for run in self.runs]
        value, lower, upper = (self._over_probes([cut[i] for cut in cuts], exact) for i in range(3))
        found = value.value, lower.value, upper.value, value.stderr
        return Bracket(*(float(each) if np.ndim(each) == 0 else each for each in found))

    def negative_share(self, tol: float = 1e-2) -> Bracket:
        r"""Return the share of eigenvalues below :math:`-\mathrm{tol}\cdot\max|\lambda|`.

        At tol = 0 the many eigenvalues next to zero make the bracket nearly as wide as the unit interval, and an error
        bar over probes does not show it: look at ``lower`` and ``upper``.
        """
        return self.cdf(np.nextafter(-tol * self.scale, -np.inf))

    @property
    def width(self) -> float:
        """The kernel width of a resolved eigenvalue: ``WIDTH`` of the range (of the magnitude if there is no range)."""
        spread = self.lambda_max - self.lambda_min
        return WIDTH * (spread if spread > 1e-9 * self.scale else self.scale or 1.0)

    def density(self, grid: Any) -> np.ndarray:
        """Return the density on ``grid`` (any shape): a Gaussian a node, atoms included. It integrates to 1.

        The points are in the unit of the eigenvalues; :meth:`grid` proposes some. Atoms have a kernel of standard
        deviation :attr:`width`; a node has the smaller of its residual bound (how well it is known) and half the
        distance between its neighbours (how far its mass reaches), but at least :attr:`width`. All scale with the
        operator.
        """
        return self.density_band(grid).value

    def density_band(self, grid: Any, atoms: bool = True) -> Estimate:
        """Return the density on ``grid`` and its standard error over probes, with or without the atoms."""
        grid, at = np.asarray(grid, dtype=float), self.atoms if atoms else np.zeros(0)
        exact = _kernels(grid, at, np.full(len(at), 1 / self.n), np.full(len(at), self.width))
        curves = [_kernels(grid, run.values, run.weights, self._widths(run)) for run in self.runs]
        return self._over_probes(curves, exact) if self.probes else Estimate(exact, exact * 0)

    def _widths(self, run: LanczosResult) -> np.ndarray:
        nodes = run.values
        padded = np.concatenate([nodes[:1], nodes, nodes[-1:]])
        return np.maximum(np.minimum(run.residuals, (padded[2:] - padded[:-2]) / 2), self.width)

    def grid(self, points: int = 2000) -> np.ndarray:
        """Return points that cover every kernel, dense enough for the narrowest."""
        around = 5 * max([self.width, *(self._widths(run).max() for run in self.runs)])
        return np.linspace(self.lambda_min - around, self.lambda_max + around, points)

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain Python, for a record."""
        numbers = {"trace": self.trace, "frobenius": self.frobenius, "negative_share": self.negative_share()}
        return {
            "n": self.n, "lambda_max": self.lambda_max, "lambda_min": self.lambda_min,
            **{name if field == "value" else f"{name}_{field}": value
               for name, found in numbers.items() for field, value in found._asdict().items()},
            "atoms": self.atoms.tolist(), "probes": self.probes, "steps": self.steps, "products": self.products,
            "seed": self.seed, "ending": self.ending.name.lower(),
        }

    def summary(self) -> str:
        """Return the numbers in a few lines."""
        trace, norm, negative = self.trace, self.frobenius, self.negative_share()
        return "\n".join([
            f"order {self.n}, {self.products} products: {len(self.atoms)} eigenvalues locked, "
            f"{self.probes} probes of {self.steps} steps",
            f"eigenvalues in [{self.lambda_min:.4g}, {self.lambda_max:.4g}], largest: "
            + ", ".join(f"{value:.4g}" for value in self.top[:5]),
            f"trace {trace.value:.4g} ± {trace.stderr:.2g}, Frobenius norm {norm.value:.4g} ± {norm.stderr:.2g}",
            f"below -1 % of the largest magnitude: {negative.value:.3%} ± {negative.stderr:.2%}, "
            f"certainly within [{negative.lower:.3%}, {negative.upper:.3%}] for these probes",
            f"ending: {self.ending.value}",
        ])

    def plot(
        self, ax: Axes | None = None, *, points: int = 2000, color: str = "C0", label: str | None = None
    ) -> Axes:
        """Draw the bulk as a density with its error band, outliers as stems, both on one log axis; return the axes.

        A stem is as high as the atom's kernel in :meth:`density`, so that bulk and outliers share a unit: the share of
        all eigenvalues per unit of eigenvalue. The axis ends a decade below one eigenvalue.

        Args:
            ax: axes to draw on; default new ones (matplotlib is imported here).
            points: of the curve.
            color: of curve and stems.
            label: for the legend; the default states probes, steps and products.
        """
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots()[1]
        one = 1 / (self.n * np.sqrt(2 * np.pi) * self.width)
        grid = self.grid(points)
        bulk = self.density_band(grid, atoms=False)
        shown, band = bulk.value > 0.1 * one, 2 * np.nan_to_num(bulk.stderr)
        label = label or f"{self.probes} probes, {self.steps} steps, {self.products} products"
        ax.plot(grid, np.where(shown, bulk.value, np.nan), label=label, color=color)
        low, high = np.maximum(bulk.value - band, 0.1 * one), bulk.value + band
        ax.fill_between(grid, low, high, where=shown, alpha=0.25, lw=0, color=color)
        if len(self.atoms):
            ax.vlines(self.atoms, 0.1 * one, one, lw=1, color=color)
            ax.plot(self.atoms, np.full(len(self.atoms), one), "o", ms=4, color=color)
        ax.set(yscale="log", xlabel="eigenvalue", ylabel="density")
        ax.set_ylim(bottom=0.1 * one)
        ax.legend()
        return ax


def _kernels(grid: np.ndarray, at: np.ndarray, weights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    z = (grid[..., None] - at) / widths
    return np.exp(-0.5 * z * z) @ (weights / (np.sqrt(2 * np.pi) * widths))


def _cut(run: LanczosResult, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mass at or below x, and the bounds: without the node left of x, and with the node right of it."""
    sums = np.concatenate([[0.0], np.cumsum(run.weights)])
    before, left = (np.searchsorted(run.values, x, side=side) for side in ("left", "right"))
    if run.ending is Ending.BREAKDOWN:
        return sums[left], sums[left], sums[left]  # the measure is the quadrature itself
    return sums[left], sums[np.maximum(before - 1, 0)], sums[np.minimum(left + 1, len(run.values))]


def wasserstein(a: np.ndarray, u: np.ndarray, b: np.ndarray, v: np.ndarray) -> float:
    r"""Return :math:`\int|F_a - F_b|` for nodes ``a``, ``b`` with weights ``u``, ``v`` of equal sums."""
    at = np.concatenate([a, b])
    order = np.argsort(at, kind="stable")
    difference = np.cumsum(np.concatenate([u, -v])[order])
    return float(np.abs(difference[:-1]) @ np.diff(at[order]))
